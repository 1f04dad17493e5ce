import doctest

import pytest

from bnprobe import schedule
from bnprobe.errors import ArgumentError
from bnprobe.schedule import as_schedule, every, first, log_spaced


def test_examples():
    assert doctest.testmod(schedule).failed == 0


def test_every_with_a_start():
    assert [step for step in range(20) if every(5, start=3)(step)] == [3, 8, 13, 18]


@pytest.mark.parametrize("per_decade", [1, 3, 10])
def test_log_spaced_takes_as_many_in_each_power_of_ten(per_decade):
    taken = [step for step in range(10_000) if log_spaced(per_decade)(step)]
    assert taken[:2] == [0, 1]
    assert len([step for step in taken if 1000 <= step < 10_000]) == per_decade


def test_a_number_or_a_function_is_a_schedule():
    assert as_schedule(3) == every(3)
    assert as_schedule(first(2)) == first(2)


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, None])
def test_what_is_no_schedule(wrong):
    with pytest.raises(ArgumentError):
        as_schedule(wrong)


@pytest.mark.parametrize("make", [lambda: every(0), lambda: first(0), lambda: log_spaced(0), lambda: every(2, -1)])
def test_counts_are_checked(make):
    with pytest.raises(ArgumentError, match="must be an int of at least"):
        make()
