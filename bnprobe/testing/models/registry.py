"""What makes a function a law of models: its message when it fails."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from hypothesis.errors import HypothesisException
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from bnprobe.errors import BnprobeError, LawBrokenError
from bnprobe.measures.untouched import RandomStreams
from bnprobe.testing.models.model import Model
from bnprobe.testing.properties.broken import Broken, NotApplicable
from bnprobe.testing.properties.registry import Law

__all__ = ["MODEL_LAWS", "model_law"]

MODEL_LAWS: dict[str, Law] = {}
_Check = Callable[[Model, Any], None]
_PRINTED = 64  # elements of a tensor that a message can hold; ours


def model_law(at_most: int | None = None) -> Callable[[_Check], _Check]:
    """Make a function ``(model, x)`` a law of models, under its own name.

    Random streams are afterwards what they were. What it raises becomes a :class:`bnprobe.errors.LawBrokenError` that
    names law, model, misfit and example; an exception of the model too.

    Args:
        at_most: examples, whatever the profile; for laws whose check is costly.
    """

    def decorate(function: _Check) -> _Check:
        @wraps(function)
        def check(model: Model, x: Any) -> None:
            streams = RandomStreams()
            try:
                function(model, x)
            except Broken as broken:
                raise LawBrokenError(_message(function.__name__, model, x, str(broken))) from None
            except (BnprobeError, HypothesisException, NotApplicable):
                raise
            except Exception as error:
                text = f"the model raised {type(error).__name__}: {str(error) or 'no message'}"
                raise LawBrokenError(_message(function.__name__, model, x, text)) from error
            finally:
                streams.restore()

        inputs: dict[str, Any] = {"x": _inputs}
        MODEL_LAWS[function.__name__] = Law(
            function.__name__, check, ("batch_norm",), inputs, at_most=at_most, typical={"x": ()}
        )
        return check

    return decorate


def _inputs(model: Any) -> SearchStrategy[Any]:
    """Of a :class:`Model`; a law's own type speaks of a layer."""
    strategy: SearchStrategy[Any] = model.strategy
    return strategy


def _message(name: str, model: Model, x: Any, text: str) -> str:
    imports = "import torch\n    " if "torch." in (code := _code(x)) else ""
    return (
        f"{model.title} breaks the law {name} of models\n"
        f"law: {MODEL_LAWS[name].statement}\n"
        f"{text}\n"
        f"example:\n"
        f"    {imports}from bnprobe.testing import models\n"
        f"    from bnprobe.testing.strategies import Batch, Network\n"
        f"    models.{name}(models.{model!r}, {code})"
    )


def _code(x: Any) -> str:
    """An expression for an input; of a large tensor, what it was like."""
    if isinstance(x, Tensor):
        if x.numel() <= _PRINTED:
            return f"torch.tensor({x.detach().cpu().tolist()}, dtype={x.dtype})"
        return f"torch.randn({tuple(x.shape)}).to({x.dtype})" if x.is_floating_point() else _integers(x)
    if isinstance(x, dict):
        return "{" + ", ".join(f"{key!r}: {_code(one)}" for key, one in x.items()) + "}"
    if isinstance(x, tuple | list):
        inner = ", ".join(_code(one) for one in x)
        return f"[{inner}]" if isinstance(x, list) else f"({inner}{',' if len(x) == 1 else ''})"
    return repr(x)


def _integers(x: Tensor) -> str:
    return f"torch.randint({int(x.min())}, {int(x.max()) + 1}, {tuple(x.shape)}, dtype={x.dtype})"
