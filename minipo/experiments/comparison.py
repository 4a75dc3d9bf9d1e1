"""Runs of any origin side by side: recorded ones with all their seeds, single ones, and the SFT level they start from.

A `Line` is one row of such a comparison: one setting with its runs, one per seed. Two lines are compared by `paired`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from minipo.evaluation import Interval, ranking_metrics
from minipo.experiments.configuration import PreferConfig, SFTConfig, decided, make_config, start_config
from minipo.experiments.records import ADDED, RESULTS, SETTINGS, Outcomes, Recorded, difference, row
from minipo.experiments.runs import DATA, Run, list_runs
from minipo.names import lookup

METRICS = {"hr@1": "HR@1", "hr@5": "HR@5", "ndcg@5": "NDCG@5", "mrr": "MRR", "reward_win_rate": "win rate"}
# What may make a difference between two lines: a table's settings except the seed, which pairs runs, and what else
# affects training. How often a run is evaluated, and on how many validation users, does not.
COMPARED = [
    *(name for name in SETTINGS if name != "seed"),
    "sft_seed", "dataset_seed", "rank", "batch_size", "accumulation", "template", "precision",
]  # fmt: skip
ENDS = {"difference": "mean", "low": "low", "high": "high"}  # columns of a table, of an `Interval`


@dataclass(frozen=True)
class Line:
    """One setting with its runs.

    settings: those of `SFTConfig` or `PreferConfig`, `kind` included, without the seed. runs: one row per run, from
    `records.row`. ranks: seed, or None for the SFT model that every seed starts from, to each test
    user's rank (users,); wins: the same for whether the user's reward is won; None where there is no reward or it was
    not recorded. users: the fingerprint of the dataset whose test users they are.
    """

    name: str
    settings: dict[str, Any]
    runs: pd.DataFrame
    ranks: dict[int | None, np.ndarray]
    wins: dict[int | None, np.ndarray] | None
    users: str

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs; SFT's own seed for the SFT model."""
        return [int(seed) for seed in self.runs["seed"]]

    def outcomes(self, metric: str = "hr@1") -> Outcomes:
        """Every test user's `metric` (one of METRICS) by seed; ValueError if there is no win rate."""
        lookup("metric", metric, METRICS)
        if metric == "reward_win_rate":
            if self.wins is None:
                raise ValueError("no win rate recorded")
            return {seed: won.astype(float) for seed, won in self.wins.items()}
        return {seed: ranking_metrics(rank)[metric] for seed, rank in self.ranks.items()}


def of_run(name: str, run: Run, dataset: str | None = None) -> Line:
    """A finished preference run as a line.

    dataset: a name for its data, instead of a file's path. Raises ValueError in one sentence if
    the run is unfinished, or if a file of its folder is missing or damaged.
    """
    settings, summary, users = asdict(run.config), run.summary, run.users
    absent = {"rank", "reward_win"} - {*users.columns}
    if absent or not {"hr@1", "dataset_fingerprint"} <= {*summary}:
        raise ValueError(f"The run in {run.folder} is damaged: its results are incomplete; train it again.")
    known = {} if dataset is None else {"dataset": dataset}
    seed = settings.pop("seed")
    return Line(
        name,
        settings | known,
        pd.DataFrame([row(run) | known]),
        {seed: users["rank"].to_numpy()},
        {seed: users["reward_win"].to_numpy()},
        str(summary["dataset_fingerprint"]),
    )


def of_recorded(name: str, recorded: Recorded, **query: Any) -> Line:
    """The recorded runs with these settings, one per seed, as a line.

    Raises ValueError unless the settings leave one run per seed, and if the grid does not say which data it is on.
    """
    runs = recorded.by_seed(**query)
    settings = recorded_settings(recorded, int(runs.index[0]))
    settings.pop("seed")
    won = None
    if recorded.wins is not None and not np.isnan(recorded.wins[runs.index]).any():
        won = dict(zip(runs["seed"], recorded.wins[runs.index], strict=True))
    ranks = dict(zip(runs["seed"], recorded.ranks[runs.index], strict=True))
    return Line(name, settings, runs, ranks, won, recorded.fingerprint)


def of_baseline(name: str, recorded: Recorded, baseline: str = "sft", **query: Any) -> Line:
    """The SFT model from which the recorded runs with these settings start, as a line: no preference training.

    baseline: its name in the grid, "sft" or "sft-10". Raises ValueError if there is no such baseline or no such run,
    and if the grid does not say which data it is on.
    """
    ranks = lookup("baseline", baseline, recorded.baselines)
    runs = recorded.rows(**query)
    runs = runs[runs["objective"] != "sft"]
    if runs.empty:
        raise ValueError(f"No recorded run has {query}.")
    started = make_config(PreferConfig, recorded_settings(recorded, int(runs.index[0])))
    config = start_config(started)
    assert config is not None  # a preference run's settings name its SFT run
    settings = asdict(decided(config, started))
    seed = settings.pop("seed")
    metrics = {metric: float(values.mean()) for metric, values in ranking_metrics(ranks).items()}
    known = {
        "dataset": config.dataset, "model": config.model, "tuning": config.tuning, "objective": "sft", "seed": seed,
        "sft_epochs": config.epochs, "sft_hr@1": metrics["hr@1"], **metrics,
    }  # fmt: skip
    table = pd.DataFrame([{column: known.get(column) for column in (*SETTINGS, *RESULTS)}])
    return Line(name, settings, table, {None: ranks}, None, recorded.fingerprint)


def older_data(recorded: Recorded) -> str:
    """A sentence if a grid was recorded before its dataset changed, else "".

    The SFT runs in data/sft, from which new runs start, are on today's data.
    """
    dataset, users = recorded.table["dataset"].iloc[0], recorded.fingerprint
    today = {run.summary["dataset_fingerprint"] for run in list_runs(DATA / "sft") if run.config.dataset == dataset}
    if today <= {users}:
        return ""
    return (
        f"Recorded on {dataset} as it was before (fingerprint {users}; data/README.md says what has changed), so not "
        "comparable with new runs."
    )


def recorded_settings(recorded: Recorded, number: int) -> dict[str, Any]:
    """All settings of the run in row `number` of a recorded table, as in its config.json."""
    if recorded.configs:
        return asdict(recorded.configs[number])
    run = recorded.table.loc[number].to_dict()
    run = dict(zip(ADDED, ("float32", "line"), strict=True)) | run  # what runs had when tables did not say it yet
    if run["objective"] == "sft":
        settings = {name: run[name] for name in ("dataset", "model", "tuning", "learning_rate", "seed", *ADDED)}
        steps = {"steps": int(run["steps"]), "start_epochs": run["sft_epochs"]}
        return asdict(make_config(SFTConfig, settings | steps))
    # A table with SFT runs, which have no clusters, has them as floats.
    settings = {name: type(getattr(PreferConfig, name))(run[name]) for name in (*SETTINGS, *ADDED)}
    evaluated = recorded.curves.query("run == @number and kind == 'evaluation' and step > 0")["step"]
    if len(evaluated):  # the table does not say how far apart evaluations are, its curves do
        settings["evaluate_every"] = int(evaluated.min())
    return asdict(make_config(PreferConfig, settings))


# ------------------------------------------------------------------------------------------------------- differences


@dataclass(frozen=True)
class Difference:
    """One line minus another, and what the two are paired over, in words."""

    interval: Interval
    paired_over: str


def paired(left: Line, right: Line, metric: str = "hr@1") -> Difference:
    """`metric` of left minus right: mean and 95 % interval over test users and the seeds on both sides.

    The SFT model is paired with every seed. Without a common seed each side's seeds are averaged for each user, and
    the interval is over users only. Raises ValueError, saying why, if the two cannot be compared.
    """
    if left.users != right.users or len({len(rank) for line in (left, right) for rank in line.ranks.values()}) > 1:
        raise ValueError("not comparable: other test users")
    ours, theirs = left.outcomes(metric), right.outcomes(metric)
    if None in ours or None in theirs:
        seeds = [seed for side in (ours, theirs) for seed in side if seed is not None]
        over = "users"
    else:
        seeds = [seed for seed in ours if seed is not None and seed in theirs]
        over = "users; no seed in common"
    if not seeds:
        averages: list[Outcomes] = [{None: np.mean([*side.values()], axis=0)} for side in (ours, theirs)]
        ours, theirs = averages
    elif len(seeds) == 1:
        over = f"users, seed {seeds[0]}"
    else:
        over = f"users, {len(seeds)} seeds"
    return Difference(difference(ours, theirs), over)


def curve_so_far(
    runs: Iterable[Run], negatives: Sequence[int], metric: str = "hr@1"
) -> tuple[pd.DataFrame, dict[str, Interval]]:
    """Those runs of a curve that are finished: plain and under DynamicPO, at each K of `negatives`, under one seed.

    Returns their table, `records.row` with `variant`, "plain" or "dynamic", and differences of `metric`, paired over
    users, each as soon as both its runs are there: "plain", the largest K minus the smallest, and "dynamic", DynamicPO
    minus plain at the largest. Raises ValueError as `of_run` does.
    """
    lines = {(line.settings["dynamic"], line.settings["negatives"]): line for line in (of_run("", run) for run in runs)}
    rows = [line.runs.iloc[0].to_dict() for line in lines.values()]
    table = pd.DataFrame(rows, columns=[*SETTINGS, *RESULTS])
    few, many = min(negatives), max(negatives)
    sides = {"plain": (("off", many), ("off", few)), "dynamic": (("on", many), ("off", many))}
    differences = {
        name: paired(lines[left], lines[right], metric).interval
        for name, (left, right) in sides.items()
        if left in lines and right in lines
    }
    return table.assign(variant=table["dynamic"].map({"off": "plain", "on": "dynamic"})), differences


# ------------------------------------------------------------------------------------------------------------- tables


def variant(settings: Mapping[str, Any]) -> str:
    """Which parts of DynamicPO are on, in the words of the figures: "plain", "DynamicPO", "selection alone", ..."""
    if settings["dynamic"] != "on" or (settings["select"], settings["adjust_beta"]) == ("off", "off"):
        return "plain"
    if settings["select"] == "off":
        return "β alone"
    if settings["adjust_beta"] == "off":
        return {"on": "selection alone"}.get(settings["select"], f"{settings['select']} |B|")
    return {"on": "DynamicPO"}.get(settings["select"], f"{settings['select']} |B| and β")


def table(
    lines: Sequence[Line], differences: Mapping[str, Difference | str], baseline: str, metric: str
) -> pd.DataFrame:
    """The comparison as a table of raw numbers, one row per line.

    Columns: name; COMPARED, None where a setting plays no part in the line; seeds; RESULTS, means over seeds; and the
    difference of `metric` to the line called `baseline` with its interval's ends, as fractions. differences: by name;
    a text says why there is none.
    """
    rows = []
    for line in lines:
        found = differences.get(line.name, "")
        interval = found.interval if isinstance(found, Difference) else None
        rows.append(
            {
                "name": line.name,
                **_that_matter(line),
                "seeds": "" if None in line.ranks else " ".join(map(str, line.seeds)),
                **{name: pd.to_numeric(line.runs[name]).mean() for name in RESULTS},
                "metric": metric,
                "baseline": baseline,
                **{name: getattr(interval, end, None) for name, end in ENDS.items()},
                "paired_over": found.paired_over if isinstance(found, Difference) else found,
            }
        )
    whole = [field.name for field in fields(PreferConfig) if type(field.default) is int and field.name in COMPARED]
    return pd.DataFrame(rows).astype(dict.fromkeys(ENDS, "float64") | dict.fromkeys(whole, "Int64"))


def _that_matter(line: Line) -> dict[str, Any]:
    """The settings of a line, None where they play no part in it."""
    settings = line.settings | line.runs.iloc[0].to_dict()
    idle = set()
    if settings["objective"] == "sft":
        idle = {"negatives", "dynamic", "select", "adjust_beta", "clusters", "beta", "margin", "sft_seed"}
    elif settings["dynamic"] == "off":
        idle = {"select", "adjust_beta", "clusters", "margin"}
    elif settings["adjust_beta"] == "off":
        idle = {"margin"}
    if settings["tuning"] != "lora":
        idle.add("rank")
    return {name: None if name in idle or pd.isna(settings.get(name)) else settings[name] for name in COMPARED}


def apart(compared: pd.DataFrame) -> tuple[list[str], dict[str, Any]]:
    """Which settings differ between the rows of `table`, and the value of each that is the same wherever it matters."""
    differing, same = [], {}
    for name in COMPARED:
        values = compared[name].dropna().unique()
        if len(values) > 1:
            differing.append(name)
        elif len(values):
            same[name] = values[0]
    return differing, same


def csv(compared: pd.DataFrame) -> bytes:
    """A table as CSV that is safe in a spreadsheet: text that looks like a formula begins with an apostrophe."""
    safe = compared.replace(r"^(\s*[=+\-@])", r"'\1", regex=True)
    return safe.to_csv(index=False).encode("utf-8-sig")  # with the byte order mark by which Excel recognises UTF-8
