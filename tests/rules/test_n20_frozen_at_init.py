import pytest

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules import Severity
from bnprobe.rules.n20_frozen_at_init import FrozenAtInit


def judged(strengths, identity=1, frozen=1, others=0):
    facts = []
    for number, strength in enumerate(strengths):
        name = f"bn{number}"
        facts += [
            Fact("identity", identity if number >= others else 0, name), Fact("frozen", frozen, name),
            Fact("activation_rms", strength, name, place="output"),
        ]  # fmt: skip
    return list(FrozenAtInit().judge(Evidence(facts)))


@pytest.mark.parametrize(
    ("strengths", "severity"),
    [
        ([1.0, 0.5, 0.09], Severity.WARNING), ([1.0, 0.5, 0.11], Severity.INFO), ([2.0, 4.0, 21.0], Severity.WARNING),
        ([2.0, 4.0, 19.0], Severity.INFO), ([1.0], Severity.INFO),
    ],
)  # fmt: skip
def test_strength_through_depth(strengths, severity):
    (found,) = judged(strengths)
    assert found.severity == severity


def test_only_frozen_layers_that_do_nothing():
    assert not judged([1.0, 0.01], identity=0)
    assert not judged([1.0, 0.01], frozen=0)
    assert not judged([1.0, 0.01], others=1)
    assert judged([1.0] * 10 + [0.01], others=1)


def test_the_farthest_is_told():
    assert judged([1.0, 3.0, 0.01])[0].effect.value == pytest.approx(0.01)
    assert judged([1.0, 300.0, 0.01])[0].effect.value == pytest.approx(300)
