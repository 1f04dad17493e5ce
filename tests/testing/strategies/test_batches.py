"""Recipes of batches: they build what they say, shrink to what is simple, and print as code."""

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st
from torch import nn

from bnprobe.errors import ArgumentError
from bnprobe.testing import Subject, properties, strategies
from bnprobe.testing.strategies import KINDS, LAYOUTS, Batch, batches, permutations, recipes, scales, tensor

SHAPES = [("N", "C"), ("N", "C", "L"), ("N", "C", "H", "W"), ("N", "L", "C"), ("N", "C", 7)]
quick = settings(max_examples=40)


@quick
@given(st.sampled_from(SHAPES).flatmap(recipes))
def test_its_repr_builds_it_again(recipe):
    again = eval(repr(recipe), {"Batch": Batch})
    assert again == recipe
    torch.testing.assert_close(again.tensor(), recipe.tensor(), rtol=0, atol=0, equal_nan=True)


@quick
@given(st.sampled_from(SHAPES).flatmap(lambda shape: recipes(shape, dtypes=("float32", "float64", "bfloat16"))))
def test_a_tensor_is_what_the_recipe_says(recipe):
    x = recipe.tensor()
    assert tuple(x.shape) == recipe.shape
    assert x.dtype == getattr(torch, recipe.dtype)
    assert x.isfinite().all()
    plain = Batch(recipe.shape, recipe.kind, recipe.seed, recipe.dtype, axis=recipe.axis).tensor()
    assert torch.equal(x, plain)
    assert plain.is_contiguous()


@pytest.mark.parametrize("layout", [one for one in LAYOUTS if one != "contiguous"])
@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (3, 2, 4), (2, 3, 2, 2, 3), (4, 3)])
def test_layouts_are_not_contiguous(layout, shape):
    x = Batch(shape, layout=layout).tensor()
    assert (len(shape) == 2 and layout == "channels_last") or not x.is_contiguous()
    if layout == "channels_last" and len(shape) == 4:
        assert x.is_contiguous(memory_format=torch.channels_last)


def rows(kind, **kwargs):
    return Batch((8, 3, 5), kind, 1, **kwargs).tensor().double().movedim(1, 0).reshape(3, -1)


def test_kinds_are_what_they_are_called():
    assert torch.equal(rows("integers"), rows("integers").round())
    assert rows("constant_channels")[0].std() == 0
    for dtype in ("float32", "float64", "float16"):
        offset = rows("offset", dtype=dtype)
        assert (offset.mean(1).abs() > 100 * offset.std(1) / (10 if dtype == "float16" else 1)).all()
    assert (rows("denormal").abs() < torch.finfo(torch.float32).tiny).all()
    assert rows("huge").abs().max() ** 3 < torch.finfo(torch.float32).max
    assert 0 < (rows("sparse") != 0).double().mean() < 0.3
    one, far = rows("outlier"), rows("heavy_tailed")
    assert (one.max(1).values > 500).all()
    assert far.abs().max() > 5 * far.abs().median()
    near = Batch((6, 2, 40), "correlated", 1).tensor()
    assert (near.std(2) < 0.2).all()
    assert near.mean(2).std(0).min() > 0.3


def test_channels_keep_their_axis():
    last = Batch((8, 5, 3), "constant_channels", 1, axis=2).tensor()
    assert torch.equal(last[..., 0], last[:1, :1, 0].expand(8, 5))


@pytest.mark.parametrize("values", [2, 3, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_least_number_of_values(shape, values):
    @quick
    @given(recipes(shape, values=values, multiple=2))
    def check(recipe):
        count = 1
        for place, size in enumerate(recipe.shape):
            count *= 1 if place == recipe.axis else size
        assert count >= values
        assert recipe.shape[0] % 2 == 0

    check()


def test_shrinks_to_something_simple():
    assert find(recipes(("N", "C", "L")), lambda _: True) == Batch((1, 1, 1), "integers")
    found = find(recipes(("N", "C", "L")), lambda recipe: recipe.shape[2] > 1 and recipe.kind == "offset")
    assert found == Batch((1, 1, 2), "offset")
    assert find(scales(), lambda _: True) == 1
    assert find(permutations(4), lambda _: True) == (0, 1, 2, 3)


@pytest.mark.parametrize("large", [False, True])
def test_a_failing_example_prints_as_code(large):
    limit = 30 if large else 4

    @settings(database=None, print_blob=False, derandomize=True)
    @given(x=batches(("N", "C", "L")))
    def check(x):
        assert x.numel() < limit

    with pytest.raises(AssertionError) as failure:
        check()
    note = failure.value.__notes__[0]
    start = note.index("x=") + 2
    code = note[start : note.rindex(")")].split("# ")[0].strip().rstrip(",")
    built = eval(code, {"Batch": Batch, "tensor": tensor, "torch": torch})
    assert built.numel() >= limit
    assert ("Batch(" in note) == large


@quick
@given(scales(0.01, 10))
def test_scales_stay_in_their_range(a):
    assert 0.0099 < abs(a) < 10.1


def test_negative_scales_are_drawn_where_wanted():
    assert find(scales(), lambda a: a < 0) == -1
    with pytest.raises(Exception, match=r"No|no|Unsatis"):
        find(scales(negative=False), lambda a: a < 0, settings=settings(max_examples=50))


def test_refusals():
    with pytest.raises(ArgumentError, match=r"kind must be one of integers, gaussian, .*; got 'normal'"):
        Batch((2, 2), "normal")
    with pytest.raises(ArgumentError, match=r"layout must be one of contiguous, .*; got 'NHWC'"):
        Batch((2, 2), layout="NHWC")
    with pytest.raises(ArgumentError, match=r"dtype must be the name of a dtype of torch; got 'float31'"):
        Batch((2, 2), dtype="float31")
    with pytest.raises(ArgumentError, match=r"shape must have an axis 'C'; got \('N', 'L'\)"):
        find(recipes(("N", "L")), lambda _: True)


def test_every_kind_has_a_docstring():
    assert all(values.__doc__ for values in KINDS.values())
    assert {"batches", "scales", "permutations", "norm_layers", "networks", "loaders", "label_sets"} <= set(
        strategies.__all__
    )


ONES = [(1, 8, 3, 1), (1, 8, 1, 3), (1, 8, 3, 2), (1, 1, 3, 1), (2, 3, 4, 5), (1, 8, 3, 1, 1)]


@pytest.mark.parametrize("shape", ONES)
def test_a_transposed_tensor_has_one_layout_however_torch_asks(shape):
    """Its batch norm asks in two ways, and is wrong where axes of length 1 give two answers."""
    x = Batch(shape, "gaussian", layout="transposed")
    assert torch.equal(x.tensor(), Batch(shape, "gaussian").tensor())
    make = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm3d
    properties.layout_does_not_matter(Subject(make, "batch_norm"), x=x, training=True)
