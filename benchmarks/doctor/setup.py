"""What the doctor is judged by: a set-up makes the arguments of `bnprobe.diagnose` and says what is right."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import benchmarks.doctor
from benchmarks.doctor.data import isolated

__all__ = ["Half", "Make", "Setup", "all_setups", "healthy", "sick"]

Half: TypeAlias = Literal["tune", "judge"]
Make: TypeAlias = Callable[[int], dict[str, Any]]

_REGISTRY: dict[str, "Setup"] = {}


@dataclass(frozen=True)
class Setup:
    """A trained network with its loader, and the findings that are right about it.

    Attributes:
        name: unique; the name of the function that makes it.
        case: the case of the catalogue of pitfalls that it is built from ("C17" sick, "H06" and "F03" healthy).
        expected: codes of rules, any one of which at severity warning or above is right; empty: healthy.
        accepted: further codes that are really also true of this set-up, hence no wrong diagnosis beside the right one.
        half: thresholds are set on the half "tune", the table is computed on the half "judge".
        make: seed -> keyword arguments of `bnprobe.diagnose`. Deterministic; leaves the global random streams alone.
    """

    name: str
    case: str
    expected: frozenset[str]
    accepted: frozenset[str]
    half: Half
    make: Make


def sick(
    *expected: str, case: str, half: Half, accepted: Iterable[str] = (), name: str | None = None
) -> Callable[[Make], Make]:
    """Register a function as a set-up in which one of the rules `expected` must report a finding."""
    if not expected:
        raise ValueError("a sick set-up names at least one rule that must see it")
    return _register(frozenset(expected), frozenset(accepted), case, half, name)


def healthy(*, case: str, half: Half, accepted: Iterable[str] = (), name: str | None = None) -> Callable[[Make], Make]:
    """Register a function as a set-up in which no rule but those `accepted` may report more than an info."""
    return _register(frozenset(), frozenset(accepted), case, half, name)


def all_setups() -> tuple[Setup, ...]:
    """Every set-up of the files ``sick_*.py`` and ``healthy_*.py``, by name."""
    for module in pkgutil.iter_modules(benchmarks.doctor.__path__):
        if module.name.startswith(("sick_", "healthy_")):
            importlib.import_module(f"{benchmarks.doctor.__name__}.{module.name}")
    return tuple(_REGISTRY[name] for name in sorted(_REGISTRY))


def _register(
    expected: frozenset[str], accepted: frozenset[str], case: str, half: Half, name: str | None
) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        title = name or make.__name__
        if title in _REGISTRY and _REGISTRY[title].make.__module__ != make.__module__:
            raise ValueError(f"two set-ups are called {title}")
        made = isolated(make)
        _REGISTRY[title] = Setup(title, case, expected, accepted, half, made)
        return made

    return register
