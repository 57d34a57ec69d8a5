"""Who reads which positions of an epoch's order, and how an epoch goes on elsewhere.

All ranks walk through one global order. A step takes `world_size * batch` positions, of which each rank gets `batch`
in one piece; a rank's workers take its steps in turn, which is the sequence in which a DataLoader asks them. So what
a run has read is known by one number, the position in the global order, and any other number of ranks and workers can
go on from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from bigconv.block import Index
from bigconv.errors import UsageError
from bigconv.view.order import Order

PLAN_ROWS = (
    16384  # positions turned into rows at once: numpy's cost a call vanishes, and all of it stays in the L2 cache
)
_KIND = "bigconv.order"  # marks our states inside those of other libraries


@dataclass(frozen=True)
class Lane:
    """One reader of many: a rank and one of its workers."""

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UsageError(f"rank must be from 0 to world_size - 1, got rank {self.rank} of {self.world_size}")


@dataclass(frozen=True)
class Walk:
    """A lane's way through an epoch: what was left of it when the lanes were laid out, and its own steps since.

    `left`: ranges of positions, in the order in which they will come. Without `drop_last` and `pad` every position
    comes exactly once over all lanes; the positions of the last, incomplete step are dealt out evenly, so that ranks
    differ by one row, and by one batch only when there are fewer rows than ranks. `drop_last` leaves that step out;
    `pad` fills it up to an equal number of rows for each rank with rows from the epoch's start.
    """

    rows: int
    batch: int
    lane: Lane
    drop_last: bool = False
    pad: bool = False
    left: tuple[tuple[int, int], ...] = ()
    taken: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"batch_size must be positive, got {self.batch}")
        if self.drop_last and self.pad:
            raise UsageError("drop_last and pad exclude each other: leave the last step out, or fill it up")

    @classmethod
    def start(cls, rows: int, batch: int, lane: Lane, drop_last: bool = False, pad: bool = False) -> Walk:
        return cls(rows, batch, lane, drop_last, pad, ((0, rows),) if rows else ())

    @cached_property
    def _step(self) -> int:
        """Positions of a whole step of all ranks."""
        return self.batch * self.lane.world_size

    @cached_property
    def _left_rows(self) -> int:
        return sum(b - a for a, b in self.left)

    @property
    def steps(self) -> int:
        """Steps that a rank makes, by all its workers."""
        whole, rest = divmod(self._left_rows, self._step)
        if rest == 0 or self.drop_last:
            return whole
        return whole + (self.pad or self._bounds(whole, self.lane.rank)[1] > self._bounds(whole, self.lane.rank)[0])

    def __len__(self) -> int:
        """Batches that the lane makes, those that it has made included."""
        return len(range(self.lane.worker, self.steps, self.lane.workers))

    def _bounds(self, step: int, rank: int) -> tuple[int, int]:
        """From where to where, among what is left, a rank reads in a step."""
        first = step * self._step
        rest = self._left_rows - first
        if rest >= self._step:
            return first + rank * self.batch, first + (rank + 1) * self.batch
        if self.pad:
            rest = -(-rest // self.lane.world_size) * self.lane.world_size
        a, b = (-(-r * rest // self.lane.world_size) for r in (rank, rank + 1))
        return first + a, first + b

    def _positions(self, places: Index) -> Index:
        """Positions in the order, of places among what is left."""
        if len(self.left) == 1:
            first = self.left[0][0]
            positions = places + first if first else places
        else:
            ends = np.cumsum([b - a for a, b in self.left])
            part = np.minimum(np.searchsorted(ends, places, side="right"), len(ends) - 1)
            positions = places + np.array([b for _, b in self.left])[part] - ends[part]
        if self.pad and len(places) and int(places[-1]) >= self._left_rows:
            over = places >= self._left_rows
            positions = np.where(over, (places - self._left_rows) % self.rows, positions)
        return positions

    def batches(self, order: Order) -> Iterator[Index]:
        """int64 row numbers of each batch that the lane still has to make."""
        for rows, bounds in self._planned(order, max(1, PLAN_ROWS // self.batch)):
            at = 0
            for a, b in bounds:
                yield rows[at : at + b - a]
                at += b - a

    def groups(self, order: Order, most: int) -> Iterator[tuple[Index, list[int]]]:
        """The same, up to `most` batches at once: int64 `[rows]`, and where in them each batch ends."""
        for rows, bounds in self._planned(order, max(1, PLAN_ROWS // self.batch // most) * most):
            at = 0
            for first in range(0, len(bounds), most):
                stops = list(accumulate(b - a for a, b in bounds[first : first + most]))
                yield rows[at : at + stops[-1]], stops
                at += stops[-1]

    def _planned(self, order: Order, group: int) -> Iterator[tuple[Index, list[tuple[int, int]]]]:
        """int64 row numbers of `group` batches, and from where to where, among what is left, each reads."""
        total, lane = len(self), self.lane
        whole, step_rows, mine = self._left_rows // self._step, self._step, lane.rank * self.batch
        for i in range(self.taken, total, group):
            steps = range(
                lane.worker + i * lane.workers, lane.worker + min(i + group, total) * lane.workers, lane.workers
            )
            bounds = [
                (step * step_rows + mine, step * step_rows + mine + self.batch)
                if step < whole
                else self._bounds(step, lane.rank)
                for step in steps
            ]
            if bounds[-1][1] - bounds[0][0] == sum(b - a for a, b in bounds):
                places = np.arange(bounds[0][0], bounds[-1][1], dtype=np.int64)
            else:
                places = np.concatenate([np.arange(a, b, dtype=np.int64) for a, b in bounds])
            yield order.at(self._positions(places)), bounds

    # -- going on elsewhere ---------------------------------------------------------------------------------------

    def moved(self, taken: int) -> Walk:
        return replace(self, taken=taken)

    def state(self) -> dict[str, Any]:
        """JSON values from which `resumed` and `merge` go on."""
        return {
            "kind": _KIND,
            "left": [list(piece) for piece in self.left],
            "taken": self.taken,
            "batch_size": self.batch,
            "pad": self.pad,
            "rank": self.lane.rank,
            "world_size": self.lane.world_size,
            "worker": self.lane.worker,
            "num_workers": self.lane.workers,
        }

    def resumed(self, state: Mapping[str, Any]) -> Walk:
        """The walk of this lane from a state on.

        In the same layout the lane goes on where it was. In another one, the ranks are taken to have made the same
        number of steps. Raises `UsageError` for one worker's state of several, from which no other layout can go on.
        """
        left, taken, old = _read(state)
        here = (self.lane.world_size, self.lane.workers, self.lane.worker, self.batch)
        if (old.world_size, old.workers, old.worker, state["batch_size"]) == here:
            return replace(self, left=left, taken=taken)
        if old.workers > 1:
            raise UsageError(
                f"the state is worker {old.worker}'s of {old.workers}, and here are {self.lane.workers} workers, "
                f"{self.lane.world_size} ranks, batches of {self.batch}.\n"
                "Put the workers' states together with StreamDataset.merge([loader_state, ...]) and load the outcome"
            )
        return replace(self, left=_from(left, taken * old.world_size * int(state["batch_size"])), taken=0)

    @property
    def finished(self) -> bool:
        return self.taken >= len(self)


def merge(states: Sequence[Any]) -> dict[str, Any]:
    """One state, from which any number of ranks and workers go on, of the states of several lanes.

    `states`: of each rank, or of one when all have made the same steps; each as `state_dict()` gave it, or as
    torchdata's StatefulDataLoader did, in which the workers' are found. Raises `UsageError` when they don't belong
    together.
    """
    found = [state for outer in states for state in _inside(outer)]
    if not found:
        raise UsageError("no state of a bigconv order in what was given")
    first = found[0]
    own = ("rank", "worker", "taken")
    if any(
        {k: v for k, v in s.items() if k not in own} != {k: v for k, v in first.items() if k not in own} for s in found
    ):
        raise UsageError("the states are of different epochs, orders or layouts")
    left, _, lane = _read(first)
    rows = sum(b - a for a, b in left)
    walk = Walk(rows, first["batch_size"], lane, pad=first["pad"], left=left)
    taken = {(s["rank"], s["worker"]): int(s["taken"]) for s in found}
    ranks = sorted({rank for rank, _ in taken})
    lacking = [(r, w) for r in ranks for w in range(lane.workers) if (r, w) not in taken]
    if lacking or len(taken) != len(found):
        what = f"no state of rank {lacking[0][0]}, worker {lacking[0][1]}" if lacking else "two states of one worker"
        raise UsageError(f"{what}: give one state of each of {lane.workers} workers")
    for rank in set(range(lane.world_size)) - set(ranks):
        taken |= {(rank, w): taken[ranks[0], w] for w in range(lane.workers)}
    low = min(w + n * lane.workers for (_, w), n in taken.items())
    high = max(w + (n - 1) * lane.workers + 1 if n else 0 for (_, w), n in taken.items())
    open_places = []
    for step in range(low, high):
        worker, number = step % lane.workers, step // lane.workers
        for rank in range(lane.world_size):
            a, b = walk._bounds(step, rank)
            if number >= taken[rank, worker] and a < min(b, rows):
                open_places.append((a, min(b, rows)))
    pieces = [piece for a, b in open_places for piece in _between(left, a, b)]
    pieces += _from(left, max(low, high) * walk._step)
    one = {"left": _joined(pieces), "taken": 0, "rank": 0, "worker": 0, "num_workers": 1}
    return {**first, **one}


def _read(state: Mapping[str, Any]) -> tuple[tuple[tuple[int, int], ...], int, Lane]:
    try:
        left = tuple((int(a), int(b)) for a, b in state["left"])
        lane = Lane(int(state["rank"]), int(state["world_size"]), int(state["worker"]), int(state["num_workers"]))
        return left, int(state["taken"]), lane
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"not a state of a bigconv order: {state!r:.80}") from error


def _inside(state: Any) -> Iterator[dict[str, Any]]:
    if isinstance(state, Mapping):
        if state.get("kind") == _KIND:
            yield dict(state)
        elif state.get("_steps_since_snapshot"):
            raise UsageError("the loader's last snapshot is some batches old: give it snapshot_every_n_steps=1")
        else:
            for value in state.values():
                yield from _inside(value)


def _between(left: Sequence[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """The pieces of `left` from place `start` to place `stop`."""
    pieces, at = [], 0
    for a, b in left:
        low, high = max(a, a + start - at), min(b, a + stop - at)
        if low < high:
            pieces.append((low, high))
        at += b - a
    return pieces


def _from(left: Sequence[tuple[int, int]], start: int) -> tuple[tuple[int, int], ...]:
    return tuple(_between(left, start, sum(b - a for a, b in left)))


def _joined(pieces: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Pieces that follow on one another made one."""
    out: list[list[int]] = []
    for a, b in pieces:
        if out and out[-1][1] == a:
            out[-1][1] = b
        else:
            out.append([a, b])
    return out
