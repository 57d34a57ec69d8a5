"""`python tests/lowest.py`: the lowest version of each package that bigconv needs, for pip; torch as it is pinned."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOUND = re.compile(r"([A-Za-z0-9_.-]+)(\[\w+\])?>=([\w.]+)")
PINNED = ("dev", "torch", "s3-test")  # extras: tools, and what is too large to have in two versions
LEFT_OUT = ("import-linter", "mypy", "ruff", "gcsfs")  # linters need no second run; no test talks to GCS


def requirements() -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    extras = project["optional-dependencies"]
    for extra, needs in {"": project["dependencies"], **extras}.items():
        for need in needs:
            found = BOUND.fullmatch(need)
            if found is None or found[1] in LEFT_OUT:
                continue
            name, extras_of, least = found.groups(default="")
            yield f"{name}{extras_of}=={pins[name] if extra in PINNED else least}"


if __name__ == "__main__":
    print("\n".join(requirements()))
    print("aiobotocore[boto3]")  # names the boto3 that goes with s3fs: pip would try sixty others
