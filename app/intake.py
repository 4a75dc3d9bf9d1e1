"""An upload, read within the limits.

`python app/intake.py UPLOAD RESULT` reads the file UPLOAD and writes what the page *Your data* shows of it to RESULT.
The worker starts it, in a process whose memory and time are limited, because nothing is known of a file before it is
read. What is wrong with a file is one sentence on standard error, and exit code 2.
"""

import csv
import sys
from pathlib import Path

import limits
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from minipo import files
from minipo.datasets import Splits, load_dataset, own
from minipo.figures import own_data

# What a file that is no text begins with.
SIGNATURES = {
    b"PAR1": "a Parquet file: let its name end in .parquet",
    b"PK\x03\x04": "a zip archive or an Excel workbook: save the table itself as CSV",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save the table itself as CSV",
}


def read(path: Path) -> Splits:
    """The dataset in an upload; ValueError in one sentence if it is none, or more than `limits` allows."""
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; bring a file with rows.")
    {".csv": check_csv, ".parquet": check_parquet, ".json": check_text}[path.suffix](path)
    splits = load_dataset(path)
    check_lines(path, splits)
    return splits


def check_text(path: Path) -> None:
    """Raises ValueError if the file is no text in UTF-8."""
    content = path.read_bytes()
    for start, what in SIGNATURES.items():
        if content.startswith(start):
            raise ValueError(f"{path} is {what}.")
    if b"\0" in content:
        raise ValueError(f"{path} holds NUL bytes, so it is binary or in UTF-16; save it as text in UTF-8.")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise ValueError(f"{path}, line {line:,} is not in UTF-8; save the file as text in UTF-8.") from None


def check_csv(path: Path) -> None:
    """Raises ValueError if the table has too many rows or columns, too long a cell, or rows of unequal length."""
    check_text(path)
    csv.field_size_limit(limits.CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        if not (header := file.readline()).strip():
            return  # whoever looks for the columns says that there are none
        delimiter = own.delimiter(header)
        file.seek(0)
        table = csv.reader(file, delimiter=delimiter)
        try:
            columns = len(next(table, []))
            if columns > limits.COLUMNS:
                raise ValueError(f"{path} has {columns:,} columns, and {limits.COLUMNS} is the limit; leave some out.")
            for rows, row in enumerate((row for row in table if row), start=1):
                if rows > limits.ROWS:
                    raise ValueError(f"{path} has more than {limits.ROWS:,} rows, the limit here; bring fewer.")
                if len(row) != columns:
                    raise ValueError(
                        f"{path}, line {table.line_num:,} has {len(row):,} cells where the first line has {columns:,}; "
                        f"put names that hold the separator into quotation marks."
                    )
        except csv.Error:
            raise ValueError(
                f"{path}, line {table.line_num:,}: a cell has more than {limits.CELL} letters, the limit here; shorten "
                f"it, leave its column out, or close the quotation mark that it begins with."
            ) from None


def check_parquet(path: Path) -> None:
    """Raises ValueError if the table has too many rows or columns, too long a name, or unpacks to too much.

    What the file says of itself is asked first; then text is read as Parquet packs it, each different value once, so
    that a small file cannot unpack to a large one.
    """
    try:
        with pa.parquet.ParquetFile(path) as file:
            about, schema = file.metadata, file.schema_arrow
            if len(schema) > limits.COLUMNS:
                raise ValueError(
                    f"{path} has {len(schema):,} columns, and {limits.COLUMNS} is the limit; leave some out."
                )
            if about.num_rows > limits.ROWS:
                raise ValueError(f"{path} has {about.num_rows:,} rows, and {limits.ROWS:,} is the limit; bring fewer.")
            unpacked = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
            if unpacked > limits.UNPACKED_MB * 2**20:
                raise ValueError(
                    f"{path} unpacks to {unpacked / 2**20:,.0f} MB, and {limits.UNPACKED_MB} MB is the limit; leave "
                    f"out columns other than {', '.join(own.NEEDED)} and rating."
                )
            texts = [field.name for field in schema if own.is_text(field.type)]
        with pa.parquet.ParquetFile(path, read_dictionary=texts) as file:
            for name in texts:
                for batch in file.iter_batches(columns=[name]):
                    values = batch.column(0).dictionary
                    longest = pa.compute.max(pa.compute.binary_length(values)).as_py() or 0
                    if longest > 4 * limits.CELL:  # bytes; a letter takes up to four
                        raise ValueError(
                            f"{path}: a cell of the column {own.shown([name])} has more than {limits.CELL} letters, "
                            f"the limit here; shorten it, or leave the column out."
                        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, MemoryError):
            raise
        raise ValueError(f"{path} is no Parquet file that can be read; save it anew.") from None


def check_lines(path: Path, splits: Splits) -> None:
    """Raises ValueError if there are too many lines, or a line or a name is too long; LLaRA files can have such."""
    lines = (*splits.train, *splits.validation, *splits.test)
    if len(lines) > limits.ROWS:
        raise ValueError(f"{path} has {len(lines):,} rows, and {limits.ROWS:,} is the limit; bring fewer.")
    if (longest := max(max(len(line.history), len(line.candidates)) for line in lines)) > limits.COLUMNS:
        raise ValueError(f"{path}: a row lists {longest:,} items, and {limits.COLUMNS} is the limit; list fewer.")
    if (letters := max(map(len, splits.items))) > limits.CELL:
        raise ValueError(f"{path}: a name has {letters:,} letters, and {limits.CELL} is the limit; shorten it.")


def main(upload: str, result: str) -> int:
    path = Path(upload)
    try:
        files.write_json(Path(result), own_data.overview(read(path)))
    except MemoryError:
        print("MemoryError", file=sys.stderr)  # the worker knows the limit
        return 1
    except ValueError as error:
        said = " ".join(str(error).replace(str(path.resolve()), upload).split())
        if upload not in said:  # not minipo's own words
            said = f"{upload} cannot be read ({said}); save it anew as CSV in UTF-8."
    except Exception as error:  # whatever a file does to the libraries that read it
        said = f"{upload} cannot be read ({type(error).__name__}); save it anew as CSV in UTF-8."
    else:
        return 0
    print(f"minipo: {said if len(said) <= 600 else said[:599] + '…'}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
