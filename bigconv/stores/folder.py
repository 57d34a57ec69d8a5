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


def data_files(path: Path, algorithm: str, *besides: str) -> dict[str, tuple[int, str]]:
    """Every file of the store but the manifest: path below it -> bytes and digest."""
    names = fsio.files_below(path)
    return {
        name: (size, fsio.digest_file(path / name, algorithm=algorithm))
        for name, size in names.items()
        if name not in besides
    }


def attachment_file(path: Path, name: str) -> Path:
    """The file of an attachment. Raises `ValueError` for a name that isn't plain."""
    if not name.isascii() or not name.isalpha() or not name.islower():
        raise ValueError(f"an attachment's name is lower-case letters, got {name!r}")
    return path / f"{name}.bin"


def read_attachment(path: Path, name: str) -> bytes | None:
    file = attachment_file(path, name)
    return file.read_bytes() if file.is_file() else None


def check_sizes(path: Path, manifest: Manifest) -> None:
    """Every file that the manifest names is there with its exact size. Raises `IncompleteStore`."""
    for name, (size, _) in manifest.files.items():
        file = path / name
        try:
            found = file.stat().st_size
        except OSError:
            raise IncompleteStore(f"{path}: {name} is missing") from None
        if found != size:
            raise IncompleteStore(f"{path}: {name} has {found} bytes instead of {size}: cut short or changed")
