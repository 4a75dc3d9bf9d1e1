"""MovieLens-100K (Harper and Konstan, 2015) by time: which film comes next for a person who liked these?

Its licence forbids redistribution, so it is fetched, never shipped.
"""

import csv
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from minipo.experiments.datasets.by_time import LIKED, split_by_time
from minipo.experiments.datasets.splits import Splits
from minipo.experiments.fetch import fetch

# "Postino, Il" and "Horseman on the Roof, The (Hussard sur le toit, Le)": the articles that the file moves to the end.
_MOVED = re.compile(r"([^()]+), (The|A|An|Il|La|Le|Les|L'|Der|Die|Das|Det|O)(?= \(|\)|$)")


def load(seed: int = 0, ties: str = "file") -> Splits:
    """MovieLens-100K as splits; fetched on first use.

    seed, ties: see `by_time.split_by_time`; runs are recorded in the file's order.
    """
    return read(fetch("ml-100k"), seed, ties)


def read(folder: Path, seed: int = 0, ties: str = "file") -> Splits:
    """The splits of the files ml-100k.inter and ml-100k.item (RecBole's format) in `folder`."""
    films = _table(folder / "ml-100k.item").sort_values("item_id", key=lambda ids: ids.astype(int))
    known = films[films["movie_title"] != "unkonwn"]  # spelt like this: the one film without title, year or class
    place = pd.Series(range(len(known)), index=known["item_id"])
    ratings = _table(folder / "ml-100k.inter")
    rated = ratings[ratings["item_id"].isin(place.index)]
    liked = rated["rating"].astype(float).to_numpy() >= LIKED
    return split_by_time(
        "ml-100k",
        users=rated["user_id"].astype(int).to_numpy(),
        items=place[rated["item_id"]].to_numpy(),
        times=rated["timestamp"].astype(float).to_numpy(),
        liked=liked,
        titles=unique_titles(known["movie_title"].tolist(), known["release_year"].tolist()),
        dropped={
            "films without a title": len(films) - len(known),
            "ratings of films without a title": len(ratings) - len(rated),
            f"ratings below {LIKED} (what they rate counts as met)": int((~liked).sum()),
        },
        seed=seed,
        ties=ties,
    )


def unique_titles(titles: list[str], years: list[str]) -> list[str]:
    """The titles as they are spoken ("Usual Suspects, The" is "The Usual Suspects"), no two equal.

    Films that share a title get their year if they have one (not ""), "Sabrina (1995)"; those that share it too,
    because the data list them twice, are numbered from the second on: "Chasing Amy (1997) #2".
    """
    said = [spoken(title) for title in titles]
    shared = Counter(said)
    dated = [
        f"{title} ({year})" if year and shared[title] > 1 else title for title, year in zip(said, years, strict=True)
    ]
    again: Counter[str] = Counter()
    unique: dict[str, None] = {}
    for title in dated:
        name = title
        while name in unique:
            again[title] += 1
            name = f"{title} #{again[title] + 1}"
        unique[name] = None
    return list(unique)


def spoken(title: str) -> str:
    """A title as it is spoken: "Usual Suspects, The" is "The Usual Suspects"."""
    return _MOVED.sub(lambda found: f"{found[2]} ".replace("' ", "'") + found[1], title)


def _table(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, sep="\t", dtype=str, quoting=csv.QUOTE_NONE, keep_default_na=False, encoding="utf-8")
    return table.rename(columns=lambda name: name.split(":")[0])  # the header says "user_id:token"
