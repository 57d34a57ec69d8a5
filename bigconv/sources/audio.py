"""A folder of sounds: WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF, by libsndfile.

Samples are float32, full scale is 1.0: exact for PCM of up to 24 bits. A file that is cut short is a reject: told by
the sizes in its chunks (WAV, AIFF), its last page (Ogg), its frames (FLAC), and of MP3 by the length in its Xing
header; an MP3 without one can't tell.
"""

from __future__ import annotations

import importlib
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from bigconv import registry
from bigconv.block import Array, Block, Index
from bigconv.decode import DecodeError
from bigconv.errors import InputError, UsageError
from bigconv.schema import Field, Schema
from bigconv.sources.base import Reject, Span
from bigconv.sources.filelist import FileList
from bigconv.sources.labels import Classes, class_names, numbered, told_of
from bigconv.sources.named import NamedFiles
from bigconv.sources.rowwise import SPAN_INPUTS, Row, assembled, sized_spans

MAX_BYTES = 2 << 30  # 2 GiB of samples, 3 hours of stereo: FLAC packs silence a thousandfold
MAX_RATE = 10_000_000  # Hz
TAIL_BYTES = 128 << 10  # 128 KiB: two pages of Ogg, of which the last one is looked for
UNKNOWN = 0xFFFFFFFF  # size of a chunk in a WAV that was written to a pipe


@dataclass(frozen=True, eq=False)
class Audio:
    """Each file is a row, in bytewise order of the paths.

    Fields: `audio`, float32 `[frames]`, or `[channels, frames]` where there are several, `sample_rate`, int64, in Hz,
    and `label`, int64, where there are labels. `frames`: int64 `[files]`, -1 for files that can't be read; `labels`:
    int64 `[files]`, or None; `resample`: the rate that all are brought to, or None.
    """

    name: ClassVar[str] = "audio"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("label_from", "classes", "resample")
    hints: ClassVar[tuple[str, ...]] = ("workers",)

    found: NamedFiles
    schema: Schema
    frames: Index
    labels: Index | None
    label_from: str
    resample: int | None

    @classmethod
    def find(
        cls,
        paths: Sequence[Path],
        *,
        label_from: str | None = None,
        classes: Classes | None = None,
        resample: int | None = None,
        workers: int = 1,
    ) -> Audio:
        """List the files, find their labels and read their headers.

        `label_from`, `classes`: see `labels`. `resample`: Hz. Raises `InputError`, also when some files have more
        channels than others, `UsageError`, `MissingPackage`.
        """
        if resample is not None and not 1 <= resample <= MAX_RATE:
            raise UsageError(f"--resample {resample}: expected a rate in Hz, such as 16000")
        _library("soundfile")
        if resample is not None:
            _library("soxr")
        found = NamedFiles.of(paths, registry.SOURCES[cls.name].extensions, "sounds")
        if len(paths) == 1 and paths[0].is_dir():
            label_from, names = class_names(found.files, label_from, "sounds")
        elif label_from in (None, "none"):
            label_from, names = "none", None
        else:
            raise UsageError("--label-from: labels need one folder of sounds; these are named one by one")
        heads = _heads(found, workers)
        channels = _channels(found, heads)
        frames, rates = heads[:, 0], heads[:, 2]
        shape: tuple[int | None, ...] = (_common(frames, rates, resample),)
        fields = [
            Field("audio", "float32", shape if channels == 1 else (channels, *shape), kind="audio"),
            Field("sample_rate", "int64", (), "label"),  # a number about the row: steps leave it alone
        ]
        labels = None
        if names is not None:
            label, labels = numbered(names, classes)
            fields.append(label)
        elif classes is not None:
            raise UsageError("--classes needs labels: say where they come from with --label-from")
        return cls(found, Schema(tuple(fields)), frames, labels, label_from or "none", resample)

    @property
    def files(self) -> FileList:
        return self.found.files

    @property
    def inputs(self) -> int:
        return len(self.found)

    def plan(self) -> Sequence[Span]:
        channels = self.schema["audio"].shape[0] if len(self.schema["audio"].shape) == 2 else 1
        return sized_spans(np.maximum(self.frames, 0) * 4 * (channels or 1))

    def read(self, span: Span) -> Iterator[Block | Reject]:
        yield from assembled(self.schema, range(span.start, span.stop), self._row, lambda i: (i, 0), self.files)

    def _row(self, i: int) -> Row:
        if os.stat(self.found.paths[i]).st_size != self.files.sizes[i]:
            raise InputError(f"changed since it was listed with {self.files.sizes[i]} bytes")
        samples, rate = _decoded(self.found.paths[i])
        if self.resample is not None and rate != self.resample:
            samples, rate = _resampled(samples, rate, self.resample), self.resample
        mono = len(self.schema["audio"].shape) == 1
        if mono and samples.shape[1] != 1:
            raise InputError(f"has {samples.shape[1]} channels instead of 1")
        audio = samples[:, 0] if mono else np.ascontiguousarray(samples.T)
        row = {"audio": audio, "sample_rate": np.array(rate, np.int64)}
        if self.labels is not None:
            row["label"] = np.array(self.labels[i])
        return row

    def describe(self) -> dict[str, Any]:
        told = {
            "kind": self.name,
            "files": len(self.found),
            "bytes": int(self.files.sizes.sum()),
            **told_of(self.label_from, self.labels),
        }
        return told if self.resample is None else {**told, "resample": self.resample}


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ModuleNotFoundError, OSError) as error:  # OSError: the wheel without libsndfile
        raise registry.missing(name, "audio", "audio" if name == "soundfile" else "--resample") from error


def _head(path: str) -> tuple[int, int, int]:
    """Frames, channels and rate. Raises `InputError`."""
    soundfile = _library("soundfile")
    try:
        with soundfile.SoundFile(_as_bytes(path)) as file:
            return _checked(file)
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _as_bytes(path: str) -> str | bytes:
    """As libsndfile opens any name: soundfile encodes strings as UTF-8, which some names are not."""
    return path if os.name == "nt" else os.fsencode(path)


def _checked(file: Any) -> tuple[int, int, int]:
    frames, channels, rate = int(file.frames), int(file.channels), int(file.samplerate)
    if not 0 <= frames * channels * 4 <= MAX_BYTES:
        raise DecodeError(f"{frames} frames of {channels} channels are more than {MAX_BYTES} bytes")
    if not 1 <= rate <= MAX_RATE:
        raise DecodeError(f"a sample rate of {rate} Hz")
    return frames, channels, rate


def _damaged(path: str, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    with open(path, "rb") as file:
        if not file.read(1):
            return DecodeError("an empty file")
    why = " ".join(str(error).replace(repr(_as_bytes(path)), "").split()).removeprefix("Error opening :").strip()
    return DecodeError(f"can't be decoded: {why[:200] or type(error).__name__}")


def _decoded(path: str) -> tuple[Array, int]:
    """float32 `[frames, channels]` and the rate. Raises `InputError`."""
    soundfile = _library("soundfile")
    with open(path, "rb") as stream:
        _whole(stream)
    try:
        with soundfile.SoundFile(_as_bytes(path)) as file:
            frames, _, rate = _checked(file)
            samples: Array = file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    except MemoryError as error:
        raise DecodeError(f"{frames} frames don't fit in memory") from error
    if len(samples) != frames:
        raise DecodeError(f"cut short: {len(samples)} of {frames} frames")
    return samples, rate


def _resampled(samples: Array, rate: int, wanted: int) -> Array:
    if not len(samples):
        return samples
    if len(samples) * samples.shape[1] * 4 * wanted // rate > MAX_BYTES:
        raise DecodeError(f"{len(samples)} frames at {wanted} instead of {rate} Hz are more than {MAX_BYTES} bytes")
    out: Array = _library("soxr").resample(samples, rate, wanted)
    return out


def _heads(found: NamedFiles, workers: int) -> Index:
    """int64 `[files, 3]`: frames, channels and rate; -1 where a file can't be read. Raises when none can be."""
    heads = np.full((len(found), 3), -1, np.int64)

    def look(start: int) -> None:
        for i in range(start, min(start + SPAN_INPUTS, len(found))):
            try:
                heads[i] = _head(found.paths[i])
            except (InputError, OSError):
                continue  # becomes a reject when it is read

    starts = range(0, len(found), SPAN_INPUTS)
    with ThreadPoolExecutor(max(1, workers)) as pool:  # which wait for the disk together
        for _ in pool.map(look, starts):
            pass
    if (heads[:, 0] < 0).all():
        try:
            _head(found.paths[0])
            why = "changed while it was read"
        except (InputError, OSError) as error:
            why = str(error)
        raise InputError(f"none of {len(found)} sounds can be read. The first, {found.name(0)}: {why}")
    return heads


def _channels(found: NamedFiles, heads: Index) -> int:
    good = np.flatnonzero(heads[:, 0] >= 0)
    channels = heads[good, 1]
    odd = np.flatnonzero(channels != channels[0])
    if len(odd):
        raise InputError(
            f"mixed channels: {found.name(int(good[odd[0]]))} has {channels[odd[0]]}, "
            f"{found.name(int(good[0]))} has {channels[0]}.\n"
            "Samples of one store have the same: convert the odd ones, or keep them in folders of their own"
        )
    return int(channels[0])


def _common(frames: Index, rates: Index, resample: int | None) -> int | None:
    """How many frames all sounds have in the end, if it is the same number."""
    kinds = np.unique(np.stack([frames, rates], axis=1)[frames >= 0], axis=0).tolist()
    if resample is None:
        kinds = [[length, 0] for length in {length for length, _ in kinds}]
    if len(kinds) != 1:
        return None
    ((length, rate),) = kinds
    if resample in (None, rate):
        return int(length)
    return len(_resampled(np.zeros((length, 1), np.float32), rate, int(resample or rate)))


# -- files that are cut short, which libsndfile reads as far as they go ------------------------------------------------


def _whole(file: IO[bytes]) -> None:
    """Raise `DecodeError` for a file that ends before its own headers say."""
    total = os.fstat(file.fileno()).st_size
    head = file.read(12)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:] == b"WAVE":
        _chunks(file, "<" if head[:4] != b"RIFX" else ">", b"data", total)
    elif head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        _chunks(file, ">", b"SSND", total)
    elif head[:4] == b"OggS":
        file.seek(max(0, total - TAIL_BYTES))
        tail = file.read()
        page = tail.rfind(b"OggS")  # RFC 3533: the byte 5 on has the flag 4 in the last page of a stream
        if page < 0 or page + 27 > len(tail) or not tail[page + 5] & 4:
            raise DecodeError("cut short: its last page is missing")
        segments = tail[page + 27 : page + 27 + tail[page + 26]]
        if len(segments) < tail[page + 26] or page + 27 + len(segments) + sum(segments) > len(tail):
            raise DecodeError("cut short: its last page is")


def _chunks(file: IO[bytes], order: str, wanted: bytes, total: int) -> None:
    """Walk the chunks of an IFF file up to the one with the samples."""
    at, long = 12, 0
    while True:
        file.seek(at)
        header = file.read(8)
        if len(header) < 8:
            return  # libsndfile says what is missing
        name, size = struct.unpack(order + "4sI", header)
        if name == b"ds64":  # EBU Tech 3306: sizes of 64 bits, of the file and of its samples
            sizes = file.read(16)
            long = struct.unpack("<8xQ", sizes)[0] if len(sizes) == 16 else 0
        if name == wanted:
            size = (long or size) if size == UNKNOWN else size
            if size != UNKNOWN and at + 8 + size > total:
                raise DecodeError(f"cut short: {total - at - 8} of {size} bytes of samples")
            return
        at += 8 + size + size % 2
