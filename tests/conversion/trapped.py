"""A source with inputs that end the process that reads them; in a module of its own so that workers can import it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bigconv.block import Block
from bigconv.errors import InputError
from bigconv.schema import Field, Schema
from bigconv.sources.base import Reject, Span, even_spans, origins
from bigconv.sources.filelist import FileList


@dataclass(frozen=True, eq=False)
class Trapped:
    """`rows` inputs in spans of `step`; `traps`: input -> what it does."""

    name: ClassVar[str] = "trapped"
    decodes: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ()
    hints: ClassVar[tuple[str, ...]] = ()
    schema: ClassVar[Schema] = Schema((Field("x", "int64", (40,)), Field("t", "uint8", (None,))))

    rows: int
    step: int
    traps: dict[int, str]
    pause: float = 0.0

    @property
    def inputs(self) -> int:
        return self.rows

    @property
    def files(self) -> FileList:
        names = [f"{i:04}.bin".encode() for i in range(self.rows)]
        zeros = np.zeros(self.rows, np.int64)
        return FileList("", b"".join(names), np.cumsum([len(n) for n in names]), zeros, zeros)

    def plan(self) -> Sequence[Span]:
        return even_spans(self.rows, self.step)

    def read(self, span: Span) -> Iterator[Block | Reject]:
        for i in range(span.start, span.stop):
            trap = self.traps.get(i)
            if trap == "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif trap == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif trap == "exit":
                os._exit(3)
            elif trap == "hang":
                time.sleep(1000)
            elif trap == "hoard":
                np.ones(1 << 30, np.uint8)  # 1 GiB
            elif trap == "bug":
                raise ZeroDivisionError("a bug")
            elif trap == "refuse":
                raise InputError("the whole span is wrong")
            elif trap == "reject":
                yield Reject(self.files.name(i), 0, "decode", "bad")
                continue
            time.sleep(self.pause)
            yield Block(self.schema, self.columns(i, i + 1), origins(np.arange(i, i + 1)))

    @classmethod
    def columns(cls, start: int, stop: int) -> dict[str, Any]:
        """What the rows of inputs `start` to `stop` are."""
        from bigconv.block import Ragged

        x = np.arange(start, stop)[:, None] * 1000 + np.arange(40)
        return {
            "x": x,
            "t": Ragged.of([np.full(i % 7, i % 251, np.uint8) for i in range(start, stop)], cls.schema["t"]),
        }

    def describe(self) -> dict[str, Any]:
        return {"kind": self.name, "rows": self.rows}


@dataclass(frozen=True, eq=False)
class Late(Trapped):
    """`Trapped`, but a process that is to read takes a second to start."""

    def __reduce__(self) -> Any:
        return _late, (self.rows, self.step, self.traps)


def _late(rows: int, step: int, traps: dict[int, str]) -> Late:
    time.sleep(1)
    return Late(rows, step, traps)
