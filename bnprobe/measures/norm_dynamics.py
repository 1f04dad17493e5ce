r"""How the norm and the direction of a scale-invariant weight move under gradient descent, by law.

A loss that does not depend on the length of a weight w has gradients orthogonal to w that shrink as 1/\|w\|
(Ioffe & Szegedy 2015, section 3.3), and everything here follows from these two. Learning rate :math:`\eta`, weight
decay :math:`\lambda`, momentum :math:`\mu`, as PyTorch's optimizers take them. Steps of one run at one rate.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnprobe.errors import ArgumentError

__all__ = [
    "adamw_equilibrium_norm",
    "angle",
    "decay_root",
    "equilibrium_angle",
    "equilibrium_norm",
    "exponential_learning_rates",
    "initial_momentum",
    "norm_square_after",
    "relaxation_time",
]

_Array = NDArray[np.float64]


def norm_square_after(
    norm_square: ArrayLike,
    grad_norm_square: ArrayLike,
    learning_rate: ArrayLike,
    weight_decay: ArrayLike = 0.0,
    inner_product: ArrayLike = 0.0,
) -> _Array:
    r"""Squared norm of a weight after one step of gradient descent without momentum, exactly.

    .. math:: \|w_{t+1}\|^2 = (1 - \eta\lambda)^2 \|w_t\|^2 + \eta^2 \|g_t\|^2
        - 2 \eta (1 - \eta\lambda) \langle w_t, g_t \rangle

    The last term is 0 for a scale-invariant loss: then without weight decay the norm can only grow. Behind batch norm
    it is what its eps leaves, :math:`\langle w, g\rangle = \sum_c \frac{\epsilon}{s_c^2 + \epsilon} \gamma_c
    \partial L/\partial\gamma_c` over the channels c, of batch variances :math:`s_c^2`. Weight decay that is added to
    the gradient and decay by :math:`\eta\lambda` beside the step are the same here; they differ with momentum.

    Args:
        norm_square: of the weight before the step.
        grad_norm_square: of the gradient there, without weight decay.
        learning_rate: eta.
        weight_decay: lambda.
        inner_product: of weight and gradient.
    """
    rate, decay, inner = (np.asarray(one, np.float64) for one in (learning_rate, weight_decay, inner_product))
    shrink = 1 - rate * decay
    kept = shrink**2 * np.asarray(norm_square, np.float64)
    after: _Array = kept + rate**2 * np.asarray(grad_norm_square, np.float64) - 2 * rate * shrink * inner
    return after


def angle(norm: ArrayLike, change_norm: ArrayLike, inner_product: ArrayLike) -> _Array:
    r"""Angle between a vector and what a change makes of it, in radians, accurate for small angles too.

    .. math:: \mathrm{atan2}\left(\sqrt{\|w\|^2 \|d\|^2 - \langle w, d\rangle^2},\;
        \|w\|^2 + \langle w, d\rangle\right)

    The cosine of w and w + d would lose an angle below the root of the rounding unit (3e-4 in float32).

    Args:
        norm: of w.
        change_norm: of d.
        inner_product: of w and d.
    """
    w, d, inner = (np.asarray(one, np.float64) for one in (norm, change_norm, inner_product))
    turned: _Array = np.arctan2(np.sqrt(np.clip((w * d) ** 2 - inner**2, 0, None)), w**2 + inner)
    return turned


def equilibrium_norm(
    sphere_gradient: ArrayLike,
    learning_rate: ArrayLike,
    weight_decay: ArrayLike,
    momentum: ArrayLike = 0.0,
) -> _Array:
    r"""Norm at which gradient noise pushes a scale-invariant weight out as fast as weight decay pulls it in.

    .. math:: \|w\|^4 = \frac{\eta G^2}{\lambda (1 - \mu) (2 - \eta\lambda / (1 + \mu))}

    with :math:`G^2 = E \|w\|^2\|g\|^2`, the mean square of the gradient that the weight would have at norm 1 (van
    Laarhoven 2017; with momentum Wan et al. 2020). Gradient descent with weight decay added to the gradient, also with
    Nesterov's momentum (there to leading order in :math:`\eta\lambda/(1-\mu)`). Gradients of different steps are taken
    as uncorrelated, rates as constant.

    Args:
        sphere_gradient: G.
        learning_rate: eta.
        weight_decay: lambda; NaN results where it is 0, for then the norm grows for ever.
        momentum: mu, heavy ball.
    """
    g, rate, decay, mu = (
        np.asarray(one, np.float64) for one in (sphere_gradient, learning_rate, weight_decay, momentum)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        fourth = rate * g**2 / (decay * (1 - mu) * (2 - rate * decay / (1 + mu)))
    norm: _Array = np.where((decay > 0) & (rate > 0), np.abs(fourth) ** 0.25, np.nan)
    return norm


def equilibrium_angle(
    learning_rate: ArrayLike,
    weight_decay: ArrayLike,
    momentum: ArrayLike = 0.0,
    *,
    nesterov: bool = False,
    decoupled: bool = False,
) -> _Array:
    r"""Root mean square of the angle by which a scale-invariant weight turns per step in equilibrium, in radians.

    .. math:: \sqrt{\frac{2\eta\lambda}{1+\mu}}, \qquad
        \text{Nesterov: } \sqrt{\frac{2\eta\lambda (1 + 2\mu - 2\mu^3)}{1+\mu}}, \qquad
        \text{decoupled: } \sqrt{2\eta\lambda\frac{1-\mu}{1+\mu}}

    Neither the data nor the architecture has a say. Heavy ball: Wan et al. 2020; decoupled decay with Adam's first
    moment (:math:`\mu = \beta_1`): Kosson et al. 2023. Nesterov's is ours, by their argument: of the weights
    :math:`c_k` that a gradient has in the update k steps later, :math:`\sum c_k` sets the norm and
    :math:`\sum c_k^2` the step. All to leading order in :math:`\eta\lambda / (1 - \mu)`.

    Args:
        learning_rate: eta.
        weight_decay: lambda; NaN results where it is 0.
        momentum: mu.
        nesterov: Nesterov's momentum as PyTorch has it; not with decoupled decay.
        decoupled: decay beside the step (AdamW) rather than added to the gradient.

    Raises:
        ArgumentError: both ``nesterov`` and ``decoupled``.
    """
    if nesterov and decoupled:
        raise ArgumentError("nesterov and decoupled: there is no law for both")
    rate, decay, mu = (np.asarray(one, np.float64) for one in (learning_rate, weight_decay, momentum))
    factor = 1 + 2 * mu - 2 * mu**3 if nesterov else 1 - mu if decoupled else np.ones_like(mu)
    square = 2 * rate * decay * factor / (1 + mu)
    turn: _Array = np.where((decay > 0) & (rate > 0), np.sqrt(np.abs(square)), np.nan)
    return turn


def adamw_equilibrium_norm(size: ArrayLike, learning_rate: ArrayLike, weight_decay: ArrayLike) -> _Array:
    r"""Norm of a scale-invariant weight in equilibrium under AdamW, :math:`\sqrt{\eta C / (2\lambda)}`.

    Adam's steps have entries of about mean square 1 whatever the gradient, so that C, the number of the weight's
    entries, takes the place of the gradient (Kosson et al. 2023). Gradients of different steps are taken as
    uncorrelated, rates as constant.

    Args:
        size: C.
        learning_rate: eta.
        weight_decay: lambda; NaN results where it is 0.
    """
    entries, rate, decay = (np.asarray(one, np.float64) for one in (size, learning_rate, weight_decay))
    with np.errstate(divide="ignore", invalid="ignore"):
        norm: _Array = np.where((decay > 0) & (rate > 0), np.sqrt(rate * entries / (2 * decay)), np.nan)
    return norm


def relaxation_time(learning_rate: float, weight_decay: float, momentum: float = 0.0) -> float:
    r"""Steps in which the fourth power of the norm comes nearer to its equilibrium by a factor e.

    :math:`(1 - \mu) / (4 \eta\lambda)`, to leading order: of :math:`\frac{d}{dt}\|w\|^2 = -2 k \|w\|^2 +
    \mathrm{const}/\|w\|^2` with :math:`k = \eta\lambda/(1-\mu)`. The direction forgets in :math:`1/(\eta\lambda)`
    steps and more (Li, Lyu & Arora 2020).

    Raises:
        ArgumentError: a rate or the decay is not positive, or the momentum is not in [0, 1).
    """
    _check(learning_rate, weight_decay, momentum)
    return (1 - momentum) / (4 * learning_rate * weight_decay)


def decay_root(learning_rate: float, weight_decay: float, momentum: float = 0.0) -> float:
    r"""Factor by which weight decay alone shrinks a weight per step in the long run.

    The root near 1 of :math:`x^2 - (1 + \mu - \eta\lambda) x + \mu = 0` (Li & Arora 2020); :math:`1 - \eta\lambda`
    without momentum.

    Raises:
        ArgumentError: a rate or the decay is not positive, the momentum is not in [0, 1), or the decay is so strong
            that the weight oscillates: then there is no real root, and no equivalent schedule.
    """
    _check(learning_rate, weight_decay, momentum)
    middle = 1 + momentum - learning_rate * weight_decay
    under = middle**2 - 4 * momentum
    if middle <= 0 or under < 0:
        raise ArgumentError(
            f"learning_rate * weight_decay must be at most {(1 - math.sqrt(momentum)) ** 2:.3g} at momentum "
            f"{momentum:g}; got {learning_rate * weight_decay:g}"
        )
    return (middle + math.sqrt(under)) / 2


def exponential_learning_rates(steps: int, learning_rate: float, weight_decay: float, momentum: float = 0.0) -> _Array:
    r"""Rates without weight decay that turn a scale-invariant weight exactly as weight decay at a constant rate does.

    :math:`\tilde\eta_t = \eta\,\alpha^{-2t-1}` with :math:`\alpha` of :func:`decay_root` (Li & Arora 2020): the weight
    itself is then :math:`\alpha^{-t}` times as long. With momentum the run must begin with the buffer of
    :func:`initial_momentum`.

    Args:
        steps: T.
        learning_rate: eta, constant.
        weight_decay: lambda, added to the gradient.
        momentum: mu, heavy ball without dampening; the same in both runs.

    Returns:
        ``[T]`` rates.

    Raises:
        ArgumentError: as for :func:`decay_root`.
    """
    root = decay_root(learning_rate, weight_decay, momentum)
    rates: _Array = learning_rate * np.power(root, -2.0 * np.arange(steps, dtype=np.float64) - 1)
    return rates


def initial_momentum(learning_rate: float, weight_decay: float, momentum: float) -> float:
    r"""What the momentum buffer of the run of :func:`exponential_learning_rates` begins with, in units of the weight.

    :math:`b_0 = -\frac{1 - \alpha}{\eta\alpha} w_0`, where the run with weight decay begins with none; else its own
    buffer is added. By it, the first step too is :math:`u_1 = w_1 / \alpha`: from the second on, both runs obey one
    recursion in two past weights, which needs both to agree (ours, from the recursion of Li & Arora 2020).

    Raises:
        ArgumentError: as for :func:`decay_root`.
    """
    root = decay_root(learning_rate, weight_decay, momentum)
    return -(1 - root) / (learning_rate * root)


def _check(learning_rate: float, weight_decay: float, momentum: float) -> None:
    if not (learning_rate > 0 and weight_decay > 0 and 0 <= momentum < 1):
        raise ArgumentError(
            "learning_rate and weight_decay must be positive and momentum in [0, 1); got "
            f"{learning_rate!r}, {weight_decay!r}, {momentum!r}"
        )
