import pytest

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules import Severity
from bnprobe.rules.n30_ema_horizon import EmaHorizon


@pytest.mark.parametrize(
    ("decay", "updates", "fires"),
    [(0.9998, 1000, True), (0.99, 229, True), (0.99, 230, False), (1.0, 50, True), (0.0, 1, False)],
)
def test_by_arithmetic(decay, updates, fires):
    facts = [Fact("ema_decay", decay), Fact("ema_updates", updates), Fact("horizon_reached", 1 - decay**updates)]
    found = list(EmaHorizon().judge(Evidence(facts)))
    assert [one.severity for one in found] == [Severity.WARNING] * fires


def test_it_says_how_many_it_takes():
    facts = [Fact("ema_decay", 0.99), Fact("ema_updates", 50), Fact("horizon_reached", 1 - 0.99**50)]
    (found,) = EmaHorizon().judge(Evidence(facts))
    assert "61% of the average is its start; 230 updates would leave 10%" in found.summary
