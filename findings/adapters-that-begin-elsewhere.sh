#!/usr/bin/env bash
# peft 0.21.2. Expected: a fresh adapter leaves the model as it is. Found: FourierFT, VB-LoRA and C3A by their defaults do not, so
# that a reference taken with the adapter on is not the base model, and another one with another seed.
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

from peft import C3AConfig, FourierFTConfig, LoraConfig, VBLoRAConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

where = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
adapters = {
    "LoRA": LoraConfig(r=4, **where),
    "FourierFT": FourierFTConfig(n_frequency=100, **where),
    "VB-LoRA": VBLoRAConfig(num_vectors=16, vector_length=32, topk=2, **where),
    "C3A": C3AConfig(block_size=16, **where),
}
row, moved = torch.arange(16)[None], {}
for name, adapter in adapters.items():
    logits = []
    for seed in (0, 1):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
        torch.manual_seed(seed)
        with torch.no_grad():
            before = model(row).logits
            logits.append(get_peft_model(model, adapter).eval()(row).logits)
    moved[name] = [round((each - before).abs().max().item(), 3) for each in logits]
print("largest change of a logit by a fresh adapter, under two seeds:", moved)
assert moved.pop("LoRA") == [0, 0] and all(first > 0.005 and first != second for first, second in moved.values())
PYTHON
