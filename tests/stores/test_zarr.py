"""Zarr stores: zarr-python reads what we wrote, and every item lies where `locate` says. Warnings are errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import bigconv
from bigconv import fsio
from bigconv.block import Block, Ragged
from bigconv.digest import Digester
from bigconv.errors import IncompleteStore, NotAStore, SchemaError, UsageError
from bigconv.manifest import Manifest
from bigconv.schema import DTYPES, Field, Schema
from bigconv.stores.base import Chunked, RaggedColumns
from bigconv.stores.zarr import Zarr
from bigconv.testing import cases
from bigconv.view.gather import FieldGather
from bigconv.view.memory import Maps

SMALL = Zarr(chunk_bytes=100, shard_bytes=350)  # awkward on purpose: shards of three chunks, and not of 350 bytes
DEFAULT = Zarr()


def column(field: Field, rows: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)

    def bits(*shape: int) -> Any:
        raw = rng.integers(0, 256, (*shape, np.dtype(field.dtype).itemsize), np.uint8)
        return (raw[..., 0] > 127) if field.dtype == "bool" else raw.view(field.dtype)[..., 0]

    if not field.ragged:
        return bits(rows, *field.item_shape)
    return Ragged.of([bits(*(rng.integers(0, 9) if n is None else n for n in field.shape)) for _ in range(rows)], field)


def block(schema: Schema, rows: int) -> Block:
    return Block(schema, {f.name: column(f, rows, number) for number, f in enumerate(schema)})


def manifest_of(path: Path, store: Zarr, data: Block, **recipe: Any) -> Manifest:
    digester = Digester(data.schema)
    digester.update(data)
    files = store.files(path)
    return Manifest(data.schema, len(data), "zarr", digester.finish(), {"from": "Füße/ß"}, recipe, "0.1.0", files)


def write(path: Path, data: Block, store: Zarr = SMALL, step: int = 7, **recipe: Any) -> Path:
    writer = store.create(path, data.schema)
    for start in range(0, len(data), step):
        writer.append(data.slice(start, min(start + step, len(data))))
    writer.close()
    writer.seal(manifest_of(path, store, data, **recipe))
    return path


def same(a: Any, b: Any) -> None:
    """Equal bit by bit: NaNs too, and with their dtype and shape."""
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


def holds(path: Path, data: Block) -> None:
    """zarr-python, without bigconv, finds exactly this data."""
    group = zarr.open_group(path, mode="r")
    for name, expected in data.columns.items():
        if not isinstance(expected, Ragged):
            same(group[name][...], expected)
            continue
        same(group[name]["values"][...], expected.values)
        same(group[name]["offsets"][...], expected.offsets)
        if expected.shapes is not None:
            same(group[name]["shapes"][...], expected.shapes)


def tree(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in fsio.files_below(path)}


MIXED = Schema(
    (
        Field("image", "uint8", (2, 7, 3)),
        Field("label", "int64"),
        Field("text", "uint8", (None,), "text"),
        Field("path", "float32", (None, 3)),
        Field("volume", "uint16", (None, 4, None)),
        Field("nothing", "int16", (0, 2)),
    )
)


@pytest.mark.parametrize("rows", [0, 1, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_zarr_reads_every_dtype(tmp_path: Path, dtype: str, rows: int) -> None:
    schema = Schema((Field("scalar", dtype), Field("grid", dtype, (3, 2)), Field("ragged", dtype, (None, 2))))
    data = block(schema, rows)
    holds(write(tmp_path / "a.zarr", data), data)


@pytest.mark.parametrize("store", [SMALL, DEFAULT], ids=["small", "default"])
@pytest.mark.parametrize("rows", [0, 1, 2, 12, 13, 36, 37, 61])
def test_plain_zarr_reads_every_size(tmp_path: Path, rows: int, store: Zarr) -> None:
    data = block(MIXED, rows)
    holds(write(tmp_path / "a.zarr", data, store), data)


def test_one_item_a_shard(tmp_path: Path) -> None:
    data = block(MIXED, 5)
    holds(write(tmp_path / "a.zarr", data, Zarr(chunk_bytes=1, shard_bytes=1)), data)


def test_metadata_is_what_zarr_python_writes(tmp_path: Path) -> None:
    schema = Schema(tuple(Field(dtype, dtype, (2, 0, 3)) for dtype in DTYPES))
    write(tmp_path / "ours.zarr", block(schema, 5))
    theirs = zarr.create_group(tmp_path / "theirs.zarr")
    for f in schema:
        array = zarr.open_array(tmp_path / "ours.zarr" / f.name, mode="r")
        theirs.create_array(
            f.name,
            shape=array.shape,
            chunks=array.chunks,
            shards=array.shards,
            dtype=f.dtype,
            filters=None,
            compressors=[zarr.codecs.Crc32cCodec()],
        )
        ours, other = (
            json.loads((tmp_path / s / f.name / "zarr.json").read_bytes()) for s in ("ours.zarr", "theirs.zarr")
        )
        assert ours == other


def test_shards_are_what_zarr_python_writes(tmp_path: Path) -> None:
    data = Block(Schema((Field("x", "uint16", (5, 5)),)), {"x": np.arange(1, 251, dtype="u2").reshape(10, 5, 5)})
    ours = write(tmp_path / "ours.zarr", data)
    array = zarr.open_array(ours / "x", mode="r")
    theirs = zarr.create_array(
        tmp_path / "theirs.zarr",
        shape=array.shape,
        chunks=array.chunks,
        shards=array.shards,
        dtype=array.dtype,
        filters=None,
        compressors=[zarr.codecs.Crc32cCodec()],
    )
    theirs[:] = data.columns["x"]
    shards = {name: raw for name, raw in tree(ours / "x").items() if name.startswith("c/")}
    assert list(shards) == [f"c/{n}/0/0" for n in range(2)]
    assert shards == {name: raw for name, raw in tree(tmp_path / "theirs.zarr").items() if name.startswith("c/")}


@pytest.mark.parametrize("step", [1, 5, 11, 36, 61])
def test_bytes_do_not_depend_on_the_blocks(tmp_path: Path, step: int) -> None:
    data = block(MIXED, 61)
    assert tree(write(tmp_path / "a.zarr", data, step=61)) == tree(write(tmp_path / "b.zarr", data, step=step))


def test_large_chunks_are_written_without_a_copy(tmp_path: Path) -> None:
    data = block(Schema((Field("volume", "uint8", (1100, 1000)),)), 3)
    path = write(tmp_path / "a.zarr", data, DEFAULT, step=2)
    holds(path, data)
    assert (path / "volume/c/0/0/0").stat().st_size == 3 * 1_100_004 + 61 * 16 + 4  # 61 chunks fit into 64 MiB


def test_other_byte_orders_and_strides_are_stored_as_values(tmp_path: Path) -> None:
    schema = Schema((Field("x", "int32", (4,)),))
    numbers = np.arange(160, dtype="i4").reshape(4, 40)
    path = write(tmp_path / "a.zarr", Block(schema, {"x": numbers.T.astype(">i4")}))
    same(zarr.open_group(path, mode="r")["x"][...], numbers.T)


def test_the_callers_buffer_may_be_reused(tmp_path: Path) -> None:
    schema = Schema((Field("x", "int64", (3,)),))
    buffer = np.empty((2, 3), np.int64)
    writer = SMALL.create(tmp_path / "a.zarr", schema)
    for number in range(9):
        buffer[:] = number
        writer.append(Block(schema, {"x": buffer}))
    writer.close()
    got = SMALL.open(tmp_path / "a.zarr", schema, 18).take(np.arange(18), ("x",))
    same(got["x"], np.repeat(np.arange(9), 6).reshape(18, 3))


def items_by_hand(at: Chunked, dtype: str, shape: tuple[int, ...]) -> Any:
    """All items of a part, sliced from the files by the rule in `Chunked`'s docstring."""
    raw = [path.read_bytes() for path in at.paths]
    found = []
    for i in range(at.items):
        start = (i // at.chunk_items % at.shard_chunks) * at.chunk_stride + (i % at.chunk_items) * at.item_bytes
        found.append(raw[i // at.chunk_items // at.shard_chunks][start : start + at.item_bytes])
    return np.frombuffer(b"".join(found), dtype).reshape(at.items, *shape)


def test_every_item_lies_where_locate_says(tmp_path: Path) -> None:
    data = block(MIXED, 61)
    reader = DEFAULT.open(write(tmp_path / "a.zarr", data), MIXED, 61)  # the chunking is the file's, not the option's
    where = reader.locate()
    image, text, volume = where["image"], where["text"], where["volume"]
    assert isinstance(image, Chunked) and isinstance(text, RaggedColumns) and isinstance(volume, RaggedColumns)
    assert (image.chunk_items, image.chunk_stride, image.shard_chunks, len(image.paths)) == (2, 88, 4, 8)
    same(items_by_hand(image, "uint8", (2, 7, 3)), data["image"])
    for part, expected in ((text.values, data["text"].values), (text.offsets, data["text"].offsets)):
        assert isinstance(part, Chunked)
        same(items_by_hand(part, expected.dtype.name, ()), expected)
    assert isinstance(volume.shapes, Chunked)
    same(items_by_hand(volume.shapes, "int64", (3,)), data["volume"].shapes)


@pytest.mark.parametrize("store", [SMALL, DEFAULT], ids=["small", "default"])
def test_gather_and_zarr_take_the_same_rows(tmp_path: Path, store: Zarr) -> None:
    data = block(MIXED, 61)
    reader = store.open(write(tmp_path / "a.zarr", data, store), MIXED, 61)
    for rows in (np.array([60, 0, 0, 13, 59, 7]), np.arange(61), np.empty(0, np.int64)):
        slow, expected = reader.take(rows, MIXED.names), data.take(rows)
        for f in MIXED:
            fast = FieldGather(f, reader.locate()[f.name], Maps(), "a.zarr").take(rows)
            for got in (slow[f.name], fast):
                if isinstance(got, Ragged):
                    same(got.values, expected[f.name].values)
                    same(got.offsets, expected[f.name].offsets)
                    assert (got.shapes is None) == (not f.has_shapes)
                else:
                    same(got, expected[f.name])
    reader.close()


def test_readable_before_the_seal_but_not_a_store(tmp_path: Path) -> None:
    data = block(MIXED, 5)
    path = tmp_path / "a.zarr"
    writer = SMALL.create(path, MIXED)
    writer.append(data)
    writer.close()
    same(SMALL.open(path, MIXED, 5).take(np.array([4, 2]), ("label",))["label"], data["label"][[4, 2]])
    with pytest.raises(NotAStore, match="never finished"):
        SMALL.manifest(path)
    with pytest.raises(FileNotFoundError):
        zarr.open_group(path, mode="r")


def test_manifest_survives_byte_for_byte(tmp_path: Path) -> None:
    data = block(MIXED, 5)
    recipe = {"rate": 0.1, "big": 1e300, "text": 'é\u2028"\\\n', "nested": {"b": [1, None], "a": True}}
    path = write(tmp_path / "a.zarr", data, **recipe)
    manifest = manifest_of(path, SMALL, data, **recipe)
    assert SMALL.manifest(path) == manifest.to_bytes()
    assert Manifest.from_bytes(SMALL.manifest(path), "a.zarr") == manifest
    assert zarr.open_group(path, mode="r").attrs["bigconv"]["rows"] == 5
    SMALL.check(path, manifest)
    assert set(manifest.files) == set(fsio.files_below(path)) - {"zarr.json"}


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", IncompleteStore),
        (b'{"attributes":{"bigconv":{', IncompleteStore),
        (b'{"attributes":{"bigconv":{"a":1,"a":2}}}', IncompleteStore),
        (b'{"attributes":{"bigconv":{"a":NaN}}}', IncompleteStore),
        (b'{"attributes":{"bigconv":{"a":"\\ud800"}}}', IncompleteStore),
        (b"\xff\xfe", IncompleteStore),
        (b'{"a":' * 100_000, IncompleteStore),
        (b'{"attributes":{},"node_type":"group","zarr_format":3}', NotAStore),
        (b'{"node_type":"group","zarr_format":3}', NotAStore),
        (b'{"attributes":[]}', NotAStore),
        (b"[]", NotAStore),
    ],
)
def test_a_root_without_our_manifest_is_refused(tmp_path: Path, raw: bytes, error: type[Exception]) -> None:
    (tmp_path / "zarr.json").write_bytes(raw)
    with pytest.raises(error, match=r"zarr\.json"):
        DEFAULT.manifest(tmp_path)


def test_a_flipped_byte_fails_zarr_pythons_checksum(tmp_path: Path) -> None:
    data = block(MIXED, 61)
    path = write(tmp_path / "a.zarr", data)
    shard = path / "image/c/1/0/0/0"
    raw = bytearray(shard.read_bytes())
    raw[90] ^= 1  # in the shard's second chunk: rows 8 + 2 and 8 + 3
    shard.write_bytes(raw)
    image = zarr.open_group(path, mode="r")["image"]
    same(image[8:10], data["image"][8:10])
    with pytest.raises(ValueError, match="checksum"):
        image[10]
    with pytest.raises(IncompleteStore, match="checksum"):
        SMALL.open(path, MIXED, 61).take(np.array([10]), ("image",))


@pytest.mark.parametrize("name", ["image/c/7/0/0/0", "image/c/0/0/0/0", "text/values/c/0", "path/offsets/c/1"])
@pytest.mark.parametrize("damage", ["cut", "grown", "gone"])
def test_damaged_shards_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    data = block(MIXED, 61)
    path = write(tmp_path / "a.zarr", data)
    manifest = Manifest.from_bytes(SMALL.manifest(path), "a.zarr")
    raw = (path / name).read_bytes()
    (path / name).unlink()
    if damage != "gone":
        (path / name).write_bytes(raw[:-1] if damage == "cut" else raw + b"\0")
    with pytest.raises(IncompleteStore, match=name):
        SMALL.check(path, manifest)
    with pytest.raises(IncompleteStore, match=name):
        SMALL.open(path, MIXED, 61)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"shape":[61,', b'"shape":[60,'),
        (b'"shape":[61,', b'"shape":[true,'),
        (b'"shape":[61,', b'"shape":[-1,'),
        (b'"shape":[61,2,7,3]', b'"shape":[61,2,3,7]'),
        (b'"uint8"', b'"int8"'),
        (b'"chunk_shape":[2,', b'"chunk_shape":[3,'),
        (b'"chunk_shape":[2,', b'"chunk_shape":[0,'),
        (b'"chunk_shape":[2,', b'"chunk_shape":[16,'),
        (b'{"name":"crc32c"}],"index_codecs"', b'{"name":"zstd"}],"index_codecs"'),
        (b'"index_location":"end"', b'"index_location":"start"'),
        (b'"fill_value":0', b'"fill_value":1'),
        (b"{", b""),
        (b"{", b" " * 70_000 + b"{"),
        (b"{", b'{"x":' * 9_000),
    ],
)
def test_arrays_in_another_layout_are_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = write(tmp_path / "a.zarr", block(MIXED, 61))
    file = path / "image/zarr.json"
    assert old in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(old, new, 1))
    with pytest.raises(IncompleteStore, match="image"):
        SMALL.open(path, MIXED, 61)


def test_a_wild_number_of_values_is_refused_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", block(MIXED, 61))
    file = path / "text/values/zarr.json"
    document = json.loads(file.read_bytes())
    document["shape"] = [10**30]
    file.write_bytes(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(IncompleteStore, match="text/values"):
        SMALL.open(path, MIXED, 61)


def test_missing_metadata_and_other_row_counts_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", block(MIXED, 61))
    with pytest.raises(IncompleteStore, match="61 items"):
        SMALL.open(path, MIXED, 62)
    (path / "label/zarr.json").unlink()
    with pytest.raises(IncompleteStore, match="label"):
        SMALL.open(path, MIXED, 61)


@pytest.mark.parametrize(("names", "at_fault"), [(("x", "zarr.json"), "zarr.json"), (("Image", "image"), "Image")])
def test_names_that_collide_are_refused(tmp_path: Path, names: tuple[str, ...], at_fault: str) -> None:
    schema = Schema(tuple(Field(name, "uint8") for name in names))
    with pytest.raises(SchemaError, match=at_fault):
        DEFAULT.create(tmp_path / "a.zarr", schema)
    assert not (tmp_path / "a.zarr").exists()


def test_names_of_zarrs_own_keys_that_do_not_collide(tmp_path: Path) -> None:
    names = ("c", "0", "values", "offsets", "manifest.json", "data.mdb", "größe ?#%", "a::b")
    data = block(Schema(tuple(Field(name, "uint8", (None, 2)) for name in names)), 20)
    path = write(tmp_path / "a.zarr", data)
    holds(path, data)
    same(SMALL.open(path, data.schema, 20).take(np.arange(20), ("c",))["c"].values, data["c"].values)


def test_abort_closes_the_files(tmp_path: Path) -> None:
    writer = SMALL.create(tmp_path / "a.zarr", MIXED)
    writer.append(block(MIXED, 5))
    writer.abort()
    writer.abort()
    with pytest.raises(NotAStore):
        SMALL.manifest(tmp_path / "a.zarr")


def test_describe_and_options() -> None:
    assert DEFAULT.describe(MIXED) == {
        "image": "shards of 64 MiB, chunks of 390 rows",
        "label": "shards of 64 MiB, chunks of 2048 rows",
        "text": "values + offsets, shards of 64 MiB, chunks of 65536 values",
        "path": "values + offsets, shards of 64 MiB, chunks of 5461 values",
        "volume": "values + offsets, shards of 64 MiB, chunks of 32768 values",
        "nothing": "no bytes",
    }
    big = Schema((Field("volume", "float32", (512, 512, 128)),))
    assert DEFAULT.describe(big) == {"volume": "shards of 128 MiB, chunks of 1 row"}
    with pytest.raises(UsageError, match="chunk_bytes"):
        Zarr(chunk_bytes=0)


def test_opening_does_not_import_zarr(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", block(Schema((Field("x", "uint8"),)), 5))
    code = (
        "import sys; from pathlib import Path\n"
        "from bigconv.stores.zarr import Zarr; from bigconv.manifest import Manifest\n"
        f"path = Path({str(path)!r}); m = Manifest.from_bytes(Zarr().manifest(path), 'a')\n"
        "Zarr().open(path, m.schema, m.rows).locate(); assert not {'zarr', 'numcodecs'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def attached(path: Path, data: bytes) -> Block:
    """A store with something attached that takes several shards."""
    kept = block(MIXED, 5)
    writer = SMALL.create(path, MIXED)
    writer.append(kept)
    writer.close()
    writer.attach("origin", data)
    writer.seal(manifest_of(path, SMALL, kept))
    return kept


@pytest.mark.parametrize("nbytes", [0, 1, 100, 300, 301, 1234])
def test_zarr_python_sees_what_is_attached(tmp_path: Path, nbytes: int) -> None:
    path = tmp_path / "a.zarr"
    data = np.random.default_rng(0).bytes(nbytes)
    kept = attached(path, data)
    holds(path, kept)
    root = zarr.open_group(path, mode="r")
    assert set(root) == {*MIXED.names, "_bigconv"}
    assert {name for name, _ in root.members(max_depth=None)} >= {"image", "text/values", "_bigconv/origin"}
    assert list(root["_bigconv"]) == ["origin"]
    same(root["_bigconv/origin"][...], np.frombuffer(data, np.uint8))
    assert DEFAULT.attachment(path, "origin") == data  # the chunking is the file's, not the option's
    files = Manifest.from_bytes(SMALL.manifest(path), "a").files
    assert {name for name in files if name[0] == "_"} == {f"_bigconv/{name}" for name in tree(path / "_bigconv")}


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "metadata"])
def test_damaged_attachments_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.zarr"
    attached(path, bytes(1000))
    shard = path / "_bigconv/origin" / ("zarr.json" if damage == "metadata" else "c/1")
    raw = shard.read_bytes()
    shard.unlink()
    if damage != "gone":
        shard.write_bytes({"flip": raw[:150] + b"\1" + raw[151:], "cut": raw[:-1], "metadata": raw[1:]}[damage])
    with pytest.raises(IncompleteStore, match="origin"):
        SMALL.attachment(path, "origin")


def test_a_checkpoint_is_small_whatever_the_rows(tmp_path: Path) -> None:
    writer = SMALL.create(tmp_path / "a.zarr", MIXED)
    writer.append(block(MIXED, 200))
    state = writer.checkpoint()
    assert len(json.dumps(state)) < 100
    assert state == writer.checkpoint()
    writer.abort()


@pytest.mark.parametrize("compress", ["none", "lz4"])
def test_small_chunks_of_small_rows_take_no_giant_index(tmp_path: Path, compress: str) -> None:
    """A shard's index has room for all the chunks that a shard could hold: 64 Mi chunks of a byte took 1 GiB."""
    block = cases.block(Schema((Field("flag", "bool"), Field("label", "int64"))), 10)
    write(tmp_path / "a.zarr", block, Zarr(compress=compress, chunk=1))
    assert sum(fsio.files_below(tmp_path / "a.zarr").values()) < 300_000
    assert cases.same_block(bigconv.open(tmp_path / "a.zarr")[:], block)


def test_a_chunk_that_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    """Uncompressed, it is written whole however few rows there are."""
    np.save(tmp_path / "x.npy", np.zeros((3, 4)))
    for compress in ("none", "lz4"):
        with pytest.raises(UsageError, match="give --chunk fewer rows"):
            bigconv.convert(tmp_path / "x.npy", tmp_path / "a.zarr", chunk=10**9, compress=compress, workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
