"""Tables and trees on the terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from bigconv.cli import text
from bigconv.cli.help import NARROWEST
from bigconv.errors import READER_LEFT
from bigconv.schema import Schema

if TYPE_CHECKING:
    from rich.table import Table

PACKED = 1.05  # bytes to one stored, from which on a field is smaller than its values


def console() -> Console:
    """stdout; plain when piped or with NO_COLOR. What its encoding doesn't have becomes `?`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    made = _Console(highlight=False, soft_wrap=True)
    made.width = max(made.width, NARROWEST)
    return made


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads on: the exit code says so. rich's own would be 1, which here means findings."""
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(READER_LEFT) from None


def field_table(
    schema: Schema,
    layouts: Mapping[str, str],
    sizes: Mapping[str, int] | None = None,
    stored: Mapping[str, int] | None = None,
) -> Table:
    """One line a field: name, dtype, shape, kind, layout, size.

    `layouts`: empty for what is in no store yet; `stored`: bytes on disk, and where they are fewer, the ratio.
    """
    from rich.table import Table  # takes longer to import than what most commands print takes

    rows = []
    for f in schema:
        kind = f.kind if f.layout is None else f"{f.kind} {f.layout}"
        if f.classes is not None:
            kind += f", {text.plural(len(f.classes), 'class', 'es')}"
        row = (text.printable(f.name), f.dtype, text.shape(f.shape), text.printable(kind))
        rows.append((*row, layouts.get(f.name, "")) if layouts else row)
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim")
    headings = ("field", "dtype", "shape", "kind", *(["layout"] if layouts else []))
    for heading, cells in zip(headings, zip(*rows, strict=True), strict=True):
        if heading in ("dtype", "shape"):
            table.add_column(heading, no_wrap=True)
        else:  # on a narrow terminal: between words, and only names within one
            words = [word for cell in cells for word in cell.split()] if heading != "field" else []
            table.add_column(heading, overflow="fold", min_width=max(map(len, (heading, *words))))
    if sizes is not None:
        table.add_column("size", justify="right", no_wrap=True)
    ratios = _ratios(schema, sizes or {}, stored or {})
    if ratios:
        table.add_column("ratio", justify="right", no_wrap=True)
    for f, cells in zip(schema, rows, strict=True):
        size = [] if sizes is None else [text.size(sizes[f.name])]
        table.add_row(*map(escape, cells), *size, *([ratios.get(f.name, "")] if ratios else []))
    return table


def _ratios(schema: Schema, sizes: Mapping[str, int], stored: Mapping[str, int]) -> dict[str, str]:
    """Field -> how much smaller it is on disk; none at all where nothing is packed."""
    found = {f.name: sizes.get(f.name, 0) / stored[f.name] for f in schema if stored.get(f.name)}
    if all(ratio < PACKED for ratio in found.values()):
        return {}
    return {name: f"{ratio:.2g}×" for name, ratio in found.items()}
