"""A little of each torture test in every run."""

from __future__ import annotations

import importlib

import pytest

#: Scale of each in a quick run, so that together they stay well under three minutes.
SCALES = {"corrupt": 0.01, "flips": 0.05, "kills": 0.02, "memory": 0.03, "reproducible": 0.1}


@pytest.mark.parametrize("name", SCALES)
def test_quick(name: str) -> None:
    module = importlib.import_module(f"tests.torture.{name}")
    found = list(module.run(SCALES[name]))
    assert found
    assert [case for case in found if case.failure] == []
