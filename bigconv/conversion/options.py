"""From what a user typed to a source and a list of transforms."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import nullcontext
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, cast

from bigconv import fsio, registry
from bigconv.block import Block
from bigconv.conversion.apart import call_apart
from bigconv.conversion.task import Work, run_span
from bigconv.errors import InputError, NotAStore, StoreError, UsageError
from bigconv.hashes import OPTION_OF, OPTIONS, XXH3
from bigconv.schema import Schema, unknown
from bigconv.sniff import looks_at
from bigconv.sources import npy, tiff_head
from bigconv.sources.base import Source, Span
from bigconv.sources.filelist import following_links
from bigconv.sources.kept_path import KeptPath
from bigconv.sources.tokenized import Tokenized
from bigconv.transforms.base import Transform
from bigconv.transforms.base import config as step_config

LOOK_AT = 10_000  # files of a folder that are looked at to tell what it holds
LOOK_AT_ROWS = 4096  # until a function has made something of one
SHORT_SPAN = 16  # inputs that are read at once for that: as many as a step learns from
STEPS = ("resize", "crop", "normalize", "dtype", "layout", "map", "filter", "select", "rename", "sparse")
GENERAL = ("keep_path", "follow_links")  # options of every source
USER_STEPS = ("map", "filter")  # those that run a user's function


def find_source(
    paths: Sequence[Path], name: str | None, options: Mapping[str, Any], hints: Mapping[str, Any] | None = None
) -> Source:
    """The source that reads `paths`: the one named, else the one that fits.

    `hints`: what may spare a source work (`workers`, `sizes_matter`); those that a source doesn't know are dropped.

    Raises `InputError` when nothing fits, `UsageError` for options that the source doesn't have.
    """
    if not paths:
        raise UsageError("nothing to convert: name a folder, files or a store")
    for path in paths:
        if not exists(path):
            raise InputError(fsio.missing(path))
    _no_pipes(paths)
    name = name or recognise(paths, options)
    source = registry.load("source", name)
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    # of tables too, whose texts it makes tokens of
    tokenizer = given.pop("tokenizer", None) if "columns" in source.options else None
    for key in given:
        if key not in (*source.options, *GENERAL):
            raise UsageError(f"--{key.replace('_', '-')} has no meaning for {name} input")
    known = {key: value for key, value in given.items() if key in source.options}
    spared = {key: value for key, value in (hints or {}).items() if key in getattr(source, "hints", ())}
    with following_links() if given.get("follow_links") else nullcontext():
        found: Source = source.find(paths, **known, **spared)
    if tokenizer is not None:
        found = cast("Source", Tokenized.typed(found, str(tokenizer)))
    if given.get("keep_path"):
        found = cast("Source", KeptPath(found))
    if found.inputs == 0:
        raise InputError(f"{', '.join(map(str, paths))}: no rows in it")
    return found


def exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a NUL in it, is of no file
        return False


def recognise(paths: Sequence[Path], options: Mapping[str, Any] | None = None) -> str:
    """Name of the source that fits the paths, and what is asked of it. Raises `InputError`, saying what was seen."""
    _no_pipes(paths)
    if options and options.get("field"):
        return "joined"
    stores = [registry.recognise(path) for path in paths]
    if all(stores):
        ours = [_ours(path, str(store)) for path, store in zip(paths, stores, strict=True)]
        if all(ours):
            return "store"
        if not any(ours) and len(set(stores)) == 1:
            return str(stores[0])  # the source of that name reads files that other programs wrote
        other = paths[ours.index(False)]
        raise InputError(f"{other}: not a bigconv store, or of another kind than the others: convert it on its own")
    if len(paths) == 1 and paths[0].is_dir():
        return _of_folder(paths[0])
    if any(path.is_dir() for path in paths):
        raise InputError("several inputs must all be files or all be stores; give a folder on its own")
    for name, entry in registry.SOURCES.items():
        if entry.takes != "folder" and entry.extensions and all(_ends(p.name, entry.extensions) for p in paths):
            if name == "tiff" and tiff_head.source_for(os.fspath(paths[0])) == "geotiff":
                return "geotiff"
            return "sparse" if name == "arrays" and all(npy.is_sparse(path) for path in paths) else name
    known = sorted({e for entry in registry.SOURCES.values() if entry.takes != "folder" for e in entry.extensions})
    odd = next((p for p in paths if not _ends(p.name, tuple(known))), None)
    if odd is None:
        raise InputError("files of different kinds can't make one store: convert each kind on its own")
    raise InputError(_not_recognised(odd, known))


def _no_pipes(paths: Sequence[Path]) -> None:
    """Raise `InputError` for what would be waited for, perhaps for ever, when it is looked into."""
    for path in paths:
        if not path.is_file() and not path.is_dir():
            raise InputError(f"{path}: a pipe or device, not a file or folder")


def _not_recognised(path: Path, known: Sequence[str]) -> str:
    """What a file looks like, and how to say what it is."""
    for name, entry in registry.SOURCES.items():
        if entry.takes == "folder" and _ends(path.name, entry.extensions):
            return f"{path}: {name} are read from their folder, not one by one.\nName it: {path.parent}"
    close = get_close_matches(path.suffix.lower(), known, n=1) if path.suffix else []
    mean = f" Did you mean {close[0]}?" if close else ""
    kinds = "|".join(name for name, entry in registry.SOURCES.items() if entry.takes != "folder" and name != "store")
    named = f"the extension {path.suffix} is of nothing that bigconv reads" if path.suffix else "no extension tells"
    return f"{path}: not recognised: {named}; {looks_at(os.fspath(path))}.{mean}\nSay what it is: --from {kinds}"


def _ours(path: Path, store: str) -> bool:
    """Whether bigconv wrote it: there is a manifest, whole or not."""
    if store == registry.DATASET:
        return True
    try:
        registry.load("store", store)().manifest(path)
    except NotAStore:
        return False
    except StoreError:
        return True  # a damaged one says so when it is opened
    return True


def _ends(name: str, extensions: tuple[str, ...]) -> bool:
    return name.lower().endswith(extensions)


def _extensions(names: Sequence[str], known: Set[str]) -> Counter[str]:
    """How often each extension is there, of paths. The last of each is found once, not asked for by every source."""
    ends: Counter[str] = Counter()
    for end, count in Counter(name.rpartition(".")[2] for name in names).items():
        ends["." + end.lower()] += count
    for double in (e for e in known if e.count(".") > 1):  # .nii.gz
        if ends[os.path.splitext(double)[1]]:
            ends[double] = sum(_ends(name, (double,)) for name in names)
    return ends


def _of_folder(path: Path) -> str:
    if (path / "data.mdb").is_file():  # and its first page isn't LMDB's, or it would have been recognised
        raise InputError(
            f"{path}: not an LMDB database, or a damaged one: data.mdb: {looks_at(str(path / 'data.mdb'))}"
        )
    if inside := _datasets(path):
        told = ", ".join(inside[:4]) + ", …" * (len(inside) > 4)
        raise InputError(f"{path}: a folder of sharded directories: {told}. Name one, as {path / inside[0]}")
    below = (os.path.join(top, n) for top, _, files in os.walk(path) for n in files if not n.startswith("."))
    seen = list(islice(below, LOOK_AT))
    folders = {name: entry for name, entry in registry.SOURCES.items() if entry.takes != "files"}
    ends = _extensions(seen, {e for entry in folders.values() for e in entry.extensions})
    counts = {name: sum(ends[e] for e in entry.extensions) for name, entry in folders.items()}
    fits = [name for name, n in counts.items() if n]
    if counts["geotiff"]:  # three sources read TIFFs: which one, the first tells; among other pictures they are such
        tiffs = [n for n in seen if _ends(n, registry.SOURCES["geotiff"].extensions)]
        chosen = tiff_head.source_for(min(tiffs)) if counts["images"] == len(tiffs) else "images"
        fits = [name for name in fits if name not in ("images", "tiff", "geotiff") or name == chosen]
    if fits == ["array-folder"] and ends[".npz"] == counts["array-folder"]:
        first = min(n for n in seen if _ends(n, (".npz",)))
        return "sparse" if npy.is_sparse(first) else "array-folder"
    if len(fits) == 1:
        return fits[0]
    if fits:
        fits.sort(key=lambda name: -counts[name])
        listed = ", ".join(f"{counts[name]:,} for {name}" for name in fits)
        raise InputError(f"{path}: files of several kinds in one folder: {listed}.\nSay which, as --from {fits[0]}")
    if not seen:
        raise InputError(f"{path}: an empty folder")
    suffixes = Counter(os.path.splitext(name)[1].lower() or "without extension" for name in seen)
    found = ", ".join(f"{n} {suffix}" for suffix, n in suffixes.most_common(4))
    known = " ".join(sorted({e for entry in folders.values() for e in entry.extensions}))
    raise InputError(f"{path}: nothing in it that bigconv reads (found {found}).\nIt reads folders of {known}")


def _datasets(folder: Path) -> list[str]:
    """Sharded directories in a folder, as a split makes them."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if registry.is_dataset(Path(entry.path)))


def make_steps(
    source: Source,
    steps: Sequence[tuple[str, str]],
    fit: str,
    seed: int = 0,
    timeout: float | None = None,
    isolated: bool = True,
) -> tuple[list[Transform], Schema]:
    """Transforms in the order given, and the schema they yield. Images end in CHW unless a layout was asked for.

    A user's functions are tried on the first rows: in a process of their own if `isolated`, which may take `timeout`
    seconds a row. Raises `UsageError`, `SchemaError`.
    """
    if isolated and any(name in USER_STEPS for name, _ in steps):
        made: tuple[list[Transform], Schema] = call_apart(_make, (source, steps, fit, seed), timeout)
        return made
    return _make(lambda _doing, _limited: None, source, steps, fit, seed)


Tell = Callable[[str, bool], None]  # what is being done, and whether `timeout` limits it


def _make(
    tell: Tell, source: Source, steps: Sequence[tuple[str, str]], fit: str, seed: int
) -> tuple[list[Transform], Schema]:
    """`tell` is called before each thing that may take long."""
    made: list[Transform] = []
    schema = source.schema
    for number, (name, value) in enumerate(steps):
        step = _parsed(name, value, fit, seed, number)
        if name in USER_STEPS:
            tell(f"--{name} {value}: loading it", False)
            step = step.learn(_sample(tell, f"--{name} {value}", source, made, schema))
        elif hasattr(step, "fitted"):
            step = step.fitted(schema)
        schema = step.schema(schema)
        made.append(step)
    if any(f.kind == "image" and f.layout == "hwc" for f in schema) and "layout" not in dict(steps):
        layout = registry.load("transform", "layout")("chw")
        if source.name != "store":  # a store's fields are taken as they are
            made.append(layout)
            schema = layout.schema(schema)
    return made, schema


def _parsed(name: str, value: str, fit: str, seed: int, number: int) -> Any:
    if name not in STEPS:
        raise UsageError(unknown("step", name, STEPS))
    context: dict[str, Any] = {}
    if name == "resize":
        context = {"fit": fit}
    elif name in USER_STEPS:
        context = {"seed": seed, "number": number}
    return registry.load("transform", name).parse(value, **context)


def _sample(
    tell: Tell, step: str, source: Source, before: Sequence[Transform], schema: Schema
) -> Iterator[tuple[str, Block]]:
    """The first rows that come through the steps before, each a block of its own, and how to call it; no rejects."""
    work = Work(source, tuple(before), schema)
    rows = 0
    for span in _short_spans(source):
        tell(f"{step}: reading the first rows", False)
        for item in run_span(work, span):
            for i in range(0 if item.block is None else len(item.block)):
                assert item.block is not None
                block = item.block.slice(i, i + 1)
                where = _place(source, block)
                tell(f"{step}: trying it on {where}", True)
                yield where, block
                rows += 1
                if rows == LOOK_AT_ROWS:
                    return


def _short_spans(source: Source) -> Iterator[Span]:
    """Spans of a few inputs, where a span can be cut: where its unit is the input."""
    for span in source.plan():
        if source.inputs is None:
            yield span
            continue
        yield from (Span(i, min(i + SHORT_SPAN, span.stop)) for i in range(span.start, span.stop, SHORT_SPAN))


def _place(source: Source, block: Block) -> str:
    assert block.origin is not None
    file, row = (int(n) for n in block.origin[0])
    if not len(source.files):
        return f"row {row}"
    name = source.files.name(file)
    return name if len(source.files) == source.inputs else f"{name}, row {row}"


def chosen_digest(option: str | None, source: Any) -> str:
    """The algorithm of a new store's digests: the one asked for, else that of the stores it is made of, else xxh3.

    Stores of both kinds make one of SHA-256. Raises `UsageError`.
    """
    if option is None:
        return str(getattr(source, "digest_algorithm", XXH3))
    if option not in OPTIONS:
        raise UsageError(f"--digest: {unknown('digest', option, tuple(OPTIONS))}")
    return OPTIONS[option]


def replay(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A store's recipe as the options that make it again: `from_`, `to`, `steps`, `seed`, `limit`, `digest`,
    the source's options under `read`, and the store's under `storage`.

    Functions of a user's must be there, unchanged: in the current folder, or as a module that can be imported. Raises
    `UsageError` that says which one is missing, or for what is no recipe.
    """
    try:
        entries = [dict(entry) for entry in recipe["steps"]]
        steps = tuple(_replayed(number, entry) for number, entry in enumerate(entries, 1))
        seeds = {int(entry["seed"]) for entry in entries if "seed" in entry}
        if len(seeds) > 1:
            raise UsageError(f"--recipe: steps with different seeds ({', '.join(map(str, sorted(seeds)))})")
        return {
            "from_": str(recipe["from"]),
            "to": str(recipe["to"]),
            "steps": steps,
            "seed": min(seeds, default=0),
            "limit": None if recipe.get("limit") is None else int(recipe["limit"]),
            "read": dict(recipe.get("read", {})),
            "storage": dict(recipe.get("options", {})),
            "digest": OPTION_OF[recipe.get("digest", XXH3)],
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"--recipe: not a recipe of bigconv: {type(error).__name__}: {error}") from error


def _replayed(number: int, entry: dict[str, Any]) -> tuple[str, str]:
    name = str(entry["step"])
    if name not in STEPS:
        raise UsageError(f"--recipe: step {number}: {unknown('step', name, STEPS)}")
    value = registry.load("transform", name).typed(entry)
    seed = int(entry.get("seed", 0))
    again = step_config(_parsed(name, value, "cover", seed, number))
    if again != ({**entry, "seed": seed} if name in USER_STEPS else entry):
        raise UsageError(f"--recipe: step {number}, {name}, has options that this bigconv does not know: {entry}")
    return name, value
