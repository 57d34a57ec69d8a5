"""Sharded directories: the same rows as one store, in any format, however they are cut, killed, spoilt or mended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import bigconv
from bigconv import dataset, fsio, registry
from bigconv.block import Block
from bigconv.cli.app import app
from bigconv.conversion import parts_run
from bigconv.conversion.build import NOTES
from bigconv.conversion.request import Request
from bigconv.conversion.run import Policy
from bigconv.dataset import DatasetManifest
from bigconv.errors import BigconvError, FindingsError, IncompleteStore, InputError, OutputError, UsageError
from bigconv.inspection.unfinished import unfinished
from bigconv.schema import Field, Schema
from bigconv.testing import cases
from bigconv.testing.given import write
from bigconv.view.opening import open_parts, open_store
from bigconv.view.report import verify

SCHEMA = Schema(
    (
        Field("x", "uint8", (3, 5)),
        Field("tokens", "uint16", (None,), "tokens"),
        Field("sizes", "float32", (None, None)),
        Field("label", "int64", (), "label", classes=("a", "b", "c")),
    )
)
ROWS = 2_300  # more than two canonical blocks of ragged rows, and no multiple


def rows_of(seed: int = 3, rows: int = ROWS) -> Block:
    block = cases.block(SCHEMA, rows, seed)
    label = np.random.default_rng(seed).integers(0, 3, rows)
    return Block(SCHEMA, {**block.columns, "label": label})


BLOCK = rows_of()


def put(path: Path, block: Block) -> Path:
    write(path, registry.load("store", registry.store_for(path))(), block, 500)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("store") / "all.mmap", BLOCK)


def contents(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in fsio.files_below(path)}


def sharded(store: Path, dest: Path | None, **options: Any) -> DatasetManifest:
    manifest = bigconv.shard(store, dest, **{"workers": 0, **options})
    assert isinstance(manifest, DatasetManifest)
    return manifest


def images(folder: Path, count: int, first: int = 0) -> Path:
    rng = np.random.default_rng(first)
    for i in range(first, first + count):
        place = folder / f"class{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 9, 3), np.uint8)).save(place / f"{i:04}.png")
    return folder


# -- the same rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["memmap", "hdf5", "lmdb", "zarr"])
def test_shard_then_merge_gives_the_same_digest(store: Path, tmp_path: Path, to: str) -> None:
    """Parts that cut canonical blocks, fixed and ragged fields, each format; every part opens on its own."""
    whole = open_store(store).manifest.content_digest
    manifest = sharded(store, tmp_path / "parts", rows=700, to=to)
    assert [part.rows for part in manifest.parts] == [700, 700, 700, 200]
    assert manifest.content_digest == whole
    opened = open_store(tmp_path / "parts")
    assert verify(opened) == []
    assert cases.same_block(bigconv.open(tmp_path / "parts").take(np.arange(ROWS)), BLOCK)
    for number, part in enumerate(manifest.parts):
        alone = open_store(tmp_path / "parts" / part.name)
        assert (alone.manifest.store, alone.manifest.rows) == (to, part.rows)
        assert cases.same_block(bigconv.open(alone.path)[:], BLOCK.slice(700 * number, 700 * number + part.rows))
    back = bigconv.shard(tmp_path / "parts", tmp_path / "back.h5", workers=0)
    assert isinstance(back, bigconv.Manifest)
    assert back.content_digest == whole


@pytest.mark.parametrize(
    "cut", [{"shards": 1}, {"shards": 7}, {"rows": 1024}, {"size": "20kB"}, {"rows": 10_000}], ids=str
)
def test_any_cut_has_the_same_digest(store: Path, tmp_path: Path, cut: dict[str, Any]) -> None:
    manifest = sharded(store, tmp_path / "parts", **cut)
    assert manifest.content_digest == open_store(store).manifest.content_digest
    assert manifest.digests.content(manifest.schema) == manifest.content_digest
    rows = [part.rows for part in manifest.parts]
    assert sum(rows) == ROWS
    if "shards" in cut:
        assert len(rows) == cut["shards"]
        assert max(rows) - min(rows) <= 1
    if "size" in cut:
        held = [
            sum(c.nbytes for c in (b["x"], b["tokens"].values, b["sizes"].values, b["label"]))  # type: ignore[union-attr]
            for b in (bigconv.open(tmp_path / "parts" / p.name)[:] for p in manifest.parts)
        ]
        assert max(held) <= 20_000
        assert min(held[:-1]) > 19_000


def test_a_dataset_is_taken_wherever_a_store_is(store: Path, tmp_path: Path) -> None:
    """open, convert, shard again, several at once, beside a store."""
    sharded(store, tmp_path / "parts", rows=600, to="zarr")
    whole = open_store(store).manifest.content_digest
    assert bigconv.convert(tmp_path / "parts", tmp_path / "one.lmdb", workers=0).content_digest == whole
    assert sharded(tmp_path / "parts", tmp_path / "again", rows=999, to="hdf5").content_digest == whole
    view = bigconv.open([tmp_path / "parts", store, tmp_path / "again"])
    assert len(view) == 3 * ROWS
    order = np.random.default_rng(0).permutation(3 * ROWS)
    three = Block.concat([BLOCK, BLOCK, BLOCK])
    assert cases.same_block(view.take(order), three.take(order))
    assert view.root_runs == [[600, 600, 600, 500], [ROWS], [999, 999, 302]]
    assert len(view.stores) == 8
    runs = list(view.blocks(1500, 4000, 300))
    assert cases.same_block(Block.concat(runs), three.slice(1500, 4000))


# -- converting straight into parts --------------------------------------------------------------------------------


def test_convert_into_parts(tmp_path: Path) -> None:
    """Any number of workers, the same bytes; the digest of one store; each part knows its own files."""
    raw = images(tmp_path / "raw", 40)
    whole = bigconv.convert(raw, tmp_path / "one.h5", workers=0)
    manifest = bigconv.convert(raw, tmp_path / "a", shards=6, workers=0)
    bigconv.convert(raw, tmp_path / "b", shards=6, workers=2)
    assert isinstance(manifest, DatasetManifest)
    assert manifest.content_digest == whole.content_digest
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not list(tmp_path.glob("*.partial"))
    from bigconv.view.report import whence

    names = sorted(str(p.relative_to(raw)) for p in raw.rglob("*.png"))
    opened = open_store(tmp_path / "a")
    assert [whence(opened, i)["file"] for i in range(40)] == names  # type: ignore[index]
    again = bigconv.convert(raw, tmp_path / "a", shards=6, workers=0)
    assert again.content_digest == manifest.content_digest
    with pytest.raises(OutputError, match="shards"):
        bigconv.convert(raw, tmp_path / "a", shards=5, workers=0)


def test_rejects_shift_rows_and_nothing_is_lost(tmp_path: Path) -> None:
    """Bad files in early parts: later parts begin elsewhere than was thought. The digest is still that of one store."""
    raw = images(tmp_path / "raw", 60)
    for bad in sorted(raw.rglob("*.png"))[3:40:9]:
        bad.write_bytes(b"no picture")
    with pytest.raises(FindingsError, match="5 of 60"):
        bigconv.convert(raw, tmp_path / "parts", shards=7, workers=0)
    assert not (tmp_path / "parts").exists()
    listed = [json.loads(line) for line in (tmp_path / "parts.rejects.jsonl").read_text().splitlines()]
    assert len(listed) == 5
    manifest = bigconv.convert(raw, tmp_path / "parts", shards=7, workers=0, max_rejects=5)
    whole = bigconv.convert(raw, tmp_path / "one.mmap", workers=0, max_rejects=5)
    assert manifest.rows == 55
    assert manifest.content_digest == whole.content_digest
    assert manifest.digests.content(manifest.schema) == manifest.content_digest


def test_a_part_all_of_whose_inputs_are_bad_is_left_out(tmp_path: Path) -> None:
    raw = images(tmp_path / "raw", 12)
    for bad in sorted(raw.rglob("*.png"))[4:8]:
        bad.write_bytes(b"")
    manifest = bigconv.convert(raw, tmp_path / "parts", shards=3, workers=0, max_rejects=4)
    assert isinstance(manifest, DatasetManifest)
    assert [part.number for part in manifest.parts] == [0, 2]
    assert verify(open_store(tmp_path / "parts")) == []


def test_append_adds_parts_and_leaves_the_others(tmp_path: Path) -> None:
    raw = images(tmp_path / "raw", 20)
    before = bigconv.convert(raw, tmp_path / "parts", shards=2, workers=0)
    assert isinstance(before, DatasetManifest)
    old = contents(tmp_path / "parts")
    images(raw, 9, first=100)
    extra = raw / "new"
    extra.mkdir()
    shutil.copy(next(raw.rglob("0000.png")), extra / "z.png")
    after = bigconv.convert(raw, tmp_path / "parts", append=True, workers=0)
    assert isinstance(after, DatasetManifest)
    assert after.rows == 30
    assert after.parts[:2] == before.parts
    assert [part.number for part in after.parts] == [0, 1, 2, 3]
    assert after.schema["label"].classes == ("class0", "class1", "class2", "new")
    now = contents(tmp_path / "parts")
    assert all(now[p.name] == old[p.name] for p in before.parts)
    assert verify(open_store(tmp_path / "parts")) == []
    whole = bigconv.convert(tmp_path / "parts", tmp_path / "one.h5", workers=0)
    assert whole.content_digest == after.content_digest
    assert bigconv.convert(raw, tmp_path / "parts", append=True, workers=0).rows == 30


# -- rows picked and ordered ---------------------------------------------------------------------------------------


def test_shuffle_is_a_permutation_by_the_seed(store: Path, tmp_path: Path) -> None:
    a = sharded(store, tmp_path / "a", rows=500, shuffle=True, seed=1)
    b = sharded(store, tmp_path / "b", rows=800, shuffle=True, seed=1, to="hdf5")
    c = sharded(store, tmp_path / "c", rows=500, shuffle=True, seed=2)
    assert a.content_digest == b.content_digest != c.content_digest
    where = {row.tobytes(): i for i, row in enumerate(np.asarray(BLOCK["x"]))}
    found = [where[row.tobytes()] for row in np.asarray(bigconv.open(tmp_path / "a")[:]["x"])]
    assert sorted(found) == list(range(ROWS))
    assert found != sorted(found)
    assert cases.same_block(bigconv.open(tmp_path / "a")[:], BLOCK.take(np.array(found)))
    merged = bigconv.shard(store, tmp_path / "m.h5", shuffle=True, seed=1, workers=0)
    assert isinstance(merged, bigconv.Manifest)
    assert merged.content_digest == a.content_digest


def test_split_fractions_strata_and_groups(store: Path, tmp_path: Path) -> None:
    """Exact to a row, each class within a row of its share, together every row once."""
    found = bigconv.shard(store, tmp_path / "s", split="train=0.7,val=0.2,test=0.1", stratify="label", workers=0)
    assert isinstance(found, dict)
    assert list(found) == ["train", "val", "test"]
    labels = np.asarray(BLOCK["label"])
    seen = []
    for (name, manifest), share in zip(found.items(), (0.7, 0.2, 0.1), strict=True):
        assert abs(manifest.rows - share * ROWS) <= 1
        view = bigconv.open(tmp_path / "s" / name)
        counts = np.bincount(np.asarray(view[:]["label"]), minlength=3)
        assert (abs(counts - share * np.bincount(labels, minlength=3)) <= 1).all()
        seen += [row.tobytes() for row in np.asarray(view[:]["x"])]
    assert sorted(seen) == sorted(row.tobytes() for row in np.asarray(BLOCK["x"]))
    again = bigconv.shard(store, tmp_path / "s", split="train=0.7,val=0.2,test=0.1", stratify="label", workers=0)
    assert {name: m.content_digest for name, m in again.items()} == {n: m.content_digest for n, m in found.items()}  # type: ignore[union-attr]

    groups = np.random.default_rng(0).integers(0, 40, ROWS)
    put(tmp_path / "g.h5", Block(Schema((Field("g", "int64"),)), {"g": groups}))
    bigconv.shard(tmp_path / "g.h5", tmp_path / "gs", split={"a": 0.5, "b": 0.5}, group="g", workers=0)
    a, b = (set(np.asarray(bigconv.open(tmp_path / "gs" / n)[:]["g"]).tolist()) for n in "ab")
    assert not a & b
    assert a | b == set(groups.tolist())


def test_by_makes_parts_of_one_value(store: Path, tmp_path: Path) -> None:
    manifest = sharded(store, tmp_path / "by", by="label", rows=400)
    labels = np.asarray(BLOCK["label"])
    assert [part.value for part in manifest.parts] == sorted(part.value for part in manifest.parts)  # type: ignore[type-var]
    for part in manifest.parts:
        held = np.asarray(bigconv.open(tmp_path / "by" / part.name)[:]["label"])
        assert set(held.tolist()) == {part.value}
    order = np.argsort(labels, kind="stable")
    assert cases.same_block(bigconv.open(tmp_path / "by")[:], BLOCK.take(order))
    whole = sharded(store, tmp_path / "whole", by="label")
    assert [part.rows for part in whole.parts] == np.bincount(labels).tolist()
    assert whole.content_digest == manifest.content_digest


# -- parts changed in their place ----------------------------------------------------------------------------------


def test_drop(store: Path, tmp_path: Path) -> None:
    """By number and by name; what stays is what the rest alone would be."""
    before = sharded(store, tmp_path / "p", rows=500)
    after = bigconv.shard(tmp_path / "p", drop=["1", before.parts[3].name], workers=0)
    assert isinstance(after, DatasetManifest)
    assert after.parts == (before.parts[0], before.parts[2], before.parts[4])
    assert verify(open_store(tmp_path / "p")) == []
    left = Block.concat([BLOCK.slice(0, 500), BLOCK.slice(1000, 1500), BLOCK.slice(2000, ROWS)])
    put(tmp_path / "left.h5", left)
    assert after.content_digest == open_store(tmp_path / "left.h5").manifest.content_digest
    with pytest.raises(UsageError, match="unknown part"):
        bigconv.shard(tmp_path / "p", drop="9", workers=0)
    with pytest.raises(UsageError, match="all parts"):
        bigconv.shard(tmp_path / "p", drop=["0", "2", "4"], workers=0)


@pytest.mark.parametrize("to", ["memmap", "hdf5"])
def test_a_drop_that_was_killed_is_finished_by_the_same_command(store: Path, tmp_path: Path, to: str) -> None:
    """Killed between the new manifest and the removal of the part, which leaves it there, and the old digests."""
    sharded(store, tmp_path / "p", rows=900, to=to)
    before = tmp_path / "before"
    shutil.copytree(tmp_path / "p", before)
    after = sharded(tmp_path / "p", None, drop="1")
    expected = contents(tmp_path / "p")
    shutil.copytree(before, tmp_path / "p", dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
    (tmp_path / "p" / "manifest.json.new").write_bytes(b"half")
    (tmp_path / "p.partial").mkdir()
    (tmp_path / "p.partial" / "lock").touch()
    opened = open_store(tmp_path / "p")
    assert len(opened.manifest.parts) == 2
    work = unfinished(tmp_path / "p", opened)
    assert work is not None
    assert verify(opened, work.names) == []
    assert len(verify(opened)) == 3  # the part, its digests, half a manifest
    assert sharded(tmp_path / "p", None, drop="1").parts == after.parts
    assert contents(tmp_path / "p") == expected
    assert not (tmp_path / "p.partial").exists()
    with pytest.raises(OutputError, match="doesn't say how it is cut"):
        bigconv.convert(images(tmp_path / "raw", 3), tmp_path / "p", append=True, workers=0)


def _cut_off_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sharded directory with two listed parts, and two that an append has put there and not listed."""
    raw = images(tmp_path / "raw", 20)
    bigconv.convert(raw, tmp_path / "parts", shards=2, workers=0)
    images(raw, 9, first=100)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts_run, "listed", killed)
        bigconv.convert(raw, tmp_path / "parts", append=True, workers=0)
    assert len(list((tmp_path / "parts").glob("part-*"))) == 4
    return raw


def test_verify_tells_parts_of_an_unfinished_append_from_foreign_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = _cut_off_append(tmp_path, monkeypatch)
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "parts"), "--verify"])
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "not finished; 2 new parts in it are not listed yet" in told
    assert f"bigconv convert SOURCE {tmp_path / 'parts'} --append" in told
    assert "verified: every row is as it was written" in told
    part = next(p for p in (tmp_path / "parts").glob("part-*") if p.name.startswith("part-00000"))
    foreign = part.with_name(dataset.part_name("another plan", 2, part.suffix))
    shutil.copy(part, foreign)
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "parts"), "--verify", "--json"])
    assert result.exit_code == 1
    assert [f["problem"] for f in json.loads(result.stdout)["findings"]] == [
        f"{foreign.name} does not belong to the dataset"
    ]
    foreign.unlink()
    assert bigconv.convert(raw, tmp_path / "parts", append=True, workers=0).rows == 29
    assert verify(open_store(tmp_path / "parts")) == []


def test_an_append_goes_on_from_parts_that_it_had_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = _cut_off_append(tmp_path, monkeypatch)
    outcome = Request((raw,), tmp_path / "parts", append=True, policy=Policy(0)).run()
    assert (outcome.rows, outcome.resumed_rows) == (0, 9)
    assert len(open_store(tmp_path / "parts").manifest.parts) == 4
    assert verify(open_store(tmp_path / "parts")) == []


def test_a_part_is_made_again_beside_an_unfinished_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repair changes nothing that the append has built on."""
    raw = _cut_off_append(tmp_path, monkeypatch)
    lost = open_parts(tmp_path / "parts").manifest.parts[1].name
    before = contents(tmp_path / "parts" / lost)
    fsio.remove(tmp_path / "parts" / lost)
    first = images(tmp_path / "first" / "raw", 20)
    bigconv.shard(tmp_path / "parts", repair=True, source=first, workers=0)
    assert contents(tmp_path / "parts" / lost) == before
    outcome = Request((raw,), tmp_path / "parts", append=True, policy=Policy(0)).run()
    assert (outcome.rows, outcome.resumed_rows) == (0, 9)
    assert verify(open_store(tmp_path / "parts")) == []
    assert not (tmp_path / "parts.partial").exists()


def test_an_append_that_is_given_up_leaves_no_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = _cut_off_append(tmp_path, monkeypatch)
    images(raw, 1, first=200)
    with pytest.raises(OutputError, match="--restart"):
        bigconv.convert(raw, tmp_path / "parts", append=True, workers=0)
    assert bigconv.convert(raw, tmp_path / "parts", append=True, restart=True, workers=0).rows == 30
    assert verify(open_store(tmp_path / "parts")) == []


def spoil(folder: Path, how: str, parts: tuple[dataset.Part, ...]) -> None:
    one, two = folder / parts[1].name, folder / parts[2].name
    if how == "missing":
        one.unlink()
    elif how == "foreign":
        put(folder / "other.h5", rows_of(9, 500))
        (folder / "other.h5").replace(one)
    elif how == "swapped":
        one.rename(folder / "x")
        two.rename(one)
        (folder / "x").rename(two)
    elif how == "cut short":
        one.write_bytes(one.read_bytes()[:-100])
    elif how == "flipped":
        raw = bytearray(one.read_bytes())
        raw[len(raw) // 2] ^= 1
        one.write_bytes(raw)
    elif how == "digests":
        next(folder.glob("digests-*")).write_bytes(b"none")


SPOILT = ("missing", "foreign", "swapped", "cut short", "flipped", "digests")


@pytest.mark.parametrize("how", SPOILT)
def test_spoilt_parts_are_found_named_and_mended(store: Path, tmp_path: Path, how: str) -> None:
    """Found by verify, refused by a reader, made again from the source: byte for byte what it was."""
    manifest = sharded(store, tmp_path / "p", rows=500, to="hdf5", shuffle=True)
    before = contents(tmp_path / "p")
    spoil(tmp_path / "p", how, manifest.parts)
    findings = verify(open_parts(tmp_path / "p"))
    assert findings
    if how != "digests":
        assert any(manifest.parts[1].name in finding.problem for finding in findings)
        assert any(500 <= finding.start < 1000 for finding in findings)
    if how in ("missing", "foreign", "swapped", "cut short"):
        with pytest.raises(IncompleteStore):
            bigconv.open(tmp_path / "p").take(np.arange(ROWS))
    with pytest.raises(UsageError, match="--source") if how != "digests" else pytest.raises(OutputError, match="never"):
        bigconv.shard(tmp_path / "p", repair=True, workers=0)
        raise OutputError("never: digests need no source")
    bigconv.shard(tmp_path / "p", repair=True, source=store, workers=0)
    assert verify(open_store(tmp_path / "p")) == []
    assert contents(tmp_path / "p") == before
    assert not list(tmp_path.glob("*.partial"))


def test_repair_of_converted_files(tmp_path: Path) -> None:
    raw = images(tmp_path / "raw", 30)
    manifest = bigconv.convert(raw, tmp_path / "p", shards=4, resize=6, workers=0)
    assert isinstance(manifest, DatasetManifest)
    before = contents(tmp_path / "p")
    (tmp_path / "p" / manifest.parts[2].name).unlink()
    bigconv.shard(tmp_path / "p", repair=True, source=raw, workers=0)
    assert contents(tmp_path / "p") == before
    (tmp_path / "p" / manifest.parts[2].name).unlink()
    file = sorted(raw.rglob("*.png"))[17]
    Image.new("RGB", (9, 8)).save(file)
    with pytest.raises(OutputError, match="other rows now"):
        bigconv.shard(tmp_path / "p", repair=True, source=raw, workers=0)


def test_an_extra_file_is_named(store: Path, tmp_path: Path) -> None:
    sharded(store, tmp_path / "p", rows=900)
    (tmp_path / "p" / "notes.txt").write_text("mine")
    assert [f.problem for f in verify(open_store(tmp_path / "p"))] == ["notes.txt does not belong to the dataset"]
    with pytest.raises(OutputError, match=r"notes\.txt"):
        bigconv.shard(store, tmp_path / "p", rows=100, overwrite=True, workers=0)
    assert (tmp_path / "p" / "notes.txt").read_text() == "mine"


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"size": "3 parrots"}, UsageError, "256MB"),
        ({"rows": 5, "shards": 3}, UsageError, "exclude one another"),
        ({"shards": ROWS + 1}, UsageError, f"only {ROWS} rows"),
        ({"rows": 0}, UsageError, "1 or more"),
        ({"split": "train=0.9,val=0.2"}, UsageError, "add up to 1"),
        ({"split": "train"}, UsageError, "names and fractions"),
        ({"split": {"../up": 1.0}}, UsageError, "folder"),
        ({"stratify": "label"}, UsageError, "--split"),
        ({"split": "a=0.5,b=0.5", "stratify": "lable"}, BigconvError, "Did you mean 'label'"),
        ({"by": "tokens"}, BigconvError, "one value a row"),
        ({"by": "label", "shards": 2}, UsageError, "--by"),
        ({"to": "hdf"}, UsageError, "Did you mean 'hdf5'"),
        ({"seed": -1, "shuffle": True}, UsageError, "--seed"),
        ({"source": "x"}, UsageError, "--repair"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(
    store: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        bigconv.shard(store, tmp_path / "p", workers=0, **options)
    assert not list(tmp_path.iterdir())


def test_destinations_are_refused(store: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OutputError, match="exists already"):
        bigconv.shard(store, tmp_path / "full", workers=0)
    with pytest.raises(UsageError, match="folder"):
        bigconv.shard(store, tmp_path / "parts.h5", rows=5, workers=0)
    with pytest.raises(UsageError, match="--to zarr"):
        bigconv.convert(store, tmp_path / "parts.zarr", shards=2)
    with pytest.raises(InputError, match="--shard-size"):
        bigconv.shard(images(tmp_path / "raw", 2), tmp_path / "p", workers=0)
    sharded(store, tmp_path / "p", rows=900)
    with pytest.raises(OutputError, match="is the source"):
        bigconv.shard(tmp_path / "p", tmp_path / "p", rows=100, workers=0)
    with pytest.raises(OutputError, match="rows 900 → 800"):
        bigconv.shard(store, tmp_path / "p", rows=800, workers=0)
    assert sharded(store, tmp_path / "p", rows=800, overwrite=True).rows == ROWS
    assert len(open_parts(tmp_path / "p").manifest.parts) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["parts"][0].update(name="../" + body["parts"][0]["name"]),
        lambda body: body["parts"][0].update(rows=1),
        lambda body: body["parts"].append(body["parts"][0]),
        lambda body: body["parts"][0].update(uuid=body["parts"][1]["uuid"]),
        lambda body: body.update(content_digest="0"),
        lambda body: body.update(store="pickle"),
        lambda body: body["parts"][0].update(value=["x"]),
    ],
)
def test_a_forged_manifest_is_refused(store: Path, tmp_path: Path, change: Any) -> None:
    from bigconv.manifest import sealed

    sharded(store, tmp_path / "p", rows=900)
    file = tmp_path / "p" / dataset.NAME
    body = json.loads(file.read_bytes())
    del body["checksum"]
    change(body)
    file.write_bytes(sealed(body))
    with pytest.raises(IncompleteStore):
        bigconv.open(tmp_path / "p")


def test_a_flipped_bit_in_the_manifest_is_refused(store: Path, tmp_path: Path) -> None:
    sharded(store, tmp_path / "p", rows=1200)
    file = tmp_path / "p" / dataset.NAME
    whole = file.read_bytes()
    for at in range(0, len(whole), 7):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(bigconv.BigconvError):
            bigconv.open(tmp_path / "p")


def test_a_destination_named_like_a_note(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of everything that stands in the folder of unfinished work, for one store, parts and a split."""
    monkeypatch.chdir(tmp_path)
    for folder in ("parts", "split", "one"):
        Path(folder).mkdir()
    whole = open_store(store).manifest.content_digest
    for name in (*NOTES, "Results"):
        assert sharded(store, Path("parts") / name, rows=1_000).content_digest == whole
        assert verify(open_store(Path("parts") / name)) == []
        bigconv.shard(store, Path("split") / name, split="train=0.5,val=0.5", workers=0)
        assert sorted(path.name for path in (Path("split") / name).iterdir()) == ["train", "val"]
        bigconv.convert(store, Path("one") / name, to="zarr", workers=0)
        assert open_store(Path("one") / name).manifest.content_digest == whole
    assert sorted(path.name for path in Path("parts").iterdir()) == sorted((*NOTES, "Results"))


def test_every_note_is_listed(tmp_path: Path) -> None:
    """What runs leave in their folders when too much was rejected, and ranks when they have done theirs."""
    raw = images(tmp_path / "raw", 6)
    bigconv.convert(raw, tmp_path / "ranked", to="hdf5", shards=2, rank="0/2", workers=0)
    (raw / "class0" / "0000.png").write_bytes(b"no picture")
    for name, options in {"one.h5": {}, "parts": {"to": "hdf5", "shards": 2}}.items():
        with pytest.raises(FindingsError):
            bigconv.convert(raw, tmp_path / name, workers=0, **options)
    for name in ("one.h5", "parts", "ranked"):
        found = {path.name for path in (tmp_path / f"{name}.partial").iterdir()}
        assert all(entry.startswith(name) for entry in found - NOTES)  # the store, and what its writer keeps beside it
