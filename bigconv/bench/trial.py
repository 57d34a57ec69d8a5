"""A sample of raw data converted into each store: which format, with which loader, and the command that makes it."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigconv import fsio, registry
from bigconv.bench import processes
from bigconv.bench.advise import WITHIN
from bigconv.bench.api import Answer, Question, Report, answer_for
from bigconv.bench.contention import Watcher
from bigconv.bench.subject import Subject, raw_subject, store_subject
from bigconv.bench.sweep import Tick, quiet
from bigconv.conversion.request import Request
from bigconv.conversion.run import Policy
from bigconv.errors import InputError, Interrupted, SchemaError, UsageError
from bigconv.view.opening import address, fetched, open_store

PILOT = 64  # inputs that are converted first, to tell how many the time allows
MOST = 200_000  # inputs of a trial
MOST_BYTES = 512 << 20  # 512 MiB a store
ALIKE = 1.03  # in size: then the one that is made faster
CONVERTING = 0.3  # share of the seconds


@dataclass(frozen=True)
class Choice:
    """A way to store: `name` in the table, extension, and options of `convert`."""

    name: str
    extension: str
    keep_encoded: bool = False


def trial(paths: Sequence[Path], stores: Sequence[str], asked: Question, tick: Tick | None = None) -> Report:
    """Convert as many inputs as the time allows into each store, and measure them beside the raw files.

    The winner reads fastest; among those within 3 % the smallest. Raises what `convert` raises.
    """
    if not paths:
        raise UsageError("--stores converts raw data: name a folder or files")
    if not stores:
        raise UsageError("--stores: expected names of stores, as h5,zarr,lmdb,mmap")
    with ExitStack() as held:
        here = [held.enter_context(fetched(path)) for path in paths]
        if asked.fields is not None and "columns" not in _options(here, asked):
            raise UsageError("--fields with --stores takes columns of a table, or datasets of HDF5 or Zarr")
        return _tried(here, stores, asked, tick)


def _options(paths: Sequence[Path], asked: Question) -> tuple[str, ...]:
    """Those of the source that reads the paths."""
    from bigconv.conversion.options import recognise

    options: tuple[str, ...] = registry.load("source", asked.from_ or recognise(paths)).options
    return options


def _tried(paths: Sequence[Path], stores: Sequence[str], asked: Question, tick: Tick | None) -> Report:
    watcher, told = Watcher(), tick or quiet
    choices = _choices(paths, stores, asked)
    share = 1 / (len(choices) + 1)
    seconds = asked.seconds * (1 - CONVERTING) * share
    answers: list[Answer] = []
    notes: list[str] = []
    interrupted = False

    def part(number: int, name: str) -> Tick:
        return lambda what, done: told(f"{name}: {what}", (number + done) * share)

    def measured(subject: Subject, number: int, facts: dict[str, Any]) -> None:
        answer = answer_for(subject, _quick(asked), seconds, part(number, subject.name))
        if answer is not None:
            answer.facts = facts
            answers.append(answer)
        if answer is None or answer.swept.interrupted:
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory(prefix="bigconv-bench-") as scratch:
        folder = Path(scratch)
        try:
            limit = _limit(paths, choices[0], folder, asked, told)
            for number, choice in enumerate(choices):
                told(f"converting to {choice.name}", number * share)
                subject, facts = _converted(paths, choice, folder, limit, asked)
                measured(subject, number, facts)
            try:
                measured(_raw(paths, asked), len(choices), {})
            except (InputError, SchemaError, UsageError) as error:
                notes.append(f"the raw files were not measured: {str(error).splitlines()[0]}")
        except (KeyboardInterrupt, Interrupted):
            interrupted = True
    converted = [answer for answer in answers if answer.subject.kind == "store"]
    if not converted:
        raise Interrupted("stopped before anything was measured")
    best = _best(converted)
    notes.append(f"stores hold a sample of {best.subject.rows:,} rows, read from the page cache")
    contention, extra = watcher.result(), _extra(paths, best, answers, asked)
    return Report(answers, contention, interrupted, [*contention.words(), *notes], extra, chosen=best)


def _choices(paths: Sequence[Path], stores: Sequence[str], asked: Question) -> list[Choice]:
    found = []
    for name in stores:
        registry.load("store", name)
        extension = registry.STORES[registry.ALIASES.get(name, name)].extensions
        if not extension:
            raise UsageError(f"--stores {name}: a store that holds nothing on disk can't be compared")
        found.append(Choice(extension[0][1:], extension[0]))
    from bigconv.conversion.options import recognise

    if asked.resize is None and (asked.from_ or recognise(paths)) == "images":
        # images of one size can be decoded at read: many times smaller, and slower unless there are cores to spare
        found.append(Choice(f"{found[0].name}, encoded", found[0].extension, keep_encoded=True))
    return found


def _limit(paths: Sequence[Path], choice: Choice, folder: Path, asked: Question, told: Tick) -> int:
    """How many inputs each store gets in its share of the time, by what more of them take: to start takes time, too."""
    seconds, limit = asked.seconds * CONVERTING / 6, PILOT
    before: tuple[int, float] | None = None
    while True:
        told(f"a first {limit} inputs", 0.0)
        dest = folder / f"pilot{choice.extension}"
        start = time.perf_counter()
        rows = _request(paths, choice, dest, limit, asked).run().manifest.rows
        took, nbytes = time.perf_counter() - start, open_store(dest).bytes()
        fsio.remove(dest)
        room = min(MOST, int(MOST_BYTES * rows / max(nbytes, 1)))
        if rows < limit or limit >= room or took > 4 * seconds:
            return max(min(limit, room), PILOT)
        if before is not None:
            each = max(took - before[1], 1e-3) / (limit - before[0])
            if seconds / each < 8 * limit:
                return max(PILOT, min(int(seconds / each), room))
        before, limit = (limit, took), 8 * limit


def _request(paths: Sequence[Path], choice: Choice, dest: Path, limit: int, asked: Question) -> Request:
    steps = (("resize", f"{asked.resize[0]}x{asked.resize[1]}"),) if asked.resize else ()
    policy = Policy(workers=processes.cores(), max_rejects="100%")
    options: dict[str, Any] = {"keep_encoded": choice.keep_encoded, "label_from": None, "columns": _columns(asked)}
    return Request(tuple(paths), dest, from_=asked.from_, steps=steps, limit=limit, policy=policy, options=options)


def _columns(asked: Question) -> list[str] | None:
    return None if asked.fields is None else list(asked.fields)


def _converted(
    paths: Sequence[Path], choice: Choice, folder: Path, limit: int, asked: Question
) -> tuple[Subject, dict[str, Any]]:
    dest = folder / f"{choice.name.replace(', ', '-')}{choice.extension}"
    start = time.perf_counter()
    rows = _request(paths, choice, dest, limit, asked).run().manifest.rows
    seconds = time.perf_counter() - start
    if not rows:
        raise UsageError(f"{paths[0]}: none of the first {limit} inputs could be converted")
    subject = store_subject(dest, asked.batch_size, asked.access)
    subject = replace(subject, name=choice.name, made=f"StoreDataset({'train' + choice.extension!r})")
    return subject, {
        "converted_rows_per_second": rows / seconds,
        "stored_bytes_per_row": open_store(dest).bytes() / rows,
        "keep_encoded": choice.keep_encoded,
    }


def _quick(asked: Question) -> Question:
    """No worker, and as many workers and threads as there are cores: enough to tell formats apart."""
    cores = processes.cores()
    return replace(asked, workers=asked.workers if asked.workers is not None else tuple(sorted({0, 1, cores})))


def _raw(paths: Sequence[Path], asked: Question) -> Subject:
    """The raw files, as people read them today."""
    subject = raw_subject(paths, asked.batch_size, asked.access, asked.resize, asked.from_, asked.fields)
    return replace(subject, name=f"{subject.name}, raw files")


def _best(answers: Sequence[Answer]) -> Answer:
    """Of those that can't be told from the fastest the smallest, of those of a size the one converted fastest."""
    fastest = max(answer.best for answer in answers)
    near = [answer for answer in answers if answer.advice.run.rate.high >= WITHIN * fastest]
    smallest = min(answer.facts["stored_bytes_per_row"] for answer in near)
    small = [answer for answer in near if answer.facts["stored_bytes_per_row"] <= ALIKE * smallest]
    return max(small, key=lambda answer: float(answer.facts["converted_rows_per_second"]))


def _extra(paths: Sequence[Path], best: Answer, answers: Sequence[Answer], asked: Question) -> dict[str, Any]:
    """The command that makes the winner, and why it won."""
    words = ["bigconv", "convert", *map(address, paths), f"train.{best.subject.name.split(', ')[0]}"]
    if asked.from_:
        words += ["--from", asked.from_]
    if asked.resize:
        words += ["--resize", f"{asked.resize[0]}x{asked.resize[1]}"]
    if asked.fields:
        words += ["--columns", ",".join(asked.fields)]
    if best.facts["keep_encoded"]:
        words.append("--keep-encoded")
    others = [a for a in answers if a is not best and a.subject.kind == "store"]
    why = f"{best.best:,.0f} samples/s"
    if others:
        rival = max(others, key=lambda a: a.best)
        size = rival.facts["stored_bytes_per_row"] / best.facts["stored_bytes_per_row"]
        fast = best.facts["converted_rows_per_second"] / rival.facts["converted_rows_per_second"]
        why += f", {best.best / rival.best:.2f}x of {rival.subject.name}"
        if best.best < rival.best / WITHIN:
            tie = f"{size:.2f}x smaller" if size > ALIKE else f"converted {fast:.2f}x as fast"
            why += f" (no certain difference), and {tie}"
    raw = next((a for a in answers if a.subject.kind == "raw"), None)
    if raw is not None:
        why += f", {best.best / raw.best:.1f}x of the raw files"
    return {"convert": shlex.join(words), "convert_reason": why}
