#!/usr/bin/env bash
# peft 0.21.2. Expected: an adapter of linear layers leaves a causal model causal. Found: a trained Lily adapter routes by the mean
# over all tokens of the forward, so that a later token, and another row of the batch, change what earlier places give. Fresh, it is the
# identity and shows nothing of this.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2 >&2
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import torch
import transformers

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
SIZES = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "initializer_range": 0.3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 4}

from peft import LilyConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

adapter = LilyConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
model = get_peft_model(LlamaForCausalLM(LlamaConfig(**SIZES)), adapter).eval()
row = torch.arange(16)[None]
other = row.clone()
other[0, -1] = 99


@torch.no_grad()
def leaks():
    alone = model(row).logits
    later = (alone - model(other).logits)[0, :-1].abs().max().item()
    return later, (alone - model(torch.cat([row, other])).logits[:1]).abs().max().item()


fresh = leaks()
for weight in model.parameters():
    if weight.requires_grad:
        weight.data.add_(0.2 * torch.randn_like(weight))
trained = leaks()
print(f"logits that a later token and a neighbouring row change: fresh {fresh}, trained {trained}")
assert max(fresh) < 1e-4 and min(trained) > 0.05
PYTHON
