"""A file that the HDF5 library reads and writes through `fsio`, and that never tells it of a write that failed.

The library keeps trying to write what it couldn't, and crashes in the end: a full disk would end in a segmentation
fault. So it hears of success, what follows the first failure goes nowhere, and `library_writing` raises it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bigconv import fsio
from bigconv.errors import BigconvError, OutputError


class LibraryFile(fsio.PatchFile):
    """What h5py asks of a file object, unbuffered."""

    def __init__(self, path: Path, fresh: bool) -> None:
        if fresh:
            fsio.AppendFile(path).close()
        super().__init__(path)
        self.failure: OutputError | None = None
        self._at, self._end = 0, path.stat().st_size

    def __repr__(self) -> str:
        return str(self.path)  # how the library calls it in what it says

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (self._end if whence == os.SEEK_END else self._at if whence == os.SEEK_CUR else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, nbytes: int) -> bytes:
        if self.failure is not None:
            raise self.failure
        data = self.read_at(self._at, nbytes)
        self._at += len(data)
        return data

    def readinto(self, room: bytearray | memoryview) -> int:
        data = self.read(len(room))
        room[: len(data)] = data
        return len(data)

    def write(self, data: fsio.Buffer) -> int:
        if self.failure is None:
            try:
                self.write_at(self._at, data)
            except OutputError as error:
                self.failure = error
        self._at += len(data)
        self._end = max(self._end, self._at)
        return len(data)

    def truncate(self, size: int) -> None:
        if self.failure is None:
            try:
                super().truncate(size)
            except OutputError as error:
                self.failure = error
        self._end = size

    def flush(self) -> None:
        """Nothing is held back."""


@contextmanager
def library_writing(path: Path, fresh: bool = False) -> Iterator[LibraryFile]:
    """A file for a library to write, made anew if `fresh`; the library must be done with it when the body ends.

    Raises `OutputError` for what the library was not told, and for what it could not do.
    """
    file = LibraryFile(path, fresh)
    try:
        yield file
    except (OSError, RuntimeError) as error:
        if file.failure is None and isinstance(error, BigconvError):
            raise
        raise file.failure or OutputError(f"{path}: {' '.join(str(error).split())}") from error
    finally:
        file.close()
    if file.failure is not None:
        raise file.failure
