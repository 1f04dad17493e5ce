"""The picture of recorded singular values shows the numbers of the run."""

import numpy as np
import pytest
from report.believable_run import ERROR, with_spectra

from bnprobe import plots
from bnprobe.errors import RunError

VALUES = np.abs(np.random.default_rng(1).normal(size=(6, 5)))


def test_all_values_are_bands_around_their_median(run, tmp_path):
    made = with_spectra(run, VALUES)
    (line,) = plots.recorded_spectrum(made, "fc1").lines
    np.testing.assert_allclose(line.get_ydata(), np.median(VALUES, 1))
    assert line.get_xdata().tolist() == list(range(6))


def test_some_values_are_a_line_each_with_their_errors(run):
    made = with_spectra(run, VALUES, whole=False)
    ax = plots.recorded_spectrum(made, "fc1")
    np.testing.assert_allclose([line.get_ydata() for line in ax.lines], np.sort(VALUES, 1)[:, ::-1].T)
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(VALUES.max(1).max() + ERROR)
    assert ax.get_title(loc="left") == "5 singular values over training"


def test_what_is_missing_is_said(run):
    with pytest.raises(RunError, match=r"has no singular values; attach with bnprobe.statistics.Spectra\(batch\)"):
        plots.recorded_spectrum(run, "fc1")
    with pytest.raises(RunError, match="no channel values of 'singular_value' at place 'jacobian' in phase 'eval'"):
        plots.recorded_spectrum(with_spectra(run, VALUES), "fc1", phase="eval")
