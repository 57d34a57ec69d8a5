"""`bigconv bench` as it is typed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from bigconv.cli.app import main
from bigconv.schema import Field, Schema
from bigconv.testing.cases import block

ROWS = Schema((Field("x", "uint8", (64,)), Field("y", "int64")))
Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Bench:
    """Exit code, stdout and stderr of the command, run in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bigconv", "bench", *map(str, args)])
        with pytest.raises(SystemExit) as done:
            main()
        code = done.value.code
        out, err = capsys.readouterr()
        return code if isinstance(code, int) else 0, out, err

    return run


@pytest.fixture
def store(make_store: Callable[..., Path]) -> Path:
    return make_store(block(ROWS, 400), ".h5", name="train")


def refused(result: tuple[int, str, str], code: int, *words: str) -> None:
    assert result[0] == code, result
    assert result[1] == ""
    for word in words:
        assert word in result[2]
    assert 1 <= len(result[2].strip().splitlines()) <= 3
    assert "Traceback" not in result[2]


def test_json(bench: Bench, store: Path) -> None:
    code, out, _ = bench("train.h5", "--workers", "0,1", "--batch-size", 32, "--seconds", 0.8, "--json", "--quiet")
    assert code == 0
    found = json.loads(out)
    advice = found["recommendation"]
    wanted = {"loader", "num_workers", "prefetch_factor", "pin_memory", "persistent_workers", "reason", "snippet"}
    assert wanted <= advice.keys()
    assert found["schema_version"] == 1
    runs = {(run["loader"], run.get("num_workers", run.get("threads"))): run for run in found["runs"]}
    assert set(runs) == {("DataLoader", 0), ("DataLoader", 1), ("Loader", 0), ("Loader", 1)}
    for run in runs.values():
        low, high = run["samples_per_second_95"]
        assert 0 <= low <= run["samples_per_second"] <= high
        assert run["repeats"] >= 5
        assert run["wait_ms"]["p50"] <= run["wait_ms"]["p99"] <= run["wait_ms"]["max"]
        assert run["megabytes_per_second"] == pytest.approx(run["samples_per_second"] * 72 / 1e6)
    rungs = [rung["rung"] for rung in found["subjects"][0]["ladder"]]
    assert rungs[0] == "gather limit"
    assert str(store.parent) not in out, "no absolute path unless one was typed"


def test_what_a_transform_prints_is_no_output(bench: Bench, store: Path, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("def f(row):\n    print('noise')\n    return row\n")
    common = ("--workers", 0, "--batch-size", 32, "--seconds", 0.2, "--transform", "loud.py:f", "--quiet")
    code, out, err = bench("train.h5", *common, "--json")
    assert code == 0
    assert json.loads(out)["runs"]
    assert "noise" in err


def test_text_of_the_stores_in_this_folder(bench: Bench, store: Path) -> None:
    code, out, err = bench("--workers", 0, "--batch-size", 32, "--seconds", 0.3)
    assert code == 0
    assert "train.h5: 400 rows of 72 B · batches of 32, shuffled" in out
    assert "→ Loader, 0 threads: " in out  # many small batches at once
    assert "batch_size=32, shuffle=True, threads=0)" in out
    assert "dataset = StoreDataset('train.h5')" in out
    assert "Traceback" not in err
    code, out, _ = bench("train.h5", "--workers", 0, "--seconds", 0.3, "--markdown", "--quiet")
    assert code == 0
    assert "| DataLoader, 0 workers |" in out


def test_baseline_saved_loader_and_pictures(bench: Bench, store: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "slow.py").write_text("import time\ndef f(row):\n    time.sleep(0.0005)\n    return row\n")
    common = ("--batch-size", 4, "--transform", "slow.py:f", "--quiet")
    code, out, _ = bench(
        "train.h5", *common, "--workers", 0, "--seconds", 0.8, "--json", "--plot", "p.svg", "--html", "p.html"
    )
    assert code == 0
    assert (tmp_path / "p.svg").read_text().lstrip().startswith("<?xml")
    assert "<svg" in (tmp_path / "p.html").read_text()
    (tmp_path / "old.json").write_text(out)
    advised = json.loads(out)["recommendation"]["loader"]
    assert '"prefetch": null' in out, "nothing is made ahead by no threads"
    again = bench("old.json", "--seconds", 0.8, "--baseline", "old.json", "--fail-if-slower", "70%", "--quiet")
    assert again[0] == 0, again
    assert "than the baseline's" in again[1]
    assert f"use {advised}, 0 {'threads' if advised == 'Loader' else 'workers'}" in again[1]
    faster = json.loads(out)
    for run in faster["subjects"][0]["runs"]:
        run["samples_per_second"] *= 20
        run["samples_per_second_95"] = [20 * n for n in run["samples_per_second_95"]]
    (tmp_path / "fast.json").write_text(json.dumps(faster))
    code, out, err = bench(
        "old.json", "--seconds", 0.4, "--baseline", "fast.json", "--fail-if-slower", "10%", "--quiet"
    )
    assert code == 1
    assert "slower than the baseline by more than 10%" in err
    assert "slower than the baseline's" in out


def test_bad_input(bench: Bench, store: Path, tmp_path: Path) -> None:
    refused(bench("nothing.h5"), 2, "nothing.h5: no such file")
    refused(bench("train.h5", "--workers", "many"), 2, "--workers many", "0,2,4")
    refused(bench("train.h5", "--workers", 10**7), 2, "--workers 10000000", "GB are free", "At most")
    refused(bench("train.h5", "--fields", "z"), 2, "unknown field 'z'")
    refused(bench("train.h5", "--access", "random"), 2, "--access", "shuffled, sequential, window")
    refused(bench("train.h5", "--batch-size", 401), 2, "has only 400 rows")
    refused(bench("train.h5", "--seconds", 0), 2, "--seconds 0")
    refused(bench("train.h5", "--step-ms", -1), 2, "--step-ms")
    refused(bench("train.h5", "--resize", 8), 2, "--resize is for raw images")
    refused(bench("train.h5", "--transform", "none.py:f"), 2, "--transform", "no such file")
    refused(bench("train.h5", "--json", "--markdown"), 2, "choose one")
    refused(bench("train.h5", "--fail-if-slower", "10%"), 2, "--baseline")
    refused(bench("train.h5", "--plot", "p.gif"), 2, ".svg or .png")
    refused(bench("train.h5", "--plot", "none/p.svg"), 2, "there is no folder")
    refused(bench("--workload", "unet3"), 2, "Did you mean 'unet3d'")
    refused(bench("--workload", "unet3d", "--size", "much"), 2, "--size much")
    refused(bench("train.h5", "--size", "1MB"), 2, "--size says how much data a --workload makes")
    refused(bench("--workload", "unet3d", "--step-ms", 3), 2, "--workload makes its own data")
    refused(bench("--stores", "h5"), 2, "name a folder or files")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = h5py.SoftLink("/nowhere")
    refused(bench("foreign.h5"), 2, "no arrays in it")
    (tmp_path / "foreign.h5").unlink()
    store.write_bytes(store.read_bytes()[:-100])
    refused(bench("train.h5"), 2, "cut short")
    store.unlink()
    refused(bench(), 2, "no store in this folder", "bigconv bench train.h5")
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    refused(bench("x.npy", "--fields", "x"), 2, "raw files have neither --fields")
    refused(bench("x.npy", "--stores", "h5,zar"), 2, "Did you mean 'zarr'")
    refused(bench("x.npy", "--stores", "h5", "--fields", "x"), 2, "--fields with --stores takes columns of a table")


def test_samples_that_cannot_be_stacked(bench: Bench, make_store: Callable[..., Path]) -> None:
    make_store(block(Schema((Field("t", "uint16", (None,), "tokens"),)), 40), ".lmdb", name="text")
    refused(bench("text.lmdb", "--seconds", 0.3, "--quiet"), 2, "field t", "can't be stacked", "--fields")


def test_folder_of_several_kinds(bench: Bench, store: Path, tmp_path: Path) -> None:
    """Bench has what its error suggests, also for a trial, and the command it gives says so."""
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / "1.png")
    Image.fromarray(np.ones((8, 9, 3), np.uint8)).save(tmp_path / "2.png")
    (tmp_path / "notes.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    refused(bench("."), 2, "2 for images, 1 for", "--from images")
    refused(bench(".", "--from", "jsonl"), 2, "bench . --from jsonl --stores")
    refused(bench(".", "--from", "hdf5"), 2, "train.h5: a bigconv store: give its own path")
    quick = ("--workers", 0, "--seconds", 0.3, "--quiet", "--json")
    code, out, err = bench(".", "--from", "images", *quick)
    assert code == 0, err
    assert json.loads(out)["subjects"][0]["rows"] == 2
    code, out, err = bench(".", "--from", "jsonl", "--stores", "mmap", *quick)
    assert code == 0, err
    assert json.loads(out)["convert"] == "bigconv convert . train.mmap --from jsonl"
