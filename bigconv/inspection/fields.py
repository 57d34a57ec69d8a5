"""What fields mean to whoever looks at them."""

from __future__ import annotations

from bigconv.class_counts import counted
from bigconv.schema import Field

MOST_CHANNELS = 32


def channel_axis(f: Field) -> int | None:
    """The axis of a row that counts channels, from the end; None where a field has none."""
    layout = f.layout or ("chw" if f.kind == "video" else None)
    if f.kind not in ("image", "video") or layout not in ("chw", "hwc") or len(f.shape) < 3:
        return None
    axis = -3 if layout == "chw" else -1
    channels = f.shape[axis]
    return axis if channels is not None and 1 <= channels <= MOST_CHANNELS else None


def names_class(f: Field) -> bool:
    """Whether a field says which class a row is of, by a number or in words."""
    if f.kind == "text":
        return f.name == "label"
    return counted(f)
