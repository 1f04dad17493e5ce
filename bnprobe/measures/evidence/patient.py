"""The model under examination with the batches that it is examined on, and how the two go together."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.hooks.outputs import order_of_entry
from bnprobe.hooks.segments import plain_forward
from bnprobe.hooks.sites import Site, named_layers, unwrap
from bnprobe.hooks.tensors import tensors_in, with_tensors
from bnprobe.measures.evidence.moments import Moments
from bnprobe.measures.evidence.partial import partial_layers
from bnprobe.measures.evidence.pooling import Pooled, pooled
from bnprobe.measures.loss import Loss
from bnprobe.measures.untouched import Origin

__all__ = ["INTENTS", "Given", "Patient", "collect", "device_of", "set_modes"]

ENTRIES = 16_384  # of one output; ours: means over so many are good to a per cent
INTENTS = ("serve", "train", "frozen", "batch-stats-at-test", "transductive")
Forward = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Given:
    """What else the user gave; each opens more rules.

    Attributes:
        loss: ``(model, batch) -> scalar``.
        optimizer: of the training.
        step: does one step of the training: ``step()``, or ``step(batch)``.
        evaluate: the user's own evaluation: ``evaluate()``, or ``evaluate(model)``.
        val_loader: batches of the evaluation.
        reference: another copy of the model: what it was averaged or copied from.
        state_dict: a checkpoint of the model.
        exported: a callable that should do what the model does.
        forward: ``(model, batch) -> output``, where ``model(x)`` is not it.
        ranks: state dicts of the other ranks.
        ema_decay, ema_updates: of an average of weights that the model is.
        lengths: ``batch -> [N]``, how much of each sample is no padding.
    """

    loss: Loss | None = None
    optimizer: torch.optim.Optimizer | None = None
    step: Callable[..., Any] | None = None
    evaluate: Callable[..., Any] | None = None
    val_loader: Iterable[Any] | None = None
    reference: nn.Module | None = None
    state_dict: Mapping[str, Any] | None = None
    exported: Callable[..., Any] | None = None
    forward: Forward | None = None
    ranks: Sequence[Mapping[str, Any]] | None = None
    ema_decay: float | None = None
    ema_updates: int | None = None
    lengths: Callable[[Any], Tensor] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of those that were given."""
        return tuple(name for name, value in vars(self).items() if value is not None)


@dataclass(eq=False)
class Patient:
    """A model and its batches. Everything done with it happens inside :func:`bnprobe.measures.untouched.untouched`.

    Attributes:
        model: as it was handed over.
        batches: cached, so that what is compared is compared on the same ones; on the model's device.
        origin: what the model was like; ``origin.rewind()`` goes back to it.
        given: the optional arguments.
        intent: what the user says the model is for now.
        seed: of everything that is drawn at random.
        loader: where the batches came from.
        why_no_forward: why the model cannot be run on them, once it was tried; empty where it can.
    """

    model: nn.Module
    batches: Sequence[Any]
    origin: Origin
    given: Given = field(default_factory=Given)
    intent: str | None = None
    seed: int = 0
    loader: Any = None
    why_no_forward: str = ""

    @cached_property
    def root(self) -> nn.Module:
        """The model with its wrappers taken off."""
        return unwrap(self.model)

    @cached_property
    def modes(self) -> dict[str, bool]:
        """Each module's ``training`` flag at hand-over, by name (the root's is empty)."""
        return {name: module.training for name, module in named_layers(self.root)}

    @cached_property
    def norms(self) -> list[Site]:
        """Layers that normalize, in the order in which the model calls them; those never called come last."""
        sites = _norm_sites(self.root)
        entered = self.order
        return sorted(sites, key=lambda site: entered.index(site.name) if site.name in entered else len(entered))

    @cached_property
    def order(self) -> list[str]:
        """Names of the layers that a forward enters, in the order of their first calls; none where it raises."""
        self.origin.rewind()
        set_modes(self, "stored")
        layers = dict(named_layers(self.root))
        try:
            with torch.no_grad():
                return order_of_entry(layers, lambda: self.run(self.batches[0]))[1]
        except Exception as error:  # whatever it is: what needs no forward is measured all the same
            self.why_no_forward = f"it raises {type(error).__name__}: {error}"
            return []
        finally:
            self.origin.rewind()

    @cached_property
    def batch_norms(self) -> list[Site]:
        """Layers whose output depends on the other samples in training mode, in the order of their calls."""
        return [site for site in self.norms if site.family == "batch_norm" and not _is_frozen_class(site.module)]

    @cached_property
    def tracked(self) -> list[Site]:
        """Batch norms that have running statistics, of what they are given as a whole."""
        return [site for site in self.batch_norms if self.has_statistics(site) and site.name not in self.partial]

    @cached_property
    def partial(self) -> frozenset[str]:
        """Layers of other makes that average a part of their input (masks): its moments say nothing about theirs."""
        others = [site for site in self.batch_norms if self.has_statistics(site) and not _is_torchs_own(site.module)]
        return partial_layers(self, others) if others else frozenset()

    def has_statistics(self, site: Site) -> bool:
        """Whether a layer has running statistics."""
        return _tensor(site.module, "running_mean") is not None and _tensor(site.module, "running_var") is not None

    def in_training(self, site: Site) -> bool:
        """Whether a layer was in training mode when the model was handed over, or the user means it to be."""
        return self.intent == "train" or self.modes[site.name]

    # -- running the model ------------------------------------------------------------------------------------------

    def run(self, batch: Any, model: Callable[..., Any] | None = None) -> Any:
        """Whatever the model (or another callable) returns for a batch; with gradients where the caller has them on."""
        target, gradients = self.root if model is None else model, torch.is_grad_enabled()
        batch = with_tensors(batch, torch.clone)  # a model may write into its input
        with plain_forward(self.root), torch.set_grad_enabled(gradients):
            if self.given.forward is not None:
                return self.given.forward(target, batch)  # type: ignore[arg-type]  # a callable stands for the model
            return self._call(target, batch)

    def outputs(self, batch: Any, model: Callable[..., Any] | None = None) -> Tensor:
        """What it predicts, ``[N, D]`` in float64: every floating-point output that has a row a sample.

        Of very large outputs evenly spaced entries.

        Raises:
            NotMeasuredError: it returns none.
        """
        samples = self.samples(batch)
        with torch.no_grad():
            found = [one for _, one in tensors_in(self.run(batch, model)) if one.is_floating_point() and one.dim()]
        rows = [_thinned(one.detach().reshape(samples, -1)).double() for one in found if one.shape[0] == samples]
        if not rows:
            shapes = ", ".join(str(tuple(one.shape)) for one in found) or "no floating-point tensor"
            raise NotMeasuredError(f"the model's output has no row a sample: {samples} samples gave {shapes}")
        return torch.cat(rows, dim=1)

    def loss(self, batch: Any) -> float:
        """The loss of a batch without gradients.

        Raises:
            NotMeasuredError: there is no loss.
        """
        with torch.no_grad():
            value = self._loss(batch)
        return float(value)

    @cached_property
    def why_no_loss(self) -> str:
        """Why there is no loss; empty where there is one."""
        self.origin.rewind()
        set_modes(self, "stored")
        try:
            self.loss(self.batches[0])
        except NotMeasuredError as error:
            return str(error)
        except Exception as error:  # the user's own, or a head that is no classifier's
            return f"the loss raises {type(error).__name__}: {error}"
        return ""

    # -- batches ----------------------------------------------------------------------------------------------------

    def samples(self, batch: Any) -> int:
        """How many samples a batch has: the first axis of its first tensor that has one."""
        for _, one in tensors_in(batch):
            if one.dim():
                return int(one.shape[0])
        raise NotMeasuredError(f"a batch of type {type(batch).__name__} holds no tensor with a samples' axis")

    def part(self, batch: Any, rows: Sequence[int] | Tensor) -> Any:
        """Some samples of a batch; tensors without a row a sample stay as they are."""
        samples = self.samples(batch)
        index = torch.as_tensor(rows, dtype=torch.long)
        return with_tensors(batch, lambda one: one[index.to(one.device)] if one.shape[:1] == (samples,) else one)

    def joined(self, batches: Sequence[Any]) -> Any:
        """Several batches as one.

        Raises:
            NotMeasuredError: their samples differ in shape.
        """
        columns = [[one for _, one in tensors_in(batch)] for batch in batches]
        try:
            whole = iter([torch.cat(some) if some[0].dim() else some[0] for some in zip(*columns, strict=True)])
        except (RuntimeError, ValueError) as error:
            raise NotMeasuredError(f"samples of different batches cannot be put together: {error}") from error
        return with_tensors(batches[0], lambda _: next(whole))

    def labels(self, batch: Any) -> Tensor | None:
        """Class labels ``[N]``, where the batch has some."""
        if isinstance(batch, Mapping):
            found = next((batch[key] for key in ("labels", "label", "y", "target", "targets") if key in batch), None)
        else:
            found = batch[-1] if isinstance(batch, Sequence) and len(batch) > 1 else None
        if not isinstance(found, Tensor) or found.dim() != 1 or found.is_floating_point() or found.is_complex():
            return None
        return found if found.dtype != torch.bool else None

    # -- what several measurements share ----------------------------------------------------------------------------

    @cached_property
    def pooled(self) -> Pooled:
        """Statistics of all batches together, layer by layer."""
        return pooled(self)

    @property
    def moments(self) -> Moments:
        """Moments of each batch at each batch norm's input, where samples have not influenced one another yet."""
        return self.pooled.moments

    def _call(self, target: Callable[..., Any], batch: Any) -> Any:
        arguments = self._arguments(batch)
        return target(**arguments) if isinstance(arguments, Mapping) else target(*arguments)

    def _arguments(self, batch: Any) -> Sequence[Any] | Mapping[str, Any]:
        if isinstance(batch, Mapping):
            return batch if _takes(self.root, batch) else (batch,)
        if not isinstance(batch, tuple | list):
            return (batch,)
        if len(batch) == 1:
            return (batch[0],)
        wanted = _required(self.root)
        if wanted == len(batch) - 1 and wanted > 1:
            return tuple(batch[:-1])
        if wanted == len(batch) and self.labels(batch) is None:
            return tuple(batch)
        first = batch[0]
        if isinstance(first, Mapping) and _takes(self.root, first):
            return first
        return tuple(first) if isinstance(first, tuple | list) and wanted == len(first) > 1 else (first,)

    def _loss(self, batch: Any) -> Tensor:
        if self.given.loss is not None:
            with plain_forward(self.root), torch.no_grad():
                value = self.given.loss(self.root, with_tensors(batch, torch.clone))
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise NotMeasuredError(f"the loss must be one number; got {type(value).__name__}")
            return value.detach().double()
        output = self.run(batch)
        own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(own, Tensor) and own.numel() == 1:
            return own.detach().double()
        labels = self.labels(batch)
        logits = next((one for _, one in tensors_in(output) if one.is_floating_point() and one.dim() == 2), None)
        if labels is None or logits is None or logits.shape[0] != labels.shape[0] or logits.shape[1] < 2:
            raise NotMeasuredError("needs loss=: the batches are not (x, y) with integer class labels y")
        if int(labels.max()) >= logits.shape[1] or int(labels.min()) < 0:
            raise NotMeasuredError(f"needs loss=: the labels are not classes 0 ... {logits.shape[1] - 1}")
        return cross_entropy(logits.double(), labels.long())


def collect(loader: Iterable[Any], limit: int, device: torch.device | None) -> list[Any]:
    """The first batches of a loader, on the model's device.

    Raises:
        ArgumentError: it is no iterable, or has no batch.
    """
    try:
        found = list(islice(loader, limit))
    except TypeError as error:
        raise ArgumentError(f"loader must be an iterable of batches; got {type(loader).__name__}: {error}") from error
    if not found:
        raise ArgumentError("loader gave no batch: an iterable of batches with at least one is needed")
    if device is None:
        return found
    return [with_tensors(batch, lambda one: one.to(device)) for batch in found]


def device_of(model: nn.Module) -> torch.device | None:
    """Where its parameters are; None where it has none."""
    return next((one.device for one in model.parameters()), None)


def _thinned(rows: Tensor) -> Tensor:
    """At most ``ENTRIES`` columns, evenly spaced: maps of a class for every pixel do not fit into memory."""
    step = -(-rows.shape[1] // ENTRIES)
    return rows if step <= 1 else rows[:, :: step | 1]  # an odd step meets every column of a map


def set_modes(patient: Patient, how: str) -> None:
    """Batch norms to ``stored`` or ``batch`` statistics, everything else (dropout) to evaluation, flag by flag."""
    training = {id(site.module) for site in _norm_sites(patient.root) if site.family == "batch_norm"}
    for module in patient.root.modules():
        module.training = how == "batch" and id(module) in training


def _norm_sites(root: nn.Module) -> list[Site]:
    from bnprobe.hooks.sites import find_sites

    sites = find_sites(root, lambda _, __: True)
    return [site for site in sites if site.is_norm]


def _is_torchs_own(module: nn.Module) -> bool:
    """Whether what it does with its input is PyTorch's batch normalization, and nothing else."""
    forward = inspect.getattr_static(type(module), "forward", None)  # asked for, a scripted module's raises
    return forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward) and "forward" not in vars(module)


def _is_frozen_class(module: nn.Module) -> bool:
    return "frozen" in type(module).__name__.lower()


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    value = getattr(module, name, None)
    return value if isinstance(value, Tensor) else None


def _required(module: nn.Module) -> int:
    """How many positional arguments a forward cannot do without; 1 where it does not say."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in kinds and one.default is inspect.Parameter.empty for one in parameters)


def _takes(module: nn.Module, batch: Mapping[str, Any]) -> bool:
    """Whether a forward has the keywords of a batch."""
    try:
        inspect.signature(module.forward).bind(**batch)
    except (TypeError, ValueError):
        return False
    return True
