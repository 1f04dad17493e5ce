"""What is raised inside a property, before the message around it is known."""

from torch import Tensor

from bnprobe.testing.oracles.reference import wide

__all__ = ["Broken", "NotApplicable", "compare", "require", "require_equal"]


class Broken(Exception):  # noqa: N818 - it becomes a LawBrokenError
    """A law does not hold; the message says by how much."""


class NotApplicable(Exception):  # noqa: N818 - it is no error
    """A law has nothing to say about this layer; the message says why."""


def compare(what: str, got: Tensor, want: Tensor, tolerance: Tensor | float, why: str) -> None:
    """Refuse what is further from what is wanted than the tolerance, NaN included.

    Args:
        what: name of the quantity, for the message.
        got: the layer's.
        want: the law's; where it is not a number, so must the layer's be.
        tolerance: of each element, or of all.
        why: where the tolerance comes from.

    Raises:
        Broken: with the element that is furthest off, in tolerances.
    """
    got, want = wide(got), wide(want)
    if got.shape != want.shape:
        raise Broken(f"{what} has the shape {tuple(got.shape)} where the law has {tuple(want.shape)}")
    if got.numel() == 0:
        return
    allowed = got.new_tensor(tolerance) if isinstance(tolerance, float | int) else wide(tolerance)
    allowed = allowed.expand_as(got)
    off = (got - want).abs()
    off = off.where(got != want, 0.0)  # equal infinities
    off = off.where(~(got.isnan() & want.isnan()), 0.0).nan_to_num(nan=float("inf"))
    wrong = off > allowed
    if not wrong.any():
        return
    share = (off / allowed.clamp(min=5e-324)).where(wrong, 0.0)
    place = int(share.argmax())
    index = tuple(int(i) for i in _unravel(place, got.shape))
    bound = float(allowed.reshape(-1)[place])
    raise Broken(
        f"{what}{list(index) if index else ''} is {float(got.reshape(-1)[place]):.9g}, the law gives "
        f"{float(want.reshape(-1)[place]):.9g}\n"
        f"misfit {float(off.reshape(-1)[place]):.3g}, tolerance {bound:.3g}: {why}\n"
        f"{int(wrong.sum())} of {got.numel()} elements are off by more than that"
    )


def require(holds: bool, message: str) -> None:
    """Refuse what has no size.

    Raises:
        Broken: with the message.
    """
    if not holds:
        raise Broken(message)


def require_equal(what: str, got: Tensor, want: Tensor, why: str) -> None:
    """Refuse any difference, to the last bit; two NaN are the same.

    Raises:
        Broken: with the element that is furthest off.
    """
    compare(what, got, want, 0.0, f"none, {why}")
    require(got.dtype == want.dtype, f"{what} has the dtype {got.dtype} where {want.dtype} was expected")


def _unravel(place: int, shape: tuple[int, ...]) -> list[int]:
    index: list[int] = []
    for size in reversed(shape):
        place, one = divmod(place, size)
        index.insert(0, one)
    return index
