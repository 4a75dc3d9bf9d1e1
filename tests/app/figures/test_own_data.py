"""What is said and drawn of a dataset of one's own comes from its lines alone."""

import json

import numpy as np
import pytest
from figures import own_data

from minipo.experiments.datasets import own
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.datasets.splits import Interaction, Splits

ITEMS = ("a", "b", "c", "d")


def line(user: int, history: str, chosen: str) -> Interaction:
    return Interaction(user, tuple(history), chosen, ITEMS)


@pytest.fixture
def small() -> Splits:
    """After a comes b, after c comes d; a and b are popular. One test user of four breaks the rule."""
    train = tuple(line(user, "a", "b") for user in range(6)) + tuple(line(user, "c", "d") for user in range(6, 9))
    test = (line(10, "a", "b"), line(11, "a", "b"), line(12, "c", "d"), line(13, "c", "a"))
    return Splits("own", train, (line(9, "a", "b"),), test, ITEMS)


def test_an_overview_counts_what_is_there_and_json_holds_it(small: Splits):
    content = own_data.overview(small)
    assert json.loads(json.dumps(content))["users"] == 14
    assert content["items_of_users"] == [(2, 14)]
    assert content["top"] == [["a", 10], ["b", 9], ["c", 5], ["d", 4]]
    assert content["users_of_items"] == [[1, 10], [2, 9], [3, 5], [4, 4]]
    assert content["head"] == pytest.approx(10 / 28)
    assert content["negatives"] == [3, 3]


def test_levels_are_those_of_the_baselines_with_intervals_that_hold_them(small: Splits):
    found = own_data.levels(small)
    assert found["chance"] == (0.25, 0.25, 0.25)
    assert found["markov"][0] == 0.75
    for share, low, high in found.values():
        assert 0 <= low <= share <= high <= 1
    assert own_data.levels(small)["markov"][1] == pytest.approx(0.3006, abs=1e-3)  # Wilson, 3 of 4


def test_the_sentence_and_the_figures_say_the_same(small: Splits):
    content = own_data.overview(small)
    said = own_data.sentence(content)
    assert "**14 users took 4 items 28 times**, which makes 9 lines" in said
    assert "beat a Markov chain" in said
    assert "75.0 %" in said
    bars = own_data.levels_figure(content).data[0]
    assert list(bars.y) == ["chance", "popularity", "Markov chain"]
    assert bars.x[2] == 75
    assert "a Markov chain is best" in own_data.levels_figure(content).layout.title.text
    assert list(own_data.items_of_users(content).data[0].y) == [14]
    assert list(own_data.users_of_items(content).data[0].y) == [10, 9, 5, 4]


def test_many_different_numbers_of_items_share_bars_and_none_is_lost():
    counts = [(items, 1) for items in np.arange(6, 500).tolist()]
    bars = own_data.items_of_users({"items_of_users": counts}).data[0]
    assert np.ptp(bars.x) / bars.xbins.size <= own_data.BINS
    assert len(bars.x) == len(counts)


def test_the_example_has_what_files_from_real_life_have(tmp_path):
    own.example(60).to_csv(tmp_path / "example.csv", index=False)
    dropped = load_dataset(tmp_path / "example.csv").report["dropped"]
    assert {"rows without item", "duplicate rows", "users with fewer than 6 liked items"} <= set(dropped)
