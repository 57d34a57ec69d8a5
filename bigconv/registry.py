"""Names of sources, stores and transforms → the module that knows them, imported when first used.

A third party adds its own through the entry points `bigconv.sources`, `bigconv.stores` and
`bigconv.transforms`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigconv.errors import MissingPackage, UsageError


@dataclass(frozen=True)
class Entry:
    """Where something lives: `module:attribute`, the file extensions it goes by, and its extra.

    `takes`, of sources: files named one by one (`files`), folders that hold such files (`folder`), or `both`.
    `reads_with`, of sources: packages that reading imports first of all, for a fork server to have them already.
    """

    target: str
    extensions: tuple[str, ...] = ()
    extra: str | None = None
    magic: Callable[[Path], bool] | None = None
    takes: str = "files"
    reads_with: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        return self.target.split(":")[0]


def _head(path: Path, n: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(n)
    except OSError:
        return b""


HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: Path) -> bool:
    """The signature stands at byte 0, or at 512 · 2ⁿ behind a user block (HDF5 format, II.A)."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        for offset in (0, 512, 1024, 2048):
            file.seek(offset)
            if file.read(8) == HDF5_SIGNATURE:
                return True
    return False


def is_lmdb(path: Path) -> bool:
    """LMDB's meta page carries 0xBEEFC0DE behind its 16-byte page header."""
    data = path / "data.mdb" if path.is_dir() else path
    return data.is_file() and _head(data, 20)[16:20] == b"\xde\xc0\xef\xbe"


def is_zarr(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))


def is_dataset(path: Path) -> bool:
    """A sharded directory: a folder whose manifest says so."""
    file = path / "manifest.json"
    # its quotes would be escaped inside a JSON string, so this can't be part of a name or a class
    return path.is_dir() and file.is_file() and b'"format":"bigconv-dataset"' in file.read_bytes()


def is_memmap(path: Path) -> bool:
    return path.is_dir() and (path / "manifest.json").is_file() and not is_lmdb(path)


STORES = {
    "memmap": Entry("bigconv.stores.memmap:Memmap", (".mmap",), magic=is_memmap),
    "hdf5": Entry("bigconv.stores.hdf5:Hdf5", (".h5", ".hdf5"), magic=is_hdf5),
    "lmdb": Entry("bigconv.stores.lmdb:Lmdb", (".lmdb",), magic=is_lmdb),
    "zarr": Entry("bigconv.stores.zarr:Zarr", (".zarr",), magic=is_zarr),
}
#: What people type for a store, besides its name.
ALIASES = {"h5": "hdf5", "mmap": "memmap", "npy": "memmap"}
SOURCES = {
    "store": Entry("bigconv.sources.store:StoreSource"),
    "hdf5": Entry("bigconv.sources.hdf5:ForeignHdf5", (".h5", ".hdf5", ".he5", ".hdf"), takes="both"),
    "zarr": Entry("bigconv.sources.zarr:ForeignZarr"),
    "lmdb": Entry("bigconv.sources.lmdb:ForeignLmdb"),
    "joined": Entry("bigconv.sources.joined:Joined", takes="folder"),
    "images": Entry(
        "bigconv.sources.images:ImageFolder",
        (
            *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
            *(".ppm", ".pgm", ".pbm", ".pnm"),
        ),
        takes="folder",
        reads_with=("simplejpeg",),
    ),
    "arrays": Entry("bigconv.sources.arrays:Arrays", (".npy", ".npz")),
    "csv": Entry("bigconv.sources.csv:Csv", (".csv", ".tsv"), takes="both"),
    "parquet": Entry("bigconv.sources.parquet:Parquet", (".parquet",), takes="both"),
    "arrow": Entry("bigconv.sources.arrow:ArrowIpc", (".arrow", ".arrows", ".feather", ".ipc"), takes="both"),
    "jsonl": Entry("bigconv.sources.jsonl:JsonLines", (".jsonl", ".ndjson"), takes="both"),
    "webdataset": Entry("bigconv.sources.tar:WebDataset", (".tar",), takes="both"),
    "text": Entry("bigconv.sources.text:Text", (".txt", ".text"), extra="text", takes="both"),
    "sparse": Entry("bigconv.sources.sparse:Sparse"),
    "libsvm": Entry("bigconv.sources.libsvm:LibSvm", (".svm", ".libsvm"), takes="both"),
    "audio": Entry(
        "bigconv.sources.audio:Audio",
        (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"),
        extra="audio",
        takes="both",
    ),
    "tiff": Entry("bigconv.sources.tiff:Tiff", (".tif", ".tiff", ".btf", ".tf8", ".lsm"), extra="tiff", takes="both"),
    "geotiff": Entry("bigconv.sources.geotiff:GeoTiff", (".tif", ".tiff"), extra="geo", takes="both"),
    "dicom": Entry("bigconv.sources.dicom:Dicom", (".dcm", ".dicom", ".ima"), extra="dicom", takes="both"),
    "nifti": Entry("bigconv.sources.nifti:Nifti", (".nii", ".nii.gz"), extra="nifti", takes="both"),
    "video": Entry(
        "bigconv.sources.video:Video",
        (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv", ".flv", ".wmv", ".3gp"),
        extra="video",
        takes="both",
    ),
    "array-folder": Entry("bigconv.sources.array_folder:ArrayFolder", (".npy", ".npz"), takes="folder"),
}
TRANSFORMS = {
    "resize": Entry("bigconv.transforms.resize:Resize"),
    "dtype": Entry("bigconv.transforms.dtype:ToDtype"),
    "layout": Entry("bigconv.transforms.layout:Layout"),
    "crop": Entry("bigconv.transforms.crop:Crop"),
    "normalize": Entry("bigconv.transforms.normalize:Normalize"),
    "map": Entry("bigconv.transforms.map:Map"),
    "filter": Entry("bigconv.transforms.filter:Filter"),
    "select": Entry("bigconv.transforms.select:Select"),
    "rename": Entry("bigconv.transforms.rename:Rename"),
    "sparse": Entry("bigconv.transforms.sparse:ToSparse"),
}
_KINDS = {"store": STORES, "source": SOURCES, "transform": TRANSFORMS}


def names(kind: str) -> tuple[str, ...]:
    """All registered names of a kind (`store`, `source` or `transform`), plug-ins included."""
    return (*_KINDS[kind], *(name for name in _plugins(kind) if name not in _KINDS[kind]))


def extensions(kind: str) -> tuple[str, ...]:
    """All file extensions that entries of a kind go by."""
    return tuple(e for entry in _KINDS[kind].values() for e in entry.extensions)


def load(kind: str, name: str) -> Any:
    """The class behind a name. Raises `UsageError` with a suggestion, or `MissingPackage` with the install line."""
    name = ALIASES.get(name, name)
    entry = _KINDS[kind].get(name)
    if entry is None:
        plugin = _plugins(kind).get(name)
        if plugin is None:
            from bigconv.schema import unknown

            raise UsageError(unknown(f"{kind} format" if kind != "transform" else kind, name, names(kind)))
        return plugin.load()
    module, attribute = entry.target.split(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "bigconv":
            raise
        raise missing(error.name or module, entry.extra, name) from error


def missing(package: str, extra: str | None, need: str) -> MissingPackage:
    install = f"pip install 'bigconv[{extra}]'" if extra else f"pip install {package}"
    return MissingPackage(f"{need} needs the package {package}, which is not installed.\nInstall it: {install}")


def store_for(path: Path, name: str | None = None) -> str:
    """Name of the store that a path to be written asks for: `name`, else by extension.

    Raises `UsageError` that lists the formats.
    """
    if name is not None:
        load("store", name)
        return ALIASES.get(name, name)
    for store, entry in STORES.items():
        if path.suffix.lower() in entry.extensions:
            return store
    from difflib import get_close_matches

    known = [e for entry in STORES.values() for e in entry.extensions]
    close = get_close_matches(path.suffix, known, n=1)
    mean = f" Did you mean {close[0]}?" if close else ""
    raise UsageError(
        f"{path}: no store has the extension {path.suffix or '(none)'}.{mean}\n"
        f"Use one of {' '.join(known)}, or --to {'|'.join(STORES)}."
    )


DATASET = "dataset"  # what `recognise` calls a sharded directory, whose parts are stores


def recognise(path: Path) -> str | None:
    """Name of the store that an existing path holds, by content, or `DATASET`; None when it is none."""
    if is_dataset(path):
        return DATASET
    for store, entry in STORES.items():
        if entry.magic is not None and entry.magic(path):
            return store
    return None


def _plugins(kind: str) -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=f"bigconv.{kind}s")}
