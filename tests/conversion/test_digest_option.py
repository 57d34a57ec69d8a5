"""`--digest sha256`: every digest of a store or sharded directory is SHA-256, and stays so whatever becomes of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import bigconv
from bigconv import dataset, fsio
from bigconv.cli.app import app
from bigconv.conversion import build
from bigconv.conversion.plan import Plan
from bigconv.conversion.request import Request
from bigconv.conversion.run import Policy, execute
from bigconv.conversion.task import run_span
from bigconv.dataset import DatasetManifest
from bigconv.digest import Digester
from bigconv.errors import IncompleteStore, Interrupted, OutputError, StoreError, UsageError
from bigconv.inspection.diff import Diff, diff
from bigconv.inspection.subject import subject
from bigconv.manifest import Manifest, sealed
from bigconv.sources import array_folder
from bigconv.view.opening import open_store
from bigconv.view.report import verify
from bigconv.view.table import StoreView

FILES = 20


def arrays(folder: Path, count: int = FILES, first: int = 0) -> Path:
    """A folder of arrays of many shapes: a ragged field with shapes."""
    rng = np.random.default_rng(first)
    folder.mkdir(exist_ok=True)
    for i in range(first, first + count):
        np.save(folder / f"{i:03}.npy", rng.integers(0, 255, (int(rng.integers(0, 9)), 3 + i % 2)).astype(np.uint16))
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return arrays(tmp_path / "raw")


def convert(raw: Path, dest: Path, **options: Any) -> Manifest:
    return bigconv.convert(raw, dest, **{"workers": 0, "digest": "sha256", **options})


def is_sha256(path: Path) -> None:
    """Whole, and no digest of rows or files is another's."""
    opened = open_store(path)
    manifest = opened.manifest
    assert manifest.digests.algorithm == "sha256"
    assert manifest.recipe["digest"] == "sha256"
    for table in (manifest.digests.tables[name] for name in manifest.schema.names):
        assert len(table) == 32 * manifest.digests.blocks
    for name, (size, digest) in manifest.files.items():
        assert re.fullmatch("[0-9a-f]{64}", digest)
        if name != ".":
            assert (path / name).stat().st_size == size
            assert hashlib.sha256((path / name).read_bytes()).hexdigest() == digest
    assert verify(opened) == []
    with StoreView([path]) as view:
        digester = Digester(manifest.schema, algorithm="sha256")
        for block in view.blocks():
            digester.update(block)
    assert digester.finish().content(manifest.schema) == manifest.content_digest
    if isinstance(manifest, DatasetManifest):
        for part in manifest.parts:
            is_sha256(path / part.name)


def contents(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {".": path.read_bytes()}
    return {name: (path / name).read_bytes() for name in fsio.files_below(path)}


def test_one_content_digest_in_all_stores(raw: Path, tmp_path: Path, suffix: str) -> None:
    """The same in each store and in a sharded directory, another than that of xxh3; plain by default."""
    found = convert(raw, tmp_path / f"a{suffix}").content_digest
    is_sha256(tmp_path / f"a{suffix}")
    sharded = convert(raw, tmp_path / "parts", shards=3, to=open_store(tmp_path / f"a{suffix}").store.name)
    assert sharded.content_digest == found
    is_sha256(tmp_path / "parts")
    assert convert(raw, tmp_path / "plain.mmap", digest=None) == convert(raw, tmp_path / "xxh3.mmap", digest="xxh3")
    plain = open_store(tmp_path / "plain.mmap").manifest
    assert "digest" not in plain.recipe
    assert plain.content_digest != found
    assert convert(raw, tmp_path / "b.mmap").content_digest == found


def test_verify_finds_every_flip(tmp_path: Path, suffix: str) -> None:
    """In rows, headers, padding and provenance: up to 150 places of each file."""
    path = tmp_path / f"a{suffix}"
    convert(arrays(tmp_path / "raw", 4), path)
    rng = np.random.default_rng(0)
    for file in [path] if path.is_file() else [path / name for name in contents(path)]:
        whole = file.read_bytes()
        for at in rng.choice(len(whole), min(150, len(whole)), replace=False).tolist():
            changed = bytearray(whole)
            changed[at] ^= 1 << int(rng.integers(8))
            file.write_bytes(changed)
            with contextlib.suppress(StoreError):  # refused
                assert verify(open_store(path)), (file.name, at)
        file.write_bytes(whole)
    assert verify(open_store(path)) == []


def test_resumed_as_if_never_stopped(raw: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(build, "CHECKPOINT_SHARE", 1e9)
    monkeypatch.setattr(array_folder, "SPAN_FILES", 6)
    whole, dest = tmp_path / f"whole{suffix}", tmp_path / "again" / f"whole{suffix}"
    dest.parent.mkdir()
    convert(raw, whole)
    plan = Request((raw,), dest, digest="sha256", policy=Policy(0)).plan()[0]
    stop_at(plan, dest, 2)
    with pytest.raises(OutputError, match="digest"):  # what was begun is another conversion
        bigconv.convert(raw, dest, workers=0)
    outcome = execute(plan, dest, Policy(0))
    assert outcome.resumed_rows == 12
    assert contents(dest) == contents(whole)


def stop_at(plan: Plan, dest: Path, spans: int) -> None:
    with pytest.raises(Interrupted), build.building(dest, plan) as one:
        for span in plan.spans[:spans]:
            for item in run_span(plan.work, span):
                one.append(item)
            one.span_done()
        raise Interrupted("half-way")


@pytest.mark.parametrize("name", ["a.mmap", "a.h5", "a.lmdb", "a.zarr", "parts"])
def test_append_keeps_the_algorithm(raw: Path, tmp_path: Path, name: str) -> None:
    """Whether it is named again or not; another one is refused."""
    dest = tmp_path / name
    shards = 2 if name == "parts" else None
    convert(raw, dest, shards=shards)
    arrays(raw, 7, FILES)
    with pytest.raises(OutputError, match="another recipe"):
        convert(raw, dest, append=True, digest="xxh3")
    convert(raw, dest, append=True, digest=None)
    arrays(raw, 5, FILES + 7)
    manifest = convert(raw, dest, append=True)
    assert manifest.rows == FILES + 12
    is_sha256(dest)
    assert manifest.content_digest == convert(raw, tmp_path / "anew.mmap").content_digest


def test_rejects_retried_keep_the_algorithm(raw: Path, tmp_path: Path) -> None:
    good = (raw / "007.npy").read_bytes()
    (raw / "007.npy").write_bytes(b"\x93NUMPY broken")
    convert(raw, tmp_path / "a.h5", max_rejects=1)
    (raw / "007.npy").write_bytes(good)
    manifest = convert(raw, tmp_path / "a.h5", retry_rejects=True, digest=None)
    is_sha256(tmp_path / "a.h5")
    assert manifest.content_digest == convert(raw, tmp_path / "anew.mmap").content_digest


def test_what_is_made_of_a_store_keeps_it(raw: Path, tmp_path: Path) -> None:
    """Unless something else is asked for; stores of both kinds make one of SHA-256."""
    first = convert(raw, tmp_path / "a.mmap").content_digest
    assert convert(tmp_path / "a.mmap", tmp_path / "b.h5", digest=None).content_digest == first
    parts = bigconv.shard(tmp_path / "b.h5", tmp_path / "parts", rows=8, workers=0)
    assert isinstance(parts, Manifest)
    assert parts.content_digest == first
    is_sha256(tmp_path / "parts")
    plain = convert(raw, tmp_path / "plain.mmap", digest=None).content_digest
    assert convert(tmp_path / "parts", tmp_path / "c.zarr", digest="xxh3").content_digest == plain
    bigconv.shard([tmp_path / "a.mmap", tmp_path / "plain.mmap"], tmp_path / "both.h5", workers=0)
    is_sha256(tmp_path / "both.h5")


def test_parts_dropped_and_mended(raw: Path, tmp_path: Path) -> None:
    dest = tmp_path / "parts"
    before = convert(raw, dest, shards=4)
    assert isinstance(before, DatasetManifest)
    kept = contents(dest)
    file = next((dest / before.parts[1].name).parent.glob(f"{before.parts[1].name}*"))
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    (dest / dataset.digests_name(before.content_digest)).unlink()
    bigconv.shard(dest, repair=True, source=raw, workers=0)
    assert contents(dest) == kept
    bigconv.shard(dest, drop="2", workers=0)
    is_sha256(dest)


@pytest.mark.parametrize("name", ["a.zarr", "parts"])
def test_fields_added_and_dropped(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "x.npz", x=np.arange(40).reshape(20, 2), y=np.arange(20.0))
    np.savez(tmp_path / "z.npz", z=np.arange(20) * 2)
    dest = tmp_path / name
    shards = 3 if name == "parts" else None
    convert(tmp_path / "x.npz", dest, shards=shards, to="zarr")
    convert(tmp_path / "z.npz", tmp_path / "z.mmap", digest="xxh3")
    bigconv.shard(dest, drop_field="y", add_field=tmp_path / "z.mmap", workers=0)
    is_sha256(dest)
    assert bigconv.open(dest)[3]["z"] == 6


def test_a_recipe_brings_it(raw: Path, tmp_path: Path) -> None:
    convert(raw, tmp_path / "a.mmap")
    assert convert(raw, tmp_path / "b.h5", digest=None, recipe=tmp_path / "a.mmap").digests.algorithm == "sha256"
    assert convert(raw, tmp_path / "c.h5", digest="xxh3", recipe=tmp_path / "a.mmap").digests.algorithm == "xxh3-128"


def compared(ours: Path, theirs: Path) -> Diff:
    return diff(subject([ours]).side(), subject([theirs]).side())


def test_compared_with_a_store_of_the_other_kind(raw: Path, tmp_path: Path) -> None:
    """`--diff` holds rows against rows, not digests against digests that can't be equal."""
    convert(raw, tmp_path / "a.mmap")
    convert(raw, tmp_path / "b.h5", digest="xxh3")
    assert compared(tmp_path / "a.mmap", tmp_path / "b.h5").same
    assert compared(tmp_path / "b.h5", tmp_path / "a.mmap").same
    arrays(raw, 1, FILES - 1)
    convert(raw, tmp_path / "c.h5", digest="xxh3")
    assert not compared(tmp_path / "a.mmap", tmp_path / "c.h5").same


def test_a_claim_of_another_algorithm_is_refused(raw: Path, tmp_path: Path) -> None:
    """The name of the algorithm is part of the content digest, so it can't be exchanged for a weaker one."""
    body = json.loads(convert(raw, tmp_path / "a.mmap").to_bytes())
    for name in ("xxh3-128", "md5", None, ["sha256"]):
        changed = {k: v for k, v in body.items() if k != "checksum"} | {
            "digests": {**body["digests"], "algorithm": name}
        }
        with pytest.raises(IncompleteStore):
            Manifest.from_bytes(sealed(changed), "here")


def test_parts_of_another_with_a_list_that_fits(raw: Path, tmp_path: Path) -> None:
    """Whoever exchanges a part can list it too; the content digest still is of the rows that were there."""
    dest, other = tmp_path / "parts", tmp_path / "other"
    manifest = convert(raw, dest, shards=3)
    changed = np.load(raw / "000.npy") + 1
    np.save(raw / "000.npy", changed)
    forged = convert(raw, other, shards=3, to="hdf5")
    assert isinstance(manifest, DatasetManifest)
    assert isinstance(forged, DatasetManifest)
    (dest / manifest.parts[0].name).unlink()
    shutil.copy(other / forged.parts[0].name, dest)
    (dest / "manifest.json").write_bytes(replace(manifest, parts=(forged.parts[0], *manifest.parts[1:])).to_bytes())
    opened = open_store(dest)
    assert opened.manifest.content_digest == manifest.content_digest
    assert [(f.field, f.start) for f in verify(opened)] == [("array", 0)]


def test_the_command_line(raw: Path, tmp_path: Path) -> None:
    def run(*words: object) -> Any:
        return CliRunner().invoke(app, [str(word) for word in words])

    dest = tmp_path / "a.h5"
    assert run("convert", raw, dest, "--digest", "sha256", "--workers", 0, "-q").exit_code == 0
    assert "unchanged" in run("convert", raw, dest, "--digest", "sha256", "--workers", 0).output
    told = json.loads(run("inspect", dest, "--json", "--verify").stdout)
    assert (told["digests"], told["verified"]) == ("sha256", True)
    assert "digests sha256" in run("inspect", dest).stdout
    assert run("shard", dest, tmp_path / "parts", "--rows", 7, "--digest", "xxh3", "-q").exit_code == 0
    assert open_store(tmp_path / "parts").manifest.digests.algorithm == "xxh3-128"
    with pytest.raises(UsageError, match="unknown digest 'md5'"):
        convert(raw, tmp_path / "b.h5", digest="md5")
