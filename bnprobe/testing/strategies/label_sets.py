"""Labels of a data set."""

from hypothesis import strategies as st

from bnprobe.errors import ArgumentError

__all__ = ["label_sets"]


@st.composite
def label_sets(
    draw: st.DrawFn, samples: tuple[int, int] = (2, 16), classes: tuple[int, int] = (2, 4), *, balanced: bool = False
) -> tuple[int, ...]:
    """Class labels 0, 1, ... in any order, each class at least once; shrinks to few samples of two classes, sorted.

    Args:
        draw: passed by hypothesis.
        samples: least and largest number.
        classes: least and largest number; no more than samples.
        balanced: whether each class has as many samples as the others, up to one.

    Raises:
        ArgumentError: the least number of classes is below 1, or above the largest number of samples.
    """
    if not 1 <= classes[0] <= samples[1]:
        raise ArgumentError(f"classes must be between 1 and the number of samples; got {classes} of {samples[1]}")
    count = draw(st.integers(classes[0], min(classes[1], samples[1])))
    size = draw(st.integers(max(samples[0], count), samples[1]))
    if balanced:
        rest = [label % count for label in range(count, size)]
    else:
        rest = draw(st.lists(st.integers(0, count - 1), min_size=size - count, max_size=size - count))
    labels: list[int] = []
    for label in sorted([*range(count), *rest], reverse=True):
        # From the largest down, so that an order keeps what it has drawn first when it is cut to fewer labels.
        labels.insert(draw(st.integers(0, len(labels))), label)
    return tuple(labels)
