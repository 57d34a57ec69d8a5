"""Make the sample data again: small, seeded, the same on every machine.

    python sample_data/make.py            write everything beside this script
    python sample_data/make.py --check    make it in a temporary folder and compare; exit 1 names what differs

Random numbers are raw PCG64 bits, which numpy keeps stable between releases, unlike its distributions. What is compared
byte for byte is made with integer and exact float arithmetic. Encoded pictures, videos, scans and tables depend on the
version of what encodes them, so their values are compared instead. Needs `bigconv[all,video]`.
"""
# ruff: noqa: T201  a script that talks to whoever runs it

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import shutil
import sys
import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import science  # beside this script
from PIL import Image

HERE = Path(__file__).resolve().parent
MADE = ("images", "broken", "arrays", "series", "table.csv", "notes.jsonl", "tone.wav", "sparse.svm", *science.MADE)

CLASSES = ("blobs", "checks", "rings", "stripes")
PER_CLASS = 10
SIZES = ((96, 96), (112, 84), (80, 104), (128, 96), (72, 72), (90, 120), (101, 77))  # (width, height); odd ones too
ODD_ONES = {  # pictures that aren't plain colour JPEGs
    ("blobs", 2): "rgb.png",
    ("checks", 7): "turned.jpg",
    ("rings", 3): "palette.png",
    ("stripes", 4): "grey.png",
}
ORIENTATION = 0x0112  # the EXIF tag
TURN_LEFT = 6  # its value for "show it turned by 90 degrees clockwise"
PIXEL_MEAN, PIXEL_MAX = 1.0, 48  # levels of 256: what JPEG codecs may differ by, over a picture and at one pixel

Floats = np.ndarray[Any, np.dtype[np.float64]]


class Bits:
    """Random numbers from the raw bits of PCG64."""

    def __init__(self, *seed: int) -> None:
        self._raw = np.random.PCG64(list(seed))

    def _bits(self, n: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        return np.asarray(self._raw.random_raw(n), np.uint64)

    def uniform(self, *shape: int) -> Floats:
        """float64 `shape`, uniform in [0, 1)."""
        raw = self._bits(math.prod(shape))
        return ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)

    def noise(self, *shape: int) -> Floats:
        """float64 `shape`, about normal with deviation 1: four 16-bit numbers summed, exact in any order."""
        raw = self._bits(math.prod(shape))
        quarters = (raw[:, None] >> np.array([0, 16, 32, 48], np.uint64)) & np.uint64(0xFFFF)
        total: Floats = quarters.astype(np.float64).sum(axis=1)
        return ((total - 131070) / 37837).reshape(shape)  # 37837 = 65536 * sqrt(4 / 12)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.uniform(1)[0])

    def below(self, n: int) -> int:
        return int(self.between(0, n))


# -- pictures ------------------------------------------------------------------------------------------------------


def pattern(name: str, x: Floats, y: Floats, bits: Bits) -> Floats:
    """float64 `[height, width]` in [0, 1]: the shape that tells the classes apart. `x`, `y` run over [-1, 1]."""
    if name == "rings":
        cx, cy = bits.between(-0.4, 0.4), bits.between(-0.4, 0.4)
        far = np.sqrt((x - cx) ** 2 + (y - cy) ** 2)
        wave_height: Floats = np.sin(bits.between(12, 26) * far + bits.between(0, 6))
        return 0.5 + 0.5 * wave_height
    if name == "stripes":
        angle = bits.between(0, math.pi)
        return 0.5 + 0.5 * np.sin(bits.between(9, 22) * (x * math.cos(angle) + y * math.sin(angle)))
    if name == "checks":
        n, angle = bits.between(2, 4.5), bits.between(-0.4, 0.4)
        u = x * math.cos(angle) + y * math.sin(angle)
        v = y * math.cos(angle) - x * math.sin(angle)
        return (np.floor(u * n) + np.floor(v * n)) % 2
    total = np.zeros_like(x)
    for _ in range(4 + bits.below(5)):
        cx, cy, radius = bits.between(-0.9, 0.9), bits.between(-0.9, 0.9), bits.between(0.12, 0.4)
        total += np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / radius**2)
    return np.clip(total, 0, 1)


def picture(name: str, number: int, width: int, height: int) -> Image.Image:
    """One picture in RGB: two colours that drift from corner to corner, the pattern between them, light and grain."""
    bits = Bits(1, CLASSES.index(name), number)
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    shape = pattern(name, x, y, bits)[..., None]
    dark, bright = 20 + 110 * bits.uniform(3), 120 + 130 * bits.uniform(3)
    drift = (x * bits.between(-1, 1) + y * bits.between(-1, 1))[..., None] * (50 * bits.uniform(3))
    light = 1 - 0.3 * (x**2 + y**2)[..., None]
    colour = (dark * (1 - shape) + bright * shape + drift) * light + 4 * bits.noise(height, width, 1)
    return Image.fromarray(np.clip(np.rint(colour), 0, 255).astype(np.uint8))


def write_picture(folder: Path, name: str, number: int) -> None:
    width, height = SIZES[(number + 2 * CLASSES.index(name)) % len(SIZES)]
    odd = ODD_ONES.get((name, number), "plain.jpg")
    image = picture(name, number, width, height)
    stem = folder / f"{number:03d}"
    if odd == "turned.jpg":
        exif = Image.Exif()
        exif[ORIENTATION] = TURN_LEFT
        image.transpose(Image.Transpose.ROTATE_90).save(f"{stem}.jpg", quality=85, exif=exif)
    elif odd == "palette.png":
        levels = (np.asarray(image.convert("L")) >> 4).astype(np.uint8)  # 16 levels, so no quantiser decides
        colours = [(8 + 15 * i, 60 + 9 * i, 200 - 11 * i) for i in range(16)]
        paletted = Image.fromarray(levels).convert("P")
        paletted.putdata(levels.ravel().tolist())
        paletted.putpalette([c for colour in colours for c in colour])
        paletted.save(f"{stem}.png")
    elif odd == "grey.png":
        image.convert("L").save(f"{stem}.png")
    elif odd == "rgb.png":
        image.save(f"{stem}.png")
    else:
        image.save(f"{stem}.jpg", quality=85)


def make_images(root: Path) -> None:
    for name in CLASSES:
        folder = root / "images" / name
        folder.mkdir(parents=True)
        for number in range(PER_CLASS):
            write_picture(folder, name, number)


def make_broken(root: Path) -> None:
    """A good picture, one that lacks its second half, and a text that claims to be one."""
    folder = root / "broken"
    folder.mkdir()
    whole = io.BytesIO()
    picture("rings", 100, 96, 96).save(whole, "JPEG", quality=85)
    (folder / "good.jpg").write_bytes(whole.getvalue())
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "text.jpg").write_bytes(b"This is a text, not a picture, whatever its name says.\n")


# -- everything else -----------------------------------------------------------------------------------------------


def make_arrays(root: Path) -> None:
    folder = root / "arrays"
    folder.mkdir()
    bits = Bits(2)
    x = bits.noise(64, 3, 8).astype(np.float32)
    y = (bits.uniform(64) * 4).astype(np.int64)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    np.savez(folder / "pair.npz", x=x, y=y)


def make_series(root: Path) -> None:
    """Eight samples, one a file: four channels of 32 steps, each a random walk."""
    folder = root / "series"
    folder.mkdir()
    for number in range(8):
        steps = (Bits(3, number).uniform(4, 32) * 201).astype(np.int16) - np.int16(100)
        np.save(folder / f"{number:03d}.npy", np.cumsum(steps, axis=1, dtype=np.int16))


def make_table(root: Path) -> None:
    """Ids with leading zeros, three measurements, a text with every character that csv must quote, a label."""
    said = (
        "plain words",
        "one, two, and three",
        'she said "go", and went',
        "tabs\tand; semicolons",
        "naïve café, 5 µm",
        "a line\nand another",
        "",
    )
    bits = Bits(4)
    with open(root / "table.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["id", "height", "width", "weight", "remark", "label"])
        for number in range(100):
            sizes = [f"{bits.below(20000) / 100:.2f}" for _ in range(3)]
            rows.writerow([f"{7 * number:05d}", *sizes, said[number % len(said)], CLASSES[bits.below(4)]])


def make_notes(root: Path) -> None:
    words = ["raw", "files", "become", "one", "store", "and", "the", "store", "becomes", "batches", "naïvely", "数据"]
    bits = Bits(5)
    with open(root / "notes.jsonl", "w", encoding="utf-8", newline="\n") as file:
        for number in range(30):
            text = " ".join(words[bits.below(len(words))] for _ in range(3 + bits.below(20)))
            note = {"id": number, "text": text, "score": bits.below(1000) / 1000, "label": CLASSES[bits.below(4)]}
            file.write(json.dumps(note, ensure_ascii=False) + "\n")


def make_tone(root: Path) -> None:
    """One second of 16-bit stereo at 8 kHz: 440 Hz on the left, 660 Hz on the right."""
    rate = 8000
    angle = [2 * math.pi * t / rate for t in range(rate)]
    # an even height keeps sin = 1/2 off a rounding edge, so any maths library gives the same integers
    samples = [[round(12000 * math.sin(440 * a)), round(8000 * math.sin(660 * a))] for a in angle]
    with wave.open(str(root / "tone.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.array(samples, "<i2").tobytes())


def make_sparse(root: Path) -> None:
    """40 rows of libsvm text: a class, then index:value pairs, indices from 1 and rising, of 50 features."""
    bits = Bits(6)
    with open(root / "sparse.svm", "w", encoding="ascii", newline="\n") as file:
        for _ in range(40):
            here = np.flatnonzero(bits.uniform(50) < 0.12) + 1
            pairs = " ".join(f"{index}:{(1 + bits.below(400)) / 100:g}" for index in here)
            file.write(f"{bits.below(3)} {pairs}".rstrip() + "\n")


def make(root: Path) -> None:
    """Everything, below `root`, which must have none of it yet."""
    for part in (make_images, make_broken, make_arrays, make_series, make_table, make_notes, make_tone, make_sparse):
        part(root)
    for seed, more in enumerate(science.PARTS, 7):
        more(root, Bits(seed))


# -- check ---------------------------------------------------------------------------------------------------------


def files_below(root: Path) -> set[str]:
    """Relative paths of what this script makes, as it is there."""
    found: set[str] = set()
    for name in MADE:
        top = root / name
        found |= {p.relative_to(root).as_posix() for p in (top.rglob("*") if top.is_dir() else [top]) if p.is_file()}
    return found


def same(ours: Path, theirs: Path) -> bool:
    """Equal bytes; or values, where libraries encode; or pictures all but equal, or both broken after one size."""
    if ours.read_bytes() == theirs.read_bytes():
        return True
    if ours.name.endswith(science.DECODED):
        return science.agree(ours, theirs)
    if ours.suffix not in (".jpg", ".png"):
        return False
    try:
        with Image.open(ours) as a, Image.open(theirs) as b:
            if (a.format, a.mode, a.size, a.getexif().get(ORIENTATION)) != (
                b.format,
                b.mode,
                b.size,
                b.getexif().get(ORIENTATION),
            ):
                return False
            pixels = [loaded(image) for image in (a, b)]
    except OSError:
        return False  # Pillow knows neither of them
    if pixels[0] is None or pixels[1] is None:
        return pixels[0] is pixels[1]
    apart = np.abs(pixels[0] - pixels[1])
    return float(apart.mean()) <= PIXEL_MEAN and int(apart.max()) <= PIXEL_MAX


def loaded(image: Image.Image) -> np.ndarray[Any, np.dtype[np.int16]] | None:
    """int16 `[height, width, 3]`, or None for a picture that is cut short."""
    try:
        return np.asarray(image.convert("RGB"), np.int16)
    except OSError:
        return None


def check(root: Path) -> list[str]:
    """Names that are missing, superfluous or different, each with what is wrong."""
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary)
        make(fresh)
        expected, there = files_below(fresh), files_below(root)
        wrong = dict.fromkeys(expected - there, "missing") | dict.fromkeys(there - expected, "not ours")
        for name in expected & there:
            if not same(root / name, fresh / name):
                wrong[name] = "differs"
    return [f"{name}: {wrong[name]}" for name in sorted(wrong)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the sample data again.")
    parser.add_argument("--check", action="store_true", help="compare with what is there; write nothing")
    if parser.parse_args().check:
        wrong = check(HERE)
        print("\n".join(wrong) if wrong else "sample data: as it should be")
        return 1 if wrong else 0
    for name in MADE:
        top = HERE / name
        if top.is_dir():
            shutil.rmtree(top)
        else:
            top.unlink(missing_ok=True)
    make(HERE)
    names = files_below(HERE)
    print(f"sample data: {len(names)} files, {sum((HERE / name).stat().st_size for name in names) / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
