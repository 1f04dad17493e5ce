"""Ways of running a model that must all give the same, and its Jacobian."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bnprobe.errors import NotMeasuredError
from bnprobe.hooks.segments import arguments_of
from bnprobe.measures.jacobian import spectrum
from bnprobe.testing.models.model import Model, samples_of, with_batch_statistics
from bnprobe.testing.models.registry import model_law
from bnprobe.testing.properties.broken import Broken, NotApplicable, compare, require

__all__ = ["checkpointed", "compiled_model", "spectra_finite"]

_VALUES = 2  # largest singular values; ours: finite ones need no more


class _Run(nn.Module):
    """A module that is run in another way, and has its parameters."""

    def __init__(self, module: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self._run = module, run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)


def _compare(model: Model, x: Any, other: Callable[[nn.Module], nn.Module], what: str, training: bool) -> None:
    """Outputs and gradients of a model run in another way against its own, on the same random numbers."""
    results = []
    for wrap in (lambda module: module, other):
        module = model.fresh(training=training)
        run = wrap(module)
        torch.manual_seed(0)
        with torch.no_grad():
            outputs = model.outputs(run, model.batch(x, module))
        torch.manual_seed(0)
        module = model.fresh(training=training)
        run = wrap(module)
        try:
            gradients = model.gradients(run, model.batch(x, module))
        except NotApplicable:
            gradients = {}
        inside = "module." if isinstance(run, _Run) else ""
        results.append((outputs, {name.removeprefix(inside): one for name, one in gradients.items()}))
    (want, wanted), (got, gradients) = results
    # With dropout off: its masks in another precision would be others.
    bounds, why = model.rounding(x, with_batch_statistics if training else lambda _: None)
    if len(bounds) != len(want):  # more outputs in training
        bounds = [max(bounds)] * len(want)
    mode = "training" if training else "evaluation"
    for i, (one, usual, bound) in enumerate(zip(got, want, bounds, strict=True)):
        compare(f"output {i} {what} in {mode}", one, usual, bound, why)
    require(set(gradients) == set(wanted), f"{what}, other parameters have a gradient: {set(gradients) ^ set(wanted)}")
    # Gradients inherit the relative error of the outputs, each layer's once more.
    share = max((bound / (float(one.abs().max()) + 1e-30) for bound, one in zip(bounds, want, strict=True)), default=0)
    largest = max((float(one.abs().max()) for one in wanted.values() if one.numel()), default=0.0)
    for name, usual in wanted.items():
        allowed = 16 * share * largest
        compare(f"gradient of {name} {what} in {mode}", gradients[name], usual, allowed, f"16 times relatively, {why}")


@model_law(at_most=1)
def compiled_model(model: Model, x: Any) -> None:
    """torch.compile (without code generation) gives the outputs and gradients of the model itself, in both modes.

    Broken by Python side effects and branches on values that tracing fixes.
    """

    def compile_(module: nn.Module) -> nn.Module:
        torch._dynamo.reset()
        run = torch.compile(module, backend="aot_eager")
        return _Run(module, run)

    for training in (False, True):
        if training and samples_of(model.batch(x, model.fresh(training=False))) < 2:
            return
        try:
            _compare(model, x, compile_, "compiled", training)
        except (Broken, NotApplicable):
            raise
        except Exception as error:
            if "torch.compile is not supported" in str(error):
                raise NotApplicable(str(error)) from error
            raise Broken(f"the compiled model raised {type(error).__name__}: {str(error).splitlines()[0]}") from error
        finally:
            torch._dynamo.reset()


@model_law(at_most=3)
def checkpointed(model: Model, x: Any) -> None:
    """Recomputing activations in the backward (torch.utils.checkpoint) gives the model's own outputs and gradients.

    Running statistics are left out: the second forward moves them once more, with every batch norm of torch
    (:func:`batch_statistics_once` sees it in a model that recomputes). Broken by what makes the second forward differ
    from the first: statistics that a training forward reads and writes, as of batch renormalization; random numbers of
    one's own.
    """

    def recompute(module: nn.Module) -> nn.Module:
        def run(*args: Any, **kwargs: Any) -> Any:
            return checkpoint(module, *args, use_reentrant=False, **kwargs)

        return _Run(module, run)

    if samples_of(model.batch(x, model.fresh(training=False))) < 2:
        return
    try:
        _compare(model, x, recompute, "recomputed", True)
    except torch.utils.checkpoint.CheckpointError as error:
        raise Broken(f"the second forward is not the first: {str(error).splitlines()[0]}") from error


@model_law(at_most=2)
def spectra_finite(model: Model, x: Any) -> None:
    """The singular values of the Jacobian from input to output are finite in both modes.

    Broken by a channel without variance before a batch norm (1 / root eps each), which overflows over many layers; by
    a root at 0, whose derivative the forward does not show.
    """
    for training in (False, True):
        module = model.fresh(training=training)
        batch = model.batch(x, module)
        if training and samples_of(batch) < 2:
            return
        mode = "training" if training else "evaluation"
        args, kwargs = arguments_of(model.own(batch))
        try:
            values: Any = spectrum(module, kwargs or args, k=_VALUES).values
        except NotMeasuredError as error:
            if "finite" in str(error):
                raise Broken(f"in {mode} mode the spectrum is not finite: {error}") from error
            raise NotApplicable(f"no spectrum: {error}") from error
        largest = float(values.max())
        require(math.isfinite(largest), f"in {mode} mode the largest singular value is {largest}")
