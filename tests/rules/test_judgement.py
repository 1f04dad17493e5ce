"""From opinions to findings: false discoveries over everything, what follows from what, who could not judge."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from bnprobe.evidence import Context, Evidence, Fact
from bnprobe.rules import Opinion, Rule, Severity, judge
from bnprobe.rules.judgement import FALSE_DISCOVERY_RATE


@dataclass(frozen=True)
class Says(Rule):
    """Says what it is told to."""

    name, title, harm, shows, remedy, sick, healthy = ("says",) * 7
    references = ("nobody 2020",)
    opinions: tuple[Opinion, ...] = ()

    def judge(self, evidence):
        return self.opinions


def rule(code, *opinions, needs=(), **fields):
    fields = {"code": code, "needs": needs, **fields}
    return type(f"Says{code}", (Says,), fields)(opinions=opinions)


def opinion(severity=Severity.WARNING, p_value=None, layer="a"):
    return Opinion(severity, "something", layer, p_value=p_value)


def test_p_values_of_all_rules_and_layers_are_one_family():
    values = [1e-6, 0.002, 0.004, 0.03]
    some = [rule(f"N0{number}", opinion(p_value=value)) for number, value in enumerate(values)]
    found, _ = judge(some, Evidence())
    expected = [value for value in false_discovery_control(values) if value <= FALSE_DISCOVERY_RATE]
    np.testing.assert_allclose([one.q_value for one in found], expected)
    assert 0 < len(found) < len(values)


def test_tests_of_layers_that_nothing_is_said_of_make_it_harder():
    one = [rule("N01", opinion(p_value=0.004), tests=("gap",))]
    facts = [Fact("gap", layer=name, p_value=value) for name, value in zip("abc", (0.004, 0.5, 0.9), strict=True)]
    assert judge(one, Evidence(facts[:2]))[0][0].q_value == pytest.approx(0.008)
    assert judge(one, Evidence(facts))[0] == []


def test_tests_of_rules_that_say_nothing_make_it_harder():
    facts = [Fact("gap", p_value=0.5), Fact("other", p_value=0.5)]
    some = [rule("N01", opinion(p_value=0.004)), rule("N02", tests=("gap",)), rule("N03", tests=("other",))]
    assert judge(some[:2], Evidence(facts))[0][0].q_value == pytest.approx(0.008)
    assert judge(some, Evidence(facts))[0] == []
    unable = rule("N03", tests=("other",), needs=("other",))  # it was not asked
    found, _ = judge([*some[:2], unable], Evidence(facts, context=Context(missing={"other": "no"})))
    assert found[0].q_value == pytest.approx(0.008)


def test_many_layers_of_one_rule_do_not_hide_another_rule():
    facts = [Fact("gap", layer=str(layer), p_value=0.5) for layer in range(100)]
    some = [rule("N01", opinion(p_value=0.0005)), rule("N02", tests=("gap",))]
    assert judge(some, Evidence(facts))[0][0].q_value == pytest.approx(0.001)


@pytest.mark.parametrize("intent", ["batch-stats-at-test", "transductive"])
def test_running_statistics_that_are_never_used_may_be_what_they_are(intent):
    some = [rule("N01", opinion(Severity.ERROR), of_running_statistics=True), rule("N02", opinion(Severity.ERROR))]
    found, _ = judge(some, Evidence(context=Context(intent=intent)))
    assert [(one.rule.code, one.opinion.severity) for one in found] == [("N02", Severity.ERROR), ("N01", Severity.INFO)]


def test_what_is_exact_is_no_matter_of_chance():
    found, _ = judge([rule("N01", opinion()), rule("N02", opinion(p_value=0.9))], Evidence())
    assert [(one.rule.code, one.q_value) for one in found] == [("N01", None)]


@pytest.mark.parametrize("value", [float("nan")])
def test_a_test_that_could_not_be_made_finds_nothing_and_stops_nothing(value):
    found, _ = judge([rule("N01", opinion(p_value=value)), rule("N02", opinion(p_value=1e-9))], Evidence())
    assert [one.rule.code for one in found] == ["N02"]


def test_worst_first():
    some = [
        rule("N01", opinion(Severity.INFO)),
        rule("N03", opinion(Severity.ERROR)),
        rule("N02", opinion(Severity.ERROR)),
    ]
    assert [one.rule.code for one in judge(some, Evidence())[0]] == ["N02", "N03", "N01"]


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (opinion(Severity.WARNING), (Severity.INFO, "N11")),
        (opinion(Severity.INFO), (Severity.ERROR, "")),
        (opinion(Severity.ERROR, p_value=0.5), (Severity.ERROR, "")),
    ],
    ids=["serious", "information", "chance"],
)
def test_what_a_serious_finding_explains_is_information(cause, expected):
    found, _ = judge(
        [rule("N22", opinion(Severity.ERROR), follows_from=("N09", "N11")), rule("N11", cause)], Evidence()
    )
    (one,) = [each for each in found if each.rule.code == "N22"]
    assert (one.opinion.severity, one.follows_from) == expected


def test_without_what_it_needs_a_rule_is_not_asked():
    class Raises(Says):
        code, needs = "N01", ("state", "triangle", "swap")

        def judge(self, evidence):
            raise AssertionError("it was asked")

    evidence = Evidence(context=Context(missing={"triangle": "needs loss=", "swap": "it raised", "copies": "no"}))
    found, not_run = judge([Raises()], evidence)
    assert found == []
    assert [(one.code, one.why) for one in not_run] == [("N01", "triangle: needs loss=; swap: it raised")]


def test_an_untrained_model_is_judged_by_those_who_can():
    some = [rule("N01", opinion()), rule("N11", opinion(), untrained=True)]
    found, not_run = judge(some, Evidence(context=Context(untrained=True)))
    assert [one.rule.code for one in found] == ["N11"]
    assert not_run[0].why.startswith("the model looks untrained")


def test_nobody_says_anything():
    assert judge([], Evidence()) == ([], [])
    assert judge([rule("N01")], Evidence()) == ([], [])


def test_severities_are_words_in_order():
    assert Severity.ERROR == "error"
    assert Severity.INFO < Severity.WARNING < Severity.ERROR
    assert Severity.ERROR >= "warning"
    assert not Severity.WARNING > "error"
    assert Severity.INFO <= Severity.INFO
    assert sorted(Severity, reverse=True) == ["error", "warning", "info"]
    assert [one.demoted() for one in Severity] == ["info", "info", "warning"]
    assert f"{Severity.WARNING}" == "warning"
