"""What a rule is: it reads evidence and says what is wrong with a model's normalization, or nothing."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from bnprobe.evidence import Evidence

__all__ = ["Opinion", "Quantity", "Rule", "Severity"]


class Severity(StrEnum):
    """How bad it is: something to know, something that costs accuracy, something that breaks the model.

    A word (``severity == "error"``) that is ordered by how bad it is: info < warning < error.
    """

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """0, 1 or 2."""
        return list(Severity).index(self)

    def demoted(self) -> "Severity":
        """One step less, at least ``INFO``."""
        steps: list[Severity] = list(Severity)
        return steps[max(self.rank - 1, 0)]

    def __lt__(self, other: str) -> bool:
        return self.rank < Severity(other).rank

    def __le__(self, other: str) -> bool:
        return self.rank <= Severity(other).rank

    def __gt__(self, other: str) -> bool:
        return self.rank > Severity(other).rank

    def __ge__(self, other: str) -> bool:
        return self.rank >= Severity(other).rank


@dataclass(frozen=True)
class Quantity:
    """A number to show: what it is, its unit and its 95 % confidence interval (None: it has none, it is exact)."""

    name: str
    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" ({self.low:.3g} to {self.high:.3g})"
        return f"{self.name} {self.value:.3g}{interval}{' ' + self.unit if self.unit else ''}"


@dataclass(frozen=True)
class Opinion:
    """What a rule says of one layer (or of the whole model) before it is known how many other things were tested.

    Attributes:
        severity: what it comes to if it is not chance; a rule has weighed effect and impact already.
        summary: one sentence, with the layer's behaviour in numbers.
        layer: its name; empty for the whole model.
        effect: how large it is.
        p_value: of the null hypothesis that nothing is wrong; None where nothing is random about it.
        impact: what it does to loss or output; None where that is not known.
        numbers: the other numbers behind it.
        remedy: what to do, as code; empty takes the rule's own.
        causes: what may be behind it, the likeliest first.
    """

    severity: Severity
    summary: str
    layer: str = ""
    effect: Quantity | None = None
    p_value: float | None = None
    impact: Quantity | None = None
    numbers: tuple[Quantity, ...] = ()
    remedy: str = ""
    causes: tuple[str, ...] = ()


class Rule(ABC):
    """One pitfall; a frozen dataclass whose fields are its thresholds, each with where it comes from.

    Laws, tested for every member: it needs nothing but evidence; without what it ``needs`` it is not asked; its sick
    example fires and its healthy one does not; evidence that went to disk and back gives the same opinions; what it
    says carries an effect, or is exact.

    Attributes:
        code: ``N01`` ... ``N31``; never reused.
        name: words joined by hyphens.
        title: what it finds, one line.
        harm: why it hurts.
        shows: how it shows in numbers.
        remedy: what to do, as code where code can do it.
        references: papers and documentation.
        needs: measurements without which it cannot judge (names of files in ``measures/evidence``).
        untrained: whether it judges a model that was never trained.
        follows_from: codes of rules whose findings explain this one: then it is only information.
        of_running_statistics: whether it is about what running statistics hold: then it is only information where the
            model is meant to use those of the batch.
        tests: statistics whose p-values it looks at, whether or not it speaks: all of them are held against chance.
        sick, healthy: an example each, as code that a reader can run.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    title: ClassVar[str]
    harm: ClassVar[str]
    shows: ClassVar[str]
    remedy: ClassVar[str]
    references: ClassVar[tuple[str, ...]]
    needs: ClassVar[tuple[str, ...]]
    untrained: ClassVar[bool] = False
    follows_from: ClassVar[tuple[str, ...]] = ()
    of_running_statistics: ClassVar[bool] = False
    tests: ClassVar[tuple[str, ...]] = ()
    sick: ClassVar[str]
    healthy: ClassVar[str]

    @abstractmethod
    def judge(self, evidence: Evidence) -> Iterable[Opinion]:
        """Opinions, at most one a layer; none where all is well, or where the rule does not apply."""
