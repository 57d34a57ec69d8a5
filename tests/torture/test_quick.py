"""A little of each torture test in every run."""

from __future__ import annotations

import importlib

import pytest

from tests.torture.__main__ import NAMES

#: Scale of each in a quick run: together they take less than a minute on one core.
SCALES = {
    "corrupt": 0.01,
    "differential": 0.01,
    "faults": 0.001,
    "flips": 0.003,
    "functions": 0.01,
    "fuzz": 0.01,
    "kills": 0.001,
    "loading": 0.01,
    "memory": 0.015,
    "parts": 0.02,
    "power": 0.05,
    "reproducible": 0.1,
    "round_trip": 0.004,
    "syscalls": 0.002,
}


def test_all_have_a_quick_run() -> None:
    assert sorted(SCALES) == NAMES


@pytest.mark.parametrize("name", SCALES)
def test_quick(name: str) -> None:
    module = importlib.import_module(f"tests.torture.{name}")
    found = list(module.run(SCALES[name]))
    assert found
    assert [case for case in found if case.failure] == []
    if all(case.skipped for case in found):
        pytest.skip(found[0].skipped)
