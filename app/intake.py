"""An upload, read within the limits.

The worker calls `main` in a process with limited memory and time, because the file may be hostile.
"""

import csv
import sys
import zipfile
from pathlib import Path

import limits
import pyarrow as pa
import pyarrow.parquet
from figures import own_data

from minipo.experiments import files
from minipo.experiments.datasets import delimited, tables
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.datasets.sources import Source, find
from minipo.experiments.datasets.splits import Splits


def read(path: Path) -> Splits:
    """The dataset in an upload; ValueError in one sentence if it is invalid, or more than `limits` allows."""
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; choose a file with rows.")
    before = csv.field_size_limit(limits.CELL)
    try:
        if path.suffix == ".parquet":
            check_parquet(path)
        elif tables.is_llara(path):
            check_text(Source(path), limits.UNPACKED_MB * 2**20)
        else:
            check_tables(path)
        splits = load_dataset(path)
    finally:
        csv.field_size_limit(before)
    check_lines(path, splits)
    return splits


def check_tables(path: Path) -> None:
    """Raises ValueError if the text tables in a file or an archive are more than `limits` allows."""
    sources, titles = find(path)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            if {member.compress_type for member in archive.infolist()} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                # Python unpacks others only in large pieces, whatever their size.
                raise ValueError(f"{path} does not use the usual zip compression (Deflate); create it again.")
    check_size(path, "tables", len(sources), limits.PARTS)
    room, rows = limits.UNPACKED_MB * 2**20, 0
    for source in [*sources, *([titles] if titles else [])]:
        content = check_text(source, room)
        room -= len(content)
        rows += max(map(content.count, (b"\n", b"\r")))  # of old Macs too
        if source.ending not in (".jsonl", ".json"):
            rows -= 1  # the header
            written = delimited.form(source, (tables.TITLES if source is titles else tables.INTERACTIONS).unnamed)
            check_size(path, "columns", len(written.columns), limits.COLUMNS)
        check_size(path, "lines", rows, limits.ROWS)


def check_text(source: Source, room: int) -> bytes:
    """The unpacked bytes of a table; ValueError if they are more than `room`, or not text."""
    try:
        with source.open() as stream:
            content = stream.read(room + 1)  # no more is unpacked
    except tables.UNREADABLE:
        raise ValueError(f"{source} cannot be unpacked; create it again, without a password.") from None
    if len(content) > room:
        raise ValueError(
            f"{source.path} unpacks to more than {limits.UNPACKED_MB} MB, the limit here; leave out some rows."
        )
    if b"\0" in content:
        raise ValueError(
            f"{source} holds NUL bytes, so it is not text in UTF-8; save it as CSV in UTF-8, or, if it is a Parquet "
            f"file or compressed, let its name end in .parquet, .gz or .zip."
        )
    return content


def check_parquet(path: Path) -> None:
    """Raises ValueError if a table has too many rows or columns, or unpacks to too much, by its own account.

    Text is read later with each different value once, so that a small file cannot unpack to a large one.
    """
    try:
        about = pa.parquet.read_metadata(path)
    except (pa.ArrowException, OSError):
        raise ValueError(f"{path} is not a readable Parquet file; save it again.") from None
    check_size(path, "columns", about.num_columns, limits.COLUMNS)
    check_size(path, "rows", about.num_rows, limits.ROWS)
    unpacked = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
    check_size(path, "MB when unpacked", unpacked // 2**20, limits.UNPACKED_MB)


def check_size(path: Path, what: str, found: int, limit: int) -> None:
    if found > limit:
        raise ValueError(f"{path} has {found:,} {what}, and {limit:,} is the limit here; leave some out.")


def check_lines(path: Path, splits: Splits) -> None:
    """Raises ValueError if there are too many lines, or a line or a name is too long, as LLaRA files may have."""
    lines = (*splits.train, *splits.validation, *splits.test)
    check_size(path, "rows", len(lines), limits.ROWS)
    longest = max(max(len(line.history), len(line.candidates)) for line in lines)
    check_size(path, "items in a row", longest, limits.COLUMNS)
    check_size(path, "characters in a name", max(map(len, splits.items)), limits.CELL)


def main(upload: str, result: str) -> int:
    """Read the file `upload` and write the content of the page *Your data* to `result`. Returns 0; an error in the file
    is one sentence on standard error, and 2."""
    path = Path(upload)
    try:
        files.write_json(Path(result), own_data.overview(read(path)))
    except MemoryError:
        print("MemoryError", file=sys.stderr)  # the worker knows the limit
        return 1
    except Exception as error:  # minipo's own, or any error of the libraries that read the file
        said = str(error) if isinstance(error, ValueError | csv.Error) else type(error).__name__
        said = " ".join(said.replace(str(path.resolve()), upload).split())
        if upload not in said:  # not minipo's own message
            said = f"{upload} cannot be read ({said}); save it again as CSV in UTF-8."
    else:
        return 0
    print(f"minipo: {said if len(said) <= 600 else said[:599] + '…'}", file=sys.stderr)
    return 2
