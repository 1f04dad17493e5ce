"""Which calls of which layers a checkpoint runs again in the backward."""

from bnprobe.hooks.sites import Site

__all__ = ["Recomputation"]


class Recomputation:
    """The calls of one recomputation: those of the last checkpoint that has not been run again yet, in their order."""

    def __init__(self, backward: int = -1) -> None:
        self.backward, self.ended = backward, False
        self.indices: dict[Site, list[int]] = {}
        self._counts: dict[Site, int] = {}

    def add(self, site: Site) -> int:
        """One more call of a layer; the how many-eth here."""
        self._counts[site] = self._counts.get(site, 0) + 1
        return self._counts[site] - 1

    def end(self, hidden: dict[Site, list[int]]) -> None:
        """All have been run: they are the last of the first pass's calls without a graph, which are taken away."""
        if self.ended:
            return
        self.ended = True
        for site, count in self._counts.items():
            calls = hidden.get(site, [])
            self.indices[site] = calls[-count:] if len(calls) >= count else list(range(count))
            del calls[-count:]
