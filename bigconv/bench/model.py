"""From what a sample costs to the rate of any setting.

A sample takes `cpu` seconds of a core and `blocked` seconds in which nothing runs (disk, network, a transform that
sleeps). With W workers on C cores

    rate = min( W / (cpu + blocked + send),  C / (cpu + send + receive),  1 / receive )

W samples at a time, no more CPU than there are cores, and all through the one process that trains. With W threads

    rate = min( W / (cpu + blocked),  C / cpu,  1 / locked )

where `locked` is the part of `cpu` that holds Python's lock. `send` and `receive` are guesses before one worker has
been measured, and `locked` is 0 before threads have been.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bigconv.bench.measure import Run
from bigconv.bench.setting import Setting

MESSAGE = 150e-6  # seconds of each side for a batch's way through a queue, pickled (about, on machines of 2020 to 2025)
GAIN = 1.03  # more workers than cores are tried where the model promises so much


@dataclass(frozen=True)
class Model:
    """Seconds a sample; `cores`: that may be used; `step`: seconds of training a sample, which bounds every rate."""

    cpu: float
    blocked: float
    cores: int
    send: float = 0.0
    receive: float = 0.0
    locked: float = 0.0
    step: float = 0.0

    @classmethod
    def of(cls, run: Run, cores: int) -> Model:
        """From a run without workers: what is neither CPU nor waiting for a core was blocked."""
        samples = sum(s.samples for s in run.stretches)
        wall = sum(s.wall for s in run.stretches)
        batches = sum(len(s.waits) for s in run.stretches)
        cpu = sum(s.used.cpu for s in run.stretches)
        blocked = max(0.0, wall - cpu - sum(s.used.waiting for s in run.stretches) - batches * run.step)
        if blocked < 0.03 * wall:  # interrupts and clocks, nothing that a worker could hide
            blocked = 0.0
        size = run.subject.batch_size
        return cls(cpu / samples, blocked / samples, cores, MESSAGE / size, MESSAGE / size, 0.0, run.step / size)

    def rate(self, setting: Setting) -> float:
        """Samples/s."""
        n, alone = setting.workers, self.cpu + self.blocked
        if not n:
            return 1 / (alone + self.step)
        if setting.threaded:
            limits = [n / alone, self.cores / max(self.cpu, 1e-12), 1 / max(self.locked, 1e-12)]
        else:
            shared = self.cores / (self.cpu + self.send + self.receive)
            limits = [n / (alone + self.send), shared, 1 / max(self.receive, 1e-12)]
        return min([*limits, 1 / max(self.step, 1e-12)])

    def worth_trying(self, setting: Setting) -> bool:
        """False for more than there are cores, unless blocked time earns it."""
        if setting.workers <= self.cores:
            return True
        return self.rate(setting) > GAIN * self.rate(Setting(setting.loader, self.cores))

    def fitted(self, runs: Sequence[Run]) -> Model:
        """With the transfer and the lock that the runs show."""
        model = self
        alone = [r for r in runs if r.setting.key == "DataLoader/1"]
        if alone:
            extra = max(0.0, 1 / alone[0].rate.value - self.cpu - self.blocked)
            if not self.step:
                model = replace(model, send=extra)
        threads = [r.rate.value for r in runs if r.setting.threaded and r.setting.workers]
        if threads and not self.step:
            model = replace(model, locked=1 / max(threads))
        many = [r.rate.value for r in runs if r.setting.processes > 1]
        if many and not self.step and max(many) < 0.97 * model.rate(Setting("DataLoader", 64)):
            model = replace(model, receive=max(model.receive, 1 / max(many)))
        return model

    def to_json(self) -> dict[str, Any]:
        return {
            "cores": self.cores,
            "cpu_ms_per_sample": 1e3 * self.cpu,
            "blocked_ms_per_sample": 1e3 * self.blocked,
            "send_ms_per_sample": 1e3 * self.send,
            "receive_ms_per_sample": 1e3 * self.receive,
            "locked_ms_per_sample": 1e3 * self.locked,
        }
