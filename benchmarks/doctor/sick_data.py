"""Data that are not what the statistics know: another preprocessing (N19), another distribution (N26)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.doctor.data import pictures, trained_cnn
from benchmarks.doctor.setup import sick

_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

# N19 -----------------------------------------------------------------------------------------------------------------


@sick("N19", case="F03", half="tune")
def not_normalized_at_inference(seed: int) -> dict[str, Any]:
    """Trained on normalized pictures, served pictures from 0 to 1."""
    return {"model": trained_cnn(seed).eval(), "loader": [(x * _STD + _MEAN, y) for x, y in pictures(seed, "val")]}


@sick("N19", case="F03", half="judge")
def bytes_at_inference(seed: int) -> dict[str, Any]:
    """Trained on normalized pictures, served pictures from 0 to 255."""
    loader = [(255 * (x * _STD + _MEAN), y) for x, y in pictures(seed, "val")]
    return {"model": trained_cnn(seed).eval(), "loader": loader}


@sick("N19", case="F02", half="judge")
def normalized_twice(seed: int) -> dict[str, Any]:
    """Mean and deviation are taken off by the loader and again by the transform."""
    return {"model": trained_cnn(seed).eval(), "loader": [((x - _MEAN) / _STD, y) for x, y in pictures(seed, "val")]}


@sick("N19", case="F02", half="tune")
def other_mean_and_deviation(seed: int) -> dict[str, Any]:
    """Normalized by the constants of another data set."""
    return {"model": trained_cnn(seed).eval(), "loader": [(0.5 * x + 2 * _MEAN, y) for x, y in pictures(seed, "val")]}


# N26 -----------------------------------------------------------------------------------------------------------------


def blurred(x: Tensor) -> Tensor:
    """Pictures out of focus."""
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, stride=1)


@sick("N26", case="C68", half="tune", accepted={"N19"})
def validated_by_another_camera(seed: int) -> dict[str, Any]:
    """Validation pictures have little contrast and much light; training data fit."""
    val = [(0.4 * x + 1.5, y) for x, y in pictures(seed, "val")]
    return {"model": trained_cnn(seed).eval(), "loader": pictures(seed), "val_loader": val}


@sick("N26", case="C68", half="judge")
def validated_out_of_focus(seed: int) -> dict[str, Any]:
    """Validation pictures are blurred: their noise, which the statistics contain, is gone."""
    val = [(blurred(x), y) for x, y in pictures(seed, "val")]
    return {"model": trained_cnn(seed).eval(), "loader": pictures(seed), "val_loader": val}


@sick("N26", case="C68", half="tune")
def validated_in_the_dark(seed: int) -> dict[str, Any]:
    """Validation pictures are noisier than the training pictures."""
    model = trained_cnn(seed, 250, noise=0.3).eval()
    return {"model": model, "loader": pictures(seed, noise=0.3), "val_loader": pictures(seed, "val", noise=1.5)}
