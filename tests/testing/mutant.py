"""A normalization layer with one deliberate fault."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A layer, what it claims to be, and the law that is to catch it."""

    make: type
    like: str
    law: str


MUTANTS = {}


def caught_by(law, like="batch_norm"):
    def keep(make):
        MUTANTS[make.__name__] = Mutant(make, like, law)
        return make

    return keep
