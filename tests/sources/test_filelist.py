"""Lists of files: what is found below a folder, in which order, and what is passed over."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigconv.errors import InputError
from bigconv.sources.filelist import FileList, told


def make(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def names(files: FileList) -> list[str]:
    return [files.name(i) for i in range(len(files))]


def below(root: Path) -> list[str]:
    return names(FileList.below(root, lambda name: True))


def test_bytewise_order_of_relative_paths(tmp_path: Path) -> None:
    """As `LC_ALL=C sort` has them: capitals first, `-` before `/` before digits, é after z."""
    some = ["a/b", "a-b", "a.b", "a0", "B", "é", "z", "a/b0/c", "10", "9"]
    some = [name for name in some if name != "a/b"]
    make(tmp_path, some)
    assert below(tmp_path) == sorted(some, key=str.encode)


def test_sizes_times_and_paths(tmp_path: Path) -> None:
    make(tmp_path, ["x/a", "b"])
    os.utime(tmp_path / "b", ns=(1, 1_234_567_890_123_456_789))
    files = FileList.below(tmp_path, lambda name: True)
    assert len(files) == 2
    assert files.sizes.tolist() == [1, 3]
    assert files.mtimes[0] == 1_234_567_890_123_456_789
    assert files.path(1) == str(tmp_path / "x/a")
    assert (files.sizes.dtype, files.mtimes.dtype, files.ends.dtype) == (np.int64,) * 3


def test_wanted_names_only(tmp_path: Path) -> None:
    make(tmp_path, ["a.npy", "b.txt", "c.npy/d.txt"])
    assert names(FileList.below(tmp_path, lambda name: name.endswith(".npy"))) == ["a.npy"]


def test_nothing(tmp_path: Path) -> None:
    files = FileList.below(tmp_path, lambda name: True)
    assert len(files) == 0
    assert files.sizes.shape == files.ends.shape == (0,)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_no_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=f"{name}: can't be listed"):
        FileList.below(tmp_path / name, lambda name: True)


def test_a_folder_that_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a list would be half a data set: refused."""
    make(tmp_path, ["a/x", "b/x"])
    real = os.scandir

    def scandir(path: Any) -> Any:
        if os.fspath(path).endswith("a"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="a: can't be listed: Permission denied"):
        below(tmp_path)


def test_what_is_passed_over(tmp_path: Path) -> None:
    """Hidden files and folders, pipes, links to nothing and out of the folder."""
    make(tmp_path / "outside", ["secret"])
    root = make(tmp_path / "root", ["a", ".b", ".c/d", "e/.f"])
    os.mkfifo(root / "pipe")
    (root / "dangling").symlink_to(root / "nothing")
    (root / "out").symlink_to(tmp_path / "outside" / "secret")
    (root / "out folder").symlink_to(tmp_path / "outside", target_is_directory=True)
    (root / "up").symlink_to("..", target_is_directory=True)
    (root / "itself").symlink_to(root / "itself")
    assert below(root) == ["a"]


def test_a_sibling_with_the_same_beginning_is_outside(tmp_path: Path) -> None:
    make(tmp_path / "root and more", ["secret"])
    root = make(tmp_path / "root", ["a"])
    (root / "link").symlink_to(tmp_path / "root and more" / "secret")
    assert below(root) == ["a"]


def test_links_within_are_followed(tmp_path: Path) -> None:
    """As git-annex and DVC keep files: names of links, contents from a hidden folder."""
    root = make(tmp_path, [".annex/objects/1", ".annex/objects/2"])
    (root / "x.jpg").symlink_to(root / ".annex/objects/1")
    (root / "cats").symlink_to(root / ".annex/objects", target_is_directory=True)
    assert below(root) == ["cats/1", "cats/2", "x.jpg"]


def test_loops_end(tmp_path: Path) -> None:
    root = make(tmp_path, ["a/b/x"])
    (root / "a/b/up").symlink_to(root, target_is_directory=True)
    (root / "a/self").symlink_to(root / "a", target_is_directory=True)
    assert below(root) == ["a/b/x"]


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    make(tmp_path / "real", ["a/x"])
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    files = FileList.below(tmp_path / "link", lambda name: True)
    assert names(files) == ["a/x"]
    assert Path(files.path(0)).read_text() == "a/x"


def test_the_disk_order_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder and links to it: whichever the disk lists first, the folder's own name is kept."""
    root = make(tmp_path, ["m/1", "m/2", "z/3", ".h/sub/4"])
    for link in ("a", "q", "zz"):
        (root / link).symlink_to(root / "m", target_is_directory=True)
    (root / "b").symlink_to(root / ".h", target_is_directory=True)
    (root / "c").symlink_to(root / ".h/sub", target_is_directory=True)
    (root / "z/back").symlink_to(root / "m", target_is_directory=True)
    real = os.scandir
    seen = set()
    for seed in range(20):

        class Shuffled:
            def __init__(self, path: Any, seed: int = seed) -> None:
                with real(path) as entries:
                    self.entries = sorted(entries, key=lambda e: e.name)
                random.Random(seed).shuffle(self.entries)

            def __enter__(self) -> Any:
                return iter(self.entries)

            def __exit__(self, *_: object) -> None:
                pass

        monkeypatch.setattr(os, "scandir", Shuffled)
        seen.add(tuple(below(root)))
    assert seen == {("b/sub/4", "m/1", "m/2", "z/3")}


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """Linux takes any byte; the path leads back to the file."""
    raw = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(raw)).write_text("x")
    files = FileList.below(tmp_path, lambda name: True)
    assert os.fsencode(files.name(0)) == b"caf\xe9"
    assert Path(files.path(0)).read_text() == "x"
    assert told(files.path(0)) == "caf\\xe9"
    assert told("a/b/größe.npy") == "größe.npy"


def test_named_files_keep_their_order(tmp_path: Path) -> None:
    make(tmp_path, ["b", "a", "deep/c"])
    files = FileList.named([tmp_path / "b", tmp_path / "deep/c", tmp_path / "a"])
    assert names(files) == ["b", "c", "a"]
    assert files.sizes.tolist() == [1, 6, 1]
    assert len(FileList.named([])) == 0
    with pytest.raises(InputError, match="missing: No such file"):
        FileList.named([tmp_path / "b", tmp_path / "missing"])


def test_a_million_names_are_a_few_arrays() -> None:
    """Not a million Python objects: what goes to each worker is flat."""
    files = FileList.of(Path("/data"), ((b"class/%07d.jpg" % i, i, i) for i in range(20_000, 0, -1)))
    assert files.name(0) == "class/0000001.jpg"
    assert files.name(19_999) == "class/0020000.jpg"
    assert files.path(7) == "/data/class/0000008.jpg"
    assert len(pickle.dumps(files)) < 20_000 * (17 + 3 * 8) + 5_000
    again = pickle.loads(pickle.dumps(files))
    assert again.name(12_345) == files.name(12_345)
