"""`--engine dask`: parts made by the workers of a Dask cluster, which share a file system and nothing else.

A Dask task makes one part, by the same `run_task` as everywhere, in a process of its own beside the Dask worker: what
ends that process, or hangs in it, is found and named as `Local` does it, and the cluster, which may not be ours, loses
no worker to a bad file. When a Dask worker is lost with its machine, the scheduler gives its part out again, and the
next worker goes on from the last checkpoint, which is in the folder.
"""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import util
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

from bigconv import __version__
from bigconv.conversion.build import state_of
from bigconv.conversion.parts import Control, Engine, Job, Result, Task
from bigconv.conversion.parts_engine import POLL_SECONDS, WIND_DOWN_SECONDS, Local
from bigconv.errors import BigconvError, InputError, Interrupted, OutputError, UsageError
from bigconv.registry import missing

CONNECT_SECONDS = 20.0  # for a scheduler to answer
TELL_SECONDS = 1.0  # between two messages of a part about progress: all of them pass through the scheduler


def need_dask() -> None:
    """Raises `MissingPackage` with the install line."""
    if find_spec("distributed") is None:
        raise missing("distributed", "dask", "--engine dask")


class Dask(Engine):
    """One task of Dask a part. Without an address: a cluster in this process, with as many threads as `workers`.

    Threads do, as each only looks after the process that makes its part; and a script that converts at its top level is
    not run again, as it would be in worker processes that Dask starts.
    """

    def __init__(self, address: str | None, workers: int) -> None:
        self._address, self._workers = address, workers

    def run(self, job: Job, tasks: Sequence[Task], control: Control) -> Iterator[tuple[Task, Result]]:
        if not tasks:
            return
        with self._client() as client:
            yield from _Run(client, job, tasks, control).results()

    @contextmanager
    def _client(self) -> Iterator[Any]:
        import dask
        from distributed import Client, LocalCluster

        settings = {
            "distributed.admin.large-graph-warning-threshold": "1GB",  # a list of millions of files is meant to go
            "distributed.scheduler.http.routes": [],  # a web server comes up in any case, though without a dashboard
            "distributed.worker.http.routes": [],
        }
        with dask.config.set(settings):
            if self._address is not None:
                try:
                    client = Client(self._address, timeout=CONNECT_SECONDS, set_as_default=False)
                except (OSError, ValueError, TimeoutError) as error:
                    raise UsageError(
                        f"--engine dask:{self._address}: no scheduler answers there ({' '.join(str(error).split())})"
                    ) from error
                with client:
                    yield client
                return
            with (
                LocalCluster(
                    n_workers=1,
                    threads_per_worker=self._workers,
                    processes=False,
                    dashboard_address="127.0.0.1:0",  # with None it would listen on all interfaces
                    worker_dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard": False},
                    memory_limit=0,  # it would count this process, where no part is made
                    silence_logs=50,  # CRITICAL: what goes wrong in a task is raised
                ) as cluster,
                Client(cluster, set_as_default=False) as client,
            ):
                yield client


class _Run:
    """Some tasks on a cluster, as seen from here."""

    def __init__(self, client: Any, job: Job, tasks: Sequence[Task], control: Control) -> None:
        self._client, self._control = client, control
        self._name = f"bigconv-{uuid4().hex}"
        self._heard: SimpleQueue[Any] = SimpleQueue()  # futures that are done, and progress: rows, bytes, rejects
        client.subscribe_topic(self._name, lambda event: self._heard.put(event[1]))
        job = replace(job, dest=job.dest.absolute(), policy=replace(job.policy, workers=1, engine="local"))
        # The job is a task's result: it travels once to each worker, and Dask makes it again when it is lost.
        self._job = client.submit(_job, pickle.dumps(job), __version__, key=f"{self._name}-job", pure=False)
        keys = [f"{self._name}-{task.output}-{task.number}" for task in tasks]
        futures = client.map(_make, tasks, job=self._job, run=self._name, key=keys, pure=False)
        self._left: dict[Any, Task] = dict(zip(futures, tasks, strict=True))
        self._stopping = self._dropped = False
        for future in futures:
            future.add_done_callback(self._heard.put)

    def results(self) -> Iterator[tuple[Task, Result]]:
        try:
            while self._left:
                if self._control.stopped():
                    self._stop()
                future = self._next()
                if future is None:
                    continue
                task = self._left.pop(future)
                result = self._result(future, task)
                if result is not None:
                    yield task, result
            if self._dropped:
                raise Interrupted("stopped. The same command goes on from there")
        finally:
            self._end()

    def _next(self) -> Any:
        """A future that is done; None when there was none for a while. Progress is passed on."""
        try:
            heard = self._heard.get(timeout=POLL_SECONDS)
        except Empty:
            return None
        if isinstance(heard, (tuple, list)):
            self._control.tell(*heard)
            return None
        return heard if heard in self._left else None

    def _result(self, future: Any, task: Task) -> Result | None:
        """What a task gave; None when it was stopped because this run is. Raises what ended it."""
        from distributed import KilledWorker
        from distributed.client import FutureCancelledError

        try:
            result: Result = future.result()
            return result
        except (Interrupted, FutureCancelledError) as error:
            self._dropped = True
            if self._stopping:
                return None
            raise OutputError(
                f"--engine dask: part {task.number} was cancelled, or the scheduler is gone.\n"
                "The same command goes on from there"
            ) from error
        except KilledWorker as error:
            raise InputError(
                f"part {task.number}: {error.allowed_failures + 1} workers of Dask ended while they made it (out of "
                "memory?).\nGive them more memory, or make smaller parts; the same command goes on from there"
            ) from error
        except (ImportError, AttributeError, RuntimeError) as error:
            if isinstance(error, (BigconvError, RuntimeError)) and "deserialization" not in str(error):
                raise
            raise UsageError(
                f"--engine dask: the scheduler or a worker can't load the task ({' '.join(str(error).split())}).\n"
                f"Install bigconv {__version__} and the same packages for all of them"
            ) from error

    def _stop(self) -> None:
        """Have tasks that are at work come to a checkpoint, and the others not begin."""
        if self._stopping:
            return
        self._stopping = True
        with suppress(OSError, TimeoutError):
            self._client.run(_stop_run, self._name, on_error="ignore")
            begun = {key for keys in self._client.processing().values() for key in keys}
            waiting = [future for future in self._left if future.key not in begun and not future.done()]
            self._dropped = self._dropped or bool(waiting)
            for future in waiting:
                del self._left[future]
            self._client.cancel(waiting)

    def _end(self) -> None:
        """Leave nothing at work behind."""
        if self._left:
            self._stop()
            deadline = time.monotonic() + WIND_DOWN_SECONDS
            while self._left and time.monotonic() < deadline:
                future = self._next()
                if future is not None:
                    del self._left[future]
            with suppress(OSError, TimeoutError):
                self._client.cancel(list(self._left))
        with suppress(OSError, TimeoutError):  # a scheduler that is gone must not hide what ended this run
            self._client.unsubscribe_topic(self._name)


# -- in a worker of Dask ---------------------------------------------------------------------------------------------

_stopped: set[str] = set()  # runs whose tasks are to come to a checkpoint and end
_engines: set[Local] = set()  # at work in this process
_first = threading.Lock()


def _stop_run(run: str) -> None:
    """A function of this module, as it travels by name: the set's own `add` would travel with a copy of the set."""
    _stopped.add(run)


def _job(pickled: bytes, version: str) -> Job:
    if version != __version__:
        raise UsageError(f"--engine dask: a worker has bigconv {__version__}, and this is {version}: install the same")
    job: Job = pickle.loads(pickled)
    return job


def _make(task: Task, *, job: Job, run: str) -> Result:
    """Do a task in a process of its own, and look after that."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()
    if state_of(job.dest) is None:  # or the part would be made in a folder where nobody looks for it
        raise OutputError(
            f"--engine dask: the worker {worker.address} doesn't see {job.folder}.\n"
            "DEST and SOURCE must be on a file system that all workers have, under the same path"
        )
    _may_have_children()
    told = _Told(lambda counts: worker.log_event(run, counts))
    engine = Local(job, 1)
    _engines.add(engine)
    try:
        control = Control(told.add, lambda: run in _stopped or _forgotten(worker, key))
        [(_, result)] = engine.run(job, [task], control)
        return result
    finally:
        _engines.discard(engine)
        told.say()


def _forgotten(worker: Any, key: Any) -> bool:
    """Whether nobody waits for a task any more: its client has ended, so the scheduler has cancelled it."""
    task = worker.state.tasks.get(key)
    return task is None or task.state == "cancelled"


def _may_have_children() -> None:
    """Dask marks its workers as daemons, which by a rule of multiprocessing have no children, lest they outlive them.

    Ours end with their parent; and when it ends in good order, they end first.
    """
    with _first:
        config = vars(multiprocessing.current_process())["_config"]
        if config.get("daemon"):
            config["daemon"] = False
            util.Finalize(None, _kill_all, exitpriority=100)


def _kill_all() -> None:
    for engine in list(_engines):
        engine.kill()


class _Told:
    """Progress, added up and told now and then."""

    def __init__(self, tell: Callable[[list[int]], None]) -> None:
        self._tell, self._held, self._last = tell, [0, 0, 0], time.monotonic()

    def add(self, rows: int, nbytes: int, rejects: int) -> None:
        self._held = [a + b for a, b in zip(self._held, (rows, nbytes, rejects), strict=True)]
        if time.monotonic() - self._last >= TELL_SECONDS:
            self.say()

    def say(self) -> None:
        if any(self._held):
            self._tell(self._held)
        self._held, self._last = [0, 0, 0], time.monotonic()
