"""The command line: commands, one error boundary."""

from __future__ import annotations

import sys

import typer

from bigconv.cli import bench, convert, inspect, options, shard
from bigconv.errors import READER_LEFT

app = typer.Typer(
    name="bigconv",
    help="Turn raw files into training-ready stores, prove that nothing was lost, read them back at memory speed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("convert", cls=options.InOrder)(convert.command)
app.command("shard")(shard.command)
app.command("inspect")(inspect.command)
app.command("bench")(bench.command)

REFUSED = 2
BUG = 70  # EX_SOFTWARE of sysexits.h


def main() -> None:
    """Entry point of `bigconv`: exit codes as the documentation lists them."""
    debug = "--debug" in sys.argv
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)
    except SystemExit as ended:
        # typer ends with 1 when the pipe is closed, which here would mean findings; it leaves this wrapper behind
        if ended.code == 1 and "PacifyFlush" in type(sys.stdout).__name__:
            sys.exit(READER_LEFT)
        raise
    except Exception as error:  # the one boundary of the command line
        from bigconv.errors import BigconvError

        if debug:
            raise
        if isinstance(error, BigconvError):
            _say(str(error))
            sys.exit(error.exit_code)
        if isinstance(error, BrokenPipeError):
            sys.exit(READER_LEFT)
        if isinstance(error, MemoryError):
            _say("out of memory. With fewer --workers each has more; the same command goes on where it stopped")
            sys.exit(REFUSED)
        _say(f"a bug in bigconv: {type(error).__name__}: {error}\nRun it again with --debug and report what it prints.")
        sys.exit(BUG)


def _say(message: str) -> None:
    from bigconv.cli.text import printable

    print(f"bigconv: {printable(message)}", file=sys.stderr)  # noqa: T201
