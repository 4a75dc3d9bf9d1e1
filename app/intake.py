"""An upload, read within the limits.

`python app/intake.py UPLOAD RESULT` reads the file UPLOAD and writes the content of the page *Your data* to RESULT. The
worker starts it in a process with limited memory and time, because the file may be hostile. An error in the file is one
sentence on standard error, with exit code 2.
"""

import csv
import io
import sys
import zipfile
from itertools import islice
from pathlib import Path

import limits
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from figures import own_data

from minipo.experiments import files
from minipo.experiments.datasets import delimited, tables
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.datasets.sources import Source, find, shown
from minipo.experiments.datasets.splits import Splits

# The first bytes of files that are not text.
SIGNATURES = {
    b"PAR1": "a Parquet file: let its name end in .parquet",
    b"PK\x03\x04": "a zip archive or an Excel workbook: save the table itself as CSV, or let an archive end in .zip",
    b"\x1f\x8b": "compressed with gzip: unpack it first, or let its name end in .gz",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save the table itself as CSV",
}


def read(path: Path) -> Splits:
    """The dataset in an upload; ValueError in one sentence if it is invalid, or more than `limits` allows."""
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; choose a file with rows.")
    if path.suffix == ".parquet":
        check_parquet(path)
    elif path.suffix == ".json" and not tables.is_json_lines(path):
        check_text(Source(path), limits.UNPACKED_MB * 2**20)
    else:
        check_tables(path)
    splits = load_dataset(path)
    check_lines(path, splits)
    return splits


def check_tables(path: Path) -> None:
    """Raises ValueError if the text tables in a file or an archive are more than `limits` allows."""
    if path.suffix == ".zip":
        check_archive(path)
    sources, titles = find(path)
    if len(sources) > limits.PARTS:
        raise ValueError(f"{path} holds {len(sources):,} tables, and {limits.PARTS} is the limit; choose one.")
    room = limits.UNPACKED_MB * 2**20
    texts: dict[Source, bytes] = {}
    for source in [*sources, *([titles] if titles else [])]:
        texts[source] = check_text(source, room)
        room -= len(texts[source])
    rows = 0
    for source, text in texts.items():
        lines = text.count(b"\n")
        if source.ending in (".jsonl", ".json") or lines > 10 * limits.ROWS:  # cells may span lines, but not this many
            rows += lines
        else:
            layout = tables.TITLES if source is titles else tables.INTERACTIONS
            rows += check_rows(source, layout, text.decode("utf-8-sig", "replace"))
        if rows > limits.ROWS:
            raise ValueError(f"{path} has more than {limits.ROWS:,} rows, the limit here; leave some out.")


def check_archive(path: Path) -> None:
    """Raises ValueError unless every member of a zip archive can be unpacked in pieces, as `check_text` does."""
    try:
        with zipfile.ZipFile(path) as archive:
            methods = {member.compress_type for member in archive.infolist()}
    except (zipfile.BadZipFile, OSError):
        raise ValueError(f"{path} is not a readable zip archive; create it again.") from None
    if not methods <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ValueError(f"{path} does not use the usual zip compression (Deflate); create it again.")


def check_text(source: Source, room: int) -> bytes:
    """The unpacked bytes of a table; ValueError if they are more than `room`, or not text in UTF-8."""
    try:
        with source.open() as stream:
            content = stream.read(room + 1)  # no more is unpacked
    except tables.UNREADABLE:
        raise ValueError(f"{source} cannot be unpacked; create it again, without a password.") from None
    if len(content) > room:
        raise ValueError(
            f"{source.path} unpacks to more than {limits.UNPACKED_MB} MB, the limit here; leave out some rows."
        )
    for start, what in SIGNATURES.items():
        if content.startswith(start):
            raise ValueError(f"{source} is {what}.")
    if b"\0" in content:
        raise ValueError(f"{source} holds NUL bytes, so it is binary or in UTF-16; save it as text in UTF-8.")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        if source.ending not in delimited.MOVIELENS:
            line = 1 + content.count(b"\n", 0, error.start)
            raise ValueError(f"{source}, line {line:,} is not in UTF-8; save the file as text in UTF-8.") from None
    return content


def check_rows(source: Source, layout: tables.Layout, text: str) -> int:
    """The number of rows of a table; ValueError for too many columns, a cell too long, or rows of unequal length."""
    csv.field_size_limit(limits.CELL)
    line = 1
    try:
        written = delimited.form(source, layout.unnamed)
        columns = len(written.columns)
        if columns > limits.COLUMNS:
            raise ValueError(f"{source} has {columns:,} columns, and {limits.COLUMNS} is the limit; leave some out.")
        options, _ = delimited.quoting(source, written, [])
        if written.separator == "::":
            text = text.replace("::", "\x1f")
        rows = csv.reader(
            islice(io.StringIO(text, newline=""), written.skip, None),
            delimiter="\x1f" if written.separator == "::" else written.separator,
            quoting=csv.QUOTE_MINIMAL if options.get("quote_char", True) else csv.QUOTE_NONE,
            escapechar=options.get("escape_char"),
            doublequote=options.get("double_quote", True),
        )
        count, line = 0, written.skip + 1
        for row in rows:
            line = rows.line_num + written.skip
            if not row:
                continue
            count += 1
            if count > limits.ROWS:
                raise ValueError(f"{source} has more than {limits.ROWS:,} rows, the limit here; leave some out.")
            if len(row) != columns:
                raise ValueError(
                    f"{source}, line {line:,} has {len(row):,} cells where the first line has {columns:,}; put names "
                    f"that hold the separator into quotation marks."
                )
            line += 1
    except csv.Error:
        raise ValueError(
            f"{source}, line {line:,}: a cell has more than {limits.CELL} characters, the limit here; shorten it, or "
            f"leave its column out."
        ) from None
    return count


def check_parquet(path: Path) -> None:
    """Raises ValueError if the table has too many rows or columns, too long a name, or unpacks to too much.

    The file's own metadata are checked first; then text is read as a dictionary, each different value once, so that a
    small file cannot unpack to a large one.
    """
    try:
        with pa.parquet.ParquetFile(path) as file:
            about, schema = file.metadata, file.schema_arrow
            if len(schema) > limits.COLUMNS:
                raise ValueError(
                    f"{path} has {len(schema):,} columns, and {limits.COLUMNS} is the limit; leave some out."
                )
            if about.num_rows > limits.ROWS:
                raise ValueError(f"{path} has {about.num_rows:,} rows, the limit is {limits.ROWS:,}; leave some out.")
            unpacked = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
            if unpacked > limits.UNPACKED_MB * 2**20:
                raise ValueError(
                    f"{path} unpacks to {unpacked / 2**20:,.0f} MB, and {limits.UNPACKED_MB} MB is the limit; leave "
                    f"out columns other than {', '.join(tables.INTERACTIONS.needed)} and rating."
                )
            texts = [field.name for field in schema if tables.is_text(field.type)]
        with pa.parquet.ParquetFile(path, read_dictionary=texts) as file:
            for name in texts:
                for batch in file.iter_batches(columns=[name]):
                    values = batch.column(0).dictionary
                    longest = pa.compute.max(pa.compute.binary_length(values)).as_py() or 0
                    if longest > 4 * limits.CELL:  # bytes; a letter takes up to four
                        raise ValueError(
                            f"{path}: a cell of the column {shown([name])} has more than {limits.CELL} characters, "
                            f"the limit here; shorten it, or leave the column out."
                        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, MemoryError):
            raise
        raise ValueError(f"{path} is not a readable Parquet file; save it again.") from None


def check_lines(path: Path, splits: Splits) -> None:
    """Raises ValueError if there are too many lines, or a line or a name is too long, as LLaRA files may have."""
    lines = (*splits.train, *splits.validation, *splits.test)
    if len(lines) > limits.ROWS:
        raise ValueError(f"{path} has {len(lines):,} rows, the limit is {limits.ROWS:,}; leave some out.")
    if (longest := max(max(len(line.history), len(line.candidates)) for line in lines)) > limits.COLUMNS:
        raise ValueError(f"{path}: a row lists {longest:,} items, and {limits.COLUMNS} is the limit; list fewer.")
    if (letters := max(map(len, splits.items))) > limits.CELL:
        raise ValueError(f"{path}: a name has {letters:,} characters, and {limits.CELL} is the limit; shorten it.")


def main(upload: str, result: str) -> int:
    path = Path(upload)
    try:
        files.write_json(Path(result), own_data.overview(read(path)))
    except MemoryError:
        print("MemoryError", file=sys.stderr)  # the worker knows the limit
        return 1
    except ValueError as error:
        said = " ".join(str(error).replace(str(path.resolve()), upload).split())
        if upload not in said:  # not minipo's own message
            said = f"{upload} cannot be read ({said}); save it again as CSV in UTF-8."
    except Exception as error:  # any error of the libraries that read the file
        said = f"{upload} cannot be read ({type(error).__name__}); save it again as CSV in UTF-8."
    else:
        return 0
    print(f"minipo: {said if len(said) <= 600 else said[:599] + '…'}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
