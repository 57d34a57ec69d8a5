"""`python -m tests.torture [SCALE] [NAME...]`: all tests, one table: test, cases tried, failures, seconds."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

NAMES = sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py") if not p.stem.startswith("test_"))


def main() -> int:
    scale = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    failed = 0
    print(f"{'test':16} {'cases':>8} {'failures':>9} {'seconds':>8}")
    for name in sys.argv[2:] or NAMES:
        module = importlib.import_module(f"tests.torture.{name}")
        start, cases, failures, skipped = time.perf_counter(), 0, [], []
        for case in module.run(scale):
            if case.skipped:
                skipped.append(case)
                continue
            cases += 1
            if case.failure:
                failures.append(case)
        print(f"{name:16} {cases:8,} {len(failures):9,} {time.perf_counter() - start:8.1f}", flush=True)
        for case in skipped:
            print(f"    NOT TRIED: {case.name}: {case.skipped}", flush=True)
        for case in failures[:5]:
            print(f"    {case.name}: {case.failure}", flush=True)
        failed += len(failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
