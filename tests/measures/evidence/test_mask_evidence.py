import pytest
import torch
from torch import nn

from bnprobe.diagnose import diagnose
from bnprobe.errors import NotMeasuredError
from bnprobe.measures.evidence import Given, Patient
from bnprobe.measures.evidence.mask import measure, valid
from bnprobe.measures.evidence.padding import find, lengths_of, runs
from bnprobe.measures.untouched import untouched
from bnprobe.rules import Severity


def padded(count=32, length=20, mean=2.0, least=4):
    """Sequences ``[N, T, 3]`` about ``mean``, zeros behind their lengths."""
    lengths = torch.randint(least, length + 1, (count,))
    lengths[0] = length
    x = mean + torch.randn(count, length, 3)
    return x * (torch.arange(length) < lengths[:, None])[..., None], lengths


def examined(model, batches, look, **given):
    with untouched(model) as origin:
        return look(Patient(model, batches, origin, Given(**given)))


class Model(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm, self.head = norm, nn.Linear(3, 2)

    def forward(self, x):
        return self.head(torch.relu(self.norm(x.transpose(1, 2))).amax(2))


def test_runs():
    x = torch.tensor([[1, 2, 0, 0], [0, 0, 1, 2], [3, 3, 3, 3]])
    assert runs(x, 1).tolist() == [2, 1, 4]
    assert runs(x, 1, trailing=False).tolist() == [1, 2, 4]
    assert lengths_of(x, 1).tolist() == [2, 4, 1]


def test_lengths_are_found():
    x, lengths = padded()
    found = examined(nn.Linear(3, 2), [x], find)
    assert (found.place, found.axis, found.sizes) == (0, 1, (20,))
    expected = torch.where(lengths == 19, 20, lengths)  # a run of one is no padding
    assert found.lengths[0].tolist() == expected.tolist()
    assert found.share == pytest.approx(1 - float(expected.sum()) / (32 * 20))


def test_lengths_that_were_given():
    x, lengths = padded(mean=0.0)
    found = examined(nn.Linear(3, 2), [(x, lengths)], find, lengths=lambda batch: batch[1])
    assert found.lengths[0].tolist() == lengths.tolist()
    with pytest.raises(NotMeasuredError, match="one number a sample"):
        examined(nn.Linear(3, 2), [(x, lengths)], find, lengths=lambda batch: batch[0])
    with pytest.raises(NotMeasuredError, match="no tensor of a batch has an axis of 99"):
        examined(nn.Linear(3, 2), [x], find, lengths=lambda _: torch.full((32,), 99))


def test_tokens():
    tokens = torch.randint(1, 50, (32, 12))
    lengths = torch.randint(3, 13, (32,))
    tokens[torch.arange(12) >= lengths[:, None]] = 0
    assert examined(nn.Linear(3, 2), [tokens], find).share > 0.2


def no_padding():
    disc = torch.linspace(-1, 1, 16)[:, None] ** 2 + torch.linspace(-1, 1, 16) ** 2 < 0.5
    yield torch.randn(32, 20, 3)
    yield torch.randn(32, 3, 16, 16) * disc  # empty on all sides
    yield nn.functional.pad(torch.randn(32, 14, 3), (0, 0, 0, 6))  # a margin
    yield torch.randn(32, 20, 3).relu()


@pytest.mark.parametrize("x", list(no_padding()), ids=["none", "border", "margin", "zeros"])
def test_what_is_no_padding(x):
    with pytest.raises(NotMeasuredError, match="no padding was found"):
        examined(nn.Linear(3, 2), [x], find)


def test_valid_positions_in_every_layout():
    lengths = torch.tensor([4, 2])
    assert valid(torch.zeros(2, 3, 4), 1, lengths, 4).tolist() == [[True] * 4, [True, True, False, False]]
    assert valid(torch.zeros(2, 3, 2), 1, lengths, 4).tolist() == [[True, True], [True, False]]
    assert valid(torch.zeros(8, 3), 1, lengths, 4).tolist() == [True] * 6 + [False] * 2
    assert valid(torch.zeros(2, 3, 5, 4), 1, lengths, 4).sum().item() == 5 * 6
    assert valid(torch.zeros(6, 3), 1, lengths, 4) is None  # packed


def test_shift_by_the_formula():
    batches = [padded(256, mean=2.0)[0] for _ in range(8)]
    found = {one.statistic: one for one in examined(Model(nn.BatchNorm1d(3)), batches, measure)}
    share = 1 - found["padding_share"].value
    # q m against m, and q s^2 + q (1 - q) m^2 against s^2, with m = 2 and s = 1; runs of one are taken for data
    assert found["padding_shift"].value == pytest.approx((1 - share) * 2, abs=0.1)
    variance = share + share * (1 - share) * 4
    assert found["padding_log_variance"].value == pytest.approx(abs(torch.tensor(variance).log().item()), abs=0.1)


def test_means_follow_the_share_of_padding():
    batches = [padded(32, least=least)[0] for least in range(2, 20, 2)]
    found = {one.statistic: one for one in examined(Model(nn.BatchNorm1d(3)), batches, measure)}
    assert found["padding_slope"].value > 0.8
    assert found["padding_slope"].p_value < 0.01


class Masked(nn.BatchNorm1d):
    """A norm of the user's own, which may well leave padding out."""


@pytest.mark.parametrize(
    ("norm", "training", "severe"),
    [
        (nn.BatchNorm1d(3), True, True), (nn.BatchNorm1d(3), False, False), (Masked(3), True, False),
        (nn.GroupNorm(1, 3), False, True),
    ],
)  # fmt: skip
def test_diagnosis(norm, training, severe):
    model = Model(norm).train(training)
    batches = [padded(mean=3.0)[0][:, :18] for _ in range(8)]
    found = diagnose(model, batches, select=["N14"])
    assert any(one.severity >= Severity.WARNING for one in found.findings) == severe
