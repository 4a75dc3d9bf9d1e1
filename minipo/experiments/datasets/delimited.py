"""Delimited text: CSV, RecBole's .inter and .item, MovieLens' .dat and .data.

Arrow reads them. What it would silently read wrongly, a quotation mark that swallows lines or a backslash before one,
is found here first.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.csv

from minipo.experiments.datasets.sources import UNQUOTED, Source

MOVIELENS = (".item", ".dat", ".data")  # MovieLens' endings: without a header, and some files in Latin-1


@dataclass(frozen=True)
class Form:
    """How a table is written. columns: its header, or a substitute. skip: the number of lines before the rows."""

    columns: list[str]
    separator: str
    skip: int


def form(source: Source, unnamed: Sequence[str]) -> Form:
    """How a table is written, judged by its first lines; columns is [] if it is empty.

    unnamed: the columns of MovieLens' files without a header, in their order; "..." at the end means any others.
    Raises ValueError if such a file has other columns; UnicodeDecodeError if the text is not in UTF-8.
    """
    separator = first = ""
    skip = 0
    with source.lines("replace" if source.ending in MOVIELENS else "strict") as lines:
        for line in lines:
            skip += 1
            if not separator and (excel := re.fullmatch(r"sep=(.)\s*", line)):
                separator = excel[1]
            elif line.strip():
                first = line
                break
    if not first:
        return Form([], ",", skip)
    if source.ending == ".dat" and "::" in first:
        separator, cells = "::", first.rstrip("\r\n").split("::")
    else:
        separator = separator or delimiter(first)
        line = first.rstrip("\r\n")
        cells = line.split(separator) if source.ending in UNQUOTED else next(csv.reader([line], delimiter=separator))
    if source.ending not in MOVIELENS or not cells[0].strip().isdecimal():
        return Form(cells, separator, skip)
    named = [name for name in unnamed if name != "..."]
    if len(cells) < len(named) or (len(cells) > len(named) and "..." not in unnamed):
        raise ValueError(
            f"{source} has no header and {len(cells)} columns, where MovieLens has {', '.join(named)}; write a first "
            f"line that names the columns."
        )
    return Form([*named, *(f"column {place + 1}" for place in range(len(named), len(cells)))], separator, skip - 1)


def delimiter(header: str) -> str:
    """The separator of a table with this first line; spreadsheets write that of their locale."""
    return max(",;\t|", key=header.count)


def quoting(source: Source, written: Form, names: Sequence[int]) -> tuple[dict[str, Any], str]:
    """How a table quotes its cells, as Arrow's ParseOptions; and a sentence for the report, or "".

    names: positions of the columns whose cells are names, which cannot span lines.
    Raises ValueError, which names the line, where a quotation mark does not enclose its cell.
    """
    unquoted: dict[str, Any] = {"quote_char": False, "newlines_in_values": False}
    if source.ending in UNQUOTED or not has(source, b'"'):
        return unquoted, ""
    with source.lines("replace") as lines:
        broken, spanning = _broken(lines, written.separator, names)
    # A stray mark may be closed by the next stray one: then the lines between them are ordinary rows.
    even = (broken or spanning) and _even(source, written)
    if not broken and not (spanning and even):
        return {"newlines_in_values": True}, ""
    if written.separator == "\t" and even:
        return (
            unquoted,
            "Quotation marks were read as ordinary characters, because they do not enclose cells in this file.",
        )
    if has(source, rb'\\"'):  # as Spark and MySQL write a quotation mark
        with source.lines("replace") as lines:
            otherwise, _ = _broken((line.replace('\\"', '""') for line in lines), written.separator, names)
        if not otherwise and not has(source, rb'\\(?!")'):
            return {"escape_char": "\\", "double_quote": False, "newlines_in_values": True}, ""
        if not otherwise:
            raise ValueError(
                f'{source} has \\" for a quotation mark and other backslashes too, which can be read in two ways; '
                f'write "" for a quotation mark (in Spark: option("escape", "\\"")).'
            )
    raise ValueError(
        f"{source}, line {broken or spanning:,}: a quotation mark does not enclose its cell, so that what follows it "
        f'would be lost; close the quotation mark at the end of its cell, and write one inside a name as "".'
    )


def _broken(lines: Iterable[str], separator: str, names: Sequence[int]) -> tuple[int | None, int | None]:
    """The first line of a row whose quotation marks are wrong, and that of the first row that spans lines."""
    reader = csv.reader(lines, delimiter=separator, strict=True)
    start, spanning = 1, None
    longest = csv.field_size_limit(2**31 - 1)
    try:
        for row in reader:
            if reader.line_num > start:
                if any(re.search(r"[\r\n]", row[place]) for place in names if place < len(row)):
                    return start, start
                spanning = spanning or start
            start = reader.line_num + 1
    except csv.Error:
        return start, spanning
    finally:
        csv.field_size_limit(longest)
    return None, spanning


def _even(source: Source, written: Form) -> bool:
    """Whether every line has as many cells as there are columns, if quotation marks are ordinary characters."""
    separators = len(written.columns) - 1
    with source.lines("replace") as lines:
        rows = islice(lines, written.skip, None)
        return all(line.count(written.separator) == separators for line in rows if line.strip())


def has(source: Source, pattern: bytes) -> bool:
    """Whether a pattern is somewhere within a line."""
    with source.open() as stream:
        return any(re.search(pattern, b"".join(lines)) for lines in iter(lambda: stream.readlines(2**20), []))


def read(source: Source, written: Form, wanted: Sequence[str], names: Sequence[str]) -> tuple[pa.Table, list[str]]:
    """The wanted columns of a table as text, those of `names` as dictionaries; and sentences for the report.

    Raises what `quoting` raises, and Arrow's errors.
    """
    options, note = quoting(source, written, [written.columns.index(name) for name in names])
    notes = [note] if note else []
    separator = written.separator
    repeating = pa.dictionary(pa.int32(), pa.string())  # each name once in memory
    types = {name: repeating if name in names else pa.string() for name in wanted}
    with source.open() as stream:
        content: Any = stream if source.packed else source.path
        if source.ending in MOVIELENS:
            text = stream.read()
            try:
                text.decode()
            except UnicodeDecodeError:
                text = text.decode("latin-1").encode()
                notes.append(f"{source.name} was read as Latin-1, because it is not in UTF-8.")
            if separator == "::":  # Arrow takes one character
                text, separator = text.replace(b"::", b"\x1f"), "\x1f"
            content = pa.BufferReader(text)
        table = pa.csv.read_csv(
            content,
            read_options=pa.csv.ReadOptions(column_names=written.columns, skip_rows=written.skip),
            parse_options=pa.csv.ParseOptions(delimiter=separator, **options),
            convert_options=pa.csv.ConvertOptions(column_types=types, include_columns=list(types)),
        )
    return table, notes
