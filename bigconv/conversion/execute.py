"""Run a plan: spans in, blocks out, in plan order whatever the number of workers."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from bigconv.block import Block
from bigconv.conversion.plan import Plan
from bigconv.errors import InputError
from bigconv.sources.base import Reject, Source, Span
from bigconv.transforms.base import Transform

AHEAD = 2  # spans a worker that may wait finished for their turn: bounds memory, hides uneven spans


def run(plan: Plan, workers: int) -> Iterator[Block | Reject]:
    """Blocks and rejects of all spans, in plan order."""
    if workers == 0 or len(plan.spans) < 2 or not (plan.source.decodes or plan.steps):
        for span in plan.spans:
            yield from run_span(plan.source, plan.steps, span)
        return
    yield from _parallel(plan, min(workers, len(plan.spans)))


def run_span(source: Source, steps: tuple[Transform, ...], span: Span) -> Iterator[Block | Reject]:
    """One span, read and transformed."""
    rows = 0
    for item in source.read(span):
        if isinstance(item, Reject):
            rows += 1
            yield item
            continue
        rows += len(item)
        for step in steps:
            item = step(item)
        item.validate()
        yield item
    if rows != len(span):
        raise InputError(f"{source.name}: inputs {span.start} to {span.stop} gave {rows} rows: the source has changed")


def _parallel(plan: Plan, workers: int) -> Iterator[Block | Reject]:
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(plan.source, plan.steps)
    ) as pool:
        spans = iter(plan.spans)
        waiting: deque[Future[list[Block | Reject]]] = deque()
        try:
            for span in spans:
                waiting.append(pool.submit(_task, span))
                if len(waiting) >= workers * AHEAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool as error:
            raise InputError("a worker died while reading; try --workers 0 to see where") from error
        finally:
            for future in waiting:
                future.cancel()


_work: tuple[Source, tuple[Transform, ...]] | None = None


def _start(source: Source, steps: tuple[Transform, ...]) -> None:
    global _work
    _work = source, steps


def _task(span: Span) -> list[Block | Reject]:
    assert _work is not None
    return list(run_span(*_work, span))
