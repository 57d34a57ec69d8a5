"""A report as a picture: throughput against workers with the model's curve and the limits, and waits as a CDF."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigconv.bench import output, texttable
from bigconv.bench.api import Answer, Report
from bigconv.bench.measure import Run
from bigconv.bench.setting import processes, threads

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which all eyes tell apart
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#8a8a8a", "#222222"
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "bigconv",
    "svg.fonttype": "none",
}


def save(report: Report, path: Path) -> None:
    """`.svg` or `.png`. Raises `OutputError`."""
    output.write(path, draw(report, path.suffix.lower()[1:]))


def draw(report: Report, kind: str) -> bytes:
    """A picture of `kind` `svg` or `png`: a row for each subject, and one that compares several."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    answers = report.answers
    several = len(answers) > 1
    with mpl.rc_context(_STYLE):
        rows = len(answers) + several
        heights = [*([0.1 * (len(answers) + 1.5)] if several else []), *[1.0] * len(answers)]
        figure = Figure(figsize=(11, 4.4 * len(answers) + 0.44 * (len(answers) + 1.5) * several), layout="constrained")
        grid = figure.add_gridspec(rows, 2, width_ratios=(3, 2), height_ratios=heights)
        if several:
            _bars(figure.add_subplot(grid[0, :]), answers)
        for i, answer in enumerate(answers):
            _throughput(figure.add_subplot(grid[i + several, 0]), answer)
            _waits(figure.add_subplot(grid[i + several, 1]), answer)
        if report.contention.contended:
            figure.supxlabel("others used the machine while this was measured", fontsize=9, color=ORANGE)
        return _bytes(figure, kind)


def _bytes(figure: Figure, kind: str) -> bytes:
    out = io.BytesIO()
    metadata: dict[str, Any] = {"Title": output.MARK} | ({"Date": None} if kind == "svg" else {})
    figure.savefig(out, format=kind, dpi=150, metadata=metadata)
    return out.getvalue()


def _throughput(axes: Axes, answer: Answer) -> None:
    runs, model = answer.swept.runs, answer.swept.model
    chosen = answer.advice.run
    most = max(run.setting.workers for run in runs)
    for threaded, colour, name in ((False, BLUE, "DataLoader, worker processes"), (True, GREEN, "Loader, threads")):
        own = [run for run in runs if run.setting.threaded is threaded]
        if not own:
            continue
        x = [run.setting.workers for run in own]
        rates = [run.rate for run in own]
        y = [rate.value for rate in rates]
        error = [[r.value - r.low for r in rates], [min(r.high, 2 * r.value) - r.value for r in rates]]
        axes.errorbar(x, y, yerr=error, fmt="o-", color=colour, capsize=3, lw=1.8, ms=6, label=name, zorder=3)
        if model is not None:
            make = threads if threaded else processes
            curve = [model.rate(make(n)) for n in range(most + 1)]
            axes.plot(range(most + 1), curve, ls=":", color=colour, lw=1.4, zorder=2)
    axes.plot([], [], ls=":", color=GREY, lw=1.4, label="model")
    top = max(min(run.rate.high, 1.5 * run.rate.value) for run in runs)
    _limits(axes, answer, top)
    at = (chosen.setting.workers, chosen.rate.value)
    axes.plot(*at, "o", ms=15, mfc="none", mec=ORANGE, mew=2, zorder=4)
    axes.annotate(
        f"use {chosen.setting.label}", at, (0, 16), textcoords="offset points", color=ORANGE, weight="bold",
        ha="left" if at[0] < most / 2 else "right", zorder=5,
    )  # fmt: skip
    axes.set(xlabel="workers or threads", ylabel="samples/s", xlim=(-0.25, most + 0.25))
    axes.set_ylim(0, axes.get_ylim()[1] * 1.12)
    axes.set_xticks(range(most + 1) if most <= 16 else sorted({run.setting.workers for run in runs}))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes.set_title(
        f"{answer.subject.name}: {texttable.rate(chosen.rate.value)} samples/s, {texttable.rate(chosen.megabytes)} MB/s"
    )
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)


def _limits(axes: Axes, answer: Answer, top: float) -> None:
    """Lines that no setting can pass, where they are near enough to be seen."""
    lines = [("what one core gathers", rung.rate.value) for rung in answer.rungs[:1]]
    if answer.question.step_ms:
        lines.append(("the training step", 1e3 * answer.subject.batch_size / answer.question.step_ms))
    for name, value in lines:
        if value <= 2.5 * top:
            axes.axhline(value, color=GREY, lw=1, ls="--", zorder=1)
            axes.annotate(name, (1, value), (-4, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                          ha="right", fontsize=9, color=GREY)  # fmt: skip
        else:
            axes.annotate(f"{name}: {value:,.0f} ↑", (1, 1), (-4, -10), xycoords="axes fraction",
                          textcoords="offset points", ha="right", fontsize=9, color=GREY)  # fmt: skip


def _waits(axes: Axes, answer: Answer) -> None:
    """Share of the batches that came within a time."""
    runs: list[Run] = answer.swept.runs
    chosen = answer.advice.run
    for run in runs:
        waits = np.maximum(run.waits, 1e-6) * 1e3
        colour = GREEN if run.setting.threaded else BLUE
        strong = run is chosen
        axes.step(
            waits, np.arange(1, len(waits) + 1) / len(waits), where="post", color=ORANGE if strong else colour,
            lw=2.4 if strong else 1.1, alpha=1 if strong else 0.55, zorder=3 if strong else 2,
            label=run.setting.label if strong else None,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.axhline(0.99, color=GREY, lw=0.8, ls="--")
    axes.annotate(
        "99 %",
        (0, 0.99),
        (3, -11),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=9,
        color=GREY,
    )
    axes.set(xlabel="wait for a batch, ms", ylabel="share of the batches", ylim=(0, 1.02))
    axes.set_title("waits")
    axes.grid(color="#efefef", lw=0.8)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _bars(axes: Axes, answers: list[Answer]) -> None:
    ordered = sorted(answers, key=lambda answer: answer.best)
    names = [answer.subject.name for answer in ordered]
    values = [answer.best for answer in ordered]
    bars = axes.barh(names, values, color=[ORANGE if v == max(values) else BLUE for v in values], height=0.62)
    labels = [f"{texttable.rate(a.best)} · {a.advice.setting.label}" for a in ordered]
    axes.bar_label(bars, labels, padding=4, fontsize=9, color=INK)
    axes.set(xlim=(0, max(values) * 1.45), title="samples/s, each with its best setting")
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
