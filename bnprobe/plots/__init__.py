"""Pictures of a run, of spectra and of a diagnosis' evidence: Axes in, Axes out.

Every function draws on the Axes that it is given and returns them; without Axes it makes a figure in the house
style. Nothing here changes matplotlib's settings or asks for a display.
"""

from bnprobe.plots.before_after import before_after
from bnprobe.plots.drift_map import drift_map
from bnprobe.plots.effective_values import effective_values
from bnprobe.plots.gradient_shift import gradient_shift
from bnprobe.plots.landscape import landscape
from bnprobe.plots.loss_triangle import loss_triangle
from bnprobe.plots.moments_over_depth import moments_over_depth
from bnprobe.plots.percentiles import percentiles
from bnprobe.plots.recorded_spectrum import recorded_spectrum
from bnprobe.plots.running_gap import running_gap
from bnprobe.plots.saturation import saturation
from bnprobe.plots.spectra import sorted_spectra, spectrum_over_training, spectrum_ridgeline
from bnprobe.plots.statistics_gap import statistics_gap
from bnprobe.plots.swap_test import swap_test
from bnprobe.plots.weight_scale import weight_scale

__all__ = [
    "before_after",
    "drift_map",
    "effective_values",
    "gradient_shift",
    "landscape",
    "loss_triangle",
    "moments_over_depth",
    "percentiles",
    "recorded_spectrum",
    "running_gap",
    "saturation",
    "sorted_spectra",
    "spectrum_over_training",
    "spectrum_ridgeline",
    "statistics_gap",
    "swap_test",
    "weight_scale",
]
