"""A report as one page of HTML that needs nothing from anywhere."""

from __future__ import annotations

from html import escape
from pathlib import Path

from bigconv.bench import output, plot
from bigconv.bench.api import Report
from bigconv.bench.report import sections
from bigconv.bench.texttable import Column

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;margin:.8rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;border-bottom:1px solid #e5e5e5;text-align:right;white-space:nowrap}
th{color:#666;font-weight:600}.l{text-align:left}
pre{background:#f6f6f4;padding:.8rem 1rem;border-radius:.4rem;overflow-x:auto}
.advice{border-left:4px solid #D55E00;padding:.2rem 1rem}.note{color:#a04400}
figure{margin:1rem 0;overflow-x:auto}svg{max-width:100%;height:auto}
@media (prefers-color-scheme:dark){body{background:#161616;color:#ddd}pre{background:#222}
th,td{border-color:#333}th{color:#999}figure{background:#fff;border-radius:.4rem}.note{color:#f0a060}}
"""


def save(report: Report, path: Path) -> None:
    """Raises `OutputError`."""
    output.write(path, page(report).encode("utf-8"))


def page(report: Report) -> str:
    """The whole document: advice, picture, tables."""
    winner = report.winner
    advice = f"<strong>{escape(winner.advice.setting.label)}</strong>: {escape(winner.advice.reason)}."
    convert = ""
    if "convert" in report.extra:
        convert = f"<pre>{escape(report.extra['convert'])}</pre><p>{escape(report.extra['convert_reason'])}.</p>"
    svg = plot.draw(report, "svg").decode("utf-8")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{output.MARK}: {escape(winner.subject.name)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(', '.join(a.subject.name for a in report.answers))}</h1>",
        f'<div class="advice"><p>{advice}</p>{convert}',
        f"<pre>{escape(winner.subject.snippet(winner.advice.setting))}</pre></div>",
        f"<figure>{svg[svg.index('<svg') :]}</figure>",
    ]
    for heading, blocks in sections(report):
        parts.append(f"<h2>{escape(heading)}</h2>" if heading else "")
        parts += [f"<p>{escape(block)}</p>" if isinstance(block, str) else _table(block) for block in blocks]
    return "\n".join([*parts, "</body></html>", ""])


def _table(columns: list[Column]) -> str:
    chosen = [c for c in columns if any(c.cells)]
    classes = ["" if c.right else ' class="l"' for c in chosen]
    head = "".join(f"<th{k}>{escape(c.head)}</th>" for k, c in zip(classes, chosen, strict=True))
    rows = (
        "".join(f"<td{k}>{escape(c.cells[i])}</td>" for k, c in zip(classes, chosen, strict=True))
        for i in range(len(chosen[0].cells))
    )
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
