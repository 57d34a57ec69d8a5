"""Kills at every file operation and at random times: a reader refuses or sees all, the resumed result is the same."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigconv import fsio, registry
from bigconv.block import Block
from bigconv.conversion import build
from bigconv.conversion.plan import Plan
from bigconv.conversion.request import Request
from bigconv.conversion.run import Policy, execute
from bigconv.errors import OutputError, StoreError
from bigconv.schema import Field, Schema
from bigconv.testing import cases
from bigconv.testing.given import Given
from bigconv.view.opening import open_store
from bigconv.view.report import verify
from tests.torture import _child
from tests.torture._runs import checkpoints_everywhere, workspace

SUFFIXES = (".mmap", ".h5", ".zarr", ".lmdb")
FIXED = cases.block(Schema((Field("x", "uint8", (700,)), Field("label", "int64", (), "label"))), 60, seed=1)
RAGGED = cases.block(Schema((Field("t", "uint16", (None,)), Field("i", "uint8", (None, None, 3)))), 60, seed=2)
#: Every durable operation of fsio; a kill strikes before or after one of them.
OPERATIONS = (
    *((fsio.AppendFile, name) for name in ("write", "write_at", "sync")),
    *((fsio.PatchFile, name) for name in ("write_at", "copy_from", "truncate", "sync")),
    *((fsio, name) for name in ("write_file", "replace_file", "sync_path", "sync_folder", "publish", "remove")),
)


def plan_for(path: Path, block: Block) -> Plan:
    source = Given(block, 7)
    return Plan(source, (), block.schema, source.plan(), registry.load("store", registry.store_for(path))())


def contents(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {".": path.read_bytes()}
    return {name: (path / name).read_bytes() for name in fsio.files_below(path)}


def _convert(path: Path, block: Block, strike: int = 0) -> None:
    """Convert with a checkpoint at every span; in a child, which dies at the durable operation number `strike`."""
    count = 0

    def deadly(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == strike:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kwargs)
            count += 1
            if count == strike:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    if strike:
        for owner, name in OPERATIONS:
            setattr(owner, name, deadly(getattr(owner, name)))
    execute(plan_for(path, block), path, Policy(0))


def killed(path: Path, block: Block, strike: int) -> bool:
    """Whether the strike came before the run was over."""
    ended = _child.run(lambda: _convert(path, block, strike))
    assert ended in (0, -signal.SIGKILL)
    return ended != 0


def refused_or_whole(path: Path, block: Block) -> None:
    try:
        opened = open_store(path)
    except StoreError:
        return
    assert opened.manifest.rows == len(block)
    assert verify(opened) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("block", "every"), [(FIXED, 5), (RAGGED, 9)], ids=["fixed", "ragged"])
def test_killed_anywhere(suffix: str, block: Block, every: int) -> None:
    """A kill at every so many operations, then a run to the end: byte-identical, and nothing left behind."""
    with workspace() as root, checkpoints_everywhere():  # in memory: fsyncs of a disk take most of the time
        whole = root / "whole" / f"out{suffix}"
        whole.parent.mkdir()
        _convert(whole, block)
        expected = contents(whole)
        strike = 1
        while True:
            path = root / str(strike) / f"out{suffix}"
            path.parent.mkdir()
            if not killed(path, block, strike):
                break
            refused_or_whole(path, block)
            if not path.exists():
                killed(path, block, 11)  # the second run is killed too, a little later
                refused_or_whole(path, block)
            if not path.exists():
                _convert(path, block)
            assert contents(path) == expected, f"strike {strike}"
            assert [p.name for p in path.parent.iterdir() if not p.name.endswith(".partial")] == [path.name]
            strike += every
        assert strike > 10 * every


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_published_store_is_not_made_again_and_leftovers_go(tmp_path: Path, suffix: str) -> None:
    """Killed between the rename and the clean-up: the next run finds it unchanged and removes the rest."""
    np.save(tmp_path / "x.npy", np.arange(50))
    dest = tmp_path / f"out{suffix}"
    request = Request((tmp_path / "x.npy",), dest)
    assert request.run().status == "done"
    folder = build.partial_folder(dest)
    folder.mkdir()
    (folder / "lock").touch()
    assert request.run().status == "unchanged"
    assert not folder.exists()


def _exchanged_and_killed(a: Path, b: Path) -> bool:
    exchange(a, b)
    os.kill(os.getpid(), signal.SIGKILL)
    return True


exchange = fsio._exchange


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names are exchanged on Linux alone")
@pytest.mark.parametrize(("name", "shards"), [("out.mmap", None), ("out.zarr", None), ("parts", 2)])
def test_killed_when_a_damaged_store_was_replaced_by_the_same(tmp_path: Path, name: str, shards: int | None) -> None:
    """Old and new are of one plan, and nothing tells which is which: the next run believes neither."""
    np.save(tmp_path / "x.npy", np.arange(50))
    request = Request((tmp_path / "x.npy",), tmp_path / name, shards=shards, policy=Policy(0))
    request.run()
    whole = contents(request.dest)
    largest = max(fsio.files_below(request.dest).items(), key=lambda item: item[1])[0]
    (request.dest / largest).write_bytes(whole[largest][:-1] + b"?")
    again = replace(request, overwrite=True)

    def work() -> None:
        fsio._exchange = _exchanged_and_killed
        again.run()

    assert _child.run(work) == -signal.SIGKILL
    assert build.partial_folder(request.dest).exists()
    assert again.run().status == "done"
    assert contents(request.dest) == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "x.npy"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names are exchanged on Linux alone")
def test_killed_when_a_split_was_replaced(tmp_path: Path) -> None:
    """The same command finds it done, and one of another plan does not take it for anybody's work."""
    from bigconv.conversion.shard import ShardRequest
    from bigconv.conversion.shard_source import Pick

    np.save(tmp_path / "x.npy", np.arange(50))
    store = Request((tmp_path / "x.npy",), tmp_path / "x.mmap", policy=Policy(0)).run().dest
    assert isinstance(store, Path)
    first, other = (Pick(split={"train": share, "val": 1 - share}) for share in (0.5, 0.8))
    request = ShardRequest((store,), tmp_path / "parts", pick=first, policy=Policy(0))
    request.run()
    again = replace(request, pick=other, overwrite=True)

    def work() -> None:
        fsio._exchange = _exchanged_and_killed
        again.run()

    assert _child.run(work) == -signal.SIGKILL
    made = contents(request.dest)
    assert build.partial_folder(request.dest).exists()
    assert again.run().status == "unchanged"
    assert contents(request.dest) == made
    assert not build.partial_folder(request.dest).exists()
    assert again.run().status == "done"  # asked for once more, it is made once more


def test_two_writers(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    with build.building(path, plan_for(path, FIXED)), pytest.raises(OutputError, match="another bigconv is writing"):
        execute(plan_for(path, FIXED), path, Policy(0))


def test_another_plan_is_refused_until_restart(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    with pytest.raises(KeyboardInterrupt), build.building(path, plan_for(path, FIXED)) as one:
        one.checkpoint()
        raise KeyboardInterrupt
    assert build.partial_folder(path).exists()
    other = plan_for(path, RAGGED)
    with pytest.raises(OutputError, match="--restart"):
        execute(other, path, Policy(0))
    assert execute(other, path, Policy(0, restart=True)).rows == 60
    assert not build.partial_folder(path).exists()


def test_a_torn_or_edited_journal_line_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "out.mmap"
    plan = plan_for(path, FIXED)
    with pytest.raises(KeyboardInterrupt), build.building(path, plan) as one:
        from bigconv.conversion.task import run_span

        for span in plan.spans[:4]:
            for item in run_span(plan.work, span):
                one.append(item)
            one.span_done()
            one.checkpoint()
        raise KeyboardInterrupt
    file = build.partial_folder(path) / "journal"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]) + lines[2].replace(b'"rows":21', b'"rows":20') + lines[3])
    assert execute(plan, path, Policy(0)).resumed_rows == 14
    whole = tmp_path / "whole.mmap"
    execute(plan, whole, Policy(0))
    assert contents(path) == contents(whole)
