"""Every network at hand: attach, train one step, detach; nothing must be changed, and nothing missed in silence."""

import argparse
import importlib.util
import resource
import signal
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks import zoo_pytorchcv, zoo_transformers
from benchmarks.zoo_check import Outcome, Specimen, check

__all__ = ["add_arguments", "run"]


class _TooSlowError(Exception):
    """A network took longer than it may."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks zoo``."""
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--limit", type=int, default=120, help="seconds a network may take")


def run(only: str = "", limit: int = 120) -> dict[str, Any]:
    """Check every specimen whose package is installed; see :func:`benchmarks.zoo_check.check` for what is checked.

    Args:
        only: check those alone whose name contains this.
        limit: seconds that one network may take; what takes longer is listed under ``not_checked``.

    Returns:
        ``failures`` by network (none, if all is well), ``not_checked`` with the reason, ``reasons`` why layers were not
        observed with their number, and a line per network.
    """
    torch.set_num_threads(1)
    everything = [*zoo_pytorchcv.specimens(), *zoo_transformers.specimens()]
    outcomes: dict[str, Outcome] = {}
    unlisted = {f"pytorchcv {name}": why for name, why in zoo_pytorchcv.unlisted().items()}
    not_checked = {name: why for name, why in unlisted.items() if only in name}
    for specimen in tqdm([one for one in everything if only in one.name], desc="zoo", disable=None):
        reason = _reason_to_skip(specimen) or _check(specimen, limit, outcomes)
        if reason:
            not_checked[specimen.name] = reason
    return _summary(outcomes, not_checked)


def _reason_to_skip(specimen: Specimen) -> str:
    return "" if importlib.util.find_spec(specimen.package) else f"{specimen.package} is not installed"


def _check(specimen: Specimen, limit: int, outcomes: dict[str, Outcome]) -> str:
    """Check one; what is returned is why it could not be."""
    try:
        specimen.make()
    except Exception as error:  # whatever another package's constructor raises, it is not the probe's doing
        return f"cannot be built: {type(error).__name__}: {error}"
    try:
        with _at_most(limit):
            outcomes[specimen.name] = check(specimen)
    except _TooSlowError:
        return f"took more than {limit} s"
    except Exception:  # a crash with or without a probe: a failure either way, and the others still have to be checked
        outcomes[specimen.name] = Outcome(failures=[traceback.format_exc(limit=-4)])
    return ""


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _summary(outcomes: dict[str, Outcome], not_checked: dict[str, str]) -> dict[str, Any]:
    reasons = sum((one.reasons for one in outcomes.values()), Counter[str]())
    packages = [name for name in ("pytorchcv", "transformers") if importlib.util.find_spec(name)]
    return {
        "packages": {name: version(name) for name in packages},
        "networks": len(outcomes),
        "failures": {name: one.failures for name, one in outcomes.items() if one.failures},
        "not_checked": not_checked,
        "layers": sum(one.layers for one in outcomes.values()),
        "observed": sum(one.observed for one in outcomes.values()),
        "reasons": dict(reasons.most_common()),
        "seconds": round(sum(one.seconds for one in outcomes.values()), 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "each": {
            name: {
                "layers": one.layers,
                "observed": one.observed,
                "reasons": dict(one.reasons),
                "seconds": round(one.seconds, 2),
            }
            for name, one in outcomes.items()
        },
    }
