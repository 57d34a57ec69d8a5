"""Sharded runs whose workers die, hang or refuse, that are killed anywhere or stopped: the same bytes in the end."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trapped import Trapped

import bigconv
from bigconv import fsio
from bigconv.conversion import build, parts_cut, parts_request, parts_run
from bigconv.conversion.parts import Job
from bigconv.conversion.plan import Plan
from bigconv.conversion.run import Policy
from bigconv.dataset import DatasetManifest
from bigconv.errors import FindingsError, InputError, Interrupted, OutputError, StoreError
from bigconv.locks import Lock
from bigconv.registry import load
from bigconv.testing import cases
from bigconv.testing.given import Given
from bigconv.view.opening import open_store
from bigconv.view.report import verify


def job_of(source: Any, dest: Path, policy: Policy, shards: int = 4, store: str = "memmap") -> Job:
    plan = Plan(source, (), source.schema, source.plan(), load("store", store)(), shards={"shards": shards})
    return parts_request.parts_job(plan, dest, policy)


def contents(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in fsio.files_below(path)}


def rejects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in build.rejects_file(path).read_text().splitlines()]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_workers_that_die_or_hang_cost_one_input_each(tmp_path: Path) -> None:
    """A segmentation fault, the OOM killer and a hang, in parts of their own: named, all others there."""
    source = Trapped(44, 5, {3: "segfault", 17: "kill", 38: "hang"})
    dest = tmp_path / "parts"
    outcome = parts_run.execute_parts(job_of(source, dest, Policy(2, max_rejects="3", timeout=1.0)))
    assert (outcome.rows, outcome.rejects) == (41, 3)
    assert [entry["path"] for entry in rejects(dest)] == ["0003.bin", "0017.bin", "0038.bin"]
    said = [entry["error"] for entry in rejects(dest)]
    assert "SIGSEGV" in said[0]
    assert "SIGKILL" in said[1]
    assert "longer than" in said[2]
    kept = [i for i in range(44) if i not in (3, 17, 38)]
    assert np.array_equal(bigconv.open(dest)[:]["x"][:, 0], np.array(kept) * 1000)
    assert verify(open_store(dest)) == []


def test_more_workers_than_parts_decode_for_them(tmp_path: Path) -> None:
    source = Trapped(30, 3, {})
    parts_run.execute_parts(job_of(source, tmp_path / "a", Policy(4), shards=2))
    parts_run.execute_parts(job_of(source, tmp_path / "b", Policy(0), shards=2))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_refusal_leaves_finished_parts_to_go_on_from(tmp_path: Path, workers: int) -> None:
    bad = Trapped(40, 4, {35: "refuse"})
    dest = tmp_path / "parts"
    with pytest.raises(InputError, match="whole span"):
        parts_run.execute_parts(job_of(bad, dest, Policy(workers)))
    assert not dest.exists()
    outcome = parts_run.execute_parts(job_of(Trapped(40, 4, {}), dest, Policy(workers)))
    assert outcome.resumed_rows >= 10
    parts_run.execute_parts(job_of(Trapped(40, 4, {}), tmp_path / "whole", Policy(0)))
    assert contents(dest) == contents(tmp_path / "whole")


def test_strict_stops_at_the_first_reject(tmp_path: Path) -> None:
    with pytest.raises(FindingsError, match="--strict"):
        parts_run.execute_parts(job_of(Trapped(20, 4, {5: "reject"}), tmp_path / "p", Policy(0, strict=True)))


def test_two_writers_and_another_plan_are_refused(tmp_path: Path) -> None:
    dest = tmp_path / "p"
    job = job_of(Trapped(20, 4, {15: "refuse"}), dest, Policy(0))
    with pytest.raises(InputError):
        parts_run.execute_parts(job)
    lock = Lock(job.folder / "lock")
    with pytest.raises(OutputError, match="another bigconv is writing"):
        parts_run.execute_parts(job)
    lock.release()
    with pytest.raises(OutputError, match="--restart"):
        parts_run.execute_parts(job_of(Trapped(20, 4, {}), dest, Policy(0), shards=3))
    assert parts_run.execute_parts(job_of(Trapped(20, 4, {}), dest, Policy(0, restart=True), shards=3)).rows == 20
    assert not job.folder.exists()


def _shard_at_once(store: Path, dest: Path, start: Any, told: Any) -> None:
    start.wait()
    try:
        bigconv.shard(store, dest, rows=20, workers=0)
        told.put("done")
    except OutputError as error:
        told.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_two_processes_that_shard_into_one_directory(tmp_path: Path) -> None:
    """At the same moment: one makes it, the others say that somebody does, or find it made; it is whole."""
    np.save(tmp_path / "x.npy", np.arange(600).reshape(200, 3))
    bigconv.convert(tmp_path / "x.npy", tmp_path / "x.h5", workers=0)
    bigconv.shard(tmp_path / "x.h5", tmp_path / "alone", rows=20, workers=0)
    context = multiprocessing.get_context("fork")
    start, told, dest = context.Barrier(3), context.Queue(), tmp_path / "p"
    some = [context.Process(target=_shard_at_once, args=(tmp_path / "x.h5", dest, start, told)) for _ in range(3)]
    for process in some:
        process.start()
    answers = [told.get(timeout=60) for _ in some]
    for process in some:
        process.join()
    assert "done" in answers
    assert all(a == "done" or "another bigconv" in a for a in answers), answers
    assert contents(dest) == contents(tmp_path / "alone")
    assert sorted(os.listdir(tmp_path)) == ["alone", "p", "x.h5", "x.npy"]


def _with_files_up_to(nbytes: int, dest: Path, workers: int, told: Any) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))  # Python ignores SIGXFSZ: writes fail with EFBIG
    try:
        parts_run.execute_parts(job_of(Trapped(80, 2, {}), dest, Policy(workers, start_method="fork"), store="memmap"))
        told.put("done")
    except OutputError as error:
        told.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_is_full_loses_nothing(tmp_path: Path, workers: int) -> None:
    """Refused with what to do, nothing published; with room again, the same command ends as if nothing had been."""
    context = multiprocessing.get_context("fork")
    told, dest = context.Queue(), tmp_path / "p"
    process = context.Process(target=_with_files_up_to, args=(8 << 10, dest, workers, told))
    process.start()
    answer = told.get(timeout=60)
    process.join()
    assert "would grow past the size limit" in answer
    assert str(tmp_path) in answer
    assert not dest.exists()
    outcome = parts_run.execute_parts(job_of(Trapped(80, 2, {}), dest, Policy(0)))
    assert outcome.manifest.rows == 80
    parts_run.execute_parts(job_of(Trapped(80, 2, {}), tmp_path / "whole", Policy(0)))
    assert contents(dest) == contents(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["p", "whole"]


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_keeps_the_work(tmp_path: Path, workers: int) -> None:
    dest = tmp_path / "p"
    source = Trapped(60, 2, {}, pause=0.02)
    timer = threading.Timer(0.0, os.kill, (os.getpid(), signal.SIGINT))
    seen = [0]

    def progress(rows: int, _nbytes: int, _rejects: int) -> None:
        seen[0] += rows
        if seen[0] >= 16 and not timer.is_alive() and not timer.finished.is_set():
            timer.start()

    with pytest.raises(Interrupted):
        parts_run.execute_parts(job_of(source, dest, Policy(workers)), progress)
    assert not dest.exists()
    outcome = parts_run.execute_parts(job_of(source, dest, Policy(workers)))
    assert outcome.manifest.rows == 60
    parts_run.execute_parts(job_of(Trapped(60, 2, {}), tmp_path / "whole", Policy(0)))
    assert contents(dest) == contents(tmp_path / "whole")


# -- kills ---------------------------------------------------------------------------------------------------------

BLOCK = cases.block(Trapped.schema, 40, seed=4)
OPERATIONS = (
    *((fsio.AppendFile, name) for name in ("write", "write_at", "sync")),
    *((fsio, name) for name in ("write_file", "replace_file", "sync_path", "sync_folder", "publish", "remove")),
    (os, "replace"),
)


def _run(dest: Path, store: str, strike: int) -> None:
    """In a child: make three parts with a checkpoint at every span, and die at durable operation number `strike`."""
    build.CHECKPOINT_SECONDS, build.CHECKPOINT_SHARE = 0.0, 1e9
    count = 0

    def deadly(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == strike:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    if strike:
        for owner, name in OPERATIONS:
            setattr(owner, name, deadly(getattr(owner, name)))
    source = Given(BLOCK, 7, rejects=2)
    parts_run.execute_parts(job_of(source, dest, Policy(0, max_rejects="2"), shards=3, store=store))
    os._exit(7 if strike else 0)  # 7: the run was over before the strike


def child(dest: Path, store: str, strike: int) -> int:
    process = multiprocessing.get_context("fork").Process(target=_run, args=(dest, store, strike))
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
@pytest.mark.parametrize(("store", "every"), [("memmap", 41), ("hdf5", 47), ("lmdb", 53), ("zarr", 61)])
def test_killed_anywhere(tmp_path: Path, store: str, every: int) -> None:
    """A kill at every so many operations, of the run after it too, then a run to the end: byte-identical."""
    whole = tmp_path / "whole" / "p"
    whole.parent.mkdir()
    assert child(whole, store, 0) == 0
    expected = contents(whole)
    listed = build.rejects_file(whole).read_bytes()
    strike = 1
    while True:
        dest = tmp_path / str(strike) / "p"
        dest.parent.mkdir()
        if child(dest, store, strike) == 7:
            break
        refused_or_whole(dest)
        if not dest.exists():
            child(dest, store, 17)
            refused_or_whole(dest)
        if not dest.exists():
            assert child(dest, store, 0) == 0
        assert contents(dest) == expected, f"strike {strike}"
        assert build.rejects_file(dest).read_bytes() == listed, f"strike {strike}"
        strike += every
    assert strike > 3 * every


def refused_or_whole(dest: Path) -> None:
    try:
        opened = open_store(dest)
    except StoreError:
        return
    assert opened.manifest.rows == len(BLOCK)
    assert verify(opened) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """The next run finds nobody writing, goes on, and the result is the same.

    The parent was forked from a process that has workers, which doesn't keep it from having its own.
    """
    whole, dest = tmp_path / "whole", tmp_path / "p"
    parts_run.execute_parts(job_of(Trapped(80, 2, {}), whole, Policy(2)))  # workers of this process, that has its own
    source = Trapped(80, 2, {}, pause=0.01)
    # a process group of its own: only the parent is killed
    process = multiprocessing.get_context("fork").Process(
        target=lambda: parts_run.execute_parts(job_of(source, dest, Policy(2)))
    )
    process.start()
    work = build.partial_folder(dest) / "p"
    deadline = time.monotonic() + 30
    while not any(work.glob("*.partial")) and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL  # or it had ended before
    outcome = parts_run.execute_parts(job_of(source, dest, Policy(0)))
    assert outcome.manifest.rows == 80
    assert isinstance(outcome.manifest, DatasetManifest)
    assert contents(dest) == contents(whole)


def test_names_follow_from_the_plan(tmp_path: Path) -> None:
    """The same conversion gives the same UUIDs, another one others; none is given twice."""
    source = Trapped(20, 4, {})
    a = job_of(source, tmp_path / "a", Policy(0)).outputs[0].parts
    b = job_of(source, tmp_path / "b", Policy(3)).outputs[0].parts
    c = job_of(source, tmp_path / "a", Policy(0), shards=5).outputs[0].parts
    assert a == b
    assert not {part.name for part in a} & {part.name for part in c}
    assert parts_cut.parse_size("1.5MiB") == 3 << 19
