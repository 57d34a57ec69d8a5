"""Options that commands share, and the order in which steps were typed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Paths = Annotated[list[Path], typer.Argument(show_default=False)]

STEPS = "bigconv.steps"


def step(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    """Note a transform in the order it was typed: click calls back in that order."""
    if value is not None and not ctx.resilient_parsing:
        source = ctx.get_parameter_source(param.name or "")
        if source is not None and source.name == "COMMANDLINE":
            ctx.meta.setdefault(STEPS, []).append((param.name, str(value)))
    return value


def steps(ctx: typer.Context) -> tuple[tuple[str, str], ...]:
    return tuple(ctx.meta.get(STEPS, ()))
