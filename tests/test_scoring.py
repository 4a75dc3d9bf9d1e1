import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from minipo.models import add_lora, pocket_tokenizer
from minipo.scoring import candidate_logps, pack, pack_ids, packed_logps, tokenize, tokenize_answers

ITEMS = ["Velvet Tiger", "Neon Fox", "Fox", "Iron Lark Song", "Redemption, The (1994)", "Glass"]
# Prompts of different lengths; ragged K; candidates of one token, of several, and of bytes.
PROMPTS = ["Velvet Tiger, Neon Fox,", "Fox,", "Iron Lark Song, Glass, Redemption, The (1994), Fox, Velvet Tiger,"]
CANDIDATES = [
    [" Fox", " Iron Lark Song", " Glass", " Velvet Tiger"],
    [" Redemption, The (1994)", " Fôx"],
    [" Neon Fox", " Glass", " Glass"],
]
# Small vocabularies with weights far from zero, so that attention decides and errors in the mask show.
DECODERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, DECODERS | {"num_key_value_heads": 2, "max_position_embeddings": 64}),
    "llama": (LlamaForCausalLM, LlamaConfig, DECODERS | {"num_key_value_heads": 2, "max_position_embeddings": 64}),
}


@pytest.fixture(scope="module")
def tokenizer():
    return pocket_tokenizer(ITEMS)


def make_model(name, tokenizer, attention="sdpa", lora=False, dtype=torch.float32, seed=0):
    architecture, configuration, sizes = CONFIGS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = architecture(configuration(vocab_size=len(tokenizer), **sizes))
        model.set_attn_implementation(attention)
        if dtype == torch.float64:
            in_float64(model)
        if lora:
            model = add_lora(model, rank=4)
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # lora_B too, which starts at zero
                torch.nn.init.normal_(parameter, std=0.3 if "embed" not in parameter_name else 1.0)
    return model.to(dtype).eval()


def in_float64(model):
    """Qwen2's and Llama's own norms compute in float32 whatever the model's dtype; put torch's in their place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon))


def plain_logps(model, tokenizer, prompts=PROMPTS, candidates=CANDIDATES):
    """One forward a candidate, no mask, no packing: what the packed scores must equal."""
    width = max(map(len, candidates))
    scores = []
    for prompt, row in zip(prompts, candidates, strict=True):
        for text in row:
            start = tokenizer.encode(prompt)
            ids = torch.tensor([start + tokenizer.encode(text) + [tokenizer.eos_token_id]])
            logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            scores.append(logps.gather(1, ids[0, 1:, None])[len(start) - 1 :].sum())
        scores += [torch.tensor(-torch.inf, dtype=scores[0].dtype)] * (width - len(row))
    return torch.stack(scores).view(len(prompts), width)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
class TestEqualsOneForwardPerCandidate:
    def test_float32(self, name, attention, lora, tokenizer):
        model = make_model(name, tokenizer, attention, lora)
        scores = candidate_logps(model, tokenizer, PROMPTS, CANDIDATES)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, plain_logps(model, tokenizer), atol=1e-4, rtol=0)

    def test_scores_and_gradients_in_float64(self, name, attention, lora, tokenizer):
        model = make_model(name, tokenizer, attention, lora, torch.float64)
        packed = pack(tokenizer, PROMPTS, CANDIDATES)
        scores, expected = packed_logps(model, packed), plain_logps(model, tokenizer)
        assert scores.dtype == torch.float64
        # The eager attention of Qwen2 and Llama takes its softmax in float32.
        tolerance = (
            {"atol": 1e-9, "rtol": 1e-9} if name == "gpt2" or attention == "sdpa" else {"atol": 1e-4, "rtol": 1e-5}
        )
        torch.testing.assert_close(scores, expected, **tolerance)
        # Different weights, so that gradients of different candidates cannot stand in for each other.
        weights = torch.linspace(0.5, 2, int(packed["mask"].sum()), dtype=torch.float64)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad((scores[packed["mask"]] * weights).sum(), parameters)
        plain = torch.autograd.grad((expected[packed["mask"]] * weights).sum(), parameters)
        assert max(gradient.abs().max() for gradient in plain) > 0.1
        for gradient, wanted in zip(gradients, plain, strict=True):
            torch.testing.assert_close(gradient, wanted, **tolerance)


@pytest.mark.parametrize("name", CONFIGS)
def test_attention_decides_the_scores_of_these_models(name, tokenizer):
    """Else the tests above would pass with any mask."""
    model = make_model(name, tokenizer)
    packed = pack(tokenizer, PROMPTS, CANDIDATES)
    causal = {**packed, "segments": packed["segments"].clamp(max=0)}  # candidates see their elder siblings
    assert (packed_logps(model, causal) - packed_logps(model, packed))[packed["mask"]].abs().max() > 0.1


def test_a_sibling_does_not_change_the_others_scores(tokenizer):
    model = make_model("gpt2", tokenizer)
    before = candidate_logps(model, tokenizer, PROMPTS, CANDIDATES)
    changed = [[" Redemption, The (1994)", *row[1:]] for row in CANDIDATES]
    after = candidate_logps(model, tokenizer, PROMPTS, changed)
    torch.testing.assert_close(after[:, 1:], before[:, 1:], atol=1e-5, rtol=1e-5)
    assert (after[0, 0] - before[0, 0]).abs() > 1


def test_batches_are_scored_as_one(tokenizer):
    model = make_model("qwen2", tokenizer)
    whole = candidate_logps(model, tokenizer, PROMPTS, CANDIDATES, batch_size=3)
    torch.testing.assert_close(candidate_logps(model, tokenizer, PROMPTS, CANDIDATES, batch_size=1), whole)
    assert not whole.requires_grad
    assert candidate_logps(model, tokenizer, [], []).shape == (0, 0)


def test_training_mode_weights_and_hooks_stay_as_they_were(tokenizer):
    model = make_model("llama", tokenizer).train()
    candidate_logps(model, tokenizer, PROMPTS, CANDIDATES)
    assert model.training
    assert not model.lm_head._forward_pre_hooks
    model.model.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        candidate_logps(model, tokenizer, PROMPTS, CANDIDATES)
    assert not model.lm_head._forward_pre_hooks


def test_logits_are_computed_only_where_a_candidate_token_is_predicted(tokenizer):
    model = make_model("gpt2", tokenizer)
    positions = []
    model.lm_head.register_forward_hook(lambda module, inputs, logits: positions.append(logits.shape[:-1].numel()))
    candidate_logps(model, tokenizer, PROMPTS, CANDIDATES)
    # A prompt's last token predicts the first token of all its candidates; each candidate token predicts the next.
    tokens = sum(len(tokenizer.encode(text)) for row in CANDIDATES for text in row)
    assert positions == [len(PROMPTS) + tokens]


def test_the_models_own_logit_scaling_is_kept(tokenizer):
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    model = GraniteForCausalLM(
        GraniteConfig(vocab_size=len(tokenizer), logits_scaling=3.0, initializer_range=0.3, **DECODERS)
    ).eval()
    scores = candidate_logps(model, tokenizer, PROMPTS, CANDIDATES)
    torch.testing.assert_close(scores, plain_logps(model, tokenizer), atol=1e-4, rtol=0)


def test_bfloat16_models_give_float32_scores(tokenizer):
    model = make_model("llama", tokenizer, dtype=torch.bfloat16)
    scores = candidate_logps(model, tokenizer, PROMPTS, CANDIDATES)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, plain_logps(model, tokenizer).float(), atol=2, rtol=0.1)


def test_the_packed_row_may_be_longer_than_the_context(tokenizer):
    model = make_model("gpt2", tokenizer)  # context 64
    candidates = [[f" {item}" for item in ITEMS * 6]]
    packed = pack(tokenizer, PROMPTS[2:], candidates)
    assert packed["input_ids"].shape[1] > 64
    expected = plain_logps(model, tokenizer, PROMPTS[2:], candidates)
    torch.testing.assert_close(packed_logps(model, packed), expected, atol=1e-4, rtol=0)


def test_lengths_and_mask_of_a_packed_batch(tokenizer):
    packed = pack(tokenizer, PROMPTS, CANDIDATES)
    assert packed["lengths"].tolist() == [[2, 4, 2, 3], [5, 6, 0, 0], [3, 2, 2, 0]]
    assert packed["mask"].tolist() == [[True] * 4, [True, True, False, False], [True, True, True, False]]


def test_tokenizing_once_and_packing_ids_is_the_same_as_packing_text(tokenizer):
    prompts = tokenize(tokenizer, PROMPTS, special=True)
    answers = [tokenize_answers(tokenizer, row) for row in CANDIDATES]
    assert [ids.tolist() for ids in prompts] == [tokenizer.encode(prompt) for prompt in PROMPTS]
    packed, expected = pack_ids(prompts, answers, tokenizer.pad_token_id), pack(tokenizer, PROMPTS, CANDIDATES)
    assert packed.keys() == expected.keys()
    assert all(torch.equal(packed[key], expected[key]) for key in packed)


# Refusals


def sliding_qwen2(tokenizer):
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **DECODERS, **window))


def sliding_mistral(tokenizer):
    sizes = DECODERS | {"num_key_value_heads": 2, "sliding_window": 4}
    return MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), **sizes))


def encoder_decoder(tokenizer):
    return T5ForConditionalGeneration(
        T5Config(vocab_size=len(tokenizer), d_model=16, d_ff=16, num_layers=1, num_heads=2)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sliding_qwen2, "qwen2 model cannot .* sliding_attention"),
        (sliding_mistral, "mistral model cannot .* window of 4 tokens"),
        (encoder_decoder, "t5 model cannot .* encoder-decoder"),
    ],
)
def test_models_that_cannot_take_the_packed_mask_are_refused(make, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        candidate_logps(make(tokenizer), tokenizer, PROMPTS, CANDIDATES)


def test_attention_that_ignores_the_mask_is_refused(tokenizer):
    model = make_model("llama", tokenizer)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"llama model cannot .* flash_attention_2"):
        candidate_logps(model, tokenizer, PROMPTS, CANDIDATES)


def test_beyond_the_context_names_the_row_and_its_lengths(tokenizer):
    model = make_model("gpt2", tokenizer)
    fits = ["Fox, Glass,", "Fox, Glass,", ", ".join(["Fox"] * 31) + ","]  # 2 tokens an item: 62 + 2 = 64
    rows = [[" Glass"], [" Glass"], [" Glass", " Velvet Tiger"]]
    candidate_logps(model, tokenizer, fits, rows, batch_size=2)
    rows[2].append(" Iron Lark Song")
    with pytest.raises(ValueError, match=r"Row 2 needs 65 tokens \(prompt 62, longest candidate 3\).* 64 "):
        candidate_logps(model, tokenizer, fits, rows, batch_size=2)


@pytest.mark.parametrize(
    ("prompts", "candidates", "message"),
    [
        (["Fox,", ""], [[" Fox"], [" Fox"]], "prompt of row 1 tokenizes to nothing"),
        (["Fox,", "Fox,"], [[" Fox"], [" Fox", ""]], "Candidate 1 of row 1 tokenizes to nothing"),
        (["Fox,", "Fox,"], [[" Fox"], []], "Row 1 has no candidates"),
        (["Fox,", "Fox,"], [[" Fox"]], "2 prompts came with 1 rows"),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_rows_that_cannot_be_scored_are_named(prompts, candidates, message, batch_size, tokenizer):
    with pytest.raises(ValueError, match=message):
        candidate_logps(make_model("gpt2", tokenizer), tokenizer, prompts, candidates, batch_size=batch_size)


def test_other_bad_input(tokenizer):
    model = make_model("gpt2", tokenizer)
    with pytest.raises(ValueError, match="batch_size is 0"):
        candidate_logps(model, tokenizer, PROMPTS, CANDIDATES, batch_size=0)
    endless = pocket_tokenizer(ITEMS)
    endless.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        candidate_logps(model, endless, PROMPTS, CANDIDATES)


def test_packing_takes_time_by_the_token_not_by_the_loop():
    """32 users with 20 candidates pack within 4 ms (0.2 ms where this was written)."""
    from time import perf_counter

    prompts, answers = [np.arange(18)] * 32, [[np.arange(3)] * 20] * 32
    seconds = []
    for _ in range(10):
        start = perf_counter()
        pack_ids(prompts, answers, 0)
        seconds.append(perf_counter() - start)
    assert min(seconds) < 4e-3
