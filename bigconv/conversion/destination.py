"""What may be at a destination before a conversion begins, and what that means."""

from __future__ import annotations

from pathlib import Path

from bigconv.conversion.plan import Plan, differences
from bigconv.errors import OutputError, StoreError
from bigconv.view.opening import Opened, open_store


def check_dest(dest: Path, sources: list[Path], overwrite: bool) -> Opened | None:
    """Refuse a destination that would harm anything; the finished store that is there, if any. Raises `OutputError`."""
    if not dest.parent.is_dir():
        raise OutputError(f"{dest.parent}: no such folder; make it first")
    real = dest.resolve()
    for source in sources:
        inside = source.resolve()
        if real == inside or inside in real.parents:
            raise OutputError(f"{dest}: the destination is {'' if real == inside else 'inside '}the source {source}")
        if real in inside.parents:
            raise OutputError(f"{dest}: the destination holds the source {source}")
    if not (dest.exists() or dest.is_symlink()):
        return None
    try:
        return open_store(dest)
    except StoreError as error:
        if not overwrite:
            raise OutputError(f"{dest}: exists already; name another destination") from error
        raise OutputError(
            f"{dest}: not replaced, because bigconv didn't write it, or not as a whole:\n{error}"
        ) from error


def unchanged(plan: Plan, there: Opened) -> bool:
    """Whether the store that is there is what the plan would make. Raises `OutputError` that tells the difference."""
    manifest = there.manifest
    if manifest.plan == plan.hash:
        return True
    old = {"recipe": dict(manifest.recipe), "source": dict(manifest.source)}
    told = "; ".join([*differences(plan, old), *_files(plan, there)]) or "files of other names, sizes or times"
    raise OutputError(
        f"{there.path}: exists already, made from something else ({told}).\n"
        "Replace it with --overwrite, or name another destination"
    )


def _files(plan: Plan, there: Opened) -> list[str]:
    """How the list of files has changed, in numbers."""
    from bigconv import provenance

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
