"""Rates, waits and checksums against loaders whose truth is known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from bigconv.bench import contention, measure, model, payload, processes, residency, setting, stats
from bigconv.bench.advise import advise, undecided
from bigconv.bench.api import Question
from bigconv.bench.api import measure as bench_subjects
from bigconv.bench.subject import Subject, store_subject
from bigconv.bench.sweep import plan, sweep
from bigconv.errors import InputError, SchemaError, UsageError
from bigconv.schema import Field, Schema
from bigconv.testing.cases import block

timed = pytest.mark.timed  # holds clocks against one another: python -m pytest -m timed

ROWS = Schema((Field("x", "uint8", (64,)), Field("y", "int64")))


class Priced(Dataset[Any]):
    """Exactly one sample every `cost` seconds in each thread: what the system is late by, the next one makes up for.

    `busy`: `cost` seconds of this thread's CPU instead.
    """

    def __init__(self, cost: float, rows: int = 4096, busy: bool = False) -> None:
        self.cost, self.rows, self.busy = cost, rows, busy
        self.due: dict[int, float] = {}

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> torch.Tensor:
        if self.busy:
            end = time.thread_time() + self.cost
            while time.thread_time() < end:
                pass
        else:
            now, me = time.perf_counter(), threading.get_ident()
            due = self.due.get(me, 0.0) + self.cost
            if now - due > 20 * self.cost:  # nobody asked for a while
                due = now + self.cost
            self.due[me] = due
            time.sleep(max(0.0, due - now))
        return torch.tensor([i])


def subject(dataset: Any, batch: int = 16) -> Subject:
    return Subject("priced", "raw", dataset, (), batch, "shuffled", "dataset")


def run(what: Subject, how: setting.Setting, seconds: float = 0.15, repeats: int = 3, step: float = 0.0) -> measure.Run:
    running = measure.Running(what, how, step)
    try:
        for _ in range(repeats):
            running.repeat(seconds)
    finally:
        running.close()
    return running.run


@timed
@pytest.mark.parametrize("how", [setting.processes(0), setting.processes(2), setting.threads(1), setting.threads(3)])
def test_reported_rate_is_the_true_one(how: setting.Setting) -> None:
    """Sleep takes no core, so the truth holds on a busy machine, too."""
    found = run(subject(Priced(0.005), 8), how, 0.2).rate
    assert found.value == pytest.approx(max(how.workers, 1) / 0.005, rel=0.05)


@timed
def test_prefetched_batches_are_not_counted_as_speed() -> None:
    """A median of rates between batches would say the queue's speed: workers deliver in bursts while nobody asks."""
    running = measure.Running(subject(Priced(0.005), 8), setting.processes(2))
    try:
        time.sleep(0.3)  # the queue is full now
        stretch = running.measure(0.2)
    finally:
        running.close()
    assert stretch.samples / stretch.wall == pytest.approx(2 / 0.005, rel=0.07)


@timed
def test_steps_keep_an_accelerator_busy_or_not() -> None:
    class Sleepy(Priced):
        def __getitem__(self, i: int) -> torch.Tensor:
            time.sleep(self.cost)
            return torch.tensor([i])

    fast = run(subject(Sleepy(0.001), 4), setting.threads(1), step=0.02)
    slow = run(subject(Sleepy(0.005), 8), setting.processes(0), step=0.02)
    assert slow.busy is not None
    assert fast.busy is not None
    assert fast.busy > slow.busy + 0.2, "read while it trained"
    assert 0.1 < slow.busy < 0.335, "40 ms of reading and 20 ms of training, one after the other"
    assert slow.busy == pytest.approx(slow.rate.value / 8 * 0.02)


@timed
def test_model_tells_blocked_from_computing() -> None:
    for busy, blocked in ((False, 0.004), (True, 0.0)):
        found = run(subject(Priced(0.004, busy=busy), 8), setting.processes(0))
        costs = model.Model.of(found, cores=2)
        assert costs.cpu == pytest.approx(0.004 if busy else 0.0, abs=0.0006)
        assert costs.blocked == pytest.approx(blocked, abs=0.0015)
        assert costs.worth_trying(setting.processes(8)) is (not busy)
        assert costs.worth_trying(setting.processes(2))
        assert costs.rate(setting.processes(8)) == pytest.approx(500 if busy else 2000, rel=0.2)


@timed
def test_sleeping_samples_earn_more_workers_than_cores() -> None:
    answer = bench_subjects([subject(Priced(0.004), 4)], Question(workers=4 * processes.cores(), seconds=2)).winner
    assert answer.advice.setting.workers == 4 * processes.cores()
    assert "blocked" in answer.advice.reason


@timed
@pytest.mark.parametrize("how", [setting.processes(1), setting.threads(1)])
def test_one_worker_makes_samples_that_hold_the_lock_as_fast_as_none(how: setting.Setting) -> None:
    """They delay deliveries by whole batches, in bursts: the first of a stretch as much as the last."""
    watcher = contention.Watcher()
    what = subject(Priced(0.004, busy=True), 8)
    found, alone = (run(what, one, 0.25, 6).rate.value for one in (how, setting.processes(0)))
    if watcher.result().foreign is None or watcher.result().contended:
        pytest.skip("others use the cores")
    assert found == pytest.approx(alone, rel=0.1), "a worker has a thread more, which sends"


@timed
@pytest.mark.parametrize("busy", [True, False])
def test_asking_again_gives_the_same_advice(busy: bool) -> None:
    """2 ms a sample: as many workers as cores where they compute, in whatever order one asks."""
    cores = processes.cores()
    found = [bench_subjects([subject(Priced(0.002, busy=busy), 8)], Question(seconds=3)) for _ in range(2)]
    if cores < 2 or any(report.contention.contended for report in found):
        pytest.skip("others use the cores")
    for report in found:
        chosen = report.winner.advice.setting
        assert chosen.workers == cores
        assert chosen.threaded is not busy, "those that compute wait for Python's lock, those that sleep don't"


def test_loaders_that_wait_for_their_turn_hold_nothing(make_store: Callable[..., Path]) -> None:
    """Batches in the queue of one would be memory that the next one, in the same process, has to map anew."""
    path = make_store(block(ROWS, 2000), ".mmap")
    running = measure.Running(store_subject(path, 64, "shuffled"), setting.threads(2))
    try:
        for _ in range(2):
            assert not [t for t in threading.enumerate() if t.name.startswith("bigconv-loader")]
            first = running.measure(0.01)
            assert first.samples % 128 == 0 and first.samples > 0
    finally:
        running.close()


def test_a_loader_goes_on_with_the_order_where_it_was() -> None:
    """Rows that were read a moment ago are in a cache: to read them again would measure that."""

    class Noted(Priced):
        def __getitem__(self, i: int) -> torch.Tensor:
            asked.append(i)
            return torch.tensor([i])

    asked: list[int] = []
    running = measure.Running(subject(Noted(0, 1 << 16), 8), setting.processes(0))
    for _ in range(3):
        running.measure(0.001)
    running.close()
    assert len(set(asked)) == len(asked) > 64


def test_undecoded_rows_need_no_workers(make_store: Callable[..., Path]) -> None:
    answer = bench_subjects(
        [store_subject(make_store(block(ROWS, 5000), ".mmap"), 256, "shuffled")], Question(seconds=2)
    ).winner
    assert answer.advice.setting.processes == 0
    names = [rung.name for rung in answer.rungs]
    assert names[:4] == ["gather limit", "store read", "collate", "worker transfer"]
    assert names[-1] == "replay"
    assert "of the limit" in answer.bottleneck or "one core" in answer.bottleneck
    sums = {found.checksum for found in answer.swept.runs}
    assert len(sums) == 1, "every setting delivers the same bytes"


def test_checksum_is_of_the_rows_and_changes_with_one_bit(
    make_store: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_store(block(ROWS, 300), ".h5")
    what = store_subject(path, 32, "shuffled")
    clean = run(what, setting.processes(0), 0.01, 1).checksum
    rows = iter(what.batches())
    expected = payload.Checksum()
    for _ in range(measure.CHECKED):  # the store's own library is the oracle
        taken = what.dataset.view.stores[0].store.open(path, ROWS, 300).take(next(rows), ROWS.names)  # type: ignore[attr-defined]
        expected.add({name: torch.from_numpy(taken.columns[name]) for name in ROWS.names})
    assert clean == expected.hex

    from bigconv.view.table import StoreView

    honest = StoreView.take_field

    def wrong(self: Any, name: str, index: Any, out: Any = None) -> Any:
        column = honest(self, name, index, out)
        if name == "x":
            column[0, 3] ^= 1  # type: ignore[index]
        return column

    monkeypatch.setattr(StoreView, "take_field", wrong)
    assert run(store_subject(path, 32, "shuffled"), setting.processes(0), 0.01, 1).checksum != clean


def test_settings_that_deliver_other_bytes_are_told() -> None:
    class Torn(Priced):
        def __getitem__(self, i: int) -> torch.Tensor:
            in_worker = torch.utils.data.get_worker_info() is not None
            return torch.tensor([i + in_worker])

    class Random(Priced):
        def __getitem__(self, i: int) -> torch.Tensor:
            return torch.rand(3)

    asked = Question(workers=(0, 1), seconds=0.6)
    assert any("different bytes" in note for note in bench_subjects([subject(Torn(0))], asked).winner.notes)
    assert any("random transforms" in note for note in bench_subjects([subject(Random(0))], asked).winner.notes)


def test_batches_that_take_long_are_measured_in_parts() -> None:
    """What is asked for stays as it was: only the measuring takes a part of it."""
    answer = bench_subjects([subject(Priced(0.005), 64)], Question(workers=(0, 1), seconds=1.0)).winner
    found = answer.to_json()
    assert found["batch_size"] == 64
    assert 1 <= found["measured_batch_size"] < 32
    assert found["sample_bytes"] == 8
    assert found["starves_below_step_ms"] == pytest.approx(64 * 1e3 / answer.best)
    assert "batch_size=64" in found["recommendation"]["snippet"]
    assert any("in parts of" in note for note in found["notes"])
    assert len({run.checksum for run in answer.swept.runs}) == 1


def test_batches_that_cost_by_themselves_are_measured_whole() -> None:
    """A part of such a batch costs as much as all of it, and tells nothing of its rows."""

    class Far(Priced):
        def __getitems__(self, rows: list[int]) -> list[torch.Tensor]:
            time.sleep(0.06)
            return [torch.tensor([i]) for i in rows]

    answer = bench_subjects([subject(Far(0), 16)], Question(workers=(0,), seconds=0.3)).winner
    assert answer.to_json()["measured_batch_size"] == 16
    assert not answer.notes


# -- statistics -------------------------------------------------------------------------------------------------------


def test_rate_is_total_over_wall() -> None:
    """10 in 1 s and 10 in 9 s are 2 a second: neither the mean nor the median of the rates."""
    found = stats.rate_of([10, 10], [1.0, 9.0])
    assert found.value == 2.0
    assert found.low == 0.0 and found.high > 10


def test_intervals_hold_the_truth_19_times_in_20() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        seconds = rng.normal(1.0, 0.1, 5)
        found = stats.rate_of([100] * 5, seconds.tolist())
        inside += found.low <= 100 <= found.high
    assert 0.93 < inside / 2000 < 0.98


def test_quantiles_are_values_that_occurred() -> None:
    waits = [float(i) for i in range(1, 101)]
    assert [stats.quantile(waits, q) for q in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert stats.quantile([7.0], 0.01) == 7.0


# -- the advice -------------------------------------------------------------------------------------------------------


def known(rates: dict[setting.Setting, Any]) -> list[measure.Run]:
    """Runs that have measured these rates, exactly; of a list one in each turn."""
    found = []
    for how, rate in rates.items():
        stretches = [
            measure.Stretch(round(n), 1.0, (32 / n,) * round(n / 32), processes.Usage(0, 0, 0), turn)
            for turn, n in enumerate([rate] * 5 if isinstance(rate, (int, float)) else rate)
        ]
        found.append(measure.Run(subject(Priced(0), 32), how, 1 << 14, stretches=stretches))
    return found


@pytest.mark.parametrize(
    ("threads", "chosen", "words"),
    [
        ((500, 510), setting.processes(2), "threads reach 0.51x of it, as they wait for Python's lock"),
        ((500, 990), setting.threads(2), "worker processes reach 1.01x of it"),
        ((980, 970), setting.threads(1), "within 2.0% of DataLoader, 2 workers and smaller"),
    ],
)
def test_threads_against_processes(threads: tuple[int, int], chosen: setting.Setting, words: str) -> None:
    """A transform of 2 ms on two cores: it holds Python's lock, or it doesn't."""
    rates = {setting.processes(n): rate for n, rate in enumerate((480, 500, 1000))}
    rates |= {setting.threads(n): rate for n, rate in zip((1, 2), threads, strict=True)}
    advice = advise(known(rates), model.Model(0.002, 0.0, 2), False)
    assert advice.setting.key == chosen.key
    assert words in advice.reason


def test_a_smaller_setting_is_not_granted_on_noise() -> None:
    """Within 3 % by its mean, but one turn in five made it so: the best is taken, and the two are measured again."""
    lucky = known({setting.threads(2): (940, 940, 940, 940, 1100), setting.processes(2): (1000,) * 5})
    assert advise(lucky, model.Model(0.002, 0.0, 2), False).setting.key == "DataLoader/2"
    assert [r.setting.key for r in undecided(lucky)] == ["Loader/2", "DataLoader/2"]
    sure = known({setting.threads(2): (975, 970, 980, 972, 978), setting.processes(2): (1000,) * 5})
    assert advise(sure, model.Model(0.002, 0.0, 2), False).setting.key == "Loader/2"
    assert undecided(sure) == []
    slower = known({setting.threads(2): (940, 945, 935, 940, 940), setting.processes(2): (1000,) * 5})
    assert advise(slower, model.Model(0.002, 0.0, 2), False).setting.key == "DataLoader/2"
    assert undecided(slower) == []


def test_what_slows_all_of_a_turn_hides_nothing() -> None:
    """A machine whose speed halves in between: each interval alone is wide, their ratio is known."""
    speed = (1.0, 0.5, 1.0, 0.6, 0.8)
    found = known({setting.threads(2): [990 * s for s in speed], setting.processes(2): [1000 * s for s in speed]})
    assert found[0].rate.spread > 0.3
    ratio = found[0].against(found[1])
    assert ratio is not None and ratio.low > 0.98
    assert advise(found, model.Model(0.002, 0.0, 2), False).setting.key == "Loader/2"


def test_turns_that_others_disturbed_are_not_counted() -> None:
    run = known({setting.processes(2): (1000, 400, 1000, 500, 1000)})[0]
    assert run.rate.value == 780
    run.stretches = [replace(s, disturbed=s.samples < 1000) for s in run.stretches]
    assert run.rate.value == 1000 and run.rate.repeats == 3
    run.stretches = [replace(s, disturbed=s.turn > 0) for s in run.stretches]
    assert run.rate.value == 780, "one calm turn tells nothing"


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_ceiling_and_list() -> None:
    def numbers(workers: Any) -> list[int]:
        return [s.workers for s in plan(workers) if not s.threaded]

    assert numbers(6) == [0, 1, 2, 4, 6]
    assert numbers((5, 3, 3)) == [3, 5]
    assert [s.key for s in plan(0)] == ["DataLoader/0", "Loader/0"]
    for bad in (-1, (), (2, -1)):
        with pytest.raises(UsageError, match="--workers"):
            plan(bad)


def test_more_workers_than_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "available_memory", lambda: 1 << 30)
    with pytest.raises(UsageError, match=r"--workers 1000: .* GB are free\.\nAt most \d+ fit"):
        sweep(subject(Priced(0)), 1000, 1.0, 0.0, False, lambda *_: None)


def test_a_broken_sample_is_told_in_words() -> None:
    class Broken(Priced):
        def __getitem__(self, i: int) -> torch.Tensor:
            raise KeyError("no such patient")

    with pytest.raises(InputError, match="no such patient"):
        bench_subjects([subject(Broken(0))], Question(seconds=1))


def test_unequal_samples_are_told_in_words(make_store: Callable[..., Path]) -> None:
    class Uneven(Priced):
        def __getitem__(self, i: int) -> torch.Tensor:
            return torch.zeros(i % 3 + 1)

    with pytest.raises(SchemaError, match=r"can't be stacked.*\n.*--resize"):
        bench_subjects([subject(Uneven(0))], Question(seconds=1))
    ragged = Schema((Field("tokens", "uint16", (None,), "tokens"), Field("y", "int64")))
    path = make_store(block(ragged, 50), ".h5")
    with pytest.raises(SchemaError, match=r"field tokens.*\n.*--fields"):
        bench_subjects([store_subject(path, 8, "shuffled")], Question(seconds=1))
    assert (
        bench_subjects([store_subject(path, 8, "shuffled", ("y",))], Question(workers=(0,), seconds=0.3)).winner.best
        > 0
    )


def test_ctrl_c_ends_with_what_is_known() -> None:
    calls = 0

    def tick(what: str, share: float) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt

    report = bench_subjects([subject(Priced(0.001))], Question(workers=(0, 1), seconds=2), tick)
    assert report.interrupted
    assert report.winner.advice.setting.key in ("DataLoader/0", "DataLoader/1")
    assert processes.worker_pids() == set()


# -- the page cache ---------------------------------------------------------------------------------------------------


def test_residency_is_proven(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(1 << 20))
    full = residency.resident([path])
    if full is None:
        pytest.skip("this system doesn't tell what is in the page cache")
    assert full.share == 1.0 and not full.cold
    residency.drop([path])
    if (dropped := residency.resident([path])) is None or not dropped.cold:
        pytest.skip("this file system keeps its pages")
    path.read_bytes()[:1]
    again = residency.resident([path])
    assert again is not None and again.share == 1.0


def test_nothing_is_called_cold_that_is_not(make_store: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from bigconv.bench import cold

    what = store_subject(make_store(block(ROWS, 2000), ".mmap"), 64, "shuffled")
    monkeypatch.setattr(residency, "drop", lambda files: None)
    found = cold.measure(what, [setting.processes(0)], 0.1, 0.0, lambda _: None)[0]
    assert not found.cold
    assert "not called cold" in (found.words() or "")
    assert found.to_json()["cold"] is False


def test_windowed_and_sequential_orders(make_store: Callable[..., Path]) -> None:
    path = make_store(block(ROWS, 1000), ".h5")
    for access in ("sequential", "window"):
        what = store_subject(path, 64, access)
        found = {
            run(what, how, 0.01, 1).checksum for how in (setting.processes(0), setting.processes(1), setting.threads(1))
        }
        assert len(found) == 1
    first = next(iter(store_subject(path, 64, "sequential").batches()))
    assert first.tolist() == list(range(64))
    with pytest.raises(UsageError, match="Did you mean 'shuffled'"):
        store_subject(path, 64, "shufled")


@pytest.mark.parametrize("access", ["shuffled", "sequential", "window"])
@pytest.mark.parametrize("how", [setting.processes(0), replace(setting.processes(1), prefetch=3), setting.threads(2)])
def test_snippets_run(make_store: Callable[..., Path], access: str, how: setting.Setting) -> None:
    """What is pasted gives whole batches of the size that was measured."""
    path = make_store(block(ROWS, 200), ".mmap")
    what = store_subject(path, 50, access, ("x", "y"))
    code = what.snippet(how)
    names: dict[str, Any] = {}
    exec(code, names)
    batches = list(names["loader"])
    assert [len(x) for x, _ in batches] == [50] * 4
    assert sorted(int(y) for _, ys in batches for y in ys) == sorted(block(ROWS, 200).columns["y"].tolist())  # type: ignore[union-attr]
    if how.threaded:
        assert names["loader"].together == what.together(how) > 1, "small batches are made several at once in both"
    else:
        assert names["loader"].num_workers == how.workers
