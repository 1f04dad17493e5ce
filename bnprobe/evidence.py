"""What is known of a model's normalization: facts that measurements found, for rules to judge.

A fact is one number, or one a channel, with its uncertainty: of a layer or of the whole model (the layer without a
name), of one batch or of all, of one call. Facts lie in a run directory like all other records: the batch's number is
the record's step, a fact's interval and p-value are statistics of their own (``n_eff_values_low``).

Nothing here needs torch.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bnprobe.errors import RunError
from bnprobe.records import COMPUTED, Layer, Measured, Record
from bnprobe.store import Placed, Run, Writer, build_table

__all__ = ["Context", "Evidence", "Fact", "layer_of"]

_LOW, _HIGH, _P, _COUNT = "_low", "_high", "_p_value", "_count"


@dataclass(frozen=True, eq=False)
class Fact:
    """One measured number, or one a channel.

    Attributes:
        statistic: its name, words joined by underscores.
        value: the number; NaN where only ``channels`` has values.
        layer: name of the layer; empty for the whole model.
        batch: number of the batch; 0 for what belongs to all.
        call: the how many-eth call of the layer in one forward.
        place: ``input``, ``output``, ``loss`` or ``state`` (what the layer or model is set to).
        count: how many values it summarises; 0 where that has no meaning.
        low, high: ends of its confidence interval; NaN where it has none.
        p_value: of its null hypothesis, one-sided where the statistic says so; NaN where it has none.
        channels: ``[C]``, or None.
    """

    statistic: str
    value: float = float("nan")
    layer: str = ""
    batch: int = 0
    call: int = 0
    place: str = "state"
    count: int = 0
    low: float = float("nan")
    high: float = float("nan")
    p_value: float = float("nan")
    channels: NDArray[np.floating[Any]] | None = None


@dataclass(frozen=True)
class Context:
    """Under which circumstances the facts were found.

    Attributes:
        intent: what the user says the model is for now; None where nothing was said.
        given: names of the optional arguments that were given.
        training: mode of the model as it was handed over.
        untrained: whether nothing suggests that the model was ever trained.
        batches, samples: how many were looked at.
        labels: whether the losses are losses (of the user, or cross entropy); else they are distances of outputs.
        missing: by measurement, why it was not taken.
        seconds: by measurement, how long it took.
        texts: what else is to be told and is no number.
    """

    intent: str | None = None
    given: tuple[str, ...] = ()
    training: bool = False
    untrained: bool = False
    batches: int = 0
    samples: int = 0
    labels: bool = False
    missing: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


class Evidence:
    """Facts, the layers that they are about, and the circumstances.

    Args:
        facts: in any order; a later one of the same key replaces an earlier one.
        layers: the inventory of normalization layers and their neighbours, in the order of their first calls.
        context: the circumstances.
    """

    def __init__(
        self, facts: Iterable[Fact] = (), layers: Sequence[Layer] = (), context: Context | None = None
    ) -> None:
        self.layers = tuple(layers)
        self.context = context if context is not None else Context()
        self._facts: dict[str, dict[tuple[str, int, int, str], Fact]] = {}
        for fact in facts:
            self._facts.setdefault(fact.statistic, {})[fact.layer, fact.batch, fact.call, fact.place] = fact

    @classmethod
    def of(cls, run: Run) -> "Evidence":
        """The evidence that :meth:`save` wrote.

        Raises:
            RunError: the run holds no evidence.
        """
        kept = run.settings.get("evidence")
        if kept is None:
            raise RunError(f"{run.path} holds no evidence of a diagnosis; it is a run that a probe recorded")
        context = Context(**{**kept, "given": tuple(kept["given"])})
        layers = [layer_of(row) for row in run.layers.to_dict("records")]
        return cls(_facts(run), layers, context)

    @property
    def facts(self) -> list[Fact]:
        """All of them."""
        return [fact for some in self._facts.values() for fact in some.values()]

    @property
    def norms(self) -> tuple[Layer, ...]:
        """The layers that normalize."""
        return tuple(layer for layer in self.layers if layer.family.endswith("_norm"))

    def layer(self, name: str) -> Layer:
        """One line of the inventory; of a layer that it does not have, nothing but the name."""
        return next((layer for layer in self.layers if layer.name == name), Layer(name, "", ""))

    def all(self, statistic: str, layer: str | None = None) -> list[Fact]:
        """Facts of one statistic, of one layer or (None) of all, in the order in which they were found."""
        found = self._facts.get(statistic, {}).values()
        return [fact for fact in found if layer is None or fact.layer == layer]

    def fact(self, statistic: str, layer: str = "") -> Fact | None:
        """The first fact of a layer; None where there is none."""
        return next(iter(self.all(statistic, layer)), None)

    def value(self, statistic: str, layer: str = "", default: float = float("nan")) -> float:
        """Its value; ``default`` where it was not measured."""
        fact = self.fact(statistic, layer)
        return default if fact is None else fact.value

    def channels(self, statistic: str, layer: str) -> NDArray[np.float64] | None:
        """Its values a channel, ``[C]``; None where it was not measured."""
        fact = self.fact(statistic, layer)
        return None if fact is None or fact.channels is None else np.asarray(fact.channels, dtype=np.float64)

    def series(self, statistic: str, layer: str = "", call: int = 0) -> NDArray[np.float64]:
        """Values of ``[B]`` batches, in their order; empty where it was not measured."""
        found = sorted((fact.batch, fact.value) for fact in self.all(statistic, layer) if fact.call == call)
        return np.array([value for _, value in found])

    def save(self, directory: str | os.PathLike[str]) -> Run:
        """Write everything to a run directory.

        Raises:
            RunError: the directory holds other things.
        """
        settings = {"evidence": asdict(self.context)}
        writer = Writer(directory, settings=settings, layers=self.layers, levels=())
        with writer:
            if self._facts:
                writer.append(_table(self.facts))
        return Run(directory)


def _table(facts: Sequence[Fact]) -> Any:
    keys = {
        key: row
        for row, key in enumerate(dict.fromkeys((fact.batch, fact.layer, fact.call, fact.place) for fact in facts))
    }
    counts = dict.fromkeys(keys, 0)
    for fact in facts:
        key = (fact.batch, fact.layer, fact.call, fact.place)
        counts[key] = max(counts[key], fact.count)
    columns: dict[str, list[tuple[int, float, NDArray[np.floating[Any]] | None]]] = {}
    for fact in facts:
        key = (fact.batch, fact.layer, fact.call, fact.place)
        columns.setdefault(fact.statistic, []).append((keys[key], fact.value, fact.channels))
        for suffix, value in ((_LOW, fact.low), (_HIGH, fact.high), (_P, fact.p_value)):
            if not np.isnan(value):
                columns.setdefault(fact.statistic + suffix, []).append((keys[key], value, None))
        if fact.count != counts[key]:  # a record has one count, for the statistic that summarises most
            columns.setdefault(fact.statistic + _COUNT, []).append((keys[key], float(fact.count), None))
    records = [Record(key[0], "eval", *key[1:], counts[key]) for key in keys]
    return build_table(records, {name: [_placed(rows)] for name, rows in columns.items()})


def _placed(rows: Sequence[tuple[int, float, NDArray[np.floating[Any]] | None]]) -> Placed:
    values = np.array([value for _, value, _ in rows], dtype=np.float64)
    channels = [one for _, _, one in rows]
    return Placed(
        np.array([row for row, _, _ in rows]),
        Measured(values, COMPUTED, channels=channels if any(one is not None for one in channels) else None),
    )


def _facts(run: Run) -> list[Fact]:
    facts = []
    known = run.statistics
    ends = (_LOW, _HIGH, _P, _COUNT)
    own = [name for name in known if not any(name.endswith(end) and name.removesuffix(end) in known for end in ends)]
    for name in own:
        parts = {"value": name, "channels": f"{name}.channels"}
        parts |= {"low": name + _LOW, "high": name + _HIGH, "p_value": name + _P, "own": name + _COUNT}
        table = run.records(*parts.values())
        for row in table.to_dict("records"):
            values = {part: row[column] for part, column in parts.items()}
            lists, count = values.pop("channels"), values.pop("own")
            lists = lists if isinstance(lists, np.ndarray | list) else None
            if lists is None and np.isnan(values["value"]):
                continue
            facts.append(
                Fact(
                    name, layer=row["layer"], batch=int(row["step"]), call=int(row["call"]), place=row["place"],
                    count=int(row["count"] if np.isnan(count) else count),
                    channels=None if lists is None else np.asarray(lists), **values,
                )
            )  # fmt: skip
    return facts


def layer_of(row: Mapping[Any, Any]) -> Layer:
    """One line of a run's inventory, as it was before pandas had it."""
    kept: dict[str, Any] = {str(key): None if _missing(value) else value for key, value in row.items()}
    kept["channels"] = None if kept["channels"] is None else int(kept["channels"])
    return Layer(**{**kept, "feeds": tuple(row["feeds"])})


def _missing(value: Any) -> bool:
    return not isinstance(value, tuple | list) and bool(pd.isna(value))
