"""Rules about batches, on hand-written evidence: both sides of every threshold."""

import pytest

from bnprobe.evidence import Context, Evidence, Fact
from bnprobe.rules.base import Severity
from bnprobe.rules.n04_too_few_effective_values import TooFewEffectiveValues
from bnprobe.rules.n05_single_value_batch import SingleValueBatch
from bnprobe.rules.n06_batches_not_random import BatchesNotRandom
from bnprobe.rules.n07_several_distributions import SeveralDistributions
from bnprobe.rules.n08_batch_leak import BatchLeak
from bnprobe.rules.n12_distributed import Distributed
from bnprobe.rules.n29_batch_is_a_task import BatchIsATask

HIDDEN = (
    Fact("excess_pooled_over_batch", 2.0, p_value=1e-9),
    Fact("excess_stored_over_batch", 2.0, p_value=1e-9),
)


def said(rule, *facts, training=1.0, **context):
    evidence = Evidence([Fact("training", training, "bn"), *facts], context=Context(**context))
    return list(rule.judge(evidence))


def severity(rule, *facts, **more):
    return next((one.severity for one in said(rule, *facts, **more)), None)


def worth(value, high=None):
    return Fact("n_eff_values", value, "bn", low=0.7 * value, high=1.4 * value if high is None else high, count=32)


@pytest.mark.parametrize(
    ("value", "high", "expected"),
    [(3.0, 5.0, Severity.ERROR), (7.9, 17.0, Severity.WARNING), (12.0, 20.0, Severity.WARNING),
     (12.0, 40.0, Severity.INFO), (20.0, 30.0, Severity.INFO), (33.0, 50.0, None)],
)  # fmt: skip
def test_n04_by_effective_values(value, high, expected):
    rule, harm = TooFewEffectiveValues(), Fact("excess_batch_over_pooled", 0.3, p_value=1e-5)
    assert severity(rule, worth(value, high), harm) == expected
    assert severity(rule, worth(value, high), harm, training=0.0) is None
    without = severity(rule, worth(value, high), Fact("excess_batch_over_pooled", 0.3, p_value=0.2))
    assert without == (None if expected is None else expected.demoted())
    equal = severity(rule, worth(value, high), Fact("excess_batch_over_pooled", 0.0, low=-0.02, high=0.02, p_value=0.5))
    assert equal in (None, Severity.INFO)
    assert severity(rule, worth(value, high)) in (None, Severity.INFO)


def test_n04_says_its_numbers():
    (one,) = said(TooFewEffectiveValues(), worth(3.0), Fact("values_per_batch", 4.0, "bn"))
    assert "worth 3.0 independent values a channel (95 % interval 2.1 to 4.2) of the 4" in one.summary


@pytest.mark.parametrize(("values", "expected"), [(1.0, Severity.ERROR), (2.0, None)])
def test_n05_by_least_values(values, expected):
    facts = (Fact("least_values", values, "bn"), Fact("least_values_size", 1.0, "bn"))
    assert severity(SingleValueBatch(), *facts) == expected
    assert severity(SingleValueBatch(), *facts, training=0.0) is None
    assert severity(SingleValueBatch(), *facts, training=0.0, intent="train") == expected


def grouped(n_eff, values=4.0, batches=32, size=64.0, ratio=20.0, layer="bn"):
    return (
        Fact("composition_ratio", ratio, layer, p_value=0.0005, count=batches),
        Fact("composition_ratio_limit", 1.5, layer),
        Fact("n_eff_samples", n_eff, layer),
        Fact("samples_per_batch", size, layer),
        Fact("n_eff_values", values, layer),
    )


@pytest.mark.parametrize(
    ("facts", "expected"),
    [(grouped(1.3), Severity.ERROR), (grouped(7.0), Severity.WARNING), (grouped(45.0, 111.0), Severity.INFO),
     (grouped(1.3, batches=10), Severity.WARNING), (grouped(1.3, values=200.0), Severity.INFO),
     (grouped(1.3, ratio=1.2), None), (grouped(2.0, size=4.0), Severity.INFO)],
)  # fmt: skip
def test_n06_by_effective_samples(facts, expected):
    assert severity(BatchesNotRandom(), *facts) == expected
    assert severity(BatchesNotRandom(), *facts, training=0.0) is None
    assert severity(BatchesNotRandom(), *facts, intent="transductive") is None


def test_n06_deepest_layer_alone_needs_an_impact():
    """Features of a good classifier are grouped by class there, whatever the sampler's reason is."""
    deep = [Fact("training", 1.0, "deep"), *grouped(30.0, 100.0), *grouped(3.0, 5.0, layer="deep")]
    assert severity(BatchesNotRandom(), *deep) == Severity.INFO
    assert severity(BatchesNotRandom(), *deep, Fact("excess_batch_over_pooled", 0.3, p_value=1e-6)) == Severity.ERROR


def called(far, roles=1.0):
    return (
        Fact("calls_per_pass", 2.0, "bn", count=16),
        Fact("call_contrast_mean", 0.2, "bn", p_value=0.0005),
        Fact("call_contrast_spread", 1.0, "bn", p_value=0.3),
        Fact("call_divergence", 0.01, "bn", call=0),
        Fact("call_divergence", far, "bn", call=1),
        Fact("model_calls", roles),
    )


def test_n07_needs_distance_and_impact():
    rule = SeveralDistributions()
    assert severity(rule, *called(0.4), *HIDDEN) == Severity.ERROR
    assert severity(rule, *called(0.4)) == Severity.INFO
    assert severity(rule, *called(0.07), *HIDDEN) == Severity.INFO
    assert severity(rule, *called(0.02), *HIDDEN) is None
    assert severity(rule, *called(0.4, roles=2.0), *HIDDEN) == Severity.INFO
    served = (HIDDEN[0], Fact("excess_stored_over_batch", 0.0, p_value=0.5))
    assert severity(rule, *called(0.4), *served) == Severity.INFO
    assert said(rule, *called(0.4), *HIDDEN)[0].p_value == pytest.approx(0.001)


def test_n07_batches_that_take_turns_unless_they_are_classes():
    turns = (
        Fact("batch_periodicity", 0.9, "bn", p_value=0.0005, count=32),
        Fact("batch_period", 2.0, "bn"),
        Fact("phase_divergence", 0.5, "bn"),
    )
    (one,) = said(SeveralDistributions(), *turns, *HIDDEN)
    assert one.severity == Severity.ERROR
    assert "batches take turns with period 2" in one.summary
    pure = (Fact("label_purity", 1.0, p_value=0.0005), Fact("label_purity_random", 0.25))
    assert not said(SeveralDistributions(), *turns, *HIDDEN, *pure)


def test_n08_needs_enough_values_and_no_statistics_that_serve():
    rule = BatchLeak()
    assert severity(rule, worth(100.0), *HIDDEN) == Severity.ERROR
    assert severity(rule, worth(20.0), *HIDDEN) is None
    assert severity(rule, worth(100.0), Fact("call_n_eff_values", 9.0, "bn"), *HIDDEN) is None
    assert severity(rule, worth(100.0), HIDDEN[0], Fact("excess_stored_over_batch", 0.0, p_value=0.5)) is None
    assert severity(rule, worth(100.0), *HIDDEN, training=0.0) is None


def test_n12_synchronized_layers_that_synchronize_nothing():
    facts = (Fact("synchronized", 1.0, "bn"), Fact("process_group", 0.0), Fact("data_parallel", 0.0))
    assert severity(Distributed(), *facts, worth(10.0)) == Severity.WARNING
    assert severity(Distributed(), *facts, worth(100.0)) == Severity.INFO
    assert severity(Distributed(), *facts, worth(10.0), training=0.0) is None
    assert severity(Distributed(), facts[0], Fact("process_group", 1.0), worth(10.0)) is None


@pytest.mark.parametrize(("loss", "expected"), [(1.5, Severity.ERROR), (1.1, Severity.WARNING), (1.01, Severity.INFO)])
def test_n12_ranks_that_differ(loss, expected):
    facts = (
        Fact("rank_gap_share", 0.5, "bn"), Fact("rank_gap_mean", 0.4, "bn"), Fact("rank_loss", loss, call=1),
        Fact("merged_rank_loss", 1.0), Fact("rank_excess", loss - 1.0, p_value=1e-6),
    )  # fmt: skip
    assert severity(Distributed(), *facts) == expected
    assert severity(Distributed(), *facts, Fact("rank_weights_differ", 0.1)) is None


def test_n29_only_where_it_is_meant():
    assert severity(BatchIsATask(), *grouped(1.3)) is None
    assert severity(BatchIsATask(), *grouped(1.3), intent="transductive") == Severity.INFO
