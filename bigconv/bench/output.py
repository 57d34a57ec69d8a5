"""Pictures and pages: written whole, and over nothing but their own kind."""

from __future__ import annotations

from pathlib import Path

from bigconv import fsio
from bigconv.errors import OutputError

MARK = "bigconv bench"  # stands in the head of every file that is written here


def own_output(option: str, path: Path) -> None:
    """Raises `OutputError` for a file that is there and that bench didn't make."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 14)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{option} {path}: {error.strerror or error}") from error
    if MARK.encode() not in head:
        raise OutputError(f"{option} {path}: exists already, and bench didn't make it: choose another name")


def write(path: Path, data: bytes) -> None:
    with fsio.writing(path):
        fsio.replace_file(path, data)
