"""Runs that the pictures are drawn of."""

import pytest
from report.believable_run import make_run


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
