"""MovieLens' two files, in small, become splits; titles read as one says them and are unique."""

import numpy as np
import pytest

from minipo.experiments.datasets import movielens
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.datasets.movielens import unique_titles


@pytest.fixture
def folder(tmp_path):
    """30 films, of which one has no title; four users who rated 11 each, the later the better."""
    films = [f"{number}\tFilm, The {number}\t1990\tDrama" for number in range(1, 29)]
    films += ['29\t"Quoted" Nights, Les\t1991\tDrama', "267\tunkonwn\tunkonwn\tunknown"]
    lines = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", *films[::-1]]
    (tmp_path / "ml-100k.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    ratings = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in (12, 3, 7, 5):
        ratings += [f"{user}\t{item}\t{2 if item < 3 else 4 + item % 2}\t{880000000 - item}" for item in range(1, 11)]
        ratings.append(f"{user}\t267\t5\t880000000")
    (tmp_path / "ml-100k.inter").write_text("\n".join(ratings) + "\n")
    return tmp_path


def test_films_in_order_of_time_from_four_stars_up(folder, monkeypatch):
    monkeypatch.setattr(movielens, "fetch", {"ml-100k": folder}.__getitem__)
    splits = load_dataset("ml-100k", seed=123)  # a seed that nothing else in the tests asks for: it is kept in memory
    assert [line.user for line in splits.test] == [3, 5, 7, 12]
    for line in splits.test:  # later numbers come first, 1 and 2 have too few stars
        assert line.history == tuple(f"Film, The {number}" for number in range(10, 3, -1))
        assert line.chosen == "Film, The 3"
    assert {len(line.history) for line in splits.train} == {3, 4, 5}
    assert splits.items == (*(f"Film, The {number}" for number in range(1, 29)), 'Les "Quoted" Nights')
    rated = {f"Film, The {number}" for number in range(3, 11)}
    assert all(not rated.intersection(line.negatives) and len(line.negatives) == 19 for line in splits.test)
    assert splits.report["rows"] == {"train": 12, "validation": 4, "test": 4}
    assert splits.report["dropped"] == {
        "films without a title": 1,
        "ratings of films without a title": 4,
        "ratings below 4 (what they rate counts as met)": 8,
    }
    assert load_dataset("ml-100k", seed=123) is splits


def test_the_files_order_decides_ties_unless_chance_is_to(folder):
    path = folder / "ml-100k.inter"
    header, *ratings = path.read_text().splitlines()
    coarse = [f"{line[:-9]}{int(line[-9:]) // 4}" for line in ratings]  # four seconds are one time
    path.write_text("\n".join([header, *coarse]))
    found = movielens.read(folder)
    assert found.report["ties"] == {"order": "file", "neighbours": 28, "tied": 20, "users": 4}
    assert found.test[0].chosen == "Film, The 4"
    path.write_text("\n".join([header, *coarse[::-1]]))
    assert movielens.read(folder).test[0].chosen == "Film, The 3"
    chance = movielens.read(folder, ties="random")
    path.write_text("\n".join([header, *coarse]))
    assert movielens.read(folder, ties="random") == chance != found


def test_negatives_follow_the_seed(folder):
    one, two = movielens.read(folder, seed=0), movielens.read(folder, seed=1)
    assert one.fingerprint == movielens.read(folder, seed=0).fingerprint != two.fingerprint
    np.testing.assert_array_equal([line.history for line in one.test], [line.history for line in two.test])


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Usual Suspects, The", "The Usual Suspects"),
        ("Enfer, L'", "L'Enfer"),
        ("Horseman on the Roof, The (Hussard sur le toit, Le)", "The Horseman on the Roof (Le Hussard sur le toit)"),
        ("Hate (Haine, La)", "Hate (La Haine)"),
        ("Die xue shuang xiong (Killer, The)", "Die xue shuang xiong (The Killer)"),
        ("Sex, Lies, and Videotape", "Sex, Lies, and Videotape"),
        ("Cry, the Beloved Country", "Cry, the Beloved Country"),
        ("Paris, Texas", "Paris, Texas"),
        ("Good, The Bad and The Ugly, The", "The Good, The Bad and The Ugly"),
    ],
)
def test_articles_stand_where_one_says_them(written, spoken):
    assert unique_titles([written], ["1995"]) == [spoken]


def test_equal_titles_get_their_year_then_a_number():
    titles = ["Sabrina", "Heat", "Sabrina", "Deceiver", "Deceiver", "Ice Storm, The", "The Ice Storm"]
    years = ["1995", "1995", "1954", "1997", "1997", "1997", "1997"]
    assert unique_titles(titles, years) == [
        "Sabrina (1995)",
        "Heat",
        "Sabrina (1954)",
        "Deceiver (1997)",
        "Deceiver (1997) #2",
        "The Ice Storm (1997)",
        "The Ice Storm (1997) #2",
    ]
