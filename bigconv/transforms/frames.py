"""Steps on images that are steps on videos too: what is done to an image is done to each frame."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from bigconv.block import Block, Ragged
from bigconv.schema import Field, Schema


class OnImages(ABC):
    """A step whose `of_images` and `image_schema` know images and masks; videos, `[T, C, H, W]`, follow from them."""

    @abstractmethod
    def image_schema(self, schema: Schema) -> Schema:
        """The schema of what becomes of images. Raises `UsageError` when there are none that fit."""

    @abstractmethod
    def of_images(self, block: Block) -> Block:
        """The step, for images."""

    def schema(self, schema: Schema) -> Schema:
        """The schema of what comes out. Raises `UsageError` when the step doesn't fit."""
        for video in videos_of(schema):
            [frame] = self.image_schema(Schema((frame_of(video),)))
            schema = schema.replace(video.with_(dtype=frame.dtype, shape=(video.shape[0], *frame.shape)))
        return self.image_schema(schema) if has_images(schema) or not videos_of(schema) else schema

    def __call__(self, block: Block) -> Block:
        for video in videos_of(block.schema):
            done = self.of_images(frames(block, video))
            block = joined(block, video, done)
        return self.of_images(block) if has_images(block.schema) else block


def videos_of(schema: Schema) -> list[Field]:
    """Video fields, `[frames, channels, height, width]`."""
    return [f for f in schema if f.kind == "video" and len(f.shape) == 4 and f.shape[1] is not None]


def has_images(schema: Schema) -> bool:
    return any(f.kind in ("image", "mask") for f in schema)


def frame_of(video: Field) -> Field:
    """The field that its frames would be."""
    return Field(video.name, video.dtype, video.shape[1:], kind="image", layout="chw")


def frames(block: Block, video: Field) -> Block:
    """The frames of all rows, one after another, as images; a view of the same bytes."""
    column, field = block.columns[video.name], frame_of(video)
    if not isinstance(column, Ragged):
        return Block(Schema((field,)), {video.name: column.reshape(-1, *column.shape[2:])})
    if column.shapes is None:
        return Block(Schema((field,)), {video.name: column.values})
    shapes = np.repeat(column.shapes[:, 1:], column.shapes[:, 0], axis=0)
    offsets = np.concatenate([[0], np.cumsum(np.prod(shapes, axis=1))]).astype(np.int64)
    return Block(Schema((field,)), {video.name: Ragged(column.values, offsets, shapes)})


def joined(block: Block, video: Field, done: Block) -> Block:
    """The block with the frames that a step has made of its own."""
    [frame] = done.schema
    old, new = block.columns[video.name], done.columns[video.name]
    field = video.with_(dtype=frame.dtype, shape=(video.shape[0], *frame.shape))
    if not isinstance(old, Ragged):
        assert not isinstance(new, Ragged)
        return block.with_column(field, new.reshape(*old.shape[:2], *new.shape[1:]))
    counts = old.lengths if old.shapes is None else old.shapes[:, 0]
    if isinstance(new, Ragged):  # of sizes that vary still: each frame has kept its own
        return block.with_column(field, Ragged(new.values, old.offsets, old.shapes))
    if not field.ragged:
        return block.with_column(field, new.reshape(len(old), *field.item_shape))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return block.with_column(field, Ragged(new, offsets))
