"""A file of one's own: the same splits from CSV and Parquet, and one sentence for whatever is wrong with it."""

import time

import numpy as np
import pandas as pd
import pytest

from minipo.experiments.datasets.by_time import split_by_time
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.datasets.splits import describe


def test_lines_are_those_of_the_rows_split_by_time(table, save):
    splits = load_dataset(save(table))
    names = sorted(set(table["item"]))
    users = sorted(set(table["user"]))
    same = split_by_time(
        "own",
        users=table["user"].map(users.index).to_numpy(),
        items=table["item"].map(names.index).to_numpy(),
        times=table["timestamp"].to_numpy(),
        liked=np.ones(len(table), dtype=bool),
        titles=names,
        dropped={},
        seed=0,
    )
    assert splits == same
    assert splits.report == same.report
    assert len(splits.test) == 12


def test_the_form_of_the_file_does_not_matter(table, save):
    csv = load_dataset(save(table)).fingerprint
    dates = pd.to_datetime(table["timestamp"], unit="s")
    forms = {
        "elsewhere.csv": table,
        "a.parquet": table,
        "b.parquet": table.assign(timestamp=dates),
        "c.parquet": table.assign(timestamp=dates.dt.tz_localize("UTC"), user=table["user"].astype("category")),
        "d.csv": table.assign(timestamp=dates.dt.strftime("%Y-%m-%dT%H:%M:%S")),
        "e.csv": table.assign(timestamp=dates.dt.strftime("%Y-%m-%d %H:%M:%S+00:00")),
        "f.CSV": table.assign(timestamp=table["timestamp"] / 8).set_axis([" User", "ITEM", "Timestamp "], axis=1),
        "g.csv": table.assign(user=" " + table["user"], other="x")[["other", "item", "timestamp", "user"]],
        "h.csv": table.to_csv(index=False, sep=";").encode("utf-8-sig"),
        "i.csv": table.to_csv(index=False, lineterminator="\r\n"),
        "j.parquet": table.assign(rating=5),
        "k.parquet": table.assign(timestamp=(dates + (dates - dates.min()) * 1440).dt.date),  # minutes become days
    }
    assert {name: load_dataset(save(form, name)).fingerprint for name, form in forms.items()} == dict.fromkeys(
        forms, csv
    )


def test_whole_numbers_stay_the_users_numbers(table, save):
    numbered = table.assign(user=table["user"].str.removeprefix("user ").astype(int) + 40)
    for name in ("a.csv", "a.parquet"):
        assert [line.user for line in load_dataset(save(numbered, name)).test] == list(range(40, 52))
    padded = numbered.assign(user=numbered["user"].astype(str).replace({"41": "040"}))  # another user than 40
    assert [line.user for line in load_dataset(save(padded)).test] == list(range(12))


def test_ratings_from_four_up_count_as_liked_and_others_as_met(table, save):
    rated = table.assign(rating=np.where(table["item"] < "Item, 10", 3.5, 4.0))
    splits = load_dataset(save(rated))
    lines = [*splits.train, *splits.validation, *splits.test]
    assert min(item for line in lines for item in (*line.history, line.chosen)) >= "Item, 10"
    names, rows = sorted(set(table["user"])), rated.set_index(["user", "item"])["timestamp"]
    for line in lines:
        mine = rows[names[line.user]]
        met = mine[mine <= mine[line.chosen]]
        assert {*met.index}.intersection(line.candidates) == {line.chosen}
    below = splits.report["dropped"]["rows rated below 4 (what they rate counts as met)"]
    assert below == (table["item"] < "Item, 10").sum() > 0


def test_what_cannot_be_used_is_left_out_and_counted(table, save):
    extra = pd.DataFrame(
        [
            *(["", "Item, 01", 5], [None, "Item, 01", 5], ["nan", "Item, 01", 5]),
            *(["user 1", " ", 5], ["user 1", None, 5]),
            ["user 1", "Item, 01", None],
            [*table.loc[0, ["user", "item"]], table.loc[0, "timestamp"] + 7],
            list(table.loc[0]),
            list(table.loc[1]),
        ],
        columns=table.columns,
    )
    faulty = pd.concat([table, extra], ignore_index=True)
    for path in (save(faulty), save(faulty, "plays.parquet")):
        splits = load_dataset(path)
        assert splits == load_dataset(save(table, "clean.csv"))
        assert splits.report["dropped"] == {
            "rows without user": 3,
            "rows without item": 2,
            "rows without timestamp": 1,
            "duplicate rows": 2,
            "later rows of the same user and item": 1,
        }


def test_rows_without_rating_are_left_out(table, save):
    rated = table.assign(rating=4.5)
    rated.loc[3, "rating"] = np.nan
    for name in ("plays.csv", "plays.parquet"):
        splits = load_dataset(save(rated, name))
        assert splits.report["dropped"] == {"rows without rating": 1}
        assert splits == load_dataset(save(table.drop(index=3), "clean.csv"))


def test_of_equal_times_chance_decides_or_the_files_order(table, save):
    days = table.assign(timestamp=table["timestamp"] // 240, rating=4)  # of four rows each
    splits = load_dataset(save(days))
    assert splits.report["ties"]["order"] == "random"
    assert "share their time: for 10 users chance" in describe(splits)
    # A user's second rating of the moment counts if it is the better one, wherever it stands.
    doubled = pd.concat([days, days.assign(rating=2).iloc[:20]]).sample(frac=1, random_state=2)
    assert load_dataset(save(doubled)) == splits
    in_order = load_dataset(save(days), ties="file")
    mine = days[days["user"] == "user 0"].sort_values("timestamp", kind="stable")["item"]
    assert (*in_order.test[0].history, in_order.test[0].chosen) == tuple(mine)[-11:]
    assert load_dataset(save(days.sample(frac=1, random_state=1)), ties="file") != in_order
    assert "the order of the rows in the file decides" in describe(in_order)


HEADER = "user,item,timestamp\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "plays.csv is empty; give a file with the columns user, item, timestamp"),
        ("\n\n", "plays.csv is empty"),
        (HEADER, "plays.csv has no row with user, item and timestamp"),
        (HEADER + ",,\n", "plays.csv has no row with user, item and timestamp"),
        ("person,item,when\n1,a,5\n", "lacks the columns user, timestamp; its columns are person, item, when: rename"),
        (
            "1,a,5\n2,b,6\n",
            "lacks the columns user, item, timestamp; its columns are 1, a, 5: .* or write a first line",
        ),
        ("user,timestamp\n1,5\n", "lacks the column item; its columns are user, timestamp: rename them"),
        ("user,item,timestamp,User\n1,a,5,2\n", "has more than one column that may be the user, user, User; keep one"),
        ("user,item,timestamp,item\n1,a,5,2\n", "has more than one column that may be the item, item, item; keep one"),
        (HEADER + "1,a,5\n1,b\n", "plays.csv, line 3 has 2 cells where the first line has 3; put names that hold"),
        (HEADER + '1,"a,5\n', "plays.csv"),
        (HEADER.encode() + b"1,caf\xe9,5\n", "plays.csv is not text in UTF-8"),
        (HEADER.encode() + b"1,cafe,5\n" * 2000 + b"1,caf\xe9,5\n", "plays.csv is not text in UTF-8"),
        (b"user,caf\xe9,timestamp\n1,2,3\n", "plays.csv is not text in UTF-8; save it as CSV in UTF-8"),
        ((HEADER + "1,a,5\n").encode("utf-16"), "plays.csv is not text in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "plays.csv is not text in UTF-8"),
        (
            HEADER + "1,a,5\n1,b,6\n",
            r"plays.csv: no user has 6 liked items .* 19 more that only others met \(users: 1; items: 2;",
        ),
        (
            HEADER + "1,a,5\n2,b,6\n",
            r"plays.csv: no user has 6 liked items .* liked items of a user: at most 1\); add longer histories",
        ),
        (
            HEADER + "".join(f"{user},{item},{item}\n" for user in (1, 2) for item in range(8)),
            r"plays.csv: no user has .* 19 more that only others met \(users: 2; items: 8;",
        ),
        (
            HEADER + "1,a,5\n1,b,6\n1,c,yesterday\n1,d,8\n1,e,soon\n",
            "plays.csv, row 3: the timestamp 'yesterday' cannot be used, as in 2 rows in all; write seconds since",
        ),
        (
            HEADER + "1,a,2024-03-31\n1,b,2024-04-01 18:30\n1,c,31/03/2024\n",
            "plays.csv, row 3: the timestamp '31/03/2024' cannot be used, as in 1 row in all; .*ISO 8601",
        ),
        (HEADER + "1,a,5\n1,b,inf\n", "plays.csv, row 2: the timestamp 'inf' cannot be used"),
        (
            "user,item,timestamp,rating\n1,a,5,4\n1,b,6,9\n",
            "plays.csv, row 2: the rating '9' cannot be used, .*; use ratings from 1 to 5, or leave the column out",
        ),
        ("user,item,timestamp,rating\n1,a,5,4\n1,b,6,good\n", "plays.csv, row 2: the rating 'good' cannot be used"),
        ("user,item,timestamp,rating\n1,a,5,1\n1,b,6,0\n", "plays.csv: no rating is 4 or more, so nothing counts"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(save, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(save(content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing", b"\x00" * 4000])
def test_a_damaged_parquet_file_says_so(save, content):
    with pytest.raises(ValueError, match=r"^\S*plays\.parquet cannot be read \(.*\); save it again\.$"):
        load_dataset(save(content, "plays.parquet"))


def test_parquet_columns_are_checked_too(table, save):
    with pytest.raises(ValueError, match="lacks the column item; its columns are user, title, timestamp: rename them"):
        load_dataset(save(table.rename(columns={"item": "title"}), "plays.parquet"))
    with pytest.raises(ValueError, match=r"row 1: the timestamp .* cannot be used"):
        load_dataset(save(table.assign(timestamp=["x"] * len(table)), "plays.parquet"))
    with pytest.raises(ValueError, match=r"plays.parquet cannot be read"):
        load_dataset(save(table.assign(item=[["a", "b"]] * len(table)), "plays.parquet"))


def test_a_changed_file_is_read_anew_and_an_unchanged_one_is_not(table, save):
    path = save(table)
    splits = load_dataset(path)
    assert load_dataset(str(path)) is splits
    save(table[table["user"] != "user 3"])
    assert len(load_dataset(path).test) == 11


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_million_rows_take_bounded_time_and_memory(tmp_path):
    """Of MovieLens-10M's size: 70,000 users, 20,000 items."""
    random = np.random.default_rng(0)
    count = 10_000_000
    names = np.array([f"Item {number}" for number in range(20_000)], dtype=object)
    pd.DataFrame(
        {
            "user": random.integers(0, 70_000, count),
            "item": names[random.integers(0, 20_000, count)],
            "timestamp": random.integers(1_200_000_000, 1_700_000_000, count),
            "rating": random.integers(1, 11, count) / 2,
        }
    ).to_csv(tmp_path / "large.csv", index=False)
    start = time.process_time()  # what else the computer does is no matter
    splits = load_dataset(tmp_path / "large.csv")
    assert time.process_time() - start < 120
    rows = splits.report["rows"]
    assert 490_000 < sum(rows.values()) <= 500_000
    assert splits.report["dropped"]["users drawn at random, to keep to 500,000 lines"] > 10_000
