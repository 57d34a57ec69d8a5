"""Videos as frames: PyAV (FFmpeg) decodes, timestamps say which frame is shown when.

A file is one row, or every `frames` frames of it are one; fewer at its end are left out. With `fps`, the frame that is
on the screen at 0, 1/fps, 2/fps … seconds is taken, whatever rate the file has, or if it has none: a frame that
stays longer comes again, one that would not be seen is left out. Without, every frame comes once, and `time` tells
when.

Pixels are 8-bit RGB, as FFmpeg's swscale converts them (bilinear chroma, the exact path that is the same on every
machine); a rotation in the header is not applied. A file that ends before its own headers say (MP4, MOV, Matroska,
WebM, AVI) is a reject, and so is one with a damaged frame.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigconv import registry
from bigconv.block import Array, Block, Index
from bigconv.decode import DecodeError
from bigconv.errors import InputError, UsageError
from bigconv.schema import Field, Schema
from bigconv.sources.base import Reject, Span
from bigconv.sources.filerows import MAX_ROW_BYTES, FileRows, Labelling, OfFileRows, common_shape, heads
from bigconv.sources.labels import Classes
from bigconv.sources.named import NamedFiles
from bigconv.sources.video_index import Clock, Head, head, library, opened

SPAN_FRAMES = 256  # of one file in a span, at least: what lies between a key frame and its first one is lost work
MAX_FPS = 1000


@dataclass(frozen=True, eq=False)
class Video(OfFileRows):
    """Each file is a row, or every `frames` frames of it, in bytewise order of the paths.

    Fields: `video`, uint8 `[frames, 3, height, width]`; `time`, float64 `[frames]`, in s since the first frame of the
    file; `label`, int64, where there are labels. `clocks`: of each file, None for those that can't be read.
    """

    name: ClassVar[str] = "video"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("label_from", "classes", "fps", "frames")
    hints: ClassVar[tuple[str, ...]] = ("workers",)

    rows: FileRows
    schema: Schema
    clocks: tuple[Clock | None, ...]
    fps: Fraction | None
    frames: int | None

    @classmethod
    def find(
        cls,
        paths: Sequence[Path],
        *,
        label_from: str | None = None,
        classes: Classes | None = None,
        fps: float | None = None,
        frames: int | None = None,
        workers: int = 1,
    ) -> Video:
        """List the files, find their labels and read all timestamps.

        `label_from`, `classes`: see `labels`. `fps`: frames a second that are taken; `frames`: of one row. Raises
        `InputError`, `UsageError`, `MissingPackage`.
        """
        if fps is not None and not 0 < fps <= MAX_FPS:
            raise UsageError(f"--fps {fps:g}: expected frames a second, such as 5")
        if frames is not None and frames < 1:
            raise UsageError(f"--frames {frames}: expected 1 or more")
        rate = None if fps is None else Fraction(str(fps)).limit_denominator(1_000_000)
        library()
        found = NamedFiles.of(paths, registry.SOURCES[cls.name].extensions, "videos")
        told = heads(found, lambda path: _fits(head(path), rate, frames), "videos", workers)
        good = [(one.shape, one.clock.shown(rate)) for one in told if one is not None]
        lengths = common_shape([(shown,) for _, shown in good]) if frames is None else (frames,)
        shape = (*lengths, 3, *common_shape([size for size, _ in good]))
        counts = [1 if one is None or frames is None else one.clock.shown(rate) // frames for one in told]
        sizes = [0 if one is None else 3 * math.prod(one.shape) * (frames or one.clock.shown(rate)) for one in told]
        rows = FileRows.of(found, counts, sizes, paths, Labelling(label_from, classes, "videos"))
        fields = (
            Field("video", "uint8", shape, kind="video"),
            Field("time", "float64", shape[:1], "label"),  # numbers about the row: steps leave them alone
            *rows.label_fields,
        )
        clocks = tuple(None if one is None else one.clock for one in told)
        return cls(rows, Schema(fields), clocks, rate, frames)

    def plan(self) -> Sequence[Span]:
        return self.rows.plan(least=max(1, SPAN_FRAMES // (self.frames or SPAN_FRAMES)))

    def read(self, span: Span) -> Iterator[Block | Reject]:
        with contextlib.ExitStack() as still_open:
            reading: dict[int, _Frames] = {}

            def row(file: int, number: int) -> dict[str, Any]:
                clock = self.clocks[file]
                if file not in reading or clock is None:
                    still_open.close()
                    reading.clear()
                    path = self.rows.found.paths[file]
                    clock = clock or _fits(head(path), self.fps, self.frames).clock  # mended since it was listed
                    reading[file] = still_open.enter_context(_frames_of(path, clock))
                return self._row(reading[file], clock, number)

            yield from self.rows.read(self.schema, span, row)

    def _row(self, frames: _Frames, clock: Clock, number: int) -> dict[str, Any]:
        n = self.frames or clock.shown(self.fps)
        wanted, seconds = clock.pick(number * n, number * n + n, self.fps)
        return {"video": frames.take(wanted), "time": seconds}

    def describe(self) -> dict[str, Any]:
        told = {"kind": self.name, **self.rows.told()}
        if self.fps is not None:
            told["fps"] = str(self.fps)
        if self.frames is not None:
            rest = sum(clock.shown(self.fps) % self.frames for clock in self.clocks if clock is not None)
            told |= {"frames": self.frames, "frames_left_out": rest}
        return told


def _fits(one: Head, fps: Fraction | None, frames: int | None) -> Head:
    """Raise `InputError` for a video that has no row, or one that is too large."""
    shown = one.clock.shown(fps)
    if frames is not None and shown < frames:
        raise InputError(f"{shown} frames are fewer than the {frames} of a row (--frames)")
    nbytes = 3 * math.prod(one.shape) * (frames or shown)
    if nbytes > MAX_ROW_BYTES:
        hint = "fewer --frames" if frames else "--frames 16 cuts it up"
        raise DecodeError(f"{nbytes} bytes of frames are more than the {MAX_ROW_BYTES} that one row may have; {hint}")
    return one


@contextlib.contextmanager
def _frames_of(path: str, clock: Clock) -> Iterator[_Frames]:
    with opened(path) as (container, stream):
        yield _Frames(container, stream, clock)


class _Frames:
    """Frames of one file by number, decoded onwards from where the last ones were."""

    def __init__(self, container: Any, stream: Any, clock: Clock) -> None:
        self._container, self._stream, self._clock = container, stream, clock
        self._decoded: Iterator[tuple[int, Any]] | None = None
        self._last: tuple[int, Any] | None = None  # the frame that was decoded last, which may be asked for again

    def take(self, wanted: Index) -> Array:
        """uint8 `[frames, 3, height, width]`. `wanted`: numbers, rising. Raises `DecodeError`."""
        av = library()
        height, width = self._stream.codec_context.height, self._stream.codec_context.width
        out = np.empty((len(wanted), 3, height, width), np.uint8)
        try:
            for k, number in enumerate(wanted.tolist()):
                if k and number == wanted[k - 1]:
                    out[k] = out[k - 1]
                    continue
                frame = self._frame(number)
                if (frame.height, frame.width) != (height, width):
                    raise DecodeError(f"frame {number} has {frame.height}x{frame.width} pixels, not {height}x{width}")
                out[k] = _rgb(frame).transpose(2, 0, 1)
        except av.error.FFmpegError as error:
            self._decoded = self._last = None
            raise DecodeError(f"a damaged frame: {error.strerror}") from error
        return out

    def _frame(self, number: int) -> Any:
        if self._decoded is None or (self._last is not None and number < self._last[0]):
            self._seek(number)
        assert self._decoded is not None
        while self._last is None or self._last[0] != number:
            self._last = next(self._decoded, None)
            if self._last is None or self._last[0] > number:
                self._decoded = None
                raise DecodeError(f"frame {number} of {self._clock.count} can't be decoded")
        return self._last[1]

    def _seek(self, number: int) -> None:
        """Go to a key frame at or before a frame; to the very first one where that leads behind it."""
        clock, stream = self._clock, self._stream
        if clock.start is None or number == 0:
            self._begin()
            return
        ticks = int(clock.at(np.array([number]))[0])
        self._container.seek(clock.start + ticks, stream=stream, backward=True)
        self._decoded = self._numbered(0)
        self._last = next(self._decoded, None)
        if self._last is None or self._last[0] > number:
            self._begin()

    def _begin(self) -> None:
        first = self._clock.start
        self._container.seek(0 if first is None else min(0, first), stream=self._stream, backward=True)
        self._decoded, self._last = self._numbered(0), None

    def _numbered(self, at: int) -> Iterator[tuple[int, Any]]:
        """Decoded frames and their numbers: by their timestamps, or counted where there are none."""
        clock = self._clock
        for frame in self._container.decode(self._stream):
            if clock.start is None:
                number: int | None = at
                at += 1
            else:
                number = None if frame.pts is None else clock.number(frame.pts - clock.start)
            if frame.is_corrupt:
                raise DecodeError(f"frame {number} is damaged")
            if number is not None:
                yield number, frame


def _rgb(frame: Any) -> Array:
    """uint8 `[height, width, 3]`."""
    how = library().video.reformatter.Interpolation
    exact = how.BILINEAR | how.FULL_CHR_H_INT | how.ACCURATE_RND | how.BITEXACT
    pixels: Array = frame.reformat(format="rgb24", interpolation=exact).to_ndarray()
    return pixels
