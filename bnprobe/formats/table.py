"""A diagnosis as a table."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from bnprobe.rules import Quantity

if TYPE_CHECKING:
    from bnprobe.diagnosis import Diagnosis, Finding

__all__ = ["as_frame"]

_NUMBERS = ("effect", "impact")
_COLUMNS = (
    "code", "name", "severity", "layer", "summary", "p_value",
    *(f"{number}{part}" for number in _NUMBERS for part in ("", "_low", "_high", "_unit", "_name")),
    "evidence", "remedy", "causes", "reference", "follows_from", "accepted",
)  # fmt: skip


def as_frame(diagnosis: "Diagnosis") -> pd.DataFrame:
    """A row a finding, accepted ones last; NaN where there is no number."""
    rows = [_row(one, accepted=False) for one in diagnosis.findings]
    rows += [_row(one, accepted=True) for one in diagnosis.accepted]
    numbers = ["p_value", *(f"{number}{part}" for number in _NUMBERS for part in ("", "_low", "_high"))]
    frame = pd.DataFrame(rows, columns=list(_COLUMNS))
    return frame.astype({**dict.fromkeys(numbers, "float64"), "accepted": "bool"})


def _row(finding: "Finding", *, accepted: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "code": finding.code,
        "name": finding.name,
        "severity": str(finding.severity),
        "layer": finding.layer,
        "summary": finding.summary,
        "p_value": finding.p_value,
        "evidence": "; ".join(map(str, finding.evidence)),
        "remedy": finding.remedy,
        "causes": "; ".join(finding.causes),
        "reference": "; ".join(finding.reference),
        "follows_from": finding.follows_from,
        "accepted": accepted,
    }
    for number, quantity in zip(_NUMBERS, (finding.effect, finding.impact), strict=True):
        row |= _cells(number, quantity)
    return row


def _cells(number: str, quantity: Quantity | None) -> dict[str, Any]:
    if quantity is None:
        return {f"{number}_unit": "", f"{number}_name": ""}
    ends = {f"{number}_low": quantity.low, f"{number}_high": quantity.high}
    return {number: quantity.value, **ends, f"{number}_unit": quantity.unit, f"{number}_name": quantity.name}
