#!/usr/bin/env bash
# trl 1.16.0 with transformers 5.23.0. Expected: disable_dropout_in_model, by which DPOTrainer keeps policy and reference alike,
# turns dropout off. Found: it sets nn.Dropout alone. OPT, BioGPT, XGLM and others keep theirs as a number that is handed to
# torch.nn.functional.dropout, and compute something else in training mode after it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 trl==1.16.0 >&2
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import torch
import transformers

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
SIZES = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "initializer_range": 0.3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 4}

from transformers import BioGptConfig, BioGptForCausalLM, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM
from trl.trainer.utils import disable_dropout_in_model

small = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
models = {
    "GPT-2": GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=4, initializer_range=0.3)),
    "OPT": OPTForCausalLM(OPTConfig(**small, ffn_dim=96, word_embed_proj_dim=64, init_std=0.3)),
    "BioGPT": BioGptForCausalLM(BioGptConfig(**small, intermediate_size=96, initializer_range=0.3)),
}
row, differ = torch.arange(10, 26)[None], {}
for name, model in models.items():
    disable_dropout_in_model(model)
    with torch.no_grad():
        differ[name] = (model.train()(row).logits - model.eval()(row).logits).abs().max().item()
print("training and evaluation mode after disable_dropout_in_model differ by", differ)
assert differ["GPT-2"] == 0 and differ["OPT"] > 0.1 and differ["BioGPT"] > 0.1
PYTHON
