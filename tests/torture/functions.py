"""Functions of users that raise, hang, end or crash the process, change what they return or what they are given:
the sample is named, nothing is published by accident, and without the bad samples the rest is whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bigconv.conversion.request import Request
from bigconv.conversion.run import Policy
from bigconv.errors import BigconvError, FindingsError
from bigconv.view.opening import open_store
from bigconv.view.report import verify
from bigconv.view.table import StoreView
from tests.torture import Case
from tests.torture._runs import SUFFIXES, workspace

ROWS, BAD = 40, (17, 31)  # rows that the function is bad for: behind those that it is tried on
TIMEOUT = 3.0  # seconds; the hanging ones hang for longer
#: What the function does for a bad row, and a word of what is said about it.
BEHAVIOURS = {
    "raises": ("raise KeyError('mine')", "KeyError"),
    "raises an odd error": ("raise type('Odd', (BaseException,), {})('mine')", "Odd"),
    "hangs": ("time.sleep(100)", "longer"),
    "exits": ("sys.exit(3)", "SystemExit"),
    "ends the process": ("os._exit(3)", "exit code 3"),
    "segfaults": ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    "is killed": ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    "other dtype": ("return {'array': row['array'].astype('f8')}", "float64"),
    "other shape": ("return {'array': row['array'][:2]}", "got int32 (2)"),
    "other field": ("return {'arr': row['array']}", "arr"),
    "no row": ("return 7", "int"),
    "an object": ("return {'array': np.array([None] * 4)}", "object"),
    "no memory": ("raise MemoryError", ""),
}
GOOD = {
    "changes its argument": "row['array'] *= 2; return row",
    "returns a view": "return {'array': (row['array'] * 2)[::-1][::-1]}",
    "uses one array again": "np.multiply(row['array'], 2, out=KEPT); return {'array': KEPT}",
    "prints": "print('x'); return {'array': row['array'] * 2}",
}
FILE = """
import os, signal, sys, time
import numpy as np
KEPT = np.zeros(4, np.int32)
def f(row):
    if row['array'][0] in {bad}:
        {act}
    {good}
"""


def run(scale: float) -> Iterator[Case]:
    quick = ("segfaults", "other dtype")
    with workspace() as root:
        raw = root / "raw"
        raw.mkdir()
        for i in range(ROWS):
            np.save(raw / f"{i:02}.npy", np.arange(i, i + 4, dtype=np.int32))
        for number, (name, (act, said)) in enumerate(BEHAVIOURS.items()):
            if scale >= 1 or name in quick:
                for suffix in SUFFIXES if scale >= 1 else (SUFFIXES[number % 4],):
                    place = root / f"bad {number}{suffix}"
                    place.mkdir()
                    good = "return {'array': row['array'] * 2}"
                    yield Case(f"{name} {suffix}", _bad(raw, place, suffix, act, good, said, name))
        for number, (name, good) in enumerate(GOOD.items()):
            if scale >= 1:
                place = root / f"good {number}"
                place.mkdir()
                yield Case(name, _good(raw, place, good))


def _request(raw: Path, place: Path, suffix: str, act: str, good: str, bad: tuple[int, ...], **policy: str) -> Request:
    file = place / "mine.py"
    file.write_text(FILE.format(bad=bad or "()", act=act, good=good))
    steps = (("map", f"{file}:f"),)
    return Request((raw,), place / f"out{suffix}", steps=steps, policy=Policy(2, timeout=TIMEOUT, **policy))


def _bad(raw: Path, place: Path, suffix: str, act: str, good: str, said: str, name: str) -> str:
    request = _request(raw, place, suffix, act, good, BAD)
    try:
        request.run()
        return "published as if nothing had been"
    except FindingsError:
        pass
    except BigconvError as error:
        return f"{type(error).__name__}: {error}"
    except MemoryError:
        return "" if name == "no memory" and not request.dest.exists() else "MemoryError"
    except RuntimeError as error:  # a bug of the function's that is no sample's
        meant = name == "no memory" and not request.dest.exists()
        return "" if meant else f"RuntimeError: {error}"
    if request.dest.exists():
        return "published"
    rejects = [json.loads(line) for line in Path(f"{request.dest}.rejects.jsonl").read_text().splitlines()]
    if [entry["path"] for entry in rejects] != [f"{i:02}.npy" for i in BAD]:
        return f"named {rejects}"
    if any(said not in entry["error"] for entry in rejects):
        return f"said {rejects[0]['error']}"
    _request(raw, place, suffix, act, good, BAD, max_rejects="2").run()
    return _wrong(request.dest, [i for i in range(ROWS) if i not in BAD])


def _good(raw: Path, place: Path, good: str) -> str:
    request = _request(raw, place, ".mmap", "pass", good, ())
    request.run()
    return _wrong(request.dest, list(range(ROWS)))


def _wrong(dest: Path, rows: list[int]) -> str:
    findings = verify(open_store(dest))
    if findings:
        return str(findings[0])
    expected = 2 * (np.array(rows)[:, None] + np.arange(4))
    found = StoreView([dest])[:]["array"]
    return "" if np.array_equal(np.asarray(found), expected) else "other values"
