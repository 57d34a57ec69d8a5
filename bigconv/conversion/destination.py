"""What may be at a destination before a conversion begins, and what that means."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from bigconv import dataset, registry
from bigconv.conversion.build import rejects_file
from bigconv.conversion.plan import Plan, differences
from bigconv.errors import OutputError, StoreError
from bigconv.view.opening import Opened, OpenedDataset, open_store


def check_dest(dest: Path, sources: Sequence[Path], overwrite: bool) -> Opened | None:
    """Refuse a destination that would harm anything; the finished store that is there, if any. Raises `OutputError`."""
    check_place(dest, sources)
    if not (dest.exists() or dest.is_symlink()):
        return None
    there = _opened(dest, overwrite)
    if isinstance(there, OpenedDataset) and overwrite:
        _only_ours(there)
    return there


def check_datasets(dest: Path, sources: Sequence[Path], overwrite: bool) -> dict[str, Opened]:
    """The same for a destination that may hold several datasets, as a split does: folder → what is there."""
    if not dest.is_dir() or registry.recognise(dest) is not None or not os.listdir(dest):
        there = check_dest(dest, sources, overwrite)
        return {} if there is None else {"": there}
    check_place(dest, sources)
    names = sorted(os.listdir(dest))
    if not all(registry.recognise(dest / name) == registry.DATASET for name in names):
        _opened(dest, overwrite)  # raises
    found = {name: _opened(dest / name, overwrite) for name in names}
    for there in found.values():
        if overwrite and isinstance(there, OpenedDataset):
            _only_ours(there)
    return found


def check_place(dest: Path, sources: Sequence[Path]) -> None:
    """Neither is in the other, and the folder takes files named like it. Raises `OutputError`."""
    try:
        os.lstat(f"{rejects_file(dest)}.new")  # the longest name there will be beside it
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise OutputError(f"{dest}: a name too long: no room for that of its list of rejects behind it") from error
    if not dest.absolute().parent.is_dir():
        raise OutputError(f"{dest.parent}: no such folder; make it first")
    real = dest.resolve()
    for source in sources:
        inside = source.resolve()
        if real == inside or inside in real.parents:
            raise OutputError(f"{dest}: the destination is {'' if real == inside else 'inside '}the source {source}")
        if real in inside.parents:
            raise OutputError(f"{dest}: the destination holds the source {source}")


def _opened(dest: Path, overwrite: bool) -> Opened:
    try:
        return open_store(dest)
    except StoreError as error:
        if not overwrite:
            raise OutputError(f"{dest}: exists already; name another destination") from error
        raise OutputError(
            f"{dest}: not replaced, because bigconv didn't write it, or not as a whole:\n{error}"
        ) from error


def _only_ours(there: OpenedDataset) -> None:
    """Nothing of a user's is in a directory that is going to be replaced."""
    for name in sorted(os.listdir(there.path)):
        if name.removesuffix(".new") != dataset.NAME and not name.startswith(("part-", "digests-")):
            raise OutputError(f"{there.path}: not replaced, because bigconv didn't write {name} in it; move it away")


def unchanged(plan: Plan, there: Opened) -> bool:
    """Whether the store that is there is what the plan would make. Raises `OutputError` that tells the difference."""
    manifest = there.manifest
    if manifest.plan == plan.hash:
        return True
    old = {"recipe": dict(manifest.recipe), "source": dict(manifest.source)}
    told = "; ".join([*differences(plan, old), *_files(plan, there)]) or "files of other names, sizes or times"
    raise OutputError(
        f"{there.told}: exists already, made from something else ({told}).\n"
        "Replace it with --overwrite, or name another destination"
    )


def all_unchanged(dest: Path, plans: Mapping[str, Plan], there: Mapping[str, Opened]) -> bool:
    """The same for all datasets of a destination. Raises `OutputError`."""
    if plans.keys() != there.keys():
        names = ", ".join(name or "one dataset" for name in there)
        raise OutputError(
            f"{dest}: exists already, and holds {names}.\nReplace it with --overwrite, or name another destination"
        )
    return all(unchanged(plan, there[name]) for name, plan in plans.items())


def _files(plan: Plan, there: Opened) -> list[str]:
    """How the list of files has changed, in numbers."""
    from bigconv import provenance

    if isinstance(there, OpenedDataset):
        return []  # each part has its own
    raw = there.store.attachment(there.path, provenance.NAME)
    if raw is None:
        return []
    old = provenance.Provenance.from_bytes(raw, str(there.path))
    before = {old.name(i): (int(old.sizes[i]), int(old.mtimes[i])) for i in range(len(old.ends))}
    files = plan.source.files
    after = {files.name(i): (int(files.sizes[i]), int(files.mtimes[i])) for i in range(len(files))}
    changed = sum(before[name] != after[name] for name in before.keys() & after.keys())
    added, gone = len(after.keys() - before.keys()), len(before.keys() - after.keys())
    words = [(changed, "changed"), (added, "new"), (gone, "gone")]
    return [f"{n} file{'' if n == 1 else 's'} {what}" for n, what in words if n]
