"""The page of a diagnosis: everything is on it, and it is one file that a browser shows without complaint."""

import re
import shutil

import pytest
from formats.handmade_diagnosis import CERTIFICATE, PROOF, diagnosis, evidence, finding
from report.test_report_browser import console, document

from bnprobe.evidence import Evidence
from bnprobe.rules import Severity

EVIL = "<script>console.error('hacked')</script>"
browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def plain(html):
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_findings_stand_with_numbers_remedy_and_all_layers():
    page = diagnosis(*(finding(f"layer{number}.bn") for number in range(50))).to_html()
    text = plain(page)
    assert "Diagnosis of ResNet" in text
    assert "50 errors" in text
    assert "layer0.bn and 49 further layers" in text
    assert "median gap: 0.8 standard deviations (95 % interval 0.7 to 0.95)" in text
    assert "p = 2.5e-06" in text
    assert '<pre tabindex="0"><code>for m in model.modules():\n    m.reset()</code></pre>' in page
    assert "layer49.bn" in text
    assert "Search layers" in text
    assert len(re.findall(r"<svg[^>]*role=\"img\"", page)) == 4


def test_a_clean_bill_of_health():
    text = plain(diagnosis(certificate=CERTIFICATE, not_run=()).to_html())
    assert "No finding" in text
    assert "Normalization is not your problem, as far as 3 rules can tell." in text
    assert "0.412 (95 % interval 0.4 to 0.43)" in text
    assert "Every rule that was asked could judge." in text


def test_without_evidence_the_pictures_are_missing_and_say_why():
    page = diagnosis(of=Evidence()).to_html()
    assert "<svg" not in page
    assert plain(page).count("Not drawn: the evidence has no") == 4


def test_a_change_stands_at_the_top():
    page = diagnosis(proof=PROOF | {"buffers": False}).to_html()
    assert page.index("The model was changed") < page.index("Evidence</h2>")


def test_accepted_findings_have_their_section():
    text = plain(diagnosis(finding("stem.bn"), finding("b")).accept(["N11 b"]).to_html())
    assert "Accepted by the baseline file." in text
    assert "1 error" in text


@pytest.mark.browser
@pytest.mark.skipif(browser is None, reason="chromium is not installed")
def test_a_browser_shows_it_and_hears_nothing(tmp_path):
    some = [finding(f"{EVIL}{number}", Severity.WARNING, summary=EVIL) for number in range(12)]
    page = tmp_path / "page.html"
    diagnosis(*some, of=evidence([EVIL, "b"])).to_html(page)
    dom, log = document(tmp_path, page)
    assert console(log) == []
    assert len(re.findall("<script", dom)) == 1
    assert len(re.findall(r"<svg[^>]*role=\"img\"", dom)) == 4
    assert "12 rows" in dom
