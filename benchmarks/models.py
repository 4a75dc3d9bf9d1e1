"""What the models that minipo knows by name cost: `python benchmarks/models.py` (20 minutes to an hour).

SFT on rows of sequences and preference steps at K = 1 and 15, on MovieLens-100K, with the recipe of pretrained models
and the precision that is faster here. SmolLM2-135M is the real one. GPT-2 and Qwen2.5-0.5B are random weights of their
published shapes, with SmolLM2's tokenizer, whose titles have about as many tokens: time and memory hang on the shapes,
not on the weights. Each measurement runs in a separate process; peak memory is that of the whole process.

Prints a table and writes models.json beside this file.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import Report, alone, peak_memory, prepare, run
from sft_rows import invented, trainer_of
from transformers import AutoModelForCausalLM, GPT2Config, PretrainedConfig, Qwen2Config
from trl_step import Clock

from minipo.compatibility.architectures import context_of
from minipo.experiments.configuration import PreferConfig, SFTConfig, make_config, splits_of
from minipo.experiments.models import load_model
from minipo.experiments.precision import decide
from minipo.experiments.training import preference_trainer
from minipo.experiments.users import preference_rows

SHAPES: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(),
    "qwen2.5-0.5b": Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4_864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
}
FULL = {"models": ["smollm2-135m", *SHAPES], "dataset": "ml-100k", "warm_up": 2, "steps": 6}
QUICK = {"models": ["pocket-qwen2"], "warm_up": 1, "steps": 2}
JOBS = {"SFT": 0, "K = 1": 1, "K = 15": 15}


def measured(settings: Report) -> Report:
    """Seconds of a model's steps, its precision, its parameters, and memory."""
    prepare()
    name, steps, clock = settings["model"], settings["warm_up"] + settings["steps"], Clock()
    shared = {"dataset": settings["dataset"], "model": name} | settings.get("others", {})
    with tempfile.TemporaryDirectory() as folder:
        if name in SHAPES:
            shared["model"] = f"{folder}/model"
            model = AutoModelForCausalLM.from_config(SHAPES[name])
            model.save_pretrained(shared["model"])
            load_model("smollm2-135m")[1].save_pretrained(shared["model"])
        if not (negatives := settings["negatives"]):
            config: Any = make_config(SFTConfig, shared | {"epochs": 1})
            trainer: Any = trainer_of(config, steps, Path(folder), callbacks=[clock])
        else:
            config = make_config(PreferConfig, shared | {"negatives": negatives, "steps": steps})
            model, tokenizer = load_model(config.model, items=splits_of(config).items)
            config = decide(config, Path(folder), model, progress=False)
            users = splits_of(config).train[: steps * config.batch_size]
            rows = preference_rows(users, config.template, tokenizer, context_of(model))
            trainer = preference_trainer(
                config, model, tokenizer, rows, None, Path(folder), None, config.loss(), None, progress=False,
                save_strategy="no",
            )  # fmt: skip
            trainer.add_callback(clock)
        trainer.train()
    return {
        "parameters": sum(each.numel() for each in trainer.model.parameters() if not each.requires_grad),
        "precision": "bfloat16" if trainer.args.bf16 else "float32",
        "batch_size": config.batch_size,
        "accumulation": config.accumulation,
        "targets": len(splits_of(config).train),
        "seconds": np.diff(clock.ends[settings["warm_up"] - 1 :]).tolist(),
        "peak_gb": peak_memory(),
    }


def benchmark(quick: bool) -> Report:
    size = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        if quick:
            size = size | {"dataset": invented(Path(folder)), "others": {"batch_size": 4, "tuning": "lora"}}
        found = {
            name: {
                job: alone(__file__, size | {"model": name, "negatives": negatives}) for job, negatives in JOBS.items()
            }
            for name in size["models"]
        }
    return {"models": found}


if __name__ == "__main__":
    run(__file__, __doc__, benchmark, measured)
