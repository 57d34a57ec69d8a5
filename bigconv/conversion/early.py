"""The fork server of workers, started before a command has found out what they will do: both import meanwhile."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

from bigconv import registry

MAKERS = ("bigconv.conversion.parts_engine", "bigconv.conversion.worker", "bigconv.conversion.shard_source")


def fork_server(paths: Sequence[Path], to: str | None) -> None:
    """Have one import what makes parts, and the formats of stores, those to be read first and the one to be made last.

    Which ones is a guess, by the names: what turns out otherwise is imported later, as it would have been anyway.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    names = {registry.ALIASES.get(to or "", to)} | {
        name for path in paths for name, entry in registry.STORES.items() if path.suffix.lower() in entry.extensions
    }
    stores = [registry.STORES[name].target.split(":")[0] for name in registry.STORES if name in names]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*MAKERS, *stores])
    from multiprocessing import forkserver

    forkserver.ensure_running()
