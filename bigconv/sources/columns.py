"""Tables, whatever the file format: Arrow types become fields.

| Arrow | field |
|---|---|
| integers, floats, bool | the same dtype |
| string, large_string, string_view | `text` |
| binary, large_binary, binary_view | `bytes` |
| date, time, timestamp, duration | int64, in the column's own unit (days, s, ms, us, ns; since 1970-01-01) |
| decimal | float64, the nearest |
| dictionary, extension | what they stand for |
| fixed_size_binary(n) | uint8 `[n]` |
| fixed_size_list of n | `[n]` and what it is a list of, as far as that has a fixed size |
| list, large_list | one ragged axis before what it is a list of |
| struct | a field a member, named `outer.inner` |
| null | float64, and only with `fill` |

All else (unions, maps, lists of text or of lists) is refused by name. A missing value is an error that names column
and row; with `fill`, it becomes that number, or no items at all where rows differ in size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bigconv.errors import InputError, SchemaError, UsageError
from bigconv.schema import Field, unknown

MAX_COLUMNS = 65_536  # more is a file that isn't what its name says
MAX_DEPTH = 64  # of nested values; Arrow's own recursion overflows the stack at about 10,000

#: What a column of text can be read as; `timestamp` is int64, microseconds since 1970-01-01.
TEXT_DTYPES = {
    **{name: pa.type_for_alias(name) for name in ("bool", "float32", "float64")},
    **{f"{sign}int{bits}": pa.type_for_alias(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "text": pa.string(),
    "timestamp": pa.timestamp("us"),
}

Pack = Mapping[str, Sequence[str]] | Sequence[str] | None


@dataclass(frozen=True)
class Column:
    """A column that isn't a struct: `path` leads to it through the structs around it."""

    name: str  # of the field it would be
    path: tuple[str, ...]
    type: Any  # pyarrow.DataType


def field_name(column: str, number: int) -> str:
    """A column's name as fields may be called: no slashes, control characters, or . and _ in front."""
    return re.sub(r"[\x00-\x1f\x7f/\\]", "_", column.strip())[:200].lstrip("._").strip() or f"column{number}"


def columns_of(schema: Any) -> tuple[Column, ...]:
    """Every column of an Arrow schema, structs taken apart. Raises `InputError` when two would be the same field."""
    found: list[Column] = []

    def walk(arrow: Any, path: tuple[str, ...], name: str) -> None:
        kind = plain(arrow)
        if pa.types.is_struct(kind) and kind.num_fields and len(path) <= MAX_DEPTH:
            for inner in kind:
                walk(inner.type, (*path, inner.name), f"{name}.{field_name(inner.name, len(found))}")
            return
        found.append(Column(name, path, arrow))
        if len(found) > MAX_COLUMNS:
            raise InputError(f"more than {MAX_COLUMNS:,} columns: not read")

    for item in schema:
        walk(item.type, (item.name,), field_name(item.name, len(found)))
    seen: dict[str, Column] = {}
    for column in found:
        other = seen.setdefault(column.name, column)
        if other is not column:
            names = sorted({".".join(other.path), ".".join(column.path)})
            same = f"two columns are called {names[0]!r}" if len(names) == 1 else f"columns {names} make one field name"
            raise InputError(f"{same}: rename one of them")
    return tuple(found)


def parse_pack(pack: Pack) -> dict[str, tuple[str, ...]]:
    """`{"x": ["a", "b"]}` or `["x=a,b"]` → `{"x": ("a", "b")}`."""
    if pack is None:
        return {}
    items: list[tuple[str, Sequence[str]]] = []
    if isinstance(pack, Mapping):
        items = list(pack.items())
    else:
        for text in [pack] if isinstance(pack, str) else pack:
            name, equals, names = text.partition("=")
            if not equals or not name or not names:
                raise UsageError(f"--pack {text}: expected NAME=COLUMN,COLUMN,… or NAME=*")
            items.append((name, names.split(",")))
    out: dict[str, tuple[str, ...]] = {}
    for name, wanted in items:
        chosen = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        if name in out or len(set(chosen)) != len(chosen) or not chosen:
            raise UsageError(f"--pack {name}: named twice, with a column named twice, or with none")
        out[name] = chosen
    if sum(names == ("*",) for names in out.values()) > 1:
        raise UsageError("--pack: only one can take all numeric columns (*)")
    return out


def parse_dtypes(dtypes: Mapping[str, str] | Sequence[str] | None) -> dict[str, Any]:
    """`{"zip": "text"}` or `["zip=text,day=timestamp"]` → Arrow types of columns, for files that don't say them."""
    if dtypes is None:
        return {}
    items: list[tuple[str, str]] = []
    if isinstance(dtypes, Mapping):
        items = list(dtypes.items())
    else:
        for text in [dtypes] if isinstance(dtypes, str) else dtypes:
            pairs = re.findall(r"(.+?)=([^=,]+)(?:,|$)", text, re.DOTALL)
            if ",".join("=".join(pair) for pair in pairs) != text:
                raise UsageError(f"--dtypes {text}: expected COLUMN=DTYPE,COLUMN=DTYPE,…")
            items += pairs
    out = {}
    for name, dtype in items:
        if dtype not in TEXT_DTYPES:
            raise UsageError(unknown("dtype of a column", dtype, tuple(TEXT_DTYPES)))
        out[name] = TEXT_DTYPES[dtype]
    return out


def pack_of(column: Column, members: Mapping[str, tuple[Column, ...]]) -> str:
    return next(name for name, columns in members.items() if column in columns)


def packed_field(name: str, columns: tuple[Column, ...]) -> Field:
    for column in columns:
        if not is_number(column.type):
            raise InputError(f"--pack {name}: column {column.name} is {column.type}, not a number")
    dtype = np.result_type(*{np.dtype(array_type(plain(c.type))[0]) for c in columns})
    return Field(name, dtype.name, (len(columns),))


def field_of(column: Column) -> Field:
    kind = plain(column.type)
    try:
        if is_text(kind):
            return Field(column.name, "uint8", (None,), "text")
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
            return Field(column.name, "uint8", (None,), "bytes")
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            dtype, shape = array_type(plain(kind.value_type))
            return Field(column.name, dtype, (None, *shape))
        dtype, shape = array_type(kind)
        return Field(column.name, dtype, shape)
    except (SchemaError, Unfit) as error:
        reason = f": {error}" if isinstance(error, SchemaError) else ""
        what = f"column {'.'.join(column.path)!r} of type {str(column.type)[:200]}"
        raise InputError(f"{what} can't be a field{reason}") from None


class Unfit(Exception):
    """A type that no field can hold."""


def array_type(kind: Any) -> tuple[str, tuple[int, ...]]:
    """dtype and shape of the values of a fixed-size type."""
    if pa.types.is_fixed_size_list(kind):
        dtype, inner = array_type(plain(kind.value_type))
        return dtype, (kind.list_size, *inner)
    if pa.types.is_fixed_size_binary(kind):
        return "uint8", (kind.byte_width,)
    if pa.types.is_boolean(kind):
        return "bool", ()
    if pa.types.is_integer(kind):
        return str(kind), ()  # Arrow's names are numpy's
    if pa.types.is_floating(kind):
        return f"float{kind.bit_width}", ()
    if pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return "float64", ()
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return "int64", ()
    raise Unfit(kind)


def is_number(arrow: Any) -> bool:
    kind = plain(arrow)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return bool(number or pa.types.is_boolean(kind))


def is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def plain(kind: Any) -> Any:
    """What dictionaries and extensions stand for."""
    while True:
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind
