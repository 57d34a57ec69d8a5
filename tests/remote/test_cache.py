"""The cache by itself: its limit, its locks, several processes, and what a kill leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bigconv import fsio
from bigconv.errors import UsageError
from bigconv.remote import cache as module
from bigconv.remote.cache import Cache, Entry, Lease
from tests.remote._given import occupied

PART = 1000  # bytes


def entry(cache: Cache, name: str) -> Entry:
    folder = cache.root / "key"
    cache.keep(folder / "url", b"s3://bucket/train")
    return Entry(folder, "train", name)


def make(path: Path) -> None:
    fsio.write_file(path, b"x" * PART)


def fetch(cache: Cache, name: str) -> Lease:
    return cache.fetch(entry(cache, name), PART, make)


def names(cache: Cache) -> list[str]:
    return sorted(one.name for _, _, one in cache.entries() if one.target.exists())


def age(cache: Cache, name: str, seconds: float) -> None:
    now = time.time() - seconds
    os.utime(entry(cache, name).lock, (now, now))


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    cache, made = Cache(tmp_path), []

    def slowly(path: Path) -> None:
        made.append(1)
        time.sleep(0.05)
        make(path)

    threads = [threading.Thread(target=lambda: cache.fetch(entry(cache, "a"), PART, slowly)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    assert entry(cache, "a").target.read_bytes() == b"x" * PART


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 3 * PART)
    for number, name in enumerate("abc"):
        fetch(cache, name).release()
        age(cache, name, 100 - number)
    fetch(cache, "a").release()  # used again
    fetch(cache, "d").release()
    assert names(cache) == ["a", "c", "d"]


def test_what_is_held_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for oneself would take forever: then the limit is passed, by no more than what oneself holds."""
    cache = Cache(tmp_path, 2 * PART)
    with fetch(cache, "a"), fetch(cache, "b"):
        age(cache, "a", 100)
        fetch(cache, "c").release()
        assert names(cache) == ["a", "b", "c"]
    fetch(cache, "d").release()
    assert len(names(cache)) == 2


def test_others_are_waited_for(tmp_path: Path) -> None:
    cache = Cache(tmp_path, PART)
    held = fetch(cache, "a")
    done = []
    thread = threading.Thread(target=lambda: (fetch(cache, "b"), done.append(names(cache))))
    thread.start()
    time.sleep(0.1)
    assert names(cache) == ["a"]
    assert not done
    held.release()
    thread.join()
    assert done == [["b"]]


def test_who_never_lets_go_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.05)
    cache = Cache(tmp_path, PART)
    held = fetch(cache, "a")
    thread = threading.Thread(target=lambda: fetch(cache, "b"))
    thread.start()
    thread.join(10)
    assert names(cache) == ["a", "b"]
    held.release()


def test_what_fails_leaves_no_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fails(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.fetch(entry(cache, "a"), PART, fails)
    assert names(cache) == []
    goes_on = []
    cache.fetch(entry(cache, "a"), PART, lambda path: (goes_on.append(path.read_bytes()), make(path)))
    assert goes_on == [b"half"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_keeps_no_lock(tmp_path: Path) -> None:
    """A worker forked while a thread of its parent fetches must not keep the part locked for as long as it lives."""
    cache, begun, go = Cache(tmp_path), threading.Event(), threading.Event()

    def slowly(path: Path) -> None:
        begun.set()
        go.wait(10)
        make(path)

    thread = threading.Thread(target=lambda: cache.fetch(entry(cache, "a"), PART, slowly))
    thread.start()
    begun.wait(10)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        go.set()
        thread.join(10)
        assert not thread.is_alive()
        Cache(tmp_path, PART).fetch(entry(cache, "b"), PART, make).release()
        assert names(cache) == ["b"]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


PROCESS = """
import sys, random
from pathlib import Path
from tests.remote.test_cache import PART, Cache, fetch
cache = Cache(Path(sys.argv[1]), 3 * PART)
chance = random.Random(int(sys.argv[2]))
for _ in range(40):
    with fetch(cache, f"part-{chance.randrange(8)}") as lease:
        assert lease.path.read_bytes() == b"x" * PART
"""


def run(tmp_path: Path, seed: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path), str(seed)])


def test_processes_stay_within_the_limit(tmp_path: Path) -> None:
    """Looked at while they run; one of them is killed in the middle, and the others go on."""
    processes = [run(tmp_path, seed) for seed in range(3)]
    most = killed = 0
    while any(process.poll() is None for process in processes):
        most = max(most, occupied(tmp_path))
        if most and not killed:
            processes[0].kill()
            killed = 1
    assert [process.wait() for process in processes[1:]] == [0, 0]
    assert PART <= most <= 4 * PART
    cache = Cache(tmp_path, 3 * PART)
    fetch(cache, "part-9").release()
    assert occupied(tmp_path) <= 3 * PART


def test_the_environment_says_where_and_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGCONV_CACHE", str(tmp_path / "there"))
    monkeypatch.setenv("BIGCONV_CACHE_BYTES", "123")
    assert Cache.default() == Cache(tmp_path / "there", 123)
    monkeypatch.setenv("BIGCONV_CACHE_BYTES", "1 GB")
    with pytest.raises(UsageError, match="a number of bytes"):
        Cache.default()
