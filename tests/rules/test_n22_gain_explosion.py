import numpy as np
import pytest

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules import Severity
from bnprobe.rules.n22_gain_explosion import GainExplosion


def judged(ratios=(1.0, 1.0, 500.0), gains=(1.0, 1.0, 100.0), low=400.0, excess=0.5, p=1e-6, distance=None, dead=0.0):
    ratios, gains = np.array(ratios), np.array(gains)
    facts = [
        Fact("variance_ratio", ratios.max(), "bn", place="input", low=low, high=600.0, channels=ratios),
        Fact("gain", float(np.median(gains)), "bn", channels=gains), Fact("dead_share", dead, "bn", place="input"),
    ]  # fmt: skip
    if excess is not None:
        facts.append(Fact("excess_stored_over_pooled", excess, place="loss", p_value=p))
    if distance is not None:
        facts.append(Fact("distance_stored", distance, place="output", low=distance, high=distance))
    return list(GainExplosion().judge(Evidence(facts)))


@pytest.mark.parametrize(
    ("case", "severity"),
    [
        ({}, Severity.ERROR), ({"excess": 0.1}, Severity.WARNING), ({"excess": 0.01}, Severity.INFO),
        ({"p": 0.3}, Severity.INFO), ({"ratios": (1.0, 1.0, 50.0), "low": 20.0}, Severity.WARNING),
        ({"low": 5.0}, None), ({"gains": (1.0, 1.0, 5.0)}, None),
        ({"ratios": (500.0, 500.0, 500.0), "gains": (1.0, 1.0, 1.0)}, None),  # all statistics are off: N02
        ({"excess": None}, Severity.INFO), ({"excess": None, "distance": 0.5}, Severity.ERROR),
        ({"excess": None, "distance": 0.1}, Severity.INFO),
        ({"excess": float("inf"), "p": float("nan")}, Severity.ERROR),
        ({"gains": (0.0, 0.0, 1.0)}, None),  # gains of zero are no measure of the others
    ],
)  # fmt: skip
def test_severity(case, severity):
    found = judged(**case)
    assert [one.severity for one in found] == ([] if severity is None else [severity])


def test_dead_channels_are_information():
    (found,) = judged(ratios=(1.0, 1.0, 0.0), low=0.9, dead=0.33)
    assert found.severity == Severity.INFO
    assert "33% of the channels are constant" in found.summary
    assert not judged(ratios=(1.0, 1.0, 0.0), low=0.9, dead=0.05)


@pytest.mark.parametrize(
    ("spread", "amplified", "p", "severity"),
    [
        (100.0, 3.0, 1e-4, Severity.WARNING), (100.0, 1.2, 1e-4, Severity.INFO), (100.0, 3.0, 0.2, Severity.INFO),
        (100.0, None, 1.0, Severity.INFO), (20.0, 3.0, 1e-4, None),
    ],
)  # fmt: skip
def test_amplified_samples(spread, amplified, p, severity):
    facts = [Fact("sample_gain_spread", spread, "gn", place="input"), Fact("ordinary_loss", 1.0, "gn", place="loss")]
    if amplified is not None:
        facts.append(Fact("amplified_loss", amplified, "gn", place="loss", p_value=p))
    found = list(GainExplosion().judge(Evidence(facts)))
    assert [one.severity for one in found] == ([] if severity is None else [severity])
