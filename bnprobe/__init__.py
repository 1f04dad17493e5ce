"""bnprobe: a measuring instrument for normalization in PyTorch networks.

``attach`` listens to a training run, ``load`` reads what it kept, ``drift`` and ``report`` show it; ``spectrum`` and
``spectra`` measure Jacobians, ``gradient_shift``, ``landscape`` and ``hessian_eigenvalues`` a loss. Reading needs no
torch: names are imported when they are first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bnprobe.attach import Probe, attach
    from bnprobe.diagnose import diagnose
    from bnprobe.diagnosis import Diagnosis, Finding
    from bnprobe.drift import drift
    from bnprobe.measures.growth import gradient_growth
    from bnprobe.measures.hessian import HessianEigenvalues, hessian_eigenvalues
    from bnprobe.measures.jacobian import Spectrum, spectra, spectrum
    from bnprobe.measures.landscape import LossLandscape, landscape
    from bnprobe.measures.scale_invariance import ScaleInvariance, scale_invariance
    from bnprobe.measures.shift import GradientShifts, gradient_shift
    from bnprobe.report import report
    from bnprobe.store import Run, load

_HOME = {
    "attach": "bnprobe.attach",
    "Probe": "bnprobe.attach",
    "diagnose": "bnprobe.diagnose",
    "Diagnosis": "bnprobe.diagnosis",
    "drift": "bnprobe.drift",
    "Finding": "bnprobe.diagnosis",
    "load": "bnprobe.store",
    "report": "bnprobe.report",
    "spectra": "bnprobe.measures.jacobian",
    "gradient_growth": "bnprobe.measures.growth",
    "gradient_shift": "bnprobe.measures.shift",
    "GradientShifts": "bnprobe.measures.shift",
    "hessian_eigenvalues": "bnprobe.measures.hessian",
    "HessianEigenvalues": "bnprobe.measures.hessian",
    "landscape": "bnprobe.measures.landscape",
    "LossLandscape": "bnprobe.measures.landscape",
    "scale_invariance": "bnprobe.measures.scale_invariance",
    "ScaleInvariance": "bnprobe.measures.scale_invariance",
    "spectrum": "bnprobe.measures.jacobian",
    "Spectrum": "bnprobe.measures.jacobian",
    "Run": "bnprobe.store",
}
_PARTS = {
    "distances", "errors", "evidence", "measures", "plots", "records", "remedies", "rules", "schedule", "statistics",
    "store",
}  # fmt: skip

__all__ = [
    "Diagnosis",
    "Finding",
    "GradientShifts",
    "HessianEigenvalues",
    "LossLandscape",
    "Probe",
    "Run",
    "ScaleInvariance",
    "Spectrum",
    "__version__",
    "attach",
    "diagnose",
    "drift",
    "gradient_growth",
    "gradient_shift",
    "hessian_eigenvalues",
    "landscape",
    "load",
    "report",
    "scale_invariance",
    "spectra",
    "spectrum",
]


class _Package(ModuleType):
    """Keeps ``bnprobe.drift`` the function: importing the submodule of that name would put the module there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _PARTS:
        return import_module(f"bnprobe.{name}")
    raise AttributeError(f"module 'bnprobe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_PARTS})
