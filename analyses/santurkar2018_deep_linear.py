"""Santurkar et al. 2018: gradients shift more with batch norm, and yet the network trains better.

Their internal covariate shift of a layer is the change of its gradient by the update of the layers before it. In a deep
linear network, where nothing but optimization can go wrong, they find that with batch norm the two gradients are nearly
uncorrelated, without it nearly the same, and that the network with batch norm reaches a much lower loss.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

import bnprobe
from analyses import trials
from analyses.analysis import Settings
from analyses.claim import Choice, Claim, Evidence, Gate, Quantity, Verdict, decide
from analyses.trials import Finished, Trial
from bnprobe.errors import ArgumentError
from bnprobe.report import Figure, Table

__all__ = ["CHOICES", "CLAIMS", "SCALES", "TITLE", "draw", "judge", "run", "tables"]

DEPTH, WIDTH, RATE = 25, 10, 1e-6
_SAMPLES, _INIT = 100, "glorot"
_LARGEST_ERROR, _LEARNT = 1e-3, 0.9  # gates

TITLE = "Santurkar et al. 2018: gradient shift of the deep linear network"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        code="C3a",
        paper="Santurkar, Tsipras, Ilyas & Madry 2018 (arXiv 1805.11604)",
        place="section 2.2, figure 3",
        statement="In a deep linear network batch norm makes the gradient shift larger (the cosine between a layer's "
        "gradients before and after the update of the layers before it smaller), and the final loss lower.",
        figure="cosine about 1 without, nearly uncorrelated gradients with batch norm; much lower loss with it",
        scale="25 linear layers of 10 x 10, Gaussian data, full-batch gradient descent, 10,000 steps at rate 1e-6",
        quantities=(
            Quantity(
                "cosine",
                "cosine of a layer's gradients before and after, mean over layers (but the first) and recorded steps: "
                "without less with batch norm",
                "cosine",
                "above",
                0.2,
            ),
            Quantity(
                "final loss", "without over with batch norm, after the last step", "log ratio", "above", math.log(2)
            ),
        ),
        seeds=5,
        gates={
            "finite": "no loss is infinite or NaN",
            "paired": "the networks of a seed begin with the same weights",
            "trained": "every network ends at less than 90 % of its first loss: one that stands still shifts nothing",
            "exact": "rounding makes at most 1e-3 of any cosine",
        },
        refuted_by="a mean cosine without batch norm that is not 0.2 above that with it, or a final loss with batch "
        "norm above half of that without",
    ),
)

CHOICES: tuple[Choice, ...] = (
    Choice(
        "initial weights",
        "Gaussian with variance 1 / width (Glorot)",
        "the paper's for VGG; not given for this net, and it matters: see the table",
    ),
    Choice(
        "data",
        f"{_SAMPLES:,} samples of independent unit Gaussians; so are the entries of A",
        "no number is given; with 1,000 a network without batch norm diverged at the paper's rate in a pilot",
    ),
    Choice(
        "loss",
        "summed over samples and outputs",
        "as the formula is written; at a rate of 1e-6 their mean would not move within 10,000 steps",
    ),
    Choice(
        "batch norm",
        "behind every linear layer but the last, gamma and beta trained at the same rate, eps 1e-5",
        "the paper does not say where; behind the last it would fix the scale of the output",
    ),
    Choice("biases", "none", "the paper's formula has none; with batch norm there is beta, and the data have mean 0"),
    Choice("which layers", "the linear ones but the first", "the first's cosine is 1 by definition in both arms"),
    Choice("which steps", "every hundredth of the whole training", "the paper shows all of it"),
    Choice("precision", "double", "at a rate of 1e-6 shifts come near the rounding of single precision"),
)


@dataclass(frozen=True)
class Scale:
    """How much to run: updates, steps between two records, seeds."""

    steps: int
    every: int
    seeds: int


_SCALES = {
    "smoke": Scale(steps=60, every=20, seeds=2),
    "laptop": Scale(steps=10_000, every=100, seeds=5),
    "gpu": Scale(steps=10_000, every=100, seeds=20),
}
SCALES = tuple(_SCALES)

# The free choices that matter most, each changed by itself: one seed, for the reader, judged by nobody.
VARIANTS: tuple[tuple[str, Mapping[str, object]], ...] = (
    ("orthogonal weights", {"init": "orthogonal"}),
    ("300 samples", {"samples": 300}),
)


@dataclass(frozen=True)
class Results:
    """What ``run`` returns: finished trials, one a seed, without and with batch norm; and pairs of the variants."""

    settings: Settings
    scale: Scale
    without: Sequence[Finished]
    normed: Sequence[Finished]
    variants: Sequence[tuple[Finished, Finished]] = ()

    @property
    def described(self) -> str:
        """Our scale, for the reader."""
        seeds = len(self.normed)
        return (
            f"{DEPTH} linear layers of {WIDTH} x {WIDTH}, {_SAMPLES:,} Gaussian samples, {self.scale.steps:,} steps at "
            f"rate {RATE:g}, {seeds} paired seed{'s' if seeds > 1 else ''}"
        )

    @cached_property
    def cosines(self) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
        """``[steps, layers]`` a seed, without and with batch norm; without the first layer."""
        without, normed = ([recorded(one, "gradient_cosine") for one in arm] for arm in (self.without, self.normed))
        return without, normed


def recorded(found: Finished, statistic: str, column: str = "value") -> NDArray[np.float64]:
    """``[steps, layers]`` of a trial, in the order of the layers, without the first one."""
    frame = bnprobe.load(found.folder / "run").frame(statistic=statistic, place="grad_weight")
    wide = frame.pivot_table(index="step", columns="layer", values=column, observed=True, sort=False, dropna=False)
    names = [f"linear{k}" for k in range(2, DEPTH + 1)]
    values: NDArray[np.float64] = wide[names].to_numpy(np.float64)
    return values


def run(settings: Settings) -> Results:
    """Train each network with and without batch norm."""
    if settings.scale not in _SCALES:
        raise ArgumentError(f"scale must be one of {', '.join(SCALES)}; got {settings.scale!r}")
    scale = _SCALES[settings.scale]
    scale = replace(scale, seeds=settings.seeds or scale.seeds)
    from analyses import _santurkar2018_trial  # here: listing claims needs no torch

    wanted = [_trial(norm, seed, scale) for norm in (False, True) for seed in range(scale.seeds)]
    others = [_trial(norm, 0, scale, changed) for _, changed in VARIANTS for norm in (False, True)]
    found = trials.run_trials(
        _santurkar2018_trial.train_network,
        [*wanted, *others],
        settings.out / "trials",
        jobs=settings.processes,
        code=(_santurkar2018_trial,),
        title="networks",
    )
    rest = found[2 * scale.seeds :]
    pairs = list(zip(rest[::2], rest[1::2], strict=True))
    return Results(settings, scale, found[: scale.seeds], found[scale.seeds : 2 * scale.seeds], pairs)


def judge(results: Results) -> list[Verdict]:
    """C3a from cosines and final losses."""
    found = (*results.without, *results.normed)
    bad = [one.trial.label for one in found if not one.result["finite"]]
    pairs = list(zip(results.without, results.normed, strict=True))
    unlike = [i for i, (a, b) in enumerate(pairs) if a.result["weights"] != b.result["weights"]]
    left = max(one.result["losses"][-1] / one.result["losses"][0] for one in found)
    error = max(float(recorded(one, "gradient_cosine", "error").max()) for one in found)
    gates = (
        Gate("finite", not bad, f"not finite: {', '.join(bad)}" if bad else f"all {len(found)} networks"),
        Gate("paired", not unlike, f"unlike: seeds {unlike}" if unlike else f"all {len(pairs)} seeds"),
        Gate("trained", left < _LEARNT, f"at most {100 * left:.1f} % of the first loss is left"),
        Gate("exact", error <= _LARGEST_ERROR, f"{error:.1g}"),
    )
    values = {
        "cosine": [float(a.mean() - b.mean()) for a, b in zip(*results.cosines, strict=True)],
        "final loss": [math.log(a.result["losses"][-1] / b.result["losses"][-1]) for a, b in pairs],
    }
    return decide([Evidence(CLAIMS[0], values, gates)], results.described)


def draw(results: Results) -> Mapping[str, Figure]:
    """Loss and cosine over training, the cosine by layer, and the landscape."""
    from analyses import _santurkar2018_pictures  # here: listing claims needs no matplotlib

    return _santurkar2018_pictures.draw(results)


def tables(results: Results) -> Sequence[Table]:
    """Shift and loss of each arm, and of the variants."""
    from analyses import _santurkar2018_pictures

    return _santurkar2018_pictures.tables(results)


def _trial(batch_norm: bool, seed: int, scale: Scale, changed: Mapping[str, object] | None = None) -> Trial:
    settings = {
        "batch_norm": batch_norm,
        "seed": seed,
        "depth": DEPTH,
        "width": WIDTH,
        "samples": _SAMPLES,
        "init": _INIT,
        "steps": scale.steps,
        "every": scale.every,
        "learning_rate": RATE,
        **(changed or {}),
    }
    what = "-".join(str(value) for value in (changed or {}).values())
    label = f"{'with' if batch_norm else 'without'}-norm-{what + '-' if what else ''}seed{seed}"
    return Trial(label, settings)
