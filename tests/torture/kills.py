"""SIGKILL at random times of a conversion with worker processes, of the run after it too, then a run to the end.

Most of the runs are forked from here, so that the kill strikes work and not imports; some are commands of their own.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bigconv import fsio
from bigconv.errors import BigconvError
from tests.torture import Case
from tests.torture._runs import (
    PACKED,
    PLAIN,
    SHARDED,
    Target,
    after_a_cut,
    checkpoints_everywhere,
    command,
    contents,
    images,
    refused_or_whole,
    workspace,
)

KILLS = 1000  # at scale 1, of first runs and of those that go on
COMMANDS = 16  # of the cases, every so many has commands of their own
QUICK = 0.05  # below this scale one destination stands for all
FILES = 200


def run(scale: float) -> Iterator[Case]:
    with workspace() as root, checkpoints_everywhere():
        plain, mixed = images(root / "plain", FILES), images(root / "mixed", FILES, mixed=True)
        runs = [(source, target) for target in PLAIN for source in (plain, mixed)]
        runs += [(mixed, target) for target in (PACKED[1], SHARDED[0], SHARDED[1])]
        for source, target in runs if scale >= QUICK else runs[-2:-1]:
            yield from _killed(root, source, target, max(1, round(KILLS * scale / 2 / len(runs))))
        leftovers = _shared()
        time.sleep(0.5)  # those of another run that goes on are gone by then
        left = sorted(leftovers & _shared())
        yield Case("shared memory", f"left behind: {left}" if left else "")


def _shared() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("bigconv-*")}


def _killed(root: Path, source: Path, target: Target, cases: int) -> Iterator[Case]:
    name = f"{source.name} {target.dest}"
    rng = random.Random(name)
    place = root / name
    place.mkdir()
    again = target.request(source, place)
    start = time.perf_counter()
    again.run()
    seconds = time.perf_counter() - start
    expected = contents(again.dest)
    for case in range(cases):
        for path in place.iterdir():
            fsio.remove(path)
        wrong = ""
        for _ in range(2):  # the second kill strikes the run that goes on
            if case % COMMANDS == COMMANDS - 1:
                _kill_command(source, again.dest, target, rng)
            else:
                _kill_forked(source, place, target, rng, seconds)
            wrong = wrong or refused_or_whole(again.dest, FILES)
        yield Case(f"{name} kill {case}", wrong or after_a_cut(again, FILES, expected))


def _kill_forked(source: Path, place: Path, target: Target, rng: random.Random, seconds: float) -> None:
    workers = rng.choice([0, 2])
    pid = os.fork()
    if pid == 0:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        try:
            target.request(source, place, workers, start_method="fork").run()
        except BigconvError as error:
            print(error, file=sys.stderr)
        finally:
            os._exit(0)
    time.sleep(rng.uniform(0, 1.2 * seconds))
    _end(pid)
    os.waitpid(pid, 0)


def _kill_command(source: Path, dest: Path, target: Target, rng: random.Random) -> None:
    words = command(source, dest, *target.arguments(), "--workers", 2)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(rng.uniform(0.3, 1.5))  # it takes half a second to start
    _end(process.pid)
    process.wait()


def _end(group: int) -> None:
    """Kill a process with all its workers, if it hasn't ended."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(group, signal.SIGKILL)  # it was too early: the group isn't made yet
