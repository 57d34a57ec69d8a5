"""The hashes that digests are made with: xxh3 finds accidents at the speed of memory, SHA-256 finds forgery too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import xxhash

XXH3, SHA256 = "xxh3-128", "sha256"  # as manifests name them
OPTIONS = {"xxh3": XXH3, "sha256": SHA256}  # as `--digest` does
OPTION_OF = {name: option for option, name in OPTIONS.items()}
_MADE: dict[str, Callable[[], Any]] = {XXH3: xxhash.xxh3_128, SHA256: hashlib.sha256}
_WIDTH: dict[str, int] = {name: made().digest_size for name, made in _MADE.items()}


def hasher(algorithm: str) -> Any:
    """A new hash with `update`, `digest` and `hexdigest`. Raises `KeyError` for an algorithm that isn't known."""
    return _MADE[algorithm]()


def width(algorithm: str) -> int:
    """Bytes of a digest. Raises `KeyError` for an algorithm that isn't known."""
    return _WIDTH[algorithm]
