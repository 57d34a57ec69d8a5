"""Fields added and dropped: what is there is linked, what is new is proven, and a kill changes nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bigconv
from bigconv import fsio, registry
from bigconv.block import Block
from bigconv.conversion import shard_fields
from bigconv.conversion.build import partial_folder
from bigconv.conversion.shard_fields import change_fields
from bigconv.errors import BigconvError, IncompleteStore, InputError, OutputError, UsageError
from bigconv.schema import Field, Schema
from bigconv.testing import cases
from bigconv.testing.given import write
from bigconv.view.opening import Opened, OpenedDataset, open_store
from bigconv.view.report import layouts, verify

FIXED = Schema((Field("x", "uint8", (3, 5)), Field("label", "int64", (), "label", classes=("a", "b", "c"))))
RAGGED = Schema((*FIXED, Field("tokens", "uint16", (None,), "tokens")))
NEW = Schema((Field("embedding", "float32", (33,)), Field("sizes", "float32", (None, None))))
ROWS = 2_300  # more than two canonical blocks of ragged rows, and no multiple
KINDS = ("memmap", "zarr", "memmap parts", "zarr parts", "zarr parts, compressed")


def rows_of(schema: Schema, rows: int = ROWS) -> Block:
    block = cases.block(schema, rows, 3)
    labels = {"label": np.arange(rows) % 3} if "label" in schema.names else {}
    return Block(schema, {**block.columns, **labels})


def put(path: Path, block: Block, kind: str = "memmap") -> Path:
    """A store, or a directory of uneven parts."""
    name, _, how = kind.partition(" ")
    store = registry.load("store", name)()
    if "compressed" in how:
        store = replace(store, compress="lz4")
    whole = path.with_name(path.name + ".whole") if how else path
    write(whole, store, block, 500)
    if how:
        bigconv.shard(whole, path, rows=900, workers=0)
        assert open_store(path).store.compress == store.compress
    return path


def inodes(opened: Opened) -> dict[tuple[int, str], int]:
    """(part, file) → inode of every file that holds a field."""
    found = {}
    for number in range(len(opened.part_rows)):
        part = opened.part(number)
        for field in part.manifest.schema:
            for name in part.store.field_files(field, part.manifest.files):
                found[number, name] = (part.path / name).stat().st_ino
    return found


def columns(block: Block, names: tuple[str, ...]) -> Block:
    return Block(block.schema.select(names), {name: block.columns[name] for name in names})


def joined(*blocks: Block) -> Block:
    schema = Schema(tuple(f for block in blocks for f in block.schema))
    return Block(schema, {name: column for block in blocks for name, column in block.columns.items()})


def whole_again(path: Path, expected: Block, tmp_path: Path) -> None:
    """A store has these rows, is proven, and has the digest of one that was made with these fields at once."""
    assert verify(open_store(path)) == []
    assert cases.same_block(bigconv.open(path)[:], expected)
    at_once = put(tmp_path / "at_once.h5", expected, "hdf5")
    assert open_store(path).manifest.content_digest == open_store(at_once).manifest.content_digest
    at_once.unlink()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schema", [FIXED, RAGGED], ids=["fixed", "ragged"])
def test_add_then_drop_writes_no_other_field(tmp_path: Path, kind: str, schema: Schema) -> None:
    """Also where canonical blocks get another size, as the first ragged field comes and goes."""
    old, new = rows_of(schema), rows_of(NEW)
    path, other = put(tmp_path / "all", old, kind), put(tmp_path / "new.h5", new, "hdf5")
    before, files = open_store(path), inodes(open_store(path))
    reader = bigconv.open(path)
    reader[0]  # is open on all that follows

    added = bigconv.shard(path, add_field=other)
    assert isinstance(added, bigconv.Manifest)
    assert added.schema.names == (*schema.names, "embedding", "sizes")
    now = inodes(open_store(path))
    assert {key: now[key] for key in files} == files
    whole_again(path, joined(old, new), tmp_path)
    assert np.array_equal(reader[: min(900, ROWS)]["x"], old["x"][:900])

    dropped = bigconv.shard(path, drop_field=["sizes", "embedding"])
    assert isinstance(dropped, bigconv.Manifest)
    assert dropped.content_digest == before.manifest.content_digest
    assert inodes(open_store(path)) == files
    whole_again(path, old, tmp_path)
    assert dropped.plan != before.manifest.plan  # the first conversion, run again, doesn't take it for its own


@pytest.mark.parametrize("kind", KINDS)
def test_drop_the_largest_and_exchange_one(tmp_path: Path, kind: str) -> None:
    old = rows_of(RAGGED)
    path = put(tmp_path / "all", old, kind)
    bigconv.shard(path, drop_field="x")
    whole_again(path, columns(old, ("label", "tokens")), tmp_path)
    mended = Block(Schema((Field("label", "int8", ()),)), {"label": np.arange(ROWS, dtype=np.int64).astype(np.int8)})
    put(tmp_path / "labels.lmdb", mended, "lmdb")
    bigconv.shard(path, drop_field="label", add_field=[tmp_path / "labels.lmdb"])
    whole_again(path, joined(columns(old, ("tokens",)), mended), tmp_path)
    recipe = open_store(path).manifest.recipe["fields"]
    assert [change["dropped"] for change in recipe] == [["x"], ["label"]]
    assert recipe[1]["added"][0]["from"][0]["path"] == "labels.lmdb"


def test_no_byte_of_the_others_is_read_where_digests_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canonical block stays 1,024 rows where one ragged field is left."""
    path = put(tmp_path / "all.mmap", rows_of(RAGGED))
    monkeypatch.setattr(shard_fields.StoreView, "blocks", lambda *_: pytest.fail("a field was read"))
    bigconv.shard(path, drop_field="x")
    monkeypatch.undo()
    assert verify(open_store(path)) == []


def test_layouts_are_told_as_they_lie(tmp_path: Path) -> None:
    """A compressed Zarr cuts all fields after the rows of the largest; what was added was cut by itself."""
    path = put(tmp_path / "all", rows_of(FIXED), "zarr parts, compressed")
    before = layouts(open_store(path))
    bigconv.shard(path, add_field=put(tmp_path / "new", rows_of(NEW)))
    bigconv.shard(path, drop_field="x")
    after = layouts(open_store(path))
    assert after["label"] == before["label"]
    assert "lz4" in after["embedding"]


def test_damage_is_not_given_a_new_digest(tmp_path: Path) -> None:
    """A field that has to be hashed anew is held against the digests it had."""
    path = put(tmp_path / "all.mmap", rows_of(FIXED))
    file = path / "x.npy"
    raw = bytearray(file.read_bytes())
    raw[-9] ^= 4
    file.write_bytes(raw)
    before = {name: (path / name).read_bytes() for name in fsio.files_below(path)}
    with pytest.raises(IncompleteStore, match="field x is damaged; nothing was changed"):
        bigconv.shard(path, add_field=put(tmp_path / "new.mmap", rows_of(NEW)))
    assert {name: (path / name).read_bytes() for name in fsio.files_below(path)} == before


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"drop_field": "lable"}, UsageError, "Did you mean 'label'"),
        ({"drop_field": ["x", "label", "tokens"]}, UsageError, "no field would be left"),
        ({"add_field": "same"}, UsageError, "has a field label already; take that out with --drop-field label"),
        ({"add_field": "short"}, InputError, "9 rows, and .* has 2,300"),
        ({"add_field": "nowhere"}, BigconvError, "no such file or folder"),
        ({"drop_field": "x", "repair": True}, UsageError, "each changes one store"),
        ({"drop_field": "x", "dest": "other"}, UsageError, "each changes one store"),
        ({"drop_field": "x", "rank": "0/2"}, UsageError, "--rank: for a new DEST"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, asked: dict[str, Any], error: type[BigconvError], message: str
) -> None:
    path = put(tmp_path / "all.mmap", rows_of(RAGGED))
    put(tmp_path / "same", rows_of(Schema((FIXED["label"],))))
    put(tmp_path / "short", rows_of(NEW, 9))
    there = sorted(os.listdir(tmp_path))
    options = {key: tmp_path / value if key in ("add_field", "dest") else value for key, value in asked.items()}
    with pytest.raises(error, match=message):
        bigconv.shard(path, **options)
    assert sorted(os.listdir(tmp_path)) == there


@pytest.mark.parametrize(("kind", "name"), [("hdf5", "all.h5"), ("lmdb", "all.lmdb")])
def test_stores_of_one_file_say_what_to_do_instead(tmp_path: Path, kind: str, name: str) -> None:
    path = put(tmp_path / name, rows_of(FIXED), kind)
    with pytest.raises(UsageError, match=r"keeps all fields in one file.*\nPut it in .*: bigconv shard .* all.zarr"):
        bigconv.shard(path, drop_field="x")
    bigconv.shard(path, tmp_path / "all.zarr", workers=0)  # that
    bigconv.shard(tmp_path / "all.zarr", drop_field="x")
    assert bigconv.open(tmp_path / "all.zarr").schema.names == ("label",)


@pytest.mark.parametrize("kind", ["memmap", "zarr parts"])
def test_a_users_file_is_not_taken_away(tmp_path: Path, kind: str) -> None:
    path = put(tmp_path / "all", rows_of(FIXED), kind)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt in it is not the store's"):
        bigconv.shard(path, drop_field="x")
    assert (path / "notes.txt").read_text() == "mine"
    if "parts" in kind:
        (path / "notes.txt").rename(next(path.glob("part-*")) / "notes.txt")
        with pytest.raises(OutputError, match=r"notes\.txt in it is not the store's"):
            bigconv.shard(path, drop_field="x")


def test_parts_of_other_fields_are_not_made_again(tmp_path: Path) -> None:
    path = put(tmp_path / "all", rows_of(FIXED), "memmap parts")
    bigconv.shard(path, drop_field="x")
    with pytest.raises(OutputError, match=r"made from something else \(fields"):
        bigconv.shard(tmp_path / "all.whole", path, rows=900)
    opened = open_store(path)
    assert isinstance(opened, OpenedDataset)
    fsio.remove(opened.part_path(1))
    with pytest.raises(OutputError, match="fields were added or dropped"):
        bigconv.shard(path, repair=True, source=tmp_path / "all.whole")


OPERATIONS = (
    *((fsio.AppendFile, name) for name in ("write", "write_at", "sync")),
    *((fsio, name) for name in ("write_file", "link", "sync_path", "sync_folder", "publish", "remove", "_exchange")),
)


def _run(path: Path, other: Path, strike: int) -> None:
    count = 0

    def deadly(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == strike:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    for owner, name in OPERATIONS:
        setattr(owner, name, deadly(getattr(owner, name)))
    change_fields(path, ["x"], [other])
    os._exit(7)  # the run was over before the strike


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
@pytest.mark.parametrize(("kind", "every"), [("memmap", 5), ("zarr parts", 71)])
def test_killed_anywhere(tmp_path: Path, kind: str, every: int) -> None:
    """The fields before or those after, each whole; the same command then ends as if nothing had been."""
    other = put(tmp_path / "new.mmap", rows_of(NEW))
    pattern = put(tmp_path / "pattern", rows_of(FIXED), kind)
    before = open_store(pattern).manifest.content_digest

    def child(path: Path, strike: int) -> int:
        process = multiprocessing.get_context("fork").Process(target=_run, args=(path, other, strike))
        process.start()
        process.join(60)
        return process.exitcode or 0

    strike, after = 1, ""
    while True:
        path = tmp_path / str(strike) / "all"
        _copied(pattern, path)
        over = child(path, strike) == 7
        opened = open_store(path)
        assert not over or opened.manifest.content_digest != before
        change_fields(path, ["x"], [other])
        opened = open_store(path)
        after = after or opened.manifest.content_digest
        assert opened.manifest.content_digest == after, f"strike {strike}"
        assert verify(opened) == [], f"strike {strike}"
        if over:
            break
        strike += every
    assert strike > 3 * every
    assert not partial_folder(path).exists()


def _copied(path: Path, to: Path) -> None:
    for name in fsio.files_below(path):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_bytes((path / name).read_bytes())
