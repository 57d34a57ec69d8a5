"""`bigconv.convert`: the command `convert` as a function."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from bigconv.conversion.parts_cut import parse_size
from bigconv.conversion.progress import in_notebook
from bigconv.conversion.progress import progress as show_progress
from bigconv.conversion.ranks import parse_rank
from bigconv.conversion.request import PathLike, Request, available_cores
from bigconv.conversion.run import Policy
from bigconv.manifest import Manifest


def convert(
    sources: PathLike | Sequence[PathLike],
    dest: PathLike,
    *,
    from_: str | None = None,
    to: str | None = None,
    steps: Sequence[tuple[str, str]] | None = None,
    resize: int | str | tuple[int, int] | None = None,
    fit: str = "cover",
    crop: int | str | tuple[int, int] | None = None,
    normalize: str | None = None,
    dtype: str | None = None,
    layout: str | None = None,
    map: str | Sequence[str] | None = None,  # noqa: A002  the option's name
    filter: str | Sequence[str] | None = None,  # noqa: A002  the option's name
    select: str | Sequence[str] | None = None,
    rename: str | Mapping[str, str] | None = None,
    sparse: str | Sequence[str] | None = None,
    seed: int = 0,
    field: str | Sequence[str] | None = None,
    keep_encoded: bool = False,
    keep_path: bool = False,
    follow_links: bool = False,
    label_from: str | None = None,
    classes: PathLike | Sequence[str] | None = None,
    rows: bool = False,
    axis: int | None = None,
    columns: Sequence[str] | None = None,
    pack: str | Sequence[str] | None = None,
    fill: float | None = None,
    dtypes: str | Sequence[str] | None = None,
    delimiter: str | None = None,
    quote: str | None = None,
    header: str | None = None,
    encoding: str | None = None,
    lines: bool = False,
    tokenizer: str | None = None,
    resample: int | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    fps: float | None = None,
    frames: int | None = None,
    index_base: int | None = None,
    length: int | None = None,
    compress: str | None = None,
    chunk: int | None = None,
    digest: str | None = None,
    shard_size: str | int | None = None,
    shards: int | None = None,
    workers: int | None = None,
    engine: str = "local",
    rank: str | None = None,
    finalize: bool = False,
    limit: int | None = None,
    max_rejects: int | str = 0,
    strict: bool = False,
    timeout: float | None = 120.0,
    memory_limit: str | int | None = None,
    restart: bool = False,
    overwrite: bool = False,
    append: bool = False,
    retry_rejects: bool = False,
    recipe: PathLike | None = None,
    progress: bool | None = None,
) -> Manifest:
    """Turn raw files into a store at `dest`; the same as `bigconv convert` with the same options.

    `steps`: transforms in their order, as `("resize", "224")`; those given by name follow in the arguments' order.
    `compress`: `none`, `lz4`, `zstd` or `zstd:LEVEL`; `chunk`: rows a chunk.
    `digest`: what proves the rows: `xxh3` (the default) or `sha256`; a store that is made of stores has theirs.
    `shard_size` (`"256MB"`, or bytes) or `shards` (their number): make a directory of parts instead of one store.
    `memory_limit` (`"2GB"`, or bytes): what all processes may take together: fewer workers, each held to a share.
    `engine`: where parts are made: `serial`, `local`, `dask` or `dask:HOST:PORT`. `rank` (`"0/8"`): make every 8th part
    only, as one of 8 processes that may run anywhere; the manifest lists those then, and its content digest is empty.
    `finalize`: publish what all ranks have made.
    `recipe`: a store, or a JSON file with its recipe, whose steps and options are taken instead.
    `progress`: show a bar; by default on a terminal and in a notebook.
    Going on with unfinished work is automatic, and so is finding that nothing has changed. Returns the manifest.
    What the command hints at, such as a column that one word made text, is a `UserWarning`.
    Raises `InputError`, `OutputError`, `UsageError`, `Interrupted`, or `FindingsError` when too many inputs are bad.
    """
    chosen = list(steps or [])
    for name, value in (("resize", resize), ("crop", crop)):
        if value is not None:
            chosen.append((name, "x".join(str(n) for n in value) if isinstance(value, tuple) else str(value)))
    chosen += [
        (name, one)
        for name, value in (
            ("normalize", normalize),
            ("dtype", dtype),
            ("layout", layout),
            ("map", map),
            ("filter", filter),
            ("select", select if select is None or isinstance(select, str) else ",".join(select)),
            ("rename", ",".join(f"{a}={b}" for a, b in rename.items()) if isinstance(rename, Mapping) else rename),
            ("sparse", sparse),
        )
        for one in ([] if value is None else [value] if isinstance(value, str) else value)
    ]
    several = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    request = Request(
        tuple(Path(source) for source in several),
        Path(dest),
        from_=from_,
        to=to,
        steps=tuple(chosen),
        fit=fit,
        seed=seed,
        limit=limit,
        overwrite=overwrite,
        append=append,
        retry_rejects=retry_rejects,
        policy=Policy(
            workers=available_cores() if workers is None else workers,
            max_rejects=str(max_rejects),
            strict=strict,
            timeout=timeout,
            memory_limit=None if memory_limit is None else parse_size(memory_limit, "--memory-limit"),
            restart=restart,
            engine=engine,
            rank=parse_rank(rank),
            finalize=finalize,
        ),
        options={
            "field": [field] if isinstance(field, str) else field,
            "keep_encoded": keep_encoded,
            "keep_path": keep_path,
            "follow_links": follow_links,
            "label_from": label_from,
            "classes": classes,
            "rows": rows,
            "axis": axis,
            "columns": columns,
            "pack": pack,
            "fill": None if fill is None else float(fill),  # as the command has it: 0 and 0.0 make one plan
            "dtypes": dtypes,
            "delimiter": delimiter,
            "quote": quote,
            "header": header,
            "encoding": encoding,
            "lines": lines,
            "tokenizer": tokenizer,
            "resample": resample,
            "tile": tile,
            "overlap": overlap,
            "fps": None if fps is None else float(fps),
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
        request = request.replayed(Path(recipe))
    plan, done = request.plan()
    for note in plan.notes:
        warnings.warn(note, stacklevel=2)
    if done is not None:
        return request.carry_out(plan, done).manifest
    shown = (sys.stderr.isatty() or in_notebook()) if progress is None else progress
    with show_progress(request.policy.inputs(plan.inputs), "rows", not shown) as step:
        return request.carry_out(plan, None, step).manifest
