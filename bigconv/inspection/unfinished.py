"""Work on a store that was begun and is not finished, or not yet: what lies beside it, and in it but not listed."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from bigconv import dataset
from bigconv.conversion.build import FIELDS, is_published, partial_folder, state_of
from bigconv.conversion.plan import resuming
from bigconv.errors import OutputError
from bigconv.view.opening import Opened, OpenedDataset
from bigconv.words import plural


@dataclass(frozen=True)
class Unfinished:
    """`names`: what belongs to the work in a sharded directory, and is no part of it as it is published."""

    problem: str
    fix: str
    names: Collection[str] = ()


def unfinished(path: Path, opened: Opened | None) -> Unfinished | None:
    """What is known of unfinished work at a path; None when there is none."""
    if not path.name or not partial_folder(path).is_dir():
        return None
    where = shlex.quote(str(path))
    try:
        plan = state_of(path)
    except OutputError as error:
        return Unfinished(str(error).splitlines()[0], f"bigconv convert SOURCE {where} --restart")
    sharded = isinstance(opened, OpenedDataset)
    left: list[str] = []
    parts: list[str] = []
    if isinstance(opened, OpenedDataset):
        left = [file.name for file in dataset.leftovers(opened.path, opened.manifest)]
        if plan is not None:
            parts = [f.name for f in dataset.unlisted(opened.path, opened.manifest, str(plan.get("hash")))]
    into = f"a conversion into this {'directory' if sharded else 'store'} was"
    if plan is None and sharded:
        return Unfinished("a change of this directory was cut off", f"bigconv shard {where} --repair", left)
    if plan is None and (partial_folder(path) / FIELDS).is_dir():
        again = f"bigconv shard {where} --drop-field NAME --add-field STORE"
        return Unfinished("a change of its fields was cut off; the same command makes it", again)
    if plan is None:
        return Unfinished(f"{into} begun and not finished", f"bigconv convert SOURCE {where} --resume")
    how = resuming(plan, path) or f"bigconv convert SOURCE {where} {'--append' if parts else '--resume'}"
    if not parts and is_published(path, plan):
        return Unfinished(f"{into} killed when all was done but the clean-up", how, left)
    are = "is" if len(parts) == 1 else "are"
    new = f"; {plural(len(parts), 'new part')} in it {are} not listed yet" if parts else ""
    return Unfinished(f"{into} begun and not finished{new}", how, (*left, *parts))
