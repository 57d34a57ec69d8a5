"""The command line: commands, one error boundary."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from traceback import walk_tb
from typing import Annotated, Any

import typer

from bigconv.cli import bench, convert, help, inspect, options, shard  # noqa: A004  it is what it draws
from bigconv.errors import READER_LEFT

app = typer.Typer(
    name="bigconv",
    cls=help.Group,
    help="Turn raw files into training-ready stores, prove that nothing was lost, read them back at memory speed.",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("convert", cls=options.InOrder)(convert.command)
app.command("shard", cls=help.Command)(shard.command)
app.command("inspect", cls=help.Command)(inspect.command)
app.command("bench", cls=help.Command)(bench.command)

REFUSED = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
PRINTERS = ("click", "typer", "rich", "tqdm")
BUG = 70  # EX_SOFTWARE of sysexits.h


def main() -> None:
    """Entry point of `bigconv`: exit codes as the documentation lists them."""
    debug = "--debug" in sys.argv
    _open_streams()
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="bigconv", standalone_mode=False)
        if code == INTERRUPTED:  # typer's own, for Ctrl-C
            _say("interrupted")
        sys.exit(code)
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        sys.exit(INTERRUPTED)
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
        if hasattr(
            error, "format_message"
        ):  # what typer raises for what was typed; each of its versions has it elsewhere
            _say(_typed_wrong(error))
            sys.exit(REFUSED)
        if isinstance(error, BrokenPipeError) and not _printing(error):
            _say(
                "a process that this one had started is gone; out of memory? The same command goes on where it stopped"
            )
            sys.exit(REFUSED)
        if isinstance(error, BrokenPipeError):
            sys.exit(READER_LEFT)
        if isinstance(error, OSError) and _printing(error):
            _say(f"stdout: can't be written: {error.strerror}")
            sys.exit(REFUSED)
        if isinstance(error, MemoryError):
            _say("out of memory. With fewer --workers each has more; the same command goes on where it stopped")
            sys.exit(REFUSED)
        _say(f"a bug in bigconv: {type(error).__name__}: {error}\nRun it again with --debug and report what it prints.")
        sys.exit(BUG)


def _open_streams() -> None:
    """Open what is closed of the standard streams, on nothing. Else the next file, a store, would get the number of
    one, and with it what libraries print."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            made = os.open(os.devnull, os.O_RDWR)
            if made != number:
                os.dup2(made, number)
                os.close(made)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  as long as the process


def _printing(error: BaseException) -> bool:
    """Whether it was raised by what prints for us, as on a full disk that stdout leads to."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] in PRINTERS


def _typed_wrong(error: Any) -> str:
    """What is wrong with the command line, and who says what would be right."""
    message: str = error.format_message().strip().rstrip(".")
    command = error.ctx.command_path if getattr(error, "ctx", None) is not None else "bigconv"
    return f"{message[:1].lower()}{message[1:]}.\nSee: {command} --help"


def _version(asked: bool) -> None:
    if asked:
        from bigconv import __version__

        typer.echo(f"bigconv {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """As the app says."""


def _say(message: str) -> None:
    from bigconv.cli.text import printable

    with suppress(OSError):  # the exit code says it, too
        print(f"bigconv: {printable(message)}", file=sys.stderr)  # noqa: T201
