"""What a transform is: a step from block to block, and the schema it yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

from bigconv.block import Block
from bigconv.schema import Schema


class Transform(Protocol):
    """One step; a frozen dataclass whose fields are its options and round-trip through JSON.

    Made by `Class.parse(text)` from what a user types. Four more members are optional: `recipe()`, the options as JSON
    values where they aren't the fields; `learn(sample)`, the same step after it has been tried on the first rows, where
    only that tells its schema (`bigconv.transforms.user`); `fitted(schema)`, the same step where an option is what the
    schema says; `changes_rows = True`, where rows are dropped or multiplied.
    """

    name: ClassVar[str]

    @staticmethod
    def typed(entry: Mapping[str, Any]) -> str:
        """What to type for an entry of a recipe: `parse` of it gives the same entry."""
        ...

    def schema(self, schema: Schema) -> Schema:
        """The schema of what comes out. Raises `UsageError` when the step doesn't fit."""
        ...

    def __call__(self, block: Block) -> Block:
        """The rows that become of a block's, with their origin. A pure function of row and options, wherever a block is
        cut off."""
        ...


def config(transform: Any) -> dict[str, Any]:
    """A transform as JSON values: its name under `step`, and its options."""
    options = transform.recipe() if hasattr(transform, "recipe") else asdict(transform)
    return {"step": transform.name, **options}
