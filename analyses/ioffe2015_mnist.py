"""Ioffe & Szegedy 2015, section 4.1: does batch norm speed up a small sigmoid network, and steady its activations?

Three fully connected hidden layers of 100 sigmoids, minibatches of 60, with batch norm before every hidden sigmoid and
without it. Figure 1 a shows test accuracy over 50,000 steps on MNIST, figures 1 b and c the 15th, 50th and 85th
percentile of the input of one sigmoid of the last hidden layer.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from analyses import _ioffe2015_results, data, travel, trials
from analyses._ioffe2015_pictures import draw, tables
from analyses._ioffe2015_results import ALL_RATES, LAST, RATES, SHARED, SHARED_RATE, STD, Arm, Results, Scale
from analyses.analysis import Settings
from analyses.claim import Choice, Claim, Evidence, Gate, Quantity, Verdict, decide
from analyses.travel import UnitPaths, over_units
from analyses.trials import Finished, Trial
from bnprobe.errors import ArgumentError

__all__ = ["CHOICES", "CLAIMS", "SCALES", "TITLE", "draw", "judge", "run", "tables"]

_STDS = (0.01, 0.1, 1.0)  # of the initial weights, in the full grid
_PILOT_SEED = 1000  # pilots have seeds of their own
_LEAST_STEPS, _LEAST_ACCURACY = 1000, 0.8  # gates

TITLE = "Ioffe & Szegedy 2015, section 4.1: batch norm in a small sigmoid network"

_PAPER = "Ioffe & Szegedy 2015 (arXiv 1502.03167)"
_PAPER_SCALE = "MNIST, 50,000 updates of 60 binary images, one run of each network"
_GATES = {
    "finite": "no loss is infinite or NaN",
    "paired": "the networks of a seed begin with the same weights",
    "long enough": "at least 1,000 updates before the comparison",
    "trained": "without batch norm, at its own learning rate, the network gets 80 % of the test images right",
}

CLAIMS: tuple[Claim, ...] = (
    Claim(
        code="C1a",
        paper=_PAPER,
        place="section 4.1, figure 1 a",
        statement="With batch norm the network trains faster and reaches a higher test accuracy.",
        figure="a figure without numbers: the curve with batch norm lies above the other one from the first to the "
        "last step",
        scale=_PAPER_SCALE,
        quantities=(
            Quantity(
                "same learning rate",
                f"test accuracy at the step of comparison, with minus without batch norm, both at {SHARED_RATE:g}",
                "pp",
                "above",
                0.5,
            ),
            Quantity(
                "own learning rates",
                "the same, each network at the learning rate that suits it best on held-out training images",
                "pp",
                "above",
                0.5,
            ),
        ),
        seeds=5,
        gates=_GATES | {"bracketed": "each network's own learning rate lies between others that were tried"},
        refuted_by="an advantage of less than half a percentage point at either learning rate",
    ),
    Claim(
        code="C1b",
        paper=_PAPER,
        place="section 4.1, figure 1 b, c",
        statement="With batch norm the distribution of a sigmoid's input is much more stable during training.",
        figure="a figure without numbers: percentiles of one sigmoid that wander without batch norm and stay level "
        "with it",
        scale=_PAPER_SCALE,
        quantities=(
            Quantity(
                "travel of the median",
                "length of the path of a unit's median input over the test images, in units of its interquartile "
                f"range; median over the units of {LAST}; without divided by with batch norm, both at learning rate "
                f"{SHARED_RATE:g}",
                "log ratio",
                "above",
                math.log(1.5),
            ),
        ),
        seeds=5,
        gates=_GATES
        | {"above the noise": "the median of at least one network travels further than its error band is wide"},
        refuted_by="medians that travel as far with batch norm as without, or less than 1.5 times as far without",
    ),
)

CHOICES: tuple[Choice, ...] = (
    Choice("optimizer", "gradient descent without momentum or weight decay", "the paper names none for this network"),
    Choice(
        "learning rate",
        f"{SHARED_RATE:g} for both, and for each network the best of {', '.join(f'{rate:g}' for rate in RATES)}; while "
        f"the best lies at an end, the next is tried for both, from {ALL_RATES[0]:g} to {ALL_RATES[-1]:g}",
        "the paper gives none; comparisons at one rate and at each network's own often disagree. The own rate has the "
        "best accuracy on one in six training images, which its pilot runs do not train on, at the step of comparison",
    ),
    Choice("initial weights", f"Gaussian with standard deviation {STD}; biases 0", "the paper says 'small'"),
    Choice("biases", "hidden layers with batch norm have none; the classifier has one", "beta takes their place"),
    Choice("batch norm", "gamma 1, beta 0, eps 1e-5, moving averages with momentum 0.1", "customary since"),
    Choice(
        "batch norm at test time",
        "mean and variance of each layer re-estimated, at every record, from up to 10,000 training images; beside it "
        "the accuracy with moving averages",
        "moving averages lag behind the weights and tremble, which is not what the claims are about",
    ),
    Choice(
        "step of comparison",
        "5,000 of 50,000; 2,500 of 5,000 for the bundled digits",
        "the paper compares by eye; early enough that a faster network is ahead, late enough that both are trained",
    ),
    Choice(
        "smallest effects",
        "half a percentage point; 1.5 times the travel",
        "the paper gives no numbers; less than this nobody would see in its figure",
    ),
    Choice("percentiles", "of all test images, in evaluation mode", "the paper does not say of what"),
    Choice("units", "all of the last hidden layer; the figure shows the one of median travel", "the paper shows one"),
    Choice(
        "inputs",
        "MNIST: 1 where a pixel is above 127, else 0; other data: grey levels from 0 to 1",
        "the paper's MNIST is binary; 8 x 8 digits would lose too much",
    ),
    Choice(
        "order of images", "all of them, shuffled anew in each pass, alike for both networks", "the paper names none"
    ),
)


_SHORT = {
    "smoke": Scale(steps=200, compare_at=100, settle=40, every=20, seeds=2, pilots=1),
    "laptop": Scale(steps=5_000, compare_at=2_500, settle=1_000, every=100, seeds=5, pilots=2),
    "gpu": Scale(steps=50_000, compare_at=5_000, settle=1_000, every=100, seeds=10, pilots=3, grid=True, device="cuda"),
}
# Real MNIST: the paper's length, one seed; more seeds decide, and the first one is kept.
_LONG = _SHORT | {"laptop": Scale(50_000, compare_at=5_000, settle=1_000, every=100, seeds=1, pilots=1)}

SCALES = tuple(_SHORT)


def run(settings: Settings) -> Results:
    """Train both networks for every seed, and look for each network's own learning rate."""
    scale = _scale(settings)
    plan = _Plan(settings, scale, data.load(settings.data))
    stds = _STDS if scale.grid else (STD,)
    every = [Arm(norm, rate, std) for std in stds for rate in RATES for norm in (False, True)]
    arms = [*SHARED, *(arm for arm in every if scale.grid and arm not in SHARED)]
    seeds, pilot_seeds = range(scale.seeds), range(_PILOT_SEED, _PILOT_SEED + scale.pilots)
    found = plan.run(
        [plan.main(arm, seed) for arm in arms for seed in seeds]
        + [plan.pilot(arm, seed) for arm in every for seed in pilot_seeds],
        "networks",
    )
    results = Results(settings, scale, plan.dataset, _grouped(found, arms, False), _grouped(found, every, True))
    while (rate := _next_rate(results)) is not None:
        pair = [Arm(norm, rate) for norm in (False, True)]
        found = plan.run([plan.pilot(arm, seed) for arm in pair for seed in pilot_seeds], f"learning rate {rate:g}")
        results = replace(results, pilots={**results.pilots, **_grouped(found, pair, True)})
    own = [arm for arm in results.own() if arm not in results.arms]
    found = plan.run([plan.main(arm, seed) for arm in own for seed in seeds], "own learning rates")
    return replace(results, arms={**results.arms, **_grouped(found, own, False)})


def judge(results: Results) -> list[Verdict]:
    """C1a from the accuracies, C1b from the quantiles of the last hidden layer's units."""
    base, norm = SHARED
    own_base, own_norm = results.own()
    gates = _gates(results)
    paths = {arm: results.settled(arm) for arm in SHARED}
    heard = [
        any(over_units(p.travel()) > over_units(p.floor()) for p in pair) for pair in zip(*paths.values(), strict=True)
    ]
    detail = f"so for {sum(heard)} of {len(heard)} seeds"
    accuracy = {
        "same learning rate": 100 * (results.accuracy(norm) - results.accuracy(base)),
        "own learning rates": 100 * (results.accuracy(own_norm) - results.accuracy(own_base)),
    }
    pairs = zip(paths[base], paths[norm], strict=True)
    steadier = {"travel of the median": [_log_ratio(a, b) for a, b in pairs]}
    rates = results.rates()
    inside = all(rates[0] < arm.learning_rate < rates[-1] for arm in (own_base, own_norm))
    bracketed = Gate("bracketed", inside, f"{own_base.learning_rate:g} and {own_norm.learning_rate:g} of {rates}")
    evidence = [
        Evidence(CLAIMS[0], {name: values.tolist() for name, values in accuracy.items()}, (*gates, bracketed)),
        Evidence(CLAIMS[1], steadier, (*gates, Gate("above the noise", all(heard), detail))),
    ]
    return decide(evidence, results.described)


def _next_rate(results: Results) -> float | None:
    """The next learning rate to try: where a network does best at an end of those tried, the best may lie beyond."""
    tried, best = results.rates(), {arm.learning_rate for arm in results.own()}
    low, high = (ALL_RATES.index(rate) for rate in (tried[0], tried[-1]))
    if tried[-1] in best and high + 1 < len(ALL_RATES):
        return ALL_RATES[high + 1]
    return ALL_RATES[low - 1] if tried[0] in best and low > 0 else None


def _log_ratio(base: UnitPaths, norm: UnitPaths) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):  # a network that stands still has no ratio: not finite
        return float(np.log(over_units(base.travel()) / np.float64(over_units(norm.travel()))))


def _gates(results: Results) -> tuple[Gate, ...]:
    finished = [one for arm in {*SHARED, *results.own()} for one in results.arms[arm]]
    bad = [one.trial.label for one in finished if not one.result["finite"]]
    weights: dict[int, set[str]] = {}
    for one in finished:
        weights.setdefault(one.trial.settings["seed"], set()).add(one.result["weights"])
    unlike = [seed for seed, digests in weights.items() if len(digests) > 1]
    trained = float(results.accuracy(results.own()[0]).mean())
    at = results.scale.compare_at
    return (
        Gate("finite", not bad, f"not finite: {', '.join(bad)}" if bad else f"all {len(finished)} networks"),
        Gate("paired", not unlike, f"unlike: seeds {unlike}" if unlike else f"all {len(weights)} seeds"),
        Gate("long enough", at >= _LEAST_STEPS, f"compared after {at:,} updates"),
        Gate("trained", trained >= _LEAST_ACCURACY, f"{100 * trained:.1f} %"),
    )


def _scale(settings: Settings) -> Scale:
    scales = _SHORT if settings.data == "digits" else _LONG
    if settings.scale not in scales:
        raise ArgumentError(f"scale must be one of {', '.join(SCALES)}; got {settings.scale!r}")
    scale = scales[settings.scale]
    return replace(scale, seeds=settings.seeds or scale.seeds, device=_device(scale.device))


def _device(wanted: str) -> str:
    if wanted == "cpu":
        return wanted
    import torch  # here, so that the usual scales need no torch in this process

    if torch.cuda.is_available():
        return wanted
    warnings.warn("there is no CUDA device: the whole grid runs on the CPU, which takes hours", stacklevel=2)
    return "cpu"


@dataclass(frozen=True)
class _Plan:
    """Makes trials and runs them."""

    settings: Settings
    scale: Scale
    dataset: data.Dataset

    def main(self, arm: Arm, seed: int) -> Trial:
        """A network for the test images; probes listen to those at the shared rate, all others are shorter."""
        probed = arm in SHARED
        steps = self.scale.steps if probed or self.scale.grid else self.scale.compare_at
        return self._trial(arm, seed, steps, self.scale.every, probe=probed)

    def pilot(self, arm: Arm, seed: int) -> Trial:
        """A network that shows how its learning rate does on held-out training images."""
        return self._trial(arm, seed, self.scale.compare_at, self.scale.compare_at, pilot=True)

    def run(self, wanted: Sequence[Trial], title: str) -> list[Finished]:
        """The finished trials, in order."""
        if not wanted:
            return []
        from analyses import _ioffe2015_trial, training  # here: listing claims and reading results needs no torch

        return trials.run_trials(
            _ioffe2015_trial.train_network,
            wanted,
            self.settings.out / "trials",
            jobs=self.settings.processes,
            code=(_ioffe2015_trial, _ioffe2015_results, training, travel, data),
            title=title,
        )

    def _trial(self, arm: Arm, seed: int, steps: int, every: int, pilot: bool = False, probe: bool = False) -> Trial:
        settings = asdict(arm) | {
            "seed": seed,
            "steps": steps,
            "every": every,
            "pilot": pilot,
            "probe": probe,
            "data": self.dataset.name,
            "checksum": self.dataset.checksum,
            "device": self.scale.device,
        }
        return Trial(f"{'pilot-' if pilot else ''}{arm.label}-seed{seed}", settings)


def _grouped(finished: Iterable[Finished], arms: Iterable[Arm], pilot: bool) -> dict[Arm, list[Finished]]:
    """Trials by arm, in the order in which they come."""
    groups: dict[Arm, list[Finished]] = {arm: [] for arm in arms}
    for one in finished:
        known = one.trial.settings
        arm = Arm(known["batch_norm"], known["learning_rate"], known["std"])
        if known["pilot"] is pilot and arm in groups:
            groups[arm].append(one)
    return groups
