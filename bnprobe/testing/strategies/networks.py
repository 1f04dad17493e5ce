"""Small networks with batch norm, as recipes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from bnprobe.errors import ArgumentError
from bnprobe.testing.strategies.batch import Batch

__all__ = ["ACTIVATIONS", "WIRINGS", "Network", "networks"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
}
# A plain chain; each block's input added to its output; one block, its batch norm included, called twice at least.
WIRINGS = ("plain", "residual", "shared")
_SIZE = 4  # height and width of an image; ours: the least that a 3x3 kernel does not cover


@dataclass(frozen=True, repr=False)
class Network:
    """What a network is made of; its ``repr`` is an expression that makes it again.

    A stem, ``depth`` blocks of weights, batch norm and nonlinearity, a mean over positions, a linear head.

    Attributes:
        kind: of its weights, ``"linear"`` or ``"conv"``.
        wiring: one of :data:`WIRINGS`.
        depth: number of blocks.
        width: channels.
        activation: a key of :data:`ACTIVATIONS`.
        bias: whether the weights before batch norm have one.
        seed: of the parameters.

    Raises:
        ArgumentError: a word that there is not.
    """

    kind: str = "linear"
    wiring: str = "plain"
    depth: int = 2
    width: int = 4
    activation: str = "relu"
    bias: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for what, known in (("kind", ("linear", "conv")), ("wiring", WIRINGS), ("activation", tuple(ACTIVATIONS))):
            if getattr(self, what) not in known:
                raise ArgumentError(f"{what} must be one of {', '.join(known)}; got {getattr(self, what)!r}")

    @property
    def outputs(self) -> int:
        """Classes."""
        return 3

    def module(self) -> nn.Module:
        """The network, with parameters of its own seed; torch's random stream is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return _Net(self)

    def __call__(self) -> nn.Module:
        """As :meth:`module`, so that a recipe is a ``make_model``."""
        return self.module()

    def batch(self, samples: int = 8, kind: str = "gaussian", seed: int = 0) -> Batch:
        """A recipe of its input."""
        inner = (_SIZE, _SIZE) if self.kind == "conv" else ()
        return Batch((samples, 3, *inner), kind, seed)

    def __repr__(self) -> str:
        """An expression, without what is at its default."""
        told = [
            f"{name}={getattr(self, name)!r}"
            for name, field in self.__dataclass_fields__.items()
            if getattr(self, name) != field.default
        ]
        return f"Network({', '.join(told)})"


class _Net(nn.Module):
    def __init__(self, recipe: Network) -> None:
        super().__init__()
        self.residual = recipe.wiring == "residual"
        self.stem = _block(recipe, 3)
        if recipe.wiring == "shared":
            one = _block(recipe, recipe.width)
            self.blocks = nn.ModuleList([one] * max(recipe.depth, 2))
        else:
            self.blocks = nn.ModuleList(_block(recipe, recipe.width) for _ in range(recipe.depth))
        self.head = nn.Linear(recipe.width, recipe.outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x) if self.residual else block(x)
        result: Tensor = self.head(x.flatten(2).mean(2) if x.ndim > 2 else x)
        return result


def _block(recipe: Network, inputs: int) -> nn.Module:
    width, bias = recipe.width, recipe.bias
    if recipe.kind == "conv":
        weights: nn.Module = nn.Conv2d(inputs, width, 3, padding=1, bias=bias)
        norm: nn.Module = nn.BatchNorm2d(width)
    else:
        weights, norm = nn.Linear(inputs, width, bias=bias), nn.BatchNorm1d(width)
    return nn.Sequential(weights, norm, ACTIVATIONS[recipe.activation]())


def networks(
    kinds: Sequence[str] = ("linear", "conv"),
    wirings: Sequence[str] = WIRINGS,
    *,
    depths: tuple[int, int] = (1, 3),
    widths: tuple[int, int] = (2, 6),
    activations: Sequence[str] = tuple(ACTIVATIONS),
) -> st.SearchStrategy[Network]:
    """Recipes of networks; shrinks to one plain block of two linear units without a nonlinearity.

    Args:
        kinds: of weights.
        wirings: of :data:`WIRINGS`.
        depths: least and largest.
        widths: least and largest.
        activations: keys of :data:`ACTIVATIONS`.
    """
    return st.builds(
        Network,
        kind=st.sampled_from(kinds),
        wiring=st.sampled_from(wirings),
        depth=st.integers(*depths),
        width=st.integers(*widths),
        activation=st.sampled_from(activations),
        bias=st.booleans(),
        seed=st.integers(0, 99),
    )
