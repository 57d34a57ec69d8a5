"""SIGKILL at every system call of a small conversion that changes the disk, now and then of the resumed one too."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from bigconv import fsio
from tests.torture import Case, _child
from tests.torture._runs import (
    SUFFIXES,
    after_a_cut,
    checkpoints_everywhere,
    contents,
    folders,
    refused_or_whole,
    request,
    workspace,
)

AGAIN = 3  # every so many kills, the run that goes on is killed too


def run(scale: float) -> Iterator[Case]:
    why = _child.no_strace()
    if why:
        yield Case("kill at every system call", skipped=why)
        return
    with workspace() as root, checkpoints_everywhere():
        for source in folders(root):
            for suffix in SUFFIXES:
                yield from _kills(root, source, suffix, scale)


def _kills(root: Path, source: Path, suffix: str, scale: float) -> Iterator[Case]:
    place, log = root / f"{source.name}{suffix}", root / "log"
    place.mkdir()
    dest = place / f"out{suffix}"
    work = lambda: void(request(source, dest).run())  # noqa: E731
    rows = request(source, dest).run().manifest.rows
    expected = contents(dest)
    fsio.remove(dest)
    calls = _child.mutating_calls(work, place, log)
    fsio.remove(dest)
    rng = random.Random(f"{source.name}{suffix}")
    chosen = calls if scale >= 1 else sorted(rng.sample(calls, max(2, round(len(calls) * scale))), key=calls.index)
    for number, call in enumerate(chosen):
        name = f"{source.name}{suffix} {call.line[:80]}"
        ended = _child.run(work, _child.inject(call, "signal=KILL"), log)
        wrong = f"ended with {ended}, not by the kill" if ended != -9 else refused_or_whole(dest, rows)
        if number % AGAIN == 0:
            _child.run(work, _child.inject(rng.choice(calls), "signal=KILL"), log)
        yield Case(name, wrong or after_a_cut(source, dest, rows, expected))
        for path in place.iterdir():
            fsio.remove(path)


def void(_: object) -> None:
    """For a call whose result is of no use."""
