"""WebDataset tars to a store, against streaming the same tar once.

Issue figure: 0.7 or more of the speed at which `tarfile` alone streams the tar and hands out every member's bytes,
nothing done with them. bigconv keeps the encoded images (`--keep-encoded`), ends with its bytes on disk (fsync) and
reads them back. 500 MB of photos, or as many MB as are named: `python -m tests.benchmarks tars 1000`.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import simplejpeg

from bigconv.conversion.request import Request
from tests.benchmarks import _photos
from tests.benchmarks._timing import rates, table


def generate(path: Path, nbytes: int) -> int:
    """A tar of photos of about 500 x 400 with a class and a caption each; how many samples."""
    rng = np.random.default_rng(0)
    photos = [simplejpeg.encode_jpeg(np.ascontiguousarray(_photos.photo(400, 500, rng)), 85) for _ in range(20)]
    done = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        while tar.fileobj is not None and tar.fileobj.tell() < nbytes:
            for extension, data in (
                ("jpg", photos[done % len(photos)]),
                ("cls", str(done % 1000).encode()),
                ("txt", b"a caption of some words"),
            ):
                info = tarfile.TarInfo(f"{done:08}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            done += 1
    return done


def stream(path: Path) -> int:
    """Every member's bytes, once, in order."""
    members = 0
    with tarfile.open(path, "r|") as tar:
        for member in tar:
            file = tar.extractfile(member)
            members += file is not None and len(file.read()) == member.size
    return members // 3


def convert(source: Path, dest: Path) -> int:
    return Request((source,), dest, overwrite=True, options={"keep_encoded": True}).run().manifest.rows


def main() -> None:
    megabytes = next((int(word) for word in sys.argv[1:] if word.isdecimal()), 500)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "t.tar"
        samples = generate(source, megabytes * 1_000_000)
        ways = {"tarfile, streamed once": lambda: stream(source)}
        for suffix in (".mmap", ".h5", ".lmdb", ".zarr"):
            ways[f"bigconv → {suffix}"] = lambda dest=Path(name) / f"out{suffix}": convert(source, dest)
        table(f"a tar of {megabytes} MB, {samples:,} samples", rates(ways), "tarfile, streamed once", "samples/s")


if __name__ == "__main__":
    main()
