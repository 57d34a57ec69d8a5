"""What a store is, for people and for machines: the facts behind `bigconv inspect`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigconv.digest import Digester
from bigconv.errors import StoreError
from bigconv.view.opening import Opened
from bigconv.view.table import StoreView


@dataclass(frozen=True)
class Finding:
    """Rows of a field that are not what was written."""

    field: str
    start: int
    stop: int  # exclusive
    problem: str


def verify(opened: Opened) -> list[Finding]:
    """Read everything and hold it against the digests: one finding a wrong field and canonical block."""
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
                digester = Digester(column.schema, expected.block_rows)
                for block in column.blocks(start, stop):
                    digester.update(block)
                found = digester.finish().tables[f.name]
                problem = "" if found == expected.block(f.name, number) else "the bytes are not those that were written"
            except (StoreError, OSError, ValueError) as error:
                problem = str(error).splitlines()[0]
            if problem:
                findings.append(Finding(f.name, start, stop, problem))
        column.close()
    return findings


def sizes(opened: Opened) -> dict[str, int]:
    """Field -> bytes of its data, decoded."""
    view = StoreView.of([opened])
    found = {f.name: view.field_bytes(f.name) for f in opened.manifest.schema}
    view.close()
    return found


def describe(opened: Opened) -> dict[str, Any]:
    """A store as JSON values: the contract of `bigconv inspect --json`."""
    manifest = opened.manifest
    layouts = opened.store.describe(manifest.schema)
    created = opened.path.stat().st_mtime if opened.path.exists() else 0.0
    return {
        "schema_version": 1,
        "path": str(opened.path),
        "store": manifest.store,
        "rows": manifest.rows,
        "bytes": opened.bytes(),
        "fields": [{**f.to_json(), "layout": layouts[f.name], "axes": f.layout} for f in manifest.schema],
        "source": dict(manifest.source),
        "recipe": dict(manifest.recipe),
        "content_digest": manifest.content_digest,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created)),
        "bigconv_version": manifest.bigconv_version,
    }


def head(opened: Opened, rows: int) -> list[dict[str, Any]]:
    """The first rows as JSON values: scalars and text whole, arrays as dtype, shape, min and max."""
    view = StoreView.of([opened])
    found = [{name: _glance(value) for name, value in row.items()} for row in view[: min(rows, len(view))]]
    view.close()
    return found


def _glance(value: Any) -> Any:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.ndim == 0:
        item = array.item()
        return str(item) if isinstance(item, complex) else item
    if array.size <= 8 and array.dtype.kind in "biuf":
        return array.tolist()
    glance: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.size and array.dtype.kind in "biuf":
        glance |= {"min": array.min().item(), "max": array.max().item()}
    return glance
