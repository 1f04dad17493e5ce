"""N02, N25 and N26 on hand-written facts: both sides of every threshold, and what they say."""

import pytest

from bnprobe.evidence import Evidence, Fact
from bnprobe.rules import Severity, rules


def facts(prefix="", share=0.5, excess=0.3, p_value=1e-6, **more):
    return [
        Fact(f"{prefix}stale_share", 0.0, "bn1"),
        Fact(f"{prefix}stale_share", share, "bn2"),
        Fact(f"{prefix}loss_stored", 0.65),
        Fact(f"{prefix}loss_pooled", 0.5),
        Fact(f"{prefix}excess_stored_over_pooled", excess, low=excess - 0.1, high=excess + 0.1, p_value=p_value),
        *(Fact(name, value, "bn2") for name, value in more.items()),
    ]


def opinions(code, some):
    return list(rules()[code].judge(Evidence(some)))


@pytest.mark.parametrize(("code", "prefix"), [("N02", ""), ("N25", ""), ("N25", "reference_"), ("N26", "validation_")])
def test_effect_and_impact_are_both_needed(code, prefix):
    assert len(opinions(code, facts(prefix))) == 1
    assert len(opinions(code, facts(prefix, share=0.21))) == 1  # 10 % of all
    assert not opinions(code, facts(prefix, share=0.19))
    assert not opinions(code, facts(prefix, excess=0.04))
    assert not opinions(code, facts(prefix, excess=-0.5))  # frozen on purpose: stored beats pooled
    assert not opinions(code, [])


@pytest.mark.parametrize(
    ("excess", "severity"), [(0.06, Severity.WARNING), (0.2, Severity.ERROR), (9.0, Severity.ERROR)]
)
def test_how_bad_is_how_much_loss(excess, severity):
    for code in ("N02", "N25"):
        (opinion,) = opinions(code, facts(excess=excess))
        assert opinion.severity == severity
        assert opinion.p_value == 1e-6
        assert str(opinion.impact).startswith("more loss than with pooled statistics")


def test_a_shift_is_never_more_than_a_warning():
    assert not opinions("N26", facts("validation_", excess=0.19))
    (opinion,) = opinions("N26", facts("validation_", excess=5.0))
    assert opinion.severity == Severity.WARNING
    assert opinion.summary == (
        "the validation loss is 0.65 with the running statistics and 0.5 with statistics of the validation batches: "
        "another distribution, or another preprocessing, than that of the training"
    )


def test_a_loss_that_is_not_finite_is_no_matter_of_chance():
    some = [*facts(), Fact("excess_stored_over_pooled", float("inf"), p_value=0.0)]
    (opinion,) = opinions("N02", some)
    assert (opinion.severity, opinion.p_value) == (Severity.ERROR, 0.0)


@pytest.mark.parametrize(("code", "prefix"), [("N02", ""), ("N25", "reference_"), ("N26", "validation_")])
def test_without_labels_outputs_decide(code, prefix):
    some = [Fact(f"{prefix}stale_share", 1.0, "bn1"), Fact(f"{prefix}distance_stored", 0.9, low=0.5, high=1.3)]
    (opinion,) = opinions(code, some)
    assert (opinion.severity, opinion.p_value) == (Severity.WARNING, None)
    assert "0.9 standard deviations" in opinion.summary
    unsure = [some[0], Fact(f"{prefix}distance_stored", 0.9, low=0.2, high=1.3)]
    assert not opinions(code, unsure)


def test_what_is_said_and_what_may_be_behind_it():
    (opinion,) = opinions("N02", facts(default_statistics=1.0, momentum=0.0, updates_seen=0.0))
    assert opinion.summary == (
        "the loss is 0.65 with the running statistics and 0.5 with statistics pooled over the same batches; they are "
        "far off in 1 of 2 layers, most in bn2 (50% of its channels)"
    )
    assert opinion.causes[:4] == (
        "all of these layers hold means of 0 and variances of 1: never updated, reset, or not in the checkpoint",
        "momentum is 0 in 1 of them, so that statistics never move",
        "1 of them have seen too few batches for their momentum to fill the averages",
        "only some layers are off: a part of the model was replaced, pruned or trained in another mode",
    )
    (copies,) = opinions("N25", [*facts("reference_"), Fact("buffers_shared", 1.0), Fact("weights_shared", 0.0)])
    assert copies.causes == ("both copies hold the same buffers though their weights differ",)
    assert copies.summary == (
        "the reference's running statistics do not fit its own weights: far off in 1 of 2 layers; its loss is 0.65 "
        "with them and 0.5 with pooled ones"
    )
