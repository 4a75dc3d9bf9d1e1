"""Rows of token ids as packed rows: a prompt once, then the tokens of all its candidates (for pairs: arXiv 2410.20305).

A candidate attends to the prompt and to itself, and its positions continue from the prompt's end. `sequences` packs
rows of other segments, each of which attends to some before it. Computed in NumPy; the results are torch tensors.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypedDict, final

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

TokenIds = np.ndarray  # (tokens,) int64


@final
class PackedBatch(TypedDict):
    """B rows of T tokens; C candidates per row, of at most L tokens, end of answer included; N predicting positions.

    A token attends to segment 0, to segments from its `since` on and, of all these, to no later token."""

    input_ids: Int[Tensor, "B T"]
    position_ids: Int[Tensor, "B T"]
    segments: Int[Tensor, "B T"]  # 0 in the prompt, 1 + c in candidate c, -1 in padding
    since: Int[Tensor, "B T"]  # equals the token's segment, unless it sees segments before
    predicting: Int[Tensor, " N"]  # where logits are needed: each row's last prompt token, then every candidate token
    sources: Int[Tensor, "B C L"]  # which of the N predicts the target
    targets: Int[Tensor, "B C L"]  # a candidate's tokens and the end-of-answer token
    target_mask: Bool[Tensor, "B C L"]  # False in padding
    lengths: Int[Tensor, "B C"]  # a candidate's number of targets; 0 where the row has no such candidate
    mask: Bool[Tensor, "B C"]  # False where the row has no such candidate


@final
class PackedGroups(TypedDict):
    """B rows in a few packed batches of rows of similar length, so that little of any forward is padding."""

    groups: list[PackedBatch]
    order: Int[Tensor, " B"]  # the rows in the order in which the groups hold them
    lengths: Int[Tensor, "B C"]  # as in PackedBatch, in the order of the rows
    mask: Bool[Tensor, "B C"]


def pack_groups(
    prompt_ids: Sequence[TokenIds],
    answer_ids: Sequence[Sequence[TokenIds]],
    pad_token_id: int,
    padding: float = 0.1,
    few_shapes: bool = False,
) -> PackedGroups:
    """Pack rows as `pack_ids` does, into the fewest batches of which at most a share of `padding` is padding.

    `packed_logps` takes either; for groups it runs one forward per batch and returns the rows in their original order.
    few_shapes: batches of 16, 32... rows (one may have fewer), lengths in multiples of 8, so that shapes recur, with
    more padding. It pays off for bfloat16 on CPUs with instructions for it, where ever new shapes make steps slower and
    slower (`arithmetic.builds_kernels`, `benchmarks/shapes.py`).
    """
    prompt_lengths, counts, answers = sizes(prompt_ids, answer_ids)
    rows_by, places_by = (16, 8) if few_shapes else (1, 1)
    members = length_groups(row_tokens(prompt_lengths, counts, answers), padding, rows_by, places_by)
    groups = [
        pack_ids([prompt_ids[row] for row in rows], [answer_ids[row] for row in rows], pad_token_id, places_by)
        for rows in members
    ]
    mask = np.arange(counts.max()) < counts[:, None]
    lengths = np.zeros(mask.shape, np.int64)
    lengths[mask] = answers
    return PackedGroups(
        groups=groups,
        order=torch.from_numpy(np.concatenate(members)),
        lengths=torch.from_numpy(lengths),
        mask=torch.from_numpy(mask),
    )


def length_groups(
    lengths: Int[np.ndarray, " B"], padding: float = 0.1, rows_by: int = 1, places_by: int = 1
) -> list[Int[np.ndarray, " group"]]:
    """The rows 0..B-1 in the fewest groups such that, each row padded to its group's longest, at most a share of
    `padding` of all tokens is padding; among those, the groups with the least. Rows of similar length go together.

    All groups but the first have a multiple of `rows_by` rows, padded to a multiple of `places_by`; if that leaves too
    much padding in any case, the groups are those with the least."""
    order = np.argsort(lengths, kind="stable")
    ascending = (-(-lengths[order] // places_by) * places_by).astype(float)
    places = np.arange(len(order))
    # padded[i, j]: tokens, padding included, of a group that holds the i-th to the j-th shortest row.
    begins = (len(order) - places) % rows_by == 0
    begins[0] = True
    padded = np.where(begins[:, None] & (places[:, None] <= places), (places - places[:, None] + 1) * ascending, np.inf)
    best, cuts = padded[0], []  # best[j]: the fewest tokens in which the shortest rows up to the j-th fit
    while best[-1] * (1 - padding) > lengths.sum():  # one more group, which starts after one of the places
        tokens = best[:-1, None] + padded[1:]
        if not tokens[:, -1].min(initial=np.inf) < best[-1]:
            break
        cuts.append(tokens.argmin(0) + 1)
        best = tokens.min(0)
    ends = [len(order)]
    for cut in reversed(cuts):
        ends.append(int(cut[ends[-1] - 1]))
    return np.split(order, ends[:0:-1])


def padding_share(packed: PackedBatch | PackedGroups) -> float:
    """The share, from 0 to 1, of a packed batch's tokens that is padding."""
    groups: Any = packed.get("groups", [packed])
    return (torch.cat([group["segments"].flatten() for group in groups]) < 0).double().mean().item()


def pack_ids(
    prompt_ids: Sequence[TokenIds],
    answer_ids: Sequence[Sequence[TokenIds]],
    pad_token_id: int,
    places_by: int = 1,
    read_end: bool = False,
) -> PackedBatch:
    """Pack rows from `tokenize_rows`. Raises ValueError as `sizes` does.

    places_by: rows are padded to a multiple of it, and the places with logits to a multiple of four times it.
    read_end: put end-of-answer tokens into the row too, for a model whose results depend on a row's length.
    """
    prompt_lengths, counts, lengths = sizes(prompt_ids, answer_ids)
    flat = list(chain.from_iterable(answer_ids))
    rows = np.repeat(np.arange(len(counts)), counts)  # of each answer
    columns = _steps(counts)

    # The end-of-answer token only needs to be predicted: an answer of n targets puts n - 1 tokens into its row.
    reads = lengths if read_end else lengths - 1
    read_before = np.cumsum(reads) - reads  # over the whole batch
    row_reads = np.add.reduceat(reads, np.cumsum(counts) - counts)
    begins = prompt_lengths[rows] + read_before - (np.cumsum(row_reads) - row_reads)[rows]  # in its row
    total = int((prompt_lengths + row_reads).max())
    total += -total % places_by

    input_ids = np.full((len(counts), total), pad_token_id)
    position_ids = np.zeros((len(counts), total), np.int64)
    segments = np.full((len(counts), total), -1)
    prompt_rows, prompt_steps = np.repeat(np.arange(len(counts)), prompt_lengths), _steps(prompt_lengths)
    input_ids[prompt_rows, prompt_steps] = np.concatenate(prompt_ids)
    position_ids[prompt_rows, prompt_steps] = prompt_steps
    segments[prompt_rows, prompt_steps] = 0

    tokens, owners, steps = np.concatenate(flat), np.repeat(np.arange(len(flat)), lengths), _steps(lengths)
    read = steps < reads[owners]
    owner, step = owners[read], steps[read]
    row, place = rows[owner], begins[owner] + step
    input_ids[row, place] = tokens[read]
    position_ids[row, place] = prompt_lengths[row] + step
    segments[row, place] = 1 + columns[owner]

    shape = (len(counts), int(counts.max()), int(lengths.max()))
    sources, targets, target_mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    where = (rows[owners], columns[owners], steps)
    # All first tokens of a row are predicted at one place, the prompt's last token: one logit row serves them all.
    sources[where] = np.where(steps == 0, rows[owners], len(counts) + read_before[owners] + steps - 1)
    targets[where] = tokens
    target_mask[where] = True
    predicting = np.concatenate([np.arange(len(counts)) * total + prompt_lengths - 1, row * total + place])
    if places_by > 1:  # pad with the first place; nothing reads these logits
        predicting = np.pad(predicting, (0, -len(predicting) % (4 * places_by)))

    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        segments=torch.from_numpy(segments),
        since=torch.from_numpy(segments.copy()),
        predicting=torch.from_numpy(predicting),
        sources=torch.from_numpy(sources),
        targets=torch.from_numpy(targets),
        target_mask=torch.from_numpy(target_mask),
        lengths=torch.from_numpy(target_mask.sum(-1)),
        mask=torch.from_numpy(target_mask[:, :, 0].copy()),
    )


def unpack(packed: PackedBatch) -> tuple[list[TokenIds], list[list[TokenIds]]]:
    """The prompts and answers that `pack_ids` packed."""
    batch = {name: tensor.cpu().numpy() for name, tensor in packed.items()}  # pyrefly: ignore[missing-attribute]
    prompt_ids = [ids[segments == 0] for ids, segments in zip(batch["input_ids"], batch["segments"], strict=True)]
    answer_ids = [
        [ids[:length] for ids, length in zip(targets, lengths, strict=True) if length]
        for targets, lengths in zip(batch["targets"], batch["lengths"], strict=True)
    ]
    return prompt_ids, answer_ids


def alone(packed: PackedBatch) -> tuple[list[TokenIds], list[TokenIds]]:
    """Every candidate of a packed batch, row by row, each with a prompt of its own: the tokens that the place where its
    first token is predicted attends to. For rows of candidates this is the row's prompt."""
    batch = {name: tensor.cpu().numpy() for name, tensor in packed.items()}  # pyrefly: ignore[missing-attribute]
    prompt_ids, answer_ids = [], []
    for row, column in np.argwhere(batch["mask"]):
        end = batch["predicting"][batch["sources"][row, column, 0]] - row * batch["input_ids"].shape[1] + 1
        segments = batch["segments"][row, :end]
        seen = (segments == 0) | (segments >= batch["since"][row, end - 1])
        prompt_ids.append(batch["input_ids"][row, :end][seen])
        answer_ids.append(batch["targets"][row, column, : batch["lengths"][row, column]])
    return prompt_ids, answer_ids


def as_candidates(packed: PackedBatch) -> PackedBatch:
    """`packed` itself, unless it has rows of sequences: then one row of candidates, at least as long and as wide as any
    of them, on which to find out whether a model can read them."""
    if not (packed["since"] < packed["segments"]).any():
        return packed
    batch = {name: tensor.cpu().numpy() for name, tensor in packed.items()}  # pyrefly: ignore[missing-attribute]
    positions, (_, width) = batch["position_ids"], batch["input_ids"].shape
    row, end = np.unravel_index(positions.argmax(), positions.shape)
    beginning = (batch["segments"][row] == 0).sum()
    ids, start = batch["input_ids"][row], end - positions[row, end] + beginning
    line = np.concatenate([ids[:beginning], ids[start : end + 1]])  # the beginning and the longest stretch

    answers = [ids[:length] for ids, length in zip(batch["targets"][row], batch["lengths"][row], strict=True) if length]
    last = batch["predicting"][batch["sources"][row].max(1)] - row * width
    length = batch["lengths"][row][last == end].max()  # of the answer that ends there
    shorter = [ids for ids in answers if len(ids) <= length]
    prompt = line[: len(line) - length + 1]
    times = max(2, -(-(width - len(prompt)) // sum(len(ids) - 1 for ids in shorter)))
    return pack_ids([prompt], [shorter * times], pad_token_id=0)


def sizes(
    prompt_ids: Sequence[TokenIds], answer_ids: Sequence[Sequence[TokenIds]]
) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"], Int[np.ndarray, " answers"]]:
    """Tokens of each prompt, answers of each row, tokens of each answer; raises ValueError where there are none."""
    if len(prompt_ids) != len(answer_ids):
        raise ValueError(f"{len(prompt_ids)} prompts came with {len(answer_ids)} rows of candidates; each needs one.")
    prompt_lengths = np.fromiter(map(len, prompt_ids), np.int64, len(prompt_ids))
    counts = np.fromiter(map(len, answer_ids), np.int64, len(answer_ids))
    lengths = np.fromiter(map(len, chain.from_iterable(answer_ids)), np.int64, counts.sum())
    if (prompt_lengths == 0).any():
        raise ValueError(f"The prompt of row {prompt_lengths.argmin()} tokenizes to nothing.")
    if (counts == 0).any():
        raise ValueError(f"Row {counts.argmin()} has no candidates.")
    if (lengths < 2).any():  # the end-of-answer token is always there
        empty = lengths.argmin()
        row = np.repeat(np.arange(len(counts)), counts)[empty]
        raise ValueError(f"Candidate {_steps(counts)[empty]} of row {row} tokenizes to nothing.")
    return prompt_lengths, counts, lengths


def row_tokens(
    prompt_lengths: Int[np.ndarray, " B"], counts: Int[np.ndarray, " B"], lengths: Int[np.ndarray, " answers"]
) -> Int[np.ndarray, " B"]:
    """Tokens of each packed row. The end-of-answer token is only predicted, never read."""
    return prompt_lengths + np.add.reduceat(lengths - 1, np.cumsum(counts) - counts)


def _steps(lengths: Int[np.ndarray, " n"]) -> Int[np.ndarray, " total"]:
    """0, 1, ... for each of the lengths, one after the other: [2, 3] gives 0 1 0 1 2."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
