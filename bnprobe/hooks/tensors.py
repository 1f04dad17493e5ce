"""Tensors in the structures that layers take and give, and which of them can be measured."""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["tensors_in", "versions_of", "why_unreadable", "with_tensors"]


def tensors_in(value: Any, path: str = "", depth: int = 8) -> Iterator[tuple[str, Tensor]]:
    """Tensors in tuples, lists, mappings and dataclasses, each with its path (``1.0``, ``hidden``).

    Structures are followed ``depth`` levels down: one may contain itself.
    """
    if isinstance(value, Tensor):
        yield path, value
        return
    for key, inner in _items(value) if depth else ():
        yield from tensors_in(inner, f"{path}.{key}" if path else str(key), depth - 1)


def with_tensors(value: Any, change: Callable[[Tensor], Tensor], depth: int = 8) -> Any:
    """The same structure with every tensor in it changed; what holds none is passed on as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if not depth or next(tensors_in(value, depth=depth), None) is None:
        return value
    changed = {key: with_tensors(inner, change, depth - 1) for key, inner in _items(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return value._replace(**changed)  # type: ignore[attr-defined]  # a namedtuple's
    if isinstance(value, tuple | list):
        return type(value)(changed.values())
    twin = copy.copy(value)
    for key, inner in changed.items():
        if isinstance(twin, MutableMapping):  # a ModelOutput is a dataclass as well, and keeps both in step
            twin[key] = inner
        else:
            object.__setattr__(twin, key, inner)
    return twin


# What nearly all tensors are, told apart from the rest by one look.
_READABLE = {
    (dtype, device, torch.strided)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    for device in ("cpu", "cuda")
}


def why_unreadable(tensor: Tensor) -> str:
    """Why a tensor is not measured, or an empty string where it can be."""
    if (
        type(tensor) is Tensor
        and (tensor.dtype, tensor.device.type, tensor.layout) in _READABLE
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and tensor.numel()
    ):
        return ""
    if type(tensor) is not Tensor and type(tensor) is not nn.Parameter and type(tensor) is not nn.Buffer:
        return f"{type(tensor).__name__} is no plain tensor"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "the layer ran inside a torch.func transform"
    if not tensor.dtype.is_floating_point:
        return f"{str(tensor.dtype).removeprefix('torch.')} values"
    if tensor.layout is not torch.strided:
        return f"{str(tensor.layout).removeprefix('torch.')} layout"
    if tensor.device.type == "meta":
        return "meta tensors hold no values"
    return "no values" if tensor.numel() == 0 else ""


def versions_of(args: tuple[Any, ...]) -> list[int]:
    """How often each tensor argument has been written into; inference tensors do not count."""
    return [one._version for one in args if isinstance(one, Tensor) and not one.is_inference()]


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        # A packed sequence's other fields count and order; they are no activations.
        fields = ("data",) if isinstance(value, nn.utils.rnn.PackedSequence) else value._fields
        return [(name, getattr(value, name)) for name in fields]
    if isinstance(value, tuple | list):
        return enumerate(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    return ()
