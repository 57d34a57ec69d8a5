"""Programs run in processes forked from one that has imported what takes long: torch alone takes longer than most.

`Warm` is the side of the tests. The server, this module run as a program, reads a request a line from its standard
input and answers with an exit status; it forks for each, so that programs share nothing but the imports. What they see
is what `bigconv …` or `python -c …` sees, with two differences: modules that are imported already come at once, and
the workers of a conversion are forked, too, instead of asked from a fork server that would import them again.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

HEAVY = (
    *("torch", "numpy", "h5py", "lmdb", "zarr", "PIL.Image", "pyarrow", "rich.console", "typer", "bigconv.runtime"),
    *(f"bigconv.cli.{name}" for name in ("app", "convert", "shard", "inspect", "bench", "render")),
    *("bigconv.conversion.request", "bigconv.conversion.parts_engine", "bigconv.sources.images"),
)
LIMIT_SECONDS = 120.0


class Warm:
    """A server, and programs that run in it, one at a time."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def command(
        self, words: Sequence[object], folder: Path, limit: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`bigconv`, with these words behind it. `limit`: bytes that a file may have."""
        return self._run({"words": [str(word) for word in words], "limit": limit}, folder)

    def python(self, code: str, folder: Path, whole: bool = False) -> subprocess.CompletedProcess[str]:
        """`python -c`. `whole`: the interpreter goes through all of its end, which takes longer than most programs."""
        return self._run({"code": code, "whole": whole}, folder)

    def _run(self, request: Mapping[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory() as out:
            request = {**request, "folder": str(folder), "out": out}
            assert self._server.stdin is not None
            assert self._server.stdout is not None
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            status = int(self._server.stdout.readline())
            told, said = (Path(out, name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(str(request), status, told, said)

    def close(self) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write("null\n")  # its end says nothing while a forked child of ours has it too
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


def serve() -> None:
    for name in HEAVY:
        with suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        if request is None:
            return
        child = os.fork()
        if child == 0:
            status = _become(request)
            if request.get("whole"):
                sys.exit(status)
            threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as at the end of an interpreter
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        print(_status(child), flush=True)


def _status(child: int) -> int:
    """Exit status of a program; one that takes too long is killed."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.005)


def _become(request: Mapping[str, Any]) -> int:
    """Run a program in this process; its exit status."""
    os.setpgid(0, 0)
    if request.get("limit") is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
    for number, name in enumerate(("/dev/null", "stdout", "stderr")):
        file = os.open(os.path.join(request["out"], name), os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
    os.chdir(request["folder"])
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    try:
        if "code" in request:
            sys.argv, sys.path[0] = ["-c"], ""
            exec(compile(request["code"], "<snippet>", "exec"), vars(main))
        else:
            sys.argv = ["bigconv", *request["words"]]
            _fork_workers()
            from bigconv.cli.app import main as bigconv

            bigconv()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  as the interpreter does at its end
        traceback.print_exc()
        return 1
    return 0


def _fork_workers() -> None:
    from bigconv.conversion import parts_engine, pool

    for module in (pool, parts_engine):
        module.best_method = lambda: "fork"  # type: ignore[attr-defined]


if __name__ == "__main__":
    serve()
