"""A sick network for each rule, and some healthy ones, go to the doctor; ``python -m benchmarks doctor`` has all."""

import pytest

from benchmarks.doctor import examined
from benchmarks.doctor.confusion import confusion, outcome
from benchmarks.doctor.setup import Setup, all_setups

SETUPS = [one for one in all_setups() if one.half == "tune"]
SICK = {code: one.name for one in reversed(SETUPS) for code in one.expected}
HEALTHY = [one.name for one in SETUPS if not one.expected][::5]


@pytest.mark.parametrize("name", sorted(set(SICK.values())))
def test_a_sick_network_is_seen(name):
    found = examined(name, 0)
    assert found.right, found
    assert not found.failed


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_network_is_left_alone(name):
    found = examined(name, 0)
    assert not found.failed
    assert not found.wrong, found


def test_every_rule_that_warns_has_a_sick_network():
    assert set(SICK) == {f"N{number:02d}" for number in range(1, 31)} - {"N29"}


def test_the_table_counts():
    def setup(expected, accepted=()):
        return Setup("name", "C01", frozenset(expected), frozenset(accepted), "judge", dict)

    outcomes = [
        outcome(setup({"N02"}), 0, ["N02"], 1.0),
        outcome(setup({"N02"}), 1, ["N02", "N06"], 1.0),  # right, and a wrong one on top
        outcome(setup({"N06"}, {"N02"}), 0, ["N02"], 1.0),  # what it accepts is not enough
        outcome(setup({"N06"}), 0, [], 1.0, "ValueError: no"),
        outcome(setup(()), 0, [], 1.0),
        outcome(setup(()), 1, ["N06"], 3.0),
    ]
    found = confusion(outcomes)
    assert (found["sick"]["right finding"]["count"], found["sick"]["right finding"]["of"]) == (2, 4)
    assert found["sick"]["right finding and no wrong one on top"]["count"] == 1
    assert found["healthy"]["any finding of severity warning or above"]["share"] == 0.5
    assert found["rules"]["N06"]["seen when sick"]["count"] == 0
    assert found["rules"]["N06"]["wrongly seen when another is"] == {
        "count": 1, "of": 2, "share": 0.5, "interval": [0.0945, 0.9055],
    }  # fmt: skip
    assert found["rules"]["N06"]["wrongly seen when healthy"]["count"] == 1
    assert found["seconds"] == {"median": 1.0, "most": 3.0}
