"""What was found, put together: for programs, and for the sheet and the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bigconv.inspection.contact import Card
from bigconv.inspection.page import Page
from bigconv.inspection.stats import FieldStats
from bigconv.inspection.subject import Subject, stored_sizes
from bigconv.view import report
from bigconv.words import plural, size


def document(known: Subject) -> dict[str, Any]:
    """JSON values, as `inspect --json` prints them."""
    if known.raw is not None:
        return known.raw.to_json()
    assert known.opened is not None
    out = report.describe(known.opened)
    decoded, stored = report.sizes(known.opened), stored_sizes(known.opened.manifest.schema, known.datasets)
    for entry in out["fields"]:
        entry |= {"bytes": decoded[entry["name"]], "stored_bytes": stored.get(entry["name"])}
    return out


def heading(known: Subject) -> str:
    """One line on what it is."""
    if known.opened is not None:
        manifest = known.opened.manifest
        return f"{manifest.store} · {plural(manifest.rows, 'row')} · {size(known.opened.bytes())}"
    assert known.raw is not None
    reading = known.raw.readings[0]
    inputs = reading.rows.count if reading.rows is not None else None
    counted = "" if inputs is None else f" · {plural(inputs, 'row')}"
    return f"{reading.name}{counted} · {plural(reading.files, 'file')} · {size(reading.bytes)}"


def page(known: Subject, stats: Sequence[FieldStats], cards: Sequence[Card]) -> Page:
    """The page on it."""
    schema = None if known.rows is None else known.rows.schema
    layouts: dict[str, str] = {}
    sizes: dict[str, int] = {}
    if known.opened is not None and schema is not None:
        layouts, sizes = report.layouts(known.opened), report.sizes(known.opened)
    return Page(
        title=known.paths[0].name or known.name,
        lines=[heading(known)],
        schema=schema,
        layouts=layouts,
        sizes=sizes,
        stored={} if schema is None else stored_sizes(schema, known.datasets),
        datasets=known.datasets,
        stats=stats,
        cards=cards,
        warnings=known.warnings(stats or None),
        origin=_origin(known),
    )


def _origin(known: Subject) -> list[tuple[str, str]]:
    if known.raw is not None:
        told = [("command", reading.command) for reading in known.raw.readings if reading.command]
        misfits = [(f"not read: {m.why}", f"{m.count:,}, such as {', '.join(m.examples)}") for m in known.raw.misfits]
        return [*told, *misfits]
    assert known.opened is not None
    manifest = known.opened.manifest
    steps = " → ".join(str(step.get("step")) for step in manifest.recipe.get("steps", [])) or "none"
    return [
        ("content digest", manifest.content_digest),
        ("steps", steps),
        ("source", json.dumps(dict(manifest.source), ensure_ascii=False)[:2000]),
        ("recipe", json.dumps(dict(manifest.recipe), ensure_ascii=False)[:2000]),
        ("bigconv", manifest.bigconv_version),
    ]
