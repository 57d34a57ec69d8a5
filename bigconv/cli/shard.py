"""`bigconv shard STORE... DEST`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigconv.cli import options

if TYPE_CHECKING:
    from bigconv.conversion.parts import Job
    from bigconv.conversion.plan import Plan
    from bigconv.conversion.run import Outcome
    from bigconv.conversion.shard import Changed
    from bigconv.manifest import Manifest
    from bigconv.remote.urls import Url

SIZE, ROWS, CHANGE = "Size of the parts", "Which rows, in which order", "Change a store or directory in its place"


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="STORE... DEST",
            help="Stores or sharded directories, then the folder to make, or one store (that merges).",
            show_default=False,
        ),
    ],
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="256MB", help="Bytes of data a part [256MB].", rich_help_panel=SIZE),
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", metavar="N", help="Rows a part.", rich_help_panel=SIZE)] = None,
    shards: Annotated[
        int | None, typer.Option("--shards", metavar="K", help="Number of parts.", rich_help_panel=SIZE)
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="STORE", help="memmap | hdf5 | lmdb | zarr [as they are].")
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option("--digest", metavar="HASH", help="What proves the rows: xxh3 | sha256, else as they have it."),
    ] = None,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Put all rows in a random order, by --seed.", rich_help_panel=ROWS)
    ] = False,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Of --shuffle and --split.", rich_help_panel=ROWS)
    ] = 0,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="train=0.9,val=0.1", help="Each a dataset below DEST.", rich_help_panel=ROWS),
    ] = None,
    stratify: Annotated[
        str | None,
        typer.Option(
            "--stratify", metavar="FIELD", help="Share its values out evenly over the split.", rich_help_panel=ROWS
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group", metavar="FIELD", help="Rows of one value stay on one side of the split.", rich_help_panel=ROWS
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="FIELD", help="Each part holds rows of one value.", rich_help_panel=ROWS),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="PART", help="Take a part out, by name or number.", rich_help_panel=CHANGE),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make damaged and missing parts again.", rich_help_panel=CHANGE)
    ] = False,
    source: Annotated[
        list[Path] | None,
        typer.Option("--source", metavar="PATH", help="What --repair makes them from.", rich_help_panel=CHANGE),
    ] = None,
    drop_field: Annotated[
        list[str] | None,
        typer.Option(
            "--drop-field",
            metavar="NAME",
            help="Take a field out; others stay as they are (memmap, Zarr).",
            rich_help_panel=CHANGE,
        ),
    ] = None,
    add_field: Annotated[
        list[Path] | None,
        typer.Option(
            "--add-field",
            metavar="STORE",
            help="Put the fields of a store with as many rows in (memmap, Zarr).",
            rich_help_panel=CHANGE,
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", metavar="N", help="Processes that write [cores].")] = None,
    engine: options.Engine = "local",
    rank: options.Rank = None,
    finalize: options.Finalize = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what bigconv wrote at DEST.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Drop unfinished work and begin anew.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Cut a store into parts, each a whole store; merge, shuffle, split; the same rows, proven by the digest."""
    if engine == "local" and workers != 0 and len(paths) > 1 and not (dry_run or finalize):
        from bigconv.conversion import early

        early.for_parts(paths, to)
    from bigconv.conversion.parts_cut import Cut, parse_size
    from bigconv.conversion.progress import progress
    from bigconv.conversion.ranks import parse_rank
    from bigconv.conversion.request import available_cores
    from bigconv.conversion.run import Policy
    from bigconv.conversion.shard import Edit, ShardRequest, inputs
    from bigconv.conversion.shard_source import Pick, parse_split

    policy = Policy(
        available_cores() if workers is None else workers,
        restart=restart,
        engine=engine,
        rank=parse_rank(rank),
        finalize=finalize,
    )
    stores, dest = (paths, None) if len(paths) < 2 else (paths[:-1], paths[-1])
    edit = Edit(drop or (), repair, source or (), drop_field or (), add_field or ())
    cut = Cut(rows, None if size is None else parse_size(size), shards)
    pick = Pick(shuffle, seed, {} if split is None else parse_split(split), stratify, group, by)
    changed = edit.run(stores, dest, policy, cut, pick, to=to, digest=digest, overwrite=overwrite, dry_run=dry_run)
    if changed is not None:
        _show_change(paths[0], changed, json)
        return
    assert dest is not None
    request = ShardRequest(tuple(stores), dest, cut, pick, to, overwrite, policy, digest=digest)
    todo, done = request.plan()
    if dry_run:
        _show_plan(request.told, todo, json)
        return
    with progress(policy.inputs(inputs(todo)), "rows", quiet or done is not None) as step:
        outcome = request.carry_out(todo, done, step)
    if json:
        options.print_json(_outcome_json(outcome))
    else:
        _show_outcome(outcome)


def _show_plan(dest: Path | Url, todo: Job | Plan, as_json: bool) -> None:
    from bigconv.cli import text
    from bigconv.cli.render import console
    from bigconv.conversion.parts import Job

    if isinstance(todo, Job):
        outputs = [(output.folder, output.plan, len(output.parts)) for output in todo.outputs]
    else:
        outputs = [("", todo, 1)]
    if as_json:
        told = [
            {"folder": folder, "rows": plan.inputs, "parts": count, "store": plan.store.name, "recipe": plan.recipe()}
            for folder, plan, count in outputs
        ]
        options.print_json({"schema_version": 1, "dest": str(dest), "datasets": told})
        return
    out = console()
    for folder, plan, count in outputs:
        where, rows = text.name(dest / folder), text.plural(plan.inputs or 0, "row")
        line = f"{where} would be {rows} in {text.plural(count, 'part')}, {plan.store.name}"
        out.print(line, markup=False, highlight=False)


def _dataset_json(manifest: Manifest) -> dict[str, Any]:
    from bigconv.dataset import DatasetManifest

    told: dict[str, Any] = {
        "store": manifest.store,
        "rows": manifest.rows,
        "content_digest": manifest.content_digest or None,
        "fields": manifest.schema.to_json(),
    }
    if isinstance(manifest, DatasetManifest):
        told["parts"] = [part.to_json() for part in manifest.parts]
    return told


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "dest": str(outcome.dest),
        "status": outcome.status,
        "rank": None if outcome.rank is None else str(outcome.rank),
        "rows_resumed": outcome.resumed_rows,
        "bytes": outcome.bytes,
        "seconds": round(outcome.seconds, 3),
        "datasets": {
            folder: _dataset_json(manifest) for folder, manifest in (outcome.datasets or {"": outcome.manifest}).items()
        },
    }


def _show_outcome(outcome: Outcome) -> None:
    from bigconv.cli import text
    from bigconv.cli.outcome import finalize_next
    from bigconv.cli.render import console

    out = console()
    datasets = outcome.datasets or {"": outcome.manifest}
    for folder, manifest in datasets.items():
        where = text.name(outcome.dest / folder)
        same = {"unchanged": ": unchanged, skipped ·", "made": f": rank {outcome.rank} made"}.get(outcome.status, ":")
        out.print(f"{where}{same} {_counted(manifest)}", markup=False, highlight=False)
        if manifest.content_digest:
            out.print(f"content digest {manifest.content_digest}", style="dim")
    if outcome.status != "unchanged":
        seconds = max(outcome.seconds, 1e-9)
        resumed = f" · {text.count(outcome.resumed_rows)} rows from before" if outcome.resumed_rows else ""
        speed = f"{outcome.rows / seconds:,.0f} rows/s"
        out.print(f"{text.size(outcome.bytes)} · {seconds:.1f} s · {speed}{resumed}", highlight=False)
    if outcome.rank is not None:
        out.print(finalize_next(outcome), highlight=False)


def _counted(manifest: Manifest) -> str:
    from bigconv.cli import text
    from bigconv.dataset import DatasetManifest

    rows = text.plural(manifest.rows, "row")
    if not isinstance(manifest, DatasetManifest):
        return f"{rows} in one {manifest.store} store"
    return f"{rows} in {text.plural(len(manifest.parts), 'part')}, {manifest.store}"


def _show_change(path: Path, changed: Changed, as_json: bool) -> None:
    from bigconv.cli import text
    from bigconv.cli.render import console

    manifest = changed.manifest
    if as_json:
        told = {what.replace(" ", "_"): list(names) for what, names in changed.what.items()}
        document = {"schema_version": 1, "dest": str(path), "status": changed.status, **told}
        options.print_json({**document, "datasets": {"": _dataset_json(manifest)}})
        return
    out = console()
    for what, names in changed.what.items():
        if names and what.endswith("fields"):
            out.print(f"{what}: {', '.join(names)}", markup=False, highlight=False)
            continue
        for name in names:
            out.print(f"{what}: {name}", markup=False, highlight=False)
    same = changed.status == "unchanged"
    if not (same or any(changed.what.values())):
        out.print("every part is whole")
    where = text.name(path)
    out.print(f"{where}:{' unchanged, skipped ·' * same} {_counted(manifest)}", markup=False, highlight=False)
    out.print(f"content digest {manifest.content_digest}", style="dim")
