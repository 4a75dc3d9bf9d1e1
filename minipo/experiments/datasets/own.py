"""Your own interactions: a table of user, item, timestamp and, if you like, rating, in one of many formats.

user, item: any names; for items that are numbers, a table of titles gives their names. timestamp: numbers, or ISO 8601
dates. rating: 1 to 5, of which 4 and 5 count as liked, or any scale with `liked_from`; without the column, every row
counts as liked. Further columns are ignored.

Formats: CSV and similar, RecBole's .inter, MovieLens' .dat, JSON lines, Parquet; folders and zip archives of these.
`minipo.experiments.datasets.tables` reads the columns, `minipo.experiments.datasets.columns` interprets them.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from minipo.experiments.datasets import catalog, tables
from minipo.experiments.datasets.by_time import LIKED, split_by_time
from minipo.experiments.datasets.columns import WHOLE, ids_of, names_of, ratings_of, times_of
from minipo.experiments.datasets.sources import Source, find, shown
from minipo.experiments.datasets.splits import Splits
from minipo.experiments.datasets.titles import named


def read(
    path: Path,
    seed: int = 0,
    *,
    ties: str | None = None,
    titles: Path | None = None,
    liked_from: float | None = None,
) -> Splits:
    """The splits by time of a table, see `by_time.split_by_time`; 10 million rows take about a minute and 3 GB.

    Unusable rows are left out and counted in the report: rows without a user, item, time or rating; duplicate rows; and
    a user's later rows of an item, of which the first counts. Spaces around names are stripped. Other decisions, and
    what may be wrong, are sentences under notes.
    Users keep their numbers if all are whole numbers, and are otherwise numbered in the order of their names.
    seed, ties: see `by_time.split_by_time`. titles: a table of items' ids and titles; without it, one beside the
    interactions with a known name. liked_from: the lowest rating that counts as liked, on any scale.
    Raises ValueError, in one sentence that says what is wrong, where, and what to do, if the file cannot be read, lacks
    a column, has a time or a rating that is not one, or has too few users, items or rows per user.
    """
    sources, beside = find(path)
    label = str(sources[0] if len(sources) == 1 else path)
    table = tables.read(sources, tables.INTERACTIONS, path if path.is_dir() else None)
    notes = [*table.notes, *_columns(table)]
    who, users, on_users = names_of(table.columns["user"], "user")
    what, items, on_items = names_of(table.columns["item"], "item")
    when, placeholders, on_times = times_of(label, table.columns["timestamp"])
    liked = np.ones(len(when), dtype=bool)
    unrated = ~liked
    least = LIKED if liked_from is None else liked_from
    if "rating" in table.called:
        ratings, said = ratings_of(label, table.columns["rating"], table.called["rating"].strip(), liked_from)
        liked, unrated = ratings >= least, np.isnan(ratings)
        notes += said
    elif liked_from is not None:
        others = f", such as {shown(table.others)}," * bool(table.others)
        raise ValueError(
            f"{label} has no column rating to compare with liked_from; rename the one with ratings{others} to "
            f"rating, or leave liked_from out."
        )
    missing = {
        "rows without user": who < 0,
        "rows without item": what < 0,
        "rows without timestamp": np.isnan(when) & ~placeholders,
        "rows with a placeholder such as 0 or 1900-01-01 for a timestamp": placeholders,
        "rows without rating": unrated,
    }

    # Of a user's rows of one item the earliest is kept, of several at that time a liked one, whatever the file's order;
    # the remaining rows keep that order.
    rows = np.flatnonzero(~np.logical_or.reduce(list(missing.values())))
    if not len(rows):
        raise ValueError(f"{label} has no row with user, item and timestamp; add such rows.")
    when, who, what, liked = when[rows], who[rows], what[rows], liked[rows]
    # Users and items that appear only in other rows do not count.
    (users_here, who), (items_here, what) = (np.unique(places, return_inverse=True) for places in (who, what))
    pairs = who * len(items_here) + what
    order = np.lexsort((~liked, when, pairs))
    again, same_time = (np.diff(of[order], prepend=np.nan) == 0 for of in (pairs, when))
    kept = np.sort(order[~again])
    when, who, what, liked = when[kept], who[kept], what[kept], liked[kept]
    dropped = {
        **{reason: int(where.sum()) for reason, where in missing.items()},
        "items that appear only in rows left out": len(items) - len(items_here),
        "duplicate rows": int((again & same_time).sum()),
        "later rows of the same user and item": int((again & ~same_time).sum()),
        f"rows rated below {least:g} (what they rate counts as met)": int((~liked).sum()),
    }

    ids = [items[place] for place in items_here]
    source = Source(titles) if titles else beside
    try:
        names, said = named(ids, source) if source else (ids, [])
        notes += said
    except tables.LackingColumns:
        if titles or not source:
            raise
        names = ids
        notes.append(f"{source.name} holds no titles.")
    if names is ids and all(WHOLE.fullmatch(name) for name in names):
        notes.append(
            "All items are numbers, which mean nothing to a language model; give a table of their titles (--titles)."
        )
    notes += [*on_users, *on_items, *on_times]
    try:
        splits = split_by_time(
            "own", ids_of([users[place] for place in users_here])[who], what, when, liked, names, dropped, seed, ties
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return replace(splits, report={**splits.report, "notes": [*splits.report["notes"], *notes]})


def _columns(table: tables.Table) -> list[str]:
    """What the report says about the columns: which were renamed, and which were not read."""
    notes = []
    renamed = [f"{name.strip()} as {column}" for column, name in table.called.items() if name.strip().lower() != column]
    if renamed:
        notes.append(f"Columns read: {', '.join(renamed)}.")
    if table.others:
        notes.append(f"Columns ignored: {shown(table.others)}.")
    if table.others and "rating" not in table.called:
        notes.append("Every row counts as liked; if an ignored column says which are, name it rating, with numbers.")
    return notes


def example(users: int = 300, seed: int = 0) -> pd.DataFrame:
    """Rows to try the format with: user, item, timestamp of invented users of the catalogue with this seed.

    One row in 50 lacks its item, one in 50 is a duplicate, and one user in 20 has too few rows, as in real files.
    """
    random = np.random.default_rng(seed)
    lines = catalog.fresh_users(seed, users)
    taken = [(*line.history, line.chosen)[: None if number % 20 else 4] for number, line in enumerate(lines)]
    names = [f"user {number}" for number in range(users)]
    table = pd.DataFrame({"user": names, "item": taken}).explode("item", ignore_index=True)
    hours = pd.Series(random.integers(1, 200, len(table))).groupby(table["user"]).cumsum()
    start = table["user"].map(dict(zip(names, random.integers(5000, size=users), strict=True)))
    table["timestamp"] = pd.Timestamp("2025-01-01") + pd.to_timedelta(start + hours, "h")
    few = len(table) // 50
    table.loc[table.sample(few, random_state=seed).index, "item"] = None
    table = pd.concat([table, table.sample(few, random_state=seed + 1)], ignore_index=True)
    return table.sort_values("timestamp", kind="stable", ignore_index=True)
