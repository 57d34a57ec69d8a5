"""SIGKILL at random times of a conversion with worker processes, of the run after it too, then a run to the end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.torture import Case
from tests.torture._runs import SUFFIXES, command, contents, convert, images, refused_or_whole

KILLS = 250  # a store, at scale 1
QUICK = 0.05  # below this scale one store stands for all


def run(scale: float) -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        plain, mixed = images(root / "plain", 700), images(root / "mixed", 700, mixed=True)
        for number, suffix in enumerate(SUFFIXES):
            rng = random.Random(number)
            for source in (plain, mixed) if scale >= QUICK else (mixed,) * (number == 1):
                whole = root / f"whole-{source.name}{suffix}"
                start = time.perf_counter()
                done = convert(source, whole, "--workers", 2)
                seconds = time.perf_counter() - start
                if done.returncode:
                    yield Case(f"{suffix} undisturbed", done.stderr)
                    continue
                expected = contents(whole)
                for kill in range(max(1, round(KILLS * scale / 2))):
                    path = root / f"{source.name}{kill}{suffix}"
                    yield Case(f"{suffix} {source.name} kill {kill}", _one(path, source, expected, seconds, rng))
        leftovers = [p.name for p in Path("/dev/shm").glob("bigconv-*")] if os.path.isdir("/dev/shm") else []
        yield Case("shared memory", f"left behind: {leftovers}" if leftovers else "")


def _one(path: Path, source: Path, expected: dict[str, bytes], seconds: float, rng: random.Random) -> str:
    for _ in range(2):  # the second kill strikes the run that goes on
        process = subprocess.Popen(
            command(source, path, "--workers", rng.choice([0, 2])),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(rng.uniform(0.2 * seconds, seconds))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        wrong = refused_or_whole(path, 700)
        if wrong:
            return wrong
    done = convert(source, path, "--workers", 2)
    if done.returncode:
        return f"resume failed: {done.stderr}"
    if contents(path) != expected:
        return "the resumed store differs"
    leftovers = sorted(p.name for p in path.parent.glob(f"{path.name}*") if p != path)
    return f"left behind: {leftovers}" if leftovers else ""
