"""What `inspect` draws, and how its files are known again."""

from __future__ import annotations

from pathlib import Path

from bigconv import drawn
from bigconv.drawn import write
from bigconv.errors import UsageError

__all__ = ["MARK", "check", "write"]

MARK = "bigconv inspect"  # stands in the head of every file that is written here


def check(option: str, path: Path, suffix: str) -> None:
    """Before the work is done. Raises `UsageError` for another suffix, `OutputError` for a file that isn't ours."""
    if path.suffix.lower() != suffix:
        raise UsageError(f"{option} {path}: a name that ends in {suffix} is needed")
    drawn.own(option, path, MARK)
