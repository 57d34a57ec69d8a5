"""Items of a part cut into chunks, each compressed, and what a killed writer needs to go on in the middle of one.

Where the frames go is the store's business. Beside the store lie, until it is published,

    <part>.sizes            uint64 a finished chunk: bytes of its frame
    <part>.open0, .open1    the chunk that isn't full yet, as it was at the last two checkpoints

It can't lie where its frame will: the frame would go over it, and a kill then would cost both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bigconv import fsio
from bigconv.block import Array
from bigconv.errors import IncompleteStore
from bigconv.stores import frames
from bigconv.stores.frames import Codec

PIECE_BYTES = 4 << 20  # 4 MiB compressed at a time: work for all threads, and little held


class ChunkStream:
    """The items of one part on their way into frames, the same frames however the items arrive."""

    def __init__(
        self,
        beside: Path,
        codec: Codec,
        item_bytes: int,
        chunk_items: int,
        put: Callable[[list[bytes]], None],
        items: int = 0,
        turn: int = 0,
    ) -> None:
        """Start, or go on from checkpoint number `turn` at `items` items. `put` takes frames in their order.

        `beside`: the part's name there, without the endings.
        """
        self.items = items
        self._codec, self._chunk_items, self._put = codec, chunk_items, put
        self._open = np.empty(item_bytes * chunk_items, np.uint8)  # the chunk that isn't full yet
        self._chunks, rest = divmod(items, chunk_items)
        self._filled = rest * item_bytes
        self._sizes = fsio.AppendFile(beside.with_name(beside.name + ".sizes"), 8 * self._chunks)
        self._beside = beside
        if self._filled:
            kept = self._kept(turn).read_bytes()
            if len(kept) != self._filled:
                self.close()
                raise IncompleteStore(f"{self._kept(turn)}: does not fit its checkpoint: damaged; start anew")
            self._open[: self._filled] = np.frombuffer(kept, np.uint8)

    def _kept(self, turn: int) -> Path:
        return self._beside.with_name(f"{self._beside.name}.open{turn % 2}")

    def sizes(self) -> Array:
        """int64 `[chunks]`: bytes of the frames so far."""
        found: Array = np.fromfile(self._sizes.path, "<u8", self._chunks).astype(np.int64)
        return found

    def write(self, items: int, data: Array) -> None:
        """Add items: their bytes, little-endian, uint8 `[items * item_bytes]`."""
        self.items += items
        if self._filled:
            room = len(self._open) - self._filled
            self._keep(data[:room])
            data = data[room:]
            if self._filled < len(self._open):
                return
            self._pack([self._open])
            self._filled = 0
        size = len(self._open)
        whole = len(data) // size
        step = max(1, PIECE_BYTES // size)
        for first in range(0, whole, step):
            last = min(first + step, whole)
            self._pack(list(data[first * size : last * size].reshape(last - first, size)))
        self._keep(data[whole * size :])

    def checkpoint(self, turn: int) -> None:
        """Make all items durable that haven't gone into a frame, and the sizes of those that have."""
        self._sizes.sync()
        if self._filled:
            fsio.write_file(self._kept(turn), self._open[: self._filled].data)

    def finish(self, pad: bool = True) -> None:
        """Put the last chunk, filled up with zeros; without `pad` not where it is the only one."""
        if self._filled:
            self._open[self._filled :] = 0
            self._pack([self._open if pad or self._chunks else self._open[: self._filled]])
            self._filled = 0

    def close(self) -> None:
        self._sizes.close()

    def _keep(self, data: Array) -> None:
        self._open[self._filled : self._filled + len(data)] = data
        self._filled += len(data)

    def _pack(self, chunks: list[Array]) -> None:
        made = frames.frames(self._codec, chunks)
        self._put(made)
        self._sizes.write(np.array([len(frame) for frame in made], "<u8").tobytes())
        self._chunks += len(made)
