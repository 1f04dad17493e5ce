"""Batches of every shape and kind, for hypothesis."""

from collections.abc import Sequence
from math import prod

from hypothesis import strategies as st
from torch import Tensor

from bnprobe.errors import ArgumentError
from bnprobe.testing.strategies.batch import Batch, tensor
from bnprobe.testing.strategies.kinds import KINDS
from bnprobe.testing.strategies.layouts import LAYOUTS

__all__ = ["Shape", "batches", "recipes"]

Shape = Sequence[str | int]
_SAMPLES, _CHANNELS, _POSITIONS = (1, 8), (1, 4), 6
_LONG = 300  # a long sequence, once in a while; ours: long enough for sums in single precision to show


@st.composite
def recipes(
    draw: st.DrawFn,
    shape: Shape = ("N", "C"),
    *,
    channels: Sequence[int] | None = None,
    kinds: Sequence[str] = tuple(KINDS),
    dtypes: Sequence[str] = ("float32",),
    layouts: Sequence[str] = tuple(LAYOUTS),
    values: int = 1,
    samples: tuple[int, int] = _SAMPLES,
    largest: int | None = None,
    multiple: int = 1,
    positions: int = 1,
) -> Batch:
    """Recipes of batches; :func:`batches` gives their tensors.

    Shrinks to few samples, one channel, whole numbers, seed 0, a contiguous tensor.

    Args:
        draw: hypothesis' own; not to be given.
        shape: names of the axes: ``"N"`` samples, ``"C"`` channels, any other name positions; a number is that size.
        channels: numbers of channels to choose from; default 1 to 4.
        kinds: keys of :data:`bnprobe.testing.strategies.kinds.KINDS`.
        dtypes: names of dtypes.
        layouts: keys of :data:`bnprobe.testing.strategies.layouts.LAYOUTS`.
        values: least number of values a channel.
        samples: least and largest number of samples.
        largest: number of elements at most, for laws whose check is costly; default no limit.
        multiple: of which the number of samples is one.
        positions: least number of values of one sample in a channel.

    Raises:
        ArgumentError: the shape has no axis of channels.
    """
    if "C" not in shape:
        raise ArgumentError(f"shape must have an axis 'C'; got {tuple(shape)}")
    width = draw(st.sampled_from(channels) if channels else st.integers(*_CHANNELS))
    sizes = draw(_sizes(tuple(shape), width, samples, multiple, largest))
    inner = [place for place, name in enumerate(shape) if name not in ("N", "C")]
    if inner and prod(sizes[place] for place in inner) < positions:
        sizes[inner[-1]] = positions
    rest = [size for size, name in zip(sizes, shape, strict=True) if name not in ("N", "C")]
    if "N" in shape:
        place = tuple(shape).index("N")
        sizes[place] = max(sizes[place], multiple * -(-values // (multiple * prod(rest))))
    dtype, kind = draw(st.sampled_from(dtypes)), draw(st.sampled_from(kinds))
    seed, layout = draw(st.integers(0, 99)), draw(st.sampled_from(layouts))
    return Batch(tuple(sizes), kind, seed, dtype, layout, tuple(shape).index("C"))


@st.composite
def _sizes(
    draw: st.DrawFn, shape: Shape, width: int, samples: tuple[int, int], multiple: int, largest: int | None
) -> list[int]:
    """One size an axis; together not much more than the largest number of elements."""
    budget = 10**9 if largest is None else max(1, largest // width)
    sizes = []
    for name in shape:
        if isinstance(name, int):
            size = name
        elif name == "C":
            size = width
        elif name == "N":
            low, high = (-(-bound // multiple) for bound in samples)
            size = multiple * draw(st.integers(low, max(low, min(high, budget // multiple))))
        else:
            size = draw(st.integers(1, max(1, min(_POSITIONS, budget))))
            if len(shape) == 3 and largest is None and draw(st.booleans()) and size == 5:
                size = _LONG
        budget = budget if name == "C" else max(1, budget // size)
        sizes.append(size)
    return sizes


def batches(
    shape: Shape = ("N", "C"),
    *,
    channels: Sequence[int] | None = None,
    kinds: Sequence[str] = tuple(KINDS),
    dtypes: Sequence[str] = ("float32",),
    layouts: Sequence[str] = tuple(LAYOUTS),
    values: int = 1,
    samples: tuple[int, int] = _SAMPLES,
) -> st.SearchStrategy[Tensor]:
    """Tensors; a failing example is printed as ``tensor(Batch(...))``, or ``tensor([...])`` where that is shorter.

    Both are code, with :func:`bnprobe.testing.strategies.tensor`; the second loses the layout in memory.

    Args are those of :func:`recipes`.
    """
    drawn = recipes(
        shape, channels=channels, kinds=kinds, dtypes=dtypes, layouts=layouts, values=values, samples=samples
    )
    return drawn.flatmap(lambda recipe: st.builds(tensor, st.just(recipe)))
