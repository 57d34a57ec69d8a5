"""Text to token ids: bytes, tiktoken, a `tokenizers` file, or a function of the user's."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numpy as np

from bigconv.block import Array, Index
from bigconv.errors import InputError, UsageError
from bigconv.registry import missing
from bigconv.schema import unknown

WAYS = ("byte", "tiktoken:NAME", "FILE.json", "MODULE:FUNCTION")
FILE_BYTES = 256 << 20  # 256 MiB: the largest vocabularies there are take 30
TOKENIZE_BYTES = 1 << 20  # 1 MiB of text at once: libraries take 100 bytes of memory a token
Encode = Callable[[Sequence[str]], Sequence[Any]]


@dataclass(frozen=True)
class Tokenizer:
    """A way to make ids of text. Special tokens are neither added, nor read from the text by tiktoken.

    `what`: as it was typed, for this machine; `name`: without folders; `sha256`: of the file that decides the ids;
    `vocabulary`: ids are below it, None where nobody knows.
    """

    what: str
    name: str
    vocabulary: int | None
    sha256: str | None

    @classmethod
    def of(cls, what: str) -> Tokenizer:
        """Find it, and how many ids it has. Raises `UsageError`, `InputError`, `MissingPackage`."""
        if what == "byte":
            return cls(what, what, 256, None)
        if what.lower().endswith(".json"):
            path = Path(what).absolute()
            digest = _digest(path)
            return cls(str(path), path.name, _file(str(path), digest).get_vocab_size(with_added_tokens=True), digest)
        where, _, name = what.partition(":")
        if where == "tiktoken" and name:
            return cls(what, what, _tiktoken(name).n_vocab, None)
        if name.isidentifier() and all(part.isidentifier() for part in where.split(".")):
            folder = str(Path.cwd())
            size = getattr(_function(what, folder), "vocab_size", None)
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= 2**32):
                raise UsageError(f"--tokenizer {what}: its vocab_size is {size!r:.80}, expected a whole number")
            origin = getattr(sys.modules[where], "__file__", None)
            return cls(f"{folder}\0{what}", what, size, _digest(Path(origin)) if origin else None)
        raise UsageError(f"--tokenizer: {unknown('way', what, WAYS)}")

    @property
    def dtype(self) -> str:
        """uint16 when all ids fit, else uint32."""
        return "uint16" if self.vocabulary is not None and self.vocabulary <= 1 << 16 else "uint32"

    def encode(self, texts: Sequence[str]) -> list[Array | InputError]:
        """Ids of each text, of `dtype`; or why there are none."""
        if self.what == "byte":
            return [np.frombuffer(text.encode(), np.uint8).astype(self.dtype) for text in texts]
        encode = self._encoder()
        try:
            return [self._ids(ids) for ids in encode(texts)]
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  a user's function, or a library of Rust's: which text is it?
            return [self._one(encode, text) for text in texts]

    def _one(self, encode: Encode, text: str) -> Array | InputError:
        try:
            return self._ids(encode([text])[0])
        except InputError as error:
            return error
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  as above
            why = " ".join(str(error).split())[:200]
            return InputError(f"tokenizer {self.name} failed: {type(error).__name__}: {why}")

    def _ids(self, ids: Any) -> Array:
        array = np.asarray(ids)
        if array.size == 0 and array.ndim == 1:
            return np.empty(0, self.dtype)
        limit = self.vocabulary or 1 << 32
        if array.ndim != 1 or array.dtype.kind not in "iu" or int(array.min()) < 0 or int(array.max()) >= limit:
            raise InputError(f"tokenizer {self.name} gave no list of whole numbers below {limit}: {str(ids)[:80]}")
        return array.astype(self.dtype)

    def _encoder(self) -> Encode:
        if self.what.startswith("tiktoken:"):
            tiktoken = _tiktoken(self.what.partition(":")[2])
            return lambda texts: tiktoken.encode_ordinary_batch(list(texts), num_threads=1)
        if "\0" in self.what:
            folder, what = self.what.split("\0")
            function = _function(what, folder)
            return lambda texts: [function(text) for text in texts]
        file = _file(self.what, str(self.sha256))
        return lambda texts: [e.ids for e in file.encode_batch_fast(list(texts), add_special_tokens=False)]

    def describe(self) -> dict[str, Any]:
        told: dict[str, Any] = {"name": self.name, "vocabulary": self.vocabulary}
        return told if self.sha256 is None else {**told, "sha256": self.sha256}


def batches(offsets: Index) -> Iterator[tuple[int, int]]:
    """Rows from and to, about `TOKENIZE_BYTES` together."""
    start = 0
    while start < len(offsets) - 1:
        stop = int(np.searchsorted(offsets, offsets[start] + TOKENIZE_BYTES, "right")) - 1
        stop = min(max(stop, start + 1), start + 65_536)
        yield start, stop
        start = stop


@cache
def _tiktoken(name: str) -> Any:
    try:
        import tiktoken
    except ModuleNotFoundError as error:
        raise missing("tiktoken", "text", f"--tokenizer tiktoken:{name}") from error
    if name not in tiktoken.list_encoding_names():
        raise UsageError(f"--tokenizer: {unknown('encoding of tiktoken', name, tiktoken.list_encoding_names())}")
    try:
        return tiktoken.get_encoding(name)
    except Exception as error:
        raise InputError(
            f"tiktoken:{name} can't be loaded: {type(error).__name__}.\n"
            "Its files are downloaded once: do so where there is a network, and set TIKTOKEN_CACHE_DIR"
        ) from error


@cache
def _file(path: str, digest: str) -> Any:
    """`digest`: SHA-256 that the file must have, in every worker."""
    if parent_process() is not None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes are the parallelism
    try:
        from tokenizers import Tokenizer as Made
    except ModuleNotFoundError as error:
        raise missing("tokenizers", "text", f"--tokenizer {Path(path).name}") from error
    if _digest(Path(path)) != digest:
        raise InputError(f"{path}: the file has changed since the conversion began")
    try:
        made = Made.from_file(path)
    except Exception as error:
        raise InputError(f"{path}: no file of the tokenizers library: {str(error)[:200]}") from error
    made.no_truncation()  # a file may carry what it was trained with
    made.no_padding()
    return made


@cache
def _function(what: str, folder: str) -> Callable[[str], Any]:
    where, _, name = what.partition(":")
    if folder not in sys.path:
        sys.path.append(folder)  # last: a file of the user's must not hide one of Python's
    try:
        found = getattr(importlib.import_module(where), name, None)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"--tokenizer {what} can't be loaded: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UsageError(f"--tokenizer {what}: there is no function {name} in {where}")
    return found  # type: ignore[no-any-return]


def _digest(path: Path) -> str:
    try:
        if path.stat().st_size > FILE_BYTES:
            raise InputError(f"{path}: more than {FILE_BYTES >> 20} MiB are no tokenizer")
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"--tokenizer {path}: {error.strerror}") from error
