"""Columns of a table, cleaned: names without placeholders for missing ones, sortable times, ratings on a scale.

Everything that is decided here for the user is reported, by an error or by a sentence for the report.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from minipo.experiments.datasets.by_time import LIKED
from minipo.experiments.datasets.sources import shown

HIGHEST = 5  # the best rating, unless `liked_from` is given
MOST = float(np.finfo(float).max)

# What databases, pandas and spreadsheets write for a missing value, and what is never a name.
# The last two are MySQL's for a date.
MISSING = ("", "\\N", "NULL", "<NA>", "NaT", "#N/A", "0000-00-00", "0000-00-00 00:00:00")  # and "nan" in any case
# What may mean that, or be a name: there is a film "NA" and a band "None". In lower case.
DOUBTFUL = (
    "na", "n/a", "none", "null", "(null)", "[null]", "nil", "nat", "undefined", "unknown", "missing", "-", "--", "?",
    "-1", "#n/a", "#na", "#ref!", "#value!", "#name?", "#null!", "#div/0!",
)  # fmt: skip
# Days whose first second stands for "unknown" or "forever" where most times are recent: zero on the clocks of
# databases, spreadsheets and operating systems.
PLACEHOLDERS = np.array(
    ["0001-01-01", "1601-01-01", "1753-01-01", "1899-12-30", "1899-12-31", "1900-01-01", "1969-12-31", "1970-01-01",
     "9999-12-31"], dtype="datetime64[D]"
).astype(float)  # fmt: skip
LAST_32 = 2**31 - 1  # the last second of 32-bit clocks
LAST_64 = 9.2e18  # whatever the unit, the end of 64-bit ones
FIRST, LAST = 1e8, 4.1e9  # seconds since 1970: 1973 and 2099, between which recent times lie

WHOLE = re.compile(r"(-?\d+)(\.0+)?")


def names_of(column: pa.ChunkedArray, what: str) -> tuple[Int[np.ndarray, " rows"], list[str], list[str]]:
    """The names in a column of text with a dictionary: each row's position among them, -1 where there is no name; the
    names, sorted, each once; and sentences for the report.

    Surrounding spaces are stripped. Where all are whole numbers, 1 and 1.0 are the same: a column with a missing number
    is often written with decimals. what: user or item, for the sentences.
    """
    encoded = column.unify_dictionaries().combine_chunks()
    raw = [name.strip() for name in encoded.dictionary.to_pylist()]
    found = {name for name in raw if name not in MISSING and name.lower() != "nan"}
    whole = {name: number[1] for name in found if (number := WHOLE.fullmatch(name))}
    notes = []
    if twice := len(whole) - len(set(whole.values())):
        decision = "were joined" if len(whole) == len(found) else "count as two, because not all are numbers"
        notes.append(f"{twice:,} {what}s are written both as 1 and as 1.0 and {decision}.")
    if len(whole) == len(found):
        raw = [whole.get(name, name) for name in raw]
        found = set(whole.values())
    names = sorted(found)
    place = {name: number for number, name in enumerate(names)}
    places = np.array([*(place.get(name, -1) for name in raw), -1])  # the last one is for null
    rows = places[encoded.indices.fill_null(len(raw)).to_numpy(zero_copy_only=False)]
    if doubtful := [name for name in names if name.lower() in DOUBTFUL]:
        counted = [f'"{name}" ({(rows == place[name]).sum():,} rows)' for name in doubtful]
        notes.append(f"Read as {what}s: {shown(counted)}; if they mean missing, leave the cells empty.")
    return rows, names, notes


def ids_of(names: Sequence[str]) -> Int[np.ndarray, " names"]:
    """The users' own numbers if they have any, else 0, 1, 2, …"""
    if all(name.isdecimal() and len(name) < 19 for name in names):
        own = np.array([int(name) for name in names])
        if len(np.unique(own)) == len(own):  # "7" and "07" are two users
            return own
    return np.arange(len(names))


def times_of(
    label: str, column: pa.ChunkedArray
) -> tuple[Float[np.ndarray, " rows"], Bool[np.ndarray, " rows"], list[str]]:
    """A column's times from numbers of any kind, dates, or text of either: numbers that increase with time, nan for a
    missing time or a placeholder; where there was a placeholder; and sentences for the report.

    Raises ValueError, which begins with `label`, if a value is not a time, or if seconds and milliseconds are mixed.
    """
    kind = column.type
    if pa.types.is_duration(kind) or pa.types.is_time(kind) or pa.types.is_boolean(kind):
        raise ValueError(
            f"{label}: the column timestamp does not hold points in time ({kind}); write dates, or seconds since 1970."
        )
    values = _values(column)
    notes: list[str] = []
    dates = not pd.api.types.is_numeric_dtype(values)
    points, text = values, values.dtype == "str"
    if text:
        start = values.dropna().head(1000)
        dates = 2 * pd.to_numeric(start, errors="coerce").count() < len(start)
        points = values.str.removesuffix(" UTC")  # as BigQuery writes it
    if dates:
        zoned = values.str.contains(r":\d.*(?:Z|UTC|[+-]\d\d(?::?\d\d)?)$").sum() if text else 0
        if 0 < zoned < values.count():
            notes.append("Some times name a time zone and some do not; those that do not were taken for UTC.")
        points = pd.to_datetime(points, format="ISO8601", utc=True, errors="coerce")
        numbers = (points - pd.Timestamp(0, tz="UTC").as_unit(points.dt.unit)).dt.total_seconds()
    else:
        numbers = pd.to_numeric(values, errors="coerce")
    advice = "write seconds since 1970 throughout, or ISO 8601 throughout, such as 2024-03-31 18:00:00"
    found = _checked(label, "timestamp", values, numbers, MOST, advice)
    placeholders, said = _unlike_most(label, found, dates)
    return np.where(placeholders, np.nan, found), placeholders, notes + said


def _unlike_most(
    label: str, times: Float[np.ndarray, " rows"], dates: bool
) -> tuple[Bool[np.ndarray, " rows"], list[str]]:
    """Which times stand for none, where most are of our days; and a sentence on others that are not.

    dates: whether `times` are seconds; else their unit is guessed from the median.
    """
    positive = times[times > 0]
    middle = np.median(positive) if len(positive) else 0
    if middle < FIRST:  # positions in a sequence, days, years: nothing is known of these
        return np.zeros(len(times), dtype=bool), []
    unit = 1.0 if dates else 1000.0 ** int((np.log10(middle) - 8) // 3)
    seconds = times / unit
    day = np.floor(seconds / 86400)
    # At midnight in some time zone, or on the last day of all.
    midnight = np.isin(day, PLACEHOLDERS) & ((seconds % 900 == 0) | (day == PLACEHOLDERS[-1]))
    odd = (seconds < FIRST) | (seconds >= LAST)
    none = (seconds == LAST_32) | odd & (midnight | (times == -1) | (times >= LAST_64))
    odd &= ~none
    others = np.flatnonzero(odd & ((seconds >= 1000 * FIRST) | ((times >= FIRST) & (seconds < FIRST))))
    if len(others) and not dates:
        raise ValueError(
            f"{label}, row {others[0] + 1:,}: the timestamp {times[others[0]]:.0f} is in another unit than most, such "
            f"as {middle:.0f}, as in {len(others):,} row{'s' * (len(others) > 1)} in all; write seconds since 1970 "
            f"throughout."
        )
    note = f"{odd.sum():,} rows have a time before 1973 or after 2099; if it means missing, leave it empty."
    return none, [note] * bool(odd.any())


def ratings_of(
    label: str, column: pa.ChunkedArray, called: str, liked_from: float | None
) -> tuple[Float[np.ndarray, " rows"], list[str]]:
    """A column's ratings, nan where missing; and sentences for the report.

    called: the column's name in the file. liked_from: the lowest rating of a liked item; None for 4 of 5.
    Raises ValueError, which begins with `label`, if a value is not a rating, if one is above 5 and `liked_from` is not
    given, or if none is liked.
    """
    values = _values(column)
    called, least, highest = shown([called]), LIKED if liked_from is None else liked_from, MOST
    advice = "use numbers"
    if liked_from is None:
        highest = HIGHEST
        advice = (
            f"use ratings from 1 to {HIGHEST}, or leave the column out so that every row counts as liked; for another "
            f"scale, give the lowest rating that counts as liked (--liked-from)"
        )
    ratings = _checked(label, called, values, pd.to_numeric(values, errors="coerce"), highest, advice)
    if not (ratings >= least).any():
        raise ValueError(f"{label}: no {called} is {least:g} or more, so nothing counts as liked; {advice}.")
    zeros = int((ratings <= 0).sum())
    note = f"{zeros:,} rows have a {called} of 0 or less and count as not liked; if it means unrated, leave it empty."
    return ratings, [note] * bool(zeros and liked_from is None)


def _values(column: pa.ChunkedArray) -> pd.Series:
    """A column for pandas; text that means a missing time or rating is missing."""
    values = (column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column).to_pandas()
    if values.dtype != "str":
        return values
    text = values.str.strip().str.lower()
    missing = {*(name.lower() for name in MISSING), "nan", *DOUBTFUL} - {"-1"}
    return values.where(~text.isin(missing))


def _checked(
    label: str, column: str, values: pd.Series, numbers: pd.Series, highest: float, advice: str
) -> Float[np.ndarray, " rows"]:
    """The numbers; raises ValueError with the first value that is not a number, or is above the highest."""
    found = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.flatnonzero(values.notna().to_numpy() & ~((found >= -MOST) & (found <= highest)))
    if len(wrong):
        value = shown([str(values.iloc[wrong[0]])])
        raise ValueError(
            f"{label}, row {wrong[0] + 1:,}: the {column} {value!r} cannot be used, as in {len(wrong):,} row"
            f"{'s' * (len(wrong) > 1)} in all; {advice}."
        )
    return found
