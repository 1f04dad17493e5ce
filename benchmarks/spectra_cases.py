"""What ``python -m benchmarks spectra`` measures: subjects, ways and targets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import spectra_ways as ways
from benchmarks.models import mlp, resnet
from benchmarks.spectra_reference import blocks, channels, dense, sparse_ends
from benchmarks.spectra_ways import Way

__all__ = ["ACCURACY", "DUELS", "Case", "Duel"]

Made = tuple[nn.Module, Tensor]


@dataclass(frozen=True)
class Case:
    """A model at an input, and values in double precision to compare with.

    Attributes:
        name: how the result calls it.
        make: the model, in the mode that is meant, and its input; after ``torch.manual_seed(0)``.
        options: of :func:`bnprobe.spectrum`.
        reference: ``(model, x, options)`` to values ``[N, k]``; the model and its input are in double precision.
    """

    name: str
    make: Callable[[], Made]
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: Callable[[nn.Module, Tensor, Mapping[str, Any]], Tensor] = blocks


@dataclass(frozen=True)
class Duel(Case):
    """Beside it: what users do today, and what is promised.

    Attributes:
        rivals: by name.
        least: by rival, how many times faster ours must be than it.
        best_of: ours must be no slower than the quickest of these.
        limit: milliseconds that ours may take; None: no such promise.
        memory: by rival, the share of its peak memory that ours may need.
    """

    rivals: Mapping[str, Way] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)
    best_of: tuple[str, ...] = ()
    limit: float | None = None
    memory: Mapping[str, float] = field(default_factory=dict)


class Encoder(nn.Module):
    """Two layers of a transformer encoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


def at(model: Callable[[], nn.Module], *shape: int, train: bool = True) -> Callable[[], Made]:
    """A model and a normal input of that shape."""
    return lambda: (model().train(train), torch.randn(*shape))


def plain_mlp() -> nn.Module:
    """The network of :func:`benchmarks.models.mlp` without batch normalization."""
    return nn.Sequential(*(one for one in mlp() if not isinstance(one, nn.BatchNorm1d)))


def layer_norm() -> nn.Module:
    """With gammas that differ, as training leaves them."""
    layer = nn.LayerNorm(256)
    nn.init.normal_(layer.weight, 1.0, 0.1)
    return layer


def conv() -> nn.Module:
    """16 to 32 channels."""
    return nn.Conv2d(16, 32, 3, padding=1)


def stack() -> nn.Module:
    """3x32x32 to 16x32x32."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
    )


def bent() -> nn.Module:
    """16 to 32 channels, and not linear: each sample has a Jacobian of its own."""
    return nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))


_TEN = {"k": 10}
_BOTH = {"k": (10, 3)}

DUELS = (
    Duel(
        "batch_norm_64x32", at(lambda: nn.BatchNorm1d(32), 64, 32), reference=channels,
        rivals={"functional": ways.functional, "functional_vectorized": ways.functional_vectorized},
        least={"functional": 1000},
    ),
    Duel("batch_norm_16x16x8x8", at(lambda: nn.BatchNorm2d(16), 16, 16, 8, 8), reference=channels, limit=5.0),
    Duel(
        "layer_norm", at(lambda: nn.LayerNorm(256), 32, 256),
        rivals={"vmap": ways.jacrev_vmapped}, least={"vmap": 20},
    ),
    Duel(
        "layer_norm_gammas", at(layer_norm, 32, 256), rivals={"vmap": ways.jacrev_vmapped}, least={"vmap": 20},
    ),
    Duel(
        "linear_512", at(lambda: nn.Linear(512, 512), 8, 512),
        rivals={"svdvals_of_weight": ways.weight_svd}, least={"svdvals_of_weight": 1 / 1.1},
    ),
    Duel(
        "mlp", at(plain_mlp, 32, 784),
        rivals={"loop": ways.jacrev_loop, "vmap": ways.jacrev_vmapped}, least={"loop": 5, "vmap": 1},
    ),
    Duel(
        "mlp_batch_norm_eval", at(mlp, 32, 784, train=False),
        rivals={"loop": ways.jacrev_loop, "vmap": ways.jacrev_vmapped}, least={"loop": 5, "vmap": 1},
    ),
    Duel(
        "conv_stack", at(stack, 1, 3, 32, 32), reference=dense,
        rivals={"linearized": ways.linearized, "jacrev": ways.jacrev_once}, best_of=("linearized", "jacrev"),
    ),
    Duel(
        "conv_16_largest", at(conv, 1, 16, 16, 16), _TEN, sparse_ends,
        rivals={"arpack": ways.arpack, "lowrank": ways.lowrank}, least={"arpack": 1},
    ),
    Duel(
        "conv_32_largest", at(conv, 1, 16, 32, 32), _TEN, sparse_ends,
        rivals={"arpack": ways.arpack}, least={"arpack": 1},
    ),
    Duel(
        "conv_16_largest_of_16", at(conv, 16, 16, 16, 16), _TEN, sparse_ends,
        rivals={"arpack_each": ways.arpack_each}, least={"arpack_each": 3},
    ),
    Duel(
        "conv_32_largest_of_16", at(conv, 16, 16, 32, 32), _TEN, sparse_ends,
        rivals={"arpack_each": ways.arpack_each}, least={"arpack_each": 3},
    ),
    Duel(
        "conv_relu_conv_16_largest_of_16", at(bent, 16, 16, 16, 16), _TEN,
        rivals={"arpack_each": ways.arpack_each}, least={"arpack_each": 3},
    ),
    Duel(
        "conv_16_all", at(conv, 1, 16, 16, 16), reference=dense,
        rivals={"jacrev": ways.jacrev_once}, least={"jacrev": 1}, memory={"jacrev": 0.6},
    ),
)  # fmt: skip

ACCURACY = (
    Case("linear_512", at(lambda: nn.Linear(512, 512), 8, 512)),
    Case("conv_16_all", at(conv, 1, 16, 16, 16), reference=dense),
    Case("conv_16_ends", at(conv, 1, 16, 16, 16), _BOTH, sparse_ends),
    Case("conv_32_ends", at(conv, 1, 16, 32, 32), _BOTH, sparse_ends),
    Case("batch_norm_64x32", at(lambda: nn.BatchNorm1d(32), 64, 32), reference=dense),
    Case("batch_norm_16x16x8x8", at(lambda: nn.BatchNorm2d(16), 16, 16, 8, 8), reference=channels),
    Case("mlp", at(plain_mlp, 32, 784)),
    Case("mlp_batch_norm", at(mlp, 32, 784), reference=dense),
    Case("mlp_batch_norm_eval", at(mlp, 32, 784, train=False)),
    Case("conv_stack", at(stack, 1, 3, 32, 32), reference=dense),
    Case("conv_stack_ends", at(stack, 1, 3, 32, 32), {"k": (10, 3), "method": "Lanczos"}, dense),
    Case("resnet", at(lambda: resnet((8, 16), 1), 8, 3, 16, 16), reference=dense),
    Case("resnet_block", at(lambda: resnet((8, 16), 1), 4, 3, 8, 8), {"layer": "3"}, dense),
    Case("resnet_eval", at(lambda: resnet((8, 16), 1), 8, 3, 16, 16, train=False)),
    Case("encoder", at(Encoder, 4, 16, 64)),
    Case("encoder_ends", at(Encoder, 4, 16, 64), {"k": (10, 3), "method": "Lanczos"}),
)
