"""The set-ups by which the doctor is judged are complete, deterministic, and really sick."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.doctor import data, harm
from benchmarks.doctor.check import figures
from benchmarks.doctor.setup import all_setups, healthy, sick

SETUPS = {one.name: one for one in all_setups()}
SICK = [one for one in SETUPS.values() if one.expected]
RULES = [f"N{number:02d}" for number in range(1, 31) if number != 29]


def tensors(value):
    """Every tensor in the arguments of a diagnosis, with where it is."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return [*value.parameters(), *value.buffers()]
    if isinstance(value, dict):
        return [one for key in sorted(value) for one in tensors(value[key])]
    if isinstance(value, list | tuple):
        return [one for entry in value for one in tensors(entry)]
    return []


def test_names_are_unique_and_halves_known():
    assert len(SETUPS) == len(all_setups())
    assert {one.half for one in SETUPS.values()} <= {"tune", "judge"}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_judged_in_both_halves(rule):
    halves = Counter(one.half for one in SICK if rule in one.expected)
    assert halves["tune"] >= 1
    assert halves["judge"] >= 1


def test_codes_are_codes_of_the_catalogue():
    known = {f"N{number:02d}" for number in range(32)}
    for one in SETUPS.values():
        assert one.expected | one.accepted <= known, one.name
        built_from = one.case[0] in "CHF" and one.case[1:].isdigit()
        assert built_from or (one.case == "plain" and not one.expected), one.name


@pytest.mark.parametrize(
    "name",
    [
        "ema_of_parameters_only",
        "last_batch_of_one_point",
        "built_without_statistics",
        "statistics_of_points_in_bfloat16",
    ],
)
def test_a_set_up_is_the_same_for_the_same_seed(name):
    make = SETUPS[name].make
    one, two, other = (make(seed) for seed in (0, 0, 1))
    assert one.keys() == two.keys()
    assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(two), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))
    pairs = zip(one["loader"], two["loader"], strict=True)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


def test_a_set_up_leaves_the_streams_alone():
    SETUPS["eval_forgotten"].make(0)  # trained networks are kept: the first and a later call must both be silent
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    for seed in (0, 7):
        SETUPS["eval_forgotten"].make(seed)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_what_one_user_does_to_a_shared_network_another_does_not_see():
    mine = data.trained_mlp(3, 5)
    with torch.no_grad():
        mine[0].weight.zero_()
    assert data.trained_mlp(3, 5)[0].weight.abs().sum() > 0


def test_two_set_ups_of_one_name_are_refused():
    def make(seed):
        return {}

    with pytest.raises(ValueError, match="two set-ups are called eval_forgotten"):
        healthy(case="H01", half="tune", name="eval_forgotten")(make)
    with pytest.raises(ValueError, match="names at least one rule"):
        sick(case="C01", half="tune")


def measured(name):
    return figures(SETUPS[name].make(0))


@pytest.mark.parametrize("name", ["eval_forgotten_flat_features", "statistics_removed_as_a_cure", "norms_in_a_list"])
def test_outputs_depend_on_mates(name):
    assert measured(name)["swap"] > 0.05


@pytest.mark.parametrize("name", ["ema_of_parameters_only", "tracking_switched_off_on_points", "dropout_before_norm"])
def test_pooled_statistics_would_cure(name):
    found = measured(name)
    assert found["stored"] > 1.2 * found["pooled"]


@pytest.mark.parametrize("name", ["one_recording_a_batch", "fixed_roles_of_points"])
def test_it_works_with_its_own_batch_only(name):
    found = measured(name)
    assert min(found["stored"], found["pooled"]) > 2 * found["batch"]


def test_evaluation_spoils_the_model():
    found = measured("policy_acts_in_train_mode")
    assert found["stored after evaluate"] > 2 * found["stored"]


def test_a_step_counts_twice():
    assert measured("metric_forward_in_train_mode")["updates a step"] == 2


# what measures harm -------------------------------------------------------------------------------------------------


def test_pooled_statistics_are_moments_over_all_batches_in_execution_order():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    x = torch.randn(40, 3, dtype=torch.float64) * 3 + 1
    pooled = harm.pool(model, [(x[:8], None), (x[8:], None)])
    assert torch.allclose(pooled(x), model.train()(x), rtol=1e-9, atol=1e-9)
    assert torch.allclose(model[0].running_mean, 0.1 * x.mean(0))  # of the train-mode forward just now alone


def test_swap_sees_batch_statistics_and_nothing_else():
    loader = [(one, None) for one in torch.randn(4, 16, 3)]
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4))
    assert harm.swap(model.eval(), loader) < 1e-6
    assert harm.swap(model.train(), loader) > 0.05


def test_effective_values_are_the_batch_size_for_independent_points_and_one_for_copies():
    points = torch.randn(512, 16, 40)
    model = nn.BatchNorm1d(40)
    assert harm.effective_values(model, [(one, None) for one in points]) == pytest.approx(16, rel=0.1)
    copies = points[:, :1].expand_as(points)
    assert harm.effective_values(model, [(one, None) for one in copies]) == pytest.approx(1, rel=0.1)
