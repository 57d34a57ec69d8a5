"""Every command that takes a path, with URLs: what it does, and that it speaks of the URL, never of the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import bigconv
from bigconv.cli.app import app
from bigconv.errors import BigconvError, InputError, NotAStore, OutputError, UsageError
from tests.remote._given import ROWS, parts, raw, system
from tests.remote._proxy import Proxy

# what is the same for every storage runs on one
IN_MEMORY = pytest.mark.parametrize("root", ["memory"], indirect=True)
ON_S3 = pytest.mark.parametrize("root", ["s3"], indirect=True)


@pytest.fixture(params=["memory", "s3"])
def root(request: pytest.FixtureRequest) -> str:
    """A place for what a test writes."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    else:
        import fsspec

        fsspec.filesystem("memory").store.clear()
    return f"{request.param}://bucket"


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [*map(str, args)], env={"COLUMNS": "200"})


def done(cache: Path, *args: object) -> str:
    result = run(*args)
    assert result.exit_code == 0, (result.output, result.exception)
    assert str(cache) not in result.output
    return result.stdout


def refused(cache: Path, *args: object) -> BigconvError:
    error = run(*args).exception
    assert isinstance(error, BigconvError)
    assert str(cache) not in str(error)
    return error


def told(cache: Path, *args: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(done(cache, *args, "--json"))
    return document


def pictures(folder: Path) -> Path:
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder / label / f"{i}.png")
    return folder


def upload(local: Path, url: str) -> str:
    """A folder or file as it is, by fsspec itself."""
    import fsspec

    scheme, key = url.split("://")
    target = system() if scheme == "s3" else fsspec.filesystem(scheme)
    for file in [local] if local.is_file() else [p for p in local.rglob("*") if p.is_file()]:
        target.pipe_file(f"{key}/{file.relative_to(local)}".removesuffix("/."), file.read_bytes())
    return url


def test_convert(root: str, tmp_path: Path, cache: Path) -> None:
    source = upload(pictures(tmp_path / "raw"), f"{root}/raw")
    dest = f"{root}/out.h5"
    out = done(cache, "convert", source, dest, "--workers", 0)
    assert f"{dest}: 6 rows" in out
    assert f"StoreDataset('{dest}', fields=('image', 'label'))" in out
    assert f"{dest}: unchanged, skipped" in done(cache, "convert", source, dest, "--workers", 0)
    document = told(cache, "convert", source, dest, "--workers", 0)
    assert (document["dest"], document["status"]) == (dest, "unchanged")
    error = refused(cache, "convert", source, dest, "--resize", 4, "--workers", 0)
    assert isinstance(error, OutputError)
    assert str(error).startswith(f"{dest}: exists already, made from something else")
    done(cache, "convert", source, dest, "--resize", 4, "--overwrite", "--workers", 0)
    assert bigconv.open(dest)[0]["image"].shape == (3, 4, 4)
    assert bigconv.open(dest).schema["label"].classes == ("a", "b")
    done(cache, "convert", dest, tmp_path / "back.zarr", "--workers", 0)
    assert len(bigconv.open(tmp_path / "back.zarr")) == 6


def test_convert_writes_the_same_bytes_from_a_url(root: str, tmp_path: Path, cache: Path) -> None:
    """As from a local folder of that name, sizes and times."""
    done(cache, "convert", raw(tmp_path / "here"), tmp_path / "one.h5", "--workers", 0)
    source = upload(raw(tmp_path / "here"), f"{root}/x.npy")
    done(cache, "convert", source, tmp_path / "two.h5", "--workers", 0)
    one, two = (bigconv.open(tmp_path / f"{name}.h5").stores[0].manifest for name in ("one", "two"))
    assert one.content_digest == two.content_digest
    assert dict(one.recipe) == dict(two.recipe)


@IN_MEMORY
def test_dry_run(root: str, tmp_path: Path, cache: Path) -> None:
    out = done(cache, "convert", raw(tmp_path), f"{root}/out.h5", "--workers", 0, "--dry-run")
    assert f"{root}/out.h5 would hold {ROWS} rows from" in out
    assert told(cache, "convert", raw(tmp_path), f"{root}/p", "--shards", 2, "--dry-run")["dest"] == f"{root}/p"
    assert refused(cache, "inspect", f"{root}/out.h5")


@ON_S3
def test_shard(root: str, tmp_path: Path, cache: Path) -> None:
    train = f"{root}/train"
    assert f"{train}: {ROWS} rows in 4 parts" in done(
        cache, "convert", raw(tmp_path), train, "--shards", 4, "--workers", 0
    )
    out = done(cache, "shard", train, f"{root}/sets", "--split", "a=0.5,b=0.5", "--shuffle", "--workers", 0)
    assert f"{root}/sets/a: {ROWS // 2} rows" in out
    again = done(cache, "shard", train, f"{root}/sets", "--split", "a=0.5,b=0.5", "--shuffle", "--workers", 0)
    assert f"{root}/sets/b: unchanged, skipped" in again
    done(cache, "shard", f"{root}/sets/a", f"{root}/sets/b", f"{root}/all.mmap", "--workers", 0)
    values = bigconv.open(f"{root}/all.mmap").take(np.arange(ROWS))["x"][:, 0]
    assert sorted(values.tolist()) == list(range(ROWS))
    assert told(cache, "shard", train, f"{root}/q", "--rows", 100, "--dry-run")["dest"] == f"{root}/q"
    assert "must be local" in str(refused(cache, "shard", train, "--drop", 1))
    assert "must be local" in str(refused(cache, "shard", train, "--repair"))


@ON_S3
def test_inspect(root: str, tmp_path: Path, cache: Path) -> None:
    train = upload(parts(tmp_path), f"{root}/train")
    assert train in done(cache, "inspect", train)
    document = told(cache, "inspect", train, "--verify", "--head", 1)
    assert (document["path"], document["rows"], document["verified"]) == (train, ROWS, True)
    source = upload(pictures(tmp_path / "raw"), f"{root}/raw")
    assert f"bigconv convert {source}" in done(cache, "inspect", source)
    one = f"{root}/one.lmdb"
    done(cache, "convert", train, one, "--workers", 0)
    assert told(cache, "inspect", one, "--diff", train)["diff"]["same"]
    assert told(cache, "inspect", one)["path"] == one


@IN_MEMORY
def test_bench(root: str, tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("torch")
    store = f"{root}/out.h5"
    done(cache, "convert", raw(tmp_path), store, "--workers", 0)
    document = told(cache, "bench", store, "--workers", 0, "--seconds", 0.2)
    assert store in document["recommendation"]["snippet"]


@IN_MEMORY
@pytest.mark.parametrize("command", ["convert", "shard", "inspect", "bench"])
def test_what_is_not_there(root: str, tmp_path: Path, cache: Path, command: str) -> None:
    dest = [tmp_path / "out.h5"] if command in ("convert", "shard") else []
    error = refused(cache, command, f"{root}/none.h5", *dest)
    assert isinstance(error, (InputError, NotAStore))
    assert str(error).startswith(f"{root}/none.h5: no such file or folder")


@pytest.mark.parametrize("command", ["convert", "shard", "inspect", "bench"])
def test_an_unknown_scheme(tmp_path: Path, cache: Path, command: str) -> None:
    dest = [tmp_path / "out.h5"] if command in ("convert", "shard") else []
    error = refused(cache, command, "https://host/none.h5", *dest)
    assert isinstance(error, UsageError)
    assert str(error).startswith("https://host/none.h5: no store is read from https://. Use one of s3://")


def test_files_at_a_url_are_local(tmp_path: Path, cache: Path) -> None:
    """`file://` is another way to write a path."""
    done(cache, "convert", f"file://{raw(tmp_path)}", f"file://{tmp_path}/out.h5", "--workers", 0)
    assert bigconv.open(f"file://{tmp_path}/out.h5")[1]["x"][0] == 1
    done(cache, "shard", f"file://{tmp_path}/out.h5", f"file://{tmp_path}/parts", "--shards", 2, "--workers", 0)
    assert told(cache, "inspect", f"file://{tmp_path}/parts")["rows"] == ROWS
    assert not cache.exists()


@IN_MEMORY
def test_a_source_and_destination_in_one_another(root: str, tmp_path: Path, cache: Path) -> None:
    source = upload(pictures(tmp_path / "raw"), f"{root}/raw")
    for dest in (source, f"{source}/out.h5", f"{source}/sub/out.h5"):
        assert "the source" in str(refused(cache, "convert", source, dest, "--to", "hdf5"))
    assert "the source" in str(refused(cache, "convert", f"{source}/a", source, "--shards", 1))
    done(cache, "convert", source, f"{source}.h5", "--workers", 0)


@IN_MEMORY
def test_raw_files_larger_than_the_cache(
    root: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = upload(raw(tmp_path), f"{root}/x.npy")
    monkeypatch.setenv("BIGCONV_CACHE_BYTES", "1000")
    error = refused(cache, "convert", source, tmp_path / "out.h5")
    assert "more than the cache may hold (1000)" in str(error)


def test_raw_files_that_are_something_else(s3: Proxy, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "x.unknown").write_bytes(b"?")
    source = upload(tmp_path / "odd", "s3://bucket/odd")
    assert str(refused(cache, "convert", source, tmp_path / "out.h5")).startswith(f"{source}: nothing in it")
