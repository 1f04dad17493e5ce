"""Observations made by hand, and the statistics with a layer and place where each applies."""

import torch
from torch import nn

from bnprobe import statistics
from bnprobe.hooks.saved import batch_moments
from bnprobe.hooks.sites import find_sites
from bnprobe.statistics.sample import Sampler

S = statistics
# name -> (statistic, layer, place); `exact` members give the same result however the data are cut up.
EXACT = {
    "Moments": (S.Moments(exact=True), nn.BatchNorm1d(3), "input"),
    "Quantiles": (S.Quantiles(exact=True, channels=(0, 2)), nn.BatchNorm1d(3), "output"),
    "Gradients": (S.Gradients(exact=True), nn.BatchNorm1d(3), "grad_output"),
    "Saturation": (S.Saturation(exact=True), nn.Sigmoid(), "input"),
    "Saturation (dead)": (S.Saturation(exact=True), nn.ReLU(), "output"),
}
SAMPLED = {
    "Moments": (S.Moments(), nn.ReLU(), "output"),
    "Quantiles": (S.Quantiles(), nn.ReLU(), "output"),
    "Gradients": (S.Gradients(), nn.ReLU(), "grad_output"),
    "Saturation": (S.Saturation(), nn.Sigmoid(), "input"),
    "Saturation (dead)": (S.Saturation(), nn.ReLU(), "output"),
    "RunningGap": (S.RunningGap(), nn.BatchNorm1d(3), "input"),
}


def site_of(layer):
    (site,) = find_sites(layer)
    return site


def observe(layer, place, tensor, sampler=None, moments=None, axis=1):
    """What a probe would hand to a statistic."""
    site = site_of(layer)
    if moments is None and site.family == "batch_norm" and tensor.numel():
        moments = batch_moments(site, tensor)
    return S.Observation(site, place, tensor, axis if tensor.dim() > 1 else None, sampler or Sampler(), moments)


def state_of(case, tensor, sampler=None):
    statistic, layer, place = case
    assert statistic.applies(site_of(layer), place)
    return statistic.update(statistic.start(), observe(layer, place, tensor, sampler))


def finished(statistic, state):
    """``{name: (value, error, channels, grid)}`` of one state."""
    return {
        name: (
            float(m.value[0]),
            0.0 if m.error is None else float(m.error[0]),
            None if m.channels is None or m.channels[0] is None else torch.as_tensor(m.channels[0]),
            None if m.grid is None else torch.as_tensor(m.grid[0]),
        )
        for name, m in statistic.finish([state]).items()
    }


def assert_same(a, b, rtol=1e-9, atol=1e-12):
    assert a.keys() == b.keys()
    for name in a:
        for x, y in zip(a[name], b[name], strict=True):
            if x is None or y is None:
                assert x is y, name
            else:
                torch.testing.assert_close(
                    torch.as_tensor(x),
                    torch.as_tensor(y),
                    rtol=rtol,
                    atol=atol,
                    equal_nan=True,
                    msg=lambda m, name=name: f"{name}: {m}",
                )
