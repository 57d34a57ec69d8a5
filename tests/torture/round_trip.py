"""Round trips by Hypothesis, bit by bit: dtypes, byte orders, strings, NaN payloads, shapes, stores, codecs, chunks,
workers; and a machine that converts, is killed, resumes, appends, retries and verifies at will, held against the memory
store.
"""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bigconv import fsio, registry
from bigconv.block import Block, Ragged
from bigconv.conversion.plan import Plan
from bigconv.conversion.request import Request
from bigconv.conversion.run import Policy, execute
from bigconv.errors import BigconvError, FindingsError, InputError, StoreError, UsageError
from bigconv.schema import DTYPES, Field, Schema
from bigconv.stores.base import Store, configured
from bigconv.stores.memory import Memory
from bigconv.testing import cases
from bigconv.testing.given import Given
from bigconv.testing.store_suite import write as hold
from bigconv.view.opening import Opened, open_store
from bigconv.view.report import verify
from bigconv.view.table import StoreView
from tests.torture import Case, _child
from tests.torture._runs import SUFFIXES, checkpoints_everywhere, workspace

EXAMPLES = 20_000  # at scale 1: three quarters are blocks, the rest files of arrays
MACHINES = 300
STEPS = 12  # of a machine
PARALLEL = 25  # one in so many runs has worker processes: they take long to start
QUIET: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "derandomize": False,
    "print_blob": False,
    "verbosity": Verbosity.quiet,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.generate, Phase.shrink),
}


def run(scale: float) -> Iterator[Case]:
    with workspace() as root:
        yield from _tried("blocks", _blocks(root, max(20, round(EXAMPLES * scale * 3 / 4))))
        yield from _tried("files", _files(root, max(20, round(EXAMPLES * scale / 4))))
        yield from _tried("machine", _machines(root, max(2, round(MACHINES * scale))))


def _tried(name: str, examples: Iterator[int]) -> Iterator[Case]:
    """A case an example; when one fails, Hypothesis has made it small, and it is the last."""
    number = 0
    try:
        for number in examples:
            for i in range(number):
                yield Case(f"{name} {i}")
    except BaseException as error:  # noqa: BLE001  a failure of any sort
        yield Case(name, f"{type(error).__name__}: {error!s:.500} {' '.join(getattr(error, '__notes__', []))[:1500]}")


# -- blocks through all stores -------------------------------------------------------------------------------------

SIZES = st.integers(0, 4)


@st.composite
def fields(draw: st.DrawFn, name: str) -> Field:
    kind = draw(st.sampled_from(["fixed", "fixed", "ragged", "shapes", "text"]))
    if kind == "text":
        return Field(name, "uint8", (None,), "text")
    dtype = draw(st.sampled_from(DTYPES))
    shape: list[int | None] = list(draw(st.lists(SIZES, max_size=3)))
    if kind == "ragged":
        shape = [None, *(n or 1 for n in shape[:1] if n is not None)]
    elif kind == "shapes":
        shape = draw(st.permutations([None, None, *shape[:1]]))
    return Field(name, dtype, tuple(shape))


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    names = draw(st.lists(st.sampled_from(["x", "y", "größe", "a b", "x.y"]), min_size=1, max_size=3, unique=True))
    schema = Schema(tuple(draw(fields(name)) for name in names))
    rows = draw(st.integers(0, 12))
    return cases.block(schema, rows, draw(st.integers(0, 2**31)))


@st.composite
def stores(draw: st.DrawFn) -> tuple[str, Store]:
    """A suffix, and its store with a codec and rows a chunk where it takes them."""
    suffix = draw(st.sampled_from(SUFFIXES))
    codecs = st.sampled_from(["none", "none", "lz4", "zstd", "zstd:9"])
    options: dict[str, Any] = {} if suffix == ".mmap" else {"compress": draw(codecs)}
    if suffix == ".zarr" or (suffix == ".h5" and options["compress"] != "none"):
        options["chunk"] = draw(st.sampled_from([None, 1, 3, 8]))
    return suffix, configured(registry.load("store", registry.store_for(Path(f"x{suffix}"))), options)


def _blocks(root: Path, examples: int) -> Iterator[int]:
    numbers = itertools.count()

    @seed(1)
    @settings(max_examples=examples, **QUIET)
    @given(blocks(), stores(), st.integers(1, 13), st.booleans(), st.sampled_from([0, 0, 0, 1, 2]))
    def round_trip(block: Block, into: tuple[str, Store], step: int, announce: bool, workers: int) -> None:
        number, (suffix, store) = next(numbers), into
        path = root / f"blocks{number}{suffix}"
        source = Given(block, step, announce)
        plan = Plan(source, (), block.schema, source.plan(), store)
        policy = Policy(workers if number % PARALLEL == 0 else 0, start_method="fork")
        try:
            manifest = execute(plan, path, policy).manifest
            there(path, block)
            held = hold(root / "oracle", Memory(), block, max(1, len(block)))
            assert manifest.content_digest == held.content_digest
        except UsageError as error:  # LMDB's records count bytes
            assert "no bytes" in str(error) or suffix == ".lmdb", error
        except BigconvError as error:
            assert "its items have none" in str(error), error
            assert suffix == ".lmdb"
        finally:
            fsio.remove(path)

    round_trip()
    yield next(numbers)


def there(path: Path, block: Block) -> None:
    """Bit by bit, by the gather engine and by the store's own library, and proven."""
    opened = open_store(path)
    view = StoreView.of([opened])
    rows = np.arange(len(block))
    assert cases.same_block(view.take(rows), block)
    assert cases.same_block(view.take(rows[::-1]), block.take(rows[::-1]))
    reader = opened.store.open(path, block.schema, len(block))
    assert cases.same_block(reader.take(rows, block.schema.names), block)
    reader.close()
    view.close()
    assert verify(opened) == []


# -- arrays as numpy saves them -----------------------------------------------------------------------------------

DESCRS = [np.dtype(name).newbyteorder(order) for name in DTYPES for order in "<>"]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    rows = draw(st.integers(0, 6))
    if draw(st.integers(0, 5)) == 0:
        kind = draw(st.sampled_from("US"))
        alphabet = st.characters(max_codepoint=127 if kind == "S" else None, exclude_categories=["Cs"])
        words = draw(st.lists(st.text(alphabet, max_size=6), min_size=rows, max_size=rows))
        words = [w.rstrip("\0") for w in words]
        return np.array([w.encode() for w in words] if kind == "S" else words, f"{kind}6")
    dtype = draw(st.sampled_from(DESCRS))
    shape = () if draw(st.integers(0, 20)) == 0 else (rows, *draw(st.lists(SIZES, max_size=2)))
    raw = cases.values(dtype.newbyteorder("=").name, shape, np.random.default_rng(draw(st.integers(0, 2**31))))
    array = raw.astype(dtype) if dtype.byteorder == "=" else raw.byteswap().view(dtype)
    return np.asfortranarray(array) if draw(st.booleans()) else array


def _files(root: Path, examples: int) -> Iterator[int]:
    numbers = itertools.count()

    @seed(2)
    @settings(max_examples=examples, **QUIET)
    @given(arrays(), st.sampled_from(SUFFIXES))
    def round_trip(array: np.ndarray[Any, Any], suffix: str) -> None:
        number = next(numbers)
        file, path = root / "x.npy", root / f"files{number}{suffix}"
        np.save(file, array)
        try:
            Request((file,), path, policy=Policy(0)).run()
        except (InputError, FindingsError, UsageError) as error:
            assert array.ndim == 0 or len(array) == 0, error  # a number is no row, and no row is no data
            assert not path.exists()
            return
        try:
            view = StoreView([path])
            if array.dtype.kind in "US":
                text = [s if isinstance(s, str) else s.decode() for s in array.tolist()]
                assert [row["x"] for row in view] == text
            else:
                expected = np.ascontiguousarray(array).reshape(array.shape)
                if array.dtype.byteorder == ">":  # by bytes, so that no NaN is touched
                    expected = expected.byteswap().view(array.dtype.newbyteorder("<"))
                assert cases.same(view[:]["x"], expected)
            view.close()
            assert verify(open_store(path)) == []
        finally:
            fsio.remove(path)

    round_trip()
    yield next(numbers)


# -- the machine ---------------------------------------------------------------------------------------------------

SAMPLE = Schema((Field("array", "int32", (None,)),))


def _machines(root: Path, machines: int) -> Iterator[int]:
    numbers = itertools.count()

    class Machine(RuleBasedStateMachine):
        """A folder of one array a file, some of them broken, and one destination; `rows`: what a reader must see."""

        @initialize(suffix=st.sampled_from(SUFFIXES))
        def begin(self, suffix: str) -> None:
            next(numbers)
            self.place = Path(tempfile.mkdtemp(dir=root))
            self.raw, self.dest = self.place / "raw", self.place / f"out{suffix}"
            self.raw.mkdir()
            self.files: dict[str, np.ndarray[Any, Any] | None] = {}  # None: broken
            self.made: list[str] | None = None  # files whose rows are published, in order
            self.seen: list[str] = []  # files that there were when it was published, broken ones among them
            self.dirty = False  # unfinished work of another plan may lie about
            self.save("000.npy", np.array([7, 7], np.int32))  # so that there is something to tell the fields from
            self.save("0000.npy", np.array([7], np.int32))

        def teardown(self) -> None:
            if hasattr(self, "place"):
                fsio.remove(self.place)

        def save(self, name: str, value: np.ndarray[Any, Any] | None) -> None:
            self.files[name] = value
            if value is None:
                (self.raw / name).write_bytes(b"\x93NUMPY\x01\x00broken")
            else:
                np.save(self.raw / name, value)

        @rule(values=st.lists(st.one_of(st.none(), st.lists(st.integers(-5, 5), max_size=4)), min_size=1, max_size=9))
        def add(self, values: list[list[int] | None]) -> None:
            for value in values:
                name = f"{len(self.files):03}.npy"
                self.save(name, None if value is None else np.array(value, np.int32))

        @rule(kill=st.one_of(st.none(), st.integers(1, 150)), how=st.sampled_from(["overwrite", "append", "retry"]))
        def convert(self, kill: int | None, how: str) -> None:
            self.attempt(how, kill)

        @precondition(lambda self: any(value is None for value in self.files.values()))
        @rule(data=st.data(), value=st.lists(st.integers(-5, 5), max_size=4))
        def mend(self, data: st.DataObject, value: list[int]) -> None:
            broken = [name for name, found in self.files.items() if found is None]
            self.save(data.draw(st.sampled_from(broken)), np.array(value, np.int32))

        def attempt(self, how: str, kill: int | None) -> None:
            names = sorted(self.files, key=str.encode)
            good = [name for name in names if self.files[name] is not None]
            new = [name for name in names if name not in self.seen]
            options = {"overwrite": how == "overwrite", "append": how == "append", "retry_rejects": how == "retry"}
            policy = Policy(0, max_rejects="100%", restart=True)
            request = Request((self.raw,), self.dest, policy=policy, **options)
            if how == "overwrite":
                after = good
            elif self.made is None:
                return
            elif how == "append":
                after = self.made + [name for name in new if name in good]
            else:
                if new:
                    return
                after = good
            if kill is not None:
                ended = _child.run(lambda: _until(request, kill))
                assert ended in (0, 7, 2, 1, -signal.SIGKILL), ended
                if ended == 2:
                    return
                if ended == -signal.SIGKILL and self.rows_there() == self.content(self.made):
                    self.attempt(how, None)  # what was killed is done again
                    return
            else:
                try:
                    request.run()
                except (UsageError, BigconvError) as error:
                    # an append of nothing good, or of files that were mended meanwhile, is refused: nothing changes
                    assert how != "overwrite", error
                    return
            if self.rows_there() != self.content(self.made) or how == "overwrite":
                self.made, self.seen = after, names

        def content(self, names: list[str] | None) -> list[list[int]] | None:
            return None if names is None else [self.rows[name] for name in names]

        @property
        def rows(self) -> dict[str, list[int]]:
            return {name: value.tolist() for name, value in self.files.items() if value is not None}

        def rows_there(self) -> list[list[int]] | None:
            try:
                view = StoreView([self.dest])
            except StoreError:
                return None
            found = [np.asarray(row["array"]).tolist() for row in view]
            view.close()
            return found

        @invariant()
        def a_reader_sees_all_or_nothing(self) -> None:
            if not hasattr(self, "made"):
                return
            expected = self.content(self.made)
            assert self.rows_there() == expected
            if expected is None:
                return
            opened = open_store(self.dest)
            assert verify(opened) == []
            cells = [np.array(row, np.int32) for row in expected]
            block = Block(SAMPLE, {"array": Ragged.of(cells, opened.manifest.schema["array"])})
            held = hold(self.place / "oracle", Memory(), block, max(1, len(block)))
            assert opened.manifest.content_digest == held.content_digest
            memory = StoreView.of([Opened(self.place / "oracle", Memory(), held)])
            assert cases.same_block(memory[:], StoreView([self.dest])[:])

    with checkpoints_everywhere():
        run_state_machine_as_test(Machine, settings=settings(max_examples=machines, stateful_step_count=STEPS, **QUIET))
    yield next(numbers)


def _until(request: Request, kill: int) -> None:
    """In a child: run, and be killed at the durable operation of that number."""
    left = [kill]

    def deadly(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    for name in ("write", "pwrite", "fsync", "replace", "rename", "unlink", "mkdir", "copy_file_range", "ftruncate"):
        setattr(os, name, deadly(getattr(os, name)))
    try:
        request.run()
    except BigconvError as error:
        raise SystemExit(2) from error
