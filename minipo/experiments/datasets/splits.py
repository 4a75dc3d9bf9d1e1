"""A dataset as users with a history and candidates, split into train, validation and test."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Int

# Endings of a file of one's own; text may be compressed, as in .csv.gz.
FILES = (".csv", ".tsv", ".inter", ".dat", ".data", ".jsonl", ".json", ".parquet", ".zip")
TITLES = (".csv", ".tsv", ".item", ".dat", ".jsonl", ".json", ".parquet")  # endings of a table of titles
ALMOST_ALL = 0.9  # of neighbouring liked items: more ties than that give a warning
TIES = {"file": False, "random": True}  # what decides among equal times; True if it is drawn


def ending(name: str) -> str:
    """The ending of a file's name in lower case, without the ".gz" of a compressed file: ".csv" for "a.csv.gz"."""
    path = PurePath(name.lower())
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


@dataclass(frozen=True)
class Interaction:
    """One user's line: what they took so far, and the candidates, one of which really came next.

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
            raise ValueError(f"User {self.user}: the candidate {twice!r} is listed more than once; list it once.")
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

    report: its size, and what was dropped and why, see `with_report`; not part of the dataset's identity.
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


def with_report(
    splits: Splits, dropped: Mapping[str, int], interactions: int | None = None, **more: Mapping[str, Any]
) -> Splits:
    """The splits with their data report: plain numbers under users, items, interactions, lengths, rows and dropped.

    lengths: the minimum, median and maximum number of items in a history. dropped: what was left out, and how many of
    each; zeros are not reported. interactions: the number of different (user, item) pairs in the lines; counted here if
    not given. more: what else it has. notes is empty here; it is for sentences on what was ignored, joined, or may be
    wrong.
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
            **more,
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
    """What a data report says about the order of rows, in words: ties in time, LLaRA rows away from their user's."""
    said = {}
    if (ties := report.get("ties")) and ties["tied"]:
        decides = "the order of the rows in the file" if ties["order"] == "file" else "chance, by the dataset's seed,"
        said["ties"] = (
            f"{ties['tied']:,} of {ties['neighbours']:,} neighbouring liked items of a user share their time: for "
            f"{_counted(ties['users'], 'user')} {decides} decides which is the test's answer (ties={ties['order']})"
            + "; warning: as nearly all do, the times hardly order the items; use finer ones"
            * (ties["tied"] > ALMOST_ALL * ties["neighbours"])
        )
    joined = report.get("joined", {"rows": 0, "loose": 0})
    if joined["rows"]:
        said["joined"] = (
            f"{_counted(joined['rows'], 'row')} with their user's rows elsewhere in the file, by their histories; "
            f"{joined['several']:,} of them fit several users, who count as one"
        )
    if joined["loose"]:
        loose = _counted(joined["loose"], "row")
        said["loose"] = f"{loose} whose history continues no other row, so their users may count as several"
    return said


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def canonical_numbers(interactions: Sequence[Interaction], items: Sequence[str]) -> Int[np.ndarray, "batch candidates"]:
    """Every interaction's candidates in canonical order, as positions in `items`.

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
