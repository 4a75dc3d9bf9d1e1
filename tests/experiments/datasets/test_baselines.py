"""The rankings without a language model: counted by hand on a few lines, and in their order on the catalogue."""

import numpy as np
import pytest

from minipo.experiments.datasets.baselines import markov_scores, popularity_scores, random_scores
from minipo.experiments.datasets.catalog import oracle, world
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.datasets.splits import Interaction

TRAIN = [
    Interaction(0, ("a", "b"), "c", ("c", "a")),
    Interaction(1, ("a", "b"), "c", ("c", "d")),
    Interaction(2, ("c", "b"), "a", ("a", "d")),
]
ASKED = [
    Interaction(3, ("d", "b"), "c", ("a", "c", "d")),
    Interaction(4, (), "a", ("c", "a")),
]


def hit_rate(scores):
    """HR@1, a tie counting against the chosen item."""
    return np.mean(scores[:, 0] > scores[:, 1:].max(axis=1))


def test_popularity_counts_history_and_chosen_of_the_training_lines():
    np.testing.assert_array_equal(popularity_scores(TRAIN, ASKED), [[3, 3, 0], [3, 3, -np.inf]])


def test_markov_counts_neighbours_and_backs_off_to_popularity():
    popularity = {"a": 4 / 13, "c": 4 / 13, "d": 1 / 13}  # counts 3, 3, 3, 0 of a, b, c, d, and one for each
    after_b = {item: (pairs + 2 * popularity[item]) / (3 + 2) for item, pairs in {"c": 2, "a": 1, "d": 0}.items()}
    expected = [[after_b["c"], after_b["a"], after_b["d"]], [popularity["a"], popularity["c"], 0]]
    np.testing.assert_allclose(np.exp(markov_scores(TRAIN, ASKED, backoff=2)), expected, rtol=1e-12)


def test_a_users_overlapping_lines_count_once():
    whole = [*TRAIN, Interaction(8, ("d", "a", "c"), "b", ("b", "a"))]
    slid = [Interaction(8, ("d",), "a", ("a", "b")), Interaction(8, ("d", "a"), "c", ("c", "b"))]
    for scores in (popularity_scores, markov_scores):
        np.testing.assert_array_equal(scores([*slid, *whole], ASKED), scores(whole, ASKED))


def test_markov_without_training_lines_is_even():
    np.testing.assert_allclose(np.exp(markov_scores([], ASKED)), [[1 / 4] * 3, [1 / 4, 1 / 4, 0]])


def test_markov_is_popularity_for_an_item_without_successors():
    asked = [Interaction(5, ("d",), "a", ("a", "b", "d"))]
    np.testing.assert_allclose(np.exp(markov_scores(TRAIN, asked)), [[4 / 13, 4 / 13, 1 / 13]], rtol=1e-12)


def test_markov_fits_in_memory_for_a_large_catalogue():
    """A table of all pairs would take 80 GB."""
    items = [f"item {number}" for number in range(100_000)]
    train = [
        Interaction(user, tuple(items[user * 10 : user * 10 + 9]), items[user * 10 + 9], (items[user * 10 + 9], "x"))
        for user in range(10_000)
    ]
    scores = markov_scores(train, [Interaction(0, (items[4],), items[5], (items[9], items[5]))])
    assert scores[0, 0] > scores[0, 1]


@pytest.mark.parametrize("backoff", [0, -1, float("nan")])
def test_markov_needs_a_positive_backoff(backoff):
    with pytest.raises(ValueError, match=f"backoff is {backoff}; use a number above 0"):
        markov_scores(TRAIN, ASKED, backoff)


def test_random_scores_follow_their_seed():
    test = load_dataset().test[:50]
    np.testing.assert_array_equal(random_scores(test, seed=3), random_scores(test, seed=3))
    assert (random_scores(test, seed=3) != random_scores(test, seed=4)).all()
    np.testing.assert_array_equal(np.isinf(random_scores(ASKED)), [[False] * 3, [False, False, True]])


def test_on_the_catalogue_the_oracle_beats_markov_beats_popularity_beats_random():
    splits = load_dataset()
    rates = [
        hit_rate(scores)
        for scores in (
            random_scores(splits.test),
            popularity_scores(splits.train, splits.test),
            markov_scores(splits.train, splits.test),
            oracle(world(), splits.test, grid=8),
        )
    ]
    assert rates[0] == pytest.approx(1 / 20, abs=4 * np.sqrt(0.05 * 0.95 / 2000))
    assert (np.diff(rates) > [0.01, 0.1, 0.1]).all()  # popularity is nearly flat
