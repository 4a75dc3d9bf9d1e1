"""Supervised fine-tuning (SFT) and preference training, both on `transformers.Trainer`.

Rows are drawn by (seed, epoch, user), not by a stateful generator: a run that resumes sees the same rows, and runs at
different K see the same users in the same order, K = 5 the first five of K = 15's negatives.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from .datasets import Interaction
from .dynamic import DynamicPO
from .evaluation import Report, report, score, user_prompt
from .objectives import Aggregate
from .preference import PreferenceOutput, preference_loss
from .prompts import answer
from .scoring import pack_ids, packed_logps, tokenize, tokenize_answers

COMPLETE = "complete"  # a checkpoint counts only when this file stands in it: it is written after everything else


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout of `model` to 0: with it, policy and reference would differ before the first step."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


class UserRows(Dataset):
    """`count` rows over `users` users, epoch after epoch, each epoch in an order of its own keyed by (seed, epoch).

    A row is (user, columns): the columns of the user's candidates that the row uses, 0 (the chosen item) first, then
    `negatives` of the user's `available` ones in an order keyed by (seed, epoch, user). With negatives = 0 the row is
    the chosen item alone.
    """

    def __init__(self, users: int, available: int, negatives: int, count: int, seed: int):
        self.users, self.available, self.negatives, self.count, self.seed = users, available, negatives, count, seed
        # The rows are asked for in order, so the current epoch's order is all that is worth keeping.
        self.order = lru_cache(maxsize=2)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(users))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[int, np.ndarray]:
        epoch, place = divmod(row, self.users)
        user = int(self.order(epoch)[place])
        negatives = np.random.default_rng([self.seed, epoch, user]).permutation(self.available)[: self.negatives]
        return user, np.concatenate([[0], 1 + negatives])


class Progress(ProgressCallback):
    """The Trainer's progress bar without its lines of logs: those go into the run's folder."""

    def on_log(self, *_: Any, **__: Any) -> None:
        pass


class MarkComplete(TrainerCallback):
    """Marks a checkpoint once all of it is written, so that one cut off by a kill or a full disk is never resumed."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        Path(str(args.output_dir), f"checkpoint-{state.global_step}", COMPLETE).touch()


class Listen(TrainerCallback):
    """Tells `heard(step, logs)` of every line the Trainer logs, evaluations included."""

    def __init__(self, heard: Callable[[int, dict[str, float]], None]):
        self.heard = heard

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.heard(state.global_step, dict(logs or {}))


def rows_per_step(arguments: TrainingArguments) -> int:
    """Users in one optimizer step."""
    return arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps


def check_finite(logps: Tensor, step: int) -> None:
    """Raises ValueError if training has diverged."""
    if not logps.isfinite().all():
        raise ValueError(
            f"Log-probs are not finite after step {step}: training diverged; choose a lower learning_rate."
        )


def check_negatives(interactions: Sequence[Interaction], negatives: int) -> None:
    """Raises ValueError if K = `negatives` is below 1 or above the negatives that some user has, or without users."""
    if not interactions:
        raise ValueError("There are no users to train on: the split is empty; give at least one.")
    available = min(len(user.negatives) for user in interactions)
    if not 1 <= negatives <= available:
        raise ValueError(f"negatives must be from 1 to {available}, the negatives every user has, not {negatives}.")


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
    """The `TrainingArguments` both trainers use: AdamW, 5 % warm-up, cosine, no reporting service.

    batch_size: users per optimizer step, in `accumulation` micro-batches. Further arguments of `TrainingArguments` may
    be given as they are. Raises ValueError if `accumulation` does not divide `batch_size`.
    """
    # 30 lines a run, so that the last tenth of the steps is the last three; a checkpoint at every tenth line.
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
        "eval_strategy": "no" if evaluate_every is None else "steps",
        "eval_steps": evaluate_every,
        "disable_tqdm": not progress,
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    return TrainingArguments(output_dir=str(folder), **(settings | others))


class _RowTrainer(Trainer):
    """What both trainers share: rows in their given order, a quiet console, checkpoints marked when complete."""

    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase
    train_dataset: UserRows

    def __init__(
        self, model: PreTrainedModel, arguments: TrainingArguments, tokenizer: PreTrainedTokenizerBase, **others: Any
    ):
        super().__init__(model=model, args=arguments, processing_class=tokenizer, **others)
        self.remove_callback(PrinterCallback)
        if not arguments.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(Progress)
        self.add_callback(MarkComplete)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # the Trainer's estimate assumes one plain row per example, which packed rows are not


class SFTTrainer(_RowTrainer):
    """Supervised fine-tuning on "prompt answer".

    whole_line: learn every token of the line, history and answer (pocket models, trained from scratch), or the answer's
    tokens alone (pretrained models). Either way it is one continuation, scored as a candidate is: after the line's
    first token, or after the prompt. The loss is the mean of −log p over the tokens learnt.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        interactions: Sequence[Interaction],
        arguments: TrainingArguments,
        *,
        whole_line: bool,
        seed: int = 0,
        template: str = "line",
        callbacks: list[TrainerCallback] | None = None,
    ):
        prompts = tokenize(tokenizer, [user_prompt(user, template) for user in interactions], special=True)
        answers = tokenize_answers(tokenizer, [answer(user.chosen) for user in interactions])
        lines = [np.concatenate(parts) for parts in zip(prompts, answers, strict=True)]
        cuts = [1 if whole_line else len(prompt) for prompt in prompts]
        self.known = [line[:cut] for line, cut in zip(lines, cuts, strict=True)]
        self.learnt = [line[cut:] for line, cut in zip(lines, cuts, strict=True)]
        rows = UserRows(len(interactions), 0, 0, arguments.max_steps * rows_per_step(arguments), seed)
        super().__init__(
            model, arguments, tokenizer, train_dataset=rows, data_collator=self.collate, callbacks=callbacks
        )
        self.loss_is_scaled_for_ga = True  # by the tokens of the whole step, in compute_loss

    def collate(self, rows: list[tuple[int, np.ndarray]]) -> dict[str, Any]:
        users = [user for user, _ in rows]
        packed = pack_ids(
            [self.known[user] for user in users],
            [[self.learnt[user]] for user in users],
            self.processing_class.pad_token_id,
        )
        return {"packed": packed, "tokens": sum(len(self.learnt[user]) for user in users)}

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> int:
        return sum(batch["tokens"] for batch in batch_samples)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logps = packed_logps(model, inputs["packed"])
        check_finite(logps, self.state.global_step)
        loss = -logps.sum() / (num_items_in_batch or inputs["tokens"])
        return (loss, {}) if return_outputs else loss


class PreferenceTrainer(_RowTrainer):
    """Preference training of `model`, which on entry is the SFT model, from K negatives a user.

    reference: the SFT model's log-probs (users, 1 + available negatives) of every candidate of `interactions`, chosen
    first, computed once, before the first step: the reference is SFT itself, and no second copy of the model is held.
    Objectives without a reference use it for `pair_loss` alone.

    validation: users ranked at every `eval_steps`, with their own reference; the last report and its log-probs stay in
    `validation_report`.
    Raises ValueError if K is below 1 or above the negatives that some user has, or if `reference` has not a row for
    every user and a column for every candidate.
    """

    validation_report: Report

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        interactions: Sequence[Interaction],
        arguments: TrainingArguments,
        *,
        objective: str | Aggregate,
        negatives: int,
        reference: np.ndarray,
        beta: float = 1.0,
        dynamic: DynamicPO | None = None,
        seed: int = 0,
        template: str = "line",
        validation: Sequence[Interaction] = (),
        validation_reference: np.ndarray | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        check_negatives(interactions, negatives)
        width = max(len(user.candidates) for user in interactions)
        if reference.shape != (len(interactions), width):
            raise ValueError(
                f"reference is of shape {reference.shape}, not {(len(interactions), width)}: give the SFT model's "
                "log-probs of every user's candidates, as `score` returns them."
            )
        self.objective: str | Aggregate = objective
        self.beta, self.dynamic, self.template = beta, dynamic, template
        self.reference, self.validation_reference = reference, validation_reference
        self.validation = validation
        self.prompts = tokenize(tokenizer, [user_prompt(user, template) for user in interactions], special=True)
        # All users' candidates in one call: the tokenizer is quick, calling it is not.
        answers = iter(tokenize_answers(tokenizer, [answer(item) for user in interactions for item in user.canonical]))
        self.candidates = [list(islice(answers, len(user.candidates))) for user in interactions]
        available = min(len(user.negatives) for user in interactions)
        rows = UserRows(len(interactions), available, negatives, arguments.max_steps * rows_per_step(arguments), seed)
        disable_dropout(model)
        super().__init__(
            model,
            arguments,
            tokenizer,
            train_dataset=rows,
            eval_dataset=validation,
            data_collator=self.collate,
            callbacks=callbacks,
        )
        # The loss is a mean over the users of a micro-batch, and micro-batches are of one size.
        self.loss_is_scaled_for_ga = False
        self.measured: list[dict[str, float]] = []  # of the micro-batches of the step that is logged next

    def collate(self, rows: list[tuple[int, np.ndarray]]) -> dict[str, Any]:
        packed = pack_ids(
            [self.prompts[user] for user, _ in rows],
            [[self.candidates[user][column] for column in columns] for user, columns in rows],
            self.processing_class.pad_token_id,
        )
        users, columns = np.array([user for user, _ in rows]), np.stack([columns for _, columns in rows])
        return {"packed": packed, "reference": torch.from_numpy(self.reference[users[:, None], columns])}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        policy = packed_logps(model, inputs["packed"])
        check_finite(policy, self.state.global_step)
        output = preference_loss(
            self.objective,
            policy,
            inputs["reference"],
            beta=self.beta,
            dynamic=self.dynamic,
            lengths=inputs["packed"]["lengths"],
        )
        if model.training and (self.state.global_step + 1) % self.args.logging_steps == 0:
            self.measured.append(measure(output, policy, inputs["reference"]))
        loss = output.losses.mean()
        return (loss, {"policy": policy}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.measured and "loss" in logs:
            names = {name for batch in self.measured for name in batch}
            logs |= {name: float(np.mean([batch[name] for batch in self.measured if name in batch])) for name in names}
            self.measured = []
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Rank the validation users; metrics are named `eval_hr@1`, `eval_pair_loss` and so on."""
        scores = score(self.model, self.processing_class, self.validation, self.template)
        self.validation_report = report(scores, self.validation_reference)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.validation_report.metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def measure(output: PreferenceOutput, policy: Tensor, reference: Tensor) -> dict[str, float]:
    """One training batch under the microscope: `pair_loss` over its K negatives, the share of boundary negatives, and
    the mean push on a boundary and on a discriminative negative, where the batch has one."""
    # Through the loss alone, not through the model: ∂L/∂s of each negative.
    push = torch.autograd.grad(output.losses.sum(), policy, retain_graph=True)[0][:, 1:]
    ratio = (policy - reference).detach()
    measured = {
        "pair_loss": softplus(ratio[:, 1:] - ratio[:, :1]).mean(),
        "boundary_share": output.boundary.float().mean(),
    }
    for name, group in (("push_boundary", output.boundary), ("push_discriminative", ~output.boundary)):
        if group.any():
            measured[name] = push[group].mean()
    return {name: value.item() for name, value in measured.items()}
