"""What is a URL, what a path, and what is said of those that nobody reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigconv.errors import MissingPackage, StoreError, UsageError
from bigconv.remote import urls
from bigconv.remote.urls import Url, again, parsed


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("s3://bucket/train.h5", Url("s3", "bucket/train.h5")),
        ("s3://bucket/train/", Url("s3", "bucket/train")),
        ("S3://bucket//train", Url("s3", "bucket/train")),
        (Path("s3://bucket/train"), Url("s3", "bucket/train")),
        ("gs://b/a b#c?d", Url("gs", "b/a b#c?d")),
        ("memory://x", Url("memory", "x")),
        ("file:///tmp/a", Path("/tmp/a")),
        (Path("file:///tmp/a"), Path("/tmp/a")),
        ("train.h5", Path("train.h5")),
        ("C:/data", Path("C:/data")),
        (Path("/tmp/s3:/x"), Path("/tmp/s3:/x")),
    ],
)
def test_paths_and_urls(typed: str | Path, expected: Path | Url) -> None:
    assert parsed(typed) == expected


def test_a_folder_with_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^odd://name: no store is read from odd://"):
        parsed(Path("odd:/name"))
    (tmp_path / "odd:").mkdir()
    assert parsed("odd:/name") == Path("odd:/name")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("https://host/x", "s3://"),
        (Path("https://host/x"), "^https://host/x"),
        ("s3://", "names no bucket"),
        ("s3://b/../c", r"\.\."),
    ],
)
def test_urls_that_make_no_sense(typed: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parsed(typed)


def test_a_url_below_another() -> None:
    url = Url("s3", "bucket/train")
    assert str(url / "part") == "s3://bucket/train/part"
    assert url / "" == url
    assert url.name == "train"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(urls.SCHEMES, "none", ("nosuchpackage", "s3"))
    with pytest.raises(MissingPackage, match=r"pip install 'bigconv\[s3\]'"):
        _ = Url("none", "x").system


def test_a_request_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "FIRST_PAUSE", 0.0)
    url, left = Url("s3", "b/x"), [urls.TRIES - 1]

    def flaky() -> int:
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionError("reset\nby peer")
        return 7

    assert again(url, "fetched", flaky) == 7
    left[0] = urls.TRIES
    with pytest.raises(StoreError, match=rf"s3://b/x: can't be fetched, in {urls.TRIES} tries: reset by peer"):
        again(url, "fetched", flaky)


@pytest.mark.parametrize(
    ("error", "said"), [(PermissionError("no"), "access denied"), (OSError("Unable to locate credentials"), "AWS_")]
)
def test_what_is_hopeless_is_asked_once(error: Exception, said: str) -> None:
    calls = []

    def ask() -> None:
        calls.append(1)
        raise error

    with pytest.raises(StoreError, match=said):
        again(Url("s3", "b/x"), "fetched", ask)
    assert len(calls) == 1
