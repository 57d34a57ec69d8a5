"""Tables and trees on the terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bigconv.cli import text
from bigconv.schema import Schema


def console() -> Console:
    """stdout; plain when piped or with NO_COLOR. What its encoding doesn't have becomes `?`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False, soft_wrap=True)


def field_table(schema: Schema, layouts: Mapping[str, str], sizes: Mapping[str, int] | None = None) -> Table:
    """One line a field: name, dtype, shape, kind, layout, size."""
    rows = []
    for f in schema:
        kind = f.kind if f.layout is None else f"{f.kind} {f.layout}"
        if f.classes is not None:
            kind += f", {text.plural(len(f.classes), 'class', 'es')}"
        rows.append(
            (text.printable(f.name), f.dtype, text.shape(f.shape), text.printable(kind), layouts.get(f.name, ""))
        )
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim")
    for heading, cells in zip(("field", "dtype", "shape", "kind", "layout"), zip(*rows, strict=True), strict=True):
        if heading in ("dtype", "shape"):
            table.add_column(heading, no_wrap=True)
        else:  # on a narrow terminal: between words, and only names within one
            words = [word for cell in cells for word in cell.split()] if heading != "field" else []
            table.add_column(heading, overflow="fold", min_width=max(map(len, (heading, *words))))
    if sizes is not None:
        table.add_column("size", justify="right", no_wrap=True)
    for f, cells in zip(schema, rows, strict=True):
        table.add_row(*map(escape, cells), *([] if sizes is None else [text.size(sizes[f.name])]))
    return table
