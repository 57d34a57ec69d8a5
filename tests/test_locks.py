"""A lock is held by one process, until it releases it or is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bigconv import fsio
from bigconv.errors import OutputError
from bigconv.locks import Lock, read_locked, try_lock


def test_lock_is_exclusive_until_released(tmp_path: Path) -> None:
    held = Lock(tmp_path / "lock")
    with pytest.raises(OutputError, match="another bigconv"):
        Lock(tmp_path / "lock")
    held.release()
    Lock(tmp_path / "lock").release()


def test_lock_against_another_process_that_dies(tmp_path: Path) -> None:
    """Killed without a chance to clean up, it holds nothing any more."""
    hold = "import sys, time; from bigconv.locks import Lock; from pathlib import Path\n"
    hold += "held = Lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another bigconv is writing here"):
            Lock(tmp_path / "lock")
    finally:
        other.kill()
        other.communicate()
    Lock(tmp_path / "lock").release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_holds_no_lock(tmp_path: Path) -> None:
    """Or workers that are forked would keep the next run out for as long as they outlive a parent that was killed."""
    held = Lock(tmp_path / "lock")
    begin, end = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(begin[1], b"x")
        os.read(end[0], 1)
        os._exit(0)
    os.read(begin[0], 1)
    with pytest.raises(OutputError, match="another bigconv is writing"):
        Lock(tmp_path / "lock")  # the child has dropped its own, which leaves this process's
    held.release()
    Lock(tmp_path / "lock").release()
    os.write(end[1], b"x")
    os.waitpid(child, 0)
    for fd in (*begin, *end):
        os.close(fd)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_that_never_came_to_drop_a_lock_holds_none(tmp_path: Path) -> None:
    """Killed with its parent on a busy machine, it may still be there when the next run begins."""
    program = (
        "import ctypes, os, sys\nfrom pathlib import Path\nfrom bigconv.locks import Lock\n"
        "held = Lock(Path(sys.argv[1]))\nlibc = ctypes.CDLL(None)\nchild = libc.fork()\n"
        "if child == 0:\n    libc.pause()\nprint(child, flush=True)\nsys.stdin.read()\nos._exit(0)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "lock")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None
    assert other.stdout is not None
    child = int(other.stdout.readline())
    try:
        with pytest.raises(OutputError, match="another bigconv is writing here"):
            Lock(tmp_path / "lock")
        other.kill()
        other.wait()
        Lock(tmp_path / "lock").release()
        os.kill(child, 0)  # it was there all the time
    finally:
        os.kill(child, signal.SIGKILL)
        other.stdin.close()
        other.stdout.close()


def test_lock_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        Lock(tmp_path / "missing" / "lock")


def test_the_name_of_a_locked_folder_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []
    monkeypatch.setattr(fsio, "sync_folder", folders.append)
    (tmp_path / "work").mkdir()
    Lock(tmp_path / "work" / "lock").release()
    assert folders == [tmp_path]


def _free_elsewhere(path: Path, shared: bool = False) -> bool:
    """Whether another process gets a lock."""
    child = os.fork()
    if child == 0:
        os._exit(0 if try_lock(path, shared) is not None else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_shared_lock_stays_until_the_last_has_released_it(tmp_path: Path) -> None:
    """Within a process as between processes, though one process has one lock on a file."""
    path = tmp_path / "lock"
    one = try_lock(path, shared=True, make=True)
    two = try_lock(path, shared=True)
    assert one is not None
    assert two is not None
    assert try_lock(path) is None
    assert _free_elsewhere(path, shared=True)
    one.release()
    one.release()  # no more than once
    assert not _free_elsewhere(path)
    assert try_lock(path) is None
    del two
    assert _free_elsewhere(path)
    assert try_lock(path) is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_what_is_locked_alone_can_be_written_read_and_shared(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = try_lock(path, make=True)
    assert lock is not None
    lock.write(b"12345")
    lock.write(b"67")
    assert read_locked(path) == b"67"
    assert not _free_elsewhere(path, shared=True)  # to read it has given nothing up
    lock.share()
    assert _free_elsewhere(path, shared=True)
    assert not _free_elsewhere(path)
    other = try_lock(path, shared=True)
    assert other is not None
    assert lock.stands(path)
    path.unlink()
    assert not lock.stands(path)
    lock.release()
    assert lock.released
    assert not other.released
    with pytest.raises(FileNotFoundError):
        try_lock(path)
