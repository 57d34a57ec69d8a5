"""Files joined on their stems, and what else makes fields of files: paths, classes, rows of arrays, links."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import nibabel
import numpy as np
import pytest
from _rows import read
from PIL import Image

import bigconv
from bigconv.block import Block
from bigconv.conversion.options import find_source
from bigconv.errors import FindingsError, InputError, UsageError
from bigconv.sources.array_folder import ArrayFolder
from bigconv.sources.images import ImageFolder
from bigconv.sources.joined import Joined, Wanted
from bigconv.testing.source_suite import Made, SourceSuite

PAIR = ["image=images/*.png", "mask=masks/*.png"]


def palette(values: np.ndarray) -> Image.Image:
    """Indices whose colours are something else."""
    image = Image.fromarray(values).convert("P")
    image = Image.new("P", values.shape[::-1])
    image.putpalette([255 - n // 3 for n in range(768)])
    image.putdata(values.ravel().tolist())
    return image


def pairs(folder: Path, sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i, size in enumerate(sizes):
        row = {"image": rng.integers(0, 256, (*size, 3), np.uint8), "mask": rng.integers(0, 7, size, np.uint8)}
        Image.fromarray(row["image"]).save(folder / "images" / f"{i}.png")
        (palette(row["mask"]) if i % 2 else Image.fromarray(row["mask"])).save(folder / "masks" / f"{i}.png")
        rows.append(row)
    return rows


def scans(folder: Path, shapes: list[tuple[int, ...]]) -> list[dict[str, Any]]:
    """Volumes and their masks, every other one saved with floats, as some programs do."""
    rng = np.random.default_rng(0)
    rows = []
    for i, shape in enumerate(shapes):
        affine = np.diag([1, 2, 2.5 + i, 1])
        row = {"volume": rng.integers(-1000, 1000, shape, np.int16), "mask": rng.integers(0, 4, shape, np.uint8)}
        for name, data in (("ct", row["volume"]), ("seg", row["mask"].astype(np.float32 if i % 2 else np.uint8))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(data, affine), folder / name / f"case_{i}.nii{'.gz' if i % 3 else ''}")
        rows.append({"volume": row["volume"], "mask": row["mask"].astype(np.int16), "affine": affine})
    return rows


SCANS = ["volume=ct/*.{nii,nii.gz}", "mask=seg/*.{nii,nii.gz}"]


class Joins(SourceSuite):
    source = "joined"
    limits: ClassVar = {"bigconv.sources.rowwise.SPAN_INPUTS": 2}


class TestPairs(Joins):
    def make(self, folder: Path) -> Made:
        return [folder], {"field": PAIR}, pairs(folder, [(8, 9)] * 5)

    def test_a_damaged_file_is_named(self, made: Made, damage: str = "") -> None:
        """A row is several files here: `test_a_bad_file_costs_its_row` looks at each."""


class TestScans(Joins):
    """Volumes of different sizes with their masks."""

    def make(self, folder: Path) -> Made:
        return [folder], {"field": SCANS}, scans(folder, [(4, 5, 6), (3, 5, 6), (4, 4, 4), (7, 2, 3), (4, 5, 6)])

    def test_a_damaged_file_is_named(self, made: Made, damage: str = "") -> None:
        """As above: `test_bad_scans` looks at each."""


class TestOfEveryKind(Joins):
    def make(self, folder: Path) -> Made:
        rows = []
        for i, row in enumerate(pairs(folder, [(8, 9), (3, 4), (1, 1)])):
            array, text = np.arange(3.0 * i).reshape(i, 3), f"what is on {i} ☃"
            np.save(folder / f"{i}_depth.npy", array)
            (folder / f"{i}.txt").write_text(text)
            (folder / f"{i}.cls").write_text(str(i * 3))
            raw = np.frombuffer((folder / f"images/{i}.png").read_bytes(), np.uint8)
            number = np.int64(i * 3)
            rows.append({**row, "depth": array, "text": text, "label": number, "raw": raw, "photo_mask": row["mask"]})
        more = ["depth=*_depth.npy", "text=*.txt", "label=*.cls", "raw:bytes=images/*.png", "photo_mask=masks/*"]
        return [folder], {"field": [*PAIR, *more]}, rows

    def test_a_damaged_file_is_named(self, made: Made, damage: str = "") -> None:
        """As above."""

    def test_origin_is_a_place_in_the_files(self, made: Made) -> None:
        super().test_origin_is_a_place_in_the_files(made)


@pytest.mark.parametrize("suffix", [".mmap", ".h5", ".lmdb", ".zarr"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    """Palette masks keep their indices; nothing is scaled."""
    rows = pairs(tmp_path / "raw", [(8, 9)] * 4)
    bigconv.convert(tmp_path / "raw", tmp_path / f"out{suffix}", field=PAIR, layout="hwc", workers=0)
    view = bigconv.open(tmp_path / f"out{suffix}")
    assert view.schema["mask"].kind == "mask"
    for name in ("image", "mask"):
        np.testing.assert_array_equal(view[:][name], [row[name] for row in rows])


def test_masks_of_16_and_32_bits(tmp_path: Path) -> None:
    for i, dtype in enumerate((np.uint8, np.uint16)):
        Image.fromarray(np.full((4, 5), 200 + 40_000 * i, dtype)).save(tmp_path / f"{i}.png")
    Image.fromarray(np.full((4, 5), 70_000, np.int32)).save(tmp_path / "2.tif")
    source = Joined.find([tmp_path], field=["mask=*.png"])
    assert source.schema["mask"].dtype == "uint16"
    block, _ = read(source)
    assert block is not None
    assert np.asarray(block["mask"])[:, 0, 0].tolist() == [200, 40_200]
    source = Joined.find([tmp_path], field=["mask=*"])
    assert (source.schema["mask"].dtype, source.schema["mask"].shape) == ("int32", (4, 5))
    assert [int(row["mask"][0, 0]) for row in read(source)[0] or ()] == [200, 40_200, 70_000]


def test_colours_are_no_mask(tmp_path: Path) -> None:
    rows = pairs(tmp_path, [(4, 5)] * 3)
    Image.fromarray(rows[0]["image"]).save(tmp_path / "masks" / "1.png")
    _, rejects = read(Joined.find([tmp_path], field=PAIR))
    assert [(r.path, r.error) for r in rejects] == [
        ("images/1.png", "masks/1.png: PNG of mode RGB: a mask has one number a pixel, not colours")
    ]


# -- joining -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "name", "key"),
    [
        ("images/*.jpg", "images/a.b.jpg", ("a.b",)),
        ("images/*", "images/a.b.jpg", ("a.b",)),
        ("images/*", "images/a", ("a",)),
        ("images/*", "images/deep/a.jpg", None),
        ("*_img.png", "a_img.png", ("a",)),
        ("**/*.jpg", "x/y/a.jpg", ("x/y/", "a")),
        ("**/*.jpg", "a.jpg", ("", "a")),
        ("*/images/*.png", "train/images/a.png", ("train", "a")),
        ("a?.png", "a1.png", ("1",)),
        ("a[0-9].png", "a7.png", ("7",)),
        ("a[!0-9].png", "a7.png", None),
        ("*.{jpg,png}", "a.png", ("a",)),
        ("*.{jpg,png}", "a.gif", None),
        ("x/*.*", "x/a.tar.gz", ("a.tar",)),
        ("a+b/(*).png", "a+b/(c).png", ("c",)),
    ],
)
def test_globs(glob: str, name: str, key: tuple[str, ...] | None) -> None:
    match = Wanted.parse(f"x={glob}").pattern().fullmatch(name)
    assert (match.groups() if match else None) == key


def test_unmatched_files_are_rejects(tmp_path: Path) -> None:
    pairs(tmp_path / "raw", [(4, 5)] * 4)
    (tmp_path / "raw/masks/1.png").unlink()
    (tmp_path / "raw/images/2.png").unlink()
    (tmp_path / "raw/other.txt").write_text("not asked for")
    Image.new("RGB", (5, 4)).save(tmp_path / "raw/images/3.bmp")
    wanted = ["image=images/*", "mask=masks/*.png"]
    source = Joined.find([tmp_path / "raw"], field=wanted)
    block, rejects = read(source)
    assert block is not None
    assert len(block) == 1
    assert [(r.path, r.error) for r in rejects] == [
        ("images/1.png", "no file for field mask: none of masks/*.png has its stem"),
        ("images/3.bmp", "several files for field image: more than one of images/* has its stem"),
        ("masks/2.png", "no file for field image: none of images/* has its stem"),
    ]
    assert (source.describe()["unmatched"], source.describe()["passed_over"]) == (3, 1)
    with pytest.raises(FindingsError, match="3 of 4"):
        bigconv.convert(tmp_path / "raw", tmp_path / "o.h5", field=wanted, workers=0)
    assert bigconv.convert(tmp_path / "raw", tmp_path / "o.h5", field=wanted, workers=0, max_rejects=3).rows == 1


def test_nothing_matches(tmp_path: Path) -> None:
    pairs(tmp_path, [(4, 5)] * 2)
    with pytest.raises(
        InputError, match=r"no file matches --field mask=mask/\*.png.\nGlobs are relative .* 'images/0.png'"
    ):
        Joined.find([tmp_path], field=["image=images/*.png", "mask=mask/*.png"])
    for i in range(2):
        (tmp_path / f"masks/{i}.png").rename(tmp_path / f"masks/m{i}.png")
    with pytest.raises(InputError, match="no stem has a file for each field: image has '0', mask has 'm0'"):
        Joined.find([tmp_path], field=PAIR)
    assert Joined.find([tmp_path], field=[PAIR[0], "mask=masks/m*.png"]).inputs == 2


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("image", "expected NAME=GLOB"),
        ("=x", "expected NAME=GLOB"),
        ("image=", "expected NAME=GLOB"),
        ("x:imge=*", "unknown kind 'imge'. Did you mean 'image'"),
        ("_x=*", "can't be a field name"),
        ("x=[z-a]*", "not a glob"),
    ],
)
def test_typed_wrongly(tmp_path: Path, typed: str, told: str) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UsageError, match=told):
        Joined.find([tmp_path], field=[typed])
    with pytest.raises(UsageError, match="two of the same name"):
        Joined.find([tmp_path], field=["x=*", "x=*"])


@pytest.mark.parametrize("damage", [b"", b"junk", None])
@pytest.mark.parametrize("which", ["images", "masks"])
def test_a_bad_file_costs_its_row(tmp_path: Path, which: str, damage: bytes | None) -> None:
    pairs(tmp_path, [(8, 9)] * 3)
    path = tmp_path / which / "1.png"
    path.write_bytes(path.read_bytes()[:60] if damage is None else damage)
    block, rejects = read(Joined.find([tmp_path], field=PAIR))
    assert [r.path for r in rejects] == ["images/1.png"]
    assert ("masks/1.png: " in rejects[0].error) == (which == "masks")
    assert block is not None
    assert len(block) == 2


def test_a_mask_that_was_not_turned_is_told(tmp_path: Path) -> None:
    """The camera's note that a picture lies on its side is heeded; a mask drawn without it doesn't fit."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (9, 5)).save(tmp_path / "images/0.jpg", exif=exif)
    Image.new("L", (9, 5)).save(tmp_path / "masks/0.png")
    _, rejects = read(Joined.find([tmp_path], field=["image=images/*.jpg", "mask=masks/*.png"]))
    assert rejects[0].error == ("mask has 5x9 pixels, image 9x5 as EXIF turns it: they lie across one another")
    Image.new("L", (9, 5)).save(tmp_path / "masks/0.png", exif=exif)
    assert read(Joined.find([tmp_path], field=["image=images/*.jpg", "mask=masks/*.png"]))[1] == []


def test_labels_of_rows(tmp_path: Path) -> None:
    pairs(tmp_path, [(4, 5)] * 3)
    source = Joined.find([tmp_path], field=PAIR, label_from=r"name:(\d)", classes=["2", "1", "0"])
    assert source.schema["label"].classes == ("2", "1", "0")
    assert np.asarray((read(source)[0] or {})["label"]).tolist() == [2, 1, 0]


def test_images_as_they_are(tmp_path: Path) -> None:
    rows = pairs(tmp_path, [(4, 5)] * 2)
    source = Joined.find([tmp_path], field=PAIR, keep_encoded=True)
    assert [source.schema[n].kind for n in ("image", "mask")] == ["encoded", "mask"]
    first = next(iter(read(source)[0] or ()))
    assert bytes(first["image"]) == (tmp_path / "images/0.png").read_bytes()
    np.testing.assert_array_equal(first["mask"], rows[0]["mask"])


# -- --keep-path, --classes, --rows, --follow-links --------------------------------------------------------------------


def test_keep_path_of_any_source(tmp_path: Path) -> None:
    """Files, lines of files and rows of stores know where they come from."""
    pairs(tmp_path / "raw", [(4, 5)] * 3)
    manifest = bigconv.convert(tmp_path / "raw/images", tmp_path / "a.h5", keep_path=True, workers=0)
    view = bigconv.open(tmp_path / "a.h5")
    assert [view[i]["path"] for i in range(3)] == ["0.png", "1.png", "2.png"]
    assert manifest.recipe["read"] == {"keep_path": True}
    (tmp_path / "t.csv").write_text("n\n1\n2\n")
    (tmp_path / "u.csv").write_text("n\n3\n")
    bigconv.convert([tmp_path / "t.csv", tmp_path / "u.csv"], tmp_path / "b.zarr", keep_path=True, workers=0)
    assert [row["path"] for row in bigconv.open(tmp_path / "b.zarr")[:]] == ["t.csv", "t.csv", "u.csv"]
    with pytest.raises(UsageError, match="has a field path already"):
        bigconv.convert(tmp_path / "a.h5", tmp_path / "c.h5", keep_path=True, workers=0)
    again = bigconv.convert(tmp_path / "raw/images", tmp_path / "d.h5", recipe=tmp_path / "a.h5", workers=0)
    assert again.content_digest == manifest.content_digest


def test_paths_that_are_no_text(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff\x1b.png")
    source = find_source([tmp_path], "images", {"keep_path": True})
    (block,) = (item for span in source.plan() for item in source.read(span))
    assert isinstance(block, Block)
    assert block.row(0)["path"] == "\\xff\x1b.png"


def classes_folder(folder: Path, names: str) -> Path:
    for name in names.split():
        (folder / name).mkdir(parents=True)
        Image.new("L", (2, 2)).save(folder / name / "0.png")
    return folder


def test_classes_are_those_of_the_file(tmp_path: Path) -> None:
    """In its order, also those that no file has; the same for train and validation."""
    (tmp_path / "classes.txt").write_text("zebra\ncat\n\n dog \r\nant\n", encoding="utf-8-sig")
    train = classes_folder(tmp_path / "train", "cat dog zebra")
    bigconv.convert(train, tmp_path / "train.h5", classes=tmp_path / "classes.txt", workers=0)
    view = bigconv.open(tmp_path / "train.h5")
    assert view.schema["label"].classes == ("zebra", "cat", "dog", "ant")
    assert np.asarray(view[:]["label"]).tolist() == [1, 2, 0]
    val = classes_folder(tmp_path / "val", "ant cat")
    manifest = bigconv.convert(val, tmp_path / "val.h5", classes=tmp_path / "train.h5", workers=0)
    assert bigconv.open(tmp_path / "val.h5").schema["label"].classes == ("zebra", "cat", "dog", "ant")
    # the names are part of the recipe: no file is needed to do it again
    (tmp_path / "classes.txt").unlink()
    again = bigconv.convert(val, tmp_path / "again.h5", recipe=tmp_path / "train.h5", workers=0)
    assert again.content_digest == manifest.content_digest


def test_classes_that_do_not_fit(tmp_path: Path) -> None:
    folder = classes_folder(tmp_path / "raw", "cat dgo elk")
    for told, classes in (
        ("unknown class 'dgo'. Did you mean 'dog'.*nor are 1 others", ["cat", "dog"]),
        ("'cat' stands there twice", ["cat", "dgo", "elk", "cat"]),
        ("no such file", tmp_path / "nothing.txt"),
        ("no names in it", []),
    ):
        with pytest.raises(InputError, match=told):
            ImageFolder.find([folder], classes=classes)
    with pytest.raises(UsageError, match="--classes needs labels"):
        ImageFolder.find([folder], classes=["cat"], label_from="none")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        ImageFolder.find([folder], classes=tmp_path / "bad.txt")


class TestRowsOfArrays(SourceSuite):
    source = "array-folder"
    file_a_row = False
    limits: ClassVar = {"bigconv.sources.array_rows.SPAN_BYTES": 100}

    def make(self, folder: Path) -> Made:
        x = np.random.default_rng(0).random((9, 3)).astype("f4")
        np.save(folder / "a.npy", x[:4].astype(">f4"))
        np.save(folder / "b.npy", x[4:4])
        (folder / "c").mkdir()
        np.save(folder / "c" / "a.npy", np.asfortranarray(x[4:]))
        return [folder], {"rows": True}, [{"array": row} for row in x]


class TestRowsOfArchives(SourceSuite):
    """Along another axis; rows of several lengths."""

    source = "array-folder"
    file_a_row = False
    limits: ClassVar = {"bigconv.sources.array_rows.SPAN_BYTES": 100}

    def make(self, folder: Path) -> Made:
        rows = []
        for n in (2, 5, 3):
            x, words = np.arange(4.0 * n).reshape(n, 4), np.array([[f"é{n}{i}" for i in range(4)]])[0]
            np.savez_compressed(folder / f"{n}.npz", x=x, words=words)
            rows += [(n, {"words": words[i], "x": x[:, i]}) for i in range(4)]
        return [folder], {"rows": True, "axis": -1}, [row for _, row in sorted(rows, key=lambda r: r[0])]


def test_rows_of_arrays_that_do_not_go_together(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 2)))
    with pytest.raises(UsageError, match="--rows makes a row of each"):
        ArrayFolder.find([tmp_path], axis=1)
    with pytest.raises(InputError, match=r"no axis 2 in an array of shape \(3, 2\)"):
        ArrayFolder.find([tmp_path], rows=True, axis=2)
    np.save(tmp_path / "b.npy", np.zeros((3, 2), np.float32))
    with pytest.raises(InputError, match=r"b.npy: rows of float32 \[2\], but .*a.npy has float64"):
        ArrayFolder.find([tmp_path], rows=True)


def test_follow_links(tmp_path: Path) -> None:
    """Out of the root, through a loop, past a pipe: by request alone."""
    inside, outside = tmp_path / "raw", tmp_path / "elsewhere"
    for folder in (inside, outside):
        folder.mkdir()
        Image.new("L", (2, 2)).save(folder / f"{folder.name}.png")
    (inside / "out").symlink_to(outside)
    (outside / "back").symlink_to(inside)
    (inside / "one.png").symlink_to(outside / "elsewhere.png")
    (inside / "nothing.png").symlink_to(tmp_path / "missing.png")
    os.mkfifo(inside / "pipe.png")
    (inside / "zero.png").symlink_to("/dev/zero")
    without = find_source([inside], None, {"label_from": "none"})
    assert [without.files.name(i) for i in range(len(without.files))] == ["raw.png"]
    followed = find_source([inside], None, {"label_from": "none", "follow_links": True})
    assert [followed.files.name(i) for i in range(len(followed.files))] == ["one.png", "out/elsewhere.png", "raw.png"]
    again = find_source([inside], None, {"label_from": "none"})
    assert len(again.files) == 1, "one request must not change the next"


def test_scans_and_masks(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    scans(raw, [(4, 5, 6), (4, 5, 6)])
    source = Joined.find([raw], field=SCANS)
    told = [(f.name, f.dtype, f.shape, f.kind) for f in source.schema]
    assert told == [
        ("volume", "int16", (4, 5, 6), "volume"),
        ("mask", "int16", (4, 5, 6), "mask"),
        ("affine", "float64", (4, 4), "label"),
    ]
    manifest = bigconv.convert(raw, tmp_path / "a.h5", field=SCANS, dtype="float32", workers=0)
    assert [f.dtype for f in manifest.schema] == ["float32", "int16", "float64"]  # a mask keeps its integers
    assert Joined.find([raw], field=["volume:bytes=ct/*.{nii,nii.gz}"]).schema["volume"].kind == "bytes"
    (raw / "ct/case_1.nii.gz").rename(raw / "ct/case_1.gz")
    with pytest.raises(InputError, match=r"'ct/case_1.gz': volumes that are joined are NIfTI files"):
        Joined.find([raw], field=["volume:volume=ct/*"])


def test_bad_scans(tmp_path: Path) -> None:
    scans(tmp_path, [(4, 5, 6)] * 4)
    mask = tmp_path / "seg/case_1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.full((4, 5, 6), 0.5, np.float32), np.eye(4)), mask)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 6, 5), np.uint8), np.eye(4)), tmp_path / "seg/case_2.nii.gz")
    (tmp_path / "seg/case_3.nii").write_bytes(b"no volume")
    block, rejects = read(Joined.find([tmp_path], field=SCANS))
    assert block is not None
    assert len(block) == 1
    assert rejects[0].error.startswith("seg/case_1.nii.gz: mask has voxels that are no whole numbers of int16")
    assert "mask has 4 x 6 x 5 voxels, volume 4 x 5 x 6" in rejects[1].error
    assert rejects[2].error.startswith("seg/case_3.nii: ")
