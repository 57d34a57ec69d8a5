"""`bigconv shard` killed at the points that once left something behind or had the same command refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import bigconv
from bigconv import fsio
from bigconv.cli.app import app
from bigconv.conversion import build, parts_run, shard_fields
from bigconv.dataset import DatasetManifest
from bigconv.errors import OutputError, UsageError
from bigconv.inspection.unfinished import unfinished
from bigconv.view.opening import open_store
from bigconv.view.report import verify
from tests.torture import _child
from tests.torture._runs import contents

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
ROWS = 300


@pytest.fixture
def store(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.arange(5 * ROWS).reshape(ROWS, 5))
    np.save(tmp_path / "label.npy", np.arange(ROWS) % 4)
    bigconv.convert([tmp_path / "x.npy", tmp_path / "label.npy"], tmp_path / "all.mmap", workers=0)
    return tmp_path / "all.mmap"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    np.save(tmp_path / "new.npy", np.arange(ROWS) / 7)
    bigconv.convert(tmp_path / "new.npy", tmp_path / "new.h5", workers=0)
    return tmp_path / "new.h5"


def parted(store: Path, to: str = "memmap") -> Path:
    path = store.with_name("p")
    bigconv.shard(store, path, shards=3, to=to, workers=0)
    return path


def killed(owner: Any, name: str, work: Callable[[], object], at: int = 1, after: bool = True) -> None:
    """Do something in a child that is killed after (or before) its call number `at` of a function."""
    original, calls = getattr(owner, name), 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def child() -> None:
        setattr(owner, name, deadly)
        work()

    assert _child.run(child) == -signal.SIGKILL


def nothing_left(path: Path) -> None:
    assert [p.name for p in path.parent.glob(f"{path.name}*")] == [path.name]


def part_file(path: Path, number: int) -> Path:
    """The largest file of a part."""
    part = path / part_names(path)[number]
    if part.is_file():
        return part
    return part / max(fsio.files_below(part).items(), key=lambda item: item[1])[0]


def part_names(path: Path) -> list[str]:
    manifest = open_store(path).manifest
    assert isinstance(manifest, DatasetManifest)
    return [part.name for part in manifest.parts]


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("how", ["drop", "add", "exchange"])
def test_fields_changed_just_before_the_kill(store: Path, new: Path, sharded: bool, how: str) -> None:
    path = parted(store) if sharded else store
    options: dict[str, list[str]] = {"drop": ["--drop-field", "x"], "add": ["--add-field", str(new)]}
    options["exchange"] = options["drop"] + options["add"]
    words = ["shard", str(path), *options[how]]
    killed(fsio, "_exchange", lambda: CliRunner().invoke(app, words, catch_exceptions=False))
    made = contents(path)
    assert build.partial_folder(path).exists()
    for _ in range(2):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        assert f"unchanged, skipped · {ROWS} rows" in " ".join(result.output.split())
        assert contents(path) == made
        nothing_left(path)
    assert '"status": "unchanged"' in CliRunner().invoke(app, [*words, "--json"]).stdout
    assert verify(open_store(path)) == []


def test_inspect_tells_a_change_of_fields_that_was_cut_off(store: Path, new: Path) -> None:
    killed(shard_fields, "fill", lambda: bigconv.shard(store, add_field=new))
    out = CliRunner().invoke(app, ["inspect", str(store)]).output
    assert "a change of its fields was cut off; the same command makes it" in " ".join(out.split())
    bigconv.shard(store, add_field=new)
    nothing_left(store)
    assert open_store(store).manifest.schema.names == ("x", "label", "new")


def test_inspect_tells_a_split_that_was_cut_off_when_done(store: Path) -> None:
    dest = store.with_name("sets")
    killed(parts_run, "remove_work", lambda: bigconv.shard(store, dest, **SPLIT), after=False)
    work = unfinished(dest, None)
    assert work is not None and work.problem.endswith("killed when all was done but the clean-up")
    assert work.fix == f"bigconv shard all.mmap {dest} --split train=0.8,val=0.2 --shards 2 --to memmap"
    bigconv.shard(store, dest, **SPLIT)
    nothing_left(dest)


def test_fields_are_changed_already_by_that_very_command_alone(store: Path, new: Path) -> None:
    bigconv.shard(store, add_field=new)
    bigconv.shard(store, drop_field="label")
    made = contents(store)
    refused: list[dict[str, Any]] = [{"add_field": new}, {"drop_field": ["label", "x"]}, {"drop_field": "lable"}]
    np.save(new.with_name("new.npy"), np.arange(ROWS) / 8)
    bigconv.convert(new.with_name("new.npy"), new.with_name("other.h5"), workers=0)
    for options in (*refused, {"add_field": new.with_name("other.h5")}):
        with pytest.raises(UsageError):
            bigconv.shard(store, **options)
        assert contents(store) == made
    bigconv.shard(store, drop_field="new")
    bigconv.shard(store, add_field=new)
    os.replace(new.with_name("other.h5"), new)
    with pytest.raises(UsageError, match="has a field new already"):  # other rows under the same name
        bigconv.shard(store, add_field=new)


def repaired(path: Path, before: dict[str, bytes]) -> None:
    """The command that was killed, said again."""
    bigconv.shard(path, repair=True, workers=0)
    assert contents(path) == before
    nothing_left(path)


@pytest.mark.parametrize("to", ["memmap", "hdf5", "lmdb", "zarr"])
@pytest.mark.parametrize("at", [1, 2])
def test_repair_killed_when_parts_were_put_in_place(store: Path, to: str, at: int) -> None:
    path = parted(store, to)
    before = contents(path)
    for number in (0, 2):
        flipped(part_file(path, number))
    killed(fsio, "publish", lambda: bigconv.shard(path, repair=True, workers=0), at=2 + at)  # both were made before
    work = unfinished(path, open_store(path))
    assert work is not None and work.fix == f"bigconv shard {path} --repair"
    repaired(path, before)


def test_a_damaged_part_that_was_taken_out_is_not_put_back(store: Path) -> None:
    """Killed when old and new had changed places, and the new one damaged before the next run."""
    path = parted(store)
    before = contents(path)
    flipped(part_file(path, 1))
    killed(fsio, "_exchange", lambda: bigconv.shard(path, repair=True, workers=0))
    assert contents(path) == before
    flipped(part_file(path, 1))
    repaired(path, before)


def test_repair_killed_and_then_from_another_source(store: Path) -> None:
    """The work of a source that gives other rows stands in nobody's way."""
    path = parted(store)
    before = contents(path)
    other = store.with_name("other.mmap")
    np.save(store.with_name("x.npy"), np.arange(5 * ROWS).reshape(ROWS, 5) + 1)
    bigconv.convert([store.with_name("x.npy"), store.with_name("label.npy")], other, workers=0)
    flipped(part_file(path, 1))
    damaged = contents(path)
    killed(build, "put_in_place", lambda: bigconv.shard(path, repair=True, source=other, workers=0))
    with pytest.raises(OutputError, match="other rows now"):
        bigconv.shard(path, repair=True, source=other, workers=0)
    assert contents(path) == damaged
    nothing_left(path)
    killed(build, "put_in_place", lambda: bigconv.shard(path, repair=True, source=other, workers=0))
    bigconv.shard(path, repair=True, source=store, workers=0)
    assert contents(path) == before
    nothing_left(path)


def test_repair_clears_what_another_change_has_left(store: Path, new: Path) -> None:
    """As `inspect` says it would."""
    path = parted(store)
    before = contents(path)
    killed(shard_fields, "fill", lambda: bigconv.shard(path, add_field=new))
    work = unfinished(path, open_store(path))
    assert work is not None and work.fix == f"bigconv shard {path} --repair"
    repaired(path, before)


@pytest.mark.parametrize("edit", [{"drop": "1"}, {"repair": True}, {"drop_field": "x"}])
def test_a_change_clears_what_a_finished_conversion_has_left(store: Path, edit: dict[str, Any]) -> None:
    path = store.with_name("p")
    killed(parts_run, "remove_work", lambda: parted(store), after=False)
    assert build.partial_folder(path).exists()
    bigconv.shard(path, workers=0, **edit)
    nothing_left(path)


SPLIT = {"split": "train=0.8,val=0.2", "shards": 2, "workers": 0}


@pytest.mark.parametrize("published", [False, True])
def test_a_split_that_was_killed_and_another_command(store: Path, published: bool) -> None:
    """The same command ends it. Another has to drop it first, and is told what differs, unless it was finished."""
    dest = store.with_name("sets")
    bigconv.shard(store, dest, **SPLIT)
    expected = contents(dest)
    fsio.remove(dest)
    owner, name = (parts_run, "remove_work") if published else (parts_run, "publish")
    cut_off = lambda: killed(owner, name, lambda: bigconv.shard(store, dest, **SPLIT), after=False)  # noqa: E731
    cut_off()
    bigconv.shard(store, dest, **SPLIT)
    assert contents(dest) == expected
    nothing_left(dest)
    fsio.remove(dest)
    cut_off()
    others = ({**SPLIT, "seed": 3}, {**SPLIT, "split": "train=0.7,val=0.3"}, {"rows": 50, "workers": 0})
    told = ("seed 0 → 3", 'split "train=0.8,val=0.2" → "train=0.7,val=0.3"', "rows none → 50; shards 2 → none")
    if not published:
        for other, differs in zip(others, told, strict=True):
            with pytest.raises(OutputError, match="or drop it with --restart") as error:
                bigconv.shard(store, dest, **other)
            assert differs in str(error.value)
            assert f"bigconv shard all.mmap {dest} --split train=0.8,val=0.2 --shards 2 --to memmap" in str(error.value)
    bigconv.shard(store, dest, **others[1], overwrite=published, restart=not published)
    nothing_left(dest)
    assert open_store(dest / "train").manifest.recipe["read"]["split"] == "train=0.7,val=0.3"
    assert verify(open_store(dest / "train")) == verify(open_store(dest / "val")) == []
