"""`--help` at any width: options in two columns, under the headings of their groups; what a switch takes is nothing.

typer draws boxes around what it makes of types (`<list[str]>`, `[x>=0]`), and otherwise in each of its versions.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

WIDEST = 100  # columns: longer lines are hard to read
NARROWEST = 40  # columns: what is narrower breaks the lines itself, and columns of a word's width help nobody
NARROW = 70  # columns: below it the left column takes less
OPTIONS = "Options"

Row = tuple[str, str]


class Command(TyperCommand):
    """A command whose help is drawn here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """An empty path would be the current folder."""
        if "" in args:
            from bigconv.errors import UsageError

            raise UsageError("an empty word on the command line: is a variable not set?")
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Usage, what it does, arguments, then options group by group, those of no group first."""
        parameters = [p for p in self.get_params(ctx) if not getattr(p, "hidden", False)]
        arguments: list[Any] = [p for p in parameters if p.param_type_name == "argument"]
        groups: dict[str, list[Row]] = {OPTIONS: []}
        for p in parameters:
            if p.param_type_name == "option":
                groups.setdefault(getattr(p, "rich_help_panel", None) or OPTIONS, []).append((_name(p), _about(p)))
        usage = " ".join(str(p.metavar) for p in arguments)
        told = [(str(p.metavar), p.help or "") for p in arguments]
        formatter.write(page(f"{ctx.command_path} {usage} [OPTIONS]", self.help or "", {"": told, **groups}))


class Group(TyperGroup):
    """The program itself: its commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, self.commands[name].help or "") for name in self.list_commands(ctx)]
        told = [(name, " ".join(about.split("\n\n")[0].split())) for name, about in commands]
        options = [(_name(p), _about(p)) for p in self.get_params(ctx)]
        usage = f"{ctx.command_path} COMMAND ... [OPTIONS]"
        formatter.write(page(usage, self.help or "", {"Commands": told, OPTIONS: options}))


def _name(option: Any) -> str:
    """As it is typed, the short form first: `-q, --quiet`, `--limit N`."""
    names = ", ".join(sorted(option.opts, key=len))
    return names if option.is_flag or not option.metavar else f"{names} {option.metavar}"


def _about(option: Any) -> str:
    text, default = option.help or "", option.default
    if option.is_flag or default is None or callable(default) or not option.show_default:
        return text
    return f"{text} [{default:g}]" if isinstance(default, float) else f"{text} [{default}]"


def page(usage: str, about: str, groups: dict[str, list[Row]]) -> str:
    """All of it, as wide as the terminal is."""
    width = max(min(shutil.get_terminal_size().columns, WIDEST), NARROWEST)
    left = 20 if width < NARROW else 28
    paragraphs = [" ".join(paragraph.split()) for paragraph in about.split("\n\n")]
    lines = [f"{_bold('Usage:')} {usage}"]
    for paragraph in paragraphs:
        lines += ["", *wrap(paragraph, width)]
    for heading, rows in groups.items():
        if rows:
            lines += ["", *([_bold(heading)] if heading else []), *_columns(rows, width, left)]
    return "\n".join(lines) + "\n"


def _columns(rows: Iterable[Row], width: int, left: int) -> Iterator[str]:
    """Two columns; what is too long for the first has a line of its own."""
    for name, about in rows:
        text = wrap(about, width - left) or [""]
        if len(name) + 4 > left:
            yield f"  {_option(name)}"
        else:
            yield f"  {_option(name)}{' ' * (left - 2 - len(name))}{text.pop(0)}".rstrip()
        yield from (" " * left + line for line in text)


def _plain() -> bool:
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def _bold(text: str) -> str:
    return text if _plain() else typer.style(text, bold=True)


def _option(text: str) -> str:
    return text if _plain() else typer.style(text, fg=typer.colors.CYAN)
