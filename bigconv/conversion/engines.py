"""Which engine makes the parts of a conversion, by what `--engine` says."""

from __future__ import annotations

from bigconv.conversion.engine_dask import Dask, need_dask
from bigconv.conversion.parts import Engine, Job
from bigconv.conversion.parts_engine import Local, Serial
from bigconv.conversion.run import Policy
from bigconv.errors import UsageError


def engine_for(job: Job, tasks: int) -> Engine:
    """The engine that a policy asks for, for so many tasks."""
    name, _, address = job.policy.engine.partition(":")
    if name == "dask":
        return Dask(address or None, max(1, min(job.policy.workers, tasks)))
    return Local(job, tasks) if job.policy.workers and tasks else Serial()


def check_engine(policy: Policy, option: str | None) -> None:
    """Refuse an engine that can't run here. `option`: what would cut the result into parts; None when it has parts.

    Raises `UsageError`, or `MissingPackage` with the install line.
    """
    if policy.engine.startswith("dask"):
        need_dask()
    if option is None:
        return
    for asked, name in (
        (policy.rank is not None, f"--rank {policy.rank}"),
        (policy.finalize, "--finalize"),
        (policy.engine.startswith("dask"), f"--engine {policy.engine}"),
    ):
        if asked:
            raise UsageError(f"{name} shares parts out, and this makes one store: {option}")
