"""What a gradient that went through the layer is orthogonal to, and the spectrum of the layer."""

import torch
from hypothesis import strategies as st

from bnprobe.testing.inputs import Inputs
from bnprobe.testing.likes import LIKES, Like
from bnprobe.testing.oracles.reference import wide
from bnprobe.testing.oracles.spectrum import singular_values_of_rows
from bnprobe.testing.properties.broken import compare
from bnprobe.testing.properties.registry import law
from bnprobe.testing.strategies.batch import Batch
from bnprobe.testing.strategies.kinds import PLAIN
from bnprobe.testing.subject import Specimen, Subject

__all__ = ["gradient_null_space", "jacobian_spectrum", "samples_coupled"]

_OWN: tuple[Like, ...] = tuple(like for like in LIKES if like != "batch_renorm")


@law(likes=_OWN, x=Inputs(dtypes="widest"))
def gradient_null_space(subject: Subject, x: Batch) -> None:
    """What comes back sums to 0, and its product with x is (eps / (s^2 + eps)) sum(g gamma x_hat): 0 for eps = 0.

    Both over what is normalized together. So a bias before the layer has no gradient, and weights before it are
    orthogonal to theirs up to eps. Broken by statistics detached from the graph, by a missing 1/m in the backward.
    """
    one = subject.specimen(x)
    values, split = one.law.values, one.law.rows.split
    g = one.cotangent(x.seed)
    y = one.module(one.x)
    got = split(wide(torch.autograd.grad(y, one.x, g)[0]))
    bound = split(one.tolerance.input_gradient(g))
    if one.settings.like != "rms_norm":
        compare("sum of dL/dx", got.sum(1), torch.zeros(len(got)), bound.sum(1), f"summed, {one.tolerance.why}")
    beta = values.y - values.gamma * values.x_hat
    want = one.settings.eps / values.sigma[:, 0] ** 2 * (split(wide(g)) * (split(wide(y)) - beta)).sum(1)
    centred = split(wide(one.x)) - values.mean
    product = (centred * got).sum(1)
    allowed = (centred.abs() * bound).sum(1) + (split(wide(g)).abs() * split(one.tolerance.output)).sum(1)
    compare("<x - mu, dL/dx>", product, want, allowed, f"of dL/dx times |x - mu|, {one.tolerance.why}")


@law(
    x=Inputs((*PLAIN, "constant_channels"), dtypes="widest", largest=24),
    training=st.booleans(),
    at_most=10,
)
def jacobian_spectrum(subject: Subject, x: Batch, training: bool) -> None:
    """The Jacobian has, per row, the singular values 0, |gamma| eps / sigma^3 and m - 2 times |gamma| / sigma.

    In evaluation mode all are |gamma| / sqrt(r_v + eps). Where gamma varies within a row (layer norm) they are those of
    diag(gamma)(I - 11'/m - x_hat x_hat'/m) / sigma. Broken by everything that makes a gradient wrong, and by a gradient
    that stops at a statistic.
    """
    one = subject.specimen(x, training=training)
    matrix, split = _jacobian(one), one.law.rows.split
    place = split(torch.arange(len(matrix)).reshape(one.x.shape))
    inside = (place[:, :, None], place[:, None, :])
    each = one.tolerance.input_gradient(torch.ones_like(one.x))
    between = matrix.index_put(inside, matrix.new_zeros(()))
    compare("entries between rows", between, torch.zeros_like(matrix), each.reshape(1, -1), one.tolerance.why)
    # Weyl: no value is off by more than the norm of the error. Each of the m gradients of a row is off by what one of
    # all ones is at most.
    error = split(each).norm(dim=1, keepdim=True) * place.shape[1] ** 0.5
    got, want = torch.linalg.svdvals(matrix[inside]), singular_values_of_rows(one.law)
    compare("singular values", got, want, error, f"Weyl's inequality, {one.tolerance.why}")


def _jacobian(one: Specimen) -> torch.Tensor:
    """Row by row, as a backward of one's own may know no batched gradients."""
    y = one.module(one.x)
    rows = []
    for place in range(y.numel()):
        g = torch.zeros(y.numel()).to(y)
        g[place] = 1
        (row,) = torch.autograd.grad(y, one.x, g.reshape(y.shape), retain_graph=True)
        rows.append(wide(row).reshape(-1))
    return torch.stack(rows)


@law(
    likes=("batch_norm", "ghost_batch_norm"),
    x=Inputs(dtypes="widest", samples=(2, 6), values=3),
)
def samples_coupled(subject: Subject, x: Batch) -> None:
    """In training mode samples act on each other: dy_i/dx_j = -(gamma / (m sigma))(1 + x_hat_i x_hat_j) for i not j.

    Broken by statistics that are detached from the graph, or of each sample alone.
    """
    one = subject.specimen(x)
    y = one.module(one.x)
    g = torch.zeros_like(y)
    g[0, 0] = 1  # all positions of the first sample, in the first channel
    (got,) = torch.autograd.grad(y, one.x, g)
    bound = one.tolerance.input_gradient(g)
    compare("dy_0/dx_j", got[1:], one.law.gradients(g).x[1:], bound[1:], one.tolerance.why)
