"""The frozen plan of a conversion: what is read, in which spans, through which steps, into what."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigconv import registry
from bigconv.schema import Schema
from bigconv.sources.base import Source, Span
from bigconv.stores.base import config as store_config
from bigconv.transforms.base import Transform
from bigconv.transforms.base import config as step_config


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of the result, and nothing else."""

    source: Source
    steps: tuple[Transform, ...]
    schema: Schema
    spans: Sequence[Span]
    store: Any  # bigconv.stores.base.Store

    @property
    def inputs(self) -> int | None:
        return self.source.inputs

    def recipe(self) -> dict[str, Any]:
        """How the rows were made, as the manifest keeps it."""
        return {
            "from": self.source.name,
            "steps": [step_config(step) for step in self.steps],
            "to": self.store.name,
            "options": store_config(self.store),
        }

    def estimate(self) -> int | None:
        """Bytes of data to expect; None when rows differ in size and nothing tells by how much."""
        if self.inputs is None or any(f.ragged for f in self.schema):
            return None
        return self.inputs * sum(f.row_bytes for f in self.schema)


def make_plan(source: Source, steps: Sequence[Transform], schema: Schema, store: str) -> Plan:
    return Plan(source, tuple(steps), schema, source.plan(), registry.load("store", store)())


def free_space(path: Path) -> int:
    """Bytes free where `path` will be."""
    return shutil.disk_usage(path.parent if path.parent != Path() else Path.cwd()).free
