"""Rows for SFT that hold stretches of users' sequences, so that a history is not repeated for each of its items.

A row holds the template's beginning once, then stretches "A, B, C, D", one after the other, each of which sees the
beginning and itself and takes its positions from the beginning's end. In a stretch each item but the first few is
learnt: as scoring asks for it, after the items before it, and followed by the end of the answer, while the row goes on
with the separator. What differs from a row per target:

- an item sees at most `window` items before it, but these have seen others before them;
- its position in the row is later than in a prompt of its own, where a stretch has more items than the window;
- the items before it have the tokens that they have as answers, where a tokenizer may join a title's end to a comma.

Up to 1 + `window` items make a stretch equal to rows per target, except for the last point.
"""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from minipo.compatibility.tokenizers import tokenize, tokenize_rows
from minipo.packing import PackedBatch, TokenIds
from minipo.prompts import HISTORY, Template, answer, render
from minipo.rows import TokenRows

TARGETS = 16  # of a row
# Items that a stretch repeats from before a cut: more of them cost tokens, fewer cost history. In rows of fewer
# targets, which are cut more often, it repeats as many as a row per target would show.
REPEATED = 4


class _Row:
    """A row while it is put together: what `PackedBatch` says of its tokens; and of each item that is learnt its
    tokens, the end of the answer included, and the place of the token before it."""

    def __init__(self, beginning: TokenIds, separator: TokenIds, window: int):
        self.beginning, self.separator, self.window = len(beginning), separator, window
        self.ids, self.positions = beginning.tolist(), list(range(len(beginning)))
        self.segments, self.since = [0] * len(beginning), [0] * len(beginning)
        self.answers: list[TokenIds] = []
        self.before: list[int] = []
        self.position = len(beginning)  # of the next token
        self.segment = self.first = 0  # the last one of the row, and the first one of its stretch

    def open(self, ids: TokenIds) -> None:
        """Begin a stretch with an item."""
        self.position = self.beginning
        self.segment = self.first = self.segment + 1
        self._add(ids, self.segment)

    def show(self, ids: TokenIds) -> None:
        """Go on with an item."""
        self._add(self.separator, self.segment + 1)  # part of the item before, with the view of the one that follows
        self.segment += 1
        self._add(ids, self.segment)

    def learn(self, ids: TokenIds) -> None:
        """Go on with an item that is learnt. ids: with the end-of-answer token, which the row leaves out."""
        self.before.append(len(self.ids) + len(self.separator) - 1)
        self.answers.append(ids)
        self.show(ids[:-1])

    def _add(self, ids: TokenIds, viewer: int) -> None:
        self.ids += ids.tolist()
        self.positions += range(self.position, self.position + len(ids))
        self.segments += [self.segment] * len(ids)
        self.since += [max(self.first, viewer - self.window)] * len(ids)
        self.position += len(ids)


class SequenceRows(TokenRows):
    """Rows of stretches as token ids, from `token_sequences`: `prompts[row]` has all tokens of the row, `answers[row]`
    the items that are learnt, each with its end-of-answer token. A visit learns all of them."""

    def __init__(self, rows: Sequence[_Row]):
        super().__init__([np.array(row.ids) for row in rows], [row.answers for row in rows])
        self.rows = rows
        self.longest = max(max(row.positions) for row in rows) + 1  # tokens of the longest stretch

    @cached_property
    def tokens(self) -> int:
        """Tokens that a model reads of all rows."""
        return sum(map(len, self.prompts))

    def first(self, number: int | None) -> "SequenceRows":
        return SequenceRows(self.rows[:number])

    def __getitem__(self, visit: tuple[int, int]) -> tuple[int, NDArray[np.int64]]:
        return visit[1], np.arange(self.counts[visit[1]])

    def pack(self, visits: Sequence[tuple[int, Any]], pad_token_id: int, few_shapes: bool = False) -> PackedBatch:
        rows = [self.rows[row] for row, _ in visits]
        by = 8 if few_shapes else 1
        total = max(len(row.ids) for row in rows)
        total += -total % by
        lengths = np.zeros((len(rows), max(len(row.answers) for row in rows)), np.int64)
        for number, row in enumerate(rows):
            lengths[number, : len(row.answers)] = [len(ids) for ids in row.answers]
        target_mask = np.arange(lengths.max()) < lengths[:, :, None]
        targets, sources = np.zeros(target_mask.shape, np.int64), np.zeros(target_mask.shape, np.int64)
        targets[target_mask] = np.concatenate([ids for row in rows for ids in row.answers])
        sources[target_mask] = np.arange(lengths.sum())
        predicting = np.concatenate(
            [
                number * total + before + np.arange(len(ids))
                for number, row in enumerate(rows)
                for before, ids in zip(row.before, row.answers, strict=True)
            ]
        )

        def padded(name: str, value: int) -> torch.Tensor:
            lists = (getattr(row, name) for row in rows)
            return torch.tensor([each + [value] * (total - len(each)) for each in lists])

        return PackedBatch(
            input_ids=padded("ids", pad_token_id),
            position_ids=padded("positions", 0),
            segments=padded("segments", -1),
            since=padded("since", -1),
            predicting=torch.from_numpy(np.pad(predicting, (0, -len(predicting) % (4 * by if few_shapes else 1)))),
            sources=torch.from_numpy(sources),
            targets=torch.from_numpy(targets),
            target_mask=torch.from_numpy(target_mask),
            lengths=torch.from_numpy(lengths),
            mask=torch.from_numpy(lengths > 0),
        )


def token_sequences(
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[tuple[Sequence[str], int]],
    template: Template,
    window: int,
    targets: int = TARGETS,
    context: int | None = None,
) -> SequenceRows:
    """Rows of `targets` items to learn (the last row may have fewer), taken from the sequences one after the other.

    sequences: each a user's items, oldest first, and how many of the first are not learnt, at least 1. The first item
        that is learnt sees up to `window` of these. Where a sequence is cut, because a row is full or a stretch would
        exceed `context` tokens, what follows sees 4 items from before the cut, or `window` in rows of fewer than 16.
    template: one that `continues`. window: the most items before an item that it sees.

    Warns where a stretch begins with fewer items than that because of the context. Raises ValueError: no sequences, a
    template that does not continue, a context too short for two items, an item without tokens, and a tokenizer under
    which an item's tokens depend on what stands before it.
    """
    if targets < 1:
        raise ValueError(f"targets is {targets}; it must be at least 1.")
    if not template.continues:
        raise ValueError(
            f"The template {template.text!r} does not end in the history, so that its prompts hold one target each; "
            "choose 'line' or 'liked', or give a row per target."
        )
    if all(known >= len(items) for items, known in sequences):
        raise ValueError("There is no item to learn: the split is empty; give at least one.")
    beginning, firsts, separator, answers = _tokens(tokenizer, [items for items, _ in sequences], template)
    limit = math.inf if context is None else context
    rows, shortened = [_Row(beginning, separator, window)], 0
    for items, known in sequences:
        if known < 1:
            raise ValueError("The history is empty; a sequence needs an item before the first that is learnt.")
        sizes = (len(separator) + len(answers[item]) - 1 for item in items[1:])
        used = np.cumsum([0, *sizes])  # tokens after the first item, up to each
        opened, shown = False, window
        for place in range(known, len(items)):
            if len(rows[-1].answers) == targets:
                rows.append(_Row(beginning, separator, window))
                opened = False
            if not opened or rows[-1].position + used[place] - used[place - 1] > limit:
                starts = range(max(0, place - shown), place)
                needed = [len(beginning) + len(firsts[items[start]]) + used[place] - used[start] for start in starts]
                start = next((start for start, tokens in zip(starts, needed, strict=True) if tokens <= limit), None)
                if start is None:
                    raise ValueError(
                        f"{items[place - 1]!r} and {items[place]!r} need {needed[-1]} tokens with the template, more "
                        f"than the {context} of the model's context; choose a model with a longer one."
                    )
                shortened += start > starts[0]
                rows[-1].open(firsts[items[start]])
                for item in items[start + 1 : place]:
                    rows[-1].show(answers[item][:-1])
                opened, shown = True, REPEATED if targets >= TARGETS else window
            rows[-1].learn(answers[items[place]])
    if shortened:
        warnings.warn(
            f"{shortened} stretches of sequences begin with fewer items than they could, because the model's context "
            f"has only {context} tokens.",
            stacklevel=3,
        )
    return SequenceRows(rows)


def _tokens(
    tokenizer: PreTrainedTokenizerBase, sequences: Sequence[Sequence[str]], template: Template
) -> tuple[TokenIds, dict[str, TokenIds], TokenIds, dict[str, TokenIds]]:
    """The template's beginning; each item after it; the separator; each item as an answer, with its end."""
    items = list(dict.fromkeys(chain.from_iterable(sequences)))
    prompts = [render(template, [item]) for item in items]
    before, after = template.text.split(HISTORY)
    beginning = tokenize(tokenizer, [before.rstrip()], special=True)[0]
    begun = tokenize(tokenizer, [before + item for item in items], special=True)
    prompt_ids = tokenize(tokenizer, prompts, special=True)
    while any(not np.array_equal(ids[: len(beginning)], beginning) for ids in begun):
        beginning = beginning[:-1]
    # The separator as most items leave it: ")," may be one token.
    ends = Counter(
        tuple(prompt[len(ids) :])
        for ids, prompt in zip(begun, prompt_ids, strict=True)
        if np.array_equal(prompt[: len(ids)], ids)
    )
    if not ends:  # behind a letter then: "," alone may have the token of a text's start
        letter, both = tokenize(tokenizer, ["a", "a" + after])
        ends[tuple(both[len(letter) :] if np.array_equal(both[: len(letter)], letter) else both)] += 1
    separator = np.array(ends.most_common(1)[0][0])

    # Each item as an answer, which must have the same tokens after all items that it follows.
    prompt_of, length_of = dict(zip(items, prompts, strict=True)), dict(zip(items, map(len, prompt_ids), strict=True))
    plain = dict(zip(items, tokenize(tokenizer, [answer(item) for item in items]), strict=True))
    pairs = list(dict.fromkeys(chain.from_iterable(map(pairwise, sequences))))
    together = tokenize_rows(tokenizer, [prompt_of[one] for one, _ in pairs], [[answer(two)] for _, two in pairs])
    answers: dict[str, TokenIds] = {}
    for (one, two), prompt, (ids,) in zip(pairs, *together, strict=True):
        if len(prompt) != length_of[one] or not np.array_equal(ids[: len(plain[two])], plain[two]):
            raise ValueError(
                f"This {type(tokenizer).__name__} splits {prompt_of[one][-8:]!r} + {answer(two)[:8]!r} differently "
                "together and apart, so that a row cannot hold several answers; give a row per target."
            )
        if len(ids) < 2:
            raise ValueError(f"The item {two!r} tokenizes to nothing; leave it out.")
        answers[two] = ids
    firsts = {item: ids[len(beginning) :] for item, ids in zip(items, begun, strict=True)}
    return beginning, firsts, separator, answers
