"""The disk that loses power is a true picture: of what a run does, and of what a cut leaves."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bigconv import fsio
from tests.torture import _child
from tests.torture._disk import Recorder, Write, pending, state
from tests.torture._runs import PACKED, PLAIN, SHARDED, Target, checkpoints_everywhere, contents, folders, half_of

_AT = re.compile(r"<(/[^>]*)>")
_QUOTED = re.compile(r'"(/[^"]*)"')


TARGETS = (*PLAIN, *PACKED, *SHARDED)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.dest)
def test_all_of_a_run_is_the_store(tmp_path: Path, target: Target) -> None:
    """With nothing lost, the recorded disk holds what the real one does; so it does without all unsafe writes."""
    place = tmp_path / "place"
    place.mkdir()
    with checkpoints_everywhere():
        for source in folders(tmp_path):
            dest = place / target.dest
            with Recorder(place).recording() as recorder:
                target.request(source, place).run()
            prefix = f"{dest.name}/"
            real = {dest.name if name == "." else prefix + name: data for name, data in contents(dest).items()}
            unsafe = {n for n in pending(recorder.operations) if isinstance(recorder.operations[n], Write)}
            for lost in (set(), unsafe):  # of what is published, nothing is unsafe any more
                tree = state(recorder.operations, recorder.folders, lost)
                assert {name: data for name, data in tree.items() if data is not None} == real
            fsio.remove(dest)


def test_what_an_append_replaces_is_gone_for_good_before_its_work_is(tmp_path: Path) -> None:
    """Digests that nobody names would be taken for foreign, with no unfinished work left that tells whose they are."""
    target = replace(SHARDED[1], append=True)
    place = tmp_path / "place"
    place.mkdir()
    with checkpoints_everywhere(), Recorder(place).recording() as recorder:
        source = folders(tmp_path)[1]
        target.first(half_of(source), place).run()
        target.request(source, place).run()
    safe = state(recorder.operations, recorder.folders, set(pending(recorder.operations)))
    assert sorted(name for name in safe if name.startswith(f"{target.dest}/")) == sorted(
        f"{target.dest}/{path.name}" for path in (place / target.dest).iterdir()
    )


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.dest)
def test_nothing_escapes_the_recorder(tmp_path: Path, target: Target) -> None:
    """strace sees no call that changes the disk but those recorded: all durable work, the HDF5 library's too, goes
    through `fsio` and Python's `os`."""
    if why := _child.no_strace():
        pytest.skip(why)
    place, told, log = tmp_path / "place", tmp_path / "told", tmp_path / "log"
    place.mkdir()
    source = folders(tmp_path)[1]

    def work() -> None:
        with Recorder(place).recording() as recorder:
            target.request(source, place).run()
        told.write_text(json.dumps(recorder.calls))

    with checkpoints_everywhere():
        traced = _child.mutating_calls(work, place, log)
    recorded = Counter(tuple(call.split(" ", 1)) for call in json.loads(told.read_text()))
    seen: Counter[tuple[str, ...]] = Counter()
    for call in traced:
        if " = -1 " in call.line:
            continue  # it changed nothing: there was nothing to remove, or the folder was there
        paths = _AT.findall(call.line) if call.name != "openat" else []
        if call.name == "copy_file_range":
            paths = paths[1:]  # what is written to
        elif call.name in ("unlinkat", "openat"):
            quoted = re.search(r'"([^"]*)"', call.line)
            assert quoted is not None
            paths = [os.path.join(paths[0] if paths else "/", quoted[1])]
        path = (paths or _QUOTED.findall(call.line))[0]
        name = os.path.relpath(path, place)
        kind = {"renameat2": "rename", "unlinkat": "rmdir" if "AT_REMOVEDIR" in call.line else "unlink"}
        seen[(kind.get(call.name, call.name), name)] += 1
    for (call, name), times in seen.items():
        if call == "openat":
            assert name in {other for _, other in recorded}, name
        else:
            assert times == recorded[call, name], (call, name)
    missed = {(call, name) for call, name in recorded if call != "create"} - set(seen)
    assert missed == set()
