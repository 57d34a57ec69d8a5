"""A report as text: for a terminal of any width, and as Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from bigconv.bench import texttable
from bigconv.bench.api import Answer, Report
from bigconv.bench.measure import Run
from bigconv.bench.setting import Setting
from bigconv.bench.stats import Rate, quantile
from bigconv.bench.texttable import Column

Block = str | list[Column]  # a paragraph or a table


def sections(report: Report) -> list[tuple[str, list[Block]]]:
    """What there is to say above the advice: headings, and below each paragraphs and tables."""
    out: list[tuple[str, list[Block]]] = [(_head(answer), _about(answer)) for answer in report.answers]
    if len(report.answers) > 1:
        out.append(("compared", [_comparison(report)]))
    if report.extra.get("accelerators"):
        out.append(("accelerators", [_accelerators(report)]))
    notes: list[Block] = [f"note: {line}" for line in _notes(report)]
    changes: list[Block] = [change.words() for change in report.changes]
    if notes or changes:
        out.append(("", [*notes, *changes]))
    return out


def terminal(report: Report, width: int) -> str:
    """For a terminal of that width; the advice last, where the eye rests."""
    out: list[str] = []
    for heading, blocks in sections(report):
        if ":" in heading:  # of a subject; the others say the same as the first column of their table
            out += _wrapped(heading, width)
        for block in blocks:
            if isinstance(block, str):
                out += _wrapped(block, width)
            else:
                out += ["", *texttable.lines(block, width), ""]
        out.append("")
    return "\n".join(_once_empty([*out, *_advice(report, width)]))


def markdown(report: Report) -> str:
    """The same for GitHub, with all columns."""
    out: list[str] = []
    for heading, blocks in sections(report):
        out += [f"### {heading}", ""] if heading else [""]
        for block in blocks:
            out += [block, ""] if isinstance(block, str) else [*texttable.markdown(block), ""]
    winner = report.winner
    out += ["### recommendation", ""]
    if "convert" in report.extra:
        out += ["```", report.extra["convert"], "```", f"{report.extra['convert_reason']}.", ""]
    out += [f"**{winner.advice.setting.label}**: {winner.advice.reason}{_doubt(report)}.", ""]
    return "\n".join(_once_empty([*out, "```python", winner.subject.snippet(winner.advice.setting), "```"]))


def _once_empty(lines: list[str]) -> list[str]:
    """Without empty lines that follow one another."""
    return [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]


def _head(answer: Answer) -> str:
    subject, run = answer.subject, answer.advice.run
    each = texttable.size(run.batch_bytes / run.subject.batch_size)
    cached = "" if answer.resident[0] is None else f" · {answer.resident[0].share:.0%} in the page cache"
    step = f" · steps of {answer.question.step_ms:g} ms" if answer.question.step_ms else ""
    batches = f"batches of {subject.batch_size}, {subject.access}"
    return f"{subject.name}: {subject.rows:,} rows of {each} · {batches}{step}{cached}"


def _runs(answer: Answer) -> list[Column]:
    runs = [*answer.swept.runs]
    chosen = answer.advice.run
    waits = [run.waits for run in runs]

    def each(make: object) -> tuple[str, ...]:
        assert callable(make)
        return tuple(make(run) for run in runs)

    return [
        Column("", tuple("→" if run is chosen else " " for run in runs), right=False),
        Column("setting", each(lambda r: r.setting.label), right=False),
        Column("samples/s", each(lambda r: texttable.rate(r.rate.value))),
        Column("±", each(lambda r: _spread(r.rate))),
        Column("MB/s", each(lambda r: f"{r.megabytes:,.0f}" if r.megabytes >= 10 else f"{r.megabytes:.2g}"), rank=3),
        Column("busy", tuple("" if run.busy is None else f"{run.busy:.0%}" for run in runs)),
        Column("wait p50", tuple(texttable.time(quantile(w, 0.5)) for w in waits), rank=4),
        Column("p99", tuple(texttable.time(quantile(w, 0.99)) for w in waits), rank=2),
        Column("max", tuple(texttable.time(w[-1]) for w in waits), rank=6),
        Column("CPU s/1k", each(lambda r: f"{r.cpu:.3g}"), rank=4),
        Column("memory", each(_memory), rank=1),
        Column("first batch", each(lambda r: texttable.time(r.first_batch)), rank=5),
        Column("model", each(lambda r: "" if r.predicted is None else texttable.rate(r.predicted)), rank=7),
    ]


def _memory(run: Run) -> str:
    return "" if run.memory is None else texttable.size(run.memory.private)


def _spread(rate: Rate) -> str:
    return "" if math.isinf(rate.spread) else f"{rate.spread:.1%}" if rate.spread < 0.0995 else f"{rate.spread:.0%}"


def _about(answer: Answer) -> list[Block]:
    """The runs, and what follows from them."""
    out: list[Block] = [_runs(answer)]
    if answer.swept.skipped:
        out.append(_skipped(answer))
    cold = [run for run in answer.cold if run.cold]
    if cold:
        out.append(
            [
                Column("from storage", tuple(run.setting.label for run in cold), right=False),
                Column("samples/s", tuple(texttable.rate(run.rate.value) for run in cold)),
                Column("±", tuple(_spread(run.rate) for run in cold)),
                Column("resident before", tuple(f"{run.before or 0:.1%}" for run in cold), rank=1),
                Column("after", tuple(f"{run.after or 0:.0%}" for run in cold), rank=2),
                Column("read", tuple(texttable.size(run.bytes_read) for run in cold), rank=3),
            ]
        )
    if answer.rungs:
        limit = answer.rungs[0].rate.value
        out.append(
            [
                Column("ladder", tuple(rung.name for rung in answer.rungs), right=False),
                Column("samples/s", tuple(texttable.rate(rung.rate.value) for rung in answer.rungs)),
                Column("±", tuple(_spread(rung.rate) for rung in answer.rungs), rank=2),
                Column("µs/sample", tuple(f"{1e6 / rung.rate.value:.3g}" for rung in answer.rungs), rank=1),
                Column("of the limit", tuple(_share(rung.rate.value / limit) for rung in answer.rungs)),
            ]
        )
        out.append(answer.bottleneck)
    run = answer.advice.run
    gap = "" if run.epoch_gap is None else f" · {texttable.time(run.epoch_gap)} between epochs"
    out.append(
        f"Training steps shorter than {texttable.time(answer.starves_ms / 1e3)} wait for data · first batch after "
        f"{texttable.time(run.first_batch)}{gap} · payload {run.checksum}"
    )
    return out


def _share(share: float) -> str:
    """Nothing for what does less than the limit: files that are smaller than their samples, a replay."""
    return "-" if share > 1.2 else f"{share:.0%}" if share >= 0.1 else f"{100 * share:.2g}%"


def _skipped(answer: Answer) -> str:
    cores = answer.swept.model.cores if answer.swept.model else 1
    most = ", ".join(_short(s) for s in answer.swept.skipped)
    return f"not measured: {most}: there are {cores} cores, and no sample is blocked long enough to gain by more"


def _short(setting: Setting) -> str:
    return f"{setting.workers} {'threads' if setting.threaded else 'workers'}"


def _comparison(report: Report) -> list[Column]:
    answers = sorted(report.answers, key=lambda answer: -answer.best)
    best = answers[0].best
    return [
        Column("compared", tuple(answer.subject.name for answer in answers), right=False),
        Column("samples/s", tuple(texttable.rate(answer.best) for answer in answers)),
        Column("of best", tuple(f"{answer.best / best:.2f}" for answer in answers)),
        *_facts(answers),
        Column("with", tuple(answer.advice.setting.label for answer in answers), rank=1, right=False),
    ]


def _facts(answers: Sequence[Answer]) -> list[Column]:
    """Of trial conversions: how fast, how large."""

    def cells(key: str, form: object) -> tuple[str, ...]:
        assert callable(form)
        return tuple(form(a.facts[key]) if a.facts.get(key) is not None else "" for a in answers)

    return [
        Column("converted, rows/s", cells("converted_rows_per_second", texttable.rate), rank=2),
        Column("bytes/row", cells("stored_bytes_per_row", texttable.size), rank=1),
    ]


def _accelerators(report: Report) -> list[Column]:
    """Of a workload: how busy each is kept."""
    used = report.extra["accelerators"]
    return [
        Column("accelerator", tuple(one["accelerator"] for one in used), right=False),
        Column("step", tuple(texttable.time(one["step_ms"] / 1e3) for one in used)),
        Column("busy", tuple(f"{one['busy']:.1%}" for one in used)),
        Column("asked for", tuple(f"{one['wanted']:.0%}" for one in used)),
        Column("", tuple("reached" if one["busy"] >= one["wanted"] else "missed" for one in used), right=False),
    ]


def _notes(report: Report) -> list[str]:
    stopped = ["stopped early: this is what is known so far"] if report.interrupted else []
    return [*stopped, *report.notes, *(note for answer in report.answers for note in answer.notes)]


def _advice(report: Report, width: int) -> list[str]:
    winner = report.winner
    which = f"{winner.subject.name}, " if len(report.answers) > 1 else ""
    out = ["", *_wrapped(f"→ {which}{winner.advice.setting.label}: {winner.advice.reason}{_doubt(report)}", width)]
    if "convert" in report.extra:
        out += ["", f"  {report.extra['convert']}", *_wrapped(f"  ({report.extra['convert_reason']})", width)]
    out += ["", *(f"  {line}".rstrip() for line in winner.subject.snippet(winner.advice.setting).splitlines())]
    return out


def _doubt(report: Report) -> str:
    """Cores that others used can't be gained by workers: the advice is for the machine as it was."""
    return (
        "; measured while the cores were contended: ask again when they aren't" if report.contention.contended else ""
    )


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 20), break_long_words=False, break_on_hyphens=False) if text else []
