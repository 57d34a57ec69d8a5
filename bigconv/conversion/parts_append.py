"""`--append` to a sharded directory: new files become new parts; the parts that are there stay as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bigconv import provenance
from bigconv.block import Index
from bigconv.conversion.plan import Plan, differences
from bigconv.conversion.splice import Spliced, merged_schema, runs
from bigconv.errors import OutputError, UsageError
from bigconv.sources.filelist import FileList
from bigconv.view.opening import OpenedDataset
from bigconv.view.table import StoreView


def appended_parts(plan: Plan, there: OpenedDataset) -> Plan | None:
    """The plan of the files that are not in the dataset yet; None when all are.

    Raises `OutputError` when files have changed, `UsageError` for sources that aren't one row a file.
    """
    files = plan.source.files
    if not plan.file_a_row:
        raise UsageError("--append needs input with one row a file, such as a folder of images, and no --limit")
    if dict(there.manifest.recipe) != plan.recipe():
        told = "; ".join(differences(plan, {"recipe": dict(there.manifest.recipe), "source": plan.source.describe()}))
        raise OutputError(f"{there.path}: made by another recipe ({told}); --append needs the same options")
    known = _known(there)
    names = [files.name(i) for i in range(len(files))]
    changed = [n for n, size in zip(names, files.sizes.tolist(), strict=True) if known.get(n, size) != size]
    if changed:
        raise OutputError(
            f"{there.path}: --append adds new files only, but {len(changed)} of the old ones changed: {changed[0]} …\n"
            "Make the dataset anew with --overwrite"
        )
    fresh: Index = np.array([i for i, name in enumerate(names) if name not in known], np.int64)
    if not len(fresh):
        return None
    schema, relabel = merged_schema(there.manifest.schema, plan.schema)
    numbers = np.zeros(len(files), np.int64)
    numbers[fresh] = np.arange(len(fresh))
    nothing = np.empty((0, provenance.RUN_COLUMNS), np.int64)
    some = tuple(runs(fresh))
    view = StoreView.of([there])
    none = np.empty((0, 2), np.int64)  # digests of files whose rows are copied: there are none
    held = there.manifest.content_digest
    source = Spliced(
        view, nothing, plan.work, some, _only(files, fresh), numbers, relabel, schema, digests=none, held=held
    )
    return replace(plan, source=source, steps=(), schema=schema, spans=source.plan(), stands_for=plan)


def _known(there: OpenedDataset) -> dict[str, int]:
    """Every file that made a row: name → bytes. One that was rejected is read again, as it may have been mended."""
    known: dict[str, int] = {}
    for number in range(len(there.manifest.parts)):
        part = there.part(number)
        raw = part.attachment(provenance.NAME)
        if raw is None:
            raise OutputError(f"{part.path}: holds no provenance, so --append can't tell which files it has")
        table = provenance.Provenance.from_bytes(raw, str(part.path))
        made = np.unique(provenance.expanded(table.runs, 0, part.manifest.rows)[:, 0]).tolist()
        known |= {table.name(i): int(table.sizes[i]) for i in made}
    return known


def _only(files: FileList, wanted: Index) -> FileList:
    ends = files.ends[wanted]
    starts = np.where(wanted > 0, files.ends[wanted - 1], 0)
    names = b"".join(files.names[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True))
    return FileList(files.root, names, np.cumsum(ends - starts), files.sizes[wanted], files.mtimes[wanted])
