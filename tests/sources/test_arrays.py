"""Arrays named on the command line: numpy's own files as the oracle, and files that lie."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bigconv.block import Block, Ragged
from bigconv.errors import InputError
from bigconv.schema import DTYPES
from bigconv.sources import npy
from bigconv.sources.arrays import Arrays
from bigconv.testing import cases

SHARED = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(source: Arrays) -> Block:
    blocks = [item for span in source.plan() for item in source.read(span)]
    assert all(isinstance(item, Block) for item in blocks)
    for block in blocks:
        block.validate()
    return Block.concat(blocks)


def column(path: Path, **options: Any) -> Any:
    return next(iter(read(Arrays.find([path], **options)).columns.values()))


dtypes = st.sampled_from(DTYPES).map(np.dtype).flatmap(lambda d: st.sampled_from([d, d.newbyteorder(">")]))


@given(
    dtypes,
    hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
    st.booleans(),
    st.sampled_from(["npy", "stored", "packed"]),
    st.integers(1, 64),
    st.data(),
)
@settings(SHARED, max_examples=150)
def test_every_array_numpy_writes(
    tmp_path: Path,
    dtype: np.dtype,
    shape: tuple[int, ...],
    fortran: bool,
    container: str,
    span: int,
    data: st.DataObject,
) -> None:
    """All dtypes in both byte orders and both memory orders, any axis, whole or compressed, in spans of any size."""
    native = cases.values(dtype.newbyteorder("=").name, shape, np.random.default_rng(data.draw(st.integers(0, 9))))
    array = native.astype(dtype, order="F" if fortran else "C")
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    path = tmp_path / f"x.{container if container == 'npy' else 'npz'}"
    if container == "npy":
        np.save(path, array)
    else:
        (np.savez if container == "stored" else np.savez_compressed)(path, x=array)
    source = Arrays.find([path], axis=axis)
    expected = np.moveaxis(native, axis, 0)
    assert source.inputs == len(expected)
    assert source.schema["x"].shape == expected.shape[1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bigconv.sources.arrays.SPAN_BYTES", span)
        blocks = [item for part in source.plan() for item in source.read(part)]
    if not len(expected):
        assert blocks == []
        return
    found = Block.concat(blocks)
    found.validate()
    assert cases.same(found["x"], np.ascontiguousarray(expected).astype(native.dtype))
    np.testing.assert_array_equal(found.origin, [[0, i] for i in range(len(expected))])


def test_names_of_fields(tmp_path: Path) -> None:
    """The file's stem, the archive's member; in the order given, members by name."""
    np.save(tmp_path / "z.b.npy", np.zeros(3))
    np.savez(tmp_path / "pair.npz", y=np.zeros(3, "i2"), x=np.zeros((3, 2), "u1"))
    source = Arrays.find([tmp_path / "z.b.npy", tmp_path / "pair.npz"])
    assert source.schema.names == ("z.b", "x", "y")
    assert source.describe()["files"][1] == {"path": "pair.npz", "member": "x", "dtype": "|u1", "shape": [3, 2]}


def test_names_that_clash(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(InputError, match=r"x\.npy and .*a\.npz\[x\] would both be field 'x'"):
        Arrays.find([tmp_path / "x.npy", tmp_path / "a.npz"])
    with pytest.raises(InputError, match="would both be field 'x'"):
        Arrays.find([tmp_path / "x.npy", tmp_path / "x.npy"])


@pytest.mark.parametrize("name", ["_x.npy", ".x.npy", os.fsdecode(b"caf\xe9.npy"), " x.npy"])
def test_stems_that_are_no_field_names(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / name, np.zeros(3))
    with pytest.raises(InputError, match="can't be a field name"):
        Arrays.find([tmp_path / name])


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    """The manifest keeps it escaped: JSON in UTF-8 can't hold the byte."""
    path = tmp_path / os.fsdecode(b"caf\xe9.npz")
    np.savez(path, x=np.zeros(3))
    source = Arrays.find([path])
    assert source.describe()["files"][0]["path"] == "caf\\xe9.npz"
    assert len(read(source)) == 3


def test_text(tmp_path: Path) -> None:
    words = ["", "é☃", "a\nb", "x" * 50]
    np.save(tmp_path / "u.npy", np.array(words, ">U50"))
    np.save(tmp_path / "s.npy", np.array([w.encode() for w in words]))
    for name in ("u", "s"):
        block = read(Arrays.find([tmp_path / f"{name}.npy"]))
        assert block.schema[name].kind == "text"
        assert [row[name] for row in block] == words
    np.save(tmp_path / "s.npy", np.array([b"\xff\xfe", b""]))
    assert [bytes(x) for x in column(tmp_path / "s.npy")] == [b"\xff\xfe", b""]


def test_text_that_is_none(tmp_path: Path) -> None:
    np.save(tmp_path / "u.npy", np.array(["fine", "\ud800"]))
    with pytest.raises(InputError, match=r"field u, row 1: .*UTF-8"):
        column(tmp_path / "u.npy")
    np.save(tmp_path / "u.npy", np.array([["a", "b"]]))
    with pytest.raises(InputError, match="more than one dimension"):
        Arrays.find([tmp_path / "u.npy"])


@pytest.mark.parametrize("array", [np.zeros(3, "V8"), np.zeros(3, "M8[s]"), np.zeros(3, "g"), np.zeros(3, "f4,i4")])
def test_dtypes_that_no_store_holds(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(InputError, match=r"x\.npy"):
        Arrays.find([tmp_path / "x.npy"])


def test_axes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 4)))
    np.save(tmp_path / "y.npy", np.zeros(4))
    assert Arrays.find([tmp_path / "x.npy"], axis=1).inputs == 4
    for axis in (2, -3):
        with pytest.raises(InputError, match=rf"x.npy: no axis {axis} in an array of shape \(3, 4\)"):
            Arrays.find([tmp_path / "x.npy"], axis=axis)
    with pytest.raises(InputError, match=r"equal rows along axis 0: .*x\.npy has 3, .*y\.npy has 4\.\n.* --rows"):
        Arrays.find([tmp_path / "x.npy", tmp_path / "y.npy"])
    assert Arrays.find([tmp_path / "x.npy", tmp_path / "y.npy"], axis=-1).inputs == 4
    np.save(tmp_path / "scalar.npy", np.float32(3))
    with pytest.raises(InputError, match="no axis 0"):
        Arrays.find([tmp_path / "scalar.npy"])


def test_large_files_are_mapped(tmp_path: Path) -> None:
    """1 GiB that isn't there: a hole in a file costs neither time nor memory."""
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1024)})
        file.truncate(file.tell() + (1 << 30))
    source = Arrays.find([tmp_path / "x.npy"])
    spans = source.plan()
    assert len(spans) == 128
    block = next(iter(source.read(spans[77])))
    assert isinstance(block, Block)
    assert block.nbytes == 8 << 20
    assert block.origin[0].tolist() == [0, 77 * 8192]


def header(shape: object, descr: object = "|u1", fortran: object = False, version: int = 1) -> bytes:
    text = repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


HUGE = [(1 << 40,), (1 << 62, 4), (1 << 70,), (1 << 62, 1 << 62), (1 << 32, 1 << 32, 0), (1,) * 65, (0,) * 65]
ODD = [(True,), (3.0,), (-1,), (-2, -2), [3], 3, None, "3", ((3,),)]


@pytest.mark.parametrize("shape", [*HUGE, *ODD], ids=str)
@pytest.mark.parametrize("container", ["npy", "stored", "packed"])
def test_shapes_that_lie(tmp_path: Path, shape: object, container: str) -> None:
    """Before anything is allocated: terabytes, products that wrap in 64 bits, and what is no shape."""
    data = header(shape) + b"abc"
    if container == "npy":
        path = tmp_path / "x.npy"
        path.write_bytes(data)
    else:
        path = tmp_path / "x.npz"
        method = zipfile.ZIP_STORED if container == "stored" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("x.npy", data)
    with pytest.raises(InputError, match=r"x\.np[yz]"):
        column(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01",
        b"\x93NUMPY\x04\x00" + bytes(100),
        b"\x93NUMPX\x01\x00" + bytes(100),
        b"\x93NUMPY\x01\x00\xff\xff{",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        b"\x93NUMPY\x01\x00\x05\x00'abc'",
        b"\x93NUMPY\x01\x00\x02\x00[]",
        header((3,))[:-5],
        header((3,), descr="nonsense") + b"abc",
        header((3,), descr=None) + bytes(24),
        header((3,), descr=[]) + b"abc",
        header((3,), descr="|V0") + b"abc",
        header((3,), descr=("<f4", (2,))) + bytes(24),
        header((3,), descr="__import__('os')") + b"abc",
        b"\x93NUMPY\x01\x00\x80\x3e" + b"(" * 16000,
        b"\x93NUMPY\x01\x00\x18\x00__import__('os').abort()",
    ],
    ids=range(18),
)
def test_headers_that_are_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.npy"):
        column(tmp_path / "x.npy")


@given(st.data())
@settings(SHARED, max_examples=200)
def test_flipped_bytes_in_a_header(tmp_path: Path, data: st.DataObject) -> None:
    """Read as numpy reads it, or refused; never anything else."""
    out = io.BytesIO()
    np.save(out, np.arange(12, dtype="<i4").reshape(3, 4))
    raw = bytearray(out.getvalue())
    raw[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.npy"
    path.write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of dtype codes that it is about to forget
        try:
            found = column(path)
        except InputError:
            return
        expected = np.load(path)
    if isinstance(found, Ragged):
        assert expected.dtype.kind in "US"
        return
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_of_the_format(tmp_path: Path, version: tuple[int, int]) -> None:
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array(file, np.arange(5), version)
    np.testing.assert_array_equal(column(tmp_path / "x.npy"), np.arange(5))


@pytest.mark.parametrize("lost", [1, 8, 39])
def test_cut_short(tmp_path: Path, lost: int) -> None:
    np.save(tmp_path / "x.npy", np.arange(5))
    raw = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(raw[:-lost])
    with pytest.raises(InputError, match=r"x.npy: cut short: its header promises \(5,\) of int64, 40 bytes"):
        Arrays.find([tmp_path / "x.npy"])


def test_cut_short_after_it_was_found(tmp_path: Path) -> None:
    """Also in the worker that opens it, and after the map was made."""
    np.save(tmp_path / "x.npy", np.arange(5))
    source = Arrays.find([tmp_path / "x.npy"])
    raw = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(raw[:-8])
    with pytest.raises(InputError, match="cut short"):
        read(source)
    (tmp_path / "x.npy").unlink()
    with pytest.raises(InputError, match=r"x\.npy: No such file"):
        read(pickle.loads(pickle.dumps(source)))


# -- archives ------------------------------------------------------------------------------------------------------


def test_a_member_that_promises_its_neighbours_bytes(tmp_path: Path) -> None:
    """A stored member is mapped: its header must not reach beyond it."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.npy", header((50,)) + b"abc")
        archive.writestr("b.npy", header((3,)) + b"secret" * 100)
    with pytest.raises(InputError, match=r"x.npz\[a\]: cut short"):
        Arrays.find([tmp_path / "x.npz"])


@pytest.mark.parametrize("compressed", [False, True])
def test_flipped_bytes_in_an_archive(tmp_path: Path, compressed: bool) -> None:
    """Every byte of the data: numpy refuses them by CRC, and so do we; what both bear is the same."""
    path = tmp_path / "x.npz"
    array = np.random.default_rng(0).integers(0, 9, 400, np.uint8)
    (np.savez_compressed if compressed else np.savez)(path, x=array)
    raw = path.read_bytes()
    refused = 0
    for at in range(0, len(raw), 3):
        changed = bytearray(raw)
        changed[at] ^= 0x55
        path.write_bytes(changed)
        try:
            found = column(path)
        except InputError as error:
            assert "x.npz" in str(error)
            refused += 1
            continue
        np.testing.assert_array_equal(found, array)
    assert refused * 3 > len(array) * (0.3 if compressed else 1)


def test_a_large_stored_member_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the zip module reads only the header, the checksum is held against the map."""
    monkeypatch.setattr(npy, "SPAN_BYTES", 1000)
    path = tmp_path / "x.npz"
    array = np.arange(100_000)
    np.savez(path, x=array)
    np.testing.assert_array_equal(column(path), array)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"x.npz\[x\]: damaged: its CRC-32"):
        column(path)


def test_bombs(tmp_path: Path) -> None:
    """A directory that claims more than deflate can do is no archive of ours; real zeros are."""
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.zeros(2_000_000, np.uint8))
    assert path.stat().st_size < 10_000
    assert len(column(path)) == 2_000_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header((1 << 40,)) + bytes(100))
    raw = path.read_bytes()
    size = len(header((1 << 40,))) + 100
    assert raw.count(size.to_bytes(4, "little")) >= 1
    path.write_bytes(raw.replace(size.to_bytes(4, "little"), (0xFFFFFFF0).to_bytes(4, "little")))
    with pytest.raises(InputError, match=r"x\.npz"):
        column(path)


def test_odd_archives(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no array")
    with pytest.raises(InputError, match="no arrays in the archive"):
        Arrays.find([path])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x.npy", header((3,)) + b"abc")
    assert column(path).tolist() == [97, 98, 99]  # other members are passed over
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("x.npy", header((3,)) + b"abc")
        with pytest.raises(InputError, match="numpy doesn't write"):
            Arrays.find([path])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header((3,)) + b"abc")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.npy", header((3,)) + b"def")
    with pytest.raises(InputError, match="two members"):
        Arrays.find([path])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header((3,)) + b"abc")
    raw = bytearray(path.read_bytes())
    raw[6] |= 1  # the flag of encryption, in the local header
    raw[raw.rindex(b"PK\x01\x02") + 8] |= 1  # and in the directory
    path.write_bytes(raw)
    with pytest.raises(InputError, match="encrypted"):
        Arrays.find([path])


def test_members_with_paths_are_no_paths(tmp_path: Path) -> None:
    """Nothing is extracted, so `../` leads nowhere; as a field name it is refused."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("../../x.npy", header((3,)) + b"abc")
    with pytest.raises(InputError, match="can't be a field name"):
        Arrays.find([tmp_path / "x.npz"])
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "trapped"),)

    np.save(tmp_path / "x.npy", np.array([Trap()], object), allow_pickle=True)
    (tmp_path / "y.npy").write_bytes(pickle.dumps(Trap()))
    np.savez(tmp_path / "z.npz", z=np.array([Trap()], object))
    for name in ("x.npy", "y.npy", "z.npz"):
        with pytest.raises(InputError):
            column(tmp_path / name)
    assert not (tmp_path / "trapped").exists()


def test_a_folder_or_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.npy"):
        with pytest.raises(InputError, match=path.name):
            Arrays.find([path])
