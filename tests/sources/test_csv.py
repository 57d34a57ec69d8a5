"""CSV: Python's csv module and pyarrow as oracles, spans of a few bytes, and files as people have them."""

from __future__ import annotations

import csv
import io
import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from _rows import fields, read, values, written
from pyarrow import csv as arrow_csv
from typer.testing import CliRunner

import bigconv
from bigconv.cli.app import app
from bigconv.conversion.request import Request
from bigconv.errors import FindingsError, InputError, UsageError
from bigconv.sources import csv as source_module
from bigconv.sources import records
from bigconv.sources.base import Reject, Span
from bigconv.sources.csv import Csv
from bigconv.testing.source_suite import Made, SourceSuite

SPANS = {"bigconv.sources.records.SPAN_BYTES": 64}


class CsvSuite(SourceSuite):
    source = "csv"
    file_a_row = False
    limits = SPANS
    damages = ("junk", "empty")  # half a CSV file is a CSV file


class TestOneFile(CsvSuite):
    def make(self, folder: Path) -> Made:
        numbers = np.random.default_rng(0).standard_normal(40)
        words = [f"é, {i}" if i % 3 else 'say "hi"\nthere' for i in range(40)]
        with open(folder / "t.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("n", "x", "word"), *zip(range(40), numbers, words, strict=True)])
        rows = [{"n": np.int64(i), "x": numbers[i], "word": words[i]} for i in range(40)]
        return [folder / "t.csv"], {}, rows


class TestAFolder(CsvSuite):
    def make(self, folder: Path) -> Made:
        for name, start in (("b.tsv", 30), ("a.TSV", 0), ("deep/c.tsv", 60)):
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            head = "y\tx\n" if name == "b.tsv" else "x\ty\n"  # columns may come in any order
            pairs = [(i, i / 4) for i in range(start, start + 30)]
            written(path, head + "".join(f"{y}\t{x}\n" if name == "b.tsv" else f"{x}\t{y}\n" for x, y in pairs))
        return [folder], {"pack": ["m=*"]}, [{"m": np.array([i, i / 4])} for i in range(90)]


# -- records ---------------------------------------------------------------------------------------------------


def test_quotes_and_line_ends_as_pyarrow_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random files of the characters that matter, in spans of a few bytes, against pyarrow reading them at once."""
    rng = random.Random(5)
    cells = ["1", "007", "x", '"q,r"', '"a""b"', '"l\n1"', '"l\r\n2"', "", '5" pipe', '""', '"c\rd"', " 7", 'a"b"']
    compared = 0
    for _ in range(400):
        monkeypatch.setattr(records, "SPAN_BYTES", rng.choice([3, 8, 20, 1 << 20]))
        names = ["A", "B", "C"][: rng.choice([1, 2, 3])]
        if rng.random() < 0.5:
            body = "".join(rng.choice('ab1",\n\r "0.') for _ in range(rng.randrange(60)))
        else:
            widths = [len(names) if rng.random() < 0.9 else 2 for _ in range(rng.randrange(12))]
            lines = [",".join(rng.choice(cells) for _ in range(n)) for n in widths]
            body = rng.choice(["\n", "\r\n", "\r"]).join(lines) + rng.choice(["", "\n"])
        path = written(tmp_path / "t.csv", ",".join(names) + "\n" + body)
        wrong: list[int] = []
        expected = _by_pyarrow(body.encode(), names, wrong)
        try:
            source = Csv.find([path], dtypes=dict.fromkeys(names, "text"), delimiter=",")
        except InputError as error:
            if "no rows" in str(error):
                assert expected == []
            else:
                assert "never closed" in str(error)
            continue
        block, rejects = read(source)
        assert ([] if block is None else list(block)) == expected, body
        assert [reject.row + 1 for reject in rejects] == wrong, body
        compared += 1
    assert compared > 200


def _by_pyarrow(body: bytes, names: list[str], wrong: list[int]) -> list[dict[str, Any]]:
    def skip(row: Any) -> str:
        wrong.append(row.number)
        return "skip"

    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(body),
            arrow_csv.ReadOptions(column_names=names, use_threads=False),
            arrow_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
            arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except pa.ArrowInvalid:
        return []
    return table.to_pylist()


@pytest.mark.parametrize("span", [16, 1000, 8 << 20])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_the_csv_module_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, span: int, quoting: int
) -> None:
    monkeypatch.setattr(records, "SPAN_BYTES", span)
    rng = random.Random(1)
    letters = 'ab ,"\n\r\té☃0'
    rows = [["".join(rng.choices(letters, k=rng.randrange(9))) + "." for _ in "abc"] for _ in range(300)]
    text = io.StringIO(newline="")
    csv.writer(text, quoting=quoting).writerows([["a", "b", "c"], *rows])
    source = Csv.find([written(tmp_path / "t.csv", text.getvalue())])
    assert list(zip(*values(source).values(), strict=True)) == [tuple(row) for row in rows]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_blank_lines_and_byte_order_mark(tmp_path: Path, end: str, last: bool) -> None:
    text = end.join(["", "a,b", "", "1,x", "", "", "2,y"]) + (end if last else "")
    source = Csv.find([written(tmp_path / "t.csv", b"\xef\xbb\xbf" + text.encode())])
    assert values(source) == {"a": [1, 2], "b": ["x", "y"]}


def test_a_byte_order_mark_further_on_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SPAN_BYTES", 8)
    rows = [f"\ufeff{i}" for i in range(9)]
    assert values(Csv.find([written(tmp_path / "t.csv", "a\n" + "\n".join(rows))])) == {"a": rows}


def test_any_part_of_the_rows_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As --limit asks, and as inputs are read one by one after a worker died."""
    monkeypatch.setattr(records, "SPAN_BYTES", 30)
    source = Csv.find([written(tmp_path / "t.csv", "a,b\n" + "".join(f'{i},"x\n{i}"\n' for i in range(30)))])
    assert len(source.plan()) > 3
    for start, stop in ((0, 1), (3, 4), (2, 29), (29, 30), (0, 30)):
        blocks = [item for item in source.read(Span(start, stop)) if not isinstance(item, Reject)]
        assert [n for block in blocks for n in block["a"]] == list(range(start, stop))
        assert [n for block in blocks for n in block.origin[:, 1]] == list(range(start, stop))


def test_a_record_larger_than_spans_and_parser_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SPAN_BYTES", 1 << 20)
    long = "line\n" * 600_000
    source = Csv.find([written(tmp_path / "t.csv", f'n,text\n1,short\n2,"{long}"\n3,short\n')])
    assert values(source) == {"n": [1, 2, 3], "text": ["short", long, "short"]}


def test_records_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SPAN_BYTES", 1 << 10)
    monkeypatch.setattr(records, "MAX_RECORD", 1 << 12)
    path = written(tmp_path / "t.csv", 'a,b\n1,2\n3,"' + "4\n" * 10_000)
    with pytest.raises(InputError, match=r"t\.csv, line 3: a record of more than .* never closed"):
        Csv.find([path])


# -- types -----------------------------------------------------------------------------------------------------


def test_types(tmp_path: Path) -> None:
    text = (
        "i,f,nan,b,zip,day,time,mixed,empty,hex,big,huge,plus\n"
        "1,1,nan,true,00501,2024-01-02,2024-01-02 03:04:05,1,,0x1F,18446744073709551615,99999999999999999999,-5\n"
        "-2,2.5e3,-inf,FALSE,12345,2024-12-31,12:30,x,,0x2F,1,1,6\n"
    )
    source = Csv.find([written(tmp_path / "t.csv", text)])
    kinds = {f.name: "text" if f.kind == "text" else f.dtype for f in source.schema}
    texts = dict.fromkeys(("zip", "day", "time", "mixed", "empty", "hex", "huge"), "text")
    numbers = {"i": "int64", "f": "float64", "nan": "float64", "b": "bool", "big": "uint64", "plus": "int64"}
    assert kinds == texts | numbers
    found = values(source)
    assert found["i"] == [1, -2]
    assert found["f"] == [1.0, 2500.0]
    assert np.isnan(found["nan"][0])
    assert found["nan"][1] == -np.inf
    assert found["b"] == [True, False]
    assert found["zip"] == ["00501", "12345"]
    assert found["day"] == ["2024-01-02", "2024-12-31"]
    assert found["hex"] == ["0x1F", "0x2F"]
    assert found["big"] == [2**64 - 1, 1]
    assert found["huge"] == ["99999999999999999999", "1"]
    assert found["empty"] == ["", ""]


@pytest.mark.parametrize(
    ("cells", "dtype"),
    [
        (["0", "10", "-0"], "int64"),
        (["0.5", "00.5"], "text"),
        (["0.5", "10"], "float64"),
        (["1", '"007"'], "text"),
        (["1", " 07"], "text"),
        (["9007199254740993", "1.5"], "text"),  # float64 would round it
        (["9007199254740993", "2"], "int64"),
        (["1e300", "2"], "float64"),
        (["true", "1"], "text"),
        (["-9223372036854775809"], "text"),
        (["18446744073709551615", "01"], "text"),
        (["NA", "3"], "int64"),
        (["NA", "x"], "text"),
    ],
)
def test_no_digit_is_lost(tmp_path: Path, cells: list[str], dtype: str) -> None:
    source = Csv.find([written(tmp_path / "t.csv", "a,b\n" + "".join(f"{c},x\n" for c in cells))], fill=0)
    assert ("text" if source.schema["a"].kind == "text" else source.schema["a"].dtype) == dtype
    if dtype == "text":
        assert values(source)["a"] == [cell.strip('"') for cell in cells]


def test_text_keeps_what_would_be_missing_in_numbers(tmp_path: Path) -> None:
    source = Csv.find([written(tmp_path / "t.csv", "country,n\nNA,1\n,2\nnull,3\n")])
    assert values(source) == {"country": ["NA", "", "null"], "n": [1, 2, 3]}


def test_a_type_that_changes_in_the_sample_widens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SPAN_BYTES", 256)
    monkeypatch.setattr(source_module, "SAMPLE_BYTES", 2048)
    rows = [f"{i},{i},{i},{i:06}" if i < 500 else f"{i},{i}.5,x{i},{i:06}" for i in range(1000)]
    source = Csv.find([written(tmp_path / "t.csv", "a,b,c,d\n" + "\n".join(rows))])
    assert [f[1:] for f in fields(source)] == [
        ("int64", (), "array"),
        ("float64", (), "array"),
        ("uint8", (None,), "text"),
        ("uint8", (None,), "text"),
    ]
    assert values(source)["c"][499:501] == ["499", "x500"]


@pytest.mark.parametrize(
    ("odd", "said"),
    [("1.5", "invalid value '1.5' for int64"), ("x", "'x'"), ("007", "'007' would lose digits as int64")],
)
def test_what_the_sample_did_not_show_is_a_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str, said: str
) -> None:
    monkeypatch.setattr(records, "SPAN_BYTES", 4096)
    monkeypatch.setattr(source_module, "SAMPLE_BYTES", 2048)
    monkeypatch.setattr(source_module, "SAMPLE_PIECES", 2)
    rows = [f"{i},text" for i in range(1, 2001)]
    rows[1000] = f"{odd},text"
    path = written(tmp_path / "t.csv", "n,word\n" + "\n".join(rows))
    block, rejects = read(Csv.find([path]))
    assert [(r.path, r.row, r.stage) for r in rejects] == [("t.csv", 1000, "read")]
    assert rejects[0].error.startswith("line 1002: column n: ")
    assert said in rejects[0].error
    assert "--dtypes n=text" in rejects[0].error
    assert block is not None
    assert len(block) == 1999
    assert values(Csv.find([path], dtypes=["n=text"]))["n"][1000] == odd


def test_integers_float64_would_round_are_rejects_later_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SPAN_BYTES", 4096)
    monkeypatch.setattr(source_module, "SAMPLE_BYTES", 2048)
    monkeypatch.setattr(source_module, "SAMPLE_PIECES", 2)
    rows = [f"{i}.5" for i in range(2000)]
    rows[1000], rows[1001] = "9007199254740993", "1e20"
    _, rejects = read(Csv.find([written(tmp_path / "t.csv", "n,w\n" + "".join(f"{r},x\n" for r in rows))]))
    assert [reject.row for reject in rejects] == [1000]


def test_dtypes_are_what_was_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "a,b,c,when\n1,007,3,2024-01-02 03:04:05\n2,8,4,1970-01-01\n")
    source = Csv.find([path], dtypes={"a": "float32", "b": "int8", "c": "text", "when": "timestamp"})
    assert [f[1] for f in fields(source)] == ["float32", "int8", "uint8", "int64"]
    assert values(source) == {"a": [1, 2], "b": [7, 8], "c": ["3", "4"], "when": [1704164645000000, 0]}
    assert Csv.find([path], dtypes="a=float32,b=int8,c=text").schema["c"].kind == "text"
    written(tmp_path / "odd.csv", 'a,"b,c=d"\n1,2\n')
    assert Csv.find([tmp_path / "odd.csv"], dtypes=["a=int8,b,c=d=float32"]).schema["b,c=d"].dtype == "float32"
    for wrong in ({"a": "complex64"}, {"A": "int8"}, ["a"], ["=int8"], ["a=int8,"], ["a=int8,b"]):
        with pytest.raises(UsageError, match=r"--dtypes|unknown"):
            Csv.find([path], dtypes=wrong)


# -- holes and bad lines -----------------------------------------------------------------------------------------


def test_a_missing_number_is_an_error_unless_filled(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", 'a,b,s\n1,2.5,x\n\n"3",,"y\nz"\nNA,4,\n')
    with pytest.raises(InputError, match=r"t\.csv, line 6, row 2: column a has no value here\.\n--fill NUMBER"):
        read(Csv.find([path]))
    with pytest.raises(InputError, match=r"t\.csv, line 4, row 1: column b"):
        read(Csv.find([path], columns=["b"]))
    assert values(Csv.find([path], fill=-1)) == {"a": [1, 3, -1], "b": [2.5, -1, 4], "s": ["x", "y\nz", ""]}
    assert np.isnan(values(Csv.find([path], columns=["b"], fill=float("nan")))["b"][1])
    with pytest.raises(UsageError, match=r"--fill nan can't stand in column a, which is int64"):
        read(Csv.find([path], fill=float("nan")))
    with pytest.raises(UsageError, match=r"--fill 0.5"):
        read(Csv.find([path], fill=0.5))


def test_lines_of_the_wrong_width_are_rejects_by_line(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", 'a,b\n1,"x\ny"\n2\n\n3,4,5\n6,z\n  \n')
    block, rejects = read(Csv.find([path]))
    assert block is not None
    assert list(block["a"]) == [1, 6]
    assert block.origin is not None
    assert block.origin.tolist() == [[0, 0], [0, 3]]
    assert [(r.row, r.error) for r in rejects] == [
        (1, "line 4: 1 values, but the table has 2 columns"),
        (2, "line 6: 3 values, but the table has 2 columns"),
        (4, "line 8: 1 values, but the table has 2 columns"),
    ]


def test_many_bad_lines_take_no_ages(tmp_path: Path) -> None:
    lines = [f"{i},x" if i % 2 else "1" for i in range(20_000)]
    block, rejects = read(Csv.find([written(tmp_path / "t.csv", "a,b\n" + "\n".join(lines))]))
    assert block is not None
    assert (len(block), len(rejects)) == (10_000, 10_000)
    assert rejects[-1].error.startswith("line 20000:")


def test_text_that_is_not_utf8_is_a_reject_by_line(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", b"a,b\n1,ok\n2,caf\xe9\n3,\xe2\x98\x83\n4,\xff\n")
    block, rejects = read(Csv.find([path]))
    assert [r.error for r in rejects] == [
        f"line {line}: column b: not utf-8; --encoding cp1252, or whatever it is" for line in (3, 5)
    ]
    assert block is not None
    assert [row["b"] for row in block] == ["ok", "☃"]
    legacy = written(tmp_path / "l.csv", "a,b\n1,café €\n".encode("cp1252"))
    assert values(Csv.find([legacy], encoding="cp1252"))["b"] == ["café €"]
    _, rejects = read(Csv.find([written(tmp_path / "u.csv", b"a,b\n1,\x81\n")], encoding="cp1252"))
    assert len(rejects) == 1
    for encoding in ("utf-16", "shift_jis", "no such", "rot13"):
        with pytest.raises(UsageError, match=encoding):
            Csv.find([path], encoding=encoding)
    with pytest.raises(InputError, match="UTF-16"):
        Csv.find([written(tmp_path / "w.csv", "a,b\n1,2\n".encode("utf-16"))])


def test_a_quote_that_is_never_closed_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", 'a,b\n1,x\n2,"y\n3,z\n')
    with pytest.raises(InputError, match=r"t\.csv, line 3: a quote is opened and never closed\.\n--quote none"):
        Csv.find([path])
    assert values(Csv.find([path], quote="none"))["b"] == ["x", '"y', "z"]
    with pytest.raises(InputError, match="line 1: a quote"):
        Csv.find([written(tmp_path / "h.csv", 'a,"b\n1,2\n')])


# -- headers and dialects ------------------------------------------------------------------------------------------


def test_header(tmp_path: Path) -> None:
    bare = written(tmp_path / "bare.csv", "5.1,3.5\n4.9,3.0\n")
    with pytest.raises(InputError, match=r"bare\.csv: its first line is all numbers: 5\.1, 3\.5\n.*--header none"):
        Csv.find([bare])
    assert values(Csv.find([bare], header="none")) == {"column0": [5.1, 4.9], "column1": [3.5, 3.0]}
    assert values(Csv.find([bare], header="x,y")) == {"x": [5.1, 4.9], "y": [3.5, 3.0]}
    assert values(Csv.find([bare], header=["x", "y"], columns=["y"])) == {"y": [3.5, 3.0]}
    assert values(Csv.find([bare], header="first")) == {"5.1": [4.9], "3.5": [3.0]}
    with pytest.raises(InputError, match="2 values in its first line, but --header has 3"):
        Csv.find([bare], header="x,y,z")


def test_names_that_fields_can_not_have(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", ',_id, a/b ,"two\nlines",.x\n0,1,2,3,4\n')
    assert Csv.find([path]).schema.names == ("column0", "id", "a_b", "two_lines", "x")
    for header in ("a,b,a", "a,b,_a", "a/b,b,a_b"):
        with pytest.raises(InputError, match=r"two columns are called '(a|a_b)'"):
            Csv.find([written(tmp_path / "d.csv", f"{header}\n1,2,3\n")])


@pytest.mark.parametrize(
    ("mark", "name"), [(",", "t.csv"), (";", "t.csv"), ("|", "t.csv"), ("\t", "t.csv"), ("\t", "t.tsv")]
)
def test_delimiters_are_found(tmp_path: Path, mark: str, name: str) -> None:
    path = written(tmp_path / name, mark.join(("a", '"b,;"', "c")) + "\n" + mark.join(("1", "x", "2.5")) + "\n")
    source = Csv.find([path])
    assert source.schema.names == ("a", "b,;", "c")
    assert values(source)["c"] == [2.5]
    assert source.describe()["delimiter"] == mark


def test_delimiters_are_given(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "a:'b,:'\n1:'x''y'\n")
    assert values(Csv.find([path], delimiter=":", quote="'")) == {"a": [1], "b,:": ["x'y"]}
    for wrong in ({"delimiter": "::"}, {"delimiter": "\n"}, {"quote": "é"}, {"delimiter": '"'}, {"delimiter": ""}):
        with pytest.raises(UsageError, match="--"):
            Csv.find([path], **wrong)


def test_nothing_in_it(tmp_path: Path) -> None:
    for text, said in (
        ("", "empty"),
        ("\n\r\n", "empty"),
        ("a,b\n", "no rows"),
        ("a,b", "no rows"),
        ("a,b\n\n", "no rows"),
    ):
        with pytest.raises(InputError, match=rf"t\.csv: .*{said}"):
            Csv.find([written(tmp_path / "t.csv", text)])


def test_files_of_one_table_have_the_same_columns(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a.csv", "x,y\n1,2\n"), written(tmp_path / "b.csv", "y,x\n3.5,4\n")
    assert values(Csv.find([b, a])) == {"y": [3.5, 2], "x": [4, 1]}
    c = written(tmp_path / "c.csv", "x,z\n1,2\n")
    with pytest.raises(InputError, match=r"column 'y' is in a\.csv, but not in c\.csv"):
        Csv.find([a, c])
    with pytest.raises(InputError, match="not a file"):
        Csv.find([a, tmp_path])


# -- fields --------------------------------------------------------------------------------------------------------


def test_choose_and_order(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "a,b,c,word\n1,2,3.5,x\n4,5,6.5,y\n")
    assert values(Csv.find([path], columns=["word", "a"])) == {"word": ["x", "y"], "a": [1, 4]}
    with pytest.raises(UsageError, match=r"unknown column 'wrd'\. Did you mean 'word'\?"):
        Csv.find([path], columns=["wrd"])


def test_pack(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "a,b,c,word,label\n1,2,3.5,x,0\n4,5,6.5,y,1\n")
    matrix = [[1, 2, 3.5, 0], [4, 5, 6.5, 1]]
    assert values(Csv.find([path], pack={"m": "*"})) == {"m": matrix, "word": ["x", "y"]}
    assert values(Csv.find([path], pack="m=*")) == {"m": matrix, "word": ["x", "y"]}
    source = Csv.find([path], pack=["m=*"], columns=["label"])
    assert fields(source) == [("label", "int64", (), "array"), ("m", "float64", (3,), "array")]
    assert values(source)["m"] == [[1, 2, 3.5], [4, 5, 6.5]]
    source = Csv.find([path], pack=["m=b,a", "rest=*"], columns=["rest", "m", "label"])
    assert fields(source)[:2] == [("rest", "float64", (1,), "array"), ("m", "int64", (2,), "array")]
    assert values(source)["m"] == [[2, 1], [5, 4]]
    for wrong in (["m"], ["m=*", "n=*"], ["m=a,a"], ["m=a", "m=b"], ["word=a,b"], ["m=nope"], ["=a"]):
        with pytest.raises(UsageError, match=r"--pack|column"):
            Csv.find([path], pack=wrong)
    with pytest.raises(InputError, match="column word is string, not a number"):
        Csv.find([path], pack="m=a,word")
    with pytest.raises(InputError, match="no numeric column"):
        Csv.find([path], pack="m=*", columns=["a", "b", "c", "label"])


def test_integers_packed_with_floats_may_become_floats_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SPAN_BYTES", 4096)
    monkeypatch.setattr(source_module, "SAMPLE_BYTES", 2048)
    monkeypatch.setattr(source_module, "SAMPLE_PIECES", 2)
    rows = [f"{i},0.5" for i in range(2000)]
    rows[1000] = "1000.25,0.5"
    found = values(Csv.find([written(tmp_path / "t.csv", "a,b\n" + "\n".join(rows))], pack="m=*"))
    assert found["m"][1000] == [1000.25, 0.5]


def test_a_thousand_columns(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((50, 1000)).round(5)
    text = ",".join(f"c{i}" for i in range(1000)) + "\n" + "\n".join(",".join(map(str, row)) for row in table.tolist())
    path = written(tmp_path / "t.csv", text)
    block, _ = read(Csv.find([path], pack="m=*"))
    assert block is not None
    np.testing.assert_array_equal(block["m"], table)
    assert len(Csv.find([path]).schema) == 1000


def test_too_many_columns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than 65,536 columns"):
        Csv.find([written(tmp_path / "t.csv", "," * 70_000 + "\n1,2\n")])
    with pytest.raises(InputError, match="first line has more than 4 MiB"):
        Csv.find([written(tmp_path / "t.csv", "a" * (5 << 20) + "\n1\n")])


# -- the whole line --------------------------------------------------------------------------------------------------


def test_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    import bigconv

    monkeypatch.setattr(records, "SPAN_BYTES", 1000)
    table = np.random.default_rng(0).standard_normal((500, 4))
    lines = [",".join([*map(repr, row), f"n{i}"]) for i, row in enumerate(table.tolist())]
    path = written(tmp_path / "t.csv", "a,b,c,d,name\n" + "\n".join(lines))
    Request((path,), tmp_path / f"out{suffix}", options={"pack": ["x=*"]}).run()
    view = bigconv.open(tmp_path / f"out{suffix}")
    assert len(view) == 500
    np.testing.assert_array_equal(view[0:500]["x"], table)
    assert view[499]["name"] == "n499"


def test_rejects_keep_a_conversion_from_being_published(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "a,b\n1,2\n3\n")
    with pytest.raises(FindingsError, match=r"t\.csv: line 3: 1 values, but the table has 2 columns"):
        Request((path,), tmp_path / "out.h5").run()
    assert not (tmp_path / "out.h5").exists()


def test_description_decides_the_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "a,b\n1,2.5\n")
    told = Csv.find([path], pack="m=*", fill=float("nan")).describe()
    assert json.loads(json.dumps(told, allow_nan=False)) == {
        "kind": "csv",
        "files": 1,
        "bytes": 10,
        "columns": {"a": "double", "b": "double"},
        "pack": {"m": ["a", "b"]},
        "fill": "nan",
        "delimiter": ",",
        "quote": '"',
        "encoding": "utf-8",
    }


def test_thousands_of_files_stay_small(tmp_path: Path) -> None:
    names = ",".join(f"column{i}" for i in range(50))
    for i in range(300):
        written(tmp_path / f"{i:03}.csv", f"{names}\n{','.join(['1'] * 50)}\n")
    source = Csv.find([tmp_path], pack="m=*")
    assert source.inputs == 300
    assert len(pickle.dumps(source)) < 100_000


# -- numbers with a stray word ---------------------------------------------------------------------------------------

STRAY = 'n,x,zip,word\n1,0.5,00501,a\n2,"x\ny",00544,1\n-3,NA,06390,2\noops,nan,00001,b\n5,-2e3,00002,c\n6,.5,00003,3\n'


def test_a_stray_word_that_makes_a_column_text_is_named(tmp_path: Path) -> None:
    """Its column, file, line, and what to do; codes with leading zeros, and text with some numbers, are meant."""
    path = written(tmp_path / "t.csv", STRAY)
    assert Csv.find([path]).notes == (
        "column n is text because of 'oops' (t.csv, line 6): 1 of 6 values seen is no number. "
        "--dtypes n=int64 rejects such rows instead",
        "column x is text because of 'x\\ny' (t.csv, line 3): 1 of 5 values seen is no number. "
        "--dtypes x=float64 rejects such rows instead",
    )
    assert Csv.find([path], dtypes=["n=int64", "x=text"]).notes == ()
    assert Csv.find([path], columns=["zip", "word"]).notes == ()
    assert len(Csv.find([path], columns=["n"]).notes) == 1


def test_a_stray_word_deep_in_one_of_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind records that have too many values, which are rejects, and in spans of a few bytes."""
    monkeypatch.setattr(records, "SPAN_BYTES", 64)
    (tmp_path / "raw").mkdir()
    for i in range(3):
        lines = [f"{k},{k}" for k in range(40)]
        if i == 1:
            lines[20:22] = ["1,2,3", "x7,1"]
        written(tmp_path / "raw" / f"{i}.csv", "\n".join(["a,b" if i else "b,a", *lines]) + "\n")
    notes = Csv.find([tmp_path / "raw"]).notes
    assert [note.partition(":")[0] for note in notes] == ["column a is text because of 'x7' (1.csv, line 23)"]
    assert "1 of 119 values" in notes[0]


def test_convert_tells_of_a_stray_word(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", STRAY)
    for words in ((), ("--dry-run",)):
        command = ["convert", str(path), str(tmp_path / "out.h5"), "--workers", "0", "--columns", "n", *words]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert "hint: column n is text because of 'oops' (t.csv, line 6)" in " ".join(result.output.split())
    command = ["convert", str(path), str(tmp_path / "n.h5"), "--columns", "n", "--workers", "0", "--json"]
    result = CliRunner().invoke(app, command)
    assert json.loads(result.stdout)["warnings"] == list(Csv.find([path], columns=["n"]).notes)
    with pytest.warns(UserWarning, match=r"column n is text because of 'oops' \(t\.csv, line 6\)"):
        bigconv.convert(path, tmp_path / "api.h5", columns=["n"], workers=0)
    with pytest.raises(FindingsError, match=r"t\.csv: line 6: column n"):  # what the hint says
        Request((path,), tmp_path / "m.h5", options={"columns": ["n"], "dtypes": ["n=int64"]}).run()


def test_holes_filled_with_nan(tmp_path: Path) -> None:
    """JSON has no NaN, and recipes are JSON."""
    path = written(tmp_path / "t.csv", "a,b\n1,2.5\n2,\n")
    command = ["convert", str(path), str(tmp_path / "a.mmap"), "--pack", "x=*", "--fill", "nan", "--workers", "0"]
    for told in ("rows", "unchanged, skipped"):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert told in result.output
    again = ["convert", str(path), str(tmp_path / "b.mmap"), "--recipe", str(tmp_path / "a.mmap"), "--workers", "0"]
    assert CliRunner().invoke(app, again).exit_code == 0
    for name in ("a.mmap", "b.mmap"):
        assert np.array_equal(np.load(tmp_path / name / "x.npy"), [[1, 2.5], [2, np.nan]], equal_nan=True)
