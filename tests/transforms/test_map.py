"""Map and Filter: a user's functions, called, learned from, held to what they were, and found again."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigconv.block import Block, Ragged
from bigconv.errors import InputError, SchemaError, UsageError
from bigconv.schema import Field, Schema
from bigconv.transforms.base import config
from bigconv.transforms.filter import Filter
from bigconv.transforms.map import Map
from bigconv.transforms.user import UserStep

IMAGE = Field("image", "uint8", (4, 5, 3), kind="image", layout="hwc")
LABEL = Field("label", "int64", (), kind="label", classes=("cat", "dog"))
NAME = Field("name", "uint8", (None,), kind="text")
TOKENS = Field("tokens", "int32", (None,), kind="tokens")
PHOTO = Field("photo", "uint8", (None, None, 3), kind="image", layout="hwc")


def block(rows: int = 24) -> Block:
    """Rows of every sort: fixed, scalar, text, ragged, ragged in two axes."""
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (2 + i % 3, 3 + i % 2, 3), np.uint8) for i in range(rows)]
    return Block(
        Schema((IMAGE, LABEL, NAME, TOKENS, PHOTO)),
        {
            "image": rng.integers(0, 256, (rows, 4, 5, 3), np.uint8),
            "label": np.arange(rows) % 2,
            "name": Ragged.of([np.frombuffer(f"né {i}".encode(), np.uint8) for i in range(rows)], NAME),
            "tokens": Ragged.of([np.arange(i % 4, dtype=np.int32) for i in range(rows)], TOKENS),
            "photo": Ragged.of(photos, PHOTO),
        },
        np.stack([np.arange(rows) // 5, np.arange(rows) % 5], axis=1),
    )


def sample(rows: Block) -> list[tuple[str, Block]]:
    return [(f"row {i}", rows.slice(i, i + 1)) for i in range(len(rows))]


def alike(a: Block, b: Block) -> None:
    """The same bytes of the same rows."""
    a.validate()
    b.validate()
    assert a.schema == b.schema
    assert a.origin is not None and b.origin is not None
    np.testing.assert_array_equal(a.origin, b.origin)
    for name, column in a.columns.items():
        other = b.columns[name]
        if isinstance(column, Ragged):
            assert isinstance(other, Ragged)
            np.testing.assert_array_equal(column.offsets, other.offsets)
            np.testing.assert_array_equal(column.values, other.values)
            assert (column.shapes is None) == (other.shapes is None)
            if column.shapes is not None:
                np.testing.assert_array_equal(column.shapes, other.shapes)
        else:
            np.testing.assert_array_equal(column, other)


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """`write(code)`: a file of functions; what to type for its function `f`."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def put(code: str, name: str = "own.py", function: str = "f") -> str:
        head = "import numpy as np\nfrom bigconv.block import Ragged\nfrom bigconv.transforms.batched import batched\n"
        (tmp_path / name).write_text(head + code)
        return f"{tmp_path / name}:{function}"

    return put


def learned(text: str, rows: Block | None = None, **options: int) -> Map:
    return Map.parse(text, **options).learn(sample(block() if rows is None else rows))


ROW_BY_ROW = {
    "same": "def f(row): return row",
    "mutating": "def f(row):\n row['image'][:] = 255 - row['image']\n row['tokens'] += 1\n return row",
    "random": "def f(row, *, rng): return {'x': rng.random(3), 'n': rng.integers(0, 9), 'label': row['label']}",
    "dropping": "def f(row): return row if row['label'] else None",
    "multiplying": "def f(row): return [{**row, 'k': k} for k in range(row['tokens'].size)]",
    "many": "def f(row, rng): return [{'x': rng.random()} for _ in range(5)]",
    "resizing": "def f(row): return {'photo': row['photo'][1:, ::2], 'up': row['name'].upper()}",
    "one buffer": "B = np.zeros(4)\ndef f(row):\n B[:] = row['image'][0, 0, 0]\n return {'b': B, 'view': B[:2]}",
}
BATCHED = {
    "same": "@batched\ndef f(columns): return columns",
    "fixed": "@batched\ndef f(c):\n c['image'] //= 2\n return {'image': c['image'], 'm': c['image'].mean((1, 2, 3))}",
    "random": "@batched\ndef f(c, seeds): return {'x': (seeds >> np.uint64(11)) / 2.0**53}",
    "lists": "@batched\ndef f(c): return {'t': [str(n) * n for n in c['label']], 'p': [p[1:] for p in c['photo']]}",
    "one buffer": "B = np.zeros(99)\n@batched\ndef f(c):\n n = len(c['label']); B[:n] = c['label']\n"
    " return {'b': B[:n]}",
    "ragged": "@batched\ndef f(c):\n t = c['tokens']\n return {'tokens': Ragged(t.values * 2, t.offsets),"
    " 'photo': c['photo']}",
}
CASES = [("row", name, code) for name, code in ROW_BY_ROW.items()] + [("batch", n, c) for n, c in BATCHED.items()]


@pytest.mark.parametrize("code", [code for _, _, code in CASES], ids=[f"{how} {name}" for how, name, _ in CASES])
def test_where_a_block_is_cut_does_not_show(code: str, write: Write) -> None:
    rows = block()
    before = pickle.dumps(rows)
    step = learned(write(code), rows, seed=5, number=1)
    whole = step(rows)
    assert step.schema(rows.schema) == whole.schema

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(st.lists(st.integers(0, len(rows)), max_size=5))
    def pieces(cuts: list[int]) -> None:
        edges = [0, *sorted(cuts), len(rows)]
        parts = [step(rows.slice(a, b)) for a, b in pairwise(edges)]
        alike(Block.concat(parts), whole)

    pieces()
    alike(Block.concat([step(rows.slice(i, i + 1)) for i in range(len(rows))]), whole)
    assert pickle.dumps(rows) == before  # nothing was changed by what the function did to its copies


def test_functions_may_write_to_what_they_get_even_from_a_map_of_a_file(write: Write) -> None:
    rows = block()
    for column in rows.columns.values():
        (column.values if isinstance(column, Ragged) else column).flags.writeable = False
    done = learned(write("def f(row):\n row['image'][...] = 7\n row['photo'].fill(9)\n return row"), rows)(rows)
    assert (done["image"] == 7).all()
    assert (done["photo"].values == 9).all()
    done = learned(write("@batched\ndef f(c):\n c['photo'].values[:] = 1\n return c", "b.py"), rows)(rows)
    assert (done["photo"].values == 1).all()


def test_a_row_is_what_the_view_gives(write: Write) -> None:
    """The function is told nothing else than `Block.row` tells."""
    code = (
        "def f(row):\n return {'types': ' '.join(f'{k}:{type(v).__name__}' for k, v in row.items()),"
        " 'name': row['name']}"
    )
    first = learned(write(code))(block()).row(3)
    assert first["types"] == "image:ndarray label:int64 name:str tokens:ndarray photo:ndarray"
    assert first["name"] == "né 3"


def test_none_drops_and_a_list_multiplies(write: Write) -> None:
    rows = block(6)
    code = (
        "def f(row):\n n = {0: None, 1: [], 2: [{'x': 1}], 3: ({'x': 2}, {'x': 3})}\n"
        " return n.get(row['tokens'].size, {})"
    )
    done = learned(write(code), rows)(rows)
    assert done["x"].tolist() == [1, 2, 3]
    assert done.origin is not None and rows.origin is not None
    assert done.origin.tolist() == [rows.origin[i].tolist() for i in (2, 3, 3)]
    none = done.slice(0, 0)
    only = Map(learned(write(code), rows).function, None, 0, done.schema)(rows.slice(0, 2))
    alike(only, Block(none.schema, none.columns, none.origin))


@pytest.mark.parametrize(
    ("code", "field"),
    [
        ("{'image': row['image'][::-1]}", IMAGE),
        ("{'label': 1 - row['label']}", LABEL),
        ("{'label': int(row['label'])}", LABEL),
        ("{'tokens': row['tokens'] * 2}", TOKENS),
        ("{'photo': row['photo']}", PHOTO),
        ("{'name': row['name'] + '!'}", NAME),
        # other sizes and dtypes: as much of the meaning as stays
        ("{'image': row['image'][:2]}", IMAGE.with_(shape=(2, 5, 3))),
        ("{'image': row['image'] / np.float32(255)}", IMAGE.with_(dtype="float32")),
        ("{'image': row['image'].transpose(2, 0, 1)}", Field("image", "uint8", (3, 4, 5))),
        ("{'photo': row['photo'][:2, :3]}", PHOTO.with_(shape=(2, 3, 3))),
        ("{'photo': row['photo'][:2]}", PHOTO.with_(shape=(2, None, 3))),
        ("{'tokens': np.pad(row['tokens'], (0, 4))[:4]}", TOKENS.with_(shape=(4,))),
        ("{'label': np.float32(row['label'])}", Field("label", "float32")),
        ("{'label': str(row['label'])}", Field("label", "uint8", (None,), "text")),
        ("{'name': np.frombuffer(row['name'].encode(), np.uint8)}", Field("name", "uint8", (None,))),
        # new fields
        ("{'x': 1}", Field("x", "int64")),
        ("{'x': 1.5}", Field("x", "float64")),
        ("{'x': True}", Field("x", "bool")),
        ("{'x': [[1, 2]]}", Field("x", "int64", (1, 2))),
        ("{'x': np.zeros(row['tokens'].size, '>f4')}", Field("x", "float32", (None,))),
        ("{'x': np.zeros((2, row['tokens'].size))}", Field("x", "float64", (2, None))),
        ("{'x': 'text'}", Field("x", "uint8", (None,), "text")),
        ("{'x': np.array('text')}", Field("x", "uint8", (None,), "text")),
        ("{'x': ''}", Field("x", "uint8", (None,), "text")),
        ("{'x': b'abc'}", Field("x", "uint8", (None,), "bytes")),
        ("{'x': b''}", Field("x", "uint8", (None,), "bytes")),
    ],
)
def test_fields_are_learned(code: str, field: Field, write: Write) -> None:
    rows = block()
    step = learned(write(f"def f(row): return {code}"), rows)
    assert step.schema(rows.schema) == Schema((field,))
    done = step(rows)
    done.validate()
    assert done.schema == Schema((field,))


def test_batched_fields_are_learned(write: Write) -> None:
    rows = block()
    code = (
        "@batched\ndef f(c):\n n = len(c['label'])\n return {'fixed': np.zeros((n, 2)),"
        " 'r': Ragged(np.zeros(n), np.arange(n + 1))}"
    )
    step = learned(write(code), rows)
    # rows of one size so far, but a Ragged says that they vary
    assert step.schema(rows.schema) == Schema((Field("fixed", "float64", (2,)), Field("r", "float64", (None,))))
    same = learned(write("@batched\ndef f(c): return c", "same.py"), rows)
    assert same.schema(rows.schema) == rows.schema
    alike(same(rows), rows)
    assert len(same(rows.slice(0, 0))) == 0


@pytest.mark.parametrize(
    ("late", "message"),
    [
        (
            "{'x': np.zeros(3, 'f4'), 's': 'a'}",
            r"field x: expected float32 \(2\), as in the first rows, got float32 \(3\)",
        ),
        ("{'x': np.zeros(2), 's': 'a'}", r"field x: expected float32 \(2\), .*got float64 \(2\)"),
        ("{'x': np.zeros((2, 1), 'f4'), 's': 'a'}", r"expected float32 \(2\), .*got float32 \(2, 1\)"),
        ("{'x': 'b', 's': 'a'}", r"field x: expected float32 \(2\), .*got str"),
        ("{'x': np.zeros(2, 'f4'), 's': 7}", r"field s: expected str, .*got int64 \(\)"),
        ("{'x': np.zeros(2, 'f4'), 's': b'a'}", r"field s: expected str, .*got bytes"),
        ("{'x': None, 's': 'a'}", "field x is None"),
        ("{'x': object(), 's': 'a'}", "Object arrays hold pickles"),
        ("{'x': [[1], [2, 3]], 's': 'a'}", "field x: list is no array"),
        ("{'x': np.zeros(2, 'f4'), 's': chr(0xd800)}", "field s: text that is no Unicode"),
        ("{'x': np.zeros(2, 'f4')}", "expected the fields x, s, as in the first rows: s is missing"),
        ("{'x': np.zeros(2, 'f4'), 's': 'a', 'y': 1}", "'y' is new"),
        ("{}", "without fields"),
        ("{1: 2}", "names must be str"),
        ("7", "returned int: expected a dict of arrays, None, or a list of dicts"),
        ("[{}, 7]", "returned list"),
        ("(x for x in [])", "returned generator"),
    ],
)
def test_a_late_row_that_does_not_fit_is_told(late: str, message: str, write: Write) -> None:
    rows = block(20)
    code = f"def f(row):\n if row['name'] == 'né 17': return {late}\n return {{'x': np.zeros(2, 'f4'), 's': 'a'}}"
    step = learned(write(code), rows)
    with pytest.raises(SchemaError, match=message):
        step(rows)
    with pytest.raises(SchemaError, match=message):
        step(rows.slice(17, 18))
    assert len(step(rows.slice(0, 17))) == 17


@pytest.mark.parametrize(
    ("late", "message"),
    [
        (
            "{'x': np.zeros((n, 3))}",
            r"field x: expected rows of float64 \(2\), as in the first rows, got float64 \(3\)",
        ),
        ("{'x': np.zeros((n, 2), 'f4')}", r"got float32 \(2\)"),
        ("{'x': np.zeros((n + 1, 2))}", rf"expected {20}, got {21}"),
        ("{'x': np.zeros(())}", "expected a column of 20 rows, got ndarray"),
        ("{'x': 5}", "expected a column of 20 rows, got int"),
        ("{'y': np.zeros((n, 2))}", "x is missing"),
        ("[]", "returned list: expected a dict of columns"),
        ("{'x': ['a'] * n}", r"field x: expected float64 \(2\), .*got str"),
    ],
)
def test_late_columns_that_do_not_fit_are_told(late: str, message: str, write: Write) -> None:
    code = f"@batched\ndef f(c):\n n = len(c['label'])\n return {late} if n == 20 else {{'x': np.zeros((n, 2))}}"
    step = learned(write(code))
    with pytest.raises(SchemaError, match=message):
        step(block(20))


def test_a_damaged_ragged_column_is_refused(write: Write) -> None:
    code = (
        "@batched\ndef f(c):\n t = c['tokens']\n bad = len(t) == 20\n"
        " return {'t': Ragged(t.values, t.offsets[::-1] if bad else t.offsets)}"
    )
    step = learned(write(code))
    with pytest.raises(SchemaError, match="field t: offsets must"):
        step(block(20))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "def f(row): return 1 / 0",
            r"--map own.py:f, tried on row 0: ZeroDivisionError: division by zero \(own.py, line 4\)",
        ),
        ("def g(row): return row['imge']\ndef f(row): return g(row)", r"KeyError: 'imge' \(own.py, line 4\)"),
        ("import sys\ndef f(row): sys.exit(4)", r"SystemExit: 4 \(own.py, line 5\)"),
        ("class Panic(BaseException): pass\ndef f(row): raise Panic('rust')", r"Panic: rust \(own.py, line 5\)"),
        ("def f(): pass", "TypeError: f.. takes 0 positional arguments"),
        ("def f(row, other): pass", "TypeError: .*'other'"),
        ("def f(row): return None", r"drops each of the first 24 rows, so that there is no telling what it makes"),
        ("def f(row): return 5", "tried on row 0: returned int: expected a dict"),
        ("def f(row): return {'x': np.array(['a', 'b'])}", "dtype str32 can't be stored"),
        ("def f(row): return {'a/b': 1}", "'a/b' can't be a field name"),
        (
            "def f(row): return {'x': np.random.rand()}",
            "gives something else each time for row 0.\nFor random .* keyword rng",
        ),
        ("N = []\ndef f(row): N.append(1); return {'x': len(N)}", "something else each time"),
        (
            "def f(row): return {'x': 0 if row['label'] else 0.5}",
            r"row 1: field x is int64 \(\), but float64 \(\) in rows before",
        ),
        ("def f(row): return {'x': np.zeros((1,) * (1 + row['label']))}", r"row 1: field x .* number of axes"),
        ("def f(row): return {'a': 1} if row['label'] else {'b': 1}", "row 1: fields a, but b in rows before"),
        ("def f(row, seeds): return row", "a function takes random numbers as rng, not seeds"),
        ("@batched\ndef f(c, rng): return c", "a batched function takes random numbers as seeds, not rng"),
        (
            "@batched\ndef f(c): return {'x': c['label'] - c['label'].mean()}",
            "row 0 alone than together with other rows",
        ),
        (
            "@batched\ndef f(c): return {'x': c['label'].item() + np.zeros(1)}",
            "works on one row, but not on 16 together",
        ),
        ("f = 5", "own.py:f is no function, but int"),
        ("def flip(row): return row\ndef flop(row): return row\nf = None", "unknown function 'f'"),
        ("x = 1", "there is no function in own.py"),
        ("def f(row):\nreturn 1", "own.py:f can't be loaded: own.py, line 5: expected an indented block"),
        ("import no_such_package", r"can't be loaded: own.py, line 4: ModuleNotFoundError: No module named 'no_such"),
        ("raise SystemExit(2)", "can't be loaded: own.py, line 4: SystemExit: 2\nWhat a script does goes under"),
    ],
)
def test_what_is_wrong_with_a_function_is_told_before_anything_is_made(code: str, message: str, write: Write) -> None:
    with pytest.raises((UsageError, SchemaError), match=message) as caught:
        learned(write(code))
    assert str(caught.value).startswith("--map own.py")
    assert str(caught.value).count("\n") <= 2


def test_a_misspelt_function_is_suggested(write: Write) -> None:
    text = write("def brighten(row): return row\ndef darken(row): return row", function="brigten")
    with pytest.raises(
        UsageError, match=r"unknown function 'brigten'. Did you mean 'brighten'\? There are: brighten, darken"
    ):
        learned(text)


def test_bad_rows_among_the_first_do_not_stop_it(write: Write) -> None:
    rows = block()
    step = learned(
        write("def f(row):\n if row['label'] == 0: raise ValueError('even')\n return {'x': row['label']}"), rows
    )
    assert step(rows.slice(1, 2))["x"].tolist() == [1]
    with pytest.raises(InputError, match=r"ValueError: even \(own.py, line 5\)"):
        step(rows)
    with pytest.raises(UsageError, match="no row reaches it"):
        Map.parse(write("def f(row): return row")).learn([])


def test_memory_errors_are_not_the_rows_fault(write: Write) -> None:
    with pytest.raises(MemoryError):
        learned(write("def f(row): raise MemoryError"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("own.py", "expected FILE.py:FUNCTION or MODULE:FUNCTION"),
        ("own.py:", "expected FILE.py:FUNCTION"),
        (":f", "expected FILE.py:FUNCTION"),
        ("own.py:f()", "expected FILE.py:FUNCTION"),
        ("../up:f", "expected FILE.py:FUNCTION"),
        ("no/such.py:f", "no/such.py: no such file"),
        ("no_such_module:f", "there is no module no_such_module, neither installed nor in"),
        ("no_such.module:f", "module no_such.module can't be found: ModuleNotFoundError"),
        ("sys:exit", "module sys has no file"),
        (len, "not builtin_function_or_method: worker processes"),
    ],
)
def test_what_can_not_be_found(text: Any, message: str) -> None:
    for step in (Map, Filter):
        with pytest.raises(UsageError, match=message) as caught:
            step.parse(text)
        assert str(caught.value).startswith(f"--{step.name}")
    with pytest.raises(UsageError, match="--seed -1"):
        Map.parse("json:dumps", seed=-1)


# -- random numbers ----------------------------------------------------------------------------------------------------


def test_seeds_are_those_of_every_version(write: Write) -> None:
    """Numbers that stores were made with: they never change."""
    step = learned(write("def f(row, rng): return {'x': rng.integers(0, 10**9)}"), seed=3, number=2)
    rows = block(7)
    assert rows.origin is not None
    seeds = step.seeds(rows).tolist()
    assert seeds[0] == 15511488946088954004
    assert seeds == [splitmix(splitmix(splitmix(3, 2), int(file)), int(row)) for file, row in rows.origin]
    assert step(rows)["x"].tolist() == [np.random.Generator(np.random.PCG64(s)).integers(0, 10**9) for s in seeds]


def splitmix(seed: int, part: int) -> int:
    """One number more is mixed in, in Python's own integers."""

    def mixed(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    return mixed(seed ^ mixed(part))


def test_seeds_differ_by_row_step_and_seed(write: Write) -> None:
    text = write("def f(row, rng): return {'x': rng.random()}")
    rows = block(24)
    drawn = [learned(text, rows, seed=seed, number=n)(rows)["x"] for seed in (0, 1, 2**64 - 1) for n in (0, 1)]
    assert len(np.unique(np.concatenate(drawn))) == 6 * 24
    grid = np.stack(np.meshgrid(np.arange(300), np.arange(300)), axis=-1).reshape(-1, 2)
    step = learned(text, rows)
    label = Schema((LABEL,))
    seeds = step.seeds(Block(label, {"label": np.zeros(len(grid), np.int64)}, grid))
    assert len(np.unique(seeds)) == len(grid)
    with pytest.raises(SchemaError, match="rows that know their origin"):
        step(Block(rows.schema, rows.columns))


def test_the_seed_is_part_of_the_recipe_only_where_it_matters(write: Write) -> None:
    plain, random = write("def f(row): return row", "a.py"), write("def f(row, rng): return row", "b.py")
    assert config(learned(plain, seed=1)) == config(learned(plain, seed=2))
    assert config(learned(random, seed=1)) == {**config(learned(random, seed=2)), "seed": 1}


# -- found again -------------------------------------------------------------------------------------------------------


def test_the_recipe_has_the_code_and_nothing_of_the_machine(write: Write, tmp_path: Path) -> None:
    text = write("def f(row): return row")
    first = config(learned(text))
    assert set(first) == {"step", "file", "function", "sha256"}
    assert (first["step"], first["file"], first["function"]) == ("map", "own.py", "f")
    assert str(tmp_path) not in json.dumps(first)
    assert config(learned(write("def f(row): return dict(row)"))) != first
    write("def f(row): return row")
    assert config(learned(text)) == first
    assert config(Filter.parse(text))["step"] == "filter"


def test_workers_run_what_was_hashed(write: Write) -> None:
    rows = block()
    text = write("def f(row): return {'x': 1}")
    step = learned(text, rows)
    write("def f(row): return {'x': 2}")
    assert in_a_spawned_process(step, rows)["x"].tolist() == [1] * 24
    Path(text.rpartition(":")[0]).unlink()
    assert in_a_spawned_process(step, rows)["x"].tolist() == [1] * 24
    assert learned(write("def f(row): return {'x': 2}"), rows)(rows)["x"].tolist() == [2] * 24


def test_random_rows_are_the_same_in_another_process(write: Write) -> None:
    rows = block()
    step = learned(write(ROW_BY_ROW["random"]), rows, seed=9)
    alike(in_a_spawned_process(step, rows), step(rows))


def in_a_spawned_process(step: UserStep, rows: Block) -> Block:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(step, (rows,))  # type: ignore[arg-type]


def test_a_file_may_import_its_neighbours_and_be_called_anything(write: Write, tmp_path: Path) -> None:
    (tmp_path / "near_by_bigconv.py").write_text("FACTOR = 3\n")
    code = (
        "from dataclasses import dataclass\nfrom near_by_bigconv import FACTOR\n@dataclass\nclass C:\n x: int\n"
        "def f(row): return {'x': C(FACTOR * int(row['label'])).x,"
        " 'main': __name__ == '__main__', 'file': __file__[-7:]}"
    )
    done = learned(write(code, "json.py"))(block(2))
    assert done["x"].tolist() == [0, 3]
    assert done.row(0)["main"] == np.False_
    assert done.row(0)["file"] == "json.py"
    assert Path(json.__file__).parent.name == "json"  # Python's own is still itself


def test_functions_of_a_module(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "own_package_bigconv"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "steps.py").write_text("def f(row): return {'x': 1}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rows = block()
    step = learned("own_package_bigconv.steps:f", rows)
    assert config(step)["module"] == "own_package_bigconv.steps"
    assert str(tmp_path) not in json.dumps(config(step))
    monkeypatch.chdir("/")
    assert in_a_spawned_process(step, rows)["x"].tolist() == [1] * 24
    (folder / "steps.py").write_text("def f(row): return {'x': 2}\n")
    with pytest.raises(UsageError, match="has changed since the conversion began"):
        in_a_spawned_process(step, rows)


# -- filter ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "def f(row): return row['tokens'].size > 1",
        "def f(row): return np.bool_(row['tokens'].size > 1)",
        "def f(row): return (row['tokens'] > 0).any()",
        "@batched\ndef f(c): return c['tokens'].lengths > 1",
        "@batched\ndef f(c): return [n > 1 for n in c['tokens'].lengths.tolist()]",
    ],
)
def test_filter_keeps_rows_as_they_are(code: str, write: Write) -> None:
    rows = block()
    step = Filter.parse(write(code)).learn(sample(rows))
    assert step.schema(rows.schema) == rows.schema
    kept = step(rows)
    alike(kept, rows.take(np.flatnonzero(np.arange(24) % 4 > 1)))
    alike(Block.concat([step(rows.slice(i, i + 1)) for i in range(24)]), kept)
    assert len(step(rows.slice(0, 0))) == 0
    assert len(step(rows.slice(0, 2))) == 0


def test_a_filter_that_keeps_all_copies_nothing(write: Write) -> None:
    rows = block()
    assert Filter.parse(write("def f(row): row['image'][:] = 0; return True")).learn(sample(rows))(rows) is rows
    assert rows["image"].any()


def test_a_random_filter_is_pure(write: Write) -> None:
    rows = block()
    text = write("def f(row, rng): return rng.random() < 0.5")
    step = Filter.parse(text, seed=1).learn(sample(rows))
    kept = step(rows)
    assert 0 < len(kept) < 24
    alike(Block.concat([step(rows.slice(0, 7)), step(rows.slice(7, 24))]), kept)
    assert config(step)["seed"] == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(row): return 1", "tried on row 0: returned int: expected True or False"),
        ("def f(row): return None", "returned NoneType: expected True or False"),
        ("def f(row): return row['image'] > 3", "returned ndarray: expected True or False"),
        ("def f(row): return row['lable']", r"KeyError: 'lable' \(own.py, line 4\)"),
        ("@batched\ndef f(c): return True", r"expected bool \(1\), one a row, got bool \(\)"),
        ("@batched\ndef f(c): return c['label']", r"expected bool \(1\), one a row, got int64 \(1,\)"),
        (
            "def f(row): return bool(np.random.rand() < 0.5) if N.append(1) else len(N) % 2 == 0\nN = []",
            "something else each",
        ),
        ("@batched\ndef f(c): return c['label'] >= c['label'].max()", "alone than together"),
    ],
)
def test_what_is_wrong_with_a_filter_is_told(code: str, message: str, write: Write) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Filter.parse(write(code)).learn(sample(block()))
    assert str(caught.value).startswith("--filter own.py:f")
