#!/usr/bin/env bash
# peft 0.21.2. Expected: OSF on GPT-2 adapts its layers, or says that it cannot, as other tuners do of Conv1D. Found: it wraps
# nn.Linear alone and takes GPT-2 without a word: nothing is trainable, and disable_adapter() then raises "No adapter layers found".
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

from peft import OSFConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=4))
model = get_peft_model(model, OSFConfig(target_modules=["c_attn"], task_type="CAUSAL_LM"))
trainable, of = model.get_nb_trainable_parameters()
print(f"{trainable} of {of:,} parameters can be trained")
assert trainable == 0
try:
    with model.disable_adapter():
        raise SystemExit("the adapter can be disabled now")
except ValueError as error:
    print("disable_adapter raises:", str(error)[:60])
PYTHON
