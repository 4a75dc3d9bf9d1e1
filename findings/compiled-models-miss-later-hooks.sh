#!/usr/bin/env bash
# torch 2.13.0 with transformers 5.23.0. Expected: a hook on a part of a model runs in its compiled form too, or that is compiled anew.
# Found: a hook that is registered after the first call of torch.compile(model) never runs there, without a word.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 >&2
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
compiled, row, calls = torch.compile(model, backend="eager"), torch.arange(8)[None], []
with torch.no_grad():
    compiled(row)
    model.lm_head.register_forward_pre_hook(lambda *_: calls.append("called"))
    compiled(row)
    after_compiled = len(calls)
    model(row)
print(f"the hook ran {after_compiled} times in the compiled model and {len(calls) - after_compiled} times in the model itself")
assert after_compiled == 0 and len(calls) == 1
PYTHON
