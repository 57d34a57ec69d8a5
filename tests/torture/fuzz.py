"""Odd bytes where bigconv reads structure: manifests, journals, provenance, headers of npy, tar and HDF5.

Mutations know the structure: a manifest or a journal is changed as JSON and sealed again with the checksums that fit,
a tar header gets its checksum anew, numbers become others of their width. What comes of it may be a `BigconvError` or a
result; nothing else, within seconds and within a ceiling of memory. All runs in a child, which a crash ends.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import random
import resource
import shutil
import signal
import struct
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bigconv import fsio, manifest
from bigconv.conversion import build, journal
from bigconv.conversion.request import Request
from bigconv.conversion.run import Policy
from bigconv.dataset import DatasetManifest
from bigconv.errors import BigconvError, Interrupted
from bigconv.manifest import Manifest, canonical
from bigconv.provenance import Provenance
from bigconv.sources import npy
from bigconv.sources.named import NamedFiles
from bigconv.sources.tar_index import TarIndex
from bigconv.view.opening import open_store
from bigconv.view.report import verify
from tests.torture import Case
from tests.torture._child import streamed
from tests.torture._runs import checkpoints_everywhere, contents, folders, request, workspace

TRIES = 20_000  # of each target, at scale 1; a tenth of the slow ones
SECONDS = 20  # of one try
ROOM = 1 << 30  # 1 GiB a try may allocate: no input here has more than a few KiB
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**62, 2**63, 2**64, 2**70, -(2**63), 0.5, 1e308, "", "x", "..", "../x"),
    *("/etc/passwd", "\0", "é", "\ud800", "a/b", "float32", "object", "x" * 5000, [], {}, [[]], [None], [-1], [2**62]),
    *({"x": 1}, [2**62, 2**62], [None, None]),
)


def run(scale: float) -> Iterator[Case]:
    with workspace() as root, checkpoints_everywhere():
        for target in (_manifests, _datasets, _provenance, _npy, _tars, _hdf5, _journals):
            tries = max(10, round(TRIES * scale / (10 if target in (_hdf5, _journals) else 1)))
            place = root / target.__name__
            place.mkdir()
            yield from streamed(lambda target=target, tries=tries, place=place: _tried(target(place, tries)))


Try = tuple[str, Callable[[], object]]


def _tried(tries: Iterator[Try]) -> Iterator[Case]:
    """In the child: each try, with what is wrong with how it ended."""
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + ROOM, used + ROOM))
    signal.signal(signal.SIGALRM, _late)
    for name, act in tries:
        signal.alarm(SECONDS)
        try:
            act()
            failure = ""
        except BigconvError as error:
            failure = f"a message of {len(str(error))} characters" if len(str(error)) > 4000 else ""
        except BaseException as error:  # noqa: BLE001  what is not meant to come is what is looked for
            failure = f"{type(error).__name__}: {error!s:.300}"
        finally:
            signal.alarm(0)
        yield Case(name, failure)


def _late(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


# -- mutations ----------------------------------------------------------------------------------------------------


def changed_value(value: Any, rng: random.Random) -> Any:
    """A copy of JSON values with one place changed: another value, nothing, one more, or itself nested deeply."""
    top = [copy.deepcopy(value)]
    holder: Any = top
    key: Any = 0
    while isinstance(holder[key], (dict, list)) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    kind = rng.random()
    if kind < 0.15 and holder is not top:
        del holder[key]
    elif kind < 0.2:
        for _ in range(3000):
            holder[key] = [holder[key]]
    elif kind < 0.3 and isinstance(holder[key], str):
        text = holder[key]
        at = rng.randrange(len(text) + 1)
        holder[key] = text[:at] + rng.choice(["0", "\n", "\x1b[31m", "ff"]) + text[at + rng.randrange(3) :]
    elif kind < 0.4 and isinstance(holder[key], int):
        holder[key] += rng.choice([-1, 1, 7, 2**32])
    elif kind < 0.45 and isinstance(holder[key], list):
        holder[key] = holder[key] * rng.choice([2, 1000])
    elif kind < 0.5 and isinstance(holder[key], dict):
        holder[key][rng.choice(["x", "..", "", "\0"])] = rng.choice(ODD)
    else:
        holder[key] = rng.choice(ODD)
    return top[0]


def changed_bytes(raw: bytes, rng: random.Random) -> bytes:
    """One to four places changed: a bit, a byte, a number of 1 to 8 bytes, a piece cut, doubled, or moved."""
    out = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice(b"\0\xff\x7f\x80 09\n'({[-.")
        elif kind == 2:
            size = rng.choice([1, 2, 4, 8])
            number = rng.choice([0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1])
            at -= at % size
            out[at : at + size] = number.to_bytes(size, rng.choice(["little", "big"]))
        elif kind == 3:
            del out[at : at + rng.randrange(40)]
        elif kind == 4:
            out[at:at] = out[max(0, at - rng.randrange(40)) : at]
        else:
            out[at:at] = rng.randbytes(rng.randrange(9))
    return bytes(out)


# -- targets ------------------------------------------------------------------------------------------------------


def _store(place: Path, suffix: str, shards: int | None = None) -> Path:
    source, dest = folders(place, 6)[1], place / f"out{suffix}"
    Request((source,), dest, shards=shards, policy=Policy(0)).run()
    return dest


def _manifests(place: Path, tries: int) -> Iterator[Try]:
    yield from _of_manifest("manifest", _store(place, ".mmap"), Manifest, tries)


def _datasets(place: Path, tries: int) -> Iterator[Try]:
    dest = _store(place, "", shards=2)
    yield from _of_manifest("manifest of parts", dest, DatasetManifest, tries)
    kind = "digests of parts"
    (file,) = dest.glob("digests-*.bin")
    whole = file.read_bytes()
    for i in range(tries // 20):

        def read(raw: bytes = changed_bytes(whole, random.Random(i))) -> None:
            file.write_bytes(raw)
            try:
                verify(open_store(dest))
            finally:
                file.write_bytes(whole)

        yield f"{kind} {i}", read


def _of_manifest(kind: str, dest: Path, form: type[Manifest], tries: int) -> Iterator[Try]:
    file = dest / "manifest.json"
    whole = json.loads(file.read_bytes())
    for i in range(tries):
        rng = random.Random(i)
        if i % 4 == 0:
            raw = changed_bytes(file.read_bytes(), rng)
        else:
            body = changed_value({k: v for k, v in whole.items() if k != "checksum"}, rng)
            with contextlib.suppress(TypeError, ValueError, RecursionError, UnicodeEncodeError, AttributeError):
                body["checksum"] = manifest._checksum(body)
            try:
                raw = canonical(body)
            except (ValueError, RecursionError, UnicodeEncodeError):
                continue
        yield f"{kind} {i}", lambda raw=raw: form.from_bytes(raw, "fuzz")
        if i % 20 == 3:  # the same, through the store: files and digests that don't fit

            def opened(raw: bytes = raw) -> None:
                original = file.read_bytes()
                file.write_bytes(raw)
                try:
                    verify(open_store(dest))
                finally:
                    file.write_bytes(original)

            yield f"{kind} {i} of a store", opened


def _provenance(place: Path, tries: int) -> Iterator[Try]:
    raw = (_store(place, ".mmap") / "provenance.bin").read_bytes()

    def used(changed: bytes) -> None:
        table = Provenance.from_bytes(changed, "fuzz")
        for file in range(min(50, len(table.ends))):
            table.name(file)
        for row in (0, 3, 10**6):
            table.whence(row)

    for i in range(tries):
        changed = changed_bytes(raw, random.Random(i))
        yield f"provenance {i}", lambda changed=changed: used(changed)


def _npy(place: Path, tries: int) -> Iterator[Try]:
    whole = []
    for array in (np.arange(6).reshape(2, 3), np.array(["ab", "c"]), np.float32(1), np.zeros((0, 4), ">c8")):
        stream = io.BytesIO()
        np.save(stream, array)
        whole.append((".npy", stream.getvalue()))
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, x=np.arange(50), t=np.array("text"))
        whole.append((".npz", stream.getvalue()))

    def used(path: Path) -> None:
        for file in npy.array_files(path):
            npy.field_of("x", file.dtype, file.shape[1:], file.where)
            np.array(file.open())

    for i in range(tries):
        rng = random.Random(i)
        ending, raw = rng.choice(whole)
        path = place / f"x{ending}"

        def act(path: Path = path, raw: bytes = changed_bytes(raw, rng)) -> None:
            path.write_bytes(raw)
            used(path)

        yield f"{ending} {i}", act


def _tars(place: Path, tries: int) -> Iterator[Try]:
    whole = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
            for name in ("a.txt", "a.cls", "folder/b.txt", "é" * 60 + ".txt", "long/" * 30 + "c.txt"):
                with contextlib.suppress(ValueError):  # ustar has no room for some
                    info = tarfile.TarInfo(name)
                    info.size = 5
                    archive.addfile(info, io.BytesIO(b"01234"))
        whole.append(stream.getvalue())
    path = place / "x.tar"
    for i in range(tries):
        rng = random.Random(i)
        raw = bytearray(rng.choice(whole))
        if i % 3 == 0:
            raw[:] = changed_bytes(bytes(raw), rng)
        else:  # a field of a header, with the checksum that fits
            at = 512 * rng.randrange(len(raw) // 512)
            start, stop = rng.choice([(0, 100), (124, 136), (156, 157), (257, 265), (345, 500)])
            field = changed_bytes(bytes(raw[at + start : at + stop]), rng)[: stop - start].ljust(stop - start, b"\0")
            raw[at + start : at + stop] = field
            raw[at + 148 : at + 156] = b" " * 8
            raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])

        def act(raw: bytes = bytes(raw)) -> None:
            path.write_bytes(raw)
            index = TarIndex.scan(NamedFiles.of([path], (".tar",), "tar"))
            for sample in range(min(20, len(index.ends))):
                index.key(sample)

        yield f"tar {i}", act


def _hdf5(place: Path, tries: int) -> Iterator[Try]:
    path = _store(place, ".h5")
    whole = path.read_bytes()
    for i in range(tries):
        rng = random.Random(i)
        raw = bytearray(changed_bytes(whole, rng))
        if i % 2:
            raw = bytearray(whole)
            for _ in range(rng.randint(1, 3)):  # within an object header, with the checksum that fits
                _change_header(raw, rng)

        def act(raw: bytes = bytes(raw)) -> None:
            path.write_bytes(raw)
            opened = open_store(path)
            verify(opened)

        yield f"HDF5 {i}", act


def _change_header(raw: bytearray, rng: random.Random) -> None:
    """Change bytes of one object header of version 2 (HDF5 format, IV.A.1.b) and its checksum."""
    starts = [at for at in range(len(raw) - 4) if raw[at : at + 4] == b"OHDR"]
    at = rng.choice(starts)
    flags = raw[at + 5]
    begin = at + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    size = int.from_bytes(raw[begin : begin + width], "little")
    end = begin + width + size
    place = rng.randrange(begin + width, end)
    raw[place] = rng.choice([0, 1, 0xFF, 0x7F, raw[place] ^ (1 << rng.randrange(8))])
    raw[end : end + 4] = struct.pack("<I", lookup3(bytes(raw[at:end])))


def lookup3(key: bytes) -> int:
    """Jenkins' `hashlittle`, the checksum of HDF5's metadata (public domain: burtleburtle.net/bob/c/lookup3.c)."""
    mask = 0xFFFFFFFF

    def rot(x: int, k: int) -> int:
        return ((x << k) | (x >> (32 - k))) & mask

    a = b = c = (0xDEADBEEF + len(key)) & mask
    while len(key) > 12:
        a, b, c = ((v + n) & mask for v, n in zip((a, b, c), struct.unpack("<3I", key[:12]), strict=True))
        for k1, k2, k3 in ((4, 6, 8), (16, 19, 4)):
            a = (a - c) & mask ^ rot(c, k1)
            c = (c + b) & mask
            b = (b - a) & mask ^ rot(a, k2)
            a = (a + c) & mask
            c = (c - b) & mask ^ rot(b, k3)
            b = (b + a) & mask
        key = key[12:]
    if not key:
        return c
    a, b, c = ((v + n) & mask for v, n in zip((a, b, c), struct.unpack("<3I", key.ljust(12, b"\0")), strict=True))
    c = ((c ^ b) - rot(b, 14)) & mask
    a = ((a ^ c) - rot(c, 11)) & mask
    b = ((b ^ a) - rot(a, 25)) & mask
    c = ((c ^ b) - rot(b, 16)) & mask
    a = ((a ^ c) - rot(c, 4)) & mask
    b = ((b ^ a) - rot(a, 14)) & mask
    return ((c ^ b) - rot(b, 24)) & mask


def _journals(place: Path, tries: int) -> Iterator[Try]:
    """Unfinished work whose journal was changed, also with a chain that fits: gone on from, or refused."""
    source = folders(place)[1]
    for suffix in (".mmap", ".h5", ".zarr", ".lmdb"):
        here = place / suffix[1:]
        here.mkdir()
        dest = here / f"out{suffix}"
        request(source, dest).run()
        expected = contents(dest)
        fsio.remove(dest)
        plan, _ = request(source, dest).plan()
        with contextlib.suppress(Interrupted), build.building(dest, plan) as one:
            from bigconv.conversion.task import run_span

            for span in plan.spans[:2]:
                for item in run_span(plan.work, span):
                    one.append(item)
                one.span_done()
            raise Interrupted("half-way")
        kept = here / "kept"
        shutil.copytree(build.partial_folder(dest), kept)
        lines = [json.loads(line) for line in (kept / "journal").read_bytes().splitlines()]
        for i in range(tries // 4):
            rng = random.Random(i)
            forged = i % 3 != 0
            if forged:
                raw = _chained(changed_value(lines, rng), plan.hash)
            else:
                raw = changed_bytes((kept / "journal").read_bytes(), rng)
            act = partial(_resumed, raw, forged, kept, source, dest, expected)
            yield f"journal {suffix} {i}{' forged' * forged}", act


def _chained(lines: Any, plan: str) -> bytes:
    """Journal records with hashes that fit, as far as they are records."""
    chain = hashlib.sha256(f"bigconv journal {journal.VERSION} {plan}".encode()).hexdigest()
    out = b""
    for body in lines if isinstance(lines, list) else []:
        if isinstance(body, dict):
            body.pop("chain", None)
            with contextlib.suppress(ValueError, RecursionError):
                text = json.dumps(body, sort_keys=True, separators=(",", ":"))
                chain = hashlib.sha256((chain + text).encode()).hexdigest()
                out += json.dumps({**body, "chain": chain}, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    return out


def _resumed(raw: bytes, forged: bool, kept: Path, source: Path, dest: Path, expected: dict[str, bytes]) -> None:
    folder = build.partial_folder(dest)
    fsio.remove(folder)
    fsio.remove(dest)
    shutil.copytree(kept, folder)
    (folder / "journal").write_bytes(raw)
    try:
        request(source, dest).run()
    except Exception as error:
        if isinstance(error, BigconvError) or not forged or dest.exists():
            raise
        return  # a journal with a chain that fits is believed; what matters is that nothing was published
    if contents(dest) != expected:
        raise SystemError("published something else")
