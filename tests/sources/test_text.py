"""Text: Python's own lines are the oracle, and for tokens the library that makes them."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bigconv
from bigconv.block import Block
from bigconv.conversion.options import find_source
from bigconv.errors import InputError, MissingPackage, UsageError
from bigconv.sources import lines
from bigconv.sources.base import Reject, Span
from bigconv.sources.lines import split
from bigconv.sources.text import Text
from bigconv.sources.tokens import Tokenizer
from bigconv.testing.source_suite import Made, SourceSuite

WORDS = ["", "naïve ☃", "a b  c", "tab\tand\x00nul", "x" * 40, "🙂"]


def rows(source: Text, spans: list[Span] | None = None) -> tuple[list[dict[str, Any]], list[Reject]]:
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


def bpe(path: Path) -> Any:
    """A small tokenizer that its own library trains and writes."""
    from tokenizers import Tokenizer as Made
    from tokenizers import models, pre_tokenizers, processors, trainers

    made = Made(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    made.train_from_iterator(["the cat sat on the mat", "the hat"] * 9, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.enable_truncation(2)  # as files of trained models have it
    made.enable_padding(length=50)
    made.save(str(path))
    made.no_truncation()
    made.no_padding()
    return made


class TestFiles(SourceSuite):
    source = "text"
    damages = ("junk",)
    limits: ClassVar[dict[str, int]] = {"bigconv.sources.rowwise.SPAN_INPUTS": 2}

    def make(self, folder: Path) -> Made:
        (folder / "b").mkdir()
        texts = ["line\nline\r\n", *WORDS]
        for i, text in enumerate(texts):
            path = folder / ("a" if i < 3 else "b") / f"{i}.{('txt', 'TXT', 'text')[i % 3]}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text.encode())
        return [folder], {}, [{"text": text} for text in texts]


class TestLines(SourceSuite):
    source = "text"
    damages = ()
    limits: ClassVar[dict[str, int]] = {"bigconv.sources.lines.SPAN_BYTES": 32}

    def make(self, folder: Path) -> Made:
        (folder / "a.txt").write_bytes("\n".join(WORDS).encode())
        (folder / "b.txt").write_bytes("\r\n".join([*WORDS, ""]).encode())
        (folder / "c.txt").write_bytes(b"")
        (folder / "d.txt").write_bytes(b"\n\n")
        return [folder], {"lines": True}, [{"text": text} for text in [*WORDS, *WORDS, "", ""]]


class TestByteTokens(SourceSuite):
    source = "text"
    damages = ()
    limits: ClassVar[dict[str, int]] = {"bigconv.sources.lines.SPAN_BYTES": 32}

    def make(self, folder: Path) -> Made:
        (folder / "a.txt").write_bytes("\n".join(WORDS).encode())
        expected = [{"tokens": np.frombuffer(word.encode(), np.uint8).astype(np.uint16)} for word in WORDS]
        return [folder / "a.txt"], {"lines": True, "tokenizer": "byte"}, expected


class TestTokensOfAFile(SourceSuite):
    source = "text"
    damages = ("junk",)
    limits: ClassVar[dict[str, int]] = {"bigconv.sources.rowwise.SPAN_INPUTS": 2}

    def make(self, folder: Path) -> Made:
        made = bpe(folder.parent / "tokenizer.json")
        for i, text in enumerate(WORDS):
            (folder / f"{i}.txt").write_text(text)
        ids = [np.array(made.encode(text, add_special_tokens=False).ids, np.uint16) for text in WORDS]
        return [folder], {"tokenizer": str(folder.parent / "tokenizer.json")}, [{"tokens": i} for i in ids]


# -- lines -------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=60).map(lambda b: b.replace(b"\x00", b"\r\n").replace(b"\x01", b"\n")))
@settings(max_examples=300, deadline=None)
def test_lines_are_what_python_says(data: bytes) -> None:
    expected = [line.removesuffix(b"\r") if ended else line for line, ended in _python_lines(data)]
    found = split(data)
    assert [bytes(line) for line in found] == expected
    assert len(found) == lines.newlines(data)


def _python_lines(data: bytes) -> list[tuple[bytes, bool]]:
    pieces = data.split(b"\n")
    ended = [(piece, True) for piece in pieces[:-1]]
    return ended if pieces[-1] == b"" else [*ended, (pieces[-1], False)]


@pytest.mark.parametrize("size", [1, 3, 7, 64, 1000])
def test_wherever_a_file_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Also inside a CRLF and inside a letter."""
    monkeypatch.setattr(lines, "SPAN_BYTES", size)
    texts = ["é" * (i % 5) + str(i) for i in range(50)]
    (tmp_path / "a.txt").write_bytes("\r\n".join(texts).encode())
    source = Text.find([tmp_path / "a.txt"], lines=True)
    assert [row["text"] for row in rows(source)[0]] == texts
    one_by_one = [Span(i, i + 1) for i in range(50)]
    assert [row["text"] for row in rows(source, one_by_one)[0]] == texts
    assert [row["text"] for row in rows(source, [Span(7, 31)])[0]] == texts[7:31]


def test_a_bad_line_is_rejected_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "SPAN_BYTES", 8)
    raw = [b"a", b"\xff", b"c", b"d\xc3", b"e" * 20, b"\xed\xa0\x80", b"g"]  # a lone byte, half a letter, a surrogate
    (tmp_path / "a.txt").write_bytes(b"first\n")
    (tmp_path / "b.txt").write_bytes(b"\n".join(raw))
    for tokenizer in (None, "byte"):
        source = Text.find([tmp_path], lines=True, tokenizer=tokenizer)
        found, rejects = rows(source)
        assert len(found) == 5
        assert [(r.path, r.row, r.error.partition(":")[0]) for r in rejects] == [
            ("b.txt", 1, "line 2"),
            ("b.txt", 3, "line 4"),
            ("b.txt", 5, "line 6"),
        ]
        assert rejects[1].error == "line 4: not UTF-8: byte 0xc3 at 1"
        origin = np.concatenate([b.origin for s in source.plan() for b in source.read(s) if isinstance(b, Block)])
        assert origin.tolist() == [[0, 0], [1, 0], [1, 2], [1, 4], [1, 6]]


def test_byte_order_marks(tmp_path: Path) -> None:
    """UTF-8's is no text, UTF-16's is another encoding: said so, with the way out."""
    (tmp_path / "a.txt").write_bytes("é\nb".encode("utf-8-sig"))
    assert rows(Text.find([tmp_path]))[0] == [{"text": "é\nb"}]
    assert rows(Text.find([tmp_path], lines=True))[0] == [{"text": "é"}, {"text": "b"}]
    (tmp_path / "a.txt").write_bytes("é\nb".encode("utf-16"))
    (tmp_path / "b.txt").write_bytes(b"good")
    assert "iconv" in rows(Text.find([tmp_path]))[1][0].error
    (tmp_path / "b.txt").unlink()
    with pytest.raises(InputError, match="iconv"):
        Text.find([tmp_path])
    with pytest.raises(InputError, match=r"a\.txt: UTF-16"):
        Text.find([tmp_path], lines=True)


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "SPAN_BYTES", 16)
    monkeypatch.setattr(lines, "MAX_LINE", 64)
    (tmp_path / "a.txt").write_bytes(b"short\n" + b"x" * 100)
    with pytest.raises(InputError, match=r"a\.txt, line 2: more than"):
        Text.find([tmp_path], lines=True)


def test_a_huge_file_is_no_sample(tmp_path: Path) -> None:
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate((1 << 30) + 1)
    assert "--lines" in rows(Text.find([tmp_path]))[1][0].error


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\nb\n")
    whole, by_line = Text.find([path]), Text.find([path], lines=True)
    path.write_bytes(b"a\n")
    assert "changed" in rows(whole)[1][0].error
    with pytest.raises(InputError, match=r"a\.txt: the file has changed"):
        rows(by_line)
    path.write_bytes(b"aa\n\n")
    by_line = Text.find([path], lines=True)
    path.write_bytes(b"aaa\n")
    with pytest.raises(InputError, match=r"a\.txt: the file has changed"):
        rows(by_line)


# -- tokens ------------------------------------------------------------------------------------------------------------


def module(folder: Path, name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / f"{name}.py").write_text(code)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return f"{name}:encode"


def test_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = module(tmp_path, "tokens_a", "def encode(text): return [ord(c) for c in text]", monkeypatch)
    (tmp_path / "a.txt").write_text("\n".join(WORDS))
    source = pickle.loads(pickle.dumps(Text.find([tmp_path / "a.txt"], lines=True, tokenizer=what)))
    assert source.schema["tokens"].dtype == "uint32", "nobody knows its vocabulary"
    assert [row["tokens"].tolist() for row in rows(source)[0]] == [[ord(c) for c in word] for word in WORDS]
    told = source.describe()
    assert told["tokenizer"]["name"] == "tokens_a:encode"
    assert len(told["tokenizer"]["sha256"]) == 64
    assert str(tmp_path) not in json.dumps(told)


def test_a_functions_vocabulary_decides_the_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import numpy as np\ndef encode(text): return np.arange(len(text))\nencode.vocab_size = {}"
    for size, dtype in ((1 << 16, "uint16"), ((1 << 16) + 1, "uint32")):
        what = module(tmp_path, f"tokens_{size}", code.format(size), monkeypatch)
        assert Tokenizer.of(what).dtype == dtype
    with pytest.raises(UsageError, match="vocab_size"):
        Tokenizer.of(module(tmp_path, "tokens_odd", code.format("'many'"), monkeypatch))


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ("[-1]", "no list of whole numbers"),
        ("[5]", "below 5"),
        ("[1.5]", "no list of whole numbers"),
        ("[[1]]", "no list of whole numbers"),
        ("None", "no list of whole numbers"),
        ("'ab'", "no list of whole numbers"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_function_that_fails_loses_only_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: str, why: str
) -> None:
    name = f"tokens_bad_{abs(hash(result))}"
    code = f"def encode(text): return {result} if text == 'bad' else [1]\nencode.vocab_size = 5"
    what = module(tmp_path, name, code, monkeypatch)
    (tmp_path / "a.txt").write_text("good\nbad\ngood")
    found, rejects = rows(Text.find([tmp_path / "a.txt"], lines=True, tokenizer=what))
    assert [row["tokens"].tolist() for row in found] == [[1], [1]]
    assert [(r.row, r.stage) for r in rejects] == [(1, "decode")]
    assert rejects[0].error.startswith("line 2: ")
    assert why in rejects[0].error
    (tmp_path / "a.txt").write_text("bad")
    assert why in rows(Text.find([tmp_path / "a.txt"], tokenizer=what))[1][0].error


def test_many_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigconv.sources.tokens.TOKENIZE_BYTES", 10)
    made = bpe(tmp_path / "t.json")
    texts = ["the cat " * (i % 4) for i in range(40)]
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n")
    found, rejects = rows(Text.find([tmp_path / "a.txt"], lines=True, tokenizer=str(tmp_path / "t.json")))
    assert not rejects
    assert [row["tokens"].tolist() for row in found] == [
        made.encode(text, add_special_tokens=False).ids for text in texts
    ]


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("bytes", "unknown way 'bytes'. Did you mean 'byte'"),
        ("no_such_module:encode", "can't be loaded: ModuleNotFoundError"),
        ("json:no_such", "no function no_such in json"),
        ("a b:c", "unknown way"),
        ("missing.json", "No such file"),
        ("tiktoken:gpt9", "unknown encoding of tiktoken 'gpt9'. Did you mean 'gpt2'"),
    ],
)
def test_what_is_no_tokenizer(tmp_path: Path, what: str, why: str) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises((UsageError, InputError)) as error:
        Text.find([tmp_path], tokenizer=what)
    assert why in str(error.value)


def test_a_json_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(InputError, match="no file of the tokenizers library"):
        Tokenizer.of(str(tmp_path / "t.json"))


def test_another_file_makes_another_recipe(tmp_path: Path) -> None:
    bpe(tmp_path / "t.json")
    before = Tokenizer.of(str(tmp_path / "t.json"))
    (tmp_path / "t.json").write_text((tmp_path / "t.json").read_text() + "\n")
    assert Tokenizer.of(str(tmp_path / "t.json")).describe() != before.describe()
    assert str(tmp_path) not in json.dumps(before.describe())


@pytest.mark.parametrize("package", ["tiktoken", "tokenizers"])
def test_a_missing_package_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    (tmp_path / "missing.json").write_text(f"{{}}{' ' * len(package)}")
    monkeypatch.setitem(sys.modules, package, None)
    what = "tiktoken:r50k_base" if package == "tiktoken" else str(tmp_path / "missing.json")
    with pytest.raises(MissingPackage, match=r"pip install 'bigconv\[text\]'"):
        Tokenizer.of(what)


# -- tables ------------------------------------------------------------------------------------------------------------


def corpus(path: Path) -> list[str]:
    texts = ["naïve", "", "bad one", "你好 long", "x" * 50]
    path.write_text("".join(json.dumps({"id": f"d{i}", "text": t, "n": i}) + "\n" for i, t in enumerate(texts)))
    return texts


@pytest.mark.parametrize("workers", [0, 2])
def test_text_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Each text is a row of tokens in its place; the recipe makes them again."""
    texts = corpus(tmp_path / "c.jsonl")
    monkeypatch.setattr("bigconv.sources.tokens.TOKENIZE_BYTES", 10)
    (tmp_path / f"utf_{workers}.py").write_text(
        "def encode(text): return list(text.encode())\nencode.vocab_size = 256\n"
    )
    monkeypatch.chdir(tmp_path)
    own = bigconv.convert("c.jsonl", "own.zarr", tokenizer=f"utf_{workers}:encode", workers=workers)
    made = bigconv.convert("c.jsonl", "a.zarr", tokenizer="byte", workers=workers)
    assert own.content_digest == made.content_digest  # text by text, and all at once
    assert [(f.name, f.dtype) for f in made.schema] == [("id", "uint8"), ("tokens", "uint16"), ("n", "int64")]
    view = bigconv.open(tmp_path / "a.zarr")
    assert [view[i]["tokens"].tolist() for i in range(5)] == [list(text.encode()) for text in texts]
    assert [view[i]["id"] for i in range(5)] == [f"d{i}" for i in range(5)]
    again = bigconv.convert(tmp_path / "c.jsonl", tmp_path / "b.zarr", recipe=tmp_path / "a.zarr", workers=0)
    assert again.content_digest == made.content_digest


def test_texts_of_a_table_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_tokens.py").write_text(
        "def encode(text):\n    if 'bad' in text: raise ValueError('on purpose')\n    return [len(text)]\n"
    )
    corpus(tmp_path / "c.jsonl")
    monkeypatch.chdir(tmp_path)
    source = find_source([Path("c.jsonl")], None, {"tokenizer": "own_tokens:encode"})
    items = [item for span in source.plan() for item in source.read(span)]
    assert [len(item) if isinstance(item, Block) else item.row for item in items] == [2, 2, 2]
    assert "field text: tokenizer own_tokens:encode failed: ValueError: on purpose" in items[1].error  # type: ignore[union-attr]


def test_which_text_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("a,b,n\nx,yy,1\n")
    for columns, what, of in ((None, "b=byte", "b"), (["n", "a"], "byte", "a")):
        source = find_source([path], None, {"tokenizer": what, "columns": columns})
        assert source.describe()["tokenizer"]["of"] == of
        assert "tokens" in source.schema.names
    for columns, what, why in (
        (None, "byte", r"which text\? --tokenizer COLUMN=byte, of a, b"),
        (None, "n=byte", "no field of text called n"),
        (["n"], "byte", "no field of text called text"),
        (None, "b=bite", "Did you mean 'byte'"),
    ):
        with pytest.raises(UsageError, match=why):
            find_source([path], None, {"tokenizer": what, "columns": columns})
    with pytest.raises(UsageError, match="no meaning for arrays input"):
        np.save(tmp_path / "x.npy", np.zeros(3))
        find_source([tmp_path / "x.npy"], None, {"tokenizer": "byte"})
