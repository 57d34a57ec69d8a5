"""Draw docs/convert.svg, the picture in the README, from what the commands really print: `python docs/picture.py`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("bigconv convert raw/ train.h5 --resize 64", "bigconv inspect train.h5 --head 2 --verify")


def main() -> None:
    console = Console(record=True, width=92, file=open(os.devnull, "w"))  # noqa: SIM115  for the life of the script
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "raw").symlink_to(ROOT / "sample_data" / "images")
        for command in COMMANDS:
            words = [sys.executable, "-c", "from bigconv.cli.app import main; main()", *command.split()[1:]]
            env = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "92"}
            shown = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout
            console.print(Text("$ " + command, "bold"))
            console.print(Text.from_ansi(shown))
    console.save_svg(str(ROOT / "docs" / "convert.svg"), title="bigconv")


if __name__ == "__main__":
    main()
