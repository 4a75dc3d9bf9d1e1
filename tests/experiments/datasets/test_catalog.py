"""The catalogue's world does what its data card says, and its oracle is the best ranking of it."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from minipo.experiments.datasets import catalog
from minipo.experiments.datasets.catalog import (
    ARTISTS,
    GENRES,
    SHARED_WORDS,
    generate,
    next_item_probabilities,
    oracle,
    world,
)
from minipo.experiments.datasets.loading import load_dataset

SPLITS = load_dataset()
WORLD = world()
LINES = (*SPLITS.train, *SPLITS.validation, *SPLITS.test)
NUMBER = {item: number for number, item in enumerate(SPLITS.items)}


def numbers(items):
    return [NUMBER[item] for item in items]


def test_the_seed_decides_everything():
    assert generate(0, 50, 20, 30)[1] == generate(0, 50, 20, 30)[1]
    here, one = generate(1, 50, 20, 30)
    assert set(here.items) != set(WORLD.items)
    assert not np.array_equal(here.positions, WORLD.positions)
    assert one.fingerprint != generate(0, 50, 20, 30)[1].fingerprint


def test_more_users_of_one_split_leave_the_others_alone():
    few, more = generate(0, 10, 20, 30)[1], generate(0, 40, 20, 30)[1]
    assert [replace(line, user=0) for line in few.test] == [replace(line, user=0) for line in more.test]
    assert len(generate(0, 0, 0, 3)[1].test) == 3


def test_no_user_is_in_two_splits():
    assert [line.user for line in LINES] == list(range(7000))
    assert len({(line.history, line.candidates) for line in LINES}) == 7000  # nor do the splits share a random stream


def test_names_are_two_words_of_which_one_hints_at_the_genre():
    words = [*SHARED_WORDS, *(word for hints in GENRES.values() for word in hints)]
    assert len(set(words)) == len(words) == 60 + 12 * 5
    assert all(word.isalpha() and word.istitle() for word in words)
    for seed in (0, 1):
        items = world(seed).items
        assert len(set(items)) == len(items) == 240
        for number, item in enumerate(items):
            hint, shared = item.split(" ")
            assert hint in list(GENRES.values())[number // ARTISTS]
            assert shared in SHARED_WORDS


def test_every_line_has_six_items_and_nineteen_negatives_that_the_user_did_not_take():
    for line in LINES:
        taken = {*line.history, line.chosen}
        assert len(line.history) == 6
        assert len(taken) == 7
        assert len(set(line.candidates)) == 20
        assert taken.intersection(line.candidates) == {line.chosen}
        assert len({number // ARTISTS for number in numbers(taken)}) <= 3


def test_candidates_are_shuffled():
    places = Counter(line.candidates.index(line.chosen) for line in LINES)
    expected = len(LINES) / 20
    assert sum((places[place] - expected) ** 2 / expected for place in range(20)) < 43.8  # chi-square, 19, p = 0.001


def test_negatives_are_drawn_from_everything_else():
    def genre_of_chosen(line, items):
        genre = NUMBER[line.chosen] // ARTISTS
        return sum(number // ARTISTS == genre for number in numbers(items))

    found = sum(genre_of_chosen(line, line.negatives) for line in LINES)
    expected = sum(19 * (19 - genre_of_chosen(line, line.history)) / 233 for line in LINES)
    assert abs(found - expected) < 4 * np.sqrt(expected)


def plain_user(random):
    """One user, word by word from the data card: item numbers of seven steps."""
    genres = random.choice(12, 3, replace=False)
    weights = random.dirichlet([1.5, 1.5, 1.5])
    place = {genre: random.random(2) for genre in genres}
    line = []
    for step in range(7):
        if step == 0 or random.random() >= 0.5:
            genre = random.choice(genres, p=weights)
        unseen = [number for number in range(genre * 20, genre * 20 + 20) if number not in line]
        chances = np.exp(-3 * np.linalg.norm(WORLD.positions[unseen] - place[genre], axis=1) / 0.18)
        item = random.choice(unseen, p=chances / chances.sum())
        place[genre] = 0.3 * place[genre] + 0.7 * WORLD.positions[item]
        line.append(item)
    return line


def habits(line):
    """What tells worlds apart: stays in a genre, genres in all, distances inside the genre visited most."""
    visits = {}
    for number in line:
        visits.setdefault(number // ARTISTS, []).append(WORLD.positions[number])
    longest = max(visits.values(), key=len)
    second = [np.linalg.norm(later - earlier) for earlier, later in pairwise(longest)]
    third = [np.linalg.norm(later - earlier) for earlier, later in zip(longest, longest[2:], strict=False)]
    stays = [a // ARTISTS == b // ARTISTS for a, b in pairwise(line)]
    return np.mean(stays), len(visits), np.mean(second), np.mean(third or [np.nan]), line[0] % ARTISTS == 0


def test_users_behave_like_plainly_simulated_ones():
    random = np.random.default_rng(5)
    plain = np.array([habits(plain_user(random)) for _ in range(1500)], dtype=float)
    fast = np.array([habits(numbers((*line.history, line.chosen))) for line in LINES], dtype=float)
    difference = np.nanmean(fast, axis=0) - np.nanmean(plain, axis=0)
    error = np.sqrt(np.nanvar(fast, axis=0) / len(fast) + np.nanvar(plain, axis=0) / len(plain))
    assert (abs(difference) < 4 * error).all(), difference / error


def test_a_user_stays_in_the_genre_as_often_as_the_rule_says():
    """0.5, and a redraw of the same genre: E[sum of squared weights] = 2.5 / 5.5 for a Dirichlet(1.5) over three."""
    stays = np.array([habits(numbers((*line.history, line.chosen)))[0] for line in LINES])
    assert stays.mean() == pytest.approx(0.5 + 0.5 * 2.5 / 5.5, abs=4 * stays.std() / np.sqrt(len(stays)))


def simulated_next_item(history, samples=60_000):
    """P(next item | history): the hidden taste drawn from its prior and weighted by the history's likelihood."""
    random = np.random.default_rng(0)
    genres = [number // ARTISTS for number in history]
    seen = list(dict.fromkeys(genres))
    others = [genre for genre in range(12) if genre not in seen]
    taste = np.zeros((samples, 12))
    drawn = random.permuted(np.tile(others, (samples, 1)), axis=1)[:, : 3 - len(seen)]
    sets = np.concatenate([np.tile(seen, (samples, 1)), drawn], axis=1).astype(int)
    np.put_along_axis(taste, sets, random.dirichlet([1.5] * 3, samples), axis=1)
    likelihood = taste[:, genres[0]].copy()
    for before, genre in pairwise(genres):
        likelihood *= 0.5 * (before == genre) + 0.5 * taste[:, genre]
    of_genre = 0.5 * np.average(taste, axis=0, weights=likelihood)
    of_genre[genres[-1]] += 0.5

    result = np.zeros(240)
    for genre in range(12):
        shelf = np.arange(genre * 20, genre * 20 + 20)
        place, likelihood, seen_here = random.random((samples, 2)), np.ones(samples), []
        for item in [*(number for number in history if number // ARTISTS == genre), None]:
            distances = np.linalg.norm(WORLD.positions[shelf] - place[:, None], axis=2)
            chances = np.exp(-3 * distances / 0.18) * ~np.isin(shelf, seen_here)
            chances /= chances.sum(axis=1, keepdims=True)
            if item is None:
                result[shelf] = of_genre[genre] * np.average(chances, axis=0, weights=likelihood)
            else:
                likelihood *= chances[:, item % ARTISTS]
                place = 0.3 * place + 0.7 * WORLD.positions[item]
                seen_here.append(item)
    return result


@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_oracle_equals_a_simulation_of_the_hidden_taste(kinds):
    """Histories with one, two and three genres, so that none, one or two of the user's genres are still unknown."""
    line = next(line for line in SPLITS.test if len({number // ARTISTS for number in numbers(line.history)}) == kinds)
    exact = next_item_probabilities(WORLD, [line])[0]
    np.testing.assert_allclose(exact, simulated_next_item(numbers(line.history)), atol=0.004)


def test_oracle_probabilities_are_a_distribution_over_what_can_come_next():
    probabilities = next_item_probabilities(WORLD, SPLITS.test, grid=8)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    for row, line in zip(probabilities, SPLITS.test, strict=True):
        assert (row[numbers(line.history)] == 0).all()
        assert row[NUMBER[line.chosen]] > 0


def test_oracle_scores_are_the_candidates_log_probabilities():
    lines = SPLITS.test[:40]
    short = replace(lines[0], candidates=(*lines[0].negatives[:3], lines[0].chosen))
    probabilities = next_item_probabilities(WORLD, [short, *lines])
    scores = oracle(WORLD, [short, *lines])
    assert scores.dtype == np.float64
    assert scores.shape == (41, 20)
    np.testing.assert_array_equal(scores[0, 4:], -np.inf)
    for line, row, score in zip(lines, probabilities[1:], scores[1:], strict=True):
        np.testing.assert_allclose(np.exp(score), row[numbers(line.canonical)], rtol=1e-12)


def test_oracle_is_calibrated():
    """Among candidates that it gives a share p to be the chosen one, a share p is; and its HR@1 is what it expects."""
    scores = oracle(WORLD, LINES, grid=12)
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    chosen = np.zeros(shares.shape)
    chosen[:, 0] = 1
    edges = [0, 0.001, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97, 1.0001]
    for low, high in pairwise(edges):
        inside = (shares >= low) & (shares < high)
        error = np.sqrt((shares * (1 - shares))[inside].sum())
        assert abs((chosen - shares)[inside].sum()) < 4 * error + 0.5, (low, high)
    best = shares.max(axis=1)
    hits = shares[:, 0] == best
    assert abs(hits.mean() - best.mean()) < 4 * np.sqrt((best * (1 - best)).sum()) / len(best)


@pytest.mark.parametrize(
    ("constant", "values"),
    [("KEEP", (0.4, 0.6)), ("CONCENTRATION", (0.5, 6.0)), ("REACH", (0.045, 0.08)), ("MOVE", (0.5, 0.9))],
)
def test_oracle_of_a_slightly_different_world_predicts_worse(constant, values, monkeypatch):
    def mean_log_probability():
        catalog._first_visit.cache_clear()
        return oracle(WORLD, SPLITS.train[:2000], grid=6)[:, 0].mean()

    right = mean_log_probability()
    for value in values:
        monkeypatch.setattr(catalog, constant, value)
        assert mean_log_probability() < right - 0.001
    catalog._first_visit.cache_clear()


def test_quadrature_error_is_as_small_as_the_data_card_says():
    lines = SPLITS.test[:30]
    coarse, fine = (next_item_probabilities(WORLD, lines, grid) for grid in (24, 48))
    assert abs(coarse - fine).max() < 1e-3
    best = [oracle(WORLD, lines, grid).argmax(axis=1) for grid in (24, 48)]
    assert (best[0] != best[1]).mean() <= 0.01


def test_oracle_refuses_what_its_world_cannot_produce():
    line = SPLITS.test[0]
    message = f"User {line.user}: the catalogue with seed 0 cannot produce this history; the oracle needs 6 different"
    by_genre = [SPLITS.items[genre * ARTISTS] for genre in range(6)]
    for history in (
        line.history[1:],
        (*line.history[:5], line.history[0]),
        (*line.history[:5], "Nobody Knows"),
        tuple(by_genre),
    ):
        with pytest.raises(ValueError, match=message):
            oracle(WORLD, [replace(line, history=history, candidates=line.candidates)])
    with pytest.raises(ValueError, match="the candidate 'Nobody Knows' is not an item of this dataset"):
        oracle(WORLD, [replace(line, candidates=("Nobody Knows", line.chosen))])


def test_a_negative_seed_or_count_is_refused():
    with pytest.raises(ValueError, match="non-negative"):
        generate(-1)
    with pytest.raises(ValueError, match="negative"):
        generate(0, 10, -5, 10)


def test_fresh_users_are_new_users_of_the_same_world():
    fresh = catalog.fresh_users(0, 50)
    assert fresh == catalog.fresh_users(0, 50)
    known = {(line.history, line.chosen) for split in (SPLITS.train, SPLITS.validation, SPLITS.test) for line in split}
    assert sum((line.history, line.chosen) in known for line in fresh) <= 3  # neighbours in a small world, by chance
    assert np.isfinite(oracle(WORLD, fresh, grid=6)[:, 0]).all()  # histories that this world can produce
    with pytest.raises(ValueError, match="negative"):
        catalog.fresh_users(0, -1)
