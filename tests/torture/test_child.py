"""Cases that come from a child: one that hangs or dies is a failure, one on a busy machine isn't."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.torture import Case, _child


def _hangs() -> Iterator[Case]:
    yield Case("first")
    time.sleep(600)


def _works() -> Iterator[Case]:
    yield Case("first")
    begun = time.process_time()
    while time.process_time() - begun < 2.0:  # seconds of a processor, longer than there is patience
        pass
    yield Case("second")


def _dies() -> Iterator[Case]:
    yield Case("first")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("make", "failures"),
    [
        (_hangs, ["", "what comes after it hangs, and was killed"]),
        (_works, ["", ""]),
        (_dies, ["", "the process ended with -9 in what comes after it"]),
    ],
)
def test_streamed(make: Callable[[], Iterator[Case]], failures: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_child, "PATIENCE", 1.0)
    monkeypatch.setattr(_child, "AT_WORK", 0.01)
    cases = list(_child.streamed(make))
    assert [case.failure for case in cases] == failures
    assert all(case.name in ("first", "second") for case in cases)


def test_time_in_which_the_watcher_was_stopped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_child, "PATIENCE", 1.5)
    monkeypatch.setattr(_child, "TICK", 0.1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _child.run(lambda: time.sleep(0.8))
        finally:
            os._exit(code)
    time.sleep(0.2)
    os.kill(child, signal.SIGSTOP)
    below = [pid for pid in _child.tree(child) if pid != child]
    for pid in below:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(2.0)  # longer than there is patience
    for pid in (*below, child):
        os.kill(pid, signal.SIGCONT)
    assert os.waitpid(child, 0)[1] == 0


def test_one_that_works_for_ever_hangs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def spins() -> Iterator[Case]:
        yield Case("first")
        while True:
            pass

    monkeypatch.setattr(_child, "PATIENCE", 0.3)
    monkeypatch.setattr(_child, "AT_WORK", 0.01)
    monkeypatch.setattr(_child, "MOST", 1.0)
    assert [case.failure for case in _child.streamed(spins)] == ["", "what comes after it hangs, and was killed"]
