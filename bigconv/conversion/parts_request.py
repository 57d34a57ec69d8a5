"""What `convert --shard-size` and `convert --shards` add to a conversion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bigconv import registry
from bigconv.conversion.parts import Job, Output
from bigconv.conversion.parts_cut import Cut, cut_plan, parse_size, units
from bigconv.conversion.plan import Plan
from bigconv.conversion.run import Policy
from bigconv.errors import OutputError, UsageError
from bigconv.remote.mirror import Look
from bigconv.remote.urls import Url
from bigconv.view.opening import Opened, OpenedDataset

STORE = "hdf5"  # of the parts, where nothing else is said


def asked_cut(dest: Path | Url, size: str | int | None, shards: int | None, append: bool) -> Cut | None:
    """How a destination is to be cut; None for one store. Raises `UsageError`."""
    if size is None and shards is None:
        if append and (Look.at(dest).manifest is not None if isinstance(dest, Url) else registry.is_dataset(dest)):
            return Cut()  # as it was cut before
        return None
    if append:
        raise UsageError("--append cuts new parts as the others are: leave --shard-size and --shards out")
    if size is not None and shards is not None:
        raise UsageError("--shard-size and --shards exclude one another: each says how large the parts are")
    folder_only(Path(dest.name) if isinstance(dest, Url) else dest)
    return Cut(size=None if size is None else parse_size(size, "--shard-size"), shards=shards)


def folder_only(dest: Path) -> None:
    """Refuse a name that one store would have. Raises `UsageError`."""
    if dest.suffix.lower() in registry.extensions("store"):
        raise UsageError(
            f"{dest}: parts need a folder, and the extension says that this is one store.\n"
            f"Name it {dest.with_suffix('')}, and the format with --to {registry.store_for(dest)}"
        )


def recorded_cut(there: Opened) -> Cut:
    """How a dataset was cut, as its recipe has it. Raises `OutputError` for what can't be added to."""
    recipe = there.manifest.recipe
    if "shards" not in recipe or recipe.get("dropped"):
        raise OutputError(f"{there.told}: its recipe doesn't say how it is cut, so parts can't be made like the others")
    return Cut(**{key: int(recipe["shards"][key]) for key in ("rows", "size", "shards") if key in recipe["shards"]})


def parts_job(plan: Plan, dest: Path, policy: Policy, kept: Opened | None = None) -> Job:
    """The parts of one sharded directory; `kept`: the directory they are added to."""
    assert plan.shards is not None
    there = kept if isinstance(kept, OpenedDataset) else None
    first, cut = 0, Cut(**plan.shards)
    if there is not None:
        first = 1 + max(part.number for part in there.manifest.parts)
        if cut.shards is not None:  # nobody asked for so many of the few files that are new
            cut = replace(cut, shards=min(cut.shards, max(1, units(plan))))
    parts = cut_plan(plan, cut, first=first)
    return Job(dest, (Output("", plan, plan.hash, parts, there),), policy)
