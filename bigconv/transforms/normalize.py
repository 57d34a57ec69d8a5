"""Images as networks want their values: about 0, of about size 1, float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from bigconv.block import Array, Block, Ragged
from bigconv.errors import UsageError
from bigconv.schema import Field, Schema
from bigconv.transforms.frames import OnImages
from bigconv.transforms.layout import images_of

#: Means and standard deviations of red, green, blue over ImageNet, scaled to 0…1: those of torchvision's models.
NAMED = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0,), (1.0,)),
}
FLOATS = ("float16", "float32", "float64")
VALUES_AT_ONCE = 1 << 16  # 256 KiB of output: it is written while it is in the cache
SMALLEST, LARGEST = 1e-6, 1e6  # of means and deviations: float32 holds every result


@dataclass(frozen=True)
class Normalize(OnImages):
    """Images to float32, channel by channel: `(x / 255 - mean) / std` of uint8, `(x - mean) / std` of floats.

    Floats are taken as scaled already. `mean` and `std`: one number a channel, or one for all. For uint8 the formula is
    reckoned in float64 and rounded once; for floats in the image's own precision, at least float32.
    """

    name: ClassVar[str] = "normalize"

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(x) for x in self.mean))
        object.__setattr__(self, "std", tuple(float(x) for x in self.std))
        if not self.mean or len(self.mean) != len(self.std):
            raise UsageError(f"--normalize: {len(self.mean)} means, but {len(self.std)} standard deviations")
        if not all(abs(x) <= LARGEST for x in self.mean) or not all(SMALLEST <= x <= LARGEST for x in self.std):
            raise UsageError(
                f"--normalize {self._text}: expected means within ±{LARGEST:g}, "
                f"deviations from {SMALLEST:g} to {LARGEST:g}"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """`imagenet`, `unit` (0 to 1), or means/deviations, as `0.5,0.5,0.5/0.2,0.2,0.2`. Raises `UsageError`."""
        name = str(text).strip()
        if name in NAMED:
            return cls(*NAMED[name])
        mean, slash, std = name.partition("/")
        try:
            if not slash:
                raise ValueError
            return cls(tuple(map(float, mean.split(","))), tuple(map(float, std.split(","))))
        except UsageError:
            raise
        except ValueError:
            raise UsageError(
                f"--normalize {text}: expected {', '.join(NAMED)}, or means/deviations such as 0.5,0.5,0.5/0.2,0.2,0.2"
            ) from None

    @staticmethod
    def typed(entry: Mapping[str, Any]) -> str:
        return Normalize(tuple(entry["mean"]), tuple(entry["std"]))._text

    @property
    def _text(self) -> str:
        return "/".join(",".join(map(repr, values)) for values in (self.mean, self.std))

    def recipe(self) -> dict[str, Any]:
        return {"mean": list(self.mean), "std": list(self.std)}

    def image_schema(self, schema: Schema) -> Schema:
        for field in images_of(schema, "normalize"):
            channels = field.shape[2 if field.layout == "hwc" else 0]
            if field.dtype not in ("uint8", *FLOATS):
                raise UsageError(
                    f"--normalize works on images of uint8 and floats; field {field.name} is {field.dtype}.\n"
                    "--dtype float32 before it keeps the values, which are then not scaled"
                )
            if channels is None or len(self.mean) not in (1, channels):
                have = "a number of channels that varies" if channels is None else f"{channels} channels"
                raise UsageError(f"--normalize {self._text}: {len(self.mean)} means, but field {field.name} has {have}")
            schema = schema.replace(field.with_(dtype="float32"))
        return schema

    def of_images(self, block: Block) -> Block:
        for field in images_of(block.schema, "normalize"):
            column = block.columns[field.name]
            new = field.with_(dtype="float32")
            if not isinstance(column, Ragged):
                block = block.with_column(new, self._of(column, field))
                continue
            values = np.empty(len(column.values), np.float32)
            offsets = column.offsets.tolist()
            for i, image in enumerate(column):
                values[offsets[i] : offsets[i + 1]] = self._of(image[None], field).reshape(-1)
            block = block.with_column(new, Ragged(values, column.offsets, column.shapes))
        return block

    def _of(self, images: Array, field: Field) -> Array:
        """`[n, h, w, c]`, or `[n, c, h, w]`, to float32 of the same shape."""
        at = 3 if field.layout == "hwc" else 1
        channels = images.shape[at]
        mean, std = (np.broadcast_to(np.array(values), channels) for values in (self.mean, self.std))
        if images.dtype != np.uint8:
            wide = np.promote_types(images.dtype, np.float32)
            shape = (channels, *(1,) * (3 - at))
            with np.errstate(all="ignore"):  # what isn't finite stays so
                out = np.subtract(images, mean.astype(wide).reshape(shape), dtype=wide)
                out /= std.astype(wide).reshape(shape)
                return out.astype(np.float32, copy=False)
        # 256 results a channel are looked up: exact, at 0.5 (chw) to 1 (hwc) of the speed of a multiply-add.
        table = ((np.arange(256) / 255 - mean[:, None]) / std[:, None]).astype(np.float32)
        out = np.empty(images.shape, np.float32)
        step = max(1, VALUES_AT_ONCE // max(1, images[:1].size))
        for i in range(0, len(images), step):
            for c in range(channels):
                plane = (slice(i, i + step), ..., c) if at == 3 else (slice(i, i + step), c)
                target = out[plane]
                if target.flags.c_contiguous:  # clip: no second look at the range, and no buffer
                    table[c].take(images[plane], out=target, mode="clip")
                else:
                    target[...] = table[c].take(images[plane], mode="clip")
        return out
