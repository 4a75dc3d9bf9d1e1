"""Trainers for supervised fine-tuning (SFT) and for preferences, both on `transformers.Trainer`."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers.trainer
from numpy.typing import NDArray
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn.functional import pad, softplus
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from minipo.arithmetic import autocast, builds_kernels
from minipo.compatibility.architectures import check_quiet, disable_dropout, warn_of_adapters, without_adapters
from minipo.compatibility.arguments import check_arguments, longest_row
from minipo.compatibility.formats import Rows, completion, preference_answers
from minipo.compatibility.tokenizers import pad_token
from minipo.dynamic import DynamicPO, boundary
from minipo.evaluation import Report, Scores, report
from minipo.objectives import Aggregate, Objective, State
from minipo.packing import PackedBatch
from minipo.preference import PreferenceOutput, preference_loss
from minipo.reference import REFERENCE, Batches, Reference, fingerprint, save_reference, saved_reference
from minipo.rows import TokenRows, Visits, token_rows
from minipo.scoring import evaluating, packed_logps
from minipo.sequences import SequenceRows

COMPLETE = "complete"  # a checkpoint counts only if it has this file, which is written last
STATES = ("objective_state.json", "batch_beta.json")  # an objective's state in a checkpoint; the latter in old ones


class Progress(ProgressCallback):
    """The Trainer's progress bar without its log lines: those go into the run's folder."""

    def on_log(self, *_: Any, **__: Any) -> None: ...


class MarkComplete(TrainerCallback):
    """Marks a checkpoint once all of it is written, so that one cut off by a kill or a full disk is never resumed."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        Path(str(args.output_dir), f"checkpoint-{state.global_step}", COMPLETE).touch()


class _RowTrainer(Trainer):
    """What both trainers share: rows in their given order, a quiet console, checkpoints marked when complete, losses
    that are sums over a step divided by its `items`, and log-probs of rows in evaluation mode."""

    model: PreTrainedModel | PeftModel
    processing_class: PreTrainedTokenizerBase
    train_dataset: TokenRows
    eval_dataset: TokenRows | None

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: TrainingArguments,
        train_dataset: Rows,
        eval_dataset: Rows | None,
        processing_class: PreTrainedTokenizerBase,
        peft_config: PeftConfig | None,
        **others: Any,
    ):
        self.args, self.tokenizer, self.context = args, processing_class, longest_row(model, args)
        rows, validation = self.read(train_dataset), None if eval_dataset is None else self.read(eval_dataset)
        if args.n_gpu > 1 or args.world_size > 1:
            raise ValueError(
                f"Training runs on one device and here are {max(args.n_gpu, args.world_size)}; "
                "choose one, as with CUDA_VISIBLE_DEVICES=0."
            )
        if peft_config is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(args.seed)
                model = get_peft_model(model, peft_config)
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            eval_dataset=validation,
            processing_class=processing_class,
            data_collator=self.collate,
            **others,
        )
        self.loss_is_scaled_for_ga = True  # by the items of the whole step, in compute_loss
        self.remove_callback(PrinterCallback)
        if not args.disable_tqdm:
            self.remove_callback(transformers.trainer.DEFAULT_PROGRESS_CALLBACK)  # a different one in notebooks
            self.add_callback(Progress)
        self.add_callback(MarkComplete)

    def read(self, rows: Rows | TokenRows) -> TokenRows:
        """`rows` as token ids, which `evaluate`, `score` and `reference_logps` take too, so that they are read once."""
        raise NotImplementedError

    def collate(self, visits: list[tuple[int, NDArray[np.int64]]]) -> dict[str, Any]:
        """A micro-batch of `train_dataset`'s visits: what `compute_loss` takes, and how many "items" are in it."""
        raise NotImplementedError

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Visits:
        return Visits(len(self.train_dataset), self.args.seed)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> int:
        return sum(batch["items"] for batch in batch_samples)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # the Trainer's estimate assumes one plain row per example, which packed rows are not

    def pack(self, rows: TokenRows, visits: Sequence[tuple[int, Any]]) -> Any:
        """The rows and columns that `visits` names, packed for `packed_logps`."""
        few_shapes = self.args.bf16 and self.args.device.type == "cpu" and builds_kernels()
        return rows.pack(visits, pad_token(self.processing_class), few_shapes)

    def logps(self, rows: TokenRows, which: NDArray[np.int64], task: str) -> Iterator[tuple[NDArray, Scores]]:
        """Log-probs (b, width) of all answers of the rows `which`, a few rows at a time and the longest first; −inf
        where a row has no such answer. By the model as it is now, in the precision of training, without gradients."""
        lengths = np.array([len(rows.prompts[row]) + sum(map(len, rows.answers[row])) for row in which])
        which = which[np.argsort(-lengths, kind="stable")]  # neighbours are similar, so there is little padding
        size = self.args.per_device_eval_batch_size
        precision = "bfloat16" if self.args.bf16 else "float16" if self.args.fp16 else "float32"
        bar = tqdm(total=len(which), desc=task, unit="row", delay=2, leave=False, disable=self.args.disable_tqdm)
        try:
            for start in range(0, len(which), size):
                batch = which[start : start + size]
                packed = self.pack(rows, [(row, range(rows.counts[row])) for row in batch])
                with evaluating(self.model), torch.no_grad(), autocast(self.args.device, precision):
                    logps = packed_logps(self.model, packed)
                yield batch, pad(logps, (0, rows.width - logps.shape[1]), value=-math.inf).float().cpu().numpy()
                bar.update(len(batch))
        finally:
            bar.close()

    def score(self, rows: Rows | TokenRows) -> Scores:
        """Log-probs (rows, answers) of all answers of `rows`, chosen first, by the model as it is now; −inf where a row
        has fewer. In the precision of training and of the reference."""
        read = self.read(rows)
        scores = np.full((len(read), read.width), -np.inf, np.float32)
        for batch, logps in self.logps(read, np.arange(len(read)), "evaluation"):
            scores[batch] = logps
        return scores

    def check_finite(self, logps: Tensor) -> None:
        """Raises ValueError if training has diverged."""
        if not logps.isfinite().all():
            raise ValueError(
                f"Log-probs are not finite after step {self.state.global_step}: training diverged; "
                "choose a lower learning_rate."
            )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Log and return the `measures` of `eval_dataset`, by default of the one given to the constructor."""
        rows = self.eval_dataset if eval_dataset is None else self.read(eval_dataset)
        if rows is None:
            raise ValueError("There are no rows to evaluate: give eval_dataset.")
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.measures(rows).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measures(self, rows: TokenRows) -> dict[str, float]:
        """Metrics of `rows`."""
        raise NotImplementedError


class SFTTrainer(_RowTrainer):
    """Supervised fine-tuning on "prompt answer".

    train_dataset, eval_dataset: rows of a "prompt" and a "completion", or of preferences, whose chosen answer is
    learnt; `compatibility.formats` lists them. Or rows of `sequence_rows`, each of which has some 16 answers to learn,
    so that batches of a sixteenth as many rows learn as much. args: its seed decides the order of rows; TRL's SFTConfig
    is accepted at its defaults. Further arguments are `transformers.Trainer`'s.
    whole_line: learn every token of the line, history and answer (pocket models, trained from scratch), or only the
    answer's tokens (pretrained models). Either way it is one continuation, scored as a candidate is: after the line's
    first token, or after the prompt. The loss is the mean of −log p over the tokens learnt; so is `eval_loss`.
    peft_config: adapters to train instead of the model.

    Raises ValueError as `token_rows` does, and for arguments that it would otherwise ignore.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: TrainingArguments,
        train_dataset: Rows,
        eval_dataset: Rows | None = None,
        *,
        processing_class: PreTrainedTokenizerBase,
        whole_line: bool = False,
        peft_config: PeftConfig | None = None,
        **others: Any,
    ):
        check_arguments(args, others, "SFTConfig")
        self.whole_line = whole_line
        super().__init__(model, args, train_dataset, eval_dataset, processing_class, peft_config, **others)

    def read(self, rows: Rows | TokenRows) -> TokenRows:
        if isinstance(rows, SequenceRows):
            if self.whole_line:
                raise ValueError("Rows of sequences learn answers and no other tokens; leave whole_line out.")
            if self.context is not None and rows.longest > self.context:
                raise ValueError(
                    f"These rows of sequences need up to {rows.longest} tokens, more than the {self.context} of the "
                    f"model's context or of args.max_length; make them with context={self.context}."
                )
        if isinstance(rows, TokenRows):
            return rows
        read = token_rows(self.tokenizer, rows, completion, self.context)
        if not self.whole_line:
            return read
        lines = [np.concatenate([prompt, answer]) for prompt, (answer,) in zip(read.prompts, read.answers, strict=True)]
        return TokenRows([line[:1] for line in lines], [[line[1:]] for line in lines])

    def collate(self, visits: list[tuple[int, NDArray[np.int64]]]) -> dict[str, Any]:
        rows = self.train_dataset
        tokens = sum(len(rows.answers[row][column]) for row, columns in visits for column in columns)
        return {"packed": self.pack(rows, visits), "items": tokens}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logps = packed_logps(model, inputs["packed"])[inputs["packed"]["mask"]]
        self.check_finite(logps)
        loss = -logps.sum() / (num_items_in_batch or inputs["items"])
        return (loss, {}) if return_outputs else loss

    def measures(self, rows: TokenRows) -> dict[str, float]:
        """The mean of −log p over the tokens learnt, as "loss"."""
        tokens = sum(len(answer) for answers in rows.answers for answer in answers)
        there = np.arange(rows.width) < rows.counts[:, None]
        return {"loss": -float(self.score(rows)[there].sum(dtype=np.float64)) / tokens}


class PreferenceTrainer(_RowTrainer):
    """Preference training of `model` on rows of one chosen and any number of rejected answers.

    train_dataset, eval_dataset: rows of a "prompt", the "chosen" answer and the "rejected" ones (a list of any length
    in each row), as a list, a `datasets.Dataset` or a DataFrame; `preference_rows` makes them from interactions, and
    `compatibility.formats` lists other tools' forms. args: its seed decides the order of rows and their negatives;
    TRL's DPOConfig is accepted at its defaults, except that its beta must be this one's, and that its `max_length` is
    a limit that no row may exceed. Further arguments are `transformers.Trainer`'s.
    objective, beta, dynamic: see `preference_loss`, which gets the answers' token counts too. For beta-dpo, a batch is
    a micro-batch; its running state is kept in `objective_state` and in the checkpoints.
    negatives: K, the number of a row's rejected answers to use, drawn again in each epoch (all where a row has fewer);
    None for all.
    peft_config: adapters to train instead of the model.

    The reference is the model as passed in, without the adapters of `peft_config` but with any that it already has (to
    resume, pass it again): its log-probs of all answers of each row that training will visit, and of `eval_dataset`'s,
    are computed once, before the first step, and there is no second copy of the model; checkpoints keep them.
    reference_cache: a folder that keeps them for other runs from the same model on the same rows; another process that
    needs the same ones waits for them, and an interrupted run resumes where it was. Objectives without a reference use
    it only for `pair_loss` and the reward win rate. Dropout is turned off in the model.

    `evaluate` ranks `eval_dataset`'s answers and leaves the report in `validation_report`; the reference's log-probs
    of them are in `validation_reference`.
    Raises ValueError as `token_rows` and `preference_loss` do, and for arguments that it would otherwise ignore.
    """

    validation_report: Report
    validation_reference: Scores | None = None

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: TrainingArguments,
        train_dataset: Rows,
        eval_dataset: Rows | None = None,
        *,
        processing_class: PreTrainedTokenizerBase,
        objective: str | Objective | Aggregate = "dmpo",
        negatives: int | None = None,
        beta: float = 1.0,
        dynamic: DynamicPO | None = None,
        reference_cache: Path | None = None,
        peft_config: PeftConfig | None = None,
        **others: Any,
    ):
        if negatives is not None and negatives < 1:
            raise ValueError(f"negatives is {negatives}: give at least 1, or None for all that a row has.")
        check_arguments(args, others, "DPOConfig", beta)
        zeros = torch.zeros(2, 3)  # two rows, on which mistakes show before hours of reference log-probs
        with torch.random.fork_rng(devices=[]):
            preference_loss(objective, zeros, zeros, beta=beta, dynamic=dynamic, lengths=torch.ones(2, 3))
        self._objective, self.beta, self.dynamic, self.negatives = objective, beta, dynamic, negatives
        self.objective_state: State | None = None
        arithmetic = json.dumps([args.device.type, args.bf16, args.fp16]).encode()
        before = b"" if reference_cache is None else fingerprint(model)
        self.adapts = peft_config is not None
        super().__init__(model, args, train_dataset, eval_dataset, processing_class, peft_config, **others)
        disable_dropout(self.model)
        self.references = Reference(self._reference_logps, reference_cache, before, arithmetic)
        visits = [(row, range(min(4, count))) for row, count in enumerate(self.train_dataset.counts[:2])]
        first: PackedBatch = self.pack(self.train_dataset, visits)["groups"][0]
        check_quiet(self.model, first, packed_logps)
        if isinstance(self.model, PeftModel) and not self.adapts:
            warn_of_adapters(self.model, first, packed_logps)
        self.measured: list[dict[str, tuple[float, int]]] = []  # of the micro-batches of the last step
        self.measured_step = -1
        if self.eval_dataset is not None:
            self.validation_reference = self.reference_logps(self.eval_dataset)

    @cached_property
    def reference(self) -> Scores:
        """The reference's log-probs (rows, answers) of `train_dataset`: NaN in rows that training will not visit, −inf
        where a row has no such answer. Computed when `train` begins, or when asked for before that."""
        return self.references.logps(self.train_dataset, self._visited())

    def train(self, *arguments: Any, **named: Any) -> Any:
        """`transformers.Trainer.train`, after the reference's log-probs of the rows that it will visit."""
        _ = self.reference
        return super().train(*arguments, **named)

    def _reference_logps(self, rows: TokenRows, which: NDArray[np.int64]) -> Batches:
        """Log-probs by the model before training, without the adapters added here."""
        with without_adapters(self.model) if self.adapts else nullcontext():
            yield from self.logps(rows, which, "reference")

    def read(self, rows: Rows | TokenRows) -> TokenRows:
        if isinstance(rows, SequenceRows):
            raise ValueError("Rows of sequences have no rejected answers; give rows of preferences.")
        mine = self.negatives, self.args.seed
        if isinstance(rows, TokenRows):  # read by this trainer, or by one with other settings
            return rows if (rows.negatives, rows.seed) == mine else TokenRows(rows.prompts, rows.answers, *mine)
        return token_rows(self.tokenizer, rows, preference_answers, self.context, *mine)

    def _visited(self) -> NDArray[np.int64]:
        """The rows that training will visit: all of them, or the first in order if it ends within the first epoch."""
        rows_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        steps = self.args.max_steps
        if steps <= 0:
            steps = math.ceil(self.args.num_train_epochs * math.ceil(len(self.train_dataset) / rows_per_step))
        return self._get_train_sampler().order(0)[: steps * rows_per_step]

    def reference_logps(self, rows: Rows | TokenRows) -> Scores:
        """Log-probs (rows, answers) of all answers of `rows`, chosen first, by the reference, from the cache or
        computed; −inf where a row has fewer. Raises ValueError after the first step, which changes the model."""
        if self.state.global_step:
            raise ValueError("The model has been trained and is no longer the reference; call this before training.")
        read = self.read(rows)
        return self.references.logps(read, np.arange(len(read)))

    def collate(self, visits: list[tuple[int, NDArray[np.int64]]]) -> dict[str, Any]:
        packed = self.pack(self.train_dataset, visits)
        reference = torch.full(packed["mask"].shape, -math.inf)
        reference[packed["mask"]] = torch.from_numpy(np.concatenate([self.reference[visit] for visit in visits]))
        return {"packed": packed, "reference": reference, "items": len(visits)}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        packed, reference = inputs["packed"], inputs["reference"]
        policy, mask = packed_logps(model, packed), packed["mask"][:, 1:]
        self.check_finite(policy[packed["mask"]])
        rows = (reference, self.beta, mask, packed["lengths"])
        output = preference_loss(self._objective, policy, *rows, dynamic=self.dynamic, state=self.objective_state)
        if model.training:
            self.objective_state = output.state
            if self.measured_step != self.state.global_step:
                self.measured, self.measured_step = [], self.state.global_step
            self.measured.append(measure(output, policy, reference, mask))
        loss = output.losses.sum() / (num_items_in_batch or inputs["items"])
        return (loss, {"policy": policy}) if return_outputs else loss

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        save_reference(output_dir, **self._scored())
        if self.objective_state is not None:
            Path(output_dir, STATES[0]).write_text(json.dumps(self.objective_state), encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint and Path(checkpoint, REFERENCE).is_file():
            adapted = hasattr(self.model, "peft_config") and not self.adapts
            found = saved_reference(checkpoint, adapted, **self._scored())
            self.reference, self.validation_reference = found["train"], found.get("validation")
        for path in (Path(checkpoint, name) for name in STATES if checkpoint):
            if path.is_file():
                self.objective_state = json.loads(path.read_text(encoding="utf-8"))

    def _scored(self) -> dict[str, tuple[TokenRows, Scores]]:
        """The rows whose reference log-probs a checkpoint keeps, and those log-probs."""
        found = {"train": (self.train_dataset, self.reference)}
        if self.eval_dataset is not None and self.validation_reference is not None:
            found["validation"] = (self.eval_dataset, self.validation_reference)
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.measured and "loss" in logs:
            for name in {name: None for batch in self.measured for name in batch}:
                sums, counts = zip(*(batch[name] for batch in self.measured if name in batch), strict=True)
                logs[name] = sum(sums) / sum(counts)
        super().log(logs, start_time)

    def measures(self, rows: TokenRows) -> dict[str, float]:
        """Ranking metrics, for `eval_dataset` also those that compare with the reference, and `mean_logps`."""
        if rows is not self.eval_dataset:
            return report(self.score(rows)).metrics
        # Before the first step the model is the reference, unless adapters were added here.
        reference = self.validation_reference
        known = None if self.state.global_step or self.adapts else reference
        self.validation_report = found = report(self.score(rows) if known is None else known, reference)
        return found.metrics if reference is None else found.metrics | mean_logps(found.scores, reference)


def mean_logps(scores: Scores, reference: Scores) -> dict[str, float]:
    """Mean log-probs (users, 1 + K) of the chosen answers, "logp_chosen", and of the negatives that are boundary or
    discriminative under the reference, so that each mean is of the same answers throughout training."""
    near = boundary(torch.from_numpy(reference)).numpy()
    far = (reference[:, 1:] > -np.inf) & ~near
    groups = {"chosen": scores[:, 0], "boundary": scores[:, 1:][near], "discriminative": scores[:, 1:][far]}
    return {f"logp_{name}": float(group.mean(dtype=np.float64)) for name, group in groups.items() if len(group)}


def measure(output: PreferenceOutput, policy: Tensor, reference: Tensor, mask: Tensor) -> dict[str, tuple[float, int]]:
    """One training batch under the microscope, as sums and counts: the log-probs of chosen and rejected answers,
    `pair_loss` over its negatives, the share of boundary negatives, and the push on boundary and on discriminative
    negatives, where the batch has any. mask: False where a row has fewer negatives."""
    # Only through the loss, not through the model: ∂L/∂s of each negative.
    push = torch.autograd.grad(output.losses.sum(), policy, retain_graph=True)[0][:, 1:]
    logps = policy.detach()
    ratio = logps - reference
    groups = {
        "logp_chosen": (logps[:, 0], mask.any(1)),
        "logp_rejected": (logps[:, 1:], mask),
        "pair_loss": (softplus(ratio[:, 1:] - ratio[:, :1]), mask),
        "boundary_share": (output.boundary.float(), mask),
        "push_boundary": (push, output.boundary),
        "push_discriminative": (push, mask & ~output.boundary),
    }
    return {
        name: (values[group].sum().item(), int(group.sum())) for name, (values, group) in groups.items() if group.any()
    }
