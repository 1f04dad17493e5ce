"""Messages between the processes of a job through the key-value store of its process group: posted, never awaited.

No collective is called, so a process that posts never waits for one that does not read, and the other way round. What
is read has been written by this job's own processes, as with ``torch.distributed.all_gather_object``.
"""

import io
import pickle
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Inbox", "NoStore", "Outbox", "Store", "decode", "encode", "shared_store", "until", "world"]

Store = Any  # torch.distributed.Store; builds without torch.distributed have no such name

CHUNK_BYTES = 4 * 2**20  # a store's server takes payloads of 8 MB
BACKLOG_BYTES = 256 * 2**20  # posted and not read; ours, for they lie in the memory of the store's server
_POLL_SECONDS = 0.02


def world() -> tuple[int, int]:
    """Rank and size of the process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def shared_store() -> Store:
    """A place of our own in the process group's store."""
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    return PrefixStore("bnprobe", _get_default_store())


def until(there: Callable[[], bool], seconds: float) -> bool:
    """Ask again and again whether something is there; a store's own ``wait`` would keep others off its connection."""
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() >= end:
            return False
        time.sleep(_POLL_SECONDS)
    return True


class NoStore:
    """Stands where there is none; whatever is asked of it fails with the reason."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(self._why)


class Outbox:
    """Posts values under ``name``, in order.

    Raises (all methods):
        RuntimeError: the store cannot be reached.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name, self._next = store, name, 0
        self._unread: deque[tuple[str, int]] = deque()

    def full(self) -> bool:
        """Whether more lies there unread than may."""
        while self._unread and not self._store.check([self._unread[0][0]]):
            self._unread.popleft()
        return sum(size for _, size in self._unread) > BACKLOG_BYTES

    def closed(self) -> bool:
        """Whether the reader has said that it reads no more."""
        return bool(self._store.check([f"{self._name}/closed"]))

    def post(self, data: bytes) -> None:
        """One more message, cut into pieces; its first piece comes last, so that where that is, all is."""
        pieces = [data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES)] or [b""]
        key = f"{self._name}/{self._next}"
        for i in range(len(pieces) - 1, -1, -1):
            self._store.set(f"{key}/{i}", b"%d:" % len(pieces) + pieces[i])
        self._next += 1
        self._unread.append((f"{key}/0", len(data)))


class Inbox:
    """Takes what an :class:`Outbox` of the same ``name`` has posted."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name, self._next = store, name, 0

    def take(self) -> bytes | None:
        """The next message, or None where there is none as yet."""
        key = f"{self._name}/{self._next}"
        if not self._store.check([f"{key}/0"]):
            return None
        count, _, piece = self._store.get(f"{key}/0").partition(b":")
        pieces = [piece, *(self._store.get(f"{key}/{i}").partition(b":")[2] for i in range(1, int(count)))]
        for i in range(int(count) - 1, -1, -1):
            self._store.delete_key(f"{key}/{i}")
        self._next += 1
        return b"".join(pieces)

    def close(self) -> None:
        """Say that nothing more will be read."""
        self._store.set(f"{self._name}/closed", "1")


def encode(value: Any) -> bytes:
    """Any value as bytes; its tensors leave their device in one copy a device and type, each of them once."""
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol=5)
    pickler.dump(value)
    return pickle.dumps((stream.getvalue(), *pickler.packed()), protocol=5)


def decode(data: bytes) -> Any:
    """The value again, its tensors on the CPU."""
    structure, shapes, blocks = pickle.loads(data)
    tensors: list[Tensor] = [torch.empty(0)] * len(shapes)
    for dtype, rows, block in blocks:
        flat = torch.frombuffer(bytearray(block), dtype=dtype) if block else torch.empty(0, dtype=dtype)
        parts = torch.split(flat, [shapes[row].numel() for row in rows])
        for row, part in zip(rows, parts, strict=True):
            tensors[row] = part.view(shapes[row])
    return _Unpickler(structure, tensors).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, structure: bytes, tensors: list[Tensor]) -> None:
        super().__init__(io.BytesIO(structure))
        self._tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self._tensors[number]


class _Pickler(pickle.Pickler):
    """Sets tensors aside, each under a number."""

    def __init__(self, stream: io.BytesIO, protocol: int) -> None:
        super().__init__(stream, protocol)
        self._met: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._met)
            self._met.append(value)
        return self._numbers[id(value)]

    def packed(self) -> tuple[list[torch.Size], list[tuple[torch.dtype, list[int], bytes]]]:
        """All shapes, and a block of values a device and type."""
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for row, tensor in enumerate(self._met):
            groups.setdefault((tensor.device, tensor.dtype), []).append(row)
        blocks = []
        for (_, dtype), rows in groups.items():
            flat = torch.cat([self._met[row].detach().reshape(-1) for row in rows]).cpu()
            blocks.append((dtype, rows, flat.view(torch.uint8).numpy().tobytes()))
        return [tensor.shape for tensor in self._met], blocks
