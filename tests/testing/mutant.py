"""A normalization layer with one deliberate fault."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A layer, what it claims to be, the law that is to catch it, and its settings."""

    make: type
    like: str
    law: str
    settings: dict


MUTANTS = {}


def caught_by(law, like="batch_norm", **settings):
    def keep(make):
        MUTANTS[make.__name__] = Mutant(make, like, law, settings)
        return make

    return keep
