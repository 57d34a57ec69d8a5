"""Steps on videos: each frame as the step makes an image of it, whatever varies in the schema."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bigconv.block import Block, Ragged
from bigconv.errors import UsageError
from bigconv.schema import Field, Schema
from bigconv.transforms.crop import Crop
from bigconv.transforms.normalize import Normalize
from bigconv.transforms.resize import Resize

STEPS = [Resize(12, 10, backend="pillow"), Resize(12, 10, "contain", "torch"), Crop(8, 9), Normalize((0.5,), (0.25,))]
SHAPES = {
    "all the same": ((4, 3, 16, 20), [(4, 16, 20)] * 3),
    "lengths vary": ((None, 3, 16, 20), [(4, 16, 20), (0, 16, 20), (2, 16, 20)]),
    "sizes vary": ((4, 3, None, None), [(4, 16, 20), (4, 9, 30), (4, 16, 20)]),
    "both vary": ((None, 3, None, None), [(1, 16, 20), (5, 9, 30), (2, 40, 11)]),
}


def videos(case: str) -> tuple[Block, list[np.ndarray]]:
    shape, sizes = SHAPES[case]
    random = np.random.default_rng(3)
    rows = [random.integers(0, 256, (t, 3, h, w), np.uint8) for t, h, w in sizes]
    field = Field("video", "uint8", shape, kind="video")
    column: Any = Ragged.of(rows, field) if field.ragged else np.stack(rows)
    schema = Schema((field, Field("n", "int64", (), "label")))
    return Block(schema, {"video": column, "n": np.arange(3)}), rows


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("step", STEPS, ids=lambda s: f"{s.name}-{getattr(s, 'fit', '')}")
def test_each_frame_is_an_image(step: Any, case: str) -> None:
    block, rows = videos(case)
    done = step(block)
    assert done.schema == step.schema(block.schema)
    done.validate()
    assert done["n"].tolist() == [0, 1, 2]
    for made, row in zip(done["video"], rows, strict=True):
        assert len(made) == len(row)
        for frame, image in zip(made, row, strict=True):
            field = Field("video", "uint8", image.shape, kind="image", layout="chw")
            alone = step(Block(Schema((field,)), {"video": image[None]}))
            np.testing.assert_array_equal(frame, alone["video"][0])


def test_images_and_videos_side_by_side() -> None:
    block, _ = videos("lengths vary")
    image = Field("image", "uint8", (30, 30, 3), kind="image", layout="hwc")
    pixels = np.zeros((3, 30, 30, 3), np.uint8)
    both = Block(Schema((*block.schema, image)), {**block.columns, "image": pixels})
    step = Resize(6, 5, backend="pillow")
    assert step(both).schema == step.schema(both.schema)
    assert step(both)["image"].shape == (3, 6, 5, 3)
    assert step(both)["video"][0].shape == (4, 3, 6, 5)


def test_frames_that_are_too_small_are_named_by_field() -> None:
    with pytest.raises(UsageError, match="needs a field of images"):
        Crop(4, 4).schema(Schema((Field("n", "int64"),)))
