"""Videos: PyAV encodes, lossless where pixels are compared; frames decoded from the start are the oracle."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import pytest
from _read import read_rows

from bigconv.errors import InputError, MissingPackage, UsageError
from bigconv.sources import video
from bigconv.sources.video import Video
from bigconv.testing.source_suite import Made, SourceSuite

VARIABLE = (0, 40, 80, 200, 210, 300, 301, 400, 500, 520)  # ms


def pictures(count: int, height: int = 32, width: int = 48, seed: int = 0) -> np.ndarray:
    """uint8 `[count, height, width, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def save(path: Path, frames: np.ndarray, times: Any = None, codec: str = "libx264rgb", form: str = "rgb24") -> None:
    """`times`: ms, or 25 frames a second. Without loss by default."""
    times = [40 * i for i in range(len(frames))] if times is None else times
    ms = Fraction(1, 1000)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], form
        stream.time_base = stream.codec_context.time_base = ms
        stream.gop_size = 4
        if codec == "libx264rgb":
            stream.options = {"qp": "0", "preset": "ultrafast", "bf": "2"}
        for picture, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=form)
            frame.pts, frame.time_base = time, ms
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def chw(frames: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2))


class TestVideos(SourceSuite):
    """Of all lengths, in two containers and two classes."""

    source = "video"
    limits: ClassVar = {"bigconv.sources.filerows.SPAN_INPUTS": 2}

    def make(self, folder: Path) -> Made:
        rows = []
        for i, end in enumerate(("mp4", "mkv", "MOV", "mp4", "mkv")):
            frames = pictures(3 + i % 3, seed=i)
            path = folder / ("run" if i < 2 else "walk") / f"{i}.{end}"
            path.parent.mkdir(exist_ok=True)
            save(path.with_suffix(f".{end.lower()}"), frames)
            path.with_suffix(f".{end.lower()}").rename(path)
            rows.append({"video": chw(frames), "time": np.arange(len(frames)) * 0.04, "label": np.int64(i >= 2)})
        return [folder], {}, rows


class TestClips(SourceSuite):
    """Ten clips of one file, whose key frames lie elsewhere."""

    source = "video"
    file_a_row = False
    limits: ClassVar = {"bigconv.sources.video.SPAN_FRAMES": 6, "bigconv.sources.filerows.SPAN_INPUTS": 4}

    def make(self, folder: Path) -> Made:
        frames = pictures(32)
        save(folder / "a.mp4", frames)
        clips = [{"video": chw(frames[i : i + 3]), "time": np.arange(i, i + 3) / 25} for i in range(0, 30, 3)]
        return [folder / "a.mp4"], {"frames": 3}, clips


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["mp4", "mkv", "mov"])
def test_a_variable_frame_rate_keeps_its_timestamps(tmp_path: Path, end: str) -> None:
    frames = pictures(10)
    save(tmp_path / f"a.{end}", frames, VARIABLE)
    ((row,), _) = read_rows(Video.find([tmp_path]))
    np.testing.assert_array_equal(row["video"], chw(frames))
    np.testing.assert_allclose(row["time"], np.array(VARIABLE) / 1000, atol=1e-4)


@pytest.mark.parametrize("end", ["mp4", "mkv"])
@pytest.mark.parametrize("fps", [1, 2.5, 10, 24, 29.97, 100])
def test_frames_are_those_on_the_screen(tmp_path: Path, end: str, fps: float) -> None:
    """At 0, 1/fps, 2/fps … seconds: by timestamps, so that a slow second gives as many frames as a fast one."""
    frames = pictures(10)
    save(tmp_path / f"a.{end}", frames, VARIABLE)
    ((row,), _) = read_rows(Video.find([tmp_path], fps=fps))
    times = np.arange(len(row["time"])) / fps
    np.testing.assert_allclose(row["time"], times, atol=1e-9)
    shown = np.searchsorted(VARIABLE, times * 1000 + 1e-6, side="right") - 1
    np.testing.assert_array_equal(row["video"], chw(frames[shown]))
    assert times[-1] < 0.56 <= times[-1] + 1 / fps + 0.04  # the last frame stays for some 40 ms


def test_clips_by_timestamps(tmp_path: Path) -> None:
    frames = pictures(10)
    save(tmp_path / "a.mkv", frames, VARIABLE)
    source = Video.find([tmp_path], fps=10, frames=2)
    rows, _ = read_rows(source)
    expected = [0, 2, 3, 5, 7, 8]
    np.testing.assert_array_equal(np.concatenate([row["video"] for row in rows]), chw(frames[expected]))
    assert source.describe() | {"fps": "10", "frames": 2, "frames_left_out": 0} == source.describe()


def test_a_rest_of_a_clip_is_left_out_and_told(tmp_path: Path) -> None:
    save(tmp_path / "a.mkv", pictures(11))
    source = Video.find([tmp_path], frames=4)
    assert source.inputs == 2
    assert source.describe()["frames_left_out"] == 3
    assert source.schema["video"].shape == (4, 3, 32, 48)


def test_seeking_finds_the_same_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every clip in a span of its own, last one first: each begins with a seek."""
    monkeypatch.setattr(video, "SPAN_FRAMES", 1)
    monkeypatch.setattr("bigconv.sources.filerows.SPAN_BYTES", 1)
    frames = pictures(40)
    for end in ("mp4", "mkv", "mov"):
        save(tmp_path / f"a.{end}", frames)
        source = Video.find([tmp_path / f"a.{end}"], frames=1)
        spans = source.plan()
        assert len(spans) == 40
        for span in reversed(spans):
            (block,) = source.read(span)
            np.testing.assert_array_equal(block["video"][0], chw(frames[span.start : span.stop]))


def test_avi_has_no_timestamps_of_frames_sent_early(tmp_path: Path) -> None:
    """MPEG-4 with B-frames in AVI: frames are counted instead."""
    frames = pictures(12)
    with av.open(str(tmp_path / "a.avi"), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.max_b_frames = 2
        for picture in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")))
        out.mux(stream.encode())
    with av.open(str(tmp_path / "a.avi")) as file:
        count = sum(1 for _ in file.decode(file.streams.video[0]))
    ((whole,), rejects) = read_rows(Video.find([tmp_path]))
    assert rejects == []
    assert len(whole["video"]) == count
    clips, _ = read_rows(Video.find([tmp_path], frames=3))
    joined = np.concatenate([clip["video"] for clip in clips])
    np.testing.assert_array_equal(joined, whole["video"][: len(joined)])


# -- pixels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "codec", "form"),
    [
        ("mp4", "libx264", "yuv420p"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("avi", "mjpeg", "yuvj420p"),
        ("mkv", "ffv1", "yuv444p"),
    ],
)
def test_lossy_codecs_as_pyav_decodes_them(tmp_path: Path, end: str, codec: str, form: str) -> None:
    """A smooth picture survives a codec up to some levels; nothing is shifted or swapped."""
    y, x = np.mgrid[0:64, 0:96]
    one = np.stack([2 * x, 3 * y, 255 - 2 * x], -1).clip(0, 255).astype(np.uint8)
    frames = np.stack([np.roll(one, 4 * i, axis=1) for i in range(6)])
    save(tmp_path / f"a.{end}", frames, codec=codec, form=form)
    ((row,), _) = read_rows(Video.find([tmp_path]))
    assert row["video"].shape == (6, 3, 64, 96)
    assert np.abs(row["video"].astype(int) - chw(frames)).mean() < 12


def test_sizes_vary_or_are_fixed(tmp_path: Path) -> None:
    save(tmp_path / "a.mp4", pictures(5))
    save(tmp_path / "b.mp4", pictures(5))
    assert Video.find([tmp_path]).schema["video"].shape == (5, 3, 32, 48)
    save(tmp_path / "b.mp4", pictures(6, 16, 48))
    source = Video.find([tmp_path])
    assert source.schema["video"].shape == (None, 3, None, 48)
    assert [row["video"].shape for row in read_rows(source)[0]] == [(5, 3, 32, 48), (6, 3, 16, 48)]


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "codec", "form"),
    [("mp4", "libx264rgb", "rgb24"), ("mkv", "libx264rgb", "rgb24"), ("avi", "mjpeg", "yuvj420p")],
)
def test_every_length_is_whole_or_rejected(tmp_path: Path, end: str, codec: str, form: str) -> None:
    save(tmp_path / "b.mp4", pictures(2))
    path = tmp_path / f"a.{end}"
    save(path, pictures(4), codec=codec, form=form)
    data = path.read_bytes()
    for length in [*range(0, len(data), len(data) // 25), len(data) - 2, len(data) - 1]:
        path.write_bytes(data[:length])
        rows, rejects = read_rows(Video.find([tmp_path]))
        assert ([r.path for r in rejects], len(rows)) == ([path.name], 1), length
        assert str(tmp_path) not in rejects[0].error


def test_fast_start_files_cut_short(tmp_path: Path) -> None:
    """The index is in front, so that FFmpeg plays what is left without a word."""
    save(tmp_path / "b.mp4", pictures(2))
    frames = pictures(20)
    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("libx264rgb", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 32, 48, "rgb24", 1
        for picture in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(stream.encode())
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    (tmp_path / "a.mp4").write_bytes(data[: len(data) * 3 // 4])
    _, (reject,) = read_rows(Video.find([tmp_path]))
    assert "cut short" in reject.error


def test_a_damaged_frame(tmp_path: Path) -> None:
    save(tmp_path / "b.mp4", pictures(2))
    save(tmp_path / "a.mp4", pictures(8))
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    at = data.index(b"mdat") + len(data) // 2
    data[at : at + 400] = bytes(400)
    (tmp_path / "a.mp4").write_bytes(data)
    _, (reject,) = read_rows(Video.find([tmp_path]))
    assert (reject.path, reject.stage) == ("a.mp4", "decode")


def test_a_playlist_that_names_other_files(tmp_path: Path) -> None:
    save(tmp_path / "b.mp4", pictures(2))
    (tmp_path / "a.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path / 'b.mp4'}\n")
    (tmp_path / "c.ts").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path / 'b.mp4'}\n#EXT-X-ENDLIST\n"
    )
    rows, rejects = read_rows(Video.find([tmp_path]))
    assert len(rows) == 1
    assert [r.path for r in rejects] == ["a.mp4", "c.ts"]


def test_a_file_without_video(tmp_path: Path) -> None:
    save(tmp_path / "b.mp4", pictures(2))
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    _, (reject,) = read_rows(Video.find([tmp_path]))
    assert reject.error == "has no video in it"


def test_rows_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_ROW_BYTES", 3 * 32 * 48 * 4)
    save(tmp_path / "a.mp4", pictures(5))
    with pytest.raises(InputError, match="--frames 16 cuts it up"):
        Video.find([tmp_path])
    assert len(read_rows(Video.find([tmp_path], frames=2))[0]) == 2
    with pytest.raises(InputError, match="5 frames are fewer than the 6 of a row"):
        Video.find([tmp_path], frames=6)


@pytest.mark.parametrize("options", [{"fps": 0}, {"fps": -1}, {"fps": float("nan")}, {"fps": 1e9}, {"frames": 0}])
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Video.find([tmp_path], **options)


def test_a_missing_package_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackage, match=r"pip install 'bigconv\[video\]'"):
        Video.find([tmp_path])
