"""Singular values of Jacobians: of a whole model, of its layers, of what lies between two layers."""

from bnprobe.measures.jacobian.density import Density
from bnprobe.measures.jacobian.measure import spectrum
from bnprobe.measures.jacobian.spectrum import Spectrum
from bnprobe.measures.jacobian.table import spectra

__all__ = ["Density", "Spectrum", "spectra", "spectrum"]
