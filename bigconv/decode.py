"""Image files to pixels: one place for sources and for the runtime.

What comes out is always `[height, width, 3] uint8`, RGB, C-contiguous and writable. By definition:

| in the file | becomes |
|---|---|
| EXIF orientation (JPEG, PNG `eXIf`, WebP, AVIF, TIFF) | applied: the image stands as a viewer shows it |
| greyscale, black and white | the same value in all three channels |
| palette | its colours |
| alpha, a transparent colour | dropped: RGB as stored, nothing is composited |
| 16 bits a channel | the upper 8 (`>> 8`) |
| CMYK | RGB as Pillow converts it |
| an animation | its first frame |
| several pages of a TIFF | refused: that is a volume, not an image |
| 32-bit integers, floats, Lab | refused: they have no 8-bit meaning |
| colour profiles, gamma, XMP | ignored |

JPEG is decoded by simplejpeg, what it can't read (CMYK, rare samplings) and all else by Pillow. A file that is cut
short is an error, and so is a JPEG whose pixel data libjpeg finds damaged, where Pillow would fill in grey. Extra
bytes between JPEG segments are not: cameras write them. More than `MAX_PIXELS` pixels are refused before any are
decoded. Formats are told by content, never by suffix, and only those in `_PLUGINS` are tried: Pillow knows many
more, one of which runs Ghostscript.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import struct
import warnings
from collections.abc import Callable
from functools import cache
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np

from bigconv import orientation
from bigconv.block import Array
from bigconv.errors import InputError
from bigconv.sniff import looks

MAX_PIXELS = 178_956_970  # Pillow's limit, a quarter GiB of 24-bit pixels: past it Pillow only warns, we refuse
HEAD_BYTES = 64 << 10  # 64 KiB: nearly all JPEG headers, EXIF thumbnail included, end before that

_JPEG = b"\xff\xd8\xff"
_PLUGINS = {
    "PNG": ("PngImagePlugin", "PngImageFile"),
    "WebP": ("WebPImagePlugin", "WebPImageFile"),
    "GIF": ("GifImagePlugin", "GifImageFile"),
    "BMP": ("BmpImagePlugin", "BmpImageFile"),
    "TIFF": ("TiffImagePlugin", "TiffImageFile"),
    "AVIF": ("AvifImagePlugin", "AvifImageFile"),
    "PPM": ("PpmImagePlugin", "PpmImageFile"),
    "JPEG": ("JpegImagePlugin", "JpegImageFile"),
}
# What libjpeg says when pixels are lost. It decodes on with grey, and Pillow keeps silent about it.
_DAMAGE = ("remature end", "bad Huffman code", "instead of RST", "Inconsistent progression")
_FROM_PILLOW = r"PIL\."  # modules whose warnings are hushed

Place = Callable[[int, int], Array]  # height and width -> C-contiguous `[height, width, 3] uint8` to write to


class DecodeError(InputError):
    """Bytes that are no image, or a damaged one. The message is one line and names no file."""


def probe(data: bytes) -> tuple[int, int]:
    """Height and width of what `decode` returns, from the header alone. Raises `DecodeError`."""
    if data[:3] == _JPEG:
        head = _jpeg_head(data)
        if head is not None:
            return _upright(head)
    return _pillow_size(io.BytesIO(data))


def _upright(head: _Head) -> tuple[int, int]:
    return (head.width, head.height) if head.turn >= 5 else (head.height, head.width)


def probe_file(path: str | bytes) -> tuple[int, int]:
    """`probe` of a file, reading only what is needed. Raises `DecodeError` or `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        start = os.read(fd, HEAD_BYTES)
        if start[:3] == _JPEG:
            head = _jpeg_head(start)
            if head is not None:
                return _upright(head)
        if len(start) < HEAD_BYTES:
            return _pillow_size(io.BytesIO(start))
        with open(fd, "rb", closefd=False) as file:
            file.seek(0)
            return probe(file.read()) if start[:3] == _JPEG else _pillow_size(file)
    finally:
        os.close(fd)


def decode(data: bytes, place: Place | None = None) -> Array:
    """Pixels of an image file, `[height, width, 3] uint8`.

    They are written to what `place(height, width)` gives, a C-contiguous array of that size, and that is returned. It
    is asked again where a second decoder has to try. Raises `DecodeError`; the array may then hold anything.
    """
    if data[:3] == _JPEG:
        found = _decode_jpeg(data, place)
        if found is not None:
            return found
    return _placed(_decode_pillow(data), place)


def _placed(pixels: Array, place: Place | None) -> Array:
    if place is None:
        return pixels
    out = place(pixels.shape[0], pixels.shape[1])
    out[...] = pixels
    return out


@cache
def _simplejpeg() -> Any:
    import simplejpeg

    return simplejpeg


def _decode_jpeg(data: bytes, place: Place | None) -> Array | None:
    """Pixels by simplejpeg; None where Pillow has to try."""
    simplejpeg = _simplejpeg()
    head = _jpeg_head(data)
    if head is not None and head.channels in (1, 3):
        _, height, width, _, turn = head
    else:
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return None
        _check_size(height, width)
        if space in ("CMYK", "YCCK"):
            return None
        turn = orientation.of_jpeg(data)
    pixels: Array
    try:
        if place is None or turn != 1:
            pixels = simplejpeg.decode_jpeg(data)
        else:
            out = place(height, width)
            simplejpeg.decode_jpeg(data, buffer=out)
            return out
    except DecodeError:
        raise
    except ValueError as error:
        if any(sign in str(error) for sign in _DAMAGE):
            _fail("JPEG", error)
        return None
    return _placed(orientation.turned(pixels, turn), place)


def _decode_pillow(data: bytes) -> Array:
    kind, image = _open(io.BytesIO(data))
    try:
        if kind == "TIFF" and image.n_frames > 1:
            raise DecodeError(f"a TIFF of {image.n_frames} pages is a volume, not an image")
        image.load()
        if image.mode in ("I", "F", "LAB", "HSV") and not (image.mode == "I" and kind in ("PNG", "PPM")):
            raise DecodeError(f"{kind} of mode {image.mode} has no 8-bit colours")
        if image.mode.startswith("I"):
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            pixels = np.repeat(grey[:, :, None], 3, axis=2)
        else:
            image.info.pop("transparency", None)  # or Pillow warns that it is lost
            if image.mode in ("La", "RGBa"):  # premultiplied, which has no direct way to RGB
                image = image.convert("LA" if image.mode == "La" else "RGBA")
            pixels = np.array(image.convert("RGB"))
    except DecodeError:
        raise
    except Exception as error:  # noqa: BLE001  Pillow's plug-ins raise whatever the damage leads to
        _fail(kind, error)
    if kind == "TIFF":  # Pillow turns these itself
        return pixels
    turn = orientation.of_jpeg(data) if kind == "JPEG" else orientation.of_exif(image.info.get("exif", b""))
    return orientation.turned(pixels, turn)


def probe_mask(data: bytes) -> tuple[int, int, str]:
    """Height, width and dtype of what `decode_mask` returns, from the header alone. Raises `DecodeError`."""
    kind, image = _open(io.BytesIO(data))
    dtype = _mask_dtype(kind, image.mode)
    height, width = _pillow_size(io.BytesIO(data))
    return height, width, dtype


def decode_mask(data: bytes) -> Array:
    """Integers of a mask, `[height, width]`: numbers of a palette's colours (uint8), grey values as they are (uint8,
    uint16 or int32), 0 and 1 of black and white (uint8).

    Nothing is scaled and nothing blended. It is turned as EXIF says. Raises `DecodeError`, also for colours.
    """
    kind, image = _open(io.BytesIO(data))
    dtype = _mask_dtype(kind, image.mode)
    try:
        if kind == "TIFF" and image.n_frames > 1:
            raise DecodeError(f"a TIFF of {image.n_frames} pages is a volume, not a mask")
        image.load()
        mask = np.array(image.getchannel(0) if image.mode == "LA" else image).astype(dtype)
    except DecodeError:
        raise
    except Exception as error:  # noqa: BLE001  as in _decode_pillow
        _fail(kind, error)
    if kind == "TIFF":  # Pillow turns these itself
        return mask
    return orientation.turned(
        mask, orientation.of_jpeg(data) if kind == "JPEG" else orientation.of_exif(image.info.get("exif", b""))
    )


def _mask_dtype(kind: str, mode: str) -> str:
    if mode in ("1", "L", "P", "LA"):
        return "uint8"
    if mode.startswith("I"):
        return "int32" if mode == "I" else "uint16"
    raise DecodeError(f"{kind} of mode {mode}: a mask has one number a pixel, not colours")


class _Head(NamedTuple):
    """What a JPEG says before its pixels. `raw`: its bytes up to them, and the marker that they begin with."""

    raw: bytes
    height: int  # as stored
    width: int
    channels: int
    turn: int  # EXIF orientation, 1 to 8


_last_head = _Head(b"no JPEG", 0, 0, 0, 1)


def _jpeg_head(data: bytes) -> _Head | None:
    """The head of a JPEG; None where libjpeg or Pillow has to look. Raises `DecodeError`.

    Walks the segments once (ITU-T T.81, B.1.1): much quicker than libjpeg, as folders of millions of files are looked
    through whole. A head that is byte for byte that of the file before isn't walked again, and one encoder makes many.
    """
    global _last_head
    head = _last_head  # one read: other threads decode as well
    if data.startswith(head.raw):
        return head
    at, end, turn = 2, len(data) - 10, 0
    size: tuple[int, int, int] | None = None
    while at <= end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xDA:  # pixels start
            if size is None or 0 in size:
                break
            _check_size(*size[:2])
            _last_head = head = _Head(data[: at + 2], *size, turn or 1)
            return head
        if marker == 0xE1 and not turn and data[at + 4 : at + 10] == b"Exif\0\0":
            turn = orientation.of_exif(data[at + 10 : at + 2 + (data[at + 2] << 8 | data[at + 3])])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame: height, width, components
            size = (data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8], data[at + 9])
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _pillow_size(file: IO[bytes]) -> tuple[int, int]:
    kind, image = _open(file)
    width, height = image.size
    if kind == "TIFF":
        return height, width
    try:
        if kind == "JPEG":
            file.seek(0)
            exif_turn = orientation.of_jpeg(file.read())
        else:
            exif_turn = orientation.of_exif(
                orientation.exif_of_png(file) if kind == "PNG" else image.info.get("exif", b"")
            )
    except (OSError, struct.error) as error:
        _fail(kind, error)
    return (width, height) if exif_turn >= 5 else (height, width)


def _open(file: IO[bytes]) -> tuple[str, Any]:
    """Format and lazily opened Pillow image. By the plug-in, as `Image.open` would only warn about a bomb."""
    head = file.read(64)
    kind = format_of(head)
    if kind is None:
        raise DecodeError("an empty file" if not head else f"not an image: {looks(head)}")
    module, name = _PLUGINS[kind]
    try:
        plugin = getattr(importlib.import_module(f"PIL.{module}"), name)
    except ImportError as error:
        raise DecodeError(f"{kind} can't be read by this version of Pillow") from error
    _hush_pillow()
    file.seek(0)
    try:
        image = plugin(file)
    except Exception as error:  # noqa: BLE001  as in _decode_pillow
        _fail(kind, error)
    width, height = image.size
    _check_size(height, width)
    return kind, image


def format_of(head: bytes) -> str | None:
    """Name of the image format that bytes begin like (16 of them tell); None for none."""
    if head.startswith(_JPEG):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    if head.startswith(b"BM"):
        return "BMP"
    if len(head) > 2 and head[:1] == b"P" and head[1] in b"123456" and chr(head[2]).isspace():
        return "PPM"
    return None


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise DecodeError(f"{height}x{width} pixels")
    if height * width > MAX_PIXELS:
        raise DecodeError(f"{height}x{width} pixels are more than the {MAX_PIXELS:,} allowed")


def same_size(height: int, width: int, expected: tuple[int, ...]) -> None:
    """Raises `DecodeError` for an image that is not `[height, width, 3]` of the shape expected."""
    if (height, width, 3) != expected:
        raise DecodeError(f"{height}x{width} pixels instead of {expected[0]}x{expected[1]}")


def into(out: Array) -> Place:
    """The place for an image of the size of `out`, `[height, width, 3] uint8`, and for no other."""

    def place(height: int, width: int) -> Array:
        same_size(height, width, out.shape)
        return out

    return place


def _fail(kind: str, error: Exception) -> NoReturn:
    reason = " ".join(str(error).split()) or type(error).__name__
    if re.search(r"(?i)truncat|premature|unexpected end|end of file|incomplete", reason):
        raise DecodeError(f"a {kind} image that is cut short: copy or download it again") from error
    raise DecodeError(f"{kind} can't be decoded: {reason}") from error


def _hush_pillow() -> None:
    """Keep Pillow from warning of odd metadata: the pixels are good, and nobody could act on it.

    A filter of the process, as `warnings.catch_warnings` is not safe in threads. Bomb warnings are no `UserWarning`.
    """
    if not any(f[2] is UserWarning and f[3] is not None and f[3].pattern == _FROM_PILLOW for f in warnings.filters[:4]):
        warnings.filterwarnings("ignore", category=UserWarning, module=_FROM_PILLOW)
