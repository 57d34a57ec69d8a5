"""What a transform is: a step from block to block, and the schema it yields."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar, Protocol

from bigconv.block import Block
from bigconv.schema import Schema


class Transform(Protocol):
    """One step; a frozen dataclass whose fields are its options and round-trip through JSON."""

    name: ClassVar[str]

    def schema(self, schema: Schema) -> Schema:
        """The schema of what comes out. Raises `UsageError` when the step doesn't fit."""
        ...

    def __call__(self, block: Block) -> Block:
        """As many rows out as in. A pure function of block and options."""
        ...


def config(transform: Any) -> dict[str, Any]:
    """A transform as JSON values: its name under `step`, and its options."""
    return {"step": transform.name, **asdict(transform)}
