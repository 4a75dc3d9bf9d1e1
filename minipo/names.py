"""Sentences for users: of a name that is not among the known ones, and of an error of another library."""

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


def first_line(error: Exception) -> str:
    """What an error says, in one line, to be quoted in a sentence; its kind, if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
