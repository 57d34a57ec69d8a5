"""`--help` at any width, and what is said of a command line that can't be understood."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from typing import Any

import pytest
import typer.main

import bigconv
from bigconv.cli.app import app

COMMANDS = ("", "convert", "shard", "inspect", "bench")
RUN = [sys.executable, "-m", "bigconv"]


def ran(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "TERM")}
    return subprocess.run(
        [*RUN, *words], capture_output=True, text=True, check=False, env={**kept, "TERM": "xterm", **environment}
    )


def command(name: str) -> Any:
    group: Any = typer.main.get_command(app)
    return group.commands[name] if name else group


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_and_is_complete(name: str, width: int) -> None:
    """Every option with what it takes and what it does, in lines that fit, and nothing that typer makes of types."""
    done = ran(*filter(None, [name]), "--help", COLUMNS=str(width))
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("Usage: bigconv")
    assert not re.search(r"<\w+>|\[required\]|x>=|\x1b|[╭│╰]|default: ", done.stdout)
    flowing = " ".join(done.stdout.split())
    for option in command(name).params:
        if option.param_type_name == "option":
            takes = "" if option.is_flag else f" {option.metavar}"
            assert re.search(rf"(^|[ ,]){re.escape(option.opts[0] + takes)} ", flowing), option.name
            assert option.is_flag or option.metavar
        assert " ".join(option.help.split()) in flowing


def test_options_say_what_they_do() -> None:
    for name in COMMANDS:
        for option in command(name).params:
            assert re.search(r"[.?)\]]$", option.help), option.name
            assert option.help[0].isupper() or " | " in option.help, option.name


def on_a_terminal(**environment: str) -> str:
    """What a terminal of 60 columns is sent."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*RUN, "inspect", "--help"],
        stdout=theirs,
        env={
            **{k: v for k, v in os.environ.items() if k != "NO_COLOR"},
            "COLUMNS": "60",
            "TERM": "xterm",
            **environment,
        },
    ) as process:
        os.close(theirs)
        sent = b""
        try:
            while piece := os.read(ours, 65536):
                sent += piece
        except OSError:  # Linux tells so that the other side is closed
            pass
        process.wait()
    os.close(ours)
    return sent.decode()


def test_colours_only_on_a_terminal_that_wants_them() -> None:
    assert "\x1b[36m--stats" in on_a_terminal()
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in on_a_terminal(**environment)


def test_nothing_typed_and_the_version() -> None:
    assert ran().stdout == ran("-h").stdout
    assert ran("--version").stdout == f"bigconv {bigconv.__version__}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("convert", "--resise", "3"), "--resize"),
        (("convert", "a", "b.h5", "--workers", "x"), "'--workers'"),
        (("inspect", "a.h5", "--head", "-1"), "'--head'"),
        (("inspect", "a.h5", "--row"), "'--row'"),
        (("inspect",), "PATH"),
        (("shard",), "STORE... DEST"),
        (("sahrd", "a.h5"), "sahrd"),
    ],
    ids=str,
)
def test_what_cannot_be_understood(words: tuple[str, ...], told: str) -> None:
    done = ran(*words)
    first, second = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert first.startswith("bigconv: ")
    assert told in first
    assert second.startswith("See: bigconv")
    assert second.endswith("--help")


@pytest.mark.parametrize("width", [1, 20])
def test_no_terminal_is_too_narrow(width: int) -> None:
    for name in COMMANDS:
        done = ran(*filter(None, [name]), "--help", COLUMNS=str(width))
        assert (done.returncode, done.stderr) == (0, "")


def test_an_empty_word_is_not_the_current_folder() -> None:
    for words in (("convert", "", "out.h5"), ("inspect", ""), ("shard", "", "parts"), ("bench", "")):
        done = ran(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "bigconv: an empty word on the command line: is a variable not set?\n"
