"""One image folder in four stores: each opens by its plain library alone, with the same arrays and the same digest."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import bigconv
from bigconv.block import Block, Ragged
from bigconv.errors import SchemaError
from bigconv.schema import DTYPES, Field, Schema
from bigconv.testing import cases
from bigconv.view.opening import open_store
from bigconv.view.report import verify

SAMPLES = Path(__file__).resolve().parent.parent / "sample_data"
SUFFIXES = (".mmap", ".h5", ".lmdb", ".zarr")
Plain = Callable[[Path], dict[str, list[np.ndarray]]]


# -- the plain libraries, as docs/format.md says to use them ------------------------------------------------------


def by_numpy(path: Path, ragged: bool) -> dict[str, list[np.ndarray]]:
    def load(name: str) -> np.ndarray:
        return np.load(path / f"{name}.npy", mmap_mode="r")

    if not ragged:
        return {name: list(load(name)) for name in ("image", "label")}
    parts = [load(f"image.{part}") for part in ("values", "offsets", "shapes")]
    return {"image": joined(*parts), "label": list(load("label"))}


def by_h5py(path: Path, ragged: bool) -> dict[str, list[np.ndarray]]:
    import h5py

    with h5py.File(path) as file:
        image = file["image"]
        found = joined(*(image[name][()] for name in ("values", "offsets", "shapes"))) if ragged else list(image[()])
        return {"image": found, "label": list(file["label"][()])}


def by_zarr(path: Path, ragged: bool) -> dict[str, list[np.ndarray]]:
    import zarr

    group = zarr.open_group(path, mode="r")
    image = group["image"]
    found = joined(*(image[name][:] for name in ("values", "offsets", "shapes"))) if ragged else list(image[:])
    return {"image": found, "label": list(group["label"][:])}


def by_lmdb(path: Path, ragged: bool) -> dict[str, list[np.ndarray]]:
    import lmdb

    images, labels = [], []
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        for i in range(env.stat()["entries"]):
            value = txn.get(i.to_bytes(8, "big"))
            if ragged:  # the head: byte count, shape, label; behind it the image
                nbytes, *shape = np.frombuffer(value, "<i8", 4).tolist()
                labels.append(np.frombuffer(value, "<i8", 1, 32)[0])
                images.append(np.frombuffer(value, "<u1", nbytes, 40).reshape(shape))
            else:
                images.append(np.frombuffer(value, "<u1", 3 * 64 * 64, 0).reshape(3, 64, 64))
                labels.append(np.frombuffer(value, "<i8", 1, 3 * 64 * 64)[0])
    return {"image": images, "label": labels}


def joined(values: np.ndarray, offsets: np.ndarray, shapes: np.ndarray) -> list[np.ndarray]:
    return [values[a:b].reshape(s) for a, b, s in zip(offsets, offsets[1:], shapes, strict=False)]


PLAIN = {".mmap": by_numpy, ".h5": by_h5py, ".zarr": by_zarr, ".lmdb": by_lmdb}


@pytest.fixture(scope="module", params=["of one size", "of all sizes"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    """`sample_data/images` in each store, with `--resize 64` and without."""
    folder = tmp_path_factory.mktemp("four")
    ragged = request.param == "of all sizes"
    for suffix in SUFFIXES:
        bigconv.convert(SAMPLES / "images", folder / f"out{suffix}", resize=None if ragged else 64, workers=0)
    return folder, ragged


def same_arrays(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        np.testing.assert_array_equal(x, y)


def test_the_plain_libraries_agree(made: tuple[Path, bool]) -> None:
    folder, ragged = made
    found = {suffix: PLAIN[suffix](folder / f"out{suffix}", ragged) for suffix in SUFFIXES}
    for suffix in SUFFIXES:
        assert len(found[suffix]["image"]) == 40
        for name in ("image", "label"):
            same_arrays(found[suffix][name], found[".mmap"][name])
    # and bigconv agrees with them
    for suffix in SUFFIXES:
        view = bigconv.open(folder / f"out{suffix}")
        same_arrays([row["image"] for row in view], found[suffix]["image"])
        np.testing.assert_array_equal(view[:]["label"], found[suffix]["label"])


def test_the_images_are_those_of_the_files(made: tuple[Path, bool]) -> None:
    """Pillow's pixels, upright and in RGB, channels first; JPEGs may differ by a level or two between decoders."""
    folder, ragged = made
    files = sorted((SAMPLES / "images").rglob("*.*"))
    classes = sorted({p.parent.name for p in files})
    found = by_numpy(folder / "out.mmap", ragged)
    assert [classes[i] for i in found["label"]] == [p.parent.name for p in files]
    for path, image in zip(files, found["image"], strict=True):
        picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        if ragged:
            expected = np.asarray(picture).transpose(2, 0, 1).astype(int)
            assert image.shape == expected.shape
            assert np.abs(image - expected).max() <= (0 if path.suffix == ".png" else 4)
        else:
            assert image.shape == (3, 64, 64)
            assert abs(image.mean() - np.asarray(ImageOps.fit(picture, (64, 64))).mean()) < 3


def test_digests_are_equal(made: tuple[Path, bool]) -> None:
    folder, _ = made
    opened = [open_store(folder / f"out{suffix}") for suffix in SUFFIXES]
    assert len({o.manifest.content_digest for o in opened}) == 1
    assert {o.manifest.store for o in opened} == {"memmap", "hdf5", "lmdb", "zarr"}
    assert all(verify(o) == [] for o in opened)


@pytest.mark.parametrize(("a", "b"), list(itertools.permutations(SUFFIXES, 2)))
def test_store_to_store(made: tuple[Path, bool], tmp_path: Path, a: str, b: str) -> None:
    """All twelve ordered pairs: the same digest, the same arrays by the plain library."""
    folder, ragged = made
    dest = tmp_path / f"out{b}"
    manifest = bigconv.convert(folder / f"out{a}", dest, workers=0)
    there = open_store(folder / f"out{a}").manifest
    assert manifest.content_digest == there.content_digest
    assert manifest.schema == there.schema  # layout and classes too
    found, expected = PLAIN[b](dest, ragged), PLAIN[a](folder / f"out{a}", ragged)
    for name in ("image", "label"):
        same_arrays(found[name], expected[name])


def test_there_and_back_gives_the_same_bytes(made: tuple[Path, bool], tmp_path: Path) -> None:
    """A detour through another format changes no byte of the data; only where it came from."""
    from bigconv import fsio

    folder, _ = made
    bigconv.convert(folder / "out.mmap", tmp_path / "detour.lmdb", workers=0)
    bigconv.convert(tmp_path / "detour.lmdb", tmp_path / "back.mmap", workers=0)
    names = [name for name in fsio.files_below(folder / "out.mmap") if name.endswith(".npy")]
    assert len(names) >= 2
    for name in names:
        assert (tmp_path / "back.mmap" / name).read_bytes() == (folder / "out.mmap" / name).read_bytes()


def test_no_bigconv_is_needed(made: tuple[Path, bool]) -> None:
    """In a process where bigconv can't be imported, all four stores open; Zarr through zarr, and so on."""
    folder, ragged = made
    part = "image/values" if ragged else "image"
    program = f"""
import sys
sys.modules["bigconv"] = None
import h5py, lmdb, numpy as np, zarr
a = np.load("out.mmap/{part.replace("/", ".")}.npy")
with h5py.File("out.h5") as file:
    b = file["{part}"][()]
c = zarr.open_group("out.zarr", mode="r")["{part}"][:]
assert (a == b).all() and (a == c).all() and len(a)
with lmdb.open("out.lmdb", readonly=True, lock=False) as env:
    assert env.stat()["entries"] == 40
print("fine")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, timeout=60)
    assert result.stdout == "fine\n", result.stderr


# -- round trips -----------------------------------------------------------------------------------------------------

# items of a ragged field that have no bytes are a matter of their own: see below
shapes = (
    st.lists(st.none() | st.integers(0, 3), max_size=3)
    .map(tuple)
    .filter(lambda shape: shape[:1] != (None,) or None in shape[1:] or 0 not in shape)
)
fields = st.tuples(st.sampled_from(DTYPES), shapes)


@given(st.lists(fields, min_size=1, max_size=3), st.integers(1, 12), st.permutations(SUFFIXES), st.integers(0, 99))
@settings(derandomize=True, max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_through_all_stores(
    tmp_path: Path, some: list[tuple[str, tuple]], rows: int, order: list[str], seed: int
) -> None:
    """Written in one store, converted to the next three: bit by bit the same, NaN payloads and empty rows too."""
    from bigconv import registry
    from bigconv.testing.store_suite import write

    schema = Schema(tuple(Field(f"f{i}", dtype, shape) for i, (dtype, shape) in enumerate(some)))
    block = cases.block(schema, rows, seed)
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    path = folder / f"0{order[0]}"
    digests = {write(path, registry.load("store", registry.store_for(path))(), block, 5).content_digest}
    for i, suffix in enumerate(order[1:]):
        path, before = folder / f"{i + 1}{suffix}", path
        digests.add(bigconv.convert(before, path, workers=0).content_digest)
        assert cases.same_block(bigconv.open(path).take(np.arange(rows)), block)
    assert len(digests) == 1


def test_ragged_rows_of_items_without_bytes_are_refused() -> None:
    """What takes no bytes leaves no trace of its size in a store of records."""
    with pytest.raises(SchemaError, match="hold nothing"):
        Field("x", "float32", (None, 0))


def test_text_and_encoded_files_through_all_stores(tmp_path: Path) -> None:
    words = ["", "naïve ☃", "line\nbreak", "\0", "x" * 5000]
    schema = Schema((Field("text", "uint8", (None,), "text"), Field("raw", "uint8", (None,), "encoded")))
    rows = [np.frombuffer(word.encode(), np.uint8) for word in words]
    block = Block(schema, {name: Ragged.of(rows, schema[name]) for name in schema.names})
    from bigconv import registry
    from bigconv.testing.store_suite import write

    path = tmp_path / "0.zarr"
    write(path, registry.load("store", "zarr")(), block, 2)
    for i, suffix in enumerate((".lmdb", ".h5", ".mmap", ".zarr")):
        path, before = tmp_path / f"{i + 1}{suffix}", path
        bigconv.convert(before, path, workers=0)
        view = bigconv.open(path)
        assert [row["text"] for row in view] == words
        assert [bytes(row["raw"]) for row in view] == [word.encode() for word in words]
