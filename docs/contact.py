"""Draw docs/contact.png, the sheet in docs/inspecting.md, by the command itself: `python docs/contact.py`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS = 4


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "raw").symlink_to(ROOT / "sample_data" / "images")
        words = ["inspect", "raw", "--contact", "contact.png", "--rows", str(ROWS)]
        command = [sys.executable, "-c", "from bigconv.cli.app import main; main()", *words]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (ROOT / "docs" / "contact.png").write_bytes((Path(folder) / "contact.png").read_bytes())


if __name__ == "__main__":
    main()
