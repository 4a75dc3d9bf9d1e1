"""Rankings that need no language model: what a trained one has to beat.

Each returns float64 scores (B, 1+K) in canonical order: the chosen item first, then the negatives; -inf where a row has
fewer candidates than the longest.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise

import numpy as np
from jaxtyping import Float, Int

from minipo.experiments.datasets.splits import Interaction, canonical_numbers

Scores = Float[np.ndarray, "batch candidates"]


def random_scores(interactions: Sequence[Interaction], seed: int = 0) -> Scores:
    """Uniform random numbers from the seed: HR@1 is 1 / (1+K) up to chance."""
    candidates = canonical_numbers(interactions, [*_numbers(interactions)])
    return np.where(candidates < 0, -np.inf, np.random.default_rng(seed).random(candidates.shape))


def popularity_scores(train: Sequence[Interaction], interactions: Sequence[Interaction]) -> Scores:
    """How many users have each candidate in a training line, in the history or as the chosen item."""
    number = _numbers(train, interactions)
    candidates = canonical_numbers(interactions, [*number])
    return np.where(candidates < 0, -np.inf, _counts(train, number)[candidates])


def markov_scores(train: Sequence[Interaction], interactions: Sequence[Interaction], backoff: float = 5.0) -> Scores:
    """log P(candidate | last item of the history), from the pairs of neighbours in the training lines.

    P = (pairs(last, next) + backoff · P(next)) / (pairs(last, ·) + backoff), with P(next) from popularity, one added to
    every count so that nothing is impossible: after a frequent last item the pairs dominate; a rare one, or an
    empty history, falls back to popularity. A pair counts once per user, because a user's lines overlap.
    Raises ValueError if `backoff` is not positive.
    """
    if not backoff > 0:
        raise ValueError(f"The Markov baseline's backoff is {backoff}; use a number above 0.")
    number = _numbers(train, interactions)
    items = len(number)
    candidates = canonical_numbers(interactions, [*number])
    popularity = _counts(train, number) + 1
    # Only the pairs that occur: a table of all items by all items would not fit in memory for a large catalogue.
    pairs, times = np.unique(_pairs(train, number), return_counts=True)
    leaving = np.bincount(pairs // items, weights=times, minlength=items + 1)
    # An empty history has the number after the last item's, where no pair starts.
    ends = [number[line.history[-1]] if line.history else items for line in interactions]
    last = np.array(ends, dtype=int)[:, None]
    wanted = last * items + candidates
    found = np.searchsorted(pairs, wanted)
    followed = np.where(np.append(pairs, -1)[found] == wanted, np.append(times, 0)[found], 0)
    chances = (followed + backoff * popularity[candidates] / popularity.sum()) / (leaving[last] + backoff)
    return np.where(candidates < 0, -np.inf, np.log(chances))


def _numbers(*splits: Sequence[Interaction]) -> dict[str, int]:
    """Every item that occurs, and its number, in a fixed order."""
    items = dict.fromkeys(chain.from_iterable((*line.history, *line.candidates) for line in chain(*splits)))
    return {item: number for number, item in enumerate(items)}


def _counts(train: Sequence[Interaction], number: Mapping[str, int]) -> Float[np.ndarray, " items"]:
    """The number of users in whose lines each item occurs."""
    met = {(line.user, number[item]) for line in train for item in (*line.history, line.chosen)}
    return np.bincount(np.array([item for _, item in met], dtype=int), minlength=len(number)).astype(np.float64)


def _pairs(train: Sequence[Interaction], number: Mapping[str, int]) -> Int[np.ndarray, " pairs"]:
    """Neighbours in the lines as before · (number of items) + after, each once per user."""
    met = {
        (line.user, number[before] * len(number) + number[after])
        for line in train
        for before, after in pairwise((*line.history, line.chosen))
    }
    return np.array([pair for _, pair in met], dtype=int)
