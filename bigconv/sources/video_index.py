"""What a video file tells without decoding: its size, and when each of its frames is shown."""

from __future__ import annotations

import contextlib
import importlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, Any

import numpy as np

from bigconv import registry
from bigconv.block import Index
from bigconv.decode import MAX_PIXELS, DecodeError
from bigconv.errors import InputError
from bigconv.sniff import looks_at
from bigconv.sources.filerows import reason

MAX_FRAMES = 1 << 26  # a year of film at 2 frames a second, or 25 days at 30
DEMUXERS = "mov,matroska,avi,mpegts,mpeg,ogg,flv,asf,gif"  # none that opens other files, as playlists do
OPTIONS = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file", "err_detect": "explode"}


@dataclass(frozen=True, eq=False)
class Clock:
    """When the frames of a video are shown, in ticks of `tick` seconds from the first one on.

    `count`: frames; `step`: ticks between frames, where it is the same for all; otherwise `ticks`, int64 `[count]`, has
    them. `end`: ticks until the last frame is gone. `start`: timestamp of the first frame in the file, or None where
    the file has no timestamps that tell frames apart: they are counted.
    """

    count: int
    step: int
    ticks: Index | None
    end: int
    tick: Fraction
    start: int | None

    def at(self, frames: Index) -> Index:
        """int64: ticks of frames by number."""
        return frames * self.step if self.ticks is None else self.ticks[frames]

    def number(self, ticks: int) -> int | None:
        """The frame that starts at exactly `ticks`."""
        i = int(self._before(np.array([ticks]))[0])
        return i if 0 <= i < self.count and int(self.at(np.array([i]))[0]) == ticks else None

    def _before(self, ticks: Index) -> Index:
        """The last frame that starts at or before each."""
        if self.ticks is None:
            return ticks // self.step
        return np.searchsorted(self.ticks, ticks, side="right") - 1

    def shown(self, fps: Fraction | None) -> int:
        """How many frames come out: of those at 0, 1/fps, 2/fps … seconds, those before the end."""
        return self.count if fps is None else max(1, int(-(-self.end * self.tick * fps // 1)))

    def pick(self, start: int, stop: int, fps: Fraction | None) -> tuple[Index, Any]:
        """Frames that come out as `start` to `stop`: int64 numbers in the file, and float64 seconds."""
        out = np.arange(start, stop)
        if fps is None:
            return out, self.at(out) * float(self.tick)
        between = 1 / (fps * self.tick)  # ticks, exactly
        ticks = np.array([k * between.numerator // between.denominator for k in out.tolist()], np.int64)
        return np.minimum(self._before(ticks), self.count - 1), out / float(fps)


@dataclass(frozen=True, eq=False)
class Head:
    """`shape`: height and width."""

    shape: tuple[int, int]
    clock: Clock


def library() -> Any:
    """PyAV. Raises `MissingPackage`."""
    try:
        av = importlib.import_module("av")
    except ModuleNotFoundError as error:
        raise registry.missing("av", "video", "video") from error
    av.logging.set_level(None)  # FFmpeg's own lines on stderr; its errors are raised
    return av


@contextlib.contextmanager
def opened(path: str) -> Iterator[tuple[Any, Any]]:
    """A container and its first video stream. Errors of FFmpeg become `DecodeError`."""
    av = library()
    with open(path, "rb") as file:
        whole(file)
    try:
        with av.open(f"file:{os.path.abspath(path)}", container_options=OPTIONS) as container:
            if not container.streams.video:
                raise InputError("has no video in it")
            stream = container.streams.video[0]
            stream.codec_context.options = {"err_detect": "explode"}  # damage is told, not painted over
            stream.codec_context.thread_count = 1  # worker processes decode side by side
            size = stream.codec_context.height, stream.codec_context.width
            if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
                raise DecodeError(
                    f"frames of {size[0]}x{size[1]} pixels are none, or more than the {MAX_PIXELS} allowed"
                )
            yield container, stream
    except (InputError, MemoryError):
        raise
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        if isinstance(error, av.error.InvalidDataError):
            seen = looks_at(path)
            more = "" if seen.startswith("starts with") else f": {seen}"  # a video's own first bytes tell nobody much
            raise DecodeError(f"can't be decoded: no video, or a damaged one{more}") from error
        raise DecodeError(f"can't be decoded: {reason(error, os.path.abspath(path))}") from error


def head(path: str) -> Head:
    """Raises `InputError`, `OSError`."""
    with opened(path) as (container, stream):
        shown: list[int | None] = []
        sent: list[int | None] = []
        last, packets = 0, 0
        for packet in container.demux(stream):
            if not packet.size:
                continue
            packets += 1
            if packets > MAX_FRAMES:
                raise DecodeError(f"more than {MAX_FRAMES} frames")
            if packet.is_corrupt:
                raise DecodeError(f"frame {packets - 1} is damaged")
            if packet.is_discard:
                continue  # before the point at which an edit list lets the video begin
            shown.append(packet.pts)
            sent.append(packet.dts)
            last = int(packet.duration or 0)
        if "mov" in container.format.name and packets < stream.frames:
            raise DecodeError(f"cut short: {packets} of {stream.frames} frames")
        if not shown:
            raise DecodeError("has no frames")
        tick = Fraction(stream.time_base)
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        return Head((stream.codec_context.height, stream.codec_context.width), _clock(shown, sent, tick, last, rate))


def _clock(shown: list[int | None], sent: list[int | None], tick: Fraction, last: int, rate: Fraction) -> Clock:
    times = sorted(t for t in shown if t is not None)
    start: int | None = None
    if len(times) == len(shown) and len(set(times)) == len(times):
        start = times[0]
    else:  # no timestamps, as in AVI with frames that are sent early: those of sending, in order
        times = sorted({t for t in sent if t is not None})
        if len(times) != len(sent):
            times = [int(k / (rate * tick)) for k in range(len(sent))]
    ticks = np.array(times, np.int64) - times[0]
    steps = np.diff(ticks)
    even = len(steps) > 0 and bool((steps == steps[0]).all())
    usual = int(steps[-1]) if len(steps) else max(1, round(1 / (rate * tick)))
    end = int(ticks[-1]) + (last or usual)
    return Clock(len(ticks), int(steps[0]) if even else 1, None if even or len(ticks) == 1 else ticks, end, tick, start)


# -- files that are cut short, which FFmpeg reads as far as they go ----------------------------------------------------


def whole(file: IO[bytes]) -> None:
    """Raise `DecodeError` for a file that ends before its own headers say."""
    total = os.fstat(file.fileno()).st_size
    start = file.read(12)
    if not start:
        raise DecodeError("an empty file")
    if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
        _pieces(file, total, _box, "box")
    elif start[:4] == b"\x1a\x45\xdf\xa3":
        _pieces(file, total, _element, "element")
    elif start[:4] == b"RIFF" and start[8:] == b"AVI ":
        _pieces(file, total, _riff, "chunk")


def _pieces(file: IO[bytes], total: int, size: Any, what: str) -> None:
    """Walk the outermost parts of a file, whose sizes `size(their first 16 bytes)` tells; None: up to the end."""
    at = 0
    while at < total:
        file.seek(at)
        n = size(file.read(16))
        if n is None:
            return
        at += max(n, 1)
    if at > total:
        raise DecodeError(f"cut short: its last {what} ends at byte {at} of {total}")


def _box(raw: bytes) -> int | None:
    """ISO 14496-12, 4.2."""
    if len(raw) < 8:
        return None
    (size,) = struct.unpack_from(">I", raw)
    if size == 1 and len(raw) == 16:
        (size,) = struct.unpack_from(">Q", raw, 8)
    return int(size) if size >= 8 else None


def _element(raw: bytes) -> int | None:
    """EBML, RFC 8794, 4 and 5: a number's length is in its leading zeros; all ones is an unknown size."""
    if not raw or not raw[0]:
        return None
    id_length = 9 - raw[0].bit_length()
    if len(raw) <= id_length or not raw[id_length]:
        return None
    length = 9 - raw[id_length].bit_length()
    value = int.from_bytes(raw[id_length : id_length + length]) & ((1 << 7 * length) - 1)
    return None if value == (1 << 7 * length) - 1 else id_length + length + value


def _riff(raw: bytes) -> int | None:
    if len(raw) < 8 or raw[:4] not in (b"RIFF", b"JUNK"):
        return None
    (size,) = struct.unpack_from("<I", raw, 4)
    return 8 + int(size) + int(size) % 2
