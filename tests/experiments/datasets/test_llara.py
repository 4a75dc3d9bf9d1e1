"""LLaRA rows become splits, users stay together, and a bad row is named."""

import json
import random

import pytest

from minipo.experiments.datasets import catalog, llara
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.datasets.splits import describe

NAMES = [f"Artist {number}" for number in range(60)]


def rows(user, count, longest=5):
    """The rows of one user as published: each goes on where the one before ended, `longest` items at most."""
    line = [NAMES[(user * 7 + step) % 60] for step in range(count + 3)]
    others = [name for name in NAMES if name not in line][:4]
    return [
        {
            "historyList": "::".join(line[max(0, end - longest) : end]),
            "itemList": [*others[:2], line[end], *others[2:]],
            "trueSelection": line[end],
        }
        for end in range(3, len(line))
    ]


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def users(split):
    return {line.user for line in split}


def test_a_folder_in_the_published_layout(tmp_path):
    for split, some in (("train", range(4)), ("val", (4, 5)), ("test", (6,))):
        write(tmp_path / "lastfm-sft-cans20" / f"lastfm-{split}.json", [row for user in some for row in rows(user, 6)])
    (tmp_path / "latest.json").write_text("{}")  # what else lies there is no split
    splits = load_dataset(str(tmp_path))
    assert [len(users(split)) for split in (splits.train, splits.validation, splits.test)] == [4, 2, 1]
    assert [line.user for line in splits.train] == [user for user in range(4) for _ in range(6)]
    assert users(splits.validation) == {4, 5}
    assert [line.to_llara() for line in splits.test] == rows(6, 6)
    shown = {name for user in range(7) for row in rows(user, 6) for name in row["itemList"]}
    before = {name for user in range(7) for row in rows(user, 6) for name in row["historyList"].split("::")}
    assert splits.items == tuple(sorted(shown | before))
    assert splits.report["rows"] == {"train": 24, "validation": 12, "test": 6}
    assert splits.report["users"] == 7
    assert splits.report["dropped"] == {}


def test_published_names_are_fetched(tmp_path, monkeypatch):
    for split, user in (("train", 0), ("val", 1), ("test", 2)):
        write(tmp_path / f"steam-{split}.json", rows(user, 3))
    monkeypatch.setattr(llara, "fetch", {"steam": tmp_path}.__getitem__)
    splits = load_dataset("steam", seed=123)
    assert splits.name == "steam"
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [3, 3, 3]


def test_without_a_train_file_most_validation_users_train(tmp_path):
    write(tmp_path / "val.json", [row for user in range(10) for row in rows(user, 4 + user % 2)])
    write(tmp_path / "test.json", rows(10, 4))
    splits = load_dataset(tmp_path)
    assert len(users(splits.train)) == 8
    assert len(users(splits.validation)) == 2
    assert not users(splits.train) & users(splits.validation)
    assert len(splits.train) + len(splits.validation) == 45
    assert users(splits.test) == {10}
    assert users(load_dataset(tmp_path, seed=1).validation) != users(splits.validation)


def test_without_a_validation_file_some_train_users_validate(tmp_path):
    write(tmp_path / "train.json", [row for user in range(20) for row in rows(user, 4)])
    write(tmp_path / "test.json", rows(20, 4))
    splits = load_dataset(tmp_path)
    assert [len(users(split)) for split in (splits.train, splits.validation, splits.test)] == [18, 2, 1]


def test_one_file_is_split_by_users(tmp_path):
    splits = load_dataset(write(tmp_path / "mine.json", [row for user in range(30) for row in rows(user, 4)]))
    parts = [users(split) for split in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [25, 2, 3]
    assert len(set.union(*parts)) == 30


def people(count, lines=9):
    """Rows of so many users of random taste, user by user."""
    for user in range(count):
        line = random.Random(user).sample(NAMES, lines + 3)
        yield [
            {"historyList": line[max(0, end - 5) : end], "itemList": NAMES, "trueSelection": line[end]}
            for end in range(3, len(line))
        ]


def grouped(splits):
    """The rows of each user."""
    found = {}
    for line in (*splits.train, *splits.validation, *splits.test):
        found.setdefault(line.user, set()).add((line.history, line.chosen))
    return {frozenset(rows) for rows in found.values()}


def test_shuffled_rows_are_joined_to_those_of_their_user(tmp_path):
    content = [row for rows in people(20) for row in rows]
    in_order = load_dataset(write(tmp_path / "order.json", content))
    assert "joined" not in in_order.report
    assert len(grouped(in_order)) == 20
    random.Random(0).shuffle(content)
    shuffled = load_dataset(write(tmp_path / "shuffled.json", content))
    assert grouped(shuffled) == grouped(in_order)
    joined = shuffled.report["joined"]
    assert 150 < joined["rows"] <= 160  # but for a few, which happen to follow each other
    assert (joined["several"], joined["loose"]) == (0, 0)
    assert f"  joined        {joined['rows']} rows with their user's rows elsewhere in the file" in describe(shuffled)


def test_rows_are_joined_over_gaps_and_those_that_go_on_from_nothing_are_counted(tmp_path):
    content = [row for rows in people(20) for place, row in enumerate(rows) if place not in (2, 5)]
    splits = load_dataset(write(tmp_path / "gaps.json", content))
    assert len(grouped(splits)) == 20
    assert splits.report["joined"] == {"rows": 40, "several": 0, "loose": 0}
    content = [row for rows in people(20) for place, row in enumerate(rows) if place in (0, 1, 8)]
    splits = load_dataset(write(tmp_path / "more.json", content))
    assert splits.report["joined"] == {"rows": 0, "several": 0, "loose": 20}
    assert "  loose         20 rows whose history continues no other row" in describe(splits)
    content = [
        row for user, rows in enumerate(people(20)) for place, row in enumerate(rows) if user or place < 2 or place == 8
    ]
    assert "  loose         1 row whose" in describe(load_dataset(write(tmp_path / "one.json", content)))


def test_users_whose_rows_cannot_be_told_apart_stay_in_one_split(tmp_path):
    one, two, *others = people(6)
    twin = [
        {**row, "historyList": first["historyList"], "trueSelection": first["trueSelection"], "itemList": NAMES[::-1]}
        for row, first in zip(two[:2], one[:2], strict=True)
    ]
    twin += [{**row, "historyList": [*one[1]["historyList"], one[1]["trueSelection"]]} for row in two[4:5]]
    content = [*one[::2], *twin[::2], *one[1::2], *twin[1::2], *(row for rows in others for row in rows)]
    splits = load_dataset(write(tmp_path / "twins.json", content))
    assert len(grouped(splits)) == 5
    assert splits.report["joined"]["several"] > 0


def test_many_rows_that_fit_many_are_joined_in_time(tmp_path):
    """10,000 users who begin alike: to join each row to each that fits would take minutes."""
    names = [f"{number}" for number in range(10_000)]
    content = [{"historyList": ["x"], "itemList": ["y", name], "trueSelection": "y"} for name in names]
    content += [{"historyList": ["x", "y"], "itemList": [name, "x"], "trueSelection": name} for name in names]
    content += [{"historyList": [name], "itemList": ["x", "z"], "trueSelection": "x"} for name in ("z", "w")]
    assert len(grouped(load_dataset(write(tmp_path / "alike.json", content)))) == 3


def test_json_lines_are_rows(tmp_path):
    content = [row for user in range(10) for row in rows(user, 4)]
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, content)) + "\n\n", encoding="utf-8")
    assert load_dataset(tmp_path / "lines.json") == load_dataset(write(tmp_path / "list.json", content))
    with (tmp_path / "lines.json").open("a") as file:
        file.write('{"historyList": "a::b", "itemLi')
    with pytest.raises(
        ValueError, match=r"lines\.json is not JSON in UTF-8 \(Invalid JSON: EOF while parsing a string at line 41"
    ):
        load_dataset(tmp_path / "lines.json")


def test_names_lose_blanks_around_them(tmp_path):
    content = [row for user in range(10) for row in rows(user, 4)]
    spaced = [
        {
            "historyList": row["historyList"].replace("::", " :: "),
            "itemList": [f" {name}\n" for name in row["itemList"]],
            "trueSelection": f"{row['trueSelection']}\t",
        }
        for row in content
    ]
    plain = load_dataset(write(tmp_path / "plain.json", content))
    assert load_dataset(write(tmp_path / "spaced.json", spaced)) == plain


@pytest.mark.parametrize("separator", [", ", "\n", "\t", " | ", ";", "/", " -> ", " → ", " > "])
def test_names_that_are_joined_otherwise_are_refused(tmp_path, separator):
    content = [row for user in range(10) for row in rows(user, 4)]
    for row in content:
        row["historyList"] = row["historyList"].replace("::", separator)
    for history in (str, lambda names: [names]):
        listed = [row | {"historyList": history(row["historyList"])} for row in content]
        with pytest.raises(ValueError, match="in a history joins several candidates' names; join names in"):
            load_dataset(write(tmp_path / "mine.json", listed))


def test_histories_of_names_that_are_nowhere_candidates_are_refused(tmp_path):
    content = [row for user in range(10) for row in rows(user, 4)]
    for row in content:
        row["historyList"] = row["historyList"].replace("::", " ")
    with pytest.raises(ValueError, match=r"no name in a history, such as 'Artist 0 .*, is any row's candidate; join"):
        load_dataset(write(tmp_path / "mine.json", content))


def test_a_title_that_is_made_of_others_is_a_title(tmp_path):
    content = [row for user in range(10) for row in rows(user, 4)]
    content[0]["historyList"] += "::Artist 1, Artist 2"
    assert "Artist 1, Artist 2" in load_dataset(write(tmp_path / "mine.json", content)).items


def test_what_minipo_writes_it_reads(tmp_path):
    lines = catalog.generate(0, 30, 0, 0)[1].train
    splits = load_dataset(write(tmp_path / "catalog.json", [line.to_llara() for line in lines]))
    found = [
        (line.history, line.chosen, line.candidates)
        for part in (splits.train, splits.validation, splits.test)
        for line in part
    ]
    assert sorted(found) == sorted((line.history, line.chosen, line.candidates) for line in lines)


def test_harmless_faults_are_left_out_and_counted(tmp_path):
    content = [row for user in range(10) for row in rows(user, 4)]
    content[0]["historyList"] = ["Artist 0", "", "Artist 2"]  # a list does as well
    content[1]["itemList"] += ["  ", content[1]["itemList"][0]]
    content.append({**content[9], "historyList": ""})
    content.append(content[20])
    splits = load_dataset(write(tmp_path / "mine.json", content))
    assert splits.report["dropped"] == {
        "empty names": 2,
        "candidates that their row lists already": 1,
        "rows without a history": 1,
        "repeated rows": 1,
    }
    lines = [*splits.train, *splits.validation, *splits.test]
    assert len(lines) == 40
    assert ("Artist 0", "Artist 2") in {line.history for line in lines}
    assert {len(line.candidates) for line in lines} == {5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"trueSelection": "Nobody"},
            "row 3: the chosen item 'Nobody' is not among the candidates; add it to itemList",
        ),
        ({"trueSelection": ""}, "row 3: the chosen item '' is not among the candidates"),
        (
            {"trueSelection": 7},
            "row 3: trueSelection: Input should be a valid string; write historyList, itemList, trueS",
        ),
        ({"itemList": "a::b"}, "row 3: itemList: Input should be a valid array; write historyList, itemList"),
        ({"itemList": [1, 2]}, "row 3: itemList: Input should be a valid string; write historyList, itemList"),
        ({"historyList": None}, "row 3: historyList: Input should be a valid array; write historyList, itemL"),
        ({"itemList": ["x", "x"], "trueSelection": "x"}, "row 3: there is no candidate besides the chosen item 'x'"),
    ],
)
def test_a_bad_row_is_named_with_its_file(tmp_path, change, message):
    content = rows(0, 4)
    content[2] |= change
    with pytest.raises(ValueError, match=rf"^\S*mine\.json, {message}"):
        load_dataset(write(tmp_path / "mine.json", content))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "No row of .*mine.json has a history"),
        ("nothing", "mine.json is not JSON in UTF-8 .*; write a list of LLaRA rows"),
        ('[{"historyList": "a::b", "itemLi', "mine.json is not JSON in UTF-8"),
        ("\udcff\udcfe", "mine.json is not JSON in UTF-8"),
        ("{}", "mine.json is empty; give a file with the columns user, item, timestamp"),
        ("[]", "No row of .*mine.json has a history"),
        ("[[1]]", "mine.json, row 1: Input should be an object; write historyList, itemList, trueSelection"),
        ('[{"itemList": []}]', "mine.json, row 1: historyList: Field required; write historyList, itemList"),
        ('[{"historyList": "", "itemList": ["a", "b"], "trueSelection": "a"}]', "No row of .* has a history"),
    ],
)
def test_a_file_that_holds_no_rows_says_so(tmp_path, text, message):
    (tmp_path / "mine.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path / "mine.json")


def test_files_that_make_no_three_splits_are_refused(tmp_path):
    write(tmp_path / "train.json", rows(0, 4))
    with pytest.raises(ValueError, match=r"no LLaRA files for test; it needs \*test\*\.json"):
        load_dataset(tmp_path)
    (tmp_path / "train.json").rename(tmp_path / "test.json")
    with pytest.raises(ValueError, match="no LLaRA files for train or validation; it needs"):
        load_dataset(tmp_path)
    write(tmp_path / "val.json", rows(1, 4))
    with pytest.raises(ValueError, match="has rows of one user only where two splits are needed"):
        load_dataset(tmp_path)
    write(tmp_path / "lastfmtrain.json", rows(3, 4))
    with pytest.raises(ValueError, match=r"lastfmtrain\.json may hold train rows or not: .* as in lastfm-train\.json"):
        load_dataset(tmp_path)
    (tmp_path / "lastfmtrain.json").unlink()
    write(tmp_path / "more" / "val.json", rows(2, 4))
    with pytest.raises(ValueError, match=r"has two files for validation, val\.json and val\.json; keep one"):
        load_dataset(tmp_path)
