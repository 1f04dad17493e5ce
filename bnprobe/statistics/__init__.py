"""What a probe can measure of each layer, one a file.

Streaming statistics, measurements that run passes of their own, and tracks that follow weights through updates.
"""

from bnprobe.statistics.base import Observation, Statistic
from bnprobe.statistics.gradient_shift import GradientShift
from bnprobe.statistics.gradients import Gradients
from bnprobe.statistics.landscape import Landscape
from bnprobe.statistics.measurement import Measurement, Occasion, Readings
from bnprobe.statistics.moments import Moments
from bnprobe.statistics.quantiles import Quantiles
from bnprobe.statistics.running_gap import RunningGap
from bnprobe.statistics.saturation import Saturation
from bnprobe.statistics.spectra import Spectra
from bnprobe.statistics.track import Track
from bnprobe.statistics.weight_scale import WeightScale

__all__ = [
    "GradientShift",
    "Gradients",
    "Landscape",
    "Measurement",
    "Moments",
    "Observation",
    "Occasion",
    "Quantiles",
    "Readings",
    "RunningGap",
    "Saturation",
    "Spectra",
    "Statistic",
    "Track",
    "WeightScale",
]
