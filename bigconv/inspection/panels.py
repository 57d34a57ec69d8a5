"""One value of a row as something to look at: a small picture, or a few words."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bigconv import decode
from bigconv.block import Array
from bigconv.inspection import pixels
from bigconv.inspection.fields import channel_axis, names_class
from bigconv.schema import Field, Schema

if TYPE_CHECKING:
    from PIL.Image import Image

INK = (0, 114, 178)
LINES = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))
AXIS = (150, 150, 150)
FINER = 3  # lines are drawn so many times larger, then made smaller: smooth
COARSE = 3  # an image so much smaller than its panel is one of large pixels
FEW = 24  # numbers of a vector that are drawn as bars
MOST_LINES = 6
BRIEF = 32  # characters of a text that stands among numbers
TEXT = 600  # characters, tokens or bytes that a panel may hold
PANELS = 4  # of one row


@dataclass(frozen=True)
class Panel:
    """`image` or, in its place, `text`; `note`: what a viewer wants to know besides."""

    field: str
    image: Image | None
    text: str = ""
    note: str = ""


def panels(schema: Schema, row: dict[str, Any], size: int, brief: Collection[str] = ()) -> list[Panel]:
    """What is to be seen of a row, pictures of `size` pixels at most: pictures first, each in the order of the fields.

    Classes are left to the caption; single numbers, and texts of the fields in `brief`, stand together in one panel.
    """
    made: list[Panel] = []
    facts = []
    for f in schema:
        value = row[f.name]
        if names_class(f):
            continue
        if f.name in brief:
            facts.append(f"{f.name}  {value}")
        elif f.kind != "text" and np.ndim(value) == 0:
            facts.append(f"{f.name}  {number(value)}")
        elif f.kind != "label" or len(schema) == 1:
            made.append(panel(f, value, size))
    made.sort(key=lambda one: one.image is None)
    return [*made[: PANELS - bool(facts)], *([Panel("", None, "\n".join(facts))] if facts else [])]


def short_texts(schema: Schema, rows: Sequence[dict[str, Any]]) -> set[str]:
    """Text fields whose rows all fit a line."""
    texts = [f.name for f in schema if f.kind == "text"]
    return {name for name in texts if all(len(row[name]) <= BRIEF and "\n" not in row[name] for row in rows)}


def caption(schema: Schema, row: dict[str, Any]) -> list[tuple[str, int | None]]:
    """The classes of a row by name, each with its number; the number of a label without names."""
    told: list[tuple[str, int | None]] = []
    for f in schema:
        if names_class(f) and f.kind == "text":
            told.append((row[f.name], None))
        elif names_class(f):
            value = int(row[f.name])
            told.append((f.classes[value] if f.classes and 0 <= value < len(f.classes) else f"{f.name} {value}", value))
    return told


def number(value: Any) -> str:
    plain = np.asarray(value).item()
    return f"{plain:.6g}" if isinstance(plain, float) else str(plain)


def panel(f: Field, value: Any, size: int) -> Panel:
    """One value. What can't be drawn is described."""
    if f.kind == "text":
        text = " ".join(str(value)[: 4 * TEXT].split())
        return Panel(
            f.name, None, text[:TEXT] + ("…" if len(text) > TEXT else "") or "(empty)", f"{len(value):,} characters"
        )
    array = np.asarray(value)
    shape = " × ".join(map(str, array.shape))
    if array.size == 0:
        return Panel(f.name, None, "(empty)", shape)
    if f.kind == "encoded":
        return _encoded(f, array, size)
    if f.kind == "bytes":
        return Panel(f.name, None, array[: TEXT // 3].tobytes().hex(" "), f"{array.size:,} bytes")
    if f.kind == "tokens":
        return Panel(
            f.name, None, " ".join(map(str, array.reshape(-1)[: TEXT // 4].tolist())), f"{len(array):,} tokens"
        )
    if array.dtype.kind == "c":
        array = np.abs(array)
    drawn = _drawn(f, array, size)
    return Panel(f.name, drawn, "" if drawn else _glance(array), shape)


def _drawn(f: Field, array: Array, size: int) -> Image | None:
    if f.kind == "audio":
        return waves(array, size)
    if f.kind == "mask" or (f.kind != "image" and pixels.is_mask(array)):
        if array.dtype.kind not in "biu" or array.ndim not in (2, 3):
            return None
        if array.ndim == 3:
            return _volume(array, size, classes=True)
        return _fitted(pixels.mask(array), size, smooth=False)
    if f.kind == "video" and array.ndim == 4:
        return _frames(array, "hwc" if channel_axis(f) == -1 else "chw", size)
    if f.kind == "volume" and array.ndim >= 3:
        return _volume(array.reshape(-1, *array.shape[-3:])[0], size)
    if f.kind == "image" or pixels.suggested(array.shape):
        shown = pixels.image(array, f.layout)
        return None if shown is None else _fitted(shown, size)
    if array.ndim == 1:
        return bars(array, size) if len(array) <= FEW else lines(array[None], size)
    if array.ndim == 2:
        steps, series = array.shape
        if series <= MOST_LINES and steps >= 4 * series:
            return lines(array.T, size)
        return _fitted(pixels.matrix(array), size, smooth=False)
    if array.ndim == 3:
        return _volume(array, size)
    return None


def _encoded(f: Field, array: Array, size: int) -> Panel:
    data = array.astype(np.uint8).tobytes()
    try:
        shown = decode.decode(data)
    except decode.DecodeError as error:
        return Panel(f.name, None, f"can't be decoded: {error}", f"{len(data):,} bytes")
    height, width = shown.shape[:2]
    return Panel(f.name, _fitted(shown, size), "", f"{decode.format_of(data[:16])}, {height} × {width}")


def _glance(array: Array) -> str:
    flat = array.reshape(-1)[:8]
    return f"{array.dtype} " + " ".join(number(value) for value in flat) + (" …" if array.size > 8 else "")


def _fitted(shown: Array, size: int, smooth: bool = True) -> Image:
    """As large as fits `size` by `size`. Images of few pixels grow by whole factors, so that these are seen."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(shown))
    width, height = picture.size
    longest = max(width, height)
    if smooth and longest * COARSE <= size:
        return picture.resize((width * (size // longest), height * (size // longest)), Image.Resampling.NEAREST)
    wanted = (max(1, round(width * size / longest)), max(1, round(height * size / longest)))
    if not smooth:
        return picture.resize(wanted, Image.Resampling.NEAREST)
    way = Image.Resampling.LANCZOS if longest > size else Image.Resampling.BICUBIC
    return picture.resize(wanted, way, reducing_gap=3.0)


def _volume(volume: Array, size: int, classes: bool = False) -> Image:
    """The middle slices across three axes: the first large, the others beside it. `classes`: it is a mask."""
    from PIL import Image

    gap = max(2, size // 64)
    large = (size - gap) * 2 // 3
    small = size - gap - large
    first, second, third = pixels.slices(volume, classes)
    sheet = Image.new("RGB", (size, large), pixels.CLASSES[0])
    for shown, room, left, top in (
        (first, (large, large), 0, 0),
        (second, (small, (large - gap) // 2), large + gap, 0),
        (third, (small, (large - gap) // 2), large + gap, (large + gap) // 2),
    ):
        picture = Image.fromarray(np.ascontiguousarray(shown))
        scale = min(room[0] / picture.width, room[1] / picture.height)
        wanted = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        smooth = scale < COARSE and not classes
        picture = picture.resize(wanted, Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)
        sheet.paste(picture, (left + (room[0] - wanted[0]) // 2, top + (room[1] - wanted[1]) // 2))
    return sheet


def _frames(video: Array, layout: str, size: int) -> Image | None:
    """Four frames from begin to end."""
    from PIL import Image

    gap = max(2, size // 64)
    room = (size - gap) // 2
    shown = [pixels.image(video[(len(video) - 1) * i // 3], layout) for i in range(4)]
    pictures = [_fitted(one, room) for one in shown if one is not None]
    if len(pictures) < 4:
        return None
    width, height = pictures[0].size
    sheet = Image.new("RGB", (2 * width + gap, 2 * height + gap), (255, 255, 255))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, ((i % 2) * (width + gap), (i // 2) * (height + gap)))
    return sheet


class _Plot:
    """A plot on nothing: it can lie on light and on dark."""

    def __init__(self, size: int, aspect: float) -> None:
        from PIL import Image, ImageDraw

        self.width, self.height = size * FINER, int(size * aspect) * FINER
        self._image = Image.new("RGBA", (self.width, self.height), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self._image)
        self._thick = 2 * FINER

    def level(self, y: float) -> None:
        self._draw.line((0, y, self.width, y), fill=(*AXIS, 140), width=FINER)

    def line(self, points: list[tuple[float, float]], colour: tuple[int, int, int]) -> None:
        self._draw.line(points, fill=colour, width=self._thick, joint="curve")

    def bar(self, left: float, right: float, top: float, bottom: float, colour: tuple[int, int, int]) -> None:
        top, bottom = min(top, bottom), max(top, bottom)
        self._draw.rectangle((left, top, right, max(bottom, top + FINER)), fill=colour)

    def done(self) -> Image:
        from PIL import Image

        # as many pixels beneath as the picture has; colours of what is empty do not bleed in
        return self._image.resize((self.width // FINER, self.height // FINER), Image.Resampling.BOX)


def waves(array: Array, size: int) -> Image:
    """Sound over time: lowest and highest of each part, channel below channel; the scale is that of the loudest."""
    channels = np.atleast_2d(array)[:MOST_LINES].astype(np.float64)
    plot = _Plot(size, 0.6)
    columns = min(channels.shape[1], plot.width // FINER // 2)
    edges = np.linspace(0, channels.shape[1], columns + 1).astype(int)[:-1]
    with np.errstate(invalid="ignore"):
        top = np.nanmax(np.abs(np.where(np.isfinite(channels), channels, 0))) or 1.0
    each = plot.height / len(channels)
    step = plot.width / columns
    for i, channel in enumerate(np.nan_to_num(channels, posinf=top, neginf=-top)):
        middle = each * (i + 0.5)
        plot.level(middle)
        low, high = np.minimum.reduceat(channel, edges), np.maximum.reduceat(channel, edges)
        scale = 0.46 * each / top
        for j in range(columns):
            colour = LINES[i % len(LINES)]
            plot.bar(j * step, (j + 1) * step - step * 0.3, middle - high[j] * scale, middle - low[j] * scale, colour)
    return plot.done()


def bars(values: Array, size: int) -> Image:
    """A few numbers, from zero up or down."""
    wide = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    low, high = min(0.0, wide.min()), max(0.0, wide.max())
    plot = _Plot(size, 0.6)
    scale = plot.height * 0.94 / (high - low or 1.0)
    zero = plot.height * 0.03 + high * scale
    step = plot.width / len(wide)
    for i, value in enumerate(wide):
        plot.bar((i + 0.12) * step, (i + 0.88) * step, zero - value * scale, zero, INK)
    plot.level(zero)
    return plot.done()


def lines(series: Array, size: int) -> Image:
    """Series `[series, steps]` over their steps, in one scale; a long one by the mean of each part."""
    wide = series.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    plot = _Plot(size, 0.6)
    columns = min(wide.shape[1], plot.width // FINER)
    edges = np.linspace(0, wide.shape[1], columns + 1).astype(int)[:-1]
    counts = np.diff([*edges, wide.shape[1]])
    scale = plot.height * 0.9 / (high - low or 1.0)
    if low < 0 < high:
        plot.level(plot.height * 0.05 + high * scale)
    for i, one in enumerate(np.where(np.isfinite(wide), wide, low)):
        means = np.add.reduceat(one, edges) / counts
        x = np.linspace(FINER, plot.width - FINER, columns)
        y = plot.height * 0.05 + (high - means) * scale
        plot.line(list(zip(x.tolist(), y.tolist(), strict=True)), LINES[i % len(LINES)])
    return plot.done()
