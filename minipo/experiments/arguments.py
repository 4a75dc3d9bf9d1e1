"""A run's training arguments, its log lines, and the checkpoint that it resumes from."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from minipo.arithmetic import training_device
from minipo.trainers import COMPLETE


class Listen(TrainerCallback):
    """Calls `heard(step, logs)` for every line the Trainer logs, evaluations included."""

    def __init__(self, heard: Callable[[int, dict[str, float]], None]):
        self.heard = heard

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.heard(state.global_step, dict(logs or {}))


class SaveInTime(TrainerCallback):
    """Saves a checkpoint with a log line, to resume from, where the last one is two minutes old."""

    SECONDS = 120.0

    def __init__(self) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if control.should_log and time.monotonic() - self.last >= self.SECONDS:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()


def last_checkpoint(folder: Path) -> Path | None:
    """The latest complete checkpoint in `folder`, or None."""
    complete = [marker.parent for marker in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(complete, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def training_arguments(
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    accumulation: int,
    learning_rate: float,
    seed: int,
    evaluate_every: int | None = None,
    progress: bool = True,
    **others: Any,
) -> TrainingArguments:
    """The `TrainingArguments` of minipo's own runs: AdamW, 5 % warm-up, cosine, no reporting service.

    batch_size: rows per optimizer step, in `accumulation` micro-batches. Further arguments of `TrainingArguments` may
    be given as they are. Raises ValueError if `accumulation` does not divide `batch_size`.
    """
    # 30 lines per run, so that the last tenth of the steps is the last three; a checkpoint at every tenth line.
    log_every = max(1, steps // 30)
    if batch_size % accumulation:
        raise ValueError(
            f"accumulation {accumulation} does not divide the batch of {batch_size} users; choose a divisor."
        )
    settings: dict[str, Any] = {
        "max_steps": steps,
        "per_device_train_batch_size": batch_size // accumulation,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": math.ceil(0.05 * steps),
        "seed": seed,
        "logging_steps": log_every,
        "save_steps": 10 * log_every,
        "save_total_limit": 2,  # the second last is the one to resume from while the last one is written
        "eval_strategy": "no" if evaluate_every is None else "steps",
        "eval_steps": evaluate_every,
        "disable_tqdm": not progress,
        "use_cpu": training_device().type == "cpu",  # explicit, or the Trainer would refuse bf16 there
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    return TrainingArguments(output_dir=str(folder), **(settings | others))
