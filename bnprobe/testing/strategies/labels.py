"""Sets of labels."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from bnprobe.errors import ArgumentError

__all__ = ["Labels", "label_sets"]

_KINDS = ("balanced", "long_tailed", "one_class")


@dataclass(frozen=True)
class Labels:
    """Labels of a data set, in no particular order, as a recipe.

    Attributes:
        samples: how many.
        classes: how many there can be.
        kind: ``"balanced"``: as many of each as can be; ``"long_tailed"``: each class half as likely as the one before;
            ``"one_class"``: all the same.
        seed: of their order, and of the draw of a long tail.

    Raises:
        ArgumentError: there is no such kind.
    """

    samples: int
    classes: int = 2
    kind: str = "balanced"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ArgumentError(f"kind must be one of {', '.join(_KINDS)}; got {self.kind!r}")

    def tensor(self) -> Tensor:
        """Integer labels ``[samples]``."""
        rng = np.random.default_rng(self.seed)
        if self.kind == "one_class":
            drawn = np.full(self.samples, rng.integers(self.classes))
        elif self.kind == "long_tailed":
            weights = 0.5 ** np.arange(self.classes)
            drawn = rng.choice(self.classes, self.samples, p=weights / weights.sum())
        else:
            drawn = rng.permutation(np.arange(self.samples) % self.classes)
        return torch.from_numpy(drawn.astype(np.int64))


def label_sets(samples: tuple[int, int] = (1, 64), classes: tuple[int, int] = (1, 5)) -> st.SearchStrategy[Labels]:
    """Recipes of labels; ``.tensor()`` makes them. Shrinks to few samples of one class."""
    return st.builds(Labels, st.integers(*samples), st.integers(*classes), st.sampled_from(_KINDS), st.integers(0, 99))
