"""`bigconv inspect PATH`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigconv.cli import options

if TYPE_CHECKING:
    from bigconv.view.opening import Opened
    from bigconv.view.report import Finding


def command(
    path: Annotated[Path, typer.Argument(help="A store.", show_default=False)],
    head: Annotated[int, typer.Option("--head", metavar="N", help="Show the first N rows.", min=0)] = 0,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything and check every digest; exit 1 if one is wrong.")
    ] = False,
    row: Annotated[int | None, typer.Option("--row", metavar="I", help="Show row I, and which file made it.")] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what a store holds: fields, rows, layout, source; check that nothing was lost."""
    from bigconv import registry
    from bigconv.errors import FindingsError, StoreError
    from bigconv.view import report
    from bigconv.view.opening import open_store

    try:
        opened = open_store(path)
    except StoreError as error:
        if not verify or not path.exists() or path.suffix not in registry.extensions("store"):
            raise
        # asked whether it is whole, and it isn't: that is an answer, not a refusal
        raise FindingsError(f"not verified: {error}") from error
    findings = report.verify(opened) if verify else None
    rows = dict(enumerate(report.head(opened, head))) if head else {}
    made = None
    if row is not None:
        rows[row] = report.row(opened, row)
        made = report.whence(opened, row % opened.manifest.rows)
    if json:
        _print_json(opened, findings, rows, made)
    else:
        _show(opened, findings, rows, made)
    if findings:
        raise typer.Exit(1)


Rows = dict[int, dict[str, Any]]


def _print_json(opened: Opened, findings: list[Finding] | None, rows: Rows, made: dict[str, Any] | None) -> None:
    import json
    from dataclasses import asdict

    from bigconv.view import report

    document = report.describe(opened)
    if findings is not None:
        document |= {"verified": not findings, "findings": [asdict(f) for f in findings]}
    if rows:
        document["head"] = list(rows.values())
    if made is not None:
        document["made_from"] = made
    typer.echo(json.dumps(document, indent=2))  # in ASCII: a path may hold bytes that no encoding of stdout can


def _show(opened: Opened, findings: list[Finding] | None, rows: Rows, made: dict[str, Any] | None) -> None:
    from rich.markup import escape

    from bigconv.cli import text
    from bigconv.cli.render import console, field_table
    from bigconv.view import report

    out, manifest = console(), opened.manifest
    name = escape(text.printable(str(opened.path)))
    out.print(
        f"[bold]{name}[/bold] · {manifest.store} · {text.plural(manifest.rows, 'row')} · {text.size(opened.bytes())}"
    )
    out.print(field_table(manifest.schema, opened.store.describe(manifest.schema), report.sizes(opened)))
    for f in manifest.schema:
        if f.classes is not None:
            shown = ", ".join(f.classes[:8]) + (f", … ({len(f.classes)} in all)" if len(f.classes) > 8 else "")
            out.print(f"{escape(f.name)} classes: {escape(text.printable(shown))}")
    steps = " → ".join(str(step.get("step")) for step in manifest.recipe.get("steps", [])) or "none"
    out.print(
        f"from {escape(text.printable(str(manifest.source.get('kind', '?'))))} · steps {escape(text.printable(steps))}"
    )
    out.print(f"content digest {manifest.content_digest}", style="dim")
    for i, row in rows.items():
        cells = ", ".join(f"{name}: {_cell(value, manifest.schema[name].kind)}" for name, value in row.items())
        out.print(f"{i}  {text.printable(cells)}", markup=False, highlight=False)
    if made is not None:
        where = f"{made['file']}, row {made['row']}" if "file" in made else f"row {made['row']}"
        out.print(f"made from {text.printable(where)}", markup=False, highlight=False)
    if findings is not None:
        _show_findings(out, findings)


def _cell(value: Any, kind: str) -> str:
    if isinstance(value, dict):
        spread = f" {_number(value['min'])}…{_number(value['max'])}" if "min" in value else ""
        return f"{value['dtype']}[{' × '.join(map(str, value['shape']))}]{spread}"
    return repr(value) if kind == "text" else str(value)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _show_findings(out: Any, findings: list[Finding]) -> None:
    from bigconv.cli import text

    if not findings:
        out.print("[green]verified[/green]: every row is as it was written")
        return
    out.print(f"[red]not verified[/red]: {text.plural(len(findings), 'finding')}")
    for f in findings[:20]:
        where = f"field {f.field}, rows {f.start} to {f.stop - 1}: " if f.field else ""
        out.print(f"  {where}{f.problem}", markup=False, highlight=False)
    if len(findings) > 20:
        out.print(f"  … and {len(findings) - 20} more; --json lists them all")
