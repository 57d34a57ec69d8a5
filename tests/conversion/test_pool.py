"""Workers that die, hang or lag: only the input that does it is lost, and named; order and bytes stay."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trapped import Late, Trapped

import bigconv
from bigconv.block import Block
from bigconv.conversion import build, pool
from bigconv.conversion.plan import Plan
from bigconv.conversion.run import Policy, execute
from bigconv.conversion.task import Item, Work
from bigconv.conversion.transport import Arrivals, Slots
from bigconv.digest import block_digest
from bigconv.errors import FindingsError, InputError
from bigconv.schema import Field, Schema
from bigconv.sources.base import Span
from bigconv.stores.memmap import Memmap
from bigconv.testing import cases


def plan_of(source: Trapped) -> Plan:
    return Plan(source, (), source.schema, source.plan(), Memmap())


def rejects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in build.rejects_file(path).read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_row_once_and_in_order(tmp_path: Path, workers: int) -> None:
    source = Trapped(53, 4, {9: "reject"})
    path = tmp_path / "out.mmap"
    outcome = execute(plan_of(source), path, Policy(workers, max_rejects="1"))
    assert (outcome.rows, outcome.rejects) == (52, 1)
    kept = [i for i in range(53) if i != 9]
    assert np.array_equal(bigconv.open(path)[:]["x"][:, 0], np.array(kept) * 1000)
    serial = tmp_path / "serial.mmap"
    execute(plan_of(source), serial, Policy(0, max_rejects="1"))
    for file in serial.iterdir():
        assert file.read_bytes() == (path / file.name).read_bytes(), file.name


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_start_methods_give_the_same_bytes(tmp_path: Path, method: str) -> None:
    source = Trapped(20, 3, {})
    execute(plan_of(source), tmp_path / "a.mmap", Policy(2, start_method=method))
    execute(plan_of(source), tmp_path / "b.mmap", Policy(0))
    for file in (tmp_path / "a.mmap").iterdir():
        assert file.read_bytes() == (tmp_path / "b.mmap" / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    ("trap", "words"),
    [
        ("segfault", "crashed (SIGSEGV)"),
        ("kill", "was killed (SIGKILL: out of memory?)"),
        ("exit", "exit code 3"),
        ("hang", "took longer than 1 s"),
    ],
)
def test_an_input_that_ends_its_worker_is_lost_alone(tmp_path: Path, trap: str, words: str) -> None:
    """First, middle and last of a span, two in one span: each is named, all others are there."""
    traps = {0: trap, 6: trap, 7: trap, 19: trap}
    source = Trapped(20, 5, traps if trap != "hang" else {6: trap})
    path = tmp_path / "out.mmap"
    policy = Policy(2, max_rejects="4", timeout=1.0 if trap == "hang" else 60.0)
    outcome = execute(plan_of(source), path, policy)
    kept = [i for i in range(20) if i not in source.traps]
    assert outcome.rows == len(kept)
    assert np.array_equal(bigconv.open(path)[:]["x"][:, 0], np.array(kept) * 1000)
    told = rejects(path)
    assert [entry["path"] for entry in told] == [f"{i:04}.bin" for i in sorted(source.traps)]
    assert all(words in entry["error"] for entry in told)


def test_what_a_worker_takes_to_start_is_no_inputs_time(tmp_path: Path) -> None:
    """At first, and where a worker has died: torch takes seconds to import, longer on a busy machine."""
    outcome = execute(plan_of(Late(4, 4, {3: "exit"})), tmp_path / "a.mmap", Policy(1, max_rejects="1", timeout=0.7))
    assert outcome.rows == 3
    [entry] = rejects(tmp_path / "a.mmap")
    assert (entry["path"], "exit code 3" in entry["error"]) == ("0003.bin", True)


def test_errors_of_a_worker_reach_the_user(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the whole span is wrong"):
        execute(plan_of(Trapped(20, 5, {11: "refuse"})), tmp_path / "a.mmap", Policy(2))
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        execute(plan_of(Trapped(20, 5, {11: "bug"})), tmp_path / "b.mmap", Policy(2))
    assert [p.name for p in tmp_path.iterdir()] == []


def test_strict_stops_and_limits_are_held(tmp_path: Path) -> None:
    source = Trapped(40, 4, {3: "reject", 30: "reject"})
    path = tmp_path / "out.mmap"
    with pytest.raises(FindingsError, match=r"2 of 40 inputs[\s\S]*--max-rejects 2"):
        execute(plan_of(source), path, Policy(2))
    assert not path.exists()
    assert len(rejects(path)) == 2
    start = time.perf_counter()
    outcome = execute(plan_of(source), path, Policy(2, max_rejects="5%"))
    assert (outcome.resumed_rows, outcome.rows) == (38, 0)
    assert time.perf_counter() - start < 5
    with pytest.raises(FindingsError, match="strict"):
        execute(plan_of(source), tmp_path / "strict.mmap", Policy(2, strict=True, max_rejects="9"))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_finishes_a_checkpoint(tmp_path: Path) -> None:
    """The command says how to go on, exits with 130, and the next run goes on and gives the same bytes."""
    program = (
        "import sys; sys.path.insert(0, {folder!r})\n"
        "from pathlib import Path\n"
        "from trapped import Trapped\n"
        "from test_pool import plan_of\n"
        "from bigconv.conversion.run import Policy, execute\n"
        "from bigconv.errors import Interrupted\n"
        "try:\n"
        "    execute(plan_of(Trapped(600, 5, {{}}, 0.01)), Path({path!r}), Policy(2),"
        " lambda *_: print('row', flush=True))\n"
        "except Interrupted as stopped:\n"
        "    print(stopped, flush=True)\n"
        "    raise SystemExit(stopped.exit_code)\n"
    ).format(folder=str(Path(__file__).parent), path=str(tmp_path / "out.mmap"))
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "row\n"
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The same command goes on from there" in output
    source = Trapped(600, 5, {})
    outcome = execute(plan_of(source), tmp_path / "out.mmap", Policy(0))
    assert 0 < outcome.resumed_rows < 600
    assert np.array_equal(bigconv.open(tmp_path / "out.mmap")[:]["x"][:, 0], np.arange(600) * 1000)


def test_nothing_stays_in_shared_memory(tmp_path: Path) -> None:
    from bigconv.conversion import transport

    before = set(os.listdir(transport._FOLDER))
    execute(plan_of(Trapped(30, 3, {7: "kill"})), tmp_path / "out.mmap", Policy(2, max_rejects="1"))
    deadline = time.monotonic() + 20  # slots of tests beside this one come and go
    new = {name for name in set(os.listdir(transport._FOLDER)) - before if name.startswith("bigconv-")}
    while new and time.monotonic() < deadline:
        time.sleep(0.05)
        new &= set(os.listdir(transport._FOLDER))
    assert new == set()


def test_a_script_without_a_main_guard_is_not_run_again(tmp_path: Path) -> None:
    """What people write first: a plain script that converts at its top level, with workers."""
    from PIL import Image

    (tmp_path / "raw").mkdir()
    for i in range(600):
        Image.fromarray(np.full((4, 4, 3), i % 250, np.uint8)).save(tmp_path / "raw" / f"{i}.png")
    script = tmp_path / "script.py"
    script.write_text(
        f"print('hello')\nimport bigconv\nbigconv.convert({str(tmp_path / 'raw')!r}, 'out.h5', workers=2)\n"
    )
    result = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "hello\n", "")


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memory without a name")
def test_blocks_on_their_way_leave_nothing_behind(tmp_path: Path) -> None:
    """All processes killed at once: what was on its way used to stay in /dev/shm for ever."""
    before = set(os.listdir("/dev/shm"))
    block = cases.block(Schema((Field("x", "uint8", (900,)), Field("t", "uint16", (None,)))), 20)
    slots, arrivals = Slots(), Arrivals(block.schema)
    shipment = slots.pack(block, b"", b"")
    assert not [name for name in set(os.listdir("/dev/shm")) - before if name.startswith("bigconv")]
    assert cases.same_block(arrivals.unpack(shipment), block)
    slots.free(shipment.slot)
    assert slots.pack(block, b"", b"").path is None  # the same memory again


def test_blocks_that_went_with_their_worker_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies takes what the parent hasn't seen yet with it: no row is lost, none comes twice."""
    original, lost = Arrivals.take_over, [2]

    def gone(self: Arrivals, shipment: Any) -> None:
        if shipment.path is not None and lost[0]:
            lost[0] -= 1
            raise FileNotFoundError(shipment.path)
        original(self, shipment)

    monkeypatch.setattr(Arrivals, "take_over", gone)
    source = Trapped(40, 5, {})
    plan = Plan(source, (), source.schema, source.plan(), Memmap())
    outcome = execute(plan, tmp_path / "a.mmap", Policy(2))
    assert (outcome.rows, outcome.rejects, lost[0]) == (40, 0, 0)
    assert bigconv.open(tmp_path / "a.mmap")[:]["x"][:, 0].tolist() == [1000 * i for i in range(40)]


def test_what_comes_behind_a_block_that_went_with_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second block lies in a slot that nobody has seen when its worker ends, the third in one that the parent
    holds: the third must not be taken, or the second would be lost. A filter's rows aren't counted, so nobody would
    notice."""
    source = Trapped(6, 6, {})
    blocks = [Block(source.schema, source.columns(i, i + 1)) for i in range(3)]
    real, first, unpacked = pool.worker.main, multiprocessing.Event(), pool._unpacked

    def scripted(pipe: Connection, work: Work, memory: int | None, environment: dict[str, str]) -> None:
        if first.is_set():
            return real(pipe, work, memory, environment)
        first.set()
        number = next(message[1] for message in iter(pipe.recv, None) if message[0] == "span")
        slots = Slots()
        pipe.send(("item", number, 1, slots.pack(blocks[0], block_digest(blocks[0]), b""), ()))
        second = slots.pack(blocks[1], block_digest(blocks[1]), b"")
        slots.free(next(message[1] for message in iter(pipe.recv, None) if message[0] == "free"))
        pipe.send(("item", number, 2, second, ()))
        pipe.send(("item", number, 3, slots.pack(blocks[2], block_digest(blocks[2]), b""), ()))
        return os._exit(1)

    def late(member: Any, upto: int, *rest: Any) -> Item:
        if upto > 1:
            member.process.join()
        return unpacked(member, upto, *rest)

    monkeypatch.setattr(pool.worker, "main", scripted)
    monkeypatch.setattr(pool, "_unpacked", late)
    items = pool.run_parallel(Work(source, (), source.schema), [Span(0, 6)], 1, None, "fork")
    rows = [int(row) for _, item in items if item and item.block for row in np.asarray(item.block["x"])[:, 0]]
    assert rows == [0, 1000, 2000, 3000, 4000, 5000]


def test_workers_have_the_environment_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what was set after the fork server had started, such as credentials in a notebook."""
    (tmp_path / "told.py").write_text(
        "import os\nimport numpy as np\n"
        "def told(row):\n    return {'x': row['x'] + int(os.environ['BIGCONV_TOLD']) + ('BIGCONV_OLD' in os.environ)}\n"
    )
    np.save(tmp_path / "x.npy", np.zeros((40, 3)))
    monkeypatch.setenv("BIGCONV_OLD", "1")
    for told in ("1", "20"):
        monkeypatch.setenv("BIGCONV_TOLD", told)
        dest = tmp_path / f"{told}.mmap"
        bigconv.convert(tmp_path / "x.npy", dest, map=f"{tmp_path / 'told.py'}:told", workers=2)
        assert set(bigconv.open(dest)[:]["x"].reshape(-1).tolist()) == {int(told) + ("BIGCONV_OLD" in os.environ)}
        monkeypatch.delenv("BIGCONV_OLD", raising=False)
