"""Laws that hold for every rule, also for those that are written tomorrow."""

import inspect
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from bnprobe.evidence import Context, Evidence, Fact
from bnprobe.measures.evidence import MEASUREMENTS
from bnprobe.records import Layer
from bnprobe.rules import Opinion, Severity, rules

RULES = rules()
TEXTS = ("name", "title", "harm", "shows", "remedy", "sick", "healthy")
STATISTIC = re.compile(r"\"([a-z]\w+)\"")


def names_in(rule):
    """Words in a rule's source that may be statistics, f-string parts of loss and excess filled in."""
    words = set(STATISTIC.findall(inspect.getsource(inspect.getmodule(type(rule)))))
    ways = ("stored", "batch", "pooled")
    return words | {f"loss_{a}" for a in ways} | {f"excess_{a}_over_{b}" for a in ways for b in ways}


def everything(rule, value, channels=None):
    """Evidence that has this value wherever a rule may look."""
    layers = [Layer(name, "BatchNorm2d", "batch_norm", 4, 1e-5, 0.1, observed=True) for name in ("a", "b")]
    facts = [
        Fact(name, value, layer, batch, call, low=value, high=value, p_value=float("nan"), channels=channels)
        for name in names_in(rule)
        for layer in ("", "a", "b")
        for batch in range(2 if name.startswith("batch_") else 1)
        for call in range(2 if name.startswith("call_") else 1)
    ]
    return Evidence(facts, layers, Context(intent="train", training=True, batches=2, samples=4, labels=True))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_says_all_that_a_reader_needs(rule):
    for text in TEXTS:
        assert isinstance(getattr(rule, text), str), text
        assert getattr(rule, text).strip(), text
    assert rule.references
    assert all(isinstance(one, str) and len(one) > 9 for one in rule.references)
    assert isinstance(rule.references, tuple)
    assert isinstance(rule.needs, tuple)
    assert isinstance(rule.follows_from, tuple)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", rule.name)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_its_file_has_its_code_and_nothing_else(rule):
    stem = Path(inspect.getfile(type(rule))).stem
    assert stem.startswith(f"{rule.code.lower()}_")
    assert re.fullmatch(r"N\d\d", rule.code)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_its_examples_and_remedy_are_python(rule):
    for text in (rule.sick, rule.healthy, rule.remedy):
        compile(text, rule.code, "exec")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_it_needs_measurements_that_there_are_and_follows_from_codes(rule):
    assert set(rule.needs) <= set(MEASUREMENTS)
    assert all(re.fullmatch(r"N\d\d", code) and code != rule.code for code in rule.follows_from)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_thresholds_can_be_set_and_not_changed(rule):
    for field in fields(rule):
        assert replace(rule, **{field.name: getattr(rule, field.name)}) == rule
        with pytest.raises(AttributeError):
            setattr(rule, field.name, 0)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_of_nothing_it_says_nothing(rule):
    assert list(rule.judge(Evidence())) == []
    layers = [Layer("a", "BatchNorm2d", "batch_norm", 4, 1e-5, 0.1)]
    assert list(rule.judge(Evidence((), layers, Context(intent="train", training=True)))) == []


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_of_nan_it_says_nothing_serious(rule):
    for found in rule.judge(everything(rule, float("nan"))):
        assert found.severity < Severity.WARNING, found.summary


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e30, float("inf"), -1.0])
def test_whatever_the_numbers_it_gives_opinions(rule, value):
    """At most one a layer, each with a sentence; a severity, not a number."""
    found = list(rule.judge(everything(rule, value)))
    assert all(isinstance(one, Opinion) and isinstance(one.severity, Severity) and one.summary for one in found)
    places = [one.layer for one in found]
    assert len(places) == len(set(places))


def test_codes_and_names_are_their_own():
    assert len({rule.name for rule in RULES.values()}) == len(RULES)
    assert all(code == rule.code for code, rule in RULES.items())
    assert list(RULES) == sorted(RULES)
    files = sorted(Path(inspect.getfile(type(next(iter(RULES.values()))))).parent.glob("n[0-9][0-9]_*.py"))
    assert len(files) == len(RULES)
