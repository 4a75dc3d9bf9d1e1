#!/usr/bin/env bash
# torch 2.13.0 on glibc 2.36 (Debian 12). Expected: the memory of a freed CPU tensor serves the next one of the same size, as a NumPy array's does.
# Found: between two living tensors it rarely does; torch asks for aligned blocks, for which this glibc needs some bytes more than it gave back.
# So a step that frees some tensors among others that it keeps takes memory anew, and memory in use is scattered.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 >&2
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import bisect
import platform

import numpy as np
import torch

SIZE, COUNT = 205_056, 200  # numbers in a block, as of 356 tokens × 576; blocks that are freed
threshold = torch.empty(8_000_000)
del threshold  # 32 MB: from now on glibc takes blocks up to that size from its heap


def reused(new, address):
    """The share of new blocks that lie in freed ones, which lie between living ones."""
    freed, living, again = [], [], []
    for _ in range(COUNT):
        freed.append(new())
        living.append(new())
    starts = sorted(map(address, freed))
    freed.clear()
    again.extend(new() for _ in range(COUNT))
    inside = 0
    for block in again:
        before = bisect.bisect_right(starts, address(block)) - 1
        inside += before >= 0 and address(block) < starts[before] + 4 * SIZE
    return inside / COUNT


arrays = reused(lambda: np.empty(SIZE, np.float32), lambda block: block.ctypes.data)
tensors = reused(lambda: torch.empty(SIZE), torch.Tensor.data_ptr)
print(*platform.libc_ver(), f"- freed blocks used again: {arrays:.0%} by NumPy's arrays, {tensors:.0%} by torch's tensors")
assert platform.libc_ver() == ("glibc", "2.36") and arrays > 0.9 and tensors < 0.25
PYTHON
