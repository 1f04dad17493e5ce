"""A diagnosis for other programs: JSON that any parser reads, a table with a row a finding, a piece for notebooks."""

import json
import re

import numpy as np
import pytest
from formats.handmade_diagnosis import CERTIFICATE, NOT_RUN, diagnosis, evidence, finding

from bnprobe.formats.objects import jsonable
from bnprobe.rules import Quantity, Severity

ODD = Quantity("gap", float("nan"), "sd", float("-inf"), float("inf"))


def strict(text):
    """As parsers outside Python do: without NaN and Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_json_has_everything():
    read = strict(diagnosis(finding(), certificate=None).to_json())
    assert read["ok"] is False
    (one,) = read["findings"]
    assert (one["code"], one["severity"], one["layer"]) == ("N11", "error", "stem.bn")
    assert one["effect"] == {
        "name": "median gap",
        "value": 0.8,
        "unit": "standard deviations",
        "low": 0.7,
        "high": 0.95,
    }
    assert one["p_value"] == 2.5e-6
    assert one["fingerprint"] == "N11 stem.bn"
    assert [each["code"] for each in read["not_run"]] == [each.code for each in NOT_RUN]
    assert read["certificate"] is None
    assert read["unchanged"]["buffers"] is True
    assert read["context"]["samples"] == 384
    assert read["evidence"] == "runs/diagnosis"


def test_json_of_a_clean_bill_of_health():
    read = strict(diagnosis(certificate=CERTIFICATE, not_run=()).to_json())
    assert (read["ok"], read["findings"], read["not_run"]) == (True, [], [])
    assert [one["value"] for one in read["certificate"]] == [0.412, 1e-6]


def test_what_json_does_not_know():
    read = strict(diagnosis(finding("層\ud800", effect=ODD, p_value=np.float64("nan"))).to_json())
    (one,) = read["findings"]
    assert one["effect"] == {"name": "gap", "value": None, "unit": "sd", "low": "-Infinity", "high": "Infinity"}
    assert one["p_value"] is None
    assert one["layer"] == "層?"
    assert jsonable({1: (np.int64(3), np.float32(0.5), Severity.INFO, True)}) == {"1": [3.0, 0.5, "info", True]}


def test_files_are_written_with_their_folder(tmp_path):
    made = diagnosis(finding("層"))
    for write in (made.to_json, made.to_sarif, made.to_html):
        target = tmp_path / write.__name__ / "file"
        assert write(target) is None
        assert "層" in target.read_text(encoding="utf-8")
    assert (tmp_path / "to_json" / "file").read_text(encoding="utf-8") == made.to_json()


def test_a_row_a_finding():
    made = diagnosis(finding(), finding("", Severity.INFO, "N31", effect=None, impact=None, p_value=None))
    frame = made.accept(["N11 stem.bn"]).to_frame()
    assert frame["code"].tolist() == ["N31", "N11"]
    assert frame["accepted"].tolist() == [False, True]
    assert frame["effect"].isna().tolist() == [True, False]
    assert frame.loc[1, ["effect", "effect_low", "effect_high", "effect_unit"]].tolist() == [
        0.8,
        0.7,
        0.95,
        "standard deviations",
    ]
    assert frame.loc[1, "severity"] == "error"
    assert frame.loc[1, "causes"] == "buffers were not copied; other data"


def test_no_finding_is_an_empty_table_with_all_columns():
    empty, full = diagnosis().to_frame(), diagnosis(finding()).to_frame()
    assert empty.empty
    assert empty.columns.tolist() == full.columns.tolist()
    assert empty["effect"].dtype == full["effect"].dtype == np.float64


def test_a_notebook_gets_balanced_escaped_html():
    shown = diagnosis(
        *(finding(f"<script>alert({number})</script>") for number in range(3)), of=evidence(["<b>"])
    )._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;alert(0)" in shown
    assert " and 2 further layers" in shown
    tags = re.findall(r"<(/?)(\w+)[^>]*>", shown)
    opened = []
    for closing, tag in tags:
        if tag == "br":
            continue
        if closing:
            assert opened.pop() == tag
        else:
            opened.append(tag)
    assert opened == []
    assert "id=" not in shown


def test_a_notebook_sees_the_certificate():
    shown = diagnosis(certificate=CERTIFICATE)._repr_html_()
    assert "Normalization is not your problem" in shown
    assert "Nothing was changed" in shown
