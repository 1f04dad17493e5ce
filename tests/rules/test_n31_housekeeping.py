from bnprobe.evidence import Evidence, Fact
from bnprobe.records import Layer
from bnprobe.rules import Severity
from bnprobe.rules.n31_housekeeping import Housekeeping

LAYERS = [Layer("a", "BatchNorm2d", "batch_norm"), Layer("b", "BatchNorm2d", "batch_norm")]


def test_one_line_for_everything():
    facts = [
        Fact("bias_before_norm", 1, "a"), Fact("bias_before_norm", 1, "b"), Fact("affine_decay", 0.01, "a"),
        Fact("tiny_variance_share", 0.5, "b"), Fact("small_gain_share", 0.05, "b"),
    ]  # fmt: skip
    (found,) = Housekeeping().judge(Evidence(facts, LAYERS))
    assert found.severity == Severity.INFO
    assert found.summary == (
        "of 2 norm layers: 2 with a bias before them that they take out again, 1 whose gain or shift decays, "
        "1 with running variances below 10 epsilon"
    )


def test_a_tidy_model():
    facts = [
        Fact("bias_before_norm", 0, "a"),
        Fact("tiny_variance_share", 0.0, "a"),
        Fact("small_gain_share", 0.05, "a"),
    ]
    assert not list(Housekeeping().judge(Evidence(facts, LAYERS)))
