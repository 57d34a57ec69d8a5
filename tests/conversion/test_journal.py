"""The journal: what counts of it after a kill, and after odd hands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bigconv.conversion.journal import Journal, Record

FIRST = Record(1, 10, 1, 50, 160, 240, {}, ((10, "ab"),))
SECOND = Record(2, 20, 1, 50, 320, 480, {}, ((10, "cd"),))


def written(path: Path, *records: Record) -> list[Record]:
    journal = Journal(path, "plan")
    for record in records:
        journal.append(record)
    journal.close()
    again = Journal(path, "plan")
    again.close()
    return again.records


def test_records_come_back(tmp_path: Path) -> None:
    assert written(tmp_path / "journal", FIRST, SECOND) == [FIRST, SECOND]
    other = Journal(tmp_path / "journal", "another plan")
    other.close()
    assert other.records == []


def test_a_torn_record_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, FIRST, SECOND)
    whole = path.read_bytes()
    for end in (len(whole) - 1, whole.index(b"\n") + 2):
        path.write_bytes(whole[:end])
        assert written(path) == [FIRST]
        assert path.read_bytes() == whole[: whole.index(b"\n") + 1]


@pytest.mark.parametrize("name", ["spans", "rows", "rejects", "reject_bytes", "origin_bytes", "seen_bytes"])
def test_what_was_durable_does_not_go(tmp_path: Path, name: str) -> None:
    """Found by the fuzzer: a record that counts less than the one before, in a chain that fits."""
    assert written(tmp_path / "journal", FIRST, replace(SECOND, **{name: 0})) == [FIRST]
