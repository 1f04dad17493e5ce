"""Pictures of a diagnosis' evidence show the facts, and say so where there are none."""

import io

import numpy as np
import pytest
from formats.handmade_diagnosis import evidence

from bnprobe import plots
from bnprobe.errors import RunError
from bnprobe.evidence import Evidence, Fact

PICTURES = (plots.loss_triangle, plots.statistics_gap, plots.effective_values, plots.swap_test)


@pytest.mark.parametrize("draw", PICTURES)
def test_without_facts_the_error_says_what_is_missing(draw):
    with pytest.raises(RunError, match="the evidence has no"):
        draw(Evidence())


@pytest.mark.parametrize("draw", PICTURES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 1e30])
def test_odd_numbers_are_drawn_or_refused(draw, value):
    """What no axis can hold neither raises nor leaves a figure that cannot be saved."""
    known = evidence()
    facts = [Fact(one.statistic, value, one.layer, one.batch, one.call, one.place) for one in known.facts]
    refused = np.isnan(value) or (draw is plots.effective_values and value == 0)
    if refused and draw is not plots.loss_triangle:
        with pytest.raises(RunError, match="the evidence has no"):
            draw(Evidence(facts, known.layers))
        return
    draw(Evidence(facts, known.layers)).figure.savefig(io.BytesIO(), format="png")


def test_dots_of_layers_stand_in_the_order_of_the_inventory():
    ax = plots.statistics_gap(evidence(["b", "a", "c"]))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a", "c"]
    means = ax.get_lines()[0]
    np.testing.assert_allclose(means.get_xdata(), [0.02, 0.04, 0.06])
    assert np.all(np.diff(means.get_ydata()) > 0)


def test_the_triangle_draws_every_batch_that_has_all_losses():
    known = evidence(batches=6)
    some = [one for one in known.facts if not (one.statistic == "batch_loss_batch" and one.batch == 2)]
    lines = [
        line for line in plots.loss_triangle(Evidence(some, known.layers)).get_lines() if len(line.get_xdata()) == 3
    ]
    assert len(lines) == 5
    np.testing.assert_allclose(lines[0].get_ydata()[0], known.series("batch_loss_stored")[0])


def test_an_infinite_gap_stands_at_the_edge():
    facts = [Fact("mean_gap", float("inf"), "a"), Fact("mean_gap", 0.1, "b")]
    ax = plots.statistics_gap(Evidence(facts))
    triangles = [line for line in ax.get_lines() if line.get_marker() == ">"]
    assert [len(line.get_xdata()) for line in triangles] == [1]


def test_changes_of_the_swap_test_are_written_beside_their_bars():
    facts = [Fact("swap_change", 0.31, place="output"), Fact("swap_noise", 0.0, place="output")]
    texts = [text.get_text() for text in plots.swap_test(Evidence(facts)).texts]
    assert texts == ["0.31", "none"]
