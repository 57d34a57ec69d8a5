"""Files made to do harm: the command refuses each with an exit code and a clear error, and publishes nothing."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pytest
import zarr
from _refusal import SECRET, refused
from PIL import Image


class Bomb:
    """Unpickled, it leaves a trace."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (os.mkdir, ("exploded",))


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "secret.bin"
    path.write_bytes(SECRET)
    return path


# -- pickles -----------------------------------------------------------------------------------------------------------


def npy_pickle(path: Path) -> Path:
    np.save(path / "a.npy", np.array([Bomb()], object), allow_pickle=True)
    return path / "a.npy"


def npz_pickle(path: Path) -> Path:
    np.savez(path / "a.npz", x=np.array([Bomb()], object))
    return path / "a.npz"


def zarr_pickle_filter(path: Path) -> Path:
    """As zarr 2 wrote objects."""
    array = path / "a.zarr"
    array.mkdir()
    (array / ".zarray").write_text(
        '{"zarr_format":2,"shape":[1],"chunks":[1],"dtype":"|O","compressor":null,"fill_value":null,"order":"C",'
        '"filters":[{"id":"pickle","protocol":4}]}'
    )
    (array / "0").write_bytes(pickle.dumps(np.array([Bomb()], object)))
    return array


def zarr_plain_objects(path: Path) -> Path:
    array = zarr_pickle_filter(path)
    (array / ".zarray").write_text((array / ".zarray").read_text().replace('{"id":"pickle","protocol":4}', ""))
    return array


def lmdb_pickle(path: Path) -> Path:
    with lmdb.open(str(path / "a.lmdb")) as env, env.begin(write=True) as txn:
        txn.put(b"k", pickle.dumps(Bomb(), 4))
    return path / "a.lmdb"


# -- files that name others --------------------------------------------------------------------------------------------


def h5_external_link(path: Path) -> Path:
    with h5py.File(path / "other.h5", "w") as file:
        file["x"] = np.frombuffer(SECRET, np.uint8)
    with h5py.File(path / "a.h5", "w") as file:
        file["x"] = h5py.ExternalLink("other.h5", "/x")
    return path / "a.h5"


def h5_external_group(path: Path) -> Path:
    """The dataset's own link is a hard one: it is the group on the way that lies elsewhere."""
    with h5py.File(path / "other.h5", "w") as file:
        file["deep/x"] = np.frombuffer(SECRET, np.uint8)
    with h5py.File(path / "a.h5", "w") as file:
        file["g"] = h5py.ExternalLink("other.h5", "/deep")
        file["soft"] = h5py.SoftLink("/g/x")
    return path / "a.h5"


def h5_external_storage(path: Path) -> Path:
    with h5py.File(path / "a.h5", "w") as file:
        file.create_dataset("x", (len(SECRET),), "u1", external=[(str(path / "secret.bin"), 0, len(SECRET))])
    return path / "a.h5"


def h5_virtual(path: Path) -> Path:
    with h5py.File(path / "other.h5", "w") as file:
        file["x"] = np.frombuffer(SECRET, np.uint8)
    layout = h5py.VirtualLayout((len(SECRET),), "u1")
    layout[:] = h5py.VirtualSource("other.h5", "x", (len(SECRET),))
    with h5py.File(path / "a.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
    return path / "a.h5"


def h5_plugin(path: Path) -> Path:
    """A filter that the library would look for among the plug-ins of the machine."""
    with h5py.File(path / "a.h5", "w") as file:
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((2,))
        made.set_filter(32123, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_INT32, h5py.h5s.create_simple((4,)), made)
    return path / "a.h5"


def h5_references(path: Path) -> Path:
    with h5py.File(path / "a.h5", "w") as file:
        file.create_dataset("x", (2,), h5py.ref_dtype)
    return path / "a.h5"


def zarr_link(path: Path) -> Path:
    zarr.create_array(path / "a.zarr", data=np.zeros(len(SECRET), np.uint8), compressors=None)
    chunk = next(p for p in (path / "a.zarr" / "c").rglob("*") if p.is_file()) if (path / "a.zarr/c").exists() else None
    chunk = chunk or path / "a.zarr" / "c" / "0"
    chunk.parent.mkdir(exist_ok=True)
    chunk.unlink(missing_ok=True)
    chunk.symlink_to(path / "secret.bin")
    return path / "a.zarr"


def zarr_linked_group(path: Path) -> Path:
    zarr.create_array(path / "other.zarr", data=np.arange(4))
    zarr.open_group(path / "a.zarr", mode="w")
    (path / "a.zarr" / "x").symlink_to(path / "other.zarr")
    return path / "a.zarr"


def zarr_pipe(path: Path) -> Path:
    zarr.create_array(path / "a.zarr", data=np.arange(4))
    os.mkfifo(path / "a.zarr" / "pipe")
    return path / "a.zarr"


def zarr_codec(path: Path) -> Path:
    zarr.create_array(path / "a.zarr", data=np.arange(4), compressors=None)
    text = (path / "a.zarr/zarr.json").read_text()
    (path / "a.zarr/zarr.json").write_text(text.replace('"codecs": [', '"codecs": [{"name": "numcodecs.json2"},'))
    return path / "a.zarr"


# -- bombs and lies about sizes ----------------------------------------------------------------------------------------


def npy_lie(path: Path) -> Path:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904,), }"
    (path / "a.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + b"1234")
    return path / "a.npy"


def npy_huge_header(path: Path) -> Path:
    (path / "a.npy").write_bytes(b"\x93NUMPY\2\0" + struct.pack("<I", 2**31) + b" " * 99)
    return path / "a.npy"


def npz_bomb(path: Path) -> Path:
    """Its directory says that a few bytes become 8 GB."""
    np.savez_compressed(path / "a.npz", x=np.zeros(1000))
    data = bytearray((path / "a.npz").read_bytes())
    at = data.index(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)
    (path / "a.npz").write_bytes(data)
    return path / "a.npz"


def npz_outside(path: Path) -> Path:
    file = io.BytesIO()
    np.save(file, np.arange(3))
    with zipfile.ZipFile(path / "a.npz", "w") as archive:
        archive.writestr("../../x.npy", file.getvalue())
    return path / "a.npz"


def h5_promise(path: Path) -> Path:
    with h5py.File(path / "a.h5", "w") as file:
        file.create_dataset("x", (2**40, 1000), "f8", chunks=(10, 1000), compression="gzip")
    return path / "a.h5"


def h5_chunk(path: Path) -> Path:
    with h5py.File(path / "a.h5", "w") as file:
        file.create_dataset("x", (4, 2**28), "f4", chunks=(2, 2**28), compression="gzip")
    return path / "a.h5"


def h5_deep(path: Path) -> Path:
    with h5py.File(path / "a.h5", "w") as file:
        file["/".join("g" * 60)] = np.arange(3)
    return path / "a.h5"


def h5_name(path: Path) -> Path:
    with h5py.File(path / "a.h5", "w") as file:
        file["\x1b[31mred\x07"] = np.arange(3)
    return path / "a.h5"


def zarr_promise(path: Path) -> Path:
    zarr.create_array(path / "a.zarr", shape=(2**50,), chunks=(2**20,), dtype="f8")
    return path / "a.zarr"


def zarr_nested_json(path: Path) -> Path:
    (path / "a.zarr").mkdir()
    (path / "a.zarr/zarr.json").write_text("[" * 100_000)
    return path / "a.zarr"


def lmdb_circle(path: Path) -> Path:
    """Its root is a branch whose children are itself."""
    with lmdb.open(str(path / "a.lmdb"), map_size=1 << 24) as env, env.begin(write=True) as txn:
        for i in range(1000):
            txn.put(b"%04d" % i, b"x" * 50)
    file = path / "a.lmdb/data.mdb"
    data = bytearray(file.read_bytes())
    root = struct.unpack_from("<Q", data, (16 + 24 + 48 + 40) + 4096 * 1)[0]
    (lower,) = struct.unpack_from("<H", data, root * 4096 + 12)
    for i in range((lower - 16) // 2):
        (node,) = struct.unpack_from("<H", data, root * 4096 + 16 + 2 * i)
        struct.pack_into("<HHH", data, root * 4096 + node, root & 0xFFFF, root >> 16, 0)
    file.write_bytes(data)
    return path / "a.lmdb"


def lmdb_short(path: Path) -> Path:
    with lmdb.open(str(path / "a.lmdb"), map_size=1 << 24) as env, env.begin(write=True) as txn:
        txn.put(b"k", b"x" * 50_000)
    file = path / "a.lmdb/data.mdb"
    file.write_bytes(file.read_bytes()[:9000])
    return path / "a.lmdb"


def csv_line(path: Path) -> Path:
    (path / "a.csv").write_bytes(b'a,b\n1,"' + b"x" * (40 << 20))
    return path / "a.csv"


def csv_encoding(path: Path) -> Path:
    (path / "a.csv").write_bytes(b"n\xff\xfe,b\n1,2\n")
    return path / "a.csv"


def parquet_junk(path: Path) -> Path:
    (path / "a.parquet").write_bytes(b"PAR1" + b"\xff" * 99 + struct.pack("<I", 2**31 - 1) + b"PAR1")
    return path / "a.parquet"


def fifo(path: Path) -> Path:
    os.mkfifo(path / "a.npy")
    return path / "a.npy"


def folder_of_links(path: Path) -> Path:
    raw = path / "raw"
    raw.mkdir()
    (raw / "a.png").symlink_to(path / "secret.bin")
    os.mkfifo(raw / "b.png")
    (raw / "loop").symlink_to(raw)
    return raw


def tar_packed(path: Path) -> Path:
    (path / "a.tar").write_bytes(b"\x1f\x8b" + zlib.compress(b"\0" * 10_000_000))
    return path / "a.tar"


def libsvm_index(path: Path) -> Path:
    (path / "a.svm").write_text("1 99999999999999999999999:1\n")
    return path / "a.svm"


REFUSED: list[tuple[Callable[[Path], Path], str]] = [
    (npy_pickle, "an object array holds pickles, which could run any code"),
    (npz_pickle, "an object array holds pickles"),
    (zarr_pickle_filter, "stored with the codec 'pickle', which unpickles what it reads"),
    (zarr_plain_objects, "an array of objects, which is never unpickled"),
    (lmdb_pickle, "is a pickle, which could run any code"),
    (h5_external_link, "a link to another file, 'other.h5', which is never followed"),
    (h5_external_group, "a link to another file, 'other.h5', which is never followed"),
    (h5_external_storage, "its data lies in another file"),
    (h5_virtual, "a virtual dataset: made of other files"),
    (h5_plugin, "compressed by filter 32123"),
    (h5_references, "references to other objects"),
    (zarr_link, "a link out of the store, which is never followed"),
    (zarr_linked_group, "a link out of the store, which is never followed"),
    (zarr_pipe, "neither a file nor a folder of the store"),
    (zarr_codec, "stored with the codec 'json2', which bigconv does not trust"),
    (npy_lie, "damaged header"),
    (npy_huge_header, "a header of 2147483648 bytes"),
    (npz_bomb, "a.npz"),
    (npz_outside, "can't be a field name"),
    (h5_promise, "promise"),
    (h5_chunk, "chunks of (2, 268435456) are more than 1073741824 bytes"),
    (h5_deep, "32 groups in one another"),
    (h5_name, "can't be a field name"),
    (zarr_promise, "It was never filled, or is hostile"),
    (zarr_nested_json, "zarr.json can't be read"),
    (lmdb_circle, "is damaged"),
    (lmdb_short, "cut short"),
    (csv_line, "a.csv"),
    (csv_encoding, "a.csv"),
    (parquet_junk, "a.parquet"),
    (fifo, "a pipe or device, not a file or folder"),
    (folder_of_links, "no images in it (found no files)"),
    (tar_packed, "a.tar"),
    (libsvm_index, "is no INDEX:VALUE"),
]


@pytest.mark.parametrize(("make", "told"), REFUSED, ids=lambda x: x.__name__ if callable(x) else "")
def test_refused(make: Callable[[Path], Path], told: str, secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, secret.parent, 2, told, make(secret.parent))


def test_named_or_grouped_what_lies_elsewhere_stays_there(secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for by name, a link is refused; left out, the rest is read."""
    path = h5_external_group(secret.parent)
    for columns in ("g", "g/x"):
        refused(capsys, secret.parent, 2, "", path, "--columns", columns)
    with h5py.File(path, "a") as file:
        file["mine"] = np.arange(3)
    refused(capsys, secret.parent, 2, "Take those that fit: --columns mine", path)


# -- one bad input among good ones -------------------------------------------------------------------------------------


def png(side: int = 2) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    return file.getvalue()


def png_bomb() -> bytes:
    """A header that promises 3 GB of pixels."""
    head = struct.pack(">II5B", 60_000, 20_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data + struct.pack(">I", 4) + b"IDAT" + b"\0" * 8


def tar_of(path: Path, member: tarfile.TarInfo, data: bytes = b"") -> Path:
    with tarfile.open(path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        good = tarfile.TarInfo("good.png")
        good.size = len(png())
        tar.addfile(good, io.BytesIO(png()))
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return path / "a.tar"


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        return tar_of(path, member, png() if kind == tarfile.REGTYPE else b"")

    return make


def images_with(name: bytes, data: bytes) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        (path / "raw").mkdir()
        (path / "raw" / "good.png").write_bytes(png())
        with open(os.path.join(os.fsencode(path / "raw"), name), "wb") as file:
            file.write(data)
        return path / "raw"

    return make


def arrays_with(name: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        (path / "raw").mkdir()
        np.save(path / "raw" / "good.npy", np.arange(3))
        made = npy_pickle(path)
        made.rename(path / "raw" / name)
        return path / "raw"

    return make


def lmdb_bomb(path: Path) -> Path:
    with lmdb.open(str(path / "a.lmdb")) as env, env.begin(write=True) as txn:
        for i in range(20):
            txn.put(b"%02d" % i, png() if i < 18 else png_bomb())
    return path / "a.lmdb"


def jsonl_nested(path: Path) -> Path:
    (path / "a.jsonl").write_bytes(b'{"a": 1}\n' * 3 + b'{"a": ' + b"[" * 100_000 + b"\n")
    return path / "a.jsonl"


REJECTED: list[tuple[str, Callable[[Path], Path], str]] = [
    ("tar traversal", tar_member("../../etc/evil.png"), "leads out of the archive"),
    ("tar absolute", tar_member("/etc/evil.png"), "leads out of the archive"),
    ("tar symlink", tar_member("evil.png", tarfile.SYMTYPE, "/etc/passwd"), "a link among its members"),
    ("tar hard link", tar_member("evil.png", tarfile.LNKTYPE, "good.png"), "a link among its members"),
    ("tar device", tar_member("evil.png", tarfile.CHRTYPE), "a device or pipe"),
    ("tar pipe", tar_member("evil.png", tarfile.FIFOTYPE), "a device or pipe"),
    ("pixel bomb", images_with(b"evil.png", png_bomb()), "60000 pixels are more than"),
    ("escape sequence", images_with(b"\x1b[31mevil\x1b]0;title\x07.png", b"junk"), "\\x1b[31mevil"),
    ("no text", images_with(b"\xff\xfeevil.png", b"junk"), "evil.png"),
    ("pickle in a folder", arrays_with("evil.npy"), "an object array holds pickles"),
    ("pixel bomb in lmdb", lmdb_bomb, "key b'18'"),
    ("nested json", jsonl_nested, "line 4"),
]


@pytest.mark.parametrize(("make", "told"), [row[1:] for row in REJECTED], ids=[row[0] for row in REJECTED])
def test_rejected(make: Callable[[Path], Path], told: str, secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It costs the run that input, and by default the run doesn't publish."""
    refused(capsys, secret.parent, 1, told, make(secret.parent))


# -- links that are asked for ------------------------------------------------------------------------------------------


def test_followed_links_end(secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Loops and pipes neither hang nor repeat; what links lead to is read, and refused for what it is."""
    raw = folder_of_links(secret.parent)
    (raw / "up").symlink_to(secret.parent)
    (raw / "good.png").write_bytes(png())
    refused(capsys, secret.parent, 1, "1 of 2 inputs", raw, "--follow-links", "--label-from", "none")


def test_joined_links_stay_out(secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = folder_of_links(secret.parent)
    (raw / "good.txt").write_bytes(b"good")
    refused(capsys, secret.parent, 2, "no file matches --field x=*.png", raw, "--field", "x=*.png")
    refused(capsys, secret.parent, 2, "no file matches --field x=../*", raw, "--field", "x=../*")
