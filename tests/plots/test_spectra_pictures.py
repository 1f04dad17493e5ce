"""Pictures of spectra show the values, the laws, and what is off the axis."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from bnprobe import plots
from bnprobe.errors import ArgumentError
from bnprobe.measures.jacobian.laws import MarchenkoPastur, quarter_circle


def values(count=300, seed=0):
    return np.random.default_rng(seed).lognormal(size=count)


def test_ridges_peak_where_the_values_are():
    ax = plots.spectrum_ridgeline({"first": values(), "all at ten": np.full(20, 10.0)})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "all at ten"]
    _, first, second = ax.lines  # the mark at 1 comes first
    assert second.get_xdata()[np.argmin(second.get_ydata())] == pytest.approx(10, rel=0.1)
    assert first.get_ydata().min() == pytest.approx(-1.5)
    assert second.get_ydata().min() == pytest.approx(1 - 1.5)
    assert not ax.texts


def test_ridges_say_what_is_below_the_axis():
    ax = plots.spectrum_ridgeline({"half": [1.0, 0.0, 1e-9, 2.0], "none": [1.0], "dead": np.zeros(3)})
    assert [text.get_text() for text in ax.texts] == ["50 % below axis", "100 % below axis"]
    assert all(np.isfinite(line.get_ydata()).all() for line in ax.lines)


def test_sorted_values_lie_on_their_law():
    matrix = np.random.default_rng(0).normal(0, 1 / 20, (400, 200))
    law = MarchenkoPastur(400, 200, 1 / 400)
    ax = plots.sorted_spectra({"net": np.linalg.svd(matrix, compute_uv=False)}, laws={"law": law})
    net, drawn = ax.lines
    expected = np.interp(net.get_xdata(), drawn.get_xdata()[::-1], drawn.get_ydata()[::-1])
    np.testing.assert_allclose(net.get_ydata(), expected, atol=0.03)
    assert (np.diff(net.get_ydata()) <= 0).all()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["net", "law"]
    assert drawn.get_linestyle() == "--"


def test_sorted_values_on_a_logarithmic_axis_leave_zeros_out():
    ax = plots.sorted_spectra({"net": [3.0, 1.0, 0.0]}, laws={"law": quarter_circle()}, logarithmic=True)
    assert ax.get_yscale() == "log"
    assert 0 < ax.get_ylim()[0] < 1
    only_zeros = plots.sorted_spectra({"net": [0.0]}, logarithmic=True)
    only_zeros.figure.canvas.draw()


def test_many_values_are_thinned_with_both_ends():
    many = values(20_000)
    (line,) = plots.sorted_spectra({"net": many}).lines
    assert len(line.get_ydata()) < 2_000
    assert line.get_ydata()[[0, -1]] == pytest.approx([many.max(), many.min()])


def test_training_shows_median_and_bands_in_the_order_of_steps():
    spectra = {10: values(seed=2), 0: values(seed=1)}
    ax = plots.spectrum_over_training(spectra)
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [0, 10]
    np.testing.assert_allclose(line.get_ydata(), [np.median(spectra[0]), np.median(spectra[10])])
    light = ax.collections[0].get_paths()[0].vertices
    assert light[light[:, 0] == 10, 1].max() == pytest.approx(spectra[10].max())
    zeros = plots.spectrum_over_training({0: [0.0, 1.0], 1: [0.0, 2.0]})
    assert zeros.get_ylim()[0] > 0
    plots.spectrum_over_training({0: [0.0]}, Figure().subplots())


@pytest.mark.parametrize("draw", [plots.spectrum_ridgeline, plots.sorted_spectra, plots.spectrum_over_training])
def test_refusals(draw):
    with pytest.raises(ArgumentError, match=r"spectra must hold the values of at least one \w+; got none"):
        draw({})
    for bad in ([], [-1.0], [np.nan]):
        with pytest.raises(ArgumentError, match="3 must have singular values, finite and not negative"):
            draw({3: bad})
