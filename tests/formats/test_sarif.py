"""SARIF 2.1.0: what the standard demands of the objects that are written, and what code hosts ask beyond it."""

import json

import pytest
from formats.handmade_diagnosis import CERTIFICATE, PROOF, diagnosis, finding

from bnprobe.rules import Quantity, Severity, rules

jsonschema = pytest.importorskip("jsonschema")

TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
MESSAGE = TEXT | {"properties": TEXT["properties"] | {"markdown": {"type": "string"}}, "additionalProperties": False}
BAG = {"type": "object", "properties": {"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}}}
LEVEL = {"enum": ["none", "note", "warning", "error"]}


def an_object(required, **properties):
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


def a_list(items, **more):
    return {"type": "array", "items": items, **more}


RULE = an_object(
    ["id"],
    id={"type": "string"},
    name={"type": "string"},
    shortDescription=MESSAGE,
    fullDescription=MESSAGE,
    help=MESSAGE,
    properties=BAG,
)
LOCATION = an_object(
    [],
    logicalLocations=a_list(
        an_object(
            [],
            name={"type": "string"},
            fullyQualifiedName={"type": "string"},
            kind={"type": "string"},
        ),
        uniqueItems=True,
    ),
    physicalLocation=an_object(
        ["artifactLocation"],
        artifactLocation=an_object([], uri={"type": "string", "pattern": r"^[^\s\\]+$"}),
        region=an_object([], startLine={"type": "integer", "minimum": 1}),
    ),
)
RESULT = an_object(
    ["message"],
    ruleId={"type": "string"},
    ruleIndex={"type": "integer", "minimum": -1},
    level=LEVEL,
    message=MESSAGE,
    locations=a_list(LOCATION),
    partialFingerprints={"type": "object", "additionalProperties": {"type": "string"}},
    suppressions=a_list(
        an_object(["kind"], kind={"enum": ["inSource", "external"]}, justification={"type": "string"}), uniqueItems=True
    ),
    properties=BAG,
)
NOTIFICATION = an_object(
    ["message"],
    level=LEVEL,
    message=MESSAGE,
    associatedRule=an_object([], id={"type": "string"}, index={"type": "integer", "minimum": -1}),
)
SCHEMA = an_object(
    ["version", "runs"],
    **{"$schema": {"type": "string", "format": "uri"}},
    version={"const": "2.1.0"},
    runs=a_list(
        an_object(
            ["tool"],
            tool=an_object(
                ["driver"],
                driver=an_object(
                    ["name"],
                    name={"type": "string"},
                    version={"type": "string"},
                    rules=a_list(RULE, uniqueItems=True),
                ),
            ),
            invocations=a_list(
                an_object(
                    ["executionSuccessful"],
                    executionSuccessful={"type": "boolean"},
                    toolExecutionNotifications=a_list(NOTIFICATION),
                )
            ),
            results=a_list(RESULT),
            columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
            properties=BAG,
        )
    ),
)


def run_of(made, **arguments):
    log = json.loads(made.to_sarif(**arguments), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    jsonschema.validate(log, SCHEMA)
    (run,) = log["runs"]
    return run


def test_every_rule_is_there_with_its_help():
    listed = run_of(diagnosis())["tool"]["driver"]["rules"]
    assert [one["id"] for one in listed] == list(rules())
    for one in listed:
        assert rules()[one["id"]].remedy in one["help"]["text"]
        assert one["help"]["markdown"].count("```") == 2


def test_a_result_a_finding():
    some = [finding("layer1.0.bn"), finding("", Severity.WARNING), finding("層", Severity.INFO)]
    run = run_of(diagnosis(*some))
    assert [one["level"] for one in run["results"]] == ["error", "warning", "note"]
    assert {run["tool"]["driver"]["rules"][one["ruleIndex"]]["id"] for one in run["results"]} == {"N11"}
    places = [one["locations"][0]["logicalLocations"][0] for one in run["results"]]
    assert [one["fullyQualifiedName"] for one in places] == ["layer1.0.bn", "model", "層"]
    assert places[0]["name"] == "bn"
    assert run["results"][0]["message"]["text"].startswith("Layer layer1.0.bn: the loss is 1.3 with")
    assert "physicalLocation" not in run["results"][0]["locations"][0]


def test_fingerprints_are_the_finding_whatever_its_numbers():
    first, second = (
        run_of(diagnosis(finding("a", effect=Quantity("gap", value)), finding("b")))["results"] for value in (1.0, 2.0)
    )
    prints = [one["partialFingerprints"] for one in first]
    assert prints == [one["partialFingerprints"] for one in second]
    assert prints[0] != prints[1]


def test_code_hosts_get_a_place_in_a_file():
    (result,) = run_of(diagnosis(finding()), source="my models/net.py", line=7)["results"]
    assert result["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "my%20models/net.py"},
        "region": {"startLine": 7},
    }


def test_accepted_findings_are_suppressed():
    run = run_of(diagnosis(finding("a"), finding("b")).accept(["N11 b"]))
    assert ["suppressions" in one for one in run["results"]] == [False, True]


def test_what_was_not_run_and_the_hashes_are_notifications():
    (invocation,) = run_of(diagnosis())["invocations"]
    texts = [one["message"]["text"] for one in invocation["toolExecutionNotifications"]]
    assert texts[0] == "N08 batch-leak was not run: triangle: needs loss="
    assert texts[-1].startswith("Nothing was changed")
    assert invocation["executionSuccessful"]
    (changed,) = run_of(diagnosis(proof=PROOF | {"weights": False}))["invocations"]
    assert not changed["executionSuccessful"]
    assert changed["toolExecutionNotifications"][-1]["level"] == "error"


def test_odd_numbers_and_certificates_are_json():
    odd = Quantity("gap", float("nan"), "", float("-inf"), float("inf"))
    assert run_of(diagnosis(finding(effect=odd, impact=odd, p_value=float("nan"))))["results"]
    run = run_of(diagnosis(certificate=CERTIFICATE))
    assert run["results"] == []
    assert run["properties"]["certificate"][0]["value"] == 0.412


def test_the_schema_refuses_what_is_not_sarif():
    """The schema here is only a part of the standard's: it must be able to say no."""
    log = json.loads(diagnosis(finding()).to_sarif())
    log["runs"][0]["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(log, SCHEMA)
