"""What every store must do. Subclass `StoreSuite` in a test module, name the store, and pytest runs it:

class TestMyStore(StoreSuite):
    store = MyStore()
    suffix = ".mine"
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from bigconv import fsio
from bigconv.block import Block
from bigconv.digest import Digester
from bigconv.errors import BigconvError, IncompleteStore, NotAStore, RowError
from bigconv.manifest import Manifest
from bigconv.schema import Field, Schema
from bigconv.testing import cases, given
from bigconv.view.opening import Opened, open_store
from bigconv.view.report import verify
from bigconv.view.table import StoreView

SCHEMAS = dict(cases.schemas())


def write(path: Path, store: Any, block: Block, step: int, announce: bool = True, rejects: int = 0) -> Manifest:
    """Publish a block as a store, appended `step` rows at a time; in memory, keep it."""
    if store.name == "memory":
        return _hold(path, store, block, step)
    return given.write(path, store, block, step, announce, rejects)


def _hold(path: Path, store: Any, block: Block, step: int) -> Manifest:
    """The same in memory, where nothing is published."""
    writer, digester = store.create(path, block.schema), Digester(block.schema)
    for i in range(0, len(block), step):
        digester.update(block.slice(i, i + step))
        writer.append(block.slice(i, i + step))
    writer.close()
    digests = digester.finish()
    manifest = Manifest(block.schema, digests.rows, store.name, digests, {}, {}, "0")
    writer.seal(manifest)
    return manifest


def opened(path: Path, store: Any, manifest: Manifest) -> Opened:
    return Opened(path, store, manifest)


class StoreSuite:
    """Conformance of one store; its subclass names it."""

    store: ClassVar[Any]
    suffix: ClassVar[str]
    on_disk: ClassVar[bool] = True

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / f"store{self.suffix}"

    def view(self, path: Path, manifest: Manifest) -> StoreView:
        return StoreView([path]) if self.on_disk else StoreView.of([opened(path, self.store, manifest)])

    @pytest.mark.parametrize("name", SCHEMAS)
    @pytest.mark.parametrize("rows", [0, 1, 37])
    def test_round_trip(self, path: Path, name: str, rows: int) -> None:
        """What goes in comes out, bit by bit, through the gather engine and through the store's own library."""
        block = cases.block(SCHEMAS[name], rows)
        manifest = write(path, self.store, block, 5)
        view = self.view(path, manifest)
        assert len(view) == rows
        assert cases.same_block(view.take(np.arange(rows)), block)
        order = np.random.default_rng(1).integers(0, rows, 50) if rows else np.empty(0, np.int64)
        assert cases.same_block(view.take(order), block.take(order))
        reader = self.store.open(path, block.schema, rows)
        assert cases.same_block(reader.take(order[:9], block.schema.names), block.take(order[:9]))
        reader.close()

    def test_in_order(self, path: Path) -> None:
        """Blocks in order are all rows, once."""
        block = cases.block(SCHEMAS["two ragged around a fixed"], 101)
        view = self.view(path, write(path, self.store, block, 13))
        assert cases.same_block(Block.concat(list(view.blocks(rows=7))), block)
        assert cases.same_block(Block.concat(list(view.blocks(20, 90))), block.slice(20, 90))

    @pytest.mark.parametrize("name", ["image and label", "two ragged around a fixed"])
    def test_bytes_do_not_depend_on_the_blocks(self, tmp_path: Path, name: str) -> None:
        """Append sizes, and whether the number of rows was known ahead, leave no trace."""
        if not self.on_disk:
            pytest.skip("nothing on disk to compare")
        block = cases.block(SCHEMAS[name], 53)
        contents = []
        for i, (step, announce) in enumerate([(1, True), (7, False), (53, True)]):
            path = tmp_path / str(i) / f"store{self.suffix}"
            path.parent.mkdir()
            write(path, self.store, block, step, announce)
            files = [path] if path.is_file() else [path / name for name in fsio.files_below(path)]
            contents.append([file.read_bytes() for file in files])
        assert contents[0] == contents[1] == contents[2]

    def test_fewer_rows_than_announced(self, path: Path) -> None:
        """Rejects make the announced number too large; the rest is whole all the same."""
        if not self.on_disk:
            pytest.skip("nothing is announced to memory")
        block = cases.block(SCHEMAS["image and label"], 20)
        manifest = write(path, self.store, block, 9, rejects=10)
        assert cases.same_block(self.view(path, manifest).take(np.arange(20)), block)

    def test_big_endian_and_strided_input(self, path: Path) -> None:
        """Arrays of any memory layout are stored by value."""
        schema = Schema((Field("x", "float32", (4,)),))
        values = np.arange(80, dtype=">f4").reshape(4, 20).T
        manifest = write(path, self.store, Block(schema, {"x": values}), 20)
        assert cases.same(self.view(path, manifest).take(np.arange(20))["x"], values.astype("<f4"))

    def test_rows_out_of_range(self, path: Path) -> None:
        block = cases.block(SCHEMAS["scalars"], 10)
        view = self.view(path, write(path, self.store, block, 10))
        for bad in ([10], [-11], [0, 99]):
            with pytest.raises(RowError):
                view.take(bad)
        assert cases.same_block(view.take([-1, 3]), block.take(np.array([9, 3])))

    def test_batches_are_writable_and_their_own(self, path: Path) -> None:
        """Writing into a batch changes no store."""
        block = cases.block(SCHEMAS["image and label"], 10)
        view = self.view(path, write(path, self.store, block, 10))
        batch = view.take([1, 2])["image"]
        assert isinstance(batch, np.ndarray)
        batch[:] = 0
        assert cases.same_block(view.take(np.arange(10)), block)

    def test_pickled_view_is_small_and_works(self, path: Path) -> None:
        if not self.on_disk:
            pytest.skip("memory does not travel")
        block = cases.block(SCHEMAS["rows of pages"], 40)
        view = self.view(path, write(path, self.store, block, 40))
        view.take([0])
        pickled = pickle.dumps(view)
        assert len(pickled) < 20_000
        assert cases.same_block(pickle.loads(pickled).take([5, 1]), block.take(np.array([5, 1])))

    def test_many_stores_as_one(self, tmp_path: Path) -> None:
        if not self.on_disk:
            pytest.skip("memory stores have no path to open")
        for name in ("image and label", "images of all sizes"):
            block = cases.block(SCHEMAS[name], 60)
            paths = []
            for a, b in [(0, 17), (17, 17), (17, 60)]:
                path = tmp_path / f"{name} {a} {b}{self.suffix}"
                write(path, self.store, block.slice(a, b), 9)
                paths.append(path)
            order = np.random.default_rng(3).integers(0, 60, 200)
            assert cases.same_block(StoreView(paths).take(order), block.take(order))

    def test_equal_content_digest_in_memory(self, path: Path, tmp_path: Path) -> None:
        from bigconv.stores.memory import Memory

        block = cases.block(SCHEMAS["two ragged around a fixed"], 31)
        here = write(path, self.store, block, 4)
        there = write(tmp_path / "oracle", Memory(), block, 31)
        assert here.content_digest == there.content_digest

    def test_verify_finds_nothing_in_a_whole_store(self, path: Path) -> None:
        manifest = write(path, self.store, cases.block(SCHEMAS["images of all sizes"], 30), 30)
        assert verify(opened(path, self.store, manifest)) == []

    def test_unsealed_is_not_a_store(self, path: Path) -> None:
        """Everything but the manifest is there: a reader refuses."""
        block = cases.block(SCHEMAS["scalars"], 10)
        writer = self.store.create(path, block.schema, 10)
        writer.append(block)
        writer.close()
        with pytest.raises(NotAStore):
            self.store.manifest(path)

    def test_cut_short_by_a_byte(self, path: Path) -> None:
        """Each file of a store, one byte shorter or longer: refused before a row is read."""
        if not self.on_disk:
            pytest.skip("nothing on disk to cut")
        write(path, self.store, cases.block(SCHEMAS["image and label"], 10), 10)
        files = [path] if path.is_file() else [path / name for name in fsio.files_below(path)]
        for file in files:
            whole = file.read_bytes()
            for changed in (whole[:-1], whole + b"\0", b""):
                file.write_bytes(changed)
                with pytest.raises((IncompleteStore, NotAStore)):
                    open_store(path)
            file.write_bytes(whole)
        assert verify(open_store(path)) == []

    def test_any_flipped_byte_is_found_or_harmless(self, path: Path) -> None:
        """Flip bytes all over: opening refuses, or verify names it, or every row still is what was written."""
        if not self.on_disk:
            pytest.skip("nothing on disk to flip")
        block = cases.block(SCHEMAS["image and label"], 6)
        write(path, self.store, block, 6)
        files = [path] if path.is_file() else [path / name for name in fsio.files_below(path)]
        rng = np.random.default_rng(0)
        for file in files:
            whole = file.read_bytes()
            for at in np.unique(rng.integers(0, len(whole), 40)).tolist():
                changed = bytearray(whole)
                changed[at] ^= 1 << int(rng.integers(8))
                file.write_bytes(changed)
                assert _found_or_harmless(path, block), f"{file.name}, byte {at}"
            file.write_bytes(whole)


def _found_or_harmless(path: Path, block: Block) -> bool:
    try:
        store = open_store(path)
        if verify(store):
            return True
        return cases.same_block(StoreView.of([store]).take(np.arange(len(block))), block)
    except BigconvError:
        return True
