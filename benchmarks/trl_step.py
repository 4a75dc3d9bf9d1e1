"""Time a step at K = 1 against TRL: `python benchmarks/trl_step.py` (needs `pip install 'minipo[benchmarks]'`).

`trl.DPOTrainer` and minipo's `PreferenceTrainer` train SmolLM2-135M on the same pairs: DPO, LoRA, float32, 2 rows a
step, no gradient checkpointing, the same `TrainingArguments`. fresh: a reference forward in each step, TRL's default;
for minipo a trainer that also scores the reference in the step. cached: both compute the reference before training.
A step lasts from the end of one to the end of the next inside `.train()`, without the first ones.

Each side runs in a separate process, in turns, and all keep freed memory (`reuse_memory`), except for "TRL as it
comes": minipo does this by itself, users of TRL do not. Checks that the reference's log-probs agree, prints a table,
and writes trl_step.json beside this file. Takes about 5 minutes.
"""

import importlib.util
import json
import statistics
import tempfile
import time
from importlib.metadata import version
from typing import Any

import torch
from measure import alone, arguments, lastfm_shaped, peak_memory, prepare, provenance, smollm2, table, write
from transformers import TrainerCallback, TrainingArguments

from minipo.experiments.models import add_lora
from minipo.experiments.users import preference_rows
from minipo.scoring import packed_logps
from minipo.trainers import PreferenceTrainer

SIDES = {
    "TRL as it comes": {"trainer": "trl", "cached": False, "reuse": False},
    "TRL, fresh": {"trainer": "trl", "cached": False, "reuse": True},
    "minipo, fresh": {"trainer": "minipo", "cached": False, "reuse": True},
    "TRL, cached": {"trainer": "trl", "cached": True, "reuse": True},
    "minipo, cached": {"trainer": "minipo", "cached": True, "reuse": True},
}
ROWS, WARM_UP, STEPS, REPEATS = 2, 2, 10, 3
BETA = 0.1
TOLERANCE = 1e-3  # nats


class Clock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


class FreshReference(PreferenceTrainer):
    """Scores the reference, the model without its adapter, again in every step."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *others: Any, **more: Any) -> Any:
        with torch.no_grad(), model.disable_adapter():
            reference = packed_logps(model, inputs["packed"])
        return super().compute_loss(model, inputs | {"reference": reference}, *others, **more)


def rows_of(count: int) -> list[dict[str, str]]:
    """Pairs, of prompts that list 20 candidates."""
    return [row | {"rejected": row["rejected"][0]} for row in preference_rows(lastfm_shaped(count), "music")]


def measured(settings: dict[str, Any]) -> dict[str, Any]:
    """One side's steps, the reference's log-probs (rows, 2) if they were computed before, and memory."""
    prepare(reuse=settings["reuse"])
    base, tokenizer, what = smollm2(small=settings["small"])
    model: Any = add_lora(base)
    steps, clock = settings["warm_up"] + settings["steps"], Clock()
    rows = rows_of(ROWS * steps)
    reference = None
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "output_dir": folder,
            "max_steps": steps,
            "per_device_train_batch_size": ROWS,
            "learning_rate": 1e-4,
            "use_cpu": True,
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        if settings["trainer"] == "trl":
            from datasets import Dataset  # type: ignore[import-untyped]  # optional, as TRL is, and slow to import
            from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]

            # Their defaults here are bfloat16 and gradient checkpointing, which saves memory and costs time.
            common |= {"bf16": False, "gradient_checkpointing": False, "beta": BETA}
            config = DPOConfig(**common, precompute_ref_log_probs=settings["cached"])
            trainer: Any = DPOTrainer(
                model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[clock]
            )
            if settings["cached"]:
                columns = (trainer.train_dataset[f"ref_{which}_logps"] for which in ("chosen", "rejected"))
                reference = [list(pair) for pair in zip(*columns, strict=True)]
        else:
            kind = PreferenceTrainer if settings["cached"] else FreshReference
            trainer = kind(
                model,
                TrainingArguments(**common),
                rows,
                processing_class=tokenizer,
                objective="dpo",
                beta=BETA,
                callbacks=[clock],
            )
            reference = trainer.reference.tolist()
        trainer.train()
    seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    return {
        "model": what,
        "seconds": seconds[settings["warm_up"] - 1 :],
        "peak_gb": peak_memory(),
        "reference": reference,
    }


def compare(repeats: int, settings: dict[str, Any]) -> dict[str, Any]:
    """All sides, in turns."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            runs[side].append(alone(__file__, SIDES[side] | settings))
    theirs, ours = (torch.tensor(runs[side][0]["reference"]) for side in ("TRL, cached", "minipo, cached"))
    difference = (theirs - ours).abs().max().item()
    if not difference < TOLERANCE:
        raise SystemExit(f"TRL's and minipo's log-probs differ by {difference:.2g}: the timings would be meaningless.")
    times = {side: [second for run in runs[side] for second in run["seconds"]] for side in SIDES}
    seconds = {side: statistics.median(times[side]) for side in SIDES}
    ours_of = {side: "minipo, cached" if SIDES[side]["cached"] else "minipo, fresh" for side in SIDES}
    return {
        "model": f"{runs['minipo, fresh'][0]['model']}, LoRA of rank 8",
        "rows": ROWS,
        "seconds": seconds,
        "times_minipo": {side: seconds[side] / seconds[ours_of[side]] for side in SIDES},
        "peak_gb": {side: statistics.median(run["peak_gb"] for run in runs[side]) for side in SIDES},
        "largest_difference": difference,
        "all_seconds": times,
    }


def shown(result: dict[str, Any]) -> str:
    """The result as a table."""
    columns = ("seconds", "times_minipo", "peak_gb")
    lines = [[side, *(result[column][side] for column in columns)] for side in result["seconds"]]
    return table(["", "s a step", "× minipo's", "peak GB"], lines)


def main() -> None:
    given = arguments(__doc__)
    if missing := [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"{' and '.join(missing)} not installed: run pip install 'minipo[benchmarks]'.")
    if given.measure:
        print(json.dumps(measured(given.measure)))
        return
    made = provenance() | {name: version(name) for name in ("trl", "datasets")}
    size = {"small": given.quick, "warm_up": 1 if given.quick else WARM_UP, "steps": 2 if given.quick else STEPS}
    result = compare(1 if given.quick else REPEATS, size)
    print(f"\nA step at K = 1, {made['threads']} threads, {made['processor']}; {result['model']}")
    print(shown(result))
    print(f"the reference's log-probs differ by at most {result['largest_difference']:.0e}")
    if not given.quick:
        write(__file__, {"provenance": made} | result)


if __name__ == "__main__":
    main()
