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
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pyarrow.json

from minipo.experiments.datasets import delimited
from minipo.experiments.datasets.sources import Source, shown

NAMES = ("user", "item", "title")  # the columns of names, which repeat
PEEKED = 1000  # JSON objects that determine a table's columns and their types
BLOCK = 16 * 2**20  # bytes; the limit of a JSON object
UNREADABLE = (
    pa.ArrowException, csv.Error, OSError, EOFError, zlib.error, zipfile.BadZipFile,
    RuntimeError,  # of an encrypted archive, or of JSON that is nested too deeply
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

    columns: by the layout's names; names as dictionaries of text. called: their names in the file. others: columns
    that were not read. notes: sentences for the report.
    """

    columns: dict[str, pa.ChunkedArray]
    called: dict[str, str]
    others: list[str]
    notes: list[str] = field(default_factory=list)


def read(sources: Sequence[Source], layout: Layout, folder: Path | None = None) -> Table:
    """The columns of a table whose parts are `sources`, which are in `folder` if there are several.

    Raises ValueError in one sentence if a part cannot be read, lacks a column, or has other columns than the first.
    """
    reading = _parquet if sources[0].ending == ".parquet" else _texts
    try:
        table = reading(sources, layout, folder)
        for column, values in table.columns.items():
            table.columns[column] = _as_needed(column, values)
    except UnicodeDecodeError:
        raise ValueError(f"{sources[0]} is not text in UTF-8; save it as CSV in UTF-8.") from None
    except UNREADABLE as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{sources[0]} cannot be read ({said}); save it again.") from None
    if len(sources) > 1:
        names = shown([source.name for source in sources])
        table.notes.append(f"{len(sources):,} files were read as parts of one table: {names}.")
    return table


def is_json_lines(path: Path) -> bool:
    """Whether a .json file has one object per line, as Amazon's and Yelp's reviews do, and no LLaRA rows."""
    try:
        with Source(path).lines() as lines:
            if lines.read(100).lstrip()[:1] != "{":  # LLaRA's may be one very long line
                return False
            lines.seek(0)
            first, second = [*islice(filter(str.strip, lines), 2), "", ""][:2]
        content = json.loads(first)
    except (*UNREADABLE, ValueError):
        return False
    return isinstance(content, dict) and "historyList" not in content and second.lstrip().startswith("{")


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow column of this type contains text or bytes."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        is_kind(kind)
        for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    )


def plain(name: str) -> str:
    """A column's name as in `Layout`: "User-ID", "userId" and RecBole's "user_id:token" are all "userid"."""
    return re.sub(r"[\s_-]+", "", re.sub(r":(token|float)(_seq)?$", "", name.strip().lower()))


def _wanted(source: Source, found: Sequence[str], layout: Layout) -> dict[str, str]:
    """Of the columns found, those that are used: the layout's name to the file's."""
    if not any(name.strip() for name in found):
        raise ValueError(f"{source} is empty; give a file with the columns {', '.join(layout.needed)}.")
    wanted = {}
    for column, others in layout.names.items():
        called = [name for name in found if plain(name) == column]
        if len(called) > 1:
            raise ValueError(f"{source} has more than one column {column}; keep one.")
        called = called or [name for name in found if plain(name) in others]
        if len(called) > 1:  # Amazon's reviews of 2023 have a second one, and say that the parent is the product
            called = [name for name in called if plain(name) != "asin"]
        if len(called) > 1:
            raise ValueError(
                f"{source} has more than one column that may be the {column}, {shown(called)}; rename the one that "
                f"counts to {column}."
            )
        if called:
            wanted[column] = called[0]
    if lacking := [column for column in layout.needed if column not in wanted]:
        advice = f"{', '.join(layout.needed)} (and {', '.join(set(layout.names) - set(layout.needed))})"
        headless = not wanted and any(name.strip().isdecimal() for name in found)
        raise LackingColumns(
            f"{source} lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}; its columns are "
            f"{shown(found)}: "
            + (f"write a first line that names them {advice}." if headless else f"rename them to {advice}.")
        )
    return wanted


def _others(found: Sequence[str], wanted: Mapping[str, str]) -> list[str]:
    """The columns that were not read, without pandas' index."""
    read = set(wanted.values())
    return [name for name in found if name.strip() and name not in read and not name.startswith("__index_level_")]


def _as_needed(column: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Names as dictionaries of text; other columns as they are, without a dictionary."""
    if isinstance(values.type, pa.BaseExtensionType):  # pandas' periods, whose numbers increase with time
        values = pa.chunked_array([chunk.storage for chunk in values.chunks], values.type.storage_type)
    packed = pa.types.is_dictionary(values.type)
    if column not in NAMES:
        return values.cast(values.type.value_type) if packed else values
    if packed and pa.types.is_string(values.type.value_type):
        return values
    if pa.types.is_floating(values.type):  # of which Arrow would write the large ones as 1e+15
        with suppress(pa.ArrowInvalid):  # not all are whole
            values = pa.compute.if_else(pa.compute.is_nan(values), None, values).cast(pa.int64())
    return values.cast(pa.string()).dictionary_encode()


def _parquet(sources: Sequence[Source], layout: Layout, folder: Path | None) -> Table:
    def opened(texts: Sequence[str]) -> pa.dataset.Dataset:
        # Each different text is in memory once: a small file could unpack to more than fits.
        return pa.dataset.dataset(
            [str(source.path) for source in sources],
            format=pa.dataset.ParquetFileFormat(dictionary_columns=list(texts)),
            partitioning="hive" if folder else None,  # the names of folders, such as rating=5, are columns too
            partition_base_dir=str(folder) if folder else None,
        )

    dataset = opened([])
    schema, fragments = dataset.schema, list(dataset.get_fragments())
    wanted = _wanted(sources[0], schema.names, layout)
    for name, column in wanted.items():
        if pa.types.is_nested(schema.field(column).type):
            raise ValueError(
                f"{sources[0]} cannot be read (the column {name} holds lists or records); write one value per row."
            )
    columns = fragments[0].physical_schema.names
    for source, fragment in zip(sources, fragments, strict=True):
        _check_part(source, columns, fragment.physical_schema.names)
    texts = [name for name in wanted.values() if name in columns and is_text(schema.field(name).type)]
    table = opened(texts).to_table(columns=list(wanted.values()))
    return Table({column: table[name] for column, name in wanted.items()}, wanted, _others(schema.names, wanted))


def _texts(sources: Sequence[Source], layout: Layout, folder: Path | None) -> Table:
    """Delimited text or JSON lines; empty parts, as Spark writes them, are ignored."""
    if folder and any("=" in name for source in sources for name in source.path.relative_to(folder).parts[:-1]):
        raise ValueError(f"{folder} has a column in its folders' names; save it again as Parquet, or as one file.")
    whole = [source for source in sources if len(sources) == 1 or not _is_empty(source)] or list(sources[:1])
    parts: list[pa.Table] = []
    wanted: dict[str, str] = {}
    columns: list[str] = []
    others: list[str] = []
    notes: list[str] = []
    for source in whole:
        if source.ending in (".jsonl", ".json"):
            part, wanted, found, said = _json(source, layout)
            columns = columns or list(wanted.values())  # the others may be missing from any object
            _check_part(source, columns, list(wanted.values()))
        else:
            part, wanted, found, said = _delimited(source, layout)
            columns = columns or found
            _check_part(source, columns, found)
        parts.append(part)
        others += _others(found, wanted)
        notes += said
    table = pa.concat_tables(parts, promote_options="permissive")
    columns_of = {column: table[name] for column, name in wanted.items()}
    return Table(columns_of, wanted, list(dict.fromkeys(others)), list(dict.fromkeys(notes)))


def _check_part(source: Source, columns: Sequence[str], found: Sequence[str]) -> None:
    """Raises ValueError for different columns, which Arrow would fill with nulls."""
    if {*found} != {*columns}:
        raise ValueError(
            f"{source} has different columns from the files before it ({shown(sorted({*found} ^ {*columns}))}), so "
            f"they are not parts of one table; name the file to read."
        )


def _is_empty(source: Source) -> bool:
    with source.open() as stream:
        return not stream.read(1)


Part = tuple[pa.Table, dict[str, str], list[str], list[str]]  # a table, see `_wanted`, all its columns, sentences


def _delimited(source: Source, layout: Layout) -> Part:
    written = delimited.form(source, layout.unnamed)
    wanted = _wanted(source, written.columns, layout)
    names = [name for column, name in wanted.items() if column in NAMES]
    table, notes = delimited.read(source, written, list(wanted.values()), names)
    return table, wanted, written.columns, notes


def _json(source: Source, layout: Layout) -> Part:
    """JSON lines; the first objects determine the columns and their types."""
    with source.lines() as lines:
        rows = list(_objects(source, islice(filter(str.strip, lines), PEEKED)))
    found = list(dict.fromkeys(name for row in rows for name in row))
    wanted = _wanted(source, found, layout)
    if "rating" in layout.names and "rating" not in wanted and len(rows) == PEEKED:
        ratings = "|".join(("rating", *layout.names["rating"]))
        if delimited.has(source, rf'"({ratings})"\s*:'.encode()):
            raise ValueError(f"{source} has ratings, but none in the first {PEEKED:,} rows; write them everywhere.")
    schema = pa.schema([(name, _type(source, name, [row.get(name) for row in rows])) for name in wanted.values()])
    with source.open() as stream:
        table = pa.json.read_json(
            stream,
            read_options=pa.json.ReadOptions(block_size=BLOCK),
            parse_options=pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    return table, wanted, found, []


def _objects(source: Source, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise ValueError(f"{source}, row {number}: this is not a JSON object; write one object per line.")
        yield content


def _type(source: Source, name: str, values: Sequence[Any]) -> pa.DataType:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {str}:
        return pa.string()
    if kinds <= {int, float}:
        return pa.float64() if float in kinds else pa.int64()
    raise ValueError(f"{source}: the column {shown([name])} holds neither text nor numbers throughout; write either.")
