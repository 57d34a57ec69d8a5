"""What stores that are folders share: a manifest in a file of its own and exact file sizes."""

from __future__ import annotations

from pathlib import Path

from bigconv import fsio
from bigconv.errors import IncompleteStore, NotAStore
from bigconv.manifest import MAX_BYTES, Manifest

MANIFEST = "manifest.json"


def read_manifest(path: Path, name: str = MANIFEST) -> bytes:
    """Bytes of the manifest file. Raises `NotAStore` when there is none."""
    file = path / name
    if not file.is_file():
        raise NotAStore(f"{path}: no {name}: not a bigconv store, or one that was never finished")
    if file.stat().st_size > MAX_BYTES:
        raise IncompleteStore(f"{path}: {name} is larger than {MAX_BYTES} bytes")
    return file.read_bytes()


def data_files(path: Path, *besides: str) -> dict[str, int]:
    """Every file of the store but the manifest: path below it -> bytes."""
    return {name: size for name, size in fsio.files_below(path).items() if name not in besides}


def check_sizes(path: Path, manifest: Manifest) -> None:
    """Every file that the manifest names is there with its exact size. Raises `IncompleteStore`."""
    for name, size in manifest.files.items():
        file = path / name
        try:
            found = file.stat().st_size
        except OSError:
            raise IncompleteStore(f"{path}: {name} is missing") from None
        if found != size:
            raise IncompleteStore(f"{path}: {name} has {found} bytes instead of {size}: cut short or changed")
