"""Counts of right and wrong diagnoses over set-ups and seeds, with Wilson intervals."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from bnprobe.rules import rules

__all__ = ["Outcome", "confusion", "outcome"]


@dataclass(frozen=True)
class Outcome:
    """One set-up at one seed.

    Attributes:
        name, case, half, expected: of the set-up.
        seed: which training.
        found: codes of findings at severity warning or above.
        right: sick and one of the expected is among them; healthy and there are none (but accepted ones).
        wrong: codes that are neither expected nor accepted.
        seconds: of the diagnosis.
        failed: what the doctor raised, if it did.
    """

    name: str
    case: str
    half: str
    expected: tuple[str, ...]
    seed: int
    found: tuple[str, ...]
    right: bool
    wrong: tuple[str, ...]
    seconds: float
    failed: str = ""


def outcome(setup: Any, seed: int, found: Iterable[str], seconds: float, failed: str = "") -> Outcome:
    """Hold what was found against what is right."""
    codes = tuple(sorted(set(found)))
    wrong = tuple(code for code in codes if code not in setup.expected | setup.accepted)
    seen = bool(setup.expected & set(codes)) if setup.expected else not wrong
    return Outcome(
        setup.name, setup.case, setup.half, tuple(sorted(setup.expected)), seed, codes, seen and not failed, wrong,
        round(seconds, 2), failed,
    )  # fmt: skip


def confusion(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Over all, and rule by rule: how many sick runs it sees, how many other runs it disturbs."""
    sick = [one for one in outcomes if one.expected]
    healthy = [one for one in outcomes if not one.expected]
    return {
        "sick": {
            "right finding": _share([one.right for one in sick]),
            "right finding and no wrong one on top": _share([one.right and not one.wrong for one in sick]),
        },
        "healthy": {"any finding of severity warning or above": _share([bool(one.wrong) for one in healthy])},
        "rules": {code: _of_rule(code, outcomes) for code in rules()},
        "seconds": {"median": _median([one.seconds for one in outcomes]), "most": max(one.seconds for one in outcomes)},
    }


def _of_rule(code: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    mine = [one for one in outcomes if code in one.expected]
    others = [one for one in outcomes if one.expected and code not in one.expected]
    healthy = [one for one in outcomes if not one.expected]
    return {
        "seen when sick": _share([code in one.found for one in mine]),
        "wrongly seen when another is": _share([code in one.wrong for one in others]),
        "wrongly seen when healthy": _share([code in one.wrong for one in healthy]),
    }


def _share(hits: Sequence[bool]) -> dict[str, Any]:
    """A share with its Wilson interval (Wilson 1927), 95 %."""
    if not hits:
        return {"of": 0}
    interval = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    ends = [round(float(interval.low), 4), round(float(interval.high), 4)]
    return {"count": sum(hits), "of": len(hits), "share": round(sum(hits) / len(hits), 4), "interval": ends}


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
