"""What was found out about each parameter, as objects and as a table."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "NUMBERS", "VERDICTS", "Finding", "ScaleInvariance"]

VERDICTS = ("scale-invariant", "translation-invariant", "not", "undecided")
NUMBERS = (
    "norm", "gradient_norm", "inner_product", "predicted_inner_product", "inner_product_error", "cosine",
    "factor", "input_factor", "deviation", "predicted_deviation", "epsilon_share", "gradient_ratio",
    "predicted_gradient_ratio", "gradient_mismatch", "learning_rate", "weight_decay", "relative_update",
    "effective_learning_rate", "angular_update", "equilibrium_norm", "equilibrium_angle", "norm_over_equilibrium",
)  # fmt: skip
COLUMNS = ("parameter", "channel", "kind", "together_with", "verdict", "sign", *NUMBERS, "trained", "why")

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Finding:
    """One parameter tensor, or several that are invariant only together.

    Attributes:
        name: of the parameter; of several, their layer.
        members: names of the several; empty for one parameter.
        verdict: one of :data:`VERDICTS`.
        why: what decided it, where it is not "scale-invariant"; or what was not measured.
        sign: what a negative factor does: "equivariant": x-hat changes its sign with the weight and nothing else
            happens; "neither"; empty where it was not tried.
        trained: whether the parameter asks for gradients.
        numbers: by column, of the whole tensor; missing where not measured.
        channel_verdicts, channel_why: the same by output channel, ``[C]``; empty for several parameters.
        channel_numbers: by column, ``[C]``.
    """

    name: str
    members: tuple[str, ...]
    verdict: str
    why: str
    sign: str
    trained: bool
    numbers: Mapping[str, float]
    channel_verdicts: tuple[str, ...] = ()
    channel_why: tuple[str, ...] = ()
    channel_numbers: Mapping[str, Array] | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """The whole, then channel by channel."""
        about = {"parameter": self.name, "sign": self.sign, "trained": self.trained}
        kind = "group" if self.members else "tensor"
        together = ", ".join(self.members)
        yield {
            **about, "kind": kind, "together_with": together, "verdict": self.verdict, "why": self.why, **self.numbers
        }  # fmt: skip
        numbers = self.channel_numbers or {}
        for channel, (verdict, why) in enumerate(zip(self.channel_verdicts, self.channel_why, strict=True)):
            own = {name: values[channel] for name, values in numbers.items()}
            sign = self.sign if verdict == "scale-invariant" else ""
            yield {
                **about, "channel": channel, "kind": "channel", "verdict": verdict, "why": why, "sign": sign, **own
            }  # fmt: skip


@dataclass(frozen=True, eq=False)
class ScaleInvariance:
    """Which parameters of a model are scale-invariant under a loss, and how well; see :func:`scale_invariance`.

    Attributes:
        findings: one a parameter, in the order of ``named_parameters()``; then those that are invariant only together.
        loss: at the model's own parameters.
        passes: how many forward and backward passes were run; one without a backward counts as a half.
        confirmed: whether candidates were scaled; else there was the screening only, and they are "undecided".
    """

    findings: tuple[Finding, ...]
    loss: float
    passes: float
    confirmed: bool

    @property
    def parameters(self) -> set[str]:
        """Names of the parameters that are scale-invariant as whole tensors."""
        return self._with("scale-invariant")

    @property
    def translation_invariant(self) -> set[str]:
        """Names of the vectors that the loss does not depend on, or not on the sum of."""
        return self._with("translation-invariant")

    @property
    def groups(self) -> set[tuple[str, ...]]:
        """Names of parameters that are scale-invariant only by a common factor."""
        return {one.members for one in self.findings if one.members and one.verdict == "scale-invariant"}

    @property
    def channels(self) -> dict[str, NDArray[np.bool_]]:
        """By parameter, ``[C]``: which output channels are scale-invariant each by itself."""
        return {
            one.name: np.array([verdict == "scale-invariant" for verdict in one.channel_verdicts])
            for one in self.findings
            if not one.members
        }

    def __getitem__(self, name: str) -> Finding:
        """What was found out about a parameter.

        Raises:
            KeyError: there is none of this name.
        """
        for one in self.findings:
            if one.name == name and not one.members:
                return one
        raise KeyError(name)

    def _with(self, verdict: str) -> set[str]:
        return {one.name for one in self.findings if not one.members and one.verdict == verdict}

    def frame(self) -> "pd.DataFrame":
        """A row a parameter, a row each of its output channels, a row a group; columns as in :data:`COLUMNS`.

        ========================== =====================================================================================
        column                     what
        ========================== =====================================================================================
        parameter, channel         name; the output channel, missing for the whole tensor
        kind, together_with        "tensor", "channel" or "group"; the members of the group
        verdict, why, sign         as in :class:`Finding`
        norm, gradient_norm        ``|w|`` and ``|G|``, G the gradient of the loss
        inner_product              ``<w, G>``: 0 but for epsilon
        predicted_inner_product    what epsilon makes of it: ``sum (1 - rho) <dL/dx-hat, x-hat>`` over the groups that
                                   the parameter feeds; for batch norm ``(1 - rho) gamma dL/dgamma``
        inner_product_error        how far rounding moved ``<w, G>`` between two passes that should agree
        cosine                     of w and G
        factor                     a: by how much it was scaled; missing for a tensor whose channels have their own
        input_factor               b: by how much the normalization's input then grew: other parameters that act on it
                                   were scaled at the same time
        deviation                  by how much x-hat then grew, less 1: measured, of the group where the law says most
        predicted_deviation        the same by the law, ``b sqrt((s^2 + eps) / (b^2 s^2 + eps)) - 1``
        epsilon_share              ``1 - rho = eps / (s^2 + eps)``, the largest of the groups that it feeds
        gradient_ratio             ``|G(a w)| / |G(w)|``, epsilon scaled by a^2 as the exact law has it
        predicted_gradient_ratio   the same by the law, ``1 / a``; of a tensor whose channels have factors of their own
                                   both are of ``a G(a w)``, and the law says 1
        gradient_mismatch          ``|a G(a w) - G(w)| / |G(w)|``
        learning_rate ...          eta, and what the optimizer would do next: ``|dw| / |w|``, ``eta / |w|^2``, the angle
                                   between w before and after the step, in radians
        equilibrium_norm, _angle   where weight decay and gradients balance; norm_over_equilibrium: how far away ``|w|``
                                   is
        trained                    whether the parameter asks for gradients
        ========================== =====================================================================================

        Missing is what was not measured, or does not exist.
        """
        import pandas as pd

        frame = pd.DataFrame([row for one in self.findings for row in one.rows()], columns=list(COLUMNS))
        texts = {name: frame[name].fillna("") for name in ("together_with", "sign", "why")}
        return frame.assign(**texts).astype({"channel": "Int64", **dict.fromkeys(NUMBERS, float)})
