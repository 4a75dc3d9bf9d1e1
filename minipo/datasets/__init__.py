"""Datasets by name: users' interactions, split into train, validation and test.

Every dataset arrives in the same form, so that training and evaluation never ask where it came from.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from jaxtyping import Int

from minipo.names import lookup


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
    """A dataset: interactions of users for training, validation and test, and all its items."""

    name: str
    train: tuple[Interaction, ...]
    validation: tuple[Interaction, ...]
    test: tuple[Interaction, ...]
    items: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of everything above: two datasets that differ anywhere differ here."""
        lines = [
            [(line.user, line.history, line.chosen, line.candidates) for line in split]
            for split in (self.train, self.validation, self.test)
        ]
        content = json.dumps([self.name, self.items, lines], separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()[:16]


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
    # Imported here because every dataset's module builds the classes above.
    from minipo.datasets import catalog

    return catalog.generate(seed)[1]


DATASETS: Mapping[str, Callable[[int], Splits]] = {"catalog": _catalog}


def load_dataset(name: str = "catalog", seed: int = 0) -> Splits:
    """The dataset called `name`; kept in memory, so that asking again costs nothing.

    seed: of the generator, for datasets that are generated.
    Raises ValueError, with the known names, if there is no such dataset.
    """
    return lookup("dataset", name, DATASETS)(seed)
