"""Streaming statistics, one a file: what a probe can measure of each layer."""

from bnprobe.statistics.base import Observation, Statistic
from bnprobe.statistics.gradients import Gradients
from bnprobe.statistics.moments import Moments
from bnprobe.statistics.quantiles import Quantiles
from bnprobe.statistics.running_gap import RunningGap
from bnprobe.statistics.saturation import Saturation

__all__ = ["Gradients", "Moments", "Observation", "Quantiles", "RunningGap", "Saturation", "Statistic"]
