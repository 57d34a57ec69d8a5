"""Workers, start methods, hash seed, time zone, locale and the order of folders leave no trace in the bytes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.torture import Case
from tests.torture._runs import SUFFIXES, contents, convert, images, request

START = (
    "import sys\nfrom pathlib import Path\n"
    "from bigconv.conversion.api import Request\nfrom bigconv.conversion.run import Policy\n"
    "Request((Path({source!r}),), Path({dest!r}), policy=Policy(2, start_method={method!r})).run()\n"
)


def run(scale: float) -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        source = images(root / "raw", 300 if scale >= 1 else 150, mixed=True)
        shuffled = root / "other" / "raw"  # the same files, made in another order
        files = sorted(p for p in source.rglob("*") if p.is_file())
        random.Random(1).shuffle(files)
        for file in files:
            target = shuffled / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
        for suffix in SUFFIXES:
            whole = root / f"whole{suffix}"
            request(source, whole).run()
            expected = contents(whole)
            ways: dict[str, tuple[list[object], dict[str, str]]] = {
                f"{n} workers": ([source, "--workers", n], {}) for n in (1, 2, 7)
            }
            ways["hash seed"] = ([source, "--workers", 2], {"PYTHONHASHSEED": "123"})
            ways["time zone and locale"] = ([source, "--workers", 1], {"TZ": "Asia/Tokyo", "LC_ALL": "C", "LANG": "C"})
            ways["order of the folder"] = ([shuffled, "--workers", 2], {})
            if scale < 1:  # all at once
                everything = {key: value for _, env in ways.values() for key, value in env.items()}
                ways = {"all at once": ([shuffled, "--workers", 2], everything)}
            for way, (arguments, env) in ways.items():
                dest = root / f"{way.replace(' ', '-')}" / f"whole{suffix}"
                dest.parent.mkdir(exist_ok=True)
                done = convert(arguments[0], dest, *arguments[1:], env=env)
                same = done.returncode == 0 and contents(dest) == expected
                yield Case(f"{suffix} {way}", "" if same else done.stderr or "other bytes")
                shutil.rmtree(dest.parent)
            for method in ("fork", "spawn", "forkserver") if scale >= 1 else ():
                dest = root / method / f"whole{suffix}"
                dest.parent.mkdir()
                program = START.format(source=str(source), dest=str(dest), method=method)
                done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
                same = done.returncode == 0 and contents(dest) == expected
                yield Case(f"{suffix} {method}", "" if same else done.stderr or "other bytes")
                shutil.rmtree(dest.parent)
