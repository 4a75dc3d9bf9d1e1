"""Tables of interactions, or of titles, read by column: delimited text, JSON lines, Parquet."""

import csv
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet

from minipo.experiments.datasets import delimited
from minipo.experiments.datasets.sources import Source, shown

NAMES = ("user", "item", "title")  # the columns of names, which repeat
UNREADABLE = (
    pa.ArrowException, csv.Error, OSError, EOFError, zlib.error, zipfile.BadZipFile,
    RuntimeError,  # of an encrypted archive, or of JSON that is nested too deeply
    OverflowError,  # of a number too large for Arrow
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Which columns are looked for in a table.

    names: each column's other names, as `plain` returns them. needed: the required ones. unnamed: the columns of
    MovieLens' files without a header, in their order; "..." means any others.
    """

    names: Mapping[str, tuple[str, ...]]
    needed: tuple[str, ...]
    unnamed: tuple[str, ...]


ITEM = (
    "itemid", "movieid", "bookid", "artistid", "trackid", "songid", "videoid", "productid", "articleid", "businessid",
    "gameid", "animeid", "newsid", "asin", "parentasin",
)  # fmt: skip
INTERACTIONS = Layout(
    {
        "user": ("userid", "uid", "reviewerid", "customerid", "visitorid"),
        "item": ITEM,
        "timestamp": ("time", "date", "datetime", "unixreviewtime", "unixtimestamp", "eventtime", "ratingtimestamp"),
        "rating": ("ratings", "overall", "stars", "score"),
    },
    needed=("user", "item", "timestamp"),
    unnamed=("user", "item", "rating", "timestamp"),
)
TITLES = Layout(
    {
        "item": (*ITEM, "id"),
        "title": (
            "name", "movietitle", "itemname", "itemtitle", "booktitle", "artistname", "trackname", "songtitle",
            "producttitle", "productname", "gamename", "appname",
        ),
        "year": ("releaseyear",),
    },
    needed=("item", "title"),
    unnamed=("item", "title", "..."),
)  # fmt: skip


class LackingColumns(ValueError):
    """A table can be read, but lacks the columns that are looked for."""


@dataclass
class Table:
    """What was read.

    columns: by the layout's names; names as dictionaries of text. called: their names in the file. found: the names of
    all columns in the file. notes: sentences for the report.
    """

    columns: pa.Table
    called: dict[str, str]
    found: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def others(self) -> list[str]:
        """The columns that were not read, without pandas' index."""
        rest = (name for name in self.found if name.strip() and name not in self.called.values())
        return [name for name in rest if not name.startswith("__index_level_")]


def read(sources: Sequence[Source], layout: Layout, folder: Path | None = None) -> Table:
    """The columns of a table whose parts are `sources`, which are in `folder` if there are several.

    Empty parts, as Spark writes them, are ignored.
    Raises ValueError in one sentence if a part cannot be read, lacks a column, or has other columns than the first.
    """
    reading = {".parquet": _parquet, ".jsonl": _json, ".json": _json}.get(sources[0].ending, _delimited)
    try:
        sources = [source for source in sources if not _is_empty(source)] or sources[:1]
        parts = [reading(source, layout, folder) for source in sources]
        columns = pa.concat_tables([part.columns for part in parts], promote_options="permissive")
    except UNREADABLE as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{sources[0]} cannot be read ({said}); save it again.") from None
    # Arrow would fill other columns with nulls. In JSON, any object may lack those that are not needed.
    names = [{*(part.called.values() if reading is _json else part.found)} for part in parts]
    for source, found in zip(sources, names, strict=True):
        if different := found ^ names[0]:
            raise ValueError(
                f"{source} has different columns from the files before it ({shown(sorted(different))}), so they are "
                f"not parts of one table; name the file to read."
            )
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    if len(sources) > 1:
        files = shown([source.name for source in sources])
        notes.append(f"{len(sources):,} files were read as parts of one table: {files}.")
    return Table(columns, parts[0].called, parts[0].found, notes)


def is_llara(path: Path) -> bool:
    """Whether a file's rows are LLaRA's, and not JSON lines as Amazon's and Yelp's reviews are."""
    if path.suffix.lower() != ".json":
        return False
    try:
        with Source(path).lines() as lines:
            first = next(filter(str.strip, lines), "")
        return not first.lstrip().startswith("{") or "historyList" in json.loads(first)
    except (*UNREADABLE, ValueError):
        return True


def plain(name: str) -> str:
    """A column's name as in `Layout`: "User-ID", "userId" and RecBole's "user_id:token" are all "userid"."""
    return re.sub(r"[\s_-]+", "", re.sub(r":(token|float)(_seq)?$", "", name.strip().lower()))


def _is_empty(source: Source) -> bool:
    with source.open() as stream:
        return not stream.read(1)


def _parquet(source: Source, layout: Layout, folder: Path | None) -> Table:
    names = pa.parquet.read_schema(source.path).names
    # The names of folders, such as rating=5, are columns too: text, because each file has only its own value of one.
    inside = source.path.relative_to(folder).parts[:-1] if folder else ()
    keys = [name.split("=")[0] for name in inside if "=" in name]
    dataset = pa.dataset.dataset(
        str(source.path),
        # Each different text is in memory once: a small file could unpack to more than fits.
        format=pa.dataset.ParquetFileFormat(dictionary_columns=names),
        partitioning=pa.dataset.partitioning(pa.schema([(key, pa.string()) for key in keys]), flavor="hive"),
        partition_base_dir=str(folder) if folder else None,
    )
    called = _wanted(source, dataset.schema.names, layout)
    return Table(_as_needed(source, called, dataset.to_table(list(called.values()))), called, dataset.schema.names)


def _delimited(source: Source, layout: Layout, folder: Path | None) -> Table:
    if folder and any("=" in name for name in source.path.relative_to(folder).parts[:-1]):
        raise ValueError(f"{folder} has a column in its folders' names; save it again as Parquet, or as one file.")
    written = delimited.form(source, layout.unnamed)
    called = _wanted(source, written.columns, layout)
    places = {column: written.columns.index(name) for column, name in called.items()}
    names = [place for column, place in places.items() if column in NAMES]
    errors, notes = [], []
    for fitting in delimited.forms(source, written):
        rows = map(itemgetter(*places.values()), delimited.rows(source, fitting, names))
        try:
            columns = _as_table(source, called, rows)
            break
        except ValueError as error:
            errors.append(error)
    else:
        raise errors[0]
    if fitting.encoding == "latin-1":
        notes.append(f"{source.name} was read as Latin-1, because it is not in UTF-8.")
    if written.quoted > fitting.quoted:
        notes.append(
            "Quotation marks were read as ordinary characters, because they do not enclose cells in this file."
        )
    return Table(columns, called, written.columns, notes)


def _json(source: Source, layout: Layout, folder: Path | None) -> Table:
    """JSON lines, which are read twice, because a column may be missing from any object."""
    found = list(dict.fromkeys(name for row in _objects(source) for name in row))
    called = _wanted(source, found, layout)
    rows = (tuple(map(row.get, called.values())) for row in _objects(source))
    return Table(_as_table(source, called, rows), called, found)


def _objects(source: Source) -> Iterator[dict[str, Any]]:
    with source.lines() as lines:
        for number, line in enumerate(filter(str.strip, lines), start=1):
            try:
                content = json.loads(line)
            except ValueError:
                content = None
            if not isinstance(content, dict):
                raise ValueError(f"{source}, row {number:,}: this is not a JSON object; write one object per line.")
            yield content


def _as_table(source: Source, called: Mapping[str, str], rows: Iterator[tuple[Any, ...]]) -> pa.Table:
    """The rows' cells by column, converted part by part, because they need more memory in Python than in Arrow."""
    parts = []
    while some := list(islice(rows, 10_000)):
        try:
            cells = pa.table([pa.array(values) for values in zip(*some, strict=True)], names=list(called.values()))
        except (pa.ArrowException, UnicodeEncodeError) as error:
            said = f"a column holds neither text nor numbers throughout ({error})"
            raise ValueError(f"{source} cannot be read: {said}; write either.") from None
        parts.append(_as_needed(source, called, cells))
    if not parts:  # a header without rows, as Spark writes for an empty partition
        none = pa.table({name: pa.array([], pa.string()) for name in called.values()})
        return _as_needed(source, called, none)
    return pa.concat_tables(parts, promote_options="permissive")


def _as_needed(source: Source, called: Mapping[str, str], table: pa.Table) -> pa.Table:
    """The columns by the layout's names: names as dictionaries of text, others as they are, without a dictionary."""
    columns = {}
    for column, name in called.items():
        values = table[name]
        if isinstance(values.type, pa.BaseExtensionType):  # pandas' periods, whose numbers increase with time
            values = pa.chunked_array([chunk.storage for chunk in values.chunks], values.type.storage_type)
        if pa.types.is_nested(values.type):
            raise ValueError(
                f"{source} cannot be read (the column {column} holds lists or records); write one value per row."
            )
        if pa.types.is_timestamp(values.type):  # in UTC, so that parts with and without a zone are one table
            values = values.cast(pa.timestamp(values.type.unit))
        packed = pa.types.is_dictionary(values.type)
        if column not in NAMES:
            columns[column] = values.cast(values.type.value_type) if packed else values
            continue
        if pa.types.is_floating(values.type):  # of which Arrow would write the large ones as 1e+15
            with suppress(pa.ArrowInvalid):  # not all are whole
                values = pa.compute.if_else(pa.compute.is_nan(values), None, values).cast(pa.int64())
        if not packed or not pa.types.is_string(values.type.value_type):
            values = values.cast(pa.string()).dictionary_encode()
        columns[column] = values
    return pa.table(columns)


def _wanted(source: Source, found: Sequence[str], layout: Layout) -> dict[str, str]:
    """Of the columns found, those that are used: the layout's name to the file's."""
    if not any(name.strip() for name in found):
        raise ValueError(f"{source} is empty; give a file with the columns {', '.join(layout.needed)}.")
    wanted = {}
    for column, others in layout.names.items():
        called = [name for name in found if plain(name) == column] or [name for name in found if plain(name) in others]
        if "parentasin" in map(plain, called):  # Amazon's reviews of 2023 say that the parent is the product
            called = [name for name in called if plain(name) != "asin"]
        if len(called) > 1:
            raise ValueError(
                f"{source} has more than one column that may be the {column}, {shown(called)}; keep one, or rename the "
                f"one that counts to {column}."
            )
        if called:
            wanted[column] = called[0]
    if lacking := [column for column in layout.needed if column not in wanted]:
        advice = f"{', '.join(layout.needed)} (and {', '.join(set(layout.names) - set(layout.needed))})"
        raise LackingColumns(
            f"{source} lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}; its columns are "
            f"{shown(found)}: rename them to {advice}, or write a first line that does."
        )
    return wanted
