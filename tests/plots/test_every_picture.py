"""What holds for every picture: Axes in, Axes out, nothing clipped, matplotlib left as it was."""

import io
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from formats.handmade_diagnosis import evidence
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from report.believable_run import with_measurements, with_spectra, with_weights

from bnprobe import plots
from bnprobe.errors import RunError
from bnprobe.plots import style

VALUES = np.abs(np.random.default_rng(0).normal(size=(9, 40)))
VALUES[:, 0] = 0.0
OF_SPECTRA = {
    "spectrum_ridgeline": lambda run, ax: plots.spectrum_ridgeline(
        dict(zip(run.layers["name"], VALUES, strict=False)), ax
    ),
    "sorted_spectra": lambda run, ax: plots.sorted_spectra(dict(zip(run.layers["name"], VALUES, strict=False)), ax),
    "spectrum_over_training": lambda run, ax: plots.spectrum_over_training(dict(enumerate(VALUES)), ax),
    "recorded_spectrum": lambda run, ax: plots.recorded_spectrum(with_spectra(run, VALUES), run.layers["name"][0], ax),
    "recorded_spectrum of some": lambda run, ax: plots.recorded_spectrum(
        with_spectra(run, VALUES, whole=False), run.layers["name"][0], ax
    ),
}
OF_SPECTRA["weight_scale"] = lambda run, ax: plots.weight_scale(
    with_weights(run), None if ax is None else [ax, Figure().subplots()]
)[0]
OF_RUNS = {
    "percentiles": lambda run, ax: plots.percentiles(run, run.layers["name"][2], ax=ax),
    "drift_map": lambda run, ax: plots.drift_map(run, ax=ax),
    "moments_over_depth": lambda run, ax: plots.moments_over_depth(run, ax=ax),
    "saturation": lambda run, ax: plots.saturation(run, ax=ax),
    "saturation map": lambda run, ax: plots.saturation(run, ax=ax, lines=False),
    "running_gap": lambda run, ax: plots.running_gap(run, ax=ax),
}
OF_MEASUREMENTS = {
    "gradient_shift": lambda run, ax: plots.gradient_shift(with_measurements(run), ax),
    "gradient_shift l2": lambda run, ax: plots.gradient_shift(with_measurements(run), ax, statistic="gradient_shift"),
    "landscape": lambda run, ax: plots.landscape(with_measurements(run), ax),
    "landscape named": lambda run, ax: plots.landscape(with_measurements(run), ax, statistic="loss", label="a"),
}
OF_EVIDENCE = {
    "loss_triangle": lambda run, ax: plots.loss_triangle(evidence(run.layers["name"]), ax),
    "loss_triangle without labels": lambda run, ax: plots.loss_triangle(evidence(run.layers["name"], labels=False), ax),
    "statistics_gap": lambda run, ax: plots.statistics_gap(evidence(run.layers["name"]), ax),
    "effective_values": lambda run, ax: plots.effective_values(evidence(run.layers["name"]), ax),
    "swap_test": lambda run, ax: plots.swap_test(evidence(run.layers["name"]), ax),
}
DRAWINGS = OF_EVIDENCE | OF_RUNS | OF_SPECTRA | OF_MEASUREMENTS


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
    texts = [*ax.texts, *(ax.get_legend().get_texts() if ax.get_legend() else [])]
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


@pytest.mark.parametrize("draw", OF_RUNS.values(), ids=OF_RUNS)
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
