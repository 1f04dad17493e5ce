"""All laws of normalization that a whole model must obey, checked at once or as one pytest item each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import nn

from bnprobe.measures.loss import Loss
from bnprobe.testing.conformance import Check, Conformance, chosen_checks, conclude
from bnprobe.testing.models import MODEL_LAWS, Model
from bnprobe.testing.subject import Subject

__all__ = ["check_model", "checks_of_models", "model_checks"]

_Make = Callable[[], nn.Module] | nn.Module


def checks_of_models(
    *,
    expected_failures: Mapping[str, str] | None = None,
    only: Sequence[str] | None = None,
    profile: str | None = None,
    seed: int | None = None,
) -> list[Check]:
    """Checks of all laws of models; arguments as of :func:`check_model`.

    Raises:
        ArgumentError: a name of a law that there is not.
    """
    return chosen_checks(MODEL_LAWS, MODEL_LAWS.values(), expected_failures, only, profile, seed)


def check_model(
    make_model: _Make,
    inputs: Any = None,
    *,
    loss: Loss | None = None,
    expected_failures: Mapping[str, str] | None = None,
    only: Sequence[str] | None = None,
    profile: str | None = None,
    seed: int | None = None,
) -> Conformance:
    """Check that a model obeys the laws of normalization.

    Args:
        make_model: ``() -> module``, a fresh one each time; or a module, which is copied and left as it is.
        inputs: what it is fed: a strategy of hypothesis (:func:`bnprobe.testing.strategies.recipes` prints best), or
            one input: a tensor, a recipe, a tuple of positional or a mapping of keyword arguments. Default: Gaussian
            and other batches of the shape that the model's first layer wants.
        loss: ``(model, batch) -> scalar`` whose gradients are compared; then ``inputs`` are batches as it takes them,
            and the first part of a pair is the model's input. Default: a random linear function of the outputs.
        expected_failures: by name of the law, why it is known not to hold. A law that holds nevertheless is a failure.
        only: names of the laws to check; default all.
        profile: as of :func:`bnprobe.testing.check_norm_layer`.
        seed: of hypothesis; default a random one.

    Returns:
        Which laws hold, and which were not checked and why.

    Raises:
        LawBrokenError: a law does not hold; the message has every such law with the smallest failing example.
        ArgumentError: an argument is none that there is.
    """
    model = cast(Subject, Model(make_model, inputs, loss))  # a check asks no more of its subject than a model has
    checks = checks_of_models(expected_failures=expected_failures, only=only, profile=profile, seed=seed)
    return conclude(model, checks)


def model_checks(
    make_model: _Make,
    inputs: Any = None,
    *,
    loss: Loss | None = None,
    expected_failures: Mapping[str, str] | None = None,
    only: Sequence[str] | None = None,
    profile: str | None = None,
    seed: int | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a test ``(model, check)`` with one pytest item for each law of models; its body is ``check(model)``.

    Args are those of :func:`check_model`. A law that is not for this model is skipped with its reason; an expected
    failure is an xfail, and fails once it is cured.
    """
    import pytest

    model = Model(make_model, inputs, loss)
    checks = checks_of_models(expected_failures=expected_failures, only=only, profile=profile, seed=seed)
    return pytest.mark.parametrize(("model", "check"), [pytest.param(model, one, id=one.name) for one in checks])
