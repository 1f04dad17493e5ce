"""All laws that a normalization layer must obey, checked at once or as one pytest item each."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import nn

from bnprobe.errors import ArgumentError, LawBrokenError
from bnprobe.testing.likes import Like
from bnprobe.testing.profiles import for_law
from bnprobe.testing.properties import LAWS, Law
from bnprobe.testing.properties.broken import NotApplicable
from bnprobe.testing.strategies.batches import Shape
from bnprobe.testing.subject import Subject

__all__ = ["Check", "Conformance", "check_norm_layer", "checks_of", "norm_layer_checks"]


@dataclass(frozen=True)
class Check:
    """One law, put to a layer by hypothesis.

    Attributes:
        law: to check.
        expected_failure: the reason why it is known not to hold; None where it must hold.
        profile: ``"bnprobe"`` or ``"bnprobe-fast"``; None for the loaded one.
        seed: of hypothesis; None for a random one.
    """

    law: Law
    expected_failure: str | None = None
    profile: str | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """Of the law."""
        return self.law.name

    def __call__(self, subject: Subject) -> None:
        """Check the law; inside pytest, skip where it is not for this layer, and xfail where that is expected.

        Raises:
            LawBrokenError: it does not hold, with the smallest failing example; or it holds and was expected not to.
        """
        import pytest  # norm_layer_checks is for pytest's users; check_norm_layer does not come here

        outcome = self.outcome(subject)
        if outcome.skipped is not None:
            pytest.skip(outcome.skipped)
        if outcome.expected is not None:
            pytest.xfail(outcome.expected)
        if outcome.failure is not None:
            raise outcome.failure

    def outcome(self, subject: Subject) -> "Outcome":
        """Check the law, and say what came out."""
        if (why := self.law.lacks(subject)) is not None:
            return Outcome(self.name, skipped=why)
        try:
            self._run(subject)
        except NotApplicable as why_not:
            return Outcome(self.name, skipped=str(why_not))
        except LawBrokenError as failure:
            if self.expected_failure is not None:
                return Outcome(self.name, expected=self.expected_failure)
            return Outcome(self.name, failure=failure)
        if self.expected_failure is not None:
            cured = LawBrokenError(
                f"{subject.title} obeys the law {self.name}, which was expected to fail "
                f"({self.expected_failure}): remove it from expected_failures"
            )
            return Outcome(self.name, failure=cured)
        return Outcome(self.name)

    def _run(self, subject: Subject) -> None:
        strategies = self.law.arguments(subject)
        if any(one.is_empty for one in strategies.values()):
            raise NotApplicable("the layer takes no input that the law is about")
        examples = self.law.typical_examples(subject)
        for mode in self.law.modes:
            fixed = {} if mode is None else {"training": mode}
            drawn = strategies | {name: st.just(value) for name, value in fixed.items()}
            try:
                for one in examples:
                    self.law.check(subject, **one, **fixed)
            except LawBrokenError:
                self._search(subject, drawn, for_smaller=True)  # raises a smaller one where it finds any
                raise
            self._search(subject, drawn)

    def _search(self, subject: Subject, drawn: dict[str, SearchStrategy[Any]], *, for_smaller: bool = False) -> None:
        """Let hypothesis look for an example that breaks the law, and make it smaller."""

        def check(**arguments: Any) -> None:
            self.law.check(subject, **arguments)

        if for_smaller and self.expected_failure is not None:
            return  # nobody is going to read it
        chosen = for_law(self.profile, self.law.at_most, len(self.law.modes), for_smaller=for_smaller)
        if chosen is None:
            return
        test = given(**drawn)(check)
        if self.seed is not None:
            test = hypothesis.seed(self.seed)(test)
        chosen(test)()


@dataclass(frozen=True)
class Outcome:
    """What came out of one check; all None where the law holds.

    Attributes:
        name: of the law.
        failure: what was raised.
        skipped: why the law was not checked.
        expected: why its failure was expected.
    """

    name: str
    failure: LawBrokenError | None = None
    skipped: str | None = None
    expected: str | None = None


@dataclass(frozen=True)
class Conformance:
    """What came out of all checks of a layer.

    Attributes:
        passed: names of laws that hold.
        skipped: by name, why a law was not checked.
        expected: by name, why a law was expected to fail, and did.
    """

    passed: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, str] = field(default_factory=dict)


def checks_of(
    like: Like,
    *,
    expected_failures: Mapping[str, str] | None = None,
    only: Sequence[str] | None = None,
    profile: str | None = None,
    seed: int | None = None,
) -> list[Check]:
    """Checks of all laws of one kind of layer; arguments as of :func:`check_norm_layer`.

    Raises:
        ArgumentError: a name of a law that there is not.
    """
    laws = {name: law for name, law in LAWS.items() if like in law.likes}
    return chosen_checks(LAWS, laws.values(), expected_failures, only, profile, seed)


def chosen_checks(
    known: Mapping[str, Law],
    laws: Iterable[Law],
    expected_failures: Mapping[str, str] | None,
    only: Sequence[str] | None,
    profile: str | None,
    seed: int | None,
) -> list[Check]:
    """Checks of those of ``laws`` that ``only`` names.

    Raises:
        ArgumentError: a name that is not ``known``.
    """
    expected = dict(expected_failures or {})
    for name in (*expected, *(only or ())):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            raise ArgumentError(f"there is no law {name!r}" + (f"; near are {', '.join(near)}" if near else ""))
    return [Check(law, expected.get(law.name), profile, seed) for law in laws if only is None or law.name in only]


def conclude(subject: Subject, checks: Sequence[Check]) -> Conformance:
    """Check everything, and say which laws hold.

    Raises:
        LawBrokenError: a law does not hold; the message has every such law.
    """
    outcomes = [check.outcome(subject) for check in checks]
    failures = [one.failure for one in outcomes if one.failure is not None]
    if len(failures) == 1:
        raise failures[0]
    if failures:
        told = "\n\n".join(str(one) for one in failures)
        raise LawBrokenError(f"{subject.title} breaks {len(failures)} of {len(checks)} laws\n\n{told}")
    return Conformance(
        tuple(one.name for one in outcomes if one.skipped is None and one.expected is None),
        {one.name: one.skipped for one in outcomes if one.skipped is not None},
        {one.name: one.expected for one in outcomes if one.expected is not None},
    )


def check_norm_layer(
    make: Callable[[int], nn.Module],
    like: Like,
    *,
    expected_failures: Mapping[str, str] | None = None,
    only: Sequence[str] | None = None,
    shapes: Sequence[Shape] | None = None,
    channels: Sequence[int] | None = None,
    dtypes: Sequence[str] | None = None,
    device: str = "cpu",
    profile: str | None = None,
    seed: int | None = None,
    **settings: Any,
) -> Conformance:
    """Check that a normalization layer obeys all laws of its kind.

    Args:
        make: ``channels -> module``, a fresh one each time.
        like: ``"batch_norm"``, ``"layer_norm"``, ``"group_norm"``, ``"instance_norm"``, ``"rms_norm"``,
            ``"batch_renorm"`` or ``"ghost_batch_norm"``.
        expected_failures: by name of the law, why it is known not to hold. A law that holds nevertheless is a failure.
        only: names of the laws to check; default all.
        shapes: of the inputs that the layer takes, ``[("N", "C", "L")]``; default those of torch's layers that it does
            not refuse. Layer and RMS norm normalize over their last axes, ``("N", "L", "C")``.
        channels: numbers of channels that ``make`` takes; default those of 1, 2, 3, 4, 6 and 8 that it does not refuse.
        dtypes: names; default single precision, and double where the layer runs in it.
        device: where to run.
        profile: of hypothesis: ``"bnprobe"`` (60 examples a law; ours, under a minute a layer), ``"bnprobe-fast"`` (4),
            or one of your own; default the loaded one where it is one of the two, else ``"bnprobe"``.
        seed: of hypothesis; default a random one.
        settings: what the layer does not keep in an attribute of the usual name, fields of
            :class:`bnprobe.testing.Settings`: ``eps``, ``momentum``, ``groups``, ``ghost``, ``r_max`` ...; ``ranks=2``
            for a synchronised batch norm, ``scale_offset=1`` for a layer that multiplies by 1 + weight.

    Returns:
        Which laws hold, and which were not checked and why.

    Raises:
        LawBrokenError: a law does not hold; the message has every such law with the smallest failing example.
        ArgumentError: the layer takes no known shape, or an argument is none that there is.
    """
    subject = Subject(make, like, shapes, channels, dtypes, device, tuple(settings.items()))
    checks = checks_of(like, expected_failures=expected_failures, only=only, profile=profile, seed=seed)
    return conclude(subject, checks)


def norm_layer_checks(
    make: Callable[[int], nn.Module],
    like: Like,
    *,
    expected_failures: Mapping[str, str] | None = None,
    only: Sequence[str] | None = None,
    shapes: Sequence[Shape] | None = None,
    channels: Sequence[int] | None = None,
    dtypes: Sequence[str] | None = None,
    device: str = "cpu",
    profile: str | None = None,
    seed: int | None = None,
    **settings: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a test ``(layer, check)`` with one pytest item for each law of a layer; its body is ``check(layer)``.

    Args are those of :func:`check_norm_layer`. A law that is not for this layer is skipped with its reason; an expected
    failure is an xfail, and fails once it is cured.
    """
    import pytest

    subject = Subject(make, like, shapes, channels, dtypes, device, tuple(settings.items()))
    checks = checks_of(like, expected_failures=expected_failures, only=only, profile=profile, seed=seed)
    return pytest.mark.parametrize(("layer", "check"), [pytest.param(subject, one, id=one.name) for one in checks])
