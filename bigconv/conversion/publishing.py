"""A destination behind a URL: what is there, and how what was made and proven here gets there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bigconv import fsio
from bigconv.conversion.build import rejects_file
from bigconv.conversion.plan import Plan
from bigconv.conversion.run import Outcome
from bigconv.errors import NotAStore, OutputError, StoreError
from bigconv.remote.mirror import local_copy, objects
from bigconv.remote.upload import Upload, notes_of
from bigconv.remote.urls import Url, parsed, talking
from bigconv.view.opening import Opened, OpenedDataset, open_store


def published(url: Url, overwrite: bool) -> Opened | None:
    """The store at a URL; None where nothing is. Raises `OutputError` for what must not be replaced."""
    with talking(url, OutputError):
        there = objects(url)
    if not there:
        return None
    try:
        found = open_store(str(url))
    except NotAStore as error:
        if not overwrite and _only_parts(list(there)):  # of an upload that was cut off: they are used or replaced
            return None
        raise OutputError(f"{url}: not replaced, because bigconv didn't write it, or not as a whole") from error
    except StoreError as error:
        raise OutputError(f"{url}: exists already, and can't be opened; name another destination:\n{error}") from error
    if isinstance(found, OpenedDataset) and overwrite and not _only_parts([n for n in there if n != "manifest.json"]):
        raise OutputError(f"{url}: not replaced, because something in it is not bigconv's; move it away")
    return found


def _only_parts(names: list[str]) -> bool:
    return all(name.startswith(("part-", "digests-")) for name in names)


def staged(local: Path, hashed: str) -> Opened | None:
    """What was made for a URL before, and not yet uploaded as a whole; what another plan made is dropped."""
    try:
        found = open_store(local)
    except NotAStore:
        return None
    if found.manifest.plan == hashed:
        return found
    fsio.remove(local)
    fsio.remove(notes_of(local))
    return None


def upload(local: Path, url: Url, plan: Plan, make: Callable[[], Outcome]) -> Outcome:
    """Make what isn't made yet, send it, and its list of rejects beside it; then nothing of it is left here."""
    there = staged(local, plan.hash)
    if there is None:
        with fsio.writing(local):
            local.parent.mkdir(parents=True, exist_ok=True)
        outcome = make()
    else:
        outcome = Outcome("done", there.manifest, url)
    Upload(local, url).run()
    rejects = rejects_file(local)
    if rejects.exists():
        Upload(rejects, Url(url.scheme, f"{url.key}.rejects.jsonl")).run()
    fsio.remove(local.parent)
    return replace(outcome, dest=url)


def local_sources(sources: Sequence[Path], target: Url | None) -> tuple[Path, ...]:
    """Local copies of the sources that are URLs. Raises `OutputError` for a destination in one of them."""
    for source in map(parsed, sources):
        if isinstance(source, Url) and target is not None:
            a, b = f"{source}/", f"{target}/"
            if a.startswith(b) or b.startswith(a):
                raise OutputError(
                    f"{target}: the destination and the source {source} are the same, or one is in the other"
                )
    return tuple(local_copy(source, raw=True) for source in sources)
