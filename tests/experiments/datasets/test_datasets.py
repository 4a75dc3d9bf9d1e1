"""What every dataset promises: lines that make sense, names that are known, a fingerprint."""

from dataclasses import replace

import numpy as np
import pytest

from minipo.experiments.datasets.loading import DATASETS, check_dataset, load_dataset
from minipo.experiments.datasets.splits import Interaction, Splits, canonical_numbers, describe

LINE = Interaction(7, ("a", "b"), "d", ("c", "d", "e"))


def test_negatives_keep_their_order_and_canonical_puts_the_chosen_first():
    assert LINE.negatives == ("c", "e")
    assert LINE.canonical == ("d", "c", "e")


def test_llara_fields():
    assert LINE.to_llara() == {"historyList": "a::b", "itemList": ["c", "d", "e"], "trueSelection": "d"}


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (("c", "e"), "User 7: the chosen item 'd' is not among the candidates; add it."),
        ((), "User 7: the chosen item 'd' is not among the candidates; add it."),
        (("c", "d", "c"), "User 7: the candidate 'c' is listed more than once; list it once."),
        (("d",), "User 7 has no negative; add at least one candidate besides the chosen item."),
    ],
)
def test_a_line_that_makes_no_sense_names_its_user(candidates, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        replace(LINE, candidates=candidates)


def test_catalog_is_the_default_and_is_kept_in_memory():
    splits = load_dataset()
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [4000, 1000, 2000]
    assert load_dataset("catalog", seed=0) is splits


def test_unknown_dataset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown dataset 'catalogue'. Did you mean 'catalog'\? Known: catalog"):
        load_dataset("catalogue")


@pytest.mark.parametrize("name", DATASETS)
def test_a_check_of_a_known_name_fetches_nothing(name):
    check_dataset(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "ml100k",
            r"Unknown dataset 'ml100k'. Did you mean 'ml-100k'\? Known: catalog, ml-100k, lastfm, goodreads, steam",
        ),
        ("nowhere.csv", "There is no file nowhere.csv; check the path, or name one of catalog, ml-100k"),
        ("no/where", "There is no file no/where; check the path"),
        (
            __file__,
            r"test_datasets\.py is not a file that minipo reads; give one whose name ends in \.csv, \.tsv, \.inter",
        ),
    ],
)
def test_a_name_that_is_none_is_refused_before_anything_is_loaded(name, message):
    for ask in (check_dataset, load_dataset):
        with pytest.raises(ValueError, match=message):
            ask(name)


def test_a_path_that_could_be_data_passes_the_check(tmp_path):
    check_dataset(tmp_path)
    for name in ("a.csv", "b.PARQUET", "c.json", "d.csv.gz", "e.inter", "f.dat", "g.zip"):
        (tmp_path / name).touch()
        check_dataset(str(tmp_path / name))


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="dataset's seed is -1; use a whole number of 0 or more"):
        load_dataset("ml-100k", seed=-1)


@pytest.mark.parametrize(
    ("name", "ties", "message"),
    [
        ("ml-100k", "rows", "Unknown order of ties 'rows'. Known: file, random"),
        (
            "catalog",
            "random",
            "ties applies only to a table of your own interactions and to ml-100k, which catalog is not; leave it out",
        ),
        ("lastfm", "file", "ties applies only to a table of your own interactions and to ml-100k, which lastfm is not"),
        (
            "rows.json",
            "random",
            r"ties applies only to a table of your own interactions and to ml-100k, which \S*rows\.json is not",
        ),
    ],
)
def test_ties_are_for_data_with_times(tmp_path, name, ties, message):
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(ValueError, match=message):
        load_dataset(name if name in DATASETS else tmp_path / name, ties=ties)


def test_report_of_the_catalogue():
    assert load_dataset().report == {
        "users": 7000,
        "items": 240,
        "interactions": 49_000,
        "lengths": {"min": 6, "median": 6.0, "max": 6},
        "rows": {"train": 4000, "validation": 1000, "test": 2000},
        "dropped": {},
        "notes": [],
    }


def test_description_says_how_large_the_data_is_and_what_was_dropped():
    later = Interaction(7, ("a", "b", "d"), "c", ("c", "e"))
    splits = Splits("small", (LINE,), (later,), (), ("a", "b", "c", "d", "e"))
    assert describe(splits).splitlines() == [
        f"small (fingerprint {splits.fingerprint})",
        "  users         1",
        "  items         5",
        "  interactions  4",
        "  histories     2 to 3 items, median 2.5",
        "  rows          1 train, 1 validation, 0 test",
    ]
    report = {**load_dataset().report, "dropped": {"rows without item": 1234}, "notes": ["Columns ignored: tag."]}
    assert describe(replace(load_dataset(), report=report)).splitlines()[-2:] == [
        "  dropped       1,234 rows without item",
        "  note          Columns ignored: tag.",
    ]


def test_the_report_is_no_part_of_what_the_data_is():
    splits = load_dataset()
    other = replace(splits, report={})
    assert other == splits
    assert other.fingerprint == splits.fingerprint


def test_fingerprint_of_the_catalogue_is_the_one_that_the_shipped_checkpoints_were_trained_on():
    """If this fails after an update of NumPy, its random stream changed: `data/` has to be made anew."""
    assert load_dataset().fingerprint == "298607e3f9d232e9"


def test_fingerprint_sees_any_change():
    splits = load_dataset()
    line = splits.test[5]
    flipped = replace(line, candidates=line.candidates[::-1])
    others = [
        replace(splits, test=(*splits.test[:5], flipped, *splits.test[6:])),
        replace(splits, train=splits.train[:-1], validation=(splits.train[-1], *splits.validation)),
        replace(splits, items=splits.items[::-1]),
        replace(splits, name="another"),
    ]
    assert len({splits.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_canonical_numbers_fill_short_rows_and_name_a_foreign_item():
    short = Interaction(8, (), "a", ("b", "a"))
    numbers = canonical_numbers([LINE, short], ["a", "b", "c", "d", "e"])
    np.testing.assert_array_equal(numbers, [[3, 2, 4], [0, 1, -1]])
    with pytest.raises(ValueError, match="User 7: the candidate 'e' is not an item of this dataset"):
        canonical_numbers([short, LINE], ["a", "b", "c", "d"])
