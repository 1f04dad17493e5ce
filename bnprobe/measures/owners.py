"""Which layer a parameter belongs to."""

from collections.abc import Container, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from bnprobe.hooks.sites import named_layers

__all__ = ["Owner", "owners"]


@dataclass(frozen=True)
class Owner:
    """A layer and the parameters that count as its own."""

    name: str
    parameters: Sequence[Tensor]


def owners(root: nn.Module, order: Sequence[str], used: Container[int]) -> tuple[list[Owner], dict[str, str]]:
    """Layers with parameters of their own that train, and why other modules with parameters are none.

    Parameters of a module that is not called, but used, belong to the nearest module around it that is called;
    those of parametrizations to what is parametrized; shared ones to the layer that is called first.

    Args:
        root: the model.
        order: names of the modules that a forward calls, in the order of its calls.
        used: identities of the parameters that a result depends on.

    Returns:
        The layers in that order, and by name the reasons.
    """
    held: dict[str, list[Tensor]] = {name: [] for name in order}
    why: dict[str, str] = {}
    for name, module in named_layers(root):
        parameters = _own(module)
        around = _called_around(name, held)
        if around != name and parameters:
            parameters = [one for one in parameters if id(one) in used]
            why[name] = "it is not called in this forward"
            if around is not None and parameters:
                why[name] = f"it is not called as a module; its parameters count as those of {around!r}"
        if around is not None:
            held[around] += parameters
    taken: dict[int, str] = {}
    layers = []
    for name in order:
        mine = [one for one in held[name] if taken.setdefault(id(one), name) == name]
        if mine:
            layers.append(Owner(name, list({id(one): one for one in mine}.values())))
        elif held[name]:
            why[name] = f"its parameters count as those of {taken[id(held[name][0])]!r}, which shares them"
    return layers, why


def _own(module: nn.Module) -> list[Tensor]:
    """Those that train, of the module itself and of parametrizations of its tensors."""
    parametrized = getattr(module, "parametrizations", None)
    inner = list(parametrized.parameters()) if isinstance(parametrized, nn.ModuleDict) else []
    return [one for one in (*module.parameters(recurse=False), *inner) if one.requires_grad]


def _called_around(name: str, called: Container[str]) -> str | None:
    """The nearest module around that is called, itself included."""
    while name not in called:
        if not name:
            return None
        name = name.rpartition(".")[0]
    return name
