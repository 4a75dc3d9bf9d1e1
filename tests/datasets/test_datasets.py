"""What every dataset promises: lines that make sense, names that are known, a fingerprint."""

from dataclasses import replace

import numpy as np
import pytest

from minipo.datasets import Interaction, canonical_numbers, load_dataset

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
        (("c", "d", "c"), "User 7: the candidate 'c' stands there more than once; list it once."),
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
