"""What a store says of itself: schema, rows, source, recipe, digests. A store without it is not one.

JSON in UTF-8, canonical (sorted keys, no spaces), with a checksum of itself; docs/format.md has
every key. Nothing that varies from run to run is in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as default
from typing import Any

from bigconv import class_counts
from bigconv.class_counts import Counts
from bigconv.digest import Digests
from bigconv.errors import IncompleteStore, LaterVersion, SchemaError
from bigconv.hashes import OPTIONS
from bigconv.schema import Schema
from bigconv.sniff import not_json

FORMAT = "bigconv"
VERSION = 1
MAX_BYTES = 256 << 20  # 256 MiB: digests of 4 million blocks; more is not ours


@dataclass(frozen=True)
class Manifest:
    """The manifest of one store."""

    schema: Schema
    rows: int
    store: str
    digests: Digests
    source: Mapping[str, Any]
    recipe: Mapping[str, Any]
    bigconv_version: str
    # path below the store (`.`: the file itself) -> bytes and digest, hex; what holds the manifest is left out
    files: Mapping[str, tuple[int, str]] = default(default_factory=dict)
    plan: str = ""  # hex SHA-256 over source, recipe and file list: tells an unchanged conversion
    counts: Counts = default(default_factory=dict)  # rows of each class; of no field where an early version wrote it

    @property
    def content_digest(self) -> str:
        """Hex SHA-256: equal for equal samples in equal order and one algorithm, whatever the store."""
        return self.digests.content(self.schema)

    def to_bytes(self) -> bytes:
        """Canonical JSON with its checksum."""
        digests = {
            "algorithm": self.digests.algorithm,
            "block_rows": self.digests.block_rows,
            "fields": {name: table.hex() for name, table in self.digests.tables.items()},
        }
        files = {name: list(entry) for name, entry in self.files.items()}
        return sealed({"format": FORMAT, "version": VERSION, **self.described(), "digests": digests, "files": files})

    def described(self) -> dict[str, Any]:
        """The keys that the manifest of a store and that of a sharded directory have in common."""
        # what has no labels is written as it always was
        counts = {"counts": class_counts.to_json(self.counts)} if self.counts else {}
        return {
            "bigconv_version": self.bigconv_version,
            "store": self.store,
            "rows": self.rows,
            "fields": self.schema.to_json(),
            "content_digest": self.content_digest,
            "source": dict(self.source),
            "recipe": dict(self.recipe),
            "plan": self.plan,
            **counts,
        }

    @classmethod
    def from_bytes(cls, raw: bytes, where: str) -> Manifest:
        """Parse and check. Raises `IncompleteStore` for a damaged manifest, `LaterVersion` for a later one."""
        with parsing(where):
            body = unsealed(raw, where, FORMAT, VERSION)
            manifest = cls._from_body(body)
            if manifest.content_digest != body["content_digest"]:
                raise ValueError("the content digest does not fit the digests")
            return manifest

    @classmethod
    def _from_body(cls, body: dict[str, Any]) -> Manifest:
        schema = Schema.from_json(body["fields"])
        rows, block_rows = count(body["rows"]), count(body["digests"]["block_rows"])
        algorithm = known_algorithm(body["digests"]["algorithm"])
        if block_rows < 1:
            raise ValueError("unknown digests")
        tables = {f.name: bytes.fromhex(body["digests"]["fields"][f.name]) for f in schema}
        digests = Digests(rows, block_rows, tables, algorithm)
        if any(len(table) != digests.blocks * digests.width for table in tables.values()):
            raise ValueError("digests do not fit the number of rows")
        files = {_relative(name): _size_and_digest(entry) for name, entry in body["files"].items()}
        return cls(
            schema=schema,
            rows=rows,
            store=str(body["store"]),
            digests=digests,
            source=mapping(body["source"]),
            recipe=mapping(body["recipe"]),
            bigconv_version=str(body["bigconv_version"]),
            files=files,
            plan=str(body["plan"]),
            counts=class_counts.from_json(body.get("counts", {}), schema, rows),
        )


def known_algorithm(name: object) -> str:
    """The hash that a manifest names. Raises `ValueError` for another."""
    if name not in OPTIONS.values():
        raise ValueError(f"unknown digests: {name!r:.80}")
    return str(name)


def sealed(body: dict[str, Any]) -> bytes:
    """Canonical JSON of a manifest, with a checksum of itself."""
    return canonical({**body, "checksum": _checksum(body)})


@contextmanager
def parsing(where: str) -> Iterator[None]:
    """What is wrong with a manifest, as an `IncompleteStore` that names it."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        told = f"it has no {error}" if isinstance(error, KeyError) else f"{error!s:.500}"
        raise IncompleteStore(f"{where}: the manifest can't be read: {told}") from error


def unsealed(raw: bytes, where: str, form: str, newest: int) -> dict[str, Any]:
    """The object in a manifest of format `form`, its checksum checked; within `parsing`. Raises `LaterVersion`."""
    if len(raw) > MAX_BYTES:
        raise IncompleteStore(f"{where}: the manifest has {len(raw)} bytes, more than {MAX_BYTES}")
    try:
        body = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(not_json(raw, error)) from error
    if not isinstance(body, dict) or body.get("format") != form:
        raise ValueError(f"not a {form} manifest")
    version = body["version"]
    if count(version) < 1:
        raise ValueError(f"version {version!r}")
    if version > newest:
        raise LaterVersion(
            f"{where}: written in format version {version}; this bigconv reads up to {newest}.\n"
            "Upgrade it: pip install --upgrade bigconv"
        )
    if body.pop("checksum", None) != _checksum(body):
        raise ValueError("its checksum does not fit: damaged or edited")
    return body


def canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _checksum(body: Mapping[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(canonical(body)).hexdigest()


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key stands twice")
    return out


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"expected a count, got {value!r:.80}")
    return value


def mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {value!r:.80}")
    return value


def _size_and_digest(entry: object) -> tuple[int, str]:
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], str):
        raise ValueError(f"expected bytes and digest of a file, got {entry!r:.80}")
    return count(entry[0]), entry[1]


def _relative(name: str) -> str:
    if name == ".":
        return name
    parts = name.split("/")
    odd = "\\" in name or "\0" in name or ":" in parts[0]
    if odd or {"", ".", ".."} & set(parts):  # "" stands for // and for / at either end
        raise SchemaError(f"file {name!r} is not a path below the store")
    return name
