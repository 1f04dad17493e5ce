"""What the trials of Ioffe & Szegedy 2015, section 4.1, come to: accuracies, curves and quantiles by arm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

import bnprobe
from analyses.analysis import Settings
from analyses.data import Dataset
from analyses.travel import UnitPaths
from analyses.trials import Finished

__all__ = [
    "ALL_RATES",
    "BATCH",
    "DEPTH",
    "LAST",
    "RATES",
    "SHARED",
    "SHARED_RATE",
    "STD",
    "WIDTH",
    "Arm",
    "Results",
    "Scale",
]

WIDTH, DEPTH, BATCH = 100, 3, 60  # the paper's
LAST = f"hidden{DEPTH}.sigmoid"
SHARED_RATE = 0.1  # ours, as is all that follows: the paper names none
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
ALL_RATES = (0.003, 0.01, *RATES, 10.0, 30.0)  # as far as the search goes where the best lies at an end
STD = 0.1

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """How much to run.

    Attributes:
        steps: updates of the networks at the shared learning rate, which probes listen to.
        compare_at: the step at which accuracies are compared; pilots end there.
        settle: travel is counted from this step on.
        every: steps between two records.
        seeds: paired seeds.
        pilots: seeds of the search for learning rates.
        grid: also train at every learning rate and initial standard deviation, all steps.
        device: where.
    """

    steps: int
    compare_at: int
    settle: int
    every: int
    seeds: int
    pilots: int
    grid: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Arm:
    """A network and how it is trained, up to the seed."""

    batch_norm: bool
    learning_rate: float = SHARED_RATE
    std: float = STD

    @property
    def label(self) -> str:
        """For people and file names."""
        return f"{'with' if self.batch_norm else 'without'}-norm-rate{self.learning_rate:g}-std{self.std:g}"


SHARED = (Arm(False), Arm(True))


@dataclass(frozen=True)
class Results:
    """What ``run`` returns: finished trials.

    Attributes:
        settings: what was asked for.
        scale: what that meant.
        dataset: the images.
        arms: for each arm one trial a seed.
        pilots: for each arm the trials of the search for learning rates.
    """

    settings: Settings
    scale: Scale
    dataset: Dataset
    arms: Mapping[Arm, Sequence[Finished]]
    pilots: Mapping[Arm, Sequence[Finished]]

    def accuracy(self, arm: Arm, curve: str = "accuracy") -> Array:
        """Test accuracy at the step of comparison, one value a seed."""
        found = [one.result for one in self.arms[arm]]
        return np.array([one[curve][one["steps"].index(self.scale.compare_at)] for one in found])

    def curves(self, arm: Arm) -> tuple[NDArray[np.int64], Array]:
        """Recorded steps and test accuracy ``[seeds, steps]``."""
        found = [one.result for one in self.arms[arm]]
        return np.array(found[0]["steps"]), np.array([one["accuracy"] for one in found])

    def own(self, std: float = STD) -> tuple[Arm, Arm]:
        """Each network at the learning rate with the best held-out accuracy; of equals, the one with the lower loss."""
        return self._best(False, std), self._best(True, std)

    def rates(self, std: float = STD) -> list[float]:
        """The learning rates that were tried, ascending."""
        return sorted({arm.learning_rate for arm in self.pilots if arm.std == std})

    def held_out(self, arm: Arm) -> tuple[float, float]:
        """Accuracy and loss of the pilots at the end, mean over their seeds; a loss that is not finite is infinite."""
        found = [one.result for one in self.pilots[arm]]
        loss = float(np.mean([one["test_loss"][-1] for one in found]))
        return float(np.mean([one["accuracy"][-1] for one in found])), loss if np.isfinite(loss) else np.inf

    def _best(self, batch_norm: bool, std: float) -> Arm:
        candidates = [arm for arm in self.pilots if (arm.batch_norm, arm.std) == (batch_norm, std)]
        return min(candidates, key=lambda arm: (-self.held_out(arm)[0], self.held_out(arm)[1]))

    def steps_to(self, target: float, arm: Arm) -> list[int | None]:
        """For each seed the first recorded step with at least this test accuracy; None where it was not reached."""
        steps, accuracy = self.curves(arm)
        return [int(steps[row.argmax()]) if row.any() else None for row in accuracy >= target]

    def runs(self, arm: Arm) -> list[bnprobe.Run]:
        """What the probes recorded of every layer, one run a seed."""
        return [bnprobe.load(one.folder / "run") for one in self.arms[arm]]

    def paths(self, arm: Arm) -> list[UnitPaths]:
        """Quantiles of every unit of the last hidden layer, one path a seed; for the ``SHARED`` arms."""
        return self._paths[arm]

    def settled(self, arm: Arm) -> list[UnitPaths]:
        """As ``paths``, from the step on where travel is counted."""
        return [path.since(self.scale.settle) for path in self.paths(arm)]

    @cached_property
    def _paths(self) -> Mapping[Arm, list[UnitPaths]]:
        images = len(self.dataset.y_test)
        return {
            arm: [UnitPaths.from_run(bnprobe.load(one.folder / "units"), LAST, images) for one in self.arms[arm]]
            for arm in SHARED
        }

    @property
    def described(self) -> str:
        """Our scale, for the reader."""
        d = self.dataset
        form = "binary" if d.name == "mnist" else "grey"
        return (
            f"{d.name} ({len(d.y_train):,} {form} training images, {len(d.y_test):,} test images), "
            f"{self.scale.steps:,} updates of {BATCH}, compared at step {self.scale.compare_at:,}, "
            f"{self.scale.seeds} paired seed{'s' if self.scale.seeds > 1 else ''}, on {self.scale.device}"
        )
