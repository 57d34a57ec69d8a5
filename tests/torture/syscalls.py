"""SIGKILL at every system call that changes the disk, of a small conversion or change, at times of the next run too."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tests.torture import Case, _child
from tests.torture._edits import edits
from tests.torture._runs import Trial, checkpoints_everywhere, trials, workspace

AGAIN = 3  # every so many kills, the run that goes on is killed too
QUICK = 0.05  # below this scale one kill a run, and one run of each kind of change


def run(scale: float) -> Iterator[Case]:
    why = _child.no_strace()
    if why:
        yield Case("kill at every system call", skipped=why)
        return
    with workspace() as root, checkpoints_everywhere():
        tried = trials(root)
        for source, target in tried:
            yield from _kills(Trial(root, source, target), root / "log", scale)
        for trial in edits(root, tried[-1][0], None if scale >= QUICK else 1):
            yield from _kills(trial, root / "log", scale)


def _kills(trial: Trial, log: Path, scale: float) -> Iterator[Case]:
    work = lambda: void(trial.request.run())  # noqa: E731
    calls = _child.mutating_calls(work, trial.place, log)
    trial.reset()
    rng = random.Random(trial.name)
    least = 2 if scale >= QUICK else 1
    chosen = calls if scale >= 1 else sorted(rng.sample(calls, max(least, round(len(calls) * scale))), key=calls.index)
    for number, call in enumerate(chosen):
        try:
            ended = _child.run(work, _child.inject(call, "signal=KILL"), log)
            wrong = f"ended with {ended}, not by the kill" if ended != -9 else trial.seen()
            if number % AGAIN == 0:
                _child.run(work, _child.inject(rng.choice(calls), "signal=KILL"), log)
        except TimeoutError as error:
            wrong = str(error)
        yield Case(f"{trial.name} {call.line[:80]}", wrong or trial.after_a_cut())
        trial.reset()


def void(_: object) -> None:
    """For a call whose result is of no use."""
