"""Inputs that the layer under test takes: drawn by hypothesis, and a few that are always tried."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from hypothesis import strategies as st

from bnprobe.testing.strategies.batch import Batch
from bnprobe.testing.strategies.batches import Shape, recipes
from bnprobe.testing.strategies.kinds import PLAIN
from bnprobe.testing.subject import Subject

__all__ = ["Inputs"]

# Samples, positions along each axis and channels of inputs that are always tried: the first that is small enough.
_SIZES = ((5, 3, 4), (4, 2, 4), (4, 2, 2), (3, 2, 2), (3, 1, 4), (3, 1, 2), (3, 1, 1), (3, 3, 1))


@dataclass(frozen=True)
class Inputs:
    """Which inputs a law is about.

    Attributes:
        kinds: of values.
        values: least number in a channel, across samples; of instance norm, in a channel of one sample.
        layouts: in memory.
        dtypes: names; None for those that the layer runs in, ``"widest"`` for the one with most digits.
        largest: number of elements at most, for laws whose check is costly.
        samples: least and largest number.
        positions: least number of values of one sample in a channel, where there are positions.
        shapes: which of those that the layer takes.
        channels: which numbers of them.
    """

    kinds: tuple[str, ...] = PLAIN
    values: int = 2
    layouts: tuple[str, ...] = ("contiguous",)
    dtypes: tuple[str, ...] | Literal["widest"] | None = None
    largest: int | None = None
    samples: tuple[int, int] = (1, 8)
    positions: int = 1
    shapes: Callable[[Shape], bool] = lambda _: True
    channels: Callable[[int], bool] = lambda _: True

    def __call__(self, subject: Subject) -> st.SearchStrategy[Batch]:
        """Recipes, as :func:`bnprobe.testing.strategies.recipes`; an empty strategy where the layer takes none."""
        ghost = self._ghost(subject)
        draws = [
            recipes(
                shape,
                channels=widths,
                kinds=self.kinds,
                dtypes=self._dtypes(subject),
                layouts=self.layouts,
                values=self.values * ghost,
                samples=self.samples,
                largest=self.largest,
                multiple=ghost,
                positions=self._positions(subject),
            )
            for shape, widths in self._accepted(subject).items()
        ]
        return st.one_of(draws) if draws else st.nothing()

    def typical(self, subject: Subject) -> list[Batch]:
        """One input of each kind and layout, of as many axes as the layer takes (4 at most), and two small ones."""
        accepted = self._accepted(subject)
        if not accepted:
            return []
        richest = max((shape for shape in accepted if len(shape) <= 4), key=len, default=next(iter(accepted)))
        base = self._typical(subject, richest, accepted[richest])
        rich = [replace(base, kind=kind) for kind in self.kinds]
        rich += [replace(base, layout=layout) for layout in self.layouts[1:]]
        # Faults of formulas show best where there are most digits, those of a dtype in that dtype.
        rich += [replace(base, dtype=dtype) for dtype in self._dtypes(subject)[:-1]]
        poorest = min(accepted, key=len)
        width, least = min(accepted[poorest]), min(max(self.samples[0], self.values), self.samples[1])
        samples = -(-least // self._ghost(subject)) * self._ghost(subject)
        poor = self._recipe(subject, poorest, (samples, self._positions(subject), width))
        return [*rich, poor, replace(poor, kind=self.kinds[-1])]

    def _typical(self, subject: Subject, shape: Shape, widths: list[int]) -> Batch:
        ghost = self._ghost(subject)
        for samples, positions, width in _SIZES:
            samples = -(-min(max(self.samples[0], samples), self.samples[1]) // ghost) * ghost
            positions = max(positions, self._positions(subject))
            nearest = min(widths, key=lambda one: abs(one - width))
            found = self._recipe(subject, shape, (samples, positions, nearest))
            if self.largest is None or prod(found.shape) <= self.largest:
                return found
        return found

    def _recipe(self, subject: Subject, shape: Shape, sizes: tuple[int, int, int]) -> Batch:
        named = {"N": sizes[0], "C": sizes[2]}
        size = tuple(one if isinstance(one, int) else named.get(one, sizes[1]) for one in shape)
        dtype = self._dtypes(subject)[-1]
        return Batch(size, self.kinds[0], 1, dtype, self.layouts[0], tuple(shape).index("C"))

    def _accepted(self, subject: Subject) -> dict[Shape, list[int]]:
        chosen: dict[Shape, list[int]] = {}
        for shape, width in subject.accepted:
            if self.shapes(shape) and self.channels(width):
                chosen.setdefault(tuple(shape), []).append(width)
        return chosen

    def _dtypes(self, subject: Subject) -> tuple[str, ...]:
        if self.dtypes == "widest":
            return subject.widest
        return self.dtypes or subject.usable_dtypes

    def _positions(self, subject: Subject) -> int:
        return max(self.positions, self.values if subject.like == "instance_norm" else 1)

    def _ghost(self, subject: Subject) -> int:
        return subject.example_settings.ghost or 1
