"""`bigconv.batched`: marks a function of `--map` or `--filter` as one of whole columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])


def batched(function: _F) -> _F:
    """Mark a function for `--map` or `--filter` that takes the columns of many rows at once.

    It takes a dict of columns: arrays `[rows, ...]`, or `bigconv.Ragged` where rows differ in size (text: its UTF-8
    bytes). For `--map` it returns such a dict, with as many rows; a column may also be a list, of `str` or of arrays.
    For `--filter` it returns bool `[rows]`. How many rows come together is not defined: a result may only depend on its
    own row. A keyword `seeds`, if it has one, gets a random number for each row, uint64 `[rows]`.
    """
    function.__bigconv_batched__ = True  # type: ignore[attr-defined]
    return function


def is_batched(function: Any) -> bool:
    return getattr(function, "__bigconv_batched__", False) is True
