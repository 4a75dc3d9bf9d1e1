"""Rows in the LLaRA format (arXiv 2312.02445): LastFM, Goodreads and Steam as DynamicPO uses them, or your own.

A file is a JSON list of rows {"historyList": "a::b::c", "itemList": [candidates], "trueSelection": "the chosen one"},
or has such a row on each line. In a folder, a file's name says its split: it holds "train", "val" or "test", as in
lastfm-train.json.

Rows do not name the user. As published, a user's rows are consecutive and each history continues the row before, so a
row that does is taken as the same user's. In a file that is divided into two splits, a user's rows must not fall into
both, and a row that does not continue the one before may have been moved, for example by shuffling. It is joined to the
row, wherever that is, whose items its history begins with: all of them or, where it has dropped its oldest items, the
last of them, at least three. Where several rows fit, their users count as one. The report says how many rows were
joined, how many of them fit several users, and how many continue rows that are missing.
"""

import re
from codecs import BOM_UTF8
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError, field_validator

from minipo.experiments.datasets.by_time import keyed
from minipo.experiments.datasets.splits import Interaction, Splits, with_report
from minipo.experiments.fetch import fetch

# A file's split: a word in its name begins like this. Where the letters are within a word, as in lastfmtest, it is not
# clear whether they mean it.
SPLITS = {"train": "train", "validation": "(val|dev)", "test": "test"}
# What separates names in histories that are not written as they should be.
SEPARATOR = re.compile(r"\s*(?:::|->|→|[\n\t|;,/>])\s*")

Names = tuple[str, ...]
Row = tuple[Names, str, Names]  # history, chosen, candidates


def load(name: str, seed: int = 0) -> Splits:
    """The published dataset `name` (lastfm, goodreads, steam); fetched on first use. seed: see `read`."""
    return read(fetch(name), seed, name)


def read(path: Path, seed: int = 0, name: str = "own") -> Splits:
    """The splits in `path`, a folder of LLaRA files or one file.

    Missing splits are formed from whole users, so that no user is in two of them: a training split from the
    validation file (4 of 5 users), a validation split from the training file (1 of 10), both from a single
    file (1 of 10 for validation, 1 of 10 for test). seed: of the users drawn.
    Spaces around names are stripped. Identical rows and repeated candidates count once, empty names and rows without a
    history are left out: all of it is counted in the report, whose `joined` says how many rows were away from their
    user's and were joined to them (rows), how many of these fit several users (several), and how many begin in the
    middle of a history that continues no other row (loose), so that their users may count as several.
    Raises ValueError if a row is not in the format, if its chosen item is not among its candidates, if names are not
    separated in histories, or if the files do not make three splits; in one sentence that names the file and the row.
    """
    dropped: Counter[str] = Counter()
    found = {split: _rows(file, dropped) for split, file in _files(path).items()}
    _check_names(path, [row for rows in found.values() for row in rows])
    # The file from which a split is formed, if any: only there must all of a user's rows be found.
    carved = {"train", "validation", "all"} & found.keys() if len(found) < len(SPLITS) else set()
    numbers, joined = count(), Counter(rows=0, several=0, loose=0)
    users = {}
    for split, rows in found.items():
        lines = [(*history, chosen) for history, chosen, _ in rows]
        runs = _runs(lines)
        users[split] = _by_user(rows, _join(lines, runs, joined) if split in carved else runs, numbers)

    if "all" in users:
        users["train"], users["test"] = _part(users.pop("all"), 10, seed, path)
    if "train" not in users:
        users["validation"], users["train"] = _part(users["validation"], 5, seed, path)[::-1]
    if "validation" not in users:
        users["train"], users["validation"] = _part(users["train"], 10, seed, path)
    train, validation, test = (tuple(chain.from_iterable(users[split])) for split in SPLITS)
    items = {item for line in (*train, *validation, *test) for item in (*line.history, *line.candidates)}
    more = {"joined": dict(joined)} if joined.total() else {}
    return with_report(Splits(name, train, validation, test, tuple(sorted(items))), dropped, None, **more)


def _files(path: Path) -> dict[str, Path]:
    """The file of each split; a single file contains "all"."""
    if not path.is_dir():
        return {"all": path}
    files: dict[str, Path] = {}
    every = sorted(path.rglob("*.json"))
    for file in every:
        name = file.stem.lower()
        split = next((split for split, begins in SPLITS.items() if re.search(f"(?<![a-z]){begins}", name)), None)
        if split in files:
            raise ValueError(
                f"{path} has two files for {split}, {files[split].name} and {file.name}; keep one of them."
            )
        if split is not None:
            files[split] = file
    others = [file for file in every if file not in files.values()]
    for split in [split for split in SPLITS if split not in files]:
        if unclear := [file for file in others if re.search(f"{SPLITS[split]}(id|idation)?$", file.stem.lower())]:
            raise ValueError(
                f"{unclear[0]} may hold {split} rows or not: if it does, separate the word, as in "
                f"lastfm-{'val' if split == 'validation' else split}.json; if not, remove it from the folder."
            )
    if "test" not in files or len(files) == 1:
        raise ValueError(
            f"{path} has no LLaRA files for {'test' if 'test' not in files else 'train or validation'}; it needs "
            f"*test*.json, and *train*.json or *val*.json or both."
        )
    return {split: files[split] for split in SPLITS if split in files}


def _part(
    users: list[list[Interaction]], one_in: int, seed: int, path: Path
) -> tuple[list[list[Interaction]], list[list[Interaction]]]:
    """The users, and one in `one_in` of them (at least one), drawn with the seed."""
    if len(users) < 2:
        raise ValueError(
            f"{path} has rows of one user only where two splits are needed, or of users whose histories go on from "
            f"each other's; add rows of more users, or give a file for each split."
        )
    drawn = np.argsort(keyed(seed, np.arange(len(users))), kind="stable")[: max(1, len(users) // one_in)]
    part = set(drawn.tolist())
    return [user for place, user in enumerate(users) if place not in part], [users[place] for place in sorted(part)]


def _check_names(path: Path, rows: Sequence[Row]) -> None:
    """Raises ValueError if names in histories are joined by anything but "::"."""
    taken = {name for history, _, _ in rows for name in history}
    known = {name for _, _, candidates in rows for name in candidates}
    parts = {name: [part in known for part in SEPARATOR.split(name)] for name in taken - known}
    joined = sorted(name for name, are_names in parts.items() if 2 * sum(are_names) > len(are_names))
    advice = "join names in historyList by '::', or write a list of them."
    if 10 * len(joined) > len(taken):  # some titles are made of other titles
        raise ValueError(f"{path}: {joined[0][:80]!r} in a history joins several candidates' names; {advice}")
    if not taken & known:
        raise ValueError(f"{path}: no name in a history, such as {min(taken)[:80]!r}, is any row's candidate; {advice}")


def _by_user(rows: Sequence[Row], users: Sequence[int], numbers: Iterator[int]) -> list[list[Interaction]]:
    """The rows by user, of whom each row has one in `users`; numbered in the order in which they begin."""
    number: dict[int, int] = defaultdict(numbers.__next__)
    found: dict[int, list[Interaction]] = defaultdict(list)
    for user, row in zip(users, rows, strict=True):
        found[user].append(Interaction(number[user], *row))
    return [*found.values()]


def _runs(lines: Sequence[Names]) -> list[int]:
    """The run of each row, from 0; in a run, each row continues the one before.

    lines: each row's history, then its chosen item. A history at its full length drops the oldest item.
    """
    goes_on = [after[:-1] in (before, before[1:]) for before, after in pairwise(lines)]
    return np.cumsum([0, *(not each for each in goes_on)]).tolist()


def _join(lines: Sequence[Names], runs: Sequence[int], joined: Counter[str]) -> list[int]:
    """For each row, the first run of the same user; what was joined is counted in `joined`."""
    longest = max(map(len, lines)) - 1  # a history of that length may have dropped its oldest items
    least = min(3, longest)  # fewer items may be the same by chance
    after: dict[tuple[Names, bool], list[int]] = defaultdict(list)  # runs by their last items: all of them, or a part?
    starts = [row for row, run in enumerate(runs) if not row or run != runs[row - 1]]
    for row, (line, run) in enumerate(zip(lines, runs, strict=True)):
        parts = max(1, len(line) - least + 1)
        if row + 1 < len(runs) and runs[row + 1] == run:
            parts = min(parts, 2)  # if the next row is present, no other continues those before it
        for start in range(parts):
            after[line[start:], start > 0].append(run)
    several = {items for items, found in after.items() if len(found) > 1}
    user = list(range(len(starts)))

    def of(run: int) -> int:
        while user[run] != run:
            user[run] = run = user[user[run]]
        return run

    times: Counter[tuple[Names, bool]] = Counter()
    shortest = min(map(len, lines)) - 1
    for run, row in enumerate(starts):
        history = lines[row][:-1]
        kinds = (False, True) if len(history) == longest else (False,)
        beginnings = ((history[:length], part) for length in range(len(history), 0, -1) for part in kinds)
        items = next((items for items in beginnings if items in after and after[items] != [run]), None)
        if items is None:
            joined["loose"] += len(history) > shortest
            continue
        times[items] += 1
        for other in after[items]:
            one, another = sorted((of(other), of(run)))
            user[another] = one
        after[items] = [run]  # the others are the same user's from here on
    joined["rows"] += times.total()
    joined["several"] += sum(rows for items, rows in times.items() if rows > 1 or items in several)
    return [of(run) for run in runs]


class _Fields(BaseModel, strict=True):
    """A row as it is written; a history may also be a list."""

    historyList: list[str]
    itemList: list[str]
    trueSelection: str

    @field_validator("historyList", mode="before")
    @classmethod
    def _listed(cls, names: Any) -> Any:
        return names.split("::") if isinstance(names, str) and names else [] if names == "" else names


def _rows(path: Path, dropped: Counter[str]) -> list[Row]:
    """The file's rows; unusable ones are left out and counted in `dropped`."""
    text = path.read_bytes().removeprefix(BOM_UTF8)
    if not text.lstrip().startswith(b"["):  # a row on each line
        text = b"[" + b",\n".join(line for line in text.splitlines() if line.strip()) + b"]"
    try:
        content = TypeAdapter(list[_Fields]).validate_json(text)
    except ValidationError as error:
        found = error.errors()[0]
        if not found["loc"]:
            raise ValueError(f"{path} is not JSON in UTF-8 ({found['msg']}); write a list of LLaRA rows.") from None
        index, *field = found["loc"]
        said = ": ".join([*map(str, field[:1]), found["msg"]])
        raise ValueError(f"{path}, row {int(index) + 1}: {said}; write historyList, itemList, trueSelection.") from None
    rows: dict[Row, None] = {}  # in their order
    for number, fields in enumerate(content, start=1):
        named, offered = (
            [item.strip() for item in names if item.strip()] for names in (fields.historyList, fields.itemList)
        )
        chosen, distinct = fields.trueSelection.strip(), tuple(dict.fromkeys(offered))
        if chosen not in distinct:
            raise ValueError(
                f"{path}, row {number}: the chosen item {chosen!r} is not among the candidates; add it to itemList."
            )
        if len(distinct) == 1:
            raise ValueError(
                f"{path}, row {number}: there is no candidate besides the chosen item {chosen!r}; add negatives to "
                f"itemList."
            )
        dropped["empty names"] += len(fields.historyList) + len(fields.itemList) - len(named) - len(offered)
        dropped["candidates that their row lists already"] += len(offered) - len(distinct)
        row = (tuple(named), chosen, distinct)
        if not named:
            dropped["rows without a history"] += 1
        elif row in rows:
            dropped["repeated rows"] += 1
        else:
            rows[row] = None
    if not rows:
        raise ValueError(f"No row of {path} has a history; add rows that have one.")
    return list(rows)
