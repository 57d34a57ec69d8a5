"""decode.py against Pillow, the oracle."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from bigconv import decode
from bigconv.decode import DecodeError
from bigconv.errors import BigconvError

H, W = 37, 53


def smooth(height: int = H, width: int = W, channels: int = 3) -> np.ndarray:
    """[height, width, channels] uint8, different in every corner."""
    y, x = np.mgrid[:height, :width]
    planes = [(x * (3 + k) + y * (5 - k) + 40 * np.sin(x / 9 + k)) % 256 for k in range(channels)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def of_mode(mode: str) -> Image.Image:
    if mode == "RGBA":
        return Image.fromarray(smooth(channels=4))
    if mode == "LA":
        grey = Image.fromarray(smooth()[..., 0])
        return Image.merge("LA", (grey, Image.fromarray(smooth()[..., 1])))
    if mode == "I;16":
        return Image.fromarray((smooth()[..., 0].astype(np.uint16) << 8) | smooth()[..., 1])
    return Image.fromarray(smooth()).convert(mode)


def pillow(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def check(data: bytes, expected: np.ndarray) -> None:
    pixels = decode.decode(data)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, expected)
    assert decode.probe(data) == expected.shape[:2]
    out = np.full_like(expected, 7)
    assert decode.decode(data, lambda *_: out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF", "JPEG"])
def test_rgb_of_every_format(form: str) -> None:
    data = encoded(Image.fromarray(smooth()), form, **({"lossless": True} if form == "WEBP" else {}))
    check(data, pillow(data))
    if form not in ("JPEG", "GIF", "AVIF"):
        np.testing.assert_array_equal(decode.decode(data), smooth())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_modes(mode: str, form: str) -> None:
    data = encoded(of_mode(mode), form)
    check(data, pillow(data))


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"progressive": True}),
        ("L", {}),
        ("CMYK", {}),
        ("RGB", {"subsampling": 0}),
        ("RGB", {"quality": 5}),
    ],
)
def test_jpeg(mode: str, options: dict[str, object]) -> None:
    data = encoded(of_mode(mode), "JPEG", **options)
    check(data, pillow(data))


def test_alpha_is_dropped_not_composited() -> None:
    rgba = smooth(channels=4)
    rgba[..., 3] = 0
    np.testing.assert_array_equal(decode.decode(encoded(Image.fromarray(rgba), "PNG")), rgba[..., :3])


def test_palette_with_transparency() -> None:
    image = of_mode("P")
    for transparency in (3, bytes(range(256))):  # one colour, an alpha for each
        data = encoded(image, "PNG", transparency=transparency)
        check(data, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bits_keep_the_upper_8(form: str) -> None:
    check(encoded(of_mode("I;16"), form), np.repeat(smooth()[..., :1], 3, axis=2))


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(height: int, width: int, depth: int, colour: int, rows: bytes, *, last: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + last + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_16_bit_rgb_png() -> None:
    wide = (smooth().astype(">u2") << 8) | smooth(channels=3)[::-1]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    check(png(H, W, 16, 2, rows), smooth())


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(form: str, turn: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = turn
    exif[270] = "a description, so that the directory has two entries"
    options: dict[str, object] = {"lossless": True} if form == "WEBP" else {}
    data = encoded(Image.fromarray(smooth()), form, exif=exif, **options)
    expected = pillow(data)
    assert expected.shape[:2] == ((H, W) if turn < 5 else (W, H))
    check(data, expected)
    path = tmp_path / "image"
    path.write_bytes(data)
    assert decode.probe_file(str(path)) == expected.shape[:2]


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_big_endian_behind_the_pixels_of_a_png(turn: int) -> None:
    exif = b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 274, 3, 1, turn, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in smooth())
    data = png(H, W, 8, 2, rows, last=chunk(b"eXIf", exif))
    check(data, pillow(data))


def test_cmyk_jpeg_is_turned_too() -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(of_mode("CMYK"), "JPEG", exif=exif)
    check(data, pillow(data))


def test_heads_that_begin_alike() -> None:
    """A head is known again only as a whole: what comes behind the same beginning counts."""
    upright = encoded(Image.fromarray(smooth()), "JPEG", quality=90)
    pixels = upright.index(b"\xff\xda")
    exif = Image.Exif()
    exif[274] = 6
    segment = b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(exif.tobytes()[6:])) + exif.tobytes()
    turned = upright[:pixels] + segment + upright[pixels:]
    grey = encoded(Image.fromarray(smooth()[..., 0]), "JPEG", quality=90)
    cmyk = encoded(Image.fromarray(smooth()).convert("CMYK"), "JPEG", quality=90)
    for data in (upright, turned, turned, upright, grey, grey, cmyk, cmyk, upright, cmyk, turned, grey):
        expected = pillow(data)
        check(data, expected)
        assert decode.probe(data) == expected.shape[:2]
    assert decode.probe(turned) == (W, H)
    with pytest.raises(DecodeError, match=r"cut short|can't be decoded"):
        decode.decode(upright[: pixels + 2])


@pytest.mark.parametrize(
    "exif", [b"", b"II", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0", b"XXXX"]
)
def test_damaged_exif_is_ignored(exif: bytes) -> None:
    plain = encoded(Image.fromarray(smooth()), "JPEG")
    body = b"Exif\0\0" + exif
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]
    check(data, pillow(plain))


def test_first_frame_of_an_animation() -> None:
    frames = [Image.fromarray(smooth()[::s, ::1][: H // 2].copy()).quantize(64) for s in (1, 2)]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    check(gif, pillow(gif))
    webp = encoded(frames[0].convert("RGB"), "WEBP", save_all=True, lossless=True, append_images=frames[1:])
    check(webp, np.asarray(frames[0].convert("RGB")))


def test_pages_and_floats_are_refused() -> None:
    page = Image.fromarray(smooth())
    with pytest.raises(DecodeError, match="2 pages"):
        decode.decode(encoded(page, "TIFF", save_all=True, append_images=[page]))
    with pytest.raises(DecodeError, match="mode F"):
        decode.decode(encoded(Image.fromarray(np.ones((4, 5), np.float32)), "TIFF"))
    with pytest.raises(DecodeError, match="mode I"):
        decode.decode(encoded(Image.fromarray(np.ones((4, 5), np.int32)), "TIFF"))


@pytest.mark.parametrize("form", ["JPEG", "PROGRESSIVE", "CMYK", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF"])
def test_cut_short_anywhere(form: str) -> None:
    image = of_mode("CMYK") if form == "CMYK" else Image.fromarray(smooth())
    if form in ("PROGRESSIVE", "CMYK"):
        data = encoded(image, "JPEG", progressive=form == "PROGRESSIVE")
    else:
        data = encoded(image, form)
    whole = decode.decode(data)
    for keep in [*range(0, len(data) - 1, max(1, len(data) // 40)), len(data) - 2, len(data) - 1]:
        try:
            pixels = decode.decode(data[:keep])
        except DecodeError as error:
            reason = str(error)
            assert reason
            assert "\n" not in reason
            assert " at 0x" not in reason
        else:  # only what stands behind the pixels may be missing
            np.testing.assert_array_equal(pixels, whole)
            assert keep > len(data) - 40 or form == "TIFF", keep


def test_damaged_jpeg_pixels_are_an_error() -> None:
    data = bytearray(encoded(Image.fromarray(smooth(200, 200)), "JPEG"))
    middle = len(data) // 2
    data[middle : middle + 2] = b"\xff\xd9"
    with pytest.raises(DecodeError, match="cut short"):
        decode.decode(bytes(data))
    pillow(bytes(data))  # Pillow fills in grey


def test_extra_bytes_in_a_jpeg_are_not() -> None:
    data = encoded(Image.fromarray(smooth()), "JPEG")
    check(data[:-2] + bytes(7) + data[-2:], pillow(data))
    check(data + b"appended", pillow(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file"),
        (b"hello, world, this is text", "not an image: starts with b'hello, world, th'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (b"\xff\xd8\xff", "JPEG can't be decoded"),
        (b"\x89PNG\r\n\x1a\n", "PNG can't be decoded"),
        (b"BM" + bytes(30), "BMP can't be decoded"),
        (b"GIF89a" + bytes(3), "GIF can't be decoded"),
        (b"P6\n1 x 255\n", "PPM can't be decoded"),
    ],
)
def test_not_an_image(data: bytes, reason: str) -> None:
    for use in (decode.decode, decode.probe):
        with pytest.raises(DecodeError) as raised:
            use(data)
        assert str(raised.value).startswith(reason)
        assert isinstance(raised.value, (ValueError, BigconvError))


@pytest.mark.parametrize("side", [13_500, 20_000, 60_000])  # Pillow: warns, raises, raises
def test_bombs(side: int) -> None:
    data = png(side, side, 8, 2, b"")
    for use in (decode.decode, decode.probe):
        with pytest.raises(DecodeError, match="more than the 178,956,970 allowed"):
            use(data)


def test_jpeg_bomb() -> None:
    data = bytearray(encoded(Image.fromarray(smooth()), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    for use in (decode.decode, decode.probe):
        with pytest.raises(DecodeError, match="65000x65000 pixels are more"):
            use(bytes(data))


def test_a_place_is_asked_for_by_size_and_may_refuse() -> None:
    def refused(height: int, width: int) -> np.ndarray:
        raise DecodeError(f"{height}x{width} pixels instead of {H}x{W + 1}")

    for form in ("JPEG", "PNG"):
        with pytest.raises(DecodeError, match=f"{H}x{W} pixels instead of {H}x{W + 1}"):
            decode.decode(encoded(Image.fromarray(smooth()), form), refused)


def test_no_warning_leaks_in_any_thread() -> None:
    good = encoded(Image.fromarray(smooth()), "PNG")
    at = good.index(b"IDAT") - 4
    odd = good[:at] + chunk(b"acTL", bytes(8)) + good[at:]  # an animation of 0 frames
    seen: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=lambda: seen.append(str(decode.decode(odd).shape))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [str((H, W, 3))] * 4
    assert not caught


def test_probe_file_reads_past_a_long_header(tmp_path: Path) -> None:
    plain = encoded(Image.fromarray(smooth()), "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 60_002) + bytes(60_000)
    path = tmp_path / "a.jpg"
    path.write_bytes(plain[:2] + comment * 2 + plain[2:])
    assert decode.probe_file(str(path)) == (H, W)
    large = tmp_path / "b.png"
    large.write_bytes(
        encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 201, 3), np.uint8)), "PNG")
    )
    assert large.stat().st_size > decode.HEAD_BYTES
    assert decode.probe_file(str(large)) == (200, 201)
    for name, reason in (("none", b"x" * 100), ("much", b"x" * 100_000)):
        (tmp_path / name).write_bytes(reason)
        with pytest.raises(DecodeError, match="not an image"):
            decode.probe_file(str(tmp_path / name))


def test_jpeg_needs_no_pillow() -> None:
    data = encoded(Image.fromarray(smooth()), "JPEG")
    code = (
        "import sys; from bigconv import decode; data = sys.stdin.buffer.read(); loaded = set(sys.modules);"
        "assert not {'PIL', 'simplejpeg', 'torch'} & loaded; decode.decode(data); assert 'PIL' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], input=data, check=True)
