"""Datasets by name: users' interactions, split into train, validation and test.

Every dataset arrives in the same form, so that training and evaluation never ask where it came from.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Int

from minipo.names import lookup

# What a file of one's own may end in; text may be compressed, as .csv.gz is.
FILES = (".csv", ".tsv", ".inter", ".dat", ".data", ".jsonl", ".json", ".parquet", ".zip")
TITLES = (".csv", ".tsv", ".item", ".dat", ".jsonl", ".json", ".parquet")  # what a table of titles may end in
ALMOST_ALL = 0.9  # of neighbouring liked items: with more ties than that there is a warning
TIES = {"file": False, "random": True}  # what decides among equal times, to whether it is drawn


def ending(name: str) -> str:
    """What a file's name ends in, in small letters and without the ".gz" of a compressed file: "a.csv.gz" is ".csv"."""
    path = PurePath(name.lower())
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


@dataclass(frozen=True)
class Interaction:
    """One user's line: what they took so far, and the candidates among which one was really next.

    history: items, oldest first. candidates: distinct items, `chosen` among them, in the order in which a prompt lists
    them.
    Raises ValueError if the chosen item is not a candidate, if candidates repeat, or if there is no negative.
    """

    user: int
    history: tuple[str, ...]
    chosen: str
    candidates: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.chosen not in self.candidates:
            raise ValueError(f"User {self.user}: the chosen item {self.chosen!r} is not among the candidates; add it.")
        if len(set(self.candidates)) < len(self.candidates):
            twice = next(item for item in self.candidates if self.candidates.count(item) > 1)
            raise ValueError(f"User {self.user}: the candidate {twice!r} stands there more than once; list it once.")
        if len(self.candidates) == 1:
            raise ValueError(f"User {self.user} has no negative; add at least one candidate besides the chosen item.")

    @property
    def negatives(self) -> tuple[str, ...]:
        """The candidates without the chosen item, in their order."""
        return tuple(item for item in self.candidates if item != self.chosen)

    @property
    def canonical(self) -> tuple[str, ...]:
        """The candidates in the order of score columns: the chosen item first, then the negatives."""
        return (self.chosen, *self.negatives)

    def to_llara(self) -> dict[str, str | list[str]]:
        """The fields of the LLaRA format (arXiv 2312.02445), which DynamicPO's release reads."""
        return {
            "historyList": "::".join(self.history),
            "itemList": list(self.candidates),
            "trueSelection": self.chosen,
        }


@dataclass(frozen=True)
class Splits:
    """A dataset: interactions of users for training, validation and test, and all its items.

    report: how large it is, and what was dropped and why, see `with_report`; no part of what the dataset is.
    """

    name: str
    train: tuple[Interaction, ...]
    validation: tuple[Interaction, ...]
    test: tuple[Interaction, ...]
    items: tuple[str, ...]
    report: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of name, lines and items: datasets that differ there differ here."""
        lines = [
            [(line.user, line.history, line.chosen, line.candidates) for line in split]
            for split in (self.train, self.validation, self.test)
        ]
        content = json.dumps([self.name, self.items, lines], separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def with_report(splits: Splits, dropped: Mapping[str, int], interactions: int | None = None) -> Splits:
    """The splits with their data report: plain numbers under users, items, interactions, lengths, rows and dropped.

    lengths: the least, median and most items of a history. dropped: what was left out, and how many of each; what is 0
    is not reported. interactions: how many different (user, item) pairs the lines hold; counted here if not given.
    notes is empty here: it takes sentences on what was ignored, joined, or may be wrong.
    """
    lines = [*splits.train, *splits.validation, *splits.test]
    lengths = [len(line.history) for line in lines] or [0]
    if interactions is None:
        interactions = len({(line.user, item) for line in lines for item in (*line.history, line.chosen)})
    return replace(
        splits,
        report={
            "users": len({line.user for line in lines}),
            "items": len(splits.items),
            "interactions": interactions,
            "lengths": {"min": min(lengths), "median": float(np.median(lengths)), "max": max(lengths)},
            "rows": {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
            "dropped": {what: count for what, count in dropped.items() if count},
            "notes": [],
        },
    )


def describe(splits: Splits) -> str:
    """The data report as a few lines of text."""
    report = splits.report or with_report(splits, {}).report
    rows, lengths = report["rows"], report["lengths"]
    lines = [
        f"{splits.name} (fingerprint {splits.fingerprint})",
        f"  users         {report['users']:,}",
        f"  items         {report['items']:,}",
        f"  interactions  {report['interactions']:,}",
        f"  histories     {lengths['min']} to {lengths['max']} items, median {lengths['median']:g}",
        f"  rows          {rows['train']:,} train, {rows['validation']:,} validation, {rows['test']:,} test",
        *(f"  {what:13} {sentence}" for what, sentence in remarks(report).items()),
        *(f"  dropped       {count:,} {what}" for what, count in report["dropped"].items()),
        *(f"  note          {note}" for note in report["notes"]),
    ]
    return "\n".join(lines)


def remarks(report: Mapping[str, Any]) -> dict[str, str]:
    """What a data report says of the order of rows, in words: of ties in time, of LLaRA rows that stood apart."""
    said = {}
    if (ties := report.get("ties")) and ties["tied"]:
        decides = "the order of the rows in the file" if ties["order"] == "file" else "chance, by the dataset's seed,"
        said["ties"] = (
            f"{ties['tied']:,} of {ties['neighbours']:,} neighbouring liked items of a user share their time: for "
            f"{ties['users']:,} users {decides} decides which is the test's answer (ties={ties['order']})"
            + "; warning: with nearly all of them, the times say no order, so bring finer ones"
            * (ties["tied"] > ALMOST_ALL * ties["neighbours"])
        )
    joined = report.get("joined", {"rows": 0, "loose": 0})
    if joined["rows"]:
        said["joined"] = (
            f"{joined['rows']:,} rows to their user's elsewhere in the file, by their histories; "
            f"{joined['several']:,} of them to several users', who count as one"
        )
    if joined["loose"]:
        said["loose"] = f"{joined['loose']:,} rows that no row leads to, so that their users may count as several"
    return said


def canonical_numbers(interactions: Sequence[Interaction], items: Sequence[str]) -> Int[np.ndarray, "batch candidates"]:
    """Every interaction's candidates in canonical order, as places in `items`.

    -1 where a row has fewer candidates than the longest.
    Raises ValueError if a candidate is not among `items`.
    """
    number = {item: place for place, item in enumerate(items)}
    numbers = np.full((len(interactions), max((len(line.candidates) for line in interactions), default=0)), -1)
    for row, line in zip(numbers, interactions, strict=True):
        try:
            row[: len(line.candidates)] = [number[item] for item in line.canonical]
        except KeyError as missing:
            raise ValueError(
                f"User {line.user}: the candidate {missing} is not an item of this dataset; use its own items."
            ) from None
    return numbers


@cache
def _catalog(seed: int) -> Splits:
    # Imported here, as below, because every dataset's module builds the classes above.
    from . import catalog

    return with_report(catalog.generate(seed)[1], {})


@cache
def _movielens(seed: int, ties: str = "file") -> Splits:
    from . import movielens

    return movielens.load(seed, ties)


@cache
def _published(name: str, seed: int) -> Splits:
    from . import llara

    return llara.load(name, seed)


@lru_cache(maxsize=4)
def _own(
    path: Path,
    versions: tuple[tuple[str, int, int], ...],
    seed: int,
    ties: str | None,
    titles: Path | None,
    liked_from: float | None,
) -> Splits:
    """The splits of the user's files; `versions`, each file's name, time of change and size, tell when to read anew."""
    from . import llara, own, sources, tables

    if path.is_dir():
        names = sources.files(path)
        rows = [name for name in names if ending(name) == ".json"]
        others = [name for name in names if ending(name) in sources.TABLES]
        if rows and others:
            raise ValueError(
                f"{path} holds both JSON ({rows[0]}), which may be LLaRA rows, and tables ({others[0]}); name the file "
                f"to read, or a folder without the others."
            )
        is_llara = not others
    else:
        is_llara = path.suffix.lower() == ".json" and not tables.is_json_lines(path)
    if not is_llara:
        return own.read(path, seed, ties=ties, titles=titles, liked_from=liked_from)
    _check_settings(path, titles, liked_from)
    if ties is not None:
        raise ValueError(f"{path} holds rows of LLaRA, which have no times, so there are no ties; leave ties out.")
    return llara.read(path, seed)


DATASETS: Mapping[str, Callable[..., Splits]] = {
    "catalog": _catalog,
    "ml-100k": _movielens,
    "lastfm": partial(_published, "lastfm"),
    "goodreads": partial(_published, "goodreads"),
    "steam": partial(_published, "steam"),
}


def load_dataset(
    name: str | Path = "catalog",
    seed: int = 0,
    *,
    ties: str | None = None,
    titles: str | Path | None = None,
    liked_from: float | None = None,
) -> Splits:
    """The dataset called `name`, or the one in a file of your own; kept in memory, so that asking again costs nothing.

    name: one of DATASETS; or the path of a table of user, item, timestamp (and rating), a file of many kinds, a folder
    or a zip archive, see `minipo.datasets.own`; or that of LLaRA rows, a .json file or a folder of them, see
    `minipo.datasets.llara`.
    seed: of the generator, for datasets that are generated; of what is drawn here (negatives, users), for others.
    ties: what decides the order of a user's rows of equal times, "file" (the order of the rows) or "random" (chance, by
    the seed). None: "file" for ml-100k, on which runs are recorded; for a table of your own "random" where more than a
    tenth of neighbouring liked items tie, else "file". `report["ties"]` and `describe` say what was used.
    titles: for a table whose items are ids, a table of ids and titles. liked_from: for a table with ratings, the least
    that counts as liked, on any scale; without it, ratings are 1 to 5, of which 4 and 5 do.
    Raises ValueError in one sentence: an unknown name, a file that is missing or not what it should be, a seed below 0,
    ties, titles or liked_from for data that have no use for them.
    """
    check_dataset(name, ties, titles, liked_from)
    if seed < 0:
        raise ValueError(f"The dataset's seed is {seed}; use a whole number of 0 or more.")
    if name in DATASETS:
        return DATASETS[str(name)](seed) if ties is None else DATASETS[str(name)](seed, ties)
    path = Path(name).expanduser().resolve()
    beside = None if titles is None else Path(titles).expanduser().resolve()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    files += [beside] if beside else []
    versions = tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    return _own(path, versions, seed, ties, beside, liked_from)


def check_dataset(
    name: str | Path,
    ties: str | None = None,
    titles: str | Path | None = None,
    liked_from: float | None = None,
) -> None:
    """Raise ValueError, in one sentence, if `name` is neither a known dataset nor a file that could be one, or if
    `ties`, `titles` or `liked_from` do not go with it.

    Nothing is read or fetched.
    """
    if ties is not None:
        lookup("order of ties", ties, TIES)
    if liked_from is not None and not math.isfinite(liked_from):
        raise ValueError(f"liked_from must be a number, not {liked_from}.")
    if name in DATASETS:
        if ties is not None and name != "ml-100k":
            raise ValueError(f"{name} has no times, so there are no ties; leave ties out.")
        return _check_settings(name, titles, liked_from)
    path = Path(name).expanduser()
    known_kind = ending(path.name) in FILES
    if path.is_dir() or (path.is_file() and known_kind):
        return _check_titles(titles)
    if path.exists():
        raise ValueError(f"{name} is no file that minipo reads; bring one that ends in {', '.join(FILES)}.")
    if known_kind or len(path.parts) > 1:
        raise ValueError(f"There is no file {name}; check the path, or name one of {', '.join(DATASETS)}.")
    lookup("dataset", str(name), DATASETS)


def _check_titles(titles: str | Path | None) -> None:
    if titles is None:
        return
    path = Path(titles).expanduser()
    if not path.is_file():
        raise ValueError(f"There is no file {titles}; titles must be the path of a table of ids and titles.")
    if ending(path.name) not in TITLES:
        raise ValueError(
            f"{titles} is no table of titles that minipo reads; give one that ends in {', '.join(TITLES)}."
        )


def _check_settings(name: str | Path, titles: str | Path | None, liked_from: float | None) -> None:
    """Raises ValueError if a setting of tables is given for other data."""
    for setting, value in (("titles", titles), ("liked_from", liked_from)):
        if value is not None:
            raise ValueError(f"{setting} is for a table of your own interactions, and {name} is none; leave it out.")
