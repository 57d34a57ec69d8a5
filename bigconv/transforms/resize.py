"""Images of one size, antialiased, and masks. Uses torch, imported when the first block comes, or Pillow."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar, Self

import numpy as np

from bigconv import registry
from bigconv.block import Array, Block, Ragged
from bigconv.decode import MAX_PIXELS
from bigconv.errors import UsageError
from bigconv.schema import Field, Schema, unknown
from bigconv.transforms.frames import OnImages
from bigconv.transforms.layout import planes_of, transposed

FITS = ("cover", "contain", "stretch")
BACKENDS = ("torch", "pillow")


@dataclass(frozen=True)
class Resize(OnImages):
    """uint8 images and frames of any size to `height` x `width` pixels, bilinear with antialiasing; the layout stays.

    `fit`: `cover` cuts the middle out in the new aspect ratio, then resizes; `contain` resizes the whole image to fit
    and centres it on black; `stretch` ignores the aspect ratio. `backend` is an option because the bytes depend on it:
    torch and Pillow differ by one level in some pixels (0.002 levels on average), and torch is 3 times as fast.

    Masks, of any dtype, go the same way as images do, but each pixel takes the value of the nearest one: no value is
    made that wasn't there. Beside a `contain`ed image they are 0.
    """

    name: ClassVar[str] = "resize"

    height: int
    width: int
    fit: str = "cover"
    backend: str = "torch"

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1 or self.height * self.width > MAX_PIXELS:
            raise UsageError(f"--resize {self.height}x{self.width}: expected 1 to {MAX_PIXELS:,} pixels")
        if self.fit not in FITS:
            raise UsageError(unknown("fit", str(self.fit), FITS))
        if self.backend not in BACKENDS:
            raise UsageError(unknown("resize backend", str(self.backend), BACKENDS))

    @staticmethod
    def best_backend() -> str:
        """The fastest one that is installed."""
        return "torch" if find_spec("torch") is not None else "pillow"

    @classmethod
    def parse(cls, text: str | int, *, fit: str = "cover", backend: str | None = None) -> Self:
        """`224` (a square) or `224x320` (height x width), and after a comma a fit or a backend of its own.

        Raises `UsageError`.
        """
        size, *own = (part.strip() for part in str(text).split(","))
        match = re.fullmatch(r"([1-9][0-9]{0,8})(?:[xX×]([1-9][0-9]{0,8}))?", size, re.ASCII)
        if match is None:
            volume = ". Volumes: --map FILE.py:FUNCTION" if re.fullmatch(r"\d+([xX×]\d+){2}", size, re.ASCII) else ""
            raise UsageError(f"--resize {text}: expected S or HEIGHTxWIDTH in pixels, such as 224 or 224x320{volume}")
        for word in own:
            if word in FITS:
                fit = word
            elif word in BACKENDS:
                backend = word
            else:
                raise UsageError(f"--resize {text}: {unknown('fit or backend', word, (*FITS, *BACKENDS))}")
        return cls(int(match[1]), int(match[2] or match[1]), fit, backend or cls.best_backend())

    @staticmethod
    def typed(entry: Mapping[str, Any]) -> str:
        return f"{entry['height']}x{entry['width']},{entry['fit']},{entry['backend']}"

    def image_schema(self, schema: Schema) -> Schema:
        for field in planes_of(schema, "resize"):
            if field.kind == "mask":
                schema = schema.replace(field.with_(shape=(self.height, self.width)))
                continue
            if field.dtype != "uint8":
                raise UsageError(f"--resize works on uint8 images; field {field.name} is {field.dtype}: resize first")
            channels = field.shape[2 if field.layout == "hwc" else 0]
            if channels is None:
                raise UsageError(f"--resize: the number of channels of field {field.name} varies")
            schema = schema.replace(self._field(field, channels))
        if self.backend == "torch" and find_spec("torch") is None:
            raise registry.missing("torch", "torch", "resize")  # now, not in a worker
        return schema

    def of_images(self, block: Block) -> Block:
        for field in planes_of(block.schema, "resize"):
            if field.kind == "mask":
                column = block.columns[field.name]
                masks = np.zeros((len(column), self.height, self.width), field.dtype)
                for i, mask in enumerate(column):
                    self._nearest(masks[i], mask)
                block = block.with_column(field.with_(shape=(self.height, self.width)), masks)
                continue
            chw = field.layout == "chw"
            column = block.columns[field.name]
            channels = field.shape[0 if chw else 2]
            if channels is None:
                raise UsageError(f"--resize: the number of channels of field {field.name} varies")
            if isinstance(column, Ragged):
                out = self._canvas(len(column), channels)
                for i, image in enumerate(column):
                    image = transposed(image, "hwc") if chw else image
                    # Not image[None]: torch takes its stride of 0 for another layout, which is 3 times slower.
                    self._into(out[i : i + 1], image.reshape(1, *image.shape))
            else:
                images = transposed(column, "hwc") if chw else column
                out = self._canvas(len(images), channels)
                if len(images):
                    self._into(out, images)
            block = block.with_column(self._field(field, channels), transposed(out, "chw") if chw else out)
        return block

    def _field(self, field: Field, channels: int) -> Field:
        size = (self.height, self.width)
        return field.with_(shape=(*size, channels) if field.layout == "hwc" else (channels, *size))

    def _canvas(self, rows: int, channels: int) -> Array:
        """`[rows, height, width, channels] uint8`, black where images don't cover all of it."""
        make = np.zeros if self.fit == "contain" else np.empty
        return make((rows, self.height, self.width, channels), np.uint8)

    def _into(self, out: Array, images: Array) -> None:
        """`[rows, h, w, c] uint8` into a canvas, `[rows, height, width, c] uint8`."""
        part, room = self._frame(*images.shape[1:3])
        images, out = images[:, *part], out[:, *room]
        height, width = out.shape[1:3]
        if images.shape[1:3] == (height, width):
            out[...] = images
        elif self.backend == "torch":
            out[...] = _torch(images, height, width)
        else:
            _pillow(images, out)

    def _nearest(self, out: Array, mask: Array) -> None:
        """`[h, w]` into `out`, `[height, width]` of zeros: the pixel in which the centre of the new one lies."""
        part, room = self._frame(*mask.shape)
        mask, out = mask[part], out[room]
        (h, w), (height, width) = mask.shape, out.shape
        rows = (2 * np.arange(height) + 1) * h // (2 * height)
        out[...] = mask[rows[:, None], (2 * np.arange(width) + 1) * w // (2 * width)]

    def _frame(self, h: int, w: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The part of an image of `h` x `w` that is taken, and where it goes; rows and columns of both."""
        height, width = self.height, self.width
        ch, cw = h, w
        if self.fit == "cover":
            # The largest rectangle of the new aspect ratio, to the nearest pixel.
            ch, cw = (h, _ratio(h, width, height)) if w * height > h * width else (_ratio(w, height, width), w)
        elif self.fit == "contain":
            if w * height > h * width:
                height = _ratio(h, width, w)
            else:
                width = _ratio(w, height, h)
        top, left = (h - ch) // 2, (w - cw) // 2
        up, aside = (self.height - height) // 2, (self.width - width) // 2
        return (slice(top, top + ch), slice(left, left + cw)), (slice(up, up + height), slice(aside, aside + width))


def _ratio(n: int, times: int, per: int) -> int:
    """n * times / per, to the nearest, at least 1."""
    return max(1, (2 * n * times + per) // (2 * per))


@cache
def _single_thread() -> None:
    """In a worker process: the workers are the parallelism already."""
    import torch

    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)


def _torch(images: Array, height: int, width: int) -> Array:
    try:
        import torch
    except ImportError as error:
        raise registry.missing("torch", "torch", "resize") from error
    _single_thread()

    # Channels last is how the pixels lie already, and what the uint8 kernel is fastest with: no copy either way.
    # It steps in whole images, so a crop is copied first.
    pixels = torch.from_numpy(_writable(np.ascontiguousarray(images))).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    done: Array = resized.permute(0, 2, 3, 1).numpy()
    return done


def _writable(array: Array) -> Array:
    """torch warns of memory it can't write to, such as a map of a file, even if it only reads."""
    return array if array.flags.writeable else array.copy()


def _pillow(images: Array, out: Array) -> None:
    from PIL import Image

    size = (out.shape[2], out.shape[1])
    # Without this split Pillow would take 4 channels for alpha and weigh the colours by it.
    rgb = images.shape[3] == 3
    for image, target in zip(images, out, strict=True):
        if rgb:
            target[...] = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
            continue
        for c in range(images.shape[3]):
            plane = np.ascontiguousarray(image[:, :, c])
            target[:, :, c] = np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))
