"""A real S3 server, a process on loopback, behind a proxy that counts and damages; and a cache of its own a test."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remote._given import BUCKET, system
from tests.remote._proxy import Proxy

START_SECONDS = 60.0
ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the local cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BIGCONV_CACHE", str(folder))
    monkeypatch.delenv("BIGCONV_CACHE_BYTES", raising=False)
    return folder


@pytest.fixture(scope="session")
def server() -> Iterator[int]:
    """Port of a moto server."""
    for name in ("s3fs", "moto", "flask", "flask_cors"):
        pytest.importorskip(name, reason=f"no {name}: pip install 'bigconv[s3-test]' to test against an S3 server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port, process)
        yield port
    finally:
        process.kill()
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, "the S3 server has ended"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError("the S3 server has not started")


@pytest.fixture(scope="session")
def passing(server: int) -> Iterator[Proxy]:
    proxy = Proxy(server)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ACCOUNT, "AWS_ENDPOINT_URL": proxy.url}.items():
            patch.setenv(name, value)
        import fsspec

        fsspec.config.conf.setdefault("s3", {})["config_kwargs"] = {"read_timeout": 2}
        yield proxy
    proxy.close()


@pytest.fixture
def s3(passing: Proxy) -> Iterator[Proxy]:
    """An S3 server with an empty bucket, and what stands before it."""
    s3 = system()
    if not s3.exists(BUCKET):
        s3.mkdir(BUCKET)
    for found in s3.call_s3("list_objects_v2", Bucket=BUCKET).get("Contents", ()):  # `rm` forgets marks of folders
        s3.call_s3("delete_object", Bucket=BUCKET, Key=found["Key"])
    passing.reset()
    yield passing
    passing.reset()
