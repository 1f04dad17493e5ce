"""What makes a function a property: the layers it is for, the examples to try, the message when it fails."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from itertools import product
from typing import Any

from hypothesis.errors import HypothesisException
from hypothesis.strategies import SearchStrategy

from bnprobe.errors import BnprobeError, LawBrokenError
from bnprobe.measures.untouched import RandomStreams
from bnprobe.testing.inputs import Inputs
from bnprobe.testing.likes import LIKES, Like
from bnprobe.testing.properties.broken import Broken, NotApplicable
from bnprobe.testing.subject import Subject

__all__ = ["LAWS", "Law", "law"]

Strategy = SearchStrategy[Any] | Callable[[Subject], SearchStrategy[Any]]


@dataclass(frozen=True)
class Law:
    """A property and all that is known about it.

    Attributes:
        name: of the function.
        check: ``(subject, **example)``; raises :class:`bnprobe.errors.LawBrokenError`.
        likes: kinds of layers that must obey it.
        strategies: of each argument, or functions of the subject that give one.
        needs: traits that the layer must have (:attr:`bnprobe.testing.subject.Subject.traits`).
        at_most: examples that are drawn, whatever the profile; for laws whose check is costly.
        typical: values of arguments for examples that are always tried, with inputs of every kind and in both modes;
            None for no such examples.
    """

    name: str
    check: Callable[..., None]
    likes: tuple[Like, ...]
    strategies: Mapping[str, Strategy]
    needs: tuple[str, ...] = ()
    at_most: int | None = None
    typical: Mapping[str, Sequence[Any]] | None = field(default_factory=dict)

    @property
    def statement(self) -> str:
        """First paragraph of the docstring."""
        return " ".join((inspect.getdoc(self.check) or "").split("\n\n")[0].split())

    def lacks(self, subject: Subject) -> str | None:
        """Why the law is not for this layer; None where it is."""
        if subject.like not in self.likes:
            return f"it is a law of {', '.join(self.likes)}"
        missing = [need for need in self.needs if need not in subject.traits]
        return f"the layer has no {' and no '.join(missing)}" if missing else None

    def arguments(self, subject: Subject) -> dict[str, SearchStrategy[Any]]:
        """One strategy an argument."""
        return {name: one if isinstance(one, SearchStrategy) else one(subject) for name, one in self.strategies.items()}

    @property
    def modes(self) -> tuple[bool | None, ...]:
        """Modes in which it is checked, one after the other; None where the law itself says which."""
        return (True, False) if "training" in self.strategies else (None,)

    def typical_examples(self, subject: Subject) -> list[dict[str, Any]]:
        """What is always tried, but for the mode: no law is left to the luck of a few draws."""
        typical = self.typical
        if typical is None:
            return []
        names = [name for name in self.strategies if name != "training"]
        values = [
            one.typical(subject) if isinstance(one := self.strategies[name], Inputs) else typical[name]
            for name in names
        ]
        return [dict(zip(names, each, strict=True)) for each in product(*values)]


LAWS: dict[str, Law] = {}


def law(
    *,
    likes: tuple[Like, ...] = LIKES,
    needs: tuple[str, ...] = (),
    at_most: int | None = None,
    typical: Mapping[str, Sequence[Any]] | None = None,
    **strategies: Strategy,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function ``(subject, **example)`` a property, under its own name.

    The function stays callable with examples of one's own. Random streams are afterwards what they were. What it
    raises, and what the layer raises, becomes a :class:`bnprobe.errors.LawBrokenError` that has the whole story.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def check(subject: Subject, **example: Any) -> None:
            streams = RandomStreams()
            try:
                function(subject, **example)
            except Broken as broken:
                raise LawBrokenError(_message(LAWS[function.__name__], subject, example, str(broken))) from None
            except (BnprobeError, HypothesisException, NotApplicable):
                raise
            except Exception as error:
                text = f"the layer raised {type(error).__name__}: {error}"
                raise LawBrokenError(_message(LAWS[function.__name__], subject, example, text)) from error
            finally:
                streams.restore()

        LAWS[function.__name__] = Law(function.__name__, check, likes, strategies, needs, at_most, typical or {})
        return check

    return decorate


def _message(law: Law, subject: Subject, example: Mapping[str, Any], text: str) -> str:
    arguments = "".join(f", {name}={value!r}" for name, value in example.items())
    return (
        f"{subject.title} breaks the law {law.name} of {subject.like}\n"
        f"law: {law.statement}\n"
        f"{text}\n"
        f"example:\n"
        f"    from bnprobe.testing import Subject, properties\n"
        f"    from bnprobe.testing.strategies import Batch\n"
        f"    properties.{law.name}({subject!r}{arguments})"
    )
