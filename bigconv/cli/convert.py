"""`bigconv convert SOURCE... DEST`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigconv.cli import options

if TYPE_CHECKING:
    from bigconv.conversion.api import Outcome, Request
    from bigconv.conversion.plan import Plan


def command(
    ctx: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE... DEST", help="Raw files or a store, then the store to make.", show_default=False
        ),
    ],
    from_: Annotated[
        str | None, typer.Option("--from", help="What SOURCE is: images, arrays, array-folder, store.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Store: memmap, hdf5, lmdb, zarr (else by DEST's extension).")
    ] = None,
    label_from: Annotated[
        str | None, typer.Option("--label-from", help="folder | name:REGEX | csv:FILE | none", rich_help_panel="Fields")
    ] = None,
    axis: Annotated[
        int, typer.Option("--axis", help="Axis of arrays along which rows lie.", rich_help_panel="Fields")
    ] = 0,
    keep_encoded: Annotated[
        bool, typer.Option("--keep-encoded", help="Store image files as they are.", rich_help_panel="Fields")
    ] = False,
    resize: Annotated[
        str | None,
        typer.Option(
            "--resize",
            metavar="S|HxW",
            help="Resize images, antialiased.",
            callback=options.step,
            rich_help_panel="Steps",
        ),
    ] = None,
    fit: Annotated[
        str,
        typer.Option(
            "--fit",
            help="How --resize treats another aspect ratio: cover | contain | stretch.",
            rich_help_panel="Steps",
        ),
    ] = "cover",
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="Change the dtype, values kept.", callback=options.step, rich_help_panel="Steps"),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            help="Axis order of images: chw (default) | hwc.",
            callback=options.step,
            rich_help_panel="Steps",
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes that decode (default: cores).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store that bigconv wrote.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, convert nothing.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Turn raw files into a store: memmap, HDF5, LMDB or Zarr.

    SOURCE: a folder of images or arrays, .npy and .npz files, or any store. Steps run in the order typed.
    """
    from bigconv.conversion.api import Request, available_cores
    from bigconv.errors import UsageError

    if len(paths) < 2:
        raise UsageError(f"convert needs a SOURCE and a DEST, got only {paths[0]}: bigconv convert {paths[0]} out.h5")
    request = Request(
        tuple(paths[:-1]),
        paths[-1],
        from_=from_,
        to=to,
        steps=options.steps(ctx),
        fit=fit,
        workers=available_cores() if workers is None else workers,
        overwrite=overwrite,
        options={"label_from": label_from, "keep_encoded": keep_encoded, "axis": axis},
    )
    if dry_run:
        _show_plan(request, request.plan(), json)
        return
    outcome = _run(request, quiet)
    if json:
        _print_json(_outcome_json(outcome))
    else:
        _show_outcome(outcome)


def _run(request: Request, quiet: bool) -> Outcome:
    from bigconv.cli.progress import progress
    from bigconv.conversion.api import execute

    plan = request.plan()
    with progress(plan.inputs, "rows", quiet) as step:
        return execute(plan, request.dest, request.workers, step)


def _show_plan(request: Request, plan: Plan, as_json: bool) -> None:
    from bigconv.cli import text
    from bigconv.conversion.plan import free_space

    estimate, free = plan.estimate(), free_space(request.dest)
    if as_json:
        _print_json(
            {
                "schema_version": 1,
                "dest": str(request.dest),
                "recipe": plan.recipe(),
                "source": plan.source.describe(),
                "rows": plan.inputs,
                "spans": len(plan.spans),
                "fields": plan.schema.to_json(),
                "bytes_estimate": estimate,
                "bytes_free": free,
            }
        )
        return
    from bigconv.cli.render import console, field_table

    out = console()
    out.print(
        f"[bold]{text.printable(str(request.dest))}[/bold] would be a {plan.store.name} store of "
        f"{_rows(plan)} from {plan.source.name}"
    )
    out.print(field_table(plan.schema, plan.store.describe(plan.schema)))
    steps = " → ".join(step.name for step in plan.steps) or "none"
    about = "depends on the rows' sizes" if estimate is None else text.size(estimate)
    out.print(f"steps {steps} · data {about} · free {text.size(free)}")
    if estimate is not None and estimate > free:
        out.print("[red]There is not enough free space.[/red]")


def _rows(plan: Plan) -> str:
    from bigconv.cli import text

    return "rows" if plan.inputs is None else text.plural(plan.inputs, "row")


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    manifest = outcome.manifest
    return {
        "schema_version": 1,
        "dest": str(outcome.dest),
        "store": manifest.store,
        "rows": manifest.rows,
        "rejects": len(outcome.rejects),
        "bytes": outcome.bytes,
        "seconds": round(outcome.seconds, 3),
        "content_digest": manifest.content_digest,
        "fields": manifest.schema.to_json(),
    }


def _show_outcome(outcome: Outcome) -> None:
    from bigconv.cli import text
    from bigconv.cli.render import console

    manifest, seconds = outcome.manifest, max(outcome.seconds, 1e-9)
    dest = text.printable(str(outcome.dest))
    fields = ", ".join(repr(name) for name in manifest.schema.names) + ("," if len(manifest.schema) == 1 else "")
    out = console()
    out.print(
        f"[bold]{dest}[/bold]: {text.plural(manifest.rows, 'row')} · {text.plural(len(outcome.rejects), 'reject')} · "
        f"{text.size(outcome.bytes)} · {seconds:.1f} s · {manifest.rows / seconds:,.0f} rows/s"
    )
    out.print(f"content digest {manifest.content_digest}", style="dim")
    out.print("read it:")
    out.print("  from bigconv.runtime import StoreDataset", markup=False, highlight=False)
    out.print(f"  dataset = StoreDataset({dest!r}, fields=({fields}))", markup=False, highlight=False)


def _print_json(document: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
