"""Write beside the destination, verify, seal, rename: a store appears whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigconv import __version__, fsio
from bigconv.block import Block
from bigconv.digest import Digester, Digests
from bigconv.errors import BigconvError, IncompleteStore, OutputError, StoreError
from bigconv.manifest import Manifest
from bigconv.schema import Schema
from bigconv.stores.base import Store
from bigconv.view.opening import Opened, open_store
from bigconv.view.table import StoreView


def check_dest(dest: Path, sources: list[Path], overwrite: bool) -> None:
    """Refuse a destination that would harm anything. Raises `OutputError`."""
    if not dest.parent.is_dir():
        raise OutputError(f"{dest.parent}: no such folder; make it first")
    real = dest.resolve()
    for source in sources:
        inside = source.resolve()
        if real == inside or inside in real.parents:
            raise OutputError(f"{dest}: the destination is {'' if real == inside else 'inside '}the source {source}")
        if real in inside.parents:
            raise OutputError(f"{dest}: the destination holds the source {source}")
    if not (dest.exists() or dest.is_symlink()):
        return
    if not overwrite:
        raise OutputError(f"{dest}: exists already. Replace it with --overwrite, or name another destination")
    try:
        open_store(dest)
    except StoreError as error:
        raise OutputError(
            f"{dest}: not replaced, because bigconv didn't write it, or not as a whole:\n{error}"
        ) from error


class StoreBuilder:
    """A store in the making, in `DEST.partial/` under a lock."""

    def __init__(self, dest: Path, store: Store, schema: Schema, rows: int | None) -> None:
        self.dest, self.store, self.schema = dest, store, schema
        self._folder = dest.with_name(dest.name + ".partial")
        with fsio.writing(self._folder):
            self._folder.mkdir(exist_ok=True)
        self._lock = fsio.Lock(self._folder / "lock")
        self._work = self._folder / dest.name
        self._digester = Digester(schema)
        try:
            fsio.remove(self._work)  # of a run that was killed
            self._writer = store.create(self._work, schema, rows)
        except BaseException:
            self.discard()
            raise

    @property
    def rows(self) -> int:
        return self._digester.rows

    def append(self, block: Block) -> None:
        self._digester.update(block)
        self._writer.append(block)

    def finish(self, source: Mapping[str, Any], recipe: Mapping[str, Any]) -> Manifest:
        """Lay out, make durable, read everything back against the digests, seal, rename."""
        digests = self._digester.finish()
        self._writer.close()
        manifest = Manifest(
            schema=self.schema,
            rows=digests.rows,
            store=self.store.name,
            digests=digests,
            source=source,
            recipe=recipe,
            bigconv_version=__version__,
            files=self.store.files(self._work),
        )
        read_back(Opened(self._work, self.store, manifest), digests)
        self._writer.seal(manifest)
        fsio.sync_tree(self._work)
        fsio.publish(self._work, self.dest)
        return manifest

    def discard(self) -> None:
        """Remove all traces."""
        writer = getattr(self, "_writer", None)
        if writer is not None:
            writer.abort()
        self.release()

    def release(self) -> None:
        fsio.remove(self._folder)
        self._lock.release()


def read_back(opened: Opened, digests: Digests) -> None:
    """Read a laid-out store as a user will, and compare. Raises `IncompleteStore` naming field and rows."""
    view = StoreView.of([opened])
    again = Digester(opened.manifest.schema)
    for block in view.blocks():
        again.update(block)
    view.close()
    found = again.finish()
    if found != digests:
        raise IncompleteStore(
            f"{opened.path}: what was read back differs from what was written: {_first(found, digests)}"
        )


def _first(found: Digests, digests: Digests) -> str:
    for field, table in digests.tables.items():
        if found.tables[field] != table:
            return f"field {field}"
    return "the number of rows"


@contextmanager
def building(dest: Path, store: Store, schema: Schema, rows: int | None) -> Iterator[StoreBuilder]:
    """A builder that leaves nothing behind when the body fails."""
    builder = StoreBuilder(dest, store, schema, rows)
    try:
        yield builder
    except (BigconvError, KeyboardInterrupt):
        builder.discard()
        raise
    except BaseException:
        builder.discard()
        raise
    else:
        builder.release()
