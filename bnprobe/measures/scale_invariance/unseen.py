"""Parameters before normalizations that compute their statistics by themselves, with an epsilon that nobody sees."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bnprobe.errors import NotMeasuredError
from bnprobe.measures.scale_invariance.confirmation import Tester
from bnprobe.measures.scale_invariance.hypotheses import Hypothesis, Products, products, scalings
from bnprobe.measures.scale_invariance.listening import Relative
from bnprobe.measures.scale_invariance.passes import Pass

__all__ = ["unseen"]

# Cosines of weight and gradient up to which epsilon may be to blame; how far away it is not any more; by how much the
# gradient times the weight may have changed there, which of a saturating nonlinearity vanishes (all ours).
_NEARLY, _FAR, _RANGE = 0.02, 1024.0, 30.0


def unseen(tester: Tester, found: Sequence[Products], known: set[int]) -> list[Hypothesis]:
    """Those that obey the law of scale invariance the better, the larger they are.

    Namely as 1 / a^2, which is what an epsilon does and nothing else is known to do.

    Args:
        tester: of the measurement.
        found: weights and gradients of the screening pass.
        known: places of the parameters that need no look.
    """
    some = [one for one in scalings(found, _NEARLY) if one.members[0] not in known]
    some = [one for one in some if tester.held[one.members[0]].tensor.dim() > 1]
    for _ in range(2):  # again without those that do not obey
        if not some or tester.passes.count >= tester.limit:
            return []
        far, there = _at_a_distance(tester, some)
        if far is None:
            return []
        tolerance = max(tester.exact, 16 * _NEARLY / _FAR**2)
        obeying = [one for one in some if _obeys(one, found[one.members[0]], there[one.members[0]], tolerance)]
        if len(obeying) == len(some):
            distant = replace(tester, screened=far, start=_FAR, refuted=[])
            return distant.surviving(some, tester.powers, 16 * tolerance)[0]
        some = obeying
    return []


def _at_a_distance(tester: Tester, some: Sequence[Hypothesis]) -> tuple[Pass | None, list[Products]]:
    factors = [np.full(one.count, _FAR) for one in some]
    try:
        far = tester.passes.run(Relative(tester.screened.seen), tester.changes(some, factors))
    except NotMeasuredError:
        return None, []
    own = [tester.passes.own(place) for place in range(len(tester.held))]
    for one in some:
        own[one.members[0]] = own[one.members[0]] * _FAR
    return far, products(tester.held, own, far.gradients)


def _obeys(hypothesis: Hypothesis, near: Products, far: Products, tolerance: float) -> bool:
    units = hypothesis.units[0]
    inner = np.abs(np.bincount(units, far.inner, hypothesis.count))
    weight, gradient = (np.sqrt(np.bincount(units, one**2, hypothesis.count)) for one in (far.weight, far.gradient))
    before = np.sqrt(np.bincount(units, near.gradient**2, hypothesis.count))
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = _FAR * gradient / before
    alike = (kept > 1 / _RANGE) & (kept < _RANGE) | (before == 0)
    return bool((inner <= tolerance * weight * gradient).all() and alike.all() and gradient.any())
