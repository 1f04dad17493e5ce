"""What makes a function a law of pitfalls: its message when it fails, and how seldom chance alone fails it."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

from torch import nn

from bnprobe.errors import BnprobeError, LawBrokenError
from bnprobe.hooks.sites import unwrap
from bnprobe.measures.untouched import RandomStreams
from bnprobe.testing.properties.broken import Broken

__all__ = ["PITFALLS", "RATE", "Pitfall", "pitfall"]

# How often a sound layer or loader fails one law by chance. Ours: a run of a hundred of them stays under 1e-6.
RATE = 1e-8

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Pitfall:
    """A law about what batches do to batch norm.

    Attributes:
        name: of the function.
        check: raises :class:`bnprobe.errors.LawBrokenError`.
        about: what its first argument is: ``channels -> module``, or what yields batches.
    """

    name: str
    check: Callable[..., Any]
    about: Literal["layer", "loader"]

    @property
    def statement(self) -> str:
        """First paragraph of the docstring."""
        return " ".join((inspect.getdoc(self.check) or "").split("\n\n")[0].split())


PITFALLS: dict[str, Pitfall] = {}


def pitfall(about: Literal["layer", "loader"]) -> Callable[[Callable[_Args, _Result]], Callable[_Args, _Result]]:
    """Make a function of a layer factory or a loader a law of pitfalls, under its own name.

    Random streams are afterwards what they were. What it raises becomes a :class:`bnprobe.errors.LawBrokenError` that
    names law, misfit and example; an exception of the layer too.
    """

    def decorate(function: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
        @wraps(function)
        def check(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
            streams = RandomStreams()
            try:
                return function(*args, **kwargs)
            except Broken as broken:
                raise LawBrokenError(_message(PITFALLS[function.__name__], args, kwargs, str(broken))) from None
            except BnprobeError:
                raise
            except Exception as error:
                text = f"the {about} raised {type(error).__name__}: {error}"
                raise LawBrokenError(_message(PITFALLS[function.__name__], args, kwargs, text)) from error
            finally:
                streams.restore()

        PITFALLS[function.__name__] = Pitfall(function.__name__, check, about)
        return check

    return decorate


def _message(one: Pitfall, args: tuple[Any, ...], kwargs: dict[str, Any], text: str) -> str:
    subject = args[0] if args else kwargs.get("make", kwargs.get("loader"))
    others = [repr(value) for value in args[1:]]
    others += [f"{name}={value!r}" for name, value in kwargs.items() if name not in ("make", "loader")]
    call = ", ".join([_source(subject, one.about), *others])
    return (
        f"{_title(subject, one.about)} breaks the law {one.name} of pitfalls\n"
        f"law: {one.statement}\n"
        f"{text}\n"
        f"example:\n"
        f"    from bnprobe.testing import pitfalls\n"
        f"    pitfalls.{one.name}({call})"
    )


def _title(subject: Any, about: str) -> str:
    if about == "loader":
        return type(subject).__name__
    try:
        return type(unwrap(subject(4))).__name__
    except Exception:  # it takes another number of channels
        return getattr(subject, "__name__", repr(subject))


def _source(subject: Any, about: str) -> str:
    if about == "loader":
        return "loader"
    name = getattr(subject, "__qualname__", "make")
    if "<" in name:
        return "make"
    return f"nn.{name}" if getattr(nn, name, None) is subject else str(name)
