"""What hostile input must come to: a clear error, soon, with little memory, and nothing published."""

from __future__ import annotations

import gc
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bigconv.cli.app import main

SECRET = b"a file of somebody else's, which no store may ever hold"
SECONDS = 30
ROOM = 256 << 20  # 256 MiB that a refusal may allocate: no file here has more than a few MiB


def refused(
    capsys: pytest.CaptureFixture[str], folder: Path, code: int, told: str, *args: object, dest: str = "out.h5"
) -> None:
    """The command ends with `code` and `told` in one to eight lines; only what a later run needs is left."""
    before = sorted(folder.iterdir())
    argv, sys.argv = sys.argv, ["bigconv", "convert", *map(str, args), str(folder / dest), "--workers", "0"]
    try:
        with pytest.raises(SystemExit) as ended, bounded():
            main()
    finally:
        sys.argv = argv
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    assert told in err, err
    assert out == ""
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 8
    assert all(c.isprintable() for line in err.splitlines() for c in line)
    after = set(folder.iterdir()) - set(before)
    if code == 1:
        assert {path.name for path in after} <= {f"{dest}.partial", f"{dest}.rejects.jsonl"}
    else:
        assert after == set()
    for path in after:
        for file in [path, *path.rglob("*")]:
            assert not file.is_file() or SECRET not in file.read_bytes()
    assert not Path("exploded").exists()


@contextmanager
def bounded() -> Iterator[None]:
    """Seconds and memory that what runs inside may take."""
    gc.collect()  # what an earlier test has left, and is freed meanwhile, would be more room
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + ROOM, limits[1]))
    handler = signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_DATA, limits)


class Late(BaseException):
    """Not an error that code under test could take for one of a file and go on."""


def _late(*_: object) -> None:
    raise Late(f"more than {SECONDS} s")
