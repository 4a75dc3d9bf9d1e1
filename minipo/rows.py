"""Rows of preferences as token ids, and the order in which training visits them.

Rows are drawn by (seed, epoch, row), not by a stateful generator: a run that resumes sees the same rows, and runs at
different K see the same rows in the same order, K = 5 the first five of K = 15's negatives.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from minipo.compatibility.formats import Answers, Rows, records, row_texts
from minipo.compatibility.tokenizers import tokenize_rows
from minipo.packing import PackedBatch, PackedGroups, TokenIds, pack_groups


class TokenRows(Dataset):
    """Rows as token ids: `prompts[row]`, and `answers[row]`, each answer with its end-of-answer token, chosen first.

    An item (epoch, row) is the row with the columns of the answers that this visit uses: 0, the chosen one, then
    `negatives` (None: all) of the row's others, or as many as it has, in an order keyed by (seed, epoch, row).
    """

    def __init__(
        self,
        prompts: Sequence[TokenIds],
        answers: Sequence[Sequence[TokenIds]],
        negatives: int | None = None,
        seed: int = 0,
    ):
        self.prompts, self.answers, self.negatives, self.seed = prompts, answers, negatives, seed
        self.counts = np.fromiter(map(len, answers), np.int64, len(answers))
        self.width = int(self.counts.max(initial=0))

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, visit: tuple[int, int]) -> tuple[int, NDArray[np.int64]]:
        epoch, row = visit
        others = np.random.default_rng([self.seed, epoch, row]).permutation(self.counts[row] - 1)
        return row, np.concatenate([[0], 1 + others[: self.negatives]])

    def pack(
        self, visits: Sequence[tuple[int, Iterable[int]]], pad_token_id: int, few_shapes: bool = False
    ) -> PackedBatch | PackedGroups:
        """The rows and columns that `visits` names, packed for `packed_logps`. few_shapes: see `pack_groups`."""
        return pack_groups(
            [self.prompts[row] for row, _ in visits],
            [[self.answers[row][column] for column in columns] for row, columns in visits],
            pad_token_id,
            few_shapes=few_shapes,
        )

    def first(self, number: int | None) -> "TokenRows":
        """The first rows, as many as `number`; all if it is None."""
        return TokenRows(self.prompts[:number], self.answers[:number], self.negatives, self.seed)

    @cached_property
    def tokens(self) -> int:
        """Tokens that a model reads of all rows with all their answers, whose ends are only predicted."""
        return sum(map(len, self.prompts)) + sum(len(ids) - 1 for answers in self.answers for ids in answers)

    @cached_property
    def fingerprint(self) -> bytes:
        """A hash of all token ids, so that another tokenizer or template changes it."""
        lengths = [len(ids) for ids in self.prompts] + [len(ids) for row in self.answers for ids in row]
        digest = hashlib.sha256(np.concatenate([self.counts, lengths]).tobytes())
        for prompt, answers in zip(self.prompts, self.answers, strict=True):
            digest.update(np.concatenate([prompt, *answers]).tobytes())
        return digest.digest()


class Visits(Sampler[tuple[int, int]]):
    """Every row once per epoch, as (epoch, row), in an order keyed by (seed, epoch)."""

    def __init__(self, rows: int, seed: int):
        self.rows, self.seed, self.epoch = rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The rows in the order of that epoch."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.rows)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, int(row)) for row in self.order(self.epoch))

    def __len__(self) -> int:
        return self.rows


# From a user's rows to token ids.


def token_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    answers_of: Answers,
    context: int | None = None,
    negatives: int | None = None,
    seed: int = 0,
) -> TokenRows:
    """`rows` as token ids. answers_of: a row's answers, chosen first; see `preference_answers` and `completion`.

    A prompt is a string, or a list of messages that goes through the tokenizer's chat template; an answer is the text
    that follows the prompt, or, after messages, what the assistant says; `compatibility.formats` lists them.
    Raises ValueError, naming the row, for rows in none of these forms, empty, or longer than `context` tokens.
    """
    rows = records(rows)
    read = []
    for number in range(len(rows)):
        try:
            read.append(row_texts(tokenizer, rows[number], answers_of))
        except ValueError as error:
            raise ValueError(f"Row {number}: {error}") from None
    # All rows in one call, because each call is slow. A chat template writes the special tokens around a prompt itself.
    ids = {}
    for kind in (False, True):
        prompts = [prompt for prompt, _, chat in read if chat == kind]
        answers = [texts for _, texts, chat in read if chat == kind]
        ids[kind] = zip(*tokenize_rows(tokenizer, prompts, answers, not kind), strict=True)
    prompt_ids, answer_ids = map(list, zip(*(next(ids[chat]) for *_, chat in read), strict=True))
    _check_lengths(prompt_ids, answer_ids, context)
    return TokenRows(prompt_ids, answer_ids, negatives, seed)


def _check_lengths(prompts: Sequence[TokenIds], answers: Sequence[Sequence[TokenIds]], context: int | None) -> None:
    for row, (prompt, rest) in enumerate(zip(prompts, answers, strict=True)):
        longest = max(map(len, rest)) - 1  # the end-of-answer token is only predicted, never read
        if not len(prompt):
            raise ValueError(f"Row {row}: the prompt tokenizes to nothing; give it a word.")
        if min(map(len, rest)) < 2:
            empty = min(range(len(rest)), key=lambda column: len(rest[column]))
            name = f"rejected answer {empty}" if empty else "chosen answer"
            raise ValueError(f"Row {row}: the {name} tokenizes to nothing; leave it out.")
        if context is not None and len(prompt) + longest > context:
            raise ValueError(
                f"Row {row} needs {len(prompt) + longest} tokens (prompt {len(prompt)}, longest answer {longest}), "
                f"more than the {context} of the model's context or of args.max_length; shorten its prompt."
            )
