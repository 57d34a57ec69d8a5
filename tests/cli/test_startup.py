"""What importing and asking for help may load: start-up is a feature."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "h5py", "zarr", "lmdb", "pyarrow", "PIL", "simplejpeg"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running `code`."""
    program = f"{code}\nimport sys\nprint('\\n' + ' '.join({{m.split('.')[0] for m in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


HELP = """
import sys
sys.argv = ["bigconv", {args}]
from bigconv.cli.app import main
try:
    main()
except SystemExit as done:
    assert done.code == 0, done.code
"""


@pytest.mark.parametrize("args", ["'--help'", "'convert', '--help'", "'bench', '--help'", "'inspect', '--help'"])
def test_help_is_light(args: str) -> None:
    assert not loaded_by(HELP.format(args=args)) & HEAVY


def test_import_is_light() -> None:
    assert not loaded_by("import bigconv") & HEAVY


def test_numpy_reading_needs_no_torch() -> None:
    assert not loaded_by("import bigconv; bigconv.open; bigconv.convert") & {"torch", "typer", "zarr", "lmdb", "h5py"}


def test_runtime_loads_one_store_at_most() -> None:
    """torch itself may load what it likes; of ours, only what the runtime needs."""
    assert not loaded_by("import bigconv.runtime") & {"typer", "rich", "zarr", "lmdb", "h5py", "PIL", "simplejpeg"}


def test_public_names_are_complete() -> None:
    import bigconv

    assert set(bigconv.__all__) == set(bigconv._HOMES)
    for name in bigconv.__all__:
        assert getattr(bigconv, name) is not None
