"""Datasets that lie in a store's own file. HDF5 can lead to other files in three ways; a store never does."""

from __future__ import annotations

import h5py

from bigconv.errors import IncompleteStore

#: Filters of the HDF5 library and of h5py, and Blosc: others would be looked for among plug-ins.
FILTERS = (1, 2, 3, 4, 5, 6, 32000, 32001)


def inside(file: h5py.File, name: str) -> h5py.Dataset | None:
    """A dataset to which hard links alone lead; None when there is no dataset of that name.

    Raises `IncompleteStore` for one that points out of the file, or is packed by a filter that isn't known.
    """
    node = file
    for step in name.split("/"):
        link = node.get(step, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise IncompleteStore(f"{file.filename}: {name} is a link that leads elsewhere, which a store never has")
        node = node[step]
    if not isinstance(node, h5py.Dataset):
        return None
    if node.is_virtual or node.external:
        raise IncompleteStore(f"{file.filename}: {name} points out of the file, which a store never does")
    plan = node.id.get_create_plist()
    for filter_ in (plan.get_filter(number)[0] for number in range(plan.get_nfilters())):
        if filter_ not in FILTERS:
            raise IncompleteStore(f"{file.filename}: {name} is packed by filter {filter_}, which is not known")
    return node
