"""Words in pictures: Pillow's own letters, the same everywhere; the system's for what those lack."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Any

from bigconv.words import printable

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

Colour = tuple[int, int, int]

LINE = 1.35  # from one line to the next, in heights of letters
LONGEST = 2000  # characters: more would not fit any picture
OWN = frozenset(map(chr, range(0x20, 0x7F))) | set("·…")  # what Pillow's own letters hold, of what is used here
SYSTEM = (
    *("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc"),  # of all scripts first
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf"),
)


class Letters:
    """Letters of one size, in pixels."""

    def __init__(self, size: int) -> None:
        from PIL import ImageFont

        self.line = round(size * LINE)
        self.size = size
        self._own: Any = ImageFont.load_default(size)

    def width(self, text: str) -> float:
        shown, font = self._shown(text)
        return float(font.getlength(shown))

    def draw(self, draw: ImageDraw, at: tuple[float, float], text: str, colour: Colour) -> None:
        shown, font = self._shown(text)
        draw.text(at, shown, colour, font)

    def _shown(self, text: str) -> tuple[str, Any]:
        text = text.replace("×", "x")
        if OWN.issuperset(text):
            return text, self._own
        other = _system(self.size)
        return (text, other) if other is not None else (plainer(text), self._own)

    def elided(self, text: str, room: float, end: bool = False) -> str:
        """One line, cut to `room` pixels; at its begin where the `end` tells more, as of a path."""
        text = printable(text.replace("\n", " "))
        text = text[-LONGEST:] if end else text[:LONGEST]
        if self.width(text) <= room:
            return text
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.width(_cut(text, middle, end)) <= room else (low, middle - 1)
        return _cut(text, low, end)

    def wrapped(self, text: str, room: float, most: int) -> list[str]:
        """Up to `most` lines, between words; long words are cut. The last says whether there is more."""
        lines: list[str] = []
        for paragraph in text[:LONGEST].split("\n"):
            line = ""
            for word in printable(paragraph).split(" "):
                longer = f"{line} {word}" if line else word
                if self.width(longer) <= room:
                    line = longer
                    continue
                if line:
                    lines.append(line)
                while self.width(word) > room and len(lines) <= most:
                    cut = max(1, len(self.elided(word, room)) - 1)
                    lines.append(word[:cut])
                    word = word[cut:]
                line = word
                if len(lines) > most:
                    break
            lines.append(line)
        if len(lines) <= most:
            return lines
        last = lines[most - 1]
        fitting = last if self.width(last + "…") <= room else self.elided(last + "……", room).rstrip("…")
        return [*lines[: most - 1], fitting.rstrip() + "…"]


def _cut(text: str, length: int, end: bool) -> str:
    return "…" + text[len(text) - length :] if end else text[:length].rstrip() + "…"


def plainer(text: str) -> str:
    """The same in ASCII: letters without their accents, `?` for what has no likeness."""
    bare = unicodedata.normalize("NFKD", text)
    return "".join(c if c in OWN else "?" for c in bare if not unicodedata.combining(c))


@cache
def _system(size: int) -> Any:
    """The system's letters; None where Pillow finds none."""
    from PIL import ImageFont

    for name in SYSTEM:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None
