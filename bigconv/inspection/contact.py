"""`--contact FILE.png`: rows as cards on one sheet, each with its class and its number."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bigconv.inspection import pixels
from bigconv.inspection.lettering import Letters
from bigconv.inspection.output import MARK
from bigconv.inspection.panels import Panel, caption, panels, short_texts
from bigconv.inspection.rows import Picked
from bigconv.schema import Schema

if TYPE_CHECKING:
    from PIL import ImageDraw
    from PIL.Image import Image

ROWS = 24  # fills a screen
SIZE = 192  # pixels of a picture's longer side
WIDTH = 1760  # of a sheet, at most
ASPECT = 1.5
MARGIN, GAP, PAD = 40, 20, 12
PAPER, CARD, EDGE = (246, 246, 243), (255, 255, 255), (226, 226, 220)
INK, SOFT = (32, 34, 38), (122, 124, 128)


@dataclass(frozen=True)
class Card:
    """What is shown of one row."""

    place: str
    classes: tuple[tuple[str, int | None], ...]
    panels: tuple[Panel, ...]


def cards(schema: Schema, rows: Sequence[Picked], size: int = SIZE) -> list[Card]:
    """Rows as they are shown; pictures have `size` pixels at most."""
    brief = short_texts(schema, [one.values for one in rows])
    return [
        Card(one.place, tuple(caption(schema, one.values)), tuple(panels(schema, one.values, size, brief)))
        for one in rows
    ]


def png(title: str, about: str, shown: Sequence[Card]) -> bytes:
    """The sheet as a PNG file: the same bytes for the same rows and version of Pillow."""
    from PIL.PngImagePlugin import PngInfo

    out, info = io.BytesIO(), PngInfo()
    info.add_text("Software", MARK)
    sheet(title, about, shown).save(out, "PNG", optimize=True, pnginfo=info)
    return out.getvalue()


def sheet(title: str, about: str, shown: Sequence[Card]) -> Image:
    """Cards in rows and columns beneath a heading. `about` is the second line."""
    from PIL import Image, ImageDraw

    look = _Look.of(shown)
    columns = look.columns(len(shown))
    count = max(1, math.ceil(len(shown) / columns))
    head = look.title.line + look.normal.line + GAP
    whole = (
        2 * MARGIN + columns * (look.width + GAP) - GAP,
        2 * MARGIN + head + count * (look.height + GAP) - GAP,
    )
    paper = Image.new("RGB", whole, PAPER)
    draw = ImageDraw.Draw(paper)
    room = whole[0] - 2 * MARGIN
    look.title.draw(draw, (MARGIN, MARGIN - 6), look.title.elided(title, room), INK)
    look.normal.draw(draw, (MARGIN, MARGIN - 2 + look.title.line), look.normal.elided(about, room), SOFT)
    for i, card in enumerate(shown):
        left = MARGIN + i % columns * (look.width + GAP)
        top = MARGIN + head + i // columns * (look.height + GAP)
        draw.rounded_rectangle((left, top, left + look.width, top + look.height), 10, CARD, EDGE)
        look.put(paper, draw, card, left + PAD, top + PAD)
    return paper


@dataclass(frozen=True)
class _Look:
    """What all cards of a sheet share: `tall` pixels of panels, a line of their names or none, and the letters."""

    tall: int
    width: int
    height: int
    named: bool
    title: Letters
    normal: Letters
    small: Letters

    @classmethod
    def of(cls, shown: Sequence[Card]) -> _Look:
        title, normal, small = Letters(26), Letters(16), Letters(13)
        across = max((len(card.panels) for card in shown), default=1) or 1
        every = [panel for card in shown for panel in card.panels]
        named = across > 1 or any(panel.text and panel.field for panel in every)
        tall = max((_height(panel, small) for panel in every), default=0)
        width = 2 * PAD + across * SIZE + (across - 1) * PAD
        lines = 1 + any(card.classes for card in shown)
        height = 2 * PAD + tall + (small.line + 6 if named else 0) + 8 + lines * normal.line
        return cls(tall, width, height, named, title, normal, small)

    def columns(self, cards: int) -> int:
        """As many as make the sheet about as wide as a screen."""
        fitting = max(1, (WIDTH - 2 * MARGIN + GAP) // (self.width + GAP))
        wanted = math.ceil(math.sqrt(max(1, cards) * ASPECT * (self.height + GAP) / (self.width + GAP)))
        most = max(1, min(fitting, wanted, max(cards, 2 if self.width < WIDTH // 4 else 1)))
        return (
            most if cards <= most else math.ceil(cards / math.ceil(cards / most))
        )  # no row much shorter than the others

    def put(self, paper: Image, draw: ImageDraw.ImageDraw, card: Card, left: int, top: int) -> None:
        """One card's panels, and beneath them its classes and its place."""
        room = self.width - 2 * PAD
        for number, panel in enumerate(card.panels):
            x = left + number * (SIZE + PAD)
            if panel.image is not None:
                picture = panel.image
                at = (x + (SIZE - picture.width) // 2, top + (self.tall - picture.height) // 2)
                paper.paste(picture, at, picture if picture.mode == "RGBA" else None)
            else:
                for i, line in enumerate(self.small.wrapped(panel.text, SIZE, max(1, self.tall // self.small.line))):
                    self.small.draw(draw, (x, top + i * self.small.line), line, INK)
            if self.named:
                label = " · ".join(part for part in (panel.field, panel.note) if part)
                self.small.draw(draw, (x, top + self.tall + 6), self.small.elided(label, SIZE), SOFT)
        y = top + self.tall + 8 + (self.small.line + 6 if self.named else 0)
        if card.classes:
            self._classes(draw, card.classes, left, y, room)
            y += self.normal.line
        self.normal.draw(draw, (left, y), self.normal.elided(card.place, room, end=True), SOFT)

    def _classes(
        self, draw: ImageDraw.ImageDraw, classes: Sequence[tuple[str, int | None]], left: int, top: int, room: int
    ) -> None:
        """Names of classes behind a dot in the colour of the first."""
        radius = 5
        middle = top + self.normal.size * 0.66
        draw.ellipse((left, middle - radius, left + 2 * radius, middle + radius), colour(classes[0][1]))
        names = " · ".join(name for name, _ in classes)
        self.normal.draw(draw, (left + 18, top), self.normal.elided(names, room - 18), INK)


def _height(panel: Panel, small: Letters) -> int:
    if panel.image is not None:
        return panel.image.height
    return len(small.wrapped(panel.text, SIZE, SIZE // small.line)) * small.line


def colour(number: int | None) -> tuple[int, int, int]:
    """Of a class; the same in every picture."""
    return SOFT if number is None or number < 0 else pixels.CLASSES[1 + number % (len(pixels.CLASSES) - 1)]
