"""Forwards for models that cannot read packed rows, or cannot mix short and long rows; and memory on CPUs."""

import ctypes
import platform
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from minipo.forward import forward
from minipo.packing import PackedBatch, alone, pack_ids, unpack


def one_by_one(model: nn.Module, packed: PackedBatch, read_end: bool = False) -> Float[Tensor, "B C"]:
    """The same scores and gradients from an ordinary row per candidate, in forwards of at most as many rows as before.

    Only rows of the same length go together: padding, at either end, changes what some models compute.
    """
    prompt_ids, answer_ids = alone(packed)
    lengths = np.array([len(prompt) + len(answer) for prompt, answer in zip(prompt_ids, answer_ids, strict=True)])
    order, most = np.argsort(lengths, kind="stable"), len(packed["input_ids"])
    logps = []
    for group in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        for part in np.split(group, range(most, len(group), most)):
            prompts, answers = [prompt_ids[each] for each in part], [[answer_ids[each]] for each in part]
            logps.append(forward(model, pack_ids(prompts, answers, pad_token_id=0, read_end=read_end)))
    flat = torch.cat(logps).flatten()[torch.from_numpy(order).argsort().to(logps[0].device)]
    mask = packed["mask"].to(flat.device)
    return flat.new_full(mask.shape, -torch.inf).masked_scatter(mask, flat)


def by_length(
    model: nn.Module, packed: PackedBatch, limit: int, score: Callable[[nn.Module, PackedBatch, bool], Tensor]
) -> Float[Tensor, "B C"]:
    """The scores under longrope, which uses its long factors for all rows of a forward as soon as one is longer than
    `limit`: candidates that are longer (end-of-answer token included) and the others get separate forwards.

    score: scores a packed batch whose rows are all on one side; its last argument says to read end-of-answer tokens.
    """
    prompt_lengths = (packed["segments"] == 0).sum(1)
    long = packed["mask"] & (prompt_lengths[:, None] + packed["lengths"] > limit)
    if not long.any():
        return score(model, packed, False)
    prompt_ids, answer_ids = unpack(packed)
    logps = torch.full(long.shape, -torch.inf)
    for side in (long, packed["mask"] & ~long):
        rows = side.any(1).nonzero().flatten().tolist()
        if not rows:
            continue
        answers = [[answer_ids[row][column] for column in side[row].nonzero().flatten().tolist()] for row in rows]
        part = pack_ids([prompt_ids[row] for row in rows], answers, pad_token_id=0, read_end=True)
        scores = score(model, part, True)
        logps = logps.to(scores).masked_scatter(side.to(scores.device), scores[part["mask"].to(scores.device)])
    return logps


@cache
def reuse_memory() -> None:
    """Make this process keep memory that CPU tensors free for later tensors, instead of returning it to the system.

    glibc returns every large block and requests it again, and each new page costs a fault: "as it comes" in
    `benchmarks/step.py` measures that.
    Holds for the whole process; `packed_logps` calls it for models on the CPU. Nothing happens without glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        top_pad, trim_threshold, mmap_max = -2, -1, -4  # their numbers in malloc.h
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)  # no separate mapping for a block, however large
        mallopt(trim_threshold, -1)  # never return the end of the heap
        mallopt(top_pad, 2**28)  # and extend it by 256 MiB at a time
