"""`bigconv.shard`: stores cut into parts, merged, shuffled, split, put in another format; parts dropped and mended."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bigconv import fsio, registry
from bigconv.conversion.build import drop_leftovers, replaced
from bigconv.conversion.destination import all_unchanged, check_datasets
from bigconv.conversion.engines import check_engine
from bigconv.conversion.options import chosen_digest, recognise
from bigconv.conversion.parts import Job, Output
from bigconv.conversion.parts_cut import DEFAULT_SIZE, Cut, cut_plan, parse_size
from bigconv.conversion.parts_request import folder_only
from bigconv.conversion.parts_run import execute_parts
from bigconv.conversion.plan import Plan
from bigconv.conversion.progress import in_notebook
from bigconv.conversion.progress import progress as show_progress
from bigconv.conversion.publishing import Destined, apart, check_made_here, published_datasets, upload
from bigconv.conversion.ranks import parse_rank
from bigconv.conversion.request import available_cores
from bigconv.conversion.run import Outcome, Policy, Progress, execute
from bigconv.conversion.shard_edit import drop_parts, repair_parts
from bigconv.conversion.shard_fields import change_fields
from bigconv.conversion.shard_source import Pick, parse_split
from bigconv.errors import InputError, UsageError
from bigconv.manifest import Manifest
from bigconv.remote.urls import Url, is_remote, naming, parsed
from bigconv.sources.store import StoreSource
from bigconv.view.table import StoreView

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class ShardRequest(Destined):
    """Rows of stores as a user wants them in another shape; the names and defaults are the command line's."""

    sources: tuple[Path, ...]
    dest: Path
    cut: Cut = field(default_factory=Cut)
    pick: Pick = field(default_factory=Pick)
    to: str | None = None
    overwrite: bool = False
    policy: Policy = field(default_factory=lambda: Policy(available_cores()))
    target: Url | None = None  # as of `Destined`
    digest: str | None = None  # xxh3 or sha256; None: as the stores have it

    @property
    def merges(self) -> bool:
        """Whether the destination is to be one store."""
        return self.dest.suffix.lower() in registry.extensions("store")

    def plan(self) -> tuple[Job | Plan, Outcome | None]:
        """Look at everything, change nothing: what is to be done, and the outcome when nothing is."""
        with naming({self.dest: self.target}):
            return self._plan_all()

    def _plan_all(self) -> tuple[Job | Plan, Outcome | None]:
        self._check()
        check_engine(self.policy, "name a folder as DEST" if self.merges else None)
        view = self._view()
        if self.target is None:
            there = check_datasets(self.dest, self.sources, self.overwrite)
        else:
            there = published_datasets(self.target, list(self.pick.split) or [""], self.overwrite, self.dest)
        plans, groups = {}, {}
        for name, (source, runs) in self.pick.sources(view).items():
            plans[name], groups[name] = self._plan(source, view, name), runs
        cut = self._cut()
        outputs = (
            ()
            if self.merges
            else tuple(Output(name, plan, plan.hash, cut_plan(plan, cut, groups[name])) for name, plan in plans.items())
        )
        first = next(iter(plans.values()))
        todo = first if self.merges else Job(self.dest, outputs, self.policy)
        if self.overwrite:  # made anew, unless that has just been done
            same = bool(there) and not self.policy.restart and replaced(self.dest, first.hash, next(iter(plans)))
        else:
            same = bool(there) and all_unchanged(self.dest, plans, there)
        if same:
            manifests = {name: opened.manifest for name, opened in there.items()}
            return todo, Outcome("unchanged", next(iter(manifests.values())), self.dest, datasets=manifests)
        return todo, None

    def carry_out(self, todo: Job | Plan, done: Outcome | None, progress: Progress | None = None) -> Outcome:
        """What `plan` has found to be done."""
        if self.target is not None:
            if done is not None:
                return replace(done, dest=self.target)
            jobs = {output.folder: output.plan for output in todo.outputs} if isinstance(todo, Job) else {"": todo}
            hashes = {name: plan.hash for name, plan in jobs.items()}
            here = replace(self, target=None)
            return upload(
                self.dest, self.target, hashes, self.policy.restart, lambda: here.carry_out(todo, None, progress)
            )
        if done is None:
            if isinstance(todo, Job):
                return execute_parts(todo, progress)
            return execute(todo, self.dest, self.policy, progress)
        drop_leftovers(self.dest, (todo.plan if isinstance(todo, Job) else todo).hash)
        return done

    def run(self, progress: Progress | None = None) -> Outcome:
        """Shard, or find that nothing has changed."""
        return self.carry_out(*self.plan(), progress)

    def _check(self) -> None:
        if self.target is not None:
            apart(self.sources, self.target)
            check_made_here(self.target, self.policy)
        if self.merges and (self.cut.rows or self.cut.size or (self.cut.shards or 1) > 1):
            folder_only(self.dest)
        if self.merges and (self.pick.split or self.pick.by):
            folder_only(self.dest)
        if self.pick.by and self.cut.shards is not None:
            raise UsageError(
                "--by makes the parts of each value its own: cut those with --size or --rows, not --shards"
            )

    def _cut(self) -> Cut:
        return self.cut if self.cut.to_json() or self.pick.by else Cut(size=DEFAULT_SIZE)

    def _view(self) -> StoreView:
        sources = [parsed(path) for path in self.sources]
        for path in sources:
            if isinstance(path, Url):
                continue  # says so itself
            if not path.exists():
                raise InputError(fsio.missing(path))
            if registry.recognise(path) is None:
                if path.is_dir():
                    recognise([path])  # raises for what is none of one source, such as the folder of a split
                raise InputError(
                    f"{path}: not a store. Raw files are sharded as they are converted: "
                    f"bigconv convert {path} {self.told} --shard-size 256MB"
                )
        view = StoreView(
            [str(p) if isinstance(p, Url) else p.absolute() if self.policy.elsewhere else p for p in sources]
        )
        if not len(view):
            raise InputError(f"{view.told}: no rows in it")
        return view

    def _plan(self, source: StoreSource, view: StoreView, subset: str) -> Plan:
        first = view.roots[0]
        store = first.store  # with its options
        if self.merges or self.to is not None:
            kind = registry.store_for(self.dest, self.to)
            store = store if kind == store.name else registry.load("store", kind)()
        read = self.pick.read(subset or None)
        shards = None if self.merges else self._cut().to_json()
        digest = chosen_digest(self.digest, source)
        return Plan(source, (), source.schema, source.plan(), store, None, None, read, shards, digest)


def shard(
    store: PathLike | Sequence[PathLike],
    dest: PathLike | None = None,
    *,
    size: int | str | None = None,
    rows: int | None = None,
    shards: int | None = None,
    to: str | None = None,
    digest: str | None = None,
    shuffle: bool = False,
    seed: int = 0,
    split: str | Mapping[str, float] | None = None,
    stratify: str | None = None,
    group: str | None = None,
    by: str | None = None,
    drop: str | Sequence[str] | None = None,
    repair: bool = False,
    source: PathLike | Sequence[PathLike] | None = None,
    drop_field: str | Sequence[str] | None = None,
    add_field: PathLike | Sequence[PathLike] | None = None,
    workers: int | None = None,
    engine: str = "local",
    rank: str | None = None,
    finalize: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool | None = None,
) -> Manifest | dict[str, Manifest]:
    """Cut stores into a directory of parts; the same as `bigconv shard` with the same options.

    `size` (`"256MB"`, or bytes of data), `rows` or `shards` says how large the parts are; default 256 MB. A `dest`
    with a store's extension is one store: that merges. `to`: the format, else that of the source. `digest`: `xxh3` or
    `sha256`, else as the source has it. `shuffle`: all rows, by `seed`. `split`: `{"train": 0.9, "val": 0.1}`, each a
    dataset below `dest`; `stratify`: a field whose values are shared out evenly, `group`: one whose values stay
    together. `by`: a field; no part mixes its values.

    `engine`, `rank`, `finalize`: where parts are made, as for `convert`.

    Without `dest`: `drop` takes parts out of a directory, `repair` makes damaged and missing ones again from `source`.
    `drop_field` takes fields out of a store or directory, `add_field` puts all fields of other stores with as many rows
    in: memmap and Zarr, whose other fields are not written again.
    Returns the manifest; of a split, those of the parts by name.
    Raises `InputError`, `OutputError`, `UsageError`, `StoreError` or `Interrupted`.
    """
    paths = tuple(Path(path) for path in ([store] if isinstance(store, (str, os.PathLike)) else store))
    policy = Policy(
        available_cores() if workers is None else workers,
        restart=restart,
        engine=engine,
        rank=parse_rank(rank),
        finalize=finalize,
    )
    edit = Edit(_names(drop), repair, _paths(source), _names(drop_field), _paths(add_field))
    cut = Cut(rows, None if size is None else parse_size(size), shards)
    pick = Pick(shuffle, seed, {} if split is None else parse_split(split), stratify, group, by)
    changed = edit.run(paths, dest, policy, cut, pick, to=to, digest=digest, overwrite=overwrite)
    if changed is not None:
        return changed.manifest
    assert dest is not None
    request = ShardRequest(paths, Path(dest), cut, pick, to, overwrite, policy, digest=digest)
    todo, done = request.plan()
    shown = (sys.stderr.isatty() or in_notebook()) if progress is None else progress
    with show_progress(inputs(todo), "rows", not shown or done is not None) as step:
        outcome = request.carry_out(todo, done, step)
    return dict(outcome.datasets) if pick.split else outcome.manifest


def _names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


def _paths(given: PathLike | Sequence[PathLike] | None) -> tuple[Path, ...]:
    some: Any = () if given is None else (given,) if isinstance(given, (str, os.PathLike)) else given
    return tuple(map(Path, some))


@dataclass(frozen=True)
class Changed:
    """What became of a store or directory in its place. `what`: a word for it → names of parts or fields.

    `status`: `done`, or `unchanged` when the fields were changed like this already.
    """

    manifest: Manifest
    what: Mapping[str, Sequence[str]]
    status: str = "done"


@dataclass(frozen=True)
class Edit:
    """A change to a store or sharded directory in its place; the names are the command line's."""

    drop: Sequence[str] = ()
    repair: bool = False
    source: Sequence[Path] = ()
    drop_field: Sequence[str] = ()
    add_field: Sequence[Path] = ()

    def run(
        self, paths: Sequence[Path], dest: PathLike | None, policy: Policy, cut: Cut, pick: Pick, **anew: object
    ) -> Changed | None:
        """Do it; None when nothing of the kind is asked for. `cut`, `pick`, `anew`: what only a new DEST has.

        Raises `UsageError`, also when any of the latter is asked for.
        """
        fields = bool(self.drop_field or self.add_field)
        asked = bool(self.drop) + self.repair + fields
        if self.source and not self.repair:
            raise UsageError("--source says what damaged parts are made from again: it goes with --repair")
        if not asked:
            if dest is None:
                raise UsageError(f"shard needs a DEST: bigconv shard {paths[0]} parts/ --size 256MB")
            return None
        if len(paths) != 1 or dest is not None or asked > 1:
            raise UsageError(
                "--drop, --repair, and --drop-field with --add-field: each changes one store or sharded directory in "
                "its place: name it alone"
            )
        here = "" if self.repair or policy.engine == "local" else policy.engine
        run = {"restart": policy.restart, "engine": here, "rank": policy.rank, "finalize": policy.finalize}
        given = {**cut.to_json(), **vars(pick), **anew, **run}
        odd = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
        if odd:
            raise UsageError(
                f"{', '.join(odd)}: for a new DEST; this changes {paths[0]} in its place, at once.\n"
                "Leave it out, or shard into another folder first"
            )
        if is_remote(paths[0]):
            raise UsageError(f"{parsed(paths[0])}: what is changed in its place must be local: shard it into a folder")
        manifest: Manifest
        if fields:
            manifest, gone, new = change_fields(paths[0], self.drop_field, self.add_field)
            what = {"dropped fields": gone, "added fields": new}
            return Changed(manifest, what, "done" if gone or new else "unchanged")
        if self.drop:
            manifest, parts = drop_parts(paths[0], self.drop)
            return Changed(manifest, {"dropped": parts})
        manifest, parts = repair_parts(paths[0], self.source, policy)
        return Changed(manifest, {"made again": parts})


def inputs(todo: Job | Plan) -> int | None:
    """Rows to read, of all outputs."""
    plans = [output.plan for output in todo.outputs] if isinstance(todo, Job) else [todo]
    counts = [plan.inputs for plan in plans]
    return None if None in counts else sum(count or 0 for count in counts)
