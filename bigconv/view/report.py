"""What a store is, for people and for machines: the facts behind `bigconv inspect`."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bigconv import dataset, provenance
from bigconv.class_counts import Counts, told
from bigconv.digest import Digester
from bigconv.errors import StoreError
from bigconv.hashes import SHA256
from bigconv.schema import Field
from bigconv.view.opening import Opened, OpenedDataset
from bigconv.view.table import StoreView
from bigconv.words import plural


@dataclass(frozen=True)
class Finding:
    """Rows of a field that are not what was written; `field` is empty where bytes of no row are meant."""

    field: str
    start: int
    stop: int  # exclusive
    problem: str


def verify(opened: Opened, unlisted: Collection[str] = ()) -> list[Finding]:
    """Read everything and hold it against the digests: one finding a wrong field and canonical block.

    Bytes that hold no rows (headers, indexes, padding, provenance) are found by the digests of the files. Of a sharded
    directory every part is verified: those that are missing, damaged, swapped or foreign are named. `unlisted`: names
    in it that belong to a change that isn't finished.
    """
    if isinstance(opened, OpenedDataset):
        return _verify_parts(opened, unlisted)
    opened = opened.whole()
    manifest = opened.manifest
    expected = manifest.digests
    view = StoreView.of([opened])
    findings: list[Finding] = []
    for f in manifest.schema:
        # field by field, block by block: damage in one says nothing of the others
        column = view.select([f.name])
        for number in range(expected.blocks):
            start = number * expected.block_rows
            stop = min(start + expected.block_rows, manifest.rows)
            try:
                digester = Digester(column.schema, expected.block_rows, expected.algorithm)
                for block in column.blocks(start, stop):
                    digester.update(block)
                found = digester.finish().tables[f.name]
                problem = "" if found == expected.block(f.name, number) else "the bytes are not those that were written"
            except (StoreError, OSError, ValueError) as error:
                problem = str(error).splitlines()[0]
            if problem:
                findings.append(Finding(f.name, start, stop, problem))
        column.close()
    findings += _files(opened, {finding.field for finding in findings})
    return findings


def _verify_parts(opened: OpenedDataset, unlisted: Collection[str]) -> list[Finding]:
    manifest = opened.manifest
    findings: list[Finding] = []
    start = 0
    for number, part in enumerate(manifest.parts):
        stop = start + part.rows
        try:
            inside = verify(opened.part(number, whole=True))
            findings += [replace(f, start=f.start + start, stop=f.stop + start) for f in _named(part.name, inside)]
        except StoreError as error:
            findings.append(Finding("", start, stop, str(error).splitlines()[0]))
        start = stop
    try:
        manifest.digests.content(manifest.schema)
    except StoreError as error:
        findings.append(Finding("", 0, 0, str(error).splitlines()[0]))
    if not findings and manifest.digests.algorithm == SHA256:
        findings += _forged(opened)
    known = {dataset.NAME, dataset.digests_name(manifest.content_digest), *(part.name for part in manifest.parts)}
    extra = sorted(set(os.listdir(opened.path)) - known - set(unlisted))
    return findings + [Finding("", 0, 0, f"{name} does not belong to the dataset") for name in extra]


def _forged(opened: OpenedDataset) -> list[Finding]:
    """Rows of parts that are whole, and listed, but not those of the content digest: no accident makes such."""
    manifest = opened.manifest
    expected = manifest.digests
    digester = Digester(manifest.schema, expected.block_rows, expected.algorithm)
    with StoreView.of([opened]) as view:
        for block in view.blocks():
            digester.update(block)
    found = digester.finish()
    return [
        Finding(f.name, k * expected.block_rows, min((k + 1) * expected.block_rows, manifest.rows), _FORGED)
        for f in manifest.schema
        for k in range(expected.blocks)
        if found.block(f.name, k) != expected.block(f.name, k)
    ]


_FORGED = "the parts are whole, but hold other rows than the content digest is of"


def _named(part: str, findings: list[Finding]) -> list[Finding]:
    return [replace(finding, problem=f"{part}: {finding.problem}") for finding in findings]


def _files(opened: Opened, wrong: set[str]) -> list[Finding]:
    """Files with other bytes than were written, unless a wrong field of the same store accounts for it."""
    try:
        found = opened.store.files(opened.path, opened.manifest.digests.algorithm)
    except (StoreError, OSError) as error:
        return [Finding("", 0, 0, str(error).splitlines()[0])]
    told = []
    for name, entry in opened.manifest.files.items():
        if name not in found:
            told.append(Finding("", 0, 0, f"{name} is missing"))
        elif tuple(found[name]) != tuple(entry) and not wrong:
            what = "the file" if name == "." else name
            told.append(Finding("", 0, 0, f"{what}: bytes that hold no rows (header, index or padding) have changed"))
    extra = sorted(found.keys() - opened.manifest.files.keys() - {"."})
    return told + [Finding("", 0, 0, f"{name} does not belong to the store") for name in extra]


def whence(opened: Opened, row: int) -> dict[str, Any] | None:
    """Which file made a row, with its size and time; None when the store doesn't know."""
    if isinstance(opened, OpenedDataset):
        ends = np.cumsum(opened.part_rows)
        number = int(np.searchsorted(ends, row, side="right"))
        part = opened.part(number)
        told = whence(part, row - int(ends[number]) + part.manifest.rows)
        return None if told is None else {**told, "part": part.path.name}
    raw = opened.attachment(provenance.NAME)
    if raw is None:
        return None
    table = provenance.Provenance.from_bytes(raw, str(opened.path))
    file, inside = table.whence(row)
    if not len(table.ends):
        return {"row": inside}
    mtime = int(table.mtimes[file])
    made = {"file": table.name(file), "row": inside, "bytes": int(table.sizes[file]), "mtime_ns": mtime}
    digest = table.digest(file)
    return made if digest is None else {**made, "xxh3": digest}


def sizes(opened: Opened) -> dict[str, int]:
    """Field -> bytes of its data, decoded."""
    view = StoreView.of([opened])
    found = {f.name: view.field_bytes(f.name) for f in opened.manifest.schema}
    view.close()
    return found


def layouts(opened: Opened) -> dict[str, str]:
    """Field -> how it is laid out, in words; of a sharded directory, in the first part."""
    path = opened.part_path(0) if len(opened.part_rows) else None
    words: dict[str, str] = opened.store.describe(opened.manifest.schema, path)
    return words


def describe(opened: Opened) -> dict[str, Any]:
    """A store as JSON values: the contract of `bigconv inspect --json`."""
    manifest = opened.manifest
    laid_out = layouts(opened)
    created = opened.path.stat().st_mtime if opened.path.exists() else 0.0
    parts = {}
    if isinstance(opened, OpenedDataset):
        parts = {"parts": [part.to_json() for part in opened.manifest.parts]}
    return {
        "schema_version": 1,
        "path": opened.told,
        "store": manifest.store,
        "rows": manifest.rows,
        "bytes": opened.bytes(),
        "fields": [
            {**f.to_json(), "layout": laid_out[f.name], "axes": f.layout, **_counts(f, manifest.counts)}
            for f in manifest.schema
        ],
        "source": dict(manifest.source),
        "recipe": dict(manifest.recipe),
        "content_digest": manifest.content_digest,
        "digests": manifest.digests.algorithm,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created)),
        "bigconv_version": manifest.bigconv_version,
        **parts,
    }


def _counts(f: Field, counts: Counts) -> dict[str, Any]:
    return {"counts": told(f, counts[f.name])} if f.name in counts else {}


def gaps(source: Mapping[str, Any]) -> str | None:
    """What was not all there of a source, by what it says of itself; None where nothing was missing."""
    missing = source.get("chunks_missing")
    if not isinstance(missing, int) or not missing:
        return None
    have, read = ("has", "reads") if missing == 1 else ("have", "read")
    return f"{plural(missing, 'chunk')} of the Zarr source {have} no file and {read} as the fill value"


def head(opened: Opened, rows: int) -> list[dict[str, Any]]:
    """The first rows as JSON values: scalars and text whole, arrays as dtype, shape, min and max."""
    view = StoreView.of([opened])
    found = [{name: _glance(value) for name, value in row.items()} for row in view[: min(rows, len(view))]]
    view.close()
    return found


def row(opened: Opened, number: int) -> dict[str, Any]:
    """One row as JSON values, as `head` gives them. Raises `RowError`."""
    view = StoreView.of([opened])
    found = {name: _glance(value) for name, value in view[number].items()}
    view.close()
    return found


def _glance(value: Any) -> Any:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.ndim == 0 or (array.size <= 8 and array.dtype.kind in "biuf"):
        return _plain(array.tolist())
    glance: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.size and array.dtype.kind in "biuf":
        glance |= {"min": _plain(array.min().item()), "max": _plain(array.max().item())}
    return glance


def _plain(value: Any) -> Any:
    """Numbers, or lists of them, as JSON can hold them: NaN, infinities and complex numbers by their names."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value
