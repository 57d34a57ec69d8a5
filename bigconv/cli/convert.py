"""`bigconv convert SOURCE... DEST`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigconv.cli import options

if TYPE_CHECKING:
    from bigconv.conversion.plan import Plan
    from bigconv.conversion.request import Request
    from bigconv.conversion.run import Outcome


def command(
    ctx: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE... DEST", help="Raw files or a store, then the store to make.", show_default=False
        ),
    ],
    from_: Annotated[
        str | None, typer.Option("--from", metavar="FORMAT", help="What SOURCE is, where its files don't tell.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="STORE", help="memmap | hdf5 | lmdb | zarr, where DEST's extension doesn't tell."),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            help="Files joined on their stems, such as image=images/*.jpg and mask=masks/*.png.",
            metavar="NAME=GLOB",
            rich_help_panel="Fields",
        ),
    ] = None,
    label_from: Annotated[
        str | None,
        typer.Option(
            "--label-from",
            metavar="HOW",
            help="Labels of images: folder | name:REGEX | csv:FILE | none.",
            rich_help_panel="Fields",
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            "--classes",
            metavar="FILE",
            help="Classes of labels: a file, one a line, or a store that has them.",
            rich_help_panel="Fields",
        ),
    ] = None,
    keep_encoded: Annotated[
        bool, typer.Option("--keep-encoded", help="Store image files as they are.", rich_help_panel="Fields")
    ] = False,
    keep_path: Annotated[
        bool, typer.Option("--keep-path", help="The file of each row as a field, path.", rich_help_panel="Fields")
    ] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow links that lead out of SOURCE.", rich_help_panel="Fields")
    ] = False,
    rows: Annotated[
        bool,
        typer.Option("--rows", help="A folder of arrays: one sample a row, not a file.", rich_help_panel="Fields"),
    ] = False,
    axis: Annotated[
        int | None,
        typer.Option(
            "--axis",
            metavar="N",
            help="Axis of arrays [0] or NIfTI volumes along which rows lie.",
            rich_help_panel="Fields",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            help="Columns of a table, datasets of HDF5 or Zarr, in this order.",
            metavar="A,B",
            rich_help_panel="Fields",
        ),
    ] = None,
    pack: Annotated[
        list[str] | None,
        typer.Option(
            "--pack",
            help="Columns of a table as one matrix; * takes all other numeric ones.",
            metavar="NAME=A,B|*",
            rich_help_panel="Fields",
        ),
    ] = None,
    fill: Annotated[
        float | None,
        typer.Option(
            "--fill", metavar="NUMBER", help="A number for missing values of a table.", rich_help_panel="Fields"
        ),
    ] = None,
    dtypes: Annotated[
        list[str] | None,
        typer.Option(
            "--dtypes",
            help="Type of a column of CSV or JSON lines.",
            metavar="COLUMN=DTYPE",
            rich_help_panel="Fields",
        ),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            "--delimiter",
            metavar="C",
            help="What stands between the values of a CSV [by extension].",
            rich_help_panel="Fields",
        ),
    ] = None,
    quote: Annotated[
        str | None,
        typer.Option("--quote", metavar="C", help="Quote character of a CSV, or none.", rich_help_panel="Fields"),
    ] = None,
    header: Annotated[
        str | None,
        typer.Option(
            "--header",
            metavar="HOW",
            help="Names of the columns of a CSV: first (its first line) | none | A,B,C.",
            rich_help_panel="Fields",
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            "--encoding", metavar="NAME", help="Encoding of a CSV [UTF-8, strictly].", rich_help_panel="Fields"
        ),
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="One sample a line of text, not a file.", rich_help_panel="Fields")
    ] = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="[COLUMN=]NAME",
            help="Text to tokens: byte | tiktoken:NAME | FILE.json | MODULE:FUNCTION.",
            rich_help_panel="Fields",
        ),
    ] = None,
    resample: Annotated[
        int | None, typer.Option("--resample", metavar="HZ", help="One rate for all audio.", rich_help_panel="Fields")
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option("--tile", metavar="PIXELS", help="Cut GeoTIFFs into squares.", rich_help_panel="Fields"),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option("--overlap", metavar="PIXELS", help="What a tile shares with the next.", rich_help_panel="Fields"),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option("--fps", metavar="N", help="Frames a second taken of a video.", rich_help_panel="Fields"),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option("--frames", metavar="N", help="Frames a row: cuts videos into clips.", rich_help_panel="Fields"),
    ] = None,
    index_base: Annotated[
        int | None,
        typer.Option("--index-base", metavar="0|1", help="First index of libsvm files.", rich_help_panel="Fields"),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option("--length", metavar="N", help="Dense length of sparse rows.", rich_help_panel="Fields"),
    ] = None,
    resize: Annotated[
        list[str] | None,
        typer.Option(
            "--resize",
            help="Resize images and frames, antialiased.",
            metavar="S|HxW",
            rich_help_panel="Steps, in the order typed",
        ),
    ] = None,
    fit: Annotated[
        str,
        typer.Option(
            "--fit",
            metavar="HOW",
            help="How --resize treats another aspect ratio: cover | contain | stretch.",
            rich_help_panel="Steps, in the order typed",
        ),
    ] = "cover",
    crop: Annotated[
        list[str] | None,
        typer.Option(
            "--crop",
            help="Cut images, in the middle or at Y, X.",
            metavar="HxW[+Y+X]",
            rich_help_panel="Steps, in the order typed",
        ),
    ] = None,
    normalize: Annotated[
        list[str] | None,
        typer.Option(
            "--normalize",
            metavar="HOW",
            help="imagenet | unit | MEANS/STDS; makes float32 images.",
            rich_help_panel="Steps, in the order typed",
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help="Change the dtype, values kept.",
            rich_help_panel="Steps, in the order typed",
        ),
    ] = None,
    layout: Annotated[
        list[str] | None,
        typer.Option(
            "--layout",
            metavar="ORDER",
            help="Axis order of images: chw | hwc [chw].",
            rich_help_panel="Steps, in the order typed",
        ),
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="A function of yours, row by row or batched.",
            metavar="MODULE:FUNCTION",
            rich_help_panel="Steps, in the order typed",
        ),
    ] = None,
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="A function of yours that says which rows stay.",
            metavar="MODULE:FUNCTION",
            rich_help_panel="Steps, in the order typed",
        ),
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(
            "--select",
            help="Fields to keep, in this order.",
            metavar="A,B",
            rich_help_panel="Steps, in the order typed",
        ),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            "--rename", help="Another name for a field.", metavar="OLD=NEW", rich_help_panel="Steps, in the order typed"
        ),
    ] = None,
    sparse: Annotated[
        list[str] | None,
        typer.Option(
            "--sparse",
            help="A field of mostly zeros as indices and values.",
            metavar="FIELD",
            rich_help_panel="Steps, in the order typed",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            metavar="N",
            help="For functions of yours that draw at random.",
            rich_help_panel="Steps, in the order typed",
        ),
    ] = 0,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe", metavar="STORE|FILE", help="Take steps and options from a store, or a recipe in JSON."
        ),
    ] = None,
    compress: Annotated[
        str | None,
        typer.Option("--compress", help="none | lz4 | zstd[:1-9] [none].", metavar="CODEC", rich_help_panel="Storage"),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option("--chunk", help="Rows a chunk (Zarr, compressed HDF5).", metavar="N", rich_help_panel="Storage"),
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option(
            "--digest",
            metavar="HASH",
            help="What proves the rows: xxh3 (default) | sha256.",
            rich_help_panel="Storage",
        ),
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option(
            "--shard-size",
            help="Bytes of data a part: DEST is a folder of parts.",
            metavar="256MB",
            rich_help_panel="Storage",
        ),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option("--shards", help="The same, by the number of parts.", metavar="K", rich_help_panel="Storage"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Processes that decode [cores].")
    ] = None,
    engine: options.Engine = "local",
    rank: options.Rank = None,
    finalize: options.Finalize = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, convert nothing.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="Convert the first N inputs only.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a store that bigconv wrote.", rich_help_panel="Policy")
    ] = False,
    append: Annotated[
        bool, typer.Option("--append", help="Add rows of new files to DEST.", rich_help_panel="Policy")
    ] = False,
    retry_rejects: Annotated[
        bool, typer.Option("--retry-rejects", help="Read rejected files of DEST again.", rich_help_panel="Policy")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Insist on unfinished work to go on with.", rich_help_panel="Policy")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Drop unfinished work and begin anew.", rich_help_panel="Policy")
    ] = False,
    max_rejects: Annotated[
        str,
        typer.Option(
            "--max-rejects", metavar="N|P%", help="Bad inputs that may be left out.", rich_help_panel="Policy"
        ),
    ] = "0",
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first bad input.", rich_help_panel="Policy")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", metavar="S", help="Seconds that one input may take; 0: any.", rich_help_panel="Policy"
        ),
    ] = 120.0,
    memory_limit: options.MemoryLimit = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Turn raw files into a store: memmap, HDF5, LMDB or Zarr.

    SOURCE: a folder of images or arrays, .npy and .npz files, tables (CSV, Parquet, Arrow, JSON lines), text, audio,
    video, TIFF, GeoTIFF, DICOM, NIfTI, WebDataset tars, sparse rows, or any store, also HDF5, Zarr and LMDB of others.
    The same command goes on where it stopped, and does nothing where nothing has changed.
    """
    # nothing but a user's function multiplies matrices, and threads for that spin while numpy is imported
    if not (map_ or filter_ or recipe):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if len(paths) == 2 and engine == "local" and workers != 0 and rank is None and not (dry_run or finalize):
        from bigconv.conversion import early

        if not os.path.lexists(paths[1]):
            early.for_images(paths[0], bool(resize))

    from bigconv.cli import outcome as outcome_text
    from bigconv.conversion.parts_cut import parse_size
    from bigconv.conversion.ranks import parse_rank
    from bigconv.conversion.request import Request, available_cores
    from bigconv.conversion.run import Policy
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
        seed=seed,
        limit=limit,
        overwrite=overwrite,
        append=append,
        retry_rejects=retry_rejects,
        policy=Policy(
            workers=available_cores() if workers is None else workers,
            max_rejects=max_rejects,
            strict=strict,
            restart=restart,
            timeout=timeout or None,
            memory_limit=None if memory_limit is None else parse_size(memory_limit, "--memory-limit"),
            engine=engine,
            rank=parse_rank(rank),
            finalize=finalize,
        ),
        options={
            "field": field or None,
            "label_from": label_from,
            "classes": classes,
            "keep_encoded": keep_encoded,
            "keep_path": keep_path,
            "follow_links": follow_links,
            "rows": rows,
            "axis": axis,
            "columns": None if columns is None else columns.split(","),
            "pack": pack or None,
            "fill": fill,
            "dtypes": dtypes or None,
            "delimiter": delimiter,
            "quote": quote,
            "header": header,
            "encoding": encoding,
            "lines": lines,
            "tokenizer": tokenizer,
            "resample": resample,
            "tile": tile,
            "overlap": overlap,
            "fps": fps,
            "frames": frames,
            "index_base": index_base,
            "length": length,
        },
        storage={"compress": compress, "chunk": chunk},
        shard_size=shard_size,
        shards=shards,
        digest=digest,
    )
    if recipe is not None:
        request = request.replayed(recipe)
    if dry_run:
        with options.aside():
            plan = request.plan()[0]
        outcome_text.show_plan(request, plan, json)
        return
    with options.aside():
        plan, outcome = _run(request, quiet, resume)
    if json:
        options.print_json(outcome_text.as_json(outcome, plan.notes))
    else:
        outcome_text.show(outcome, plan.notes)


def _run(request: Request, quiet: bool, resume: bool) -> tuple[Plan, Outcome]:
    from bigconv.conversion.build import state_of
    from bigconv.conversion.progress import progress
    from bigconv.errors import UsageError

    plan, done = request.plan()
    if done is not None:
        return plan, request.carry_out(plan, done)
    if resume and state_of(request.dest) is None:
        raise UsageError(f"--resume: there is no unfinished work for {request.dest}")
    with progress(request.policy.inputs(plan.inputs), "rows", quiet) as step:
        return plan, request.carry_out(plan, None, step)
