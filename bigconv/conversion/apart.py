"""A call in a process of its own: what a user's function does there, also ending the process, is an error here."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from bigconv.conversion.pool import cause, no_main, serving
from bigconv.conversion.worker import surround
from bigconv.errors import BigconvError, UsageError

PATIENCE_SECONDS = 120.0  # at least, for what isn't a user's function: importing torch may take long


def call_apart(function: Callable[..., Any], arguments: tuple[Any, ...], timeout: float | None) -> Any:
    """`function(tell, *arguments)` in a fresh process.

    It calls `tell(doing, limited)` before what may take long; if that is `limited`, it may take `timeout` seconds.
    Raises what it raises, and `UsageError` saying what it was doing when the process ended or when it took too long.
    """
    context: Any = multiprocessing.get_context("forkserver" if serving() else "spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(theirs, function, arguments, dict(os.environ)), daemon=True)
    doing, limited = "starting", False
    try:
        with no_main():
            process.start()
        theirs.close()
        while True:
            limit = timeout if limited or timeout is None else max(timeout, PATIENCE_SECONDS)
            if limit is not None and not ours.poll(limit):
                raise UsageError(f"{doing}: took longer than {limit:g} s (--timeout)")
            try:
                kind, value = ours.recv()
            except EOFError:
                process.join(5)
                raise UsageError(f"{doing}: the process {cause(process.exitcode)}") from None
            if kind == "doing":
                doing, limited = value
            elif kind == "failed":
                raise value
            else:
                return value
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def _main(
    pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...], environment: Mapping[str, str]
) -> None:
    surround(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    sys.stdout = sys.stderr  # stdout is the command's: what a function prints goes with the messages

    def tell(doing: str, limited: bool) -> None:
        pipe.send(("doing", (doing, limited)))

    try:
        result = ("done", function(tell, *arguments))
    except BigconvError as error:
        result = ("failed", error)
    except Exception as error:  # noqa: BLE001  told to the parent, which raises it
        result = ("failed", RuntimeError(f"{type(error).__name__}: {error}"))
    pipe.send(result)
