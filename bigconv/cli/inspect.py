"""`bigconv inspect PATH`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigconv.cli import options

if TYPE_CHECKING:
    from bigconv.inspection.diff import Diff
    from bigconv.inspection.stats import FieldStats
    from bigconv.inspection.subject import Subject
    from bigconv.view.report import Finding

LOOK = "Look closer"
DRAWN = 24  # rows of a sheet: what still fits a screen


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="A store, a sharded directory, a raw folder or files, any HDF5, Zarr, LMDB or npy file.",
            show_default=False,
        ),
    ],
    head: Annotated[
        int, typer.Option("--head", metavar="N", help="Show the first N rows.", min=0, show_default=False)
    ] = 0,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything and check every digest; exit 1 if one is wrong.")
    ] = False,
    row: Annotated[int | None, typer.Option("--row", metavar="I", help="Show row I, and which file made it.")] = None,
    stats: Annotated[
        bool,
        typer.Option(
            "--stats", help="Read everything: min, max, mean, std, NaN, counts, lengths.", rich_help_panel=LOOK
        ),
    ] = False,
    contact: Annotated[
        Path | None,
        typer.Option("--contact", metavar="FILE.png", help="Draw rows on one sheet.", rich_help_panel=LOOK),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE.html", help="Write all of it as one page.", rich_help_panel=LOOK),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option("--rows", metavar="N", help="Rows on the sheet and the page [24].", min=1, rich_help_panel=LOOK),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", help="Draw those rows at random, not evenly spaced.", min=0, rich_help_panel=LOOK
        ),
    ] = None,
    diff: Annotated[
        Path | None,
        typer.Option("--diff", metavar="OTHER", help="Compare; exit 1 if rows differ.", rich_help_panel=LOOK),
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="FORMAT", help="What raw input is, where its files don't tell.")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show what is in a store, or what raw input would become: fields, rows, layout, source, and what to mend."""
    from contextlib import ExitStack

    from bigconv.errors import UsageError
    from bigconv.remote.urls import naming, parsed
    from bigconv.view import report
    from bigconv.view.opening import fetched, in_place

    if contact is None and html is None and (rows is not None or seed is not None):
        option = "--seed" if rows is None else "--rows"
        raise UsageError(
            f"{option} says which rows --contact and --html draw: give one of them, or --head N for rows here"
        )
    for option, file, suffix in (("--contact", contact, ".png"), ("--html", html, ".html")):
        if file is not None:
            from bigconv.inspection import output

            output.check(option, file, suffix)
    with ExitStack() as held:
        ranged = len(paths) == 1 and from_ is None and not verify and in_place(paths[0]) is not None
        local = paths if ranged else [held.enter_context(fetched(path)) for path in paths]
        with naming(dict(zip(local, map(parsed, paths), strict=True))):
            known = _subject(local, from_, verify)
        opened = known.opened
        if opened is None and (verify or head or row is not None):
            option = "--verify" if verify else "--head" if head else "--row"
            raise UsageError(
                f"{option} needs a store, and {known.name} is none yet. Rows of raw input: --contact FILE.png"
            )
        unlisted = () if known.unfinished is None else known.unfinished.names
        findings = report.verify(opened, unlisted) if verify and opened is not None else None
        shown = dict(enumerate(report.head(opened, head))) if head and opened is not None else {}
        made = None
        if row is not None and opened is not None:
            shown[row] = report.row(opened, row)
            made = report.whence(opened, row % opened.manifest.rows)
        found = _stats(known, quiet or json) if stats or html is not None else None
        compared = None if diff is None else _compare(known, diff)
        _draw(known, found, contact, html, rows or DRAWN, seed)
        answer = _Answer(known, findings, shown, made, found if stats else None, compared, contact, html)
        if json:
            answer.as_json()
        else:
            answer.show()
        if findings or (compared is not None and not compared.same):
            raise typer.Exit(1)


def _subject(paths: list[Path], from_: str | None, verify: bool) -> Subject:
    from contextlib import suppress

    from bigconv import registry
    from bigconv.errors import FindingsError, IncompleteStore, StoreError
    from bigconv.inspection.subject import Subject, subject
    from bigconv.view.opening import open_store

    try:
        if verify and len(paths) == 1:
            open_store(paths[0])  # a store without a manifest is not looked at as if it were another's
        return subject(paths, from_)
    except StoreError as error:
        if not verify:
            raise
        ours = registry.is_dataset(paths[0])
        if ours:
            from bigconv.view.opening import open_parts

            with suppress(IncompleteStore):  # the list itself is damaged
                return Subject(tuple(paths), open_parts(paths[0]), None)  # so that every part is told of
        known = ours or paths[0].suffix in registry.extensions("store")
        if not paths[0].exists() or not known:
            raise
        # asked whether it is whole, and it isn't: that is an answer, not a refusal
        raise FindingsError(f"not verified: {error}") from error


def _stats(known: Subject, quiet: bool) -> list[FieldStats] | None:
    from bigconv.conversion.progress import progress
    from bigconv.inspection.stats import stats

    if known.rows is None:
        known.side()  # raises, saying why
        return None
    with progress(known.rows.count, "rows", quiet) as step:
        return stats(known.rows, lambda n: step(n, 0, 0))


def _compare(known: Subject, other: Path) -> Diff:
    from bigconv.inspection.diff import diff
    from bigconv.inspection.subject import subject
    from bigconv.view.opening import fetched

    with fetched(other) as here:
        return diff(known.side(), subject([here]).side())


def _draw(
    known: Subject,
    found: Sequence[FieldStats] | None,
    contact: Path | None,
    html: Path | None,
    rows: int,
    seed: int | None,
) -> None:
    """The sheet and the page."""
    if contact is None and html is None:
        return
    from bigconv.inspection import output
    from bigconv.inspection.contact import cards, png
    from bigconv.inspection.page import html as page_of
    from bigconv.inspection.summary import heading, page

    if known.rows is None:
        known.side()  # raises, saying why
        return
    shown = cards(known.rows.schema, known.rows.some(rows, seed))
    if contact is not None:
        output.write(contact, png(known.paths[0].name or known.name, heading(known), shown))
    if html is not None:
        output.write(html, page_of(page(known, found or (), shown)))


class _Answer:
    """What was found out, to be printed one way or the other."""

    def __init__(
        self,
        known: Subject,
        findings: list[Finding] | None,
        rows: dict[int, dict[str, Any]],
        made: dict[str, Any] | None,
        stats: list[FieldStats] | None,
        diff: Diff | None,
        contact: Path | None,
        html: Path | None,
    ) -> None:
        self.known, self.findings, self.rows, self.made = known, findings, rows, made
        self.stats, self.diff = stats, diff
        self.files = {name: file for name, file in (("contact", contact), ("html", html)) if file is not None}

    def as_json(self) -> None:
        from dataclasses import asdict

        from bigconv.inspection.summary import document

        out = document(self.known)
        out["warnings"] = [warning.to_json() for warning in self.known.warnings(self.stats)]
        if self.findings is not None:
            out |= {"verified": not self.findings, "findings": [asdict(f) for f in self.findings]}
        if self.rows:
            out["head"] = list(self.rows.values())
        if self.made is not None:
            out["made_from"] = self.made
        if self.stats is not None:
            out["stats"] = [one.to_json() for one in self.stats]
            out |= self._rejects()
        if self.diff is not None:
            out["diff"] = self.diff.to_json()
        out |= {name: str(file) for name, file in self.files.items()}
        options.print_json(out)

    def _rejects(self) -> dict[str, Any]:
        """Of raw input, the inputs that can't be read."""
        rejects = getattr(self.known.rows, "rejects", None)
        if rejects is None or self.known.opened is not None:
            return {}
        from dataclasses import asdict

        return {"rejected": getattr(self.known.rows, "rejected", 0), "rejects": [asdict(one) for one in rejects]}

    def show(self) -> None:
        from bigconv.cli import text
        from bigconv.cli.render import console
        from bigconv.cli.shown import show_diff, show_findings, show_raw, show_stats, show_store, show_warnings

        out = console()
        if self.known.opened is not None:
            show_store(out, self.known, self.rows, self.made)
        else:
            show_raw(out, self.known)
        if self.stats is not None:
            show_stats(out, self.stats)
            for reject in self._rejects().get("rejects", [])[:10]:
                line = f"can't be read: {reject['path']}: {reject['error']}"
                out.print(text.printable(line), markup=False, highlight=False)
        show_warnings(out, self.known.warnings(self.stats))
        if self.diff is not None:
            show_diff(out, self.diff)
        for file in self.files.values():
            out.print(f"wrote {text.name(file)}", markup=False, highlight=False)
        if self.findings is not None:
            show_findings(out, self.findings)
