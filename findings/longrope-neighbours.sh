#!/usr/bin/env bash
# transformers 5.23.0. Expected: what a row scores depends on the row. Found: under longrope the longest row of a batch
# decides whether all of its rows get the short or the long factors, so that a short row scores otherwise beside a long one.
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

factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 32}
rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
model = LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=128, rope_parameters=rope)).eval()


@torch.no_grad()
def difference(other):
    """By how much the log-probs of a row of 20 tokens differ alone and beside a row of so many."""
    batch, mask = torch.zeros(2, other, dtype=torch.long), torch.ones(2, other, dtype=torch.long)
    batch[0, :20], batch[1], mask[0, 20:] = torch.arange(20), torch.arange(other), 0
    alone, beside = model(batch[:1, :20]).logits, model(batch, attention_mask=mask).logits[:1, :20]
    return (alone.log_softmax(-1) - beside.log_softmax(-1)).abs().max().item()


within, beyond = difference(32), difference(33)
print(f"a row of 20 tokens beside one of 32: {within:.1e} nats; beside one of 33: {beyond:.2f} nats")
assert within < 1e-4 and beyond > 1
PYTHON
