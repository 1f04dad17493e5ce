"""Narrow dtypes, and values that a careless formula loses."""

from dataclasses import replace

import torch
from hypothesis import strategies as st

from bnprobe.testing.inputs import Inputs
from bnprobe.testing.oracles.reference import wide
from bnprobe.testing.properties.broken import NotApplicable, compare, require
from bnprobe.testing.properties.registry import law
from bnprobe.testing.strategies.batch import Batch
from bnprobe.testing.subject import Specimen, Subject

__all__ = ["dtype_and_device_kept", "half_precision", "large_mean_small_variance"]


@law(x=Inputs(("offset",), values=4))
def large_mean_small_variance(subject: Subject, x: Batch) -> None:
    """A large mean with a small variance costs digits in proportion to mean / sigma, not to its square.

    The one-pass variance, mean(x^2) - mean(x)^2, cancels; two passes or an updating formula do not.
    """
    one = subject.specimen(x)
    compare("output", one.module(one.x), one.law.y, one.tolerance.output, one.tolerance.why)


@law(x=Inputs(), training=st.booleans())
def dtype_and_device_kept(subject: Subject, x: Batch, training: bool) -> None:
    """Output and gradients have the dtype and device of the input and of the parameters."""
    one = subject.specimen(x, training=training)
    y = one.module(one.x)
    require(y.dtype == one.x.dtype, f"the output of a {one.x.dtype} input has the dtype {y.dtype}")
    require(y.device == one.x.device, f"the output of an input on {one.x.device} is on {y.device}")
    for buffer, start in zip(one.module.buffers(), subject.specimen(x).module.buffers(), strict=True):
        require(buffer.dtype == start.dtype, f"a buffer of dtype {start.dtype} has become {buffer.dtype}")


@law(
    x=Inputs(("gaussian", "outlier"), dtypes=("float32",), values=4),
    dtype=st.sampled_from(("bfloat16", "float16")),
    shift=st.sampled_from((0.0, 8.0)),
    typical={"dtype": ("bfloat16", "float16"), "shift": (0.0, 8.0)},
)
def half_precision(subject: Subject, x: Batch, dtype: str, shift: float) -> None:
    """A half-precision input has statistics of single precision, and the output is rounded once or twice.

    The layer keeps single-precision parameters where it takes such an input, else it is cast too. Running statistics
    stay in single precision. Broken by sums in half precision.
    """
    value = (replace(x, dtype="float64").tensor(subject.device) + shift).to(getattr(torch, dtype))
    one = _half(subject, value, x.seed)
    compare("output", one.module(one.x), one.law.y, one.tolerance.output, f"and 2 u of {dtype}, {one.tolerance.why}")
    after = one.parts.state()
    if one.parts.mean is not None and one.parts.mean.dtype == torch.float32 and after.mean is not None:
        want = replace(one, x=wide(one.x))
        again = subject.specimen(want.x.float(), seed=x.seed)
        again.module(again.x)
        state = again.parts.state()
        size = float(want.x.abs().max()) + 1
        bound = 2 * (one.x.numel() // one.x.shape[1] + 8) * one.tolerance.u
        if state.mean is not None and state.variance is not None and after.variance is not None:
            compare("running mean", after.mean, state.mean, bound * size, "(m + 8) u max|x| of single precision")
            compare("running variance", after.variance, state.variance, bound * size**2, "(m + 8) u max|x|^2")


def _half(subject: Subject, value: torch.Tensor, seed: int) -> Specimen:
    one = subject.specimen(value, seed=seed)
    refusal: Exception | None = None
    for cast in (False, True):
        if cast:
            one = subject.specimen(value, seed=seed)
            one = replace(one, module=one.module.to(value.dtype))
            one = replace(one, state=one.parts.state())
        before = {name: buffer.clone() for name, buffer in one.module.named_buffers()}
        try:
            one.module(one.x)
        except RuntimeError as error:
            refusal = error
            continue
        with torch.no_grad():
            for name, buffer in one.module.named_buffers():
                buffer.copy_(before[name])
        return one
    raise NotApplicable(f"the layer does not take {value.dtype}: {refusal}")
