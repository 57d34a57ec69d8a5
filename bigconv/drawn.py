"""Pictures and pages that commands draw: written whole, and over nothing but what the same command drew before."""

from __future__ import annotations

from pathlib import Path

from bigconv import fsio
from bigconv.errors import OutputError

HEAD = 1 << 14  # 16 KiB: a mark stands in the title or the metadata, behind a page's style at most


def own(option: str, path: Path, mark: str) -> None:
    """Before the work is done. Raises `OutputError` where there is no folder for it, or for a file that is there and
    has no `mark`: `bigconv bench`."""
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{option} {path}: there is no folder {path.absolute().parent}")
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{option} {path}: {error.strerror or error}") from error
    if mark.encode() not in head:
        command = mark.removeprefix("bigconv ")
        raise OutputError(f"{option} {path}: exists already, and {command} didn't make it: choose another name")


def write(path: Path, data: bytes) -> None:
    """Raises `OutputError`."""
    with fsio.writing(path):
        fsio.replace_file(path, data)
