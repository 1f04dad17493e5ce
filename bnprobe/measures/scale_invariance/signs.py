"""What a negative factor does."""

from collections.abc import Sequence

import numpy as np
import torch

from bnprobe.errors import NotMeasuredError
from bnprobe.measures.scale_invariance.confirmation import Tester
from bnprobe.measures.scale_invariance.hypotheses import Array, Hypothesis
from bnprobe.measures.scale_invariance.listening import Relative
from bnprobe.measures.scale_invariance.prediction import Site

__all__ = ["equivariant"]


def equivariant(
    tester: Tester, kept: Sequence[Hypothesis], sites: Sequence[Site], tolerance: float
) -> tuple[set[int], set[int]]:
    """Places of the hypotheses whose sign x-hat takes over, nothing else happening; and of those tried.

    Random signs are given to all weights that feed known normalizations; giving x-hat the same signs once more must
    give the same loss. Weights that reach them through a nonlinearity do not pass; then those that scale a
    normalization channel by channel are tried alone.
    """
    fed = {place for site in sites if site.explained for place, _ in site.fed_by}
    through = {place for site in sites if not site.explained for place, _ in site.fed_by}
    tried = {place for place in fed - through if not kept[place].shift and len(kept[place].members) == 1}
    direct = {place for site in sites for place, each in site.fed_by if each}
    for some in (tried, tried & direct):
        if some and _same_loss(tester, kept, sites, some, tolerance):
            return some, tried
    return set(), set()


def _same_loss(
    tester: Tester, kept: Sequence[Hypothesis], sites: Sequence[Site], places: set[int], tolerance: float
) -> bool:
    drawn: dict[int, Array] = {}
    for place in sorted(places):
        signs = tester.generator.choice((-1.0, 1.0), kept[place].count)
        signs[0] = -1.0
        drawn[place] = signs
    expected = {index: _signs(site, kept, drawn) for index, site in enumerate(sites)}
    some = [kept[place] for place in sorted(places)]
    changes = tester.changes(some, [drawn[place] for place in sorted(places)])
    try:
        found = tester.passes.run(Relative(tester.screened.seen, expected), changes, backward=False)
    except NotMeasuredError:
        return False
    before, after = float(tester.screened.loss), float(found.loss)
    return abs(after - before) <= tolerance * abs(before)


def _signs(site: Site, kept: Sequence[Hypothesis], drawn: dict[int, Array]) -> torch.Tensor:
    """``[1, K]`` of one normalization."""
    signs = np.ones(site.variances.shape[1])
    for place, each in site.fed_by:
        if place not in drawn:
            continue
        one = kept[place]
        channels = one.of_channels(drawn[place], one.members[0], 1.0)
        signs = signs * ((channels if len(channels) == len(signs) else drawn[place]) if each else drawn[place][0])
    return torch.from_numpy(signs)[None]
