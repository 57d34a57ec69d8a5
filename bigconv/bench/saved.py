"""A loader as an earlier run recommended it, measured again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bigconv.bench import baseline
from bigconv.bench.api import Question
from bigconv.bench.setting import Setting
from bigconv.errors import InputError


def saved(path: Path, asked: Question) -> tuple[list[Path], Question]:
    """The data and the one setting that a report of `bench --json` recommends; data are looked for beside the report.

    Raises `InputError`.
    """
    document = baseline.load(path)
    advice = document["recommendation"]
    subject = next(one for one in document["subjects"] if one["path"] == advice["path"])
    data = path.parent / advice["path"]
    if not data.exists():
        raise InputError(f"{path}: it is about {advice['path']}, which is not in {path.parent.absolute()}")
    threaded = advice["loader"] == "Loader"
    workers = advice["threads"] if threaded else advice["num_workers"]
    prefetch = advice["prefetch" if threaded else "prefetch_factor"] or 2
    fields = tuple(subject["fields"]) if subject.get("fields") else None
    resize = tuple(subject["resize"]) if subject.get("resize") else None
    return [data], replace(
        asked,
        only=Setting(advice["loader"], workers, prefetch),
        batch_size=asked.batch_size or subject["batch_size"],
        fields=asked.fields or fields,
        access=subject["access"],
        transform=asked.transform or subject.get("transform"),
        step_ms=asked.step_ms or subject["step_ms"],
        resize=asked.resize or resize,
        from_=asked.from_ or subject.get("from"),
    )
