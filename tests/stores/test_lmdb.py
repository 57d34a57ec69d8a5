"""LMDB: the writer against plain lmdb, the offsets against lmdb's own values, the bytes against one another."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import numpy as np
import pytest

from bigconv.block import Block, Ragged
from bigconv.digest import Digester
from bigconv.errors import IncompleteStore, NotAStore, OutputError, RowError, SchemaError, StoreError
from bigconv.manifest import Manifest
from bigconv.schema import DTYPES, Field, Schema
from bigconv.stores import lmdb_load, lmdb_pages, lmdb_writer
from bigconv.stores.base import Indexed, RaggedInline
from bigconv.stores.lmdb import Lmdb, page_cost

IMAGES = Schema(
    (Field("image", "uint8", (32, 32, 3)), Field("label", "int64"), Field("text", "uint8", (None,), "text"))
)
MIXED = Schema(
    (
        Field("id", "uint8"),
        Field("volume", "float32", (None, None, 2)),
        Field("empty", "float64", (0,)),
        Field("tokens", "uint16", (None, 3)),
    )
)


def ragged(field: Field, shapes: list[tuple[int, ...]], rng: np.random.Generator) -> Ragged:
    return Ragged.of([rng.integers(0, 100, shape).astype(field.dtype) for shape in shapes], field)


def images(rows: int) -> Block:
    rng = np.random.default_rng(1)
    return Block(
        IMAGES,
        {
            "image": rng.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8),
            "label": np.arange(rows) * 7,
            "text": ragged(IMAGES["text"], [(int(n),) for n in rng.integers(0, 40, rows)], rng),
        },
    )


def mixed(rows: int) -> Block:
    """Values of odd and even sizes, from 50 B to 1 MB: in leaves and on overflow pages."""
    rng = np.random.default_rng(2)
    sides = [int(n) for n in np.where(rng.random(rows) < 0.2, rng.integers(16, 60, rows), rng.integers(0, 4, rows))]
    sides[rows // 2] = 360
    return Block(
        MIXED,
        {
            "id": rng.integers(0, 256, rows, dtype=np.uint8),
            "volume": ragged(MIXED["volume"], [(n, n + 1, 2) for n in sides], rng),
            "empty": np.empty((rows, 0)),
            "tokens": ragged(MIXED["tokens"], [(int(n), 3) for n in rng.integers(0, 5, rows)], rng),
        },
    )


def tiny(rows: int) -> Block:
    schema = Schema((Field("x", "uint8", (3,)),))
    return Block(schema, {"x": np.arange(rows * 3).reshape(rows, 3).astype(np.uint8)})


def write(path: Path, block: Block, step: int = 100) -> Path:
    writer = Lmdb().create(path, block.schema)
    for start in range(0, len(block), step):
        writer.append(block.slice(start, min(len(block), start + step)))
    writer.close()
    return path


def seal(path: Path, block: Block) -> Manifest:
    digester = Digester(block.schema)
    digester.update(block)
    return Manifest(block.schema, len(block), "lmdb", digester.finish(), {}, {}, "0", Lmdb().files(path))


def assert_equal(found: Block, expected: Block) -> None:
    assert found.schema == expected.schema
    found.validate()
    for f in expected.schema:
        a, b = found[f.name], expected[f.name]
        if isinstance(b, Ragged):
            assert isinstance(a, Ragged)
            np.testing.assert_array_equal(a.values, b.values)
            np.testing.assert_array_equal(a.offsets, b.offsets)
            if b.shapes is not None:
                np.testing.assert_array_equal(a.shapes, b.shapes)
        else:
            np.testing.assert_array_equal(a, b)


def plain_values(path: Path) -> list[bytes]:
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        assert [key for key, _ in txn.cursor()] == [i.to_bytes(8, "big") for i in range(env.stat()["entries"])]
        return [value for _, value in txn.cursor()]


def digest(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


@pytest.mark.parametrize(
    "block", [images(300), mixed(700), tiny(1), tiny(5000)], ids=["images", "mixed", "one", "tiny"]
)
def test_round_trip_through_lmdb(tmp_path: Path, block: Block) -> None:
    path = write(tmp_path / "out.lmdb", block)
    assert sorted(Lmdb().files(path)) == ["data.mdb", "rows.npy"]
    reader = Lmdb().open(path, block.schema, len(block))
    assert_equal(reader.take(np.arange(len(block)), block.schema.names), block)
    rows = np.random.default_rng(0).integers(0, len(block), 50)
    assert_equal(reader.take(rows, block.schema.names), block.take(rows))
    one = block.schema.names[-1:]
    assert_equal(reader.take(rows, one), Block(block.schema.select(one), {one[0]: block.take(rows)[one[0]]}))
    assert len(reader.take(rows[:0], block.schema.names)) == 0
    with pytest.raises(RowError):
        reader.take(np.array([len(block)]), block.schema.names)
    with pytest.raises(RowError):
        reader.take(np.array([-1]), block.schema.names)


def test_ten_lines_of_plain_lmdb_decode_a_record(tmp_path: Path) -> None:
    block = images(50)
    path = write(tmp_path / "out.lmdb", block)
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        for i in range(env.stat()["entries"]):
            value = txn.get(i.to_bytes(8, "big"))
            image = np.frombuffer(value, "<u1", 3072, 0).reshape(32, 32, 3)
            label = np.frombuffer(value, "<i8", 1, 3072)[0]
            nbytes = np.frombuffer(value, "<i8", 1, 3080)[0]
            text = value[3088 : 3088 + nbytes].decode()
            row = block.row(i)
            assert (image == row["image"]).all()
            assert (label, text) == (row["label"], row["text"])


@pytest.mark.parametrize("block", [images(300), mixed(700), tiny(300_000)], ids=["images", "mixed", "three levels"])
def test_offsets_are_those_of_lmdbs_values(tmp_path: Path, block: Block) -> None:
    path = write(tmp_path / "out.lmdb", block, 65536)
    data, offsets = (path / "data.mdb").read_bytes(), np.load(path / "rows.npy")
    assert offsets.dtype == np.int64
    assert offsets.shape == (len(block),)
    for at, value in zip(offsets.tolist(), plain_values(path), strict=True):
        assert data[at : at + len(value)] == value


def test_both_kinds_of_page_and_deep_trees_occur(tmp_path: Path) -> None:
    with lmdb.open(str(write(tmp_path / "a", mixed(700))), readonly=True, lock=False) as env:
        stat = env.stat()
        assert stat["overflow_pages"] > 250
        assert stat["leaf_pages"] > 5
    with lmdb.open(str(write(tmp_path / "b", tiny(300_000), 65536)), readonly=True, lock=False) as env:
        assert env.stat()["depth"] >= 3


@pytest.mark.parametrize("pages", [1, 7])
def test_the_walk_in_small_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    path = write(tmp_path / "0", tiny(60_000), 60_000)
    monkeypatch.setattr(lmdb_pages, "WALK_PAGES", pages)
    found = np.concatenate(list(lmdb_pages.Tree(path / "data.mdb").value_offsets()))
    np.testing.assert_array_equal(found, np.load(path / "rows.npy"))


def test_located_bytes_are_the_rows(tmp_path: Path) -> None:
    block = mixed(300)
    path = write(tmp_path / "out.lmdb", block)
    found = Lmdb().open(path, MIXED, 300).locate()
    data = (path / "data.mdb").read_bytes()
    for name in ("volume", "tokens"):
        place, column, number = found[name], block[name], list(found).index(name)
        assert isinstance(place, RaggedInline)
        assert isinstance(column, Ragged)
        assert place.number == {"volume": 0, "tokens": 1}[name], number
        index = np.load(place.head.index) + place.head.delta
        for i, head in enumerate(index.tolist()):
            lengths = [int.from_bytes(data[head + at : head + at + 8], "little") for at in place.lengths]
            start = head + place.head_bytes + sum(lengths[: place.number])
            assert data[start : start + lengths[place.number]] == column[i].tobytes()
            if place.shape is not None:
                shape = np.frombuffer(data, "<i8", 3, head + place.shape)
                np.testing.assert_array_equal(shape, column.shapes[i])
    ids = found["id"]
    assert isinstance(ids, Indexed)
    assert [data[at + ids.delta] for at in np.load(ids.index)] == block["id"].tolist()


@pytest.mark.parametrize("block", [images(300), mixed(700), tiny(2000)], ids=["images", "mixed", "tiny"])
def test_bytes_do_not_depend_on_batching_or_pieces(
    tmp_path: Path, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = digest(write(tmp_path / "0", block, len(block)))
    for number, (step, piece, room) in enumerate([(1, 1, 1), (300, 10_000, 20_000), (64, 4096, 1 << 20)], 1):
        monkeypatch.setattr(lmdb_writer, "PIECE_BYTES", piece)
        monkeypatch.setattr(lmdb_load, "ROOM_BYTES", room)
        assert digest(write(tmp_path / str(number), block, step)) == expected


def test_unused_bytes_of_a_leaf_are_zero(tmp_path: Path) -> None:
    path = write(tmp_path / "out.lmdb", tiny(3))
    leaf = (path / "data.mdb").read_bytes()[2 * 4096 :]
    assert leaf[16:22] == b"\xec\x0f\xd8\x0f\xc4\x0f"  # nodes of 8 + 8 + 3 bytes and 1 of padding
    assert not any(leaf[22 : 4096 - 60])
    assert [leaf[4096 - 20 * i + 19] for i in (3, 2, 1)] == [0, 0, 0]


def test_bytes_behind_overflowing_values_are_zero(tmp_path: Path) -> None:
    path = write(tmp_path / "out.lmdb", images(100), 7)
    data = np.fromfile(path / "data.mdb", np.uint8)
    for at, value in zip(np.load(path / "rows.npy").tolist(), plain_values(path), strict=True):
        end = at + len(value)
        assert at % 4096 == 16
        assert not data[end : -(-end // 4096) * 4096].any()


def test_lmdbs_own_verifier_finds_nothing(tmp_path: Path) -> None:
    for name, block in {"images": images(300), "mixed": mixed(700), "tiny": tiny(50_000), "none": tiny(0)}.items():
        path = write(tmp_path / name, block)
        assert_counted(path)
        assert verified(path)


def verified(path: Path) -> bool:
    """lmdb's own verifier walks the file without a complaint."""
    return list(pytest.importorskip("lmdb.verify").verify(str(path))) == []  # lmdb 3


def assert_counted(path: Path) -> None:
    """`stat` and `info` of plain lmdb are what a walk over all pages of the file finds."""
    pages = np.fromfile(path / "data.mdb", np.uint8).reshape(-1, 4096)
    kinds = dict.fromkeys((1, 2, 4), 0)
    at, largest = 2, 0
    while at < len(pages):
        number, _, kind, low, high = pages[at, :16].view("<u8,<u2,<u2,<u2,<u2")[0].tolist()
        assert number == at
        run = low | high << 16 if kind == 4 else 1
        kinds[kind] += run
        largest, at = max(largest, run), at + run
    with lmdb.open(str(path), map_size=0, readonly=True, lock=False) as env:  # 0: as the file says
        stat, info = env.stat(), env.info()
    found = tuple(stat[f"{name}_pages"] for name in ("branch", "leaf", "overflow"))
    assert found == tuple(kinds.values())
    assert stat["psize"] == 4096
    assert stat["entries"] == len(np.load(path / "rows.npy"))
    assert info["last_pgno"] == len(pages) - 1 == sum(found) + 1
    assert info["map_size"] == len(pages) * 4096
    assert info["last_txnid"] == 1


@pytest.mark.parametrize("leaves", [1, 2, 3, 4, 5, 9, 10, 11, 27, 28, 82])
def test_branches_of_any_number_of_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: int) -> None:
    """Branches of three children: the last one on a level may have two, and lmdb finds every row through them."""
    monkeypatch.setattr(lmdb_load, "FAN", 3)
    monkeypatch.setattr(lmdb_load, "FAN_PAGES", 2)
    schema = Schema((Field("x", "uint8", (2000,)),))  # two rows a leaf
    data = np.random.default_rng(0).integers(0, 256, (2 * leaves, 2000), np.uint8)
    path = write(tmp_path / "out.lmdb", Block(schema, {"x": data}))
    assert plain_values(path) == [row.tobytes() for row in data]
    assert_counted(path)
    with lmdb.open(str(path), readonly=True, lock=False) as env:
        assert env.stat()["depth"] == 1 + int(np.ceil(np.log(leaves) / np.log(3) - 1e-9))
    assert verified(path)


@pytest.mark.parametrize("leaves", [227, 228, 454, 455])
def test_full_branches(tmp_path: Path, leaves: int) -> None:
    schema = Schema((Field("x", "uint8", (2000,)),))
    data = np.random.default_rng(0).integers(0, 256, (2 * leaves, 2000), np.uint8)
    path = write(tmp_path / "out.lmdb", Block(schema, {"x": data}), 1000)
    assert plain_values(path) == [row.tobytes() for row in data]
    with lmdb.open(str(path), readonly=True, lock=False) as env:
        assert env.stat()["branch_pages"] == {227: 1, 228: 3, 454: 3, 455: 4}[leaves]
    assert verified(path)


@pytest.mark.parametrize("block", [images(400), mixed(700), tiny(50_000)], ids=["images", "mixed", "tiny"])
def test_cursors_and_copies_of_plain_lmdb(tmp_path: Path, block: Block) -> None:
    path = write(tmp_path / "out.lmdb", block, 10_000)
    rows = len(block)
    (tmp_path / "copy").mkdir()
    (tmp_path / "compact").mkdir()
    with lmdb.open(str(path), readonly=True, lock=False) as env:
        env.copy(str(tmp_path / "copy"))
        env.copy(str(tmp_path / "compact"), compact=True)
        with env.begin() as txn, txn.cursor() as cursor:
            for row in np.random.default_rng(0).integers(0, rows, 200).tolist():
                assert cursor.set_range((row - 1).to_bytes(8, "big", signed=True) + b"\x01" if row else b"")
                assert cursor.key() == row.to_bytes(8, "big")
            assert not cursor.set_range(rows.to_bytes(8, "big"))
            assert cursor.last()
            back = [int.from_bytes(key, "big") for key in cursor.iterprev(values=False)]
            assert back == list(range(rows))[::-1]
            assert txn.get(rows.to_bytes(8, "big")) is None
        stat = env.stat()
    assert (tmp_path / "copy" / "data.mdb").read_bytes() == (path / "data.mdb").read_bytes()
    values = plain_values(path)
    assert plain_values(tmp_path / "compact") == values
    with lmdb.open(str(tmp_path / "compact"), readonly=True, lock=False) as env:
        assert env.stat() == stat


@pytest.mark.parametrize(
    "block", [images(400), mixed(700), tiny(50_000), tiny(0)], ids=["images", "mixed", "tiny", "none"]
)
def test_plain_lmdb_can_go_on_writing(tmp_path: Path, block: Block) -> None:
    """Append, put, replace, delete and, in a third transaction, use the pages that became free."""
    path = write(tmp_path / "out.lmdb", block, 10_000)
    held = {i.to_bytes(8, "big"): value for i, value in enumerate(plain_values(path))}
    rng = np.random.default_rng(1)
    with lmdb.open(str(path), map_size=1 << 28, lock=False) as env:
        for turn in range(3):
            with env.begin(write=True) as txn:
                for key in [(len(block) + 1000 * turn + i).to_bytes(8, "big") for i in range(400)]:
                    held[key] = rng.bytes(int(rng.choice([10, 2022, 2023, 9000])))
                    assert txn.put(key, held[key], append=True)
                keys = sorted(held)
                for number in rng.choice(len(keys), min(len(keys), 600), replace=False).tolist():
                    del held[keys[number]]
                    assert txn.delete(keys[number])  # lmdb would write over in place, which its verifier finds odd
                    if rng.random() < 0.4:
                        held[keys[number]] = rng.bytes(int(rng.choice([10, 2022, 2023, 9000])))
                        assert txn.put(keys[number], held[keys[number]])
        with env.begin() as txn:
            assert dict(txn.cursor()) == held
    assert verified(path)


def test_what_comes_inline_is_what_lmdb_would_put_there(tmp_path: Path) -> None:
    """The same rows put by lmdb take as many leaves and pages of their own."""
    schema = Schema((Field("x", "uint8", (None,)),))
    x = ragged(
        schema["x"], [(n,) for n in [*range(2000, 2030), *range(4060, 4090), *range(20)]], np.random.default_rng(0)
    )
    path = write(tmp_path / "ours", Block(schema, {"x": x}))
    with lmdb.open(str(tmp_path / "theirs"), map_size=1 << 24) as env:
        if env.stat()["psize"] != 4096:
            pytest.skip("a host with pages of another size")
        with env.begin(write=True) as txn:
            for i, value in enumerate(plain_values(path)):
                txn.put(i.to_bytes(8, "big"), value, append=True)
        theirs = env.stat()
    with lmdb.open(str(path), readonly=True, lock=False) as env:
        assert env.stat() == theirs


def test_writing_and_mapping_do_not_import_lmdb(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from bigconv.block import Block; from bigconv.schema import Field, Schema\n"
        "from bigconv.stores.lmdb import Lmdb\n"
        f"path, schema = Path({str(tmp_path / 'out.lmdb')!r}), Schema((Field('x', 'uint8', (9,)),))\n"
        "writer = Lmdb().create(path, schema); writer.append(Block(schema, {'x': np.ones((5, 9), np.uint8)}))\n"
        "writer.close(); Lmdb().open(path, schema, 5).locate(); assert 'lmdb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_classic_format_whatever_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMDB_DEFAULT_LIB_VERSION", "1")
    path = write(tmp_path / "out.lmdb", tiny(10))
    raw = (path / "data.mdb").read_bytes()
    for page in (0, 4096):
        assert int.from_bytes(raw[page + 16 : page + 20], "little") == 0xBEEFC0DE
        assert int.from_bytes(raw[page + 20 : page + 24], "little") == 1
        assert int.from_bytes(raw[page + 32 : page + 40], "little") == len(raw)  # the map size
        assert int.from_bytes(raw[page + 40 : page + 44], "little") == 4096  # the page size, on any host


@pytest.mark.skipif(not hasattr(lmdb.Environment, "lib_version"), reason="lmdb with one format only")
def test_the_later_format_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "out.lmdb", tiny(10))
    (path / "data.mdb").unlink()
    try:
        lmdb.open(str(path), lock=False, lib_version=1).close()
    except lmdb.Error:
        pytest.skip("lmdb without the later format")
    with pytest.raises(IncompleteStore, match="classic format"):
        Lmdb().open(path, tiny(10).schema, 10)


@pytest.mark.parametrize("schema", [IMAGES, MIXED, tiny(0).schema], ids=["images", "mixed", "tiny"])
def test_empty_store(tmp_path: Path, schema: Schema) -> None:
    writer = Lmdb().create(tmp_path / "out.lmdb", schema)
    writer.close()
    assert plain_values(tmp_path / "out.lmdb") == []
    assert np.load(tmp_path / "out.lmdb" / "rows.npy").shape == (0,)
    reader = Lmdb().open(tmp_path / "out.lmdb", schema, 0)
    assert len(reader.take(np.empty(0, np.int64), schema.names)) == 0
    assert set(reader.locate()) == set(schema.names)


def test_empty_blocks_add_nothing(tmp_path: Path) -> None:
    block = mixed(10)
    writer = Lmdb().create(tmp_path / "out.lmdb", MIXED)
    for piece in (block.slice(0, 0), block, block.slice(3, 3)):
        writer.append(piece)
    writer.close()
    assert_equal(Lmdb().open(tmp_path / "out.lmdb", MIXED, 10).take(np.arange(10), MIXED.names), block)


def test_only_ragged_fields(tmp_path: Path) -> None:
    schema = Schema((Field("a", "uint8", (None,), "bytes"), Field("b", "complex64", (None, None))))
    rng = np.random.default_rng(5)
    shapes = [(int(n), int(m)) for n, m in rng.integers(0, 5, (40, 2))]
    a = ragged(schema["a"], [(n,) for n, _ in shapes], rng)
    block = Block(schema, {"a": a, "b": ragged(schema["b"], shapes, rng)})
    path = write(tmp_path / "out.lmdb", block, 9)
    assert_equal(Lmdb().open(path, schema, 40).take(np.arange(40)[::-1], schema.names), block.take(np.arange(40)[::-1]))


def test_values_without_bytes(tmp_path: Path) -> None:
    schema = Schema((Field("x", "float32", (0, 4)),))
    block = Block(schema, {"x": np.empty((20, 0, 4), np.float32)})
    path = write(tmp_path / "out.lmdb", block)
    assert plain_values(path) == [b""] * 20
    assert_equal(Lmdb().open(path, schema, 20).take(np.array([3, 3]), ("x",)), block.slice(0, 2))


@pytest.mark.parametrize("order", ["<", ">"])
def test_every_dtype_in_either_byte_order(tmp_path: Path, order: str) -> None:
    rng = np.random.default_rng(0)
    fields = [Field(name, name, (2, 3)) for name in DTYPES]
    fields += [Field(f"{name}s", name, (None,)) for name in DTYPES]
    columns: dict[str, np.ndarray | Ragged] = {}
    for f in fields:
        dtype = np.dtype(f.dtype).newbyteorder(order)
        if f.ragged:
            rows = [rng.integers(0, 2, int(n)).astype(dtype) for n in rng.integers(0, 9, 12)]
            column = Ragged.of(rows, f)
            columns[f.name] = Ragged(column.values.astype(dtype), column.offsets)
        else:
            columns[f.name] = rng.integers(0, 2, (12, 2, 3)).astype(dtype)
    block = Block(Schema(tuple(fields)), columns)
    path = write(tmp_path / "out.lmdb", block, 5)
    assert_equal(Lmdb().open(path, block.schema, 12).take(np.arange(12), block.schema.names), block)


def test_a_column_that_is_not_contiguous(tmp_path: Path) -> None:
    schema = Schema((Field("x", "int32", (4, 5)),))
    block = Block(schema, {"x": np.arange(2000, dtype=np.int32).reshape(5, 4, 100).transpose(2, 1, 0)})
    path = write(tmp_path / "out.lmdb", block, 7)
    assert_equal(Lmdb().open(path, schema, 100).take(np.arange(100), ("x",)), block)


def test_a_buffer_may_be_used_again_after_append(tmp_path: Path) -> None:
    block = tiny(10)
    buffer = np.empty((1, 3), np.uint8)
    writer = Lmdb().create(tmp_path / "out.lmdb", block.schema)
    for i in range(10):
        buffer[:] = block["x"][i]
        writer.append(Block(block.schema, {"x": buffer}))
    writer.close()
    assert_equal(Lmdb().open(tmp_path / "out.lmdb", block.schema, 10).take(np.arange(10), ("x",)), block)


def test_ragged_items_without_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="field x"):
        Lmdb().create(tmp_path / "out.lmdb", Schema((Field("x", "uint8", (None, 0)),)))


def test_manifest_and_check(tmp_path: Path) -> None:
    block = images(20)
    writer = Lmdb().create(tmp_path / "out.lmdb", block.schema)
    writer.append(block)
    writer.close()
    with pytest.raises(NotAStore):
        Lmdb().manifest(tmp_path / "out.lmdb")
    manifest = seal(tmp_path / "out.lmdb", block)
    writer.seal(manifest)
    assert Lmdb().manifest(tmp_path / "out.lmdb") == manifest.to_bytes()
    assert set(Lmdb().files(tmp_path / "out.lmdb")) == {"data.mdb", "rows.npy"}
    Lmdb().check(tmp_path / "out.lmdb", manifest)
    writer.abort()  # nothing left to let go of
    assert sorted(p.name for p in (tmp_path / "out.lmdb").iterdir()) == ["data.mdb", "manifest.json", "rows.npy"]


@pytest.mark.parametrize("name", ["data.mdb", "rows.npy"])
@pytest.mark.parametrize("change", ["truncate", "page", "grow", "remove", "empty"])
def test_other_sizes_are_refused(tmp_path: Path, name: str, change: str) -> None:
    block = images(20)
    path = write(tmp_path / "out.lmdb", block)
    manifest = seal(path, block)
    raw = (path / name).read_bytes()
    if change == "remove":
        (path / name).unlink()
    else:
        new = {"truncate": raw[:-1], "page": raw[:-4096], "grow": raw + bytes(4096), "empty": b""}[change]
        (path / name).write_bytes(new)
    with pytest.raises(IncompleteStore, match=name):
        Lmdb().check(path, manifest)
    with pytest.raises(IncompleteStore, match=name):
        Lmdb().open(path, block.schema, 20)


def test_another_number_of_rows_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "out.lmdb", tiny(20))
    with pytest.raises(IncompleteStore, match=r"rows\.npy"):
        Lmdb().open(path, tiny(1).schema, 21)
    shutil.copy(write(tmp_path / "other", tiny(21)) / "rows.npy", path)
    with pytest.raises(IncompleteStore, match=r"data\.mdb"):
        Lmdb().open(path, tiny(1).schema, 21)


def test_a_schema_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "out.lmdb", images(20))
    for schema in (MIXED, tiny(0).schema, Schema((Field("text", "uint8", (None,), "text"),))):
        with pytest.raises(IncompleteStore, match=r"data\.mdb: row 3"):
            Lmdb().open(path, schema, 20).take(np.array([3]), schema.names)


def test_damaged_pages_never_crash_lmdb(tmp_path: Path) -> None:
    """Any byte of the pages that lmdb follows may be wrong: refused, or the record's own bytes are."""
    block = mixed(120)
    path = write(tmp_path / "out.lmdb", block)
    raw = (path / "data.mdb").read_bytes()
    offsets = np.load(path / "rows.npy")
    tree = lmdb_pages.Tree(path / "data.mdb")
    values = np.zeros(len(raw), bool)
    for at, value in zip(offsets.tolist(), plain_values(path), strict=True):
        values[at : at + len(value)] = True
    kinds = np.frombuffer(raw, np.uint8).reshape(-1, 4096)[:, 10]
    in_tree = np.isin(kinds, (1, 2, 8)).repeat(4096) & ~values & (np.frombuffer(raw, np.uint8) != 0)
    candidates = np.flatnonzero(in_tree)
    assert tree.depth > 1
    rng = np.random.default_rng(3)
    refused = 0
    for at in rng.choice(candidates, 300, replace=False).tolist():
        damaged = bytearray(raw)
        damaged[at] ^= 1 << int(rng.integers(8))
        (path / "data.mdb").write_bytes(damaged)
        try:
            found = Lmdb().open(path, MIXED, 120).take(np.arange(120), MIXED.names)
        except IncompleteStore as error:
            assert "data.mdb" in str(error)
            refused += 1
        else:
            assert_equal(found, block)  # a byte that lmdb doesn't read
    assert refused > 200


def test_damaged_offsets_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "out.lmdb", tiny(20))
    index = np.load(path / "rows.npy")
    index[7] += 1
    np.save(path / "rows.npy", index)
    raw = (path / "rows.npy").read_bytes()
    (path / "rows.npy").write_bytes(lmdb_writer.npy_header(20) + raw[-160:])
    with pytest.raises(IncompleteStore, match=r"rows\.npy"):
        Lmdb().open(path, tiny(0).schema, 20).take(np.array([0]), ("x",))


def test_numpy_writes_the_same_header() -> None:
    import io

    for rows in (0, 7, 123_456_789):
        file = io.BytesIO(lmdb_writer.npy_header(rows) + bytes(8))
        version = np.lib.format.read_magic(file)
        assert version == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == ((rows,), False, np.dtype("<i8"))
        assert file.tell() == lmdb_writer.NPY_BYTES


def test_two_readers_of_one_store(tmp_path: Path) -> None:
    block = tiny(20)
    path = write(tmp_path / "out.lmdb", block)
    first, second = (Lmdb().open(path, block.schema, 20) for _ in range(2))
    for reader in (first, second, first):
        assert_equal(reader.take(np.arange(20), ("x",)), block)
    with lmdb.open(str(path), readonly=True, lock=False):  # lmdb 3 refuses, earlier ones don't
        try:
            assert_equal(first.take(np.arange(20), ("x",)), block)
        except StoreError as error:
            assert "already open" in str(error)
    first.close()


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    resource = pytest.importorskip("resource")  # not on Windows
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("file_size_limit")
def test_a_write_that_fails_is_an_output_error(tmp_path: Path) -> None:
    writer = Lmdb().create(tmp_path / "out.lmdb", IMAGES)
    with pytest.raises(OutputError, match=r"out\.lmdb"):
        writer.append(images(300))
    writer.abort()
    writer.abort()


def test_too_long_a_record_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_writer, "MAX_VALUE", 3090)
    writer = Lmdb().create(tmp_path / "out.lmdb", IMAGES)
    with pytest.raises(OutputError, match=r"row \d+ has \d+ bytes"):
        writer.append(images(30))
    writer.abort()


def test_descriptions_name_the_cost() -> None:
    def describe(*fields: Field) -> str:
        (words,) = set(Lmdb().describe(Schema(fields)).values())
        return words

    assert describe(Field("image", "uint8", (64, 64, 3))) == "record, 33 % of page padding"
    assert describe(Field("x", "float32", (128,))) == "record, 14 % of keys and padding"
    assert describe(*IMAGES) == "record, on pages of its own past 2022 B"
    assert describe(Field("x", "uint8", (0,))) == "record"
    assert page_cost(12288) == pytest.approx(1 / 3)


@pytest.mark.parametrize("nbytes", [1, 3, 512, 2021, 2022, 2023, 4080, 4081, 12288])
def test_page_cost_is_what_lmdb_takes(tmp_path: Path, nbytes: int) -> None:
    rows = 2000  # the last page may be partly empty
    schema = Schema((Field("x", "uint8", (nbytes,)),))
    path = write(tmp_path / "out.lmdb", Block(schema, {"x": np.zeros((rows, nbytes), np.uint8)}))
    with lmdb.open(str(path), readonly=True, lock=False) as env:
        stat = env.stat()
    pages = stat["overflow_pages"] if nbytes > 2022 else stat["leaf_pages"]
    assert pages * 4096 / (rows * nbytes) - 1 == pytest.approx(page_cost(nbytes), rel=0.05)
