"""Power cuts: a run is recorded, and every state that a cut can leave is made, opened, and gone on from."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from bigconv import fsio
from tests.torture import Case
from tests.torture._disk import Entry, Operation, Recorder, Sync, Tree, Write, materialise, pending, state
from tests.torture._runs import SUFFIXES, after_a_cut, checkpoints_everywhere, contents, folders, request, workspace

EXHAUSTIVE = 8  # pending operations up to which every combination is tried
SAMPLES = 24  # combinations tried of more than that, at scale 1


def run(scale: float) -> Iterator[Case]:
    with workspace() as root, checkpoints_everywhere():
        for source in folders(root):
            for suffix in SUFFIXES:
                yield from _cut(root, source, suffix, scale)


def _cut(root: Path, source: Path, suffix: str, scale: float) -> Iterator[Case]:
    place = root / f"{source.name}{suffix}"
    place.mkdir()
    dest = place / f"out{suffix}"
    with Recorder(place).recording() as recorder:
        outcome = request(source, dest).run()
    expected, rows = contents(dest), outcome.manifest.rows
    fsio.remove(dest)
    operations, tried = recorder.operations, set()
    rng = random.Random(f"{source.name}{suffix}")
    promises = _promises(recorder)
    points = range(1, len(operations) + 1) if scale >= 1 else sorted(rng.sample(range(1, len(operations) + 1), 3))
    for point in points:
        before = operations[:point]
        waiting = pending(before)
        for lost, torn in _combinations(waiting, before, rng, scale):
            tree = state(before, recorder.folders, lost, torn)
            seen = hashlib.sha256(repr(sorted(tree.items())).encode()).digest()
            if seen in tried:
                continue
            tried.add(seen)
            name = f"{source.name}{suffix} cut at {point} of {len(operations)} without {sorted(lost)}"
            yield Case(name, _try(tree, place, source, dest, rows, expected, promises[point - 1]))


def _combinations(
    waiting: Sequence[int], operations: Sequence[Operation], rng: random.Random, scale: float
) -> Iterator[tuple[frozenset[int], tuple[int, int] | None]]:
    """Which of the pending operations are lost, and which write arrives in part."""
    if len(waiting) <= EXHAUSTIVE and scale >= 1:
        for n in range(len(waiting) + 1):
            yield from ((frozenset(some), None) for some in itertools.combinations(waiting, n))
    else:
        yield frozenset(), None
        yield frozenset(waiting), None
        yield from ((frozenset(waiting) - {n}, None) for n in waiting if scale >= 1)
        yield from ((frozenset({n}), None) for n in waiting if scale >= 1)
        for _ in range(max(2, round(SAMPLES * scale))):
            yield frozenset(n for n in waiting if rng.random() < 0.5), None
    writes = [n for n in waiting if isinstance(o := operations[n], Write) and o.data]
    for n in writes if scale >= 1 else rng.sample(writes, min(1, len(writes))):
        operation = operations[n]
        assert isinstance(operation, Write) and operation.data
        lost = frozenset(m for m in waiting if m != n and rng.random() < 0.3)
        yield lost, (n, rng.randrange(len(operation.data)))


def _promises(recorder: Recorder) -> list[int]:
    """Rows that the journal has promised to keep, after each operation: those of its last record that was synced."""
    promised, found = 0, []
    journal: int | None = None
    content = b""
    for operation in recorder.operations:
        if isinstance(operation, Entry):
            for _, name, node in operation.made:
                if name == "journal":
                    journal, content = node, b""
            if any(name == "plan.json" for _, name in operation.gone):
                promised = 0  # published, or begun anew
        elif isinstance(operation, Write) and operation.node == journal:
            if operation.data is None:
                content = content[: operation.offset]
            else:
                content = content[: operation.offset] + operation.data
        elif isinstance(operation, Sync) and operation.node == journal and content:
            promised = json.loads(content.splitlines()[-1])["rows"]
        found.append(promised)
    return found


def _try(
    tree: Tree, place: Path, source: Path, dest: Path, rows: int, expected: dict[str, bytes], promised: int
) -> str:
    materialise(tree, place)
    try:
        return after_a_cut(source, dest, rows, expected, promised)
    finally:
        for path in place.iterdir():
            fsio.remove(path)
