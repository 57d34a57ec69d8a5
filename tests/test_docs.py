"""Every snippet of README.md and docs/ runs, every option they name exists, every link leads somewhere.

A snippet runs in a folder with `sample_data` beside it, after those above it in the same document. Lines that set
the machine up (`make …`, `pip install …`) are left out. What a document takes for granted, such as a store that it
speaks of, is made by Python in a comment that readers don't see: `<!-- made before:`, the code, `-->`. A snippet
that can't run is marked `<!-- not run: why -->` on the line above it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import bigconv
from bigconv.cli.app import app
from tests.warm import Warm

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SETUP = re.compile(r"\s*(make|pip install)\b")
FENCE = re.compile(
    r"^(?P<mark><!-- not run: [^\n]+ -->\n)?```(?P<language>sh|python)\n(?P<code>.*?)^```$"
    r"|^<!-- made before:\n(?P<hidden>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)


def snippets(document: Path) -> list[tuple[str, str]]:
    """Language and code of each snippet that is to run."""
    found = []
    for match in FENCE.finditer(document.read_text(encoding="utf-8")):
        code = match["hidden"] or match["code"]
        lines = [line for line in code.splitlines() if not SETUP.match(line)]
        if match["mark"] is None and any(line.strip() for line in lines):
            found.append((match["language"] or "python", "\n".join(lines) + "\n"))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_snippets_run(document: Path, tmp_path: Path, warm: Warm) -> None:
    some = snippets(document)
    if not some:
        pytest.skip("no snippets")
    shutil.copytree(ROOT / "sample_data", tmp_path / "sample_data", ignore=shutil.ignore_patterns("__pycache__"))
    if document.parent.name == "docs":  # a document on stores speaks of ones that are there
        for suffix in (".mmap", ".h5", ".lmdb", ".zarr"):
            bigconv.convert(tmp_path / "sample_data" / "images", tmp_path / f"out{suffix}", resize=64, workers=0)
    for language, code in some:
        for result in in_shell(code, tmp_path, warm) if language == "sh" else [warm.python(code, tmp_path)]:
            assert result.returncode == 0, f"{code}\n{result.stderr}"
            assert "Warning" not in result.stderr, result.stderr


def in_shell(code: str, folder: Path, warm: Warm) -> Iterator[subprocess.CompletedProcess[str]]:
    """Commands one after another. Where `bigconv` is all that there is, nothing needs a shell."""
    lines = code.replace("\\\n", " ").splitlines()
    bare = re.sub(r"'[^']*'|(?<!\S)#.*", "", "\n".join(lines))  # without what a shell takes as it is
    commands = [] if set(bare) & set('|&;<>$`*?~(){}!"') else [shlex.split(line, comments=True) for line in lines]
    if any(words and words[0] != "bigconv" for words in commands) or not commands:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        yield subprocess.run(
            ["sh", "-e", "-c", code],
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=120,
            env={**os.environ, "PATH": path},
        )
        return
    for words in commands:
        if words:
            yield warm.command(words[1:], folder)


def test_the_readme_has_what_it_promises() -> None:
    """The rule above must not leave nothing to run."""
    languages = [language for language, _ in snippets(ROOT / "README.md")]
    assert languages.count("python") >= 3
    assert languages.count("sh") >= 2
    assert any(language == "python" and "import lmdb" in code for language, code in snippets(ROOT / "docs/format.md"))


def options() -> set[str]:
    root = typer.main.get_command(app)
    return {name for command in root.commands.values() for p in command.params for name in (*p.opts, *p.secondary_opts)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_options_exist(document: Path) -> None:
    """Those of other programs stand in snippets alone."""
    prose = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose))
    assert named - options() - {"--help"} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_modules_in_the_architecture_exist() -> None:
    """`docs/architecture.md` names the home of each noun."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    homes = re.findall(r"\| `([a-z_/]+(?:\.py|/))` \|$", text, flags=re.MULTILINE)
    assert len(homes) > 5
    for home in homes:
        assert (ROOT / "bigconv" / home).exists(), home
    for path in re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", text):
        assert (ROOT / "bigconv" / path).exists(), path
