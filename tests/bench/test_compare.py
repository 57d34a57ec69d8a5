"""Baselines, saved loaders, contention, trials and workloads."""

from __future__ import annotations

import io
import json
import multiprocessing
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch.utils.data import DataLoader

import bigconv
from bigconv.bench import api, baseline, contention, processes, stats, texttable
from bigconv.bench.api import Question
from bigconv.bench.page import page
from bigconv.bench.report import markdown, terminal
from bigconv.bench.subject import raw_subject
from bigconv.bench.trial import trial
from bigconv.bench.workload import SHAPES, run_workload
from bigconv.errors import InputError, UsageError
from bigconv.schema import Field, Schema
from bigconv.testing.cases import block

timed = pytest.mark.timed  # holds clocks against one another: python -m pytest -m timed

ROWS = Schema((Field("x", "uint8", (64,)), Field("y", "int64")))
PACED = """
import time
due = 0.0
def paced(seconds, row):
    '''A row every so many seconds: what the system is late by, the next row makes up for.'''
    global due
    now = time.perf_counter()
    due = due + seconds if now - due < 0.05 else now + seconds
    time.sleep(max(0, due - now))
    return row
def even(row): return paced(0.002, row)
def slower(row): return paced(0.0025, row)
"""


def document(rate: float, half: float, **changes: Any) -> dict[str, Any]:
    run = {
        "loader": "Loader",
        "threads": 2,
        "samples_per_second": rate,
        "samples_per_second_95": [rate - half, rate + half],
    }
    subject = {
        "path": "a.h5",
        "batch_size": 8,
        "access": "shuffled",
        "step_ms": 0,
        "runs": [run],
        "recommendation": run,
    }
    return {"subjects": [subject | changes]}


@pytest.mark.parametrize(
    ("new", "half", "fails"),
    [(100, 1, False), (91, 1, False), (89, 1, True), (80, 1, True), (80, 15, False), (120, 1, False)],
)
def test_slower_by_more_than_allowed_and_not_by_chance(new: float, half: float, fails: bool) -> None:
    change = baseline.compare(document(100, half), document(new, half))[0]
    assert change.fails(0.10) is fails
    assert change.slower == pytest.approx(1 - new / 100)


def test_another_machine_is_told() -> None:
    here = {"cores": 2, "torch": "2.13", "available_memory_bytes": 1}
    assert baseline.other_machine({"machine": here}, {"machine": {**here, "available_memory_bytes": 2}}) == []
    (told,) = baseline.other_machine({"machine": {**here, "cores": 8}}, {"machine": here})
    assert told.endswith("another machine: cores 8 then, 2 now")


def test_only_like_is_compared() -> None:
    for changes, words in (
        ({"batch_size": 9}, "batch-size 8 then, and 9 now"),
        ({"path": "b.h5"}, "it has none of b.h5"),
        ({"runs": []}, "Loader/2, which it recommends, was not measured now"),
    ):
        with pytest.raises(UsageError, match=words):
            baseline.compare(document(100, 1), document(100, 1, **changes))


@pytest.mark.parametrize("text", ["10 percent", "-5%", "100%", "", "nan"])
def test_shares(text: str) -> None:
    with pytest.raises(UsageError, match="--fail-if-slower"):
        baseline.share(text)
    assert baseline.share("10%") == baseline.share("0.1") == 0.1


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"command": "bench"}', "\x00", '{"command":"bench","subjects":[1],"schema_version":9}']
)
def test_no_baseline(tmp_path: Path, content: str) -> None:
    (tmp_path / "old.json").write_text(content)
    with pytest.raises(InputError, match=r"old\.json: not"):
        baseline.load(tmp_path / "old.json")
    with pytest.raises(InputError, match="No such file"):
        baseline.load(tmp_path / "none.json")


@timed
def test_a_loader_slowed_by_20_percent_fails_and_the_same_does_not(
    make_store: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_store(block(ROWS, 500), ".mmap")
    (tmp_path / "paced.py").write_text(PACED)

    def asked(name: str) -> Question:
        return Question((0,), 4, transform=f"{tmp_path / 'paced.py'}:{name}", seconds=0.8)

    old = api.bench([path], asked("even")).to_json()
    assert not api.compare(api.bench([path], asked("even")), old, 0.10)
    slow = api.bench([path], asked("slower"))
    assert api.compare(slow, old, 0.10)
    assert "slower than the baseline's" in slow.changes[0].words()


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_load_on_every_core_is_told_as_contended() -> None:
    if contention.Watcher().result().foreign is None and not Path("/proc/stat").exists():
        pytest.skip("this system doesn't tell who uses its cores")
    import subprocess
    import sys

    # not children of multiprocessing: strangers
    code = "import time\nend = time.time() + 20\nwhile time.time() < end: pass"
    strangers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(processes.cores())]
    try:
        time.sleep(0.2)
        watcher = contention.Watcher()
        spin(0.6)
        found = watcher.result()
    finally:
        for stranger in strangers:
            stranger.kill()
            stranger.wait()
    assert found.contended
    assert any(line.startswith("contended: other processes used") for line in found.words())


@timed
def test_own_workers_are_no_contention() -> None:
    """Only an upper bound can be held on a shared machine: their second of CPU isn't counted as foreign."""
    context = multiprocessing.get_context("fork")
    watcher = contention.Watcher()
    children = [context.Process(target=spin, args=(0.5,)) for _ in range(2)]
    for child in children:
        child.start()
    time.sleep(0.3)
    running = watcher.result()
    for child in children:
        child.join()
    ended = watcher.result()
    if running.foreign is None or ended.foreign is None:
        pytest.skip("this system doesn't tell who uses its cores")
    strangers = contention.Watcher()
    time.sleep(0.5)
    background = strangers.result().foreign or 0.0
    assert min(running.foreign, ended.foreign) < background + 0.35


def test_contention_in_words() -> None:
    quiet = contention.Contention(4, 4, None, 0.01, 0.0, 0.0, 0.3)
    assert not quiet.contended and quiet.words() == []
    limited = contention.Contention(2, 8, 2.0, 0.5, 0.2, 0.3, None)
    assert limited.contended
    assert len(limited.words()) == 4
    assert "quota is 2 of 8 cores" in limited.words()[-1]


# -- raw data ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(70):
        folder = tmp_path / "raw" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20 + i % 3, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "raw"


def test_trial_names_the_command_that_wins(photos: Path) -> None:
    report = trial([photos], ("h5", "mmap"), Question((0,), 16, resize=(16, 16), seconds=1.2))
    by_name = {answer.subject.name: answer for answer in report.answers}
    assert set(by_name) == {"h5", "mmap", "raw, raw files"}
    assert by_name["h5"].facts["stored_bytes_per_row"] > 16 * 16 * 3
    words = shlex.split(report.extra["convert"])
    assert words[:3] == ["bigconv", "convert", str(photos)]
    assert words[3] in ("train.h5", "train.mmap")
    assert words[4:] == ["--resize", "16x16"]
    assert "samples/s" in report.extra["convert_reason"]
    assert f"StoreDataset('{words[3]}')" in report.to_json()["recommendation"]["snippet"]
    shown = terminal(report, 100)
    assert report.extra["convert"] in shown
    assert "converted, rows/s" in shown


def test_a_trial_tells_how_many_rows_it_has(photos: Path) -> None:
    for one in sorted(photos.rglob("*.png"))[30:]:
        one.unlink()
    report = trial([photos], ("mmap",), Question((0,), 8, resize=(16, 16), seconds=0.6))
    assert "stores hold a sample of 30 rows, read from the page cache" in report.notes


def test_raw_images_need_one_size(photos: Path) -> None:
    from bigconv.errors import SchemaError

    with pytest.raises(SchemaError, match=r"can't be stacked.*\n.*--resize"):
        api.bench([photos], Question((0,), 16, seconds=0.3))
    report = api.bench([photos], Question((0,), 16, resize=(16, 16), seconds=0.3))
    assert report.winner.best > 0
    assert report.to_json()["subjects"][0]["sample_bytes"] == 16 * 16 * 3 + 8


def test_raw_arrays_against_their_store(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(0, 255, (300, 40), dtype=np.uint8))
    bigconv.convert(tmp_path / "x.npy", tmp_path / "x.h5", workers=0)
    report = api.bench([tmp_path / "x.npy", tmp_path / "x.h5"], Question((0,), 32, seconds=0.6))
    sums = {answer.advice.run.checksum for answer in report.answers}
    assert len(sums) == 1, "the same rows as tensors, whoever read them"
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(20):
        np.save(folder / f"{i:02}.npy", rng.random(5))
    assert api.bench([folder], Question((0,), 4, seconds=0.3)).winner.subject.rows == 20


@pytest.mark.parametrize("suffix", [".h5", ".zarr", ".lmdb"])
def test_another_programs_file_against_its_store(tmp_path: Path, suffix: str) -> None:
    """Read row by row, by any number of workers, it has the rows of its conversion."""
    path = tmp_path / f"theirs{suffix}"
    x = np.random.default_rng(0).integers(0, 255, (120, 40), dtype=np.uint8)
    if suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["x"], file["mean"] = x, np.zeros(3)
    elif suffix == ".zarr":
        zarr.save_group(path, x=x, mean=np.zeros(3))
    else:
        with lmdb.open(str(path), map_size=1 << 20) as env, env.begin(write=True) as txn:
            for i, row in enumerate(x):
                buffer = io.BytesIO()
                np.save(buffer, row)
                txn.put(b"%04d" % i, buffer.getvalue())
    fields = None if suffix == ".lmdb" else ("x",)
    if fields:
        with pytest.raises(InputError, match=r"equal rows.*\n.*--fields x"):
            api.bench([path], Question((0,), 32, seconds=0.3))
    dataset, (name,) = raw_subject([path], 32, "shuffled", fields=fields).dataset, fields or ("array",)
    for workers in (0, 1):
        batches = DataLoader(dataset, 32, num_workers=workers)
        assert torch.equal(torch.cat([batch[name] for batch in batches]), torch.from_numpy(x))
    if suffix == ".zarr":  # a row of it takes so long that measuring would, too
        return
    bigconv.convert(path, tmp_path / "ours.mmap", workers=0, columns=fields)
    report = api.bench([path, tmp_path / "ours.mmap"], Question((0,), 32, fields=fields, seconds=0.3))
    assert {answer.subject.kind for answer in report.answers} == {"raw", "store"}
    tried = trial([path], ["mmap"], Question((0,), 32, fields=fields, seconds=0.3))
    assert [answer.subject.kind for answer in tried.answers] == ["store", "raw"]
    assert tried.extra["convert"] == f"bigconv convert {path} train.mmap" + (" --columns x" if fields else "")


def test_workload_tells_how_busy_accelerators_are() -> None:
    assert SHAPES["unet3d"].sample == 146_600_628
    report = run_workload("cosmoflow", 20_000_000, Question((0,), seconds=1.2))
    assert [one["accelerator"] for one in report.extra["accelerators"]] == ["A100", "H100"]
    assert all(0 < one["busy"] <= 1 for one in report.extra["accelerators"])
    assert report.winner.subject.rows == 7
    assert "no result of MLPerf" in " ".join(report.notes)
    assert "asked for" in terminal(report, 80)
    with pytest.raises(UsageError, match="Did you mean 'unet3d'"):
        run_workload("unet", 1, Question())


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_every_form_of_a_report(make_store: Callable[..., Path]) -> None:
    pytest.importorskip("matplotlib")
    from bigconv.bench import plot

    paths = [make_store(block(ROWS, 300), suffix, name=f"<a&{suffix[1:]}>") for suffix in (".h5", ".mmap")]
    report = api.bench(paths, Question((0, 1), 16, step_ms=0.5, seconds=0.8, cold=True))
    for width in (60, 80, 120):
        lines = terminal(report, width).splitlines()
        code = [line for line in lines if line.startswith("  ")]
        assert max(len(line) for line in lines if line not in code) <= width
        assert sum(line.startswith("→  ") for line in lines) == 2, "the chosen row of each table"
    assert markdown(report).count("| setting |") == 2
    assert json.loads(json.dumps(report.to_json()))["recommendation"]["snippet"]
    assert plot.draw(report, "png").startswith(b"\x89PNG")
    assert b"<svg" in plot.draw(report, "svg")
    document = page(report)
    assert "&lt;a&amp;h5&gt;" in document
    assert "<a&" not in document, "names are escaped"
    assert "http-equiv" not in document and "<script" not in document and "<link" not in document


def test_tables_drop_the_least_important_columns() -> None:
    columns = [
        texttable.Column("name", ("a",), right=False),
        texttable.Column("x" * 10, ("1",), 1),
        texttable.Column("y", ("2",), 2),
    ]
    assert texttable.lines(columns, 40) == ["name  xxxxxxxxxx  y", "a              1  2"]
    assert texttable.lines(columns, 17) == ["name  xxxxxxxxxx", "a              1"]
    assert texttable.lines(columns, 5) == ["name", "a"]
    assert texttable.markdown(columns)[1] == "|---|---:|---:|"


def test_numbers_for_people() -> None:
    assert [texttable.size(n) for n in (0, 999, 1000, 999_499, 1.5e9, 2e15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "999 kB",
        "1.5 GB",
        "2000 TB",
    ]
    assert [texttable.time(s) for s in (4e-6, 0.0012, 0.25, 75)] == ["4 µs", "1.2 ms", "0.25 s", "75 s"]
    assert stats.rate_of([1], [2.0]).value == 0.5
