"""What a conversion would do and what it did, as people and machines read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bigconv.cli import options, text
from bigconv.cli.render import console, field_table
from bigconv.view.report import gaps

if TYPE_CHECKING:
    from bigconv.conversion.estimate import Estimate
    from bigconv.conversion.plan import Plan
    from bigconv.conversion.request import Request
    from bigconv.conversion.run import Outcome


def show_plan(request: Request, plan: Plan, as_json: bool) -> None:
    """What `--dry-run` prints: fields, rows, bytes in each store, free space, hints."""
    from bigconv.conversion.estimate import estimate
    from bigconv.conversion.plan import free_space

    with options.aside():
        reckoned = estimate(plan, request.policy.timeout, request.policy.workers > 0)
    free = free_space(request.dest)
    if as_json:
        options.print_json(
            {
                "schema_version": 1,
                "dest": str(request.told),
                "recipe": plan.recipe(),
                "source": plan.source.describe(),
                "rows": reckoned.rows,
                "spans": len(plan.spans),
                "fields": plan.schema.to_json(),
                "bytes_estimate": reckoned.data,
                "store_bytes_estimate": reckoned.stores,
                "rows_sampled": reckoned.sampled,
                "bytes_free": free,
                "hints": list(reckoned.hints),
            }
        )
        return
    from rich.markup import escape

    out = console()
    many = "rows, how many only reading tells," if reckoned.rows is None else text.plural(reckoned.rows, "row")
    name = escape(text.name(request.told))
    out.print(f"[bold]{name}[/bold] would hold {many} from {plan.source.name}, as {plan.store.name}")
    out.print(field_table(plan.schema, plan.store.describe(plan.schema)))
    out.print(f"steps {' → '.join(step.name for step in plan.steps) or 'none'} · free {text.size(free)}")
    if reckoned.data is not None:
        _show_sizes(out, plan.store.name, reckoned)
        if reckoned.stores[plan.store.name] > free:
            out.print("[red]There is not enough free space.[/red]")
    _show_gaps(out, plan.source.describe())
    _show_hints(out, reckoned.hints)


def _show_sizes(out: Any, chosen: str, reckoned: Estimate) -> None:
    from rich.table import Table

    assert reckoned.data is not None
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("about", no_wrap=True)
    table.add_column("on disk", justify="right", no_wrap=True)
    table.add_column("of the data", justify="right")
    for name, nbytes in reckoned.stores.items():
        share = f"{nbytes / max(1, reckoned.data):.2f}"
        table.add_row(name, text.size(nbytes), share, style="bold" if name == chosen else "")
    out.print(table)
    rows = text.plural(reckoned.sampled, "row")
    out.print(f"data {text.size(reckoned.data)}; sizes by {rows} made and measured", style="dim")


def as_json(outcome: Outcome, notes: Sequence[str]) -> dict[str, Any]:
    """What `--json` prints of a conversion. `notes`: of its plan."""
    from bigconv.dataset import DatasetManifest

    manifest = outcome.manifest
    return {
        "schema_version": 1,
        "dest": str(outcome.dest),
        "status": outcome.status,
        "rank": None if outcome.rank is None else str(outcome.rank),
        "store": manifest.store,
        "parts": len(manifest.parts) if isinstance(manifest, DatasetManifest) else 1,
        "rows": manifest.rows,
        "rows_resumed": outcome.resumed_rows,
        "rejects": outcome.rejects,
        "bytes": outcome.bytes,
        "seconds": round(outcome.seconds, 3),
        "content_digest": manifest.content_digest or None,
        "fields": manifest.schema.to_json(),
        "warnings": [*([] if (missing := gaps(manifest.source)) is None else [missing]), *notes],
    }


def show(outcome: Outcome, notes: Sequence[str]) -> None:
    """The summary at the end, with the two lines of Python that read the result. `notes`: of its plan."""
    from rich.markup import escape

    from bigconv.dataset import DatasetManifest

    manifest, seconds = outcome.manifest, max(outcome.seconds, 1e-9)
    bold = f"[bold]{escape(text.name(outcome.dest))}[/bold]"
    fields = ", ".join(repr(name) for name in manifest.schema.names) + ("," if len(manifest.schema) == 1 else "")
    out = console()
    if outcome.status == "unchanged":
        out.print(f"{bold}: unchanged, skipped · {text.plural(manifest.rows, 'row')}")
        _show_gaps(out, manifest.source)
        _show_hints(out, notes)
        return
    resumed = f" ({text.count(outcome.resumed_rows)} from before)" if outcome.resumed_rows else ""
    parts = f" in {text.plural(len(manifest.parts), 'part')}" if isinstance(manifest, DatasetManifest) else ""
    made = "" if outcome.rank is None else f"rank {outcome.rank} made "
    out.print(
        f"{bold}: {made}{text.plural(manifest.rows, 'row')}{parts}{resumed} · "
        f"{text.plural(outcome.rejects, 'reject')} · {text.size(outcome.bytes)} · {seconds:.1f} s · "
        f"{outcome.rows / seconds:,.0f} rows/s"
    )
    if outcome.rank is not None:
        out.print(finalize_next(outcome), highlight=False)
        return
    _show_gaps(out, manifest.source)
    _show_hints(out, notes)
    out.print(f"content digest {manifest.content_digest}", style="dim")
    out.print("read it:")
    out.print("  from bigconv.runtime import StoreDataset", markup=False, highlight=False)
    out.print(f"  dataset = StoreDataset({str(outcome.dest)!r}, fields=({fields}))", markup=False, highlight=False)


def _show_gaps(out: Any, source: Mapping[str, Any]) -> None:
    missing = gaps(source)
    if missing is not None:
        out.print(f"[yellow]warning[/yellow]: {missing}: never written, or lost")


def _show_hints(out: Any, hints: Sequence[str]) -> None:
    for hint in hints:
        out.print(f"hint: {text.printable(hint)}", markup=False, highlight=False)


def finalize_next(outcome: Outcome) -> str:
    """What to do when a rank has made its parts."""
    assert outcome.rank is not None
    return (
        f"nothing is published yet: once all {outcome.rank.count} ranks are done, "
        "run the same command with --finalize in place of --rank"
    )
