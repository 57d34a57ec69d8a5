"""`bigconv convert`: what it prints, where, and what it leaves alone."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import bigconv
from bigconv.cli.app import app

SUFFIXES = (".mmap", ".h5", ".lmdb", ".zarr")


def run(*args: object, **env: str) -> Result:
    """In this process, which is quick; stdout and stderr apart."""
    return CliRunner().invoke(app, ["convert", *map(str, args), "--workers", "0"], env=env)


def done(*args: object, **env: str) -> str:
    result = run(*args, **env)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(6):
        path = tmp_path / "raw" / ("cats" if i < 3 else "dogs") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8)).save(path)
    return tmp_path / "raw"


def told(path: Path) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


# -- what comes out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_json(images: Path, tmp_path: Path, suffix: str) -> None:
    """One document, with what a script needs, and nothing else on stdout."""
    dest = tmp_path / f"out{suffix}"
    document = json.loads(done(images, dest, "--json"))
    assert document["schema_version"] == 1
    assert document["dest"] == str(dest)
    assert document["store"] == {".mmap": "memmap", ".h5": "hdf5"}.get(suffix, suffix[1:])
    assert (document["rows"], document["rejects"]) == (6, 0)
    assert document["bytes"] > 0
    assert document["seconds"] >= 0
    assert document["content_digest"] == told(dest)["content_digest"]
    assert [f["name"] for f in document["fields"]] == ["image", "label"]


def test_summary(images: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out.h5"
    out = done(images, dest)
    first = out.splitlines()[0]
    for word in (str(dest), "6 rows", "0 rejects", "kB", " s", "rows/s"):
        assert word in first
    assert told(dest)["content_digest"] in out


def test_the_lines_that_read_it_do(images: Path, tmp_path: Path) -> None:
    """Pasted as they are printed, at any width."""
    lines = done(images, tmp_path / "it's out.h5", COLUMNS="60").splitlines()
    code = "\n".join(line.strip() for line in lines[lines.index("read it:") + 1 :])
    assert len(code.splitlines()) == 2
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert len(scope["dataset"]) == 6


def test_defaults_for_images(images: Path, tmp_path: Path) -> None:
    """uint8, channels first, labels with their names."""
    done(images, tmp_path / "out.mmap")
    image = np.load(tmp_path / "out.mmap" / "image.npy")
    assert (image.dtype, image.shape) == (np.uint8, (6, 3, 8, 9))
    expected = [np.asarray(Image.open(p)).transpose(2, 0, 1) for p in sorted(images.rglob("*.png"))]
    np.testing.assert_array_equal(image, expected)
    assert np.load(tmp_path / "out.mmap" / "label.npy").tolist() == [0, 0, 0, 1, 1, 1]
    assert told(tmp_path / "out.mmap")["fields"][1]["classes"] == ["cats", "dogs"]


@pytest.mark.parametrize(
    ("typed", "steps"),
    [
        (["--dtype", "float32", "--layout", "hwc"], ["dtype", "layout"]),
        (["--layout", "hwc", "--dtype", "float32"], ["layout", "dtype"]),
        (["--layout=chw", "--resize", "4x5", "--dtype=int16"], ["layout", "resize", "dtype"]),
        (["--dtype", "float32"], ["dtype", "layout"]),
        ([], ["layout"]),
    ],
    ids=" ".join,
)
def test_steps_run_in_the_order_typed(images: Path, tmp_path: Path, typed: list[str], steps: list[str]) -> None:
    """Wherever they stand among the other words; images end up channels first unless asked otherwise."""
    dest = tmp_path / "out.mmap"
    done(*typed, images, dest)
    done(images, tmp_path / "after.mmap", *typed)
    assert told(tmp_path / "after.mmap")["recipe"] == told(dest)["recipe"]
    document = told(dest)
    assert [step["step"] for step in document["recipe"]["steps"]] == steps
    field = document["fields"][0]
    assert field["dtype"] == ("float32" if "float32" in typed else "int16" if "--dtype=int16" in typed else "uint8")
    assert field["axes"] == ("hwc" if "hwc" in typed else "chw")
    size = (4, 5) if "--resize" in typed else (8, 9)
    assert field["shape"] == ([*size, 3] if "hwc" in typed else [3, *size])
    image = np.load(dest / "image.npy")
    assert (image.dtype.name, list(image.shape[1:])) == (field["dtype"], field["shape"])


def test_what_is_typed_goes_before_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    done(tmp_path / "t.csv", tmp_path / "old.h5", "--columns", "a", "--limit", 2)
    done(tmp_path / "t.csv", tmp_path / "new.h5", "--recipe", tmp_path / "old.h5", "--columns", "b")
    assert bigconv.open(tmp_path / "new.h5")[:]["b"].tolist() == [2, 4]
    for option in (("--resize", 8), ("--fit", "contain"), ("--seed", 3)):
        result = run(tmp_path / "t.csv", tmp_path / "no.h5", "--recipe", tmp_path / "old.h5", *option)
        assert str(result.exception) == f"--recipe brings its own steps: leave out {option[0]}"


def test_arrays_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(4, 3))
    np.savez(tmp_path / "more.npz", y=np.arange(4), z=np.ones((4, 2), bool))
    done(tmp_path / "x.npy", tmp_path / "more.npz", tmp_path / "out.mmap")
    for name in ("x", "y", "z"):
        found = np.load(tmp_path / "out.mmap" / f"{name}.npy")
        np.testing.assert_array_equal(
            found, np.load(tmp_path / "x.npy") if name == "x" else np.load(tmp_path / "more.npz")[name]
        )
    done(tmp_path / "x.npy", tmp_path / "columns.mmap", "--axis", "1")
    np.testing.assert_array_equal(np.load(tmp_path / "columns.mmap" / "x.npy"), np.load(tmp_path / "x.npy").T)


def test_to_and_from_override_names(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(4))
    done(tmp_path / "x.npy", tmp_path / "out.data", "--to", "zarr")
    assert told(tmp_path / "out.data")["store"] == "zarr"
    done(tmp_path / "out.data", tmp_path / "again.h5", "--from", "store")
    assert told(tmp_path / "again.h5")["content_digest"] == told(tmp_path / "out.data")["content_digest"]


def test_keep_encoded(images: Path, tmp_path: Path) -> None:
    done(images, tmp_path / "out.lmdb", "--keep-encoded", "--label-from", "none")
    rows = list(bigconv.open(tmp_path / "out.lmdb"))
    assert [bytes(row["image"]) for row in rows] == [p.read_bytes() for p in sorted(images.rglob("*.png"))]
    assert list(rows[0]) == ["image"]


def test_the_python_api_gives_the_same_bytes(images: Path, tmp_path: Path) -> None:
    """Same names, same defaults."""
    done(images, tmp_path / "a.h5", "--resize", "5", "--dtype", "float32", "--label-from", "folder")
    bigconv.convert(images, tmp_path / "b.h5", resize=5, dtype="float32", label_from="folder", workers=0)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


# -- dry run -------------------------------------------------------------------------------------------------------


def test_dry_run_changes_nothing(images: Path, tmp_path: Path) -> None:
    before = everything(tmp_path)
    out = done(images, tmp_path / "out.h5", "--dry-run", "--resize", "4")
    assert everything(tmp_path) == before
    for word in ("would hold", "hdf5", "6 rows", "image", "3 × 4 × 4", "label", "resize → layout", "free"):
        assert word in out
    document = json.loads(done(images, tmp_path / "out.h5", "--dry-run", "--json"))
    assert everything(tmp_path) == before
    assert document["schema_version"] == 1
    assert document["rows"] == 6
    assert document["bytes_estimate"] == 6 * (3 * 8 * 9 + 8)
    assert document["bytes_free"] > 0
    assert [f["name"] for f in document["fields"]] == ["image", "label"]
    assert [s["step"] for s in document["recipe"]["steps"]] == ["layout"]


def test_dry_run_of_rows_that_vary(images: Path, tmp_path: Path) -> None:
    """Their sizes are reckoned from rows that are made; the hint says what to do about it."""
    Image.new("RGB", (3, 3)).save(images / "cats" / "small.png")
    document = json.loads(done(images, tmp_path / "out.h5", "--dry-run", "--json"))
    data = 6 * 3 * 8 * 9 + 27 + 7 * 8
    assert data <= document["bytes_estimate"] <= 1.3 * data
    assert any("--resize" in hint for hint in document["hints"])


@pytest.mark.parametrize("more", [[], ["--resize", "40"], ["--keep-encoded"]], ids=str)
def test_dry_run_reckons_each_store_as_it_will_be(tmp_path: Path, more: list[str]) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    rng = np.random.default_rng(0)
    for i in range(300):
        pixels = rng.integers(0, 256, (60, 60 + i % 3, 3), np.uint8)
        Image.fromarray(pixels).save(raw / f"{i}.jpg", quality=70 + i % 7)
    told = json.loads(done(raw, tmp_path / "out.h5", "--dry-run", "--json", *more))
    assert told["rows"] == 300
    assert 90 <= told["rows_sampled"] <= 300
    assert next(iter(told["store_bytes_estimate"])) == "hdf5"
    for name, extension in (("hdf5", "h5"), ("memmap", "mmap"), ("zarr", "zarr"), ("lmdb", "lmdb")):
        dest = tmp_path / f"out.{extension}"
        done(raw, dest, *more)
        found = sum(p.stat().st_size for p in [dest, *dest.rglob("*")] if p.is_file())
        assert 0.85 * found <= told["store_bytes_estimate"][name] <= 1.15 * found + 100_000, name


def test_dry_run_tells_of_bad_inputs_and_of_functions(images: Path, tmp_path: Path) -> None:
    (images / "cats" / "bad.png").write_bytes(b"no image")
    (tmp_path / "f.py").write_text("def half(row):\n    return row if row['label'] else None\n")
    told = json.loads(done(images, tmp_path / "o.h5", "--dry-run", "--json", "--map", f"{tmp_path / 'f.py'}:half"))
    assert any("bad.png" in hint and "--max-rejects" in hint for hint in told["hints"])
    assert told["rows"] == 3 or told["rows"] == 4, "of seven inputs, one bad and three dropped"


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--overwrite"]])
def test_what_a_function_prints_in_this_process_is_no_output(images: Path, tmp_path: Path, more: list[str]) -> None:
    (tmp_path / "f.py").write_text("def f(row):\n    print('noise')\n    return row\n")
    result = run(images, tmp_path / "o.h5", "--json", "--map", f"{tmp_path / 'f.py'}:f", *more)
    assert json.loads(result.stdout)["rows"] == 6
    assert more == ["--dry-run"] or "noise" in result.stderr


@pytest.mark.parametrize("options", [["--label-from", "nonsense"], ["--dtype", "nonsense"], ["--to", "nonsense"]])
def test_dry_run_refuses_what_a_run_would(images: Path, tmp_path: Path, options: list[str]) -> None:
    before = everything(tmp_path)
    errors = [run(images, tmp_path / "out.h5", *options, *more).exception for more in ([], ["--dry-run"])]
    assert all(isinstance(error, bigconv.BigconvError) for error in errors)
    assert str(errors[0]) == str(errors[1])
    assert everything(tmp_path) == before


def test_an_existing_store_survives_every_refusal(images: Path, tmp_path: Path) -> None:
    done(images, tmp_path / "out.h5")
    before = everything(tmp_path)
    for more in (["--resize", "4"], ["--resize", "4", "--dry-run"], ["--overwrite", "--label-from", "csv:missing"]):
        result = run(images, tmp_path / "out.h5", *more)
        assert isinstance(result.exception, bigconv.BigconvError), more
        assert everything(tmp_path) == before


# -- streams and terminals -------------------------------------------------------------------------------------------


def test_progress_goes_to_stderr(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line now and then where there is no terminal; none of it on stdout; none at all with --quiet."""
    monkeypatch.setattr("bigconv.conversion.progress.LINE_SECONDS", 0.0)
    result = run(images, tmp_path / "a.h5", "--json")
    assert json.loads(result.stdout)["rows"] == 6
    assert "6 of 6 rows" in result.stderr
    result = run(images, tmp_path / "b.h5", "--json", "--quiet")
    assert json.loads(result.stdout)["rows"] == 6
    assert result.stderr == ""


def on_a_terminal(*args: object, stream: str, **env: str) -> tuple[str, str]:
    """Run the real command with one stream on a pseudo-terminal: what it shows there, and the other stream."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    termios = pytest.importorskip("termios")
    termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, "-c", "from bigconv.cli.app import main; main()", *map(str, args)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: theirs}
    clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(command, **streams, env={**clean, "TERM": "xterm", **env}, text=True)
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(ours)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, (shown, out, err)
    return shown.decode(), out if stream == "stderr" else err


def test_a_bar_on_a_terminal(images: Path, tmp_path: Path) -> None:
    shown, out = on_a_terminal("convert", images, tmp_path / "a.h5", "--json", "--workers", "0", stream="stderr")
    assert "rows" in shown
    assert json.loads(out)["rows"] == 6
    shown, _ = on_a_terminal("convert", images, tmp_path / "b.h5", "--workers", "0", "-q", stream="stderr")
    assert shown == ""


def test_colour_only_where_it_is_wanted(images: Path, tmp_path: Path) -> None:
    done(images, tmp_path / "out.h5")
    args = ("inspect", tmp_path / "out.h5", "--verify")
    coloured, _ = on_a_terminal(*args, stream="stdout")
    plain, _ = on_a_terminal(*args, stream="stdout", NO_COLOR="1")
    assert "\x1b[32m" in coloured  # "verified" in green
    assert "\x1b[3" not in plain
    assert "\x1b[9" not in plain
    piped = CliRunner().invoke(app, ["inspect", str(tmp_path / "out.h5"), "--verify"])
    assert "\x1b" not in piped.stdout
    assert "\x1b" not in done(images, tmp_path / "other.h5")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("more", [[], ["--json"], ["--dry-run"]], ids=str)
def test_any_encoding_of_stdout(images: Path, tmp_path: Path, encoding: str, more: list[str]) -> None:
    """A pipe on Windows, a cron job without a locale: `×` and `→` are lost, the result isn't."""
    (images / "cats").rename(images / "kätzchen → ☃")
    command = [sys.executable, "-c", "from bigconv.cli.app import main; main()"]
    result = subprocess.run(
        [*command, "convert", images, tmp_path / "ö → ☃.h5", "--workers", "0", *more],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert (b'"rows": 6' if more == ["--json"] else b"6 rows") in result.stdout
    assert b"Traceback" not in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="pipes of Windows end otherwise")
def test_a_reader_that_leaves_is_no_finding(images: Path, tmp_path: Path) -> None:
    """`bigconv … | head -1` under `set -o pipefail`: as any other command, never the exit code of findings."""
    done(images, tmp_path / "out.h5")
    command = [sys.executable, "-c", "from bigconv.cli.app import main; main()", "inspect", str(tmp_path / "out.h5")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (141, b"")
    process.stderr.close()


@pytest.mark.skipif(os.name == "nt", reason="sh")
def test_streams_that_are_closed_or_full(images: Path, tmp_path: Path) -> None:
    """Of a closed one, no store gets the number; what a full disk cuts off is no bug, nor findings."""
    program = f"{sys.executable} -c 'from bigconv.cli.app import main; main()'"

    def shell(words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-c", f"{program} {words}"], capture_output=True, text=True, check=False)

    assert shell(f"convert {images} {tmp_path}/a.h5 >&- 2>&- <&-").returncode == 0
    assert len(bigconv.open(tmp_path / "a.h5")) == 6
    assert shell(f"convert nothing {tmp_path}/b.h5 2>&-").returncode == 2
    if Path("/dev/full").exists():
        for words in (f"inspect {tmp_path}/a.h5", f"inspect {tmp_path}/a.h5 --json", "--help"):
            done = shell(f"{words} > /dev/full")
            assert (done.returncode, done.stderr) == (2, "bigconv: stdout: can't be written: No space left on device\n")
        assert shell(f"convert nothing {tmp_path}/b.h5 2> /dev/full").returncode == 2


@pytest.mark.parametrize("shards", [[], ["--shards", "2", "--to", "hdf5"]], ids=str)
def test_rejects_of_a_step_name_the_row(images: Path, tmp_path: Path, shards: list[str]) -> None:
    """In a table; a picture is a row by itself."""
    (tmp_path / "own.py").write_text(
        "def f(row):\n    if row.get('a', 3) == 3 and row.get('label', 1) == 1: raise ValueError\n    return row\n"
    )
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    for source, where in ((tmp_path / "t.csv", "  t.csv, row 1: ValueError"), (images, "  dogs/3.png: ValueError")):
        dest = tmp_path / (f"{source.name}.out" if shards else f"{source.name}.h5")
        result = run(source, dest, "--map", f"{tmp_path}/own.py:f", *shards)
        assert result.exit_code == 1 or isinstance(result.exception, bigconv.BigconvError)
        assert where in str(result.exception)


def test_names_on_one_line(tmp_path: Path) -> None:
    """Also one that holds a line break, and one whose bytes are no text: what is shown can be pasted."""
    np.save(tmp_path / "x.npy", np.arange(3))
    for name in ("a\nb.h5", os.fsdecode(b"\xff.h5")):
        shown = done(tmp_path / "x.npy", tmp_path / name).splitlines()
        assert f"{ascii(name)[1:-1]}: 3 rows" in shown[0]
        said = shown[-1][shown[-1].index("(") + 1 : shown[-1].rindex(", fields")]
        assert Path(ast.literal_eval(said)) == tmp_path / name


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the server below /proc")
@pytest.mark.parametrize("words", [("--resize", "8"), ("--resize", "8", "--shards", "2")], ids=str)
def test_ctrl_c_while_the_fork_server_starts(images: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """It reaches all of the group, also the server that still imports: which lives on, and the parent says it."""
    command = [sys.executable, "-c", "from bigconv.cli.app import main; main()", "convert", images, tmp_path / "out"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    to = ("--to", "hdf5", "--workers", "2")
    process = subprocess.Popen([*command, *to, *words], **streams, text=True, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not any(b"forkserver" in _command_line(pid) for pid in children.read_text().split()):
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1].startswith(("bigconv: interrupted", "bigconv: stopped"))
    assert "Traceback" not in err


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
