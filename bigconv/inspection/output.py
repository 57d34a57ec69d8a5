"""Pictures and pages: written whole, and over nothing but their own kind."""

from __future__ import annotations

from pathlib import Path

from bigconv import fsio
from bigconv.errors import OutputError, UsageError

MARK = "bigconv inspect"  # stands in the head of every file that is written here
HEAD = 1 << 12


def check(option: str, path: Path, suffix: str) -> None:
    """Before the work is done. Raises `UsageError` for another suffix, `OutputError` for a file that isn't ours."""
    if path.suffix.lower() != suffix:
        raise UsageError(f"{option} {path}: a name that ends in {suffix} is needed")
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{option} {path}: {error.strerror or error}") from error
    if MARK.encode() not in head:
        raise OutputError(f"{option} {path}: exists already, and inspect didn't make it: choose another name")


def write(path: Path, data: bytes) -> None:
    """Raises `OutputError`."""
    with fsio.writing(path):
        fsio.replace_file(path, data)
