"""What will hurt in training, told from facts, each with the command that mends it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from dataclasses import field as default
from pathlib import Path
from typing import Any

import numpy as np

from bigconv import registry
from bigconv.block import Array, Ragged
from bigconv.class_counts import Counts, Distinct, counted, named
from bigconv.inspection.datasets import Dataset
from bigconv.inspection.rows import Rows
from bigconv.inspection.stats import FieldStats
from bigconv.inspection.unfinished import Unfinished
from bigconv.schema import Field, Schema
from bigconv.words import plural

MANY_SAMPLES = 4  # rows a chunk may hold before a random read costs more than its own chunk's overhead
CHUNK_BYTES = 64 << 10  # 64 KiB: smaller chunks cost less to decode than to find
TINY_BYTES, MANY_CHUNKS = 4 << 10, 100  # chunks below a page, and so many that it shows
PAGE_WASTE = 1.25  # bytes of LMDB's pages to one of records
IMBALANCE = 10.0  # rows of the largest class to one of the smallest
COUNT_BYTES = 8 << 20  # labels up to 8 MiB are counted without being asked
SLOW = ("gzip", "bzip2", "deflate", "zlib", "lzma")


@dataclass(frozen=True)
class Complaint:
    """A warning. `topic`: a word for programs; `fields`: whom it concerns, none for the whole; `fix`: what to type,
    empty where nothing would help.
    """

    topic: str
    fields: tuple[str, ...]
    problem: str
    fix: str

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "fields": list(self.fields)}


@dataclass(frozen=True)
class Facts:
    """What is known. `ours`: whether bigconv wrote it; `rows`: to look at some; `stats`: where asked for."""

    path: Path
    ours: bool
    container: str | None
    datasets: Sequence[Dataset]
    rows: Rows | None
    stats: Sequence[FieldStats] | None = None
    rejected: int = 0
    counts: Counts = default(default_factory=dict)  # rows of each class, as a manifest has them
    gaps: str | None = None  # what was not all there of what was, or would be, converted
    unfinished: Unfinished | None = None
    option: str | None = None  # with which raw input is converted; None where it can't be

    @property
    def count(self) -> int | None:
        return None if self.rows is None else self.rows.count


def warnings(facts: Facts) -> list[Complaint]:
    """All that there is to say, the costliest first."""
    checks = (_wide_chunks, _slow_codecs, _tiny_chunks, _vlen, _fortran, _pages, _wide_floats, _imbalance, _not_finite)
    return [found for check in (_whole, *checks) for found in check(facts)]


def _convert(facts: Facts, more: str = "", new: str = "new.h5") -> str:
    if not facts.ours and facts.option is None:
        return ""
    return f"bigconv convert {shlex.quote(str(facts.path))} {new}{facts.option or ''}{more}"


def _alike(facts: Facts, more: str) -> str:
    """Into a store of the same kind, or into parts where it is a directory of them."""
    known = facts.path.suffix.lower() in registry.extensions("store")
    new = "new.h5" if not facts.ours else f"new{facts.path.suffix}" if known else "new --shard-size 256MB"
    return _convert(facts, more, new)


def _whole(facts: Facts) -> Iterator[Complaint]:
    """What the manifest, and the files beside a store, say of how it came about."""
    path = facts.path
    if not facts.ours:
        if facts.container is not None and facts.container != "npy":
            problem = "no manifest: nothing can tell whether it is whole, nor what made it"
            yield Complaint("no-manifest", (), problem, _convert(facts))
    elif (
        facts.container in ("hdf5", "zarr", "lmdb", "memmap")
        and not any(d.name == "_bigconv/provenance" for d in facts.datasets)
        and not (path / "provenance.bin").exists()
    ):
        problem = "no provenance: nothing tells which file made a row"
        yield Complaint("no-provenance", (), problem, f"bigconv convert SOURCE {shlex.quote(str(path))} --overwrite")
    if facts.gaps is not None:
        again = f"bigconv convert SOURCE {shlex.quote(str(path))} --overwrite" if facts.ours else _convert(facts)
        yield Complaint("gaps", (), facts.gaps, again and f"{again}  # if they are lost, once they are back")
    rejects = path.with_name(path.name + ".rejects.jsonl") if path.name else path
    if rejects.is_file():
        with rejects.open("rb") as file:
            n = sum(1 for _ in file)
        problem = f"{plural(n, 'input')} could not be read and {'is' if n == 1 else 'are'} left out: {rejects.name}"
        yield Complaint("rejects", (), problem, f"bigconv convert SOURCE {shlex.quote(str(path))} --retry-rejects")
    if facts.unfinished is not None:
        yield Complaint("unfinished", (), facts.unfinished.problem, facts.unfinished.fix)


def _public(facts: Facts) -> list[Dataset]:
    return [d for d in facts.datasets if not d.private]


def samples_a_chunk(d: Dataset, schema: Schema | None, rows: int | None) -> float:
    """How many rows' values one chunk holds."""
    if d.chunks is None or not d.chunks:
        return 1.0
    field, _, role = d.name.rpartition("/")
    if role == "values" and schema is not None and field in schema and schema[field].ragged and rows and d.shape[0]:
        return d.chunks[0] * rows / d.shape[0]
    return float(min(d.chunks[0], d.shape[0])) if d.shape else 1.0


def _wide_chunks(facts: Facts) -> Iterator[Complaint]:
    schema = None if facts.rows is None else facts.rows.schema
    found = []
    for d in _public(facts):
        if d.chunks is None or (d.chunk_bytes or 0) < CHUNK_BYTES or (facts.ours and not d.filters):
            continue  # our chunks that aren't compressed are mapped, not read as a whole
        times = samples_a_chunk(d, schema, facts.count)
        if times >= MANY_SAMPLES:
            found.append((times, d))
    if found:
        times, d = max(found, key=lambda pair: pair[0] * (pair[1].chunk_bytes or 0))
        what = "decompress" if d.filters else "read"
        problem = f"a chunk of {d.name or 'it'} spans {times:,.3g} samples: random reads {what} {times:,.3g}× too much"
        yield Complaint("wide-chunks", tuple(d.name for _, d in found), problem, _convert(facts))


def _slow_codecs(facts: Facts) -> Iterator[Complaint]:
    slow = [d for d in _public(facts) if any(f.split(":")[0] in SLOW for f in d.filters)]
    if slow:
        codec = next(f.split(":")[0] for f in slow[0].filters if f.split(":")[0] in SLOW)
        problem = f"{codec} is among the slowest codecs to read; uncompressed rows are mapped, not decoded"
        yield Complaint("slow-codec", tuple(d.name for d in slow), problem, _convert(facts))


def _tiny_chunks(facts: Facts) -> Iterator[Complaint]:
    tiny = [
        d
        for d in _public(facts)
        if d.chunks is not None and d.chunk_count >= MANY_CHUNKS and 0 < (d.chunk_bytes or 0) < TINY_BYTES
        and not (facts.ours and not d.filters)
    ]  # fmt: skip
    if tiny:
        d = max(tiny, key=lambda d: d.chunk_count)
        problem = f"{d.name or 'it'} lies in {d.chunk_count:,} chunks of {d.chunk_bytes:,} bytes: each costs a look-up"
        yield Complaint("tiny-chunks", tuple(d.name for d in tiny), problem, _convert(facts))


def _vlen(facts: Facts) -> Iterator[Complaint]:
    vlen = tuple(d.name for d in _public(facts) if "vlen" in d.notes)
    if vlen:
        problem = "variable-length values are looked up one by one; values and offsets are read at once"
        yield Complaint("vlen", vlen, problem, _convert(facts))


def _fortran(facts: Facts) -> Iterator[Complaint]:
    spread = tuple(d.name for d in _public(facts) if "fortran" in d.notes)
    if spread:
        yield Complaint(
            "fortran-order", spread, "in Fortran order each row is spread over the whole file", _convert(facts)
        )


def _pages(facts: Facts) -> Iterator[Complaint]:
    for d in facts.datasets:
        if facts.container == "lmdb" and d.dtype == "records" and d.bytes and d.stored and d.bytes > 1 << 20:
            waste = d.stored / d.bytes
            if waste >= PAGE_WASTE:
                problem = (
                    f"LMDB's pages take {waste:.2g} bytes for each one of data: "
                    "records past 2 KB begin on a page of their own"
                )
                yield Complaint("page-waste", (), problem, _convert(facts))


def _wide_floats(facts: Facts) -> Iterator[Complaint]:
    if facts.rows is None:
        return
    schema = facts.rows.schema
    wide = [f for f in schema if f.dtype == "float64" and f.kind != "label"]  # numbers about a row are few, and exact
    if not wide:
        return
    block = facts.rows.first()
    if block is None:
        return
    fitting = []
    for f in wide:
        column = block.columns[f.name]
        if fits_float32(column.values if isinstance(column, Ragged) else column):
            fitting.append(f)
    if fitting:
        names = tuple(f.name for f in fitting)
        problem = "float64 where float32 would do: the values keep 7 digits, in half the bytes"
        yield Complaint("float64", names, problem, _narrowed(facts, schema, fitting))


def _narrowed(facts: Facts, schema: Schema, fitting: Sequence[Field]) -> str:
    """`--dtype` changes all arrays; where some must stay, a function changes those that may not."""
    from bigconv.transforms.dtype import KINDS

    others = [f for f in schema if f.kind in KINDS and f not in fitting and f.dtype != "float32"]
    if not others:
        return _alike(facts, " --dtype float32")
    if "dtypes" in getattr(getattr(facts.rows, "source", None), "options", ()):
        told = shlex.quote(",".join(f"{f.name}=float32" for f in fitting))
        return _alike(facts, f" --dtypes {told}")
    casts = ", ".join(f"{f.name!r}: row[{f.name!r}].astype('float32')" for f in fitting)
    code = f"def narrow(row): return {{**row, {casts}}}"
    return f"echo {shlex.quote(code)} > narrow.py\n{_alike(facts, ' --map narrow.py:narrow')}"


def fits_float32(values: Array) -> bool:
    """Whether float32 tells the same values apart, and has room for them; False where there are none."""
    flat = values.reshape(-1)[: 1 << 20]
    flat = np.unique(flat[np.isfinite(flat)])
    if not len(flat):
        return False
    with np.errstate(over="ignore", under="ignore"):
        narrow = flat.astype(np.float32)
    if not np.isfinite(narrow).all() or ((narrow == 0) & (flat != 0)).any():
        return False
    if (flat == np.rint(flat)).all():  # whole numbers, as of times and ids, must come out the same
        return bool((narrow == flat).all())
    # where even float64's own neighbours are meant, more than a few collapse
    return len(np.unique(narrow)) >= 0.99 * len(flat)


def _imbalance(facts: Facts) -> Iterator[Complaint]:
    if facts.rows is None:
        return
    for f, counts in _labels(facts):
        # of a field with names, a label that has none is a mistake, not a class
        shown = {
            str(label) if name is None else name: n
            for label, name, n in named(f, counts.items())
            if f.classes is None or name is not None
        }
        if len(shown) < 2:
            continue
        few, many = min(shown, key=lambda k: shown[k]), max(shown, key=lambda k: shown[k])
        empty = [name for name, n in shown.items() if n == 0]
        fix = f"ClassBalancedSampler(dataset, batch_size=256, field={f.name!r})  # of bigconv.runtime"
        if empty:
            more = "" if len(empty) == 1 else f" and {len(empty) - 1} more"
            problem = f"class {empty[0]}{more} of {f.name} has no rows"
            fix = "bigconv inspect SOURCE  # shows which files do not fit"
            yield Complaint("empty-class", (f.name,), problem, fix)
        elif shown[many] >= IMBALANCE * shown[few]:
            times = shown[many] / shown[few]
            problem = (
                f"class {many} has {times:,.0f}× the rows of {few} ({shown[many]:,} to {shown[few]:,}): "
                "plain shuffling hardly shows the rare ones"
            )
            yield Complaint("imbalance", (f.name,), problem, fix)


def _labels(facts: Facts) -> Iterator[tuple[Field, dict[Any, int]]]:
    """Label fields and how many rows each class has, where that is known or quickly found."""
    assert facts.rows is not None
    if facts.stats is not None:
        for s in facts.stats:
            if counted(s.field) and s.counts is not None:
                yield s.field, dict(s.counts)
        return
    for f in facts.rows.schema:
        if f.name in facts.counts:
            yield f, dict(facts.counts[f.name])
    view = getattr(facts.rows, "view", None)
    if view is None or facts.container == "lmdb":  # a label inside a record costs a page a row
        return
    for f in facts.rows.schema:
        if f.name not in facts.counts and counted(f) and f.row_bytes * len(view) <= COUNT_BYTES:
            distinct = Distinct(10_000)
            for block in view.select([f.name]).blocks():
                distinct.update(block.columns[f.name])
            pairs = distinct.pairs()
            if pairs is not None:
                yield f, dict(pairs)


def _not_finite(facts: Facts) -> Iterator[Complaint]:
    bad = [s for s in facts.stats or () if s.values is not None and s.values.nan + s.values.inf]
    if bad:
        s = max(bad, key=lambda s: s.values.nan + s.values.inf if s.values else 0)
        assert s.values is not None
        told = (
            f"{s.values.nan:,} NaN and {s.values.inf:,} infinite values in {s.field.name}: "
            "one in a batch spoils its loss"
        )
        code = "import numpy as np\ndef finite(row): return " + " and ".join(
            f"np.isfinite(row[{one.field.name!r}]).all()" for one in bad
        )
        fix = f"printf {shlex.quote(code.replace('%', '%%') + chr(92) + 'n')} > finite.py\n"
        yield Complaint(
            "not-finite",
            tuple(one.field.name for one in bad),
            told,
            fix + _alike(facts, " --filter finite.py:finite"),
        )
    if facts.rejected:
        n = facts.rejected
        problem = f"{plural(n, 'input')} can't be read"
        yield Complaint("unreadable", (), problem, _convert(facts, f" --max-rejects {n}"))
