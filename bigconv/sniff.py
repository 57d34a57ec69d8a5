"""What a file looks like that is not of its format: its first bytes often tell what went wrong with it."""

from __future__ import annotations

import json
import re

_KNOWN = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the file: git lfs pull fetches it"),
    (b"<!doctype html", "a web page, as a failed download leaves it"),
    (b"<html", "a web page, as a failed download leaves it"),
    (b"<?xml", "XML, as a failed download leaves it"),
    (b"PK\x03\x04", "a ZIP archive: unpack it first"),
    (b"\x1f\x8b", "gzip data: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data: unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file: --from hdf5"),
    (b"\x93NUMPY", "a .npy array: give it that extension"),
    (b"PAR1", "a Parquet file: --from parquet"),
    (b"%PDF-", "a PDF"),
    (b"\x89PNG\r\n", "a PNG image: --from images"),
    (b"\xff\xd8\xff", "a JPEG image: --from images"),
)


def looks(head: bytes) -> str:
    """Of a file's first bytes, 16 or more: `an empty file`, `a web page, …`, or else the bytes themselves."""
    if not head:
        return "an empty file"
    if not any(head):
        return "nothing but zeros, as an interrupted copy leaves it"
    if re.match(rb"\s*\[\s*\{", head):
        return "one list in JSON: jq -c '.[]' FILE > FILE.jsonl makes a line of each object"
    start = head.lstrip().lower() if head[:1].isspace() or head[:1] == b"<" else head
    return next((what for magic, what in _KNOWN if start.startswith(magic)), f"starts with {head[:16]!r}")


def looks_at(path: str) -> str:
    """The same of a file. Raises `OSError`."""
    with open(path, "rb") as file:
        return looks(file.read(64))


def not_json(raw: bytes, error: Exception) -> str:
    """What is wrong with bytes that should be a document of JSON, by what reading them raised."""
    if isinstance(error, RecursionError):
        return "nested too deep for any document of a store"
    if not isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return str(error)
    return "cut short or damaged" if raw.lstrip().startswith(b"{") else f"not JSON: {looks(raw[:64])}"
