"""Laws of normalization that a whole model obeys: one family a file, each a function ``(model, x)``.

Called with a :class:`bnprobe.testing.models.Model` and an input of one's own, or put to many inputs by
:func:`bnprobe.testing.check_model`. They raise :class:`bnprobe.errors.LawBrokenError`.
"""

from bnprobe.testing.models.buffers import batch_statistics_once, evaluation_changes_nothing
from bnprobe.testing.models.evaluation import batch_mates, batch_size, order_of_samples, pooled_moments
from bnprobe.testing.models.model import Model
from bnprobe.testing.models.registry import MODEL_LAWS
from bnprobe.testing.models.ways import checkpointed, compiled_model, spectra_finite
from bnprobe.testing.models.weights import scale_invariant_weights

__all__ = [
    "MODEL_LAWS",
    "Model",
    "batch_mates",
    "batch_size",
    "batch_statistics_once",
    "checkpointed",
    "compiled_model",
    "evaluation_changes_nothing",
    "order_of_samples",
    "pooled_moments",
    "scale_invariant_weights",
    "spectra_finite",
]
