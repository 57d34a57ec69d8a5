"""What `bench` draws, and how its files are known again."""

from __future__ import annotations

from pathlib import Path

from bigconv import drawn
from bigconv.drawn import write

__all__ = ["MARK", "own_output", "write"]

MARK = "bigconv bench"  # stands in the head of every file that is written here


def own_output(option: str, path: Path) -> None:
    """Raises `OutputError` for a file that is there and that bench didn't make."""
    drawn.own(option, path, MARK)
