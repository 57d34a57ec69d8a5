"""`bigconv inspect` on raw input and foreign stores, and its looks from nearer: --stats, --contact, --html, --diff."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import bigconv
from bigconv.cli.app import app
from tests.cli.test_startup import loaded_by


def run(*args: object, **env: str) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, args)], env=env)


def out(*args: object, **env: str) -> str:
    result = run(*args, **env)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def told(*args: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(out(*args, "--json"))
    assert document["schema_version"] == 1
    return document


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw/`: images of two classes and what doesn't belong to them; `out.h5`: the images converted."""
    folder = tmp_path_factory.mktemp("closer")
    rng = np.random.default_rng(0)
    for i in range(6):
        path = folder / "raw" / ("cats" if i < 2 else "dogs") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8)).save(path)
    bigconv.convert(folder / "raw", folder / "out.h5", workers=0)
    (folder / "raw" / "notes.pdf").write_bytes(b"%PDF")
    (folder / "raw" / "dogs" / "Thumbs.db").write_bytes(b"x")
    (folder / "raw" / ".hidden").write_bytes(b"x")
    return folder


def test_raw_input(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    document = told("raw")
    assert (document["recognised"], document["inputs"], document["files"]) == ("images", 6, 6)
    assert [(f["name"], f["shape"], f["kind"]) for f in document["fields"]] == [
        ("image", [3, 8, 9], "image"),
        ("label", [], "label"),
    ]
    misfits = {m["why"]: m["examples"] for m in document["misfits"]}
    assert misfits == {".pdf": ["notes.pdf"], ".db": ["dogs/Thumbs.db"], "hidden": [".hidden"]}
    shown = out("raw")
    for words in ("6 rows", "3 × 8 × 9", "cats, dogs", "not read: 1 .pdf file: notes.pdf", document["command"]):
        assert words in shown


def test_the_command_converts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a store with the fields and rows that were foretold."""
    monkeypatch.chdir(here)
    document = told("raw")
    _, command, *arguments = document["command"].split()
    assert CliRunner().invoke(app, [command, *arguments, "--workers", "0"]).exit_code == 0
    store = told(arguments[-1])
    assert store["rows"] == document["inputs"]
    assert [f["name"] for f in store["fields"]] == [f["name"] for f in document["fields"]]
    assert document["command"] != told("raw")["command"]  # what is there is not overwritten
    Path(arguments[-1]).unlink()


def test_the_way_to_mend_a_sharded_directory_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).random(50))
    bigconv.convert("x.npy", "parts", shards=3, workers=0)
    (warning,) = [w for w in told("parts")["warnings"] if w["topic"] == "float64"]
    _, command, *arguments = warning["fix"].split()
    assert CliRunner().invoke(app, [command, *arguments, "--workers", "0"]).exit_code == 0
    assert bigconv.open("new").schema["x"].dtype == "float32"


def test_files_of_several_kinds(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "b.csv").write_text("x,y\n1,2\n3,4\n")
    document = told(tmp_path)
    assert {r["recognised"]: r.get("inputs") for r in document["readings"]} == {"csv": 2, "array-folder": 1}
    assert all("--from " + r["recognised"] in r["command"] for r in document["readings"])
    assert told(tmp_path, "--from", "csv")["recognised"] == "csv"
    assert "say which: --from csv, --from array-folder" in str(run(tmp_path, "--stats").exception)
    assert [f["name"] for f in told(tmp_path / "b.csv")["fields"]] == ["x", "y"]


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("?")
    for path in (tmp_path, tmp_path / "a.xyz", tmp_path / "missing", tmp_path / "no.mmap"):
        assert isinstance(run(path).exception, bigconv.BigconvError)
    assert "not a store" in str(run(__file__, "--verify").exception)
    for option in ("--head=1", "--row=1"):
        np.save(tmp_path / "x.npy", np.zeros((3, 2)))
        assert "needs a store" in str(run(tmp_path / "x.npy", option).exception)


def test_stats(here: Path) -> None:
    pixels = np.asarray(bigconv.open(here / "out.h5")[:]["image"])
    for path in (here / "raw", here / "out.h5"):
        image, label = told(path, "--stats")["stats"]
        assert image["mean"] == pytest.approx(pixels.mean())
        assert [c["std"] for c in image["channels"]] == pytest.approx(pixels.std((0, 2, 3)))
        assert {c["name"]: c["count"] for c in label["counts"]} == {"cats": 2, "dogs": 4}
        shown = out(path, "--stats")
        assert "label: cats 2, dogs 4" in shown
        assert f"{pixels.mean():.5g}" in shown


def test_stats_name_what_cannot_be_read(here: Path, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes((here / "raw/cats/0.png").read_bytes())
    (tmp_path / "bad.png").write_bytes((here / "raw/cats/0.png").read_bytes()[:60])
    document = told(tmp_path, "--stats")
    assert (document["rejected"], document["rejects"][0]["path"]) == (1, "bad.png")
    assert any(w["topic"] == "unreadable" for w in document["warnings"])
    assert "can't be read: bad.png" in out(tmp_path, "--stats")


def test_sheet_and_page(here: Path, tmp_path: Path) -> None:
    for path in (here / "raw", here / "out.h5"):
        sheet, page = tmp_path / "s.png", tmp_path / "p.html"
        for _ in range(2):  # over its own kind
            document = told(path, "--contact", sheet, "--html", page, "--rows", "3")
        assert (document["contact"], document["html"]) == (str(sheet), str(page))
        with Image.open(sheet) as drawn:
            assert drawn.width > 300
        text = page.read_text()
        assert text.count("<img") == 3
        assert "Statistics" in text
        assert "://" not in text
    before = sheet.read_bytes()
    out(here / "out.h5", "--contact", sheet, "--rows", "3", "--seed", "1")
    assert sheet.read_bytes() != before


@pytest.mark.parametrize(("option", "name"), [("--contact", "a.png"), ("--html", "a.html"), ("--contact", "a.jpg")])
def test_files_that_are_not_overwritten(here: Path, tmp_path: Path, option: str, name: str) -> None:
    (tmp_path / name).write_text("mine")
    assert run(here / "out.h5", option, tmp_path / name).exception is not None
    assert (tmp_path / name).read_text() == "mine"


def test_diff(here: Path, tmp_path: Path) -> None:
    bigconv.convert(here / "out.h5", tmp_path / "same.zarr", workers=0)
    shown = out(here / "out.h5", "--diff", tmp_path / "same.zarr")
    assert "same rows: 6 rows" in shown
    assert "store: hdf5 → zarr" in shown
    bigconv.convert(here / "out.h5", tmp_path / "fewer.h5", workers=0, limit=5)
    result = run(here / "out.h5", "--diff", tmp_path / "fewer.h5")
    assert result.exit_code == 1
    assert "rows: 6 → 5" in result.stdout
    result = run(here / "out.h5", "--diff", tmp_path / "fewer.h5", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["diff"]["same"] is False


@pytest.mark.parametrize("width", ["60", "120"])
def test_foreign_stores_at_any_width(tmp_path: Path, width: str) -> None:
    import h5py

    with h5py.File(tmp_path / "f.h5", "w") as file:
        images = np.zeros((240, 3, 32, 32), np.uint8)
        file.create_dataset("train/images", data=images, chunks=(24, 3, 32, 32), compression="gzip")
    shown = out(tmp_path / "f.h5", COLUMNS=width, NO_COLOR="1")
    assert "\x1b" not in shown
    for words in ("train/", "images", "uint8", "240 × 3 × 32 × 32", "gzip:4", "spans 24 samples", "bigconv convert"):
        assert words in " ".join(shown.split())
    document = told(tmp_path / "f.h5")
    assert document["datasets"][0]["chunks"] == [24, 3, 32, 32]
    assert {w["topic"] for w in document["warnings"]} >= {"wide-chunks", "slow-codec"}


def test_control_characters_in_names(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["\x1b[2Jevil"] = np.zeros(3)
    folder = tmp_path / "raw"
    folder.mkdir()
    np.save(folder / "x.npy", np.zeros(3))
    (folder / "\x1b[31m[red].bin").write_text("")
    for path in (tmp_path / "f.h5", folder):
        shown = out(path)
        assert "\x1b" not in shown
        assert "\\x1b" in shown


def test_what_a_plain_look_loads(here: Path, tmp_path: Path) -> None:
    """Neither pictures nor other stores: that is what makes it quick."""
    code = f"""
import sys
sys.argv = ["bigconv", "inspect", {str(here / "out.h5")!r}]
from bigconv.cli.app import main
try:
    main()
except SystemExit as done:
    assert done.code in (0, None), done.code
"""
    assert not loaded_by(code) & {"torch", "zarr", "lmdb", "PIL", "pyarrow", "simplejpeg", "tqdm"}


def test_page_in_its_own_process(here: Path, tmp_path: Path) -> None:
    import sys

    command = [sys.executable, "-c", "from bigconv.cli.app import main; main()", "inspect", here / "out.h5"]
    result = subprocess.run(
        [*command, "--html", tmp_path / "p.html"], capture_output=True, env={**os.environ, "LC_ALL": "C"}, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, b"")
