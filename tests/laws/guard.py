"""A guard for tests: whatever would wait for a device, done inside of a probe's hooks, is noted and refused."""

import sys
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import bnprobe.hooks.taps

# Methods that hand a number to Python without passing through the dispatcher, or that do on a GPU only.
_METHODS = (
    "item", "tolist", "numpy", "cpu", "nonzero", "is_nonzero", "__bool__", "__int__", "__float__", "__index__",
    "__array__", "__repr__", "__format__", "__contains__", "unique",
)  # fmt: skip
_OPERATORS = (
    "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "repeat_interleave", "bincount", "histc", "allclose",
)  # fmt: skip
# Positions are drawn on the host, by a generator of our own and without looking at the data; and values that are on
# the host already are taken there.
_DRAWN_ON_THE_HOST = {"_distinct", "_draw", "take"}


class WaitedError(AssertionError):
    """A hook has asked for a number."""


class Refuses(TorchDispatchMode):
    """Refuses the operators whose result depends on data in a way that the host must know."""

    def __init__(self, note):
        super().__init__()
        self._note = note

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
        masks = [one for one in indices if isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8)]
        if name in _OPERATORS or masks:
            self._note(f"aten.{name}")
        return func(*args, **(kwargs or {}))


class Guard:
    """What hooks of the probe did that waits: ``waits`` lists it."""

    def __init__(self):
        self.waits, self.entered, self._inside = [], 0, False

    def note(self, what):
        if self._inside and sys._getframe(2).f_code.co_name not in _DRAWN_ON_THE_HOST:
            self.waits.append(what)
            raise WaitedError(what)

    def wrap(self, hook):
        """The hook, under guard."""

        def guarded(*args, **kwargs):
            if self._inside:
                return hook(*args, **kwargs)
            self._inside, self.entered = True, self.entered + 1
            try:
                with Refuses(self.note):
                    return hook(*args, **kwargs)
            finally:
                self._inside = False

        return guarded


def _is_ours(hook):
    return getattr(hook, "__module__", "").startswith("bnprobe.")


@contextmanager
def guarded(monkeypatch):
    """Inside, every hook that bnprobe registers runs under a :class:`Guard`."""
    guard = Guard()
    with monkeypatch.context() as patch:
        for name in _METHODS:
            patch.setattr(torch.Tensor, name, _refusing(getattr(torch.Tensor, name), name, guard))
        patch.setattr(torch, "equal", _refusing(torch.equal, "torch.equal", guard))
        for where, name in (
            (bnprobe.hooks.taps, "register_module_forward_hook"),
            (bnprobe.hooks.taps, "register_module_forward_pre_hook"),
        ):
            register = getattr(where, name)
            patch.setattr(where, name, lambda hook, register=register, **more: register(guard.wrap(hook), **more))
        for place, name in (
            (torch.Tensor, "register_hook"),
            (torch.optim.Optimizer, "register_step_pre_hook"),
            (torch.optim.Optimizer, "register_step_post_hook"),
        ):
            patch.setattr(place, name, _registering(getattr(place, name), guard))
        # It would take our dispatch mode away.
        patch.setattr(bnprobe.hooks.taps, "_undisturbed", lambda tell, *shown: tell(*shown))
        yield guard


def _registering(register, guard):
    return lambda self, hook: register(self, guard.wrap(hook) if _is_ours(hook) else hook)


def _refusing(function, name, guard):
    def refuse(*args, **kwargs):
        guard.note(name)
        return function(*args, **kwargs)

    return refuse
