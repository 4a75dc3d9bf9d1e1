"""Load a dataset by name, or your own file."""

import math
from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from pathlib import Path

from minipo.experiments.datasets import catalog, llara, movielens, own, sources, tables
from minipo.experiments.datasets.splits import FILES, TIES, TITLES, Splits, ending, with_report
from minipo.names import lookup


@lru_cache(maxsize=4)
def _own(
    path: Path,
    versions: tuple[tuple[str, int, int], ...],
    seed: int,
    ties: str | None,
    titles: Path | None,
    liked_from: float | None,
) -> Splits:
    """The splits of the user's files; `versions`, names, modification times and sizes, tell when to read again."""
    if path.is_dir():
        names = sources.files(path)
        rows = [name for name in names if ending(name) == ".json"]
        others = [name for name in names if ending(name) in sources.TABLES]
        if rows and others:
            raise ValueError(
                f"{path} contains both JSON ({rows[0]}), which may be LLaRA rows, and tables ({others[0]}); name the "
                f"file to read, or a folder without the others."
            )
        is_llara = not others
    else:
        is_llara = tables.is_llara(path)
    if not is_llara:
        return own.read(path, seed, ties=ties, titles=titles, liked_from=liked_from)
    _check_settings(path, ties=ties, titles=titles, liked_from=liked_from)
    return llara.read(path, seed)


DATASETS: Mapping[str, Callable[..., Splits]] = {
    "catalog": cache(lambda seed: with_report(catalog.generate(seed)[1], {})),
    "ml-100k": cache(movielens.load),
    **{name: cache(partial(llara.load, name)) for name in ("lastfm", "goodreads", "steam")},
}


def load_dataset(
    name: str | Path = "catalog",
    seed: int = 0,
    *,
    ties: str | None = None,
    titles: str | Path | None = None,
    liked_from: float | None = None,
) -> Splits:
    """The dataset called `name`, or the one in a file of your own; kept in memory, so that asking again costs nothing.

    name: one of DATASETS; or the path of a table of user, item, timestamp (and rating), in many formats, a
    folder or a zip archive, see `datasets.own`; or that of LLaRA rows, a .json file or a folder of them, see
    `datasets.llara`.
    seed: of the generator, for datasets that are generated; of what is drawn here (negatives, users), for others.
    ties: what decides the order of a user's rows of equal times, "file" (the order of the rows) or "random" (chance, by
    the seed). None: "file" for ml-100k, on which runs are recorded; for a table of your own "random" where more than a
    tenth of neighbouring liked items tie, else "file". `report["ties"]` and `describe` say what was used.
    titles: for a table whose items are ids, a table of ids and titles. liked_from: for a table with ratings, the
    lowest that counts as liked, on any scale; without it, ratings are 1 to 5, of which 4 and 5 count.
    Raises ValueError in one sentence: an unknown name, a file that is missing or not what it should be, a seed below 0,
    ties, titles or liked_from for data to which they do not apply.
    """
    check_dataset(name, ties, titles, liked_from)
    if seed < 0:
        raise ValueError(f"The dataset's seed is {seed}; use a whole number of 0 or more.")
    if name in DATASETS:
        return DATASETS[str(name)](seed) if ties is None else DATASETS[str(name)](seed, ties)
    path = Path(name).expanduser().resolve()
    beside = None if titles is None else Path(titles).expanduser().resolve()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    files += [beside] if beside else []
    versions = tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    return _own(path, versions, seed, ties, beside, liked_from)


def check_dataset(
    name: str | Path,
    ties: str | None = None,
    titles: str | Path | None = None,
    liked_from: float | None = None,
) -> None:
    """Raise ValueError, in one sentence, if `name` is neither a known dataset nor a file that could be one, or if
    `ties`, `titles` or `liked_from` do not apply to it.

    Nothing is read or fetched.
    """
    if ties is not None:
        lookup("order of ties", ties, TIES)
    if liked_from is not None and not math.isfinite(liked_from):
        raise ValueError(f"liked_from must be a number, not {liked_from}.")
    path = Path(name).expanduser()
    known_kind = ending(path.name) in FILES
    if name in DATASETS:
        _check_settings(name, ties=None if name == "ml-100k" else ties, titles=titles, liked_from=liked_from)
    elif not path.exists():
        if known_kind or len(path.parts) > 1:
            raise ValueError(f"There is no file {name}; check the path, or name one of {', '.join(DATASETS)}.")
        lookup("dataset", str(name), DATASETS)
    elif not path.is_dir() and not known_kind:
        raise ValueError(f"{name} is not a file that minipo reads; give one whose name ends in {', '.join(FILES)}.")
    elif titles is not None and not Path(titles).expanduser().exists():
        raise ValueError(f"There is no file {titles}; check the path of the titles.")
    elif titles is not None and not (Path(titles).expanduser().is_file() and ending(str(titles)) in TITLES):
        raise ValueError(f"{titles} is not a file of ids and titles; give one whose name ends in {', '.join(TITLES)}.")


def _check_settings(name: str | Path, **settings: object) -> None:
    """Raises ValueError if a setting of tables is given for other data."""
    for setting, value in settings.items():
        if value is not None:
            raise ValueError(
                f"{setting} applies only to a table of your own interactions{' and to ml-100k' * (setting == 'ties')}, "
                f"which {name} is not; leave it out."
            )
