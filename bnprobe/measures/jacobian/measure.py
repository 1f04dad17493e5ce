"""Measure the singular values of a model's Jacobian: which way of computing them, and how exact they are."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.hooks.segments import Segment, SegmentChoice, cut
from bnprobe.hooks.sites import unwrap
from bnprobe.measures.jacobian.closed import closed_form
from bnprobe.measures.jacobian.dense import dense, dense_bytes
from bnprobe.measures.jacobian.density import Nodes
from bnprobe.measures.jacobian.frozen import FrozenBatchStatistics
from bnprobe.measures.jacobian.lanczos import lanczos
from bnprobe.measures.jacobian.operator import SegmentOperator
from bnprobe.measures.jacobian.quadrature import quadrature
from bnprobe.measures.jacobian.rounding import Reference
from bnprobe.measures.jacobian.spectrum import Spectrum
from bnprobe.measures.jacobian.values import SingularValues
from bnprobe.measures.untouched import Origin, RandomStreams, untouched

__all__ = ["Count", "Method", "Per", "Wanted", "measure_segment", "spectrum"]

Count: TypeAlias = int | tuple[int, int] | None
Per: TypeAlias = Literal["sample", "batch"] | None
Method: TypeAlias = Literal["closed form", "dense", "Lanczos"] | None

# Smaller side of one matrix up to which the whole is taken instead of Lanczos (ours, measured on two cores): for the
# largest values; and where the smallest are wanted as well, which Lanczos finds late if at all.
_SMALL, _SMALL_BOTH_ENDS = 384, 2048
_PROBES = 16  # random vectors for the sum of squares of a partial spectrum (ours: about 10 % of it for one sample)


def spectrum(
    model: nn.Module,
    x: Any,
    layer: SegmentChoice = None,
    k: Count = None,
    *,
    per: Per = None,
    method: Method = None,
    memory: int = 2**30,
    seed: int = 0,
    density: bool = False,
) -> Spectrum:
    """Singular values of d(output)/d(input) of a model, of one of its layers, or of what lies between two layers.

    Model, gradients, buffers, modes and random streams are afterwards bitwise as before. Every forward of one
    measurement starts from the same random state (a layer: from the one that it meets in the model's forward), so that
    dropout masks are part of the function; and in the modes in which the modules are: train-mode batch norm is measured
    as such.

    *Samples.* Where the first axis of inputs and outputs counts samples, and no output depends on another sample's
    input (which is measured), each sample has its own Jacobian, and ``values`` is ``[N, k]``. Otherwise, as under
    batch norm in train mode, there is one, of all outputs by all inputs: ``[1, k]``, ``coupled``.

    Args:
        model: any module; DDP, FSDP and compiled wrappers are looked through, compiled parts run uncompiled.
        x: its input: a tensor, a tuple of positional arguments or a mapping of keyword arguments. End to end it must
            hold a floating-point tensor; layers inside can be measured for token numbers too.
        layer: None: end to end. A name as in ``named_modules()``: that layer (its first call in this forward) at the
            input that ``x`` causes there. Two names: from the first one's input to the second one's output; whatever
            does not come by the first one's input is held constant. Several tensors: see
            :class:`bnprobe.hooks.segments.Segment`.
        k: None for all values, a number for the largest ones, two numbers for so many of the largest and smallest.
        per: None: as above. ``"batch"``: the Jacobian of the whole batch also where samples do not interact (of
            independent samples it is block-diagonal, and its values are those of all samples together). ``"sample"``:
            each sample's own, with the batch statistics of train-mode batch norm *held fixed* where they couple the
            samples: the normalization is then a constant scale and shift, as the mean-field literature has it
            (J. Pennington et al. 2017); it is not the derivative that training uses. Statistics over a sample's own
            values (layer, group, instance norm) are differentiated in every view.
        method: None: closed form if there is one, else dense or Lanczos, by size; or which of them to use.
        memory: bytes for matrices and vectors; default 1 GiB, ours. The model's own activations come on top.
        seed: of the vectors at which Lanczos starts, and of all random ones.
        density: whether :meth:`bnprobe.Spectrum.log_density` is to work although ``k`` asks for some of the values. The
            density is then estimated by stochastic Lanczos quadrature, with its error: 64 more products from either
            side with 16 random vectors, which have to fit into ``memory``. All values (``k=None``) need no estimate.

    Returns:
        The values with their errors.

    Raises:
        ArgumentError: an argument is not usable; or the model is lazy and has not seen a batch.
        SelectionError: there is no such layer; the message lists near names.
        NotMeasuredError: there is no Jacobian (token numbers, no dependence, values that are not finite), or not in
            this memory or by this method; the message says why.
    """
    wanted = replace(Wanted.of(k, per, method, memory, seed), density=density)
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    root = unwrap(model)
    with untouched(root) as origin:
        segment = cut(root, x, layer, RandomStreams)
        return replace(measure_segment(segment, origin, wanted), layer=layer)


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        largest, smallest: how many values; both None for all.
        per, method, memory, seed: as in :func:`spectrum`.
        whole: whether values that were not asked for are kept where all of them come at once.
        density: whether a partial spectrum keeps what its density is made of.
    """

    largest: int | None
    smallest: int
    per: Per
    method: Method
    memory: int
    seed: int
    whole: bool = False
    density: bool = False

    @staticmethod
    def of(k: Any, per: Any, method: Any, memory: Any, seed: Any) -> "Wanted":
        """The arguments of :func:`spectrum`, checked.

        Raises:
            ArgumentError: one is not usable.
        """
        ends = (k, 0) if isinstance(k, int) else k
        counts = isinstance(ends, tuple) and len(ends) == 2 and all(type(one) is int and one >= 0 for one in ends)
        if k is not None and not (counts and sum(ends) > 0):
            raise ArgumentError(f"k must be None, a positive int or two ints (largest, smallest); got {k!r}")
        if per not in (None, "sample", "batch"):
            raise ArgumentError(f'per must be None, "sample" or "batch"; got {per!r}')
        if method not in (None, "closed form", "dense", "Lanczos"):
            raise ArgumentError(f'method must be None, "closed form", "dense" or "Lanczos"; got {method!r}')
        if not isinstance(memory, int) or memory <= 0:
            raise ArgumentError(f"memory must be a positive number of bytes; got {memory!r}")
        if method == "Lanczos" and k is None:
            raise ArgumentError('method="Lanczos" needs k: how many values')
        largest, smallest = ends if ends is not None else (None, 0)
        return Wanted(largest, smallest, per, method, memory, seed)

    def ends(self, size: int) -> tuple[int, int]:
        """How many of the largest and smallest of ``size`` values."""
        if self.largest is None or self.largest + self.smallest >= size:
            return size, 0
        return self.largest, self.smallest


def measure_segment(segment: Segment, origin: Origin, wanted: Wanted) -> Spectrum:
    """The spectrum of a piece of a model, inside :func:`bnprobe.measures.untouched.untouched`.

    Raises:
        NotMeasuredError: as in :func:`spectrum`.
    """
    begin = partial(_begin, origin, segment)
    if wanted.method in (None, "closed form"):
        found = _closed(segment, begin, wanted.per)
        if found is not None:
            return _as_spectrum(found, wanted)
        if wanted.method == "closed form":
            kind = type(segment.module).__name__
            raise NotMeasuredError(f"there is no closed form for {kind} at this input, in this mode")
    with FrozenBatchStatistics() if wanted.per == "sample" else nullcontext():
        return _of_operator(segment, begin, wanted)


def _begin(origin: Origin, segment: Segment) -> None:
    origin.rewind()
    if segment.moment is not None:
        segment.moment.restore()


def _closed(segment: Segment, begin: Callable[[], None], per: Per) -> SingularValues | None:
    args, kwargs = segment.arguments
    if segment.start is not None or kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or segment.autocast:
        return None
    if torch.is_autocast_enabled(args[0].device.type):
        return None  # the layer computes with rounded weights
    if any(name != "parametrizations" for name, _ in segment.module.named_children()):
        return None  # only leaves have one
    begin()
    return closed_form(segment.module, args[0], "sample" if per == "sample" else None)


def _of_operator(segment: Segment, begin: Callable[[], None], wanted: Wanted) -> Spectrum:
    samples, one = _one_for_all(segment)
    operator = SegmentOperator(one, begin)
    interacting = operator.interacts()
    if wanted.per == "sample" and interacting:
        raise NotMeasuredError(_why_coupled(operator))
    operator.split(not interacting)
    largest, smallest = wanted.ends(min(operator.shape))
    reference = Reference(operator, one, begin, wanted.memory)
    if _is_dense(operator, wanted):
        found = dense(operator, reference, wanted.memory)
    else:
        generator = torch.Generator().manual_seed(wanted.seed)
        found = lanczos(operator, largest, smallest, generator=generator, memory=wanted.memory)
        rounded = reference.rounding(operator)
        found = replace(found, error=found.error + rounded[:, None].to(found.error))
    squares, nodes = None, None
    if found.values.shape[1] < min(operator.shape):
        squares = _squares(operator, wanted.seed)
        if wanted.density:
            generator = torch.Generator().manual_seed(wanted.seed)
            nodes = quadrature(operator, rounding=rounded, generator=generator, memory=wanted.memory)
    samples = samples or len(found.values)
    found = replace(
        found,
        values=found.values.expand(samples, -1),
        error=found.error.expand(samples, -1),
        coupled=interacting and operator.batch != 1,
    )
    return _as_spectrum(found, wanted, squares, nodes)


def _one_for_all(segment: Segment) -> tuple[int, Segment]:
    """Of a linear layer, whose Jacobian is the same for every sample: how many there are, and the first one."""
    module, (args, kwargs) = segment.module, segment.arguments
    linear = isinstance(module, nn.Linear | _ConvNd) and type(module).__module__.startswith("torch.nn.modules.")
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    if segment.start is not None or not linear or hooked or kwargs or len(args) != 1 or args[0].dim() < 3:
        return 0, segment
    x = args[0]
    if isinstance(module, _ConvNd) and x.dim() != len(module.kernel_size) + 2:
        return 0, segment
    first = x[:1]
    return len(x), replace(segment, arguments=((first,), {}), inputs=(first,))


def _why_coupled(operator: SegmentOperator) -> str:
    if operator.batch == 0:
        return 'per="sample" needs inputs and outputs whose first axis counts samples; these have other shapes'
    return "samples interact by more than batch norm's statistics: there is no Jacobian per sample"


def _is_dense(operator: SegmentOperator, wanted: Wanted) -> bool:
    if wanted.method is not None:
        return wanted.method == "dense"
    size = min(operator.shape)
    largest, smallest = wanted.ends(size)
    if largest + smallest == size and wanted.largest is None:
        return True
    limit = _SMALL_BOTH_ENDS if smallest else _SMALL
    small = operator.samples * size**3 <= limit**3 or 4 * (largest + smallest) >= size
    return small and dense_bytes(operator) <= wanted.memory


def _squares(operator: SegmentOperator, seed: int) -> tuple[Tensor, Tensor]:
    """Squared Frobenius norms and their standard errors: ``[N]``; ``E |J^T u|^2`` for u of random signs."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (operator.samples, operator.shape[0], _PROBES), generator=generator) * 2 - 1
    products = operator.rmatmat(signs.to(operator.device, operator.dtype)).double().square().sum(1).cpu()
    return products.mean(1), products.std(1) / _PROBES**0.5


def _as_spectrum(
    found: SingularValues, wanted: Wanted, squares: tuple[Tensor, Tensor] | None = None, nodes: Nodes | None = None
) -> Spectrum:
    """Of what was found, the values that were asked for, seen as it was asked for."""
    values, error = (one.detach().double().cpu().numpy() for one in (found.values, found.error))
    (m, n), samples, which = found.shape, len(values), found.which
    sums = None if squares is None else [one.expand(samples).numpy() for one in squares]
    if sums is None:
        sums = [(values**2).sum(1), (2 * values * error + error**2).sum(1)]
    if nodes is not None:
        nodes = nodes.of_each(samples)
    if wanted.per == "batch" and not found.coupled and samples > 1:
        order = np.argsort(-values, axis=None, kind="stable")
        values, error = values.reshape(-1)[order][None], error.reshape(-1)[order][None]
        (m, n), which = (samples * m, samples * n), (values.shape[1] if squares is None else which[0], which[1])
        sums = [sums[0].sum(keepdims=True), np.sqrt((sums[1] ** 2).sum(keepdims=True))]
        nodes = None if nodes is None else nodes.of_batch()
        samples = 1
    largest, smallest = wanted.ends(min(m, n))
    whole = values.shape[1] == min(m, n)
    if whole and wanted.whole:
        largest, smallest = min(m, n), 0
    if whole and wanted.density and largest + smallest < min(m, n):
        nodes = Nodes.of_all(values, error)
    keep = [*range(largest), *range(values.shape[1] - smallest, values.shape[1])]
    return Spectrum(
        values=values[:, keep],
        error=error[:, keep],
        method=found.method,
        shape=(m, n),
        coupled=found.coupled,
        which=(largest, smallest),
        frozen=wanted.per == "sample",
        squares=sums[0],
        squares_error=sums[1],
        nodes=nodes,
    )
