"""Options that commands share, and the order in which steps were typed."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated, Any, TextIO

import typer

from bigconv.cli.help import Command

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else, on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]

ENGINES = "Parts made by several processes or machines"
Engine = Annotated[
    str,
    typer.Option(
        "--engine", metavar="NAME", help="Who makes them: local | serial | dask[:HOST:PORT].", rich_help_panel=ENGINES
    ),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        "--memory-limit", metavar="2GB", help="Memory that all processes together may take.", rich_help_panel="Policy"
    ),
]
Rank = Annotated[
    str | None,
    typer.Option(
        "--rank", metavar="I/N", help="In a job array: make every N-th part only, I from 0 on.", rich_help_panel=ENGINES
    ),
]
Finalize = Annotated[
    bool, typer.Option("--finalize", help="Publish what all ranks have made.", rich_help_panel=ENGINES)
]

STEPS = ("resize", "crop", "normalize", "dtype", "layout", "map_", "filter_", "select", "rename", "sparse")
_TYPED = "bigconv.steps"


class InOrder(Command):
    """A command that notes its steps in the order they were typed, which click itself forgets."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        left = {name: list(values[name]) for name in STEPS if values.get(name)}
        ctx.meta[_TYPED] = [(p.name.rstrip("_"), left[p.name].pop(0)) for p in order if p.name in left]
        return super().parse_args(ctx, args)


def steps(ctx: typer.Context) -> tuple[tuple[str, str], ...]:
    """Transforms as `(name, value)`, in the order typed."""
    return tuple(ctx.meta.get(_TYPED, ()))


def aside() -> redirect_stdout[TextIO]:
    """While functions of the user run in this process: what they print goes with the messages, stdout is ours."""
    return redirect_stdout(sys.stderr)


def print_json(document: dict[str, Any]) -> None:
    """One document on stdout; in ASCII, as a path may hold bytes that no encoding of stdout can."""
    import json

    typer.echo(json.dumps(document, indent=2))
