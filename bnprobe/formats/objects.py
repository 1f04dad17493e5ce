"""A diagnosis as JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bnprobe import __version__
from bnprobe.rules import Quantity, Severity

if TYPE_CHECKING:
    from bnprobe.diagnosis import Diagnosis, Finding

__all__ = ["as_json", "as_object", "jsonable", "of_quantity"]

FORMAT = 1  # grows when a reader of the old one would misread the new one


def as_json(diagnosis: "Diagnosis") -> str:
    """Everything but the evidence itself."""
    return json.dumps(as_object(diagnosis), indent=2, ensure_ascii=False, allow_nan=False)


def as_object(diagnosis: "Diagnosis") -> dict[str, Any]:
    """What JSON can hold: infinities are strings, NaN is None."""
    certificate = diagnosis.certificate
    found: dict[str, Any] = jsonable(
        {
            "tool": "bnprobe",
            "version": __version__,
            "format": FORMAT,
            "ok": diagnosis.ok,
            "findings": [_finding(one) for one in diagnosis.findings],
            "accepted": [_finding(one) for one in diagnosis.accepted],
            "not_run": [asdict(one) for one in diagnosis.not_run],
            "asked": diagnosis.asked,
            "certificate": None if certificate is None else [of_quantity(one) for one in certificate],
            "unchanged": dict(diagnosis.proof),
            "context": asdict(diagnosis.evidence.context),
            "evidence": str(diagnosis.run.path),
        }
    )
    return found


def _finding(finding: "Finding") -> dict[str, Any]:
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": str(finding.severity),
        "layer": finding.layer,
        "fingerprint": finding.fingerprint,
        "summary": finding.summary,
        "effect": of_quantity(finding.effect),
        "p_value": finding.p_value,
        "impact": of_quantity(finding.impact),
        "evidence": [of_quantity(one) for one in finding.evidence],
        "remedy": finding.remedy,
        "causes": finding.causes,
        "reference": finding.reference,
        "follows_from": finding.follows_from or None,
    }


def of_quantity(quantity: Quantity | None) -> dict[str, Any] | None:
    """Name, value, unit and interval; None for none."""
    return None if quantity is None else asdict(quantity)


def jsonable(value: Any) -> Any:
    """The value as JSON knows it: there is no infinity, and NaN is what has no value."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(one) for one in value]
    if isinstance(value, Severity):
        return str(value)
    if isinstance(value, str | bool | int | None):
        return _encodable(value) if isinstance(value, str) else value
    number = float(value)  # numpy's too
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return None if math.isnan(number) else number


def _encodable(text: str) -> str:
    """A name may hold half a character (a lone surrogate), which no file can."""
    return text.encode("utf-8", "replace").decode("utf-8")
