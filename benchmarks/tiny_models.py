"""A tiny model of any causal architecture, and any adapter for it. Not a benchmark itself: architectures.py tests them.

General rules make a configuration small, by the names of its fields; `FURTHER` has what a class needs in addition.
"""

import dataclasses
import tempfile
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from minipo.experiments.models import pocket_tokenizer

TOKENIZER = pocket_tokenizer(["Fox", "Glass", "Neon Fox", "Iron Lark Song"])
CONTEXT, WINDOW = 96, 16

SIZES = {
    name: value
    for names, value in {
        "vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size": len(TOKENIZER),
        "hidden_size d_model n_embd dim_model emb_dim embedding_dim embedding_size word_embed_proj_dim "
        "lru_width input_embedding_size output_embedding_size backbone_hidden_size hidden_size_global "
        "adapter_input_size adapter_in_dim adapter_out_dim": 64,
        "intermediate_size intermediate_size_mlp ffn_dim ffn_hidden_size expert_ffn_hidden_size encoder_ffn_dim "
        "decoder_ffn_dim dff dim_ff n_inner d_inner feed_forward_size moe_intermediate_size dense_intermediate_size "
        "shared_expert_intermediate_size shared_experts_intermediate_size moe_shared_expert_intermediate_size": 96,
        # Few heads of an indexer give many tokens the score 0, and which of them are its best is then left to chance.
        "index_n_heads indexer_n_heads q_lora_rank kv_lora_rank o_lora_rank hidden_size_per_layer_input laurel_rank "
        "hc_lowrank router_hidden_size original_max_position_embeddings": 32,
        "qk_head_dim": 24,
        "head_dim dim_head d_head attention_head_size swa_head_dim index_head_dim linear_head_dim v_head_dim "
        "linear_key_head_dim linear_value_head_dim qk_nope_head_dim kv_channels global_head_dim mamba_d_state "
        "state_size ssm_state_size query_pre_attn_scalar": 16,
        "qk_rope_head_dim rotary_dim chunk_size mamba_chunk_size": 8,
        "num_attention_heads attention_heads decoder_attention_heads encoder_attention_heads n_head n_heads num_heads "
        "num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads linear_num_heads "
        "linear_num_value_heads num_experts n_routed_experts num_local_experts moe_num_experts zero_expert_num "
        "index_topk adapter_rank prompt_length prompt_types segment_types": 4,
        "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads linear_num_key_heads "
        "num_global_key_value_heads num_experts_per_tok num_experts_per_token moe_topk moe_k "
        "top_k_experts depth num_blocks": 2,
        "n_group topk_group num_expert_group n_groups n_shared_experts first_k_dense_replace num_dense_layers": 1,
        "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions max_source_positions "
        "context_length model_max_length": CONTEXT,
        "sliding_window sliding_window_size attention_window_size window_size local_attention keep_window_size "
        "local_attention_window_len attention_chunk_size": WINDOW,
        "pad_token_id": TOKENIZER.pad_token_id,
        "bos_token_id eos_token_id": TOKENIZER.eos_token_id,
    }.items()
    for name in names.split()
}
LAYERS = (
    "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers num_encoder_layers"
).split()
LATENT = {"num_key_value_heads": 4}  # each head of latent attention has its own keys and values
MAMBA2 = {"mamba_d_head": 16, "mamba_n_heads": 8}
ENDS = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32}
LONGROPE = {"rope_parameters": ENDS | {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}, "sliding_window": None}
# Further settings of a small configuration, by model type.
FURTHER: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        "axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 dots3_note_text glm4_moe_lite glm_moe_dsa hy_v4 "
        "kimi_linear minicpm3 youtu".split(),
        LATENT,
    ),
    "bamba": {"attn_layer_indices": [1], **MAMBA2},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4, "attn_pdrop": 0.3}},
    "diffllama": {"attention_dropout": 0.0},  # it accepts no other
    "falcon_h1": {"mamba_d_ssm": 128, **MAMBA2},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "intermediate_size": 96,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"], **MAMBA2},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8, **LATENT},
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": {"indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8, "indexer_compress_ratio": 4},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [8, 12],
        "axial_pos_embds_dim": [32, 32],
        "attn_layers": ["local", "lsh"],
        "lsh_attn_chunk_length": 8,
        "local_attn_chunk_length": 8,
        "num_buckets": 4,
    },
    "rwkv": {"attention_hidden_size": 64},
    "xlstm": {"chunk_size": 16, "hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_key_value_heads": 4,
        "mamba_dt_rank": 8,
    },
    "zamba2": {"num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}
# What may follow a comma in a name.
VARIANTS: dict[str, dict[str, Any]] = {
    "as a decoder": {"is_decoder": True},
    "causal": {"causal": True},
    "longrope": LONGROPE,
    "bidirectional": {"use_bidirectional_attention": True},
    "bidirectional in all": {"use_bidirectional_attention": "all"},
    "dynamic rope": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    "of tuples": {"return_dict": False},
}
VIRTUAL = {"num_virtual_tokens": 4}
# Settings of an adapter by its type; those of a variant come on top.
TUNERS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "C3A": {"block_size": 16},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": [5, 258, 259, 260]},
    "VBLORA": {"vector_length": 16},
    "WAVEFT": {"n_frequency": 256},
    **dict.fromkeys("CARTRIDGE CPT MULTITASK_PROMPT_TUNING PREFIX_TUNING PROMPT_TUNING P_TUNING".split(), VIRTUAL),
    "LORA, DoRA": {"use_dora": True},
    "LORA, aLoRA": {"alora_invocation_tokens": TOKENIZER.encode(",")[-1:]},
    "LORA, aLoRA in a candidate": {"alora_invocation_tokens": TOKENIZER.encode(" Lark")},
    "LORA, not the identity": {"init_lora_weights": False},
    "PVERA, sampling": {"sample_at_inference": True},
}


def small(config: PreTrainedConfig, **further: Any) -> PreTrainedConfig:
    """A tiny `config`: one layer of each kind, at least two, and noise wherever possible."""
    names = {field.name for field in dataclasses.fields(config)}
    fields = {name: value for name, value in vars(config).items() if name in names}
    layers = next((fields[name] for name in LAYERS if name in fields), None)
    of_layers = {name: value for name, value in fields.items() if isinstance(value, list) and len(value) == layers}
    kinds = list(zip(*of_layers.values(), strict=True))
    kept = [place for place, kind in enumerate(kinds) if kind not in kinds[:place]]
    kept += range(2 - len(kept))
    changed: dict[str, Any] = {name: [value[place] for place in kept] for name, value in of_layers.items()}
    for name, value in fields.items():
        if isinstance(value, PreTrainedConfig):
            changed[name] = small(value)
        elif name in LAYERS:
            changed[name] = len(kept)
        elif name in SIZES and (value is None or (isinstance(value, int) and value)):
            changed[name] = SIZES[name]
        elif isinstance(value, float) and ("drop" in name or "jitter" in name):  # a probability, or the width of noise
            changed[name] = 0.3
    own = {name: value for name, value in config.to_diff_dict().items() if name in fields}  # a part's may differ
    return type(config)(**own | changed | FURTHER.get(config.model_type, {}) | further)


def architecture(name: str) -> nn.Module:
    """The tiny model called `name`, or "name, variant", with weights under a seed."""
    name, *variants = name.split(", ")
    further = {field: value for variant in variants for field, value in VARIANTS[variant].items()}
    default = CONFIG_MAPPING[name]
    config = small(default(**FURTHER[name]) if name == "dbrx" else default(), **further)
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[default]
    if not isinstance(config, cls.config_class):  # it reads only text
        config = next((part for part in vars(config).values() if isinstance(part, cls.config_class)), config)
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            # Far enough from zero for every token, mask and position to matter; wider weights stay.
            if weights.dim() > 1 and not weights.std() > 0.1:
                weights.normal_(std=0.3)
            elif weights.dim() == 1:
                weights.add_(0.1 * torch.randn_like(weights))
    return model


def adapted(name: str) -> tuple[nn.Module, peft.PeftConfig]:
    """The tiny model and the adapter for it that "adapter, variant on model" names."""
    adapter, base = name.split(" on ")
    kind = adapter.split(", ")[0]
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    noise = {field.name: 0.3 for field in dataclasses.fields(cls) if "dropout" in field.name and field.default == 0.0}
    further = TUNERS.get(kind, {}) | TUNERS.get(adapter, {})
    model: Any = architecture(base)
    if kind == "XLORA":  # it mixes adapters that were saved before
        model.config.use_cache = False
        experts = [tempfile.mkdtemp() for _ in range(2)]
        for seed, folder in enumerate(experts):
            saved = architecture(base)
            torch.manual_seed(seed)
            peft.get_peft_model(saved, peft.LoraConfig(init_lora_weights=False)).save_pretrained(folder)
        further |= {"adapters": dict(zip("01", experts, strict=True)), "hidden_size": 64, "xlora_size": 16}
    return model, cls(task_type="CAUSAL_LM", **noise | further)


def names() -> list[str]:
    """All rows: architectures, some of them in a variant too, then adapters."""
    rows = []
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        rows.append(name)
        fields = {field.name: field.default for field in dataclasses.fields(CONFIG_MAPPING[name])}
        if fields.get("is_decoder") is False and not fields["is_encoder_decoder"] and name != "reformer":
            rows.append(f"{name}, as a decoder")
        if fields.get("causal") is False:
            rows.append(f"{name}, causal")
        if "use_bidirectional_attention" in fields:
            rows.append(f"{name}, bidirectional{' in all' if name.startswith('gemma4') else ''}")
    rows += ["llama, longrope", "qwen2, longrope", "phi3, longrope", "llama, dynamic rope", "gpt2, of tuples"]
    for base in ("gpt2", "llama"):
        for tuner in PEFT_TYPE_TO_CONFIG_MAPPING:
            variants = [name for name in TUNERS if name.startswith(f"{tuner.value}, ")]
            rows += [f"{adapter} on {base}" for adapter in (tuner.value, *variants)]
    return rows
