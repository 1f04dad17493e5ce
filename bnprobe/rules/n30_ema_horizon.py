"""N30: an average of weights that had too few updates to forget its start."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from bnprobe.evidence import Evidence
from bnprobe.rules.base import Opinion, Quantity, Rule, Severity

__all__ = ["EmaHorizon"]


@dataclass(frozen=True)
class EmaHorizon(Rule):
    """Arithmetic.

    Attributes:
        reached: least share of the average that must come from updates.
    """

    code = "N30"
    name = "ema-horizon"
    title = "an average of weights is still largely what it was initialized to"
    harm = (
        "An exponential average with decay d remembers about 1 / (1 - d) updates. With fewer of them weights and "
        "statistics are those of the first step for the most part, and the average evaluates near chance for epochs."
    )
    shows = "1 - decay ** updates below 0.9"
    remedy = "decay = min(decay, (1 + updates) / (10 + updates))  # ramp it, and start from a copy of the weights"
    references = ("Tarvainen & Valpola 2017, Mean teachers are better role models, section 3, arXiv:1703.01780",)
    needs = ("horizon",)
    untrained = True
    sick = "decay, updates = 0.9998, 1000"
    healthy = "decay, updates = 0.99, 1000"

    reached: float = 0.9  # of the catalogue

    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Once for the model."""
        found = evidence.fact("horizon_reached")
        if found is None or not found.value < self.reached:
            return
        decay, updates = evidence.value("ema_decay"), evidence.value("ema_updates")
        needed = math.ceil(math.log(1 - self.reached) / math.log(decay)) if 0 < decay < 1 else math.inf
        yield Opinion(
            Severity.WARNING,
            f"after {updates:.0f} updates with decay {decay:g}, {1 - found.value:.0%} of the average is its start; "
            f"{needed:.0f} updates would leave {1 - self.reached:.0%}",
            effect=Quantity("share of the average that is its start", 100 * (1 - found.value), "%"),
        )
