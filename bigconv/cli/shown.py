"""What `inspect` found, on the terminal: at any width, with or without colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from bigconv.class_counts import Counts, named
from bigconv.cli import text
from bigconv.cli.render import field_table
from bigconv.dataset import DatasetManifest
from bigconv.hashes import XXH3
from bigconv.inspection.datasets import Dataset
from bigconv.inspection.diff import Diff
from bigconv.inspection.fields import names_class
from bigconv.inspection.moments import Summary
from bigconv.inspection.stats import FieldStats
from bigconv.inspection.subject import Subject, stored_sizes
from bigconv.inspection.warnings import Complaint
from bigconv.schema import Schema
from bigconv.view import report
from bigconv.view.opening import OpenedDataset
from bigconv.view.report import Finding

if TYPE_CHECKING:
    from bigconv.inspection.raw import Reading

MOST = 20  # of a list; --json has all
MOST_DATASETS = 200
CLASSES = 12  # whose counts --stats shows
NAMED = 8  # classes of a field, unasked
PARTS = 8  # of a sharded directory; those between are counted


def show_store(out: Console, known: Subject, rows: dict[int, dict[str, Any]], made: dict[str, Any] | None) -> None:
    """A store of ours: heading, fields, classes, where it came from, and the rows asked for."""
    opened = known.opened
    assert opened is not None
    manifest = opened.manifest
    size = text.size(opened.bytes())
    _heading(out, known.name, f"{manifest.store} · {text.plural(manifest.rows, 'row')} · {size}")
    stored = stored_sizes(manifest.schema, known.datasets)
    out.print(field_table(manifest.schema, report.layouts(opened), report.sizes(opened), stored))
    if isinstance(opened, OpenedDataset):
        _parts(out, opened.manifest)
    _classes(out, manifest.schema, manifest.counts)
    steps = " → ".join(str(step.get("step")) for step in manifest.recipe.get("steps", [])) or "none"
    proven = "" if manifest.digests.algorithm == XXH3 else f" · digests {manifest.digests.algorithm}"
    _line(out, f"from {manifest.source.get('kind', '?')} · steps {steps}{proven}")
    out.print(f"content digest {manifest.content_digest}", style="dim")
    for i, row in rows.items():
        cells = ", ".join(f"{name}: {_cell(value, manifest.schema[name].kind)}" for name, value in row.items())
        _line(out, f"{i}  {cells}")
    if made is not None:
        where = f"{made['file']}, row {made['row']}" if "file" in made else f"row {made['row']}"
        _line(out, f"made from {where}")


def show_raw(out: Console, known: Subject) -> None:
    """Raw input or a foreign store: what it holds, what it would become, and what to type."""
    raw = known.raw
    assert raw is not None
    if raw.container is not None:
        total = sum(d.stored or 0 for d in raw.datasets) or raw.readings[0].bytes
        _heading(out, known.name, f"{raw.container} · {text.plural(len(raw.datasets), 'array')} · {text.size(total)}")
        out.print(dataset_tree(raw.datasets), soft_wrap=False)
    elif len(raw.readings) > 1:
        _heading(out, known.name, "files of several kinds: each makes a store of its own")
    else:
        _heading(out, known.name, f"{raw.readings[0].name} · {_counted(raw.readings[0])}")
    for reading in raw.readings:
        if raw.container is not None:
            out.print()
            _line(out, f"as rows: {_counted(reading)}" if reading.rows else "as rows:")
        elif len(raw.readings) > 1:
            out.print()
            _heading(out, reading.name, _counted(reading))
        _reading(out, reading)
    for misfit in raw.misfits:
        files = "file" if misfit.count == 1 else "files"
        why = {"link": "links that lead out or nowhere", "hidden": f"hidden {files}", "special": "special files"}.get(
            misfit.why, f"{files} {misfit.why}" if misfit.why.startswith("without") else f"{misfit.why} {files}"
        )
        more = ", …" if misfit.count > len(misfit.examples) else ""
        _line(out, f"not read: {misfit.count:,} {why}: {', '.join(misfit.examples)}{more}", "yellow")


def _counted(reading: Reading) -> str:
    inputs = None if reading.rows is None else reading.rows.count
    rows = "" if inputs is None else f"{text.plural(inputs, 'row')} · "
    return f"{rows}{text.plural(reading.files, 'file')} · {text.size(reading.bytes)}"


def _reading(out: Console, reading: Reading) -> None:
    for line in reading.problem.splitlines():
        _line(out, line, "yellow")
    if reading.rows is None:
        return
    schema = reading.rows.schema
    out.print(field_table(schema, {}))
    _classes(out, schema, {})
    for note in getattr(reading.rows.source, "notes", ()):
        _line(out, f"hint: {note}", "yellow")
    _line(out, "convert it:")
    _line(out, f"  {reading.command}", "bold")


def _parts(out: Console, manifest: DatasetManifest) -> None:
    """What a sharded directory is in: the first parts and the last one."""
    parts, by = manifest.parts, manifest.recipe.get("read", {}).get("by")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("part", overflow="fold")
    table.add_column("rows", justify="right")
    table.add_column("size", justify="right")
    if by is not None:
        table.add_column(Text(text.printable(str(by))))
    classes = manifest.schema[by].classes if by in manifest.schema.names else None
    shown = parts if len(parts) <= PARTS else (*parts[: PARTS - 1], parts[-1])
    for part in shown:
        if part is shown[-1] and len(shown) < len(parts):
            table.add_row(f"… {len(parts) - len(shown):,} more")
        value = classes[part.value] if classes and isinstance(part.value, int) else part.value
        own = [] if by is None else [Text(text.printable(str(value)))]
        table.add_row(Text(text.printable(part.name)), f"{part.rows:,}", text.size(part.bytes), *own)
    out.print(table)


def _classes(out: Console, schema: Schema, counts: Counts) -> None:
    """The classes of each field that has any, with the rows of each where they were counted."""
    for f in schema:
        classes = list(f.classes or ())
        if f.name in counts:
            found = named(f, counts[f.name])
            classes = [f"{label if name is None else name} ({n:,})" for label, name, n in found]
        if classes:
            shown = ", ".join(classes[:NAMED]) + (f", … ({len(classes):,} in all)" if len(classes) > NAMED else "")
            _line(out, f"{f.name} classes: {shown}")


def dataset_tree(datasets: Sequence[Dataset]) -> Tree:
    """Arrays beneath their groups: name, dtype, shape; then chunks, filters, bytes on disk, ratio."""
    root = Tree("", hide_root=True, guide_style="dim")
    groups: dict[str, Tree] = {"": root}
    for d in [d for d in datasets if not d.private][:MOST_DATASETS]:
        group, _, name = d.name.rpartition("/")
        branch = _group(groups, group)
        about = [part for part in (d.dtype, text.shape(d.shape)) if part]
        label = Text.assemble((text.printable(name) or "(all)", "bold"), *(f"  {part}" for part in about))
        details = _details(d)
        if details:
            label.append("\n  " + text.printable(details), "dim")
        branch.add(label)
    left = sum(not d.private for d in datasets) - MOST_DATASETS
    if left > 0:
        root.add(Text(f"… and {left:,} more; --json lists them", "dim"))
    return root


def _group(groups: dict[str, Tree], name: str) -> Tree:
    if name not in groups:
        above, _, last = name.rpartition("/")
        groups[name] = _group(groups, above).add(Text(text.printable(last) + "/"))
    return groups[name]


def _details(d: Dataset) -> str:
    chunks = [] if d.chunks is None else [f"{text.plural(d.chunk_count, 'chunk')} of {text.shape(d.chunks)}"]
    stored = [] if d.stored is None else [text.size(d.stored)]
    ratio = [] if d.ratio is None or 0.99 < d.ratio < 1.01 else [f"ratio {d.ratio:.2g}"]
    return " · ".join([*chunks, *d.filters, *stored, *ratio, *d.notes])


def show_stats(out: Console, stats: Sequence[FieldStats]) -> None:
    """One line a field, channel or length; then counts."""
    marked = any(s.values is not None and s.values.nan + s.values.inf for s in stats)
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("statistics", overflow="fold", min_width=10)
    for name in ("min", "max", "mean", "std", *(("NaN", "inf") if marked else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for s in stats:
        name = escape(text.printable(s.field.name))
        if s.values is not None and not (names_class(s.field) and s.counts):  # their numbers mean nothing
            table.add_row(name, *_numbers(s.values, marked))
        for channel in s.channels:
            table.add_row(f"  channel {channel.number}", *_numbers(channel.values, marked))
        if s.lengths is not None and not s.extents:
            own = f"{name} {s.unit}" if s.values is None else f"  {s.unit} a row"
            table.add_row(own, *_numbers(s.lengths, marked))
        for axis, (low, high) in enumerate(s.extents):
            table.add_row(f"  axis {axis}" if s.values is not None else f"{name} axis {axis}", f"{low:,}", f"{high:,}")
    out.print()
    out.print(table)
    for s in stats:
        counts = s.named_counts() or list(s.formats)
        if counts and (s.field.kind in ("label", "mask") or s.formats or len(counts) <= CLASSES):
            most = sorted(counts, key=lambda pair: -pair[1])[:CLASSES] if len(counts) > CLASSES else counts
            more = f", … ({len(counts):,} in all)" if len(counts) > CLASSES else ""
            _line(out, f"{s.field.name}: " + ", ".join(f"{value} {n:,}" for value, n in most) + more)
        if s.empty:
            _line(out, f"{s.field.name}: {text.plural(s.empty, 'row')} empty")


def _numbers(summary: Summary, marked: bool) -> list[str]:
    told = [_short(value) for value in (summary.min, summary.max, summary.mean, summary.std)]
    return [*told, f"{summary.nan:,}", f"{summary.inf:,}"] if marked else told


def _short(value: float | complex | None) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, (float, complex)) or abs(value) >= 10**9 else f"{value:,}"


def show_warnings(out: Console, warnings: Sequence[Complaint]) -> None:
    """Each with what mends it; what one command mends stands together."""
    for fix in dict.fromkeys(w.fix for w in warnings):
        for w in (w for w in warnings if w.fix == fix):
            fields = [name for name in w.fields if name]
            of = f" ({', '.join(fields[:4])}{', …' if len(fields) > 4 else ''})" if fields else ""
            out.print(f"[yellow]warning[/yellow]: {escape(text.printable(w.problem + of))}")
        for line in fix.splitlines():
            _line(out, f"  {line}")


def show_diff(out: Console, diff: Diff) -> None:
    """What both have in common is not told."""
    out.print()
    if diff.same:
        out.print(f"[green]same rows[/green]: {text.plural(diff.rows[0], 'row')}, content digest {diff.digests[0]}")
    else:
        out.print("[red]different[/red]")
        if diff.rows[0] != diff.rows[1]:
            _line(out, f"rows: {diff.rows[0]:,} → {diff.rows[1]:,}")
        for line in diff.schema:
            _line(out, f"field {line}")
        for one in diff.fields:
            ranges = ", ".join(f"{start:,} to {stop - 1:,}" for start, stop in one.ranges[:8])
            more = f", … ({one.blocks:,} in all)" if one.blocks > 8 else ""
            _line(out, f"field {one.field}: {text.plural(one.blocks, 'block')} of rows: {ranges}{more}")
            if one.first is not None:
                at = f" at {list(one.first.index)}" if one.first.index else ""
                _line(out, f"  first in row {one.first.row:,}{at}: {one.first.ours} → {one.first.theirs}")
    for line in diff.about:
        _line(out, line, "dim")


def show_findings(out: Console, findings: list[Finding]) -> None:
    """What `--verify` found."""
    if not findings:
        out.print("[green]verified[/green]: every row is as it was written")
        return
    out.print(f"[red]not verified[/red]: {text.plural(len(findings), 'finding')}")
    for f in findings[:MOST]:
        where = f"field {f.field}, rows {f.start} to {f.stop - 1}: " if f.field else ""
        _line(out, f"  {where}{f.problem}")
    if len(findings) > MOST:
        out.print(f"  … and {len(findings) - MOST} more; --json lists them all")


def _heading(out: Console, name: str, about: str) -> None:
    out.print(f"[bold]{escape(text.name(name))}[/bold] · {escape(text.printable(about))}")


def _line(out: Console, line: str, style: str | None = None) -> None:
    out.print(text.printable(line), style=style, markup=False, highlight=False)


def _cell(value: Any, kind: str) -> str:
    if isinstance(value, dict):
        spread = f" {_number(value['min'])}…{_number(value['max'])}" if "min" in value else ""
        return f"{value['dtype']}[{' × '.join(map(str, value['shape']))}]{spread}"
    return repr(value) if kind == "text" else str(value)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
