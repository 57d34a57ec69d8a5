"""Starting: `bigconv --help` against a Typer app that does nothing, `bigconv inspect` against importing its libraries.

Issue figures: `--help` at most 1.3 times a Typer app of four commands that do nothing; `bigconv inspect out.h5` at most
0.5 s more than `python -c 'import numpy, h5py'`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import bigconv
from tests.benchmarks._timing import INSTALLED

NOTHING = """
import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def one() -> None:
    pass


@app.command()
def two() -> None:
    pass


@app.command()
def three() -> None:
    pass


@app.command()
def four() -> None:
    pass


def main() -> None:
    app()
"""
# What pip writes for a console script, so that both start in the same way.
SCRIPT = "import sys\nfrom {module} import main\nsys.exit(main())\n"


def seconds(ways: dict[str, list[str]], repeats: int) -> dict[str, list[float]]:
    """Wall seconds of each command, all in turn, in fresh processes; the first round only warms the page cache."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, command in ways.items():
            start = time.perf_counter()
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.run(command, check=True, env=INSTALLED, **quiet)
            found[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in found.items()}


def compare(title: str, ways: dict[str, list[str]], target: str, repeats: int = 15) -> None:
    """Medians of two commands, their ratio and their difference; each round's own pair makes one of either."""
    found = seconds(ways, repeats)
    (base, against), (name, values) = found.items()
    ratio = statistics.median(b / a for a, b in zip(against, values, strict=True))
    more = statistics.median(b - a for a, b in zip(against, values, strict=True))
    print(title)
    for label, times in ((base, against), (name, values)):
        print(f"  {label:44s} {statistics.median(times) * 1000:8.0f} ms")
    print(f"  ratio {ratio:.2f}, difference {more * 1000:+.0f} ms (target: {target})")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "nothing.py").write_text(NOTHING)
        for name, module in (("nothing_script.py", "nothing"), ("bigconv_script.py", "bigconv.cli.app")):
            (Path(folder) / name).write_text(SCRIPT.format(module=module))
        np.save(Path(folder) / "x.npy", np.zeros((1000, 3, 32, 32), np.uint8))
        bigconv.convert(Path(folder) / "x.npy", Path(folder) / "out.h5", workers=0)
        ours = [sys.executable, str(Path(folder) / "bigconv_script.py")]
        compare(
            "bigconv --help",
            {
                "a Typer app of four empty commands --help": [
                    sys.executable,
                    str(Path(folder) / "nothing_script.py"),
                    "--help",
                ],
                "bigconv --help": [*ours, "--help"],
            },
            "ratio <= 1.3",
        )
        compare(
            "bigconv inspect out.h5",
            {
                "python -c 'import numpy, h5py'": [sys.executable, "-c", "import numpy, h5py"],
                "bigconv inspect out.h5": [*ours, "inspect", str(Path(folder) / "out.h5")],
            },
            "difference <= 500 ms",
        )


if __name__ == "__main__":
    main()
