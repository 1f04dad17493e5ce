"""Li, Lyu & Arora 2020 and Wan et al. 2020: weight decay makes scale-invariant weights turn at a rate of its own.

Gradients are orthogonal to a scale-invariant weight and lengthen it, weight decay shortens it; where the two balance,
the weight turns per step by an angle that rate, decay and momentum fix, whatever the data (van Laarhoven 2017 has the
norm at balance). The laws assume gradients that are uncorrelated from step to step, which those of training are not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

import bnprobe
from analyses import data, trials
from analyses.analysis import Settings
from analyses.claim import Choice, Claim, Evidence, Gate, Quantity, Verdict, decide
from analyses.pictures import as_figure
from analyses.trials import Finished, Trial
from bnprobe.errors import ArgumentError
from bnprobe.plots import weight_scale
from bnprobe.report import Figure, Table
from bnprobe.report.page import Cell

__all__ = ["CHOICES", "CLAIMS", "SCALES", "TITLE", "draw", "judge", "run", "tables"]

DECAYS = (5e-4, 2e-3, 5e-3)
_CONTROL = DECAYS[1]
_WIDTH, _BATCH, _RATE, _MOMENTUM = 100, 60, 0.1, 0.9
_WITHIN, _NORM_WITHIN, _LEAST_ACCURACY = 1.1, 1.2, 0.8

TITLE = "Li, Lyu & Arora 2020: weight decay, norm and angle of scale-invariant weights"

_OFF = "largest of the hidden layers' factors"
_THIRD = "in the last third of the steps"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        code="C7c",
        paper="Wan et al. 2020 (arXiv 2006.08419); Li, Lyu & Arora 2020 (arXiv 2010.02916)",
        place="equilibrium of spherical motion dynamics",
        statement="With weight decay, scale-invariant weights turn per step by sqrt(2 eta lambda / (1 + mu)).",
        figure="angular updates of ResNets on ImageNet settle at the theoretical value",
        scale="ResNet-50 on ImageNet and others",
        quantities=tuple(
            Quantity(
                f"angle at {decay:g}",
                f"{_OFF} between the root mean square angle per step and the law, up or down, {_THIRD}, at weight "
                f"decay {decay:g}",
                "log ratio",
                "below",
                math.log(_WITHIN),
            )
            for decay in DECAYS
        ),
        seeds=5,
        gates={
            "finite": "no loss is infinite or NaN",
            "found": "the probe finds the weights of the three hidden layers scale-invariant, and no others",
            "trained": "80 % of the test images are right at every weight decay",
            "settled": "the mean fourth power of every norm changes by less than 20 % within the last third",
            "control": "without batch norm the angle of some layer is off by more than 10 %, so that the law is not "
            "met by just anything",
        },
        refuted_by="an angle that is off by more than 10 % at any of the weight decays",
    ),
    Claim(
        code="C7c-norm",
        paper="van Laarhoven 2017 (arXiv 1706.05350)",
        place="effective learning rate in equilibrium",
        statement="In equilibrium the norm is that at which gradients and weight decay balance, proportional to "
        "(eta / lambda)^(1/4).",
        figure="none that we compare with",
        scale="CIFAR-10",
        quantities=(
            Quantity(
                "balance",
                f"{_OFF} between the mean fourth powers of the norm and of the norm at balance, up or down, {_THIRD}, "
                "at all weight decays",
                "log ratio",
                "below",
                math.log(_NORM_WITHIN),
            ),
            Quantity(
                "one constant",
                f"{_OFF} between the largest and the least of norm^4 lambda / eta over the weight decays, {_THIRD}",
                "log ratio",
                "below",
                math.log(_NORM_WITHIN),
            ),
        ),
        seeds=5,
        gates={
            "finite": "no loss is infinite or NaN",
            "found": "the probe finds the weights of the three hidden layers scale-invariant, and no others",
            "settled": "the mean fourth power of every norm changes by less than 20 % within the last third",
        },
        refuted_by="norms at which gradients and decay do not balance, or norm^4 lambda / eta that depends on "
        "lambda by more than 20 %: the gradient at norm 1 would then depend on the weight decay",
    ),
)

CHOICES: tuple[Choice, ...] = (
    Choice("network", f"three hidden layers of {_WIDTH} sigmoids with batch norm", "small; the law asks for no more"),
    Choice("optimizer", f"SGD at rate {_RATE:g}, momentum {_MOMENTUM:g}, batches of {_BATCH}", "the papers' habit"),
    Choice(
        "weight decay", "of all parameters, " + ", ".join(f"{one:g}" for one in DECAYS), "a decade up from the habit"
    ),
    Choice("within", "10 % of the angle, 20 % of the fourth power of the norm", "the papers show curves and no bounds"),
    Choice(
        "when", "the last third of the steps", "several relaxation times, (1 - mu) / (4 eta lambda), after the start"
    ),
    Choice("which weights", "those that the probe found by their gradients", "without being told where norms are"),
)


@dataclass(frozen=True)
class Scale:
    """How much to run: updates and seeds."""

    steps: int
    seeds: int


_SCALES = {"smoke": Scale(150, 2), "laptop": Scale(10_000, 5), "gpu": Scale(60_000, 10)}
SCALES = tuple(_SCALES)


@dataclass(frozen=True)
class Results:
    """What ``run`` returns: finished trials, one a seed, by weight decay, and those without batch norm."""

    settings: Settings
    scale: Scale
    dataset: data.Dataset
    normed: Mapping[float, Sequence[Finished]]
    without: Sequence[Finished]

    @property
    def found(self) -> list[Finished]:
        """All trials with batch norm."""
        return [one for some in self.normed.values() for one in some]

    @property
    def described(self) -> str:
        """Our scale, for the reader."""
        return (
            f"{self.dataset.name} ({len(self.dataset.y_train):,} training images), {self.scale.steps:,} updates of "
            f"{_BATCH}, {_WIDTH} units a layer, {self.scale.seeds} seeds"
        )


def run(settings: Settings) -> Results:
    """Train a network at each weight decay, and one without batch norm."""
    if settings.scale not in _SCALES:
        raise ArgumentError(f"scale must be one of {', '.join(SCALES)}; got {settings.scale!r}")
    scale = _SCALES[settings.scale]
    scale = replace(scale, seeds=settings.seeds or scale.seeds)
    dataset = data.load(settings.data)
    from analyses import _li2020_weight_decay_trial, training  # here: listing claims needs no torch

    arms = [(decay, True) for decay in DECAYS] + [(_CONTROL, False)]
    wanted = [_trial(decay, norm, seed, scale, dataset) for decay, norm in arms for seed in range(scale.seeds)]
    found = trials.run_trials(
        _li2020_weight_decay_trial.follow_weights,
        wanted,
        settings.out / "trials",
        jobs=settings.processes,
        code=(_li2020_weight_decay_trial, training, data),
        title="networks",
    )
    parts = [found[i : i + scale.seeds] for i in range(0, len(found), scale.seeds)]
    return Results(settings, scale, dataset, dict(zip(DECAYS, parts, strict=False)), parts[-1])


def judge(results: Results) -> list[Verdict]:
    """C7c from angles, its norm from fourth powers."""
    gates = {gate.name: gate for gate in _gates(results)}
    angles = {
        f"angle at {decay:g}": [_off(one, "angle", "law") for one in some] for decay, some in results.normed.items()
    }
    seeds = list(zip(*results.normed.values(), strict=True))
    norms = {
        "balance": [max(_off(one, "fourth", "balance") for one in some) for some in seeds],
        "one constant": [_spread(dict(zip(results.normed, some, strict=True))) for some in seeds],
    }
    return decide(
        [
            Evidence(claim, values, tuple(gates[name] for name in claim.gates))
            for claim, values in zip(CLAIMS, (angles, norms), strict=True)
        ],
        results.described,
    )


def draw(results: Results) -> Mapping[str, Figure]:
    """Norms and angles of the first seed at the middle weight decay."""
    run_ = bnprobe.load(results.normed[_CONTROL][0].folder / "run")
    left, _ = weight_scale(run_)
    return {
        "course": as_figure(
            left,
            f"Norms and angles per step of the hidden weights at weight decay {_CONTROL:g}, seed 0, as the probe "
            "recorded them; dashed: equilibrium.",
            "Two panels of lines over training steps: norms of three weights and their angles per step, each beside a "
            "dashed line of its equilibrium.",
            wide=True,
        )
    }


def tables(results: Results) -> Sequence[Table]:
    """Angles and norms beside their laws."""
    rows: list[list[Cell]] = []
    arms = [(f"{decay:g}", some) for decay, some in results.normed.items()]
    for label, found in (*arms, (f"{_CONTROL:g}, without batch norm", results.without)):
        for layer in sorted({name for one in found for name in one.result["layers"]}):
            mine = [one.result["layers"][layer] for one in found if layer in one.result["layers"]]
            mean = {name: float(np.mean([one[name] for one in mine])) for name in mine[0]}
            rows.append([label, layer, mean["angle"], mean["law"], f"{mean['angle'] / mean['law']:.3f}",
                         mean["fourth"] ** 0.25, mean["balance"] ** 0.25])  # fmt: skip
    header = ("weight decay", "layer", "angle per step (rad)", "law", "ratio", "norm", "norm at balance")
    caption = (
        "Hidden weights in the last third of the steps: root mean square angle per step and its law, fourth root of "
        "the mean fourth power of the norm and of the norm at which gradients and decay balance; means over seeds."
    )
    return [Table(header, rows, caption)]


def _gates(results: Results) -> list[Gate]:
    found = results.found
    bad = [one.trial.label for one in (*found, *results.without) if not one.result["finite"]]
    hidden = {f"hidden{k + 1}.linear" for k in range(3)}
    others = [one.trial.label for one in found if set(one.result["layers"]) != hidden]
    accuracy = min(float(np.mean([one.result["accuracy"] for one in some])) for some in results.normed.values())
    drift = max((abs(math.log(v["drift"])) for one in found for v in one.result["layers"].values()), default=math.inf)
    control = min(_off(one, "angle", "law") for one in results.without)
    return [
        Gate("finite", not bad, f"not finite: {', '.join(bad)}" if bad else f"all {len(found)} networks"),
        Gate("found", not others, f"others in {', '.join(others)}" if others else f"in all {len(found)} networks"),
        Gate("trained", accuracy >= _LEAST_ACCURACY, f"{100 * accuracy:.1f} % at the worst weight decay"),
        Gate("settled", drift < math.log(_NORM_WITHIN), f"by a factor {math.exp(drift):.2f} at most"),
        Gate("control", control > math.log(_WITHIN), f"off by a factor {math.exp(control):.2f} at least"),
    ]


def _off(found: Finished, what: str, law: str) -> float:
    """Largest log factor by which a number of some layer is off its law, up or down; NaN where none was followed."""
    layers = found.result["layers"].values()
    return max((abs(math.log(one[what] / one[law])) for one in layers), default=math.nan)


def _spread(by_decay: Mapping[float, Finished]) -> float:
    """Largest log factor between norm^4 lambda of a layer at different weight decays."""
    scaled: dict[str, list[float]] = {}
    for decay, found in by_decay.items():
        for layer, numbers in found.result["layers"].items():
            scaled.setdefault(layer, []).append(decay * numbers["fourth"])
    return max((math.log(max(some) / min(some)) for some in scaled.values()), default=math.nan)


def _trial(decay: float, batch_norm: bool, seed: int, scale: Scale, dataset: data.Dataset) -> Trial:
    settings = {
        "batch_norm": batch_norm,
        "seed": seed,
        "width": _WIDTH,
        "steps": scale.steps,
        "learning_rate": _RATE,
        "momentum": _MOMENTUM,
        "weight_decay": decay,
        "batch": _BATCH,
        "data": dataset.name,
        "checksum": dataset.checksum,
    }
    return Trial(f"decay{decay:g}-{'with' if batch_norm else 'without'}-norm-seed{seed}", settings)
