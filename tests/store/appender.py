"""Forks one writer a directory named on standard input; each appends tiny parts for ever and prints every step.

The imports are paid for once; each writer is a process of its own, to be killed. For each directory the lines are the
writer's process id, the steps whose append has returned, and ``gone`` once it has ended.
"""

import os
import sys

from synthetic_run import LAYERS, LEVELS, table_of

from bnprobe.store import Writer


def say(word: object) -> None:
    os.write(1, f"{word}\n".encode())  # unbuffered: what was said before a kill has been said


def append_for_ever(directory: str) -> None:
    writer = Writer(directory, settings={}, layers=LAYERS, levels=LEVELS)
    step = writer.first_step
    while True:
        writer.append(table_of([step], session=writer.session))
        say(step)
        step += 1


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        append_for_ever(line.rstrip("\n"))
    say(child)
    os.waitpid(child, 0)
    say("gone")
