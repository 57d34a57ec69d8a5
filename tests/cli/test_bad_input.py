"""Bad input: a clear error, the right exit code, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

import bigconv
from bigconv import fsio
from bigconv.errors import NotAStore
from tests.warm import Warm

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(warm: Warm) -> Run:
    """The real command in a process of its own. `limit`: bytes that a file may have."""
    return lambda *args, cwd=None, limit=None: warm.command(args, cwd or Path.cwd(), limit)


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Exit code, words in the error, one to three lines and no traceback."""
    assert result.returncode == code, result.stderr
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert 1 <= len(lines) <= 8
    assert result.stdout == ""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "raw" / "cats"
    folder.mkdir(parents=True)
    for i in range(3):
        Image.fromarray(np.full((8, 9, 3), i, np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "raw"


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_missing_source(run: Run, tmp_path: Path) -> None:
    refused(run("convert", tmp_path / "nothing", tmp_path / "out.h5"), 2, "no such file or folder")
    assert left(tmp_path) == []


def test_empty_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    refused(run("convert", tmp_path / "raw", tmp_path / "out.h5"), 2, "an empty folder")
    (tmp_path / "raw" / "notes.docx").write_text("x")
    refused(run("convert", tmp_path / "raw", tmp_path / "out.h5"), 2, "1 .docx", ".jpg")
    assert left(tmp_path) == ["raw"]


def test_text_named_jpg(run: Run, images: Path, tmp_path: Path) -> None:
    (images / "cats" / "x.jpg").write_text("this is no picture")
    for suffix in (".h5", ".zarr", ".lmdb", ".mmap"):
        result = run("convert", images, tmp_path / f"out{suffix}")
        refused(result, 1, "1 of 4 inputs", "cats/x.jpg", "nothing was published", "--max-rejects 1")
        assert left(tmp_path) == [f"out{suffix}.partial", f"out{suffix}.rejects.jsonl", "raw"]
        entry = json.loads((tmp_path / f"out{suffix}.rejects.jsonl").read_text())
        assert (entry["path"], entry["row"], entry["stage"]) == ("cats/x.jpg", 0, "decode")
        assert run("convert", images, tmp_path / f"out{suffix}", "--resume", "--max-rejects", "1").returncode == 0
        assert len(bigconv.open(tmp_path / f"out{suffix}")) == 3
        assert left(tmp_path) == [f"out{suffix}", f"out{suffix}.rejects.jsonl", "raw"]
        for name in left(tmp_path)[:2]:
            fsio.remove(tmp_path / name)
    assert left(tmp_path) == ["raw"]


def test_mixed_dtypes(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    np.save(folder / "a.npy", np.zeros(3, np.float32))
    np.save(folder / "b.npy", np.zeros(3, np.float64))
    refused(run("convert", folder, tmp_path / "out.h5"), 2, "mixed dtypes", "b.npy is float64", "a.npy is float32")
    assert left(tmp_path) == ["raw"]


def test_unequal_rows(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    np.save(tmp_path / "y.npy", np.zeros(3))
    result = run("convert", tmp_path / "x.npy", tmp_path / "y.npy", tmp_path / "out.h5")
    refused(result, 2, "x.npy has 4", "y.npy has 3")
    assert left(tmp_path) == ["x.npy", "y.npy"]


def test_object_arrays(run: Run, tmp_path: Path) -> None:
    """Also one whose pickle would leave a trace when loaded."""

    class Trap:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "trapped"),)

    np.save(tmp_path / "x.npy", np.array([Trap(), {}], object), allow_pickle=True)
    np.savez(tmp_path / "z.npz", a=np.array([{}], object))
    refused(run("convert", tmp_path / "x.npy", tmp_path / "out.h5"), 2, "x.npy", "object array", "never read")
    refused(run("convert", tmp_path / "z.npz", tmp_path / "out.h5"), 2, "z.npz[a]", "object array")
    assert left(tmp_path) == ["x.npy", "z.npz"]


def test_dest_exists(run: Run, images: Path, tmp_path: Path) -> None:
    (tmp_path / "out.h5").write_text("precious")
    refused(run("convert", images, tmp_path / "out.h5"), 2, "exists already", "another destination")
    refused(run("convert", images, tmp_path / "out.h5", "--overwrite"), 2, "not replaced", "didn't write it")
    assert (tmp_path / "out.h5").read_text() == "precious"
    (tmp_path / "folder.zarr").mkdir()
    refused(run("convert", images, tmp_path / "folder.zarr", "--overwrite"), 2, "not replaced")
    assert left(tmp_path) == ["folder.zarr", "out.h5", "raw"]


def test_changed_source_is_refused_with_the_difference(run: Run, images: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out.h5"
    bigconv.convert(images, dest, workers=0)
    again = run("convert", images, dest)
    assert (again.returncode, again.stderr) == (0, "")
    assert "unchanged, skipped" in again.stdout
    refused(run("convert", images, dest, "--resize", "4"), 2, "exists already", "--resize none → 4x4", "--overwrite")
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(images / "cats" / "new.png")
    refused(run("convert", images, dest), 2, "1 file new")
    assert left(tmp_path) == ["out.h5", "raw"]
    (tmp_path / "t.csv").write_text("a,b\n1,2.5\n2,\n")
    bigconv.convert(tmp_path / "t.csv", tmp_path / "t.h5", fill=0, workers=0)
    assert "unchanged" in run("convert", tmp_path / "t.csv", tmp_path / "t.h5", "--fill", "0").stdout
    told = "(fill 0.0 → 1.0)"  # once, though the source tells of it as well
    refused(run("convert", tmp_path / "t.csv", tmp_path / "t.h5", "--fill", "1"), 2, told)


def test_overwrite_replaces_what_bigconv_wrote(run: Run, images: Path, tmp_path: Path) -> None:
    for suffix in (".h5", ".zarr", ".lmdb", ".mmap"):
        dest = tmp_path / f"out{suffix}"
        bigconv.convert(images, dest, workers=0)
        Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(images / "cats" / f"new{suffix}.png")
        assert run("convert", images, dest, "--overwrite", "-q").returncode == 0
        assert len(bigconv.open(dest)) == len(list((images / "cats").iterdir()))
    assert left(tmp_path) == ["out.h5", "out.lmdb", "out.mmap", "out.zarr", "raw"]


def test_dest_inside_source(run: Run, images: Path) -> None:
    refused(run("convert", images, images / "out.h5"), 2, "inside the source")
    refused(run("convert", images, images), 2)
    assert left(images) == ["cats"]


def test_dest_of_a_name_too_long(run: Run, images: Path, tmp_path: Path) -> None:
    """Or its list of rejects would get none, when all is read."""
    for length in (238, 252, 300):
        refused(run("convert", images, tmp_path / ("x" * length + ".h5")), 2, "a name too long")
    assert left(tmp_path) == ["raw"]


def test_unknown_extension(run: Run, images: Path, tmp_path: Path) -> None:
    refused(run("convert", images, tmp_path / "out.hdf"), 2, ".hdf", ".h5", ".zarr", "--to")
    refused(run("convert", images, tmp_path / "out", "--to", "zar"), 2, "Did you mean 'zarr'?")
    assert left(tmp_path) == ["raw"]


@pytest.mark.parametrize("suffix", [".h5", ".zarr", ".lmdb", ".mmap"])
def test_no_space(run: Run, tmp_path: Path, suffix: str) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((3000, 100)))
    result = run("convert", tmp_path / "x.npy", tmp_path / f"out{suffix}", limit=1 << 20)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert "size limit" in result.stderr or "space" in result.stderr, result.stderr
    assert left(tmp_path) == ["x.npy"]


@pytest.mark.parametrize("suffix", [".h5", ".zarr", ".lmdb", ".mmap"])
def test_store_cut_short_or_without_manifest(run: Run, images: Path, tmp_path: Path, suffix: str) -> None:
    dest = tmp_path / f"out{suffix}"
    bigconv.convert(images, dest, workers=0)
    files = [dest] if dest.is_file() else [p for p in dest.rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    whole = largest.read_bytes()
    largest.write_bytes(whole[:-1])
    refused(run("inspect", dest), 2, "cut short")
    largest.write_bytes(whole)
    assert run("inspect", dest).returncode == 0
    if suffix == ".h5":
        import h5py

        with h5py.File(dest, "r+") as file:
            del file["_bigconv"]
    else:
        (dest / ("zarr.json" if suffix == ".zarr" else "manifest.json")).unlink()
    with pytest.raises(NotAStore, match="not a bigconv store"):
        bigconv.open(dest)
    if suffix in (".h5", ".lmdb"):  # still a file of that format, which anybody's library could have written
        shown = run("inspect", dest)
        assert (shown.returncode, "no manifest" in shown.stdout) == (0, True), shown.stdout + shown.stderr
        refused(run("inspect", dest, "--verify"), 1, "not a bigconv store")
    else:
        refused(run("inspect", dest), 2, "not a bigconv store")


def test_manifest_of_a_later_version(run: Run, images: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out.mmap"
    bigconv.convert(images, dest, workers=0)
    manifest = json.loads((dest / "manifest.json").read_text())
    manifest["version"] = 2
    (dest / "manifest.json").write_text(json.dumps(manifest))
    refused(run("inspect", dest), 2, "format version 2", "pip install --upgrade bigconv")


def test_one_path_only(run: Run, images: Path) -> None:
    refused(run("convert", images), 2, "SOURCE and a DEST")


def test_option_without_meaning(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    result = run("convert", tmp_path / "x.npy", tmp_path / "out.h5", "--label-from", "folder")
    refused(result, 2, "--label-from has no meaning for arrays input")
    refused(run("convert", tmp_path / "x.npy", tmp_path / "out.h5", "--resize", "8"), 2, "resize")


def test_option_that_another_one_is_missing_for(run: Run, images: Path, tmp_path: Path) -> None:
    refused(run("convert", images, tmp_path / "out.h5", "--fit", "contain"), 2, "give --resize")
    refused(run("convert", images, tmp_path / "out.h5", "--seed", 3), 2, "give --map or --filter")
    refused(run("inspect", images, "--rows", 3), 2, "--rows says which rows --contact and --html draw")
    refused(run("inspect", images, "--seed", 3), 2, "--seed says")
    refused(run("inspect", images, "--contact", tmp_path / "no" / "sheet.png"), 2, "--contact", "there is no folder")
    assert left(tmp_path) == ["raw"]


def test_a_file_whose_name_tells_nothing(run: Run, images: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("a,b\n1,2\n")
    (tmp_path / "notes.cvs").write_text("a,b\n1,2\n")
    (tmp_path / "rows.json").write_text('[\n {"a": 1}\n]')
    out = tmp_path / "out.h5"
    refused(
        run("convert", tmp_path / "notes", out), 2, "no extension tells", "starts with b'a,b", "--from hdf5|", "|csv|"
    )
    refused(run("convert", tmp_path / "notes.cvs", out), 2, "extension .cvs", "Did you mean .csv?")
    refused(run("convert", tmp_path / "rows.json", out), 2, "one list in JSON: jq -c '.[]' FILE > FILE.jsonl")
    refused(
        run("convert", images / "cats" / "0.png", out),
        2,
        "images are read from their folder",
        f"Name it: {images / 'cats'}",
    )


def test_a_folder_that_holds_sharded_directories(run: Run, images: Path, tmp_path: Path) -> None:
    """As a split makes one."""
    bigconv.convert(images, tmp_path / "all.h5", workers=0)
    bigconv.shard(tmp_path / "all.h5", tmp_path / "split", split={"train": 0.6, "val": 0.4}, workers=0)
    for words in (("inspect",), ("bench",), ("convert",), ("shard",)):
        dest = [tmp_path / "out.h5"] if words[0] in ("convert", "shard") else []
        told = "a folder of sharded directories: train, val. Name one, as "
        refused(run(*words, tmp_path / "split", *dest), 2, told + str(tmp_path / "split" / "train"))


def test_names_are_escaped(run: Run, tmp_path: Path) -> None:
    """A file name must not colour the terminal."""
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "a\x1b[31m.jpg").write_text("no picture")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "b.png")
    result = run("convert", folder, tmp_path / "out.h5")
    assert result.returncode == 1
    assert "\x1b[31m" not in result.stderr
    assert "\\x1b[31m" in result.stderr


def test_debug_shows_a_traceback(run: Run, tmp_path: Path) -> None:
    assert "Traceback" in run("convert", tmp_path / "nothing", tmp_path / "out.h5", "--debug").stderr


PAGE = b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n" * 20
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def hdf5(path: Path) -> bytes:
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(4000.0).reshape(400, 10)
        file["y"] = np.arange(400)
    return path.read_bytes()


def lmdb_pages(path: Path) -> bytes:
    with lmdb.open(str(path), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for i in range(400):
            transaction.put(b"%06d" % i, bytes(500))
    return (path / "data.mdb").read_bytes()


def parquet(path: Path) -> bytes:
    pq.write_table(pa.table({"a": list(range(5000))}), path)
    return path.read_bytes()


@pytest.mark.parametrize("command", ["convert", "inspect", "shard", "bench"])
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.h5", PAGE, "not an HDF5 file"),
        ("a.h5", POINTER, "not an HDF5 file"),
        ("a.h5", b"", "not an HDF5 file"),
        ("a.npy", PAGE, "a.npy"),
        ("a.parquet", b"", "an empty file"),
        ("a.parquet", PAGE, "mark at its end is missing"),
        ("a.arrow", PAGE, "mark at its end is missing"),
        ("a.tar", PAGE, "not a tar file: a web page"),
        ("a.tar", b"PK\x03\x04" + bytes(2000), "not a tar file: a ZIP archive"),
        ("a.mp4", bytes(2000), "nothing but zeros"),
        ("a.tif", b"II*\0" + bytes(20), "holds no picture"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_what_is_not_of_its_format(
    run: Run, tmp_path: Path, command: str, name: str, content: bytes, told: str
) -> None:
    """In our words, without those of a library, whatever it is asked for."""
    (tmp_path / name).write_bytes(content)
    words = {"convert": ["out.h5"], "shard": ["out"], "inspect": [], "bench": ["--stores", "mmap", "--seconds", "1"]}
    result = run(command, name, *words[command], cwd=tmp_path)
    refused(result, 2, *([] if command == "shard" else [told]))
    assert not re.search(r"synchronously|magic|Errno|signature|0x", result.stderr)
    assert left(tmp_path) == [name]


def test_what_was_cut_short_or_overwritten(run: Run, tmp_path: Path) -> None:
    """How much is there, or what of it can't be read, and what to do; the library's words come with --debug."""
    whole = hdf5(tmp_path / "cut.h5")
    (tmp_path / "cut.h5").write_bytes(whole[:3000])
    (tmp_path / "holes.h5").write_bytes(whole[:96] + bytes(704) + whole[800:])
    (tmp_path / "cut.parquet").write_bytes(parquet(tmp_path / "cut.parquet")[:-50])
    pages = lmdb_pages(tmp_path / "cut.lmdb")
    (tmp_path / "cut.lmdb" / "data.mdb").write_bytes(pages[:40_000])
    (tmp_path / "none.lmdb").mkdir()
    (tmp_path / "none.lmdb" / "data.mdb").write_bytes(POINTER)
    told = {
        "cut.h5": "cut short: 3,000 of",
        "holes.h5": "the records that describe its contents can't be read. Copy or download it again",
        "cut.parquet": "cut short",
        "cut.lmdb": "cut short",
        "none.lmdb": "data.mdb: a Git LFS pointer",
    }
    for name, words in told.items():
        for command in ("convert", "inspect"):
            refused(run(command, name, *(["out.h5"] if command == "convert" else []), cwd=tmp_path), 2, name, words)
    debug = run("convert", "cut.h5", "out.h5", "--debug", cwd=tmp_path)
    assert "truncated file" in debug.stderr


def test_documents_of_stores_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    """In plain words that name the file, not those of a parser; --verify has an answer, which is no refusal."""
    np.save(tmp_path / "x.npy", np.arange(60).reshape(20, 3))
    for name in ("cut.mmap", "cut.zarr"):
        bigconv.convert(tmp_path / "x.npy", tmp_path / name, workers=0)
    bigconv.convert(tmp_path / "x.npy", tmp_path / "parts", shards=2, workers=0)
    for file in ("cut.mmap/manifest.json", "cut.zarr/zarr.json", "parts/manifest.json"):
        (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:400])
    for folder in ("page.zarr", "none.zarr", "none.lmdb", "other.lmdb"):
        (tmp_path / folder).mkdir()
    (tmp_path / "page.zarr" / "zarr.json").write_bytes(PAGE)
    (tmp_path / "other.lmdb" / "lock.mdb").touch()
    (tmp_path / "text.h5").write_text("no store")
    (tmp_path / "text.zarr").write_text("no store")
    told = {
        "cut.mmap": "the manifest can't be read: cut short or damaged",
        "cut.zarr": "zarr.json can't be read: cut short or damaged",
        "parts": "the manifest can't be read: cut short or damaged",
        "page.zarr": "zarr.json can't be read: not JSON: a web page",
        "none.zarr": "an empty folder",
        "none.lmdb": "an empty folder",
        "other.lmdb": "no data.mdb in it",
        "text.h5": "starts with b'no store'",
        "text.zarr": "starts with b'no store'",
    }
    for name, words in told.items():
        for more, code in (((), 2), (("--verify",), 1)):
            result = run("inspect", name, *more, cwd=tmp_path)
            refused(result, code, name, words)
            assert len(result.stderr.splitlines()) <= 3
            assert not re.search(r"Expecting|delimiter|Unterminated|codec|char \d", result.stderr)


def test_a_chunk_that_cannot_be_unpacked(run: Run, tmp_path: Path) -> None:
    """Its dataset and rows are named."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        x = file.create_dataset("x", (8, 100), "i8", chunks=(4, 100), compression="gzip")
        x[...] = 1
        x.id.write_direct_chunk((4, 0), b"nothing that unpacks")
    zarr.create_array(tmp_path / "a.zarr", data=np.arange(8), chunks=(4,))
    (tmp_path / "a.zarr" / "c" / "1").write_bytes(b"xx")
    for name, told in {"a.h5": "x, row 4: damaged", "a.zarr": "a, row 4: damaged"}.items():
        refused(run("convert", name, f"{name}.mmap", cwd=tmp_path), 1, "4 of 8 inputs", told, "can't be unpacked")


def test_images_that_are_none(run: Run, images: Path, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8)).save(images / "cats" / "cut.jpg")
    (images / "cats" / "cut.jpg").write_bytes((images / "cats" / "cut.jpg").read_bytes()[:800])
    (images / "cats" / "page.jpg").write_bytes(PAGE)
    (images / "cats" / "pointer.png").write_bytes(POINTER)
    run("convert", images, "out.h5", cwd=tmp_path)
    rejects = map(json.loads, (tmp_path / "out.h5.rejects.jsonl").read_text().splitlines())
    told = {reject["path"]: reject["error"] for reject in rejects}
    assert "cut short" in told["cats/cut.jpg"]
    assert told["cats/page.jpg"] == "not an image: a web page, as a failed download leaves it"
    assert "git lfs pull" in told["cats/pointer.png"]
