"""What can go wrong, said so that the reader knows what to do next."""

__all__ = [
    "ArgumentError",
    "BnprobeError",
    "LawBrokenError",
    "NotMeasuredError",
    "RunBusyError",
    "RunError",
    "SelectionError",
]


class BnprobeError(Exception):
    """Base of every error that bnprobe raises on purpose."""


class ArgumentError(BnprobeError, ValueError):
    """An argument is not usable: the message names it, what came and what would be right."""


class SelectionError(ArgumentError):
    """A layer selection matches nothing; the message lists names that are near."""


class RunError(BnprobeError):
    """A run directory is missing, is no run directory, or lacks what was asked of it."""


class RunBusyError(RunError):
    """Another live writer holds the run directory."""


class NotMeasuredError(BnprobeError):
    """The model and the arguments are sound, but the quantity does not exist or cannot be had; the message says why."""


class LawBrokenError(BnprobeError, AssertionError):
    """A layer or model under test breaks a law; the message has the law, the misfit, its tolerance and an example."""
