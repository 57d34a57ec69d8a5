"""Work that was whole but had too many rejects to be published: `--retry-rejects` takes its rows over.

The finished part lies in `DEST.partial/`. To read rejected inputs again is a conversion of its own, with a journal of
its own, so the old work is moved aside first, to `DEST.unpublished/`, and read from there as a store. It is removed
once DEST is published.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from bigconv import __version__, fsio, provenance
from bigconv.conversion import journal
from bigconv.conversion.build import PROVENANCE, partial_folder, work_path
from bigconv.conversion.plan import Plan
from bigconv.digest import Digests
from bigconv.errors import OutputError, UsageError
from bigconv.locks import Lock
from bigconv.manifest import Manifest
from bigconv.view.opening import Opened


def aside_folder(dest: Path) -> Path:
    return dest.with_name(dest.name + ".unpublished")


def unpublished(dest: Path, plan: Plan) -> tuple[Opened, provenance.Provenance]:
    """The rows that a run of the same recipe made and didn't publish, as a store, and their provenance.

    Raises `UsageError` when there is no such work, `OutputError` when it is of another conversion.
    """
    aside, partial = aside_folder(dest), partial_folder(dest)
    if not aside.is_dir():
        if not (partial / PROVENANCE).is_file():
            unfinished = partial.is_dir()
            raise UsageError(
                f"--retry-rejects: there is no {dest} yet"
                + (", and its unfinished work has to be gone on with first: the same command without it" * unfinished)
            )
        lock = Lock(partial / "lock")
        fsio.move(partial, aside)
        lock.release()
    known = journal.read_plan(aside / "plan.json")
    if known is None:
        raise OutputError(f"{aside}: not unpublished work of bigconv; move it away")
    new = plan.document()
    if known["document"]["recipe"] != new["recipe"] or known["document"]["fields"] != new["fields"]:
        raise OutputError(
            f"{aside}: holds rows of another recipe, or with other fields; --retry-rejects needs the same options and "
            "mended files that give the same fields.\nDrop it with --restart and convert everything again"
        )
    kept = journal.Journal(aside / "journal", known["hash"])
    kept.close()
    record = kept.records[-1]
    work, announced = work_path(aside, dest), plan.inputs if plan.rows_stay else None
    writer = plan.store.resume(work, plan.schema, announced, record.state)
    writer.close()
    manifest = Manifest(
        schema=plan.schema,
        rows=record.rows,
        store=plan.store.name,
        digests=Digests(record.rows, 1, {}, plan.digest),
        source=known["document"]["source"],
        recipe=plan.recipe(),
        bigconv_version=__version__,
        plan=known["hash"],
    )
    made = provenance.Provenance.from_bytes((aside / PROVENANCE).read_bytes(), str(aside))
    return Opened(work, plan.store, manifest), made


def put_back(dest: Path) -> None:
    """Undo the move where no retry has begun: the command without `--retry-rejects` goes on from the work."""
    aside, partial = aside_folder(dest), partial_folder(dest)
    if aside.is_dir() and not partial.exists():
        fsio.move(aside, partial)


def begin_again(dest: Path, hashed: str) -> None:
    """Drop an unfinished retry of other files: all its rows are made again from what lies aside."""
    partial = partial_folder(dest)
    known = journal.read_plan(partial / "plan.json")
    if aside_folder(dest).is_dir() and known is not None and known["hash"] != hashed:
        lock = Lock(partial / "lock")
        fsio.remove(partial)
        lock.release()


def drop(dest: Path) -> None:
    """Remove what lay aside, now that DEST is published or begun anew; a folder that isn't ours stays."""
    aside = aside_folder(dest)
    if aside.is_dir():
        with suppress(OutputError):
            if journal.read_plan(aside / "plan.json") is not None:
                fsio.remove(aside)
