"""The manifest: what is written is read, and whatever else stands there is refused by one of two errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigconv.digest import Digester
from bigconv.errors import IncompleteStore, LaterVersion, NotAStore, StoreError
from bigconv.manifest import Manifest
from bigconv.schema import Field, Schema
from bigconv.testing import cases

SCHEMA = Schema(
    (
        Field("größe", "float32", (None, None, 3), "image", "hwc"),
        Field("label", "int64", (), "label", classes=("katze", "☃", "x\n")),
    )
)


def manifest(rows: int = 2100) -> Manifest:
    digester = Digester(SCHEMA)
    digester.update(cases.block(SCHEMA, rows))
    return Manifest(
        schema=SCHEMA,
        rows=rows,
        store="memmap",
        digests=digester.finish(),
        source={"kind": "images", "files": rows, "deep": {"é": [1, None, 0.5, True]}},
        recipe={"steps": [{"step": "resize", "size": [64, 64]}]},
        bigconv_version="0.1.0",
        files={"größe.values.npy": (12345, "0" * 32), "c/0/0": (7, "f" * 32)},
    )


def canonical(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def forged(change: Callable[[dict[str, Any]], object], *, checksum: bool = True) -> bytes:
    """A manifest that somebody changed, with a checksum that fits."""
    body = json.loads(manifest(3).to_bytes())
    del body["checksum"]
    change(body)
    if checksum:
        body["checksum"] = "sha256:" + hashlib.sha256(canonical(body)).hexdigest()
    return canonical(body)


def test_there_and_back() -> None:
    made = manifest()
    raw = made.to_bytes()
    again = Manifest.from_bytes(raw, "here")
    assert again == made
    assert again.to_bytes() == raw
    assert again.content_digest == made.content_digest
    assert again.digests.blocks == 3


def test_canonical_json_as_documented() -> None:
    """Sorted keys, no spaces, UTF-8, a checksum of itself: another program can check it."""
    raw = manifest().to_bytes()
    body = json.loads(raw)
    assert raw == canonical(body)
    checksum = body.pop("checksum")
    assert checksum == "sha256:" + hashlib.sha256(canonical(body)).hexdigest()
    assert "größe".encode() in raw
    assert (body["format"], body["version"], body["store"], body["rows"]) == ("bigconv", 1, "memmap", 2100)
    assert set(body) >= {"bigconv_version", "fields", "digests", "content_digest", "source", "recipe", "files"}
    assert set(body["digests"]) == {"algorithm", "block_rows", "fields"}
    assert {len(table) for table in body["digests"]["fields"].values()} == {3 * 32}


def test_dictionaries_in_any_order_give_the_same_bytes() -> None:
    made = manifest()
    other = replace(made, source=dict(reversed(made.source.items())), files=dict(reversed(made.files.items())))
    assert other.to_bytes() == made.to_bytes()


def test_an_honest_change_of_the_test_itself() -> None:
    """`forged` with no change is whole: what the other tests find is their change."""
    assert Manifest.from_bytes(forged(lambda body: None), "here") == manifest(3)


@given(st.data())
@settings(derandomize=True, max_examples=150, deadline=None)
def test_a_flipped_bit_is_refused(data: st.DataObject) -> None:
    raw = bytearray(manifest(3).to_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(StoreError):
        Manifest.from_bytes(bytes(raw), "here")


def test_cut_short_at_every_length() -> None:
    raw = manifest(3).to_bytes()
    for n in range(len(raw)):
        with pytest.raises(IncompleteStore, match="here: the manifest can't be read"):
            Manifest.from_bytes(raw[:n], "here")
    with pytest.raises(IncompleteStore):
        Manifest.from_bytes(raw + b"{}", "here")


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", b"[]", b"null", b"3", b'"bigconv"', b"\xff\xfe", b"\0" * 100, b'{"format":"other"}', b"[" * 100_000],
)
def test_no_manifest_at_all(raw: bytes) -> None:
    with pytest.raises(IncompleteStore, match="here"):
        Manifest.from_bytes(raw, "here")


def test_versions() -> None:
    with pytest.raises(LaterVersion, match=r"format version 2; .*up to 1.\nUpgrade it: pip install"):
        Manifest.from_bytes(forged(lambda body: body.update(version=2)), "here")
    # a later version may change everything else, its checksum too
    with pytest.raises(LaterVersion):
        Manifest.from_bytes(b'{"format":"bigconv","version":7}', "here")
    for version in (0, -1, "1", None, 1.0, True, [1]):
        with pytest.raises(IncompleteStore, match="here"):
            Manifest.from_bytes(forged(lambda body, version=version: body.update(version=version)), "here")


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "fewer rows": lambda b: b.update(rows=1),
    "many rows": lambda b: b.update(rows=10**18),
    "negative rows": lambda b: b.update(rows=-3),
    "rows as text": lambda b: b.update(rows="3"),
    "rows as float": lambda b: b.update(rows=3.0),
    "rows as bool": lambda b: b.update(rows=True),
    "block rows 0": lambda b: b["digests"].update(block_rows=0),
    "other block rows": lambda b: b["digests"].update(block_rows=2),
    "other algorithm": lambda b: b["digests"].update(algorithm="crc32"),
    "no digests": lambda b: b.pop("digests"),
    "digests of no field": lambda b: b["digests"].update(fields={}),
    "digests as list": lambda b: b["digests"].update(fields=[]),
    "digest not hex": lambda b: b["digests"]["fields"].update(label="zz" * 16),
    "digest of half a byte": lambda b: b["digests"]["fields"].update(label="0" * 31),
    "another digest": lambda b: b["digests"]["fields"].update(label="0" * 32),
    "no fields": lambda b: b.update(fields=[]),
    "fields as text": lambda b: b.update(fields="label"),
    "a field twice": lambda b: b["fields"].append(b["fields"][0]),
    "a field with a path": lambda b: b["fields"][0].update(name="../../x"),
    "an object field": lambda b: b["fields"][0].update(dtype="object"),
    "other dtype": lambda b: b["fields"][0].update(dtype="int32"),
    "other content digest": lambda b: b.update(content_digest="0" * 64),
    "no content digest": lambda b: b.pop("content_digest"),
    "source as text": lambda b: b.update(source="x"),
    "recipe as list": lambda b: b.update(recipe=[]),
    "no recipe": lambda b: b.pop("recipe"),
    "files as list": lambda b: b.update(files=["x"]),
    "file of no size": lambda b: b["files"].update(x=None),
    "file as number": lambda b: b["files"].update(x=7),
    "file as empty list": lambda b: b["files"].update(x=[]),
    "file of half an entry": lambda b: b["files"].update(x=[7]),
    "file of negative size": lambda b: b["files"].update(x=[-7, "0" * 32]),
    "file of a digest that is none": lambda b: b["files"].update(x=[7, None]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_forged_checksum_helps_nobody(name: str) -> None:
    with pytest.raises(IncompleteStore, match="here: the manifest can't be read"):
        Manifest.from_bytes(forged(CHANGES[name]), "here")


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "a/.", "a\\b", "C:/x", "C:x", "a\0b", "..", "/"],
)
def test_files_outside_of_the_store(name: str) -> None:
    entry = next(iter(json.loads(manifest(3).to_bytes())["files"].values()))
    with pytest.raises(IncompleteStore, match="not a path below the store"):
        Manifest.from_bytes(forged(lambda body: body["files"].update({name: entry})), "here")


def test_json_that_python_would_bear() -> None:
    """Duplicate keys, NaN and infinities, which JSON readers take in different ways."""
    raw = manifest(3).to_bytes()
    for change in (
        raw[:-1] + b',"rows":3}',
        raw.replace(b'"deep":{', b'"deep":{"x":1,"x":1,'),
        raw.replace(b"0.5", b"NaN"),
        raw.replace(b"0.5", b"-Infinity"),
        raw.replace(b"0.5", b"1e999"),
    ):
        assert change != raw
        with pytest.raises(IncompleteStore):
            Manifest.from_bytes(change, "here")


def test_a_manifest_too_large_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigconv.manifest.MAX_BYTES", 100)
    with pytest.raises(IncompleteStore, match="more than 100"):
        Manifest.from_bytes(manifest(3).to_bytes(), "here")


def test_nan_is_never_written() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        replace(manifest(3), source={"x": float("nan")}).to_bytes()


def test_errors_are_short_and_of_the_standard_tree() -> None:
    body = forged(lambda b: b.update(rows="9" * 100_000))
    with pytest.raises(OSError, match="here") as error:
        Manifest.from_bytes(body, "here")
    assert len(str(error.value)) < 300
    assert not isinstance(error.value, NotAStore)


def test_numpy_numbers_do_not_sneak_in() -> None:
    """What isn't JSON fails when written, not when read back."""
    with pytest.raises(TypeError):
        replace(manifest(3), source={"files": np.int64(3)}).to_bytes()
