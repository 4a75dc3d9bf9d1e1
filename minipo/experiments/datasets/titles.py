"""Names of items: a table of titles for a table of ids."""

import numpy as np
import pandas as pd

from minipo.experiments.datasets import tables
from minipo.experiments.datasets.columns import names_of
from minipo.experiments.datasets.movielens import spoken, unique_titles
from minipo.experiments.datasets.sources import Source, shown


def named(ids: list[str], source: Source) -> tuple[list[str], list[str]]:
    """The title of each id in a table of titles, no two the same, see `unique_titles`; and sentences for the report.

    An id without a title remains an id; of several titles of an id, the first counts.
    Raises ValueError in one sentence if the table cannot be read, or has none of the ids.
    """
    table = tables.read([source], tables.TITLES)
    (item_of, items, _), (text_of, texts, _) = (names_of(table.columns[name], name) for name in ("item", "title"))
    rows = pd.DataFrame({"item": item_of, "title": text_of, "year": np.nan})
    if "year" in table.called:
        rows["year"] = pd.to_numeric(table.columns["year"].to_pandas(), errors="coerce")
    rows = rows[(rows["item"] >= 0) & (rows["title"] >= 0)].drop_duplicates(["item", "title"])
    several = int(rows["item"].duplicated().sum())
    known = rows.drop_duplicates("item").set_index("item")
    found = known.reindex(pd.Index(items).get_indexer(pd.Index(ids)))
    titled = found["title"].notna()
    if not titled.any():
        raise ValueError(
            f"{source} has no title for any of the items ({shown(ids[:3])}, …): the ids in it are others "
            f"({shown(items[:3])}, …); give the titles of these items."
        )
    titles = [
        " ".join(texts[int(title)].split()) if there else name
        for name, title, there in zip(ids, found["title"], titled, strict=True)
    ]
    years = ["" if np.isnan(year) else f"{year:.0f}" for year in found["year"].astype(float)]
    notes = [*table.notes, f"Titles of items are from {source.name}."]
    if untitled := int((~titled).sum()):
        notes.append(f"{untitled:,} items have no title there and are called by their id.")
    if several:
        notes.append(f"{several:,} further titles of ids that have one already were left out.")
    if shared := len(titles) - len(set(map(spoken, titles))):
        notes.append(f"{shared:,} titles belong to an earlier item too and were distinguished by year or number.")
    if moved := sum(spoken(title) != title for title in titles):
        notes.append(f'{moved:,} titles had their article moved to the front: "Piano, The" is "The Piano".')
    return unique_titles(titles, years), notes
