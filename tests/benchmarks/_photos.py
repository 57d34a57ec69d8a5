"""JPEGs with the entropy of photos: smooth shapes at many scales, and a little sensor noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image


def photo(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 `[height, width, 3]`."""
    total = np.zeros((height, width, 3))
    for scale in (4, 8, 16, 32, 64):
        coarse = rng.standard_normal((height // scale + 2, width // scale + 2, 3)).astype("f4") * scale
        for c in range(3):
            total[:, :, c] += np.asarray(
                Image.fromarray(coarse[:, :, c]).resize((width, height), Image.Resampling.BICUBIC)
            )
    total += rng.standard_normal(total.shape) * 4
    return ((total - total.min()) / np.ptp(total) * 255).astype(np.uint8)


def folder(root: Path, files: int, height: int, width: int, spread: int, different: int = 40) -> Path:
    """`files` JPEGs in ten class folders, of `different` pictures whose sides differ by up to `spread` pixels."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(different):
        h, w = (n + int(rng.integers(-spread, spread + 1)) for n in (height, width))
        encoded.append(simplejpeg.encode_jpeg(np.ascontiguousarray(photo(h, w, rng)), 85))
    for i in range(files):
        place = root / f"class{i % 10}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:06}.jpg").write_bytes(encoded[i % different])
    return root
