"""One corrupt image in a hundred: the run ends, all are named, exit 1; then --resume --max-rejects 1% publishes."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import bigconv
from tests.benchmarks import _photos
from tests.torture import Case
from tests.torture._runs import SUFFIXES, convert

FILES = 20_000  # at scale 1
QUICK = 0.05  # below this scale one store stands for all


def run(scale: float) -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        count = max(200, round(FILES * scale))
        source = _photos.folder(root / "raw", count, 32, 32, 0)
        files = sorted(source.rglob("*.jpg"))
        bad = files[50::100]
        for i, file in enumerate(bad):
            whole = file.read_bytes()
            file.write_bytes([whole[: len(whole) // 2], b"", b"text", bytes(len(whole))][i % 4])
        for suffix in SUFFIXES if scale >= QUICK else SUFFIXES[2:3]:
            dest = root / f"out{suffix}"
            first = convert(source, dest, "--workers", 2)
            rejects = Path(f"{dest}.rejects.jsonl")
            named = [json.loads(line)["path"] for line in rejects.read_text().splitlines()] if rejects.exists() else []
            if first.returncode != 1 or dest.exists() or named != [str(p.relative_to(source)) for p in bad]:
                yield Case(suffix, f"exit {first.returncode}, {len(named)} of {len(bad)} named: {first.stderr}")
                continue
            start = time.perf_counter()
            second = convert(source, dest, "--resume", "--max-rejects", "1%")
            seconds = time.perf_counter() - start
            whole_now = second.returncode == 0 and len(bigconv.open(dest)) == count - len(bad)
            yield Case(
                f"{suffix} published in {seconds:.1f} s", "" if whole_now and seconds < 10 else second.stderr or "slow"
            )
