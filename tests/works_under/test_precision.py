"""Number formats, memory layouts and autograd modes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnprobe
from tests.cases import CASES, batches, cnn, mlp
from tests.works_under.naive import (
    DEFAULT,
    EXACT,
    LARGE,
    Naive,
    agree,
    assert_same,
    check,
    plain_loop,
    snapshot,
    trained,
    why,
)

pytestmark = pytest.mark.usefixtures("no_hooks_left")


def listened(model, run, statistics=EXACT, without=(), rel=1e-9):
    """``run()`` under naive hooks and under a probe at once."""
    naive = Naive(model)
    with bnprobe.attach(model, *statistics, sample=LARGE) as probe:
        run()
    agree(probe.run, naive.seen, rel, without)
    return probe


@pytest.mark.works_under("ordinary training", group="Precision")
@pytest.mark.parametrize("name", CASES)
def test_ordinary_training(name):
    make, shape = CASES[name]
    probe = check(make, plain_loop(batches(shape, 3)))
    assert probe.run.layers.observed.all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(torch.no_grad, marks=pytest.mark.works_under("no_grad", group="Precision")),
        pytest.param(torch.inference_mode, marks=pytest.mark.works_under("inference_mode", group="Precision")),
    ],
)
def test_no_grad_and_inference_mode(mode, training):
    for statistics, rel in ((EXACT, 1e-9), (DEFAULT, 2e-5)):
        model = cnn().train(training)

        def run(model=model):
            with mode():
                model(torch.randn(4, 3, 9, 9))

        probe = listened(model, run, statistics, rel=rel)
        assert set(probe.run.frame().phase) == {"train" if training else "eval"}
        assert not why(probe)


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.bfloat16, marks=pytest.mark.works_under("autocast to bfloat16", group="Precision")),
        pytest.param(torch.float16, marks=pytest.mark.works_under("autocast to float16", group="Precision")),
    ],
)
@pytest.mark.parametrize("make", [cnn, mlp])
def test_autocast(make, dtype):
    shape = (4, 3, 9, 9) if make is cnn else (16, 6)

    def loop(model, optimizer):
        for x, y in batches(shape, 2):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()

    # Batch norm saves what it computed in the layer's own arithmetic, float32 statistics of half-precision values.
    check(make, loop, rel=(1e-9, 1e-4))


@pytest.mark.works_under("whole models in bfloat16, float16", group="Precision")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_whole_models_in_half_precision(dtype):
    data = [(x.to(dtype), y) for x, y in batches((8, 3, 6, 6), 2)]
    check(lambda: cnn().to(dtype), plain_loop(data), rel=(1e-9, 1e-4))


@pytest.mark.works_under("double precision", group="Precision")
def test_double_precision():
    """The default statistics are as precise as the model."""
    data = [(x.double(), y) for x, y in batches((8, 3, 6, 6), 2)]
    check(lambda: cnn().double(), plain_loop(data), rel=(1e-9, 1e-9))


@pytest.mark.works_under("channels_last", group="Precision")
def test_channels_last():
    data = [(x.to(memory_format=torch.channels_last), y) for x, y in batches((8, 3, 6, 6), 2)]
    make = lambda: cnn().to(memory_format=torch.channels_last)  # noqa: E731
    check(make, plain_loop(data))
    model, _, _ = trained(make, lambda *_: None)
    x = data[0][0]
    means = model[0](x).mean((0, 2, 3)).detach()
    for statistics in (EXACT, DEFAULT):  # a channel is a channel, wherever it lies in memory
        with bnprobe.attach(model, *statistics, sample=50) as listening:
            model(x)
        torch.testing.assert_close(
            torch.tensor(listening.run.channels("1", "mean").iloc[0]), means.double(), rtol=1e-5, atol=1e-6
        )


class Strided(nn.Module):
    """Layers that read transposed, expanded, sliced and flipped tensors."""

    def __init__(self):
        super().__init__()
        self.transposed, self.expanded, self.sliced = nn.Linear(4, 5), nn.LayerNorm(5), nn.BatchNorm1d(3)
        self.act, self.head = nn.ReLU(), nn.Linear(3, 3)

    def forward(self, x):  # [N, 4, 6]
        x = self.transposed(x.transpose(1, 2))
        x = self.expanded(x[:, :1].expand(-1, 6, -1))
        x = self.act(self.sliced(x[..., ::2].transpose(1, 2)).transpose(1, 2)[:, ::2])
        return self.head(x.mean(1))


@pytest.mark.works_under("non-contiguous tensors", group="Precision")
def test_non_contiguous():
    check(Strided, plain_loop(batches((8, 4, 6), 2)))
    model, x = Strided(), torch.randn(300, 4, 6)
    naive = Naive(model)
    with bnprobe.attach(model, sample=500) as probe:  # sampled places of strided tensors hold values of the tensor
        model(x)
    for (_, _, name, _, place), parts in naive.seen.items():
        if name:
            low, high = (probe.run.frame(layer=name, place=place, statistic=one).value for one in ("min", "max"))
            assert low.isin(parts[0].numpy()).all()
            assert high.isin(parts[0].numpy()).all()


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head, self.act = nn.Linear(6, 6), nn.Linear(6, 3), nn.ReLU()
        self.spectrum = nn.Linear(6, 6, dtype=torch.complex64)

    def forward(self, x):
        return self.head(self.act(self.spectrum(torch.fft.fft(self.stem(x))).abs()))


@pytest.mark.works_under("complex outputs", group="Precision", verdict="not observed, listed why")
def test_complex_outputs():
    probe = check(Complex, plain_loop(batches((8, 6), 2)), without=["spectrum"])
    assert why(probe) == {"spectrum": "input: complex64 values"}


@pytest.mark.works_under("tensors on the meta device", group="Precision", verdict="not observed, listed why")
def test_a_branch_on_the_meta_device():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.here, self.nowhere, self.head = nn.Linear(6, 6), nn.Linear(6, 6, device="meta"), nn.Linear(6, 3)

        def forward(self, x):
            x = self.here(x)
            self.nowhere(x.detach().to("meta"))
            return self.head(x)

    probe = check(Mixed, plain_loop(batches((8, 6), 2)), without=["nowhere"])
    assert why(probe) == {"nowhere": "input: meta tensors hold no values"}


class TwoDevices(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6).cuda()
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.act(self.norm(self.first(x).cuda())).cpu())


@pytest.mark.gpu
@pytest.mark.works_under("two devices in one model", group="Precision", verdict="tested where a GPU is found")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_devices_in_one_model():
    check(TwoDevices, plain_loop(batches((8, 6), 3)))


# Gradient scaling.


def scaled_loop(data, scaler, overflows=()):
    def loop(model, optimizer):
        for step, (x, y) in enumerate(data):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y) * (float("inf") if step in overflows else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    return loop


def scaler_of(**settings):
    return torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2, **settings)


def fused(parameters):
    return torch.optim.SGD(parameters, lr=0.05, fused=True)


@pytest.mark.works_under("GradScaler (gradients unscaled)", group="Precision")
@pytest.mark.parametrize("statistics", [EXACT, DEFAULT])
@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, lr=0.05), fused], ids=["plain", "fused"])
def test_gradients_are_recorded_unscaled_where_the_scaler_is_given(statistics, optimizer):
    """Against training without a scaler: scales are powers of two, so that nothing is rounded differently."""
    data, norms = batches((16, 6), 5), []

    def naively(model, stepper):
        naive = Naive(model)
        stepper.register_step_pre_hook(lambda *_: norms.append(float(model[0].weight.grad.norm())))
        stepper.register_step_post_hook(naive.tick)
        return naive

    plain, _, naive = trained(mlp, plain_loop(data), optimizer, naively)
    scalers = [scaler_of(), scaler_of()]
    without = snapshot(*trained(mlp, scaled_loop(data, scalers[0]), optimizer)[:2])
    model, stepper, probe = trained(
        mlp,
        scaled_loop(data, scalers[1]),
        optimizer,
        lambda model, stepper: bnprobe.attach(model, *statistics, optimizer=stepper, scaler=scalers[1]),
    )
    probe.detach()
    assert_same(without, snapshot(model, stepper))
    assert scalers[0].state_dict() == scalers[1].state_dict()
    assert scalers[1].get_scale() == 2.0**14
    agree(probe.run, naive.seen, 2e-5)
    recorded = probe.run.frame(layer="0", statistic="grad_norm").value
    assert recorded.tolist() == pytest.approx(norms, rel=1e-5)
    assert not why(probe)
    torch.testing.assert_close(plain[0].weight, model[0].weight)


@pytest.mark.works_under("steps that GradScaler skips", group="Precision")
def test_a_step_that_the_scaler_skips_is_a_step():
    """Steps 1, 3 and 4 overflow; 4 is the last."""
    data, scaler = batches((16, 6), 5), scaler_of()
    _, _, probe = trained(
        mlp,
        scaled_loop(data, scaler, overflows=(1, 3, 4)),
        listen=lambda model, stepper: bnprobe.attach(model, *EXACT, optimizer=stepper, scaler=scaler),
    )
    assert probe.now == 4  # nobody knows yet that the fifth was skipped
    probe.detach()
    assert probe.now == 5
    frame = probe.run.frame(layer="6")
    counts = frame[(frame.place == "input") & (frame.statistic == "mean")]
    assert counts[["step", "count"]].to_numpy().tolist() == [[step, 16 * 12] for step in range(5)]
    broken = frame[(frame.place == "grad_output") & (frame.statistic == "nonfinite")]
    assert broken.value.tolist() == [0, 1, 0, 1, 1]
    assert set(frame[frame.statistic == "grad_norm"].step) == {0, 2}  # a skipped step has no update


@pytest.mark.works_under("GradScaler with accumulation", group="Precision")
def test_a_scaler_and_accumulation():
    data, scaler = batches((8, 6), 6), scaler_of()

    def loop(model, optimizer):
        for i, (x, y) in enumerate(data):
            loss = F.cross_entropy(model(x), y) * (float("inf") if i == 2 else 1.0)
            scaler.scale(loss).backward()
            if i % 2:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()

    _, _, probe = trained(
        mlp, loop, listen=lambda model, stepper: bnprobe.attach(model, *EXACT, optimizer=stepper, scaler=scaler)
    )
    probe.detach()
    counts = probe.run.frame(layer="0", place="input", statistic="mean")
    assert counts[["step", "count"]].to_numpy().tolist() == [[0, 96], [1, 96], [2, 96]]


@pytest.mark.works_under(
    "GradScaler that the probe was not given", group="Precision", verdict="observed, marked as scaled"
)
@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, lr=0.05), fused], ids=["plain", "fused"])
def test_scaled_gradients_are_marked_where_the_scaler_is_not_given(optimizer):
    data, norms = batches((16, 6), 1), []

    def listen(model, stepper):
        scheduler = torch.optim.lr_scheduler.StepLR(stepper, 5)  # wraps the optimizer's step
        return scheduler, bnprobe.attach(model, *EXACT, optimizer=stepper)

    _, _, (_, probe) = trained(mlp, scaled_loop(data, scaler_of()), optimizer, listen)
    probe.detach()
    plain, _, naive = trained(mlp, plain_loop(data), optimizer, lambda model, _: Naive(model))
    norms = float(plain[6].weight.grad.norm())
    scale = 2.0**12
    gradient = naive.seen[0, "train", "6", 0, "grad_output"][0]
    recorded = probe.run.frame(layer="6", place="grad_output", statistic="variance").value.iloc[0]
    assert recorded == pytest.approx(float(gradient.var(correction=0)) * scale**2, rel=1e-6)
    assert probe.run.frame(layer="6", statistic="grad_norm").value.iloc[0] == pytest.approx(norms, rel=1e-5)
    reason = "grad_output: multiplied by a GradScaler's scale; attach(scaler=...) undoes it"
    assert set(why(probe).values()) == {reason}


def test_a_wrong_scaler_is_named():
    with pytest.raises(bnprobe.errors.ArgumentError, match=r"scaler must be a torch\.amp\.GradScaler; got float"):
        bnprobe.attach(mlp(), scaler=2.0)
