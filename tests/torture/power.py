"""Power cuts: a run is recorded, and every state that a cut can leave is made, opened, and gone on from."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Sequence

from bigconv import fsio
from tests.torture import Case
from tests.torture._disk import Operation, Recorder, Tree, Write, materialise, pending, state
from tests.torture._runs import Trial, checkpoints_everywhere, half_of, trials, workspace

EXHAUSTIVE = 8  # pending operations up to which every combination is tried
SAMPLES = 24  # combinations tried of more than that, at scale 1


def run(scale: float) -> Iterator[Case]:
    with workspace() as root, checkpoints_everywhere():
        for source, target in trials(root):
            yield from _cut(Trial(root, source, target), scale)


def _cut(trial: Trial, scale: float) -> Iterator[Case]:
    place, begin = trial.place, 0
    fsio.remove(trial.dest)
    with Recorder(place).recording() as recorder:
        if trial.target.there:
            trial.target.first(half_of(trial.source), place).run()
            begin = len(recorder.operations)
        trial.request.run()
    fsio.remove(trial.dest)
    operations, tried = recorder.operations, set()
    rng = random.Random(trial.name)
    every = range(begin + 1, len(operations) + 1)
    points = every if scale >= 1 else sorted(rng.sample(every, 3))
    for point in points:
        before = operations[:point]
        waiting = pending(before)
        promised = _promised(state(before, recorder.folders, set(waiting)), trial.dest.name, trial.plan)
        for lost, torn in _combinations(waiting, before, rng, scale):
            tree = state(before, recorder.folders, lost, torn)
            seen = hashlib.sha256(repr(sorted(tree.items())).encode()).digest()
            if seen in tried:
                continue
            tried.add(seen)
            materialise(tree, place)
            case = f"{trial.name} cut at {point} of {len(operations)} without {sorted(lost)}"
            yield Case(case, trial.after_a_cut(promised))
            for path in place.iterdir():
                fsio.remove(path)


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


def _promised(safe: Tree, dest: str, plan: str) -> int:
    """Rows that unfinished work has promised to keep: of what is on the disk for certain, the journal's last record, or
    the results of the parts that are made. `plan`: what is being made; of another, nothing is kept."""
    begun = safe.get(f"{dest}.partial/plan.json")
    if not begun or json.loads(begun)["makes"] != plan:
        return 0
    journal = safe.get(f"{dest}.partial/journal")
    if journal:
        return int(json.loads(journal.splitlines()[-1])["rows"])
    results = [
        data for name, data in safe.items() if name.startswith(f"{dest}.partial/results/") and ".new" not in name
    ]
    return sum(json.loads(data)["rows"] for data in results if data)
