#!/usr/bin/env bash
# transformers 5.23.0. Expected: config.return_dict = False makes a model return tuples, as the argument does. Found: the
# causal models of Llama and GPT-2 raise AttributeError then, for the part that they are made of returns a tuple too.
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

from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

row = torch.arange(8)[None]
for model in (LlamaForCausalLM(LlamaConfig(**SIZES)), GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=64, n_layer=1, n_head=4))):
    assert isinstance(model(row, return_dict=False), tuple)
    model.config.return_dict = False
    try:
        model(row)
        raise SystemExit("it returns something now")
    except AttributeError as error:
        print(type(model).__name__, "raises AttributeError:", error)
PYTHON
