"""What a sharded directory says of itself: `DEST/manifest.json`, which lists its parts, each a whole store.

`DEST/part-00000-<uuid>.h5 …` beside it, and `DEST/digests-<16 hex>.bin`, the digests of all rows as one table, which is
read only when somebody asks for them. Rows are numbered through all parts, in the order of the list: the content
digest is that of one store with the same rows. Layout: docs/format.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from bigconv import class_counts
from bigconv.digest import Digests, block_rows
from bigconv.errors import IncompleteStore
from bigconv.hashes import XXH3, width
from bigconv.manifest import Manifest, count, known_algorithm, mapping, parsing, sealed, unsealed
from bigconv.schema import Schema

FORMAT = "bigconv-dataset"
VERSION = 1
NAME = "manifest.json"
_MAGIC = b"bigconv digests 1\n"
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_PART = re.compile(rf"part-(?P<number>\d{{5,}})-(?P<uuid>{_UUID})(?:\.[a-z0-9]{{1,12}})?")
_DIGESTS = re.compile(r"digests-[0-9a-f]{16}\.bin(?:\.new)?")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Part:
    """One part as the dataset lists it. `bytes`: on disk; `value`: of the field the dataset is parted by, if it is."""

    name: str
    rows: int
    bytes: int
    content_digest: str
    value: str | int | float | bool | None = None

    @property
    def uuid(self) -> str:
        return part_of(self.name)[1]

    @property
    def number(self) -> int:
        return part_of(self.name)[0]

    def to_json(self) -> dict[str, Any]:
        told = {"name": self.name, "rows": self.rows, "bytes": self.bytes, "content_digest": self.content_digest}
        told["uuid"] = self.uuid
        return told if self.value is None else {**told, "value": self.value}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Part:
        name, digest, value = entry["name"], entry["content_digest"], entry.get("value")
        if not isinstance(name, str) or part_of(name)[1] != entry["uuid"]:
            raise ValueError(f"{name!r:.80} is not the name of its part")
        if not isinstance(digest, str) or not _HEX.fullmatch(digest):
            raise ValueError(f"{name}: {digest!r:.80} is no content digest")
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise ValueError(f"{name}: {value!r:.80} is no value of a field")
        return cls(name, count(entry["rows"]), count(entry["bytes"]), digest, value)


def part_name(plan: str, number: int, extension: str) -> str:
    """Name of a part; the UUID follows from the plan's hash and the number, so the same conversion gives the same."""
    return f"part-{number:05}-{uuid5(NAMESPACE_URL, f'bigconv:{plan}:{number}')}{extension}"


def part_of(name: str) -> tuple[int, str]:
    """Number and UUID in the name of a part. Raises `ValueError` for another name, such as one that leads elsewhere."""
    match = _PART.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r:.80} is not the name of a part")
    return int(match["number"]), match["uuid"]


@dataclass(frozen=True)
class DatasetManifest(Manifest):
    """The manifest of a sharded directory: that of one store with all its rows, and the list of parts.

    `store`: the format of the parts. `digests` are read when first used. `files` is empty: each part vouches for its
    own.
    """

    parts: tuple[Part, ...] = ()
    recorded: str = ""  # the content digest

    @property
    def content_digest(self) -> str:
        return self.recorded

    @property
    def dropped(self) -> set[str]:
        """Names of parts that were taken out."""
        told = self.recipe.get("dropped")
        return {name for name in told if _PART.fullmatch(str(name))} if isinstance(told, list) else set()

    @cached_property
    def part_bytes(self) -> int:
        """Bytes of all parts on disk."""
        return sum(part.bytes for part in self.parts)

    def to_bytes(self) -> bytes:
        parts = [part.to_json() for part in self.parts]
        body = {"format": FORMAT, "version": VERSION, **self.described(), "parts": parts}
        algorithm = self.digests.algorithm
        return sealed(body if algorithm == XXH3 else {**body, "algorithm": algorithm})

    @classmethod
    def from_bytes(cls, raw: bytes, where: str) -> DatasetManifest:
        """Parse and check; `where`: the dataset. Raises `IncompleteStore` or `LaterVersion`."""
        with parsing(where):
            body = unsealed(raw, where, FORMAT, VERSION)
            schema, rows = Schema.from_json(body["fields"]), count(body["rows"])
            parts = tuple(Part.from_json(entry) for entry in body["parts"])
            if len({part.name for part in parts}) != len(parts):
                raise ValueError("a part is listed twice")
            if sum(part.rows for part in parts) != rows:
                raise ValueError(f"its parts have {sum(part.rows for part in parts)} rows, not {rows}")
            recorded = body["content_digest"]
            if not isinstance(recorded, str) or not _HEX.fullmatch(recorded):
                raise ValueError(f"{recorded!r:.80} is no content digest")
            algorithm = known_algorithm(body.get("algorithm", XXH3))
            tables = _Tables(Path(where), schema, rows, recorded, algorithm)
            return cls(
                schema=schema,
                rows=rows,
                store=str(body["store"]),
                digests=Digests(rows, block_rows(schema), tables, algorithm),
                source=mapping(body["source"]),
                recipe=mapping(body["recipe"]),
                bigconv_version=str(body["bigconv_version"]),
                plan=str(body["plan"]),
                counts=class_counts.from_json(body.get("counts", {}), schema, rows),
                parts=parts,
                recorded=recorded,
            )


def read(path: Path) -> DatasetManifest:
    """The manifest of a sharded directory."""
    return DatasetManifest.from_bytes((path / NAME).read_bytes(), str(path))


def digests_name(content_digest: str) -> str:
    """File of the digests. It is named by what they prove, so that a new one never takes the place of one in use."""
    return f"digests-{content_digest[:16]}.bin"


def leftovers(path: Path, manifest: DatasetManifest) -> list[Path]:
    """What a change leaves when it is cut off: digests and dropped parts that the manifest doesn't name any more, or
    not yet, and files that were to take the place of others."""
    gone = manifest.dropped - {part.name for part in manifest.parts}
    digests = digests_name(manifest.content_digest)

    def left(name: str) -> bool:
        return name in gone or name == f"{NAME}.new" or (name != digests and bool(_DIGESTS.fullmatch(name)))

    return [path / name for name in sorted(os.listdir(path)) if left(name)]


def unlisted(path: Path, manifest: DatasetManifest, plan: str) -> list[Path]:
    """Parts in a directory that a plan has made, by its hash, and that the manifest doesn't list, or not yet."""

    def made(name: str) -> bool:
        found = _PART.fullmatch(name)
        return found is not None and name == part_name(plan, int(found["number"]), Path(name).suffix)

    listed = {part.name for part in manifest.parts}
    return [path / name for name in sorted(os.listdir(path)) if name not in listed and made(name)]


def digests_to_bytes(digests: Digests, schema: Schema) -> bytes:
    head = np.array([digests.rows, digests.block_rows, len(schema)], "<i8").tobytes()
    return _MAGIC + head + b"".join(digests.tables[f.name] for f in schema)


class _Tables(Mapping[str, bytes]):
    """Tables of digests that are read when the first one is asked for, and held against the content digest."""

    def __init__(self, path: Path, schema: Schema, rows: int, recorded: str, algorithm: str) -> None:
        self._path, self._schema, self._rows, self._recorded = path, schema, rows, recorded
        self._algorithm = algorithm
        self._held: dict[str, bytes] | None = None

    def _tables(self) -> dict[str, bytes]:
        if self._held is None:
            self._held = self._read()
        return self._held

    def _read(self) -> dict[str, bytes]:
        file = self._path / digests_name(self._recorded)
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise IncompleteStore(f"{file}: the digests can't be read: {error.strerror}") from error
        of_block = block_rows(self._schema)
        size = -(-self._rows // of_block) * width(self._algorithm)
        head = _MAGIC + np.array([self._rows, of_block, len(self._schema)], "<i8").tobytes()
        if not raw.startswith(head) or len(raw) != len(head) + size * len(self._schema):
            raise IncompleteStore(f"{file}: not the digests of this dataset ({self._algorithm}, {self._rows} rows)")
        tables = {f.name: raw[len(head) + i * size : len(head) + (i + 1) * size] for i, f in enumerate(self._schema)}
        if Digests(self._rows, of_block, tables, self._algorithm).content(self._schema) != self._recorded:
            raise IncompleteStore(f"{file}: the digests do not fit the content digest")
        return tables

    def __getitem__(self, name: str) -> bytes:
        return self._tables()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._schema.names)

    def __len__(self) -> int:
        return len(self._schema)


def same_fields(part: Schema, whole: Schema) -> bool:
    """Whether a part has the dataset's fields; labels of a part made before others may lack later classes."""
    if part.names != whole.names:
        return False
    for a, b in zip(part, whole, strict=True):
        if a != b and (
            a.classes is None
            or b.classes is None
            or a.with_(classes=None) != b.with_(classes=None)
            or b.classes[: len(a.classes)] != a.classes
        ):
            return False
    return True
