"""Pictures of rows: what colours numbers become, what is drawn of which kind, and where it stands."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from bigconv.inspection import pixels
from bigconv.inspection.contact import cards, colour, png
from bigconv.inspection.lettering import Letters, plainer
from bigconv.inspection.page import Page, html
from bigconv.inspection.panels import panel, panels
from bigconv.inspection.rows import Picked
from bigconv.inspection.warnings import Complaint
from bigconv.schema import Field, Schema

RNG = np.random.default_rng(0)
RAMP = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)


@pytest.mark.parametrize(
    ("array", "layout", "expected"),
    [
        (np.full((6, 7, 3), 9, np.uint8), "hwc", (9, 9, 9)),
        (np.full((3, 6, 7), 9, np.uint8), "chw", (9, 9, 9)),
        (np.full((6, 7, 1), 9, np.uint8), None, (9, 9, 9)),
        (np.ones((6, 7), bool), None, (255, 255, 255)),
        (np.full((3, 6, 7), 1.0, np.float32), None, (255, 255, 255)),
        (np.full((3, 6, 7), 51.0, np.float32), "chw", (51, 51, 51)),
        (np.full((4, 6, 7), 0, np.uint8), "chw", (236, 236, 236)),  # transparent: the board is seen
        (np.full((5, 6, 7), 3, np.uint8), "chw", (3, 3, 3)),
    ],
)
def test_images(array: np.ndarray, layout: str | None, expected: tuple[int, ...]) -> None:
    shown = pixels.image(array, layout)
    assert shown is not None
    assert (shown.shape, shown.dtype) == ((6, 7, 3), np.uint8)
    assert tuple(shown[0, 0]) == expected


def test_ranges() -> None:
    assert pixels.as_bytes(RAMP).tolist() == (RAMP.astype(np.float64) * 255).astype(np.uint8).tolist()
    for array in (RAMP * 4 - 2, (RAMP * 4095).astype(np.uint16), RAMP.astype(np.float64) * 1e300):
        shown = pixels.as_bytes(array)
        assert (shown.min(), shown.max()) == (0, 255)
        assert (np.diff(shown.reshape(-1).astype(int)) >= 0).all()
    assert pixels.as_bytes(np.array([np.nan, np.inf, -np.inf, 0, 1.0])).tolist() == [0, 255, 0, 0, 255]
    assert pixels.as_bytes(np.full(3, 700)).tolist() == [127] * 3


def test_masks_keep_their_numbers_apart() -> None:
    shown = pixels.mask(np.array([[0, 1, 2], [11, 12, 256]]))
    assert tuple(shown[0, 0]) == pixels.CLASSES[0]
    assert tuple(shown[1, 1]) == tuple(shown[0, 1]) == colour(0)  # they come round
    assert len({tuple(c) for c in shown.reshape(-1, 3).tolist()}) == 5
    assert pixels.is_mask(RNG.integers(0, 5, (20, 20)))
    assert not pixels.is_mask(RNG.integers(0, 999, (20, 20)))


def test_slices_cut_the_middle() -> None:
    volume = np.zeros((4, 6, 8))
    volume[2, 3, 4] = 1
    for cut, shape in zip(pixels.slices(volume), ((6, 8), (4, 8), (4, 6)), strict=True):
        assert cut.shape == (*shape, 3)
        assert (cut[..., 0] == 255).sum() == 1


FIELDS = [
    (Field("image", "uint8", (3, 40, 60), "image", layout="chw"), RNG.integers(0, 9, (3, 40, 60), np.uint8)),
    (Field("mask", "uint8", (40, 60)), np.zeros((40, 60), np.uint8)),
    (Field("volume", "float32", (9, 8, 7), "volume"), RNG.random((9, 8, 7), np.float32)),
    (Field("video", "uint8", (5, 3, 8, 9), "video"), np.zeros((5, 3, 8, 9), np.uint8)),
    (Field("audio", "float32", (None,), "audio"), np.sin(np.arange(5000, dtype=np.float32))),
    (Field("stereo", "float32", (2, None), "audio"), np.full((2, 3), np.nan, np.float32)),
    (Field("few", "float32", (5,)), np.arange(5, dtype=np.float32) - 2),
    (Field("long", "int64", (999,)), np.arange(999)),
    (Field("series", "float32", (50, 3)), RNG.random((50, 3), np.float32)),
    (Field("matrix", "complex64", (20, 30)), np.ones((20, 30), np.complex64)),
]


@pytest.mark.parametrize(("field", "value"), FIELDS, ids=lambda v: v.name if isinstance(v, Field) else "")
def test_what_is_drawn(field: Field, value: np.ndarray) -> None:
    drawn = panel(field, value, 120)
    assert drawn.image is not None
    assert max(drawn.image.size) <= 120
    assert drawn.image.getbbox() is not None
    assert drawn.note == " × ".join(map(str, value.shape))


def test_waves_rise_where_the_sound_is() -> None:
    sound = np.zeros(1000, np.float32)
    sound[500:] = np.sin(np.arange(500))
    drawn = panel(Field("a", "float32", (1000,), "audio"), sound, 100).image
    assert drawn is not None
    ink = np.asarray(drawn)[..., 3] > 128
    assert ink[:, 60:].sum() > 10 * ink[:, :40].sum()


def test_what_is_told_in_words() -> None:
    assert panel(Field("t", "uint8", (None,), "text"), "a\n b", 99).text == "a b"
    assert panel(Field("t", "uint8", (None,), "text"), "x" * 9999, 99).text.endswith("x…")
    assert panel(Field("t", "uint16", (None,), "tokens"), np.array([5, 7], np.uint16), 99).text == "5 7"
    assert panel(Field("b", "uint8", (None,), "bytes"), np.array([255, 1], np.uint8), 99).text == "ff 01"
    assert "can't be decoded" in panel(Field("e", "uint8", (None,), "encoded"), np.zeros(9, np.uint8), 99).text
    assert panel(Field("x", "float32", (0,)), np.zeros(0), 99).text == "(empty)"
    schema = Schema((Field("a", "float32"), Field("label", "int64", (), "label", classes=("cat",)), Field("b", "bool")))
    (only,) = panels(schema, {"a": np.float32(0.5), "label": np.int64(0), "b": np.True_}, 99)
    assert only.text == "a  0.5\nb  True"


def test_letters() -> None:
    letters = Letters(14)
    text = "a rather long path/to/some/file.jpg"
    for end in (False, True):
        shown = letters.elided(text, 100, end)
        assert letters.width(shown) <= 100
        assert shown.endswith("file.jpg") if end else shown.startswith("a rather")
    lines = letters.wrapped("word " * 50 + "x" * 500, 90, 4)
    assert len(lines) == 4
    assert all(letters.width(line) <= 90 for line in lines)
    assert lines[-1].endswith("…")
    assert letters.wrapped("one\ntwo", 90, 4) == ["one", "two"]
    assert "\x1b" not in letters.elided("\x1b[31mred", 500)
    assert plainer("naïve 雪") == "naive ?"


def picked(n: int) -> tuple[Schema, list[Picked]]:
    fields = tuple(field for field, _ in FIELDS[:2])
    schema = Schema((*fields, Field("label", "int64", (), "label", classes=("cat", "<b>dog"))))
    values = {field.name: value for field, value in FIELDS[:2]}
    return schema, [Picked(i, f"row {i}", {**values, "label": np.int64(i % 2)}) for i in range(n)]


@pytest.mark.parametrize("n", [0, 1, 5])
def test_sheet(n: int) -> None:
    shown = cards(*picked(n))
    data = png("title", "about", shown)
    assert data == png("title", "about", cards(*picked(n)))
    assert b"bigconv inspect" in data[:4096]
    sheet = Image.open(io.BytesIO(data))
    assert 200 < sheet.width <= 1800
    found = {tuple(c) for _, c in sheet.convert("RGB").getcolors(1 << 24)}
    assert (colour(0) in found, colour(1) in found) == (n > 0, n > 1)  # the dots of both classes


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_page_needs_nothing_and_escapes_all() -> None:
    evil = "<script>alert(1)</script>\x1b"
    schema, rows = picked(3)
    complaint = Complaint("x", (evil,), evil, evil)
    shown, origin = cards(schema, rows), [(evil, evil)]
    page = html(Page(evil, [evil], schema, {"image": evil}, {"image": 9}, {}, (), (), shown, [complaint], origin))
    text = page.decode("utf-8")
    parser = _Links()
    parser.feed(text)
    assert "script" not in parser.tags
    assert {"img", "table", "pre"} <= set(parser.tags)
    assert all(link.startswith("data:image/png;base64,") for link in parser.links)
    assert "\x1b" not in text
    assert "&lt;b&gt;dog" in text
    assert "prefers-color-scheme:dark" in text
    assert "width=device-width" in text
    assert "bigconv inspect" in text[:4096]


def test_a_mask_of_a_volume_shows_its_classes() -> None:
    """On the slices that its volume shows, and never in between two classes."""
    mask = np.zeros((9, 10, 11), np.uint8)
    mask[4, 2:5, 3:6] = 2
    shown = pixels.slices(mask, classes=True)
    assert np.array_equal(shown[0], pixels.mask(mask[4]))
    drawn = panel(Field("mask", "uint8", (9, 10, 11), "mask"), mask, 96).image
    assert drawn is not None
    seen = {tuple(one) for one in np.asarray(drawn).reshape(-1, 3).tolist()}
    assert seen == {pixels.CLASSES[0], pixels.CLASSES[2]}
