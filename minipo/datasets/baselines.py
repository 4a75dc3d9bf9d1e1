"""Rankings that need no language model: what a trained one has to beat.

Each answers float64 scores (B, 1+K) in canonical order: the chosen item first, then the negatives; -inf where a row has
fewer candidates than the longest.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from jaxtyping import Float

from minipo.datasets import Interaction, canonical_numbers

Scores = Float[np.ndarray, "batch candidates"]


def random_scores(interactions: Sequence[Interaction], seed: int = 0) -> Scores:
    """Uniform random numbers from the seed: HR@1 is 1 / (1+K) up to chance."""
    items = _items(interactions)
    candidates = canonical_numbers(interactions, items)
    return np.where(candidates < 0, -np.inf, np.random.default_rng(seed).random(candidates.shape))


def popularity_scores(train: Sequence[Interaction], interactions: Sequence[Interaction]) -> Scores:
    """How often each candidate stands in a training line, history and chosen item together."""
    items = _items(train, interactions)
    candidates = canonical_numbers(interactions, items)
    return np.where(candidates < 0, -np.inf, _counts(train, items)[candidates])


def markov_scores(train: Sequence[Interaction], interactions: Sequence[Interaction], backoff: float = 5.0) -> Scores:
    """log P(candidate | last item of the history), from the pairs of neighbours in the training lines.

    P = (pairs(last, next) + backoff · P(next)) / (pairs(last, ·) + backoff), with P(next) from popularity, one added to
    every count so that nothing is impossible: an item seen often in last place speaks for itself, a rare one, or an
    empty history, falls back to popularity.
    Raises ValueError if `backoff` is not positive.
    """
    if not backoff > 0:
        raise ValueError(f"The Markov baseline's backoff is {backoff}; use a number above 0.")
    items = _items(train, interactions)
    number = {item: place for place, item in enumerate(items)}
    candidates = canonical_numbers(interactions, items)
    popularity = _counts(train, items) + 1
    pairs = np.zeros((len(items) + 1, len(items)))  # the last row, without pairs, is for an empty history
    for line in train:
        numbers = [number[item] for item in (*line.history, line.chosen)]
        np.add.at(pairs, (numbers[:-1], numbers[1:]), 1)
    chances = (pairs + backoff * popularity / popularity.sum()) / (pairs.sum(axis=1, keepdims=True) + backoff)
    last = [number[line.history[-1]] if line.history else -1 for line in interactions]
    return np.where(candidates < 0, -np.inf, np.log(chances[np.array(last, dtype=int)[:, None], candidates]))


def _items(*splits: Sequence[Interaction]) -> tuple[str, ...]:
    """Every item that occurs, each once, in a fixed order."""
    return tuple(dict.fromkeys(chain.from_iterable((*line.history, *line.candidates) for line in chain(*splits))))


def _counts(train: Sequence[Interaction], items: Sequence[str]) -> Float[np.ndarray, " items"]:
    number = {item: place for place, item in enumerate(items)}
    numbers = [number[item] for line in train for item in (*line.history, line.chosen)]
    return np.bincount(np.array(numbers, dtype=int), minlength=len(items)).astype(np.float64)
