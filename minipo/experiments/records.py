"""Recorded grids: runs as tables with provenance, and their differences paired over users and seeds."""

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from minipo.evaluation import Interval, paired_interval, ranking_metrics
from minipo.evaluation import ranks as ranks_of
from minipo.experiments.configuration import CONFIGS, Config, make_config
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.datasets.splits import Splits
from minipo.experiments.files import read_json, read_parquet, write_json
from minipo.experiments.recorder import probe_table
from minipo.experiments.runs import DATA, Run, versions
from minipo.folder import whole_file
from minipo.names import lookup

RECORDED = DATA / "recorded"
SETTINGS = [
    "dataset", "model", "tuning", "objective", "negatives", "dynamic", "select", "adjust_beta", "clusters", "beta",
    "margin", "learning_rate", "seed", "steps", "sft_epochs",
]  # fmt: skip
ADDED = ["precision", "template"]  # settings that the oldest tables lack
RESULTS = [
    "train_loss", "pair_loss", "val_hr@1", "sft_hr@1", "hr@1", "hr@5", "ndcg@5", "mrr", "reward_win_rate",
    "boundary_share", "seconds",
]  # fmt: skip


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def row(run: Run) -> dict[str, Any]:
    """A run as a row of a sweep's table; an SFT run has the objective "sft", no negatives and more columns."""
    config, summary, more = asdict(run.config), run.summary, {}
    config["dataset"] = portable(config["dataset"])
    if config["kind"] == "sft":
        more = {"epochs": config["epochs"], "rows": config["rows"], "tokens": summary.get("tokens")}
        config |= {"objective": "sft", "negatives": 0, "dynamic": "off", "select": "off", "adjust_beta": "off"}
        config |= {"steps": summary["steps"], "sft_epochs": config["start_epochs"]}
    settings = {name: config.get(name) for name in (*SETTINGS, *ADDED)}
    return settings | {name: summary.get(name) for name in RESULTS} | more


def portable(dataset: str) -> str:
    """A dataset's name, or the path of one within minipo's repository as it is on every machine."""
    path = Path(dataset)
    inside = path.is_absolute() and path.is_relative_to(DATA.parent)
    return path.relative_to(DATA.parent).as_posix() if inside else dataset


@dataclass(frozen=True)
class RecordedRun:
    """A run as `record` writes it and `Recorded.runs` reads it back: its own folder may be gone."""

    config: Config
    row: Mapping[Any, Any]  # of the table
    users: pd.DataFrame  # of these columns, those of PER_USER are kept
    metrics: pd.DataFrame
    evaluation: pd.DataFrame
    fingerprint: str  # of its data
    start: str | None  # the fingerprint of the model that it started from


PER_USER = ("rank", "reward_win", "generated_hit")


def recorded_run(run: Run, **columns: Any) -> RecordedRun:
    """A finished run, to be recorded; columns: more of its test users'. Raises ValueError if its data have changed."""
    start = run.provenance.get("start_fingerprint")
    users, data = run.users.astype({"rank": np.int32}).assign(**columns), run.load_data().fingerprint
    return RecordedRun(run.config, row(run), users, run.metrics, run.evaluation, data, start)


Outcomes = dict[int | None, np.ndarray]  # seed, or None for a baseline, to a number for every test user (users,)


@dataclass(frozen=True)
class Recorded:
    """A recorded grid: one row per run in `table`, the test users' ranks in the rows of `ranks` (runs, users) and,
    where recorded, whether each user's reward is won in `wins` (runs, users; nan for SFT, which has no reward) and
    whether a greedy answer names the chosen item and no other candidate in `generated` (runs, users), the ranks under
    each of the `baselines` (users,), what was logged and evaluated during training in `curves` (whose
    `run` is the table's row), and the origin of it all in `provenance`."""

    table: pd.DataFrame
    ranks: np.ndarray
    baselines: dict[str, np.ndarray]
    curves: pd.DataFrame
    provenance: dict[str, Any]
    folder: Path
    wins: np.ndarray | None = None
    generated: np.ndarray | None = None

    @property
    def command(self) -> str:
        """The command that records this grid again; provenance.json has the one that was used then."""
        return f"python data/record.py {self.folder.name}"

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the runs' data; ValueError if it was not recorded."""
        found = self.provenance.get("dataset_fingerprint")
        if not isinstance(found, str):
            raise ValueError(
                f"The recorded grid {self.folder.name!r} does not say which data its runs are on: "
                f"{self.folder / 'provenance.json'} has no dataset_fingerprint; record it again."
            )
        return found

    def check_data(self, splits: Splits) -> None:
        """Raises ValueError in one sentence unless `splits` are the data that the runs are on."""
        if splits.fingerprint != self.fingerprint:
            raise ValueError(
                f"The recorded grid {self.folder.name!r} is on data with fingerprint {self.fingerprint}, and "
                f"{splits.name!r} has fingerprint {splits.fingerprint} now; record it again."
            )

    def rows(self, **query: Any) -> pd.DataFrame:
        """The table's rows with these settings; several values mean any of them."""
        table = self.table
        for name, value in query.items():
            column = lookup("column", name, {str(column): table[column] for column in table})
            table = table[column.isin(_values(value))]
        return table

    def by_seed(self, **query: Any) -> pd.DataFrame:
        """The table's rows with these settings; ValueError unless they are one run per seed."""
        rows = self.rows(**query)
        if rows.empty or rows.seed.duplicated().any():
            raise ValueError(f"{len(rows)} recorded runs have {query}: give settings that leave one run per seed.")
        return rows

    def outcomes(self, metric: str = "hr@1", **query: Any) -> Outcomes:
        """Every test user's `metric` (hr@1, hr@5, ndcg@5, mrr or, where recorded, reward_win_rate and generated_hit)
        by seed, in the runs with these settings.

        Raises ValueError unless the settings leave one run per seed.
        """
        rows = self.by_seed(**query)
        metrics = ranking_metrics(self.ranks[rows.index])
        if self.wins is not None:
            metrics["reward_win_rate"] = self.wins[rows.index]
        if self.generated is not None:
            metrics["generated_hit"] = self.generated[rows.index]
        return dict(zip(rows.seed, lookup("metric of a user", metric, metrics), strict=True))

    def baseline(self, name: str, metric: str = "hr@1") -> Outcomes:
        """Every test user's `metric` under a baseline: "sft", "oracle", "markov", "popularity" or "random"."""
        metrics = ranking_metrics(lookup("baseline", name, self.baselines))
        return {None: lookup("metric of a user", metric, metrics)}

    @cached_property
    def configs(self) -> list[Config]:
        """The runs' configurations, row by row; empty for grids recorded before December 2026.

        Raises ValueError if the runs are on files within the repository that are not there.
        """
        contents = [json.loads(text) for text in read_parquet(self.folder / "ranks.parquet").get("config", [])]
        for content in contents:
            if "/" in content["dataset"]:
                content["dataset"] = str(DATA.parent / content["dataset"])
        return [make_config(CONFIGS[content["kind"]], content) for content in contents]

    def runs(self) -> dict[Config, RecordedRun]:
        """Each run by its configuration, as far as they are recorded."""
        columns = read_parquet(self.folder / "ranks.parquet").to_dict("records") if self.configs else []
        rows, found = self.table.to_dict("records"), {}
        for number, (config, column) in enumerate(zip(self.configs, columns, strict=True)):
            curves = self.curves[self.curves.run == number].drop(columns="run")
            logged = {
                kind: lines.drop(columns="kind").dropna(axis=1, how="all") for kind, lines in curves.groupby("kind")
            }
            metrics, evaluation = (logged.get(kind, pd.DataFrame()) for kind in ("metrics", "evaluation"))
            users = pd.DataFrame({name: column[name] for name in PER_USER if column.get(name) is not None})
            found[config] = RecordedRun(
                config, rows[number], users, metrics, evaluation, self.fingerprint, column.get("start")
            )
        return found

    @property
    def probes(self) -> dict[int, Path]:
        """Row number to probe file, for the few runs that have one."""
        return {int(path.stem): path for path in sorted(self.folder.glob("probes/*.parquet"))}

    @property
    def scores(self) -> dict[int, Path]:
        """Row number to the file of the test users' log-probs, for the few runs that have one."""
        return {int(path.stem): path for path in sorted(self.folder.glob("scores/[0-9]*.parquet"))}

    def test_probe(self, row: int, user: int) -> pd.DataFrame:
        """One test user's candidates in the format of `Run.probe`, at step 0 and at the end of the run of that row.

        Step, user, candidate (0 = chosen), item, reference, policy (log-probs, nats); before the first step the policy
        is the reference. Raises ValueError if the run's log-probs of the test users were not recorded, or are damaged,
        if the data have changed since, or if there is no such test user.
        """
        if row not in self.scores:
            raise ValueError(
                f"The test users' log-probs of run {row} of the recorded grid {self.folder.name!r} were not recorded."
            )
        run = self.table.to_dict("index")[row]
        splits = load_dataset(run["dataset"])
        self.check_data(splits)
        users = [each.user for each in splits.test]
        if user not in users:
            raise ValueError(f"There is no test user {user}; they are numbered {min(users)} to {max(users)}.")
        place = users.index(user)
        sft = self.folder / "scores" / "sft.parquet"
        reference, policy = (read_parquet(path).to_numpy() for path in (sft, self.scores[row]))
        if not reference.shape == policy.shape == (len(users), len(splits.test[place].candidates)):
            raise ValueError(f"The log-probs in {self.folder / 'scores'} are damaged; make them again.")
        steps = {0: reference[[place]], int(run["steps"]): policy[[place]]}
        return probe_table(splits.test[place : place + 1], steps, reference[[place]])


def record(
    folder: Path,
    runs: Sequence[Run | RecordedRun],
    baselines: dict[str, np.ndarray],
    probed: Sequence[Run] = (),
    **provenance: Any,
) -> Recorded:
    """Write `runs` as a recorded grid into `folder`, with the probes of `probed`, and read it back.

    baselines: test users' ranks (users,) under each. provenance: further entries of provenance.json, to which the
    data's fingerprint, versions, machine, date and commit are added. The JSON is written last, and an old one is
    removed first: without it, the grid does not load. Raises ValueError, before anything is written, if the runs are
    not all on the same data in today's version.
    """
    folder = Path(folder)
    entries = [run if isinstance(run, RecordedRun) else recorded_run(run) for run in runs]
    data = sorted({entry.fingerprint for entry in entries})
    if len(data) != 1:
        raise ValueError(
            f"A recorded grid holds runs on the same data, and these are on {len(data)}, with the fingerprints "
            f"{', '.join(data)}; record them separately."
        )
    (folder / "provenance.json").unlink(missing_ok=True)
    tables = {
        "table": pd.DataFrame([entry.row for entry in entries]),
        "ranks": pd.DataFrame(
            {
                name: [entry.users[name].to_numpy() if name in entry.users else None for entry in entries]
                for name in PER_USER
            }
            | {
                "config": [
                    json.dumps(asdict(entry.config) | {"dataset": portable(entry.config.dataset)}) for entry in entries
                ],
                "start": [entry.start for entry in entries],
            }
        ).dropna(axis=1, how="all"),
        "baselines": pd.DataFrame({name: rank.astype(np.int32) for name, rank in baselines.items()}),
        "curves": pd.concat(
            [
                table.assign(run=number, kind=kind)
                for number, entry in enumerate(entries)
                for kind, table in (("metrics", entry.metrics), ("evaluation", entry.evaluation))
            ],
            ignore_index=True,
        ),
    }
    for name, table in tables.items():
        with whole_file(folder / f"{name}.parquet") as draft:
            table.to_parquet(draft, index=False, compression="zstd")
    for old in (*folder.glob("probes/*.parquet"), *folder.glob("scores/*.parquet")):
        old.unlink()
    for run in probed:
        with whole_file(folder / "probes" / f"{list(runs).index(run)}.parquet") as draft:
            run.probe.to_parquet(draft, index=False, compression="zstd")
    content = provenance | {
        "dataset_fingerprint": data[0],
        "seeds": sorted(tables["table"].seed.unique().tolist()),
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "commit": _commit(),
    }
    write_json(folder / "provenance.json", content)
    return load_recorded(folder.name, folder)


def record_scores(recorded: Recorded, scores: Mapping[int, np.ndarray], sft: np.ndarray) -> None:
    """Write test users' log-probs beside a recorded grid, for `Recorded.test_probe`.

    scores: by row of the table, (users, candidates) in nats, chosen first, at the end of the run; sft: the same of the
    SFT run that they start from. Raises ValueError, before anything is written, if they do not rank the users as
    recorded: then they are from another run.
    """
    names: dict[str, tuple[np.ndarray, np.ndarray]] = {"sft": (sft, recorded.baselines["sft"])}
    names |= {str(row): (each, recorded.ranks[row]) for row, each in scores.items()}
    for name, (each, ranks) in names.items():
        if differ := int((ranks_of(each) != ranks).sum()):
            raise ValueError(
                f"{differ} test users have a different rank under the log-probs of {name} than recorded; record the "
                "grid again on this machine first."
            )
    for name, (each, _) in names.items():
        with whole_file(recorded.folder / "scores" / f"{name}.parquet") as draft:
            table = pd.DataFrame(each.astype(np.float32)).rename(columns=str)
            table.to_parquet(  # smaller so
                draft, index=False, compression="zstd", use_dictionary=False, column_encoding="BYTE_STREAM_SPLIT"
            )


def _commit() -> str | None:
    command = ["git", "-C", str(DATA.parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def load_recorded(grid: str, folder: Path | None = None) -> Recorded:
    """The recorded grid of that name in `data/recorded`, or in `folder`; ValueError in one sentence if it is missing or
    damaged."""
    folder = RECORDED / grid if folder is None else Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"The recorded grid {grid!r} is missing: there is no folder {folder}; make it with 'python data/record.py "
            f"{grid}'."
        )
    names = ("table", "ranks", "baselines", "curves")
    table, ranks, baselines, curves = (read_parquet(folder / f"{name}.parquet") for name in names)
    provenance = read_json(folder / "provenance.json", dict)
    users = {len(row) for name in PER_USER if name in ranks for row in ranks[name].dropna()}
    if (
        not {*SETTINGS, *RESULTS} <= {*table.columns}
        or len(table) != len(ranks)
        or "rank" not in ranks
        or users != {len(baselines)}
    ):
        raise ValueError(
            f"The recorded grid in {folder} is damaged: its files do not fit together; make it again with 'python "
            f"data/record.py {folder.name}'."
        )
    nothing = np.full(len(baselines), np.nan)
    wins, generated = (
        np.stack([nothing if row is None else np.asarray(row, float) for row in ranks[name]]) if name in ranks else None
        for name in PER_USER[1:]
    )
    return Recorded(
        table,
        # Older files have 8-bit ranks, whose sums and differences overflow.
        np.stack(ranks["rank"].to_list()).astype(np.int32),
        {str(name): rank.to_numpy(np.int32) for name, rank in baselines.items()},
        curves,
        provenance,
        folder,
        wins,
        generated,
    )


def check_same_data(first: Recorded, *others: Recorded) -> None:
    """Raises ValueError in one sentence if the runs of recorded grids that are to be compared are on different data."""
    for other in others:
        if other.fingerprint != first.fingerprint:
            raise ValueError(
                f"The recorded grids {first.folder.name!r} and {other.folder.name!r} are on different data (with "
                f"fingerprints {first.fingerprint} and {other.fingerprint}), so their users cannot be paired; record "
                "the older one again."
            )


def difference(left: Outcomes, right: Outcomes) -> Interval:
    """The mean of left minus right over test users and seeds, with a 95 % interval; paired by user and by seed.

    A baseline, which has no seed, is paired with every seed of the other side. Raises ValueError if no seed is on both.
    """
    if None in left and None not in right:
        left = dict.fromkeys(right, left[None])
    elif None in right:
        right = dict.fromkeys(left, right[None])
    seeds = [seed for seed in left if seed in right]
    if not seeds:
        raise ValueError("The two sides have no seed in common, so their runs cannot be paired.")
    return paired_interval(np.stack([left[seed] - right[seed] for seed in seeds]))
