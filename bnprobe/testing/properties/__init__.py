"""The laws of normalization as properties: one family a file, each a function ``(subject, **example)``.

A property is called with a :class:`bnprobe.testing.Subject` and an example of one's own, or put to many examples by
:func:`bnprobe.testing.check_norm_layer`. It raises :class:`bnprobe.errors.LawBrokenError`.
"""

from bnprobe.testing.properties.buffers import (
    batches_counted,
    buffers_frozen_in_evaluation,
    cumulative_average_without_momentum,
    evaluation_uses_running_statistics,
    momentum_zero_keeps_buffers,
    running_statistics,
)
from bnprobe.testing.properties.copies import copied, state_dict_round_trip
from bnprobe.testing.properties.degenerate import constant_channels, empty_batch, one_value
from bnprobe.testing.properties.folding import evaluation_folds_into_weights
from bnprobe.testing.properties.independence import (
    batch_mates_do_not_matter,
    channel_order,
    channels_independent,
    position_order,
    sample_order,
)
from bnprobe.testing.properties.memory import input_not_written, layout_does_not_matter, stride_of_one_sample
from bnprobe.testing.properties.moments import samuelson_bound, shape_of_distribution_kept, standardised_output
from bnprobe.testing.properties.null_space import gradient_null_space, jacobian_spectrum, samples_coupled
from bnprobe.testing.properties.numerical_derivatives import gradcheck, gradgradcheck
from bnprobe.testing.properties.oracle import (
    gradients_equal_oracle,
    output_equals_oracle,
    second_derivatives_equal_oracle,
)
from bnprobe.testing.properties.precision import dtype_and_device_kept, half_precision, large_mean_small_variance
from bnprobe.testing.properties.ranks import ranks_are_one_batch
from bnprobe.testing.properties.registry import LAWS, Law, law
from bnprobe.testing.properties.scales import scale_law, sign_flip, translation_invariance, weight_scale
from bnprobe.testing.properties.ways import autocast, compiled, deterministic, functional, vectorised

__all__ = [
    "LAWS",
    "Law",
    "autocast",
    "batch_mates_do_not_matter",
    "batches_counted",
    "buffers_frozen_in_evaluation",
    "channel_order",
    "channels_independent",
    "compiled",
    "constant_channels",
    "copied",
    "cumulative_average_without_momentum",
    "deterministic",
    "dtype_and_device_kept",
    "empty_batch",
    "evaluation_folds_into_weights",
    "evaluation_uses_running_statistics",
    "functional",
    "gradcheck",
    "gradgradcheck",
    "gradient_null_space",
    "gradients_equal_oracle",
    "half_precision",
    "input_not_written",
    "jacobian_spectrum",
    "large_mean_small_variance",
    "law",
    "layout_does_not_matter",
    "momentum_zero_keeps_buffers",
    "one_value",
    "output_equals_oracle",
    "position_order",
    "ranks_are_one_batch",
    "running_statistics",
    "sample_order",
    "samples_coupled",
    "samuelson_bound",
    "scale_law",
    "second_derivatives_equal_oracle",
    "shape_of_distribution_kept",
    "sign_flip",
    "standardised_output",
    "state_dict_round_trip",
    "stride_of_one_sample",
    "translation_invariance",
    "vectorised",
    "weight_scale",
]
