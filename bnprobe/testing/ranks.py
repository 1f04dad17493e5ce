"""A layer in several processes that share one batch: what ``torchrun`` would do, for a check of a few seconds."""

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

__all__ = ["RanksFailed", "Share", "in_ranks"]

_PATIENCE = 60.0  # seconds; ours: ranks that wait for each other longer than a start takes wait for ever


class RanksFailed(Exception):  # noqa: N818 - a property makes it a broken law
    """A rank raised, or the ranks did not come to an end; the message says which and why."""


@dataclass(frozen=True)
class Share:
    """What one rank gets of one batch.

    Attributes:
        state: of the layer before, as ``state_dict`` has it.
        x: its samples.
        g: gradient at its output.
    """

    state: Mapping[str, Any]
    x: Tensor
    g: Tensor


def in_ranks(
    make: Callable[[int], nn.Module], channels: int, batches: Sequence[Sequence[Share]], device: str
) -> list[list[dict[str, Any]]]:
    """Run forward and backward of each batch in as many processes as it has shares, in training mode.

    A process group of the backend gloo joins them, which takes tensors of CPU and GPU; all ranks use the same device.

    Args:
        make: ``channels -> module``; other processes must be able to import it.
        channels: that it is made with.
        batches: for each, one share a rank.
        device: of the layer.

    Returns:
        For each batch and rank: output ``y``, input gradient ``x``, by name the ``parameters``' gradients, and the
        ``buffers`` afterwards.

    Raises:
        RanksFailed: a rank raised, or waited for another for a minute.
    """
    count = len(batches[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save([[vars(share) for share in shares] for shares in batches], folder / "shares.pt")
        processes = [
            _context().Process(target=_rank, args=(rank, count, make, channels, device, name), daemon=True)
            for rank in range(count)
        ]
        try:
            for process in processes:
                process.start()
            end = time.monotonic() + _PATIENCE
            for process in processes:
                process.join(max(0.0, end - time.monotonic()))
            return _results(folder, count, len(batches))
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                    process.join()


def _context() -> Any:
    """Forked from a process that has torch and no threads, where there are forks: a start takes no second then."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _results(folder: Path, count: int, batches: int) -> list[list[dict[str, Any]]]:
    # The first to raise has the reason: others lose their connection to it.
    for told in sorted(folder.glob("error-*.txt"), key=lambda one: one.stat().st_mtime_ns):
        raise RanksFailed(f"rank {told.stem.removeprefix('error-')} raised {told.read_text()}")
    missing = [str(rank) for rank in range(count) if not (folder / f"result-{rank}.pt").exists()]
    if missing:
        raise RanksFailed(f"the ranks waited for each other without end, or died: no result of {', '.join(missing)}")
    found = [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(count)]
    return [[found[rank][i] for rank in range(count)] for i in range(batches)]


def _rank(rank: int, count: int, make: Callable[[int], nn.Module], channels: int, device: str, name: str) -> None:
    """One process: its share of every batch."""
    folder = Path(name)
    torch.set_num_threads(1)
    try:
        patience = timedelta(seconds=_PATIENCE / 2)
        distributed.init_process_group("gloo", f"file://{folder / 'store'}", patience, count, rank)
        shares = torch.load(folder / "shares.pt", weights_only=True)
        torch.save([_pass(make(channels), each[rank], device) for each in shares], folder / f"result-{rank}.pt")
        distributed.destroy_process_group()
    except Exception as error:  # it is told to the parent
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        (folder / f"error-{rank}.txt").write_text(text)


def _pass(module: nn.Module, share: Mapping[str, Any], device: str) -> dict[str, Any]:
    module = module.to(device, share["x"].dtype).train()
    module.load_state_dict(share["state"])
    x = share["x"].to(device).requires_grad_()
    y = module(x)
    y.backward(share["g"].to(device))
    gradients = {name: None if one.grad is None else one.grad.cpu() for name, one in module.named_parameters()}
    return {
        "y": y.detach().cpu(),
        "x": x.grad if x.grad is None else x.grad.cpu(),
        "parameters": gradients,
        "buffers": {name: one.cpu() for name, one in module.named_buffers()},
    }
