"""Each picture shows the numbers of the run, on the Axes that it is given, and leaves matplotlib as it was."""

import io
import itertools
import re
import subprocess
import sys
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from report.believable_run import ERROR, LEVELS, inventory, make_run, moments_of, quantiles

from bnprobe import plots
from bnprobe.distances import KolmogorovSmirnov, KullbackLeibler
from bnprobe.drift import drift
from bnprobe.errors import ArgumentError, RunError
from bnprobe.plots import style
from bnprobe.plots.before_after import _density
from bnprobe.plots.heat_map import LayerSteps, draw_heat_map
from bnprobe.records import DEFAULT_LEVELS, Layer

DRAWINGS = {
    "percentiles": lambda run, ax: plots.percentiles(run, run.layers["name"][2], ax=ax),
    "drift_map": lambda run, ax: plots.drift_map(run, ax=ax),
    "moments_over_depth": lambda run, ax: plots.moments_over_depth(run, ax=ax),
    "saturation": lambda run, ax: plots.saturation(run, ax=ax),
    "saturation map": lambda run, ax: plots.saturation(run, ax=ax, lines=False),
    "running_gap": lambda run, ax: plots.running_gap(run, ax=ax),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", steps=range(60))


@pytest.fixture(scope="module")
def wordy(tmp_path_factory):
    """A run whose layers have names as long as real ones."""
    return make_run(
        tmp_path_factory.mktemp("runs") / "wordy",
        steps=range(5),
        prefix="module_backbone_features_denseblock3_layer12_",
    )


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A run that recorded one moment of one layer and nothing else."""
    left_out = ("variance", "quantile", "saturated", "mean_gap", "variance_gap")
    return make_run(tmp_path_factory.mktemp("runs") / "bare", steps=range(3), without=left_out)


def test_every_picture_is_under_the_common_laws():
    assert {name.partition(" ")[0] for name in DRAWINGS} | {"before_after"} == set(plots.__all__)


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_draws_on_the_axes_that_it_is_given(run, draw):
    ax = Figure().subplots()
    assert draw(run, ax) is ax
    assert ax.has_data()


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_settings_stay_and_do_not_leak_in(run, draw):
    """A user's dark style neither changes nor makes white text on our white figure."""
    with mpl.rc_context():
        mpl.style.use("dark_background")
        before = dict(mpl.rcParams)
        ax = draw(run, None)
        ax.figure.savefig(io.BytesIO(), format="png")
        assert dict(mpl.rcParams) == before
        assert to_hex(ax.figure.get_facecolor()) == style.PAPER
        texts = [*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label, ax.title, ax._left_title]
        texts += ax.get_legend().get_texts() if ax.get_legend() else []
        texts += [text for other in ax.figure.axes for text in (*other.get_xticklabels(), other.xaxis.label)]
        assert {to_hex(text.get_color()) for text in texts} == {style.INK}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_text_on_given_axes_has_the_colour_of_theirs(run, draw):
    ax = Figure().subplots()
    ax.xaxis.label.set_color("red")
    draw(run, ax)
    texts = list(ax.get_legend().get_texts()) if ax.get_legend() else []
    texts += [text for bar in ax.figure.axes[1:] for text in (*bar.get_xticklabels(), bar.xaxis.label)]
    assert {to_hex(text.get_color()) for text in texts} == {"#ff0000"}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_nothing_is_clipped(wordy, draw):
    """With long names the title, labels and legend still lie within the figure."""
    figure = draw(wordy, None).figure
    figure.savefig(io.BytesIO(), format="png")
    inside = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert inside.x0 > -0.01
    assert inside.y0 > -0.01
    assert inside.x1 < width + 0.01
    assert inside.y1 < height + 0.01


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_what_was_not_recorded_is_an_error_that_says_so(bare, draw):
    with pytest.raises(RunError, match=r"has no|needs"):
        draw(bare, None)


def test_importing_and_drawing_need_no_display_and_no_pyplot_figure(run):
    code = (
        "import sys, matplotlib\n"
        "from bnprobe import load, plots\n"
        f"ax = plots.percentiles(load({str(run.path)!r}), 'act1')\n"
        "assert matplotlib.get_backend(auto_select=False) is None, 'a backend was chosen'\n"
        "import matplotlib.pyplot as plt\n"
        "assert plt.get_fignums() == []\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- percentiles -----------------------------------------------------------------------------------------------------


def act(block: int = 0) -> Layer:
    return inventory(3)[3 * block + 2]


def test_percentiles_are_the_recorded_ones_with_the_band_of_their_rank_error(run):
    ax = plots.percentiles(run, "act2", levels=(0.85, 0.15, 0.5))
    grid = quantiles(act(1), "input", 20 / 59, 1)
    drawn = {text.get_text(): line for text, line in zip(ax.get_legend().get_texts(), ax.lines, strict=True)}
    assert list(drawn) == ["85 %", "50 %", "15 %"]
    for level, band in zip((0.85, 0.5, 0.15), ax.collections, strict=True):
        assert drawn[f"{100 * level:g} %"].get_ydata()[20] == pytest.approx(np.interp(level, LEVELS, grid))
        at_20 = band.get_paths()[0].vertices[band.get_paths()[0].vertices[:, 0] == 20, 1]
        assert at_20.min() == pytest.approx(np.interp(level - ERROR, LEVELS, grid))
        assert at_20.max() == pytest.approx(np.interp(level + ERROR, LEVELS, grid))


def test_a_channel_has_no_band_for_no_error_is_recorded(run):
    ax = plots.percentiles(run, "act1", channel=1)
    assert np.isfinite(ax.lines[0].get_ydata()).all()
    assert all(not path.vertices.size for band in ax.collections for path in band.get_paths())
    assert "channel 1" in ax.get_title(loc="left")


def test_several_runs_stand_side_by_side_on_one_scale(run, tmp_path):
    other = make_run(tmp_path / "other", steps=range(10))
    panels = plots.percentiles({"with": run, "without": other}, "act1", "output")
    assert [panel.get_title(loc="left") for panel in panels] == ["with", "without"]
    assert panels[0].get_ylim() == panels[1].get_ylim()
    assert panels[0].figure is panels[1].figure
    assert [panel.get_ylabel() for panel in panels] == ["output of act1", ""]
    given_axes = list(Figure().subplots(1, 2))
    assert plots.percentiles([run, other], "act1", ax=given_axes) == given_axes


def test_many_levels_have_a_colour_each(run):
    ax = plots.percentiles(run, "act1", levels=np.linspace(0.05, 0.95, 19))
    assert len({line.get_color() for line in ax.lines}) == 19


def test_long_runs_are_thinned_and_say_so(tmp_path):
    layer = replace(act(), name="only")
    long = make_run(tmp_path / "long", steps=range(1500), layers=[layer], without=("saturated", "mean", "variance"))
    ax = plots.percentiles(long, "only")
    assert len(ax.lines[0].get_xdata()) == 600
    assert ax.lines[0].get_xdata()[[0, -1]].tolist() == [0, 1499]
    assert ax.get_xlabel() == "training step (600 of 1,500 drawn)"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"levels": (0.5, 1.5)}, ArgumentError, r"levels must be probabilities from 0 to 1.*got \(0.5, 1.5\)"),
        ({"levels": ()}, ArgumentError, "levels must be probabilities"),
        ({"ax": []}, ArgumentError, "ax must hold one Axes a run, 1 in all; got 0"),
        ({"layer": "act9"}, RunError, "no layer 'act9'"),
        ({"place": "grad_output"}, RunError, "no quantiles of the grad_output of act1 in phase 'train'"),
        ({"call": 2}, RunError, "no quantiles of the input of act1, call 2"),
        ({"channel": 7}, RunError, r"channel 7; channels with quantiles: \[0, 1\]"),
    ],
)
def test_percentiles_refuse(run, arguments, error, message):
    with pytest.raises(error, match=message):
        plots.percentiles(**{"run": run, "layer": "act1", **arguments})


def test_percentiles_of_no_run_are_refused():
    with pytest.raises(ArgumentError, match="run must be a Run, or at least one"):
        plots.percentiles([], "act1")


# -- layers x steps --------------------------------------------------------------------------------------------------


def drawn_values(ax: Axes) -> np.ma.MaskedArray:
    mesh = ax.collections[0]
    return mesh.get_array().reshape(len(mesh.get_coordinates()) - 1, -1)


def test_drift_map_holds_the_drift_in_the_order_of_the_inventory(run):
    ax = plots.drift_map(run, KolmogorovSmirnov(), reference=30, place="output")
    frame = drift(run, KolmogorovSmirnov(), 30, place="output", standardize=True)
    expected = frame.pivot_table(index="layer", columns="step", values="value")
    names = [name for name in run.layers["name"] if name in expected.index]
    np.testing.assert_allclose(drawn_values(ax), expected.loc[names].to_numpy())
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    assert ax.get_title(loc="left") == "Drift of the output against step 30"
    assert ax.figure.axes[-1].get_xlabel() == "kolmogorov smirnov, in reference sd"


def test_a_layer_that_comes_later_is_missing_before(tmp_path):
    seen = drift(make_run(tmp_path / "run", steps=range(6)), place="input")
    late = seen[(seen["layer"] != "bn1") | (seen["step"] >= 3)]
    data = LayerSteps.from_frame(late, ["bn1", "fc1"])
    assert data.names[0] == "bn1"
    assert np.isnan(data.value[0]).tolist() == [True] * 3 + [False] * 3
    ax = Figure().subplots()
    draw_heat_map(ax, data, "x")
    assert np.ma.getmaskarray(drawn_values(ax))[0].tolist() == [True] * 3 + [False] * 3
    assert to_hex(ax.collections[0].cmap.get_bad()) == style.MISSING


def test_further_calls_of_a_layer_are_rows_of_their_own(run):
    frame = drift(run, place="input", layer="fc1")
    both = LayerSteps.from_frame(pd.concat([frame, frame.assign(call=1, value=7.0)]), run.layers["name"].to_list())
    assert both.names == ["fc1", "fc1 (call 1)"]
    assert set(both.value[1]) == {7.0}


def test_infinite_distances_take_the_colour_beyond_the_scale(tmp_path):
    data = LayerSteps(["a"], np.arange(3), np.array([[1.0, np.inf, np.nan]]))
    ax = Figure().subplots()
    draw_heat_map(ax, data, KullbackLeibler().name)
    mesh = ax.collections[0]
    colors = mesh.cmap(mesh.norm(drawn_values(ax)))[0]
    assert to_hex(colors[1]) == to_hex(mesh.cmap(2.0))
    assert to_hex(colors[2]) == style.MISSING


@given(
    arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=st.floats(-1, 1) | st.just(np.nan)),
    st.integers(1, 12),
)
def test_binning_averages_what_is_there(values, most):
    data = LayerSteps(["x"] * len(values), np.arange(values.shape[1]), values)
    binned, size = data.binned(most)
    assert binned.value.shape[1] <= most
    for index, step in enumerate(binned.steps):
        for row, cell in zip(values[:, step : step + size], binned.value[:, index], strict=True):
            there = row[~np.isnan(row)]
            assert cell == pytest.approx(there.mean(), abs=1e-12) if there.size else np.isnan(cell)


# -- moments, gaps, saturation ---------------------------------------------------------------------------------------


def test_moments_are_the_recorded_ones(run):
    ax = plots.moments_over_depth(run, (0, 59))
    grid = quantiles(act(), "output", 1.0, 0)
    mean, variance = moments_of(grid)
    row = ax.get_yticklabels()
    position = [label.get_text() for label in row].index("act1")
    assert ax.lines[1].get_xdata()[position] == pytest.approx(mean)
    low, high = ax.collections[1].get_segments()[position][:, 0]
    assert (high - low) / 2 == pytest.approx(variance**0.5)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["step 0", "step 59"]


def test_moments_at_a_step_that_was_not_recorded_name_the_nearest(run):
    with pytest.raises(RunError, match=r"step 99 was not recorded; the nearest recorded steps are \[57, 58, 59\]"):
        plots.moments_over_depth(run, 99)


def test_moments_that_explode_with_depth_get_a_logarithmic_axis(tmp_path):
    deep = make_run(tmp_path / "deep", steps=range(2), blocks=80)
    assert plots.moments_over_depth(deep).get_xscale() == "symlog"
    shallow = make_run(tmp_path / "shallow", steps=range(2), blocks=1)
    assert plots.moments_over_depth(shallow).get_xscale() == "linear"


def test_gap_dot_is_the_last_step_and_bar_the_middle_of_all(run):
    ax = plots.running_gap(run)
    gaps = run.frame(statistic="variance_gap", layer="bn2")["value"].to_numpy()
    assert ax.lines[1].get_xdata()[1] == pytest.approx(gaps[-1])
    assert ax.collections[1].get_segments()[1][:, 0] == pytest.approx(np.quantile(gaps, [0.05, 0.95]))


def test_saturation_is_lines_for_few_layers_and_a_map_for_many(run, tmp_path):
    few = plots.saturation(run)
    assert [line.get_ydata()[-1] for line in few.lines] == pytest.approx([0.66, 0.6, 0.54])
    assert few.get_ylim() == (0.0, 1.0)
    band = few.collections[0].get_paths()[0].vertices
    assert np.ptp(band[band[:, 0] == 59, 1]) == pytest.approx(2 * 0.02)
    many = plots.saturation(make_run(tmp_path / "many", steps=range(5), blocks=9))
    assert not many.lines
    assert drawn_values(many).shape == (9, 5)


# -- before and after ------------------------------------------------------------------------------------------------


def test_before_and_after_show_input_and_output(run):
    before, after = plots.before_after(run, "bn2")
    assert [before.get_title(loc="left"), after.get_title(loc="left")] == ["Before bn2", "After bn2"]
    assert [label.get_text() for label in before.get_yticklabels()][::8] == ["0", "59"]
    grid = quantiles(inventory(3)[4], "input", 0.0, 1)
    peak = before.lines[0].get_xdata()[np.argmin(before.lines[0].get_ydata())]
    assert peak == pytest.approx(np.interp(0.5, LEVELS, grid), abs=1.0)
    assert before.get_xlim()[1] > 1.5 * after.get_xlim()[1]


def test_before_and_after_need_two_axes_and_quantiles(run, bare):
    with pytest.raises(ArgumentError, match="axes must be two Axes, for input and output; got 1"):
        plots.before_after(run, "bn1", [Figure().subplots()])
    with pytest.raises(RunError, match="no quantiles of the input of bn1"):
        plots.before_after(bare, "bn1")


@given(arrays(np.float64, len(DEFAULT_LEVELS), elements=st.floats(-50, 50)).map(np.sort))
def test_density_is_a_share_of_the_values(grid):
    edges = np.linspace(-51, 51, 61)
    density = _density(grid, np.array(DEFAULT_LEVELS), edges)
    assert (density >= 0).all()
    assert density.sum() == pytest.approx(1.0, abs=1e-9)


def test_density_of_a_uniform_distribution_is_flat_and_of_nothing_is_zero():
    levels = np.array(DEFAULT_LEVELS)
    edges = np.linspace(0, 1, 21)
    np.testing.assert_allclose(_density(levels, levels, edges), 1 / 20)
    assert not _density(np.full(65, np.nan), levels, edges).any()


# -- style -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 5000), st.integers(2, 700))
def test_thinning_keeps_order_and_both_ends(count, most):
    kept = style.thin(count, most)
    assert len(kept) == min(count, most)
    assert kept[0] == 0
    assert kept[-1] == count - 1
    assert (np.diff(kept) > 0).all()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("fc1", "fc1"),
        ("features.denseblock3.denselayer12.norm1", "…denselayer12.norm1"),
        ("abcdefghijklmnopqrstuvwxyz", "abcdefg…mnopqrstuvwxyz"),
        ("a$b$", r"a\$b\$"),
        ("_hidden", "\u200a_hidden"),
        ("a\nb\x00", "a\ufffdb\ufffd"),
    ],
)
def test_names_are_shown_literally_and_short(name, shown):
    assert style.plain(name, most=22) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (1234.5, "1,234"), (-0.5, "−0.5"), (0.00012, "0.00012"), (float("nan"), "–"), (2e9, "2e+09")],
)
def test_numbers_are_written_for_readers(value, shown):
    assert style.number(value) == shown


def test_log_spaced_steps_get_a_logarithmic_axis():
    assert style.is_log_spaced(np.array([0, 1, 3, 10, 31, 100, 316, 1000]))
    assert not style.is_log_spaced(np.arange(0, 50_000, 100))


def test_palette_is_seaborns_for_colour_blind_readers():
    import seaborn as sns

    assert set(style.PALETTE) <= {color.lower() for color in sns.color_palette("colorblind").as_hex()}


def test_layer_labels_do_not_touch():
    with style.canvas(None, height=9.0) as ax:
        style.layer_axis(ax, [f"layer{index}" for index in range(200)])
    ax.figure.savefig(io.BytesIO(), format="png")
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert len(boxes) > 20
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in itertools.pairwise(boxes))
    assert re.fullmatch(r"layer \(\d+ of 200 named\)", ax.get_ylabel())
