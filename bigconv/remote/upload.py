"""A finished local store to its URL: data first, manifests last, each size held against what was sent.

Until its manifest is there, a store or a directory of parts is none: a reader finds the old one, or nothing. What has
arrived is noted beside the local store, so that an upload that was cut off goes on: a key is sent again unless it
still has the size and the entity tag that it had when it arrived.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigconv import fsio
from bigconv.errors import OutputError
from bigconv.remote.cache import cache_folder
from bigconv.remote.mirror import MANIFEST, objects
from bigconv.remote.urls import Url, identity, reason, talking

AT_ONCE = 4  # keys on their way
TRIES = 4
FIRST_PAUSE = 0.2  # seconds before the second try; each further one waits twice as long
COMMITS = (MANIFEST, "zarr.json")  # without it at its root, a folder is no store


def staging(url: Url) -> Path:
    """Where what will be uploaded to a URL is made; the same for every run, so that work goes on."""
    key = hashlib.sha256(str(url).encode()).hexdigest()[:32]
    return cache_folder() / "uploads" / key / url.name


def notes_of(local: Path) -> Path:
    """What has arrived of a local store, a line a key."""
    return local.with_name(local.name + ".uploaded.jsonl")


@dataclass(frozen=True)
class Upload:
    """A local store or folder on its way to a URL."""

    local: Path
    url: Url

    @property
    def notes(self) -> Path:
        return notes_of(self.local)

    def run(self) -> None:
        """Send what isn't there, manifests last, then remove keys of the store that was there. Raises `OutputError`."""
        files = {"": self.local} if self.local.is_file() else {n: self.local / n for n in fsio.files_below(self.local)}
        with talking(self.url, OutputError):
            system = self.url.system
            there = objects(self.url)
            known = self._known()
            data = [name for name in files if name.rsplit("/", 1)[-1] not in COMMITS]
            commits = sorted((n for n in files if n not in set(data)), key=lambda n: (-n.count("/"), n))
            self._not_yet(system, there, files, known)
            lock = threading.Lock()

            def send(name: str) -> None:
                to = self.url / name if name else self.url
                if name in there and [int(there[name]["size"]), identity(there[name])] == known.get(name):
                    return
                note = [name, *self._sent(system, files[name], to)]
                with lock, open(self.notes, "a", encoding="utf-8") as notes:
                    notes.write(json.dumps(note) + "\n")

            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="bigconv-upload") as pool:
                list(pool.map(send, data))
            for name in commits:
                send(name)
            for name in there.keys() - files.keys() - {""}:
                system.rm_file((self.url / name).key)

    def _not_yet(self, system: Any, there: dict[str, Any], files: dict[str, Path], known: dict[str, Any]) -> None:
        """Take the manifest of a store that is replaced away where its keys are going to change under its readers.

        Parts and digests have names of their own, so a sharded directory stays readable until the new manifest.
        """
        changing = [name for name in files if name in there and name not in COMMITS and name not in known]
        if any(not name.startswith(("part-", "digests-")) for name in changing if name):
            for name in COMMITS:
                if name in there:
                    system.rm_file((self.url / name).key)

    def _known(self) -> dict[str, Any]:
        """Name -> size and tag of what arrived before."""
        if not self.notes.exists():
            return {}
        found = {}
        for line in self.notes.read_text(encoding="utf-8").splitlines():
            try:
                name, size, tag = json.loads(line)
            except ValueError:  # cut off
                continue
            found[name] = [size, tag]
        return found

    def _sent(self, system: Any, file: Path, to: Url) -> tuple[int, str]:
        size, pause, why = file.stat().st_size, FIRST_PAUSE, ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(pause)
                pause *= 2
            try:
                system.put_file(str(file), to.key)
                info = system.info(to.key)
            except (FileNotFoundError, PermissionError):
                raise
            except Exception as error:  # noqa: BLE001  each library has errors of its own
                why = reason(error)
                continue
            if int(info["size"]) == size:
                return size, identity(info)
            why = f"{info['size']} bytes arrived instead of {size}"
        raise OutputError(f"{to}: can't be uploaded, in {TRIES} tries: {why}.\nRun the same command again: it goes on")
