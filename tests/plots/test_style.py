"""Names, numbers and axes as a reader can use them."""

import io
import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnprobe.plots import style


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
