"""Steps that run a user's function: how it is called, given random numbers, and tried before the conversion."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from bigconv.block import Block, Ragged
from bigconv.errors import BigconvError, InputError, SchemaError, UsageError
from bigconv.transforms.batched import is_batched
from bigconv.transforms.function import Function
from bigconv.transforms.made import Row, same

LEARN_ROWS = 16  # rows that tell the fields of what a function makes
Seeds = npt.NDArray[np.uint64]
Sample = Iterable[tuple[str, Block]]  # the first rows, each a block of its own, and what to call it in a message


@dataclass(frozen=True)
class UserStep(ABC):
    """A step that a function of the user's does; `name` is the option.

    `seed`: what random numbers are made of, None once it is known that the function takes none. `number`: of the step
    among all, so that two steps draw different numbers.

    The function gets copies, which it may change. With a keyword `rng` it gets `Generator(PCG64(seeds[row]))`; a
    batched one gets the `seeds` themselves. Seeds are a pure function of `seed`, `number`, and the file and row that a
    row was made of. Rows that an earlier step made of one row share them.
    """

    name: ClassVar[str]
    changes_rows: ClassVar[bool] = True

    function: Function
    seed: int | None = 0
    number: int = 0

    @classmethod
    def parse(cls, text: str, *, seed: int = 0, number: int = 0) -> Self:
        """`FILE.py:FUNCTION` or `MODULE:FUNCTION`. Raises `UsageError`."""
        if not 0 <= seed < 2**64:
            raise UsageError(f"--seed {seed}: expected a number from 0 to 2**64 - 1")
        return cls(Function.find(text, cls.name), seed, number)

    @staticmethod
    def typed(entry: Mapping[str, Any]) -> str:
        return Function.typed(entry)

    def recipe(self) -> dict[str, Any]:
        return {**self.function.recipe(), **({} if self.seed is None else {"seed": self.seed})}

    @property
    def label(self) -> str:
        return f"--{self.name} {self.function.label}"

    @property
    def batched(self) -> bool:
        return is_batched(self.function.load())

    @abstractmethod
    def results(self, block: Block) -> list[list[Row]]:
        """What the function makes of each row. Raises `InputError` where it fails, `SchemaError` for what is no row."""

    def prepared(self) -> Self:
        """The function loaded, and the seed dropped if it wants none. Raises `UsageError`."""
        try:
            function = self.function.load()
        except UsageError as error:
            raise UsageError(f"--{self.name} {error}") from error
        wanted, other = ("seeds", "rng") if is_batched(function) else ("rng", "seeds")
        takes = _keywords(function)
        if other in takes and wanted not in takes:
            raise UsageError(
                f"{self.label}: a {'batched ' * self.batched}function takes random numbers as {wanted}, not {other}"
            )
        return replace(self, seed=self.seed if wanted in takes else None)

    def tried(self, sample: Sample) -> Iterator[tuple[str, Block, list[Row]]]:
        """The first rows of which the function makes something, with that.

        Raises `UsageError` when all rows fail, and when a row doesn't always give the same: a resumed conversion could
        not go on with such a function.
        """
        rows: list[tuple[str, Block, list[Row]]] = []
        failed: list[tuple[str, BigconvError]] = []
        looked = 0
        for where, block in sample:
            looked += 1
            try:
                made = self.results(block)[0]
                if not rows and not same(made, self.results(block)[0]):
                    raise UsageError(
                        f"{self.label}: gives something else each time for {where}.\nFor random numbers take a keyword "
                        f"{'seeds' if self.batched else 'rng'}"
                    )
            except (InputError, SchemaError) as error:
                failed.append((where, error))
                if len(failed) == LEARN_ROWS:
                    break
                continue
            if made:
                rows.append((where, block, made))
                if len(rows) == LEARN_ROWS:
                    break
        if not rows:
            raise UsageError(self._nothing(looked, failed))
        if self.batched and len(rows) > 1:
            self._try_together(rows)
        yield from rows

    def _nothing(self, looked: int, failed: list[tuple[str, BigconvError]]) -> str:
        if failed:
            return f"{self.label}, tried on {failed[0][0]}: {failed[0][1]}"
        if looked:
            return f"{self.label}: drops each of the first {looked} rows, so that there is no telling what it makes"
        return f"{self.label}: no row reaches it: earlier steps drop or fail on the first ones"

    def _try_together(self, rows: list[tuple[str, Block, list[Row]]]) -> None:
        try:
            together = self.results(Block.concat([block for _, block, _ in rows]))
        except (InputError, SchemaError) as error:
            raise UsageError(f"{self.label}: works on one row, but not on {len(rows)} together: {error}") from error
        for (where, _, alone), made in zip(rows, together, strict=True):
            if not same(alone, made):
                raise UsageError(
                    f"{self.label}: gives something else for {where} alone than together with other rows.\n"
                    "A batched function gets any number of rows: each result may only depend on its own"
                )

    # -- calling -------------------------------------------------------------------------------------------------------

    def each(self, block: Block) -> Iterator[Any]:
        """What a function of single rows returns for each."""
        function = self.function.load()
        seeds = None if self.seed is None else self.seeds(block).tolist()
        for i in range(len(block)):
            row = {n: np.array(v) if isinstance(v, np.ndarray) else v for n, v in block.row(i).items()}
            extra = {} if seeds is None else {"rng": np.random.Generator(np.random.PCG64(seeds[i]))}
            yield self._call(function, row, extra)

    def whole(self, block: Block) -> Any:
        """What a batched function returns."""
        columns: dict[str, Any] = {}
        for name, column in block.columns.items():
            if isinstance(column, Ragged):
                shapes = None if column.shapes is None else column.shapes.copy()
                columns[name] = Ragged(column.values.copy(), column.offsets.copy(), shapes)
            else:
                columns[name] = np.array(column)
        return self._call(self.function.load(), columns, {} if self.seed is None else {"seeds": self.seeds(block)})

    def _call(self, function: Callable[..., Any], argument: dict[str, Any], extra: dict[str, Any]) -> Any:
        try:
            return function(argument, **extra)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # SystemExit, and panics of extensions in Rust, are no Exception
            told = f"{type(error).__name__}: {error}".strip(": ")
            raise InputError(f"{told} ({self.function.line(error)})") from error

    def seeds(self, block: Block) -> Seeds:
        """uint64 `[rows]`: splitmix64 over seed, step, file and row (Steele et al., OOPSLA 2014)."""
        if block.origin is None:
            raise SchemaError(f"{self.label}: random numbers need rows that know their origin")
        seeds = np.full(len(block), self.seed or 0, np.uint64)
        for part in (np.full(len(block), self.number), block.origin[:, 0], block.origin[:, 1]):
            seeds = _mixed(seeds ^ _mixed(part.astype(np.uint64)))
        return seeds


def _mixed(x: Seeds) -> Seeds:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _keywords(function: Callable[..., Any]) -> set[str]:
    """Names that can be given as keywords."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions written in C don't tell
        return set()
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
