"""Ioffe & Szegedy 2015, section 3.3: does batch norm make the singular values of layer Jacobians close to 1?

The paper argues: between consecutive normalized vectors x and z = F(x), both uncorrelated with unit variances, F is
about linear, z = Jx; then J J^T is the covariance of z, the identity, and all singular values of J are 1. It says that
this is a conjecture. Normalizing each unit does not make units uncorrelated, and that is what decides.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

import bnprobe
from analyses import data, trials
from analyses.analysis import Settings
from analyses.claim import Choice, Claim, Evidence, Gate, Quantity, Verdict, decide
from analyses.trials import Finished, Trial
from bnprobe.errors import ArgumentError
from bnprobe.report import Figure, Table

__all__ = ["CHOICES", "CLAIMS", "SCALES", "TITLE", "draw", "judge", "run", "tables"]

WIDTH, BATCH = 256, 60
_RATE = 0.3
_NEAR = (0.9, 1.1)
_LEAST_ACCURACY, _LEAST_CONTROL, _LARGEST_ERROR = 0.8, 0.95, 1e-6  # gates

TITLE = "Ioffe & Szegedy 2015, section 3.3: the Jacobian conjecture"

_LAYER = "share in [0.9, 1.1] of the singular values of d(input of the third sigmoid)/d(input of the second)"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        code="C1d",
        paper="Ioffe & Szegedy 2015 (arXiv 1502.03167)",
        place="section 3.3",
        statement="Batch norm may lead the Jacobians of layers to have singular values close to 1.",
        figure="none: a conjecture with an argument for linear layers between uncorrelated vectors of unit variance",
        scale="nothing was run for it",
        quantities=(
            Quantity(
                "linear layer",
                "share in [0.9, 1.1] of the singular values of a linear layer of 256 units with batch norm, random "
                "Gaussian weights, uncorrelated inputs of unit variance",
                "pp",
                "above",
                50.0,
                25.0,
            ),
            Quantity("before training", f"{_LAYER}, with batch norm, initial weights", "pp", "above", 50.0, 25.0),
            Quantity("after training", f"the same after training; {_LAYER}", "pp", "above", 50.0, 25.0),
        ),
        seeds=10,
        gates={
            "finite": "no loss is infinite or NaN",
            "paired": "the networks of a seed begin with the same weights",
            "trained": "with batch norm the network gets 80 % of the test images right",
            "control": "with orthogonal weights, where the argument holds, 95 % of the values of the linear layer are "
            "in [0.9, 1.1], so that normalization and measurement do find them there",
            "exact": "every singular value is known to 1e-6",
        },
        refuted_by="fewer than a quarter of the singular values in [0.9, 1.1] in any of the three; from a quarter to "
        "half decides nothing",
    ),
)

CHOICES: tuple[Choice, ...] = (
    Choice("close to 1", "in [0.9, 1.1]", "the paper gives no range; of a random Gaussian layer 11 % lie there by law"),
    Choice(
        "how many",
        "more than half of the values; fewer than a quarter refute it",
        "with fewer than half nobody would call the layer's values close to 1, but a law of 11 % is no near miss",
    ),
    Choice(
        "network",
        f"that of section 4.1 with {WIDTH} sigmoids a layer, gradient descent at rate {_RATE:g}, batches of {BATCH}",
        "the paper names none for the conjecture; wide enough that a spectrum is close to its law",
    ),
    Choice("initial weights", "Gaussian with variance 1 / width", "those for which laws are known; variance cancels"),
    Choice(
        "Jacobian",
        "per image, at 4 test images, with mean and variance those of all training images and held fixed",
        "the paper's F maps one vector; in a training batch batch norm also couples the images",
    ),
    Choice(
        "linear layer",
        "one layer and batch norm, mean and variance of 4,096 Gaussian inputs",
        "the argument's own assumptions, free of data and nonlinearity",
    ),
)


@dataclass(frozen=True)
class Scale:
    """How much to run: updates, steps between two records of the probe, and seeds."""

    steps: int
    every: int
    seeds: int


_SCALES = {
    "smoke": Scale(steps=60, every=20, seeds=2),
    "laptop": Scale(steps=1_500, every=150, seeds=10),
    "gpu": Scale(steps=15_000, every=500, seeds=20),
}
SCALES = tuple(_SCALES)


@dataclass(frozen=True)
class Results:
    """What ``run`` returns: finished trials, one a seed, without and with batch norm."""

    settings: Settings
    scale: Scale
    dataset: data.Dataset
    without: Sequence[Finished]
    normed: Sequence[Finished]

    def values(self, what: str, batch_norm: bool = True) -> list[NDArray[np.float64]]:
        """Singular values ``[images, values]`` a seed: of ``gaussian``, ``orthogonal``, ``before`` or ``after``."""
        found = self.normed if batch_norm else self.without
        return [np.array(one.result[what]["values"], np.float64) for one in found]

    def shares(self, what: str, batch_norm: bool = True) -> list[float]:
        """Per seed the share of values near one, in percent."""
        low, high = _NEAR
        return [100 * float(((v >= low) & (v <= high)).mean()) for v in self.values(what, batch_norm)]

    @cached_property
    def runs(self) -> tuple[bnprobe.Run, bnprobe.Run]:
        """What the probes recorded of the first seed, without and with batch norm."""
        first, second = (bnprobe.load(found[0].folder / "run") for found in (self.without, self.normed))
        return first, second

    @property
    def described(self) -> str:
        """Our scale, for the reader."""
        seeds = len(self.normed)
        return (
            f"{self.dataset.name} ({len(self.dataset.y_train):,} training images), {self.scale.steps:,} updates of "
            f"{BATCH}, {WIDTH} units a layer, {seeds} paired seed{'s' if seeds > 1 else ''}"
        )


def run(settings: Settings) -> Results:
    """Train each network with and without batch norm, and measure its layers."""
    if settings.scale not in _SCALES:
        raise ArgumentError(f"scale must be one of {', '.join(SCALES)}; got {settings.scale!r}")
    scale = _SCALES[settings.scale]
    scale = replace(scale, seeds=settings.seeds or scale.seeds)
    dataset = data.load(settings.data)
    from analyses import _ioffe2015_jacobian_trial, training  # here: listing claims needs no torch

    wanted = [_trial(norm, seed, scale, dataset) for norm in (False, True) for seed in range(scale.seeds)]
    found = trials.run_trials(
        _ioffe2015_jacobian_trial.measure_network,
        wanted,
        settings.out / "trials",
        jobs=settings.processes,
        code=(_ioffe2015_jacobian_trial, training, data),
        title="networks",
    )
    return Results(settings, scale, dataset, found[: scale.seeds], found[scale.seeds :])


def judge(results: Results) -> list[Verdict]:
    """C1d from the shares of values near one."""
    found = (*results.without, *results.normed)
    bad = [one.trial.label for one in found if not one.result["finite"]]
    pairs = zip(results.without, results.normed, strict=True)
    unlike = [i for i, (a, b) in enumerate(pairs) if a.result["weights"] != b.result["weights"]]
    accuracy = float(np.mean([one.result["accuracy"] for one in results.normed]))
    control = min(results.shares("orthogonal"))
    error = max(one.result[what]["error"] for one in results.normed for what in ("gaussian", "before", "after"))
    gates = (
        Gate("finite", not bad, f"not finite: {', '.join(bad)}" if bad else f"all {len(found)} networks"),
        Gate("paired", not unlike, f"unlike: seeds {unlike}" if unlike else f"all {len(results.normed)} seeds"),
        Gate("trained", accuracy >= _LEAST_ACCURACY, f"{100 * accuracy:.1f} %"),
        Gate("control", control >= 100 * _LEAST_CONTROL, f"{control:.1f} % in the worst seed"),
        Gate("exact", math.isfinite(error) and error <= _LARGEST_ERROR, f"{error:.1g}"),
    )
    values = {
        "linear layer": results.shares("gaussian"),
        "before training": results.shares("before"),
        "after training": results.shares("after"),
    }
    return decide([Evidence(CLAIMS[0], values, gates)], results.described)


def draw(results: Results) -> Mapping[str, Figure]:
    """Sorted spectra beside their law, and the spectrum of a linear layer over training."""
    from analyses import _ioffe2015_jacobian_pictures  # here: the law's module imports torch

    return _ioffe2015_jacobian_pictures.draw(results)


def tables(results: Results) -> Sequence[Table]:
    """What the spectra are like, of Jacobians and of weights."""
    from analyses import _ioffe2015_jacobian_pictures

    return _ioffe2015_jacobian_pictures.tables(results)


def _trial(batch_norm: bool, seed: int, scale: Scale, dataset: data.Dataset) -> Trial:
    settings = {
        "batch_norm": batch_norm,
        "seed": seed,
        "width": WIDTH,
        "steps": scale.steps,
        "every": scale.every,
        "learning_rate": _RATE,
        "batch": BATCH,
        "data": dataset.name,
        "checksum": dataset.checksum,
    }
    return Trial(f"{'with' if batch_norm else 'without'}-norm-seed{seed}", settings)
