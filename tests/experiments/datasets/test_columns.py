"""Names, times and ratings as people write them: missing ones are counted, doubtful ones are reported."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from minipo.experiments.datasets.columns import times_of
from minipo.experiments.datasets.loading import load_dataset

FORMATS = ("plays.csv", "plays.parquet")
PLACEHOLDERS = "rows with a placeholder such as 0 or 1900-01-01 for a timestamp"


def with_rows(table, *rows):
    return pd.concat([table, pd.DataFrame(rows, columns=table.columns)], ignore_index=True)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("marker", ["\\N", "NULL", "<NA>", "NaT", "#N/A", "NaN"])
def test_what_stands_for_nothing_is_left_out_and_counted(table, save, name, marker):
    faulty = with_rows(
        table.astype({"timestamp": str}),
        (marker, "Item, 01", "1700000000"), ("user 1", marker, "1700000000"), ("user 1", "Item, 01", marker),
    )  # fmt: skip
    splits = load_dataset(save(faulty, name))
    assert splits == load_dataset(save(table, "clean.csv"))
    assert splits.report["dropped"] == {"rows without user": 1, "rows without item": 1, "rows without timestamp": 1}


@pytest.mark.parametrize("name", FORMATS)
def test_names_that_may_stand_for_nothing_are_kept_and_reported(table, save, name):
    renamed = table.replace({"user 3": "None", "Item, 07": "NA", "Item, 08": "n/a"})
    counts = [(renamed == value).to_numpy().sum() for value in ("None", "NA", "n/a")]
    splits = load_dataset(save(renamed, name))
    assert splits.items[:1] == ("Item, 00",)
    assert {"NA", "n/a"} < set(splits.items)
    assert splits.report["notes"] == [
        f'Read as users: "None" ({counts[0]} rows); if they mean missing, leave the cells empty.',
        f'Read as items: "NA" ({counts[1]} rows), "n/a" ({counts[2]} rows); if they mean missing, leave the cells '
        "empty.",
    ]


def test_whole_numbers_with_and_without_a_decimal_point_are_one(table, save):
    numbered = table.assign(user=table["user"].str.removeprefix("user "))
    mixed = numbered.assign(user=numbered["user"] + np.where(np.arange(len(table)) % 2, ".0", ""))
    splits = load_dataset(save(mixed))
    assert splits == load_dataset(save(numbered, "clean.csv"))
    assert [line.user for line in splits.test] == list(range(12))
    assert splits.report["notes"] == ["12 users are written both as 1 and as 1.0 and were joined."]
    whole = numbered.assign(user=numbered["user"].astype(float))
    assert load_dataset(save(whole, "whole.parquet")) == splits
    large = whole.assign(user=whole["user"] + 1e15)  # which Arrow writes as 1e+15
    assert load_dataset(save(large, "large.parquet")).test[0].user == 10**15
    versions = load_dataset(save(with_rows(mixed, ("1.5", "Item, 01", 1_700_000_000)), "versions.csv"))
    assert versions.report["notes"] == [
        "12 users are written both as 1 and as 1.0 and count as two, because not all are numbers."
    ]


def test_items_of_rows_left_out_are_no_negatives(table, save):
    unusable = [("", f"Ghost {number}", 1_700_000_000) for number in range(30)] + [("a ghost", "", 1_700_000_000)]
    splits = load_dataset(save(with_rows(table, *unusable)))
    assert splits == load_dataset(save(table, "clean.csv"))
    assert splits.report["dropped"] == {
        "rows without user": 30,
        "rows without item": 1,
        "items that appear only in rows left out": 30,
    }


# --------------------------------------------------------------------------------------------------------------- times


@pytest.mark.parametrize("unit", [1, 1000, 10**6, 10**9])
def test_seconds_milli_micro_and_nanoseconds_are_times_alike(table, save, unit):
    scaled = load_dataset(save(table.assign(timestamp=table["timestamp"] * unit)))
    assert scaled == load_dataset(save(table, "clean.csv"))
    assert scaled.report["notes"] == []


@pytest.mark.parametrize("name", FORMATS)
def test_seconds_among_milliseconds_are_refused(table, save, name):
    for few, many in ((1000, 1), (1, 1000), (1, 10**6)):
        times = table["timestamp"] * many
        times[3] = table["timestamp"][3] * few
        with pytest.raises(
            ValueError, match=rf"row 4: the timestamp {times[3]} is in another unit than most, such as \d+"
        ):
            load_dataset(save(table.assign(timestamp=times), name))


@pytest.mark.parametrize("value", [0, -1, 2**31 - 1, -2208988800, 253402300799, 253402214400])
def test_numbers_that_stand_for_no_time_are_left_out(table, save, value):
    placed = table.assign(timestamp=table["timestamp"].where(table.index >= 2, value))
    splits = load_dataset(save(placed))
    assert splits == load_dataset(save(table[2:], "clean.csv"))
    assert splits.report["dropped"][PLACEHOLDERS] == 2


@pytest.mark.parametrize(
    "value", ["1900-01-01", "1970-01-01 00:00:00", "1969-12-31T16:00:00", "9999-12-31T23:59:59", "0001-01-01"]
)
def test_dates_that_stand_for_no_time_are_left_out(table, save, value):
    dates = pd.to_datetime(table["timestamp"], unit="s").astype(str)
    placed = dates.where(table.index >= 2, value)
    clean = load_dataset(save(table[2:], "clean.csv"))
    for name in ("plays.csv", "text.parquet", "dates.parquet"):
        times = placed.astype("datetime64[us]") if name == "dates.parquet" else placed
        splits = load_dataset(save(table.assign(timestamp=times), name))
        assert splits == clean
        assert splits.report["dropped"][PLACEHOLDERS] == 2


def test_zero_is_a_time_among_small_numbers(table, save):
    positions = table.assign(timestamp=(table["timestamp"] - 1_700_000_000) // 60)
    assert (positions["timestamp"] == 0).sum() == 12
    assert load_dataset(save(positions)) == load_dataset(save(table, "clean.csv"))


def test_a_few_times_of_another_age_are_reported(table, save):
    splits = load_dataset(save(table.assign(timestamp=table["timestamp"].where(table.index >= 2, 12_345))))
    assert splits.report["notes"] == [
        "2 rows have a time before 1973 or after 2099; if it means missing, leave it empty."
    ]


def test_other_forms_of_dates(table, save):
    dates = pd.to_datetime(table["timestamp"], unit="s")
    clean = load_dataset(save(table)).fingerprint
    assert load_dataset(save(table.assign(timestamp=dates.astype(str) + " UTC"), "bigquery.csv")).fingerprint == clean
    assert load_dataset(save(table.assign(timestamp=dates.dt.to_period("min")), "period.parquet")).fingerprint == clean
    decimals = pa.array(table["timestamp"]).cast(pa.decimal128(19, 0))
    path = save(b"", "decimal.parquet")
    pa.parquet.write_table(pa.table({"user": table["user"], "item": table["item"], "timestamp": decimals}), path)
    assert load_dataset(path).fingerprint == clean
    zoned = dates.astype(str) + np.where(table.index % 2, "+00:00", "")
    assert load_dataset(save(table.assign(timestamp=zoned), "zoned.csv")).report["notes"] == [
        "Some times name a time zone and some do not; those that do not were taken for UTC."
    ]
    without = table.assign(timestamp=dates.astype(str).where(table.index >= 2, "0000-00-00 00:00:00"))
    assert load_dataset(save(without, "mysql.csv")).report["dropped"]["rows without timestamp"] == 2


@pytest.mark.parametrize(
    ("kind", "said"),
    [(pa.duration("us"), r"duration\[us\]"), (pa.time64("us"), r"time64\[us\]"), (pa.bool_(), "bool")],
)
def test_columns_of_other_kinds_hold_no_times(kind, said):
    with pytest.raises(
        ValueError, match=rf"^plays: the column timestamp does not hold points in time \({said}\); write dates"
    ):
        times_of("plays", pa.chunked_array([pa.array([1, 0]).cast(kind)]))


# ------------------------------------------------------------------------------------------------------------- ratings


@pytest.mark.parametrize("called", ["rating:float", "ratings", "overall", "stars", "Score"])
def test_a_rating_of_another_name_is_read_and_reported(table, save, called):
    rated = np.where(table["item"] < "Item, 10", 3.5, 4.0)
    splits = load_dataset(save(table.assign(**{called: rated})))
    assert splits == load_dataset(save(table.assign(rating=rated), "plain.csv"))
    assert splits.report["notes"] == [f"Columns read: {called} as rating."]
    with pytest.raises(ValueError, match=rf"no {called} is 4 or more, so nothing counts as liked"):
        load_dataset(save(table.assign(**{called: 1})))


def test_ignored_columns_are_reported_and_those_that_may_be_ratings_asked_for(table, save):
    splits = load_dataset(save(table.assign(label=0, event="view", year=1999)))
    assert splits == load_dataset(save(table, "plain.csv"))
    assert splits.report["notes"] == [
        "Columns ignored: label, event, year.",
        "Every row counts as liked; if an ignored column says which are, name it rating, with numbers.",
    ]


def test_the_least_rating_that_counts_as_liked_can_be_given(table, save):
    ratings = np.where(table["item"] < "Item, 10", 60, 85)
    plays = save(table.assign(rating=ratings))
    splits = load_dataset(plays, liked_from=70)
    assert splits == load_dataset(save(table.assign(rating=ratings / 20), "five.csv"))
    below = "rows rated below 70 (what they rate counts as met)"
    assert splits.report["dropped"][below] == (ratings < 70).sum()
    assert load_dataset(plays, liked_from=60.0) == load_dataset(save(table, "plain.csv")) != splits
    with pytest.raises(
        ValueError, match=r"row 1: the rating '(60|85)' cannot be used, as in 113 rows in all; .*--liked-from"
    ):
        load_dataset(plays)
    with pytest.raises(ValueError, match="no rating is 90 or more, so nothing counts as liked"):
        load_dataset(plays, liked_from=90)
    with pytest.raises(
        ValueError, match=r"plain.csv has no column rating to compare with liked_from; rename the one with"
    ):
        load_dataset(save(table, "plain.csv"), liked_from=4)


def test_ratings_of_zero_are_reported(table, save):
    splits = load_dataset(save(table.assign(rating=np.where(table["item"] < "Item, 10", 0, 5))))
    zeros = (table["item"] < "Item, 10").sum()
    assert splits.report["notes"] == [
        f"{zeros} rows have a rating of 0 or less and count as not liked; if it means unrated, leave it empty."
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"titles": "movies.csv"},
            "^titles applies only to a table of your own interactions, which {name} is not; leave it out.$",
        ),
        (
            {"liked_from": 4},
            "^liked_from applies only to a table of your own interactions, which {name} is not; leave it out.$",
        ),
    ],
)
def test_settings_of_tables_are_refused_for_other_data(save, settings, message):
    rows = save('[{"historyList": "a::b", "itemList": ["c", "d"], "trueSelection": "c"}]', "rows.json")
    titles = save("id,title\n", "movies.csv")
    settings = {name: titles if name == "titles" else value for name, value in settings.items()}
    for name in ("catalog", rows):
        with pytest.raises(ValueError, match=message.format(name=name)):
            load_dataset(name, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"titles": "nowhere.csv"},
            "There is no file .*nowhere.csv; check the path of the titles.",
        ),
        (
            {"titles": __file__},
            "is not a file of ids and titles; give one whose name ends in .csv, .tsv, .item",
        ),
        ({"liked_from": float("nan")}, "liked_from must be a number, not nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(table, save, settings, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(save(table), **settings)
