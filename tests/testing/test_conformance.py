"""What a user of the checks sees: messages, expected failures, pytest items, refusals."""

import subprocess
import sys

import pytest
import torch
from handmade import Handmade
from hypothesis import Phase, settings
from mutants import MUTANTS
from torch import nn

from bnprobe.errors import ArgumentError, LawBrokenError
from bnprobe.testing import Subject, check_norm_layer, checks_of, norm_layer_checks, properties
from bnprobe.testing.likes import LIKES
from bnprobe.testing.strategies import Batch, tensor

EpsOutsideRoot = MUTANTS["EpsOutsideRoot"].make
FAST = "bnprobe-fast"
UNSHRUNK = "bnprobe-fast unshrunk"  # where it is not about the smallest example
QUICK = "settings.get_profile('bnprobe-fast'), phases=[Phase.explicit, Phase.generate]"
settings.register_profile(UNSHRUNK, settings.get_profile(FAST), phases=[Phase.explicit, Phase.generate])


def broken(make, law, like="batch_norm", **kwargs):
    with pytest.raises(LawBrokenError) as failure:
        check_norm_layer(make, like, only=[law], profile=FAST, **kwargs)
    return str(failure.value)


def test_the_message_has_law_layer_misfit_tolerance_and_example():
    told = broken(EpsOutsideRoot, "output_equals_oracle", seed=1)
    first, law, value, misfit, count, *example = told.splitlines()
    assert first == "EpsOutsideRoot breaks the law output_equals_oracle of batch_norm"
    assert law == f"law: {properties.LAWS['output_equals_oracle'].statement}"
    assert value.startswith("output[")
    assert "the law gives" in value
    assert misfit.startswith("misfit ")
    assert "E = (m + 8) (1 + kappa) u with m = 2 values a row, kappa = (max|x| + |mean|) / sigma up to" in misfit
    assert count.endswith("elements are off by more than that")
    assert example[0] == "example:"


def test_the_example_can_be_pasted():
    told = broken(EpsOutsideRoot, "output_equals_oracle", seed=1)
    code = "\n".join(line.strip() for line in told.split("example:\n")[1].splitlines()[:3])
    with pytest.raises(LawBrokenError) as again:
        exec(code, {"EpsOutsideRoot": EpsOutsideRoot})
    assert str(again.value) == told


def test_the_example_is_the_smallest():
    told = broken(EpsOutsideRoot, "output_equals_oracle", seed=1)
    assert "x=Batch((2, 1), " in told


def test_misfit_and_tolerance_are_those_of_the_element():
    with pytest.raises(LawBrokenError) as failure:
        properties.output_equals_oracle(
            Subject(MUTANTS["PositiveScale"].make, "batch_norm"), x=Batch((3, 4), seed=3), training=True
        )
    told = str(failure.value)
    got, want = (float(told.split(word)[1].split()[0].rstrip(",")) for word in (" is ", "the law gives "))
    misfit, tolerance = (float(told.split(word)[1].split()[0].rstrip(",:")) for word in ("misfit ", "tolerance "))
    assert misfit == pytest.approx(abs(got - want), rel=1e-2)
    assert 0 < tolerance < 1e-4


def test_an_exception_of_the_layer_is_told():
    class Raises(Handmade):
        def forward(self, x):
            if x.ndim == 2 and len(x) == 3:
                raise KeyError("three")
            return super().forward(x)

    with pytest.raises(LawBrokenError, match=r"the layer raised KeyError: 'three'") as failure:
        properties.output_equals_oracle(Subject(Raises, "batch_norm"), x=Batch((3, 1)), training=True)
    assert isinstance(failure.value.__cause__, KeyError)


def test_all_broken_laws_are_told():
    with pytest.raises(LawBrokenError) as failure:
        check_norm_layer(EpsOutsideRoot, "batch_norm", only=["scale_law", "output_equals_oracle"], profile=UNSHRUNK)
    told = str(failure.value)
    assert told.startswith("EpsOutsideRoot breaks 2 of 2 laws\n\nEpsOutsideRoot breaks the law ")
    assert told.count("example:") == 2


def test_an_expected_failure_is_no_failure():
    found = check_norm_layer(
        EpsOutsideRoot,
        "batch_norm",
        only=["scale_law", "sign_flip"],
        expected_failures={"scale_law": "known"},
        profile=FAST,
    )
    assert found.expected == {"scale_law": "known"}
    assert found.passed == ("sign_flip",)


def test_a_cured_failure_is_one():
    told = broken(Handmade, "scale_law", expected_failures={"scale_law": "was known"})
    assert told == (
        "Handmade obeys the law scale_law, which was expected to fail (was known): remove it from expected_failures"
    )


def test_a_law_that_is_not_for_the_layer_is_skipped_with_its_reason():
    found = check_norm_layer(
        lambda c: nn.BatchNorm1d(c, track_running_stats=False), "batch_norm", only=["running_statistics"], profile=FAST
    )
    assert found.skipped == {"running_statistics": "the layer has no running statistics"}


@norm_layer_checks(
    EpsOutsideRoot,
    "batch_norm",
    only=["scale_law", "sign_flip"],
    expected_failures={"scale_law": "eps stands outside"},
    profile=FAST,
)
def test_as_pytest_items(layer, check):
    assert repr(layer) == "Subject(EpsOutsideRoot, like='batch_norm')"
    check(layer)


def test_pytest_items_are_named_skipped_and_failed(tmp_path):
    (tmp_path / "test_items.py").write_text(
        "from hypothesis import Phase, settings\n"
        "from torch import nn\n"
        "from bnprobe.testing import norm_layer_checks\n"
        f"settings.register_profile('quick', {QUICK})\n"
        "@norm_layer_checks(lambda c: nn.BatchNorm1d(c, track_running_stats=False), 'batch_norm', eps=0.5,\n"
        "    only=['scale_law', 'running_statistics', 'sign_flip'], profile='quick',\n"
        "    expected_failures={'sign_flip': 'thought so'})\n"
        "def test_layer(layer, check):\n"
        "    check(layer)\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = run.stdout
    assert "test_layer[scale_law]" in told
    assert "SKIPPED" in told
    assert "the layer has no running statistics" in told
    assert "remove it from expected_failures" in told
    assert "2 failed, 1 skipped" in told


def test_every_law_is_for_some_layer_and_says_what_it_is():
    for name, law in properties.LAWS.items():
        assert name in properties.__all__
        assert getattr(properties, name) is law.check
        assert law.likes
        assert len(law.statement) > 30
    for like in LIKES:
        assert len(checks_of(like)) > 20


def test_random_streams_are_left_as_they_were():
    before = torch.get_rng_state()
    check_norm_layer(nn.BatchNorm1d, "batch_norm", only=["output_equals_oracle", "deterministic"], profile=FAST)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_property_takes_a_tensor():
    properties.output_equals_oracle(Subject(nn.BatchNorm1d, "batch_norm"), x=torch.randn(4, 3), training=True)
    assert torch.equal(tensor(Batch((2, 2))), Batch((2, 2)).tensor())


def test_shapes_and_channels_are_found_out():
    def accepted(make, like):
        return {shape for shape, _ in Subject(make, like).accepted}

    assert accepted(nn.BatchNorm1d, "batch_norm") == {("N", "C"), ("N", "C", "L")}
    assert accepted(nn.BatchNorm2d, "batch_norm") == {("N", "C", "H", "W")}
    assert accepted(nn.InstanceNorm1d, "instance_norm") == {("N", "C", "L")}
    assert accepted(nn.LayerNorm, "layer_norm") == {("N", "C"), ("N", "L", "C"), ("N", "H", "W", "C")}
    groups = Subject(lambda c: nn.GroupNorm(3, c), "group_norm")
    assert {channels for _, channels in groups.accepted} == {3, 6}


def test_shapes_can_be_given():
    subject = Subject(lambda c: nn.LayerNorm((c, 5)), "layer_norm", shapes=[("N", "C", 5)])
    assert subject.example_settings.axes == (-2, -1)
    found = check_norm_layer(
        lambda c: nn.LayerNorm((c, 5)),
        "layer_norm",
        shapes=[("N", "C", 5)],
        only=["output_equals_oracle"],
        profile=FAST,
    )
    assert found.passed == ("output_equals_oracle",)


def test_shapes_say_where_channels_are():
    """Of inputs that a law has changed, which come without a recipe."""
    found = check_norm_layer(
        lambda c: nn.LayerNorm((c, 5)), "layer_norm", shapes=[("N", "C", 5)], channels=[3, 4],
        only=["sample_order", "translation_invariance", "batch_mates_do_not_matter"], profile=FAST,
    )  # fmt: skip
    assert len(found.passed) == 3


class OnePlusWeight(nn.Module):
    """As of Gemma: the scale that is kept is 0 where nothing is scaled."""

    def __init__(self, channels):
        super().__init__()
        self.eps, self.weight = 1e-6, nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return x / ((x**2).mean(-1, keepdim=True) + self.eps).sqrt() * (1 + self.weight)


def test_a_scale_that_is_kept_as_an_offset():
    laws = ["output_equals_oracle", "gradients_equal_oracle", "scale_law"]
    with pytest.raises(LawBrokenError, match="breaks 2 of 3 laws"):
        check_norm_layer(OnePlusWeight, "rms_norm", only=laws, profile=UNSHRUNK)
    assert check_norm_layer(OnePlusWeight, "rms_norm", only=laws, profile=FAST, scale_offset=1).passed == tuple(
        name for name in properties.LAWS if name in laws
    )


def test_settings_are_found_or_given():
    assert Subject(lambda c: nn.BatchNorm1d(c, eps=0.3, momentum=None), "batch_norm").example_settings.eps == 0.3
    assert Subject(lambda c: nn.BatchNorm1d(c, momentum=None), "batch_norm").example_settings.momentum is None
    given = Subject(nn.BatchNorm1d, "batch_norm", settings=(("eps", 0.5),))
    assert given.example_settings.eps == 0.5


def test_refusals():
    with pytest.raises(ArgumentError, match=r"like must be one of batch_norm, .*; got 'batchnorm'"):
        check_norm_layer(nn.BatchNorm1d, "batchnorm")
    with pytest.raises(ArgumentError, match=r"there is no law 'scale_laws'; near are scale_law"):
        check_norm_layer(nn.BatchNorm1d, "batch_norm", expected_failures={"scale_laws": "?"})
    with pytest.raises(ArgumentError, match=r"there is no setting 'epsilon'; settings of a layer are .*eps"):
        check_norm_layer(nn.BatchNorm1d, "batch_norm", epsilon=1.0)
    with pytest.raises(ArgumentError, match=r"takes none of the shapes .*The last refusal: RuntimeError: no thanks"):
        check_norm_layer(Refuses, "batch_norm")


class Refuses(Handmade):
    def forward(self, x):
        raise RuntimeError("no thanks")


def test_it_says_what_is_missing():
    code = "import sys; sys.modules['hypothesis'] = None; import bnprobe.testing"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "bnprobe.testing needs hypothesis: pip install 'bnprobe[testing]'" in run.stderr


def test_the_package_does_not_import_it():
    code = "import sys, bnprobe, bnprobe.measures; assert 'hypothesis' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
