"""`--select`: some of the fields, in the order named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from bigconv.block import Block
from bigconv.errors import SchemaError, UsageError
from bigconv.schema import Schema


@dataclass(frozen=True)
class Select:
    """The fields `names`; the others are dropped."""

    name: ClassVar[str] = "select"

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if not self.names or not all(self.names) or len(set(self.names)) != len(self.names):
            raise UsageError(
                f"--select {','.join(self.names)}: expected names of fields, each once, such as image,label"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """`image,label`. Raises `UsageError`."""
        return cls(tuple(name.strip() for name in str(text).split(",")))

    @staticmethod
    def typed(entry: Mapping[str, Any]) -> str:
        return ",".join(entry["names"])

    def recipe(self) -> dict[str, Any]:
        return {"names": list(self.names)}

    def schema(self, schema: Schema) -> Schema:
        try:
            return schema.select(self.names)
        except SchemaError as error:
            raise UsageError(f"--select: {error}") from error

    def __call__(self, block: Block) -> Block:
        columns = {name: block.columns[name] for name in self.names}
        return Block(block.schema.select(self.names), columns, block.origin)
