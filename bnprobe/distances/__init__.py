"""How far apart two distributions are, from what a record keeps of them.

From the quantile grid: :class:`Wasserstein`, :class:`KolmogorovSmirnov`, :class:`Energy`, :class:`JensenShannon`,
:class:`PopulationStability`. From mean and variance, as between Gaussians: :class:`GaussianWasserstein`,
:class:`KullbackLeibler`, :class:`Hellinger`. Each says what it needs and obeys, and how far its value may be off.

Examples:
    >>> import numpy as np
    >>> values = np.linspace(-1, 1, 1001)
    >>> before, after = Summary.of(values), Summary.of(values + 0.5)
    >>> float(Wasserstein()(before, after).round(3))
    0.5
"""

from bnprobe.distances.base import Distance, Summary
from bnprobe.distances.energy import Energy
from bnprobe.distances.gaussian_wasserstein import GaussianWasserstein
from bnprobe.distances.hellinger import Hellinger
from bnprobe.distances.jensen_shannon import JensenShannon
from bnprobe.distances.kolmogorov_smirnov import KolmogorovSmirnov
from bnprobe.distances.kullback_leibler import KullbackLeibler
from bnprobe.distances.population_stability import PopulationStability
from bnprobe.distances.wasserstein import Wasserstein

__all__ = [
    "Distance",
    "Energy",
    "GaussianWasserstein",
    "Hellinger",
    "JensenShannon",
    "KolmogorovSmirnov",
    "KullbackLeibler",
    "PopulationStability",
    "Summary",
    "Wasserstein",
]
