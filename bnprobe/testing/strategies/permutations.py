"""Orders."""

from hypothesis import strategies as st

__all__ = ["permutations"]


def permutations(n: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Orders of 0 to n - 1; shrinks to the identity."""
    return st.permutations(tuple(range(n))).map(tuple)
