"""Cures of normalization's diseases that are code: each changes what it says, or makes a copy."""

from bnprobe.remedies.folding import fold
from bnprobe.remedies.freezing import freeze, is_frozen, unfreeze
from bnprobe.remedies.group_norms import to_group_norm
from bnprobe.remedies.momentum import momentum_for
from bnprobe.remedies.recalibrated import RecalibratedLayer, Recalibration
from bnprobe.remedies.recalibration import recalibrate

__all__ = [
    "RecalibratedLayer",
    "Recalibration",
    "fold",
    "freeze",
    "is_frozen",
    "momentum_for",
    "recalibrate",
    "to_group_norm",
    "unfreeze",
]
