"""WebDataset: `tarfile` and Pillow write, what they wrote is the oracle; and tars that no one would mean well by."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from bigconv import decode
from bigconv.block import Block
from bigconv.errors import InputError, UsageError
from bigconv.sources import tar_index
from bigconv.sources.base import Reject, Span
from bigconv.sources.tar import WebDataset
from bigconv.testing.source_suite import Made, SourceSuite

RNG = np.random.default_rng(0)


def png(height: int, width: int, seed: int = 0) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def jpeg(height: int, width: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def npy(array: np.ndarray, **how: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **how)
    return out.getvalue()


def tar(path: Path, members: list[tuple[str, bytes]], how: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=how) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def rows(source: WebDataset) -> tuple[list[dict[str, Any]], list[Reject]]:
    found: list[dict[str, Any]] = []
    rejects = []
    for span in source.plan():
        for item in source.read(span):
            if isinstance(item, Block):
                item.validate()
                found += item
            else:
                rejects.append(item)
    assert len(found) + len(rejects) == source.inputs
    return found, rejects


class TestWebDataset(SourceSuite):
    """All kinds of fields, in two shards, members of a sample apart."""

    source = "webdataset"
    file_a_row = False
    limits: ClassVar[dict[str, int]] = {"bigconv.sources.rowwise.SPAN_INPUTS": 2}

    def make(self, folder: Path) -> Made:
        expected = []
        for shard in range(2):
            images, others = [], []
            for i in range(5):
                image, array = png(3 + i, 4, i), RNG.random((i, 2)).astype(">f4")
                images.append((f"d/{i}.png", image))
                others += [
                    (f"d/{i}.cls", str(i - 2).encode()),
                    (f"d/{i}.txt", "naïve ☃".encode() * i),
                    (f"d/{i}.json", b'{"a": 1}'),
                    (f"d/{i}.npy", npy(array)),
                    (f"d/{i}.mp4", bytes(range(i))),
                    (f"d/{i}.seg.png", png(2, 2, i)),
                ]
                expected.append(
                    {
                        "image": decode.decode(image),
                        "seg": decode.decode(png(2, 2, i)),
                        "array": array.astype("<f4"),
                        "json": '{"a": 1}',
                        "label": np.int64(i - 2),
                        "mp4": np.arange(i, dtype=np.uint8),
                        "text": "naïve ☃" * i,
                    }
                )
            tar(folder / f"{shard}.tar", images + others)
        return [folder], {}, expected


class TestImagesOfOneSizeAsTheyAre(SourceSuite):
    source = "webdataset"
    file_a_row = False
    limits: ClassVar[dict[str, int]] = {"bigconv.sources.rowwise.SPAN_INPUTS": 2}

    def make(self, folder: Path) -> Made:
        files = [png(3, 4, i) for i in range(5)]
        path = tar(folder / "a.tar", [(f"{i}.png", data) for i, data in enumerate(files)])
        return [path], {"keep_encoded": True}, [{"image": np.frombuffer(data, np.uint8)} for data in files]


@pytest.mark.parametrize("how", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_way_tar_writes_names(tmp_path: Path, how: int) -> None:
    """Long names, deep folders, names that aren't ASCII: with prefix, GNU long links and pax headers."""
    names = ["a.txt", "f" * 90 + ".txt", "d" * 60 + "/" + "e" * 70 + ".txt", "./x/☃é.txt"]
    if how != tarfile.USTAR_FORMAT:
        names += ["n" * 300 + ".txt", "d/" * 300 + "x.txt"]
    path = tar(tmp_path / "a.tar", [(name, name.encode()) for name in names], how)
    source = WebDataset.find([path])
    assert [row["text"] for row in rows(source)[0]] == names
    assert [source.index.key(i) for i in range(len(names))] == [
        n.removeprefix("./").removesuffix(".txt") for n in names
    ]


def test_old_tars_and_odd_headers_are_tarfiles(tmp_path: Path) -> None:
    """What the quick parser doesn't know: v7 magic, a size in base 256, pax headers that change name and size."""
    data = b"hello"
    header = bytearray(tarfile.TarInfo("v7.txt").tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[257:265] = b"00000000005\0", bytes(8)
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:512]) + 256)
    big = bytearray(header)
    big[:6], big[124:136] = b"bb.txt", b"\x80" + bytes(10) + b"\5"
    big[148:156] = b"%06o\0 " % (sum(big[:148]) + sum(big[156:512]) + 256)
    (tmp_path / "a.tar").write_bytes(b"".join(h + data.ljust(512, b"\0") for h in (header, big)) + bytes(1024))
    source = WebDataset.find([tmp_path / "a.tar"])
    assert [row["text"] for row in rows(source)[0]] == ["hello", "hello"]
    assert [source.index.key(i) for i in range(2)] == ["v7", "bb"]
    with tarfile.open(tmp_path / "p.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all"}) as archive:
        info = tarfile.TarInfo("short.txt")
        info.size, info.pax_headers = 5, {"path": "other.txt", "mtime": "1.5"}
        archive.addfile(info, io.BytesIO(data))
    source = WebDataset.find([tmp_path / "p.tar"])
    assert source.index.key(0) == "other"
    assert rows(source)[0] == [{"text": "hello"}]


def test_members_of_a_sample_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigconv.sources.tar.GAP_BYTES", 10)
    texts = [(f"{i}.txt", str(i).encode() * 2000) for i in range(9)]
    labels = [(f"{i}.cls", str(i).encode()) for i in reversed(range(9))]
    found, rejects = rows(WebDataset.find([tar(tmp_path / "a.tar", texts + labels)]))
    assert not rejects
    assert [(int(row["label"]), row["text"][:1]) for row in found] == [(i, str(i)) for i in range(9)]


def test_the_same_keys_in_two_shards_are_two_samples(tmp_path: Path) -> None:
    for name in "ab":
        tar(tmp_path / f"{name}.tar", [("0.txt", name.encode())])
    source = WebDataset.find([tmp_path])
    assert [row["text"] for row in rows(source)[0]] == ["a", "b"]
    (block,) = (item for span in source.plan() for item in source.read(span) if isinstance(item, Block) and span.start)
    assert block.origin is not None
    assert block.origin.tolist() == [[1, 0]]


def test_a_sample_without_a_field_is_rejected_by_key(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar",
        [("d/x.txt", b"a"), ("d/x.cls", b"1"), ("d/y.txt", b"b"), ("d/z.txt", b"c"), ("d/z.cls", b"3")],
    )
    source = WebDataset.find([path])
    found, rejects = rows(source)
    assert [row["text"] for row in found] == ["a", "c"]
    assert [(r.path, r.row) for r in rejects] == [("a.tar", 1)]
    assert rejects[0].error.startswith("d/y: has no label")
    alone = WebDataset.find([path], columns=["text"])
    assert [row["text"] for row in rows(alone)[0]] == ["a", "b", "c"]
    with pytest.raises(UsageError, match="Did you mean 'label'"):
        WebDataset.find([path], columns=["labl"])


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("x.cls", b"one", "expected a whole number"),
        ("x.cls", b"1_0", "expected a whole number"),
        ("x.cls", b"-" * 3, "expected a whole number"),
        ("x.cls", b"9" * 19, "expected a whole number"),
        ("x.cls", b"", "expected a whole number"),
        ("x.txt", b"\xff\xfe", "not UTF-8: byte 0xff at 0"),
        ("x.jpg", b"junk", "not an image"),
        ("x.jpg", jpeg(8, 8)[:-50], "cut short"),
        ("x.npy", npy(np.array([{"a": 1}]), allow_pickle=True), "pickles"),
        ("x.npy", npy(np.arange(3))[:-1], "cut short"),
        ("x.npy", npy(np.arange(3.0)), "dtype float64 instead of int64"),
        ("x.npy", npy(np.arange(4).reshape(2, 2)), "shape"),
        ("x.npy", b"", "not a .npy"),
    ],
)
def test_a_bad_member_is_rejected_by_key(tmp_path: Path, name: str, data: bytes, why: str) -> None:
    good = {"cls": b"7", "txt": b"t", "jpg": jpeg(8, 8), "npy": npy(np.arange(3))}[name[2:]]
    path = tar(tmp_path / "a.tar", [("a." + name[2:], good), (name, data), ("z." + name[2:], good)])
    found, rejects = rows(WebDataset.find([path]))
    assert len(found) == 2
    assert [r.row for r in rejects] == [1]
    assert rejects[0].error.startswith("x: ")
    assert why in rejects[0].error
    assert rejects[0].stage in ("read", "decode")


def test_jpg_and_png_are_images_both(tmp_path: Path) -> None:
    """One or the other makes `image`; both in most samples are two fields; both in one sample are none."""
    mixed = tar(
        tmp_path / "a.tar", [("a.jpg", jpeg(2, 2)), ("b.PNG", png(2, 2)), ("c.jpg", jpeg(2, 2)), ("c.png", png(2, 2))]
    )
    source = WebDataset.find([mixed])
    assert source.schema.names == ("image",)
    assert source.schema["image"].shape == (2, 2, 3)
    found, rejects = rows(source)
    assert len(found) == 2
    assert "c: has two members that make one field" in rejects[0].error
    pairs = tar(tmp_path / "b.tar", [(f"{k}.{e}", f(2, 2)) for k in "abc" for e, f in (("jpg", jpeg), ("png", png))])
    assert WebDataset.find([pairs]).schema.names == ("jpg", "png")


def test_names_with_more_dots(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("0.seg.png", png(2, 2)), ("0.seg.json", b"{}"), ("0.depth.npy", npy(np.zeros(2)))])
    assert WebDataset.find([path]).schema.names == ("seg.png", "depth", "seg.json")
    clash = tar(tmp_path / "b.tar", [("0.a.b", b""), ("0.a.cls", b"1"), ("0.a.b.png", png(2, 2))])
    assert WebDataset.find([clash]).schema.names == ("a.b.png", "a.b", "a.cls")


def test_what_belongs_to_no_sample_is_passed_over_and_counted(tmp_path: Path) -> None:
    members = [
        ("README", b"x"),
        (".hidden.txt", b"x"),
        ("d/._0.txt", b"x"),
        ("__meta__.json", b"{}"),
        ("0.", b""),
        ("0.txt", b"t"),
    ]
    source = WebDataset.find([tar(tmp_path / "a.tar", members)])
    assert rows(source) == ([{"text": "t"}], [])
    assert source.describe()["passed_over"] == 5


# -- hostile -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("x.txt", tarfile.SYMTYPE, "link"),
        ("x.txt", tarfile.LNKTYPE, "link"),
        ("x.txt", tarfile.CHRTYPE, "device"),
        ("x.txt", tarfile.BLKTYPE, "device"),
        ("x.txt", tarfile.FIFOTYPE, "pipe"),
        ("x.txt", b"V", "no plain file"),
        ("/etc/x.txt", tarfile.REGTYPE, "leads out"),
        ("../x.txt", tarfile.REGTYPE, "leads out"),
        ("a/../../x.txt", tarfile.REGTYPE, "leads out"),
        ("./../x.txt", tarfile.REGTYPE, "leads out"),
    ],
)
def test_only_plain_files_inside_are_read(tmp_path: Path, name: str, kind: bytes, why: str) -> None:
    (tmp_path / "secret").write_text("secret")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        good = tarfile.TarInfo("good.txt")
        good.size = 4
        archive.addfile(good, io.BytesIO(b"good"))
        bad = tarfile.TarInfo(name)
        bad.type, bad.linkname = kind, str(tmp_path / "secret")
        archive.addfile(bad)
    before = sorted(tmp_path.iterdir())
    found, rejects = rows(WebDataset.find([tmp_path / "a.tar"]))
    assert found == [{"text": "good"}]
    assert why in rejects[0].error
    assert "x: " in rejects[0].error
    assert sorted(tmp_path.iterdir()) == before, "nothing is ever extracted"


def test_folders_are_no_samples(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        folder = tarfile.TarInfo("x.d/")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        member = tarfile.TarInfo("x.d/0.txt")
        archive.addfile(member)
    assert rows(WebDataset.find([tmp_path / "a.tar"])) == ([{"text": ""}], [])


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("x.txt").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:512]) + 256)
    (tmp_path / "a.tar").write_bytes(header + bytes(1024))
    assert "no plain file" in rows(WebDataset.find([tmp_path / "a.tar"]))[1][0].error


def test_caps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "a.tar", [(f"{i}.txt", b"x" * i) for i in range(20)])
    monkeypatch.setattr(tar_index, "MEMBER_BYTES", 18)
    found, rejects = rows(WebDataset.find([path]))
    assert (len(found), rejects[0].row) == (19, 19)
    assert "more than" in rejects[0].error
    monkeypatch.setattr(tar_index, "MAX_MEMBERS", 19)
    with pytest.raises(InputError, match="more than 19 members"):
        WebDataset.find([path])
    monkeypatch.undo()
    dotted = tar(tmp_path / "b.tar", [(f"img.{i}.jpg", b"") for i in range(100)])
    with pytest.raises(InputError, match="more than 64 extensions"):
        WebDataset.find([dotted])


def _plain(name: str, size: bytes) -> bytearray:
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = size
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:512]) + 256)
    return header


@pytest.mark.parametrize(
    "size", [b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\xff" * 11 + b"\0", b"-0000000777\0"]
)
def test_sizes_that_lie(tmp_path: Path, size: bytes) -> None:
    """Larger than the file, larger than any file, negative: no memory, no loop."""
    (tmp_path / "a.tar").write_bytes(bytes(_plain("good.txt", b"00000000000\0") + _plain("x.txt", size)) + bytes(1024))
    with pytest.raises(InputError, match=r"a\.tar: (cut short|damaged|not a tar)"):
        WebDataset.find([tmp_path / "a.tar"])


@pytest.mark.parametrize("kind", [b"x", b"L", b"K", b"g"])
def test_a_huge_header_is_not_read(tmp_path: Path, kind: bytes) -> None:
    header = _plain("x", b"%011o\0" % (1 << 30))
    header[156:157] = kind
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:512]) + 256)
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(_plain("good.txt", b"00000000000\0") + header)
        file.truncate(2 << 30)  # there, but holes
    with pytest.raises(InputError, match="header of 1073741824 bytes"):
        WebDataset.find([tmp_path / "a.tar"])


def test_headers_nested_without_end(tmp_path: Path) -> None:
    header = _plain("x", b"00000000001\0")
    header[156:157] = b"L"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:512]) + 256)
    (tmp_path / "a.tar").write_bytes(
        bytes(_plain("good.txt", b"00000000000\0")) + (bytes(header) + b"n".ljust(512, b"\0")) * 3000
    )
    with pytest.raises(InputError, match=r"a\.tar: damaged header"):
        WebDataset.find([tmp_path / "a.tar"])


def test_every_length_of_a_tar_is_whole_or_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [(f"{i}.txt", b"x" * 600) for i in range(3)])
    whole = path.read_bytes()
    end = 3 * (512 + 1024)
    for length in range(0, len(whole), 256):
        path.write_bytes(whole[:length])
        if length >= end + 512:
            assert len(rows(WebDataset.find([path]))[0]) == 3
        else:
            with pytest.raises(InputError, match=r"a\.tar"):
                WebDataset.find([path])


def test_every_flip_in_a_header_is_seen_or_harmless(tmp_path: Path) -> None:
    """A header has a checksum: no flip moves, renames or resizes a member."""
    path = tar(tmp_path / "a.tar", [("0.txt", b"zero"), ("1.txt", b"one")])
    whole = path.read_bytes()
    for at in range(1024, 1536):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            found, rejects = rows(WebDataset.find([path]))
        except InputError:
            continue
        assert (found, rejects) == ([{"text": "zero"}, {"text": "one"}], []), at


def test_joined_tars_are_refused_not_halved(tmp_path: Path) -> None:
    one = tar(tmp_path / "a.tar", [("0.txt", b"a")]).read_bytes()
    (tmp_path / "a.tar").write_bytes(one + one)
    with pytest.raises(InputError, match="more behind its end"):
        WebDataset.find([tmp_path / "a.tar"])


def test_compressed_tars_name_the_tool(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("0.txt"))
    with pytest.raises(InputError, match="gunzip it first"):
        WebDataset.find([tmp_path / "a.tar"])


def test_names_that_are_not_utf8_or_control_the_terminal(tmp_path: Path) -> None:
    header = _plain("Z.txt", b"00000000000\0")
    header[:9] = b"\x1b\xff\x07.t\x1bxt"[:8] + b"\0"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:512]) + 256)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(InputError, match=r"a\.tar: .*can't be a field name"):
        WebDataset.find([tmp_path / "a.tar"])


def test_no_samples(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no samples"):
        WebDataset.find([tar(tmp_path / "a.tar", [])])
    with pytest.raises(InputError, match=r"such as 0001\.jpg"):
        WebDataset.find([tar(tmp_path / "b.tar", [("README", b"")])])
    with pytest.raises(InputError, match="no array in it is an array that can be read"):
        WebDataset.find([tar(tmp_path / "c.tar", [("0.npy", b"junk"), ("1.npy", b"")])])


def test_a_tar_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [(f"{i}.txt", b"x" * 600) for i in range(3)])
    source = pickle.loads(pickle.dumps(WebDataset.find([path])))
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(InputError, match=r"a\.tar: the file has changed"):
        list(source.read(Span(0, 1)))
