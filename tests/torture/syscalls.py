"""SIGKILL at every system call of a small conversion that changes the disk, now and then of the resumed one too."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from bigconv import fsio
from tests.torture import Case, _child
from tests.torture._runs import (
    Target,
    after_a_cut,
    checkpoints_everywhere,
    contents,
    refused_or_whole,
    trials,
    workspace,
)

AGAIN = 3  # every so many kills, the run that goes on is killed too
QUICK = 0.05  # below this scale one kill a run


def run(scale: float) -> Iterator[Case]:
    why = _child.no_strace()
    if why:
        yield Case("kill at every system call", skipped=why)
        return
    with workspace() as root, checkpoints_everywhere():
        for source, target in trials(root):
            yield from _kills(root, source, target, scale)


def _kills(root: Path, source: Path, target: Target, scale: float) -> Iterator[Case]:
    name = f"{source.name} {target.dest}"
    place, log = root / name, root / "log"
    place.mkdir()
    wanted = target.request(source, place)
    work = lambda: void(wanted.run())  # noqa: E731
    rows = wanted.run().manifest.rows
    expected = contents(wanted.dest)
    fsio.remove(wanted.dest)
    calls = _child.mutating_calls(work, place, log)
    fsio.remove(wanted.dest)
    rng = random.Random(name)
    least = 2 if scale >= QUICK else 1
    chosen = calls if scale >= 1 else sorted(rng.sample(calls, max(least, round(len(calls) * scale))), key=calls.index)
    for number, call in enumerate(chosen):
        ended = _child.run(work, _child.inject(call, "signal=KILL"), log)
        wrong = f"ended with {ended}, not by the kill" if ended != -9 else refused_or_whole(wanted.dest, rows)
        if number % AGAIN == 0:
            _child.run(work, _child.inject(rng.choice(calls), "signal=KILL"), log)
        yield Case(f"{name} {call.line[:80]}", wrong or after_a_cut(wanted, rows, expected))
        for path in place.iterdir():
            fsio.remove(path)


def void(_: object) -> None:
    """For a call whose result is of no use."""
