"""Work on a store that was begun and is not finished, or not yet: what lies beside it, and in it but not listed."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from bigconv import dataset
from bigconv.conversion.build import partial_folder, state_of
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
    if not isinstance(opened, OpenedDataset):
        problem = "a conversion into this store was begun and not finished"
        return Unfinished(problem, f"bigconv convert SOURCE {where} --resume")
    manifest = opened.manifest
    left = [file.name for file in dataset.leftovers(opened.path, manifest)]
    if plan is not None:
        parts = [file.name for file in dataset.unlisted(opened.path, manifest, str(plan.get("hash")))]
        problem = "a conversion into this directory was begun and not finished"
        new = (
            f"; {plural(len(parts), 'new part')} in it {'is' if len(parts) == 1 else 'are'} not listed yet"
            if parts
            else ""
        )
        how = "--append" if parts else "--resume"
        return Unfinished(problem + new, f"bigconv convert SOURCE {where} {how}", (*left, *parts))
    return Unfinished("a change of this directory was cut off", f"bigconv shard {where} --repair", left)
