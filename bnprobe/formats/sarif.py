"""A diagnosis as SARIF 2.1.0 (OASIS 2020), the format in which code hosts and editors read findings of tools."""

import json
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from bnprobe import __version__
from bnprobe.formats.groups import chance, kept, quantity
from bnprobe.formats.objects import jsonable, of_quantity
from bnprobe.rules import Rule, Severity, rules

if TYPE_CHECKING:
    from bnprobe.diagnosis import Diagnosis, Finding

__all__ = ["as_sarif"]

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


def as_sarif(diagnosis: "Diagnosis", source: str | None = None, line: int = 1) -> str:
    """One run of the tool: all rules with their help, a result a finding, and what was not run as notifications.

    Args:
        diagnosis: what to write.
        source: the file that makes the model, relative to the repository; None leaves files out.
        line: of that file.
    """
    known = rules()
    index = {code: number for number, code in enumerate(known)}
    physical = None if source is None else _physical(source, line)
    results = [_result(one, index, physical) for one in diagnosis.findings]
    suppressed = {"suppressions": [{"kind": "external", "justification": "accepted by the baseline file"}]}
    results += [_result(one, index, physical) | suppressed for one in diagnosis.accepted]
    driver = {"name": "bnprobe", "version": __version__, "rules": [_rule(rule) for rule in known.values()]}
    certificate = diagnosis.certificate
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        "invocations": [_invocation(diagnosis, index)],
        "results": results,
        "columnKind": "unicodeCodePoints",
        "properties": {"certificate": certificate and [of_quantity(one) for one in certificate]},
    }
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(jsonable(log), indent=2, ensure_ascii=False, allow_nan=False)


def _rule(rule: Rule) -> dict[str, Any]:
    read = "\n".join(f"- {one}" for one in rule.references)
    return {
        "id": rule.code,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": f"{rule.harm} Shown by: {rule.shows}."},
        "help": {
            "text": f"{rule.harm}\n\nWhat to do:\n{rule.remedy}\n\nRead:\n{read}",
            "markdown": f"{rule.harm}\n\n**What to do**\n\n```python\n{rule.remedy}\n```\n\n**Read**\n\n{read}",
        },
        "properties": {"tags": ["normalization", rule.name]},
    }


def _result(finding: "Finding", index: dict[str, int], physical: dict[str, Any] | None) -> dict[str, Any]:
    location: dict[str, Any] = {"logicalLocations": [_logical(finding.layer)]}
    if physical is not None:
        location["physicalLocation"] = physical
    known = {"ruleIndex": index[finding.code]} if finding.code in index else {}
    return {
        "ruleId": finding.code,
        **known,
        "level": _LEVELS[finding.severity],
        "message": {"text": _message(finding)},
        "locations": [location],
        "partialFingerprints": {"bnprobe/v1": finding.fingerprint},
        "properties": {
            "effect": of_quantity(finding.effect),
            "pValue": finding.p_value,
            "impact": of_quantity(finding.impact),
            "evidence": [of_quantity(one) for one in finding.evidence],
            "remedy": finding.remedy,
            "causes": finding.causes,
            "followsFrom": finding.follows_from or None,
        },
    }


def _logical(layer: str) -> dict[str, str]:
    if not layer:
        return {"name": "model", "fullyQualifiedName": "model", "kind": "module"}
    return {"name": layer.rpartition(".")[2] or layer, "fullyQualifiedName": layer, "kind": "module"}


def _physical(source: str, line: int) -> dict[str, Any]:
    return {"artifactLocation": {"uri": quote(PurePath(source).as_posix())}, "region": {"startLine": max(line, 1)}}


def _message(finding: "Finding") -> str:
    where = f"Layer {finding.layer}: " if finding.layer else ""
    parts = [f"{where}{finding.summary.rstrip('.')}."]
    parts += [f"Effect: {quantity(finding.effect)}."] if finding.effect is not None else []
    parts += [f"Impact: {quantity(finding.impact)}."] if finding.impact is not None else []
    parts += [f"Chance: {chance(finding)}."]
    parts += [f"Follows from {finding.follows_from}."] if finding.follows_from else []
    parts += [f"Likely: {'; '.join(finding.causes)}."] if finding.causes else []
    return " ".join(parts)


def _invocation(diagnosis: "Diagnosis", index: dict[str, int]) -> dict[str, Any]:
    changed = not all(diagnosis.proof.values())
    notes = [
        {
            "level": "note",
            "message": {"text": f"{one.code} {one.name} was not run: {one.why}"},
            "associatedRule": {"id": one.code, **({"index": index[one.code]} if one.code in index else {})},
        }
        for one in diagnosis.not_run
    ]
    notes.append({"level": "error" if changed else "note", "message": {"text": kept(diagnosis)}})
    return {"executionSuccessful": not changed, "toolExecutionNotifications": notes}
