"""Moments of the gradient at a layer's output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bnprobe.hooks.sites import Site
from bnprobe.records import Measured
from bnprobe.statistics.base import Observation, Statistic
from bnprobe.statistics.moments import Moments, MomentsState

__all__ = ["Gradients"]


@dataclass(frozen=True)
class Gradients(Statistic):
    """The moments of :class:`Moments`, of the gradient at a layer's output (place ``grad_output``).

    With it a probe also records, at place ``weight`` and just before the optimizer's step, the Euclidean norms of a
    layer's weights (``norm``) and of their gradient (``grad_norm``). Gradients are recorded as they are: summed over
    what accumulated. Only the scale of a gradient scaler that the probe was given is undone (in ``grad_norm`` the
    scaler has undone it itself by then).

    Args:
        exact: read every value.
    """

    exact: bool = False

    @property
    def reads_all(self) -> bool:
        """Whether every value is read."""
        return self.exact

    @property
    def _moments(self) -> Moments:
        return Moments(exact=self.exact, places=("grad_output",))

    def applies(self, site: Site, place: str) -> bool:
        """Every layer, at ``grad_output``."""
        return self._moments.applies(site, place)

    def update(self, state: MomentsState | None, seen: Observation) -> MomentsState:
        """One more gradient."""
        return self._moments.update(state, seen)

    def merge(self, a: MomentsState | None, b: MomentsState | None) -> MomentsState | None:
        """As moments do."""
        return self._moments.merge(a, b)

    def finish(self, states: Sequence[MomentsState]) -> Mapping[str, Measured]:
        """All of :class:`Moments`."""
        return self._moments.finish(states)

    def measure(self, seen: Sequence[Observation]) -> Mapping[str, Measured]:
        """All of :class:`Moments`."""
        return self._moments.measure(seen)
