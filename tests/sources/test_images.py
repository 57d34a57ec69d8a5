"""ImageFolder: folders made here, Pillow as the oracle."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigconv.block import Block, Ragged
from bigconv.errors import InputError, UsageError
from bigconv.sources import images
from bigconv.sources.base import Reject, Span
from bigconv.sources.images import ImageFolder


def picture(seed: int, height: int = 12, width: int = 10) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def fill(root: Path, names: list[str], *, height: int = 12, width: int = 10) -> Path:
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed, height, width).save(path)
    return root


def read(source: ImageFolder) -> tuple[list[Block], list[Reject]]:
    blocks: list[Block] = []
    rejects: list[Reject] = []
    for span in source.plan():
        found = list(source.read(span))
        assert sum(1 if isinstance(item, Reject) else len(item) for item in found) == len(span)
        for item in found:
            if isinstance(item, Block):
                item.validate()
                blocks.append(item)
            else:
                rejects.append(item)
    return blocks, rejects


def pixels(source: ImageFolder) -> list[np.ndarray]:
    return [row for block in read(source)[0] for row in block["image"]]


def expected(root: Path, names: list[str]) -> list[np.ndarray]:
    return [np.asarray(Image.open(root / name).convert("RGB")) for name in names]


def test_classes_from_folders(tmp_path: Path) -> None:
    fill(tmp_path, ["dog/2.png", "cat/1.jpg", "cat/deep/3.PNG", "Zebra/x.bmp"])
    source = ImageFolder.find([tmp_path])
    names = ["Zebra/x.bmp", "cat/1.jpg", "cat/deep/3.PNG", "dog/2.png"]
    assert [source.files.name(i) for i in range(4)] == names
    assert source.schema.names == ("image", "label")
    image, label = source.schema
    assert (image.shape, image.dtype, image.kind, image.layout) == ((12, 10, 3), "uint8", "image", "hwc")
    assert (label.dtype, label.kind, label.classes) == ("int64", "label", ("Zebra", "cat", "dog"))
    blocks, rejects = read(source)
    assert not rejects
    assert len(blocks) == 1
    np.testing.assert_array_equal(blocks[0]["label"], [0, 1, 1, 2])
    np.testing.assert_array_equal(np.asarray(blocks[0]["image"]), expected(tmp_path, names))


def test_folders_that_are_splits_are_told_of(tmp_path: Path) -> None:
    for split, name in (("train", "cat"), ("val", "cat")):
        (tmp_path / split / name).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / split / name / "a.png")
    (note,) = ImageFolder.find([tmp_path]).notes
    assert note.startswith("the labels are train, val")
    assert ImageFolder.find([tmp_path / "train"]).notes == ImageFolder.find([tmp_path], label_from="none").notes == ()


def test_pictures_that_are_not_read_are_counted(tmp_path: Path) -> None:
    """Not what is no picture, and not in the stored recipe or source, as nothing of them is."""
    fill(tmp_path, ["a.png"])
    plain = ImageFolder.find([tmp_path])
    for name in ("x.HEIC", "deep/y.heic", "z.ico", "notes.txt", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    found = ImageFolder.find([tmp_path])
    told = "left out, as no decoder here reads them: 2 .heic, 1 .ico. Convert them to PNG or JPEG first"
    assert (plain.notes, found.notes) == ((), (told,))
    assert found.describe() == plain.describe()


def test_no_labels_at_the_top_level(tmp_path: Path) -> None:
    fill(tmp_path, ["b.png", "a.png"])
    source = ImageFolder.find([tmp_path])
    assert source.schema.names == ("image",)
    assert source.describe() == {
        "kind": "images",
        "files": 2,
        "bytes": sum(p.stat().st_size for p in tmp_path.iterdir()),
        "label_from": "none",
    }
    assert ImageFolder.find([fill(tmp_path / "c", ["x/1.png"])], label_from="none").schema.names == ("image",)


def test_loose_images_beside_classes_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, ["cat/1.png", "cat/2.png", "loose.png"])
    with pytest.raises(InputError, match=r"loose\.png lies outside of any class folder, 2 other"):
        ImageFolder.find([tmp_path])
    with pytest.raises(InputError, match=r"loose\.png lies in no folder"):
        ImageFolder.find([tmp_path], label_from="folder")
    assert ImageFolder.find([tmp_path], label_from="none").inputs == 3


def test_mixed_sizes(tmp_path: Path) -> None:
    fill(tmp_path, ["a.png", "b.png"])
    fill(tmp_path, ["c.png", "d.jpg"], height=5, width=30)
    source = ImageFolder.find([tmp_path])
    assert source.schema["image"].shape == (None, None, 3)
    for got, want in zip(pixels(source), expected(tmp_path, ["a.png", "b.png", "c.png", "d.jpg"]), strict=True):
        np.testing.assert_array_equal(got, want)


def test_turned_images_have_the_size_they_are_seen_in(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    picture(0, 10, 12).save(tmp_path / "turned.jpg", exif=exif)
    picture(1, 12, 10).save(tmp_path / "upright.jpg")
    source = ImageFolder.find([tmp_path])
    assert source.schema["image"].shape == (12, 10, 3)
    assert len(pixels(source)) == 2


def test_sizes_that_do_not_matter_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, ["a.png", "b.png"])
    monkeypatch.setattr(images.decode, "probe_file", None)
    source = ImageFolder.find([tmp_path], sizes_matter=False)
    assert source.schema["image"].shape == (None, None, 3)
    assert len(pixels(source)) == 2


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_bad_files_are_rejects_in_order(tmp_path: Path, encoded: bool, mixed: bool) -> None:
    good = ["0.png", "2.jpg", "5.png", "6.png"]
    fill(tmp_path, good)
    if mixed:
        picture(9, 3, 4).save(tmp_path / "6.png")
    (tmp_path / "1.jpg").write_text("this is text")
    (tmp_path / "3.png").write_bytes(b"")
    data = (tmp_path / "2.jpg").read_bytes()
    (tmp_path / "4.jpg").write_bytes(data[:-20])
    source = ImageFolder.find([tmp_path], keep_encoded=encoded)
    assert source.schema["image"].ragged == (encoded or mixed)
    (span,) = source.plan()
    found = list(source.read(span))
    blocks, rejects = read(source)
    got = [row for block in blocks for row in block["image"]]
    if encoded:  # the header is whole, and nothing else is looked at
        good = sorted([*good, "4.jpg"])
        for row, name in zip(got, good, strict=True):
            assert row.tobytes() == (tmp_path / name).read_bytes()
    else:
        for row, want in zip(got, expected(tmp_path, good), strict=True):
            np.testing.assert_array_equal(row, want)
    bad = [("1.jpg", 0), ("3.png", 0), ("4.jpg", 0)][: 2 if encoded else 3]
    assert [(r.path, r.row) for r in rejects] == bad
    assert {r.stage for r in rejects} == {"decode"}
    assert rejects[0].error == "not an image: starts with b'this is text'"
    assert rejects[1].error == "an empty file"
    assert str(tmp_path) not in str(rejects)
    kinds = ["R" if isinstance(item, Reject) else str(len(item)) for item in found]
    assert kinds == (["1", "R", "1", "R", "3"] if encoded else ["1", "R", "1", "R", "R", "2"])


def test_files_that_change_after_find(tmp_path: Path) -> None:
    fill(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    source = ImageFolder.find([tmp_path])
    (tmp_path / "a.png").unlink()
    with (tmp_path / "b.png").open("ab") as file:
        file.write(b"more")
    blocks, rejects = read(source)
    assert [(r.path, r.stage) for r in rejects] == [("a.png", "read"), ("b.png", "read")]
    assert rejects[0].error == "No such file or directory"
    assert "changed since it was listed" in rejects[1].error
    assert sum(map(len, blocks)) == 2


def test_a_file_of_another_size_in_a_fixed_source(tmp_path: Path) -> None:
    fill(tmp_path, ["a.bmp", "b.bmp"])
    source = ImageFolder.find([tmp_path])
    picture(0, 10, 12 - 0).save(tmp_path / "a.bmp")
    os.truncate(tmp_path / "a.bmp", int(source.files.sizes[0]))  # as many bytes as before
    blocks, rejects = read(source)
    assert [(r.path, r.row, r.stage, r.error) for r in rejects] == [
        ("a.bmp", 0, "decode", "10x12 pixels instead of 12x10")
    ]
    assert sum(map(len, blocks)) == 1


def test_names_that_are_hard(tmp_path: Path) -> None:
    names = ["\u00fc\u4e2d/\U0001f431.png", "new\nline/a b\t.png", "quote'\"/%s{}.png"]
    fill(tmp_path, names)
    raw = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(raw)
    picture(7).save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", raw + b"/\xff.png")
    source = ImageFolder.find([tmp_path])
    assert source.schema["label"].classes == tuple(sorted(["\u00fc\u4e2d", "new\nline", "quote'\"", "\\xff\\xfe"]))
    json.dumps(source.schema.to_json()).encode()
    assert len(pixels(source)) == 4


def test_labels_from_names(tmp_path: Path) -> None:
    fill(tmp_path, ["cat_01.png", "dog_02.png", "x/cat_03.png"])
    source = ImageFolder.find([tmp_path], label_from=r"name:([a-z]+)_\d")
    assert source.schema["label"].classes == ("cat", "dog")
    np.testing.assert_array_equal(source.labels, [0, 1, 0])
    assert source.label_from == r"name:([a-z]+)_\d"
    assert ImageFolder.find([tmp_path], label_from=r"name:\d+").schema["label"].classes == ("01", "02", "03")
    with pytest.raises(InputError, match=r"cat_01\.png: no label"):
        ImageFolder.find([tmp_path], label_from="name:dog()?")
    with pytest.raises(UsageError, match="not a regular expression"):
        ImageFolder.find([tmp_path], label_from="name:(")


@pytest.mark.parametrize("head", ["", "file,label\n", "\ufefffile,label\r\n", "\n"])
def test_labels_from_csv(tmp_path: Path, head: str) -> None:
    root = fill(tmp_path / "raw", ["a.png", "b,1.png", "c/\u00fc.png"])
    table = tmp_path / "labels.csv"
    table.write_text(head + 'c/\u00fc.png,10\n./a.png,9\n"b,1.png", 10\nelsewhere.png,77\n', encoding="utf-8")
    source = ImageFolder.find([root], label_from=f"csv:{table}")
    assert source.schema["label"].classes == ("10", "9")  # bytewise
    np.testing.assert_array_equal(source.labels, [1, 0, 0])
    told = source.describe()
    assert told["label_from"] == "csv:labels.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("a.png,9", "a.png,10").replace('1.png", 10', '1.png",9'))
    assert ImageFolder.find([root], label_from=f"csv:{table}").describe() != told


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a.png,1\n", r"no label for 2 of 3 images. The first: b\.png"),
        ("a,1\nb,2\n", r"no label for 3 of 3 images(.|\n)*'b'"),
        ("a.png,1,2\n", "line 1: expected file,label, got 3 columns"),
        ("a.png,1\na.png,2\n", "line 2: a second label, 2, for a.png"),
        ("a.png,\n", "line 1: no label for a.png"),
        ('"a.png,1\n', "not a table"),
        ("", "no label for 3 of 3"),
    ],
)
def test_csv_errors(tmp_path: Path, text: str, error: str) -> None:
    root = fill(tmp_path / "raw", ["a.png", "b.png", "c.png"])
    table = tmp_path / "labels.csv"
    table.write_text(text)
    with pytest.raises(InputError, match=error):
        ImageFolder.find([root], label_from=f"csv:{table}")


def test_csv_that_cannot_be_read(tmp_path: Path) -> None:
    root = fill(tmp_path / "raw", ["a.png"])
    with pytest.raises(InputError, match="No such file"):
        ImageFolder.find([root], label_from="csv:nowhere.csv")
    (tmp_path / "latin.csv").write_bytes(b"a.png,\xff\n")
    with pytest.raises(InputError, match="UTF-8"):
        ImageFolder.find([root], label_from=f"csv:{tmp_path / 'latin.csv'}")


@pytest.mark.parametrize("way", ["folders", "name:", "csv", "", "names:x"])
def test_unknown_ways_to_label(tmp_path: Path, way: str) -> None:
    with pytest.raises(UsageError, match="There are: folder, name:REGEX, csv:FILE, none"):
        ImageFolder.find([fill(tmp_path, ["a.png"])], label_from=way)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one folder"):
        ImageFolder.find([tmp_path, tmp_path])
    with pytest.raises(InputError, match="found no files"):
        ImageFolder.find([tmp_path])
    for name in ("a.txt", "b.txt", "c.PDF", "README"):
        (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match=r"found 2 \.txt, 1 \.pdf, 1 without suffix(.|\n)*Looked for \.jpg"):
        ImageFolder.find([tmp_path])
    (tmp_path / "a.jpg").write_text("no image")
    (tmp_path / "b.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"none of 2 images can be read. The first, a\.jpg: not an image"):
        ImageFolder.find([tmp_path])


def test_plan_and_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{i:02}.png" for i in range(11)]
    fill(tmp_path, names)
    (tmp_path / "04.png").write_text("bad")
    monkeypatch.setattr(images, "SPAN_FILES", 4)
    fixed = ImageFolder.find([tmp_path])
    assert fixed.plan() == [Span(0, 4), Span(4, 8), Span(8, 11)]
    monkeypatch.setattr(images, "SPAN_BYTES", 3 * 12 * 10 * 3)
    assert fixed.plan() == [Span(0, 3), Span(3, 6), Span(6, 9), Span(9, 11)]
    good = [name for name in names if name != "04.png"]
    for source in (fixed, ImageFolder.find([tmp_path], sizes_matter=False)):
        for plan in (source.plan(), [Span(0, 11)], [Span(3, 7)]):  # any span, as a retry may ask for
            found = [item for span in plan for item in source.read(span)]
            assert all(b["image"].nbytes <= 3 * 360 for b in found if isinstance(b, Block) and source is fixed)
            wanted = [n for n in good if plan[0].start <= int(n[:2]) < plan[-1].stop]
            got = [row for b in found if isinstance(b, Block) for row in b["image"]]
            np.testing.assert_array_equal(got, expected(tmp_path, wanted))
            assert [(r.path, r.row) for r in found if isinstance(r, Reject)] == [("04.png", 0)]
    ragged = ImageFolder.find([tmp_path], keep_encoded=True)
    assert [len(s) for s in ragged.plan()] == [len(s) for s in pickle.loads(pickle.dumps(ragged)).plan()]
    assert sum(len(s) for s in ragged.plan()) == 11


@pytest.mark.parametrize("workers", [1, 3])
def test_pickles_and_looks_with_threads(tmp_path: Path, workers: int) -> None:
    fill(tmp_path, ["a/1.png", "b/2.png", "b/3.png"])
    source = ImageFolder.find([tmp_path], workers=workers)
    again = pickle.loads(pickle.dumps(source))
    assert again.schema == source.schema
    np.testing.assert_array_equal(pixels(again), pixels(source))
    assert not re.search(re.escape(str(tmp_path)), json.dumps(again.describe()))


def test_encoded_bytes_are_the_files(tmp_path: Path) -> None:
    fill(tmp_path, ["a/1.png", "b/2.jpg"])
    source = ImageFolder.find([tmp_path], keep_encoded=True)
    assert (source.schema["image"].kind, source.schema["image"].shape) == ("encoded", (None,))
    (block,) = read(source)[0]
    column = block["image"]
    assert isinstance(column, Ragged)
    assert [row.tobytes() for row in column] == [(tmp_path / n).read_bytes() for n in ("a/1.png", "b/2.jpg")]
    np.testing.assert_array_equal(block["label"], [0, 1])


def test_links_out_of_the_folder_are_passed_over(tmp_path: Path) -> None:
    root = fill(tmp_path / "raw", ["a.png"])
    fill(tmp_path / "secret", ["b.png"])
    (root / "b.png").symlink_to(tmp_path / "secret/b.png")
    os.mkfifo(root / "pipe.png")
    assert ImageFolder.find([root]).inputs == 1


def test_blocks_of_images_larger_than_their_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = fill_sizes(tmp_path, [(3, 4), (40, 30), (5, 5), (8, 2), (50, 60)])
    monkeypatch.setattr(images, "SPAN_BYTES", 400)
    monkeypatch.setattr(images, "ROOM_BYTES", 100)
    source = ImageFolder.find([tmp_path])
    blocks = list(source.read(Span(0, len(names))))  # held all together: none may be written over
    assert [len(b) for b in blocks if isinstance(b, Block)] == [2, 3]
    got = [row for b in blocks if isinstance(b, Block) for row in b["image"]]
    for row, want in zip(got, expected(tmp_path, names), strict=True):
        np.testing.assert_array_equal(row, want)


def fill_sizes(root: Path, sizes: list[tuple[int, int]]) -> list[str]:
    names = [f"{i}.png" for i in range(len(sizes))]
    for i, (name, (height, width)) in enumerate(zip(names, sizes, strict=True)):
        picture(i, height, width).save(root / name)
    return names


def test_digests_are_of_the_bytes_that_were_decoded(tmp_path: Path) -> None:
    fill(tmp_path, ["a.png", "b.png"])
    source = ImageFolder.find([tmp_path])
    wanted = [source.files.digest(i) for i in range(2)]
    assert len(read(source)[0]) == 1
    (tmp_path / "a.png").write_bytes(b"another")
    assert [source.file_digest(i) for i in range(2)] == wanted
    assert pickle.loads(pickle.dumps(source)).file_digest(0) == source.files.digest(0) != wanted[0]
