"""Look a name up among the known ones, or say in one sentence which are known."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


def lookup(kind: str, name: str, known: Mapping[str, T]) -> T:
    """The entry of `known` called `name`.

    Raises ValueError, with the closest match and all known names, if there is none; `kind` says what was looked up
    ("objective", "dataset", "model").
    """
    if name in known:
        return known[name]
    raise ValueError(unknown(kind, name, known))


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The sentence for a name that is not among the known ones."""
    known = list(known)
    close = get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown {kind} {name!r}.{hint} Known: {', '.join(known)}."
