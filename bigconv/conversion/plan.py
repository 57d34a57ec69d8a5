"""The frozen plan of a conversion: what is read, in which spans, through which steps, into what."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as default
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bigconv import registry
from bigconv.conversion.task import Work
from bigconv.hashes import XXH3
from bigconv.schema import Schema
from bigconv.sources.base import Source, Span
from bigconv.stores.base import config as store_config
from bigconv.transforms.base import Transform
from bigconv.transforms.base import config as step_config


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of the result, and nothing else."""

    source: Source
    steps: tuple[Transform, ...]
    schema: Schema
    spans: Sequence[Span]
    store: Any  # bigconv.stores.base.Store
    limit: int | None = None
    stands_for: Plan | None = None  # the conversion whose result this one completes
    read: Mapping[str, Any] = default(default_factory=dict)  # the source's options
    shards: Mapping[str, Any] | None = None  # of a sharded directory: how the inputs are cut into parts
    digest: str = XXH3  # the algorithm of all digests

    @property
    def inputs(self) -> int | None:
        """Inputs that will be read; None when only reading tells."""
        if self.source.inputs is None:
            return None
        return sum(len(span) for span in self.spans)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the source has seen that may not be meant."""
        return tuple(getattr((self.stands_for or self).source, "notes", ()))

    @property
    def work(self) -> Work:
        return Work(self.source, self.steps, self.schema)

    @property
    def rows_stay(self) -> bool:
        """Whether every input is one row or one reject: no step drops or multiplies rows."""
        return not any(getattr(step, "changes_rows", False) for step in self.steps)

    @property
    def in_order(self) -> bool:
        """Whether rows are copied as they are, so that worker processes would only be in the way."""
        return not (self.source.decodes or self.steps)

    @property
    def file_a_row(self) -> bool:
        """Whether each file is one input, and all are read: only then can be told which of them made no row."""
        whole = self.stands_for or self
        return whole.limit is None and whole.source.inputs == len(whole.source.files)

    def recipe(self) -> dict[str, Any]:
        """How the rows are made, as the manifest keeps it."""
        recipe = {
            "from": self.source.name,
            "steps": [step_config(step) for step in self.steps],
            "to": self.store.name,
            "options": store_config(self.store),
            "read": {key: _in_json(value) for key, value in self.read.items()},
        }
        if self.shards is not None:
            recipe["shards"] = dict(self.shards)
        if self.digest != XXH3:
            recipe["digest"] = self.digest
        return recipe if self.limit is None else {**recipe, "limit": self.limit}

    @property
    def files(self) -> tuple[int, int] | None:
        """Of a part: the files its inputs come from, first and last (exclusive), empty where inputs aren't files."""
        return None

    def document(self) -> dict[str, Any]:
        """What the hash is taken over: recipe, source, and the files with their sizes and times."""
        files = self.source.files
        listing = hashlib.sha256(files.names)
        for numbers in (files.ends, files.sizes, files.mtimes):
            listing.update(numbers.astype("<i8").tobytes())
        return {
            "recipe": self.recipe(),
            "source": self.source.describe(),
            "fields": self.schema.to_json(),
            "files": {"count": len(files), "bytes": int(files.sizes.sum()), "sha256": listing.hexdigest()},
        }

    @property
    def hash(self) -> str:
        """Hex SHA-256; equal for the same sources and recipe."""
        return hashlib.sha256(json.dumps(self.document(), sort_keys=True).encode()).hexdigest()


def _in_json(value: Any) -> Any:
    """An option as JSON can hold it, which has no NaN: as text, which the source that has it understands."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def make_plan(
    source: Source,
    steps: Sequence[Transform],
    schema: Schema,
    store: Any,
    limit: int | None,
    read: Mapping[str, Any],
    digest: str = XXH3,
) -> Plan:
    spans = source.plan()
    if limit is not None and source.inputs is not None:
        spans = [Span(s.start, min(s.stop, limit)) for s in spans if s.start < limit]
    return Plan(source, tuple(steps), schema, spans, store, limit, None, read, None, digest)


def differences(plan: Plan, old: dict[str, Any]) -> list[str]:
    """What another plan's document has that this one's hasn't, in a few words each."""
    new = plan.document()
    found = []
    for key in ("from", "to", "limit", "dropped", "fields", "digest"):
        a, b = old["recipe"].get(key), new["recipe"].get(key)
        if a != b:
            found.append(f"{key} {_brief(a)} → {_brief(b)}")
    for group in ("read", "shards", "options"):
        if group == "options" and old["recipe"].get("to") != new["recipe"]["to"]:
            continue  # another store has other options
        had, has = old["recipe"].get(group) or {}, new["recipe"].get(group) or {}
        keys = [key for key in sorted(had.keys() | has.keys()) if had.get(key) != has.get(key)]
        found += [f"{key} {_brief(had.get(key))} → {_brief(has.get(key))}" for key in keys]
    before, after = old["recipe"].get("steps", []), new["recipe"]["steps"]
    names = [[step.get("step") for step in steps] for steps in (before, after)]
    if all(len(set(some)) == len(some) for some in names):
        old_steps, new_steps = ({step["step"]: step for step in steps} for steps in (before, after))
        pairs = [(old_steps.get(name), new_steps.get(name)) for name in dict.fromkeys(names[0] + names[1])]
    else:
        pairs = list(zip_longest(before, after))
    found += [f"--{(b or a or {}).get('step')} {_options(a)} → {_options(b)}" for a, b in pairs if a != b]
    if not found and names[0] != names[1]:
        found.append(f"steps {' → '.join(names[1])} instead of {' → '.join(names[0])}")
    if old["source"] != new["source"]:
        keys = sorted(old["source"].keys() | new["source"].keys())
        said = {line.partition(" ")[0] for line in found}  # as an option, of which the source tells too
        told = [k for k in keys if k not in said and old["source"].get(k) != new["source"].get(k)]
        found += [f"{k} {_brief(old['source'].get(k))} → {_brief(new['source'].get(k))}" for k in told[:4]]
    if "files" in old and old["files"] != new["files"] and not found:
        found.append("files of other names, sizes or times")
    return found


def resuming(plan: Mapping[str, Any], dest: Path) -> str | None:
    """The command that goes on with a plan that was written down, if `bigconv shard` made it: then it has all of it."""
    document = plan.get("document", {})
    recipe, stores = document.get("recipe", {}), document.get("source", {}).get("stores", [])
    cut = {**recipe.get("read", {}), **recipe.get("shards", {})}
    if recipe.get("from") != "store" or not cut or recipe.get("steps") or "limit" in recipe or "part" in recipe:
        return None
    told = {**cut, "to": recipe.get("to"), "digest": recipe.get("digest")}
    words = [shlex.quote(str(word)) for word in (*(store.get("path") for store in stores), dest)]
    for name in ("split", "stratify", "group", "by", "shuffle", "seed", "rows", "size", "shards", "to", "digest"):
        if told.get(name):  # seed 0 needn't be said
            words += [f"--{name}"] if told[name] is True else [f"--{name}", shlex.quote(str(told[name]))]
    return f"bigconv shard {' '.join(words)}"


def _options(step: dict[str, Any] | None) -> str:
    if step is None:
        return "none"
    if "sha256" in step:
        return f"{step.get('target', 'function')} ({str(step['sha256'])[:8]})"
    try:
        return str(registry.load("transform", step["step"]).typed(step))
    except (KeyError, TypeError, ValueError):  # of another version of bigconv
        return "with other options"


def _brief(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"


def free_space(path: Path) -> int:
    """Bytes free where `path` will be."""
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:  # what is made for a URL makes its own folder
        folder = folder.parent
    return shutil.disk_usage(folder).free
