"""Sounds: soundfile writes and reads, soxr resamples; what they give is the oracle."""

from __future__ import annotations

import pickle
import struct
import sys
import wave
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile
import soxr

from bigconv.block import Block
from bigconv.errors import InputError, MissingPackage, UsageError
from bigconv.sources import audio
from bigconv.sources.audio import Audio
from bigconv.sources.base import Reject
from bigconv.testing.source_suite import Made, SourceSuite


def tone(frames: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """float32 `[frames]` or `[frames, channels]`, of values that 16 bits hold."""
    values = np.random.default_rng(seed).integers(-(2**14), 2**14, (frames, channels)) / 2**15
    return (values[:, 0] if channels == 1 else values).astype(np.float32)


def rows(source: Audio) -> tuple[list[dict[str, Any]], list[Reject]]:
    found: list[dict[str, Any]] = []
    rejects = []
    for span in source.plan():
        for item in source.read(span):
            if isinstance(item, Block):
                item.validate()
                found += item
            else:
                rejects.append(item)
    assert len(found) + len(rejects) == source.inputs
    return found, rejects


class TestMono(SourceSuite):
    """Lossless formats in two classes, of all lengths."""

    source = "audio"
    limits: ClassVar[dict[str, int]] = {"bigconv.sources.rowwise.SPAN_INPUTS": 2}

    def make(self, folder: Path) -> Made:
        expected = []
        for i, (end, rate) in enumerate((("wav", 8000), ("flac", 16000), ("aiff", 44100), ("WAV", 8000), ("flac", 1))):
            path = folder / ("cat" if i < 2 else "dog") / f"{i}.{end}"
            path.parent.mkdir(exist_ok=True)
            x = tone(3000 + i, seed=i)
            soundfile.write(path, x, rate, subtype="PCM_16")
            expected.append({"audio": x, "sample_rate": np.int64(rate), "label": np.int64(i >= 2)})
        return [folder], {}, expected


class TestStereoOfOneLength(SourceSuite):
    source = "audio"
    limits: ClassVar[dict[str, int]] = {"bigconv.sources.rowwise.SPAN_INPUTS": 2}

    def make(self, folder: Path) -> Made:
        expected = []
        for i in range(3):
            x = tone(3000, 2, i)
            soundfile.write(folder / f"{i}.flac", x, 8000, subtype="PCM_16")
            expected.append({"audio": x.T, "sample_rate": np.int64(8000)})
        return [folder], {}, expected


# -- what is in the files ----------------------------------------------------------------------------------------------


def test_one_length_is_a_fixed_shape(tmp_path: Path) -> None:
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", tone(100, seed=i), 8000)
    assert Audio.find([tmp_path]).schema["audio"].shape == (100,)
    soundfile.write(tmp_path / "3.wav", tone(101), 8000)
    assert Audio.find([tmp_path]).schema["audio"].shape == (None,)
    soundfile.write(tmp_path / "3.wav", tone(100), 16000)
    source = Audio.find([tmp_path])
    assert source.schema["audio"].shape == (100,)
    assert [int(row["sample_rate"]) for row in rows(source)[0]] == [8000, 8000, 8000, 16000]


def test_24_bits_are_exact(tmp_path: Path) -> None:
    """Written by Python's own wave module: full scale is 2^23."""
    values = np.random.default_rng(0).integers(-(2**23), 2**23, (500, 2))
    values[0] = -(2**23), 2**23 - 1
    with wave.open(str(tmp_path / "a.wav"), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(3)
        out.setframerate(48000)
        out.writeframes(b"".join(int(v).to_bytes(3, "little", signed=True) for v in values.ravel()))
    ((row,), _) = rows(Audio.find([tmp_path]))
    assert row["audio"].shape == (2, 500)
    np.testing.assert_array_equal(row["audio"] * np.float32(2**23), values.T)


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("wav", {"subtype": "PCM_U8"}),
        ("wav", {"subtype": "PCM_32"}),
        ("wav", {"subtype": "FLOAT"}),
        ("wav", {"subtype": "DOUBLE"}),
        ("wav", {"subtype": "ULAW"}),
        ("wav", {"format": "WAVEX", "subtype": "PCM_24"}),
        ("wav", {"format": "RF64", "subtype": "PCM_16"}),
        ("flac", {"subtype": "PCM_24"}),
        ("ogg", {"subtype": "VORBIS"}),
        ("opus", {"format": "OGG", "subtype": "OPUS"}),
        ("mp3", {"subtype": "MPEG_LAYER_III"}),
        ("aiff", {"subtype": "PCM_24"}),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_as_soundfile_reads_it(tmp_path: Path, end: str, how: dict[str, str], channels: int) -> None:
    path = tmp_path / f"a.{end}"
    soundfile.write(path, tone(9000, channels), 48000, **how)
    ((row,), rejects) = rows(Audio.find([path]))
    assert not rejects
    np.testing.assert_array_equal(row["audio"], soundfile.read(path, dtype="float32")[0].T)


@pytest.mark.parametrize("channels", [1, 2])
def test_resample(tmp_path: Path, channels: int) -> None:
    files = {"a.wav": (1000, 8000), "b.wav": (2000, 16000), "c.wav": (3001, 44100)}
    for name, (frames, rate) in files.items():
        soundfile.write(tmp_path / name, tone(frames, channels), rate, subtype="PCM_16")
    source = Audio.find([tmp_path], resample=16000)
    found, _ = rows(source)
    for row, (frames, rate) in zip(found, files.values(), strict=True):
        x = tone(frames, channels)
        wanted = x if rate == 16000 else soxr.resample(x, rate, 16000)
        np.testing.assert_array_equal(row["audio"], wanted.T)
        assert int(row["sample_rate"]) == 16000
    assert source.describe()["resample"] == 16000
    for name in ("b.wav", "c.wav"):
        soundfile.write(tmp_path / name, tone(1000, channels), 8000)
    fixed = Audio.find([tmp_path], resample=11025)
    assert None not in fixed.schema["audio"].shape
    assert rows(fixed)[1] == []


def test_labels(tmp_path: Path) -> None:
    for name in ("b_1.wav", "a_2.wav"):
        soundfile.write(tmp_path / name, tone(10), 8000)
    source = Audio.find([tmp_path], label_from="name:^[a-z]")
    assert source.schema["label"].classes == ("a", "b")
    assert [int(row["label"]) for row in rows(source)[0]] == [0, 1]
    assert "label" not in Audio.find([tmp_path]).schema
    (tmp_path / "table.csv").write_text("a_2.wav,x\n")
    with pytest.raises(InputError, match=r"no label for 1 of 2 sounds. The first: b_1\.wav"):
        Audio.find([tmp_path], label_from=f"csv:{tmp_path / 'table.csv'}")
    with pytest.raises(UsageError, match="labels need one folder"):
        Audio.find([tmp_path / "a_2.wav"], label_from="folder")


def test_mixed_channels_name_both_files(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(10), 8000)
    soundfile.write(tmp_path / "b.wav", tone(10, 2), 8000)
    with pytest.raises(InputError, match=r"mixed channels: b\.wav has 2, a\.wav has 1"):
        Audio.find([tmp_path])


def test_silence_of_no_frames(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0), 8000)
    soundfile.write(tmp_path / "b.wav", tone(10), 8000)
    assert [len(row["audio"]) for row in rows(Audio.find([tmp_path], resample=16000))[0]] == [0, 20]


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["wav", "flac", "ogg", "aiff"])
def test_every_length_is_whole_or_rejected(tmp_path: Path, end: str) -> None:
    """libsndfile reads WAV, AIFF and Ogg as far as they go, and says nothing."""
    soundfile.write(tmp_path / "whole.wav", tone(10), 8000)
    path = tmp_path / f"a.{end}"
    soundfile.write(path, tone(3000), 8000)
    data = path.read_bytes()
    for length in [*range(0, len(data), max(1, len(data) // 40)), len(data) - 2, len(data) - 1]:
        path.write_bytes(data[:length])
        found, rejects = rows(Audio.find([tmp_path]))
        assert [r.path for r in rejects] == [path.name], length
        assert len(found) == 1
        assert str(tmp_path) not in rejects[0].error
    assert "cut short" in rejects[0].error or end == "flac"


def test_an_mp3_with_a_length_is_not_cut_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(tmp_path / "b.mp3", tone(9000), 16000)
    soundfile.write(path, tone(30000), 16000)
    path.write_bytes(path.read_bytes()[:-600])
    _, rejects = rows(Audio.find([tmp_path]))
    assert "cut short" in rejects[0].error


def test_wav_from_a_pipe(tmp_path: Path) -> None:
    """Its writer could not go back for the size."""
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(100), 8000, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    at = data.index(b"data")
    data[4:8] = data[at + 4 : at + 8] = b"\xff" * 4
    path.write_bytes(data)
    ((row,), _) = rows(Audio.find([path]))
    np.testing.assert_array_equal(row["audio"], tone(100))


def test_a_header_that_promises_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than memory holds, in a FLAC's header and in silence that is really there."""
    soundfile.write(tmp_path / "b.wav", tone(10), 8000)
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(100), 8000)
    data = bytearray(path.read_bytes())
    (bits,) = struct.unpack_from(">Q", data, 18)  # rate, channels, bits, and 36 bits of frames
    struct.pack_into(">Q", data, 18, bits | (1 << 36) - 1)
    path.write_bytes(data)
    assert "more than" in rows(Audio.find([tmp_path]))[1][0].error
    soundfile.write(path, np.zeros(100_000, np.float32), 8000)
    monkeypatch.setattr(audio, "MAX_BYTES", 100_000)
    assert "more than 100000 bytes" in rows(Audio.find([tmp_path]))[1][0].error
    monkeypatch.setattr(audio, "MAX_BYTES", 400_000)
    assert "more than 400000 bytes" in rows(Audio.find([tmp_path], resample=16000))[1][0].error


def test_none_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"junk")
    (tmp_path / "b.wav").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of 2 sounds can be read. The first, a\.wav: can't be decoded") as error:
        Audio.find([tmp_path])
    assert str(tmp_path) not in str(error.value)
    (tmp_path / "a.wav").unlink()
    with pytest.raises(InputError, match="an empty file"):
        Audio.find([tmp_path])


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", tone(10), 8000)
    source = pickle.loads(pickle.dumps(Audio.find([tmp_path])))
    soundfile.write(tmp_path / "a.wav", tone(11), 8000)
    (tmp_path / "b.wav").unlink()
    assert ["changed" in rows(source)[1][0].error, "No such file" in rows(source)[1][1].error] == [True, True]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = bytes(tmp_path) + b"/\xff.wav"
    soundfile.write(tmp_path / "a.wav", tone(10), 8000)
    with open(path, "wb") as out:
        out.write((tmp_path / "a.wav").read_bytes())
    assert len(rows(Audio.find([tmp_path]))[0]) == 2


# -- options -----------------------------------------------------------------------------------------------------------


def test_rates_that_make_no_sense(tmp_path: Path) -> None:
    for rate in (0, -1, 10**9):
        with pytest.raises(UsageError, match="such as 16000"):
            Audio.find([tmp_path], resample=rate)


@pytest.mark.parametrize("package", ["soundfile", "soxr"])
def test_a_missing_package_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=r"pip install 'bigconv\[audio\]'"):
        Audio.find([tmp_path], resample=16000)
