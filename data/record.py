"""Trains and records what data/ holds, from `recipes.py`; then writes README.md's tables and FINDINGS.md.

    python data/record.py             the catalogue: SFT runs, grids and the headline on further users, and the report
    python data/record.py findings    everything else: MovieLens-100K, SmolLM2-135M and β × γ, and the report
    python data/record.py NAME ...    only these: a folder of data/sft/ or of data/recorded/, or
        scores      test users' log-probs after the probed runs of objectives    recorded/objectives/scores/
        fresh       the headline differences on users that played no part        recorded/fresh.json
        ties        the headline on MovieLens-100K under other orders of ties    recorded/ties.json
        report      what all of them say                                         README.md, FINDINGS.md

Runs are cached by their settings and resume where they were cut off; MINIPO_HOME=$(mktemp -d) trains everything again.
MovieLens-100K and SmolLM2-135M are fetched on first use.
"""

import argparse
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import recipes
import report
from recipes import Recipe, Settings, choose, choose_more_sft

from minipo.evaluation import ranking_metrics, ranks
from minipo.experiments.configuration import (
    Config,
    PreferConfig,
    SFTConfig,
    decided,
    make_config,
    splits_of,
    start_config,
)
from minipo.experiments.datasets import baselines, catalog
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.files import write_json
from minipo.experiments.records import (
    RECORDED,
    Outcomes,
    Recorded,
    RecordedRun,
    load_recorded,
    record,
    record_scores,
    recorded_run,
)
from minipo.experiments.runs import DATA, Run, cache_folder, model_fingerprint, versions
from minipo.experiments.sweeps import grid
from minipo.experiments.training import sft_run, shipped
from minipo.experiments.users import named_hits, score
from minipo.experiments.workers import train_all, train_each


def load_current(name: str) -> Recorded:
    """A recorded grid whose settings new runs take; ValueError if it is on other data than theirs."""
    recorded = load_recorded(name)
    recorded.check_data(load_dataset(recorded.table["dataset"].iloc[0]))
    return recorded


def cells(recipe: Recipe, chosen: Settings) -> list[PreferConfig]:
    """The configurations of a recipe's preference runs, in their order."""
    return [config for each in recipe.grids for config in grid(**{**each, **recipe.shared, **chosen})]


def sft_cells(recipe: Recipe) -> list[SFTConfig]:
    """The configurations of a recipe's SFT runs from the bare model."""
    found = []
    for each in recipe.sft:
        settings = recipe.shared | each
        for values in product(*map(np.atleast_1d, settings.values())):
            found.append(make_config(SFTConfig, dict(zip(settings, values, strict=True))))
    return found


def planned(recipe: Recipe, load: Callable[[str], Recorded] = load_current) -> tuple[list[Config], Settings]:
    """The configurations of all its runs, "more SFT" last, and what provenance.json says of their settings."""
    provenance: Settings = {"rule": recipe.rule}
    chosen, more = {}, dict(recipe.more_sft)
    if recipe.chosen_by:
        settings = load(recipe.chosen_by)
        provenance["chosen"] = chosen = choose(settings)
        if more and "learning_rate" not in more:
            more["learning_rate"] = choose_more_sft(settings, chosen["sft_epochs"])
    runs = cells(recipe, chosen)
    if not more:
        return [*sft_cells(recipe), *runs], provenance
    fixed = {"dataset": runs[0].dataset, "model": runs[0].model, "steps": more["steps"]}
    lengths, seeds = (dict.fromkeys(getattr(run, name) for run in runs) for name in ("sft_epochs", "seed"))
    sft = [
        make_config(SFTConfig, {**fixed, "start_epochs": epochs, "learning_rate": rate, "seed": seed})
        for epochs, rate, seed in product(lengths, np.atleast_1d(more["learning_rate"]), seeds)
    ]
    return [*runs, *sft], {**provenance, "more_sft": more}


def baseline_ranks(configs: Sequence[Config]) -> dict[str, np.ndarray]:
    """Test users' ranks under every baseline and under the SFT runs from which the preference runs start."""
    splits = splits_of(configs[0])
    scores = {
        "random": baselines.random_scores(splits.test),
        "popularity": baselines.popularity_scores(splits.train, splits.test),
        "markov": baselines.markov_scores(splits.train, splits.test),
    }
    if configs[0].dataset == "catalog":
        scores["oracle"] = catalog.oracle(catalog.world(), splits.test)
    found = {name: ranks(values) for name, values in scores.items()}
    starts = {config.sft_epochs: config for config in configs if isinstance(config, PreferConfig)}
    for epochs, config in starts.items():
        name = "sft" if len(starts) == 1 else f"sft-{epochs:g}"
        found[name] = sft_run(config, progress=False).users["rank"].to_numpy()
    return found


def recorded_runs(name: str, data: str) -> dict[Config, RecordedRun]:
    """The runs of a grid that are recorded already, on another machine perhaps, if they are of the data with this
    fingerprint and start from the SFT run that is shipped for them now, if any is."""
    folder = RECORDED / name
    if not (folder / "provenance.json").is_file() or (recorded := load_recorded(name, folder)).fingerprint != data:
        return {}
    runs = recorded.runs()
    starts = {config: shipped(start) for config in runs if (start := start_config(config))}
    return {
        config: run
        for config, run in runs.items()
        if (start := starts.get(config)) is None or model_fingerprint(start.folder / "model") == run.start
    }


def make_grid(name: str) -> None:
    """Train a grid's runs and record them; those of a partial one as each ends."""
    recipe = recipes.GRIDS[name]
    configs, provenance = planned(recipe)
    probed = cells(recipe, {**provenance.get("chosen", {}), **recipe.probed}) if recipe.probed else []
    found: dict[Config, Run | RecordedRun] = {}
    found |= recorded_runs(name, splits_of(configs[0]).fingerprint) if recipe.partial else {}
    todo = [config for config in configs if config not in found]
    levels = {}
    for run in train_each(todo):
        config = next(config for config in todo if decided(config, run.config) == run.config)
        found[config] = recorded_run(run, generated_hit=generated_hits(run)) if recipe.generated else run
        if recipe.partial or len(found) == len(configs):
            levels = levels or baseline_ranks(configs)
            there = [config for config in configs if config in found]
            record(
                RECORDED / name,
                [found[config] for config in there],
                levels,
                [run for config in there if config in probed and isinstance(run := found[config], Run)],
                command=f"python data/record.py {name}",
                **provenance,
                missing=len(configs) - len(there),
            )


def generated_hits(run: Run) -> np.ndarray:
    """Whether greedy generation names each test user's chosen item and no other candidate, (users,) bool."""
    splits = run.load_data()
    return named_hits(*run.load_model(), splits.test, splits.items, run.config.template)


def make_sft(name: str) -> None:
    run = train_all([make_config(SFTConfig, recipes.SFT[name])])[0]
    shutil.rmtree(DATA / "sft" / name, ignore_errors=True)
    shutil.copytree(run.folder, DATA / "sft" / name)


def make_scores() -> None:
    """The probed runs' log-probs of every test user, so that any of them can be looked at closely."""
    recorded = load_current("objectives")
    configs, _ = planned(recipes.GRIDS["objectives"])
    runs = train_all([configs[row] for row in recorded.probes])
    users = load_dataset().test
    record_scores(
        recorded,
        {row: score(*run.load_model(), users) for row, run in zip(recorded.probes, runs, strict=True)},
        score(*sft_run(configs[0], progress=False).load_model(), users),
    )


def trained(
    queries: dict[str, Settings], rank: Callable[[Run], np.ndarray], **shared: Any
) -> tuple[dict[str, Outcomes], PreferConfig]:
    """HR@1 of each user by label and seed, in the runs of each query, and the configuration of one of these runs."""
    configs = {label: grid(**query, **shared) for label, query in queries.items()}
    train_all([config for each in configs.values() for config in each])
    found: dict[str, Outcomes] = {
        label: {config.seed: hit(rank(Run(cache_folder(config)))) for config in each} for label, each in configs.items()
    }
    return found, next(iter(configs.values()))[0]


def hit(rank: np.ndarray) -> np.ndarray:
    """HR@1 of each user (users,)."""
    return ranking_metrics(rank)["hr@1"]


def means(found: dict[str, Outcomes]) -> dict[str, float]:
    return {label: float(np.mean(list(outcomes.values()))) for label, outcomes in found.items()}


def write_comparison(name: str, **content: Any) -> None:
    made = {"recorded": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions()}
    write_json(RECORDED / f"{name}.json", {"command": f"python data/record.py {name}", **content, **made})


def make_fresh() -> None:
    """The headline differences again, on users that no choice, of a setting or of the catalogue, can have used."""
    users, chosen = catalog.fresh_users(0, recipes.FRESH_USERS), choose(load_current("settings"))
    found, config = trained(
        recipes.FRESH, lambda run: ranks(score(*run.load_model(), users)), **recipes.FRESH_SHARED, **chosen
    )
    found["SFT"] = {None: hit(ranks(score(*sft_run(config, progress=False).load_model(), users)))}
    found["Markov"] = {None: hit(ranks(baselines.markov_scores(load_dataset().train, users)))}
    found["oracle"] = {None: hit(ranks(catalog.oracle(catalog.world(), users)))}
    differences = [[left, right, report.points(found[left], found[right])] for left, right in recipes.FRESH_DIFFERENCES]
    write_comparison("fresh", users=len(users), **{"hr@1": means(found)}, differences=differences)


def make_ties() -> None:
    """The headline where the file's order decides among ratings of one second, and where chance does.

    Written after each order, in case time runs out.
    """
    chosen = choose(load_recorded("ml-100k-settings"))
    orders = []
    for ties, seed in recipes.ORDERS:
        data = {"ties": ties, "dataset_seed": seed}
        runs, config = trained(
            recipes.TIES, lambda run: run.users["rank"].to_numpy(), **recipes.TIES_SHARED, **data, **chosen
        )
        splits, levels = splits_of(config), baseline_ranks([config])
        names = {"popularity": "popularity", "first-order Markov": "markov", "SFT": "sft"}
        found: dict[str, Outcomes] = {label: {None: hit(levels[name])} for label, name in names.items()} | runs
        orders.append(
            {
                **data,
                "dataset_fingerprint": splits.fingerprint,
                "report": splits.report["ties"],
                "hr@1": means(found),
                "differences": {
                    label: report.points(found[left], found[right])
                    for label, (left, right) in recipes.TIES_DIFFERENCES.items()
                },
            }
        )
        write_comparison(
            "ties",
            chosen=chosen,
            rule=choose.__doc__,
            seeds=recipes.TIES_SHARED["seeds"],
            missing=len(recipes.ORDERS) - len(orders),
            orders=orders,
        )


MADE: dict[str, Callable[[], None]] = {
    **{name: partial(make_sft, name) for name in recipes.SFT},
    **{name: partial(make_grid, name) for name in recipes.GRIDS},
    "scores": make_scores,
    "fresh": make_fresh,
    "ties": make_ties,
    "report": report.write,
}
GROUPS = {
    "catalogue": "catalog-pocket-gpt2-10 catalog-pocket-gpt2-20 catalog-pocket-gpt2-40 "
    "settings objectives scores parts mppo fresh report",
    "findings": "ml-100k-settings ml-100k-pocket-gpt2-10 ml-100k-objectives ml-100k-parts ml-100k-smollm2-135m "
    "ml-100k-smollm2-sft ml-100k-smollm2-settings ml-100k-smollm2 ties strengths report",
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join([*GROUPS, *MADE])
    parser.add_argument("name", nargs="*", default=["catalogue"], help=f"of {known} (default: catalogue)")
    names = [part for name in parser.parse_args().name for part in GROUPS.get(name, name).split()]
    if unknown := [name for name in names if name not in MADE]:
        parser.error(f"unknown name {unknown[0]!r}; known: {known}")
    for name in names:
        MADE[name]()
