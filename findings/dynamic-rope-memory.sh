#!/usr/bin/env bash
# transformers 5.23.0. Expected: what a row scores does not depend on earlier calls. Found: under rope_type "dynamic", after a
# longer row the frequencies grown for it stay, and a row of exactly the original length is computed with them, until a shorter row
# comes.
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

rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
model = LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=32, rope_parameters=rope)).eval()
row, longer = torch.arange(32)[None], torch.arange(60)[None]
with torch.no_grad():
    first = model(row).logits
    model(longer)
    after_longer = model(row).logits
    model(row[:, :31])
    after_shorter = model(row).logits
print(f"the same 32 tokens: after a row of 60, {(first - after_longer).abs().max():.2f} apart; after one of 31, "
      f"{(first - after_shorter).abs().max():.2f}")
assert (first - after_longer).abs().max() > 1
assert torch.equal(first, after_shorter)
PYTHON
