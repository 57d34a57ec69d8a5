"""`bigconv inspect`: the contract of its JSON, what people see, and what --verify finds."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import bigconv
from bigconv import fsio
from bigconv.block import Block, Ragged
from bigconv.cli.app import app
from bigconv.cli.text import plural, printable, size
from bigconv.schema import Field, Schema
from tests.warm import Warm

SUFFIXES = (".mmap", ".h5", ".lmdb", ".zarr")


def run(*args: object, **env: str) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, args)], env=env)


def out(*args: object, **env: str) -> str:
    result = run(*args, **env)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of all sizes in two classes, in every format."""
    folder = tmp_path_factory.mktemp("inspect")
    rng = np.random.default_rng(0)
    for i in range(5):
        path = folder / "raw" / ("cats" if i < 2 else "dogs") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8 + i, 9, 3), np.uint8)).save(path)
    for suffix in SUFFIXES:
        bigconv.convert(folder / "raw", folder / f"out{suffix}", workers=0)
    return folder


# -- JSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_contract(stores: Path, suffix: str) -> None:
    """What scripts may rely on, whatever the store."""
    document = json.loads(out(stores / f"out{suffix}", "--json"))
    assert document["schema_version"] == 1
    assert document["store"] == {".mmap": "memmap", ".h5": "hdf5"}.get(suffix, suffix[1:])
    assert document["rows"] == 5
    path = stores / f"out{suffix}"
    assert document["bytes"] == (sum(fsio.files_below(path).values()) if path.is_dir() else path.stat().st_size)
    image, label = document["fields"]
    assert {key: image[key] for key in ("name", "dtype", "shape", "kind")} == {
        "name": "image",
        "dtype": "uint8",
        "shape": [3, None, None],
        "kind": "image",
    }
    assert image["layout"]
    assert label["classes"] == ["cats", "dogs"]
    assert document["source"]["kind"] == "images"
    assert document["source"]["files"] == 5
    assert document["recipe"]["from"] == "images"
    assert document["recipe"]["to"] == document["store"]
    assert [step["step"] for step in document["recipe"]["steps"]] == ["layout"]
    assert re.fullmatch("[0-9a-f]{64}", document["content_digest"])
    assert abs(datetime.now().timestamp() - datetime.fromisoformat(document["created"]).timestamp()) < 3600
    assert document["bigconv_version"] == bigconv.__version__
    assert not {"verified", "findings", "head"} & set(document)


def test_nothing_of_this_machine_in_what_is_kept(stores: Path) -> None:
    for suffix in SUFFIXES:
        document = json.loads(out(stores / f"out{suffix}", "--json"))
        assert str(stores) not in json.dumps([document["source"], document["recipe"]])


def test_equal_digests_for_equal_samples(stores: Path) -> None:
    digests = {json.loads(out(stores / f"out{suffix}", "--json"))["content_digest"] for suffix in SUFFIXES}
    assert len(digests) == 1


def test_verify_and_head_in_json(stores: Path) -> None:
    document = json.loads(out(stores / "out.zarr", "--json", "--verify", "--head", "2"))
    assert (document["verified"], document["findings"]) == (True, [])
    assert [row["label"] for row in document["head"]] == [0, 0]
    assert document["head"][1]["image"]["shape"] == [3, 9, 9]
    assert 0 <= document["head"][1]["image"]["min"] < document["head"][1]["image"]["max"] <= 255
    assert len(json.loads(out(stores / "out.zarr", "--json", "--head", "99"))["head"]) == 5
    assert "head" not in json.loads(out(stores / "out.zarr", "--json", "--head", "0"))


def strict(text: str) -> Any:
    """JSON as every other language reads it: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_head_of_values_that_json_lacks(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "x.npz",
        nan=np.array([math.nan, -math.inf, 1.5]),
        few=np.array([[math.nan, 1], [math.inf, 2], [0, 0]], np.float16),
        many=np.full((3, 20), math.nan, np.float32),
        c=np.array([1j, 2, 3], np.complex64),
        cs=np.ones((3, 2), complex),
        flag=np.array([True, False, True]),
        text=np.array(["a\x1b[31m", '"', ""]),
        none=np.zeros((3, 0)),
        big=np.array([2**64 - 1, 0, 1], np.uint64),
    )
    bigconv.convert(tmp_path / "x.npz", tmp_path / "out.h5", workers=0)
    rows = strict(out(tmp_path / "out.h5", "--json", "--head", "3"))["head"]
    assert [row["nan"] for row in rows] == ["nan", "-inf", 1.5]
    assert rows[0]["few"] == ["nan", 1.0]
    assert (rows[0]["many"]["min"], rows[0]["many"]["shape"]) == ("nan", [20])
    assert rows[0]["c"] == "1j"
    assert rows[0]["flag"] is True
    assert rows[0]["text"] == "a\x1b[31m"
    assert rows[0]["none"] == []
    assert rows[0]["big"] == 2**64 - 1
    shown = out(tmp_path / "out.h5", "--head", "3")
    assert "\x1b" not in shown
    for word in ("nan: nan", "c: 1j", "text: 'a\\x1b[31m'", "many: float32[20] nan…nan", "big: 18446744073709551615"):
        assert word in shown


def test_json_of_names_that_no_encoding_has(stores: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9 \xe2\x98\x83.h5")
    path.write_bytes((stores / "out.h5").read_bytes())
    for encoding in ("ascii", "utf-8"):
        for more in ([], ["--json"]):
            result = subprocess.run(
                [sys.executable, "-c", "from bigconv.cli.app import main; main()", "inspect", path, *more],
                capture_output=True,
                env={**os.environ, "PYTHONIOENCODING": encoding},
                timeout=60,
            )
            assert (result.returncode, result.stderr) == (0, b"")
            assert result.stdout.startswith(b"{" if more else b"")
            if more:
                assert os.fsencode(json.loads(result.stdout)["path"]) == os.fsencode(path)


# -- people --------------------------------------------------------------------------------------------------------


def test_what_people_see(stores: Path) -> None:
    shown = out(stores / "out.h5")
    for word in ("hdf5", "5 rows", "image", "uint8", "3 × * × *", "chw", "label", "2 classes", "layout"):
        assert word in shown
    assert "label classes: cats (2), dogs (3)\n" in shown
    known = json.loads(out(stores / "out.h5", "--json"))
    assert known["content_digest"] in shown
    (label,) = (f for f in known["fields"] if f["name"] == "label")
    assert label["counts"] == [{"value": 0, "name": "cats", "count": 2}, {"value": 1, "name": "dogs", "count": 3}]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("width", ["60", "120"])
def test_lines_are_not_broken(stores: Path, suffix: str, width: str) -> None:
    """At any width the words are those of a wide terminal, and the digest can be copied."""
    path = stores / f"out{suffix}"
    wide, shown = out(path, "--head", "2", COLUMNS="500"), out(path, "--head", "2", COLUMNS=width)
    assert sorted(shown.split()) == sorted(wide.split())
    digest = json.loads(out(path, "--json"))["content_digest"]
    assert f"content digest {digest}" in shown.splitlines()
    table = [line for line in shown.splitlines()[1:] if line.startswith(("field", "image", "label  ", "   "))]
    assert len(table) >= 3
    assert all(len(line.rstrip()) <= int(width) for line in table)


def test_long_names_fold_and_nothing_else(make_store, tmp_path: Path) -> None:
    name = "a rather long name that doesn't end before the line does"
    schema = Schema((Field(name, "complex128", (3, 224, 224)), Field("[red]y", "float32"), Field("雪" * 30, "int8")))
    columns = {name: np.zeros((1, 3, 224, 224), complex), "[red]y": np.zeros(1, "f4"), "雪" * 30: np.zeros(1, "i1")}
    path = make_store(Block(schema, columns), ".mmap")
    shown = out(path, COLUMNS="60")
    for word in ("complex128", "3 × 224 × 224", "contiguous", "2.4 MB", "[red]y"):
        assert word in shown
    assert set(name.split()) <= set(shown.split())


def test_many_classes_are_counted(make_store) -> None:
    names = tuple(f"class{i}" for i in range(1000))
    schema = Schema((Field("label", "int64", (), "label", classes=names),))
    shown = out(make_store(Block(schema, {"label": np.zeros(3, np.int64)}), ".mmap"))
    assert "1,000 classes" in shown.replace("1000", "1,000")
    assert "class7" in shown
    assert "class8" not in shown
    assert len(shown) < 2000


def test_markup_and_control_characters_are_text(make_store, tmp_path: Path) -> None:
    schema = Schema((Field("[bold]x", "int64", (), "label", classes=("\x1b[31mred", "[/bold]", "\u202egnp.exe")),))
    path = make_store(Block(schema, {"[bold]x": np.zeros(2, np.int64)}), ".mmap", "[red]store")
    shown = out(path)
    for word in ("[bold]x", "\\x1b[31mred", "[/bold]", "\\u202egnp.exe", "[red]store.mmap"):
        assert word in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202a-\u202e]", shown)


def test_a_hostile_manifest_colours_nothing(make_store) -> None:
    """Layout, source and steps come from the manifest too."""
    from dataclasses import replace

    from bigconv.view.opening import open_store

    schema = Schema((Field("x", "uint8", (), layout="\x1b[2J[red]"),))
    path = make_store(Block(schema, {"x": np.zeros(2, np.uint8)}), ".mmap")
    evil = {"kind": "\x1b[2J[red]"}
    manifest = replace(open_store(path).manifest, source=evil, recipe={"steps": [{"step": "\x1b[2J[red]"}]})
    (path / "manifest.json").write_bytes(manifest.to_bytes())
    shown = out(path)
    assert "\x1b" not in shown
    assert shown.count("[red]") == 3


def test_an_empty_path_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("", ".", "x" * 300, "missing.h5"):
        assert isinstance(run(path).exception, bigconv.BigconvError)


def test_negative_head(stores: Path) -> None:
    assert run(stores / "out.h5", "--head", "-1").exit_code == 2


# -- verify --------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> Block:
    """2,500 rows are three canonical blocks where a field is ragged."""
    schema = Schema((Field("x", "uint8", (16,)), Field("t", "uint8", (None,)), Field("y", "int64")))
    rng = np.random.default_rng(0)
    lengths = np.full(2500, 12)
    ragged = Ragged(rng.integers(0, 256, lengths.sum(), np.uint8), np.concatenate([[0], np.cumsum(lengths)]))
    return Block(
        schema, {"x": rng.integers(0, 256, (2500, 16), np.uint8), "t": ragged, "y": rng.integers(0, 1 << 60, 2500)}
    )


def flip(path: Path, data: bytes) -> None:
    """Flip one bit of these bytes, wherever in the store's files they lie."""
    for file in [path] if path.is_file() else [path / name for name in fsio.files_below(path)]:
        raw = bytearray(file.read_bytes())
        at = raw.find(data)
        if at >= 0:
            assert raw.count(data) == 1
            raw[at + len(data) // 2] ^= 4
            file.write_bytes(raw)
            return
    raise AssertionError("the bytes are in no file")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("field", "row", "start", "stop"), [("x", 1500, 1024, 2048), ("t", 3, 0, 1024), ("y", 2499, 2048, 2500)]
)
def test_verify_names_field_and_rows(
    make_store, rows: Block, suffix: str, field: str, row: int, start: int, stop: int
) -> None:
    path = make_store(rows, suffix)
    flip(path, np.asarray(rows[field][row]).tobytes())
    result = run(path, "--verify")
    assert result.exit_code == 1
    assert f"field {field}, rows {start} to {stop - 1}: " in result.stdout
    assert "not verified: 1 finding" in result.stdout
    result = run(path, "--verify", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["verified"] is False
    assert [(f["field"], f["start"], f["stop"]) for f in document["findings"]] == [(field, start, stop)]
    assert document["findings"][0]["problem"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_verify_names_every_fault(make_store, rows: Block, suffix: str) -> None:
    path = make_store(rows, suffix)
    for field, row in (("x", 0), ("x", 1024), ("t", 2400), ("y", 7)):
        flip(path, np.asarray(rows[field][row]).tobytes())
    found = json.loads(run(path, "--verify", "--json").stdout)["findings"]
    expected = [("x", 0, 1024), ("x", 1024, 2048), ("t", 2048, 2500), ("y", 0, 1024)]
    assert [(f["field"], f["start"], f["stop"]) for f in found] == expected


def test_verify_in_its_own_process(stores: Path, warm: Warm) -> None:
    """Exit code 0, and with a flipped byte 1, as a CI job sees it."""
    whole = warm.command(["inspect", "--verify", stores / "out.h5"], stores)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert "verified" in whole.stdout
    broken = stores / "broken.h5"
    broken.write_bytes((stores / "out.h5").read_bytes())
    flip(broken, bigconv.open(stores / "out.h5")[4]["image"].tobytes()[:64])
    result = warm.command(["inspect", "--verify", broken], stores)
    assert (result.returncode, result.stderr) == (1, "")
    assert "field image, rows 0 to 4" in result.stdout


def test_many_findings_are_counted(stores: Path) -> None:
    """Twenty are listed; --json has them all."""
    from bigconv.cli.render import console
    from bigconv.cli.shown import show_findings
    from bigconv.view.report import Finding

    def show() -> None:
        show_findings(console(), [Finding("x", i, i + 1, "wrong") for i in range(25)])

    import io
    from contextlib import redirect_stdout

    with redirect_stdout(io.StringIO()) as text:
        show()
    assert text.getvalue().count("field x, rows") == 20
    assert "… and 5 more; --json lists them all" in text.getvalue()


# -- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1049, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (999_999, "1.0 MB"),
        (1_500_000_000, "1.5 GB"),
        (10**12, "1.0 TB"),
        (5 * 10**15, "5,000.0 TB"),
    ],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


def test_words() -> None:
    assert [plural(n, "row") for n in (0, 1, 2, 1234)] == ["0 rows", "1 row", "2 rows", "1,234 rows"]
    assert printable("a\x1b[31m\r\u2028\u202e\udcff\x85é☃\n") == "a\\x1b[31m\\r\\u2028\\u202e\\udcff\\x85é☃\n"


def test_a_sharded_directory_lists_its_parts(stores: Path, tmp_path: Path) -> None:
    """The first ones and the last, with the class that each holds, where it was cut by one."""
    bigconv.shard(stores / "out.h5", tmp_path / "by", by="label", workers=0)
    told = out(tmp_path / "by", COLUMNS="100")
    assert re.search(r"^part +rows +size +label *$", told, re.MULTILINE)
    assert re.search(r"^part-00000-\S+ +2 .* cats *$", told, re.MULTILINE)
    assert re.search(r"^part-00001-\S+ +3 .* dogs *$", told, re.MULTILINE)
    np.save(tmp_path / "x.npy", np.arange(20))
    bigconv.convert(tmp_path / "x.npy", tmp_path / "many", shards=20, workers=0)
    told = out(tmp_path / "many", COLUMNS="100")
    assert re.search(r"part-00006-\S+ +1 .*\n… 12 more *\npart-00019-", told)
