"""Files of JSON, Parquet and Markdown, and locks."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from filelock import BaseFileLock, FileLock

from minipo.folder import home, whole_file
from minipo.names import first_line

T = TypeVar("T")


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, atomically."""
    with whole_file(path) as draft:
        draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def fill_in(page: Path, command: str, text: str) -> None:
    """Write what `command` makes into a Markdown file, between a comment that names it and the next one, "end"."""
    begin, end = f"<!-- made by: {command} -->", "<!-- end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    with whole_file(page) as draft:
        draft.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])


def read_json(path: Path, kind: type = object) -> Any:
    """The JSON in `path`, an instance of `kind`; ValueError in one sentence if it is missing or damaged."""
    found = read(path, lambda path: json.loads(path.read_text(encoding="utf-8")), "remove its folder and run again")
    if not isinstance(found, kind):
        raise ValueError(f"{path} is damaged; remove its folder and run again.")
    return found


def read_parquet(path: Path) -> pd.DataFrame:
    """The table in `path`; ValueError in one sentence if it is missing or damaged."""
    return read(path, pd.read_parquet, "make it again")


def read(path: Path, reader: Callable[[Path], T], remedy: str) -> T:
    """What `reader` makes of a file; ValueError in one sentence, with the remedy, if it is missing or damaged."""
    try:
        return reader(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; make it again.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}); {remedy}.") from None


def locked(out: Path) -> BaseFileLock:
    """A lock on `out`: another process that wants the same run waits, and then finds it finished.

    The lock is the operating system's, so it ends with its process, however that ends.
    """
    name = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:16]
    return FileLock(home() / "locks" / f"{name}.lock")
