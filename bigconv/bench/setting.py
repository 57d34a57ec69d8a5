"""One way to set a loader."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bigconv.schema import unknown

LOADERS = ("DataLoader", "Loader")


@dataclass(frozen=True)
class Setting:
    """`loader`: torch's `DataLoader` with `workers` processes, or bigconv's `Loader` with as many threads.

    `prefetch`: batches made ahead; for a DataLoader by each worker, for a Loader in all.
    """

    loader: str
    workers: int
    prefetch: int = 2
    pin_memory: bool = False

    def __post_init__(self) -> None:
        if self.loader not in LOADERS:
            raise ValueError(unknown("loader", self.loader, LOADERS))

    @property
    def threaded(self) -> bool:
        return self.loader == "Loader"

    @property
    def processes(self) -> int:
        """Besides the one that trains."""
        return 0 if self.threaded else self.workers

    @property
    def key(self) -> str:
        """`DataLoader/2`, by which runs are found again."""
        return f"{self.loader}/{self.workers}"

    @property
    def label(self) -> str:
        unit = "thread" if self.threaded else "worker"
        return f"{self.loader}, {self.workers} {unit}{'' if self.workers == 1 else 's'}"

    @property
    def size(self) -> tuple[int, int, bool]:
        """What it takes, to choose the smallest: processes, then threads, then a loader that isn't torch's own."""
        return self.processes, self.workers, self.threaded

    @property
    def ahead(self) -> int:
        """Batches that may be ready before they are asked for."""
        return self.prefetch if self.threaded else self.prefetch * self.workers

    def with_prefetch(self, prefetch: int) -> Setting:
        return replace(self, prefetch=prefetch)

    def to_json(self) -> dict[str, Any]:
        if self.threaded:
            own: dict[str, Any] = {"threads": self.workers, "prefetch": self.prefetch if self.workers else None}
        else:
            own = {"num_workers": self.workers, "prefetch_factor": self.prefetch if self.workers else None}
            own["persistent_workers"] = self.workers > 0
        return {"loader": self.loader, **own, "pin_memory": self.pin_memory}


def processes(workers: int, pin_memory: bool = False) -> Setting:
    return Setting("DataLoader", workers, 2, pin_memory)


def threads(count: int, pin_memory: bool = False) -> Setting:
    return Setting("Loader", count, max(4, 2 * count), pin_memory)
