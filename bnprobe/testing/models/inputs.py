"""Inputs for a model of which nothing else is known."""

import torch
from hypothesis.strategies import SearchStrategy
from torch import nn

from bnprobe.errors import ArgumentError
from bnprobe.hooks.sites import unwrap
from bnprobe.testing.strategies.batch import Batch
from bnprobe.testing.strategies.batches import Shape, recipes

__all__ = ["inputs_for"]

# Of images and sequences; ours: a small one first, then one that survives five halvings.
_EXTENTS = (8, 32)
_SAMPLES = (2, 6)
_KINDS = ("gaussian", "integers", "sparse", "correlated")


def inputs_for(model: nn.Module) -> SearchStrategy[Batch]:
    """Recipes of batches in the shape that the model's first linear or convolutional layer wants.

    Raises:
        ArgumentError: it takes none of these; inputs must be given.
    """
    refusal = "it has no linear or convolutional layer"
    root = unwrap(model).eval()
    for shape, channels in _candidates(root):
        sizes = [4 if name == "N" else channels if name == "C" else int(name) for name in shape]
        device = next((one.device for one in root.parameters()), torch.device("cpu"))
        try:
            with torch.no_grad():
                root(torch.zeros(sizes, device=device))
        except Exception as error:  # whatever a foreign model refuses with
            refusal = f"{type(error).__name__}: {error}"
        else:
            return recipes(shape, channels=[channels], kinds=_KINDS, layouts=("contiguous",), samples=_SAMPLES)
    raise ArgumentError(f"what {type(root).__name__} takes cannot be guessed; inputs must be given ({refusal})")


def _candidates(root: nn.Module) -> list[tuple[Shape, int]]:
    for module in root.modules():
        if isinstance(module, nn.Linear):
            return [(("N", "C"), module.in_features), (("N", 5, "C"), module.in_features)]
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            axes = len(module.kernel_size)
            return [(("N", "C", *[extent] * axes), module.in_channels) for extent in _EXTENTS]
    return []
