"""Dated interactions become the lines that a plain reading of the rules makes; negatives are drawn as they should."""

from itertools import pairwise

import numpy as np
import pytest

from minipo.experiments.datasets import by_time
from minipo.experiments.datasets.by_time import keyed, split_by_time

ITEMS = 60
TITLES = tuple(f"item {number}" for number in range(ITEMS))


def interactions(seed, users=40):
    """Users of 0 to 40 items each, in random order, with many equal times."""
    random = np.random.default_rng(seed)
    rows = [(user, item) for user in range(users) for item in random.permutation(ITEMS)[: random.integers(0, 41)]]
    rows = np.array(rows)[random.permutation(len(rows))]
    return rows[:, 0] * 3, rows[:, 1], random.integers(0, 15, len(rows)), random.random(len(rows)) < 0.6


def split(users, items, times, liked, seed=0, titles=TITLES, ties="file"):
    return split_by_time("test", users, items, times, liked, titles, {}, seed, ties)


def everything(splits):
    return [*splits.train, *splits.validation, *splits.test]


def plainly(users, items, times, liked):
    """(user, history, chosen) of each split, by a plain reading of the rules."""
    train, validation, test = [], [], []
    for user in np.unique(users):
        rows = sorted(
            (row for row in range(len(users)) if users[row] == user and liked[row]), key=lambda row: times[row]
        )
        names = [TITLES[items[row]] for row in rows]
        if len(names) < 6 or ITEMS - (users == user).sum() < 19:
            continue
        lines = [(user, tuple(names[max(0, next_ - 10) : next_]), names[next_]) for next_ in range(3, len(names))]
        train += lines[:-2]
        validation.append(lines[-2])
        test.append(lines[-1])
    return train, validation, test


@pytest.mark.parametrize("seed", range(5))
def test_lines_are_what_a_plain_reading_makes_of_the_data(seed):
    data = interactions(seed)
    splits = split(*data)
    found = [
        [(line.user, line.history, line.chosen) for line in lines]
        for lines in (splits.train, splits.validation, splits.test)
    ]
    assert found == list(plainly(*data))
    assert len(splits.test) > 10
    assert splits.items == TITLES


def test_negatives_are_nineteen_items_that_the_user_has_not_met_yet_liked_or_not():
    users, items, times, liked = interactions(0)
    later = 0
    for line in everything(split(users, items, times, liked)):
        rows = np.flatnonzero(users == line.user)
        order = [TITLES[item] for item in items[rows[np.argsort(times[rows], kind="stable")]]]
        met, still_to_come = np.split(np.array(order), [order.index(line.chosen) + 1])
        assert len(set(line.candidates)) == 20
        assert set(met).intersection(line.candidates) == {line.chosen}
        later += len(set(still_to_come).intersection(line.negatives))
    assert later > 0


def test_every_item_not_met_yet_is_a_negative_at_the_same_rate_and_the_chosen_one_stands_anywhere():
    """The test item above all: were it spared among its user's negatives, what is never there would be the answer."""
    order = np.arange(0, ITEMS, 3)  # all meet every third item, in this order, and none of the other 40
    users = np.repeat(np.arange(400), 20)
    lines = everything(split(users, np.tile(order, 400), np.arange(8000), np.ones(8000, dtype=bool)))
    assert len(lines) == 400 * 17
    counts, expected = np.zeros(ITEMS), np.zeros(ITEMS)
    for line in lines:
        np.add.at(counts, [TITLES.index(item) for item in line.negatives], 1)
        met = order[: list(order).index(TITLES.index(line.chosen)) + 1]
        free = np.setdiff1d(np.arange(ITEMS), met)
        expected[free] += 19 / len(free)
    assert counts[order[-1]] == pytest.approx(expected[order[-1]], rel=0.1)  # the test item: 2,500 times
    drawn = expected > 0
    assert not counts[~drawn].any()
    # Chi-square with 55 and 19 degrees of freedom, p = 0.001; drawing without replacement only lowers the first.
    assert ((counts - expected)[drawn] ** 2 / expected[drawn]).sum() < 93.2
    places = np.bincount([line.candidates.index(line.chosen) for line in lines], minlength=20)
    assert ((places - places.mean()) ** 2 / places.mean()).sum() < 43.8
    # Neighbouring lines of a user are drawn independently; one of `free` items and one of an item fewer.
    pairs = [(a, b) for a, b in pairwise(lines) if a.user == b.user]
    common = [len({*a.negatives} & {*b.negatives}) for a, b in pairs]
    free = np.array([ITEMS - 1 - list(order).index(TITLES.index(a.chosen)) for a, _ in pairs])
    assert np.mean(common) == pytest.approx(np.mean(19 * 19 / free), abs=0.1)


def test_candidates_depend_on_seed_user_and_position_alone():
    data = interactions(0)
    assert split(*data) == split(*data)
    assert split(*data, seed=1).test[0].candidates != split(*data).test[0].candidates
    user = split(*data).test[3].user
    alone = tuple(column[data[0] == user] for column in data)
    for ties in ("file", "random"):
        assert split(*alone, ties=ties).test == (split(*data, ties=ties).test[3],)


def test_the_order_of_the_rows_decides_ties_or_chance_does():
    users, items, times, _ = data = interactions(0)
    anew = np.random.default_rng(1).permutation(len(users))
    moved = tuple(column[anew] for column in data)
    assert split(*moved, ties="random") == split(*data, ties="random") != split(*data, ties="random", seed=1)
    assert split(*moved) != split(*data)
    when = {(user, TITLES[item]): time for user, item, time in zip(users, items, times, strict=True)}
    for line in everything(split(*data, ties="random")):
        order = [when[line.user, item] for item in (*line.history, line.chosen)]
        assert order == sorted(order)


def test_chance_prefers_no_item():
    users, items, times = (
        np.repeat(np.arange(1000), 8),
        np.tile(np.arange(8), 1000),
        np.tile([*range(5), 5, 5, 5], 1000),
    )
    last = [line.chosen for line in split(users, items, times, np.ones(8000, dtype=bool), ties="random").test]
    counts = np.array([last.count(TITLES[item]) for item in (5, 6, 7)])
    assert counts.sum() == 1000
    assert np.abs(counts - 1000 / 3).max() < 60  # four standard deviations


@pytest.mark.parametrize(("tied", "order"), [(10, "file"), (11, "random")])
def test_chance_decides_where_more_than_a_tenth_of_neighbours_tie(tied, order):
    """20 users of 6 liked items: 100 pairs of neighbours, of which the last of so many users tie; ratings of others."""
    users, items, liked = np.repeat(np.arange(20), 7), np.tile(np.arange(7), 20), np.tile([1, 1, 1, 1, 1, 1, 0], 20)
    times = np.tile([0, 1, 2, 3, 4, 5, 5], 20)
    times[(items == 5) & (users < tied)] = 4
    found = split(users, items, times, liked == 1, ties=None)
    assert found.report["ties"] == {"order": order, "neighbours": 100, "tied": tied, "users": tied}
    assert found == split(users, items, times, liked == 1, ties=order)


def test_times_that_say_nothing_are_warned_of():
    users, items = np.repeat(np.arange(5), 7), np.tile(np.arange(7), 5)
    with pytest.warns(UserWarning, match="test: 30 of 30 neighbouring .* chance, by the dataset's seed, decides which"):
        split(users, items, np.zeros(35), np.ones(35, dtype=bool), ties=None)


def test_the_draw_stays_as_it_was_when_runs_were_recorded():
    """If this fails, runs recorded on MovieLens or own files met other lines than the same command meets now."""
    users, steps = np.repeat(np.arange(30), 12), np.tile(np.arange(12), 30)
    items, liked = (users * 7 + steps * 5) % ITEMS, np.ones(360, dtype=bool)
    assert split(users, items, steps, liked).fingerprint == "96fd946258ad0987"
    assert split(users, items, steps // 2, liked, ties="random").fingerprint == "703fcb0ee1aea604"


def test_report_counts_what_is_there_and_what_was_dropped():
    users = np.repeat([0, 1, 2], [8, 5, 45])
    items = np.concatenate([np.arange(8), np.arange(5), np.arange(45)])
    splits = split_by_time(
        "test", users, items, np.arange(58) // 7, np.ones(58, bool), TITLES, {"odd rows": 4, "none": 0}, 0, "file"
    )
    assert splits.report == {
        "users": 1,
        "items": 60,
        "interactions": 8,
        "lengths": {"min": 3, "median": 5.0, "max": 7},
        "rows": {"train": 3, "validation": 1, "test": 1},
        "ties": {"order": "file", "neighbours": 7, "tied": 6, "users": 0},
        "dropped": {
            "odd rows": 4,
            "users with fewer than 6 liked items": 1,
            "users who left fewer than 19 items for negatives": 1,
        },
        "notes": [],
    }


def test_a_long_dataset_keeps_whole_users_up_to_the_bound(monkeypatch):
    data = interactions(0)
    every = split(*data)
    monkeypatch.setattr(by_time, "LINES", 100)
    some = split(*data)
    kept = {line.user for line in some.test}
    assert everything(some) == [
        line for part in (every.train, every.validation, every.test) for line in part if line.user in kept
    ]
    assert 60 < len(everything(some)) <= 100
    dropped = some.report["dropped"]["users drawn at random, to keep to 100 lines"]
    assert dropped == len(every.test) - len(some.test) > 0


@pytest.mark.parametrize(
    ("users", "items", "count", "message"),
    [
        ([0] * 8, range(8), 8, r"\(users: 1; items: 8; .*\); add longer histories, more users or more items"),
        ([0, 1] * 5, range(10), 60, r"no user has 6 liked items .*; liked items of a user: at most 5\)"),
        ([0] * 8 + [1] * 8, range(16), 20, r"19 more that only others met \(users: 2; items: 20;"),
    ],
)
def test_data_without_a_single_line_says_why(users, items, count, message):
    items = np.array(items)
    with pytest.raises(ValueError, match=message):
        split(np.array(users), items, items, np.ones(len(items), dtype=bool), titles=TITLES[:count])


def test_keyed_numbers_are_spread_and_depend_on_every_key():
    numbers = keyed(0, np.arange(100)[:, None], np.arange(100))
    assert len({int(number) for number in numbers.ravel()}) == 10_000
    ones = [(numbers >> np.uint64(bit) & np.uint64(1)).mean() for bit in range(64)]
    assert np.abs(np.array(ones) - 0.5).max() < 0.025  # five standard deviations
    assert (keyed(1, np.arange(100)[:, None], np.arange(100)) != numbers).all()
