"""`bench`: a benchmark as a user asks for it."""

from __future__ import annotations

import platform
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bigconv import fsio
from bigconv.bench import baseline, cold, ladder, processes, residency
from bigconv.bench.advise import Advice, advise
from bigconv.bench.contention import Contention, Watcher
from bigconv.bench.measure import Running, checked_batches, epoch_gap
from bigconv.bench.setting import Setting
from bigconv.bench.subject import Subject, raw_subject, store_subject
from bigconv.bench.sweep import Swept, Tick, random_samples, sweep
from bigconv.errors import InputError, Interrupted, NotAStore, UsageError
from bigconv.remote.urls import naming, parsed
from bigconv.view.opening import fetched

SECONDS = 20.0
#: Shares of the seconds: the sweep has most of them.
SWEEP, LADDER, REST = 0.65, 0.2, 0.15


@dataclass(frozen=True)
class Question:
    """What is asked; names and defaults are the command line's."""

    workers: int | tuple[int, ...] | None = None
    batch_size: int | None = None
    fields: tuple[str, ...] | None = None
    access: str = "shuffled"
    transform: str | None = None
    resize: tuple[int, int] | None = None
    step_ms: float = 0.0
    seconds: float = SECONDS
    cold: bool = False
    only: Setting | None = None
    from_: str | None = None

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise UsageError(f"--seconds {self.seconds:g}: expected more than 0")
        if self.step_ms < 0:
            raise UsageError(f"--step-ms {self.step_ms:g}: expected 0 or more")

    @property
    def step(self) -> float:
        """Seconds."""
        return self.step_ms / 1e3


@dataclass
class Answer:
    """All that was found out about one subject. `starves_ms`: training steps shorter than this wait for data."""

    subject: Subject
    question: Question
    swept: Swept
    advice: Advice
    rungs: list[ladder.Rung] = field(default_factory=list)
    bottleneck: str = ""
    cold: list[cold.ColdRun] = field(default_factory=list)
    resident: tuple[residency.Residency | None, residency.Residency | None] = (None, None)
    starves_ms: float = 0.0
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # of a trial conversion or a workload

    @property
    def best(self) -> float:
        """Samples/s of the recommended setting."""
        return self.advice.run.rate.value

    def to_json(self) -> dict[str, Any]:
        subject, model = self.subject, self.swept.model
        shares = [None if one is None else one.share for one in self.resident]
        return {
            "path": subject.name,
            "kind": subject.kind,
            "rows": subject.rows,
            "batch_size": subject.asked_size,
            "measured_batch_size": self.advice.run.subject.batch_size,
            "sample_bytes": self.advice.run.batch_bytes / self.advice.run.subject.batch_size,
            "access": subject.access,
            "step_ms": self.question.step_ms,
            **subject.options,
            **self.facts,
            "resident_before": shares[0],
            "resident_after": shares[1],
            "model": None if model is None else model.to_json(),
            "runs": [run.to_json() for run in self.swept.runs],
            "not_measured": [setting.key for setting in self.swept.skipped],
            "cold_runs": [run.to_json() for run in self.cold],
            "ladder": [rung.to_json() for rung in self.rungs],
            "bottleneck": self.bottleneck,
            "starves_below_step_ms": self.starves_ms,
            "recommendation": self.advice.to_json(),
            "notes": self.notes,
        }


@dataclass
class Report:
    """Answers; `chosen` is the one to recommend, else the fastest."""

    answers: list[Answer]
    contention: Contention
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    changes: list[baseline.Change] = field(default_factory=list)
    chosen: Answer | None = None

    @property
    def winner(self) -> Answer:
        return self.chosen or max(self.answers, key=lambda answer: answer.best)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "command": "bench",
            "machine": machine(self.contention),
            "interrupted": self.interrupted,
            "recommendation": self.winner.advice.to_json(),
            "runs": [run.to_json() for answer in self.answers for run in answer.swept.runs],
            "subjects": [answer.to_json() for answer in self.answers],
            "notes": self.notes,
            **self.extra,
            **({"baseline": [change.to_json() for change in self.changes]} if self.changes else {}),
        }


def machine(contention: Contention) -> dict[str, Any]:
    """What the figures hold for. No name of a host or a user."""
    available = processes.available_memory()
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": contention.cores,
        "machine_cores": contention.machine_cores,
        "cpu_quota": contention.quota,
        "available_memory_bytes": available,
        "contended": contention.contended,
        "foreign_cpu_share": contention.foreign,
        "stolen_cpu_share": contention.stolen,
        "throttled_share": contention.throttled,
        "cpu_pressure": contention.pressure,
    }


def bench(paths: Sequence[Path | str], question: Question | None = None, tick: Tick | None = None) -> Report:
    """Measure stores and raw files, and say what to set. The same as `bigconv bench` with the same options.

    `tick(what, share)` is called before each measurement. Raises `InputError`, `UsageError`, `StoreError`,
    `SchemaError`, and `Interrupted` when there is nothing to tell yet.
    """
    asked = question or Question()
    subjects = [subject_of(Path(path), asked) for path in paths]
    if not subjects:
        raise UsageError("bench needs a store or raw files to measure")
    names = [subject.name for subject in subjects]
    for i, subject in enumerate(subjects):
        if names.count(subject.name) > 1:  # the same name in two folders
            object.__setattr__(subject, "name", str(paths[i]))
    return measure(subjects, asked, tick)


def measure(subjects: Sequence[Subject], asked: Question, tick: Tick | None = None) -> Report:
    """As `bench`, of subjects that are made."""
    watcher, answers, notes = Watcher(), [], []
    share = 1 / len(subjects)

    def part(number: int) -> Tick:
        def told(what: str, done: float) -> None:
            if tick is not None:
                tick(f"{subjects[number].name}: {what}", (number + min(done, 1.0)) * share)

        return told

    interrupted = False
    for number, subject in enumerate(subjects):
        answer = answer_for(subject, asked, asked.seconds * share, part(number))
        if answer is not None:
            answers.append(answer)
        if answer is None or answer.swept.interrupted:
            interrupted = True
            break
    if not answers:
        raise Interrupted("stopped before anything was measured")
    contention = watcher.result()
    notes += contention.words()
    return Report(answers, contention, interrupted, notes)


def subject_of(path: Path, asked: Question) -> Subject:
    """A store or raw files, which may be at a URL. Raises what their opening raises."""
    with ExitStack() as held:
        here = held.enter_context(fetched(path))
        with naming({here: parsed(path)}):
            subject = _local_subject(here, asked)
        weakref.finalize(subject.dataset, held.pop_all().close)  # raw files stay as long as they are read
    return subject


def _local_subject(path: Path, asked: Question) -> Subject:
    from bigconv import registry
    from bigconv.transforms.function import Function

    if not path.exists():
        raise InputError(fsio.missing(path))
    kind = registry.recognise(path)
    if (kind is None and path.suffix not in registry.extensions("store")) or asked.from_ is not None:
        if asked.fields is not None or asked.transform is not None:
            raise UsageError(f"{path}: raw files have neither --fields nor --transform: convert them first")
        return raw_subject([path], asked.batch_size, asked.access, asked.resize, asked.from_)
    if asked.resize is not None:
        raise UsageError(f"{path}: --resize is for raw images; a store's rows are as they are")
    transform = None
    if asked.transform is not None:
        transform = (asked.transform, Function.find(asked.transform, "transform").load())
    try:
        return store_subject(path, asked.batch_size, asked.access, asked.fields, transform)
    except NotAStore:
        if kind not in ("hdf5", "zarr", "lmdb") or asked.transform is not None:
            raise
        return raw_subject([path], asked.batch_size, asked.access, fields=asked.fields)  # another program's


def answer_for(subject: Subject, asked: Question, seconds: float, tick: Tick) -> Answer | None:
    """Sweep, ladder and what follows from them. None when it was interrupted before anything was known."""
    pin = torch.cuda.is_available()
    before = residency.resident(subject.files)

    def during(what: str, share: float) -> None:
        tick(what, SWEEP * share)

    share = SWEEP if asked.step or asked.cold else SWEEP + REST
    swept = sweep(subject, asked.workers, seconds * share, asked.step, pin, during, asked.only)
    if not swept.runs or swept.model is None:
        return None
    swept.model = swept.model.fitted(swept.runs)
    answer = Answer(subject, asked, swept, advise(swept.runs, swept.model, pin))
    answer.starves_ms = 1e3 * subject.asked_size / answer.best
    answer.resident = before, before
    answer.notes += swept.notes
    if swept.interrupted:
        return answer
    try:
        _deepen(answer, seconds, tick)
    except KeyboardInterrupt:
        swept.interrupted = True
    answer.resident = before, residency.resident(subject.files)
    return answer


def _deepen(answer: Answer, seconds: float, tick: Tick) -> None:
    asked, run = answer.question, answer.advice.run
    subject = run.subject  # in the batches that are measured

    def climbing(what: str) -> None:
        tick(f"ladder, {what}", SWEEP + LADDER / 2)

    answer.rungs = ladder.climb(subject, run.batch_bytes, seconds * LADDER, climbing)
    plain = next((r.rate.value for r in answer.swept.runs if r.setting.key == "DataLoader/0"), run.rate.value)
    answer.bottleneck = ladder.bottleneck(answer.rungs, run.rate.value / plain, run.setting, run.busy)
    tick("epoch gap", SWEEP + LADDER)
    run.epoch_gap = epoch_gap(subject, run.setting)
    if asked.step:
        answer.starves_ms = _starves(subject, run.setting, seconds * REST / 2, tick)
    if asked.cold:
        both = list(dict.fromkeys([run.setting, Setting("DataLoader", 0)]))
        answer.cold = cold.measure(subject, both, seconds * REST, run.step, lambda what: tick(what, 1 - REST))
        answer.notes += dict.fromkeys(why for one in answer.cold if (why := one.words()) is not None)
    answer.notes += _disagreement(answer.swept, subject, run.batch_bytes)


def _starves(subject: Subject, setting: Setting, seconds: float, tick: Tick) -> float:
    """Milliseconds a batch takes when nothing is done but loading."""
    tick("without steps", SWEEP + LADDER)
    running = Running(subject, setting)
    try:
        for _ in range(3):
            running.repeat(seconds / 3)
    finally:
        running.close()
    return 1e3 * subject.asked_size / running.run.rate.value


def _disagreement(swept: Swept, subject: Subject, batch_bytes: int) -> list[str]:
    if not swept.disagree:
        return []
    if random_samples(subject, checked_batches(batch_bytes)):
        return ["samples differ each time they are read, as random transforms make them: no checksum of them"]
    return [f"settings delivered different bytes for the same rows: {'; '.join(swept.disagree)}"]


def compare(report: Report, old: dict[str, Any], limit: float | None, tick: Tick | None = None) -> bool:
    """Hold a report against a baseline; whether it is too slow.

    What looks too slow is measured again, twice at most: others on the machine can make a run slow, never fast.
    """
    new = report.to_json()
    report.changes = baseline.compare(old, new)
    report.notes += baseline.other_machine(old, new)
    if limit is None:
        return False
    by_name = {answer.subject.name: answer for answer in report.answers}
    for i, change in enumerate(report.changes):
        answer = by_name[change.path]
        run = next(r for r in answer.swept.runs if r.setting.key == change.setting)
        for _ in range(2):
            if not report.changes[i].fails(limit):
                break
            if tick is not None:
                tick(f"{change.path}: {run.setting.label} again", 1.0)
            again = Running(run.subject, run.setting, answer.question.step)
            try:
                wall = sum(s.wall for s in run.stretches) / len(run.stretches)
                for _ in range(2 * len(run.stretches)):
                    again.repeat(wall)
            finally:
                again.close()
            if again.run.rate.value > run.rate.value:
                run.stretches = again.run.stretches
                report.changes[i] = baseline.compare(old, report.to_json())[i]
    return any(change.fails(limit) for change in report.changes)
