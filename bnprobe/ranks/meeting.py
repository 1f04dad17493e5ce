"""How the processes of a job that attach with the same arguments find each other: rank 0 gathers, bounded in time.

Each rank numbers its attachments by itself and posts a *hello* under that number. Rank 0 takes the hellos of each rank
in their order and seats their ranks; when all are seated or its patience ends it answers. A rank that is tired of
waiting takes its own seat away, which rank 0 sees. So whoever attaches alone is alone, and nobody waits for ever.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bnprobe.ranks.mail import Store, decode, encode, until

__all__ = ["Answer", "Gathered", "Hello", "answer", "call", "gather"]

PATIENCE_SECONDS = 10.0  # ours: processes of one job reach the same line within seconds
_ANSWER_SECONDS = 30.0  # a seated rank waits for the answer while rank 0 waits for others, and opens the run


@dataclass(frozen=True)
class Hello:
    """What a rank attaches with.

    Attributes:
        out: the run directory that was asked for, or None.
        asked: settings and layers, which must be the same to be merged.
    """

    out: str | None
    asked: str

    @classmethod
    def of(cls, out: Any, settings: Mapping[str, Any], layers: list[str]) -> "Hello":
        """From what attach was given; addresses of objects, which differ between processes, are left out."""
        asked = re.sub(r" at 0x[0-9a-f]+", "", repr((sorted(settings.items()), layers)))
        return cls(None if out is None else str(out), asked)

    def differs(self, leader: "Hello") -> str:
        """Why this cannot be part of the leader's run, or an empty string."""
        if self.out != leader.out:
            return f"it writes to {self.out!r}, rank 0 to {leader.out!r}"
        return "" if self.asked == leader.asked else "its layers or settings are not those of rank 0"


@dataclass(frozen=True)
class Answer:
    """What rank 0 says to a seated rank.

    Attributes:
        refused: why the rank is not part of the run, or an empty string.
        elsewhere: whether a refused rank was asked to write to a directory of its own.
        path: rank 0's run directory.
        first_step: where the clock starts.
        session: number of the session in the run directory.
        pid: of rank 0's process.
    """

    refused: str = ""
    elsewhere: bool = False
    path: str = ""
    first_step: int = 0
    session: int = 0
    pid: int = 0


@dataclass
class Gathered:
    """Who came: mailbox names by rank; and why the others are not part of it."""

    members: dict[int, str] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)


def gather(store: Store, size: int, mine: Hello) -> Gathered:
    """On rank 0: seat the ranks that come; who seats is answered by :func:`answer`."""
    gathered = Gathered()
    waiting = set(range(1, size))

    def everybody() -> bool:
        for rank in sorted(waiting):
            name = _next_hello(store, rank)
            if name is None:
                continue
            waiting.discard(rank)
            hello: Hello = decode(store.get(f"hello/{name}"))
            why = hello.differs(mine)
            if why:
                answer(store, name, Answer(refused=why, elsewhere=hello.out != mine.out))
                gathered.missing[rank] = why
            else:
                gathered.members[rank] = name
        return not waiting

    until(everybody, PATIENCE_SECONDS)
    gathered.missing.update(dict.fromkeys(waiting, f"it did not attach within {PATIENCE_SECONDS:g} s"))
    return gathered


def answer(store: Store, name: str, what: Answer) -> None:
    """On rank 0: tell a seated rank."""
    store.set(f"answer/{name}", encode(what))


def call(store: Store, rank: int, mine: Hello) -> tuple[str, Answer]:
    """On the other ranks: say hello; this rank's mailbox name, and rank 0's answer or that there was none."""
    name = f"{rank}/{store.add(f'hellos/{rank}', 1) - 1}"
    store.set(f"hello/{name}", encode(mine))
    answered: Callable[[], bool] = lambda: bool(store.check([f"answer/{name}"]))  # noqa: E731
    if not until(answered, PATIENCE_SECONDS) and (_take_seat(store, name) or not until(answered, _ANSWER_SECONDS)):
        return name, Answer(refused=f"rank 0 did not attach within {PATIENCE_SECONDS:g} s")
    return name, decode(store.get(f"answer/{name}"))


def _next_hello(store: Store, rank: int) -> str | None:
    """The oldest hello of a rank that still waits; seats it."""
    while True:
        number = store.add(f"heard/{rank}", 0)
        name = f"{rank}/{number}"
        if not store.check([f"hello/{name}"]):
            return None
        store.add(f"heard/{rank}", 1)
        if _take_seat(store, name):
            return name


def _take_seat(store: Store, name: str) -> bool:
    """Whether we are the first at this seat."""
    return bool(store.add(f"seat/{name}", 1) == 1)
