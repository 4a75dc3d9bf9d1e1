#!/usr/bin/env bash
# transformers 5.23.0. Expected: use_bidirectional_attention=True makes a Gemma 1 read both ways, whatever computes its attention. Found: so it
# does under sdpa and without padding alone; under eager attention the same model is causal.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 >&2
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import GemmaConfig, GemmaForCausalLM

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
sizes = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "initializer_range": 0.3}
sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
model = GemmaForCausalLM(GemmaConfig(**sizes, use_bidirectional_attention=True)).eval()
row = torch.arange(16)[None]
other = row.clone()
other[0, -1] = 99
leaks = {}
for attention in ("sdpa", "eager"):
    model.set_attn_implementation(attention)
    with torch.no_grad():
        leaks[attention] = (model(row).logits - model(other).logits)[0, :-1].abs().max().item()
print("what the last token changes at earlier places:", leaks)
assert leaks["sdpa"] > 0.5 and leaks["eager"] == 0
PYTHON
