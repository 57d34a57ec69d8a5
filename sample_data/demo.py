"""Read one shuffled epoch of a store through PyTorch's own DataLoader and say what came out: demo.py out.h5"""
# ruff: noqa: T201  a script that talks to whoever runs it

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from torch.utils.data import DataLoader

import bigconv
from bigconv.runtime import StoreDataset


def main(path: str) -> int:
    # What should come: the labels, read with numpy alone.
    view = bigconv.open(path, fields=("label",))
    names = view.schema["label"].classes or ()
    expected = np.bincount(view.take(np.arange(len(view)))["label"], minlength=len(names))

    # What comes: every row once, in shuffled order, as batches of tensors.
    torch.manual_seed(0)
    dataset = StoreDataset(path, fields=("image", "label"))
    loader = DataLoader(dataset, batch_size=16, shuffle=True)
    batches = []
    begin = time.perf_counter()
    for images, labels in loader:
        batches.append((images, labels))
    seconds = time.perf_counter() - begin

    images = batches[0][0]
    order = torch.cat([labels for _, labels in batches]).numpy()
    seen = np.bincount(order, minlength=len(names))
    print(f"Read one shuffled epoch of {path} through torch.utils.data.DataLoader:")
    print(f"  rows      {len(order)} of {len(dataset)}, in {len(batches)} batches of up to {loader.batch_size}")
    print(f"  images    {str(images.dtype).removeprefix('torch.')} {list(images.shape)} in the first batch")
    print(f"  labels    {', '.join(names[label] for label in order[:8])}, ...")
    print(f"  speed     {len(order) / seconds:,.0f} samples/s, start-up of the reader included")
    print(f"  classes   {', '.join(f'{name} {n}' for name, n in zip(names, seen, strict=True))}")
    if not np.array_equal(seen, expected):
        print(f"  WRONG: the store holds {expected.tolist()} rows of these classes, the epoch had {seen.tolist()}")
        return 1
    print("  complete: as many rows of every class as the store holds")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "out.h5"))
