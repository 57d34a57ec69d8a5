"""What a conversion will take on disk, in the chosen store and in the others: a few rows are made and measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigconv import __version__, fsio, registry
from bigconv.block import Block
from bigconv.conversion.apart import call_apart
from bigconv.conversion.options import USER_STEPS
from bigconv.conversion.plan import Plan
from bigconv.conversion.task import Work, run_span
from bigconv.digest import Digester
from bigconv.manifest import Manifest
from bigconv.sources.base import Reject, Span

PLACES = 5  # where rows are looked at: evenly over the whole, as sizes may drift along a folder or a file
INPUTS = 48  # at each of them
SAMPLE_BYTES = 16 << 20  # 16 MiB: enough rows have been made then
TRIAL_BYTES = 2 << 20  # 2 MiB: the least that is written to a store to measure it, so that pages and chunks fill
TRIAL_ROWS = 1 << 16  # and of tiny rows no more than these: their pages fill, too
PAGED = 1.15  # times its data: from here on a store's overhead is worth a word
GROWN = 3  # times the files: from here on decoding is
LARGE = 100 << 30  # 100 GiB: from here on parts are handier than one file


@dataclass(frozen=True)
class Estimate:
    """`rows` to come, None where only reading tells; `data`: bytes of their values; `stores`: name -> bytes on disk."""

    rows: int | None
    sampled: int  # rows that were made to find it out
    data: int | None
    stores: dict[str, int]
    hints: tuple[str, ...]


@dataclass(frozen=True)
class _Sample:
    inputs: int
    blocks: tuple[Block, ...]
    rejects: tuple[Reject, ...]

    @property
    def rows(self) -> int:
        return sum(len(block) for block in self.blocks)


def estimate(plan: Plan, timeout: float | None, isolated: bool) -> Estimate:
    """Make a few rows, write them to every store, and reckon up. A user's functions run apart if `isolated`.

    Raises what reading raises.
    """
    spans = list(_places(plan))
    isolated = isolated and any(step.name in USER_STEPS for step in plan.steps)
    sample: _Sample = (
        call_apart(_taken_apart, (plan.work, spans), timeout)
        if isolated
        else _taken(lambda _doing, _limited: None, plan.work, spans)
    )
    rows = plan.inputs
    if rows is not None and not plan.rows_stay and sample.inputs:
        rows = round(rows * sample.rows / sample.inputs)  # a step drops or multiplies rows
    if rows is None or not sample.rows:
        return Estimate(rows, sample.rows, None, {}, tuple(_of_rejects(sample)))
    each = sum(block.nbytes for block in sample.blocks) / sample.rows
    block, stores = _tiled(sample.blocks), {}
    for name in dict.fromkeys([plan.store.name, *(n for n, e in registry.STORES.items() if e.extensions)]):
        store = plan.store if name == plan.store.name else registry.load("store", name)()
        start, per_row = _measured(store, block)
        stores[name] = round(start + per_row * rows)
    data = round(each * rows)
    return Estimate(rows, sample.rows, data, stores, (*_of_rejects(sample), *_hints(plan, data, rows, stores)))


def _places(plan: Plan) -> Iterator[Span]:
    """Short spans, evenly over the plan; whole spans of a source that can't cut its own."""
    spans = plan.spans
    for number in sorted({round(i) for i in np.linspace(0, len(spans) - 1, min(PLACES, len(spans)))}):
        span = spans[number]
        yield span if plan.source.inputs is None else Span(span.start, min(span.stop, span.start + INPUTS))


Tell = Callable[[str, bool], None]


def _taken(tell: Tell, work: Work, spans: list[Span]) -> _Sample:
    blocks: list[Block] = []
    rejects: list[Reject] = []
    inputs = held = 0
    for span in spans:
        tell("making a few rows for the estimate", True)
        upto = rows = 0
        for item in run_span(work, span):
            upto = item.upto
            rejects += item.rejects
            if item.block is not None:
                blocks.append(item.block.take(np.arange(len(item.block))))  # the source may use its memory again
                held += item.block.nbytes
                rows += len(item.block)
            if held > SAMPLE_BYTES or (work.source.inputs is None and rows >= INPUTS):
                break
        inputs += upto
        if held > SAMPLE_BYTES:
            break
    return _Sample(inputs, tuple(blocks), tuple(rejects))


def _taken_apart(tell: Tell, work: Work, spans: list[Span]) -> _Sample:
    return _taken(tell, work, spans)


def _tiled(blocks: tuple[Block, ...]) -> Block:
    """The sample over and over as one block, as long as those of a conversion are."""
    block = Block.concat(blocks)
    times = min(round(TRIAL_BYTES / max(1, block.nbytes)), TRIAL_ROWS // len(block))
    return block.take(np.tile(np.arange(len(block)), max(1, times)))


def _measured(store: Any, block: Block) -> tuple[float, float]:
    """Bytes of a store without rows, and of each row: by the sample, and by twice as much of it."""
    with tempfile.TemporaryDirectory(prefix="bigconv-estimate-") as folder:
        once, twice = (_written(store, Path(folder) / f"{n}", block, n) for n in (1, 2))
    per_row = (twice - once) / len(block)
    return once - per_row * len(block), per_row


def _written(store: Any, path: Path, block: Block, times: int) -> int:
    schema, rows = block.schema, times * len(block)
    writer, digester = store.create(path, schema, rows), Digester(schema)
    for _ in range(times):
        writer.append(block)
        digester.update(block)
    writer.close()
    writer.seal(Manifest(schema, rows, store.name, digester.finish(), {}, {}, __version__))
    return sum(fsio.files_below(path).values()) if path.is_dir() else path.stat().st_size


def _of_rejects(sample: _Sample) -> Iterator[str]:
    if sample.rejects:
        first = sample.rejects[0]
        yield (
            f"{len(sample.rejects)} of {sample.inputs} inputs looked at can't be read, so name a limit with "
            f"--max-rejects. {first.path}: {first.error}"
        )


def _hints(plan: Plan, data: int, rows: int, stores: dict[str, int]) -> Iterator[str]:
    """What a person would want to know before the run, and what to type."""
    yield from plan.notes
    mine = plan.store.name
    best = min(stores, key=lambda name: stores[name])
    if stores[mine] > PAGED * data and stores[best] < stores[mine] / PAGED:
        extension = registry.STORES[best].extensions[0]
        yield (
            f"{mine} needs {stores[mine] / data:.2f} times the data, because of its pages or chunks; "
            f"{extension} needs {stores[best] / data:.2f}"
        )
    files = int(plan.source.files.sizes.sum()) if len(plan.source.files) else 0
    images = [f for f in plan.schema if f.kind == "image"]
    if "label_from" in plan.source.options and images and files and data > GROWN * files:
        yield (
            f"decoded, the images are {data / files:.0f} times their files: --keep-encoded stores the files "
            "and decodes them at read"
        )
    if any(f.ragged for f in images):
        yield "the images differ in size, so each row has its own: --resize gives them one, which reads faster"
    doubles = [f.name for f in plan.schema if f.dtype == np.dtype("float64") and f.row_bytes > 64]
    if doubles:
        yield f"{', '.join(doubles)}: float64, twice what most training uses: --dtype float32"
    if stores[mine] > LARGE:
        yield "one large file is slow to copy and to check: --shard-size 1GB makes parts"
