"""Every engine does the same: bytes, rejects, what a killed process costs, going on, and stopping."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mortal import Mortal
from typer.testing import CliRunner

import bigconv
from bigconv import fsio
from bigconv.cli.app import app
from bigconv.conversion import engine_dask, ranks
from bigconv.conversion.build import rejects_file
from bigconv.conversion.parts import Job, read_result
from bigconv.conversion.parts_request import parts_job
from bigconv.conversion.parts_run import execute_parts
from bigconv.conversion.plan import Plan
from bigconv.conversion.ranks import Rank
from bigconv.conversion.run import Outcome, Policy
from bigconv.errors import FindingsError, Interrupted, MissingPackage, OutputError, StoreError, UsageError
from bigconv.locks import Lock
from bigconv.view.opening import open_store
from bigconv.view.report import verify

HERE = Path(__file__).parent
ENGINES = ("serial", "local", "dask", "ranks")
APART = ENGINES[1:]  # those that read in a process of its own
PARTS, RANKS = 4, 2


def job_of(dest: Path, source: Mortal, policy: Policy, store: str = "memmap") -> Job:
    from bigconv import registry

    plan = Plan(source, (), source.schema, source.plan(), registry.load("store", store)(), shards={"shards": PARTS})
    return parts_job(plan, dest, policy)


def convert(engine: str, dest: Path, source: Mortal, store: str = "memmap", **policy: Any) -> Outcome:
    """To the end, by an engine; `ranks`: three of them, one after the other, then `--finalize`."""
    if engine != "ranks":
        return execute_parts(job_of(dest, source, Policy(2, engine=engine, **policy), store))
    for number in range(RANKS):
        made = execute_parts(job_of(dest, source, Policy(1, rank=Rank(number, RANKS), **policy), store))
        assert (made.status, made.manifest.content_digest, dest.exists()) == ("made", "", False)
    return execute_parts(job_of(dest, source, Policy(2, finalize=True, **policy), store))


def contents(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in fsio.files_below(path)}


def rejects(dest: Path) -> list[tuple[str, str]]:
    lines = rejects_file(dest).read_text().splitlines()
    return [(entry["path"], entry["error"]) for entry in map(json.loads, lines)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """40 inputs, all good, as one process makes them."""
    path = tmp_path_factory.mktemp("serial") / "out"
    convert("serial", path, Mortal(40, 4, {}))
    return contents(path)


@pytest.mark.parametrize("engine", APART)
def test_the_same_bytes(tmp_path: Path, engine: str, expected: dict[str, bytes]) -> None:
    """The whole directory: parts of fixed and of varying rows, digests, manifest."""
    outcome = convert(engine, tmp_path / "out", Mortal(40, 4, {}))
    assert contents(tmp_path / "out") == expected
    assert os.listdir(tmp_path) == ["out"]
    assert (outcome.status, outcome.manifest.rows) == ("done", 40)
    assert verify(open_store(tmp_path / "out")) == []
    assert np.array_equal(bigconv.open(tmp_path / "out")[:]["x"][:, 0], np.arange(40) * 1000)


@pytest.mark.parametrize("engine", APART)
def test_killed_workers_cost_the_inputs_that_kill_them(tmp_path: Path, engine: str) -> None:
    """One is killed in the middle, and costs nothing; two inputs end whoever reads them, and are named."""
    traps = {0: "segfault", 29: "kill"}
    source = Mortal(40, 4, traps, last=18, died=str(tmp_path / "died"))
    outcome = convert(engine, tmp_path / "out", source, max_rejects="2")
    assert (tmp_path / "died").exists()
    assert (outcome.manifest.rows, outcome.rejects) == (38, 2)
    assert [path for path, _ in rejects(tmp_path / "out")] == ["0000.bin", "0029.bin"]
    assert "crashed (SIGSEGV)" in rejects(tmp_path / "out")[0][1]
    convert("serial", tmp_path / "serial", Mortal(40, 4, dict.fromkeys(traps, "reject")), max_rejects="2")
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")


def test_an_input_that_hangs_on_a_cluster_costs_itself(tmp_path: Path) -> None:
    outcome = convert("dask", tmp_path / "out", Mortal(8, 2, {5: "hang"}), max_rejects="1", timeout=0.7)
    assert outcome.manifest.rows == 7
    assert rejects(tmp_path / "out") == [("0005.bin", "took longer than 0.7 s")]


@pytest.mark.parametrize("engine", ENGINES)
def test_too_many_rejects(tmp_path: Path, engine: str) -> None:
    """Nothing is published, and nothing is made again when they are allowed."""
    source, dest = Mortal(40, 4, {3: "reject", 34: "reject"}), tmp_path / "out"
    with pytest.raises(FindingsError, match=r"2 of 40 inputs[\s\S]*--max-rejects 2"):
        convert(engine, dest, source, max_rejects="1")
    assert not dest.exists()
    assert rejects(dest) == [("0003.bin", "bad"), ("0034.bin", "bad")]
    outcome = convert(engine, dest, source, max_rejects="2")
    assert (outcome.manifest.rows, outcome.resumed_rows, outcome.rows) == (38, 38, 0)
    convert("serial", tmp_path / "serial", source, max_rejects="2")
    assert contents(dest) == contents(tmp_path / "serial")


@pytest.mark.parametrize("engine", ENGINES)
def test_strict_and_bugs_reach_the_user(tmp_path: Path, engine: str) -> None:
    with pytest.raises(FindingsError, match=r"--strict[\s\S]*0030.bin: bad"):
        convert(engine, tmp_path / "strict", Mortal(40, 4, {30: "reject"}), strict=True, max_rejects="9")
    with pytest.raises(Exception, match="a bug"):
        convert(engine, tmp_path / "bug", Mortal(40, 4, {39: "bug"}))
    assert not (tmp_path / "strict").exists()
    assert not (tmp_path / "bug").exists()


PROGRAM = """
import sys; sys.path.insert(0, {here!r})
from pathlib import Path
from mortal import Mortal
from test_engines import job_of
from bigconv.conversion.parts_run import execute_parts
from bigconv.conversion.ranks import Rank
from bigconv.conversion.run import Policy
execute_parts(job_of(Path({dest!r}), Mortal(40, 1, {traps}, 0.05), {policy}))
"""


def started(dest: Path, policy: str, traps: dict[int, str]) -> subprocess.Popen[bytes]:
    """A slow run of all parts in a process of its own."""
    program = PROGRAM.format(here=str(HERE), dest=str(dest), policy=policy, traps=traps)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def until(what: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 60
    while not what():
        if process is not None and process.poll() is not None:
            assert process.stderr is not None
            raise AssertionError(process.stderr.read().decode())
        assert time.monotonic() < deadline
        time.sleep(0.02)


def killed_after_a_part(dest: Path, policy: str, number: int = 0, others: str = "hang") -> None:
    """Kill a run when a part is done and others aren't: each of them has an input that hangs, as long as nobody says
    otherwise."""
    job = job_of(dest, Mortal(40, 1, {}), Policy(1))
    process = started(dest, policy, {10 * part + 5: others for part in range(PARTS) if part != number})
    until(lambda: read_result(job, job.tasks[number]), process)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("engine", ["serial", "local", "dask"])
def test_going_on_when_the_parent_was_killed(tmp_path: Path, engine: str) -> None:
    killed_after_a_part(tmp_path / "out", f"Policy(2, engine={engine!r})")
    assert not (tmp_path / "out").exists()
    outcome = convert(engine, tmp_path / "out", Mortal(40, 1, {}))
    assert 10 <= outcome.resumed_rows < 40
    convert("serial", tmp_path / "serial", Mortal(40, 1, {}))
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")


def test_a_rank_that_was_killed_goes_on(tmp_path: Path) -> None:
    dest, source = tmp_path / "out", Mortal(40, 1, {})
    killed_after_a_part(dest, "Policy(0, rank=Rank(1, 2))", number=1)
    other = execute_parts(job_of(dest, source, Policy(0, rank=Rank(0, 2))))
    assert [part.number for part in other.datasets[""].parts] == [0, 2]  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match=r"1 of 4 parts are not made yet: part-00003.\n.*--rank 1/2 in place"):
        execute_parts(job_of(dest, source, Policy(0, finalize=True)))
    assert execute_parts(job_of(dest, source, Policy(0, rank=Rank(1, 2)))).resumed_rows >= 10
    execute_parts(job_of(dest, source, Policy(0, finalize=True)))
    convert("serial", tmp_path / "serial", source)
    assert contents(dest) == contents(tmp_path / "serial")
    assert sorted(os.listdir(tmp_path)) == ["out", "serial"]


@pytest.mark.parametrize("engine", ["serial", "local", "dask"])
def test_ctrl_c_leaves_work_to_go_on_from(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_dask, "TELL_SECONDS", 0.1)
    dest, source = tmp_path / "out", Mortal(40, 1, {}, 0.2)
    pressed: list[int] = []

    def press(rows: int, _bytes: int, _rejects: int) -> None:
        if rows and not pressed:
            pressed.append(rows)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="The same command goes on from there"):
        execute_parts(job_of(dest, source, Policy(2, engine=engine)), press)
    assert pressed
    assert not dest.exists()
    seen: list[int] = []
    execute_parts(
        job_of(dest, Mortal(40, 1, {}), Policy(0)), lambda rows, nbytes, _: seen.append(rows if not nbytes else 0)
    )
    assert sum(seen) > 0  # rows from before
    convert("serial", tmp_path / "serial", Mortal(40, 1, {}))
    assert contents(dest) == contents(tmp_path / "serial")


# -- ranks -----------------------------------------------------------------------------------------------------------


def test_ranks_that_begin_at_once(tmp_path: Path) -> None:
    """The commands of a job array, all at the same moment on an empty folder."""
    x = np.arange(70_000).reshape(7000, 10)
    np.save(tmp_path / "x.npy", x)
    words = ["convert", "x.npy", "out", "--shards", "7", "--workers", "0"]
    start = [sys.executable, "-c", "from bigconv.cli.app import main; main()", *words]
    array = [
        subprocess.Popen([*start, "--rank", f"{i}/3"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for i in range(3)
    ]
    told = [process.communicate(timeout=120)[0].decode() for process in array]
    assert [process.returncode for process in array] == [0] * 3, told
    assert "rank 1/3 made 2,000 rows in 2 parts" in " ".join(told[1].split())
    done = subprocess.run([*start, "--finalize", "--json"], cwd=tmp_path, capture_output=True, check=True)
    assert json.loads(done.stdout)["rows_resumed"] == 7000
    bigconv.convert(tmp_path / "x.npy", tmp_path / "plain", shards=7, workers=0)
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_nobody_publishes_while_a_rank_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "END_SECONDS", 0.1)
    monkeypatch.setattr(ranks, "BEGIN_SECONDS", 0.1)
    dest, source = tmp_path / "out", Mortal(20, 4, {})
    for number in range(2):
        execute_parts(job_of(dest, source, Policy(0, rank=Rank(number, 2))))
    job = job_of(dest, source, Policy(0, finalize=True))
    with ranks.at_work(job.folder, Rank(1, 2), lambda: None):
        for policy in (job.policy, Policy(0), Policy(0, restart=True)):
            with pytest.raises(OutputError, match="rank 1/2 is still at work"):
                execute_parts(replace(job, policy=policy))
        with pytest.raises(OutputError, match="rank 1/2 is at work already"):
            execute_parts(replace(job, policy=Policy(0, rank=Rank(1, 2))))
        assert execute_parts(replace(job, policy=Policy(0, rank=Rank(0, 2)))).rows == 0
    whole = Lock(job.folder / "lock")
    with pytest.raises(OutputError, match="another bigconv is writing here"):
        execute_parts(replace(job, policy=Policy(0, rank=Rank(0, 2))))
    whole.release()
    assert execute_parts(job).resumed_rows == 20


def test_ranks_that_would_cut_otherwise_are_refused(tmp_path: Path) -> None:
    """As where another version of a decoder makes rows of another size, by which the parts are cut."""
    job = job_of(tmp_path / "out", Mortal(40, 4, {}), Policy(0, rank=Rank(0, 2)))
    execute_parts(job)
    [output] = job.outputs
    parts = (replace(output.parts[0], stop=13), replace(output.parts[1], start=13), *output.parts[2:])
    other = replace(job, outputs=(replace(output, parts=parts),), policy=Policy(0, rank=Rank(1, 2)))
    with pytest.raises(OutputError, match="cut otherwise"):
        execute_parts(other)


def test_more_ranks_than_parts_and_arrays_of_two_sizes(tmp_path: Path) -> None:
    dest, source = tmp_path / "out", Mortal(20, 4, {})
    idle = execute_parts(job_of(dest, source, Policy(0, rank=Rank(7, 9))))
    assert (idle.rows, idle.manifest.rows, idle.manifest.schema) == (0, 0, source.schema)
    execute_parts(job_of(dest, source, Policy(0, rank=Rank(0, 2))))
    with pytest.raises(StoreError, match=r"2 of 4 parts are not made yet: part-00001, part-00003.\n.*--rank I/N in"):
        execute_parts(job_of(dest, source, Policy(0, finalize=True)))
    assert execute_parts(job_of(dest, source, Policy(0))).resumed_rows == 10


@pytest.mark.parametrize("engine", ["dask", "ranks"])
def test_shard_with_a_split(tmp_path: Path, engine: str) -> None:
    """Several datasets at once, and rows that are picked from a store."""
    np.save(tmp_path / "x.npy", np.arange(600).reshape(200, 3))
    bigconv.convert(tmp_path / "x.npy", tmp_path / "x.mmap", workers=0)
    asked: dict[str, Any] = {"rows": 30, "shuffle": True, "seed": 3, "split": "train=0.7,val=0.3", "workers": 2}
    bigconv.shard(tmp_path / "x.mmap", tmp_path / "plain", **asked)
    if engine == "dask":
        made = bigconv.shard(tmp_path / "x.mmap", tmp_path / "out", engine="dask", **asked)
    else:
        for number in range(2):
            some = bigconv.shard(tmp_path / "x.mmap", tmp_path / "out", rank=f"{number}/2", **asked)
            assert list(some) == ["train", "val"]
        made = bigconv.shard(tmp_path / "x.mmap", tmp_path / "out", finalize=True, **asked)
    assert isinstance(made, dict)
    assert {name: manifest.rows for name, manifest in made.items()} == {"train": 140, "val": 60}
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_a_cluster_in_this_process_is_on_loopback_alone(tmp_path: Path) -> None:
    import psutil

    ports: set[str] = set()

    def look(_rows: int, _bytes: int, _rejects: int) -> None:
        ports.update(c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN)

    execute_parts(job_of(tmp_path / "out", Mortal(8, 2, {}), Policy(2, engine="dask")), look)
    assert ports <= {"127.0.0.1", "::1"}


# -- what is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"engine": "dsk"}, "Did you mean 'dask'"),
        ({"engine": "local:1"}, "expected local"),
        ({"engine": "dask:"}, "expected dask:HOST:PORT"),
        ({"engine": "dask"}, "--engine dask shares parts out.*add --shard-size"),
        ({"rank": "0/2"}, "--rank 0/2 shares parts out.*add --shard-size"),
        ({"finalize": True}, "--finalize shares parts out.*add --shard-size"),
        ({"rank": "2/2", "shards": 2}, "from 0 to N - 1"),
        ({"rank": "x", "shards": 2}, "expected I/N"),
        ({"rank": "0/2", "finalize": True, "shards": 2}, "leave --rank out"),
        ({"rank": "0/2", "engine": "dask", "shards": 2}, "exclude one another"),
        ({"rank": "0/2", "restart": True, "shards": 2}, "work of other ranks"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, asked: dict[str, Any], message: str) -> None:
    np.save(tmp_path / "x.npy", np.arange(20))
    dest = tmp_path / ("out" if "shards" in asked else "out.h5")
    with pytest.raises(UsageError, match=message):
        bigconv.convert(tmp_path / "x.npy", dest, **asked)
    assert sorted(os.listdir(tmp_path)) == ["x.npy"]


def test_serial_also_makes_one_store(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(20))
    result = CliRunner().invoke(
        app, ["convert", str(tmp_path / "x.npy"), str(tmp_path / "out.h5"), "--engine", "serial"]
    )
    assert result.exit_code == 0, result.output
    with pytest.raises(UsageError, match="name a folder as DEST"):
        bigconv.shard(tmp_path / "out.h5", tmp_path / "one.mmap", engine="dask")
    with pytest.raises(UsageError, match="--rank: for a new DEST"):
        bigconv.shard(tmp_path / "out.h5", repair=True, rank="0/2")


def test_without_dask_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_dask, "find_spec", lambda name: None)
    np.save(tmp_path / "x.npy", np.arange(20))
    with pytest.raises(MissingPackage, match=r"pip install 'bigconv\[dask\]'") as caught:
        bigconv.convert(tmp_path / "x.npy", tmp_path / "out", shards=2, engine="dask")
    assert caught.value.exit_code == 3


# -- a cluster of its own --------------------------------------------------------------------------------------------


class Cluster:
    """`dask scheduler` and two `dask worker`, as a user starts them, on loopback."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "scheduler.json"
        self.processes: list[subprocess.Popen[bytes]] = []
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show")
        until(self._file.exists, self.processes[0])
        self.address = str(json.loads(self._file.read_text())["address"])
        for _ in range(2):
            local = ("--local-directory", str(folder / "dask"))
            self._start("worker", "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", *local)

    def _start(self, kind: str, *words: str) -> None:
        start = [sys.executable, "-m", "dask", kind, "--scheduler-file", str(self._file), *words]
        paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        # in another folder than the tests, so that only absolute paths lead anywhere
        self.processes.append(
            subprocess.Popen(
                start,
                cwd=self._folder,
                env={**os.environ, "PYTHONPATH": paths},
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """With everything that it has started: as if the machine were lost."""
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in reversed(self.processes):
            self.kill(process)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    made = Cluster(folder)
    try:
        yield made
    finally:
        made.close()


def test_a_cluster_that_loses_clients_and_workers(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is killed, another goes on while a worker is killed with all its processes; a decoder crashes, too."""
    monkeypatch.chdir(tmp_path)
    dest, engine = tmp_path / "out", f"dask:{cluster.address}"
    killed_after_a_part(dest, f"Policy(2, engine={engine!r})", others="")
    source = Mortal(40, 1, {}, 0.02, last=38, died=str(tmp_path / "died"))
    lost: list[int] = []

    def lose(rows: int, nbytes: int, _rejects: int) -> None:
        if nbytes and not lost:  # a part is being made: by both workers, as no third one is idle
            lost.append(rows)
            cluster.kill(cluster.processes[-1])

    outcome = execute_parts(job_of(Path("out"), source, Policy(2, engine=engine)), lose)
    assert lost
    assert (tmp_path / "died").exists()
    assert outcome.rejects == 0
    assert 10 <= outcome.resumed_rows < 40
    convert("serial", tmp_path / "serial", Mortal(40, 1, {}))
    assert contents(dest) == contents(tmp_path / "serial")
