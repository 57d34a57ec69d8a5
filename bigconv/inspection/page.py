"""`--html FILE.html`: all that `inspect` knows on one page that needs nothing from anywhere, and runs no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from bigconv.inspection.contact import Card, colour
from bigconv.inspection.datasets import Dataset
from bigconv.inspection.moments import Summary
from bigconv.inspection.output import MARK
from bigconv.inspection.stats import FieldStats
from bigconv.inspection.warnings import Complaint
from bigconv.schema import Schema
from bigconv.words import plural, printable, shape, size

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 192  # pixels of a picture's longer side
PACKED = 1.05  # bytes to one stored, from which on a ratio is told
CLASSES = 40  # bars of a field; more are counted
_STYLE = """
:root{color-scheme:light dark;--ink:#202226;--soft:#6c6f75;--paper:#f6f6f3;--card:#fff;--edge:#e2e2dc;--bar:#0072b2;
--warn:#a04400;--warned:#fff6ee}
@media (prefers-color-scheme:dark){:root{--ink:#e4e4e2;--soft:#9a9da3;--paper:#16171a;--card:#202226;--edge:#34373c;
--bar:#56b4e9;--warn:#f0a060;--warned:#2c2218}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
main{max-width:72rem;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2.2rem 0 .7rem}p{margin:.3rem 0}.soft{color:var(--soft)}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--edge);border-radius:.6rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .8rem;text-align:left;border-bottom:1px solid var(--edge);vertical-align:top;overflow-wrap:normal}
tr:last-child>td{border-bottom:0}th{color:var(--soft);font-weight:600;font-size:.85rem}
.n{text-align:right;white-space:nowrap}.w{white-space:nowrap}.sub td:first-child{padding-left:2rem;color:var(--soft)}
pre{margin:.4rem 0 0;padding:.5rem .7rem;background:var(--card);border:1px solid var(--edge);border-radius:.4rem;
overflow-x:auto;font:13px/1.45 ui-monospace,monospace}
.warning{border:1px solid var(--edge);border-left:4px solid var(--warn);background:var(--warned);border-radius:.4rem;
padding:.6rem .9rem;margin:.6rem 0}
.cards{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,var(--wide)),1fr))}
.card{background:var(--card);border:1px solid var(--edge);border-radius:.6rem;padding:.7rem;display:flex;
flex-direction:column;justify-content:space-between;gap:.5rem}
.panels{display:grid;gap:.7rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,9rem),1fr));align-items:center}
figure{margin:0;min-width:0}img{display:block;max-width:100%;height:auto;margin:0 auto;border-radius:.2rem}
figcaption{color:var(--soft);font-size:.8rem;margin-top:.25rem}
.text{white-space:pre-wrap;font-size:.82rem;max-height:12rem;overflow:auto}
.dot{display:inline-block;width:.65em;height:.65em;border-radius:50%;margin-right:.45em}
.bars{display:grid;grid-template-columns:minmax(4rem,max-content) 1fr max-content;gap:.15rem .7rem;align-items:center;
padding:.3rem 0;font-size:.9rem}
.bars i{display:block;height:.7rem;border-radius:.15rem;min-width:1px;background:var(--bar)}
svg{display:block;width:7rem;height:1.6rem;fill:var(--bar)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:0}dt{color:var(--soft)}dd{margin:0}
@media (max-width:40rem){dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}}
"""


@dataclass(frozen=True)
class Page:
    """What stands on the page. `lines`: beneath the title; `origin`: what is known of where it came from."""

    title: str
    lines: Sequence[str]
    schema: Schema | None
    layouts: dict[str, str]
    sizes: dict[str, int]
    stored: dict[str, int]
    datasets: Sequence[Dataset]
    stats: Sequence[FieldStats]
    cards: Sequence[Card]
    warnings: Sequence[Complaint]
    origin: Sequence[tuple[str, str]]


def html(page: Page) -> bytes:
    """The whole document, in UTF-8. Everything that comes from data is escaped."""
    title = _text(page.title)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta name="generator" content="{MARK}"><meta name="viewport" content="width=device-width,initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{title}</h1>",
        *(f'<p class="soft">{_text(line)}</p>' for line in page.lines),
        *_warnings(page.warnings),
        *_fields(page),
        *_cards(page.cards),
        *_stats(page.stats),
        *_datasets(page.datasets),
        *_origin(page.origin),
        "</main></body></html>\n",
    ]
    return "\n".join(parts).encode("utf-8", "backslashreplace")


def _text(value: str) -> str:
    return escape(printable(value))


def _table(head: Sequence[tuple[str, str]], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """`head`: name and class of each column; rows: their own class, and cells of HTML. Empty columns are left out."""
    rows = list(rows)
    shown = [i for i in range(len(head)) if i == 0 or any(cells[i] for _, cells in rows)]
    head, rows = [head[i] for i in shown], [(own, [cells[i] for i in shown]) for own, cells in rows]
    heading = "".join(f'<th class="{kind}">{name}</th>' for name, kind in head)
    body = "".join(
        f'<tr class="{own}">'
        + "".join(f'<td class="{kind}">{cell}</td>' for cell, (_, kind) in zip(cells, head, strict=True))
        + "</tr>"
        for own, cells in rows
    )
    return f'<div class="scroll"><table><tr>{heading}</tr>{body}</table></div>'


def _warnings(warnings: Sequence[Complaint]) -> list[str]:
    if not warnings:
        return []
    told = [
        f'<div class="warning"><p>{_text(w.problem)}'
        + (f' <span class="soft">({_text(", ".join(w.fields))})</span>' if any(w.fields) else "")
        + "</p>"
        + (f"<pre>{_lines(w.fix)}</pre></div>" if w.fix else "</div>")
        for w in warnings
    ]
    return ["<h2>Warnings</h2>", *told]


def _lines(value: str) -> str:
    return "\n".join(_text(line) for line in value.split("\n"))


def _fields(page: Page) -> list[str]:
    if page.schema is None:
        return []
    head = [("field", ""), ("dtype", "w"), ("shape", "w"), ("kind", ""), ("layout", ""), ("size", "n"), ("ratio", "n")]
    rows = []
    for f in page.schema:
        kind = f.kind if f.layout is None else f"{f.kind} {f.layout}"
        if f.classes is not None:
            kind += f", {plural(len(f.classes), 'class', 'es')}"
        bytes_, stored = page.sizes.get(f.name), page.stored.get(f.name)
        ratio = f"{bytes_ / stored:.2g}×" if bytes_ and stored and bytes_ > PACKED * stored else ""
        about = [f.name, f.dtype, shape(f.shape), kind, page.layouts.get(f.name, "")]
        rows.append(("", [*map(_text, about), "" if bytes_ is None else size(bytes_), ratio]))
    return ["<h2>Fields</h2>", _table(head, rows)]


def _datasets(datasets: Sequence[Dataset]) -> list[str]:
    shown = [d for d in datasets if not d.private]
    if not shown:
        return []
    head = [
        ("array", ""),
        ("dtype", "w"),
        ("shape", "w"),
        ("chunks", "w"),
        ("filters", ""),
        ("stored", "n"),
        ("ratio", "n"),
    ]
    rows = []
    for d in shown:
        about = [d.name or "(all)", d.dtype, shape(d.shape), "" if d.chunks is None else shape(d.chunks)]
        filters = ", ".join((*d.filters, *d.notes))
        stored = "" if d.stored is None else size(d.stored)
        ratio = "" if d.ratio is None else f"{d.ratio:.2g}×"
        rows.append(("", [*map(_text, [*about, filters]), stored, ratio]))
    return ["<h2>As it lies on disk</h2>", _table(head, rows)]


def _stats(stats: Sequence[FieldStats]) -> list[str]:
    if not stats:
        return []
    head = [(name, "n" if name else "") for name in ("", "min", "max", "mean", "std", "NaN", "inf")]
    rows: list[tuple[str, Sequence[str]]] = []
    for s in stats:
        first = f"<b>{_text(s.field.name)}</b>{_histogram(s.histogram)}"
        rows.append(("", [first, *_numbers(s.values)] if s.values else [first, *[""] * 6]))
        rows += [("sub", [f"channel {c.number}", *_numbers(c.values)]) for c in s.channels]
        if s.lengths is not None and not s.extents:
            rows.append(("sub", [_text(s.unit), *_numbers(s.lengths)]))
        for axis, (low, high) in enumerate(s.extents):
            rows.append(("sub", [f"axis {axis}", str(low), str(high), *[""] * 4]))
    out = ["<h2>Statistics</h2>", _table(head, rows)]
    for s in stats:
        counts = s.named_counts() or list(s.formats)
        if counts and (s.field.kind in ("label", "mask") or s.formats or len(counts) <= CLASSES):
            out.append(f"<h2>{_text(s.field.name)}</h2>{_bars(counts)}")
    return out


def _numbers(summary: Summary) -> list[str]:
    values = (summary.min, summary.max, summary.mean, summary.std)
    told = ["" if v is None else f"{v:.5g}" if isinstance(v, (float, complex)) else f"{v:,}" for v in values]
    return [*told, f"{summary.nan:,}" if summary.nan else "", f"{summary.inf:,}" if summary.inf else ""]


def _bars(counts: Sequence[tuple[str, int]]) -> str:
    most = max(n for _, n in counts) or 1
    rows = "".join(
        f'<span>{_text(name)}</span><i style="width:{100 * n / most:.1f}%"></i><span class="n">{n:,}</span>'
        for name, n in counts[:CLASSES]
    )
    more = len(counts) - CLASSES
    return f'<div class="bars">{rows}</div>' + (f'<p class="soft">and {more:,} more</p>' if more > 0 else "")


def _histogram(bins: Sequence[int]) -> str:
    if not bins:
        return ""
    most, width = max(bins), 112 / len(bins)
    tall = [26 * n / most for n in bins]
    bars = "".join(
        f'<rect x="{i * width:.1f}" y="{26 - high:.1f}" width="{width - 0.8:.1f}" height="{high:.1f}"/>'
        for i, high in enumerate(tall)
        if high
    )
    return f'<svg viewBox="0 0 112 26" preserveAspectRatio="none" role="img" aria-label="histogram">{bars}</svg>'


def _cards(cards: Sequence[Card]) -> list[str]:
    if not cards:
        return []
    across = max(len(card.panels) for card in cards) or 1
    out = [f'<h2>Rows</h2><div class="cards" style="--wide:{10 + 9 * min(across - 1, 2)}rem">']
    for card in cards:
        panels = "".join(
            "<figure>"
            + (_picture(p.image) if p.image is not None else f'<div class="text">{_lines(p.text)}</div>')
            + (
                f"<figcaption>{_text(' · '.join(part for part in (p.field, p.note) if part))}</figcaption>"
                if p.field
                else ""
            )
            + "</figure>"
            for p in card.panels
        )
        named = "".join(
            f'<div><span class="dot" style="background:rgb{colour(number)}"></span>{_text(name)}</div>'
            for name, number in card.classes
        )
        out.append(
            f'<div class="card"><div class="panels">{panels}</div>'
            f'<div>{named}<div class="soft">{_text(card.place)}</div></div></div>'
        )
    return [*out, "</div>"]


def _picture(image: Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    data = base64.b64encode(out.getvalue()).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" width="{image.width}" height="{image.height}" alt="">'


def _origin(origin: Sequence[tuple[str, str]]) -> list[str]:
    if not origin:
        return []
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in origin)
    return ["<h2>Where it comes from</h2>", f"<dl>{rows}</dl>"]
