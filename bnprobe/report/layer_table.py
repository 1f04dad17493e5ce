"""The inventory of a run as a table that can be searched."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bnprobe.report.page import Cell, Mark, Section, Table
from bnprobe.report.recorded import Recorded

__all__ = ["layer_table"]

_MOST_FEEDS = 3


def layer_table(there: Recorded) -> Section:
    """Every layer with its kind, whether (or why not) it was observed, how far it drifted, and what it feeds."""
    layers = there.layers.to_dict("records")
    caption = ""
    columns: dict[str, list[Cell]] = {
        "Layer": [layer["name"] or "(the model itself)" for layer in layers],
        "Kind": [layer["kind"] for layer in layers],
        "Observed": [_observed(layer) for layer in layers],
    }
    if there.drifts is not None:
        last = there.drifts.last().to_dict()
        title = f"Drift of the {there.drifts.place}"
        caption = (
            f"Drift is the Wasserstein-1 distance between the last and the first recorded step, in {there.drifts.unit}."
        )
        columns[title] = [last.get(layer["name"]) for layer in layers]
    columns |= {
        "Channels": [None if pd.isna(layer["channels"]) else int(layer["channels"]) for layer in layers],
        "Settings": [_settings(layer) for layer in layers],
        "Feeds": [_feeds(layer["feeds"]) for layer in layers],
    }
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return Section("Layers", [Table(list(columns), rows, caption, search="Search layers")])


def _settings(layer: dict[Any, Any]) -> str | None:
    known = [f"{name} {layer[name]:g}" for name in ("eps", "momentum") if not pd.isna(layer[name])]
    return ", ".join(known) or None


def _feeds(names: Sequence[str]) -> str | None:
    more = f" and {len(names) - _MOST_FEEDS} more" if len(names) > _MOST_FEEDS else ""
    return ", ".join(names[:_MOST_FEEDS]) + more or None


def _observed(layer: dict[Any, Any]) -> Mark:
    if not layer["observed"]:
        return Mark(f"not observed: {layer['why'] or 'no reason recorded'}", "open")
    return Mark(f"observed; {layer['why']}" if layer["why"] else "observed", "good")
