"""The journal of a conversion under way: one durable record a checkpoint, each chained to the one before.

`DEST.partial/` holds `plan.json` (what is being made), `journal` (JSON lines), the store, `rejects.jsonl`, `origin` and
`seen`. A run that was killed goes on from the last whole record; whatever was written after it is cut off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigconv import fsio
from bigconv.errors import OutputError

VERSION = 1


@dataclass(frozen=True)
class Record:
    """A checkpoint: everything up to span `spans` (exclusive) is durable.

    `rows` written, `rejects` counted, bytes of the files of rejects, origins and digests of inputs, the store's own
    `state`, and of each block since the record before its rows and digests (hex, all fields in order).
    """

    spans: int
    rows: int
    rejects: int
    reject_bytes: int
    origin_bytes: int
    seen_bytes: int
    state: Mapping[str, Any]
    blocks: tuple[tuple[int, str], ...]

    def follows(self, before: Record) -> bool:
        """Whether nothing that was durable before has gone: all that is counted grows."""
        counted = ("spans", "rows", "rejects", "reject_bytes", "origin_bytes", "seen_bytes")
        return all(getattr(self, name) >= getattr(before, name) for name in counted)


class Journal:
    """Append-only; every record carries a hash over itself and its predecessor's hash."""

    def __init__(self, path: Path, plan: str) -> None:
        """Open, or start one for a plan (its hash). `records`: those that are whole and of this plan."""
        self._chain = hashlib.sha256(f"bigconv journal {VERSION} {plan}".encode()).hexdigest()
        self.records: list[Record] = []
        keep = self._read(path)
        self._file = fsio.AppendFile(path, keep)

    def _read(self, path: Path) -> int:
        if not path.exists():
            return 0
        keep = 0
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                body = json.loads(line)
                chain = body.pop("chain")
                if not line.endswith(b"\n") or chain != self._link(body):
                    break
                blocks = tuple((int(rows), str(digest)) for rows, digest in body.pop("blocks"))
                record = Record(**body, blocks=blocks)
                if self.records and not record.follows(self.records[-1]):
                    break
                self.records.append(record)
            except (ValueError, KeyError, TypeError, AttributeError):
                break  # torn by the kill: the record before it counts
            self._chain = chain
            keep += len(line)
        return keep

    def _link(self, body: Mapping[str, Any]) -> str:
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256((self._chain + text).encode()).hexdigest()

    def append(self, record: Record) -> None:
        """Write a record and make it durable."""
        body = json.loads(json.dumps(asdict(record)))
        self._chain = self._link(body)
        line = json.dumps({**body, "chain": self._chain}, sort_keys=True, separators=(",", ":"))
        self._file.write(line.encode() + b"\n")
        self._file.sync()
        self.records.append(record)

    def close(self) -> None:
        self._file.close()


def write_plan(path: Path, document: Mapping[str, Any]) -> None:
    """Keep what is being made, so that another command can be told from this one."""
    fsio.replace_file(path, json.dumps(document, sort_keys=True).encode())


def read_plan(path: Path) -> dict[str, Any] | None:
    """What is being made in a folder; None when nothing was begun. Raises `OutputError` for a damaged one."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OutputError(f"{path.parent}: unfinished work that can't be read; start over with --restart") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise OutputError(f"{path.parent}: unfinished work of another bigconv; start over with --restart")
    return document
