"""Your own interactions: a CSV or Parquet file of user, item, timestamp and, if you like, rating.

user, item: any names. timestamp: numbers, or dates as ISO 8601 writes them. rating: 1 to 5, of which 4 and 5 count as
liked; without the column, every row does. Further columns are ignored.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
from jaxtyping import Float, Int

from . import Splits, catalog
from .by_time import LIKED, split_by_time

NEEDED = ("user", "item", "timestamp")
HIGHEST = 5  # the best rating


def read(path: Path, seed: int = 0, ties: str | None = None) -> Splits:
    """The file's splits by time, see `by_time.split_by_time`; 10 million rows take about a minute and 3 GB.

    What cannot be used is left out and counted in the report: rows without a user, item, time or rating; duplicate
    rows; and a user's later rows of an item, of which the first counts. Names lose blanks around them.
    Users keep their numbers if all are whole numbers, and are otherwise numbered in the order of their names.
    seed: of the negatives, of the candidates' order and of the order within ties. ties: see `by_time.split_by_time`.
    Raises ValueError, in one sentence that says what is wrong, where, and what to do, if the file cannot be read, lacks
    a column, holds a time or a rating that is none, or has too few users, items or rows of a user.
    """
    columns = _columns(path)
    users, user_names = _numbered(columns["user"])
    items, item_names = _numbered(columns["item"])
    times = _times(path, columns["timestamp"])
    liked = np.ones(len(times), dtype=bool)
    unrated = ~liked
    if "rating" in columns:
        ratings = _ratings(path, columns["rating"])
        liked, unrated = ratings >= LIKED, np.isnan(ratings)
    missing = {"user": users < 0, "item": items < 0, "timestamp": np.isnan(times), "rating": unrated}
    usable = ~np.logical_or.reduce(list(missing.values()))

    # Of a user's rows of one item the earliest stays, of several at that time a liked one: whatever the file's order,
    # which the rest keep.
    rows = np.flatnonzero(usable)
    pairs = users[rows] * len(item_names) + items[rows]
    order = np.lexsort((~liked[rows], times[rows], pairs))
    again, same_time = (np.diff(of[order], prepend=np.nan) == 0 for of in (pairs, times[rows]))
    rows = rows[np.sort(order[~again])]
    dropped = {
        **{f"rows without {column}": int(where.sum()) for column, where in missing.items()},
        "duplicate rows": int((again & same_time).sum()),
        "later rows of the same user and item": int((again & ~same_time).sum()),
        f"rows rated below {LIKED} (what they rate counts as met)": int((~liked[rows]).sum()),
    }
    if not len(rows):
        raise ValueError(f"{path} has no row with user, item and timestamp; bring one with rows.")
    try:
        return split_by_time(
            "own", _ids(user_names)[users[rows]], items[rows], times[rows], liked[rows], item_names, dropped, seed, ties
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def example(users: int = 300, seed: int = 0) -> pd.DataFrame:
    """Rows to try the format on: user, item, timestamp of invented users of the catalogue with this seed.

    One row in 50 lacks its item, one in 50 stands there twice, and one user in 20 has too few rows, as in files from
    real life.
    """
    random = np.random.default_rng(seed)
    rows = []
    for number, line in enumerate(catalog.fresh_users(seed, users)):
        taken = (*line.history, line.chosen)[: None if number % 20 else 4]
        start = pd.Timestamp("2025-01-01") + pd.Timedelta(hours=int(random.integers(5000)))
        hours = np.cumsum(random.integers(1, 200, len(taken)))
        rows += [
            (f"user {number}", item, start + pd.Timedelta(hours=int(hour)))
            for item, hour in zip(taken, hours, strict=True)
        ]
    table = pd.DataFrame(rows, columns=["user", "item", "timestamp"])
    few = len(table) // 50
    table.loc[table.sample(few, random_state=seed).index, "item"] = None
    table = pd.concat([table, table.sample(few, random_state=seed + 1)], ignore_index=True)
    return table.sort_values("timestamp", kind="stable", ignore_index=True)


def _columns(path: Path) -> dict[str, pa.ChunkedArray]:
    """The columns that count, by their names in small letters: user and item as dictionaries of text."""
    try:
        if path.suffix.lower() == ".parquet":
            schema = pa.parquet.read_schema(path)
            wanted = _wanted(path, schema.names)
            for name, column in wanted.items():
                if pa.types.is_nested(schema.field(name).type):
                    raise ValueError(
                        f"{path} cannot be read (the column {column} holds lists or records); bring one value a row."
                    )
            # Each different text once in memory: a small file could unpack to more than there is.
            texts = [name for name in wanted if is_text(schema.field(name).type)]
            table = pa.parquet.read_table(path, columns=list(wanted), read_dictionary=texts)
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                header = file.readline()
            separator = delimiter(header)
            wanted = _wanted(path, next(csv.reader([header], delimiter=separator), []))
            repeating = pa.dictionary(pa.int32(), pa.string())  # each name once in memory
            types = {name: repeating if column in ("user", "item") else pa.string() for name, column in wanted.items()}
            table = pa.csv.read_csv(
                path,
                parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
                convert_options=pa.csv.ConvertOptions(column_types=types, include_columns=list(types)),
            )
        columns = {column: table[name] for name, column in wanted.items()}
        for column, values in columns.items():
            named, packed = column in ("user", "item"), pa.types.is_dictionary(values.type)
            if named and not (packed and pa.types.is_string(values.type.value_type)):
                columns[column] = values.cast(pa.string()).dictionary_encode()
            elif packed and not named:
                columns[column] = values.cast(values.type.value_type)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8; save it as CSV in UTF-8.") from None
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise ValueError(f"{path} cannot be read ({str(error).splitlines()[0][:200]}); save it anew.") from None
    return columns


def delimiter(header: str) -> str:
    """What separates the cells of a CSV file with this first line; spreadsheets write the one of their country."""
    return max(",;\t", key=header.count)


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow column of this type holds text, or bytes, of any length."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        is_kind(kind)
        for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    )


def shown(names: Sequence[str]) -> str:
    """Names from a file as a sentence may hold them: not too long, not too many."""
    cut = [name if len(name) <= 40 else name[:39] + "…" for name in names[:12]]
    return ", ".join(cut) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _wanted(path: Path, found: list[str]) -> dict[str, str]:
    """Of the columns found, those that count: their name in the file, and in small letters."""
    if not any(name.strip() for name in found):
        raise ValueError(f"{path} is empty; bring a file with the columns {', '.join(NEEDED)}.")
    named = {name: name.strip().lower() for name in found}
    wanted = {name: column for name, column in named.items() if column in (*NEEDED, "rating")}
    if lacking := [column for column in NEEDED if column not in wanted.values()]:
        raise ValueError(
            f"{path} lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}; its columns are "
            f"{shown(found)}: rename them to {', '.join(NEEDED)} (and rating)."
        )
    if twice := [column for column in wanted.values() if [name.strip().lower() for name in found].count(column) > 1]:
        raise ValueError(f"{path} has more than one column {twice[0]}; keep one.")
    return wanted


def _numbered(column: pa.ChunkedArray) -> tuple[Int[np.ndarray, " rows"], list[str]]:
    """Each row's place among the different names, which are sorted; -1 where there is no name."""
    encoded = column.combine_chunks()
    raw = [name.strip() for name in encoded.dictionary.to_pylist()]
    names = sorted({name for name in raw if name and name.lower() != "nan"})
    place = {name: number for number, name in enumerate(names)}
    places = np.array([*(place.get(name, -1) for name in raw), -1])  # the last one is for null
    return places[encoded.indices.fill_null(len(raw)).to_numpy(zero_copy_only=False)], names


def _ids(names: list[str]) -> Int[np.ndarray, " users"]:
    """The users' own numbers if they have such, else 0, 1, 2, …"""
    numbers = np.arange(len(names))
    if all(name.isdecimal() and len(name) < 19 for name in names):
        own = np.array([int(name) for name in names])
        if len(np.unique(own)) == len(own):  # "7" and "07" are two users
            return own
    return numbers


def _times(path: Path, column: pa.ChunkedArray) -> Float[np.ndarray, " rows"]:
    """Numbers that grow with time, nan where there is none."""
    values = _blank_as_missing(column.to_pandas())
    if pd.api.types.is_string_dtype(values) or values.dtype == object:
        start = values.dropna().head(1000)
        if 2 * pd.to_numeric(start, errors="coerce").count() >= len(start):
            numbers = pd.to_numeric(values, errors="coerce")
        else:
            numbers = _seconds(pd.to_datetime(values, format="ISO8601", utc=True, errors="coerce"))
    elif pd.api.types.is_numeric_dtype(values):
        numbers = values
    else:
        numbers = _seconds(pd.to_datetime(values, utc=True, errors="coerce"))
    advice = "write seconds since 1970 throughout, or ISO 8601 throughout, such as 2024-03-31 18:00:00"
    return _checked(path, "timestamp", values, numbers, np.isfinite, advice)


def _seconds(dates: pd.Series) -> pd.Series:
    return (dates - pd.Timestamp(0, tz="UTC").as_unit(dates.dt.unit)).dt.total_seconds()


def _ratings(path: Path, column: pa.ChunkedArray) -> Float[np.ndarray, " rows"]:
    """Ratings up to 5, nan where there is none."""
    values = _blank_as_missing(column.to_pandas())
    ratings = _checked(
        path,
        "rating",
        values,
        pd.to_numeric(values, errors="coerce"),
        lambda numbers: numbers <= HIGHEST,
        f"bring ratings of 1 to {HIGHEST}, or leave the column out so that every row counts as liked",
    )
    if not (ratings >= LIKED).any():
        raise ValueError(
            f"{path}: no rating is {LIKED} or more, so nothing counts as liked; bring ratings of 1 to {HIGHEST}, or "
            f"leave the column out so that every row counts."
        )
    return ratings


def _blank_as_missing(values: pd.Series) -> pd.Series:
    return values.where(~values.str.strip().isin(["", "NaN", "nan"])) if values.dtype == "str" else values


def _checked(
    path: Path, column: str, values: pd.Series, numbers: pd.Series, fine: Any, advice: str
) -> Float[np.ndarray, " rows"]:
    """The numbers, unless some value stands for none, or for one that is not fine: the first of them is named."""
    found = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.flatnonzero(values.notna().to_numpy() & ~fine(found))
    if len(wrong):
        value = values.iloc[wrong[0]]
        raise ValueError(
            f"{path}, row {wrong[0] + 1:,}: the {column} {value!r} cannot be used, as in {len(wrong):,} row"
            f"{'s' * (len(wrong) > 1)} in all; {advice}."
        )
    return found
