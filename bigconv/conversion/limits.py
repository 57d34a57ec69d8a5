"""`--memory-limit`: what the processes of a conversion may take together."""

from __future__ import annotations

from pathlib import Path

from bigconv.errors import UsageError

PARENT_BYTES = 300 << 20  # private memory of the command itself: libraries, lists of files, blocks on their way
WORKER_BYTES = 150 << 20  # the same of a worker process that decodes photos
OUT_OF_MEMORY = 12  # exit code of a worker whose share is used up: ENOMEM


def workers_within(workers: int, limit: int | None) -> int:
    """As many of `workers` as `limit` bytes have room for. Raises `UsageError` when not even one fits."""
    if limit is None:
        return workers
    if workers == 0:
        raise UsageError("--memory-limit holds worker processes to their share: leave out --workers 0, --engine serial")
    room = (limit - PARENT_BYTES) // WORKER_BYTES
    if room < 1:
        least = (PARENT_BYTES + WORKER_BYTES) >> 20
        raise UsageError(f"--memory-limit of {limit:,} bytes: expected {least}MiB or more, for one worker")
    return min(workers, room)


def share(workers: int, limit: int | None) -> int | None:
    """Bytes that each of `workers` processes may allocate; None for any."""
    return None if limit is None else (limit - PARENT_BYTES) // max(1, workers)


def confine(nbytes: int | None) -> None:
    """Let this process allocate so many bytes more: then what asks for memory is told that there is none.

    RLIMIT_DATA counts private memory, and no maps of files, so large inputs stay readable. A system without it keeps
    the number of workers as the only limit.
    """
    if nbytes is None:
        return
    try:
        import resource

        has = _data_bytes()
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = has + nbytes
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))
    except (ImportError, OSError, ValueError):
        return


def _data_bytes() -> int:
    """What this process has allocated already, as RLIMIT_DATA counts it. Raises `OSError` where nobody tells."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    raise OSError("no VmData")
