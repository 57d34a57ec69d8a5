"""A disk that can lose power: what a run does to it is recorded, and given back as any state that a cut can leave.

The model is what POSIX promises and no more. Data of a file is safe after an fsync of it, an entry of a folder
(made, renamed, removed) after an fsync of the folder; a rename is one operation. Whatever is not safe yet may or may
not be there after the cut, each operation on its own, in any combination, and a write in part.
"""

from __future__ import annotations

import builtins
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigconv import fsio


@dataclass(frozen=True)
class Write:
    """Bytes of a file; `data` None: its length becomes `offset`."""

    node: int
    offset: int
    data: bytes | None


@dataclass(frozen=True)
class Entry:
    """Entries of folders, each `(folder, name)`: `gone` are no more, `made` stand for a node."""

    gone: tuple[tuple[int, str], ...]
    made: tuple[tuple[int, str, int], ...]


@dataclass(frozen=True)
class Sync:
    node: int


Operation = Write | Entry | Sync
Tree = dict[str, bytes | None]  # relative path -> content; None is a folder
ROOT = 0


@dataclass
class Recorder:
    """Records what this process does below `root`. Folders are nodes as files are; node 0 is `root`."""

    root: Path
    operations: list[Operation] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)  # `pwrite64 journal`, as strace would name them
    folders: set[int] = field(default_factory=lambda: {ROOT})
    _live: dict[str, int] = field(default_factory=dict)  # relative path -> node
    _open: dict[int, str] = field(default_factory=dict)  # descriptor -> relative path when it was opened
    _nodes: dict[int, int] = field(default_factory=dict)  # descriptor -> node

    def __post_init__(self) -> None:
        self._live["."] = ROOT
        self._count = 1

    # -- names ---------------------------------------------------------------------------------------------------

    def _name(self, path: Any, dir_fd: int | None = None) -> str | None:
        """Relative path below the root; None for what is elsewhere."""
        text = os.fsdecode(path) if not isinstance(path, int) else self._open.get(path, "/")
        if dir_fd is not None and not os.path.isabs(text):
            above = self._open.get(dir_fd)
            text = "/" if above is None else os.path.join(self.root, above, text)
        text = os.path.relpath(os.path.abspath(text), self.root)
        return None if text == ".." or text.startswith("../") else text

    def _place(self, name: str) -> tuple[int, str]:
        folder, base = os.path.split(name)
        return self._live[folder or "."], base

    def _made(self, name: str, folder: bool = False) -> int:
        node, self._count = self._count, self._count + 1
        if folder:
            self.folders.add(node)
        self.operations.append(Entry((), ((*self._place(name), node),)))
        self._live[name] = node
        return node

    def _moved(self, a: str, b: str) -> None:
        node = self._live[a]
        self.operations.append(Entry((self._place(a),), ((*self._place(b), node),)))
        for name in [n for n in self._live if n == b or n.startswith(b + "/")]:
            del self._live[name]
        for name in [n for n in self._live if n == a or n.startswith(a + "/")]:
            self._live[b + name[len(a) :]] = self._live.pop(name)

    def _swapped(self, a: str, b: str) -> None:
        places = self._place(a), self._place(b)
        nodes = self._live[b], self._live[a]
        self.operations.append(Entry((), tuple((*p, n) for p, n in zip(places, nodes, strict=True))))
        for name in [n for n in self._live if n.split("/")[0] in (a, b) or n.startswith((a + "/", b + "/"))]:
            other = b + name[len(a) :] if name == a or name.startswith(a + "/") else a + name[len(b) :]
            self._live["\0" + other] = self._live.pop(name)
        for name in [n for n in self._live if n.startswith("\0")]:
            self._live[name[1:]] = self._live.pop(name)

    # -- recording -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Record while the body runs."""
        kept = {name: getattr(os, name) for name in _PATCHED if hasattr(os, name)}
        opener, exchange = builtins.open, fsio._exchange
        for name, original in kept.items():
            setattr(os, name, self._wrapped(name, original))
        builtins.open = self._wrapped("builtin_open", opener)
        fsio._exchange = self._wrapped("exchange", exchange)
        try:
            yield self
        finally:
            for name, original in kept.items():
                setattr(os, name, original)
            builtins.open, fsio._exchange = opener, exchange

    def _wrapped(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        record = getattr(self, f"_on_{name}")

        def call(*args: Any, **kwargs: Any) -> Any:
            return record(original, *args, **kwargs)

        return call

    def _on_open(self, original: Any, path: Any, flags: int, *rest: Any, dir_fd: int | None = None) -> int:
        name = self._name(path, dir_fd)
        fresh = name is not None and not os.path.lexists(os.path.join(self.root, name))
        fd: int = original(path, flags, *rest, dir_fd=dir_fd)
        if name is not None:
            if fresh:
                self._made(name)
                self.calls.append(f"create {name}")
            node = self._live.get(name)
            if node is not None:
                if flags & os.O_TRUNC and not fresh:
                    self.operations.append(Write(node, 0, None))
                self._open[fd], self._nodes[fd] = name, node
        return fd

    def _on_builtin_open(self, original: Any, path: Any, mode: str = "r", *rest: Any, **kwargs: Any) -> Any:
        name = None if isinstance(path, int) else self._name(path)
        writes = bool(set(mode) & set("wax+"))
        fresh = name is not None and not os.path.lexists(os.path.join(self.root, name))
        file = original(path, mode, *rest, **kwargs)
        if name is not None and writes and fresh:
            self._made(name)
            self.calls.append(f"create {name}")
        return file

    def _on_close(self, original: Any, fd: int) -> None:
        original(fd)
        self._open.pop(fd, None)
        self._nodes.pop(fd, None)

    def _on_write(self, original: Any, fd: int, data: Any) -> int:
        at = os.lseek(fd, 0, os.SEEK_CUR) if fd in self._nodes else 0
        done: int = original(fd, data)
        self._wrote("write", fd, at, data, done)
        return done

    def _on_pwrite(self, original: Any, fd: int, data: Any, offset: int) -> int:
        done: int = original(fd, data, offset)
        self._wrote("pwrite64", fd, offset, data, done)
        return done

    def _wrote(self, call: str, fd: int, at: int, data: Any, done: int) -> None:
        if fd in self._nodes:
            self.operations.append(Write(self._nodes[fd], at, bytes(memoryview(data).cast("B")[:done])))
            self.calls.append(f"{call} {self._open[fd]}")

    def _on_copy_file_range(self, original: Any, src: int, dst: int, n: int, start: int, offset: int) -> int:
        done: int = original(src, dst, n, start, offset)
        if dst in self._nodes and done:
            self.operations.append(Write(self._nodes[dst], offset, os.pread(src, done, start)))
            self.calls.append(f"copy_file_range {self._open[dst]}")
        return done

    def _on_ftruncate(self, original: Any, fd: int, size: int) -> None:
        original(fd, size)
        if fd in self._nodes:
            self.operations.append(Write(self._nodes[fd], size, None))
            self.calls.append(f"ftruncate {self._open[fd]}")

    def _on_fsync(self, original: Any, fd: int) -> None:
        original(fd)
        if fd in self._nodes:
            self.operations.append(Sync(self._nodes[fd]))
            self.calls.append(f"fsync {self._open[fd]}")

    def _on_mkdir(self, original: Any, path: Any, *rest: Any, **kwargs: Any) -> None:
        original(path, *rest, **kwargs)
        name = self._name(path)
        if name is not None:
            self._made(name, folder=True)
            self.calls.append(f"mkdir {name}")

    def _on_unlink(self, original: Any, path: Any, *, dir_fd: int | None = None) -> None:
        self._removed("unlink", original, path, dir_fd)

    _on_remove = _on_unlink

    def _on_rmdir(self, original: Any, path: Any, *, dir_fd: int | None = None) -> None:
        self._removed("rmdir", original, path, dir_fd)

    def _removed(self, call: str, original: Any, path: Any, dir_fd: int | None) -> None:
        name = self._name(path, dir_fd)
        original(path, dir_fd=dir_fd)
        if name is not None:
            self.operations.append(Entry((self._place(name),), ()))
            self._live.pop(name, None)
            self.calls.append(f"{call} {name}")

    def _on_rename(self, original: Any, a: Any, b: Any, **kwargs: Any) -> None:
        original(a, b, **kwargs)
        names = self._name(a), self._name(b)
        if names[0] is not None and names[1] is not None:
            self._moved(names[0], names[1])
            self.calls.append(f"rename {names[0]}")

    _on_replace = _on_rename

    def _on_exchange(self, original: Any, a: Path, b: Path) -> bool:
        done: bool = original(a, b)
        names = self._name(a), self._name(b)
        if done and names[0] is not None and names[1] is not None:
            self._swapped(names[0], names[1])
            self.calls.append(f"rename {names[0]}")
        return done


_PATCHED = (
    *("open", "close", "write", "pwrite", "copy_file_range", "ftruncate", "fsync", "mkdir", "unlink", "remove"),
    *("rmdir", "rename", "replace"),
)


def pending(operations: Sequence[Operation]) -> list[int]:
    """Numbers of the operations that no fsync has made safe yet."""
    waiting: dict[int, Operation] = {}
    for number, operation in enumerate(operations):
        if not isinstance(operation, Sync):
            waiting[number] = operation
            continue
        for n, other in list(waiting.items()):
            if isinstance(other, Write):
                safe = other.node == operation.node
            else:  # a rename is safe as a whole with either folder
                assert isinstance(other, Entry)
                safe = operation.node in {place[0] for place in (*other.gone, *other.made)}
            if safe:
                del waiting[n]
    return list(waiting)


def state(
    operations: Sequence[Operation],
    folders: Set[int],
    lost: Set[int] = frozenset(),
    torn: tuple[int, int] | None = None,
) -> Tree:
    """What is on the disk when all operations but the `lost` ones got there; `torn`: (number, bytes of it that did)."""
    files: dict[int, bytearray] = {}
    entries: dict[int, dict[str, int]] = {folder: {} for folder in folders}
    for number, operation in enumerate(operations):
        if number in lost or isinstance(operation, Sync):
            continue
        if isinstance(operation, Entry):
            for folder, name in operation.gone:
                entries[folder].pop(name, None)
            for folder, name, node in operation.made:
                entries[folder][name] = node
            continue
        content = files.setdefault(operation.node, bytearray())
        if operation.data is None:
            del content[operation.offset :]
            content.extend(bytes(operation.offset - len(content)))
            continue
        data = operation.data if torn is None or torn[0] != number else operation.data[: torn[1]]
        content.extend(bytes(max(0, operation.offset + len(data) - len(content))))
        content[operation.offset : operation.offset + len(data)] = data
    tree: Tree = {}
    todo: list[tuple[str, int]] = [("", ROOT)]
    while todo:
        above, node = todo.pop()
        for name, child in entries[node].items():
            path = f"{above}/{name}".lstrip("/")
            tree[path] = None if child in folders else bytes(files.get(child, b""))
            if child in folders:
                todo.append((path, child))
    return tree


def materialise(tree: Tree, root: Path) -> None:
    """Make a state real in an empty folder."""
    for name in sorted(tree):
        content = tree[name]
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
