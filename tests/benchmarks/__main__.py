"""Run every benchmark, or those named: `python -m tests.benchmarks reading startup`."""

import subprocess
import sys
from pathlib import Path

arguments = sys.argv[1:]
options = [a for a in arguments if a.startswith("-") or a.isdigit()]  # every benchmark is given these
names = [a for a in arguments if a not in options] or sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py"))
failed = []
for name in names:
    print(f"== {name}", flush=True)
    # a process each, so that functions which worker processes run are found under their module's own name
    if subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}", *options]).returncode:
        failed.append(name)
if failed:
    sys.exit("failed: " + ", ".join(failed))
