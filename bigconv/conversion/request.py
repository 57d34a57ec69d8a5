"""A conversion as a user asks for it: what is there, what has to be done, and how it is carried out."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bigconv import fsio, registry
from bigconv.conversion import unpublished
from bigconv.conversion.build import drop_leftovers, replaced
from bigconv.conversion.destination import check_dest, unchanged
from bigconv.conversion.engines import check_engine
from bigconv.conversion.options import GENERAL, chosen_digest, exists, find_source, make_steps, recognise, replay
from bigconv.conversion.parts_append import appended_parts
from bigconv.conversion.parts_request import STORE, asked_cut, parts_job, recorded_cut
from bigconv.conversion.parts_run import execute_parts
from bigconv.conversion.plan import Plan, make_plan
from bigconv.conversion.pool import prepare, reading
from bigconv.conversion.publishing import Destined, apart, check_made_here, published, upload, upload_parts
from bigconv.conversion.run import Outcome, Policy, Progress, execute
from bigconv.conversion.splice import appended, retried
from bigconv.errors import UsageError
from bigconv.remote.urls import Url, naming, parsed
from bigconv.sniff import not_json
from bigconv.sources.base import Source
from bigconv.stores.base import configured
from bigconv.view.opening import Opened, OpenedDataset, fetched, open_store

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Request(Destined):
    """A conversion as a user asks for it; the names and defaults are the command line's."""

    sources: tuple[Path, ...]
    dest: Path
    from_: str | None = None
    to: str | None = None
    steps: tuple[tuple[str, str], ...] = ()
    fit: str = "cover"
    seed: int = 0
    limit: int | None = None
    overwrite: bool = False
    append: bool = False
    retry_rejects: bool = False
    policy: Policy = field(default_factory=lambda: Policy(available_cores()))
    options: dict[str, Any] = field(default_factory=dict)
    storage: dict[str, Any] = field(default_factory=dict)  # the store's options, those that were given
    shard_size: str | int | None = None  # bytes of data a part: DEST becomes a sharded directory
    shards: int | None = None  # the same by the number of parts
    digest: str | None = None  # xxh3 or sha256; None: as what is read or added to has it, else xxh3
    target: Url | None = None  # as of `Destined`

    def plan(self) -> tuple[Plan, Outcome | None]:
        """Look at everything, change nothing; the outcome when nothing has to be done. Raises what `convert` would."""
        if self.target is not None:
            apart(self.sources, self.target)
            check_made_here(self.target, self.policy)
        with ExitStack() as held:
            local = tuple(held.enter_context(fetched(path)) for path in self.sources)
            with naming({self.dest: self.target, **dict(zip(local, map(parsed, self.sources), strict=True))}):
                plan, done = replace(self, sources=local)._plan()
            weakref.finalize(plan, held.pop_all().close)  # the files stay as long as the plan to read them
        return plan, done

    def _plan(self) -> tuple[Plan, Outcome | None]:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: expected 1 or more")
        if self.policy.elsewhere and not all(path.is_absolute() for path in self.sources):
            return replace(self, sources=tuple(path.absolute() for path in self.sources))._plan()
        given = {key: value for key, value in self.storage.items() if value is not None}
        cut = asked_cut(self.told, self.shard_size, self.shards, self.append)
        check_engine(self.policy, None if cut else "add --shard-size 256MB, and name a folder as DEST")
        kind = registry.store_for(self.dest, self.to or (None if cut is None else STORE))
        store = configured(registry.load("store", kind), given)
        if self.overwrite + self.append + self.retry_rejects > 1:
            raise UsageError("--overwrite, --append and --retry-rejects exclude one another")
        if self.retry_rejects and self.policy.restart:
            raise UsageError("--retry-rejects keeps the rows that are there, --restart drops them: choose one")
        if self.target is None:
            there = check_dest(self.dest, list(self.sources), self.overwrite)
        else:
            if self.retry_rejects or (self.append and cut is None):
                how = "--append" if self.append else "--retry-rejects"
                raise UsageError(
                    f"{self.target}: {how} changes one store in its place, which needs a local DEST.\n"
                    "Convert into a folder with --shard-size: --append adds parts to that, also behind a URL"
                )
            there = published(self.target, self.overwrite, self.dest)
        sharded = isinstance(there, OpenedDataset)
        if there is not None and sharded and self.append:
            cut = recorded_cut(there)
        if self.retry_rejects and (cut is not None or sharded):
            raise UsageError("--retry-rejects is for one store. Of a sharded directory --append reads what made no row")
        alike = there is not None and (there.store.name == store.name or (sharded and self.to is None))
        if there is not None and alike and (self.append or self.retry_rejects) and not given:
            store = there.store  # rows are added to a store as it is
        kept = there if self.append or self.retry_rejects else None
        if there is None and not self.retry_rejects:
            unpublished.put_back(self.dest)
        names = dict(self.steps)
        if self.fit != "cover" and "resize" not in names:
            raise UsageError(f"--fit {self.fit} says how --resize treats another aspect ratio: give --resize")
        if self.seed and not {"map", "filter"} & set(names):
            raise UsageError("--seed is for functions of yours that draw at random: give --map or --filter")
        if self.options.get("keep_encoded") and {"resize", "crop", "normalize", "layout"} & set(names):
            raise UsageError("--keep-encoded keeps image files as they are: no --resize, --crop, --normalize, --layout")
        exist = bool(self.sources) and all(exists(path) for path in self.sources)
        name = self.from_ or (recognise(self.sources, self.options) if exist else None)
        if name and exist and self.policy.workers and there is None and self.policy.start_method is None:
            self._prepare(name, names)
        hints = {"workers": self.policy.workers, "sizes_matter": "resize" not in names}
        source = find_source(self.sources, name, self.options, hints)
        steps, schema = make_steps(
            source, self.steps, self.fit, self.seed, self.policy.timeout, self.policy.workers > 0
        )
        digest = chosen_digest(self.digest, source)
        if kept is not None and self.digest is None:
            digest = kept.manifest.digests.algorithm
        plan = make_plan(source, steps, schema, store, self.limit, self._read(source), digest)
        if cut is not None:
            plan = replace(plan, shards=cut.to_json())
        if there is None and self.retry_rejects:
            old, made_from = unpublished.unpublished(self.dest, plan)
            again = retried(plan, old, made_from)
            if again is None:
                raise UsageError("--retry-rejects: no input of the unpublished rows was rejected")
            return again, None
        if there is None:
            if self.append:
                raise UsageError(f"--append: there is no {self.told} yet")
            return plan, None
        same = Outcome("unchanged", there.manifest, self.dest)
        if isinstance(there, OpenedDataset) and self.append:
            more = appended_parts(plan, there)
            return (plan, same) if more is None else (more, None)
        if self.append or self.retry_rejects:
            completed = (appended if self.append else retried)(plan, there)
            return (plan, same) if completed is None else (completed, None)
        # what is overwritten is made anew, unless that has just been done
        just = self.overwrite and not self.policy.restart and replaced(self.dest, plan.hash)
        return plan, same if just or (not self.overwrite and unchanged(plan, there)) else None

    def _read(self, source: Source) -> dict[str, Any]:
        """How the source is told to read, as the recipe keeps it: nothing of this machine."""
        given = {key: value for key, value in self.options.items() if key in (*source.options, *GENERAL)}
        label_from = given.get("label_from")
        if isinstance(label_from, str) and label_from.startswith("csv:"):
            given["label_from"] = f"csv:{Path(label_from[4:]).name}"
        if given.get("classes") is not None:  # the names, so that the recipe needs no file
            given["classes"] = next(f.classes for f in source.schema if f.classes is not None)
        told = {k: v for k, v in given.items() if not (v is None or v is False or v == ())}  # 0 says something
        return {k: list(v) if isinstance(v, tuple) else v for k, v in told.items()}

    def replayed(self, recipe: Path) -> Request:
        """The same request with steps and options of a recipe: of a store, or in a JSON file. Raises `UsageError`."""
        own = [*(name for name, _ in self.steps), *["fit"] * (self.fit != "cover"), *["seed"] * bool(self.seed)]
        if own:
            raise UsageError("--recipe brings its own steps: leave out " + ", ".join(f"--{name}" for name in own))
        if recipe.suffix == ".json" and recipe.is_file():
            try:
                raw = recipe.read_bytes()
                document = json.loads(raw.decode("utf-8"))
            except OSError as error:
                raise UsageError(f"--recipe {recipe}: can't be read: {error.strerror}") from error
            except (ValueError, RecursionError) as error:
                raise UsageError(f"--recipe {recipe}: can't be read: {not_json(raw, error)}") from error
        else:
            document = dict(open_store(recipe).manifest.recipe)
        return self.following(document)

    def following(self, recipe: Mapping[str, Any]) -> Request:
        """The same request with steps and options of a recipe. Raises `UsageError`."""
        again = replay(recipe)
        asked = {key: value for key, value in self.options.items() if value is not None and value is not False}
        return replace(
            self,
            from_=self.from_ or again["from_"],
            to=self.to or (None if self.dest.suffix in registry.extensions("store") else again["to"]),
            steps=again["steps"],
            seed=again["seed"],
            limit=again["limit"] if self.limit is None else self.limit,
            options={**again["read"], **asked},
            storage=self._stored_as(again),
            digest=self.digest or again["digest"],
        )

    def _stored_as(self, again: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a recipe's store, where the same kind of store is made; what was given goes before."""
        given = {key: value for key, value in self.storage.items() if value is not None}
        same = registry.store_for(self.dest, self.to) if self.dest.suffix or self.to else again["to"]
        return {**(again["storage"] if same == again["to"] else {}), **given}

    def _prepare(self, name: str, steps: Mapping[str, str]) -> None:
        """Start what workers will need before the source is listed, which may take as long."""
        source = registry.load("source", name)
        if source.decodes:
            torch = ["torch"] if "resize" in steps and find_spec("torch") is not None else []
            prepare([*reading(source), *torch])

    def run(self, progress: Progress | None = None) -> Outcome:
        """Convert, or find that nothing has changed."""
        return self.carry_out(*self.plan(), progress)

    def carry_out(self, plan: Plan, done: Outcome | None, progress: Progress | None = None) -> Outcome:
        """What `plan` has found to be done."""
        if self.target is not None:
            if done is not None:
                return replace(done, dest=self.target)
            here = replace(self, target=None)
            if self.append:
                return upload_parts(
                    self.dest, self.target, plan, lambda kept: here._carry_out(plan, None, progress, kept)
                )
            return upload(
                self.dest,
                self.target,
                {"": plan.hash},
                self.policy.restart,
                lambda: here.carry_out(plan, None, progress),
            )
        return self._carry_out(plan, done, progress, None)

    def _carry_out(self, plan: Plan, done: Outcome | None, progress: Progress | None, kept: Opened | None) -> Outcome:
        """The same at a local destination. `kept`: a directory behind a URL to which parts are added."""
        with fsio.writing(self.dest):  # whatever fails on the way, in any store
            if done is None:
                if self.policy.restart:
                    unpublished.drop(self.dest)
                elif self.retry_rejects:
                    unpublished.begin_again(self.dest, plan.hash)
                if plan.shards is not None:
                    kept = kept or (open_store(self.dest) if self.append else None)
                    done = execute_parts(parts_job(plan, self.dest, self.policy, kept), progress)
                    if self.policy.rank is not None:
                        return done  # the work isn't over
                else:
                    done = execute(plan, self.dest, self.policy, progress)
            drop_leftovers(self.dest, plan.hash)
            unpublished.drop(self.dest)
            return done


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
