"""A finished local store to its URL: data first, manifests last, each size held against what was sent.

Until its manifest is there, a store or a directory of parts is none: a reader finds the old one, or nothing. What has
arrived is noted beside the local store, so that an upload that was cut off goes on: a key is sent again unless it
still has the size and the entity tag that it had when it arrived.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigconv import fsio
from bigconv.errors import OutputError
from bigconv.remote.cache import cache_folder
from bigconv.remote.mirror import MANIFEST, Objects, objects
from bigconv.remote.urls import Url, again, identity, talking

AT_ONCE = 4  # keys on their way
COMMITS = (MANIFEST, "zarr.json")  # without it at its root, a folder is no store
_REPLACED = "replaced"  # what a note of keys that were there before begins with


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

    def run(self, stays: Callable[[str], bool] = lambda _: False, before: Callable[[], None] = lambda: None) -> None:
        """Send what isn't there, manifests last, then remove keys of the store that was there. Raises `OutputError`.

        `stays`: keys that aren't removed; `before`: called before the manifests are sent, and may raise.
        """
        files = self._files()
        with talking(self.url, OutputError):
            there = objects(self.url)
            if there and ("" in there) != ("" in files):
                what = "a folder" if "" in files else "a single object"
                raise OutputError(f"{self.url}: not replaced, because {what} is there; name another destination")
            known = self._notes()[0]
            data = [name for name in files if not _commits(name)]
            self._take_down(there, files, known)
            lock = threading.Lock()

            def send(name: str) -> None:
                if name in there and [int(there[name]["size"]), identity(there[name])] == known.get(name):
                    return
                note = [name, *self._sent(files[name], self.url / name)]
                with lock:
                    self._note(note)

            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="bigconv-upload") as pool:
                futures = [pool.submit(send, name) for name in data]
                try:
                    for future in futures:
                        future.result()
                finally:
                    for future in futures:
                        future.cancel()
            before()
            for name in sorted(files.keys() - set(data), key=lambda name: (-name.count("/"), name)):
                send(name)
            for name in sorted(there.keys() - files.keys()):
                if not stays(name):
                    self._removed(name)

    def began(self, there: Iterable[str]) -> bool:
        """Whether keys are what an earlier try has left: sent from here, or of the store that it was to replace."""
        mine = self._files().keys() | self._notes()[1] if self.local.exists() else set()
        return mine.issuperset(there)

    def _files(self) -> dict[str, Path]:
        if self.local.is_file():
            return {"": self.local}
        return {name: self.local / name for name in fsio.files_below(self.local)}

    def _take_down(self, there: Objects, files: dict[str, Path], known: dict[str, Any]) -> None:
        """Take the manifest of a store that is replaced away where its keys are going to change under its readers.

        Parts and digests have names of their own, so a sharded directory stays readable until the new manifest.
        """
        changing = [name for name in files if name in there and not _commits(name) and name not in known]
        if any(not name.startswith(("part-", "digests-")) for name in changing if name):
            self._note([_REPLACED, list(there)])
            for name in COMMITS:
                if name in there:
                    self._removed(name)

    def _note(self, note: list[Any]) -> None:
        path = notes_of(self.local)
        with fsio.writing(path), open(path, "a", encoding="utf-8") as notes:
            notes.write(json.dumps(note) + "\n")

    def _notes(self) -> tuple[dict[str, Any], set[str]]:
        """Name -> size and tag of what arrived before; and the names that were there before."""
        found: dict[str, Any] = {}
        before: set[str] = set()
        path = notes_of(self.local)
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                name, *rest = json.loads(line)
            except ValueError:  # cut off
                continue
            if name == _REPLACED and len(rest) == 1:
                before |= set(rest[0])
            else:
                found[name] = rest
        return found, before

    def _sent(self, file: Path, to: Url) -> tuple[int, str]:
        size = file.stat().st_size

        def send() -> tuple[int, str]:
            to.system.put_file(str(file), to.key)
            info = to.system.info(to.key)
            if int(info["size"]) != size:
                raise OSError(f"{info['size']} bytes arrived instead of {size}")
            return size, identity(info)

        try:
            return again(to, "uploaded", send, OutputError)
        except FileNotFoundError as error:
            if not file.exists():
                raise OutputError(f"{file}: was removed while it was uploaded; run the command again") from error
            raise OutputError(f"{to}: can't be uploaded: no such bucket") from error

    def _removed(self, name: str) -> None:
        url = self.url / name
        with suppress(FileNotFoundError):
            again(url, "removed", lambda: url.system.rm_file(url.key), OutputError)


def _commits(name: str) -> bool:
    return name.rsplit("/", 1)[-1] in COMMITS
