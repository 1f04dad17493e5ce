import pytest

from bnprobe.evidence import Context, Evidence, Fact
from bnprobe.rules import Severity
from bnprobe.rules.n10_momentum import Momentum


def judged(momentum, training=1, jitter=None, excess=None, updates=1000, default=0, intent=None, distance=None):
    facts = [
        Fact("momentum", momentum, "bn"), Fact("training", training, "bn"), Fact("tracks", 1, "bn"),
        Fact("has_buffers", 1, "bn"), Fact("updates_seen", updates, "bn"), Fact("default_statistics", default, "bn"),
    ]  # fmt: skip
    if jitter is not None:
        facts.append(Fact("momentum_jitter", jitter, "bn"))
    if excess is not None:
        facts.append(Fact("excess_stored_over_pooled", excess, place="loss", p_value=1e-6))
    if distance is not None:
        facts.append(Fact("distance_stored", distance, place="output", low=distance, high=distance))
    return list(Momentum().judge(Evidence(facts, context=Context(intent=intent))))


@pytest.mark.parametrize("momentum", [-0.1, 1.5])
def test_no_average_is_an_error(momentum):
    (found,) = judged(momentum)
    assert found.severity == Severity.ERROR
    assert "0 ... 1" in found.summary


@pytest.mark.parametrize(
    ("training", "default", "excess", "severity"),
    [
        (1, 0, None, Severity.ERROR), (1, 0, 0.5, Severity.ERROR), (1, 0, 0.01, Severity.INFO),
        (0, 1, 0.5, Severity.ERROR), (0, 0, 0.5, None),
    ],
)  # fmt: skip
def test_momentum_zero(training, default, excess, severity):
    found = judged(0.0, training, excess=excess, default=default)
    assert [one.severity for one in found] == ([] if severity is None else [severity])


def test_counted_and_never_moved_is_told():
    assert "still 0 and 1 after 1000 updates" in judged(0.0, 0, default=1)[0].summary


@pytest.mark.parametrize(
    ("momentum", "jitter", "training", "excess", "severity"),
    [
        (0.99, 0.2, 1, None, Severity.WARNING), (0.99, 0.2, 1, 0.3, Severity.WARNING),
        (0.99, 0.2, 1, 0.0, Severity.INFO),
        (0.99, 0.2, 0, 0.3, Severity.WARNING), (0.99, 0.2, 0, None, Severity.INFO),
        (0.99, 0.05, 1, 0.3, Severity.WARNING), (0.99, 0.05, 1, None, Severity.INFO),
        (0.99, 0.01, 1, 0.3, None), (0.4, 0.2, 1, 0.3, None), (0.99, None, 1, 0.3, None),
    ],
)  # fmt: skip
def test_large_momentum_matters_by_its_jitter_and_its_cost(momentum, jitter, training, excess, severity):
    found = judged(momentum, training, jitter, excess)
    assert [one.severity for one in found] == ([] if severity is None else [severity])


def test_without_labels_outputs_say_whether_it_matters():
    assert judged(0.99, 1, 0.2, distance=0.5)[0].severity == Severity.WARNING
    assert judged(0.99, 1, 0.2, distance=0.1)[0].severity == Severity.INFO


@pytest.mark.parametrize(
    ("momentum", "updates", "said"), [(0.1, 20, True), (0.1, 40, False), (0.003, 5000, False), (0.1, 0, False)]
)
def test_averages_that_are_not_filled_yet(momentum, updates, said):
    found = judged(momentum, updates=updates)
    assert [one.severity for one in found] == [Severity.INFO] * said


def test_small_momentum_of_long_training_is_nothing():
    assert not judged(0.003, jitter=0.5, excess=1.0, updates=10_000)
