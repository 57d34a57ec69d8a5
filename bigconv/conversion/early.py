"""The fork server of workers, started before a command has found out what they will do: both import meanwhile.

Which modules it should have is a guess, by names of files: what turns out otherwise is imported later, as it would have
been anyway.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path

from bigconv import registry
from bigconv.conversion.undisturbed import deaf

MAKERS = ("bigconv.conversion.parts_engine", "bigconv.conversion.worker", "bigconv.conversion.shard_source")
READER = "bigconv.conversion.worker"
DEPTH = 8  # folders in folders that are looked into for a first file


def for_parts(paths: Sequence[Path], to: str | None) -> None:
    """Have one import what makes parts, and the formats of stores, of those to be read and of the one to be made."""
    names = {registry.ALIASES.get(to or "", to)} | {
        name for path in paths for name, entry in registry.STORES.items() if path.suffix.lower() in entry.extensions
    }
    _start([*MAKERS, *(entry.module for name, entry in registry.STORES.items() if name in names)])


def for_images(folder: Path, resized: bool) -> None:
    """Have one import what decodes images, if the first file in a folder looks like one."""
    images = registry.SOURCES["images"]
    name = _first(folder)
    if name is not None and name.lower().endswith(images.extensions):
        _start([READER, images.module, *images.reads_with, *(["torch"] if resized else [])])


def _first(folder: Path) -> str | None:
    """Name of the first file that the disk has in a folder, or in the first folder in it; None when there is none."""
    at = os.fspath(folder)
    try:
        for _ in range(DEPTH):
            with os.scandir(at) as entries:
                entry = next((entry for entry in entries if not entry.name.startswith(".")), None)
            if entry is None or not entry.is_dir():
                return None if entry is None else entry.name
            at = entry.path
    except OSError:
        pass  # said by what reads it
    return None


def _start(modules: Sequence[str]) -> None:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))
    from multiprocessing import forkserver

    with deaf():
        forkserver.ensure_running()
