"""`--rename`: another name for a field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from bigconv.block import Block
from bigconv.errors import SchemaError, UsageError
from bigconv.schema import Schema


@dataclass(frozen=True)
class Rename:
    """Fields under other names, all at once, so that two may change places; `pairs`: (old, new). The order stays."""

    name: ClassVar[str] = "rename"

    pairs: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", tuple((old, new) for old, new in self.pairs))
        olds = [old for old, _ in self.pairs]
        if not olds or not all(old and new for old, new in self.pairs) or len(set(olds)) != len(olds):
            raise UsageError(f"--rename {self._text}: expected OLD=NEW for each field once, such as x=image,y=label")

    @classmethod
    def parse(cls, text: str) -> Self:
        """`x=image`, or several with commas between. Raises `UsageError`."""
        parts = (part.partition("=") for part in str(text).split(","))
        return cls(tuple((old.strip(), new.strip()) for old, _, new in parts))

    @staticmethod
    def typed(entry: Mapping[str, Any]) -> str:
        return ",".join(f"{old}={new}" for old, new in entry["pairs"])

    @property
    def _text(self) -> str:
        return ",".join(f"{old}={new}" for old, new in self.pairs)

    def recipe(self) -> dict[str, Any]:
        return {"pairs": [list(pair) for pair in self.pairs]}

    def schema(self, schema: Schema) -> Schema:
        new = dict(self.pairs)
        try:
            for old in new:
                schema[old]  # raises with a suggestion
            return Schema(tuple(f.with_(name=new.get(f.name, f.name)) for f in schema))
        except SchemaError as error:
            raise UsageError(f"--rename {self._text}: {error}") from error

    def __call__(self, block: Block) -> Block:
        schema = self.schema(block.schema)
        return Block(schema, dict(zip(schema.names, block.columns.values(), strict=True)), block.origin)
