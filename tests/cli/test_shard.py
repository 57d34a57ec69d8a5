"""`bigconv shard` as people type it: results, JSON, refusals, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

import bigconv
from bigconv.cli.app import app
from bigconv.errors import BigconvError, UsageError


@pytest.fixture
def store(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.arange(3000).reshape(1000, 3))
    np.save(tmp_path / "label.npy", np.arange(1000) % 4)
    bigconv.convert([tmp_path / "x.npy", tmp_path / "label.npy"], tmp_path / "all.h5", workers=0)
    return tmp_path / "all.h5"


def run(*args: object, **env: str) -> Result:
    return CliRunner().invoke(app, [*map(str, args)], env=env)


def done(*args: object, **env: str) -> str:
    result = run(*args, "--workers", 0, **env)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def told(*args: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(done(*args, "--json"))
    return document


def test_shard_and_merge(store: Path, tmp_path: Path) -> None:
    out = done("shard", store, tmp_path / "parts", "--rows", 300)
    assert "1,000 rows in 4 parts, hdf5" in out
    document = told("shard", store, tmp_path / "other", "--shards", 3, "--to", "zarr")
    assert document["status"] == "done"
    dataset = document["datasets"][""]
    assert [part["rows"] for part in dataset["parts"]] == [333, 333, 334]
    assert dataset["content_digest"] in out
    assert all((tmp_path / "other" / part["name"]).exists() for part in dataset["parts"])
    assert dataset["content_digest"] in done("shard", tmp_path / "parts", tmp_path / "one.lmdb", "--shards", 1)
    assert len(bigconv.open(tmp_path / "one.lmdb")) == 1000


def test_again_is_unchanged(store: Path, tmp_path: Path) -> None:
    done("shard", store, tmp_path / "parts", "--rows", 300)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "parts").iterdir()}
    assert "unchanged, skipped" in done("shard", store, tmp_path / "parts", "--rows", 300)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "parts").iterdir()} == before


def test_split(store: Path, tmp_path: Path) -> None:
    split = ("--split", "train=0.9,val=0.1", "--stratify", "label", "--shuffle", "--seed", 3)
    document = told("shard", store, tmp_path / "s", *split)
    assert {name: d["rows"] for name, d in document["datasets"].items()} == {"train": 900, "val": 100}
    labels = np.asarray(bigconv.open(tmp_path / "s" / "val")[:]["label"])
    assert np.bincount(labels).tolist() == [25, 25, 25, 25]


def test_dry_run_writes_nothing(store: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    out = done("shard", store, tmp_path / "parts", "--rows", 300, "--dry-run")
    assert "would be 1,000 rows in 4 parts" in out
    document = told("shard", store, tmp_path / "parts", "--rows", 300, "--dry-run")
    assert document["datasets"][0]["parts"] == 4
    assert sorted(tmp_path.iterdir()) == before


def test_convert_into_parts(tmp_path: Path, store: Path) -> None:
    document = told("convert", tmp_path / "x.npy", tmp_path / "parts", "--shards", 5, "--to", "memmap")
    assert (document["parts"], document["rows"]) == (5, 1000)
    out = done("convert", tmp_path / "x.npy", tmp_path / "sized", "--shard-size", "4kB")
    assert "1,000 rows in 7 parts" in out
    assert "StoreDataset" in out


def test_inspect_and_verify(store: Path, tmp_path: Path) -> None:
    done("shard", store, tmp_path / "parts", "--rows", 300)
    shown = json.loads(run("inspect", tmp_path / "parts", "--json", "--verify").stdout)
    assert (shown["verified"], shown["findings"], len(shown["parts"])) == (True, [], 4)
    row = json.loads(run("inspect", tmp_path / "parts", "--json", "--row", 650).stdout)
    assert row["made_from"]["row"] == 650
    part = next((tmp_path / "parts").glob("part-00002*"))
    assert row["made_from"]["part"] == part.name
    part.unlink()
    result = run("inspect", tmp_path / "parts", "--verify")
    assert result.exit_code == 1
    assert part.name in result.stdout
    result = run("inspect", tmp_path / "parts", "--verify", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["findings"][0]["start"] == 600


def test_drop_and_repair(store: Path, tmp_path: Path) -> None:
    done("shard", store, tmp_path / "parts", "--rows", 300)
    part = next((tmp_path / "parts").glob("part-00002*"))
    whole = part.read_bytes()
    part.unlink()
    assert f"made again: {part.name}" in done("shard", tmp_path / "parts", "--repair")  # the store is found beside it
    assert part.read_bytes() == whole
    assert "every part is whole" in done("shard", tmp_path / "parts", "--repair")
    document = told("shard", tmp_path / "parts", "--drop", 2)
    assert document["dropped"] == [part.name]
    assert document["datasets"][""]["rows"] == 700


def test_a_change_in_place_takes_no_option_of_a_new_destination(store: Path, tmp_path: Path) -> None:
    done("shard", store, tmp_path / "p", "--rows", 300)
    before = sorted(p.name for p in (tmp_path / "p").iterdir())
    for option in (("--dry-run",), ("--rows", 30), ("--to", "zarr"), ("--shuffle",), ("--overwrite",), ("--restart",)):
        result = run("shard", tmp_path / "p", "--drop", 2, *option)
        assert isinstance(result.exception, UsageError), option
        assert str(result.exception).startswith(f"{option[0]}: for a new DEST")
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == before


def test_fields_come_and_go(store: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", np.arange(1000.0))
    bigconv.convert(tmp_path / "z.npy", tmp_path / "z.h5", workers=0)
    done("shard", store, tmp_path / "p", "--rows", 300, "--to", "zarr")
    out = done("shard", tmp_path / "p", "--add-field", tmp_path / "z.h5", "--drop-field", "x")
    assert "dropped fields: x\nadded fields: z\n" in out
    assert "1,000 rows in 4 parts, zarr" in out
    document = told("shard", tmp_path / "p", "--drop-field", "label")
    assert (document["dropped_fields"], document["added_fields"]) == (["label"], [])
    assert [f["name"] for f in document["datasets"][""]["fields"]] == ["z"]
    refused = run("shard", store, "--drop-field", "x")
    assert refused.exit_code != 0
    assert isinstance(refused.exception, BigconvError)
    assert "hdf5 keeps all fields in one file" in str(refused.exception)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("STORE",), "needs a DEST"),
        (("STORE", "DEST", "--size", "much"), "expected bytes such as 256MB"),
        (("STORE", "DEST", "--rows", "3", "--size", "1MB"), "exclude one another"),
        (("STORE", "DEST", "--split", "a=0.5,b=0.4"), "add up to 1"),
        (("STORE", "DEST", "--by", "lable"), "Did you mean 'label'"),
        (("STORE", "DEST.h5", "--rows", "3"), "folder"),
        (("STORE", "DEST", "--seed", "3"), "--seed says how --shuffle and --split draw"),
        (
            ("STORE", "--drop-field", "x", "--seed", "3", "--shuffle", "--to", "zarr"),
            "--shuffle, --seed, --to: for a new DEST",
        ),
        (("STORE", "DEST", "--drop", "1"), "name it alone"),
        (("STORE", "--drop", "1"), "not a sharded directory"),
        (("gone", "DEST"), "no such file"),
    ],
)
def test_refusals(store: Path, tmp_path: Path, args: tuple[str, ...], words: str) -> None:
    typed = [str(store) if a == "STORE" else str(tmp_path / a) if a.startswith("DEST") else a for a in args]
    result = run("shard", *typed)
    assert isinstance(result.exception, BigconvError), result.output
    assert words in str(result.exception)
    assert result.exception.exit_code == 2
    assert len(str(result.exception).splitlines()) <= 3
    assert not any(tmp_path.glob("DEST*"))
