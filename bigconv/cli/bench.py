"""`bigconv bench [PATH...]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigconv.cli import options

if TYPE_CHECKING:
    from bigconv.bench.api import Question, Report
    from bigconv.bench.sweep import Tick


def command(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH...]",
            help="Stores, raw folders or files, or a report of an earlier run [the stores in this folder].",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        str | None, typer.Option("--workers", metavar="N|0,2,4", help="Up to N workers, or this list [cores].")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="N", help="Samples a batch [256, in up to 64 MiB].", min=1),
    ] = None,
    fields: Annotated[str | None, typer.Option("--fields", metavar="A,B", help="Read these fields only.")] = None,
    access: Annotated[
        str, typer.Option("--access", metavar="ORDER", help="shuffled | sequential | window (shuffled within windows).")
    ] = "shuffled",
    transform: Annotated[
        str | None,
        typer.Option("--transform", metavar="FILE.py:FUNCTION", help="A function on each sample, as in your training."),
    ] = None,
    resize: Annotated[
        str | None, typer.Option("--resize", metavar="S|HxW", help="Resize raw images, before and after conversion.")
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="FORMAT", help="What raw data is, where its files don't tell.")
    ] = None,
    step_ms: Annotated[
        float,
        typer.Option(
            "--step-ms",
            metavar="T",
            help="Milliseconds of a training step: how busy is the accelerator?",
            show_default=False,
        ),
    ] = 0.0,
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", help="About how long to measure.")] = 20.0,
    cold: Annotated[bool, typer.Option("--cold", help="Measure reading from storage, too.")] = False,
    stores: Annotated[
        str | None,
        typer.Option(
            "--stores",
            metavar="h5,zarr,lmdb,mmap",
            help="Convert a sample of the raw data into each and measure.",
            rich_help_panel="Raw data and workloads",
        ),
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(
            "--workload",
            metavar="NAME",
            help="Data as in MLPerf Storage: unet3d | resnet50 | cosmoflow.",
            rich_help_panel="Raw data and workloads",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="512MB",
            help="Data that --workload makes [512MB].",
            rich_help_panel="Raw data and workloads",
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown on stdout.", rich_help_panel="Output")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg|png", help="Draw it.", rich_help_panel="Output")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="All of it as one page.", rich_help_panel="Output")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="OLD.json", help="Compare with a --json report.", rich_help_panel="Output"),
    ] = None,
    fail_if_slower: Annotated[
        str | None,
        typer.Option(
            "--fail-if-slower", metavar="10%", help="Exit 1 if slower than the baseline.", rich_help_panel="Output"
        ),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure loading: how fast it is, what holds it back, what to set."""
    from bigconv.errors import UsageError

    if json and markdown:
        raise UsageError("--json and --markdown both write to stdout: choose one")
    if fail_if_slower is not None and baseline is None:
        raise UsageError("--fail-if-slower needs a --baseline to compare with: a report of bench --json")
    if workload is not None and (paths or stores or fields or transform or resize or from_ or batch_size or step_ms):
        raise UsageError("--workload makes its own data, with its own batches and steps: leave the other options out")
    if size is not None and workload is None:
        raise UsageError("--size says how much data a --workload makes: give --workload unet3d, resnet50 or cosmoflow")
    _check_output(plot, html)
    import bigconv.runtime  # noqa: F401  says what to install where torch is missing
    from bigconv.bench import api
    from bigconv.bench import baseline as baselines

    limit = None if fail_if_slower is None else baselines.share(fail_if_slower)
    old = None if baseline is None else baselines.load(baseline)
    question = api.Question(
        _workers(workers),
        batch_size,
        _names(fields),
        access,
        transform,
        _size(resize),
        step_ms,
        seconds,
        cold,
        from_=from_,
    )
    chosen = list(paths or [])
    if workload is None and stores is None and not chosen:
        chosen = _stores_here()
    with _Progress(quiet) as tick, options.aside():
        report = _measured(chosen, question, stores, workload, size, tick)
        slow = old is not None and not report.interrupted and api.compare(report, old, limit, tick)
    _print(report, json, markdown)
    if plot is not None or html is not None:
        from bigconv.bench import plot as plots

        if plot is not None:
            plots.save(report, plot)
        if html is not None:
            from bigconv.bench import page

            page.save(report, html)
    if report.interrupted:
        raise typer.Exit(130)
    if slow:
        _say(f"slower than the baseline by more than {fail_if_slower}")
        raise typer.Exit(1)


def _measured(
    paths: list[Path], question: Question, stores: str | None, workload: str | None, size: str | None, tick: Tick
) -> Report:
    from bigconv.bench import api

    if workload is not None:
        from bigconv.bench.workload import run_workload
        from bigconv.conversion.parts_cut import parse_size

        return run_workload(workload, parse_size(size or "512MB"), question, tick)
    if stores is not None:
        from bigconv.bench.trial import trial

        return trial(paths, _names(stores) or (), question, tick)
    if len(paths) == 1 and paths[0].suffix == ".json" and paths[0].is_file():
        from bigconv.bench.saved import saved

        paths, question = saved(paths[0], question)
    return api.bench(paths, question, tick)


def _stores_here() -> list[Path]:
    from bigconv import registry
    from bigconv.errors import InputError

    found = sorted(path for path in Path().iterdir() if path.suffix in registry.extensions("store"))
    found = [path for path in found if registry.recognise(path) is not None]
    if not found:
        raise InputError(
            "there is no store in this folder. Name what to measure:\n"
            "bigconv bench train.h5 · bigconv bench a.h5 b.zarr · bigconv bench raw/ --stores h5,zarr,lmdb,mmap"
        )
    return found


def _workers(text: str | None) -> int | tuple[int, ...] | None:
    from bigconv.errors import UsageError

    if text is None:
        return None
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--workers {text}: expected a number, or a list as 0,2,4") from None
    return counts if "," in text else counts[0]


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    from bigconv.transforms.resize import Resize

    parsed = Resize.parse(text)
    return parsed.height, parsed.width


def _check_output(plot: Path | None, html: Path | None) -> None:
    """Before minutes are spent on measuring."""
    from importlib.util import find_spec

    from bigconv import registry
    from bigconv.bench.output import own_output
    from bigconv.errors import UsageError

    for option, path in (("--plot", plot), ("--html", html)):
        if path is None:
            continue
        if find_spec("matplotlib") is None:
            raise registry.missing("matplotlib", "plot", option)
        own_output(option, path)
    if plot is not None and plot.suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"--plot {plot}: expected a file that ends in .svg or .png")


class _Progress:
    """One line on stderr that is written over; every 30 s a line where stderr is no terminal."""

    def __init__(self, quiet: bool) -> None:
        import sys

        self._quiet, self._live = quiet, sys.stderr.isatty()
        self._told = 0.0

    def __enter__(self) -> Tick:
        return self._tick

    def __exit__(self, *_: object) -> None:
        import sys

        if self._live and self._told:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _tick(self, what: str, share: float) -> None:
        import shutil
        import sys
        import time

        from bigconv.cli.text import printable
        from bigconv.conversion.progress import LINE_SECONDS

        now = time.monotonic()
        if self._quiet or (self._told and now - self._told < (0.1 if self._live else LINE_SECONDS)):
            return
        line = f"{min(share, 1):4.0%}  {printable(what)}"
        if self._live:
            sys.stderr.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()
        elif self._told:
            _say(line)
        self._told = now


def _print(report: Report, as_json: bool, as_markdown: bool) -> None:
    import shutil
    import sys

    from bigconv.bench import report as text
    from bigconv.cli.text import printable

    if as_json:
        options.print_json(report.to_json())
        return
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 120
    typer.echo(printable(text.markdown(report) if as_markdown else text.terminal(report, width)))


def _say(message: str) -> None:
    typer.echo(f"bigconv: {message}", err=True)
