"""The model under test: how to make one, what to feed it, and how far rounding puts it off."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn

from bnprobe.errors import ArgumentError, SelectionError
from bnprobe.hooks.segments import arguments_of
from bnprobe.hooks.sites import Site, find_sites, unwrap
from bnprobe.hooks.tensors import tensors_in, with_tensors
from bnprobe.measures.loss import Loss
from bnprobe.testing.likes import Like
from bnprobe.testing.models.inputs import inputs_for
from bnprobe.testing.oracles.reference import wide
from bnprobe.testing.properties.broken import NotApplicable
from bnprobe.testing.strategies.batch import Batch
from bnprobe.testing.tolerance import roundoff

__all__ = ["Model", "batch_norms", "counter_of", "samples_of", "take", "with_batch_statistics"]

# How many times a model's own rounding error another order of the same operations may make. Ours: a factor that no
# model of the tests comes near, and no error of a law stays under.
_TIMES = 16


@dataclass(frozen=True, repr=False)
class Model:
    """A model under test.

    Attributes:
        make: ``() -> module``, a fresh one each time; or a module, which is then copied.
        inputs: of the laws: None for batches in the shape that the first layer wants; a strategy of hypothesis, or one
            input. An input is a tensor, a recipe (:class:`bnprobe.testing.strategies.Batch`), a tuple of positional or
            a mapping of keyword arguments. With ``loss`` it is a batch as the loss takes it, and the model's own input
            is the first part of a pair.
        loss: ``(model, batch) -> scalar``, for gradients; None: a random linear function of the outputs.
        name: for messages; default the class's name.
    """

    make: Callable[[], nn.Module] | nn.Module
    inputs: Any = None
    loss: Loss | None = None
    name: str | None = None
    # What bnprobe.testing.conformance asks of a subject.
    like: Like = field(default="batch_norm", init=False)
    traits: frozenset[str] = field(default=frozenset(), init=False)

    def __repr__(self) -> str:
        """As code, as far as a callable can tell."""
        told = repr(self.make) if _prints(self.make) else getattr(self.make, "__qualname__", "make_model")
        told = "make_model" if "<" in told else told
        return f"Model({told}{'' if self.loss is None else ', loss=loss'})"

    @property
    def title(self) -> str:
        """The model's name for messages."""
        return self.name or type(unwrap(self.fresh(training=False))).__name__

    @property
    def strategy(self) -> SearchStrategy[Any]:
        """Of inputs.

        Raises:
            ArgumentError: none are given, and what the model takes cannot be guessed.
        """
        if self.inputs is None:
            return inputs_for(self.fresh(training=False))
        return self.inputs if isinstance(self.inputs, SearchStrategy) else st.just(self.inputs)

    def fresh(self, *, training: bool) -> nn.Module:
        """A model with the same parameters each time.

        Raises:
            ArgumentError: ``make`` gives no module.
        """
        if isinstance(self.make, nn.Module):
            module: Any = copy.deepcopy(self.make)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                module = self.make()
        if not isinstance(module, nn.Module):
            raise ArgumentError(f"make_model must return a torch.nn.Module; got {type(module).__name__}")
        return module.train(training)

    def batch(self, x: Any, module: nn.Module) -> Any:
        """An input with its recipes made into tensors, on the model's device."""
        device = next((one.device for one in (*module.parameters(), *module.buffers())), torch.device("cpu"))
        return with_tensors(_made(x), lambda one: one.detach().to(device, copy=True))

    def outputs(self, module: nn.Module, batch: Any) -> list[Tensor]:
        """Floating-point tensors that the model returns.

        Raises:
            NotApplicable: there is none.
        """
        args, kwargs = arguments_of(self.own(batch))
        found = [one for _, one in tensors_in(module(*args, **kwargs)) if one.is_floating_point()]
        if not found:
            raise NotApplicable("the model returns no floating-point tensor")
        return found

    def scalar(self, module: nn.Module, batch: Any) -> Tensor:
        """The loss."""
        if self.loss is not None:
            return self.loss(module, batch)
        total = torch.zeros(())
        for one in self.outputs(module, batch):
            weights = torch.randn(one.shape, generator=torch.Generator().manual_seed(1)).to(one)
            total = total.to(one) + (weights * one).sum() / one.numel() ** 0.5
        return total

    def gradients(self, module: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Of the loss, by parameter; those that it does not reach are missing."""
        # With a gradient at the input: a first layer whose input wants none may be the end of the process
        # (torch's group norm of channels_last on the CPU).
        leaves = with_tensors(batch, _leaf)
        loss = self.scalar(module, leaves)
        if not loss.requires_grad:
            raise NotApplicable("the loss has no gradient")
        loss.sum().backward()  # type: ignore[no-untyped-call] # torch's
        return {name: one.grad for name, one in module.named_parameters() if one.grad is not None}

    def rounding(self, x: Any, prepare: Callable[[nn.Module], Any] = lambda _: None) -> tuple[list[float], str]:
        """How far each output may be off by rounding alone, and why.

        It is measured: by how much the outputs are off those of a copy in double precision, at their largest.

        Args:
            x: the input.
            prepare: what is done to the model, which is in evaluation mode, before it runs.
        """
        module = self.fresh(training=False)
        prepare(module)
        with torch.no_grad():
            got = self.outputs(module, self.batch(x, module))
        sizes = [float(one.abs().max()) if one.numel() else 0.0 for one in got]
        twin, batch = self.widest(x)
        prepare(twin)
        with torch.no_grad():
            exact = self.outputs(twin, batch)
        if any(one.dtype != torch.float64 for one in exact):
            bounds = [roundoff(one.dtype) ** 0.5 * size for one, size in zip(got, sizes, strict=True)]
            return bounds, "root u times the largest: there is no double precision to measure rounding by"
        off = [_largest(wide(a) - wide(b)) for a, b in zip(got, exact, strict=True)]
        least = [_TIMES * roundoff(one.dtype) * size for one, size in zip(got, sizes, strict=True)]
        why = (
            f"{_TIMES} times what outputs of this batch are off those in double precision, {max(off):.2g}, + {_TIMES} u"
        )
        return [_TIMES * a + b for a, b in zip(off, least, strict=True)], why

    def widest(self, x: Any) -> tuple[nn.Module, Any]:
        """A fresh model in evaluation mode and its input, in double precision where it runs in it."""
        try:
            module = self.fresh(training=False).double()
            batch = with_tensors(self.batch(x, module), _double)
            with torch.no_grad():
                self.outputs(module, batch)
        except Exception:  # kernels without double precision
            module = self.fresh(training=False)
            return module, self.batch(x, module)
        return self.fresh(training=False).double(), batch

    def own(self, batch: Any) -> Any:
        """The model's own input: the first part of a pair where there is a loss, else the batch."""
        pair = self.loss is not None and isinstance(batch, tuple | list) and len(batch) == 2
        return batch[0] if pair else batch


def batch_norms(module: nn.Module) -> list[Site]:
    """Batch-norm layers with running statistics."""
    try:
        sites = find_sites(module)
    except SelectionError:
        return []
    return [
        site for site in sites
        if site.family == "batch_norm" and isinstance(getattr(site.module, "running_mean", None), Tensor)
        and isinstance(getattr(site.module, "running_var", None), Tensor)
    ]  # fmt: skip


def counter_of(site: Site) -> Tensor | None:
    """The layer's counter of batches."""
    counter = getattr(site.module, "num_batches_tracked", None)
    return counter if isinstance(counter, Tensor) else None


def with_batch_statistics(module: nn.Module) -> list[Site]:
    """Put batch norms, and nothing else, into training mode."""
    module.eval()
    norms = batch_norms(module)
    for site in norms:
        site.module.train()
    return norms


def samples_of(batch: Any) -> int:
    """Size of the first axis of the first tensor that has one.

    Raises:
        NotApplicable: there is none.
    """
    for _, tensor in tensors_in(batch):
        if tensor.ndim:
            return len(tensor)
    raise NotApplicable("the input has no axis of samples")


def take(batch: Any, index: Tensor) -> Any:
    """Some samples of a batch, in this order; tensors with another first axis stay whole."""
    n = samples_of(batch)
    return with_tensors(batch, lambda one: one[index.to(one.device)] if one.ndim and len(one) == n else one)


def _made(x: Any) -> Any:
    if isinstance(x, Batch):
        return x.tensor()
    if isinstance(x, Mapping):
        return {key: _made(one) for key, one in x.items()}
    if isinstance(x, tuple | list) and not hasattr(x, "_fields"):
        return type(x)(_made(one) for one in x)
    return x


def _leaf(one: Tensor) -> Tensor:
    """With a gradient; a copy, as a layer may write into it."""
    return one.detach().requires_grad_().clone() if one.is_floating_point() else one


def _double(one: Tensor) -> Tensor:
    return one.double() if one.is_floating_point() else one


def _largest(difference: Tensor) -> float:
    """Where both are infinite or no numbers there is nothing to tell them apart by."""
    finite = difference[difference.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0


def _prints(make: Any) -> bool:
    """Whether its ``repr`` is code, as of recipes."""
    own: Any = type(make).__repr__
    return own is not object.__repr__ and not isinstance(make, nn.Module) and not hasattr(make, "__qualname__")
