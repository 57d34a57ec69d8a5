"""A user's function: found where the user says, hashed for the recipe, loaded again in every worker process."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bigconv.errors import UsageError
from bigconv.schema import unknown


@dataclass(frozen=True)
class Function:
    """`FILE.py:NAME`, or `MODULE:NAME` when `module` is set.

    `file`: absolute path, `folder`: where modules are looked for besides `sys.path`; both are of this machine and in no
    recipe. `code`: the bytes of a file, so that every worker runs what was hashed, whatever becomes of it meanwhile.
    """

    name: str
    module: str | None
    sha256: str
    file: str
    folder: str
    code: bytes = b""

    @classmethod
    def find(cls, text: str, option: str) -> Function:
        """Read and hash; nothing is run but the packages that a dotted module lies in. Raises `UsageError`."""
        if not isinstance(text, str):
            raise UsageError(
                f"--{option} takes 'FILE.py:FUNCTION' or 'MODULE:FUNCTION', not {type(text).__name__}: "
                "worker processes and later runs must find it again"
            )
        where, _, name = text.rpartition(":")
        if not where or not name.isidentifier():
            raise UsageError(f"--{option} {text}: expected FILE.py:FUNCTION or MODULE:FUNCTION")
        if where.endswith(".py"):
            path = Path(where).absolute()
            if not path.is_file():
                raise UsageError(f"--{option} {text}: {where}: no such file")
            code = _read(path, option)
            return cls(name, None, hashlib.sha256(code).hexdigest(), str(path), str(path.parent), code)
        if not all(part.isidentifier() for part in where.split(".")):
            raise UsageError(f"--{option} {text}: expected FILE.py:FUNCTION or MODULE:FUNCTION")
        folder = str(Path.cwd())
        origin = _origin(where, folder, option)
        return cls(name, where, hashlib.sha256(_read(origin, option)).hexdigest(), str(origin), folder)

    @staticmethod
    def typed(entry: Mapping[str, Any]) -> str:
        """What to type for the function that a recipe names: a module that can be imported, or a file in this folder.

        Raises `UsageError` when what is there is missing or has another hash.
        """
        step, name, wanted = str(entry["step"]), str(entry["function"]), str(entry["sha256"])
        where = str(entry["module"] if "module" in entry else entry["file"])
        if "module" not in entry and (Path(where).name != where or "\\" in where or not where.endswith(".py")):
            raise UsageError(f"--recipe: {where!r} is no name of a file of functions")
        if "module" in entry and where.endswith(".py"):
            raise UsageError(f"--recipe: {where!r} is no name of a module")
        text = f"{where}:{name}"
        needed = f"the recipe's --{step} {text} needs {where} with SHA-256 {wanted}"
        try:
            found = Function.find(text, step)
        except UsageError as error:
            place = "can't be imported here" if "module" in entry else f"is not in {Path.cwd()}"
            raise UsageError(f"{needed}, which {place}") from error
        if found.sha256 != wanted:
            raise UsageError(f"{needed}.\nThe one here, {found.file}, has {found.sha256}: bring the other one back")
        return text

    @property
    def label(self) -> str:
        """As a user would type it, without folders."""
        return f"{self.module or Path(self.file).name}:{self.name}"

    def recipe(self) -> dict[str, str]:
        where = {"file": Path(self.file).name} if self.module is None else {"module": self.module}
        return {**where, "function": self.name, "sha256": self.sha256}

    def load(self) -> Callable[..., Any]:
        """Run the file, or import the module, once a process. Raises `UsageError`, also for code that fails."""
        return _loaded(self)

    def line(self, error: BaseException) -> str:
        """`augment.py, line 7`: the innermost line of the user's file that an error has passed."""
        at, trace = "", error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == self.file:
                at = f", line {trace.tb_lineno}"
            trace = trace.tb_next
        return Path(self.file).name + at


@cache
def _loaded(function: Function) -> Callable[..., Any]:
    if function.folder not in sys.path:
        sys.path.append(function.folder)  # last: a file of the user's must not hide one of Python's
    try:
        module = _imported(function) if function.module is not None else _run(function)
    except UsageError:
        raise
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError) and error.filename == function.file:
            told = f"{Path(function.file).name}, line {error.lineno}: {error.msg}"
        else:
            told = f"{function.line(error)}: {type(error).__name__}: {error}"
        guard = "\nWhat a script does goes under: if __name__ == '__main__':" if isinstance(error, SystemExit) else ""
        raise UsageError(f"{function.label} can't be loaded: {told}{guard}") from error
    found = getattr(module, function.name, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    if found is not None:
        raise UsageError(f"{function.label} is no function, but {type(found).__name__}")
    known = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__]
    if not known:
        raise UsageError(f"{function.label}: there is no function in {Path(function.file).name}")
    raise UsageError(f"{Path(function.file).name}: {unknown('function', function.name, known)}")


def _run(function: Function) -> types.ModuleType:
    # A name of its own: the file may be called json.py. It is in sys.modules, where dataclasses look their module up.
    tag = hashlib.sha256(function.file.encode("utf-8", "surrogateescape") + function.code).hexdigest()[:12]
    name = f"{Path(function.file).stem}@{tag}"
    if name in sys.modules:
        return sys.modules[name]
    module = types.ModuleType(name)
    module.__file__ = function.file
    sys.modules[name] = module
    try:
        exec(compile(function.code, function.file, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _imported(function: Function) -> types.ModuleType:
    assert function.module is not None
    module = importlib.import_module(function.module)
    if hashlib.sha256(Path(function.file).read_bytes()).hexdigest() != function.sha256:
        raise UsageError(f"{function.file} has changed since the conversion began: run it again")
    return module


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"--{option}: {path}: can't be read: {error.strerror}") from error


def _origin(module: str, folder: str, option: str) -> Path:
    """The file of a module."""
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    try:
        importlib.invalidate_caches()
        spec = importlib.util.find_spec(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"--{option}: module {module} can't be found: {type(error).__name__}: {error}") from error
    finally:
        if added:
            sys.path.remove(folder)
    if spec is None:
        raise UsageError(f"--{option}: there is no module {module}, neither installed nor in {folder}")
    if spec.origin is None or not Path(spec.origin).is_file():
        raise UsageError(f"--{option}: module {module} has no file")
    return Path(spec.origin).absolute()
