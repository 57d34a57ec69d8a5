"""What a row is made of: `Field` (one column) and `Schema` (the ordered set of them)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from operator import index
from typing import Any

import numpy as np

from bigconv.errors import SchemaError

#: Types that all four stores hold natively and that read back with the plain libraries.
DTYPES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
)
#: What the bytes of a column mean. `text` is UTF-8, `encoded` an image file as it is on disk, `mask` a class a pixel.
KINDS = ("array", "image", "mask", "label", "text", "bytes", "encoded", "tokens", "audio", "video", "volume")

MAX_AXES = 31  # HDF5 allows 32, one of which is the row
_NAME = re.compile(r"[^\x00-\x1f\x7f/\\\ud800-\udfff]{1,200}")
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # a file name's byte that isn't UTF-8: JSON can't hold it


def dtype_name(dtype: object, where: str = "array") -> str:
    """Canonical name of a dtype that can be stored, whatever its byte order.

    Raises `SchemaError` for objects, strings, dates and other types that no store holds natively.
    """
    try:
        name = np.dtype(dtype).newbyteorder("=").name  # type: ignore[call-overload]
    except (TypeError, ValueError, SyntaxError):
        name = repr(dtype)
    if dtype is None or name not in DTYPES:  # numpy takes None for float64
        hint = " Object arrays hold pickles, which are never read." if name == "object" else ""
        raise SchemaError(f"{where}: dtype {name} can't be stored.{hint}\nStorable: {', '.join(DTYPES)}.")
    return str(name)


@dataclass(frozen=True)
class Part:
    """One plain array of a store: a fixed field is one part, a ragged one two or three.

    `role`: `rows` (one item a row), `values` (items of all rows one after another), `offsets`
    (int64 `[rows + 1]`, in items) or `shapes` (int64 `[rows, ndim]`).
    """

    field: str
    role: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.field if self.role == "rows" else f"{self.field}/{self.role}"

    @property
    def item_bytes(self) -> int:
        """Bytes of one item."""
        n = np.dtype(self.dtype).itemsize
        for extent in self.shape:
            n *= extent
        return n


@dataclass(frozen=True)
class Field:
    """One column: name, dtype, shape of a row (`None` = varies from row to row) and kind."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] = ()
    kind: str = "array"
    layout: str | None = None  # axis order of an image: "hwc" or "chw"
    classes: tuple[str, ...] | None = None  # names of the labels 0, 1, 2, …

    # what follows from these is kept: it is asked for several times a batch

    def __post_init__(self) -> None:
        name_fits = isinstance(self.name, str) and _NAME.fullmatch(self.name)
        if not name_fits or self.name[0] in "._" or self.name != self.name.strip():
            raise SchemaError(
                f"{self.name!r} can't be a field name: use 1 to 200 printable characters without / and \\, "
                "not starting with . or _"
            )
        object.__setattr__(self, "dtype", dtype_name(self.dtype, f"field {self.name}"))
        try:
            shape = tuple(None if n is None else index(n) for n in self.shape)
        except TypeError:
            raise SchemaError(f"field {self.name}: a shape is whole numbers and None, got {self.shape!r}") from None
        if any(n is not None and n < 0 for n in shape):
            raise SchemaError(f"field {self.name}: negative extent in shape {shape}")
        object.__setattr__(self, "shape", shape)
        if shape[:1] == (None,) and None not in shape[1:] and 0 in shape[1:]:
            raise SchemaError(f"field {self.name}: rows of shape {shape} hold nothing, so their size can't be stored")
        if len(shape) > MAX_AXES:
            raise SchemaError(f"field {self.name}: {len(shape)} axes in a row; HDF5 holds {MAX_AXES} at most")
        if self.classes is not None:
            if any(not isinstance(name, str) or _SURROGATE.search(name) for name in self.classes):
                raise SchemaError(f"field {self.name}: classes are names in Unicode, got {self.classes!r:.200}")
            object.__setattr__(self, "classes", tuple(self.classes))
        if self.kind not in KINDS:
            raise SchemaError(f"field {self.name}: unknown kind {self.kind!r}, one of {', '.join(KINDS)}")
        if self.kind in ("text", "bytes", "encoded") and (self.dtype, shape) != ("uint8", (None,)):
            raise SchemaError(f"field {self.name}: kind {self.kind} is uint8 [varies], got {self.dtype} {shape}")

    @cached_property
    def ragged(self) -> bool:
        return None in self.shape

    @cached_property
    def has_shapes(self) -> bool:
        """Whether more than the leading axis varies, so that each row carries its own shape."""
        return None in self.shape[1:]

    @cached_property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one item of `Ragged.values`; for a fixed field, of one row."""
        if not self.ragged:
            return tuple(n for n in self.shape if n is not None)
        return () if self.has_shapes else tuple(n for n in self.shape[1:] if n is not None)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row of a fixed field; of one item of a ragged one."""
        return self.parts()[0].item_bytes

    @cached_property
    def stored(self) -> np.dtype[Any]:
        """The dtype as its bytes are stored: little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    def parts(self) -> tuple[Part, ...]:
        """The plain arrays that hold this field in a store, in their fixed order."""
        if not self.ragged:
            return (Part(self.name, "rows", self.dtype, self.item_shape),)
        parts = [Part(self.name, "values", self.dtype, self.item_shape), Part(self.name, "offsets", "int64", ())]
        if self.has_shapes:
            parts.append(Part(self.name, "shapes", "int64", (len(self.shape),)))
        return tuple(parts)

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # what follows from them needn't travel

    def with_(self, **changes: Any) -> Field:
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), "kind": self.kind}
        if self.layout is not None:
            out["layout"] = self.layout
        if self.classes is not None:
            out["classes"] = list(self.classes)
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Field:
        try:
            classes = data.get("classes")
            return cls(
                name=_text(data["name"]),
                dtype=_text(data["dtype"]),
                shape=tuple(None if n is None else _count(n) for n in data["shape"]),
                kind=_text(data["kind"]),
                layout=None if data.get("layout") is None else _text(data["layout"]),
                classes=None if classes is None else tuple(_text(c) for c in classes),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise SchemaError(f"not a field: {data!r:.200}") from error


@dataclass(frozen=True)
class Schema:
    """The ordered set of fields that every row has."""

    fields: tuple[Field, ...]
    _by_name: dict[str, Field] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", tuple(self.fields))
        by_name = {f.name: f for f in self.fields}
        if not by_name:
            raise SchemaError("a schema needs at least one field")
        if len(by_name) != len(self.fields):
            names = [f.name for f in self.fields]
            raise SchemaError(f"field names must differ, got {names}")
        object.__setattr__(self, "_by_name", by_name)

    def __len__(self) -> int:
        return len(self.fields)

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Field:
        try:
            return self._by_name[name]
        except KeyError:
            raise SchemaError(unknown("field", name, self.names)) from None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    def parts(self) -> tuple[Part, ...]:
        """All plain arrays of a store with this schema, in their fixed order."""
        return tuple(part for f in self.fields for part in f.parts())

    def select(self, names: Sequence[str]) -> Schema:
        return Schema(tuple(self[name] for name in names))

    def replace(self, changed: Field) -> Schema:
        """The same schema with the field of that name exchanged."""
        return Schema(tuple(changed if f.name == changed.name else f for f in self.fields))

    def to_json(self) -> list[dict[str, Any]]:
        return [f.to_json() for f in self.fields]

    @classmethod
    def from_json(cls, data: object) -> Schema:
        if not isinstance(data, list):
            raise SchemaError(f"fields must be a list, got {type(data).__name__}")
        return cls(tuple(Field.from_json(f) for f in data))


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """`unknown field 'imge'. Did you mean 'image'? There are: image, label`."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1)
    mean = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {name!r}.{mean} There are: {', '.join(known)}"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(value)
    return value
