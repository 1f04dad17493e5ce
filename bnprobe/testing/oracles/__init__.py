"""Normalization layers written out in double precision: forward, backward, double backward, buffers, spectra.

They are what the properties hold a layer against, and use none of torch's own normalization functions.
"""

from bnprobe.testing.oracles.reference import Gradients, Reference, reference
from bnprobe.testing.oracles.running import after_batches, batch_moments
from bnprobe.testing.oracles.spectrum import singular_values

__all__ = ["Gradients", "Reference", "after_batches", "batch_moments", "reference", "singular_values"]
