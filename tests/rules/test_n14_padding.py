import pytest

from bnprobe.evidence import Context, Evidence, Fact
from bnprobe.records import Layer
from bnprobe.rules import Severity
from bnprobe.rules.n14_padding_in_statistics import PaddingInStatistics


def judged(shift=0.5, stretch=0.0, family="batch_norm", training=1.0, swap=None, extension=None, intent=None):
    facts = [
        Fact("padding_share", 0.4), Fact("training", training, "norm"),
        Fact("padding_shift", shift, "norm", place="input"),
        Fact("padding_log_variance", stretch, "norm", place="input"),
        Fact("padding_slope", 0.6, "norm", place="input", p_value=1e-3),
    ]  # fmt: skip
    if swap is not None:
        facts.append(Fact("padding_swap", swap, place="output"))
    if extension is not None:
        facts.append(Fact("padding_extension", extension, place="output"))
    evidence = Evidence(facts, [Layer("norm", "Norm", family)], Context(intent=intent))
    return list(PaddingInStatistics().judge(evidence))


@pytest.mark.parametrize(
    ("shift", "stretch", "swap", "severity"),
    [
        (0.5, 0.0, 0.2, Severity.ERROR), (0.5, 0.0, 0.02, Severity.WARNING), (0.5, 0.0, 0.001, Severity.INFO),
        (0.1, 0.6, 0.2, Severity.WARNING), (0.5, 0.0, None, Severity.INFO), (0.1, 0.1, 0.2, None),
    ],
)  # fmt: skip
def test_shift_and_its_effect(shift, stretch, swap, severity):
    found = judged(shift, stretch, swap=swap)
    assert [one.severity for one in found] == ([] if severity is None else [severity])


def test_batch_norm_in_evaluation_sees_no_padding_of_mates():
    assert judged(swap=0.2, training=0.0)[0].severity == Severity.INFO
    assert judged(swap=0.2, training=0.0, intent="train")[0].severity == Severity.ERROR


def test_group_norm_is_judged_by_its_own_padding():
    assert judged(family="group_norm", training=0.0, extension=0.2)[0].severity == Severity.ERROR
    assert judged(family="group_norm", swap=0.2, extension=0.0)[0].severity == Severity.INFO


def test_it_says_the_numbers():
    (found,) = judged(swap=0.2)
    assert "40% of the positions are padding" in found.summary
    assert "0.5 standard deviations" in found.summary
    assert [round(one.value) for one in found.numbers if one.name.startswith("variance of batches")] == [60]
