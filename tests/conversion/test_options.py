"""From what a user typed to steps: order, functions tried in a process of their own, and recipes replayed."""

from __future__ import annotations

import json
import os
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigconv.block import Block
from bigconv.conversion import apart, options, pool
from bigconv.conversion.options import find_source, make_steps, replay
from bigconv.conversion.plan import Plan
from bigconv.conversion.run import Policy, execute
from bigconv.errors import FindingsError, SchemaError, UsageError
from bigconv.schema import Field, Schema
from bigconv.stores.memmap import Memmap
from bigconv.testing.given import Given
from bigconv.transforms.base import config
from bigconv.view.table import open_view
from tests.warm import Warm

FUNCTIONS = """
import os, sys, time
import numpy as np
def double(row): return {**row, "label": row["label"] * 2}
def keep_big(row): return row["label"] >= 30
def keep_none(row): return False
def jitter(row, rng): return {**row, "noise": rng.random(), "again": rng.random()}
def repeat(row): return [row] * int(row["label"] % 3)
def bad(row): raise ValueError("on purpose")
def leaves(row): os._exit(7)
def segfault(row): os.kill(os.getpid(), 11)
def sleeps(row): time.sleep(60)
def leaves_later(row): return os._exit(7) if row["label"] == 33 else row
def sleeps_later(row): time.sleep(60 if row["label"] == 33 else 0); return row
def prints(row): print("noise"); return row
def bad_later(row):
    if row["label"] == 33: raise ValueError("thirty-three")
    if row["label"] == 31: return {**row, "label": 0.5}
    return row
def whence(row):
    with open(os.environ["OWN_NOTE"], "w") as file:
        file.write(f"{os.getpid()} {os.getppid()} {int('bigconv.sources.images' in sys.modules)}")
    print("from a function")
    return row
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `own.py` that is the current one."""
    (tmp_path / "own.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture(params=["forkserver", "spawn"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """The process number of a fork server that is running; None: there is none."""
    if request.param == "spawn":
        monkeypatch.setattr(apart, "serving", lambda: False)
        return None
    if pool.best_method() != "forkserver":
        pytest.skip("no fork server on this system")
    assert pool.serving()  # that of all tests
    return forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined,no-any-return]


def source(rows: int = 40, step: int = 7) -> Given:
    image = Field("image", "uint8", (2, 2, 3), kind="image", layout="hwc")
    label = Field("label", "int64", (), kind="label")
    images = np.random.default_rng(0).integers(0, 256, (rows, 2, 2, 3), np.uint8)
    return Given(Block(Schema((image, label)), {"image": images, "label": np.arange(rows)}), step)


def convert(steps: list[tuple[str, str]], dest: Path, rejects: int = 0, workers: int = 0, **more: Any) -> Any:
    given = source()
    made, schema = make_steps(given, steps, "cover", **more)
    plan = Plan(given, tuple(made), schema, given.plan(), Memmap())
    return execute(plan, dest, Policy(workers, max_rejects=str(rejects), timeout=20)).manifest


def test_steps_in_the_order_given_and_images_in_chw() -> None:
    made, schema = make_steps(source(), [("normalize", "unit"), ("crop", "1x2"), ("dtype", "float16")], "cover")
    assert [step.name for step in made] == ["normalize", "crop", "dtype", "layout"]
    assert schema["image"] == Field("image", "float16", (3, 1, 2), kind="image", layout="chw")
    made, schema = make_steps(source(), [("layout", "hwc")], "cover")
    assert [step.name for step in made] == ["layout"]
    with pytest.raises(UsageError, match=r"unknown step 'corp'. Did you mean 'crop'"):
        make_steps(source(), [("corp", "1")], "cover")
    with pytest.raises(SchemaError, match="--crop 9x9 needs 9x9 pixels, the image has 2x2"):
        make_steps(source(), [("crop", "9")], "cover")


def test_functions_learn_behind_the_steps_before_them() -> None:
    steps = [("map", "own.py:double"), ("filter", "own.py:keep_big"), ("map", "own.py:jitter"), ("normalize", "unit")]
    made, schema = make_steps(source(), steps, "cover", seed=4)
    assert schema.names == ("image", "label", "noise", "again")
    assert schema["image"] == Field("image", "float32", (3, 2, 2), kind="image", layout="chw")
    assert config(made[2])["seed"] == 4
    with pytest.raises(UsageError, match=r"--map own.py:double: no row reaches it: earlier steps drop or fail"):
        make_steps(source(), [("filter", "own.py:keep_none"), ("map", "own.py:double")], "cover")
    with pytest.raises(UsageError, match=r"--map own.py:bad, tried on row 0: ValueError: on purpose"):
        make_steps(source(), [("map", "own.py:bad")], "cover")


def test_apart_or_not_makes_no_difference() -> None:
    steps = [("filter", "own.py:keep_big"), ("map", "own.py:repeat")]
    assert make_steps(source(), steps, "cover") == make_steps(source(), steps, "cover", isolated=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("leaves", "--map own.py:leaves: trying it on row 0: the process ended with exit code 7"),
        ("segfault", "--map own.py:segfault: trying it on row 0: the process crashed .SIGSEGV."),
        ("sleeps", r"--map own.py:sleeps: trying it on row 0: took longer than 0.3 s \(--timeout\)"),
        ("dobule", "Did you mean 'double'"),
    ],
)
def test_a_function_that_ends_or_holds_the_process(server: int | None, name: str, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(UsageError, match=message):
        make_steps(source(), [("map", f"own.py:{name}")], "cover", timeout=0.3)
    assert time.monotonic() - start < 20


def test_where_a_function_is_tried(
    server: int | None, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Forked from the server that makes workers, where there is one, with the environment as it is now; else started
    anew. The next one is tried there too, whatever the first did."""
    monkeypatch.setenv("OWN_NOTE", str(here / "note"))  # the server has been started without it
    with pytest.raises(UsageError, match="exit code 7"):
        make_steps(source(), [("map", "own.py:leaves")], "cover")
    made, schema = make_steps(source(), [("map", "own.py:whence"), ("map", "own.py:double")], "cover")
    assert [step.name for step in made] == ["map", "map", "layout"]
    assert schema.names == ("image", "label")
    own, parent, preloaded = map(int, (here / "note").read_text().split())
    assert own != os.getpid()
    assert parent == (os.getpid() if server is None else server)
    assert preloaded == (server is not None)  # what the server had imported, nobody imports again
    told = capfd.readouterr()
    assert told.out == ""
    assert server is not None or "from a function" in told.err  # a server's messages go where its own began to


def test_what_a_function_prints_is_not_the_commands_result(here: Path, warm: Warm) -> None:
    np.save("x.npy", np.arange(4))
    done = warm.command(["convert", "x.npy", "out.h5", "--map", "own.py:prints", "--json"], here)
    assert json.loads(done.stdout)["rows"] == 4
    assert "noise" in done.stderr


def test_rows_are_read_only_until_enough_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Counting(Given):
        def read(self, span: Any) -> Any:
            read.append(len(span))
            yield from super().read(span)

    rows = source(10_000, 5_000).block
    make_steps(Counting(rows, 5_000), [("map", "own.py:double")], "cover", isolated=False)
    assert sum(read) <= 2 * 16
    read.clear()
    monkeypatch.setattr(options, "LOOK_AT_ROWS", 100)
    with pytest.raises(UsageError, match=r"--map own.py:nothing: drops each of the first 100 rows"):
        Path("own.py").write_text("def nothing(row): return None")
        make_steps(Counting(rows, 5_000), [("map", "own.py:nothing")], "cover", isolated=False)
    assert sum(read) <= 112


def test_bad_inputs_among_the_first_are_passed_over() -> None:
    class Bad(Given):
        def read(self, span: Any) -> Any:
            from bigconv.sources.base import Reject, Span

            for i in range(span.start, span.stop):
                if i % 2:
                    yield from super().read(Span(i, i + 1))
                else:
                    yield Reject("given", i, "read", "even")

    made, schema = make_steps(Bad(source().block, 40), [("map", "own.py:double")], "cover", isolated=False)
    assert schema.names == ("image", "label")
    assert len(made) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_that_do_not_fit_become_rejects_and_the_others_stay(workers: int, here: Path) -> None:
    steps = [("map", "own.py:bad_later"), ("map", "own.py:repeat"), ("map", "own.py:jitter")]
    with pytest.raises(FindingsError, match="2 of 40 inputs"):
        convert(steps, here / "a.mmap", workers=workers)
    assert not (here / "a.mmap").exists()
    manifest = convert(steps, here / "a.mmap", rejects=2, workers=workers)
    expected = [n for n in range(40) for _ in range(n % 3) if n not in (31, 33)]
    with open_view(here / "a.mmap") as view:
        np.testing.assert_array_equal(view[:]["label"], expected)
        noise = view[:]["noise"]
    assert manifest.rows == len(expected)
    told = [json.loads(line) for line in (here / "a.mmap.rejects.jsonl").read_text().splitlines()]
    assert [(t["row"], t["stage"]) for t in told] == [(31, "map"), (33, "map")]
    assert told[0]["error"] == "field label: expected int64 (), as in the first rows, got float64 ()"
    assert told[1]["error"] == "ValueError: thirty-three (own.py, line 17)"
    assert len(np.unique(noise)) == len(set(expected))  # repeated rows share their seed


@pytest.mark.parametrize(("name", "why"), [("leaves_later", "exit code 7"), ("sleeps_later", "took longer than 1 s")])
def test_a_function_that_ends_or_holds_a_worker_costs_one_row(name: str, why: str, here: Path) -> None:
    np.save(here / "label.npy", np.arange(40))
    given = find_source([here / "label.npy"], None, {})
    made, schema = make_steps(given, [("map", f"own.py:{name}")], "cover")
    plan = Plan(given, tuple(made), schema, given.plan(), Memmap())
    with pytest.raises(FindingsError, match=why):
        execute(plan, here / "a.mmap", Policy(1, timeout=1))
    assert not (here / "a.mmap").exists()
    assert execute(plan, here / "a.mmap", Policy(1, timeout=1, max_rejects="1")).manifest.rows == 39
    told = json.loads((here / "a.mmap.rejects.jsonl").read_text())
    assert (told["path"], told["row"]) == ("label.npy", 33)


def test_the_bytes_do_not_depend_on_workers(here: Path) -> None:
    steps = [("map", "own.py:repeat"), ("map", "own.py:jitter")]
    one = convert(steps, here / "one.mmap", workers=0, seed=3, isolated=False)
    two = convert(steps, here / "two.mmap", workers=2, seed=3)
    other = convert(steps, here / "other.mmap", seed=4)
    assert one.content_digest == two.content_digest != other.content_digest
    assert one.plan == two.plan != other.plan


def test_another_file_is_another_plan(here: Path) -> None:
    def hashed() -> str:
        given = source()
        made, schema = make_steps(given, [("map", "own.py:double")], "cover")
        return Plan(given, tuple(made), schema, given.plan(), Memmap()).hash

    first = hashed()
    (here / "own.py").write_text(FUNCTIONS + "# a remark\n")
    assert hashed() != first
    (here / "own.py").write_text(FUNCTIONS)
    assert hashed() == first


# -- recipes -----------------------------------------------------------------------------------------------------------

ALL = [
    ("resize", "4x5,contain,pillow"),
    ("crop", "3x3+0+1"),
    ("map", "own.py:double"),
    ("filter", "own.py:keep_big"),
    ("map", "own.py:jitter"),
    ("normalize", "0.5/0.25"),
    ("dtype", "float16"),
]


def recipe_of(steps: list[tuple[str, str]], **more: Any) -> dict[str, Any]:
    given = source()
    made, schema = make_steps(given, steps, "cover", **more)
    plan = Plan(given, tuple(made), schema, given.plan(), Memmap(), 30)
    return json.loads(json.dumps(plan.recipe()))


def test_a_recipe_makes_itself_again(here: Path) -> None:
    recipe = recipe_of(ALL, seed=2**60 + 1)
    assert str(here) not in json.dumps(recipe)
    again = replay(recipe)
    assert again["steps"] == (*ALL[:5], ("normalize", "0.5/0.25"), ("dtype", "float16"), ("layout", "chw"))
    assert (again["from_"], again["to"], again["seed"], again["limit"]) == ("given", "memmap", 2**60 + 1, 30)
    assert recipe_of(list(again["steps"]), seed=again["seed"]) == recipe


def test_a_recipe_needs_the_same_functions(here: Path) -> None:
    recipe = recipe_of([("map", "own.py:double")])
    sha = recipe["steps"][0]["sha256"]
    (here / "own.py").write_text(FUNCTIONS + "\n")
    with pytest.raises(
        UsageError, match=rf"--map own.py:double needs own.py with SHA-256 {sha}.\nThe one here, .*own.py, has"
    ):
        replay(recipe)
    (here / "own.py").unlink()
    with pytest.raises(UsageError, match=rf"needs own.py with SHA-256 {sha}, which is not in {here}"):
        replay(recipe)
    module = {"step": "map", "module": "no_such_module_bigconv", "function": "f", "sha256": sha}
    with pytest.raises(
        UsageError, match=rf"needs no_such_module_bigconv with SHA-256 {sha}, which can't be imported here"
    ):
        replay({**recipe, "steps": [module]})


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../own.py"},
        {"file": "/etc/own.py"},
        {"file": "a\\own.py"},
        {"file": "own"},
        {"module": "own.py"},
        {"file": None},
        {"function": "__import__('os')"},
        {"later": 1},
        {"seed": "x"},
        {"seed": -1},
    ],
)
def test_a_recipe_names_no_other_file(change: dict[str, Any]) -> None:
    recipe = recipe_of([("map", "own.py:jitter")])
    replay(recipe)
    recipe["steps"][0].update(change)
    with pytest.raises(UsageError):
        replay(recipe)


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"steps": 5},
        {"steps": [5]},
        {"steps": [{}]},
        {"steps": [{"step": "resize"}], "from": "images", "to": "hdf5"},
        {"steps": [{"step": "crop", "height": "a", "width": 1, "top": None, "left": None}], "from": "a", "to": "b"},
        {"steps": [{"step": "layout", "layout": "chw", "more": 1}], "from": "images", "to": "hdf5"},
        {"steps": [{"step": "normalize", "mean": 5, "std": 5}], "from": "images", "to": "hdf5"},
        {"steps": [{"step": "later"}], "from": "images", "to": "hdf5"},
        {"steps": [], "from": "images"},
        {"steps": [], "from": "images", "to": "hdf5", "limit": "many"},
    ],
)
def test_what_is_no_recipe(recipe: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"--recipe|unknown|--resize"):
        replay(recipe)


def test_a_recipe_of_two_seeds() -> None:
    recipe = recipe_of([("map", "own.py:jitter"), ("filter", "own.py:keep_big")])
    recipe["steps"].append({**recipe["steps"][0], "seed": 9})
    with pytest.raises(UsageError, match=r"steps with different seeds \(0, 9\)"):
        replay(recipe)


def test_nothing_learned_is_no_step() -> None:
    from bigconv.transforms.map import Map

    with pytest.raises(UsageError, match="not known before `learn`"):
        Map.parse("own.py:double").schema(source().schema)


def test_schema_errors_reach_the_user_as_they_are() -> None:
    Path("mixed.py").write_text("def f(row): return {'x': 1 if row['label'] else 1.0}")
    with pytest.raises(SchemaError, match=r"--map mixed.py:f: row 1: field x is int64 \(\), but float64 \(\)"):
        make_steps(source(), [("map", "mixed.py:f")], "cover")
