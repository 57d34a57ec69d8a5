"""URLs in the place of paths: which ones there are, how they are taken apart, which file system reads them.

Credentials and endpoints are the file system's own business: `AWS_*` for S3 (also `AWS_ENDPOINT_URL`),
`GOOGLE_APPLICATION_CREDENTIALS` for GCS, and fsspec's configuration (`FSSPEC_S3='{"anon": true}'`) for any option.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bigconv import registry
from bigconv.errors import BigconvError, StoreError, UsageError

PathLike = str | os.PathLike[str]
#: Scheme -> the package that reads it and its extra; None where fsspec itself does.
SCHEMES: dict[str, tuple[str, str] | None] = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "memory": None,
    "file": None,
}
# a Path has only one slash left: Path("s3://bucket/train") is s3:/bucket/train
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/(?P<slash>/?)(?P<rest>.*)", re.DOTALL)


@dataclass(frozen=True)
class Url:
    """A place in remote storage. `key`: bucket and path in it, without slashes at the ends."""

    scheme: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str) -> Url:
        return Url(self.scheme, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def system(self) -> Any:
        """The file system of fsspec; made anew in each process. Raises `MissingPackage`."""
        needs = SCHEMES[self.scheme]
        if needs is not None:
            from importlib.util import find_spec

            if find_spec(needs[0]) is None:
                raise registry.missing(*needs, f"{self.scheme}://")
        import fsspec

        return fsspec.filesystem(self.scheme, use_listings_cache=False)


def parsed(path: PathLike) -> Path | Url:
    """A path as it was typed: local, or a URL. `file://` is local. Raises `UsageError` for a scheme nobody reads."""
    text = os.fspath(path)
    match = _URL.fullmatch(text) if isinstance(text, str) else None
    if match is None or not (match["slash"] or match["scheme"] in SCHEMES):
        return Path(path)
    scheme, rest = match["scheme"], match["rest"]
    if scheme not in SCHEMES:
        known = " ".join(f"{name}://" for name in SCHEMES)
        raise UsageError(f"{text}: no store is read from {scheme}://. Use one of {known}, or a local path")
    if scheme == "file":
        return Path("/" + rest.lstrip("/"))
    key = rest.strip("/")
    if not key:
        raise UsageError(f"{text}: names no bucket, or nothing in it: {scheme}://bucket/name")
    if {".", ".."} & set(key.split("/")):
        raise UsageError(f"{text}: . and .. have no meaning in a URL")
    return Url(scheme, key)


@contextmanager
def talking(url: Url, kind: type[BigconvError] = StoreError) -> Iterator[None]:
    """What goes wrong with a storage, whatever its library raises, as one line that names the URL."""
    try:
        yield
    except (BigconvError, KeyboardInterrupt, MemoryError):
        raise
    except FileNotFoundError as error:
        raise kind(f"{url}: no such bucket, folder or object") from error
    except PermissionError as error:
        raise kind(f"{url}: access denied; check the credentials, and what they may do") from error
    except Exception as error:  # each library has errors of its own
        raise kind(f"{url}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """An error of a library in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "credentials" in text.lower():
        text += "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
    return text[:300]


def identity(info: dict[str, Any]) -> str:
    """What changes when an object does: its entity tag, else its time."""
    for name in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created"):
        if info.get(name) is not None:
            return str(info[name])
    return ""
