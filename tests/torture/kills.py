"""SIGKILL at random times of a conversion with worker processes, of the run that goes on too, then a run to the end.

Most of the runs are forked from here, so that the kill strikes work and not imports; some are commands of their own. A
kill that comes too late, when the run is over, is no case.
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

from bigconv.errors import BigconvError
from tests.torture import Case
from tests.torture._runs import (
    APPENDED,
    OVERWRITTEN,
    PACKED,
    PLAIN,
    SHARDED,
    Trial,
    checkpoints_everywhere,
    command,
    images,
    workspace,
)

KILLS = 1000  # that strike, at scale 1, of first runs and of those that go on
COMMANDS = 16  # of the rounds, every so many has commands of their own
QUICK = 0.05  # below this scale one destination stands for all
FILES = 200


def run(scale: float) -> Iterator[Case]:
    with workspace() as root, checkpoints_everywhere():
        plain, mixed = images(root / "plain", FILES), images(root / "mixed", FILES, mixed=True)
        runs = [(source, target) for target in PLAIN for source in (plain, mixed)]
        runs += [(mixed, target) for target in (PACKED[1], *APPENDED, *OVERWRITTEN, *SHARDED)]
        for source, target in runs if scale >= QUICK else runs[-1:]:
            yield from _killed(Trial(root, source, target), max(1, round(KILLS * scale / len(runs))))
        leftovers = _shared()
        time.sleep(0.5)  # those of another run that goes on are gone by then
        left = sorted(leftovers & _shared())
        yield Case("shared memory", f"left behind: {left}" if left else "")


def _shared() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("bigconv-*")}


def _killed(trial: Trial, kills: int) -> Iterator[Case]:
    """Rounds of a run that is killed, one that goes on and is killed, and one to the end; a case a kill that struck."""
    rng = random.Random(trial.name)
    start = time.perf_counter()
    trial.request.run()
    seconds = time.perf_counter() - start
    struck = number = 0
    while struck < kills:
        trial.reset()
        number += 1
        wrong = []
        for _ in range(2):
            killed = _kill_command(trial, rng) if number % COMMANDS == 0 else _kill_forked(trial, rng, seconds)
            if killed:
                wrong.append(trial.seen())
        whole = trial.after_a_cut()
        struck += len(wrong)
        for which, seen in enumerate(wrong):
            yield Case(f"{trial.name} round {number}, kill {which}", seen or whole)
        if number > 10 * kills:
            yield Case(trial.name, f"only {struck} of {2 * number} kills struck")
            return


def _kill_forked(trial: Trial, rng: random.Random, seconds: float) -> bool:
    """Whether the kill struck."""
    workers = rng.choice([0, 2])
    pid = os.fork()
    if pid == 0:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        try:
            trial.target.request(trial.source, trial.place, workers, start_method="fork").run()
        except BigconvError as error:
            print(error, file=sys.stderr)
        finally:
            os._exit(0)
    time.sleep(rng.uniform(0, 1.2 * seconds))
    _end(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def _kill_command(trial: Trial, rng: random.Random) -> bool:
    words = command(trial.source, trial.dest, *trial.target.arguments(), "--workers", 2)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(rng.uniform(0.3, 1.5))  # it takes half a second to start
    _end(process.pid)
    return process.wait() == -signal.SIGKILL


def _end(group: int) -> None:
    """Kill a process with all its workers, if it hasn't ended."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(group, signal.SIGKILL)  # it was too early: the group isn't made yet
