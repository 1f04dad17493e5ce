"""Every mutant is caught by the law whose name fits its fault."""

import pytest
from hypothesis import Phase
from hypothesis import settings as profile
from mutants import MUTANTS

from bnprobe.errors import LawBrokenError
from bnprobe.testing import check_norm_layer

# That it is caught is the question here, not by which smallest example.
profile.register_profile(
    "caught or not", parent=profile.get_profile("bnprobe-fast"), phases=[Phase.explicit, Phase.generate]
)


def test_there_are_enough():
    assert len(MUTANTS) >= 40


@pytest.mark.parametrize("name", MUTANTS)
def test_caught(name):
    make, like, law, settings = MUTANTS[name]
    with pytest.raises(LawBrokenError, match=f"breaks the law {law} of {like}"):
        check_norm_layer(make, like, only=[law], profile="caught or not", **settings)
