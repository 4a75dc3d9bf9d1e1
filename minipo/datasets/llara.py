"""Rows in the LLaRA format (arXiv 2312.02445): LastFM, Goodreads and Steam as DynamicPO uses them, or your own.

A file is a JSON list of rows {"historyList": "a::b::c", "itemList": [candidates], "trueSelection": "the chosen one"}.
In a folder, a file's name says its split: it holds "train", "val" or "test", as in lastfm-train.json.

Rows carry no user. A user's rows follow each other, each history going on where the row before ended, so a row that
goes on so is taken for the same user's, and any other begins a new one.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..fetch import fetch
from . import Interaction, Splits, with_report
from .by_time import keyed

# What a file's name says: a word in it begins so.
SPLITS = {"train": "(?<![a-z])train", "validation": "(?<![a-z])(val|dev)", "test": "(?<![a-z])test"}

Row = tuple[tuple[str, ...], str, tuple[str, ...]]  # history, chosen, candidates


def load(name: str, seed: int = 0) -> Splits:
    """The published dataset `name` (lastfm, goodreads, steam); fetched on first use. seed: see `read`."""
    return read(fetch(name), seed, name)


def read(path: Path, seed: int = 0, name: str = "own") -> Splits:
    """The splits in `path`, a folder of LLaRA files or one file.

    What is missing is taken, whole users at a time so that no user is in two splits: a training split from the
    validation file (4 of 5 users), a validation split from the training file (1 of 10), both from one file that is all
    there is (1 of 10 for validation, 1 of 10 for test). seed: of the users drawn.
    Names are kept as they are. Identical rows and repeated candidates count once, empty names and rows without a
    history are left out: all of it is counted in the report.
    Raises ValueError if a row is not of the format, if its chosen item is not among its candidates, or if the files do
    not make three splits; in one sentence that names the file and the row.
    """
    dropped: Counter[str] = Counter()
    found = {split: _rows(file, dropped) for split, file in _files(path).items()}
    number = 0
    users = {}
    for split, rows in found.items():
        users[split] = _users(rows, number)
        number += len(users[split])

    if "all" in users:
        users["train"], users["test"] = _part(users.pop("all"), 10, seed, path)
    if "train" not in users:
        users["validation"], users["train"] = _part(users["validation"], 5, seed, path)[::-1]
    if "validation" not in users:
        users["train"], users["validation"] = _part(users["train"], 10, seed, path)
    train, validation, test = (tuple(chain.from_iterable(users[split])) for split in SPLITS)
    items = {item for line in (*train, *validation, *test) for item in (*line.history, *line.candidates)}
    return with_report(Splits(name, train, validation, test, tuple(sorted(items))), dropped)


def _files(path: Path) -> dict[str, Path]:
    """The file of each split; a file by itself holds "all"."""
    if not path.is_dir():
        return {"all": path}
    files: dict[str, Path] = {}
    for file in sorted(path.rglob("*.json")):
        split = next((split for split, names in SPLITS.items() if re.search(names, file.stem, re.IGNORECASE)), None)
        if split in files:
            raise ValueError(
                f"{path} has two files for {split}, {files[split].name} and {file.name}; keep one of them."
            )
        if split is not None:
            files[split] = file
    if "test" not in files or len(files) == 1:
        raise ValueError(
            f"{path} has no LLaRA files for {'test' if 'test' not in files else 'train or validation'}; it needs "
            f"*test*.json, and *train*.json or *val*.json or both."
        )
    return {split: files[split] for split in SPLITS if split in files}


def _part(
    users: list[list[Interaction]], one_in: int, seed: int, path: Path
) -> tuple[list[list[Interaction]], list[list[Interaction]]]:
    """The users, and one in so many of them (at least one), drawn by the seed."""
    if len(users) < 2:
        raise ValueError(f"{path} has rows of one user only where two splits are needed; bring rows of more users.")
    drawn = np.argsort(keyed(seed, np.arange(len(users))), kind="stable")[: max(1, len(users) // one_in)]
    part = set(drawn.tolist())
    return [user for place, user in enumerate(users) if place not in part], [users[place] for place in sorted(part)]


def _users(rows: Sequence[Row], first: int) -> list[list[Interaction]]:
    """The rows by user, numbered from `first`."""
    users: list[list[Interaction]] = []
    expected: tuple[str, ...] = ()  # the last history and its chosen item
    for history, chosen, candidates in rows:
        if not users or history not in (expected, expected[1:]):  # a history at its full length drops the oldest item
            users.append([])
        users[-1].append(Interaction(first + len(users) - 1, history, chosen, candidates))
        expected = (*history, chosen)
    return users


def _rows(path: Path, dropped: Counter[str]) -> list[Row]:
    """The file's rows; what cannot be used is left out and counted in `dropped`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be read; bring a list of LLaRA rows.") from None
    except ValueError as error:  # of JSON, of UTF-8, or a number with thousands of digits
        raise ValueError(f"{path} is not JSON in UTF-8 ({error}); bring a list of LLaRA rows.") from None
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path} holds no list of rows; bring a JSON list of LLaRA rows.")
    rows: dict[Row, None] = {}  # in their order
    for number, fields in enumerate(content, start=1):
        try:
            row = _row(fields, dropped)
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from None
        if not row[0]:
            dropped["rows without a history"] += 1
        elif row in rows:
            dropped["rows that stood there already"] += 1
        else:
            rows[row] = None
    if not rows:
        raise ValueError(f"No row of {path} has a history; bring rows with one.")
    return list(rows)


def _row(fields: Any, dropped: Counter[str]) -> Row:
    """A row's history, chosen item and candidates, without empty and repeated names."""
    try:
        history, candidates, chosen = fields["historyList"], fields["itemList"], fields["trueSelection"]
    except (TypeError, KeyError):
        raise ValueError("historyList, itemList and trueSelection are not all there; add what is missing.") from None
    if isinstance(history, str):
        history = history.split("::") if history else []
    for name, names in (("historyList", history), ("itemList", candidates)):
        if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
            raise ValueError(f"{name} is no list of names; write text, not numbers or objects.")
    if not isinstance(chosen, str) or not chosen.strip():
        raise ValueError(f"trueSelection is {chosen!r}, which names nothing; write the chosen item's name.")
    try:
        "".join((*history, *candidates, chosen)).encode()
    except UnicodeEncodeError:
        raise ValueError("a name has half a letter, such as \\ud800; write whole ones.") from None
    named, offered = ([item for item in names if item.strip()] for names in (history, candidates))
    distinct = tuple(dict.fromkeys(offered))
    if chosen not in distinct:
        raise ValueError(f"the chosen item {chosen!r} is not among the candidates; add it to itemList.")
    if len(distinct) == 1:
        raise ValueError(f"there is no candidate besides the chosen item {chosen!r}; add negatives to itemList.")
    dropped["empty names"] += len(history) + len(candidates) - len(named) - len(offered)
    dropped["candidates that their row lists already"] += len(offered) - len(distinct)
    return tuple(named), chosen, distinct
