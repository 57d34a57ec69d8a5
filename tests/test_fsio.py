"""Durable file operations, as those who call them see them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from bigconv import fsio
from bigconv.errors import IncompleteStore, OutputError


def test_append_grows_and_tells(tmp_path: Path) -> None:
    file = fsio.AppendFile(tmp_path / "x")
    assert file.tell() == 0
    for data in (b"abc", b"", bytearray(b"de"), memoryview(b"fg")):
        file.write(data)
    assert file.tell() == 7
    file.sync()
    file.close()
    file.close()  # twice is fine
    assert (tmp_path / "x").read_bytes() == b"abcdefg"


def test_append_after_write_at(tmp_path: Path) -> None:
    """A header that is written last moves nothing."""
    file = fsio.AppendFile(tmp_path / "x")
    file.write(b"....body")
    file.write_at(0, b"head")
    file.write(b"tail")
    assert file.tell() == 12
    file.close()
    assert (tmp_path / "x").read_bytes() == b"headbodytail"


def test_append_keeps_what_is_durable_and_cuts_the_rest(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"durable and torn")
    file = fsio.AppendFile(tmp_path / "x", keep=7)
    assert file.tell() == 7
    file.write(b"!")
    file.close()
    assert (tmp_path / "x").read_bytes() == b"durable!"
    fsio.AppendFile(tmp_path / "x").close()
    assert (tmp_path / "x").read_bytes() == b""


def test_patches_in_any_order(tmp_path: Path) -> None:
    """Against a bytearray; past the end the file grows with zeros between."""
    rng = random.Random(0)
    path = tmp_path / "x"
    path.write_bytes(b"")
    file = fsio.PatchFile(path)
    oracle = bytearray()
    for _ in range(200):
        offset, data = rng.randrange(5000), rng.randbytes(rng.randrange(300))
        if data:
            oracle.extend(bytes(max(0, offset + len(data) - len(oracle))))
        oracle[offset : offset + len(data)] = data
        file.write_at(offset, data)
    file.sync()
    assert path.read_bytes() == oracle
    file.truncate(1234)
    file.close()
    file.close()
    assert path.read_bytes() == oracle[:1234]


def test_copy_from_another_file(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(300_000)
    (tmp_path / "from").write_bytes(data)
    (tmp_path / "to").write_bytes(bytes(10))
    file = fsio.PatchFile(tmp_path / "to")
    file.copy_from(tmp_path / "from", 12_345, 200_000, 4)
    file.copy_from(tmp_path / "from", 0, 0, 4)
    file.close()
    assert (tmp_path / "to").read_bytes() == bytes(4) + data[12_345:212_345]


def test_copy_where_the_kernel_does_not_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, or between file systems: the same bytes by hand."""
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    monkeypatch.setattr(fsio, "COPY_BYTES", 1000)
    data = random.Random(2).randbytes(4321)
    (tmp_path / "from").write_bytes(data)
    (tmp_path / "to").write_bytes(b"")
    file = fsio.PatchFile(tmp_path / "to")
    file.copy_from(tmp_path / "from", 21, 4300, 0)
    file.close()
    assert (tmp_path / "to").read_bytes() == data[21:]


@pytest.mark.parametrize("kernel", [True, False])
def test_copy_from_a_file_that_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: bool) -> None:
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    (tmp_path / "from").write_bytes(b"abc")
    (tmp_path / "to").write_bytes(b"")
    file = fsio.PatchFile(tmp_path / "to")
    with pytest.raises(OutputError, match="ended 7 bytes early"):
        file.copy_from(tmp_path / "from", 0, 10, 0)
    file.close()


FULL = """
import resource, signal, sys
from pathlib import Path
from bigconv import fsio
from bigconv.errors import IncompleteStore, OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
path = Path(sys.argv[1])
file = fsio.AppendFile(path)
file.write(bytes(90_000))
for act in (lambda: file.write(bytes(20_000)), lambda: file.write_at(99_999, b"ab"), lambda: file.write(b"x")):
    try:
        act()
        print("went well")
    except OutputError as error:
        print(error)
patch = fsio.PatchFile(path)
try:
    patch.write_at(200_000, b"x")
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="file size limits as Linux has them")
def test_a_full_device_is_said_in_words(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "x")], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"{tmp_path / 'x'}: ") for line in lines)
    assert all("limit" in line for line in lines)


@pytest.mark.parametrize("kinds", ["file over nothing", "file over file", "folder over nothing", "folder over folder"])
def test_publish(tmp_path: Path, kinds: str) -> None:
    work, dest = tmp_path / "out.partial" / "out", tmp_path / "out"
    work.parent.mkdir()

    def fill(path: Path, text: str) -> None:
        if kinds.startswith("folder"):
            (path / "deep").mkdir(parents=True)
            (path / "deep" / text).write_text(text)
        else:
            path.write_text(text)

    fill(work, "new")
    if not kinds.endswith("nothing"):
        fill(dest, "old")
    fsio.publish(work, dest)
    if kinds.startswith("folder"):
        assert fsio.files_below(dest) == {"deep/new": 3}
    else:
        assert dest.read_text() == "new"
    assert list(work.parent.iterdir()) == []


@pytest.mark.parametrize("new", ["file", "folder"])
def test_publish_over_the_other_kind(tmp_path: Path, new: str) -> None:
    """`--overwrite` of an out.h5 by --to zarr, and the other way round."""
    work, dest = tmp_path / "work", tmp_path / "out"
    (work if new == "folder" else dest).mkdir()
    (dest if new == "folder" else work).write_text("file")
    fsio.publish(work, dest)
    assert dest.is_dir() == (new == "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_publish_leaves_a_reader_its_files(tmp_path: Path) -> None:
    for name in ("work", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    with open(tmp_path / "out" / "x") as reader:
        fsio.publish(tmp_path / "work", tmp_path / "out")
        assert reader.read() == "out"
    assert (tmp_path / "out" / "x").read_text() == "work"


def test_publish_replaces_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    for name in ("work", "precious"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    (tmp_path / "out").symlink_to(tmp_path / "precious", target_is_directory=True)
    fsio.publish(tmp_path / "work", tmp_path / "out")
    assert (tmp_path / "out" / "x").read_text() == "work"
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "precious" / "x").read_text() == "precious"


@pytest.mark.skipif(sys.platform != "linux", reason="exchanges names")
def test_a_new_store_is_durable_before_the_old_one_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a power cut could keep the move, and lose the exchange with all that was made."""
    for name in ("work/out.zarr", "out.zarr"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "zarr.json").write_text(name)
    done: list[str] = []
    rename, exchange = os.rename, fsio._exchange
    monkeypatch.setattr(fsio, "sync_folder", lambda path: done.append(f"sync {path.name}"))
    monkeypatch.setattr(fsio, "_exchange", lambda a, b: done.append("exchange") or exchange(a, b))
    monkeypatch.setattr(os, "rename", lambda a, b: done.append("move") or rename(a, b))
    fsio.publish(tmp_path / "work" / "out.zarr", tmp_path / "out.zarr")
    assert done == ["exchange", f"sync {tmp_path.name}", "move", f"sync {tmp_path.name}"]
    assert (tmp_path / "out.zarr" / "zarr.json").read_text() == "work/out.zarr"


def test_remove(tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "x").write_text("x")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "x").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "kept", target_is_directory=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    for name in ("folder", "link", "dangling", "file", "missing"):
        fsio.remove(tmp_path / name)
        fsio.remove(tmp_path / name)
    assert fsio.files_below(tmp_path) == {"kept/x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_files_below(tmp_path: Path) -> None:
    for name, size in (("b/é", 3), ("a.txt", 0), ("b/a/z", 2), ("B", 1)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    found = fsio.files_below(tmp_path)
    assert list(found.items()) == [("B", 1), ("a.txt", 0), ("b/a/z", 2), ("b/é", 3)]
    assert fsio.files_below(tmp_path / "nothing") == {}


def test_sync_makes_the_name_of_a_new_file_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: later syncs of it, and those of a file that was there, are of its bytes alone."""
    synced: list[str] = []
    original = os.fsync

    def fsync(fd: int) -> None:
        synced.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        original(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to tell what a descriptor is of")
    for expected in (["file", "folder", "file"], ["file", "file"]):
        synced.clear()
        file = fsio.AppendFile(tmp_path / "x")
        file.sync()
        file.sync()
        file.close()
        assert synced == expected


def test_an_error_names_the_file_that_it_is_about(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"inner: No such file") as caught, fsio.writing(tmp_path / "outer"):
        os.rename(tmp_path / "inner", tmp_path / "x")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_an_error_of_bigconv_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(IncompleteStore, match="damaged"), fsio.writing(tmp_path / "outer"):
        raise IncompleteStore("damaged")
