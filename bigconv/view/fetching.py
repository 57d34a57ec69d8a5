"""What a view that has stores elsewhere brings here before it is read: parts as a whole, or chunks of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from bigconv.block import Index
from bigconv.schema import Schema
from bigconv.view.open_parts import OpenPart, OpenParts
from bigconv.view.opening import Opened, OpenedDataset

FIELDS_AT_ONCE = 8  # fetched by threads of their own

RootOf = Callable[[int], tuple[Opened, int]]  # what was named, and the number in it, of a store of a view


def bring(groups: Iterable[tuple[OpenPart, Index]], schema: Schema) -> None:
    """Fetch what rows of each store need, all fields at once, where they are read in place."""
    wanted = [
        partial(part.gathers[f.name].bring, inside)
        for part, inside in groups
        if part.gathers is not None and part.ranged
        for f in schema
    ]
    if len(wanted) == 1:
        wanted[0]()
    if len(wanted) < 2:
        return
    with ThreadPoolExecutor(min(FIELDS_AT_ONCE, len(wanted)), thread_name_prefix="bigconv-fields") as pool:
        for future in [pool.submit(one) for one in wanted]:
            future.result()


def fetch_ahead(parts: OpenParts, wanted: Sequence[int], stores: int, root_of: RootOf) -> bool:
    """Have those of a view's `stores` fetched in the background that are `wanted`, and the one behind them.

    For parts of a remote directory that are fetched as a whole. Whether any wanted one isn't open yet.
    """
    left = parts.most_room // 2  # what is fetched must still be there when it is read
    for number in [*wanted, *(n + 1 for n in wanted[-1:] if n + 1 < stores)]:
        opened, inside = root_of(number)
        far = isinstance(opened, OpenedDataset) and opened.origin is not None and not opened.ranged
        if parts.get(number) is None and far:
            assert isinstance(opened, OpenedDataset)
            left -= opened.manifest.parts[inside].bytes
            if left < 0:
                break
            parts.fetching.ask(number, partial(opened.fetch, inside))
    return any(parts.get(number) is None for number in wanted)


def has_come(parts: OpenParts, number: int, part: OpenPart, nbytes: int, root_of: RootOf) -> bool:
    """Whether a part that is read in place has come here as a whole. `nbytes`: of all parts of the view.

    It is fetched, in the background, when half as much as all of it has been, if the cache has room for all parts:
    then whoever reads on, or again, needs no network.
    """
    if not part.coming:
        if 2 * getattr(part.reader, "fetched", 0) < part.nbytes or nbytes > parts.most_room:
            return False
        part.coming = True
        root, inside = root_of(number)

        def fetch() -> None:
            if (lease := root.fetch(inside)) is not None:
                lease.release()
                part.come = True

        parts.fetching.ask(("whole", number), fetch)
    return part.come
