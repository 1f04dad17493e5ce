"""The property-testing kit against itself: which law catches which mutant, how long a layer takes, and many seeds.

``--seeds 200`` repeats every sound layer and every mutant with other draws and counts what came out otherwise.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from bnprobe.errors import LawBrokenError

# The mutants and the sound layers are those of the tests.
_TESTS = Path(__file__).parent.parent / "tests" / "testing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which parts, and how many seeds."""
    parser.add_argument("--seeds", type=int, default=0, help="repetitions of the self-test, 0 for none")
    parser.add_argument("--first-seed", type=int, default=0, help="to go on where another run ended")
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
        result["caught by"] = {name: _caught(one.make, one.like, unshrunk) for name, one in MUTANTS.items()}
    if seeds:
        numbers = range(first_seed, first_seed + seeds)
        result["seeds"] = [numbers[0], numbers[-1]]
        result["otherwise"] = [line for seed in numbers for line in _otherwise(seed, SOUND, MUTANTS, unshrunk)]
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


def _caught(make: Any, like: Any, profile: str) -> list[str]:
    from bnprobe.testing import check_norm_layer, checks_of

    caught = []
    for check in checks_of(like):
        try:
            check_norm_layer(make, like, only=[check.name], profile=profile)
        except LawBrokenError:
            caught.append(check.name)
    return caught


def _otherwise(seed: int, sound: dict[str, Any], mutants: dict[str, Any], profile: str) -> list[str]:
    """What does not come out as it should with this seed; the compiler is left out, which no draw changes."""
    from bnprobe.testing import check_norm_layer, checks_of

    wrong = []
    for name, (make, like, expected) in sound.items():
        names = [one.name for one in checks_of(like) if one.name != "compiled"]
        known = {law: why for law, why in expected.items() if law in names}
        try:
            check_norm_layer(make, like, only=names, expected_failures=known, profile=profile, seed=seed)
        except LawBrokenError as error:
            wrong.append(f"seed {seed}: {name}: {error}")
    for name, (make, like, law) in mutants.items():
        if law == "compiled":
            continue
        try:
            check_norm_layer(make, like, only=[law], profile=profile, seed=seed)
        except LawBrokenError:
            continue
        wrong.append(f"seed {seed}: {name} passes {law}")
    return wrong
