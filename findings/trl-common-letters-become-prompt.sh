#!/usr/bin/env bash
# trl 1.16.0. Expected: of two conversations without a "prompt" column, the prompt is what stands before the last answer. Found: for
# text it is the common beginning, letter by letter, and the words that both answers begin with belong to it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 trl==1.16.0 >&2
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
from types import SimpleNamespace

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from trl.trainer.dpo_trainer import DPOTrainer


def byte_tokenizer(template=None):
    """A token a byte, and <eos>; `template`: what the tokenizer puts around a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(["<eos>", *letters])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<eos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def prepared(tokenizer, row):
    """What DPOTrainer makes of a row: prompt, chosen and rejected, decoded."""
    args = SimpleNamespace(dataset_num_proc=None, max_length=1024, truncation_mode="keep_start")
    rows = DPOTrainer._prepare_dataset(SimpleNamespace(_tokenizer=tokenizer), Dataset.from_list([row]), tokenizer, args, "train")
    return [tokenizer.decode(rows[0][name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]


start = "Human: Which film next? Assistant:"
found = prepared(byte_tokenizer(), {"chosen": f"{start} The Matrix", "rejected": f"{start} The Maze"})
print(found)
assert found == [f"{start} The", " Matrix<eos>", " Maze<eos>"] or found == [f"{start} The Ma", "trix<eos>", "ze<eos>"]
PYTHON
