import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bnprobe.errors import ArgumentError, NotMeasuredError
from bnprobe.measures.loss import checked_loss, loss_or_cross_entropy


def test_cross_entropy_where_the_batch_has_labels():
    model, x, y = nn.Linear(3, 4), torch.randn(5, 3), torch.arange(5) % 4
    assert torch.equal(loss_or_cross_entropy(None, (x, y))(model, (x, y)), cross_entropy(model(x), y))
    assert loss_or_cross_entropy(cross_entropy, None) is cross_entropy


@pytest.mark.parametrize("batch", [torch.ones(2), (torch.ones(2),), (torch.ones(2), torch.ones(2)), {"x": 1}])
def test_without_labels_it_asks_for_a_loss(batch):
    with pytest.raises(ArgumentError, match=r"needs loss: \(model, batch\) -> scalar tensor"):
        loss_or_cross_entropy(None, batch)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1.0, "got float"),
        (torch.ones(3, requires_grad=True), r"got torch.float32 of shape \(3,\)"),
        (torch.ones(()), r"got torch.float32 of shape \(\) without a graph"),
        (torch.ones((), dtype=torch.complex64, requires_grad=True), "got torch.complex64"),
    ],
)
def test_a_loss_is_one_number_with_a_gradient(value, said):
    with pytest.raises(NotMeasuredError, match=f"the loss must be one number with a gradient; {said}"):
        checked_loss(value)


def test_a_loss_of_one_element_is_a_scalar():
    assert checked_loss(torch.ones(1, 1, requires_grad=True)).shape == ()
