"""Fields taken out of a store or put into it, without the others being written again.

A new store is made beside the old one: files of fields that stay are linked into it, not copied, those of new fields
are converted as ever, the manifest comes last, and then it takes the old one's place in one step. So readers see the
fields before or after, one that has the old store open keeps it, and a run that is killed has changed nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bigconv import dataset, fsio
from bigconv.block import Block
from bigconv.class_counts import Counts, summed
from bigconv.conversion.build import FIELDS, building
from bigconv.conversion.plan import Plan
from bigconv.conversion.run import Policy, fill, interruptible
from bigconv.conversion.shard_edit import changing
from bigconv.dataset import DatasetManifest
from bigconv.digest import Digester, Digests, block_rows
from bigconv.errors import IncompleteStore, InputError, OutputError, UsageError
from bigconv.manifest import Manifest
from bigconv.schema import Field, Schema, unknown
from bigconv.sources.base import Span, even_spans
from bigconv.sources.store import StoreSource
from bigconv.stores.base import Separable
from bigconv.view.opening import Opened, OpenedDataset, open_store
from bigconv.view.table import StoreView

Stopped = Callable[[], bool]
_POLICY = Policy(0)  # rows are copied as they are: nothing to decode, nothing to reject


def change_fields(path: Path, dropped: Sequence[str], stores: Sequence[Path]) -> tuple[Manifest, list[str], list[str]]:
    """Take fields out of a store or sharded directory, and put all fields of other stores in, row beside row.

    Gives the new manifest, and the names that are gone and new: none when this very change was the last that was made
    to the fields, as when a run was killed after it. The content digest is that of a store that was made with these
    fields from the start. Raises `UsageError` for fields that aren't there or are already, and for stores
    that keep all fields in one file; `InputError` when another store has another number of rows.
    """
    with changing(path, open_store) as (there, folder):
        names, views = tuple(dict.fromkeys(dropped)), tuple(StoreView([store]) for store in stores)
        if _done(there.manifest, names, views):
            return there.manifest, [], []
        change = _Change(there, names, views)
        base = folder / FIELDS
        work = base / path.name
        fsio.remove(work)  # of a run that was killed: its links are soon made, and its new fields lie beside it
        with fsio.writing(work):
            work.mkdir(parents=True)
        with interruptible() as stop:
            manifest = change.made(work, base, stop.is_set)
        fsio.sync_tree(work)
        fsio.publish(work, path)
    return manifest, list(change.dropped), [f.name for f in change.new]


@dataclass(frozen=True, eq=False)
class _Change:
    """What becomes of the fields of a store; checked when it is made."""

    there: Opened
    dropped: tuple[str, ...]
    views: tuple[StoreView, ...]

    def __post_init__(self) -> None:
        path, old = self.there.path, self.there.manifest.schema
        if self.there.origin is not None:
            raise UsageError(f"{self.there.told}: fields are changed where the store is; this is a copy")
        if not isinstance(self.there.store, Separable):
            raise UsageError(
                f"{path}: {self.there.store.name} keeps all fields in one file, so none comes or goes by itself.\n"
                f"Put it in a format that doesn't, then do this: bigconv shard {path} {path.stem}.zarr"
            )
        for name in self.dropped:
            if name not in old.names:
                raise UsageError(f"{path}: {unknown('field', name, old.names)}")
        names = [name for name in old.names if name not in self.dropped]
        for view in self.views:
            for f in view.schema:
                if f.name in names:
                    raise UsageError(
                        f"{view.told}: {path} has a field {f.name} already; take that out with --drop-field {f.name}"
                    )
                names.append(f.name)
            if len(view) != self.there.manifest.rows:
                raise InputError(
                    f"{view.told}: {len(view):,} rows, and {path} has {self.there.manifest.rows:,}: "
                    "a field has one value for each row, in the same order"
                )
        if not names:
            raise UsageError(f"{path}: no field would be left; remove the store instead")
        _only_ours(self.there)

    @cached_property
    def new(self) -> list[Field]:
        return [f for view in self.views for f in view.schema]

    @property
    def algorithm(self) -> str:
        """Of all digests: what the store has stays comparable."""
        return self.there.manifest.digests.algorithm

    @cached_property
    def schema(self) -> Schema:
        return self._after(self.there.manifest.schema)

    def _after(self, old: Schema) -> Schema:
        return Schema((*(f for f in old if f.name not in self.dropped), *self.new))

    @cached_property
    def again(self) -> tuple[str, ...]:
        """Fields to be hashed: new ones, and all others where the canonical blocks now have another size."""
        same = block_rows(self.schema) == block_rows(self.there.manifest.schema)
        new = {f.name for f in self.new}
        return tuple(name for name in self.schema.names if not same or name in new)

    @cached_property
    def told(self) -> dict[str, Any]:
        return _told(self.dropped, self.views)

    def _changed(self, manifest: Any) -> Any:
        """A manifest whose recipe and plan say what was changed; digests are put in later."""
        recipe = {**manifest.recipe, "fields": [*manifest.recipe.get("fields", []), self.told]}
        plan = hashlib.sha256(f"{manifest.plan} fields {json.dumps(self.told, sort_keys=True)}".encode()).hexdigest()
        counts = {name: pairs for name, pairs in manifest.counts.items() if name not in self.dropped}
        schema = self._after(manifest.schema)
        return replace(manifest, recipe=recipe, plan=plan, schema=schema, counts=counts)

    def made(self, work: Path, base: Path, stopped: Stopped) -> Manifest:
        """Make everything in the empty folder `work`. `base`: where new fields are made first, and found again."""
        if not isinstance(self.there, OpenedDataset):
            return self._store(self.there, 0, work, base, stopped, _Columns(self.schema, (), self.algorithm))
        old = self.there.manifest
        new: DatasetManifest = self._changed(old)
        whole = _Columns(self.schema, self.again, self.algorithm)
        parts, start = [], 0
        counts: list[Counts] = []
        for number, part in enumerate(old.parts):
            name = dataset.part_name(new.plan, part.number, Path(part.name).suffix)
            found = self._store(self.there.part(number), start, work / name, base, stopped, whole)
            nbytes = sum(fsio.files_below(work / name).values())
            parts.append(replace(part, name=name, bytes=nbytes, content_digest=found.content_digest))
            counts.append(found.counts)
            start += part.rows
        digests = self._digests(old.digests, whole.finish())
        recorded = digests.content(self.schema)
        new = replace(new, parts=tuple(parts), digests=digests, recorded=recorded, counts=summed(counts))
        name = dataset.digests_name(new.content_digest)
        fsio.write_file(work / name, dataset.digests_to_bytes(digests, self.schema))
        fsio.write_file(work / dataset.NAME, new.to_bytes())
        return new

    def _store(self, part: Opened, start: int, to: Path, base: Path, stopped: Stopped, whole: _Columns) -> Manifest:
        """One store with its fields changed, whose first row is row `start` of the new fields."""
        _only_ours(part)
        old, store = part.manifest, part.store
        gone = {name for f in old.schema if f.name in self.dropped for name in store.field_files(f, old.files)}
        files = {name: entry for name, entry in old.files.items() if name not in gone}
        for name in files:
            fsio.link(part.path / name, to / name)
        counts: dict[str, Any] = {}
        for view in self.views:
            made = self._converted(view, Span(start, start + old.rows), base, stopped)
            counts |= made.manifest.counts
            for f in view.schema:
                for name in store.field_files(f, made.manifest.files):
                    fsio.link(made.path / name, to / name)
                    files[name] = made.manifest.files[name]
        new: Manifest = self._changed(old)
        new = replace(new, files=dict(sorted(files.items())), counts={**new.counts, **counts})
        new = replace(new, digests=self._digests(old.digests, self._hashed(Opened(to, store, new), old, whole)))
        store.seal(to, new)
        return new

    def _converted(self, view: StoreView, rows: Span, base: Path, stopped: Stopped) -> Opened:
        """Some rows of a store of new fields, in the format of this one; what an earlier run has made is used."""
        source = StoreSource(view)
        size = max((len(span) for span in source.plan()), default=1)
        spans = [Span(rows.start + s.start, rows.start + s.stop) for s in even_spans(len(rows), size)]
        read = {"rows": [rows.start, rows.stop]}
        plan = Plan(source, (), view.schema, spans, self.there.store, None, None, read, None, self.algorithm)
        path = base / plan.hash[:16]
        if not path.exists():
            with building(path, plan) as build:
                fill(build, plan, _POLICY, 0, stopped, None)
                build.finish()
        return open_store(path)

    def _hashed(self, made: Opened, old: Manifest, whole: _Columns) -> Mapping[str, bytes]:
        """Read what has to be hashed `again`, from where it will stay. `whole` gets the same rows.

        Fields that stay are held against the digests they had. Raises `IncompleteStore` when they are not as they were.
        """
        kept = tuple(name for name in self.again if name in old.schema.names and name not in self.dropped)
        own = _Columns(self.schema, self.again, self.algorithm)
        before = _Columns(old.schema, kept, self.algorithm)
        if self.again:
            with StoreView.of([made], self.again) as view:
                for block in view.blocks():
                    for columns in (own, before, whole):
                        columns.update(block)
        for name, table in before.finish().items():
            if table != old.digests.tables[name]:
                raise IncompleteStore(
                    f"{self.there.path}: field {name} is damaged; nothing was changed.\n"
                    f"Which rows: bigconv inspect {self.there.path} --verify"
                )
        return own.finish()

    def _digests(self, old: Digests, found: Mapping[str, bytes]) -> Digests:
        """Digests of all fields: those that were `found` anew, and the others as they are."""
        tables = {name: found[name] if name in found else old.tables[name] for name in self.schema.names}
        return Digests(old.rows, block_rows(self.schema), tables, self.algorithm)


def _told(dropped: Sequence[str], views: Sequence[StoreView]) -> dict[str, Any]:
    """What the recipe keeps of a change."""
    added = [{"fields": list(v.schema.names), "from": StoreSource(v).describe()["stores"]} for v in views]
    return {"dropped": list(dropped), "added": added}


def _done(manifest: Manifest, dropped: Sequence[str], views: Sequence[StoreView]) -> bool:
    """Whether this was the last change of the fields, and each new one still has a value for each row."""
    last = list(manifest.recipe.get("fields", ()))[-1:]
    return last == [_told(dropped, views)] and all(len(view) == manifest.rows for view in views)


class _Columns:
    """Digests of some fields of a schema; of none, too."""

    def __init__(self, schema: Schema, names: Sequence[str], algorithm: str) -> None:
        self._schema = schema.select(names) if names else None
        self._digester = None if self._schema is None else Digester(self._schema, block_rows(schema), algorithm)

    def update(self, block: Block) -> None:
        if self._schema is not None and self._digester is not None:
            self._digester.update(Block(self._schema, {name: block.columns[name] for name in self._schema.names}))

    def finish(self) -> Mapping[str, bytes]:
        return {} if self._digester is None else self._digester.finish().tables


def _only_ours(there: Opened) -> None:
    """Nothing of a user's is in the folder, which is going to be replaced. Raises `OutputError`."""
    path = there.path
    if isinstance(there, OpenedDataset):
        manifest = there.manifest
        known = {dataset.NAME, dataset.digests_name(manifest.content_digest), *(part.name for part in manifest.parts)}
        extra = sorted({file.name for file in path.iterdir()} - known)
    else:
        extra = sorted(fsio.files_below(path).keys() - there.manifest.files.keys() - {there.store.manifest_file})
    if extra:
        raise OutputError(f"{path}: {extra[0]} in it is not the store's; move it away first")
