"""Healthy set-ups: all of the catalogue is there or has a reason, every rule is tempted, nothing changes by itself."""

import inspect
import random
from collections import Counter

import numpy as np
import pytest
import torch

import bnprobe
from benchmarks.doctor import harm
from benchmarks.doctor.setup import all_setups

# Cases of the catalogue that are no healthy set-up here, and why.
ABSENT = {
    "F02": "sick for the rule of preprocessing (N19), hence among the sick set-ups",
    "F03": "the same cause as F02",
}
CASES = {f"H{number:02}" for number in range(1, 28)} | {f"F{number:02}" for number in range(1, 25)}
RULES = {f"N{number:02}" for number in range(1, 32)}
ARGUMENTS = set(inspect.signature(bnprobe.diagnose).parameters)
INTENTS = {None, "serve", "train", "frozen", "batch-stats-at-test", "transductive"}

HEALTHY = {one.name: one for one in all_setups() if not one.expected}
# Families of rules as the catalogue orders them; tempted by ten set-ups each at least.
FAMILIES = {
    "mode and serving": {"N01", "N13", "N17", "N18", "N21"},
    "statistics and copies": {"N02", "N10", "N24", "N25", "N26", "N30"},
    "batches": {"N04", "N05", "N06", "N29"},
    "several calls": {"N07", "N08", "N09", "N12"},
    "frozen": {"N03", "N20"},
    "axes, padding, groups": {"N14", "N15", "N16"},
    "numbers and deployment": {"N11", "N19", "N22", "N23", "N27", "N28", "N31"},
}


def test_every_case_is_there_or_has_a_reason():
    there = {one.case for one in HEALTHY.values()} - {"plain"}
    assert there <= CASES
    assert CASES - there == set(ABSENT)


@pytest.mark.parametrize("rule", sorted(RULES - {"N31"}))
def test_every_rule_is_tempted_in_both_halves(rule):
    halves = Counter(one.half for one in HEALTHY.values() if rule in one.tempts)
    assert halves["tune"] >= 1
    assert halves["judge"] >= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_tempted_often(family):
    assert sum(bool(one.tempts & FAMILIES[family]) for one in HEALTHY.values()) >= 10


def test_families_are_all_rules():
    assert set().union(*FAMILIES.values()) == RULES


def test_codes_are_codes():
    for one in HEALTHY.values():
        assert one.tempts, one.name
        assert one.tempts | one.accepted <= RULES, one.name


def test_halves_are_about_equal():
    halves = Counter(one.half for one in HEALTHY.values())
    assert abs(halves["tune"] - halves["judge"]) <= len(HEALTHY) // 10


def _first(loader):
    return next(iter(loader))


def _tensors(thing):
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, dict):
        for one in thing.values():
            yield from _tensors(one)
    elif isinstance(thing, list | tuple):
        for one in thing:
            yield from _tensors(one)


@pytest.mark.parametrize(
    "name",
    ["cnn_in_train_mode", "transformer_with_padding", "graphs_of_varying_size", "nested_batches_from_a_generator",
     "weighted_sampler", "cnn_with_all_arguments"],
)  # fmt: skip
def test_made_alike_twice(name):
    setup = HEALTHY[name]
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    one, two = setup.make(0), setup.make(0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert before[2] == random.getstate()
    assert one.keys() == two.keys() <= ARGUMENTS
    assert one.get("intent") in INTENTS
    assert one["model"] is not two["model"]
    left, right = one["model"].state_dict(), two["model"].state_dict()
    assert all(torch.equal(left[key], right[key]) for key in left)
    pairs = list(zip(_tensors(_first(one["loader"])), _tensors(_first(two["loader"])), strict=True))
    assert pairs
    assert all(torch.equal(a, b) for a, b in pairs)


def test_another_seed_is_another_network():
    make = HEALTHY["mlp_in_train_mode"].make
    left, right = make(0)["model"].state_dict(), make(1)["model"].state_dict()
    assert not torch.equal(left["0.weight"], right["0.weight"])


@pytest.mark.parametrize(
    "name",
    [
        "cnn_in_eval_mode",
        "sparse_gains",
        "averaged_weights_refreshed",
        "inputs_of_bytes",
        "target_network_with_buffers",
    ],
)
def test_stored_statistics_are_as_good_as_pooled_ones(name):
    made = HEALTHY[name].make(0)
    losses = harm.triangle(made["model"], list(made["loader"]))
    assert losses["stored"] < losses["pooled"] + max(0.1 * losses["pooled"], 0.01)
    assert harm.accuracy(made["model"].eval(), list(made["loader"])) > 0.95


def test_frozen_on_another_domain_is_better_by_stored_statistics():
    made = HEALTHY["frozen_on_another_domain"].make(0)
    losses = harm.triangle(made["model"], list(made["loader"]))
    assert losses["stored"] < 0.8 * losses["pooled"]


@pytest.mark.parametrize("name", ["cnn_in_eval_mode", "kernels_that_round_differently", "standardized_kernels"])
def test_what_serves_does_not_need_mates(name):
    made = HEALTHY[name].make(0)
    with torch.no_grad():
        assert harm.swap(made["model"], list(made["loader"])) < 1e-4


def test_what_is_told_to_need_mates_does():
    made = HEALTHY["evaluated_by_batch_statistics"].make(0)
    with torch.no_grad():
        assert harm.swap(made["model"], list(made["loader"])) > 0.01
