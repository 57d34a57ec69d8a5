"""Sparse matrices: scipy writes and is the oracle for `.npz`, scikit-learn for LIBSVM."""

from __future__ import annotations

import io
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.sparse
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

from bigconv.block import Block
from bigconv.conversion.options import recognise
from bigconv.errors import InputError, UsageError
from bigconv.sources import lines, sparse_entries
from bigconv.sources.base import Reject, Span
from bigconv.sources.libsvm import LibSvm, Rows
from bigconv.sources.sparse import Sparse
from bigconv.testing.source_suite import Made, SourceSuite


def matrix(rows: int, columns: int = 30, seed: int = 0, dtype: str = "f4") -> scipy.sparse.csr_matrix:
    made = scipy.sparse.random(rows, columns, 0.2, "csr", dtype, random_state=np.random.default_rng(seed))
    made.sort_indices()
    return made


def expected(made: scipy.sparse.csr_matrix) -> list[dict[str, Any]]:
    ends = made.indptr
    return [{"indices": made.indices[a:b].astype(np.int32), "values": made.data[a:b]} for a, b in pairwise(ends)]


def rows(source: Sparse | LibSvm, spans: list[Span] | None = None) -> tuple[list[dict[str, Any]], list[Reject]]:
    found: list[dict[str, Any]] = []
    rejects = []
    for span in source.plan() if spans is None else spans:
        for item in source.read(span):
            if isinstance(item, Block):
                item.validate()
                found += item
            else:
                rejects.append(item)
    return found, rejects


def same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        for name, value in b.items():
            assert a[name].dtype == value.dtype
            np.testing.assert_array_equal(a[name], value)


class TestSparse(SourceSuite):
    """All formats that there are, packed and plain, as one matrix."""

    source = "sparse"
    file_a_row = False
    limits: ClassVar[dict[str, int]] = {
        "bigconv.sources.sparse.SPAN_BYTES": 200,
        "bigconv.sources.sparse_entries.GROUP_BYTES": 300,
        "bigconv.sources.sparse_entries.READ_ITEMS": 7,
    }

    def make(self, folder: Path) -> Made:
        paths, wanted = [], []
        for i, (form, packed) in enumerate((f, p) for f in ("csr", "csc", "coo") for p in (True, False)):
            made = matrix(7 + i, seed=i)
            paths.append(folder / f"{i}.npz")
            scipy.sparse.save_npz(paths[-1], made.asformat(form), compressed=packed)
            wanted += expected(made)
        return paths, {}, wanted


class TestLibSvm(SourceSuite):
    source = "libsvm"
    damages = ()
    limits: ClassVar[dict[str, int]] = {"bigconv.sources.lines.SPAN_BYTES": 300}

    def make(self, folder: Path) -> Made:
        wanted = []
        for name, seed in (("a.svm", 1), ("b.libsvm", 2)):
            made = matrix(20, seed=seed, dtype="f8")
            labels = np.random.default_rng(seed).integers(-1, 2, 20)
            dump_svmlight_file(made, labels, str(folder / name), zero_based=False, comment="by scikit-learn")
            made, labels = load_svmlight_file(str(folder / name), n_features=30)  # it writes 16 digits of 17
            wanted += [{**row, "label": np.int64(k)} for row, k in zip(expected(made), labels, strict=True)]
        return [folder], {}, wanted


# -- .npz --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
@pytest.mark.parametrize("dtype", ["bool", "i1", "u8", "i4", "f4", "f8", "c8", ">f4"])
def test_every_dtype(tmp_path: Path, form: str, dtype: str) -> None:
    made = (matrix(9, dtype="f8") * 100).astype(np.dtype(dtype).newbyteorder("="))
    made = made.asformat(form)
    made.data = made.data.astype(dtype)
    scipy.sparse.save_npz(tmp_path / "a.npz", made)
    same(rows(Sparse.find([tmp_path / "a.npz"]))[0], expected(made.astype(made.dtype.newbyteorder("=")).tocsr()))


def test_they_are_recognised_by_their_members(tmp_path: Path) -> None:
    for name in ("1.npz", "2.npz"):
        scipy.sparse.save_npz(tmp_path / name, matrix(3))
    np.savez(tmp_path / "own.npz", data=np.zeros(3), shape=np.zeros(3))
    one, two, own = (tmp_path / name for name in ("1.npz", "2.npz", "own.npz"))
    assert recognise([one]) == recognise([one, two]) == "sparse"
    assert recognise([own]) == recognise([one, own]) == "arrays"
    own.unlink()
    assert recognise([tmp_path]) == "sparse"
    np.save(tmp_path / "x.npy", np.zeros(3))
    assert recognise([tmp_path]) == "array-folder"


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
@pytest.mark.parametrize("group", [1, 100, 1 << 20])
def test_any_span_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, group: int) -> None:
    monkeypatch.setattr(sparse_entries, "GROUP_BYTES", group)
    monkeypatch.setattr(sparse_entries, "READ_ITEMS", 5)
    made = matrix(25)
    scipy.sparse.save_npz(tmp_path / "a.npz", made.asformat(form))
    source, wanted = Sparse.find([tmp_path / "a.npz"]), expected(made)
    for a, b in ((20, 25), (0, 3), (3, 4), (2, 24), (24, 25)):
        same(rows(source, [Span(a, b)])[0], wanted[a:b])


def test_entries_stay_as_they_are(tmp_path: Path) -> None:
    """Explicit zeros, unsorted indices, entries at the same place: CSR is not touched, COO is sorted and not added."""
    csr = scipy.sparse.csr_matrix((np.array([1.0, 0, 2, 3]), [3, 1, 1, 0], [0, 3, 3, 4]), shape=(3, 5))
    scipy.sparse.save_npz(tmp_path / "a.npz", csr)
    found, _ = rows(Sparse.find([tmp_path / "a.npz"]))
    assert [(r["indices"].tolist(), r["values"].tolist()) for r in found] == [
        ([3, 1, 1], [1, 0, 2]),
        ([], []),
        ([0], [3]),
    ]
    coo = scipy.sparse.coo_matrix((np.array([1.0, 0, 2, 3]), ([2, 0, 2, 2], [3, 1, 1, 3])), shape=(3, 5))
    scipy.sparse.save_npz(tmp_path / "b.npz", coo)
    found, _ = rows(Sparse.find([tmp_path / "b.npz"]))
    assert [(r["indices"].tolist(), r["values"].tolist()) for r in found] == [
        ([1], [0]),
        ([], []),
        ([1, 3, 3], [2, 1, 3]),
    ]


def test_the_number_of_columns_is_kept(tmp_path: Path) -> None:
    scipy.sparse.save_npz(tmp_path / "a.npz", scipy.sparse.csr_matrix((2, 70_000)))
    source = Sparse.find([tmp_path / "a.npz"])
    assert source.describe()["length"] == 70_000
    assert [row["indices"].tolist() for row in rows(source)[0]] == [[], []]
    scipy.sparse.save_npz(tmp_path / "b.npz", scipy.sparse.csr_matrix((2, 70_001)))
    with pytest.raises(InputError, match="70001 columns"):
        Sparse.find([tmp_path / "a.npz", tmp_path / "b.npz"])


def test_more_columns_than_int32_counts(tmp_path: Path) -> None:
    wide = scipy.sparse.csr_matrix((np.array([1.0]), np.array([1 << 40]), np.array([0, 1])), shape=(1, 1 << 41))
    scipy.sparse.save_npz(tmp_path / "a.npz", wide)
    ((row,), _) = rows(Sparse.find([tmp_path / "a.npz"]))
    assert (row["indices"].dtype, row["indices"].tolist()) == (np.int64, [1 << 40])


def test_other_matrices_are_refused_with_the_way_out(tmp_path: Path) -> None:
    for form in ("bsr", "dia"):
        scipy.sparse.save_npz(tmp_path / "a.npz", matrix(6).asformat(form))
        with pytest.raises(InputError, match=f"a {form} matrix; save it as CSR"):
            Sparse.find([tmp_path / "a.npz"])
    np.savez(tmp_path / "b.npz", x=np.zeros(3))
    with pytest.raises(InputError, match="no sparse matrix that scipy saved: it has x"):
        Sparse.find([tmp_path / "b.npz"])


def save(path: Path, **changes: Any) -> Path:
    """A CSR matrix as scipy saves it, with other arrays in it."""
    good = {
        "format": np.array(b"csr"),
        "shape": np.array([2, 5]),
        "data": np.array([1.0, 2, 3]),
        "indices": np.array([1, 4, 0], np.int32),
        "indptr": np.array([0, 2, 3], np.int32),
    }
    np.savez(path, **{**good, **changes})
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"indptr": np.array([0, 4, 3])},
        {"indptr": np.array([1, 2, 3])},
        {"indptr": np.array([0, 2, 2])},
        {"indptr": np.array([0, 2])},
        {"indptr": np.array([0.0, 2, 3])},
        {"indices": np.array([1, 4])},
        {"indices": np.array([[1, 4, 0]])},
        {"data": np.array([[1.0, 2, 3]])},
        {"data": np.array(["a", "b", "c"])},
        {"shape": np.array([2, 5, 1])},
        {"shape": np.array([2.0, 5.0])},
        {"shape": np.array([-2, 5])},
        {"shape": np.array([1 << 60, 5])},
        {"shape": np.zeros(100_000, int)},
        {"format": np.array(b"csr\x1b[31m")},
        {"format": np.array(7)},
    ],
)
def test_arrays_that_do_not_fit_together(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"a\.npz"):
        rows(Sparse.find([save(tmp_path / "a.npz", **changes)]))


def test_an_index_outside_of_the_matrix_loses_its_row(tmp_path: Path) -> None:
    for bad in (5, -1):
        source = Sparse.find([save(tmp_path / "a.npz", indices=np.array([1, bad, 0]))])
        found, rejects = rows(source)
        assert [row["values"].tolist() for row in found] == [[3]]
        assert [(r.path, r.row, r.error) for r in rejects] == [("a.npz", 0, f"column {bad} of a matrix with 5")]


def test_rows_outside_of_a_coo_are_refused(tmp_path: Path) -> None:
    coo = {"format": np.array(b"coo"), "col": np.array([1, 2, 3])}
    for row in (2, -1):
        with pytest.raises(InputError, match="outside of its 2 rows"):
            rows(Sparse.find([save(tmp_path / "a.npz", row=np.array([0, row, 1]), **coo)]))
    many = save(tmp_path / "a.npz", shape=np.array([1 << 40, 5]), row=np.array([0, 1, 1]), **coo)
    with pytest.raises(InputError, match="save it as CSR"):
        next(Sparse.find([many]).read(Span(0, 1)))


def test_pickles_are_never_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pickles"):
        Sparse.find([save(tmp_path / "a.npz", data=np.array([{}, {}, {}], object))])


def test_every_flip_of_a_member_is_seen(tmp_path: Path) -> None:
    """By the CRC-32, at the latest when all has been read."""
    path = save(tmp_path / "a.npz")
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        starts = {i.filename: i.header_offset + 30 + len(i.filename) for i in archive.infolist()}
        sizes = {i.filename: i.file_size for i in archive.infolist()}
    for name in ("data.npy", "indices.npy", "indptr.npy"):
        stop = whole.index(b"\x93NUMPY", starts[name]) + sizes[name]
        for at in range(stop - 12, stop):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(InputError, match=r"a\.npz"):
                rows(Sparse.find([path]))


# -- LIBSVM ------------------------------------------------------------------------------------------------------------


def svm(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


TEXT = "# head\n1 1:0.5 3:-2e3 # one\n\n  -1\t2:1\n0\n 1 7:+.25 \r\n#\n1 1:1. 2:1e-300"


def dense(source: LibSvm) -> np.ndarray:
    found, rejects = rows(source)
    assert not rejects
    out = np.zeros((len(found), source.length))
    for line, row in zip(out, found, strict=True):
        line[row["indices"]] = row["values"]
    return out


def test_as_scikit_learn_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With comments, blank lines, tabs, CRLF, rows without entries, and no end of the last line; wherever it is cut."""
    path = svm(tmp_path / "a.svm", TEXT)
    x, y = load_svmlight_file(str(path))
    for size in (4, 16, 1000):
        monkeypatch.setattr(lines, "SPAN_BYTES", size)
        source = LibSvm.find([path])
        np.testing.assert_array_equal(dense(source), x.toarray())
        found, _ = rows(source)
        assert [int(row["label"]) for row in found] == y.tolist()
        assert source.describe()["length"] == 7
        same(rows(source, [Span(i, i + 1) for i in range(5)])[0], found)


def test_numbers_bit_by_bit(tmp_path: Path) -> None:
    """Values that only correct rounding gets right."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1 << 63, 2000, np.uint64).view(np.float64)
    values = values[np.isfinite(values)]
    text = "\n".join(f"{v!r} 1:{v!r}" for v in values.tolist())
    found, rejects = rows(LibSvm.find([svm(tmp_path / "a.svm", text)]))
    assert not rejects
    for name in ("label", "values"):
        np.testing.assert_array_equal(np.concatenate([np.atleast_1d(row[name]) for row in found]), values)


def test_indices_from_0_or_1(tmp_path: Path) -> None:
    ones, zeros = svm(tmp_path / "a.svm", "1 1:1 2:2\n"), svm(tmp_path / "b.svm", "1 0:5 2:1\n")
    assert rows(LibSvm.find([ones]))[0][0]["indices"].tolist() == [0, 1]
    assert rows(LibSvm.find([zeros]))[0][0]["indices"].tolist() == [0, 2]
    both = LibSvm.find([tmp_path])
    assert (both.base, both.length) == (0, 3)
    assert rows(both)[0][0]["indices"].tolist() == [1, 2]
    assert LibSvm.find([ones], index_base=0).length == 3
    found, rejects = rows(LibSvm.find([zeros], index_base=1))
    assert (found, rejects[0].error) == ([], "line 1: index 0, where they go from 1 to 2")


def test_a_length_of_the_users(tmp_path: Path) -> None:
    path = svm(tmp_path / "a.svm", "1 1:1\n0 5:1\n")
    assert LibSvm.find([path], length=100).length == 100
    _, rejects = rows(LibSvm.find([path], length=3))
    assert [(r.row, r.error) for r in rejects] == [(1, "line 2: index 5, where they go from 1 to 3")]
    for wrong in ({"length": 0}, {"index_base": 2}):
        with pytest.raises(UsageError, match="expected"):
            LibSvm.find([path], **wrong)


def test_labels_are_int64_when_all_are_whole(tmp_path: Path) -> None:
    whole = LibSvm.find([svm(tmp_path / "a.svm", "1\n-2.0\n+3e0\n")])
    assert [row["label"].tolist() for row in rows(whole)[0]] == [1, -2, 3]
    assert whole.schema["label"].kind == "label"
    for text in ("1\n2.5\n", "1\n1e300\n"):
        assert LibSvm.find([svm(tmp_path / "a.svm", text)]).schema["label"].dtype == "float64"


def test_qid(tmp_path: Path) -> None:
    source = LibSvm.find([svm(tmp_path / "a.svm", "1 qid:7 1:2\n0 1:1\n2 qid:8\n")])
    found, rejects = rows(source)
    assert [(int(r["label"]), int(r["qid"]), r["values"].tolist()) for r in found] == [(1, 7, [2.0]), (2, 8, [])]
    assert [(r.row, r.error) for r in rejects] == [(1, "line 2: no qid, which other lines have")]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("one 1:1", "label b'one' is no number"),
        ("1,2 1:1", "several labels a row are not read"),
        ("1:1 2:2", "label b'1:1' is no number"),
        ("1 1:", "b'1:' is no INDEX:VALUE"),
        ("1 :1", "b':1' is no INDEX:VALUE"),
        ("1 1", "b'1' is no INDEX:VALUE"),
        ("1 1:2:3", "is no INDEX:VALUE"),
        ("1 -1:2", "is no INDEX:VALUE"),
        ("1 1.5:2", "is no INDEX:VALUE"),
        ("1 1 :2", "is no INDEX:VALUE"),
        ("1 1:0x10", "is no INDEX:VALUE"),
        ("1 1:1_0", "is no INDEX:VALUE"),
        ("1 1:2 qid:3", "is no INDEX:VALUE"),
        ("1 9999999999999999:1", "is no INDEX:VALUE"),
        ("1 1:1\x00", "is no INDEX:VALUE"),
        ("nan 1:1", "is no number"),
        ("1\x0b1:1", "odd characters"),
        ("1 \r1:1", "odd characters"),
        ("1 1:١", "is no INDEX:VALUE"),
    ],
)
def test_a_bad_line_is_rejected_by_its_number(tmp_path: Path, line: str, why: str) -> None:
    found, rejects = rows(LibSvm.find([svm(tmp_path / "a.svm", f"# c\n1 1:1\n\n{line}\n1 qid:3 2:2\n"[:])], length=5))
    assert [(r.path, r.row) for r in rejects if r.row == 1] == [("a.svm", 1)]
    reject = next(r for r in rejects if r.row == 1)
    assert reject.error.startswith("line 4: ")
    assert why in reject.error
    assert [row["values"].tolist() for row in found] == [[2.0]]


def test_nothing_but_bad_lines(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.svm, line 2: label b'junk' is no number"):
        LibSvm.find([svm(tmp_path / "a.svm", "\njunk\n")])
    with pytest.raises(InputError, match="no rows in it"):
        LibSvm.find([svm(tmp_path / "a.svm", "# nothing\n\n")])


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = svm(tmp_path / "a.svm", "1 1:1\n2 1:1\n")
    source = LibSvm.find([path])
    for text in ("1 1:1\n", "1 1:1 1:111\n", "1.5 1:1\n2 :1\n"):
        svm(path, text)
        with pytest.raises(InputError, match=r"a\.svm: the file has changed"):
            rows(source)


def test_random_matrices_through_scikit_learn(tmp_path: Path) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = scipy.sparse.random(rng.integers(1, 9), rng.integers(1, 9), 0.4, "csr", random_state=rng)
        y, out = rng.random(x.shape[0]), io.BytesIO()
        dump_svmlight_file(x, y, out, zero_based=bool(seed % 2))
        (tmp_path / "a.svm").write_bytes(out.getvalue())
        source = LibSvm.find([tmp_path / "a.svm"], index_base=1 - seed % 2, length=x.shape[1])
        there, _ = load_svmlight_file(str(tmp_path / "a.svm"), n_features=x.shape[1], zero_based=bool(seed % 2))
        np.testing.assert_array_equal(dense(source), there.toarray())


def test_parsing_nothing() -> None:
    assert Rows.parse(b"").count == 0
    assert Rows.parse(b"\n \r\n# x").count == 0
