"""Grids of runs: trained on all cores, cached by configuration, resumable; recorded with provenance, and compared."""

from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from minipo.experiments.configuration import OWN, PreferConfig, make_config
from minipo.experiments.records import RESULTS, _values, row
from minipo.experiments.workers import train_all
from minipo.folder import whole_file


def grid(**settings: Any) -> list[PreferConfig]:
    """The configurations of a grid: settings of `PreferConfig`, each a value or a list of values, `seeds` for `seed`.

    Settings that give the same run, as all of `select` do with dynamic off, are listed once. A setting that belongs to
    one objective, such as SimPO's target_margin, is left out of the other objectives' cells.
    """
    settings["seed"] = settings.pop("seeds", settings.get("seed", 0))
    axes = {name: _values(value) for name, value in settings.items()}
    if empty := [name for name, choices in axes.items() if not choices]:
        raise ValueError(f"{empty[0]} has no values; give at least one.")
    cells: list[PreferConfig] = []
    for values in product(*axes.values()):
        cell: dict[str, Any] = dict(zip(axes, values, strict=True))
        others = {*axes.get("objective", ())} - {cell.get("objective")}
        cells.append(make_config(PreferConfig, {name: cell[name] for name in cell if OWN.get(name) not in others}))
    return list(dict.fromkeys(cells))


def sweep(
    *,
    out: Path | str | None = None,
    folder: Path | str | None = None,
    workers: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """Train every cell of a grid, `workers` at a time (default: one per core), and return the table of their results.

    settings: those of `PreferConfig`, each a value or a list of values; `seeds` for several seeds. A cell trained
    before with the same settings is not trained again, an interrupted one is resumed. out: a Parquet or CSV file for
    the table. folder: where the runs are kept, by default minipo's cache. In a script, call it under
    `if __name__ == "__main__":`, because the workers import the script.
    Returns one row per run: the columns of `SETTINGS`, its precision, further settings that differ, and `RESULTS`, of
    which the unprefixed metrics are on the test split.
    Raises ValueError for an invalid setting, before anything is trained; and what `train_all` raises.
    """
    if out is not None and Path(out).suffix not in (".parquet", ".csv"):
        raise ValueError(f"The table's file must end in .parquet or .csv, not {Path(out).name!r}; give it such a name.")
    configs = grid(**settings)
    runs = train_all(configs, workers=workers, progress=progress, folder=folder)
    table = pd.DataFrame([row(run) for run in runs])
    cells = pd.DataFrame([asdict(config) for config in configs])
    for name in cells.columns.difference(table.columns, sort=False):
        if len(set(cells[name])) > 1:  # else rows could look the same
            table.insert(len(table.columns) - len(RESULTS), name, cells[name])
    if out is not None:
        with whole_file(Path(out)) as draft:
            if draft.suffix == ".csv":
                table.to_csv(draft, index=False)
            else:
                table.to_parquet(draft, index=False)
    return table
