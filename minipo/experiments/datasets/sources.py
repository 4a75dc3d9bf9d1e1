"""Where a table is: a file, a member of a zip archive, or the parts of one table in a folder."""

import gzip
import zipfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path, PurePath
from typing import Any, BinaryIO, TextIO

from minipo.experiments.datasets.splits import ending

UNQUOTED = (".inter", ".item", ".dat", ".data")  # formats without quotation marks
TABLES = (".csv", ".tsv", ".jsonl", ".parquet", *UNQUOTED)
# Tables of interactions that are known by their names, to the names of their tables of titles.
TITLES_BESIDE = {
    "ratings.csv": "movies.csv",
    "rating.csv": "movie.csv",
    "ratings.dat": "movies.dat",
    "u.data": "u.item",
    "user_ratedmovies-timestamps.dat": "movies.dat",
    "user_taggedartists-timestamps.dat": "artists.dat",
}
LOGGED = ("_delta_log", ".hoodie")  # where a log says which files of the folder count


@dataclass(frozen=True)
class Source:
    """One table: a file, or a member of a zip archive, which is read in place and never unpacked to disk."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path} ({self.name})" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """Its name without folders."""
        return PurePath(self.member or self.path).name

    @property
    def ending(self) -> str:
        """Its name's ending, see `minipo.experiments.datasets.splits.ending`."""
        return ending(self.name)

    @contextmanager
    def open(self) -> Generator[BinaryIO]:
        """Its bytes, unpacked."""
        with ExitStack() as stack:
            if self.member:
                stream: Any = stack.enter_context(zipfile.ZipFile(self.path)).open(self.member)
            else:
                stream = self.path.open("rb")
            stack.enter_context(stream)
            if self.name.lower().endswith(".gz"):
                stream = stack.enter_context(gzip.open(stream))
            yield stream  # pyrefly: ignore[invalid-yield]

    @contextmanager
    def lines(self, encoding: str = "utf-8-sig") -> Generator[TextIO]:
        """Its text; lines keep their line endings. ValueError if it is in another encoding."""
        try:
            with self.open() as stream, TextIOWrapper(stream, encoding=encoding, newline="") as lines:
                yield lines
        except UnicodeDecodeError:
            raise ValueError(f"{self} is not text in UTF-8; save it as CSV in UTF-8.") from None


def find(path: Path) -> tuple[list[Source], Source | None]:
    """The parts of the table of interactions in a file, a folder or a zip archive; and its titles, if they are known.

    MovieLens' and HetRec's files are known by their names, and so is RecBole's NAME.inter with NAME.item. Otherwise all
    tables of a folder are parts of one, as Spark writes them. Only names are read.
    Raises ValueError in one sentence if there is no table, or more than one.
    """
    archive = not path.is_dir() and ending(path.name) == ".zip"
    if not archive and not path.is_dir():
        return [Source(path)], None
    if archive:
        try:
            with zipfile.ZipFile(path) as opened:
                names = _seen(opened.namelist())
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a readable zip archive ({error}); create it again.") from None
    else:
        names = files(path)
    tables = [name for name in names if ending(name) in TABLES and not (archive and ending(name) == ".parquet")]

    def source(name: str) -> Source:
        return Source(path, name) if archive else Source(path / name)

    known = [name for name in tables if PurePath(name).name.lower() in TITLES_BESIDE or ending(name) == ".inter"]
    if len(known) == 1:
        table = PurePath(known[0])
        beside = TITLES_BESIDE.get(table.name.lower(), table.name.split(".inter")[0] + ".item")
        titles = [name for name in names if PurePath(name) == table.parent / beside]
        return [source(known[0])], source(titles[0]) if titles else None
    parts = known or [name for name in tables if ending(name) != ".item"]
    if not parts:
        raise ValueError(
            f"{path} contains no table of interactions; give one whose name ends in {', '.join(TABLES[:4])}."
        )
    if len(known) > 1 or len({ending(name) for name in parts}) > 1:
        raise ValueError(
            f"{path} holds more than one table ({shown([PurePath(name).name for name in parts])}); "
            f"{'unpack it and ' * archive}name the file of the one to read."
        )
    return [source(name) for name in parts], None


def files(folder: Path) -> list[str]:
    """The files in a folder and its subfolders, sorted by name, without hidden ones.

    Raises ValueError if it is a table whose log says which files count.
    """
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    if any(part in LOGGED for name in names for part in name.split("/")):
        raise ValueError(f"{folder} is a table whose log says which of its files count; export it as one Parquet file.")
    return _seen(names)


def _seen(names: Iterable[str]) -> list[str]:
    """Sorted, without folders and the files that Spark and macOS write for themselves."""
    own = (".", "_")
    return sorted(name for name in names if not any(part.startswith(own) or not part for part in name.split("/")))


def shown(names: Sequence[str]) -> str:
    """Names from a file, shortened for a sentence."""
    cut = [name if len(name) <= 40 else name[:39] + "…" for name in names[:12]]
    return ", ".join(cut) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
