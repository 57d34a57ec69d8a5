"""Axis order of images: `hwc`, as decoders give it, or `chw`, as networks want it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from bigconv.block import Array, Block, Ragged
from bigconv.errors import UsageError
from bigconv.schema import Field, Schema, unknown

LAYOUTS = ("chw", "hwc")


@dataclass(frozen=True)
class Layout:
    """Images to `layout`: `[channels, height, width]` or `[height, width, channels]`, of any dtype."""

    name: ClassVar[str] = "layout"

    layout: str

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise UsageError(unknown("layout", str(self.layout), LAYOUTS))

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(text)

    @staticmethod
    def typed(entry: Mapping[str, Any]) -> str:
        return str(entry["layout"])

    def schema(self, schema: Schema) -> Schema:
        images = images_of(schema, "layout")
        for field in images:
            if field.layout != self.layout:
                shape = reordered(field.shape, self.layout)
                schema = schema.replace(field.with_(shape=shape, layout=self.layout))
        return schema

    def __call__(self, block: Block) -> Block:
        for field in images_of(block.schema, "layout"):
            if field.layout == self.layout:
                continue
            column = block.columns[field.name]
            turned = field.with_(shape=reordered(field.shape, self.layout), layout=self.layout)
            block = block.with_column(
                turned, _ragged(column, self.layout) if isinstance(column, Ragged) else transposed(column, self.layout)
            )
        return block


def images_of(schema: Schema, step: str) -> list[Field]:
    """Image fields with three axes in a known order. Raises `UsageError` when there is none."""
    found = [f for f in schema if f.kind == "image" and f.layout in LAYOUTS and len(f.shape) == 3]
    if not found:
        have = ", ".join(f"{f.name} ({f.kind})" for f in schema)
        hint = ""
        if any(f.kind == "volume" for f in schema):  # resampled here, its spacing or affine would no longer be true
            hint = ".\nA volume goes through a function of yours, which keeps its spacing right: --map FILE.py:FUNCTION"
        raise UsageError(f"--{step} needs a field of images with a layout of chw or hwc; there are: {have}{hint}")
    return found


def masks_of(schema: Schema) -> list[Field]:
    """Mask fields, `[height, width]`: what moves pixels moves them along with the images."""
    return [f for f in schema if f.kind == "mask" and len(f.shape) == 2]


def planes_of(schema: Schema, step: str) -> list[Field]:
    """Images and masks. Raises `UsageError` when there are none."""
    masks = masks_of(schema)
    return masks if masks and not any(f.kind == "image" for f in schema) else [*images_of(schema, step), *masks]


def transposed(images: Array, layout: str) -> Array:
    """`[..., h, w, c]` to contiguous `[..., c, h, w]` (`layout` chw), or back (hwc)."""
    if layout == "chw":
        return np.ascontiguousarray(np.moveaxis(images, -1, -3))
    # Channel by channel: 2 to 4 times as fast here as one copy, whose inner loop would be only as long as a pixel.
    channels = np.moveaxis(images, -3, 0)
    out = np.empty((*channels.shape[1:], len(channels)), images.dtype)
    for i, channel in enumerate(channels):
        out[..., i] = channel
    return out


def reordered(shape: tuple[int | None, ...], layout: str) -> tuple[int | None, ...]:
    """A shape in the other layout, now `layout`."""
    a, b, c = shape
    return (c, a, b) if layout == "chw" else (b, c, a)


def _ragged(column: Ragged, layout: str) -> Ragged:
    values = np.empty_like(column.values)
    offsets = column.offsets.tolist()
    for i, image in enumerate(column):
        values[offsets[i] : offsets[i + 1]] = transposed(image, layout).reshape(-1)
    shapes = column.shapes
    if shapes is not None:
        shapes = np.ascontiguousarray(shapes[:, [2, 0, 1] if layout == "chw" else [1, 2, 0]])
    return Ragged(values, column.offsets, shapes)
