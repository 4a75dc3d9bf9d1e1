"""What people have: the same rows in every format give the same splits, and what cannot be read says why."""

import gzip
import json
import zipfile

import numpy as np
import pandas as pd
import pytest

from minipo.experiments.datasets.loading import load_dataset

INTER = "user_id:token\titem_id:token\ttimestamp:float"


@pytest.fixture
def numbers(table):
    """The same rows with numbers for users and items."""
    ids = table["item"].str.removeprefix("Item, ").astype(int) + 100
    return table.assign(user=table["user"].str.removeprefix("user ").astype(int) + 1, item=ids)


def text(table, separator=",", header=None, **how):
    return table.to_csv(index=False, sep=separator, header=header or True, **how)


def as_lines(table, *names, **more):
    renamed = table.set_axis([*names], axis=1)
    return "".join(json.dumps({**row, **more}) + "\n" for row in renamed.to_dict("records"))


def archive(save, name="plays.zip", **members):
    path = save(b"", name)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for member, content in members.items():
            opened.writestr(member, content)
    return path


def notes(splits):
    return " ".join(splits.report["notes"])


def test_the_format_of_a_file_does_not_matter(table, save):
    rows = table[["user", "item", "timestamp"]]
    amazon = as_lines(rows, "reviewerID", "asin", "unixReviewTime", reviewText="good", reviewTime="09 13, 2009")
    forms = {
        "a.tsv": text(rows, "\t"),
        "b.inter": text(rows, "\t", INTER.split("\t")),
        "c.csv": text(rows, header=["userId", "movieId", "time"]),
        "d.csv": text(rows, header=["User-ID", "ITEM_ID", "Date"]),
        "e.csv.gz": gzip.compress(text(rows).encode()),
        "f.jsonl": as_lines(rows, "user_id", "item_id", "timestamp"),
        "g.json": amazon,
        "h.json.gz": gzip.compress(amazon.encode()),
        "i.jsonl": as_lines(rows, "user_id", "parent_asin", "timestamp", asin="another", title="of the review"),
        "j.csv": "\n\n" + text(rows),
        "k.csv": "\ufeffsep=;\n" + text(rows, ";"),
        "l.csv": text(rows, "|", lineterminator="\r\n"),
        "m.tsv": text(rows, "\t", quoting=1),
        "n.dat": text(rows, "\t", ["userID", "artistID", "timestamp"]),
    }
    same = load_dataset(save(table)).fingerprint
    assert {name: load_dataset(save(form, name)).fingerprint for name, form in forms.items()} == dict.fromkeys(
        forms, same
    )


def test_files_of_movielens_without_a_header(numbers, save):
    rows = numbers.assign(rating=5)[["user", "item", "rating", "timestamp"]]
    lines = text(rows, "\t", False).replace("\t", "::")
    same = load_dataset(save(numbers)).fingerprint
    assert load_dataset(save(lines.removeprefix("user::item::rating::timestamp\n"), "ratings.dat")).fingerprint == same
    tabs = rows.to_csv(index=False, sep="\t", header=False)
    assert load_dataset(save(tabs, "u.data")).fingerprint == same
    with pytest.raises(
        ValueError, match=r"lacks the columns user, item, timestamp; .* or write a first line that does"
    ):
        load_dataset(save(tabs.replace("\t5\t", "\t"), "u.data"))


def test_parts_of_a_table_as_spark_writes_them(table, save, tmp_path):
    halves = {0: table[:50], 2: table[50:]}
    for number, half in halves.items():
        save(half, f"csv/part-0000{number}-x.csv")
        save(text(half, escapechar="\\", doublequote=False).encode(), f"gz.csv/part-0000{number}.csv")
        save(half, f"parquet/part-0000{number}-x.snappy.parquet")
        save(half.assign(user=half["user"].astype("category")), f"deep/kind={number}/x.parquet")
    save(b"", "csv/part-00001-x.csv")
    save(text(table[:0]).encode(), "csv/part-00003-x.csv")  # an empty partition
    for folder in ("csv", "parquet"):
        save(b"", f"{folder}/_SUCCESS")
        save(b"crc", f"{folder}/.part-00000-x.csv.crc")
    same = load_dataset(save(table))
    for folder in ("csv", "gz.csv", "parquet", "deep"):
        splits = load_dataset(tmp_path / folder)
        assert splits == same, folder
        assert "files were read as parts of one table: " in notes(splits)
    assert "Columns ignored: kind." in notes(load_dataset(tmp_path / "deep"))


def test_a_column_in_the_names_of_folders_is_read(table, save, tmp_path):
    disliked = table["item"] < "Item, 05"
    save(table[disliked], "plays/rating=3/x.parquet")
    save(table[~disliked], "plays/rating=5/x.parquet")
    rated = table.assign(rating=np.where(disliked, 3, 5))
    assert load_dataset(tmp_path / "plays") == load_dataset(save(pd.concat([rated[disliked], rated[~disliked]])))
    half_stars = np.where(disliked, 3, 4.5)
    save(table[~disliked], "stars/rating=4.5/x.parquet")
    save(table[disliked], "stars/rating=__HIVE_DEFAULT_PARTITION__/x.parquet")
    unrated = table.assign(rating=np.where(disliked, np.nan, half_stars))
    assert load_dataset(tmp_path / "stars") == load_dataset(save(pd.concat([unrated[~disliked], unrated[disliked]])))
    save(table, "csvs/rating=5/x.csv")
    with pytest.raises(
        ValueError, match=r"has a column in its folders' names; save it again as Parquet, or as one file"
    ):
        load_dataset(tmp_path / "csvs")


def test_parts_with_and_without_a_time_zone_are_one_table(table, save, tmp_path):
    times = pd.to_datetime(table["timestamp"], unit="s")
    save(table[:50].assign(timestamp=times[:50]), "plays/a.parquet")
    save(table[50:].assign(timestamp=times[50:].dt.tz_localize("UTC")), "plays/b.parquet")
    assert load_dataset(tmp_path / "plays").fingerprint == load_dataset(save(table)).fingerprint


def test_a_long_text_in_a_column_that_is_not_read_does_no_harm(table, save):
    described = table.assign(page=["x" * 200_000, *[""] * (len(table) - 1)])
    assert load_dataset(save(described, "a.csv")).fingerprint == load_dataset(save(table, "b.csv")).fingerprint


def test_a_folder_is_read_anew_when_a_part_changes(table, save, tmp_path):
    save(table[:50], "plays/a.csv")
    save(table[50:], "plays/b.csv")
    assert len(load_dataset(tmp_path / "plays").test) == 12
    save(table[50:][lambda rows: rows["user"] != "user 3"], "plays/b.csv")
    assert len(load_dataset(tmp_path / "plays").test) == 11


# ---------------------------------------------------------------------------------------------- datasets as downloaded


TITLES = {item: f"Café {item}, The (1995)" for item in range(100, 150)} | {147: "Heat (1995)", 149: "Heat (1995)"}
SPOKEN = {str(item): f"The Café {item} (1995)" for item in TITLES} | {"147": "Heat (1995)", "149": "Heat (1995) #2"}


def as_downloaded(numbers, kind):
    """The files of a dataset, by their names; the 50 items are 100 to 149."""
    rows = numbers.assign(rating=4.0)[["user", "item", "rating", "timestamp"]]
    titles = pd.DataFrame({"id": TITLES.keys(), "title": TITLES.values(), "genres": "Drama|Comedy"})
    if kind == "ml-1m":
        plain = rows.astype({"rating": int}).to_csv(index=False, header=False, sep="\t").replace("\t", "::")
        films = "".join(f"{row.id}::{row.title}::{row.genres}\n" for row in titles.itertuples())
        return {"ratings.dat": plain, "movies.dat": films.encode("latin-1"), "users.dat": "1::F::1::10::48067\n"}
    if kind == "ml-latest":
        return {
            "ratings.csv": text(rows, header=["userId", "movieId", "rating", "timestamp"]),
            "movies.csv": text(titles, header=["movieId", "title", "genres"]),
            "tags.csv": "userId,movieId,tag,timestamp\n",
            "links.csv": "movieId,imdbId,tmdbId\n",
            "README.txt": "Summary\n",
        }
    if kind == "ml-100k":
        films = "".join(f"{row.id}|{row.title}|01-Jan-1995||http://x|0|1\n" for row in titles.itertuples())
        rows = rows.astype({"rating": int}).to_csv(index=False, header=False, sep="\t")
        return {"u.data": rows, "u.item": films.encode("latin-1"), "u.user": "1|24|M|technician|85711\n"}
    recbole = titles.assign(title=titles["title"].str.removesuffix(" (1995)"), year=1995)[["id", "title", "year"]]
    heads = ["item_id:token", "movie_title:token_seq", "release_year:token"]
    return {
        "films.inter": text(rows, "\t", ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]),
        "films.item": text(recbole, "\t", heads),
        "films.user": "user_id:token\tage:token\n1\t24\n",
    }


@pytest.mark.parametrize("kind", ["ml-1m", "ml-latest", "ml-100k", "recbole"])
def test_a_dataset_as_downloaded_has_its_titles(numbers, save, tmp_path, kind):
    files = as_downloaded(numbers, kind)
    for name, content in files.items():
        save(content, f"{kind}/{name}")
    names = dict(SPOKEN)
    if kind == "recbole":  # where years are a column, only films that share their title have theirs
        names = {item: name if "Heat" in name else name.removesuffix(" (1995)") for item, name in SPOKEN.items()}
    splits, plain = load_dataset(tmp_path / kind), load_dataset(save(numbers))
    assert splits.items == tuple(names[item] for item in plain.items)
    assert [line.chosen for line in splits.test] == [names[line.chosen] for line in plain.test]
    assert [line.negatives for line in splits.test] == [tuple(map(names.get, line.negatives)) for line in plain.test]
    assert "All items are numbers, which mean nothing to a language model; give a table of their" in notes(plain)
    assert "All items are numbers" not in notes(splits)
    moved = len(plain.items) - 2
    assert (
        f'{moved} titles had their article moved to the front: "Piano, The" is "The Piano".' in splits.report["notes"]
    )
    assert "1 titles belong to an earlier item too and were distinguished by year or number." in splits.report["notes"]
    assert ("was read as Latin-1" in notes(splits)) == (kind in ("ml-1m", "ml-100k"))
    packed = archive(save, **{f"{kind}/{name}": content for name, content in files.items()})
    assert load_dataset(packed) == splits
    assert not [
        path for path in tmp_path.rglob("*") if path.name == kind and path.parent != tmp_path
    ]  # nothing unpacked


def test_a_table_of_titles_can_be_named(numbers, save):
    plays = save(numbers.assign(item=numbers["item"].astype(float)))
    titles = {
        "movies.csv": "movieId,title\n" + "".join(f"{100 + n},Film {n}\n" for n in range(50)),
        "artists.dat": "id\tname\turl\n" + "".join(f"{100 + n}\tFilm {n}\thttp://x\n" for n in range(50)),
        "meta.jsonl.gz": gzip.compress(
            "".join(f'{{"asin": "{100 + n}", "title": "Film  {n}"}}\n' for n in range(50)).encode()
        ),
        "films.parquet": pd.DataFrame({"item_id": range(100, 150), "name": [f"Film {n}" for n in range(50)]}),
    }
    paths = {name: save(content, name) for name, content in titles.items()}
    found = {name: load_dataset(plays, titles=path) for name, path in paths.items()}
    expected = tuple(f"Film {int(item) - 100}" for item in load_dataset(plays).items)
    assert all(splits.items == expected for splits in found.values())
    assert len({splits.fingerprint for splits in found.values()}) == 1
    assert load_dataset(plays).fingerprint != found["movies.csv"].fingerprint


def test_ids_without_a_title_keep_their_id_and_are_counted(numbers, save):
    lines = ["id,title", "100,110", "101,Heat", "101,Heat again", "102,", "103,Heat"]
    splits = load_dataset(save(numbers), titles=save("\n".join(lines) + "\n", "titles.csv"))
    assert splits.items[:5] == ("110", "Heat", "102", "Heat #2", "104")
    assert splits.items[10] == "110 #2"  # an id may be another's title
    assert "42 items have no title there and are called by their id." in splits.report["notes"]
    assert "1 further titles of ids that have one already were left out." in splits.report["notes"]


def test_titles_of_other_items_are_refused(numbers, save):
    for lines, message in [
        (
            "id,title\n7,Heat\n",
            r"no title for any of the items \(100, 101, 102, …\): the ids in it are others \(7, …\)",
        ),
        ("id,name,title_of_work,booktitle\n100,a,b,c\n", "more than one column that may be the title, name, booktitle"),
        ("id,plot\n100,a\n", "lacks the column title; its columns are id, plot: rename them to item, title"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_dataset(save(numbers), titles=save(lines, "titles.csv"))


def test_items_without_titles_beside_them_keep_their_ids(numbers, save, tmp_path):
    rows = numbers[["user", "item", "timestamp"]]
    save(text(rows, "\t", INTER.split("\t")), "recbole/plays.inter")
    save("item_id:token\tprice:float\n100\t5\n", "recbole/plays.item")
    splits = load_dataset(tmp_path / "recbole")
    assert splits == load_dataset(save(numbers))
    assert "plays.item holds no titles." in splits.report["notes"]
    assert "All items are numbers" in notes(splits)


def test_a_changed_table_of_titles_is_read_anew(numbers, save):
    plays, titles = save(numbers), save("id,title\n100,Heat\n", "titles.csv")
    assert load_dataset(plays, titles=titles).items[0] == "Heat"
    assert load_dataset(plays, titles=save("id,title\n100,Cold sweat\n", "titles.csv")).items[0] == "Cold sweat"


# ------------------------------------------------------------------------------------------------------ quotation marks


def test_quotation_marks_that_enclose_names(table, save):
    named = table.assign(item=[f'The "{item}"\\' for item in table["item"]])  # which pandas doubles
    assert load_dataset(save(named)).items == tuple(sorted(set(named["item"])))
    spark = text(table.assign(item='"' + table["item"] + '" live'), escapechar="\\", doublequote=False)
    assert '\\"Item' in spark
    assert load_dataset(save(spark, "spark.csv")).items == tuple(
        f'"{item}" live' for item in sorted(set(table["item"]))
    )
    both = spark.replace("live", "\\live")
    with pytest.raises(
        ValueError, match=r'both}.csv, line 2: a quotation mark does not enclose its cell, .* inside a name as ""'
    ):
        load_dataset(save(both, "{both}.csv"))
    inches = table.assign(item=table["item"].str.replace("Item, ", '12" '))
    lines = "".join(f"{row.user},{row.item},{row.timestamp}\n" for row in inches.itertuples())
    assert load_dataset(save("user,item,timestamp\n" + lines)).items == tuple(sorted(set(inches["item"])))


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (['1,"Heroes,5', "1,b,6", '2,"Heroes,7'], 2),  # swallows two lines
        (["1,a,5", '1,"Heroes,6', "1,b,7"], 3),  # swallows the rest
        (["1,a,5", '1,"Heroes" live,6'], 3),
        (["1,a,5", '1,"Heroes', "1,a,5", '2,b",7'], 3),  # both marks at the border of a cell: no parser would mind
        (["1,a,5", '1,"Two', 'lines",6'], 3),
    ],
)
def test_a_quotation_mark_that_swallows_lines_is_refused_with_its_line(save, lines, line):
    with pytest.raises(ValueError, match=rf"plays.csv, line {line}: a quotation mark does not enclose its cell"):
        load_dataset(save("\n".join(["user,item,timestamp", *lines]) + "\n"))


def test_a_text_that_spans_lines_is_no_matter_in_a_column_that_is_not_read(table, save):
    review = ["good", 'so "good"\n\nthat, I say']
    reviewed = table.assign(review=[review[row % 2] for row in range(len(table))])
    assert load_dataset(save(reviewed)) == load_dataset(save(table, "plain.csv"))
    stray = "".join(f'{row.user},Film {row.item[6:]},{row.timestamp},"odd\n' for row in table.itertuples())
    with pytest.raises(ValueError, match=r"plays.csv, line 2: a quotation mark does not enclose its cell"):
        load_dataset(save("user,item,timestamp,review\n" + stray))


def test_stray_quotation_marks_in_a_table_with_tabs_are_letters(table, save):
    named = table.assign(item=table["item"].str.replace("Item, 0", '"Heroes '))
    lines = "".join(f"{row.user}\t{row.item}\t{row.timestamp}\n" for row in named.itertuples())
    splits = load_dataset(save("user\titem\ttimestamp\n" + lines))
    assert splits.items == tuple(sorted(set(named["item"])))
    assert splits.report["notes"] == [
        "Quotation marks were read as ordinary characters, because they do not enclose cells in this file."
    ]


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a.csv": "user,item,timestamp\n", "b.tsv": "x"},
            r"holds more than one table \(a.csv, b.tsv\); name the file",
        ),
        ({"a.inter": "x", "b.inter": "x"}, r"holds more than one table \(a.inter, b.inter\); name the file of the one"),
        (
            {"a.csv": "user,item,timestamp\n1,a,5\n", "b.csv": "user,item,timestamp,rating\n1,a,5,5\n"},
            r"b.csv has different columns from the files before it \(rating\), so they are not parts of one table",
        ),
        ({"_delta_log/0.json": "{}", "a.parquet": "x"}, "a table whose log says which of its files count"),
        ({"a.csv": "x", "train.json": "[]"}, r"contains both JSON \(train.json\), which may be LLaRA rows, and tables"),
        ({"a.csv": "", "b.csv": ""}, "a.csv is empty"),
    ],
)
def test_a_folder_that_is_no_one_table_says_why(save, tmp_path, files, message):
    for name, content in files.items():
        save(content, f"plays/{name}")
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path / "plays")


def test_parquet_parts_must_have_the_same_columns(table, save, tmp_path):
    save(table, "plays/a.parquet")
    save(table.assign(rating=5), "plays/b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet has different columns from the files before it \(rating\)"):
        load_dataset(tmp_path / "plays")


def test_an_archive_that_cannot_be_used_says_why(table, save):
    with pytest.raises(ValueError, match=r"plays.zip is not a readable zip archive"):
        load_dataset(save(b"PK\x03\x04 and then nothing", "plays.zip"))
    with pytest.raises(ValueError, match=r"plays.zip contains no table of interactions"):
        load_dataset(archive(save, **{"notes.txt": "x", "__MACOSX/._a.csv": "x"}))
    with pytest.raises(ValueError, match=r"holds more than one table \(a.csv, b.tsv\); unpack it and name the file"):
        load_dataset(archive(save, **{"a.csv": "x", "b.tsv": "x"}))
    with pytest.raises(ValueError, match=r"plays.zip \(a.csv\) lacks the column timestamp"):
        load_dataset(archive(save, **{"in/a.csv": "user,item\n1,a\n"}))
    spark = archive(save, "spark.zip", **{"plays.csv/": "", "plays.csv/part-0.csv": text(table)})
    assert load_dataset(spark) == load_dataset(save(table))
    whole = gzip.compress(text(table).encode())
    with pytest.raises(ValueError, match=r"plays.csv.gz cannot be read \(.*\); save it again"):
        load_dataset(save(whole[: len(whole) // 2], "plays.csv.gz"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"user": 1}]\n', "row 1: this is not a JSON object; write one object per line"),
        ("{'user': 1}\n", "row 1: this is not a JSON object"),  # as Amazon's of 2014
        ('{"user": 1, "item": "a"}\n', "lacks the column timestamp; its columns are user, item"),
        ('{"user": 1, "item": ["a"], "timestamp": 5}\n', "the column item holds lists or records"),
        (
            '{"user": 1, "item": "a", "timestamp": 5}\n{"user": "b", "item": "a", "timestamp": 5}\n',
            "neither text nor numbers throughout .*'b'",
        ),
        ('{"user": 1, "item": "a", "timestamp": 5}\n' * 1000 + "x\n", "row 1,001: this is not a JSON object"),
        ('{"user": 1, "item": "a", "timestamp": ' + "9" * 30 + "}\n", "cannot be read .*too large.*; save it again"),
        ("", "plays.jsonl is empty"),
    ],
)
def test_json_lines_that_cannot_be_used_say_why(save, content, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(save(content, "plays.jsonl"))


def test_a_column_that_starts_late_in_json_lines_is_read(table, save):
    rated = table.assign(rating=[np.nan] * 3 + [5.0] * (len(table) - 3))
    lines = "".join(json.dumps({k: v for k, v in row.items() if v == v}) + "\n" for row in rated.to_dict("records"))
    splits = load_dataset(save(lines, "plays.jsonl"))
    assert splits == load_dataset(save(rated))
    assert splits.report["dropped"]["rows without rating"] == 3


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "userId,user_id,item,timestamp",
            "more than one column that may be the user, userId, user_id; rename the one that",
        ),
        (
            "user,artist_id,track_id,time",
            "more than one column that may be the item, artist_id, track_id; rename the one",
        ),
        (
            "user,item,date,time",
            "more than one column that may be the timestamp, time, date; rename the one that counts",
        ),
        ("user,item,time,score,stars", "more than one column that may be the rating, score, stars; rename the one"),
    ],
)
def test_columns_that_may_be_the_same_are_asked_for(save, header, message):
    cells = ",".join("1" for _ in header.split(","))
    with pytest.raises(ValueError, match=message.split(",")[0]):
        load_dataset(save(f"{header}\n{cells}\n"))


def test_the_plain_name_of_a_column_goes_before_others(table, save):
    more = table.assign(user_id=7, date="x", title=np.arange(len(table)))
    splits = load_dataset(save(more))
    assert splits == load_dataset(save(table, "plain.csv"))
    assert splits.report["notes"][0] == "Columns ignored: user_id, date, title."
