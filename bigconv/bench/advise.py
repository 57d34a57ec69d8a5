"""From runs to what to set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bigconv.bench import processes
from bigconv.bench.measure import REPEATS, Run
from bigconv.bench.model import Model
from bigconv.bench.setting import Setting
from bigconv.bench.stats import quantile
from bigconv.bench.subject import Subject

WITHIN = 0.97  # of the best: what is gained beyond isn't worth a process
SURELY = 0.95  # of the best, at the lower end of the interval: what looks as fast by chance isn't taken for it
SHARE = 0.25  # of the free memory, and of /dev/shm, for batches made ahead
DEEPEST = 16  # batches a worker: more never helped anyone who had bursts this long


@dataclass(frozen=True)
class Advice:
    """`setting` and why; `run`: the run it was measured in."""

    setting: Setting
    run: Run
    reason: str

    def to_json(self) -> dict[str, Any]:
        subject = self.run.subject
        document = {"path": subject.name, **self.setting.to_json()}
        for other in ("num_workers", "prefetch_factor"):
            document.setdefault(other, 0 if other == "num_workers" else None)
        document.setdefault("persistent_workers", False)
        return {**document, "reason": self.reason, "snippet": subject.snippet(self.setting)}


def advise(runs: Sequence[Run], model: Model, pin_memory: bool) -> Advice:
    """The smallest setting within 3 % of the best, surely within 5 %, and the prefetch depth that its waits ask for."""
    allowed = [r for r in runs if model.worth_trying(r.setting)] or list(runs)
    best = max(allowed, key=lambda r: r.rate.value)
    chosen = min((r for r in allowed if _near(r, best)), key=lambda r: r.setting.size)
    setting = replace(chosen.setting.with_prefetch(_depth(chosen)), pin_memory=pin_memory)
    return Advice(setting, chosen, _reason(chosen, best, runs, model))


def undecided(runs: Sequence[Run]) -> list[Run]:
    """Those that have to be measured again before the smallest setting within 3 % of the best is known."""
    best = max(runs, key=lambda r: r.rate.value)
    chosen = min((r for r in runs if _near(r, best)), key=lambda r: r.setting.size)
    found = []
    for run in runs:
        ratio = run.against(best)
        faster = ratio is not None and ratio.high > 1 / WITHIN  # the best is another one, maybe
        smaller = run.setting.size < chosen.setting.size and _near(run, best) is None
        few = run is chosen and min(len(run.counted), len(best.counted)) < REPEATS
        if run is not best and (faster or smaller or few):
            found.append(run)
    return [*found, best] if found or len(best.counted) < REPEATS else []


def _near(run: Run, best: Run) -> bool | None:
    """Whether it is within 3 % of the best; None where that isn't clear."""
    ratio = run.against(best)
    if run is best or (ratio is not None and ratio.value >= WITHIN and ratio.low >= SURELY):
        return True
    return False if ratio is not None and ratio.high < WITHIN else None


def _depth(run: Run) -> int:
    """The smallest depth that covers the slowest batch in a hundred, within a quarter of the free memory."""
    setting, waits = run.setting, run.waits
    if not setting.workers or not waits:
        return setting.prefetch
    # while the slowest in a hundred is made, the loop uses up as many batches as come in that time
    each = max(sum(s.wall for s in run.stretches) / len(waits), 1e-9)
    wanted = math.ceil(quantile(waits, 0.99) / each) + 1
    least = setting.workers + 1 if setting.threaded else 2
    depth = max(least, wanted if setting.threaded else math.ceil(wanted / setting.workers))
    room = [n for n in (processes.available_memory(), processes.shm_free()) if n is not None]
    whole = run.batch_bytes * run.subject.asked_size // run.subject.batch_size
    most = int(SHARE * min(room) / max(whole, 1)) if room else depth
    most = most if setting.threaded else most // setting.workers
    return max(1, min(depth, most, DEEPEST))


def _reason(chosen: Run, best: Run, runs: Sequence[Run], model: Model) -> str:
    rate = f"{chosen.rate.value:,.0f} samples/s"
    among = f"the best of {len(runs)} settings" if len(runs) > 1 else "the only setting that was measured"
    told = [f"{rate}, {among}" if chosen is best else _within(chosen, best)]
    plain = next((r for r in runs if r.setting.key == "DataLoader/0"), None)
    if plain is not None and plain is not chosen:
        told.append(f"{chosen.rate.value / plain.rate.value:.1f}x of 0 workers")
    workers = [r for r in runs if r.setting.processes]
    if workers and not chosen.setting.processes:
        most = max(workers, key=lambda r: r.rate.value)
        told.append(f"worker processes reach {most.rate.value / chosen.rate.value:.2f}x of it")
    threads = [r for r in runs if r.setting.threaded and r.setting.workers]
    if threads and chosen.setting.processes:
        most = max(threads, key=lambda r: r.rate.value)
        share = most.rate.value / chosen.rate.value
        told.append(f"threads reach {share:.2f}x of it{_locked(threads, model) if share < 0.85 else ''}")
    if chosen.setting.workers > model.cores:
        told.append(f"more than the {model.cores} cores, as a sample is blocked for {1e3 * model.blocked:.1f} ms")
    if chosen.setting.processes and chosen.first_batch > 1:
        told.append(f"persistent workers save {chosen.first_batch:.1f} s of start-up an epoch")
    return "; ".join(told)


def _locked(threads: Sequence[Run], model: Model) -> str:
    """Why threads don't gain: where samples compute, and two threads make hardly more of them than one."""
    rates = {r.setting.workers: r.rate.value for r in threads}
    several = [rate for n, rate in rates.items() if n > 1]
    if model.cores < 2 or 1 not in rates or not several or model.blocked > 0.5 * (model.cpu + model.blocked):
        return ""
    return ", as they wait for Python's lock" if max(several) < 1.2 * rates[1] else ""


def _within(chosen: Run, best: Run) -> str:
    share = 1 - chosen.rate.value / best.rate.value
    return f"{chosen.rate.value:,.0f} samples/s, within {max(share, 0.001):.1%} of {best.setting.label} and smaller"


def check_memory(subject: Subject, batch_bytes: int, most: Setting) -> str | None:
    """Why that many workers can't be: they would need more memory than there is. None when they can."""
    available = processes.available_memory()
    if available is None or not most.workers:
        return None
    each = (0 if most.threaded else WORKER_BYTES) + batch_bytes * (1 if most.threaded else most.prefetch + 1)
    if most.workers * each <= available:
        return None
    return (
        f"--workers {most.workers}: {subject.name} needs about {most.workers * each / 1e9:,.1f} GB for them "
        f"({each / 1e6:,.0f} MB each), and {available / 1e9:,.1f} GB are free.\n"
        f"At most {available // each} fit: fewer workers, or a smaller --batch-size than {subject.batch_size}"
    )


WORKER_BYTES = 40 << 20  # 40 MiB that a forked worker with torch makes its own before its first batch (measured)
