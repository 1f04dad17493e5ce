"""Evidence is what was put in, also after it went to disk and back."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnprobe.errors import RunError
from bnprobe.evidence import Context, Evidence, Fact
from bnprobe.records import Layer
from bnprobe.store import Writer, load

LAYERS = (
    Layer("a.bn", "BatchNorm2d", "batch_norm", 3, 1e-5, 0.1, ("b",), True),
    Layer("b", "LayerNorm", "layer_norm", None, 1e-6, None, (), False, "never called"),
    Layer("c", "Linear", "linear", 7),
)
CONTEXT = Context(
    intent="train", given=("loss", "optimizer"), training=True, untrained=True, batches=3, samples=12, labels=True,
    missing={"swap": "it raised"}, seconds={"state": 0.5}, texts={"model": "Net", "odd": "層"},
)  # fmt: skip
FACTS = [
    Fact("momentum", 0.1, "a.bn"),
    Fact("loss_stored", 0.5, place="loss", count=12, low=0.4, high=0.6, p_value=0.01),
    Fact("batch_loss", 0.7, batch=2, place="loss"),
    Fact("batch_loss", 0.6, batch=0, place="loss"),
    Fact("mean_gap", 0.2, "a.bn", place="input", count=100, channels=np.array([0.1, np.nan, 0.3])),
    Fact("mean_only", layer="a.bn", count=3, channels=np.array([1.0, 2.0, 3.0])),
    Fact("divergence", 0.1, "a.bn", call=1, place="input"),
    Fact("gap", float("inf"), "a.bn", low=0.0, high=float("inf")),
]


def key(fact):
    return (fact.statistic, fact.layer, fact.batch, fact.call, fact.place)


def same(one, other):
    for field in dataclasses.fields(Fact):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "channels":
            assert (a is None) == (b is None), one
            if a is not None:
                np.testing.assert_array_equal(a, b)
        elif isinstance(a, float):
            np.testing.assert_array_equal(a, b, err_msg=f"{field.name} of {one}")
        else:
            assert a == b, (field.name, one, other)


def test_everything_comes_back(tmp_path):
    kept = Evidence(FACTS, LAYERS, CONTEXT)
    back = Evidence.of(kept.save(tmp_path / "run"))
    assert back.layers == LAYERS
    assert back.context == CONTEXT
    assert len(back.facts) == len(FACTS)
    for one, other in zip(sorted(kept.facts, key=key), sorted(back.facts, key=key), strict=True):
        same(one, other)


def test_nothing_comes_back_as_nothing(tmp_path):
    back = Evidence.of(Evidence().save(tmp_path / "run"))
    assert (back.facts, back.layers, back.context) == ([], (), Context())


NUMBERS = st.floats(allow_nan=False) | st.just(float("inf"))


@settings(max_examples=25)
@given(
    st.lists(
        st.builds(
            Fact,
            statistic=st.sampled_from(["gap", "share", "n_eff_values"]),
            value=NUMBERS,
            layer=st.sampled_from(["", "a.bn", "b"]),
            batch=st.integers(0, 3),
            call=st.integers(0, 2),
            place=st.sampled_from(["input", "state", "loss"]),
            low=NUMBERS | st.just(float("nan")),
            high=NUMBERS | st.just(float("nan")),
            p_value=st.floats(0, 1) | st.just(float("nan")),
            channels=st.none() | st.lists(NUMBERS, min_size=1, max_size=4).map(np.array),
        ),
        max_size=12,
        unique_by=key,
    )
)
def test_any_facts_come_back(tmp_path_factory, facts):
    back = Evidence.of(Evidence(facts, LAYERS).save(tmp_path_factory.mktemp("runs") / "run"))
    for one, other in zip(sorted(facts, key=key), sorted(back.facts, key=key), strict=True):
        same(one, other)


def test_counts_of_facts_in_one_place_stay_their_own(tmp_path):
    facts = [
        Fact("gap", 0.5, "a.bn", place="input", count=640),
        Fact("n_eff_values", 9.0, "a.bn", place="input", count=10),
    ]
    back = Evidence.of(Evidence(facts, LAYERS).save(tmp_path / "run"))
    assert {one.statistic: one.count for one in back.facts} == {"gap": 640, "n_eff_values": 10}


def test_facts_are_found():
    known = Evidence(FACTS, LAYERS, CONTEXT)
    assert known.value("momentum", "a.bn") == 0.1
    assert np.isnan(known.value("momentum", "b"))
    assert known.value("momentum", "b", default=3.0) == 3.0
    assert known.fact("nothing") is None
    assert known.series("batch_loss").tolist() == [0.6, 0.7]
    assert known.series("nothing").size == 0
    assert known.channels("mean_only", "a.bn").tolist() == [1.0, 2.0, 3.0]
    assert known.channels("momentum", "a.bn") is None
    assert [layer.name for layer in known.norms] == ["a.bn", "b"]
    assert known.layer("c").kind == "Linear"


def test_a_later_fact_replaces_an_earlier_one():
    known = Evidence([Fact("gap", 1.0, "a"), Fact("gap", 2.0, "a")])
    assert [one.value for one in known.facts] == [2.0]


def test_a_probes_run_holds_no_evidence(tmp_path):
    Writer(tmp_path / "run", settings={}, layers=LAYERS, levels=()).close()
    with pytest.raises(RunError, match="holds no evidence of a diagnosis; it is a run that a probe recorded"):
        Evidence.of(load(tmp_path / "run"))
