"""Tables and trees on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bigconv.cli import text
from bigconv.schema import Schema


def console() -> Console:
    """stdout; plain when piped or with NO_COLOR."""
    return Console(highlight=False, soft_wrap=True)


def field_table(schema: Schema, layouts: Mapping[str, str], sizes: Mapping[str, int] | None = None) -> Table:
    """One line a field: name, dtype, shape, kind, layout, size."""
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim")
    for heading in ("field", "dtype", "shape", "kind", "layout"):
        table.add_column(heading, overflow="fold")
    if sizes is not None:
        table.add_column("size", justify="right")
    for f in schema:
        kind = f.kind if f.layout is None else f"{f.kind} {f.layout}"
        if f.classes is not None:
            kind += f", {len(f.classes)} classes"
        cells = [escape(text.printable(f.name)), f.dtype, text.shape(f.shape), kind, layouts.get(f.name, "")]
        table.add_row(*cells, *([] if sizes is None else [text.size(sizes[f.name])]))
    return table
