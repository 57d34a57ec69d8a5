"""A destination behind a URL: what is there, and how what was made and proven here gets there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigconv import dataset, fsio, registry
from bigconv.conversion.build import rejects_file
from bigconv.conversion.plan import Plan
from bigconv.conversion.run import Outcome, Policy
from bigconv.errors import NotAStore, OutputError, StoreError, UsageError
from bigconv.locks import Lock
from bigconv.remote.download import small
from bigconv.remote.mirror import Objects, mirror_of, objects
from bigconv.remote.upload import COMMITS, Upload, notes_of, staging
from bigconv.remote.urls import Url, parsed
from bigconv.view.opening import Opened, OpenedDataset, open_store


def published(url: Url, overwrite: bool, local: Path) -> Opened | None:
    """The store at a URL; None where nothing is. `local`: what is uploaded there.

    Raises `OutputError` for what must not be replaced.
    """
    there = objects(url)
    if not there:
        return None
    try:
        found = open_store(str(url))
    except NotAStore as error:
        if _only_parts(there) or Upload(local, url).began(there):  # of an upload that was cut off: used or replaced
            return None
        raise OutputError(
            f"{url}: not replaced, because bigconv didn't write it, or not as a whole; remove it, or name another "
            "destination"
        ) from error
    except StoreError as error:
        raise OutputError(f"{url}: exists already, and can't be opened; name another destination:\n{error}") from error
    if overwrite:
        _only_ours(url, found, there)
    return found


def published_datasets(url: Url, names: Sequence[str], overwrite: bool, local: Path) -> dict[str, Opened]:
    """The same for the datasets of a split: folder → what is there. `names` holds only an empty one for no split."""
    if "" not in names and small(url / dataset.NAME) is not None:
        raise OutputError(f"{url}: not replaced, because it is one dataset, not a split; name another destination")
    found = {name: published(url / name, overwrite, local / name) for name in names}
    return {name: there for name, there in found.items() if there is not None}


def _only_parts(there: Objects) -> bool:
    return all(name.startswith(("part-", "digests-")) for name in there)


def _only_ours(url: Url, found: Opened, there: Objects) -> None:
    """Nothing of a user's is in a folder that is going to be replaced."""
    names = there.keys() - {"", *COMMITS, *found.manifest.files}
    if isinstance(found, OpenedDataset):
        names = {name for name in there if name != dataset.NAME and not name.startswith(("part-", "digests-"))}
    if names:
        raise OutputError(f"{url}: not replaced, because bigconv didn't write {min(names)} in it; move it away")


def staged(local: Path, hashed: str) -> Opened | None:
    """What was made for a URL before, and not yet uploaded as a whole.

    What another plan made is dropped, and so is what a run left that was killed while it removed it.
    """
    with suppress(StoreError):
        found = open_store(local)
        if found.manifest.plan == hashed:
            return found
    fsio.remove(local)
    fsio.remove(notes_of(local))
    return None


def upload(local: Path, url: Url, plans: Mapping[str, str], restart: bool, make: Callable[[], Outcome]) -> Outcome:
    """Make what isn't made yet, send it, and its list of rejects before it; then nothing of it is left here.

    `plans`: hash of the plan of each dataset below `local`, empty for itself. Raises `OutputError`, also where another
    process uploads to the same URL.
    """
    with fsio.writing(local):
        local.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(local.parent / "lock")
    try:
        if restart:
            fsio.remove(local)
        there = {name: staged(local / name, hashed) for name, hashed in plans.items()}
        made = {name: found.manifest for name, found in there.items() if found is not None}
        if made.keys() == plans.keys():
            first = next(iter(made.values()))
            outcome = Outcome("done", first, local, datasets={} if made.keys() == {""} else made)
        else:
            outcome = make()
        for name in plans:
            _send(local / name, url / name)
        fsio.remove(local.parent)
    finally:
        lock.release()
    return replace(outcome, dest=url)


def upload_parts(local: Path, url: Url, plan: Plan, make: Callable[[Opened], Outcome]) -> Outcome:
    """Make parts to be added to a sharded directory behind a URL, and send them; readers see all of them or none.

    `make(there)` makes a folder of the new parts with a manifest of all. Raises `OutputError`, also where the
    directory was changed meanwhile.
    """
    with fsio.writing(local):
        local.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(local.parent / "lock")
    try:
        there = open_store(str(url))
        source: Any = plan.source  # what is there, and what is new
        if source.held != there.manifest.content_digest:
            raise OutputError(f"{url}: changed meanwhile; run the same command again")
        before = small(url / dataset.NAME)
        fsio.remove(local)  # sent only in part, before this: it is made anew
        outcome = make(there)
        _send_rejects(local, url)

        def unchanged() -> None:
            if small(url / dataset.NAME) != before:
                raise OutputError(f"{url}: somebody else has changed it meanwhile; run the same command again")

        assert isinstance(there, OpenedDataset)
        old = {part.name for part in there.manifest.parts}
        Upload(local, url).run(lambda name: name.split("/")[0] in old, unchanged)
        fsio.remove(local.parent)
    finally:
        lock.release()
    return replace(outcome, dest=url)


def _send(local: Path, url: Url) -> None:
    _send_rejects(local, url)
    Upload(local, url).run()
    if not registry.is_dataset(local):
        mirror_of(url, objects(url)).adopt(local)


def _send_rejects(local: Path, url: Url) -> None:
    rejects = rejects_file(local)
    beside = Url(url.scheme, f"{url.key}.rejects.jsonl")
    if rejects.exists():
        Upload(rejects, beside).run()


def check_made_here(target: Url, policy: Policy) -> None:
    """Parts for a URL are made by this process and its workers. Raises `UsageError`."""
    if policy.elsewhere or policy.rank is not None or policy.finalize:
        raise UsageError(
            f"{target}: parts that other processes make need a local DEST, a folder that all of them see: no --rank, "
            "no --engine with an address.\nThen copy the folder there, all of its parts before its manifest.json"
        )


def apart(sources: Sequence[Path], target: Url) -> None:
    """Neither is in the other. Raises `OutputError`."""
    for source in map(parsed, sources):
        a, b = f"{source}/", f"{target}/"
        if isinstance(source, Url) and (a.startswith(b) or b.startswith(a)):
            told = "is" if a == b else "is inside" if b.startswith(a) else "holds"
            raise OutputError(f"{target}: the destination {told} the source {source}")


class Destined:
    """A request with a destination, which may be a URL: a frozen dataclass that has these two fields."""

    dest: Path
    target: Url | None  # of a destination that is a URL: `dest` is then where it is made

    def __post_init__(self) -> None:
        where = parsed(self.dest)
        if isinstance(where, Url):
            object.__setattr__(self, "target", where)
        object.__setattr__(self, "dest", staging(where) if isinstance(where, Url) else where)

    @property
    def told(self) -> Path | Url:
        """The destination as messages name it."""
        return self.target or self.dest
