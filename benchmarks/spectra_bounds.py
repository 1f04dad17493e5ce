"""Whether stated errors hold, and how loose they are, on small layers and networks that hypothesis draws."""

from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bnprobe
from benchmarks.models import Block
from benchmarks.spectra_reference import jacobian

__all__ = ["bounds"]

_EPS = np.finfo(np.float64).eps


def bounds(cases: int = 1000) -> dict[str, Any]:
    """Values outside of their bounds, and the median of bound over error.

    Where the error is within what the reference (an SVD in double precision) may be off itself, no ratio is taken.
    """
    kept: list[tuple[str, int, int, np.ndarray]] = []
    broken: list[str] = []

    # Only what is generated counts, and nothing is kept between runs.
    @settings(
        max_examples=cases, derandomize=True, database=None, deadline=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(_KINDS), st.integers(0, 2**31), st.integers(-2, 2), st.booleans(), st.booleans())
    def each(kind: Any, seed: int, power: int, ends: bool, double: bool) -> None:
        torch.manual_seed(seed)
        model, x = kind(int(torch.randint(1, 7, ())), 10.0**power)
        if double:
            model, x = model.double(), x.double()
        options: dict[str, Any] = {"k": (2, 1), "method": "Lanczos"} if ends else {}
        try:
            found = bnprobe.spectrum(model, x, **options)
        except bnprobe.errors.NotMeasuredError:
            return  # says so: no number that could be wrong
        truth = _truth(model.double(), x.double(), found)
        off, own = np.abs(found.values - truth), 64 * _EPS * truth[:, :1]
        outside = int((off > found.error + own).sum())
        if outside:
            broken.append(f"{kind.__name__} seed {seed} 10^{power} ends={ends} double={double}")
        seen = off > own
        kept.append((found.method, off.size, outside, found.error[seen] / off[seen]))

    each()
    result: dict[str, Any] = {"drawn": cases, "measured": len(kept), "outside": len(broken), "which": broken[:20]}
    for method in sorted({one[0] for one in kept}):
        some = [one for one in kept if one[0] == method]
        ratios = np.concatenate([one[3] for one in some])
        result[method] = {
            "measured": len(some),
            "values": sum(one[1] for one in some),
            "values_outside": sum(one[2] for one in some),
            "bound_over_error": float(np.median(ratios)) if ratios.size else None,
        }
    ratios = np.concatenate([one[3] for one in kept])
    median = float(np.median(ratios)) if ratios.size else None
    return result | {
        "bound_over_error": median,
        "target": 100,
        "within": not broken and (median is None or median <= 100),
    }


def _truth(model: nn.Module, x: Tensor, found: bnprobe.Spectrum) -> np.ndarray:
    matrix = jacobian(model, x)
    if len(found.values) == 1:
        values = torch.linalg.svdvals(matrix)[None]
    else:
        each = matrix.view(len(x), -1, *x.shape).flatten(3)
        values = torch.linalg.svdvals(torch.stack([each[i, :, i] for i in range(len(x))]))
    k = values.shape[1]
    if found.complete:
        return values.numpy()
    largest, smallest = found.which
    return values[:, [*range(largest), *range(k - smallest, k)]].numpy()


def _linear(n: int, scale: float) -> tuple[nn.Module, Tensor]:
    layer = nn.Linear(4 * n, 5)
    nn.init.normal_(layer.weight, 0, scale)
    return layer, torch.randn(2, 4 * n)


def _convolution(n: int, scale: float) -> tuple[nn.Module, Tensor]:
    layer = nn.Conv2d(2, 3, 3, padding=1, stride=1 + n % 2)
    return layer, scale * torch.randn(2, 2, n + 2, n + 2)


def _batch_norm(n: int, scale: float) -> tuple[nn.Module, Tensor]:
    layer = nn.BatchNorm1d(n)
    nn.init.normal_(layer.weight)
    return layer, scale * torch.randn(n + 2, n)


def _layer_norm(n: int, scale: float) -> tuple[nn.Module, Tensor]:
    layer = nn.LayerNorm(4 * n)
    nn.init.normal_(layer.weight)
    return layer, scale * torch.randn(3, 4 * n)


def _group_norm(n: int, scale: float) -> tuple[nn.Module, Tensor]:
    layer = nn.GroupNorm(2, 4)
    nn.init.normal_(layer.weight)
    return layer, scale * torch.randn(2, 4, n + 1)


def _pooling(n: int, scale: float) -> tuple[nn.Module, Tensor]:
    return nn.AvgPool2d(3, 2, 1), scale * torch.randn(2, 2, n + 2, n + 2)


def _pointwise(n: int, scale: float) -> tuple[nn.Module, Tensor]:
    return (nn.ReLU(), nn.Tanh(), nn.GELU(), nn.SiLU())[n % 4], scale * torch.randn(3, 5 * n)


def _network(n: int, scale: float) -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = []
    for _ in range(n):
        layers += [nn.Linear(12, 12), nn.LayerNorm(12), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(12, 8)), scale * torch.randn(3, 12)


def _normalized_network(n: int, scale: float) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Linear(8, 5)), scale * torch.randn(
        n + 2, 6
    )


def _residual(n: int, scale: float) -> tuple[nn.Module, Tensor]:
    return Block(3, 4, 1 + n % 2).eval(), scale * torch.randn(2, 3, n + 2, n + 2)


def _encoder(n: int, scale: float) -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="gelu")
    return layer, scale * torch.randn(2, n + 1, 8)


_KINDS = (
    _linear, _convolution, _batch_norm, _layer_norm, _group_norm, _pooling, _pointwise,
    _network, _normalized_network, _residual, _encoder,
)  # fmt: skip
