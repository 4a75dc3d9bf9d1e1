"""Delimited text: CSV, RecBole's .inter and .item, MovieLens' .dat and .data.

Python's csv module reads it: unlike pandas and Arrow, it can refuse a quotation mark that swallows lines.
"""

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from minipo.experiments.datasets.sources import UNQUOTED, Source

csv.field_size_limit(2**24)  # letters of a cell: a page's text or an embedding, in a column that is not read, is long
MOVIELENS = (".item", ".dat", ".data")  # MovieLens' endings: without a header, and some files in Latin-1


@dataclass(frozen=True)
class Form:
    """How a table is written.

    columns: its header, or a substitute. skip: the number of lines before the rows. quoted: whether quotation marks
    enclose cells, or are ordinary characters. replaced: what csv cannot read, and what stands for it.
    """

    columns: list[str]
    separator: str
    skip: int
    encoding: str
    quoted: bool
    replaced: tuple[str, str] | None = None


def form(source: Source, unnamed: Sequence[str]) -> Form:
    """How a table is written, judged by its first lines; columns is [] if it is empty.

    unnamed: the columns of MovieLens' files without a header, in their order; "..." at the end means any others.
    """
    encoding, quoted = _encoding(source), source.ending not in UNQUOTED
    separator, replaced = "", None
    with source.lines(encoding) as lines:
        for number, line in enumerate(lines, start=1):
            if not separator and (excel := re.fullmatch(r"sep=(.)\s*", line)):
                separator = excel[1]
            elif line.strip():
                first, skip = line.rstrip("\r\n"), number
                break
        else:
            return Form([], ",", 0, encoding, quoted)
    if source.ending == ".dat" and "::" in first:
        separator = "\x1f"  # csv takes one character
        replaced = ("::", separator)
        first = first.replace(*replaced)
    separator = separator or max(",;\t|", key=first.count)  # spreadsheets write that of their locale
    cells = next(csv.reader([first], delimiter=separator)) if quoted else first.split(separator)
    named = [name for name in unnamed if name != "..."]
    fits = len(cells) == len(named) or (len(cells) > len(named) and "..." in unnamed)
    headless = source.ending in MOVIELENS and cells[0].strip().isdecimal() and fits
    if headless:
        cells = [*named, *(f"column {place + 1}" for place in range(len(named), len(cells)))]
    return Form(cells, separator, skip - headless, encoding, quoted, replaced)


def _encoding(source: Source) -> str:
    if source.ending in MOVIELENS:
        try:
            with source.lines() as lines:
                deque(lines, maxlen=0)
        except ValueError:
            return "latin-1"
    return "utf-8-sig"


def forms(source: Source, written: Form) -> Iterator[Form]:
    """The form as given, and those that may fit if quotation marks do not enclose cells in it.

    In a table with tabs they may be ordinary characters; elsewhere they may be written as Spark and MySQL do, after a
    backslash.
    """
    yield written
    if written.quoted and written.separator == "\t":
        yield replace(written, quoted=False)
    if written.quoted:
        with source.lines() as lines:
            ambiguous = any(re.search(r'\\(?!")', line) for line in lines)  # a backslash may be one, or escape the next
        if not ambiguous:
            yield replace(written, replaced=('\\"', '""'))


def rows(source: Source, written: Form, names: Sequence[int] = ()) -> Iterator[list[str]]:
    """The cells of each row; blank lines are skipped.

    names: positions of the columns whose cells are names, which cannot span lines.
    Raises ValueError, which names the line, for a row that has not as many cells as there are columns, for a quotation
    mark that does not enclose its cell, and for a cell longer than `csv.field_size_limit`.
    """
    start, spanning = written.skip + 1, 0

    def misquoted(line: int) -> ValueError:
        return ValueError(
            f"{source}, line {line:,}: a quotation mark does not enclose its cell, so that what follows it would be "
            f'lost; close the quotation mark at the end of its cell, and write one inside a name as "".'
        )

    with source.lines(written.encoding) as text:
        lines: Iterable[str] = islice(text, written.skip, None)
        if written.replaced:
            lines = (line.replace(*written.replaced) for line in lines)
        reader = csv.reader(
            lines,
            delimiter=written.separator,
            quoting=csv.QUOTE_MINIMAL if written.quoted else csv.QUOTE_NONE,
            strict=True,
        )
        try:
            for row in reader:
                after = written.skip + reader.line_num + 1
                if after > start + 1:
                    spanning = spanning or start
                    if any(re.search(r"[\r\n]", row[place]) for place in names if place < len(row)):
                        raise misquoted(start)
                if row and len(row) != len(written.columns):
                    raise ValueError(
                        f"{source}, line {start:,} has {len(row):,} cells where the first line has "
                        f"{len(written.columns):,}; put names that hold the separator into quotation marks."
                    )
                if row:
                    yield row
                start = after
        except csv.Error as error:
            if "field limit" not in str(error):
                raise misquoted(start) from None
            raise ValueError(
                f"{source}, line {start:,}: a cell has more than {csv.field_size_limit()} characters, the limit here; "
                f"shorten it, leave its column out, or close the quotation mark that it begins with."
            ) from None
    if spanning:
        # A mark that seems to be closed some lines later may be a stray one, and the lines between them rows: so it is
        # where every line is a row if quotation marks are ordinary characters.
        with source.lines(written.encoding) as text:
            separators = (line.count(written.separator) for line in islice(text, written.skip, None) if line.strip())
            if all(found == len(written.columns) - 1 for found in separators):
                raise misquoted(spanning)
