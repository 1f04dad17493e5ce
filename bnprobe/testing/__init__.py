"""Property-based checks of the laws of normalization, for layers and models that one writes oneself.

``check_norm_layer`` and ``norm_layer_checks`` hold a layer against all laws of its kind, ``check_model`` and
``model_checks`` a model; ``pitfalls`` are laws of what batches do to batch norm. ``strategies``, ``properties``,
``models`` and ``oracles`` are the building blocks. Needs the extra ``testing``.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401 - the check itself
except ImportError as error:
    raise ImportError("bnprobe.testing needs hypothesis: pip install 'bnprobe[testing]'") from error

from bnprobe.testing import layers, models, oracles, pitfalls, properties, strategies
from bnprobe.testing.conformance import Check, Conformance, check_norm_layer, checks_of, norm_layer_checks
from bnprobe.testing.likes import Settings
from bnprobe.testing.model_checks import check_model, checks_of_models, model_checks
from bnprobe.testing.models import Model
from bnprobe.testing.subject import Subject

__all__ = [
    "Check",
    "Conformance",
    "Model",
    "Settings",
    "Subject",
    "check_model",
    "check_norm_layer",
    "checks_of",
    "checks_of_models",
    "layers",
    "model_checks",
    "models",
    "norm_layer_checks",
    "oracles",
    "pitfalls",
    "properties",
    "strategies",
]
