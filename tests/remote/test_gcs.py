"""`gs://`, against an emulator in this process, and what is said where gcsfs is missing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from typer.testing import CliRunner

import bigconv
from bigconv.cli.app import app
from bigconv.errors import MissingPackage
from bigconv.remote import urls
from tests.remote._given import PARTS, ROWS, raw


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """gcsfs on an emulator with an empty bucket."""
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would ask for the kind of bucket by gRPC
    gcsfs = pytest.importorskip("gcsfs", reason="no gcsfs: pip install 'bigconv[gs]'")
    made = pytest.importorskip("gcp_storage_emulator.server", reason="pip install gcp-storage-emulator to test gs://")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = made.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    monkeypatch.setattr(urls, "_systems", {})
    yield gcsfs.GCSFileSystem(token="anon", skip_instance_cache=True)
    server.stop()


@pytest.mark.parametrize("name", ["train", "out.h5", "out.zarr"])
def test_there_and_back(emulator: Any, tmp_path: Path, name: str) -> None:
    url = f"gs://bucket/{name}"
    shards = PARTS if name == "train" else None
    made = bigconv.convert(raw(tmp_path), url, shards=shards, workers=0)
    view = bigconv.open(url)
    assert view.take([250, 3])["x"][:, 0].tolist() == [250, 3]
    assert view[:]["x"][:, 0].tolist() == list(range(ROWS))
    assert bigconv.convert(raw(tmp_path), url, shards=shards, workers=0).content_digest == made.content_digest
    assert CliRunner().invoke(app, ["inspect", url, "--verify"]).exit_code == 0


def test_read_in_place(emulator: Any, tmp_path: Path, cache: Path) -> None:
    bigconv.convert(raw(tmp_path), tmp_path / "out.zarr", workers=0)
    emulator.put(str(tmp_path / "out.zarr"), "bucket/other.zarr", recursive=True)
    view = bigconv.open("gs://bucket/other.zarr")
    assert view.ranged
    assert np.array_equal(view.take([7, 399])["x"], bigconv.open(tmp_path / "out.zarr").take([7, 399])["x"])


def test_the_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "_systems", {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(MissingPackage, match=r"gs://.*\n?.*pip install 'bigconv\[gs\]'"):
        bigconv.open("gs://bucket/train")
    error = CliRunner().invoke(app, ["inspect", "gs://bucket/train"]).exception
    assert isinstance(error, MissingPackage)
    assert error.exit_code == 3


def test_which_file_system_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(urls, "_systems", {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: asked.append(name) or name)
    monkeypatch.setattr(fsspec, "filesystem", lambda scheme, **_: asked.append(scheme))
    assert urls.Url("gs", "bucket/train").system is None
    assert asked == ["gcsfs", "gs"]
