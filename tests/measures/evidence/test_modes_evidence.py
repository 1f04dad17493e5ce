"""Swap, dispatch, freeze, step, evaluation, precision, checkpoint and parity on small real models."""

import copy
import math
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from bnprobe.errors import NotMeasuredError
from bnprobe.measures.evidence import Given, Patient, examine
from bnprobe.measures.evidence.mates import change, company
from bnprobe.measures.untouched import untouched


def data(batches=6, size=16, width=4, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, width, generator=draw), torch.randint(3, (size,), generator=draw)) for _ in range(batches)
    ]


def mlp(norm=nn.BatchNorm1d):
    return nn.Sequential(nn.Linear(4, 8), norm(8), nn.ReLU(), nn.Linear(8, 3))


@contextmanager
def patient_of(model, loader=None, intent=None, **given):
    with untouched(model) as origin:
        patient = Patient(model, data() if loader is None else loader, origin, Given(**given), intent)
        _ = patient.modes
        yield patient


def facts_of(name, model, loader=None, intent=None, **given):
    with patient_of(model, loader, intent, **given) as patient:
        found = examine(patient, [name])
    assert name not in found.missing, found.missing
    return {(fact.statistic, fact.layer): fact for fact in found.facts}


def why_not(name, model, loader=None, **given):
    with patient_of(model, loader, **given) as patient:
        return examine(patient, [name]).missing[name]


# swap ----------------------------------------------------------------------------------------------------------------


def test_swap_is_nothing_in_evaluation_mode_and_something_in_training_mode():
    seen = facts_of("swap", mlp().eval())
    assert seen["swap_change", ""].value < 1e-5
    seen = facts_of("swap", mlp().train(), intent="serve")
    assert seen["swap_change", ""].value > 0.05
    assert seen["swap_change", ""].low <= seen["swap_change", ""].value <= seen["swap_change", ""].high
    assert seen["swap_exact", ""].value == 1
    assert seen["swap_without_norms", ""].value < 1e-9  # held still, nothing couples samples


def test_swap_after_eval_where_nothing_was_said():
    seen = facts_of("swap", mlp().train())
    assert seen["swap_after_eval", ""].value == 1
    assert seen["swap_change", ""].value < 1e-5
    assert seen["swap_change_handed", ""].value > 0.05


def test_swap_by_hand():
    """A model that adds the mean of the batch: the change is that of the mean, over the outputs' deviation."""

    class Adds(nn.Module):
        def forward(self, x):
            return x + 3 * x.mean(0)

    model, loader = Adds().double().eval(), [(x.double(), y) for x, y in data()]
    with patient_of(model, loader) as patient:
        found = company(patient)
        got = change(patient.outputs, found)
    means = [3 * batch[0].mean(0) for batch in found.batches]
    rows = torch.cat([batch[0] + 3 * batch[0].mean(0) for batch in found.batches])
    scale = rows.var(0, correction=0).mean().sqrt()
    assert got.value == pytest.approx(max(float((means[0] - one).abs().mean() / scale) for one in means[1:]))
    assert got.noise == 0


def test_swap_tells_normalization_from_other_couplings():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(x) + (x @ x.T).softmax(1) @ x

    seen = facts_of("swap", Attends().eval())
    assert seen["swap_without_norms", ""].value > 0.9 * seen["swap_change", ""].value > 0.01


def test_swap_holds_norms_of_other_peoples_making_still():
    class HandMadeBatchNorm(nn.Module):
        def forward(self, x):
            return (x - x.mean(0)) / (x.var(0) + 1e-5).sqrt()

    seen = facts_of("swap", nn.Sequential(nn.Linear(4, 8), HandMadeBatchNorm(), nn.Linear(8, 3)).eval())
    assert seen["swap_change", ""].value > 0.05
    assert seen["swap_without_norms", ""].value < 1e-9


def test_swap_is_not_misled_by_dropout():
    seen = facts_of("swap", nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train(), intent="serve")
    assert seen["swap_random", ""].value > 0.05
    assert seen["swap_change", ""].value < 1e-5


def test_swap_sees_what_happens_to_a_sample_alone():
    class Shy(nn.Module):
        def forward(self, x):
            return x if len(x) > 1 else 0 * x

    seen = facts_of("swap", Shy().eval())
    assert seen["swap_change", ""].value == 0
    assert seen["swap_alone", ""].value > 0.3


def test_swap_of_one_batch_and_of_single_samples():
    assert facts_of("swap", mlp().train(), data(1), intent="serve")["swap_change", ""].value > 0.05
    assert facts_of("swap", mlp().eval(), data(6, 1))["swap_change", ""].value < 1e-5


def test_swap_says_why_not():
    class Whole(nn.Module):
        def forward(self, x):
            return x.reshape(16, 4)

    assert "no row a sample" in why_not("swap", nn.Sequential(mlp(), nn.Flatten(0)).eval())
    assert "the same for all samples" in why_not("swap", nn.Sequential(nn.Linear(4, 3), nn.Threshold(1e9, 0.0)).eval())
    assert "needs more samples" in why_not("swap", mlp().eval(), data(1, 2))
    assert facts_of("swap", Whole().eval())["swap_change", ""].value == 0  # batches as large as served are no problem


# dispatch ------------------------------------------------------------------------------------------------------------


class Hidden(nn.Module):
    """Norm layers that are made in forward, or held in a list."""

    def __init__(self, make, held=True):
        super().__init__()
        self.linear, self.make, self.held = nn.Linear(4, 8), make, [make()] if held else []

    def forward(self, x):
        return (self.held[0] if self.held else self.make())(self.linear(x))


@pytest.mark.parametrize("held", [True, False])
def test_dispatch_finds_unregistered_layers(held):
    seen = facts_of("dispatch", Hidden(lambda: nn.BatchNorm1d(8), held))
    assert seen["unregistered_norms", ""].value == 1
    assert seen["created_norms", ""].value == (not held)
    assert seen["unregistered_by_batch", ""].value == 1
    assert seen["unregistered_trainable", ""].value == 1


def test_dispatch_leaves_hidden_teachers_and_weightless_norms_alone():
    teacher = facts_of("dispatch", Hidden(lambda: nn.BatchNorm1d(8).eval().requires_grad_(False)))
    assert teacher["unregistered_by_batch", ""].value == 0
    assert teacher["unregistered_trainable", ""].value == 0
    weightless = facts_of("dispatch", Hidden(lambda: nn.LayerNorm(8, elementwise_affine=False), False))
    assert ("unregistered_norms", "") not in weightless


def test_dispatch_of_registered_layers_only():
    seen = facts_of("dispatch", mlp())
    assert seen["norm_calls", ""].value == 1
    assert {name for name, _ in seen} == {"norm_calls", "unseen_parts"}
    assert facts_of("dispatch", torch.jit.script(mlp().eval()))["unseen_parts", ""].value > 0


def test_dispatch_names_the_caller_of_a_functional_norm():
    class Functional(nn.Module):
        def forward(self, x):
            return F.batch_norm(x, None, None, training=True)

    seen = facts_of("dispatch", nn.Sequential(nn.Linear(4, 8), Functional()))
    assert seen["functional_by_batch", "1"].value == 1


def test_dispatch_asks_whether_eval_reaches():
    class Shield(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def train(self, mode=True):
            self.training = mode
            return self

        def forward(self, x):
            return self.inner(x)

    assert facts_of("dispatch", Shield())["eval_unreached", "inner.1"].value == 1


# freeze --------------------------------------------------------------------------------------------------------------


def test_freeze_moves_by_momentum_times_the_distance():
    model = mlp().train()
    model[1].requires_grad_(False)
    loader = [(x + 3, y) for x, y in data()]
    seen = facts_of("freeze", model, loader)
    with torch.no_grad():
        batch = model[0](loader[0][0]).double()
    expected = float((0.1 * batch.mean(0)).abs().max())  # from running means of 0 and variances of 1
    assert seen["frozen_move", "1"].value == pytest.approx(expected, rel=1e-4)
    assert seen["frozen_output_drift", ""].value > 0.1
    assert "frozen_loss_drift" in {name for name, _ in seen}


def test_freeze_knows_what_is_frozen():
    model = mlp(lambda width: nn.BatchNorm1d(width, affine=False)).train()
    assert facts_of("freeze", model)["frozen_training", ""].value == 0
    model.requires_grad_(False)
    assert facts_of("freeze", model)["frozen_training", ""].value == 1
    assert facts_of("freeze", model.eval())["frozen_training", ""].value == 0
    assert facts_of("freeze", mlp().train(), intent="frozen")["frozen_training", ""].value == 1


# step ----------------------------------------------------------------------------------------------------------------


def stepper(model, times=1, optimizer=None):
    optimizer = torch.optim.Adam(model.parameters(), 1e-2) if optimizer is None else optimizer

    def step(batch):
        optimizer.zero_grad()
        for _ in range(times):
            F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    return optimizer, step


@pytest.mark.parametrize("times", [1, 3])
def test_step_counts_updates(times):
    model = mlp().train()
    optimizer, step = stepper(model, times)
    seen = facts_of("step", model, step=step, optimizer=optimizer)
    assert seen["updates_per_step", "1"].value == times
    assert seen["optimizer_steps", ""].value == 1
    assert seen["repeated_calls", "1"].value == times - 1
    assert seen["weights_during_step", ""].value == 1
    assert seen["affine_moved", "1"].value == 1
    assert seen["recomputed_calls", "1"].value == 0


def test_step_does_not_count_passes_that_move_nothing():
    model = mlp().train()

    def step(batch):
        model(batch[0])
        model[1].momentum = 0.0
        model(batch[0])
        model[1].momentum = 0.1

    seen = facts_of("step", model, step=step)
    assert seen["calls_per_step", "1"].value == 2
    assert seen["updates_per_step", "1"].value == 1


def test_step_is_undone_bit_by_bit():
    model, teacher = mlp().train(), mlp().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    plain_optimizer, plain = stepper(model, optimizer=optimizer)
    plain(data(1)[0])
    assert plain_optimizer is optimizer

    def step(batch):
        plain(batch)
        schedule.step()
        teacher(batch[0])

    state = next(iter(optimizer.state.values()))
    before = copy.deepcopy((model.state_dict(), teacher.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    grads = [one.grad.clone() for one in model.parameters()]
    facts_of("step", model, step=step, optimizer=optimizer)
    after = (model.state_dict(), teacher.state_dict(), optimizer.state_dict(), schedule.state_dict())
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(dict(one), dict(other), rtol=0, atol=0)
    assert next(iter(optimizer.state.values())) is state
    assert "step" not in vars(optimizer) or vars(optimizer)["step"].__name__ != "counted"
    assert all(torch.equal(one, other.grad) for one, other in zip(grads, model.parameters(), strict=True))


def test_step_that_raises_is_undone():
    model = mlp().train()
    before = copy.deepcopy(model.state_dict())

    def step(batch):
        model(batch[0])
        raise RuntimeError("no more data")

    assert "no more data" in why_not("step", model, step=step)
    torch.testing.assert_close(dict(before), dict(model.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_step_sees_recomputation_without_a_step(reentrant):
    class Saves(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = mlp(), nn.Linear(3, 3)

        def forward(self, x):
            return self.head(recompute(self.body, x, use_reentrant=reentrant))

    seen = facts_of("step", Saves().train())
    assert seen["updates_per_step", "body.1"].value == 2
    assert seen["recomputed_calls", "body.1"].value == 1
    assert facts_of("step", mlp().train())["updates_per_step", "1"].value == 1


def test_step_sees_weights_change_between_passes():
    model = mlp().train()

    def step(batch):
        model(batch[0])
        with torch.no_grad():
            model[0].weight.data.add_(0.1)
        model(batch[0])

    assert facts_of("step", model, step=step)["weights_during_step", ""].value == 2


def test_step_needs_training():
    assert "handed over in evaluation mode" in why_not("step", mlp().eval())


# evaluation ----------------------------------------------------------------------------------------------------------


def test_evaluation_in_training_mode_moves_statistics_and_is_undone():
    model = mlp().train()
    before = copy.deepcopy(model.state_dict())

    def evaluate(model):
        with torch.no_grad():
            for x, _ in data(3, seed=2):
                model(x + 5)

    seen = facts_of("evaluation", model, evaluate=evaluate)
    assert seen["evaluate_updates", "1"].value == 3
    assert seen["evaluate_move", "1"].value > 0.1
    assert seen["evaluate_output_drift", ""].value > 0.1
    torch.testing.assert_close(dict(before), dict(model.state_dict()), rtol=0, atol=0)


def test_evaluation_in_evaluation_mode():
    model = mlp().train()

    def evaluate():
        model.eval()
        model(data(1)[0][0])

    seen = facts_of("evaluation", model, evaluate=evaluate)
    assert seen["evaluate_move", "1"].value == 0
    assert seen["evaluate_other_modes", ""].value == 5
    assert model.training
    assert "needs evaluate=" in why_not("evaluation", mlp())


# precision -----------------------------------------------------------------------------------------------------------


def test_precision_of_half_buffers():
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=1e-3)).bfloat16().train()
    with torch.no_grad():
        model[0].running_mean.fill_(1.0)  # 1e-3 times the distance of 2 is less than half of its last place
    loader = [((x + 3).bfloat16(), y) for x, y in data()]
    assert facts_of("precision", model, loader)["stagnant_share", "0"].value == 1
    model[0].momentum = 0.5
    assert facts_of("precision", model, loader)["stagnant_share", "0"].value == 0
    single = facts_of("precision", mlp())
    assert single["buffer_bits", "1"].value == 32
    assert ("stagnant_share", "1") not in single


# checkpoint ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "net.backbone."])
@pytest.mark.parametrize("nested", [True, False])
def test_checkpoint_under_any_prefix(prefix, nested):
    model = mlp()
    whole = {prefix + name: value for name, value in model.state_dict().items()}
    lacking = {name: value for name, value in whole.items() if "running_" not in name}
    for held, expected in ((whole, 0), (lacking, 1)):
        given = {"epoch": 3, "state_dict": held, "optimizer": {"state": {}}} if nested else held
        seen = facts_of("checkpoint", model, state_dict=given)
        assert seen["checkpoint_lacks", "1"].value == expected
        assert seen["checkpoint_share", ""].value == 1
        assert seen["checkpoint_affine", "1"].value == 1


def test_checkpoint_of_parts_and_of_others():
    model = mlp()
    head = {name: value for name, value in model.state_dict().items() if name.startswith("3.")}
    seen = facts_of("checkpoint", model, state_dict=head)
    assert seen["checkpoint_affine", "1"].value == 0
    assert seen["checkpoint_share", ""].value == pytest.approx(2 / 6)
    assert "no entry of this model" in why_not("checkpoint", model, state_dict={"x": torch.zeros(1)})
    assert "needs state_dict=" in why_not("checkpoint", model)


# parity --------------------------------------------------------------------------------------------------------------


def test_parity_of_the_same_and_of_another():
    model = mlp().eval()
    same = facts_of("parity", model, exported=copy.deepcopy(model))
    assert same["parity_gap", ""].value == 0
    assert same["parity_noise", ""].value < 1e-5
    assert same["swap_change_exported", ""].value < 1e-5
    other = copy.deepcopy(model)
    other[3].bias.data += 0.5
    with patient_of(model) as patient:
        scale = torch.cat([patient.outputs(batch) for batch in patient.batches]).var(0, correction=0).mean().sqrt()
    seen = facts_of("parity", model, exported=other)
    assert seen["parity_gap", ""].value == pytest.approx(0.5 / float(scale), rel=1e-4)
    assert seen["parity_rms", ""].value == pytest.approx(0.5 / float(scale), rel=1e-4)


def test_parity_sees_what_was_traced_in_training_mode():
    model = mlp().train()
    traced = torch.jit.trace(model, data(1)[0][0], check_trace=False)
    seen = facts_of("parity", model.eval(), exported=traced)
    assert seen["swap_change_exported", ""].value > 0.05


def test_parity_with_a_callable_of_one_size():
    model = mlp().eval()

    def exported(x):
        if len(x) != 16:
            raise ValueError("16 samples are wanted")
        return model(x)

    loader = [*data(3), (data(1)[0][0][:5], data(1)[0][1][:5])]
    assert facts_of("parity", model, loader, exported=exported)["parity_gap", ""].value == 0
    assert "takes none of the batches" in why_not("parity", model, data(3, 8), exported=exported)
    assert "outputs of shape (16, 8)" in why_not("parity", model, exported=model[0])


def test_parity_tells_the_spread_of_fold_gains():
    model = mlp().eval()
    with torch.no_grad():
        model[1].running_var[0] = 1e-8
    seen = facts_of("parity", model, exported=model)
    assert seen["fold_gain_spread", "1"].value == pytest.approx(math.sqrt((1 + 1e-5) / (1e-8 + 1e-5)), rel=1e-3)


def test_company_wants_samples_that_fit_together():
    with (
        patient_of(mlp().eval(), [torch.randn(1, 4)]) as patient,
        pytest.raises(NotMeasuredError, match="more samples"),
    ):
        company(patient)
