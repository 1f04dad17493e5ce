"""Which parameters are scale-invariant, and how well: found by screening and by really scaling them."""

from bnprobe.measures.scale_invariance.measure import scale_invariance
from bnprobe.measures.scale_invariance.result import Finding, ScaleInvariance

__all__ = ["Finding", "ScaleInvariance", "scale_invariance"]
