"""Which layer feeds which, read off the autograd graph of one forward pass."""

from collections.abc import Sequence
from typing import Any

__all__ = ["Flow"]

_LIMIT = 10_000  # nodes walked from one input: beyond, the region without layers is not worth the time


class Flow:
    """Edges between layers: from the layer that made a tensor to those that read it or something made of it.

    Operations without a layer (``relu(x) + y``) are looked through. The first pass with a graph decides; its graph is
    let go when it ends.

    Attributes:
        edges: by layer, those that it feeds.
        settled: whether they are known.
    """

    def __init__(self) -> None:
        self.edges: dict[str, list[str]] = {}
        self._made: dict[Any, str] = {}
        self._read: list[tuple[str, Any]] = []
        self.settled = False

    def saw(self, name: str, read: Sequence[Any], made: Sequence[Any]) -> None:
        """Layer ``name`` read tensors with the autograd nodes ``read`` and made some with the nodes ``made``."""
        if self.settled:
            return
        self._read.extend((name, node) for node in read if node is not None)
        self._made.update({node: name for node in made if node is not None})

    def forget(self) -> None:
        """Let go of a pass that did not end."""
        self._made, self._read = {}, []

    def settle(self) -> None:
        """The pass is over: follow each input back to the layers that made it."""
        if self.settled or not self._read:
            return
        for reader, node in self._read:
            for maker in self._makers(node):
                readers = self.edges.setdefault(maker, [])
                if reader not in readers and reader != maker:
                    readers.append(reader)
        self.settled = True
        self.forget()

    def _makers(self, start: Any) -> list[str]:
        found, seen, waiting = [], {start}, [start]
        while waiting and len(seen) < _LIMIT:
            node = waiting.pop()
            if node in self._made:
                found.append(self._made[node])
                continue
            after = [parent for parent, _ in node.next_functions if parent is not None and parent not in seen]
            seen.update(after)
            waiting.extend(after)
        return found
