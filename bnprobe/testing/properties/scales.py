"""What a factor does to the input, and to the weights before it."""

from dataclasses import replace

import torch

from bnprobe.testing.inputs import Inputs
from bnprobe.testing.likes import Like
from bnprobe.testing.oracles.reference import wide
from bnprobe.testing.properties.broken import compare
from bnprobe.testing.properties.registry import law
from bnprobe.testing.strategies.batch import Batch, tensor
from bnprobe.testing.strategies.scales import scales
from bnprobe.testing.subject import Subject
from bnprobe.testing.tolerance import roundoff

__all__ = ["scale_law", "sign_flip", "translation_invariance", "weight_scale"]

_SCALED: tuple[Like, ...] = (
    "batch_norm", "ghost_batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"
)  # fmt: skip


@law(likes=_SCALED, x=Inputs(dtypes="widest"), a=scales(), typical={"a": (-3.0, 0.01)})
def scale_law(subject: Subject, x: Batch, a: float) -> None:
    """With y = gamma x_hat + beta, x_hat(a x) = r(a) x_hat(x), where r(a) = a sqrt((s^2 + eps) / (a^2 s^2 + eps)).

    Only for eps = 0 is a layer invariant to a > 0. Broken by eps outside the root, added twice or left out, and by a
    clamp in its place.
    """
    one = subject.specimen(x)
    scaled = subject.specimen(a * tensor(x, subject.device), seed=x.seed)
    values, split = one.law.values, one.law.rows.split
    beta = values.y - values.gamma * values.x_hat
    eps = one.settings.eps
    ratio = a * ((values.variance + eps) / (a**2 * values.variance + eps)).sqrt()
    want = ratio * (split(wide(one.module(one.x))) - beta)
    got = split(wide(scaled.module(scaled.x))) - beta
    bound = split(scaled.tolerance.output) + ratio.abs() * split(one.tolerance.output)
    compare("gamma x_hat(a x)", got, want, bound, f"of both outputs, {scaled.tolerance.why}")


@law(likes=_SCALED, x=Inputs(dtypes="widest"))
def sign_flip(subject: Subject, x: Batch) -> None:
    """BN(-x) = 2 beta - BN(x), for every eps."""
    one = subject.specimen(x)
    flipped = subject.specimen(-tensor(x, subject.device), seed=x.seed)
    join = one.law.rows.join
    beta = join(one.law.values.y - one.law.values.gamma * one.law.values.x_hat)
    want = 2 * beta - wide(one.module(one.x))
    compare("output at -x", flipped.module(flipped.x), want, 2 * one.tolerance.output, f"twice, {one.tolerance.why}")


@law(
    likes=tuple(like for like in _SCALED if like != "rms_norm"),
    x=Inputs(dtypes="widest"),
    shift=scales(1e-2, 1e2),
    typical={"shift": (3.0,)},
)
def translation_invariance(subject: Subject, x: Batch, shift: float) -> None:
    """BN(x + c) = BN(x) for a constant c in what is normalized together: a bias before the layer has no effect."""
    one = subject.specimen(x)
    values = tensor(x, subject.device)
    amount = torch.tensor(shift).to(values)
    if one.settings.like in ("batch_norm", "ghost_batch_norm", "instance_norm"):  # each channel its own
        amount = shift * (1 + torch.arange(values.shape[1]).to(values)).reshape(-1, *[1] * (values.ndim - 2))
    moved = subject.specimen(values + amount, seed=x.seed)
    bound = one.tolerance.output + moved.tolerance.output
    compare("output at x + c", moved.module(moved.x), wide(one.module(one.x)), bound, f"of both, {moved.tolerance.why}")


@law(
    likes=("batch_norm", "ghost_batch_norm", "instance_norm"),
    u=Inputs(("integers", "gaussian"), dtypes="widest", values=3),
    a=scales(0.05, 20, negative=False),
    typical={"a": (3.0, 0.1)},
)
def weight_scale(subject: Subject, u: Batch, a: float) -> None:
    """BN(aWu) = BN(Wu), dBN((aW)u)/du = dBN(Wu)/du and dBN((aW)u)/d(aW) = (1/a) dBN(Wu)/dW, for eps = 0 and a > 0.

    For every eps all three hold exactly with eps / a^2 in place of eps on the right (Ioffe & Szegedy 2015, section 3.3,
    have eps = 0). The weights are those of a convolution of size 1, as many channels in as out.
    """
    base = tensor(u, subject.device)
    channels = base.shape[1]
    weight = torch.randn(channels, channels, generator=torch.Generator().manual_seed(u.seed)).to(base)
    weight = (weight + 2 * torch.eye(channels).to(base)).requires_grad_()
    leaf = base.clone().requires_grad_()
    hidden = torch.einsum("dc,nc...->nd...", a * weight, leaf)
    one = subject.specimen(hidden.detach(), seed=u.seed)
    y = one.module(hidden)
    g = one.cotangent(u.seed)
    got_u, got_weight = torch.autograd.grad(y, [leaf, weight], g)
    # The law at W and eps / a^2, by the oracle.
    plain = one.law_at(hidden / a, replace(one.settings, eps=one.settings.eps / a**2))
    of_hidden = plain.gradients(g).x
    want_u = torch.einsum("dc,nd...->nc...", wide(weight), of_hidden)
    axes = [0, *range(2, base.ndim)]
    want_weight = torch.tensordot(of_hidden, wide(base), dims=(axes, axes))
    compare("output", y, plain.y, one.tolerance.output, one.tolerance.why)
    rounding, n = roundoff(one.x.dtype) * of_hidden.abs(), base.numel() // channels
    off, why = a * one.tolerance.input_gradient(g), one.tolerance.why
    bound = torch.einsum("dc,nd...->nc...", wide(weight).abs(), off + (channels + 2) * rounding)
    compare("gradient of u", got_u, want_u, bound, f"|W|' times those of dL/dx, {why}")
    total = torch.tensordot(off + (n + 2) * rounding, wide(base).abs(), dims=(axes, axes))
    # Autograd's gradient is of W; that of aW is 1/a of it.
    compare("gradient of aW", got_weight / a, want_weight / a, total / a, f"|u|' times those of dL/dx, {why}")
