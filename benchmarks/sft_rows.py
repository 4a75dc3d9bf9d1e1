"""SFT on rows of sequences and on a row per target: `python benchmarks/sft_rows.py` (an hour and a half on two cores).

SmolLM2-135M learns an eighth of an epoch of MovieLens-100K, with the recipe's other settings: as rows of sequences, and
as a row per target with its history, twice each. Either way it learns the same number of targets in the same number
of steps. Each model then ranks the first 500 validation users; test users are not looked at.

Tokens are counted over the whole training split; rows of sequences must take at most 7.5 per target. Seconds are those
of a step, from the end of one to the end of the next, each side in separate processes, in turns.

Prints a table and writes sft_rows.json beside this file. Each run's ranks are kept in minipo's home: cut off, the
script goes on with the run at which it was.
"""

import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measure import Report, alone, in_turns, peak_memory, prepare, run, summary
from trl_step import Clock

from minipo.evaluation import paired_interval, ranking_metrics
from minipo.experiments.configuration import SFTConfig, make_config, recipe, splits_of
from minipo.experiments.files import read_json, write_json
from minipo.experiments.models import add_lora, load_model
from minipo.experiments.precision import decide
from minipo.experiments.training import _arguments, _sft_rows
from minipo.experiments.users import evaluate
from minipo.folder import home
from minipo.rows import Visits
from minipo.trainers import SFTTrainer

SIDES, SEEDS = ("target", "sequence"), (0, 1)
MOST = 7.5  # tokens per target
FULL = {"users": 500, "warm_up": 2, "steps": 10, "repeats": 3}
QUICK = {"users": 10, "warm_up": 1, "steps": 2, "repeats": 1}
METRICS = ("hr@1", "ndcg@5")


def trainer_of(config: SFTConfig, steps: int, folder: Path, **others: Any) -> SFTTrainer:
    """The trainer that a run with these settings would use, for so many steps."""
    splits = splits_of(config)
    model, tokenizer = load_model(config.model, items=splits.items, seed=config.seed)
    rows, _, batch = _sft_rows(config, model, tokenizer, splits)
    config = decide(config, folder, model, progress=False)
    arguments = _arguments(config, folder, steps, **batch, progress=False, save_strategy="no")
    return SFTTrainer(
        add_lora(model, config.rank, seed=config.seed), arguments, rows, processing_class=tokenizer, **others
    )


def timed(config: SFTConfig, settings: Report) -> Report:
    """Seconds of each step, memory, the tokens of the whole split, and how many a step computes, padding included."""
    prepare()
    steps, clock = settings["warm_up"] + settings["steps"], Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(config, steps, Path(folder), callbacks=[clock])
        trainer.train()
    rows, count = trainer.train_dataset, trainer.args.train_batch_size
    order = Visits(len(rows), config.seed).order(0)
    some = [order[first : first + count] for first in range(0, min(len(order), 200 * count), count)]
    computed = 0
    for visited in some:
        packed = trainer.pack(rows, [rows[0, row] for row in visited])
        computed += sum(group["segments"].numel() for group in packed.get("groups", [packed]))
    return {
        "seconds": np.diff(clock.ends[settings["warm_up"] - 1 :]).tolist(),
        "peak_gb": peak_memory(),
        "targets": int(rows.counts.sum()),
        "tokens": rows.tokens,
        "computed": computed / int(rows.counts[np.concatenate(some)].sum()),
    }


def ranked(config: SFTConfig, settings: Report) -> Report:
    """Train, and rank the chosen items of the first validation users; or what was kept when this was last done."""
    kept = Path(settings["kept"], f"{config.rows}-{config.seed}.json")
    asked = {name: settings[name] for name in ("config", "users")}
    if kept.is_file() and (found := read_json(kept))["asked"] == asked:
        return found
    splits = splits_of(config)
    steps = math.ceil(config.epochs * len(splits.train) / config.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(config, steps, Path(folder))
        done = trainer.train()
    model, users = trainer.model.merge_and_unload(), splits.validation[: settings["users"]]
    report = evaluate(model, trainer.processing_class, users, template=config.template, batch_size=16)
    found = {
        "asked": asked,
        "steps": steps,
        "train_loss": done.training_loss,
        "seconds": done.metrics["train_runtime"],
        "ranks": report.ranks.tolist(),
    }
    write_json(kept, found)
    return found


def measured(settings: Report) -> Report:
    config = make_config(SFTConfig, settings["config"])
    return (timed if settings["job"] == "time" else ranked)(config, settings)


def benchmark(quick: bool) -> Report:
    size = QUICK if quick else FULL
    config = {"dataset": "ml-100k", "model": "smollm2-135m", **recipe("sft", "ml-100k", "smollm2-135m")}
    config |= {"epochs": 0.125, "rank": SFTConfig.rank}
    with tempfile.TemporaryDirectory() as folder:
        kept = str(home() / "benchmarks" / "sft_rows")
        if quick:
            kept = f"{folder}/kept"
            config |= {"dataset": invented(Path(folder)), "model": "pocket-qwen2", "whole_line": False}
            config |= {"precision": "float32"}
        sides = {side: size | {"config": config | {"rows": side}} for side in SIDES}
        times = in_turns(__file__, {side: each | {"job": "time"} for side, each in sides.items()}, size["repeats"])
        counts = {
            side: {name: each[0][name] for name in ("targets", "tokens", "computed")} for side, each in times.items()
        }
        most = counts["sequence"]["tokens"] / counts["sequence"]["targets"]
        if not quick and most > MOST:
            raise SystemExit(f"Rows of sequences take {most:.2f} tokens per target, more than {MOST}.")
        runs: dict[str, list[Report]] = {side: [] for side in SIDES}
        for seed in SEEDS:
            for side, each in sides.items():
                settings = each | {"job": "rank", "kept": kept, "config": each["config"] | {"seed": seed}}
                runs[side].append(alone(__file__, settings))
    of_users = {side: ranking_metrics(np.array([run["ranks"] for run in each])) for side, each in runs.items()}
    return {
        "config": config | {"dataset": Path(config["dataset"]).name},
        "users": of_users["target"]["hr@1"].shape[1],
        "counts": counts,
        **summary(times),
        "runs": runs,
        "metrics": {
            side: {name: each[name].mean(axis=1).tolist() for name in METRICS} for side, each in of_users.items()
        },
        "differences": {
            name: asdict(paired_interval(of_users["sequence"][name] - of_users["target"][name])) for name in METRICS
        },
    }


def invented(folder: Path) -> str:
    """A file of 20 users who took 24 of 60 items each."""
    random, path = np.random.default_rng(0), folder / "plays.csv"
    taken = [(user, f"Film{item}", step) for user in range(20) for step, item in enumerate(random.permutation(60)[:24])]
    pd.DataFrame(taken, columns=["user", "item", "timestamp"]).to_csv(path, index=False)
    return str(path)


if __name__ == "__main__":
    run(__file__, __doc__, benchmark, measured)
