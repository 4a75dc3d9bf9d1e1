#!/usr/bin/env bash
# transformers 5.23.0. Expected: a Llama is causal, whatever mask it is given. Found: with is_causal=False in its configuration
# it reads both ways under no mask or a mask of two dimensions, and what a mask of four dimensions says, causal or not, is obeyed: the
# same weights are two models, by the shape of a mask.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 >&2
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import torch
import transformers

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
SIZES = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "initializer_range": 0.3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 4}

from transformers import LlamaConfig, LlamaForCausalLM

model = LlamaForCausalLM(LlamaConfig(**SIZES, is_causal=False)).eval()
row = torch.arange(16)[None]
other = row.clone()
other[0, -1] = 99
additive = torch.full((1, 1, 16, 16), torch.finfo(torch.float32).min).triu(1)
leaks = {}
for name, mask in {"none": None, "two dimensions": torch.ones_like(row), "four dimensions": additive}.items():
    with torch.no_grad():
        here, there = (model(ids, attention_mask=mask).logits[0, :-1] for ids in (row, other))
    leaks[name] = (here - there).abs().max().item()
print("what the last token changes at earlier places, by mask:", {name: round(leak, 2) for name, leak in leaks.items()})
assert leaks["none"] > 1 and leaks["two dimensions"] > 1 and leaks["four dimensions"] == 0
PYTHON
