"""What typically breaks a law, where its docstring does not say it after the words "Broken by"."""

__all__ = ["TYPICAL_BUGS"]

TYPICAL_BUGS = {
    "autocast": "statistics computed in the dtype that autocast chose.",
    "batch_mates_do_not_matter": "statistics of the batch in evaluation mode.",
    "batches_counted": "a counter that is never touched, or that counts evaluation too.",
    "buffers_frozen_in_evaluation": "an update that does not ask for the mode.",
    "channel_order": "parameters indexed by something other than the channel; groups that straddle channels.",
    "channels_independent": "statistics over the wrong axes; a NaN that is replaced by a number of all channels.",
    "compiled": "a Python number kept on the module, which the compiled graph fixes.",
    "copied": "running statistics kept in a plain list, or shared through a default argument.",
    "deterministic": "a state that the forward keeps beside its buffers; noise from the global stream.",
    "dtype_and_device_kept": "an output of the statistics' dtype.",
    "empty_batch": "a mean over nothing that goes into the buffers as NaN.",
    "evaluation_uses_running_statistics": "batch statistics in evaluation mode; eps left out or added twice there.",
    "functional": "parameters or buffers that are reached by a reference of their own, and not by name.",
    "gradcheck": "a backward of one's own that leaves out the statistics' part.",
    "gradgradcheck": "a backward of one's own that is not differentiable itself, and says nothing.",
    "input_not_written": "an in-place subtraction of the mean.",
    "large_mean_small_variance": "the variance as mean of squares minus square of the mean, in one pass.",
    "layout_does_not_matter": "a view() or a kernel that takes the memory for contiguous; a count of another axis.",
    "momentum_zero_keeps_buffers": "a test of truth, `if momentum`, that takes 0 for None.",
    "one_value": "an unbiased variance that divides by m - 1 = 0.",
    "position_order": "statistics of each position by itself.",
    "sample_order": "a state that is carried from sample to sample.",
    "samuelson_bound": "a normalizing variance that is too small: a trimmed one, or running statistics.",
    "sign_flip": "a gradient or scale that takes absolute values.",
    "standardised_output": "an unbiased normalizing variance; eps outside of the root; scale applied before centring.",
    "translation_invariance": "a missing or partial centring.",
    "vectorised": "branches on values, or in-place updates of buffers that are not batched.",
    "weight_scale": "statistics detached from the graph, or of another batch.",
}
