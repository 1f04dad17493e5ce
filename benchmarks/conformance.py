"""The property-testing kit against itself: which law catches which mutant, how long a layer takes, and many seeds.

``--seeds 200`` repeats every sound layer and every mutant with other draws and notes what comes out otherwise. The
examples that are always tried are the same with every seed: they are judged once, and each seed judges what it draws.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

# The mutants and the sound layers are those of the tests.
_TESTS = Path(__file__).parent.parent / "tests" / "testing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which parts, and how many seeds."""
    parser.add_argument("--seeds", type=int, default=0, help="repetitions of the self-test, 0 for none")
    parser.add_argument("--first-seed", type=int, default=0, help="to go on where another run ended, with --add")
    parser.add_argument("--profile", default="bnprobe-fast", help="of hypothesis, for seeds and table")
    parser.add_argument("--no-table", action="store_true", help="leave out the table of mutants and laws")
    parser.add_argument("--no-times", action="store_true", help="leave out the times of sound layers")


def run(seeds: int, first_seed: int, profile: str, no_table: bool, no_times: bool) -> dict[str, Any]:
    """All of it, as plain data."""
    warnings.filterwarnings("ignore")
    sys.path.insert(0, str(_TESTS))
    from hypothesis import Phase, settings  # here, as every benchmark imports all of them
    from mutants import MUTANTS
    from test_sound_layers import SOUND

    unshrunk = f"{profile} unshrunk"
    settings.register_profile(unshrunk, parent=settings.get_profile(profile), phases=[Phase.explicit, Phase.generate])
    result: dict[str, Any] = {}
    if not no_times:
        result["seconds"] = {name: _times(*one) for name, one in SOUND.items()}
    if not no_table:
        result["caught by"] = {name: _caught(*one, profile=unshrunk) for name, one in MUTANTS.items()}
    if seeds:
        result |= _many(range(first_seed, first_seed + seeds), SOUND, MUTANTS, unshrunk)
    return result


def _times(make: Any, like: Any, expected: dict[str, str]) -> dict[str, float]:
    """Seconds of a whole run of one layer, compiler included, in both profiles."""
    from bnprobe.testing import check_norm_layer

    seconds = {}
    for profile in ("bnprobe-fast", "bnprobe"):
        start = time.perf_counter()
        check_norm_layer(make, like, expected_failures=expected, profile=profile)
        seconds[profile] = round(time.perf_counter() - start, 2)
    return seconds


def _caught(make: Any, like: Any, _: str, settings: dict[str, Any], *, profile: str) -> list[str]:
    """Names of the laws that a mutant breaks."""
    from bnprobe.testing import Subject, checks_of

    subject = Subject(make, like, settings=settings)
    outcomes = [check.outcome(subject) for check in checks_of(like, profile=profile, seed=0)]
    return [one.name for one in outcomes if one.failure is not None]


def _many(numbers: range, sound: Mapping[str, Any], mutants: Mapping[str, Any], profile: str) -> dict[str, Any]:
    """What does not come out as it should: of what is always tried, and by seed of what is drawn.

    The compiler is left out, which no draw changes, and expected failures, which a draw need not show.
    """
    from bnprobe.testing import Check, Subject, checks_of

    subjects = {name: Subject(make, like) for name, (make, like, _) in sound.items()}
    subjects |= {name: Subject(one.make, one.like, settings=one.settings) for name, one in mutants.items()}
    layers: dict[str, list[Any]] = {}
    for name, (_, like, expected) in sound.items():
        layers[name] = [one.law for one in checks_of(like) if one.name not in ("compiled", *expected)]
    always = {name: [replace(law, at_most=0) for law in laws] for name, laws in layers.items()}
    wrong = _broken(always, subjects, profile, 0)
    by_chance = {}
    for name, (_, like, law_name, _) in mutants.items():
        law = next(one.law for one in checks_of(like) if one.name == law_name)
        if Check(replace(law, at_most=0)).outcome(subjects[name]).failure is None:
            by_chance[name] = law
    found = {}
    for seed in numbers:
        start = time.perf_counter()
        drawn = {name: [replace(law, typical=None) for law in laws] for name, laws in layers.items()}
        lines = _broken(drawn, subjects, profile, seed)
        for name, law in by_chance.items():
            if Check(law, profile=profile, seed=seed).outcome(subjects[name]).failure is None:
                lines.append(f"{name} passes {law.name}")
        found[str(seed)] = {"otherwise": lines, "seconds": round(time.perf_counter() - start, 1)}
    counts = {"layers": len(layers), "laws of layers": sum(map(len, layers.values())), "mutants": len(mutants)}
    return {"counts": counts, "always": {"otherwise": wrong, "mutants not caught": [*by_chance]}, "seeds": found}


def _broken(laws: Mapping[str, list[Any]], subjects: Mapping[str, Any], profile: str, seed: int) -> list[str]:
    from bnprobe.testing import Check

    outcomes = [
        (name, Check(law, profile=profile, seed=seed).outcome(subjects[name]))
        for name, each in laws.items()
        for law in each
    ]
    return [f"{name}: {one.failure}" for name, one in outcomes if one.failure is not None]
