"""SFT on rows of sequences and on a row per target: `python benchmarks/sft_rows.py` (an hour or two on two cores).

SmolLM2-135M learns an eighth of an epoch of MovieLens-100K twice, with the recipe's other settings: as rows of
sequences, and as a row per target with its history. Either way it learns the same number of targets in the same number
of steps. Both models then rank the first 250 validation users.

Tokens are counted over the whole training split; rows of sequences must take at most 7.5 per target. Seconds are those
of a step, from the end of one to the end of the next, each side in separate processes, in turns.

Prints a table and writes sft_rows.json beside this file. The two runs are in minipo's cache: cut off, the script goes
on where it was.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measure import Report, alone, in_turns, peak_memory, prepare, run, summary
from trl_step import Clock

from minipo.arithmetic import autocast
from minipo.evaluation import paired_interval, ranking_metrics
from minipo.experiments.configuration import SFTConfig, make_config, recipe, splits_of
from minipo.experiments.files import read_json, write_json
from minipo.experiments.models import add_lora, load_model
from minipo.experiments.precision import decide
from minipo.experiments.training import _arguments, _sft_rows, sft
from minipo.experiments.users import evaluate
from minipo.rows import Visits
from minipo.trainers import SFTTrainer

SIDES = ("target", "sequence")
MOST = 7.5  # tokens per target
FULL = {"users": 250, "warm_up": 2, "steps": 10, "repeats": 3}
QUICK = {"users": 10, "warm_up": 1, "steps": 2, "repeats": 1}
METRICS = ("hr@1", "ndcg@5")


def trainer_of(config: SFTConfig, steps: int, folder: Path, **others: Any) -> SFTTrainer:
    """The trainer that a run with these settings would use, for so many steps."""
    splits = splits_of(config)
    model, tokenizer = load_model(config.model, items=splits.items)
    rows, _, batch = _sft_rows(config, model, tokenizer, splits)
    config = decide(config, folder, model, progress=False)
    arguments = _arguments(config, folder, steps, **batch, progress=False, save_strategy="no")
    return SFTTrainer(add_lora(model, config.rank), arguments, rows, processing_class=tokenizer, **others)


def timed(config: SFTConfig, settings: Report) -> Report:
    """Seconds of each step, memory, the tokens of the whole split, and how many a step computes, padding included."""
    prepare()
    steps, clock = settings["warm_up"] + settings["steps"], Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(config, steps, Path(folder), callbacks=[clock])
        trainer.train()
    rows, count = trainer.train_dataset, trainer.args.train_batch_size
    reads = [len(ids) for ids in rows.prompts]
    if config.rows == "target":  # the answer stands behind the prompt; its end is only predicted
        reads = [prompt + len(answers[0]) - 1 for prompt, answers in zip(reads, rows.answers, strict=True)]
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
        "tokens": sum(reads),
        "computed": computed / int(rows.counts[np.concatenate(some)].sum()),
    }


def ranked(config: SFTConfig, settings: Report) -> Report:
    """The run, trained or from the cache, and how it ranks the chosen items of the first validation users."""
    done = sft(settings["out"], progress=False, **asdict(config))
    kept = done.folder / "validation_ranks.json"
    if not kept.is_file():
        users = splits_of(config).validation[: settings["users"]]
        model, tokenizer = done.load_model()
        with autocast(model.device, done.config.precision):
            report = evaluate(model, tokenizer, users, template=config.template, batch_size=16)
        write_json(kept, report.ranks.tolist())
    return {"ranks": read_json(kept), **{name: done.summary[name] for name in ("steps", "train_loss", "seconds")}}


def measured(settings: Report) -> Report:
    config = make_config(SFTConfig, settings["config"])
    return (timed if settings["job"] == "time" else ranked)(config, settings)


def benchmark(quick: bool) -> Report:
    size = QUICK if quick else FULL
    config = {"dataset": "ml-100k", "model": "smollm2-135m", **recipe("sft", "ml-100k", "smollm2-135m")}
    config |= {"epochs": 0.125}
    with tempfile.TemporaryDirectory() as folder:
        outs: dict[str, str | None] = dict.fromkeys(SIDES)
        if quick:
            outs = {side: f"{folder}/{side}" for side in SIDES}
            config |= {"dataset": invented(Path(folder)), "model": "pocket-qwen2", "whole_line": False}
            config |= {"precision": "float32"}
        sides = {side: size | {"config": config | {"rows": side}, "out": outs[side]} for side in SIDES}
        times = in_turns(__file__, {side: each | {"job": "time"} for side, each in sides.items()}, size["repeats"])
        counts = {
            side: {name: each[0][name] for name in ("targets", "tokens", "computed")} for side, each in times.items()
        }
        most = counts["sequence"]["tokens"] / counts["sequence"]["targets"]
        if not quick and most > MOST:
            raise SystemExit(f"Rows of sequences take {most:.2f} tokens per target, more than {MOST}.")
        runs = {side: alone(__file__, each | {"job": "rank"}) for side, each in sides.items()}
    metrics = {side: ranking_metrics(np.array(each["ranks"])) for side, each in runs.items()}
    return {
        "config": config | {"dataset": Path(config["dataset"]).name},
        "users": len(runs["target"]["ranks"]),
        "counts": counts,
        **summary(times),
        "runs": runs,
        "metrics": {side: {name: float(each[name].mean()) for name in METRICS} for side, each in metrics.items()},
        "differences": {
            name: asdict(paired_interval(metrics["sequence"][name] - metrics["target"][name])) for name in METRICS
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
