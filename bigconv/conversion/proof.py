"""Proof that a store holds what was made: all of it is read back before anything is published."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from bigconv.digest import Digester, Digests, InnerDigester, block_digest
from bigconv.errors import IncompleteStore
from bigconv.hashes import XXH3, width
from bigconv.view.opening import Opened
from bigconv.view.table import StoreView

T = TypeVar("T")


def prove(opened: Opened, blocks: list[tuple[int, str]], inner: InnerDigester | None = None) -> Digests:
    """Read a laid-out store back as a user will, and compare each block with what its maker saw.

    Gives the canonical digests of the same reading; `inner` gets the rows. Raises `IncompleteStore` naming field and
    rows.
    """
    schema = opened.manifest.schema
    digester = Digester(schema, algorithm=opened.manifest.digests.algorithm)
    start = 0
    with StoreView.of([opened]) as view:
        for rows, expected in blocks:
            for block in view.blocks(start, start + rows, rows):
                digest = block_digest(block)
                if (found := digest.hex()) != expected:
                    size = 2 * width(XXH3)  # hex
                    pairs = zip(schema.names, range(0, len(found), size), strict=True)
                    wrong = [name for name, at in pairs if found[at : at + size] != expected[at : at + size]]
                    raise IncompleteStore(
                        f"{opened.path}: field {', '.join(wrong)}, rows {start} to {start + rows - 1}: what was read "
                        "back differs from what was written: a failing disk or memory"
                    )
                if inner is not None:
                    inner.update(block)
                digester.update(block, digest)  # while it is in the cache
                del block  # or it stays while the next one is read
            start += rows
    return digester.finish()


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Do something beside. An error or Ctrl-C here doesn't wait for it, as it would for that of an executor."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
