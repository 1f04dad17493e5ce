"""Rules about modes, frozen layers, steps and copies, on facts written by hand: both sides of every threshold."""

import pytest

from bnprobe.evidence import Context, Evidence, Fact
from bnprobe.records import Layer
from bnprobe.rules import Severity, rules

NORM = Layer("bn", "BatchNorm1d", "batch_norm", 4, observed=True)
INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR


def opinions(code, *facts, layers=(NORM,), **context):
    return list(rules()[code].judge(Evidence(facts, layers, Context(**context))))


def severities(code, *facts, **context):
    return [one.severity for one in opinions(code, *facts, **context)]


def swap(value, exact=1.0, noise=0.0, **more):
    facts = [Fact("swap_change", value, low=value, high=value), Fact("swap_exact", exact), Fact("swap_noise", noise)]
    return [*facts, *(Fact(name, one) for name, one in more.items())]


def excess(value, p_value=1e-4):
    return Fact("excess_stored_over_pooled", value, p_value=p_value, place="loss")


@pytest.mark.parametrize(
    ("value", "expected"), [(1e-6, []), (0.0049, []), (0.006, [WARNING]), (0.05, [WARNING]), (0.06, [ERROR])]
)
def test_n01_by_how_much(value, expected):
    assert severities("N01", *swap(value)) == expected


def test_n01_kernels_that_were_not_checked_in_double_are_not_blamed():
    assert severities("N01", *swap(0.015, exact=0.0)) == []
    assert severities("N01", *swap(0.03, exact=0.0)) == [WARNING]


def test_n01_noise_of_repetition_is_not_blamed():
    assert severities("N01", *swap(0.3, noise=0.05)) == []


def test_n01_intended():
    (one,) = opinions("N01", *swap(0.3), intent="batch-stats-at-test")
    assert one.severity == INFO
    assert "as intended" in one.summary


def test_n01_something_else_than_normalization():
    (one,) = opinions("N01", *swap(0.3, swap_without_norms=0.29))
    assert one.severity == INFO
    assert "something else than normalization" in one.summary


def test_n01_alone():
    assert severities("N01", *swap(0.0, swap_alone=0.2)) == [ERROR]


def test_n01_of_the_mode_of_hand_over_is_information():
    (one,) = opinions("N01", *swap(1e-7, swap_after_eval=1.0, swap_change_handed=0.3))
    assert one.severity == INFO
    assert "call eval() before predicting" in one.summary


def frozen(drift, loss):
    return [
        Fact("frozen_move", 0.5, "bn"),
        Fact("frozen_output_drift", drift, count=50, low=0.9 * drift, high=drift),
        Fact("frozen_loss_drift", loss, count=50, low=0.9 * loss, high=loss),
    ]


@pytest.mark.parametrize(
    ("drift", "loss", "expected"),
    [(0.004, 0.5, INFO), (0.006, 0.01, WARNING), (0.2, 0.01, WARNING), (0.2, -0.3, WARNING), (0.2, 0.06, ERROR)],
)
def test_n03_by_what_it_does(drift, loss, expected):
    assert severities("N03", *frozen(drift, loss)) == [expected]


def test_n03_silent_where_nothing_moves_and_information_where_meant():
    assert severities("N03", Fact("frozen_training", 1.0)) == []
    assert severities("N03", *frozen(0.5, 0.5), intent="batch-stats-at-test") == [INFO]


def step(k, values, **more):
    facts = {"n_eff_values": values, "momentum": 0.1, "updates_per_step": k, **more}
    return [Fact(name, value, "bn") for name, value in facts.items()]


@pytest.mark.parametrize(
    ("k", "values", "more", "expected"),
    [
        (1, 10, {}, []),
        (2, 65, {"recomputed_calls": 1}, [WARNING]),
        (2, 67, {"recomputed_calls": 1}, [INFO]),
        (2, 10, {"recomputed_calls": 1, "momentum": 0.05}, [INFO]),  # corrected
        (4, 40, {}, [INFO]),  # micro-batches
        (4, 15, {}, [WARNING]),
    ],
)
def test_n09_by_values(k, values, more, expected):
    assert severities("N09", *step(k, values, **more)) == expected


def test_n09_says_the_momentum_of_a_step():
    (one,) = opinions("N09", *step(2, 10, recomputed_calls=1))
    assert "act like momentum 0.19 instead of 0.1" in one.summary
    assert "1 / 2" in one.remedy
    assert "inside of backward" in one.causes[0]


def test_n13_bare_and_idle():
    bare = [Fact("tracks", 0.0, "bn"), Fact("has_buffers", 0.0, "bn")]
    idle = [Fact("tracks", 0.0, "bn"), Fact("has_buffers", 1.0, "bn")]
    assert severities("N13", *bare, *swap(0.3)) == [ERROR]
    assert severities("N13", *bare, *swap(0.3, swap_after_eval=1.0)) == [WARNING]
    assert severities("N13", *bare, *swap(0.01)) == [INFO]
    assert severities("N13", *bare, *swap(0.3), intent="transductive") == [INFO]
    assert severities("N13", *idle, excess(0.01)) == [INFO]
    assert severities("N13", *idle, excess(0.1)) == [WARNING]
    assert severities("N13", *idle, excess(0.1, 0.2)) == [INFO]
    instance = Layer("bn", "InstanceNorm1d", "instance_norm", 4)
    assert severities("N13", *bare, *swap(0.3), layers=(instance,)) == []


def test_n17_predicting_in_training_mode():
    training = [Fact("training", 1.0, "bn"), *swap(0.2)]
    assert severities("N17", *training, training=False) == [WARNING]
    assert severities("N17", *training, training=False, intent="train") == []
    assert severities("N17", *training, training=True) == []
    (one,) = opinions("N17", *training, Fact("eval_unreached", 1.0, "bn"), training=True)
    assert "stay in training mode after eval()" in one.summary


def left(**more):
    facts = {"training": 0.0, "affine_moved": 1.0, "eval_calls": 1.0, "calls_per_step": 1.0, **more}
    return [Fact("step_given", 1.0), *(Fact(name, value, "bn") for name, value in facts.items())]


@pytest.mark.parametrize(
    ("root", "above", "intent", "moved", "expected"),
    [
        (False, 1.0, None, 1.0, [WARNING]),
        (True, 1.0, None, 1.0, [WARNING]),
        (True, 0.0, None, 1.0, [INFO]),  # norms alone: frozen on purpose
        (False, 1.0, "frozen", 1.0, [INFO]),
        (False, 1.0, None, 0.0, []),
    ],
)
def test_n17_training_in_evaluation_mode(root, above, intent, moved, expected):
    facts = left(eval_above=above, affine_moved=moved)
    assert severities("N17", *facts, training=root, intent=intent) == expected


@pytest.mark.parametrize(("drift", "loss", "expected"), [(0.01, 0.0, INFO), (0.03, 0.0, WARNING), (0.3, 0.3, ERROR)])
def test_n18_by_what_it_does(drift, loss, expected):
    facts = [Fact("evaluate_move", 0.2, "bn"), Fact("evaluate_updates", 3.0, "bn")]
    facts += [Fact("evaluate_output_drift", drift), Fact("evaluate_loss_drift", loss)]
    (one,) = opinions("N18", *facts)
    assert one.severity == expected
    assert "by 3 updates" in one.summary
    assert severities("N18", Fact("evaluate_move", 0.0, "bn")) == []


def test_n21_strangers():
    held = [Fact("unregistered_norms", 1.0, "block"), Fact("created_norms", 0.0, "block")]
    made = [Fact("unregistered_norms", 1.0, "block"), Fact("created_norms", 1.0, "block")]
    batch, trains = Fact("unregistered_by_batch", 1.0, "block"), Fact("unregistered_trainable", 1.0, "block")
    assert severities("N21", *held) == [INFO]  # a hidden teacher
    assert severities("N21", *held, trains) == [WARNING]
    assert severities("N21", *made, batch, *swap(0.0)) == [WARNING]
    assert severities("N21", *made, batch, *swap(0.2)) == [ERROR]


def test_n21_functional_only_where_it_couples_samples():
    weights = Fact("functional_by_batch", 3.0, "conv")
    assert severities("N21", weights, *swap(1e-6)) == []
    assert severities("N21", weights, *swap(0.2)) == [ERROR]


def test_n23():
    stuck = [Fact("stagnant_share", 0.5, "bn"), Fact("training", 1.0, "bn")]
    assert severities("N23", *stuck, excess(0.3)) == [ERROR]
    assert severities("N23", *stuck, excess(0.1)) == [WARNING]
    assert severities("N23", *stuck, excess(0.01)) == [INFO]
    assert severities("N23", *stuck, Fact("distance_stored", 0.5, low=0.4, high=0.6)) == [WARNING]
    assert severities("N23", Fact("stagnant_share", 0.5, "bn"), Fact("training", 0.0, "bn"), excess(0.3)) == []
    assert severities("N23", Fact("stagnant_share", 0.05, "bn"), Fact("training", 1.0, "bn"), excess(0.3)) == []


def checkpoint(lacks, affine=1.0, share=1.0, **more):
    facts = {"checkpoint_lacks": lacks, "checkpoint_affine": affine, "affine_frozen": 0.0, **more}
    return [Fact("checkpoint_share", share), *(Fact(name, value, "bn") for name, value in facts.items())]


def test_n24():
    assert severities("N24", *checkpoint(1.0)) == [ERROR]
    assert severities("N24", *checkpoint(0.0)) == []
    assert severities("N24", *checkpoint(1.0, affine=0.0)) == []  # a part that it was not made of
    assert severities("N24", *checkpoint(1.0, affine=0.0, share=0.1, training=1.0)) == [WARNING]
    assert severities("N24", *checkpoint(1.0, affine=0.0, share=0.1, training=0.0)) == []


def test_n24_untouched():
    other = Fact("checkpoint_updates", 100.0, "other")
    assert severities("N24", *checkpoint(0.0, checkpoint_default=1.0), other) == [ERROR]
    assert severities("N24", *checkpoint(0.0, checkpoint_default=1.0)) == []  # untrained as a whole
    never = Layer("bn", "BatchNorm1d", "batch_norm", 4, observed=False)
    assert severities("N24", *checkpoint(0.0, checkpoint_default=1.0), other, layers=(never,)) == []


def parity(gap, rms=None, noise=1e-6, **more):
    facts = {"parity_gap": gap, "parity_rms": gap / 3 if rms is None else rms, "parity_noise": noise, **more}
    return [Fact(name, value) for name, value in facts.items()]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (parity(1e-5), []),
        (parity(2e-3), [WARNING]),
        (parity(2e-2), [ERROR]),
        (parity(2e-2, noise=3e-3), []),
        (parity(1e-2, parity_epsilon=1e-3), []),  # exported in half precision
        (parity(0.5, rms=0.05, parity_quantized=1.0), []),
        (parity(2.0, rms=0.5, parity_quantized=1.0), [WARNING]),
        (parity(0.5, swap_change_exported=0.3), [ERROR]),
        (parity(1e-6, fold_gain_spread=200.0), [INFO]),
        (parity(1e-6, fold_gain_spread=20.0), []),
    ],
)
def test_n27(facts, expected):
    assert severities("N27", *facts) == expected


def test_n27_depends_on_mates():
    (one,) = opinions("N27", *parity(0.5, swap_change_exported=0.3), *swap(1e-7))
    assert "other batch mates" in one.summary
    (one,) = opinions("N27", *parity(0.5, swap_change_exported=0.3), *swap(0.3))
    assert "differ from the model's" in one.summary
