"""Workers, start methods, hash seed, time zone, locale and the order of folders leave no trace in the bytes.

Every number of workers with every start method, each in a process of its own with another hash seed, and with what else
may differ in turn: one SHA-256 over all bytes of a store.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from tests.torture import Case
from tests.torture._runs import PACKED, PLAIN, SHARDED, Target, contents, images

METHODS, WORKERS = ("fork", "spawn", "forkserver"), (0, 1, 2, 7)
PLACES = ({"TZ": "Asia/Tokyo", "LC_ALL": "C"}, {"TZ": "UTC"}, {"TZ": "America/St_Johns", "LC_ALL": "tr_TR.UTF-8"})
START = (
    "import sys\nfrom pathlib import Path\n"
    "from tests.torture._runs import Target\n"
    "target = {target!r}\n"
    "target.request(Path({source!r}), Path({place!r}), {workers}, start_method={method!r}).run()\n"
)


def run(scale: float) -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        source = images(root / "raw", 300 if scale >= 1 else 150, mixed=True)
        shuffled = _shuffled(source, root / "other" / "raw")
        for target in (*PLAIN, PACKED[1], SHARDED[1]) if scale >= 1 else PLAIN:
            place = root / "whole"
            place.mkdir()
            target.request(source, place).run()
            expected = digest(place / target.dest)
            shutil.rmtree(place)
            ways = list(enumerate(product(METHODS, WORKERS)))
            for number, (method, workers) in ways if scale >= 1 else ways[6:7]:
                way = f"{target.dest} {method}, {workers} workers"
                env = {"PYTHONHASHSEED": str(number), **PLACES[number % len(PLACES)]}
                wrong = _differs(target, (source, shuffled)[number % 2], place, workers, method, env, expected)
                yield Case(f"{way}: SHA-256 {expected[:16]}", wrong)


def digest(path: Path) -> str:
    """Hex SHA-256 over names and bytes of all files."""
    total = hashlib.sha256()
    for name, data in contents(path).items():
        total.update(f"{name}\0{len(data)}\0".encode())
        total.update(data)
    return total.hexdigest()


def _shuffled(source: Path, other: Path) -> Path:
    """The same files, made in another order."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    random.Random(1).shuffle(files)
    for file in files:
        target = other / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)
    return other


def _differs(
    target: Target, source: Path, place: Path, workers: int, method: str, env: dict[str, str], expected: str
) -> str:
    """What is wrong with the bytes that a process of its own makes; empty when nothing is."""
    place.mkdir()
    program = START.format(target=target, source=str(source), place=str(place), workers=workers, method=method)
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, check=False)
        if done.returncode:
            return f"exit code {done.returncode}: {done.stderr[-500:]}"
        found = digest(place / target.dest)
        return "" if found == expected else f"other bytes: SHA-256 {found[:16]}"
    finally:
        shutil.rmtree(place)
