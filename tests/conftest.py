"""Fixtures that tests share: each store in turn, and a way to fill it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bigconv import registry
from bigconv.block import Block
from bigconv.testing.store_suite import write

SUFFIXES = {name: entry.extensions[0] for name, entry in registry.STORES.items() if entry.extensions}


@pytest.fixture(params=SUFFIXES)
def suffix(request: pytest.FixtureRequest) -> str:
    """Extension of each store in turn."""
    return SUFFIXES[request.param]


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Path]:
    """`make_store(block, suffix)`: publish a block as a store and give its path."""

    def make(block: Block, suffix: str, name: str = "store") -> Path:
        path = tmp_path / f"{name}{suffix}"
        store = registry.load("store", registry.store_for(path))()
        write(path, store, block, 16)
        return path

    return make
