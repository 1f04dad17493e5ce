"""What is done to graphs that dynamo has compiled already, and to hooks that it must not compile by themselves."""

import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["forget_graphs", "run_eagerly"]

# Dead graphs count towards dynamo's limit of 8 for a code: before that, those of other models go with them.
_DEAD = 4
_TYPE_GUARD = re.compile(r"___check_type_id\((.+), (\d+)\), type=")


def run_eagerly(*hooks: Callable[..., Any]) -> None:
    """Hooks that run beside a graph are no graphs of their own; inside one they are traced all the same."""
    dynamo = torch._C._dynamo.eval_frame
    skip = dynamo._FrameExecStrategy(dynamo._FrameAction.SKIP, dynamo._FrameAction.SKIP)
    for hook in hooks:
        assert isinstance(hook, types.FunctionType)
        dynamo.set_code_exec_strategy(hook.__code__, skip)


def forget_graphs(root: nn.Module) -> None:
    """Have the graphs of a model compiled once more when it runs next: those made without hooks do not notice any.

    Graphs of other models stay, unless they look the same: dynamo keeps the types of modules, not which ones they are.
    """
    if "torch._dynamo.convert_frame" not in sys.modules:
        return  # nothing has been compiled yet
    from torch._dynamo.guards import DeletedGuardManagerWrapper

    owners: dict[int, list[nn.Module]] = {}
    for module in root.modules():
        if module is root or module._modules or not type(module).__module__.startswith("torch.nn."):
            owners.setdefault(id(type(module)), []).append(module)
    for code, entries in list(_entries()):
        dead = [one for one in entries if isinstance(one.guard_manager, DeletedGuardManagerWrapper)]
        alive = [one for one in entries if one not in dead]
        concerned = [one for one in alive if _concerns(one.guard_manager.code_parts or (), owners)]
        if len(dead) + len(concerned) > _DEAD or (concerned and len(concerned) == len(alive)):
            torch._C._dynamo.eval_frame.reset_code(code)
        else:
            for one in concerned:
                deleted = DeletedGuardManagerWrapper("a probe was attached")
                one.guard_manager.extra_state.invalidate(one, deleted)


def _entries() -> Iterator[tuple[types.CodeType, list[Any]]]:
    """Every code that dynamo knows, with its graphs."""
    from torch._dynamo.convert_frame import input_codes

    for reference in list(input_codes.seen):
        if (code := reference()) is not None:
            yield code, torch._C._dynamo.eval_frame._debug_get_cache_entry_list(code)


def _concerns(guards: Any, owners: dict[int, list[nn.Module]]) -> bool:
    """Whether a graph's guards describe one of the modules: its type and those of its children."""
    matches = (_TYPE_GUARD.search(str(guard)) for guard in guards)
    kinds = {match[1]: int(match[2]) for match in matches if match is not None}
    return any(
        all(kinds.get(f"{source}._modules[{name!r}]", id(type(child))) == id(type(child)) for name, child in children)
        for source, kind in kinds.items()
        for children in (owner._modules.items() for owner in owners.get(kind, ()))
    )
