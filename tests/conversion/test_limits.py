"""--memory-limit: fewer workers, and an input that needs too much costs itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from trapped import Trapped
from typer.testing import CliRunner

import bigconv
from bigconv.cli.app import app
from bigconv.conversion import build
from bigconv.conversion.parts_request import parts_job
from bigconv.conversion.parts_run import execute_parts
from bigconv.conversion.plan import Plan
from bigconv.conversion.run import Policy, execute
from bigconv.errors import UsageError
from bigconv.stores.memmap import Memmap

LIMIT = 700 << 20  # 300 MiB for the command, 200 MiB each for two workers


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA holds maps that aren't files on Linux only")
@pytest.mark.parametrize("parts", [False, True], ids=["one store", "parts"])
def test_an_input_that_needs_too_much_is_named(tmp_path: Path, parts: bool) -> None:
    source = Trapped(12, 3, {7: "hoard"})
    plan = Plan(source, (), source.schema, source.plan(), Memmap(), shards={"shards": 2} if parts else None)
    policy = Policy(2, max_rejects="1", memory_limit=LIMIT)
    dest = tmp_path / "out"
    outcome = execute_parts(parts_job(plan, dest, policy)) if parts else execute(plan, dest, policy)
    assert (outcome.manifest.rows, outcome.rejects) == (11, 1)
    [reject] = [json.loads(line) for line in build.rejects_file(dest).read_text().splitlines()]
    assert reject["path"] == "0007.bin"
    assert reject["error"] == "the worker that read it found no more memory (--memory-limit)"
    free = Policy(2, max_rejects="1")
    assert execute(Plan(source, (), source.schema, source.plan(), Memmap()), tmp_path / "free.mmap", free).rejects == 0


def test_as_many_workers_as_there_is_room_for() -> None:
    assert Policy(8, memory_limit=LIMIT).workers == 2
    assert Policy(8, memory_limit=LIMIT).worker_bytes == 200 << 20
    assert Policy(1, memory_limit=LIMIT).worker_bytes == 400 << 20
    assert Policy(8).workers == 8
    assert Policy(8).worker_bytes is None
    with pytest.raises(UsageError, match="expected 450MiB or more"):
        Policy(8, memory_limit=400 << 20)
    with pytest.raises(UsageError, match="leave out --workers 0"):
        Policy(0, memory_limit=LIMIT)


def test_what_people_type(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(20))
    words = ["convert", str(tmp_path / "x.npy"), str(tmp_path / "x.mmap"), "--memory-limit"]
    bad = CliRunner().invoke(app, [*words, "lots"])
    assert isinstance(bad.exception, UsageError)
    assert str(bad.exception) == "--memory-limit lots: expected bytes such as 256MB, 1GB or 512MiB"
    assert CliRunner().invoke(app, [*words, "1GB"]).exit_code == 0
    assert bigconv.convert(tmp_path / "x.npy", tmp_path / "y.mmap", workers=1, memory_limit="1GB").rows == 20
