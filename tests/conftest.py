"""Fixtures that tests share: each store in turn, and a way to fill it; and what makes the whole run quick."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from bigconv import registry
from bigconv.block import Block
from bigconv.testing.store_suite import write
from tests.warm import Warm

SUFFIXES = {name: entry.extensions[0] for name, entry in registry.STORES.items() if entry.extensions}

MEMORY = Path("/dev/shm")
ROOM = 4 << 30  # 4 GiB: several times what tests keep at a time

# Hundreds of processes are started: without compiled modules each would compile all of bigconv anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# As many processes as there are cores run tests: threads of torch would wait for one another, and spin meanwhile.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Folders of tests are in memory where there is room: that files last is tried with disks that lose power, and
    an fsync of a real one takes longer than what most tests do between two."""
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK):
        found = os.statvfs(MEMORY)
        if found.f_bavail * found.f_frsize >= ROOM:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the fork server before a test does, with what any worker imports: multiprocessing has one a process, and
    it stays as it was when it was asked for first. What all modules have made is no garbage, so nobody looks at it
    again: forked children would get copies of all of it by looking."""
    gc.collect()
    gc.freeze()
    if session.config.option.collectonly or not session.items or not hasattr(os, "fork"):
        return
    modules = ["bigconv.conversion.parts_engine", "bigconv.sources.images", "bigconv.sources.store", "trapped"]
    forkserver.set_forkserver_preload([*modules, "bigconv.runtime"] if "torch" in sys.modules else modules)
    forkserver.ensure_running()


@pytest.fixture(params=SUFFIXES)
def suffix(request: pytest.FixtureRequest) -> str:
    """Extension of each store in turn."""
    return SUFFIXES[request.param]


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Commands and programs in processes of their own, at a tenth of the time."""
    server = Warm()
    yield server
    server.close()


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Path]:
    """`make_store(block, suffix)`: publish a block as a store and give its path."""

    def make(block: Block, suffix: str, name: str = "store") -> Path:
        path = tmp_path / f"{name}{suffix}"
        store = registry.load("store", registry.store_for(path))()
        write(path, store, block, 16)
        return path

    return make
