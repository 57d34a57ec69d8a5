"""What is measured: a dataset, in an order, in batches of a size."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import wrap
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from bigconv.bench.setting import Setting
from bigconv.block import Index
from bigconv.errors import InputError, UsageError
from bigconv.runtime import BatchOrder, StoreDataset
from bigconv.runtime.loader import Loader
from bigconv.schema import unknown
from bigconv.view.opening import address

ACCESS = ("shuffled", "sequential", "window")
BATCH = 256  # samples, where nothing else is said
BATCH_BYTES = 64 << 20  # 64 MiB: no larger batches by default, so that large samples don't fill the memory
LINE = 56  # characters of a snippet's lines: they fit narrow terminals uncut
WINDOW_BATCHES = 64  # of a windowed order: far enough for training, near enough for a disk


@dataclass(frozen=True, eq=False)
class Subject:
    """A dataset as a training loop would read it. `made`: the Python that makes `dataset`, for a snippet."""

    name: str
    kind: str  # "store", or "raw": files read one by one
    dataset: Dataset[Any]
    files: tuple[Path, ...]
    batch_size: int
    access: str
    made: str
    imports: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)  # what the figures depend on besides the name
    part_of: int = 0  # rows of the batches that are asked for, where a part of one is measured; 0: they are the same

    @property
    def rows(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    @property
    def asked_size(self) -> int:
        """Rows of the batches that are asked for."""
        return self.part_of or self.batch_size

    def in_parts(self, rows: int) -> Subject:
        """The same, measured in smaller batches: for samples that take long, where a batch adds nothing to its rows."""
        return replace(self, batch_size=rows, part_of=self.asked_size)

    @property
    def window(self) -> int | None:
        """Rows of a windowed order."""
        return WINDOW_BATCHES * self.asked_size if self.access == "window" else None

    def batches(self) -> Batches:
        return Batches(self.dataset, self.batch_size, self.access, self.window)

    @property
    def whole(self) -> bool:
        """Whether the sampler gives arrays of row numbers: what a windowed order is for."""
        return self.access == "window" and self.kind == "store"

    def loader(self, setting: Setting, order: Batches | None = None) -> Any:
        """The public loader, over an order that never ends: `order`, which is gone on with, or a new one."""
        order = self.batches() if order is None else order
        if setting.threaded:
            ahead, pin = setting.prefetch, setting.pin_memory
            return Loader(self.dataset, batch_sampler=order, threads=setting.workers, prefetch=ahead, pin_memory=pin)
        own: dict[str, Any] = {"num_workers": setting.workers, "pin_memory": setting.pin_memory}
        if setting.workers:
            own["prefetch_factor"] = setting.prefetch
        if self.whole:
            return DataLoader(self.dataset, sampler=order, batch_size=None, **own)
        return DataLoader(self.dataset, sampler=_Rows(order), batch_size=self.batch_size, drop_last=True, **own)

    def together(self, setting: Setting) -> int:
        """How many batches each thread or worker makes at once."""
        return self.loader(setting).together if setting.threaded else 1

    def iterate(self, setting: Setting, order: Batches | None = None) -> Iterator[Any]:
        """Batches without end. When nobody holds the iterator, its workers end."""
        with hushed():
            return iter(self.loader(setting, order))

    def snippet(self, setting: Setting) -> str:
        """Python to paste, that makes this loader."""
        lines: list[str] = []
        order = "shuffle=True" if self.access == "shuffled" else "shuffle=False"
        own = [f"{name}={value}" for name, value in setting.to_json().items() if name != "loader" and value]
        if setting.threaded and not setting.workers:
            own.append("threads=0")
        size = f"batch_size={self.asked_size}"
        if self.access == "window":
            if not self.whole:
                lines.append("# in windows: shuffle file names within windows of your own")
            made = f"BatchOrder(dataset, {self.asked_size}, window={self.window})"
            order, size = (f"batch_sampler={made}", "") if setting.threaded else (f"sampler={made}", "batch_size=None")
        names = [name for name in ("BatchOrder", "Loader") if name == setting.loader or name in order]
        if self.kind == "store":
            names.append("StoreDataset")
        lines += ["from torch.utils.data import DataLoader"] if not setting.threaded else []
        if names:
            lines.append(f"from bigconv.runtime import {', '.join(names)}")
        lines += self.imports
        arguments = ", ".join(part for part in ("dataset", size, order, *own) if part)
        if len(arguments) > LINE:
            inside = wrap(arguments, LINE, initial_indent="    ", subsequent_indent="    ", break_long_words=False)
            arguments = "\n".join(["", *inside, ""])
        return "\n".join([*lines, "", f"dataset = {self.made}", f"loader = {setting.loader}({arguments})"])


@contextmanager
def hushed() -> Iterator[None]:
    """No warnings of torch about more workers than cores: whether they gain is measured here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.utils.data")
        yield


class Batches(BatchOrder):
    """bigconv's own order, always the same, epoch after epoch without an end. Each `iter` goes on with it."""

    def __init__(self, dataset: Any, batch_size: int, access: str, window: int | None) -> None:
        super().__init__(dataset, batch_size, access != "sequential", 0, True, window=window)
        self._given = self._endless()

    def __iter__(self) -> Iterator[Index]:
        return self._given

    def _endless(self) -> Iterator[Index]:
        while True:
            yield from super().__iter__()


class _Rows(Sampler[int]):
    """One by one, as the samplers of torch give them."""

    def __init__(self, batches: Sampler[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[int]:
        for batch in self._batches:
            yield from batch.tolist()


def store_subject(
    path: Path,
    batch_size: int | None,
    access: str,
    fields: Sequence[str] | None = None,
    transform: tuple[str, Callable[[Any], Any]] | None = None,
) -> Subject:
    """A store, or a sharded one. `transform`: as it was typed, and the function."""
    from bigconv import fsio

    chosen = None if fields is None else tuple(fields)
    dataset = StoreDataset(path, chosen, None if transform is None else transform[1])
    files = [path / name for name in fsio.files_below(path)] if path.is_dir() else [path]
    arguments = [repr(address(path))] + ([] if chosen is None else [f"fields={chosen!r}"])
    imports: tuple[str, ...] = ()
    if transform is not None:
        imports = (_import(transform[0]),)
        arguments.append(f"transform={transform[0].rpartition(':')[2]}")
    size = batch_size or _batch_size(_row_bytes(dataset), len(dataset))
    made = f"StoreDataset({', '.join(arguments)})"
    options = {"fields": list(chosen or dataset.schema.names), "transform": transform and transform[0]}
    return _checked(Subject(path.name, "store", dataset, tuple(files), size, access, made, imports, options))


def raw_subject(
    paths: Sequence[Path],
    batch_size: int | None,
    access: str,
    size: tuple[int, int] | None = None,
    from_: str | None = None,
    fields: Sequence[str] | None = None,
) -> Subject:
    """Raw files, read one by one as people do today; `from_`: what they are, where a folder has several kinds;
    `fields`: of HDF5 and Zarr, the datasets to read.

    Raises `InputError` for what isn't recognised.
    """
    from bigconv.bench.rawdata import raw_dataset
    from bigconv.conversion.options import find_source
    from bigconv.sources.base import OnlySome

    columns = {} if fields is None else {"columns": list(fields)}
    try:
        source = find_source(paths, from_, columns, {"sizes_matter": False})
    except OnlySome as error:
        raise InputError(f"{error.why}.\nTake those that fit: --fields {','.join(error.columns)}") from error
    dataset, files = raw_dataset(source, list(paths), size)
    if batch_size is None:
        first = dataset[0]
        batch_size = _batch_size(sum(_bytes(value) for value in first.values()), len(dataset))  # type: ignore[arg-type]
    name = paths[0].name or str(paths[0])
    made = "...  # your own dataset of these files"
    options = {"resize": size, "from": from_, "fields": None if fields is None else list(fields)}
    return _checked(Subject(name, "raw", dataset, tuple(files), batch_size, access, made, (), options))


def _checked(subject: Subject) -> Subject:
    if subject.access not in ACCESS:
        raise UsageError(unknown("--access", subject.access, ACCESS))
    if subject.batch_size < 1:
        raise UsageError(f"--batch-size {subject.batch_size}: expected 1 or more")
    if not subject.rows:
        raise InputError(f"{subject.name}: no rows in it, so there is nothing to measure")
    if subject.batch_size > subject.rows:
        raise UsageError(f"--batch-size {subject.batch_size}: {subject.name} has only {subject.rows} rows")
    return subject


def _batch_size(row_bytes: float, rows: int) -> int:
    most = min(BATCH, rows, max(1, int(BATCH_BYTES / max(row_bytes, 1))))
    return 1 << (most.bit_length() - 1)


def _row_bytes(dataset: StoreDataset) -> float:
    """Of a row in memory; encoded images are guessed to grow tenfold."""
    view, total = dataset.view, 0.0
    for f in dataset.schema:
        if not f.ragged:
            total += f.row_bytes
        elif len(view):
            import numpy as np

            some = np.linspace(0, len(view) - 1, min(len(view), 100), dtype=np.int64)
            mean = float(view.lengths(f.name, some).mean()) * f.row_bytes
            total += mean * (10 if f.kind == "encoded" else 1)
    return total


def _bytes(value: Any) -> int:
    return int(getattr(value, "nbytes", 8))


def _import(text: str) -> str:
    where, _, name = text.rpartition(":")
    module = Path(where).stem if where.endswith(".py") else where
    return f"from {module} import {name}"
