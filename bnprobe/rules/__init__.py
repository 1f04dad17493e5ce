"""One pitfall of normalization a file; ``RULES`` has them all, by code.

Rules read evidence and nothing else, and need no torch: a diagnosis can be judged again from its run directory.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from bnprobe.rules.base import Opinion, Quantity, Rule, Severity
from bnprobe.rules.judgement import Judged, NotRun, judge

__all__ = ["Judged", "NotRun", "Opinion", "Quantity", "Rule", "Severity", "judge", "rules"]


@cache
def rules() -> dict[str, Rule]:
    """All rules with their default thresholds, by code."""
    found = {}
    for module in iter_modules(__path__):
        if module.name[0] == "n" and module.name[1:3].isdecimal():
            members = vars(import_module(f"{__name__}.{module.name}")).values()
            kinds = [one for one in members if isinstance(one, type) and issubclass(one, Rule) and one is not Rule]
            found.update({kind.code: kind() for kind in kinds})
    return dict(sorted(found.items()))
