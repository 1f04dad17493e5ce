"""What was remembered of a tensor, for when another layer shows the same one."""

import weakref
from typing import Any

from torch import Tensor

__all__ = ["Identities"]


class Identities:
    """What was remembered of tensors, found again by identity as long as they live and nobody writes into them.

    Attributes:
        kept: by ``id``, what may be found.
    """

    def __init__(self) -> None:
        self.kept: dict[int, tuple[weakref.ref[Tensor], int, Any]] = {}

    def keep(self, tensor: Tensor, memory: Any) -> None:
        """Remember something of a tensor."""
        if not tensor.is_inference():  # inference tensors have no version to tell a write by
            self.kept[id(tensor)] = (weakref.ref(tensor), tensor._version, memory)

    def find(self, tensor: Tensor) -> Any:
        """What was remembered of this very tensor as it is, or None."""
        kept = self.kept.get(id(tensor))
        if kept is None or kept[0]() is not tensor or kept[1] != tensor._version:
            return None
        return kept[2]

    def forget(self) -> None:
        """Remember nothing."""
        self.kept.clear()
