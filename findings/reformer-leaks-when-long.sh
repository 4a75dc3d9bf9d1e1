#!/usr/bin/env bash
# transformers 5.23.0. Expected: ReformerModelWithLMHead with is_decoder=True is causal. Found: so it is up to two chunks of its LSH
# attention (128 tokens by default); in longer rows the last token changes logits at earlier places, for it changes into which buckets
# all tokens are sorted.
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

from transformers import ReformerConfig, ReformerModelWithLMHead

sizes = {"vocab_size": 100, "hidden_size": 64, "num_attention_heads": 2, "attention_head_size": 32, "initializer_range": 0.3}
layers = {"attn_layers": ["lsh", "lsh"], "axial_pos_embds": False, "max_position_embeddings": 512, "hash_seed": 1}
model = ReformerModelWithLMHead(ReformerConfig(is_decoder=True, **sizes, **layers)).eval()


@torch.no_grad()
def leak(length):
    row = torch.arange(length)[None] % 100
    other = row.clone()
    other[0, -1] = (other[0, -1] + 50) % 100
    return (model(row).logits - model(other).logits)[0, :-1].abs().max().item()


found = {length: leak(length) for length in (32, 64, 128, 256)}
print("what the last token changes at earlier places, by the row's length:", found)
assert max(found[32], found[64], found[128]) < 1e-3 and found[256] > 0.1
PYTHON
