"""A rectangle out of each image, and the same one out of its mask."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from bigconv.block import Array, Block, Ragged
from bigconv.decode import MAX_PIXELS
from bigconv.errors import SchemaError, UsageError
from bigconv.schema import Field, Schema
from bigconv.transforms.frames import OnImages
from bigconv.transforms.layout import planes_of

_NUMBER = "[0-9]{1,9}"
_TEXT = re.compile(rf"({_NUMBER})(?:[xX×]({_NUMBER}))?(?:\+({_NUMBER})\+({_NUMBER}))?", re.ASCII)


@dataclass(frozen=True)
class Crop(OnImages):
    """`height` x `width` pixels of images, masks and frames of videos of any dtype; the layout stays.

    `top` and `left`: where the rectangle begins; None: central, half a pixel to the upper left where it doesn't come
    out even. An image that is too small is a `SchemaError`: nothing is padded.
    """

    name: ClassVar[str] = "crop"

    height: int
    width: int
    top: int | None = None
    left: int | None = None

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1 or self.height * self.width > MAX_PIXELS:
            raise UsageError(f"--crop {self._text}: expected 1 to {MAX_PIXELS:,} pixels")
        if (self.top is None) != (self.left is None) or min(self.top or 0, self.left or 0) < 0:
            raise UsageError(f"--crop {self._text}: expected two offsets of 0 or more, or none")

    @classmethod
    def parse(cls, text: str) -> Self:
        """`224` (a square), `224x320` (height x width), or `224x320+16+0` (and top, left). Raises `UsageError`."""
        match = _TEXT.fullmatch(str(text).strip())
        if match is None:
            raise UsageError(
                f"--crop {text}: expected HEIGHTxWIDTH[+TOP+LEFT] in pixels, such as 224x320 or 224x320+16+0"
            )
        top, left = (None, None) if match[3] is None else (int(match[3]), int(match[4]))
        return cls(int(match[1]), int(match[2] or match[1]), top, left)

    @staticmethod
    def typed(entry: Mapping[str, Any]) -> str:
        return Crop(**{key: entry[key] for key in ("height", "width", "top", "left")})._text

    @property
    def _text(self) -> str:
        at = "" if self.top is None else f"+{self.top}+{self.left}"
        return f"{self.height}x{self.width}{at}"

    def image_schema(self, schema: Schema) -> Schema:
        for field in planes_of(schema, "crop"):
            height, width, _ = _sizes(field)
            # An axis that varies is as large as it must be, here.
            self._corner(
                self._needed[0] if height is None else height, self._needed[1] if width is None else width, field
            )
            schema = schema.replace(self._field(field))
        return schema

    def of_images(self, block: Block) -> Block:
        for field in planes_of(block.schema, "crop"):
            column = block.columns[field.name]
            new = self._field(field)
            if isinstance(column, Ragged):
                out = np.empty((len(column), *new.item_shape), column.values.dtype)
                for i, image in enumerate(column):
                    out[i] = self._cut(image, field, f", row {i} of the block")
            else:
                out = np.ascontiguousarray(self._cut(column, field))
            block = block.with_column(new, out)
        return block

    @property
    def _needed(self) -> tuple[int, int]:
        """Height and width that an image must have."""
        return self.height + (self.top or 0), self.width + (self.left or 0)

    def _cut(self, images: Array, field: Field, row: str = "") -> Array:
        """`[..., h, w, c]`, or `[..., c, h, w]`, to the rectangle, as a view."""
        at = images.ndim - (3 if field.layout == "hwc" else 2)
        top, left = self._corner(images.shape[at], images.shape[at + 1], field, row)
        if field.layout == "hwc":
            return images[..., top : top + self.height, left : left + self.width, :]
        return images[..., top : top + self.height, left : left + self.width]

    def _corner(self, height: int, width: int, field: Field, row: str = "") -> tuple[int, int]:
        """Top and left of the rectangle in an image of this size."""
        need = self._needed
        if height < need[0] or width < need[1]:
            raise SchemaError(
                f"field {field.name}{row}: --crop {self._text} needs {need[0]}x{need[1]} pixels, "
                f"the image has {height}x{width}"
            )
        top = (height - self.height) // 2 if self.top is None else self.top
        left = (width - self.width) // 2 if self.left is None else self.left
        return top, left

    def _field(self, field: Field) -> Field:
        _, _, channels = _sizes(field)
        if channels is None:
            raise UsageError(f"--crop: the number of channels of field {field.name} varies")
        size = (self.height, self.width)
        if field.kind == "mask":
            return field.with_(shape=size)
        return field.with_(shape=(*size, channels) if field.layout == "hwc" else (channels, *size))


def _sizes(field: Field) -> tuple[int | None, int | None, int | None]:
    """Height, width and channels."""
    if field.kind == "mask":
        return (*field.shape, 1)  # type: ignore[return-value]
    a, b, c = field.shape
    return (a, b, c) if field.layout == "hwc" else (b, c, a)
