"""What members of a WebDataset are: which extensions make which field, and bytes to values."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from bigconv import decode, registry
from bigconv.block import Array, Index
from bigconv.digest import little_endian
from bigconv.errors import InputError
from bigconv.schema import Field
from bigconv.sources import npy
from bigconv.sources.tar_index import TWICE, TarIndex

NAMES = {"cls": "label", "txt": "text", "text": "text", "json": "json", "npy": "array"}
_IMAGES = tuple(e[1:] for e in registry.SOURCES["images"].extensions)


def kind(extension: str) -> str:
    """Of the field that members with this extension make; `image`, whether decoded or not."""
    last = extension.rpartition(".")[2]
    if last in _IMAGES:
        return "image"
    return {"cls": "label", "txt": "text", "text": "text", "json": "text", "npy": "array"}.get(last, "bytes")


def fields(index: TarIndex) -> dict[str, list[int]]:
    """Field → the extensions that make it, images first, then in the order of the names."""
    names: dict[str, list[int]] = {}
    for number, extension in enumerate(index.extensions):
        before, _, last = extension.rpartition(".")
        name = before or ("image" if last in _IMAGES else NAMES.get(last, last))
        names.setdefault(name, []).append(number)
    present = np.zeros((len(index.problem), len(index.extensions)), bool)
    present[index.members[:, 0], index.members[:, 1]] = True
    found: dict[str, list[int]] = {}
    for name, numbers in names.items():
        count = present[:, numbers].sum(axis=1)
        kinds = {kind(index.extensions[n]) for n in numbers}
        if len(kinds) > 1 or 2 * np.count_nonzero(count > 1) > np.count_nonzero(count):
            for n in numbers:
                found[index.extensions[n]] = [n]
        else:
            found[name] = numbers
    if sum(map(len, found.values())) < len(index.extensions):  # two came to the same name
        found = {extension: [n] for n, extension in enumerate(index.extensions)}
    return dict(sorted(found.items(), key=lambda kv: (kind(index.extensions[kv[1][0]]) != "image", kv[0])))


def table(index: TarIndex, wanted: Sequence[Sequence[int]]) -> tuple[Index, Index, TarIndex]:
    """Where the member of each sample and field lies, and the index with samples that have two for one field marked."""
    place = np.full(len(index.extensions), -1)
    for number, extensions in enumerate(wanted):
        place[list(extensions)] = number
    members = index.members[place[index.members[:, 1]] >= 0]
    sample, field = members[:, 0], place[members[:, 1]]
    at = np.zeros((len(index.problem), len(wanted)), np.int64)
    sizes, count = np.full(at.shape, -1, np.int64), np.zeros(at.shape, np.int64)
    at[sample, field], sizes[sample, field] = members[:, 2], members[:, 3]
    np.add.at(count, (sample, field), 1)
    twice = (count > 1).any(axis=1) & (index.problem == 0)
    return at, sizes, replace(index, problem=np.where(twice, np.uint8(TWICE), index.problem), members=members[:0])


def _image(data: bytes, field: Field) -> Array:
    return decode.decode(data)


def _encoded(data: bytes, field: Field) -> Array:
    decode.probe(data)
    return np.frombuffer(data, np.uint8)


def _label(data: bytes, field: Field) -> Array:
    text = data.strip()
    if not text.removeprefix(b"-").isdigit() or len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise InputError(f"{field.name} is {data[:40]!r}, expected a whole number")
    return np.array(int(text), np.int64)


def _text(data: bytes, field: Field) -> Array:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{field.name} is not UTF-8: byte 0x{data[error.start]:02x} at {error.start}") from error
    return np.frombuffer(data, np.uint8)


def _raw(data: bytes, field: Field) -> Array:
    return np.frombuffer(data, np.uint8)


def _npy(data: bytes, field: Field) -> Array:
    dtype, shape, fortran, offset = npy.read_header(io.BytesIO(data), field.name)
    found = np.dtype(dtype)
    if found.newbyteorder("=") != np.dtype(field.dtype):
        raise InputError(f"{field.name} has dtype {found} instead of {field.dtype}")
    count = int(np.prod(shape, dtype=object))
    if len(data) - offset < count * found.itemsize:
        raise InputError(f"{field.name}: cut short: its header promises {shape} of {found}")
    values = np.frombuffer(data, found, count, offset).reshape(shape, order="F" if fortran else "C")
    return little_endian(values)


MAKERS: dict[str, Callable[[bytes, Field], Array]] = {
    "image": _image,
    "encoded": _encoded,
    "label": _label,
    "text": _text,
    "bytes": _raw,
    "array": _npy,
}
