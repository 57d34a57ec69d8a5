"""JSON Lines: Python's json module as the oracle, spans of a few bytes, and lines that shouldn't be there."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from _rows import fields, read, values, written

from bigconv.conversion.request import Request
from bigconv.errors import InputError, UsageError
from bigconv.sources import jsonl, records
from bigconv.sources.base import Reject, Span
from bigconv.sources.jsonl import JsonLines
from bigconv.testing.source_suite import Made, SourceSuite


class TestJsonLines(SourceSuite):
    source = "jsonl"
    file_a_row = False
    limits: ClassVar[dict[str, int]] = {"bigconv.sources.records.SPAN_BYTES": 200}
    damages = ()  # each line is on its own: see the tests of bad lines

    def make(self, folder: Path) -> Made:
        rng = np.random.default_rng(0)
        rows = []
        for name in ("b.ndjson", "a.jsonl", "c.jsonl"):
            found = [
                {"n": int(n), "x": float(x), "text": f"é\n{n}" * (n % 3), "in": {"list": list(range(n % 4))}}
                for n, x in zip(rng.integers(0, 99, 20).tolist(), rng.standard_normal(20).tolist(), strict=True)
            ]
            written(folder / name, "".join(json.dumps(row) + "\n" for row in found))
            rows.append((name, found))
        expected = [
            {
                "n": np.int64(row["n"]),
                "x": np.float64(row["x"]),
                "text": row["text"],
                "in.list": np.array(row["in"]["list"], np.int64),
            }
            for _, found in sorted(rows)
            for row in found
        ]
        return [folder], {}, expected


def lines(path: Path, *rows: object, end: str = "\n") -> Path:
    """Objects as JSON, strings and bytes as they are."""
    texts = [r if isinstance(r, bytes) else (r if isinstance(r, str) else json.dumps(r)).encode() for r in rows]
    return written(path / "t.jsonl", end.encode().join(texts) + end.encode())


@pytest.mark.parametrize("span", [1, 100, 8 << 20])
def test_the_json_module_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, span: int) -> None:
    monkeypatch.setattr(records, "SPAN_BYTES", span)
    rng = random.Random(1)
    rows = [
        {
            "i": rng.randrange(-(2**63), 2**63),
            "f": rng.choice([rng.random(), 1e300, -0.0, 5]),
            "b": rng.random() < 0.5,
            "s": "".join(rng.choices('ab"\\\n\r\té☃😀{}[],:', k=rng.randrange(20))),
            "l": [rng.random() for _ in range(rng.randrange(4))],
            "o": {"a": {"b": rng.randrange(9)}, "c": "2024-01-02"},
        }
        for _ in range(200)
    ]
    for ascii_ in (True, False):
        text = "\n".join(json.dumps(row, ensure_ascii=ascii_) for row in rows)
        found = values(JsonLines.find([written(tmp_path / "t.jsonl", text)]))
        flat = [{**row, "o.a.b": row["o"]["a"]["b"], "o.c": row["o"]["c"]} for row in rows]
        assert found == {name: [row[name] for row in flat] for name in ("i", "f", "b", "s", "l", "o.a.b", "o.c")}


def test_types(tmp_path: Path) -> None:
    row = {"i": 1, "f": 1, "b": True, "s": "007", "day": "2024-01-02", "l": [], "deep": {"er": {"x": 1}}, "z": None}
    other = {**row, "f": 1.5, "l": [1, 2], "day": "x", "new": 3}
    source = JsonLines.find([lines(tmp_path, row, other)], fill=0)
    assert fields(source) == [
        ("i", "int64", (), "array"),
        ("f", "float64", (), "array"),
        ("b", "bool", (), "array"),
        ("s", "uint8", (None,), "text"),
        ("day", "uint8", (None,), "text"),
        ("l", "int64", (None,), "array"),
        ("deep.er.x", "int64", (), "array"),
        ("z", "float64", (), "array"),
        ("new", "int64", (), "array"),
    ]
    assert values(source)["l"] == [[], [1, 2]]
    assert values(source)["new"] == [0, 3]


def test_dtypes_are_what_was_asked_for(tmp_path: Path) -> None:
    path = lines(tmp_path, {"a": 1, "id": 2**63, "o": {"x": 1}, "t": "1970-01-02"})
    source = JsonLines.find([path], dtypes=["a=int8", "id=uint64", "o.x=float32", "t=timestamp"])
    assert [f[1] for f in fields(source)] == ["int8", "uint64", "float32", "int64"]
    assert values(source) == {"a": [1], "id": [2**63], "o.x": [1], "t": [86_400_000_000]}
    with pytest.raises(UsageError, match="unknown column 'b'"):
        JsonLines.find([path], dtypes=["b=int8"])


def test_columns_and_pack(tmp_path: Path) -> None:
    path = lines(tmp_path, {"a": 1, "o": {"x": 0.5, "y": 2}, "s": "t"}, {"s": "u", "o": {"y": 3, "x": 1}, "a": 4})
    assert values(JsonLines.find([path], pack="m=*")) == {"m": [[1, 0.5, 2], [4, 1, 3]], "s": ["t", "u"]}
    assert values(JsonLines.find([path], columns=["o.y", "s"])) == {"o.y": [2, 3], "s": ["t", "u"]}


def test_what_can_not_be_a_field_is_named(tmp_path: Path) -> None:
    path = lines(tmp_path, {"id": 1, "boxes": [{"x": 1}], "words": ["a"], "grid": [[1], [2, 3]]})
    with pytest.raises(InputError, match=r"column 'boxes' of type list<.*> can't be a field\.\n.* --columns"):
        JsonLines.find([path])
    assert values(JsonLines.find([path], columns=["id"])) == {"id": [1]}
    for name in ("words", "grid"):
        with pytest.raises(InputError, match=name):
            JsonLines.find([path], columns=[name])


@pytest.mark.parametrize(("one", "other"), [(1, "x"), (True, 1), ([1], 1), ({"y": 1}, 2), ([1], ["x"])])
def test_columns_of_mixed_kinds_are_named(tmp_path: Path, one: object, other: object) -> None:
    path = lines(tmp_path, {"a": one, "b": 1}, {"a": other, "b": 2})
    with pytest.raises(InputError, match=r"column a is .* and .* by turns"):
        JsonLines.find([path])
    assert values(JsonLines.find([path], columns=["b"])) == {"b": [1, 2]}


def test_names_that_clash(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\['a\.b'|'a\.b'"):
        JsonLines.find([lines(tmp_path, {"a": {"b": 1}, "a.b": 2})])


# -- holes and bad lines -----------------------------------------------------------------------------------------


def test_a_missing_value_is_an_error_unless_filled(tmp_path: Path) -> None:
    rows = [{"n": 1, "s": "x", "l": [1], "o": {"x": 1}}, {"s": "y", "l": [2, None], "o": None}, {"n": 3, "o": {"x": 2}}]
    path = lines(tmp_path, *rows)
    with pytest.raises(InputError, match=r"t\.jsonl, line 2, row 1: column n has no value here"):
        read(JsonLines.find([path]))
    with pytest.raises(InputError, match=r"line 3, row 2: column s"):
        read(JsonLines.find([path], columns=["s"]))
    with pytest.raises(InputError, match=r"line 3, row 2: column l"):
        read(JsonLines.find([path], columns=["l"]))
    with pytest.raises(InputError, match=r"line 2, row 1: column o.x"):
        read(JsonLines.find([path], columns=["o.x"]))
    found = values(JsonLines.find([path], fill=-1))
    assert found == {"n": [1, -1, 3], "s": ["x", "y", ""], "l": [[1], [2, -1], []], "o.x": [1, -1, 2]}


def test_bad_lines_are_rejects_by_number(tmp_path: Path) -> None:
    good = {"a": 1, "s": "x"}
    bad = [
        b'{"a": 2, "s": "\xe9"}',
        '{"a":',
        '{"a": 1} {"a": 2}',
        "[1]",
        "5",
        "nonsense",
        '{"a": 1, "a": 2}',
        '{"a": "x"}',
    ]
    path = lines(tmp_path, good, "", *bad, "   ", good, '{"s": "\\ud800", "a": 1}', good)
    block, rejects = read(JsonLines.find([path], fill=0, columns=["a", "s"], dtypes=["a=int64"]))
    assert [int(r.error.split(":")[0].removeprefix("line ")) for r in rejects] == [*range(3, 11), 13]
    assert [r.row for r in rejects] == [*range(1, 9), 10]
    assert "not UTF-8: byte 0xe9" in rejects[0].error
    assert "more than one value on a line" in rejects[2].error
    assert "column a has string here, where number is expected" in rejects[7].error
    assert block is not None
    assert block.origin is not None
    assert block.origin[:, 1].tolist() == [0, 9, 11]


def test_what_the_sample_did_not_show_is_a_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SPAN_BYTES", 4096)
    monkeypatch.setattr(jsonl, "SAMPLE_BYTES", 2048)
    monkeypatch.setattr(jsonl, "SAMPLE_PIECES", 2)
    rows: list[object] = [{"n": i, "f": i + 0.5} for i in range(2000)]
    rows[1000], rows[1001], rows[1002] = {"n": 1.5, "f": 1}, {"n": 1, "f": 2**53 + 1}, {"n": "x", "f": 1}
    rows[1003] = {"n": 1, "f": 0, "new": "is left out"}
    _, rejects = read(JsonLines.find([lines(tmp_path, *rows)]))
    assert [(r.row, r.error.split(":")[0]) for r in rejects] == [(i, f"line {i + 1}") for i in (1000, 1001, 1002)]
    assert "1.5 is no int64; --dtypes" in rejects[0].error
    assert "column f: float64 would round 9007199254740993" in rejects[1].error


def test_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    for end in ("\n", "\r\n"):
        path = lines(tmp_path, b'\xef\xbb\xbf{"a": 1}', "", " \t", ' {"a": 2}', '{"a": 3}', end=end)
        assert values(JsonLines.find([path])) == {"a": [1, 2, 3]}
    assert values(JsonLines.find([written(tmp_path / "t.jsonl", '{"a": 1}\n{"a": 2}')])) == {"a": [1, 2]}


def test_any_part_of_the_rows_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SPAN_BYTES", 40)
    source = JsonLines.find([lines(tmp_path, *({"a": i} for i in range(30)))])
    for start, stop in ((0, 1), (3, 4), (2, 29), (29, 30)):
        blocks = [item for item in source.read(Span(start, stop)) if not isinstance(item, Reject)]
        assert [n for block in blocks for n in block["a"]] == list(range(start, stop))


@pytest.mark.parametrize("opening", ['{"a":', "["])
@pytest.mark.parametrize("depth", [65, 20_000, 500_000])
def test_nesting_does_not_overflow(tmp_path: Path, opening: str, depth: int) -> None:
    """Arrow's own recursion ends the process at 20,000."""
    closing = "1" + "}" * depth if opening != "[" else "]" * depth
    deep = f'{{"b": 1, "x": {opening * depth}{closing}}}'
    brackets = {"b": 2, "s": "[{" * 1000}  # in a string, they nest nothing
    source = JsonLines.find([lines(tmp_path, deep, brackets, {"b": 3})], columns=["b"])
    assert values(source) == {"b": [1, 2, 3]}


@pytest.mark.parametrize(
    ("value", "way"),
    [
        (2**63 + 1, "--dtypes a=uint64 may hold it"),
        (-(2**53) - 1, "--dtypes a=int64 may hold it"),
        (2**64 + 1, "as a string in quotes it is kept"),
    ],
)
def test_the_way_out_for_a_large_integer_is_one(tmp_path: Path, value: int, way: str) -> None:
    """Also of a fraction beside it, for which the column is float64."""
    source = JsonLines.find([lines(tmp_path, {"a": 0.5}, {"a": value})])
    (reject,) = [item for span in source.plan() for item in source.read(span) if isinstance(item, Reject)]
    assert reject.error == f"line 2: column a: float64 would round {value}; {way}"


def test_a_list_of_objects_is_told_from_lines(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"one list in JSON: jq -c"):
        JsonLines.find([lines(tmp_path, [{"a": 1}, {"a": 2}])])


def test_nothing_in_it(tmp_path: Path) -> None:
    for text in ("", "\n \n", "hello\n", "{}\n", "[1, 2]\n", b"\x00\xff" * 50, b"\xff\xfe{\x00"):
        with pytest.raises(InputError, match=r"t\.jsonl: "):
            JsonLines.find([written(tmp_path / "t.jsonl", text)])


def test_long_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SPAN_BYTES", 1 << 20)
    long = "x" * (3 << 20)
    path = lines(tmp_path, {"s": "a"}, {"s": long}, {"s": "b"})
    assert values(JsonLines.find([path])) == {"s": ["a", long, "b"]}
    monkeypatch.setattr(records, "MAX_RECORD", 1 << 20)
    with pytest.raises(InputError, match=r"t\.jsonl, line 2: a record of more than 1 MiB"):
        JsonLines.find([path])


def test_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    import bigconv

    monkeypatch.setattr(records, "SPAN_BYTES", 500)
    path = lines(tmp_path, *({"text": f"☃{i}", "tokens": list(range(i % 5))} for i in range(100)))
    Request((path,), tmp_path / f"out{suffix}").run()
    view = bigconv.open(tmp_path / f"out{suffix}")
    assert view[99]["text"] == "☃99"
    np.testing.assert_array_equal(view[99]["tokens"], [0, 1, 2, 3])
