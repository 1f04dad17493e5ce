"""Factors."""

import math

from hypothesis import strategies as st

__all__ = ["scales"]


def scales(smallest: float = 1e-3, largest: float = 1e3, *, negative: bool = True) -> st.SearchStrategy[float]:
    """Factors that are uniform in their logarithm, of both signs, with three digits; shrinks to 1.

    Args:
        smallest: size, above 0.
        largest: size.
        negative: whether negative ones are drawn too.
    """
    low, high = math.log10(smallest), math.log10(largest)
    size = st.floats(low, high).map(lambda power: float(f"{10**power:.3g}"))
    simple = [one for one in (1.0, 2.0, 0.5) if smallest <= one <= largest]
    magnitude = st.sampled_from(simple) | size if simple else size
    if not negative:
        return magnitude
    return st.tuples(magnitude, st.sampled_from((1, -1))).map(lambda pair: pair[0] * pair[1])
