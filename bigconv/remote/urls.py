"""URLs in the place of paths: which ones there are, how they are taken apart, which file system reads them.

Credentials and endpoints are the file system's own business: `AWS_*` for S3 (also `AWS_ENDPOINT_URL`),
`GOOGLE_APPLICATION_CREDENTIALS` for GCS, and fsspec's configuration (`FSSPEC_S3='{"anon": true}'`) for any option.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

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
TRIES = 6  # of one request
FIRST_PAUSE = 0.1  # seconds before the second try; each further one waits twice as long: 3 s in all
#: Tried again here alone: a library's own tries, of each of these, would make minutes of a server that is down.
S3_CONFIG = {"connect_timeout": 10, "read_timeout": 30, "retries": {"total_max_attempts": 1}}
# a Path has only one slash left: Path("s3://bucket/train") is s3:/bucket/train
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?P<slash>/?)(?P<rest>.*)", re.DOTALL)
_systems: dict[tuple[int, str], Any] = {}  # by process: a forked one has none of its parent's threads and connections
_parents: list[Any] = []
_making = threading.Lock()
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Url:
    """A place in remote storage. `key`: bucket and path in it, without slashes at the ends."""

    scheme: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str) -> Url:
        return Url(self.scheme, f"{self.key}/{name}") if name else self

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def system(self) -> Any:
        """The file system of fsspec, one a process. Raises `MissingPackage`."""
        found = _systems.get((os.getpid(), self.scheme))
        if found is None:
            with _making:
                found = _systems[os.getpid(), self.scheme] = _system(self.scheme)
        return found


def _system(scheme: str) -> Any:
    needs = SCHEMES[scheme]
    if needs is not None:
        from importlib.util import find_spec

        if find_spec(needs[0]) is None:
            raise registry.missing(*needs, f"{scheme}://")
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {**S3_CONFIG, **given} if isinstance(given, dict) else given
    made = fsspec.filesystem(scheme, **options)
    if scheme == "s3":
        made.retries = 1
    return made


def _forked() -> None:
    """The file systems of the parent are kept, unused: to close their connections would take these out of the event
    queue (epoll) that parent and child share, and the parent would wait for them for ever."""
    global _making
    _making = threading.Lock()
    known = sys.modules.get("fsspec.registry")
    for scheme in SCHEMES:
        kind = None if known is None else known.registry.get(scheme)
        _parents.extend(getattr(kind, "_cache", {}).values())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def parsed(path: PathLike) -> Path | Url:
    """A path as it was typed: local, or a URL. `file://` is local. Raises `UsageError` for a scheme nobody reads."""
    text = os.fspath(path)
    if os.name == "nt" and isinstance(text, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:\\", text):
        text = text.replace("\\", "/")  # a Path has turned them
    match = _URL.fullmatch(text) if isinstance(text, str) else None
    scheme = "" if match is None else match["scheme"].lower()
    if match is None or not (match["slash"] or scheme in SCHEMES or not Path(f"{match['scheme']}:").exists()):
        return Path(path)  # in a folder whose name ends with a colon
    rest = match["rest"]
    if scheme not in SCHEMES:
        known = " ".join(f"{name}://" for name in SCHEMES)
        raise UsageError(f"{scheme}://{rest}: no store is read from {scheme}://. Use one of {known}, or a local path")
    if scheme == "file":
        return Path(rest.lstrip("/") if os.name == "nt" else "/" + rest.lstrip("/"))
    key = re.sub("/+", "/", rest).strip("/")
    if not key:
        raise UsageError(f"{text}: names no bucket, or nothing in it: {scheme}://bucket/name")
    if {".", ".."} & set(key.split("/")):
        raise UsageError(f"{text}: . and .. have no meaning in a URL")
    return Url(scheme, key)


def is_remote(path: PathLike) -> bool:
    """Whether a path is a URL of what isn't local."""
    return isinstance(parsed(path), Url)


def again(url: Url, doing: str, call: Callable[[], _Result], kind: type[BigconvError] = StoreError) -> _Result:
    """What `call` gives; called again, some time later, when it raises. Raises `kind`, in one line.

    What won't be otherwise the next time is raised at once: `FileNotFoundError` as it is, access denied as `kind`.
    """
    pause = FIRST_PAUSE
    for attempt in range(1, TRIES + 1):
        try:
            return call()
        except (BigconvError, FileNotFoundError, IsADirectoryError, NotADirectoryError, MemoryError):
            raise
        except PermissionError as error:
            raise kind(f"{url}: access denied; check the credentials, and what they may do") from error
        except Exception as error:  # each library has errors of its own
            hopeless = _credentials(error)
            if hopeless or attempt == TRIES:
                tried = "" if hopeless else f", in {TRIES} tries"
                raise kind(f"{url}: can't be {doing}{tried}: {reason(error)}") from error
            error.__traceback__ = None  # fsspec's frames hold the error: the cycle would keep what callers hold
        time.sleep(pause)
        pause *= 2
    raise AssertionError("unreachable")


@contextmanager
def talking(url: Url, kind: type[BigconvError] = StoreError) -> Iterator[None]:
    """What goes wrong with a storage, whatever its library raises, as one line that names the URL."""
    try:
        yield
    except (BigconvError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise kind(f"{url}: no such bucket, folder or object") from error
    except Exception as error:  # each library has errors of its own
        raise kind(f"{url}: {reason(error)}") from error


@contextmanager
def naming(urls: Mapping[Path, Path | Url | None]) -> Iterator[None]:
    """Errors that name what stands for a URL here name the URL."""
    try:
        yield
    except BigconvError as error:
        text = str(error)
        for local, url in urls.items():
            if isinstance(url, Url):
                text = text.replace(str(local), str(url))
        if text == str(error):
            raise
        raise type(error)(text) from error


def reason(error: BaseException) -> str:
    """An error of a library in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if _credentials(error):
        text += "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
    return text[:300]


def _credentials(error: BaseException) -> bool:
    return "credentials" in str(error).lower()


def identity(info: dict[str, Any]) -> str:
    """What changes when an object does: its entity tag, else its time."""
    for name in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created"):
        if info.get(name) is not None:
            return str(info[name])
    return ""
