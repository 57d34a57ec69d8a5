"""Compressed stores: any rows come back as the memory store has them, and plain libraries read the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import h5py
import hdf5plugin
import lmdb
import numcodecs.blosc
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bigconv
from bigconv import fsio
from bigconv.block import Block, Ragged
from bigconv.conversion import build
from bigconv.conversion.parts import _await_lock
from bigconv.conversion.plan import Plan
from bigconv.conversion.run import Policy, execute
from bigconv.errors import IncompleteStore, OutputError, StoreError, UsageError
from bigconv.schema import DTYPES, Field, Schema
from bigconv.stores import frames
from bigconv.stores.base import Packed, PackedRecords, RaggedColumns, recalled
from bigconv.stores.hdf5 import Hdf5
from bigconv.stores.lmdb import Lmdb
from bigconv.stores.lmdb_record import Record
from bigconv.stores.memmap import Memmap
from bigconv.stores.memory import Memory
from bigconv.stores.zarr import Zarr
from bigconv.testing import cases
from bigconv.testing.given import Given
from bigconv.testing.store_suite import SCHEMAS, opened, write
from bigconv.view.opening import open_store
from bigconv.view.report import verify
from bigconv.view.table import StoreView

CODECS = ("lz4", "zstd", "zstd:5")
STORES = {
    ".h5": lambda compress, chunk: Hdf5(compress, chunk),
    ".zarr": lambda compress, chunk: Zarr(2000, 9000, compress, chunk),
    ".lmdb": lambda compress, chunk: Lmdb(compress),
}
MIXED = Schema(
    (
        Field("image", "uint8", (3, 8, 8), "image", "chw"),
        Field("label", "int64", (), "label"),
        Field("tokens", "uint16", (None,), "tokens"),
        Field("sizes", "float32", (None, None)),
        Field("text", "uint8", (None,), "text"),
    )
)


def contents(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {".": path.read_bytes()}
    return {name: (path / name).read_bytes() for name in fsio.files_below(path)}


# -- any rows --------------------------------------------------------------------------------------------------------

shapes = st.sampled_from([(), (3,), (2, 700), (0, 2), (None,), (None, 3), (None, None), (5, None)])
fields = st.lists(st.tuples(st.sampled_from(DTYPES), shapes), min_size=1, max_size=3)


@given(fields, st.integers(0, 40), st.sampled_from(CODECS), st.none() | st.integers(1, 50), st.integers(0, 99))
@settings(derandomize=True, max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_as_memory_has_them(
    tmp_path: Path, some: list[tuple[str, tuple]], rows: int, compress: str, chunk: int | None, seed: int
) -> None:
    """Bit by bit, in every store, by the engine and by the store's own library; the same digest."""
    schema = Schema(tuple(Field(f"f{i}", dtype, shape) for i, (dtype, shape) in enumerate(some)))
    block = cases.block(schema, rows, seed)
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    oracle = write(folder / "oracle", Memory(), block, 7)
    memory = StoreView.of([opened(folder / "oracle", Memory(), oracle)])
    order = np.random.default_rng(seed).integers(0, rows, 60) if rows else np.empty(0, np.int64)
    for suffix, make in STORES.items():
        path = folder / f"out{suffix}"
        assert write(path, make(compress, chunk), block, 7).content_digest == oracle.content_digest
        with bigconv.open(path) as view:
            assert cases.same_block(view.take(order), memory.take(order))
            assert cases.same_block(Block.concat(list(view.blocks(rows=11))), block) if rows else True
            for f in schema:
                if f.ragged:
                    assert view.lengths(f.name, order).tolist() == memory.take(order)[f.name].lengths.tolist()
        reader = make(compress, chunk).open(path, schema, rows)
        assert cases.same_block(reader.take(order[:7], schema.names), memory.take(order[:7]))
        reader.close()


@pytest.mark.parametrize("suffix", STORES)
@pytest.mark.parametrize("compress", CODECS)
def test_bytes_do_not_depend_on_workers_and_blocks(tmp_path: Path, suffix: str, compress: str) -> None:
    x = np.arange(300 * 64, dtype=np.int32).reshape(300, 64) // 7
    np.save(tmp_path / "x.npy", x)
    found = []
    for i, options in enumerate([{"workers": 0}, {"workers": 2}, {"workers": 1, "limit": None}]):
        path = tmp_path / str(i) / f"out{suffix}"
        path.parent.mkdir()
        bigconv.convert(tmp_path / "x.npy", path, compress=compress, **options)
        found.append(contents(path))
    assert found[0] == found[1] == found[2]


# -- plain libraries -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", CODECS)
@pytest.mark.parametrize("name", ["every dtype", "rows of pages", "text and bytes", "images of all sizes", "scalars"])
@pytest.mark.parametrize("rows", [1, 2, 37])
def test_plain_zarr_and_h5py(tmp_path: Path, compress: str, name: str, rows: int) -> None:
    """zarr-python with its own codecs, h5py with hdf5plugin: the arrays that were written."""
    assert hdf5plugin.BLOSC_ID == 32001  # importing it is what gives h5py the filter
    block = cases.block(SCHEMAS[name], rows)
    write(tmp_path / "a.zarr", STORES[".zarr"](compress, 5), block, 4)
    write(tmp_path / "a.h5", STORES[".h5"](compress, 5), block, 4)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    with h5py.File(tmp_path / "a.h5") as file:
        for field, column in block.columns.items():
            parts = {field: column}
            if isinstance(column, Ragged):
                parts = {f"{field}/values": column.values, f"{field}/offsets": column.offsets}
            for part, expected in parts.items():
                for found in (group[part][...], file[part][()]):
                    assert found.dtype == expected.dtype
                    assert found.tobytes() == expected.tobytes()


def test_plain_lmdb(tmp_path: Path) -> None:
    """What docs/format.md says: a value is a Blosc buffer of the record that it would be otherwise."""
    block = cases.block(MIXED, 21)
    write(tmp_path / "a.lmdb", Lmdb("zstd"), block, 4)
    write(tmp_path / "b.lmdb", Lmdb(), block, 4)
    with (
        lmdb.open(str(tmp_path / "a.lmdb"), readonly=True, lock=False) as packed,
        lmdb.open(str(tmp_path / "b.lmdb"), readonly=True, lock=False) as plain,
        packed.begin() as ours,
        plain.begin() as theirs,
    ):
        assert packed.stat()["entries"] == 21
        for i in range(21):
            value = numcodecs.blosc.decompress(ours.get(i.to_bytes(8, "big")))
            assert value == theirs.get(i.to_bytes(8, "big"))
            label = Record(MIXED).decode(value, MIXED["label"])
            assert label == block["label"][i]


def test_zarr_writes_what_zarr_python_writes(tmp_path: Path) -> None:
    """Metadata word by word, and shards byte by byte."""
    x = np.arange(1, 1201, dtype="u2").reshape(48, 5, 5)
    write(tmp_path / "a.zarr", Zarr(2000, 1200, "zstd", 6), Block(Schema((Field("x", "uint16", (5, 5)),)), {"x": x}), 7)
    ours = zarr.open_array(tmp_path / "a.zarr" / "x", mode="r")
    blosc = zarr.codecs.BloscCodec(typesize=2, cname="zstd", clevel=1, shuffle="shuffle", blocksize=0)
    theirs = zarr.create_array(
        tmp_path / "b.zarr",
        shape=ours.shape,
        chunks=ours.chunks,
        shards=ours.shards,
        dtype="u2",
        filters=None,
        compressors=[blosc, zarr.codecs.Crc32cCodec()],
    )
    theirs[:] = x
    document = [
        json.loads(file.read_bytes()) for file in (tmp_path / "a.zarr/x/zarr.json", tmp_path / "b.zarr/zarr.json")
    ]
    assert document[0] == document[1]
    shards = sorted(name for name in contents(tmp_path / "b.zarr") if name.startswith("c/"))
    assert len(shards) == 2
    for name in shards:
        assert (tmp_path / "a.zarr/x" / name).read_bytes() == (tmp_path / "b.zarr" / name).read_bytes()


@pytest.mark.parametrize("suffix", STORES)
def test_where_things_lie(tmp_path: Path, suffix: str) -> None:
    """Rows and values are packed; what is looked up row by row is not."""
    block = cases.block(MIXED, 30)
    store = STORES[suffix]("lz4", None)
    manifest = write(tmp_path / f"a{suffix}", store, block, 30)
    where = store.open(tmp_path / f"a{suffix}", MIXED, 30).locate()
    assert where is not None
    if suffix == ".lmdb":
        assert isinstance(where["image"], PackedRecords)
        return
    assert isinstance(where["image"], Packed)
    assert isinstance(where["sizes"], RaggedColumns)
    assert isinstance(where["sizes"].values, Packed)
    assert not isinstance(where["sizes"].offsets, Packed)
    assert manifest.recipe["options"]["compress"] == "lz4"


# -- damage and kills --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", STORES)
def test_every_byte_counts(tmp_path: Path, suffix: str) -> None:
    """Each of 90 flips in any file: refused, found by verify, or harmless; and never a crash."""
    block = cases.block(SCHEMAS["two ragged around a fixed"], 12)
    path = tmp_path / f"a{suffix}"
    write(path, STORES[suffix]("lz4", 4), block, 5)
    rng = np.random.default_rng(0)
    files = [path] if path.is_file() else [path / name for name in fsio.files_below(path)]
    for file in files:
        whole = file.read_bytes()
        for at in np.unique(rng.integers(0, len(whole), 90 // len(files))).tolist():
            changed = bytearray(whole)
            changed[at] ^= 1 << int(rng.integers(8))
            file.write_bytes(changed)
            try:
                found = bool(verify(open_store(path)))
            except StoreError:
                found = True
            if not found:
                assert cases.same_block(bigconv.open(path).take(np.arange(12)), block), f"{file.name}, byte {at}"
        file.write_bytes(whole)


def test_a_damaged_frame_names_the_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    x = np.arange(4000).reshape(40, 100)
    write(path, Zarr(compress="zstd", chunk=10), Block(Schema((Field("x", "int64", (100,)),)), {"x": x}), 40)
    shard = path / "x/c/0/0"
    raw = bytearray(shard.read_bytes())
    raw[4:8] = (2**30).to_bytes(4, "little")  # what the first frame holds, as it says
    shard.write_bytes(raw)
    view = bigconv.open(path)
    with pytest.raises(IncompleteStore, match="x: chunk 0 is damaged; run inspect --verify"):
        view.take([3])
    assert np.array_equal(view.take([10, 39])["x"], x[[10, 39]])


def _convert(path: Path, store: Any, block: Block, strike: int, workers: int) -> None:
    """In a child: convert with a checkpoint at every span, and die at the durable operation number `strike`."""
    build.CHECKPOINT_SECONDS, build.CHECKPOINT_SHARE = 0.0, 1e9
    left = strike

    def deadly(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    operations = [(fsio.AppendFile, name) for name in ("write", "write_at", "sync")]
    operations += [(fsio, name) for name in ("write_file", "sync_path", "sync_folder", "publish")]
    for owner, name in operations:
        setattr(owner, name, deadly(getattr(owner, name)))
    _execute(path, store, block, workers)
    os._exit(7)  # the run was over before the strike


class Decoded(Given):
    """Rows that worker processes make."""

    decodes: ClassVar[bool] = True


def _execute(path: Path, store: Any, block: Block, workers: int) -> Any:
    source = Decoded(block, 7)
    plan = Plan(source, (), block.schema, source.plan(), store)
    return execute(plan, path, Policy(workers, start_method="fork")).manifest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
@pytest.mark.parametrize("suffix", STORES)
def test_killed_anywhere(tmp_path: Path, suffix: str) -> None:
    """A kill at every so many operations, then a run to the end by other workers: the bytes of one nobody killed."""
    block, store = cases.block(MIXED, 40), STORES[suffix]("lz4", 9)
    whole = tmp_path / "whole" / f"out{suffix}"
    whole.parent.mkdir()
    _execute(whole, store, block, 0)
    expected, strike, kills = contents(whole), 3, 0
    while True:
        path = tmp_path / str(strike) / f"out{suffix}"
        path.parent.mkdir()
        process = multiprocessing.get_context("fork").Process(
            target=_convert, args=(path, store, block, strike, kills % 3)
        )
        process.start()
        process.join(60)
        if process.exitcode == 7:
            break
        assert process.exitcode == -signal.SIGKILL
        assert not path.exists()
        _await_lock(build.partial_folder(path))  # forked workers hold it until they notice that they are alone
        assert _execute(path, store, block, (kills + 1) % 3).rows == 40
        assert contents(path) == expected, f"strike {strike}"
        strike, kills = strike + 41, kills + 1
    assert kills > 2


def test_hdf5_goes_on_from_a_checkpoint_in_the_middle_of_a_chunk(tmp_path: Path) -> None:
    """Also when it was killed after the file had its name."""
    block, lost = cases.block(MIXED, 40, 1), cases.block(MIXED, 20, 2)
    store = Hdf5("zstd", 9)
    write(tmp_path / "whole.h5", store, block, 40)
    writer = store.create(tmp_path / "a.h5", MIXED)
    state: dict[str, Any] = {}
    for start, stop in [(0, 5), (5, 31), (31, 33)]:
        writer.append(block.slice(start, stop))
        state = json.loads(json.dumps(writer.checkpoint()))
        writer.append(lost)
        if start:
            writer.close()
        writer.abort()
        writer = store.resume(tmp_path / "a.h5", MIXED, None, state)
    writer.append(block.slice(33, 40))
    writer.close()
    assert cases.same_block(store.open(tmp_path / "a.h5", MIXED, 40).take(np.arange(40), MIXED.names), block)


# -- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "kept"), [("none", "none"), ("lz4", "lz4"), ("zstd", "zstd:1"), ("zstd:9", "zstd:9")]
)
def test_what_may_be_typed(typed: str, kept: str) -> None:
    assert {Hdf5(typed).compress, Zarr(compress=typed).compress, Lmdb(typed).compress} == {kept}


@pytest.mark.parametrize(
    "typed", ["", "gzip", "lz4:3", "zstd:0", "zstd:10", "zstd:", "zstd:x", "zstd:-1", "ZSTD", "zstd:²"]
)
def test_what_may_not(typed: str) -> None:
    for kind in (Hdf5, Zarr, Lmdb):
        with pytest.raises(UsageError, match="expected none, lz4, zstd, or zstd:LEVEL"):
            kind(compress=typed)


def test_stores_that_have_no_chunks_say_so() -> None:
    for options in ({"compress": "lz4"}, {"chunk": 4}):
        with pytest.raises(UsageError, match=r"(?s)\.npy files hold rows as they are.*out\.zarr"):
            Memmap(**options)
    with pytest.raises(UsageError, match="a key of its own"):
        Lmdb(chunk=4)
    with pytest.raises(UsageError, match="or compress with"):
        Hdf5(chunk=4)
    for kind in (Zarr, Hdf5):
        with pytest.raises(UsageError, match="1 row or more"):
            kind(compress="lz4", chunk=0)


def test_chunks_past_2_gib_are_refused(tmp_path: Path) -> None:
    schema = Schema((Field("x", "uint8", (1 << 20,)),))
    for store in (Zarr(compress="lz4", chunk=4096), Hdf5("lz4", 4096)):
        with pytest.raises(UsageError, match="field x: a chunk of 4,096 x 1,048,576 bytes is more than the 2 GiB"):
            store.create(tmp_path / "a", schema)


def test_lmdb_rows_past_2_gib_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigconv.stores.lmdb_writer.MOST_BYTES", 1000)
    with pytest.raises(OutputError, match=r"row 0 has 1001 bytes; LMDB holds up to 2 GiB, compressed, a record"):
        write(
            tmp_path / "a.lmdb",
            Lmdb("lz4"),
            Block(Schema((Field("x", "uint8", (1001,)),)), {"x": np.zeros((3, 1001), "u1")}),
            3,
        )


def test_recipes_keep_options(tmp_path: Path) -> None:
    """From the command's words through the manifest to the same store again, without typing them."""
    np.save(tmp_path / "x.npy", np.arange(6000).reshape(60, 100))
    first = bigconv.convert(tmp_path / "x.npy", tmp_path / "a.zarr", compress="zstd:2", chunk=7)
    assert first.recipe["options"] == {"chunk_bytes": 16384, "shard_bytes": 67108864, "compress": "zstd:2", "chunk": 7}
    again = bigconv.convert(tmp_path / "x.npy", tmp_path / "b.zarr", recipe=tmp_path / "a.zarr")
    assert again.recipe == first.recipe
    (tmp_path / "r.json").write_text(json.dumps(dict(first.recipe)))
    other = bigconv.convert(tmp_path / "x.npy", tmp_path / "c.zarr", recipe=tmp_path / "r.json", compress="lz4")
    assert other.recipe["options"]["compress"] == "lz4"
    assert other.recipe["options"]["chunk"] == 7
    h5 = bigconv.convert(tmp_path / "x.npy", tmp_path / "d.h5", recipe=tmp_path / "a.zarr")
    assert h5.recipe["options"]["compress"] == "none"  # options of another kind of store
    assert open_store(tmp_path / "a.zarr").store == Zarr(compress="zstd:2", chunk=7)
    with pytest.raises(OutputError, match=r"compress \"zstd:2\" → \"lz4\""):
        bigconv.convert(tmp_path / "x.npy", tmp_path / "a.zarr", compress="lz4", chunk=7)


def test_appending_keeps_the_layout(tmp_path: Path) -> None:
    for n in range(2):
        np.save(tmp_path / f"{n}.npy", np.full((3, 4), n))
    folder = tmp_path / "rows"
    folder.mkdir()
    np.save(folder / "a.npy", np.arange(500))
    bigconv.convert(folder, tmp_path / "a.h5", compress="lz4", chunk=2)
    np.save(folder / "b.npy", np.arange(500) + 1)
    manifest = bigconv.convert(folder, tmp_path / "a.h5", append=True)
    assert manifest.rows == 2
    assert manifest.recipe["options"] == {"compress": "lz4", "chunk": 2}


@pytest.mark.parametrize(
    "options", [None, 3, {"compress": "brotli"}, {"compress": 3}, {"chunk": "x"}, {"compress": "lz4", "more": 1}]
)
def test_odd_options_of_a_manifest_harm_nothing(options: Any) -> None:
    assert isinstance(recalled(Zarr, {"to": "zarr", "options": options}), Zarr)


def test_described_with_codec_and_chunk() -> None:
    words = {s: make("zstd", 4).describe(MIXED) for s, make in STORES.items()}
    assert words[".h5"]["image"] == "chunks of 4 rows, zstd"
    assert words[".h5"]["tokens"] == "values + offsets, chunks of 32768 values, zstd + shuffle"
    assert words[".zarr"]["image"].endswith("chunks of 4 rows, zstd")
    assert "zstd" not in words[".zarr"]["label"]  # next to nothing beside images and text
    assert words[".h5"]["label"] == "contiguous"
    assert words[".lmdb"]["label"] == "record, zstd + shuffle"
    assert Hdf5("lz4").describe(MIXED)["image"].endswith("lz4 + bitshuffle")
    assert Hdf5("lz4").describe(MIXED)["text"].endswith("lz4")


# -- frames ------------------------------------------------------------------------------------------------------------


def test_frames_are_the_same_whatever_the_threads() -> None:
    rng = np.random.default_rng(0)
    chunks = [np.cumsum(rng.integers(0, 3, 300_000)).astype("<i4").view(np.uint8) for _ in range(4)]
    codec = frames.codec_for("zstd", "int32")
    assert codec is not None
    several = frames.frames(codec, chunks)
    program = (
        "import sys, multiprocessing, numpy as np; from bigconv.stores import frames\n"
        "rng = np.random.default_rng(0)\n"
        "chunks = [np.cumsum(rng.integers(0, 3, 300_000)).astype('<i4').view(np.uint8) for _ in range(4)]\n"
        "frames.cores = lambda: 1\n"
        "sys.stdout.buffer.write(b''.join(frames.frames(frames.codec_for('zstd', 'int32'), chunks)))"
    )
    one = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60).stdout
    assert b"".join(several) == one
    for frame, chunk in zip(several, chunks, strict=True):
        assert np.array_equal(frames.unpacked(frame), chunk)


@pytest.mark.parametrize("bad", [b"", b"\x02\x01", bytes(16), b"\x02\x01\x01\x01" + b"\xff" * 12])
def test_what_is_no_frame(bad: bytes) -> None:
    if bad == bytes(16):
        assert len(frames.unpacked(bad)) == 0  # it says so of itself
        return
    with pytest.raises(IncompleteStore):
        frames.unpacked(bad)
