"""Run every benchmark, or those named: `python -m tests.benchmarks reading startup`."""

import runpy
import sys
from pathlib import Path

options = [a for a in sys.argv[1:] if a.startswith("-")]
names = [a for a in sys.argv[1:] if not a.startswith("-")] or sorted(
    p.stem for p in Path(__file__).parent.glob("[a-z]*.py")
)
for name in names:
    print(f"== {name}", flush=True)
    sys.argv = [name, *options]
    runpy.run_module(f"tests.benchmarks.{name}", run_name="__main__")
