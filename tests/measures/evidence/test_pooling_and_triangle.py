"""Pooled statistics and the loss triangle against all samples as one batch, layer by layer."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import bnprobe
from bnprobe.errors import NotMeasuredError
from bnprobe.evidence import Evidence
from bnprobe.measures.evidence import Given, Patient, examine
from bnprobe.measures.evidence.pooling import pooled
from bnprobe.measures.untouched import untouched


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16, 5), nn.BatchNorm1d(5),
    )  # fmt: skip
    with torch.no_grad():
        for one in model.modules():
            if isinstance(one, nn.modules.batchnorm._BatchNorm):
                one.weight.uniform_(0.5, 2)
                one.bias.normal_()
                one.num_batches_tracked.fill_(7)
    return model


def sorted_batches(count=12, size=16):
    """Each batch has a shift of its own: its own statistics are far from the pooled ones."""
    return [(torch.randn(size, 3, 8, 8) + 0.5 * b, torch.randint(5, (size,))) for b in range(count)]


def examined(model, batches, names, **given):
    with untouched(model) as origin:
        patient = Patient(model, batches, origin, Given(**given))
        found = examine(patient, names)
        return Evidence(found.facts), found, patient.pooled


def test_pooled_statistics_are_those_of_all_samples_as_one_batch():
    model, batches = network(), sorted_batches()
    with untouched(model) as origin:
        found = pooled(Patient(model, batches, origin))
    oracle = copy.deepcopy(model).train()
    for one in oracle.modules():
        one.momentum = 1.0
    oracle(torch.cat([x for x, _ in batches]))
    for name in ("1", "4", "8"):
        module = oracle.get_submodule(name)
        sd = module.running_var.double().sqrt()
        assert ((found.mean[name] - module.running_mean).abs() / sd).max() < 0.03
        assert (found.variance[name] / module.running_var - 1).abs().max() < 0.05
    # The first layer has nothing before it that could be off.
    torch.testing.assert_close(found.mean["1"].float(), oracle[1].running_mean, rtol=1e-5, atol=1e-6)
    count = found.count["1"]
    torch.testing.assert_close((found.variance["1"] * count / (count - 1)).float(), oracle[1].running_var)


def test_the_losses_are_those_of_three_models():
    model, batches = network(), sorted_batches()
    evidence, _, statistics = examined(model, batches, ("triangle",))
    stored = copy.deepcopy(model).eval()
    own = copy.deepcopy(model).train()
    everything = copy.deepcopy(model).eval()
    for name, mean in statistics.mean.items():
        count = statistics.count[name]
        everything.get_submodule(name).running_mean.copy_(mean)
        everything.get_submodule(name).running_var.copy_(statistics.variance[name] * count / (count - 1))
    with torch.no_grad():
        for way, twin in (("stored", stored), ("batch", own), ("pooled", everything)):
            expected = [float(cross_entropy(twin(x).double(), y)) for x, y in batches]
            assert evidence.series(f"batch_loss_{way}") == pytest.approx(expected, rel=1e-5)
            assert evidence.value(f"loss_{way}") == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_an_excess_is_relative_and_paired():
    evidence, _, _ = examined(network(), sorted_batches(), ("triangle",))
    one, other = (evidence.series(f"batch_loss_{way}") for way in ("stored", "pooled"))
    excess = evidence.fact("excess_stored_over_pooled")
    assert excess.value == pytest.approx((one - other).mean() / other.mean())
    assert excess.low < excess.value < excess.high
    mirrored = evidence.fact("excess_pooled_over_stored")
    assert excess.p_value + mirrored.p_value == pytest.approx(1)


def test_equal_ways_have_no_excess():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5, momentum=None))
    batches = [(torch.randn(16, 3, 8, 8), torch.randint(5, (16,)))] * 4  # the same one, four times
    for x, _ in batches:
        model(x)
    evidence, _, _ = examined(model, batches, ("triangle", "stale"))
    # Pooled statistics hold the unbiased variance, as PyTorch's do: outputs are smaller by 1 / (2 * 64).
    assert abs(evidence.value("excess_batch_over_pooled")) < 0.01
    assert evidence.value("stale_share", "2") == 0
    assert evidence.value("mean_gap", "2") < 1e-5
    assert evidence.value("variance_gap", "2") < 0.02  # Bessel's factor is taken out


def test_without_labels_outputs_are_compared():
    batches = [x for x, _ in sorted_batches()]
    evidence, found, _ = examined(network(), batches, ("triangle",))
    assert not found.missing
    assert evidence.fact("loss_stored") is None
    assert evidence.value("distance_stored") > 0.3
    assert evidence.fact("distance_stored").low < evidence.value("distance_stored") < 5


def test_the_gap_is_in_pooled_standard_deviations():
    model, batches = network(), sorted_batches()
    evidence, _, statistics = examined(model, batches, ("stale",))
    mean, sd = statistics.mean["1"], statistics.variance["1"].sqrt()
    expected = (model[1].running_mean.double() - mean).abs() / sd
    assert evidence.channels("mean_gap", "1") == pytest.approx(expected.numpy(), rel=1e-6)
    size = 16 * 36
    logs = (1.0 * (size - 1) / size / statistics.variance["1"]).log().abs()
    assert evidence.channels("variance_gap", "1") == pytest.approx(logs.numpy(), rel=1e-6)


def test_a_batch_of_one_sample_has_no_losses_of_its_own_and_spoils_nothing():
    model = network()
    batches = [*sorted_batches(4), (torch.randn(1, 3, 8, 8), torch.randint(5, (1,)))]
    evidence, found, _ = examined(model, batches, ("triangle",))
    assert not found.missing
    assert evidence.series("batch_loss_batch").size == 5
    assert math.isnan(evidence.series("batch_loss_batch")[4])
    assert math.isfinite(evidence.value("loss_batch"))


def test_what_is_missing_says_why():
    _, found, _ = examined(network(), sorted_batches(2), ("validation", "copies"))
    assert found.missing == {"validation": "needs val_loader=", "copies": "needs reference="}
    with untouched(nn.Linear(2, 2)) as origin, pytest.raises(NotMeasuredError, match="no layer has running statistics"):
        patient = Patient(nn.Linear(2, 2), [torch.randn(4, 2)], origin)
        from bnprobe.measures.evidence import triangle

        triangle.measure(patient)


def test_copies_and_validation_end_to_end():
    torch.manual_seed(1)
    model, batches = network(), [(torch.randn(32, 3, 8, 8), torch.randint(5, (32,))) for _ in range(16)]
    fresh = copy.deepcopy(model)
    for x, _ in 4 * batches:
        model(x)  # fills the statistics
    model.eval()
    batches = [(x, model(x).argmax(1)) for x, _ in batches]  # what it has learned
    shifted = [(0.4 * x + 1.5, y) for x, y in batches]
    codes = {one.code for one in bnprobe.diagnose(model, batches, select=["N02", "N25", "N26"]).findings}
    assert not codes
    report = bnprobe.diagnose(model, batches, val_loader=shifted, reference=fresh, select=["N02", "N25", "N26"])
    assert {one.code for one in report.findings} == {"N25", "N26"}
    copies = next(one for one in report.findings if one.code == "N25")
    assert copies.summary.startswith("the reference's running statistics do not fit its own weights")
    assert {one.code for one in bnprobe.diagnose(fresh.eval(), batches, select=["N02"]).findings} == {"N02"}
