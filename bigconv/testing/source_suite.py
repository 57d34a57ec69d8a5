"""What every source must do. Subclass `SourceSuite` in a test module, say how raw files are made, and pytest runs it:

class TestMySource(SourceSuite):
    source = "mine"
    limits = {"bigconv_mine.SPAN_FILES": 2}

    def make(self, folder):
        theirs.save(folder / "a.mine", array)  # with the format's own library, never with bigconv
        return [folder / "a.mine"], {}, [{"x": array[0]}, {"x": array[1]}]
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from bigconv import registry
from bigconv.block import Block, Ragged
from bigconv.errors import InputError, StoreError
from bigconv.manifest import canonical
from bigconv.sources.base import SPAN_BYTES, Reject, Source, Span

PICKLE_BYTES = 64 << 10  # 64 KiB: the handful of files of a suite; a source that carries its rows is soon larger

Row = Mapping[str, Any]  # field -> array, or str for text
Made = tuple[Sequence[Path], Mapping[str, Any], Sequence[Row]]
Where = tuple[str, int]  # file, row in it


class SourceSuite:
    """Conformance of one source; its subclass names it."""

    source: ClassVar[str]
    #: Each file is a row: a damaged one becomes a reject. Otherwise it is an `InputError` or `StoreError`.
    file_a_row: ClassVar[bool] = True
    #: What is done to a file in the middle: junk instead of it, its first half alone, or nothing in it.
    damages: ClassVar[tuple[str, ...]] = ("junk", "short", "empty")
    #: Dotted name -> value: constants that cut spans, made so small that there are several.
    limits: ClassVar[Mapping[str, int]] = {}

    def make(self, folder: Path) -> Made:
        """Write at least three rows in at least two spans: paths, options and the rows that are expected."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for dotted, value in self.limits.items():
            monkeypatch.setattr(dotted, value)

    @pytest.fixture
    def made(self, tmp_path: Path) -> Made:
        folder = tmp_path / "raw"
        folder.mkdir()
        return self.make(folder)

    def find(self, made: Made, **hints: Any) -> Source:
        cls = registry.load("source", self.source)
        found: Source = cls.find(made[0], **made[1], **{k: v for k, v in hints.items() if k in cls.hints})
        return found

    # -- rows ------------------------------------------------------------------------------------------------

    def test_rows_bit_by_bit(self, made: Made) -> None:
        """What the format's own library wrote comes out, in order, and nothing else."""
        rows, rejects = _read(self.find(made))
        assert rejects == []
        _same_rows([row for _, row in rows], made[2])

    def test_blocks_fit_the_schema(self, made: Made) -> None:
        source = self.find(made)
        for span in source.plan():
            for block in source.read(span):
                assert isinstance(block, Block)
                assert block.schema == source.schema
                block.validate()
                assert len(block) > 0
                assert block.nbytes <= 2 * SPAN_BYTES or len(block) == 1

    def test_spans_cover_all_inputs_in_order(self, made: Made) -> None:
        """Without holes, without overlap, and so many that order matters."""
        source = self.find(made)
        spans = list(source.plan())
        assert len(spans) > 1, "several spans are needed for this suite to mean anything: see `limits`"
        assert spans[0].start == 0
        assert all(b.start == a.stop for a, b in itertools.pairwise(spans))
        assert all(len(span) > 0 for span in spans)
        if source.inputs is not None:
            assert source.inputs == len(made[2])
            assert spans[-1].stop == source.inputs

    def test_origin_is_a_place_in_the_files(self, made: Made) -> None:
        """Each row says which file and which row in it; no place is named twice, and they come in order."""
        source = self.find(made)
        files = [source.files.name(i) for i in range(len(source.files))]
        for name in files:
            assert _place(made[0], name).exists(), name
        origins = [item.origin for span in source.plan() for item in source.read(span) if isinstance(item, Block)]
        assert all(o is not None and o.dtype == np.int64 for o in origins)
        where = np.concatenate([o for o in origins if o is not None])
        assert where.shape == (len(made[2]), 2)
        assert (where >= 0).all()
        assert (where[:, 0] < len(files)).all()
        pairs = [tuple(pair) for pair in where.tolist()]
        assert pairs == sorted(set(pairs))

    # -- a pure function of the source -------------------------------------------------------------------------

    def test_spans_in_any_order_and_twice(self, made: Made) -> None:
        """As workers read them: backwards, again, and several at once."""
        source = self.find(made)
        spans = list(source.plan())
        expected = {span: _rows(source, span) for span in spans}
        for span in [*reversed(spans), spans[0], *spans]:
            _same_rows(_rows(source, span), expected[span])
        mixed: dict[Span, list[Row]] = {span: [] for span in spans}
        running = {span: iter(source.read(span)) for span in spans}
        while running:
            for span in list(running):
                item = next(running[span], None)
                if item is None:
                    del running[span]
                elif isinstance(item, Block):
                    mixed[span] += list(item)
        for span in spans:
            _same_rows(mixed[span], expected[span])

    def test_hints_and_time_change_nothing(self, made: Made) -> None:
        """Neither workers, nor having been read, nor the files' times show in spans, schema or description."""
        source = self.find(made)
        before = _told(source)
        _read(source)
        assert _told(source) == before
        for path in made[0]:
            for file in [path, *(path.rglob("*") if path.is_dir() else [])]:
                os.utime(file, ns=(10**18, 10**18))
        for workers in (1, 7):
            assert _told(self.find(made, workers=workers)) == before

    def test_another_folder_changes_nothing(self, made: Made, tmp_path: Path) -> None:
        """Nothing of this machine, nor where the files lie, is in what the manifest keeps."""
        elsewhere = tmp_path / "otherwhere" / "raw"
        elsewhere.mkdir(parents=True)
        there = self.make(elsewhere)
        assert _told(self.find(there)) == _told(self.find(made))

    def test_relative_paths(self, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As they are typed."""
        monkeypatch.chdir(tmp_path)
        typed = [path.relative_to(tmp_path) for path in made[0]]
        source = self.find((typed, made[1], made[2]))
        assert _told(source) == _told(self.find(made))
        _same_rows([row for _, row in _read(source)[0]], made[2])

    def test_description_is_json(self, made: Made, tmp_path: Path) -> None:
        told = self.find(made).describe()
        text = json.dumps(told, allow_nan=False)
        assert json.loads(text) == told
        canonical(told)  # UTF-8 can hold it
        assert told["kind"] == self.source
        assert str(tmp_path) not in text
        assert str(Path.home()) not in text or str(Path.home()) == "/"

    # -- what workers need ---------------------------------------------------------------------------------------

    def test_pickles_small_and_whole(self, made: Made) -> None:
        """As it goes to a worker, before and after it has been read: paths and numbers, no rows, nothing open."""
        source = self.find(made)
        raw = pickle.dumps(source)
        assert len(raw) < PICKLE_BYTES
        _read(source)
        assert len(pickle.dumps(source)) <= len(raw) + 100
        again: Source = pickle.loads(raw)
        assert _told(again) == _told(source)
        _same_rows([row for _, row in _read(again)[0]], made[2])

    def test_blocks_may_be_overwritten(self, made: Made) -> None:
        """A step that works in place harms neither the files nor what is read next."""
        source = self.find(made)
        for span in source.plan():
            for item in source.read(span):
                assert isinstance(item, Block)
                for column in item.columns.values():
                    values = column.values if isinstance(column, Ragged) else column
                    if values.flags.writeable:
                        values[...] = np.asarray(77).astype(values.dtype)
        for again in (source, self.find(made)):
            _same_rows([row for _, row in _read(again)[0]], made[2])

    # -- damage --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("damage", ["junk", "short", "empty"])
    def test_a_damaged_file_is_named(self, made: Made, damage: str) -> None:
        """The others stay. Where a file is no row of its own, there are no others: the whole is refused."""
        if damage not in self.damages:
            pytest.skip("the source keeps files as they are, and doesn't look so deep")
        source = self.find(made)
        whole, _ = _read(source)
        name = source.files.name(len(source.files) // 2)
        path = _place(made[0], name)
        for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
            data = file.read_bytes()
            file.write_bytes({"junk": b"\x00\xffjunk" * 9, "short": data[: len(data) // 2], "empty": b""}[damage])
        if not self.file_a_row:
            with pytest.raises((InputError, StoreError), match=re.escape(name)):
                _read(self.find(made))
            return
        rows, rejects = _read(self.find(made))
        assert [(r.path, r.row) for r in rejects] == [where for where, _ in whole if where[0] == name]
        assert rejects[0].error
        assert rejects[0].stage in ("read", "decode")
        assert str(made[0][0]) not in rejects[0].error, "a reject is kept: it names files relative to the source"
        assert [where for where, _ in rows] == [where for where, _ in whole if where[0] != name]
        _same_rows([row for _, row in rows], [row for where, row in whole if where[0] != name])

    def test_paths_that_are_not_its_kind(self, tmp_path: Path) -> None:
        """A folder of nothing, junk, a missing file: an error that says so, never another one."""
        cls = registry.load("source", self.source)
        (tmp_path / "empty").mkdir()
        (tmp_path / "junk.bin").write_bytes(b"\x00\xff\xfejunk\r" * 99)
        for name in ("empty", "junk.bin", "missing"):
            with pytest.raises((InputError, StoreError)) as error:
                _read(cls.find([tmp_path / name]))
            assert str(error.value)


def _read(source: Source) -> tuple[list[tuple[Where, Row]], list[Reject]]:
    """All rows with their places, and all rejects, in plan order; every input is one or the other."""
    rows: list[tuple[Where, Row]] = []
    rejects: list[Reject] = []
    for span in source.plan():
        for item in source.read(span):
            if isinstance(item, Reject):
                rejects.append(item)
                continue
            item.validate()
            assert item.origin is not None
            where = [(source.files.name(file), row) for file, row in item.origin.tolist()]
            rows += zip(where, item, strict=True)
    if source.inputs is not None:
        assert len(rows) + len(rejects) == source.inputs
    return rows, rejects


def _rows(source: Source, span: Span) -> list[Row]:
    return [row for item in source.read(span) if isinstance(item, Block) for row in item]


def _told(source: Source) -> tuple[Any, ...]:
    """Everything of a source that decides what a conversion writes."""
    return source.schema, list(source.plan()), source.describe(), source.inputs


def _same_rows(found: Sequence[Row], expected: Sequence[Row]) -> None:
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert list(a) == list(b), f"row {i}"
        for name, value in b.items():
            if isinstance(value, str):
                assert a[name] == value, f"row {i}, field {name}"
                continue
            x, y = np.asarray(a[name]), np.asarray(value)
            assert (x.dtype, x.shape) == (y.dtype, y.shape), f"row {i}, field {name}"
            assert x.tobytes() == y.tobytes(), f"row {i}, field {name}"


def _place(paths: Sequence[Path], name: str) -> Path:
    """The file that a source calls `name`: below the one folder it was given, or one of its paths."""
    for path in paths:
        if path.name == name:
            return path
    return paths[0] / name
