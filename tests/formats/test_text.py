"""A diagnosis in a terminal: what stands where, and that nothing of it can be missed."""

import pytest
from formats.handmade_diagnosis import CERTIFICATE, PROOF, diagnosis, evidence, finding

from bnprobe.evidence import Context, Evidence
from bnprobe.formats.text import WIDTH
from bnprobe.rules import Quantity, Severity

SICK = """\
Diagnosis of ResNet: 1 error, 2 warnings
3 normalization layers, 6 batches with 384 samples, handed over in evaluation mode, 3 of 6 rules
could judge, took 1.25 s

ERROR N11 non-finite-statistics: stem.bn
  the loss is 1.3 with the running statistics and 0.4 with statistics pooled over the same batches
  effect   median gap: 0.8 standard deviations (95 % interval 0.7 to 0.95)
  chance   p = 2.5e-06, Benjamini-Hochberg over all layers and rules
  impact   more loss: 225 % (95 % interval 180 to 260)
  numbers  momentum: 0.1; batches seen: 12
  layers   and 2 further layers: block1.bn (0.8, warning), block2.bn (0.8, warning)
  likely   - buffers were not copied
           - other data
  remedy
      for m in model.modules():
          m.reset()
  see      Wu & Johnson 2021, arXiv:2105.07576

Not run: 3 rules
  triangle: needs loss=
      N08 batch-leak, N26 evaluation-differs
  copies: needs reference=
      N25 copies-disagree

Nothing was changed: hashes taken before and after are the same (weights; buffers; gradients; modes,
flags and hooks; random streams).
Evidence: runs/diagnosis"""
WELL = """\
N00 Normalization is not your problem, as far as 3 rules can tell.
  loss with running statistics: 0.412 (95 % interval 0.4 to 0.43)
  largest change: 1e-06 sd
  Look elsewhere: at preprocessing"""


def warnings(*layers):
    return [finding(layer, Severity.WARNING) for layer in layers]


def test_the_whole_report():
    assert str(diagnosis(*warnings("block1.bn", "block2.bn"), finding())) == SICK


def test_the_certificate_has_its_numbers_and_says_where_else_to_look():
    text = str(diagnosis(certificate=CERTIFICATE))
    assert WELL in text
    assert text.startswith("Diagnosis of ResNet: no finding\n")


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (Context(batches=2, samples=4), "no measurement was taken that could have cleared normalization"),
        (Context(batches=2, samples=4, untrained=True), "the model looks untrained, so there is no certificate"),
    ],
)
def test_without_a_certificate_silence_is_not_taken_for_health(context, said):
    text = " ".join(str(diagnosis(of=Evidence(context=context))).split())
    assert said in text
    assert "N00" not in text
    assert "no normalization layers" in text


def test_accepted_findings_are_listed_and_give_no_certificate():
    text = str(diagnosis(finding()).accept(["N11 stem.bn", "N02 gone"]))
    assert text.startswith("Diagnosis of ResNet: no finding (1 more accepted)")
    assert "Accepted by the baseline: 1\n  error N11 non-finite-statistics: stem.bn" in text
    assert "Normalization is not your problem" not in text


def test_fifty_layers_are_one_entry():
    text = str(diagnosis(*(finding(f"layer{number}.bn") for number in range(50))))
    assert text.startswith("Diagnosis of ResNet: 50 errors")
    assert text.count("ERROR N11") == 1
    assert "and 49 further layers: layer1.bn (0.8)" in text
    assert "and 37 more (to_frame() has all)" in " ".join(text.split())
    assert len(text.splitlines()) < 40


def test_the_worst_of_a_rule_is_shown_in_full():
    """By severity, then by impact; findings without one come last."""
    some = [
        finding("a", Severity.WARNING, impact=Quantity("loss", 900.0)),
        finding("b", impact=None),
        finding("c", impact=Quantity("loss", 10.0)),
        finding("d", impact=Quantity("loss", 20.0)),
    ]
    text = str(diagnosis(*some))
    assert "ERROR N11 non-finite-statistics: d\n" in text
    assert "further layers: c (0.8), b (0.8), a (0.8, warning)" in text


def test_rules_are_ordered_by_severity():
    some = [
        finding("a", Severity.INFO, "N05"),
        finding("b", Severity.ERROR, "N31"),
        finding("c", Severity.WARNING, "N07"),
    ]
    heads = [line for line in str(diagnosis(*some)).splitlines() if line[:1].isupper() and "non-finite" in line]
    assert heads == [
        "ERROR N31 non-finite-statistics: b",
        "WARNING N07 non-finite-statistics: c",
        "INFO N05 non-finite-statistics: a",
    ]


def test_what_follows_from_another_finding_says_so():
    text = str(diagnosis(finding(), finding("a", Severity.INFO, "N22", follows_from="N11")))
    assert "  follows  from N11, which explains it: mend that first" in text


def test_exact_findings_and_unknown_impacts_are_named_so():
    text = str(diagnosis(finding("", p_value=None, impact=None, effect=None, evidence=(), causes=(), reference=())))
    assert "N11 non-finite-statistics: whole model\n" in text
    assert "  chance   none: this is exact\n  impact   not measured\n  remedy" in text
    assert "see " not in text
    assert "impact" not in str(diagnosis(finding(severity=Severity.INFO, impact=None)))


def test_a_change_of_the_model_cries_out():
    text = " ".join(str(diagnosis(proof=PROOF | {"buffers": False})).split())
    assert "CHANGED: hashes taken before and after differ (buffers)." in text
    assert "Nothing was changed" not in text


def test_without_a_model_nothing_is_claimed_about_it():
    assert "No model was run: this was judged from records." in str(diagnosis(proof={}))


@pytest.mark.parametrize("name", ["слой.bn", "層.bn", "a\x1b[31mred", "b\u202e", "x" * 300, "\ud800"])
def test_odd_names_are_shown_without_steering_the_terminal(name):
    text = str(diagnosis(finding(name), finding(name + "2"), of=evidence([name])))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert ("слой.bn" in text) == (name == "слой.bn")
    text.encode()


def test_lines_are_wrapped_except_names_and_code():
    many = diagnosis(*(finding(f"layer{number}.bn", summary="word " * 60) for number in range(50)))
    assert max(map(len, str(many).splitlines())) <= WIDTH
    assert f"ERROR N11 non-finite-statistics: {'x' * 300}\n" in str(diagnosis(finding("x" * 300)))


@pytest.mark.parametrize(
    ("value", "said"),
    [(float("nan"), "unknown"), (float("inf"), "infinite"), (12345.0, "12,345"), (1e-9, "1e-09"), (3.14159, "3.14")],
)
def test_numbers_as_readers_want_them(value, said):
    assert f"gap: {said} sd\n" in str(diagnosis(finding(effect=Quantity("gap", value, "sd"))))


def test_repr_is_short_and_ok_means_no_warning():
    made = diagnosis(finding())
    assert repr(made) == "Diagnosis(1 error; 3 rules not run; evidence in 'runs/diagnosis')"
    assert not made.ok
    assert diagnosis(finding(severity=Severity.INFO)).ok
    assert made.accept(["N11 stem.bn"]).ok
