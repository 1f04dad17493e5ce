"""How much of an average of weights is still where it started."""

from torch import Tensor

from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Fact
from bnprobe.measures.evidence.patient import Patient

__all__ = ["measure"]


def measure(patient: Patient) -> list[Fact]:
    """``horizon_reached``: share of the average that comes from updates, ``1 - decay ** updates``.

    With them ``ema_decay`` and ``ema_updates``. PyTorch's ``AveragedModel`` counts its updates itself.
    """
    decay, updates = patient.given.ema_decay, patient.given.ema_updates
    counted = getattr(patient.model, "n_averaged", None)
    if updates is None and isinstance(counted, Tensor) and counted.numel() == 1:
        updates = int(counted)
    if decay is None or updates is None:
        missing = [name for name, value in (("ema_decay=", decay), ("ema_updates=", updates)) if value is None]
        raise NotMeasuredError(f"needs {' and '.join(missing)}")
    if not 0 <= decay <= 1 or updates < 0:
        raise NotMeasuredError(f"ema_decay must lie in 0 ... 1 and ema_updates at 0 or above; got {decay}, {updates}")
    return [
        Fact("ema_decay", float(decay)),
        Fact("ema_updates", float(updates)),
        Fact("horizon_reached", float(1 - decay**updates)),
    ]
