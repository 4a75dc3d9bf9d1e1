"""Which arguments of `transformers.Trainer`, and of TRL's configs, minipo's trainers honour; the others are refused.

Silently ignoring them would give another run than the one asked for.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from torch import nn
from transformers import TrainingArguments

from minipo.compatibility.architectures import context_of

# These have no effect here, because minipo orders rows, computes losses and evaluates in its own way; or they change
# the model after the reference is computed.
UNSUPPORTED = (
    "bf16_full_eval",
    "data_seed",
    "deepspeed",
    "fp16_full_eval",
    "label_smoothing_factor",
    "train_sampling_strategy",
    "use_liger_kernel",
)
KEYWORDS = (
    "compute_loss_func",
    "compute_metrics",
    "data_collator",
    "model_init",
    "preprocess_logits_for_metrics",
    "ref_model",
)
# Fields of TRL's configs that are honoured, or that change nothing but speed.
HARMLESS = (
    "dataset_num_proc",
    "max_length",
    "pad_to_multiple_of",
    "precompute_ref_batch_size",
    "precompute_ref_log_probs",
    "truncation_mode",
)


def check_arguments(
    args: TrainingArguments, keywords: Mapping[str, Any], config: str, beta: float | None = None
) -> None:
    """Raise ValueError for anything in `args`, or in the keyword arguments for the Trainer, that is not supported here.

    config: the TRL config that `args` may be, at its defaults except for what `TrainingArguments` has too. beta: the
    trainer's own, in preference training.
    """
    for name in KEYWORDS:
        if name in keywords:
            raise ValueError(f"{name} is not supported, because rows, loss and metrics are minipo's own; leave it out.")
    for cls in type(args).__mro__:
        if cls.__module__.partition(".")[0] == "trl" and cls.__name__ not in ("_BaseConfig", config):
            raise ValueError(
                f"args is of TRL's {cls.__name__}, for another trainer; give TrainingArguments or {config}."
            )
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("args.fp16 is for GPUs, and on a CPU the Trainer would train in float32; leave it out.")
    # NEFTune adds noise, which the reference does not have.
    unsupported = UNSUPPORTED if beta is None else (*UNSUPPORTED, "neftune_noise_alpha")
    known = {field.name for field in fields(TrainingArguments)}
    for field in fields(args):
        value = getattr(args, field.name)
        if field.name == "beta" and beta is not None:
            if value != beta:
                raise ValueError(f"args.beta is {value} and the trainer's beta {beta}; give the trainer beta={value}.")
        elif field.name in unsupported or field.name not in known.union(HARMLESS):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            if default is not MISSING and value != default:
                raise ValueError(f"args.{field.name} is {value!r}, which is not supported; leave it at {default!r}.")


def longest_row(model: nn.Module, args: TrainingArguments) -> int | None:
    """The maximum tokens of a row, by the model's context and the `max_length` of a TRL config; None for no limit."""
    limits = (context_of(model), getattr(args, "max_length", None))
    return min((limit for limit in limits if limit is not None), default=None)
