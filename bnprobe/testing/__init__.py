"""Property-based checks of the laws of normalization, for layers and models that one writes oneself.

``check_norm_layer`` and ``norm_layer_checks`` hold a layer against all laws of its kind; ``strategies``, ``properties``
and ``oracles`` are the building blocks. Needs the extra ``testing``.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401 - the check itself
except ImportError as error:
    raise ImportError("bnprobe.testing needs hypothesis: pip install 'bnprobe[testing]'") from error

from bnprobe.testing import layers, oracles, properties, strategies
from bnprobe.testing.conformance import Check, Conformance, check_norm_layer, checks_of, norm_layer_checks
from bnprobe.testing.likes import Settings
from bnprobe.testing.subject import Subject

__all__ = [
    "Check",
    "Conformance",
    "Settings",
    "Subject",
    "check_norm_layer",
    "checks_of",
    "layers",
    "norm_layer_checks",
    "oracles",
    "properties",
    "strategies",
]
