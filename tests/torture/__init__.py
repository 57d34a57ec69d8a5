"""Nothing lost, shown by figures. `make torture` runs it all and prints one table; `test_quick.py` a little of each.

Each module has `run(scale)`, which yields one `Case` a case tried; `scale` 1.0 is the whole, less is quicker.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One case tried; `failure` says what went wrong, empty when nothing did; `skipped` why it could not be tried."""

    name: str
    failure: str = ""
    skipped: str = ""
