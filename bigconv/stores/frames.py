"""Frames: chunks and records compressed, each as one Blosc buffer, which says all that is needed to decode it.

Zarr's codec `blosc` and HDF5's filter 32001 hold chunks in this very form, so one codec serves all stores. A frame
begins with 16 bytes (c-blosc 1, README_CHUNK_FORMAT.rst), numbers little-endian:

    uint8 version, version of the codec, flags, item bytes | uint32 bytes decoded, bytes a block, bytes of the frame

`numcodecs.blosc.decompress(frame)` gives the bytes. Frames are made by one thread each: several threads put a frame's
blocks down in the order in which they are done, which would make other bytes each time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import parent_process
from typing import Any, TypeVar

import numpy as np

from bigconv.block import Array
from bigconv.errors import IncompleteStore, UsageError
from bigconv.schema import Field, Schema

HEAD = np.dtype(
    [*((name, "u1") for name in ("version", "codec", "flags", "item")), *((n, "<u4") for n in ("raw", "block", "size"))]
)
MOST_BYTES = 2**31 - 1 - 16  # of what a frame holds: Blosc counts in C ints
COMPRESSORS = {"lz4": 1, "zstd": 5}  # name -> its number in HDF5's filter (blosc.h)
SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")  # Zarr's names, at Blosc's numbers
NOTHING = 64  # a field this many times smaller than the largest one stays as it is
RAGGED_BYTES = 4096  # what a ragged row is taken to have, for that
LZ4_LEVEL = 5  # Blosc's default: a higher one gains 3 % at most, and the same decoding speed
ZSTD_LEVEL = 1  # each level more costs more time than it gains in size on the data of docs/benchmarks.md
SHARE_BYTES = 256 << 10  # 256 KiB a thread: below, waking it takes as long as it saves
MOST_THREADS = 8  # past this, handing out the frames takes longer than decoding them

_Task = TypeVar("_Task")
_Made = TypeVar("_Made")


def checked(compress: str) -> str:
    """`none`, `lz4` or `zstd:LEVEL`, of what a user typed. Raises `UsageError`."""
    name, colon, level = compress.partition(":")
    if compress == "none" or compress == "lz4":
        return compress
    if name == "zstd":
        number = int(level) if level.isascii() and level.isdigit() else 0
        if not colon:
            number = ZSTD_LEVEL
        if 1 <= number <= 9:
            return f"zstd:{number}"
    raise UsageError(f"--compress {compress}: expected none, lz4, zstd, or zstd:LEVEL with a level from 1 to 9")


@dataclass(frozen=True)
class Codec:
    """How frames are made. `shuffle`: 0 none, 1 bytes, 2 bits of items of `item_bytes` bytes; `level`: Blosc's."""

    name: str
    level: int
    shuffle: int
    item_bytes: int

    def frame(self, data: Array) -> bytes:
        """A frame of contiguous uint8 `[bytes]`."""
        from numcodecs import blosc

        made: bytes = blosc.compress(data, self.name.encode(), self.level, self.shuffle, 0, self.item_bytes)
        return made

    @property
    def words(self) -> str:
        return self.name if self.shuffle == 0 else f"{self.name} + {SHUFFLES[self.shuffle]}"


def codec_for(compress: str, dtype: str, kind: str = "array") -> Codec | None:
    """The codec for values of a dtype; None for `none`.

    LZ4 finds little in numbers as they are: it gets the bits of whole numbers apart, and the bytes of others. Zstandard
    has an entropy coder of its own, for which bytes are enough. Text and files have no columns of bytes to set apart.
    """
    if compress == "none":
        return None
    name, _, level = compress.partition(":")
    size = np.dtype(dtype).itemsize
    shuffle = 1 if size > 1 else 0
    if kind in ("text", "encoded"):
        shuffle = 0
    elif name == "lz4" and np.dtype(dtype).kind in "biu":
        shuffle = 2
    return Codec(name, int(level) if level else LZ4_LEVEL, shuffle, size)


def packed(
    schema: Schema, compress: str, chunk: int | None, chunk_bytes: int, values_bytes: int
) -> dict[str, tuple[Codec, int]]:
    """Codec and items a chunk of each part that is compressed, by the part's name. Raises `UsageError`.

    All fixed fields are cut after the same rows, `chunk` of them, or as many as `chunk_bytes` hold of the largest, so
    that rows that are read together are decoded together. Values of ragged fields are cut by bytes: a row has any
    number of them. Not compressed are offsets and shapes, and fields that are next to nothing beside the others:
    they are looked up row by row, and there is nothing to gain.
    """
    if compress == "none":
        return {}
    largest = max(f.row_bytes for f in schema if not f.ragged) if any(not f.ragged for f in schema) else 0
    least = max(largest, RAGGED_BYTES if any(f.ragged for f in schema) else 0) // NOTHING
    rows = chunk or max(1, chunk_bytes // max(1, largest))
    found = {}
    for f in schema:
        part = f.parts()[0]
        codec = codec_for(compress, part.dtype, f.kind)
        if codec is None or not part.item_bytes or (not f.ragged and f.row_bytes < least):
            continue
        items = max(1, values_bytes // part.item_bytes) if f.ragged else rows
        check_chunk(f.name, items, part.item_bytes)
        found[part.name] = codec, items
    return found


def check_chunk(name: str, items: int, item_bytes: int) -> None:
    """A chunk is held in memory, and on disk it is whole whatever is in it. Raises `UsageError`."""
    if items * item_bytes > MOST_BYTES:
        raise UsageError(
            f"field {name}: a chunk of {items:,} x {item_bytes:,} bytes is more than the 2 GiB that one may have; "
            "give --chunk fewer rows, or leave --chunk and --compress out"
        )


def widest(fields: Iterable[Field]) -> Field:
    """The field whose values make up most of a record: a ragged one, or else the largest."""
    return max(fields, key=lambda f: (f.ragged, f.row_bytes))


def head_of(raw: Array) -> Array:
    """Heads of frames, `HEAD` `[frames]`, from uint8 `[frames, 16]`."""
    return np.ascontiguousarray(raw).view(HEAD).reshape(-1)


def unpack(frame: memoryview, out: Array) -> None:
    """Decode a frame into uint8 `[bytes]` of the size its head tells. Raises `IncompleteStore`."""
    from numcodecs import blosc

    try:
        blosc.decompress(frame, out)
    except (RuntimeError, ValueError) as error:
        raise IncompleteStore(f"a compressed chunk can't be decoded: {error}") from error


def unpacked(frame: bytes | memoryview) -> Array:
    """A frame decoded, uint8 `[bytes]`. Raises `IncompleteStore`."""
    if len(frame) < HEAD.itemsize:
        raise IncompleteStore(f"a compressed chunk has {len(frame)} bytes: damaged")
    head = np.frombuffer(frame, HEAD, 1)[0]
    if int(head["size"]) > len(frame) or int(head["raw"]) > MOST_BYTES:
        raise IncompleteStore("a compressed chunk's head is damaged")
    out: Array = np.empty(int(head["raw"]), np.uint8)
    if len(out):
        unpack(memoryview(frame)[: int(head["size"])], out)
    return out


# -- threads -----------------------------------------------------------------------------------------------------------

_pool: tuple[int, ThreadPoolExecutor] | None = None
_making = threading.Lock()


def in_threads(work: Callable[[_Task], _Made], tasks: Sequence[_Task]) -> Iterator[_Made]:
    """`work(task)` of each task, in order, by threads.

    Only the main thread of the main process shares its work out: in a process or thread that others started its
    siblings have the other cores. Besides, there Blosc would go to work with several threads of its own.
    """
    if parent_process() is not None or threading.current_thread() is not threading.main_thread():
        return map(work, tasks)
    return _threads().map(work, tasks)


def cores() -> int:
    """Threads that `in_threads` has."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_THREADS, available)


def _threads() -> ThreadPoolExecutor:
    global _pool
    with _making:
        if _pool is None or _pool[0] != os.getpid():  # a forked child has none of the threads
            _pool = os.getpid(), ThreadPoolExecutor(cores(), "bigconv-frames")
        return _pool[1]


def frames(codec: Codec, chunks: Sequence[Array]) -> list[bytes]:
    """A frame of each chunk, uint8 `[bytes]`, in order."""
    groups = list(shares(len(chunks), sum(map(len, chunks))))

    def some(bounds: tuple[int, int]) -> list[bytes]:
        return [codec.frame(chunk) for chunk in chunks[slice(*bounds)]]

    return [frame for made in in_threads(some, groups) for frame in made]


def shares(count: int, nbytes: int) -> Iterator[tuple[int, int]]:
    """Bounds of `count` tasks over `nbytes` bytes, dealt out to threads: each by itself costs more than it takes."""
    parts = max(1, min(cores(), count, nbytes // SHARE_BYTES))
    for part in range(parts):
        yield count * part // parts, count * (part + 1) // parts


def blosc_filter(codec: Codec, chunk_bytes: int) -> tuple[int, tuple[int, ...]]:
    """Number and client data of HDF5's Blosc filter (hdf5-blosc, blosc_filter.c)."""
    filter_version, format_version = 2, 2
    number = COMPRESSORS[codec.name]
    return 32001, (filter_version, format_version, codec.item_bytes, chunk_bytes, codec.level, codec.shuffle, number)


def zarr_codec(codec: Codec) -> dict[str, Any]:
    """As an array's metadata has it (Zarr 3, codec `blosc`)."""
    return {
        "name": "blosc",
        "configuration": {
            "typesize": codec.item_bytes,
            "cname": codec.name,
            "clevel": codec.level,
            "shuffle": SHUFFLES[codec.shuffle],
            "blocksize": 0,
        },
    }


def from_zarr(document: Any) -> Codec:
    """The codec of an array's metadata. Raises `ValueError`, `KeyError` or `TypeError` for another than ours."""
    found = document["configuration"]
    shuffle = SHUFFLES.index(found["shuffle"])
    codec = Codec(str(found["cname"]), int(found["clevel"]), shuffle, int(found["typesize"]))
    if codec.name not in COMPRESSORS:
        raise ValueError(f"compressor {codec.name!r}")
    return codec
