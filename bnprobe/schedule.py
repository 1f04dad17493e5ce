"""When to measure: a schedule is any callable ``step -> bool``; steps count from 0.

Examples:
    >>> [step for step in range(40) if first(3)(step)]
    [0, 1, 2]
    >>> [step for step in range(40) if every(10)(step)]
    [0, 10, 20, 30]
    >>> [step for step in range(200) if log_spaced(2)(step)]
    [0, 1, 3, 10, 31, 100]
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bnprobe.errors import ArgumentError

__all__ = ["Schedule", "as_schedule", "every", "first", "log_spaced"]

Schedule = Callable[[int], bool]


@dataclass(frozen=True)
class every:  # noqa: N801 - reads as a word: every(100)
    """Every ``interval``-th step, beginning with ``start``."""

    interval: int
    start: int = 0

    def __post_init__(self) -> None:
        _check_count("interval", self.interval, least=1)
        _check_count("start", self.start, least=0)

    def __call__(self, step: int) -> bool:
        """Whether to measure at ``step``."""
        return step >= self.start and (step - self.start) % self.interval == 0


@dataclass(frozen=True)
class first:  # noqa: N801 - reads as a word: first(100)
    """The first ``count`` steps."""

    count: int

    def __post_init__(self) -> None:
        _check_count("count", self.count, least=1)

    def __call__(self, step: int) -> bool:
        """Whether to measure at ``step``."""
        return step < self.count


@dataclass(frozen=True)
class log_spaced:  # noqa: N801 - reads as a word: log_spaced(10)
    """Step 0, then ``per_decade`` steps in each power of ten: dense where training moves fast."""

    per_decade: int = 10

    def __post_init__(self) -> None:
        _check_count("per_decade", self.per_decade, least=1)

    def __call__(self, step: int) -> bool:
        """Whether to measure at ``step``."""
        if step < 1:
            return step == 0
        nearest = math.log10(step) * self.per_decade
        return any(int(10 ** (k / self.per_decade) + 1e-9) == step for k in (math.floor(nearest), math.ceil(nearest)))


def as_schedule(value: Any) -> Schedule:
    """A schedule from what users write as ``every=``: an int or a callable ``step -> bool``.

    Raises:
        ArgumentError: ``value`` is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return every(value)
    if callable(value):
        return value  # type: ignore[no-any-return]  # a callable of unknown type is taken at its word
    raise ArgumentError(f"every must be a positive int or a callable step -> bool; got {value!r}")


def _check_count(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name} must be an int of at least {least}; got {value!r}")
