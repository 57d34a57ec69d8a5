"""A source whose reader dies once; in a module of its own so that workers, also of another program, can import it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trapped import Trapped

from bigconv.block import Block
from bigconv.sources.base import Reject, Span


@dataclass(frozen=True, eq=False)
class Mortal(Trapped):
    """`Trapped`, and at input `last` the process that reads is killed, unless the file `died` is there already."""

    last: int = -1
    died: str = ""

    def read(self, span: Span) -> Iterator[Block | Reject]:
        if span.start <= self.last < span.stop and self.died and not Path(self.died).exists():
            Path(self.died).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super().read(span)
