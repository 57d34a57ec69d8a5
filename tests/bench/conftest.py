"""Tests that hold one clock against another need a quiet machine: they run by `pytest -m timed` alone."""

from __future__ import annotations

import pytest

TIMED = ("test_compare.py", "test_known_truth.py", "test_watch.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "bench" and item.path.name in TIMED:
            item.add_marker(pytest.mark.timed)
