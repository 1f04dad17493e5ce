"""`build_table` against what a loop over cells would write, and each of its errors."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import records_of, table_of

from bnprobe.errors import ArgumentError
from bnprobe.records import Measured, Record
from bnprobe.store import Placed, build_table

RECORDS = records_of(range(2))  # four of them
ALL = np.arange(4)
VALUE = np.array([1.0, 2.0, 3.0, 4.0])


def table(statistic: str = "mean", rows: object = ALL, **changes: object) -> pa.Table:
    measured = replace(Measured(VALUE, "computed"), **changes)
    return build_table(RECORDS, {statistic: [Placed(rows, measured)]})


def test_keys_and_types() -> None:
    schema = table_of(range(2), statistics=("mean", "variance")).schema
    names = pa.dictionary(pa.int32(), pa.string())
    keys = {"step": pa.int64(), "phase": names, "layer": names, "call": pa.int32(), "place": names, "count": pa.int64()}
    assert {name: schema.field(name).type for name in keys} == keys
    groups = ["mean", "mean.error", "mean.source", "mean.channels", "variance", "variance.error", "variance.source"]
    assert schema.names == [*keys, *groups, "variance.channels", "quantile.grid", "quantile.error", "quantile.source"]
    assert schema.field("mean").type == schema.field("mean.error").type == pa.float64()
    assert schema.field("mean.channels").type == schema.field("quantile.grid").type == pa.list_(pa.float64())


def test_keys_are_those_of_the_records() -> None:
    records = [Record(3, "eval", "b", 1, "output.1", 9), Record(2, "train", "a", 0, "input")]
    assert build_table(records, {}).to_pydict() == {
        "step": [3, 2],
        "phase": ["eval", "train"],
        "layer": ["b", "a"],
        "call": [1, 0],
        "place": ["output.1", "input"],
        "count": [9, 0],
    }


def test_nothing_measured() -> None:
    assert build_table([], {}).num_rows == 0
    nothing = Placed(np.empty(0, int), Measured(np.empty(0), "saved"))
    assert build_table(RECORDS, {"mean": [], "variance": [nothing]}).column_names == [
        "step",
        "phase",
        "layer",
        "call",
        "place",
        "count",
    ]


def test_what_was_not_measured_is_null_and_what_is_exact_has_no_error() -> None:
    some = build_table(RECORDS, {"mean": [Placed(np.array([2, 0]), Measured(VALUE[:2], "saved"))]}).to_pydict()
    assert some["mean"] == [2.0, None, 1.0, None]
    assert some["mean.error"] == [0.0, None, 0.0, None]
    assert some["mean.source"] == ["saved", None, "saved", None]
    assert "mean.channels" not in some


def test_a_value_that_does_not_exist_is_null_with_its_error_and_source() -> None:
    nan = table(value=np.array([1.0, np.nan, np.inf, -0.0]), error=np.array([0.1, 0.2, np.nan, 0.4])).to_pydict()
    assert nan["mean"] == [1.0, None, np.inf, -0.0]
    assert nan["mean.error"] == [0.1, None, None, 0.4]
    assert nan["mean.source"] == ["computed", None, "computed", "computed"]


def test_channels_keep_their_source_without_a_layer_value() -> None:
    only = table(value=np.full(4, np.nan), channels=[np.array([1.0, np.nan]), None, None, np.empty(0)]).to_pydict()
    assert only["mean"] == [None] * 4
    assert only["mean.source"] == ["computed", None, None, "computed"]
    assert only["mean.channels"][1:] == [None, None, []]
    np.testing.assert_array_equal(only["mean.channels"][0], [1.0, np.nan])


def test_a_grid_of_nan_does_not_exist() -> None:
    grid = np.array([[1, 2], [np.nan, np.nan], [np.nan, 5], [6, 7]], dtype=np.float32)
    made = table("quantile", value=np.empty(0), grid=grid, error=np.full(4, 0.1)).to_pydict()
    assert "quantile" not in made
    assert made["quantile.grid"][1] is None
    assert made["quantile.error"] == [0.1, None, 0.1, 0.1]
    assert made["quantile.source"] == ["computed", None, "computed", "computed"]
    np.testing.assert_array_equal(made["quantile.grid"][2], [np.nan, 5])


floats = st.floats(width=32) | st.floats()


@st.composite
def scattered(draw: st.DrawFn) -> tuple[int, list[Placed]]:
    """Some rows of some records, in any order, in several groups that differ in what they have."""
    size = draw(st.integers(1, 8))
    rows = draw(st.permutations(range(size)))[: draw(st.integers(0, size))]
    cuts = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=2)))
    groups = []
    for low, high in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        n = high - low
        column = st.lists(floats, min_size=n, max_size=n).map(np.array)
        ragged = st.lists(st.none() | st.lists(floats, max_size=3).map(np.array), min_size=n, max_size=n)
        block = st.lists(floats, min_size=2 * n, max_size=2 * n).map(lambda flat: np.array(flat, float).reshape(-1, 2))
        names = st.sampled_from(["saved", "computed", "sampled"])
        measured = Measured(
            value=draw(column),
            source=draw(names | st.lists(names, min_size=n, max_size=n)),
            error=draw(st.none() | column),
            channels=draw(st.none() | ragged | block),
        )
        groups.append(Placed(np.array(rows[low:high], dtype=int), measured))
    return size, groups


@given(scattered())
def test_equals_a_loop_over_cells(case: tuple[int, list[Placed]]) -> None:
    size, groups = case
    expected = {name: [None] * size for name in ("s", "s.error", "s.source", "s.channels")}
    for group in groups:
        each = group.measured
        for k, row in enumerate(group.rows):
            value = each.value[k]
            channels = None if each.channels is None else each.channels[k]
            error = 0.0 if each.error is None else each.error[k]
            expected["s"][row] = None if np.isnan(value) else value
            expected["s.error"][row] = None if np.isnan(value) or np.isnan(error) else error
            expected["s.channels"][row] = None if channels is None else list(channels)
            if not np.isnan(value) or channels is not None:
                expected["s.source"][row] = each.source if isinstance(each.source, str) else each.source[k]
    if all(channels is None for channels in expected["s.channels"]):
        del expected["s.channels"]
    if not any(len(group.rows) for group in groups):
        expected = {}
    made = build_table([Record(k, "train", "a", 0, "input") for k in range(size)], {"s": groups}).to_pydict()
    np.testing.assert_equal({name: made[name] for name in made if name.startswith("s") and name != "step"}, expected)


@pytest.mark.parametrize("name", ["", "step", "count", "mean.error", "x.source", "x.channels", "x.grid"])
def test_names_that_are_columns_already(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"a statistic cannot be named '{name}'.*step, phase, .*\\*.grid"):
        table(name)


def test_a_name_with_dots_and_letters_of_any_script_is_a_name() -> None:
    assert "my.<b>é" in table("my.<b>é").column_names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": np.array([0, 1, 2, 4])}, r"rows of 'mean' must be positions in the 4 records; got 0\.\.4"),
        ({"rows": np.array([0, 1, 2, -1])}, r"rows of 'mean' must be positions in the 4 records; got -1\.\.2"),
        (
            {"rows": np.array([0, 1, 1, 2])},
            "rows of 'mean' must be placed once each; record 1 is placed more than once",
        ),
        ({"value": VALUE[:1]}, r"value of 'mean' must have shape \[4\], one a row; got \[1\]"),
        ({"value": VALUE[:, None]}, r"value of 'mean' must have shape \[4\], one a row; got \[4, 1\]"),
        ({"error": VALUE[:3]}, r"error of 'mean' must have shape \[4\], one a row; got \[3\]"),
        ({"channels": [VALUE]}, "channels of 'mean' must be 4 arrays, one a row; got 1"),
        ({"grid": np.zeros((3, 2))}, r"grid of 'mean' must have shape \[4, levels\]; got \[3, 2\]"),
        ({"source": "guessed"}, "source of 'mean' must be one of saved, computed, sampled; got 'guessed'"),
        ({"source": ["saved"]}, "source of 'mean' must be one for all or 4, one a row; got 1"),
    ],
)
def test_errors(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        table(**changes)


def test_groups_may_not_overlap() -> None:
    group = Placed(ALL[:2], Measured(VALUE[:2], "saved"))
    with pytest.raises(ArgumentError, match="record 0 is placed more than once"):
        build_table(RECORDS, {"mean": [group, group]})
