"""Operators that are plain matrices, and spectra that are hard to find."""

import torch


class Matrices:
    """``[N, m, n]`` as an operator."""

    def __init__(self, matrices):
        self.matrices = matrices
        self.samples, *shape = matrices.shape
        self.shape, self.dtype, self.device = tuple(shape), matrices.dtype, matrices.device

    def matmat(self, v):
        assert v.shape[:2] == (self.samples, self.shape[1])
        return self.matrices @ v

    def rmatmat(self, u):
        assert u.shape[:2] == (self.samples, self.shape[0])
        return self.matrices.mT @ u


def with_values(values, shape, seed, dtype=torch.float64):
    """``[N, m, n]`` with the singular values ``[N, min(m, n)]`` and random vectors, in float64 rounded to ``dtype``."""
    generator = torch.Generator().manual_seed(seed)
    count, (m, n) = values.shape[1], shape

    def basis(size):
        drawn = torch.randn(len(values), size, count, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(drawn).Q

    return ((basis(m) * values.double()[:, None]) @ basis(n).mT).to(dtype)


def spectra(kind, count, samples, seed):
    """``[N, count]`` singular values, descending, each sample its own."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(samples, count, generator=generator, dtype=torch.float64)
    place = torch.arange(count, dtype=torch.float64).expand(samples, -1)
    values = {
        "uniform": lambda: drawn,
        "equal": lambda: torch.ones_like(drawn) * (1 + drawn[:, :1]),
        "few": lambda: (4 * drawn).ceil() / 4,
        "copies": lambda: torch.where(place < 9, 3.0, drawn),
        "pairs": lambda: drawn.sort(1).values[:, torch.arange(count) // 2],
        "low_rank": lambda: torch.where(place < 5, drawn + 0.5, 0.0),
        "decaying": lambda: 0.7**place * (0.5 + drawn),
        "algebraic": lambda: (0.5 + drawn) / (1 + place),
        "zero": lambda: torch.zeros_like(drawn),
        "outlier": lambda: torch.where(place < 1, 1000.0, drawn),
        "cluster": lambda: torch.where(place < 8, 2 + 1e-7 * drawn, drawn),
        "tiny": lambda: 1e-12 * drawn,
        "huge": lambda: 1e12 * drawn,
    }[kind]()
    return values.sort(1, descending=True).values
