"""What a probe's records of a training run say of its normalization, as evidence for the rules that need no model."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bnprobe.contrasts import contrast, divergence, periodicity, together
from bnprobe.diagnosis import Diagnosis, diagnosis_of
from bnprobe.evidence import Context, Evidence, Fact, layer_of
from bnprobe.records import Layer
from bnprobe.rules import rules
from bnprobe.store import Run

__all__ = ["diagnosis_of_run", "evidence_of_run"]

Array = NDArray[np.float64]
LAST = 64  # records at the end of the run that are looked at; ours: weights move little over so many steps
_GAPS = ("mean_gap", "variance_gap")
_MOMENTS = ("mean", "variance")
_MODEL = "needs the model and batches: a probe's records do not tell it"
# What of a run the rules need that can do without the model; all others need it.
_NEEDS: Mapping[str, str] = {"N07": "call_moments", "N10": "has_buffers", "N11": "nonfinite_statistics"}
_RECORDED_BY: Mapping[str, str] = {
    "call_moments": "bnprobe.statistics.Moments()",
    "has_buffers": "bnprobe.statistics.RunningGap()",
    "nonfinite_statistics": "bnprobe.statistics.RunningGap() and bnprobe.statistics.Moments()",
}


def diagnosis_of_run(run: Run, select: Sequence[str] | None = None, ignore: Sequence[str] = ()) -> Diagnosis:
    """Judge what lies in a run directory: the evidence of a diagnosis again, or the records of a probe.

    Args:
        run: what ``diagnose(out=...)`` or ``attach(out=...)`` wrote.
        select: codes of the rules to ask; None asks all.
        ignore: codes of rules not to ask.

    Raises:
        ArgumentError: there is no such rule.
    """
    if "evidence" in run.settings:
        return diagnosis_of(Evidence.of(run), run, {}, select, ignore)
    evidence = evidence_of_run(run)
    unable = {code: why for code in rules() if (why := _why_not(code, evidence))}
    return diagnosis_of(evidence, run, {}, select, ignore, unable)


def evidence_of_run(run: Run) -> Evidence:
    """Facts of the batch norms that a probe saw in training, from the last records of the run.

    ``training`` (it has records of training), ``has_buffers``, ``momentum``, ``eps``, ``call_moments`` (of how many
    calls); ``mean_gap`` and ``variance_gap`` of running statistics against the batches', median over channels;
    ``nonfinite_statistics``, for the gap to a batch
    that is finite is no number only where the running statistics are none; ``calls_per_pass``, contrasts and
    divergences between several calls, and ``batch_period``, ``batch_periodicity`` of batches that take turns.

    Args:
        run: what ``attach(out=...)`` wrote.
    """
    layers = [layer_of(row) for row in run.layers.to_dict("records")]
    norms = [layer for layer in layers if layer.family == "batch_norm"]
    columns = [part for name in (*_GAPS, *_MOMENTS) for part in (name, f"{name}.channels")]
    table = run.records(*columns, place="input", phase="train")
    of_layer = dict(iter(table.groupby("layer", observed=True)))
    facts: list[Fact] = []
    for layer in norms:
        if layer.name in of_layer:
            facts += _facts(layer, of_layer[layer.name])
    context = Context(training=True, batches=len(run.steps), texts={"model": f"run {run.path.resolve().name}"})
    return Evidence(facts, layers, context)


def _why_not(code: str, evidence: Evidence) -> str:
    if code not in _NEEDS:
        return _MODEL
    if not evidence.all("training"):
        return "the run has no records of a batch norm's input in training"
    needed = _NEEDS[code]
    return "" if evidence.all(needed) else f"too little was recorded: attach with {_RECORDED_BY[needed]}"


def _facts(layer: Layer, table: pd.DataFrame) -> Iterable[Fact]:
    name = layer.name
    yield Fact("training", 1.0, name)
    if layer.eps is not None:
        yield Fact("eps", layer.eps, name)
    calls = [_Call(rows.tail(LAST)) for _, rows in table.groupby("call")]
    yield from _running(layer, calls)
    usable = [call for call in calls if call.moments is not None]
    if usable:
        yield Fact("call_moments", float(len(usable)), name)
        yield from _turns(name, usable)
        yield from _between(name, usable)


class _Call:
    """Records of one call of a layer, ``[S, C]`` each, in the order of their steps; None where there are none."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.steps = rows["step"].to_numpy(np.int64)
        self.counts = rows["count"].to_numpy(np.float64)
        self.channels = {name: _stacked(rows[f"{name}.channels"]) for name in (*_GAPS, *_MOMENTS)}

    @property
    def moments(self) -> tuple[Array, Array] | None:
        """Means and variances of batches, where all are finite."""
        mean, variance = self.channels["mean"], self.channels["variance"]
        if mean is None or variance is None or mean.shape != variance.shape:
            return None
        return (mean, variance) if np.isfinite(mean).all() and np.isfinite(variance).all() else None


def _stacked(column: pd.Series) -> Array | None:
    """``[S, C]``; None where a record has no channels, or they differ in number."""
    lists = [one for one in column if isinstance(one, np.ndarray | list)]
    if len(lists) < len(column) or len({len(one) for one in lists}) != 1:
        return None
    return np.array([np.asarray(one, dtype=np.float64) for one in lists])


def _running(layer: Layer, calls: Sequence[_Call]) -> Iterable[Fact]:
    first = calls[0]
    gaps = [first.channels[name] for name in _GAPS]
    if any(gap is None for gap in gaps):
        return
    yield Fact("has_buffers", 1.0, layer.name)
    if layer.momentum is not None:
        yield Fact("momentum", layer.momentum, layer.name)
    yield from _nonfinite(layer, first)
    for name, gap in zip(_GAPS, gaps, strict=True):
        assert gap is not None
        known = np.isfinite(gap).all(axis=0)
        if known.any():
            # Signed gaps of batches average out what is the batch's alone.
            off = np.where(known, np.abs(gap.mean(axis=0, where=np.isfinite(gap))), np.nan)
            yield Fact(name, float(np.nanmedian(off)), layer.name, place="input", count=len(gap), channels=off)


def _nonfinite(layer: Layer, call: _Call) -> Iterable[Fact]:
    """Of the last record: a batch with finite moments has a finite gap, unless the running statistics are no numbers.

    Epsilon keeps a constant channel's gap finite; without epsilon nothing is said.
    """
    mean, variance = call.channels["mean"], call.channels["variance"]
    if mean is None or variance is None or not layer.eps:
        return
    gaps = [call.channels[name] for name in _GAPS]
    if any(gap is None or gap.shape != mean.shape for gap in gaps):
        return
    sound = np.isfinite(mean[-1]) & np.isfinite(variance[-1])
    bad = sound & ~np.logical_and.reduce([np.isfinite(gap[-1]) for gap in gaps if gap is not None])
    yield Fact("nonfinite_statistics", float(bad.sum()), layer.name, count=int(bad.size))


def _turns(name: str, calls: Sequence[_Call]) -> Iterable[Fact]:
    """Whether the batches of consecutive steps take turns: the longest run of them at the end."""
    call = calls[0]
    moments = call.moments
    if moments is None:
        return
    broken = np.flatnonzero(np.diff(call.steps) != 1)
    start = int(broken[-1]) + 1 if broken.size else 0
    means, variances, counts = moments[0][start:], moments[1][start:], call.counts[start:]
    center, total = together(means, variances, counts)
    alive = total > 0
    found = periodicity((means - center)[:, alive] / np.sqrt(total[alive]), 0) if alive.any() else None
    if found is None:
        return
    period, value, p_value = found
    phases = [slice(phase, None, period) for phase in range(period)]
    far = max(divergence(*together(means[one], variances[one], counts[one]), center, total) for one in phases)
    yield Fact("batch_period", float(period), name, place="input", count=len(means))
    yield Fact("batch_periodicity", value, name, place="input", count=len(means), p_value=p_value)
    yield Fact("phase_divergence", far, name, place="input", count=len(means))


def _between(name: str, calls: Sequence[_Call]) -> Iterable[Fact]:
    """How much the calls of a step differ, over the steps that have all of them."""
    shared = sorted(set.intersection(*(set(call.steps.tolist()) for call in calls)))
    if len(calls) < 2 or len(shared) < 2:
        return
    picked = [np.isin(call.steps, shared) for call in calls]
    found = [call.moments for call in calls]
    if len({one[0].shape[1] for one in found if one is not None}) != 1:
        return
    means = np.stack([one[0][rows] for one, rows in zip(found, picked, strict=True) if one is not None], axis=1)
    variances = np.stack([one[1][rows] for one, rows in zip(found, picked, strict=True) if one is not None], axis=1)
    counts = np.stack([call.counts[rows] for call, rows in zip(calls, picked, strict=True)], axis=1)
    yield from _contrasts(name, means, variances, counts)


def _contrasts(name: str, means: Array, variances: Array, counts: Array) -> Iterable[Fact]:
    """Facts of ``[S, k, C]`` moments of k calls."""
    steps, calls, channels = means.shape
    yield Fact("calls_per_pass", float(calls), name, place="input", count=steps)
    center, total = together(means.reshape(-1, channels), variances.reshape(-1, channels), counts.reshape(-1))
    alive = total > 1e-12 * (total + center**2)
    if not alive.any():
        return
    scaled = (means - center)[:, :, alive] / np.sqrt(total[alive])
    observed, by_chance, p_value = contrast(scaled, 0)
    share = (observed - by_chance) / (calls * int(alive.sum()))
    yield Fact("call_contrast_mean", share, name, place="input", count=steps, p_value=p_value)
    logs = np.log(np.maximum(variances[:, :, alive], 1e-12 * total[alive]))
    observed, by_chance, p_value = contrast(logs, 0)
    # The range of k equally spread values whose variance is what is left of the contrast.
    spread = np.sqrt(12 * max(observed - by_chance, 0.0) / (calls * int(alive.sum())) * (calls - 1) / (calls + 1))
    yield Fact("call_contrast_spread", float(spread), name, place="input", count=steps, p_value=p_value)
    for call in range(calls):
        mean, variance = together(means[:, call], variances[:, call], counts[:, call])
        far = divergence(mean, variance, center, total)
        yield Fact("call_divergence", far, name, call=call, place="input", count=steps)
