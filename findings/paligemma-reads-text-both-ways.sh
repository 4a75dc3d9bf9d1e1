#!/usr/bin/env bash
# transformers 5.23.0. Expected: PaliGemma given text alone predicts it as its text part, a causal Gemma, does. Found: without
# token types all of it counts as the prefix and is read both ways: a later token changes earlier logits.
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

from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
vision |= {"image_size": 16, "patch_size": 8, "projection_dim": 16}
text = {"model_type": "gemma", "head_dim": 16} | SIZES
model = PaliGemmaForConditionalGeneration(PaliGemmaConfig(text_config=text, vision_config=vision, image_token_index=3)).eval()
row = torch.arange(10, 30)[None]
other = row.clone()
other[0, -1] = 99
with torch.no_grad():
    leak = (model(input_ids=row).logits - model(input_ids=other).logits)[0, :-1].abs().max().item()
print(f"what the last token changes at earlier places: {leak:.2f}")
assert leak > 0.5
PYTHON
