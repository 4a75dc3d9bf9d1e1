"""Time a step at K = 1 against TRL: `python benchmarks/trl_step.py` (needs `pip install -e '.[benchmarks]'`).

`trl.DPOTrainer` and minipo's `PreferenceTrainer` train SmolLM2-135M on the same pairs: DPO, LoRA, float32, 2 rows a
step, no gradient checkpointing, the same `TrainingArguments`. fresh: a reference forward in each step, TRL's default;
for minipo a trainer that also scores the reference in the step. cached: both compute the reference before training.
A step lasts from the end of one to the end of the next inside `.train()`, without the first ones.

Each side runs in a separate process, in turns, and all keep freed memory (`reuse_memory`), except for "TRL as it
comes": minipo does this by itself, users of TRL do not. Checks that the reference's log-probs agree, prints a table,
and writes trl_step.json beside this file. Takes about 5 minutes.
"""

import tempfile
import time
from typing import Any

import numpy as np
import torch
from measure import (
    Report,
    check_installed,
    in_turns,
    largest_difference,
    lastfm_shaped,
    peak_memory,
    prepare,
    run,
    smollm2,
    summary,
)
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
NEEDED = ("trl", "datasets")


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


def measured(settings: Report) -> Report:
    """One side's steps, the reference's log-probs (rows, 2) if they were computed before, and memory."""
    prepare(reuse=settings["reuse"])
    base, tokenizer = smollm2(small=settings["small"])
    model: Any = add_lora(base)
    steps, clock = settings["warm_up"] + settings["steps"], Clock()
    users = lastfm_shaped(ROWS * steps)  # their prompts list 20 candidates
    rows = [row | {"rejected": row["rejected"][0]} for row in preference_rows(users, "music")]
    shared: dict[str, Any] = {"processing_class": tokenizer, "callbacks": [clock]}
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
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        if settings["trainer"] == "trl":
            from datasets import Dataset  # type: ignore[import-untyped]  # optional, as TRL is, and slow to import
            from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]

            # Their defaults here are bfloat16 and gradient checkpointing, which saves memory and costs time.
            common |= {"bf16": False, "gradient_checkpointing": False, "beta": BETA}
            config = DPOConfig(**common, precompute_ref_log_probs=settings["cached"])
            trainer: Any = DPOTrainer(model, args=config, train_dataset=Dataset.from_list(rows), **shared)
            if settings["cached"]:
                columns = (trainer.train_dataset[f"ref_{which}_logps"] for which in ("chosen", "rejected"))
                reference = [list(pair) for pair in zip(*columns, strict=True)]
        else:
            kind = PreferenceTrainer if settings["cached"] else FreshReference
            trainer = kind(model, TrainingArguments(**common), rows, objective="dpo", beta=BETA, **shared)
            reference = trainer.reference.tolist()
        trainer.train()
    seconds = np.diff(clock.ends[settings["warm_up"] - 1 :]).tolist()
    return {"seconds": seconds, "peak_gb": peak_memory(), "reference": reference}


def benchmark(quick: bool) -> Report:
    size = {"small": quick, "warm_up": 1 if quick else WARM_UP, "steps": 2 if quick else STEPS}
    runs = in_turns(__file__, {side: each | size for side, each in SIDES.items()}, 1 if quick else REPEATS)
    theirs, ours = (runs[side][0]["reference"] for side in ("TRL, cached", "minipo, cached"))
    return {"rows": ROWS, "largest_difference": largest_difference(theirs, ours), **summary(runs)}


def main() -> None:
    check_installed("benchmarks", *NEEDED)
    run(__file__, __doc__, benchmark, measured, NEEDED)


if __name__ == "__main__":
    main()
