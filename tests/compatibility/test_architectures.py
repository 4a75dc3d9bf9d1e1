"""Models that people bring: scored as one forward a candidate does it, or refused in a sentence that names them."""

import warnings

import pytest
import torch
from peft import LilyConfig, LoraConfig, PolyConfig, get_peft_model
from transformers import (
    BigBirdConfig,
    BigBirdForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXJapaneseConfig,
    GPTNeoXJapaneseForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    ProphetNetConfig,
    ProphetNetForCausalLM,
    ReformerConfig,
    ReformerModelWithLMHead,
    RobertaConfig,
    RobertaForCausalLM,
)

from minipo.compatibility import tokenizers
from minipo.compatibility.architectures import context_of, examine
from minipo.experiments.models import pocket_tokenizer
from minipo.scoring import candidate_logps, pack, packed_logps

TOKENIZER = pocket_tokenizer(["Fox", "Glass", "Neon Fox", "Iron Lark Song"])
SIZE = len(TOKENIZER)
SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
SIZES = {"vocab_size": SIZE, "hidden_size": 32, "intermediate_size": 48, "pad_token_id": 0, "eos_token_id": 1} | SHAPE
PROMPTS = ["Fox, Glass,", "Fox, Neon Fox, Glass, Iron Lark Song,"]
CANDIDATES = [[" Fox", " Iron Lark Song", " Glass"]] * 2


@pytest.fixture(autouse=True)
def warnings_are_errors():
    tokenizers._warned.clear()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "(?s).*candidate on its own")
        yield


def plain_logps(model, prompts=PROMPTS, candidates=CANDIDATES):
    """One forward a candidate, of prompt, candidate and end-of-answer token."""
    rows = []
    for prompt, texts in zip(prompts, candidates, strict=True):
        start = TOKENIZER.encode(prompt)
        for text in texts:
            ids = torch.tensor([[*start, *TOKENIZER.encode(text), TOKENIZER.eos_token_id]])
            with torch.no_grad():
                logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            rows.append(logps.gather(1, ids[0, 1:, None])[len(start) - 1 :].sum())
    return torch.stack(rows).view(len(prompts), -1)


def llama(of=LlamaForCausalLM, **settings):
    return of(LlamaConfig(**SIZES | {"num_key_value_heads": 4} | settings)).eval()


def adapted(config, **settings):
    """A model whose adapter has been trained: most begin as the identity."""
    model = get_peft_model(llama(**settings), config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


LORA = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


LONGROPE = {
    "llama": lambda **settings: LlamaForCausalLM(LlamaConfig(**settings)),
    "phi3": lambda **settings: Phi3ForCausalLM(Phi3Config(**settings, original_max_position_embeddings=32)),
}


@pytest.mark.parametrize("name", LONGROPE)
@pytest.mark.parametrize("length", [29, 30, 31, 40])
def test_longrope_scores_each_side_of_its_limit_as_it_would_alone(name, length):
    """A forward with one row beyond the limit takes the long factors for all of its rows. The limit, 32 tokens, lies
    behind, at or before the end of the second, two tokens longer candidate."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 32}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0} | factors
    sizes = SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 128, "rope_parameters": rope}
    long = LONGROPE[name](**sizes).eval()
    candidate_logps(long, TOKENIZER, PROMPTS, CANDIDATES)  # what was found out of short rows holds for long ones
    prompts = ["Fox, " * (length // 2 - 1) + ("Fox," if length % 2 == 0 else "Fox, Fox"), "Fox, Glass,"]
    candidates = [[" Fox", " Iron Lark Song"], [" Fox", " Glass"]]
    found = candidate_logps(long, TOKENIZER, prompts, candidates)
    torch.testing.assert_close(found, plain_logps(long, prompts, candidates), atol=1e-4, rtol=0)


def test_dynamic_rope_forgets_the_longer_rows_of_earlier_calls():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = llama(max_position_embeddings=16, rope_parameters=rope)
    prompts, candidates = ["Fox, " * 7 + "Fox"], [[" Fox", " Glass"]]  # with an answer as long as the context
    expected = candidate_logps(model, TOKENIZER, prompts, candidates)
    with torch.no_grad():
        model(torch.arange(40)[None])
    torch.testing.assert_close(candidate_logps(model, TOKENIZER, prompts, candidates), expected)


@pytest.mark.parametrize(
    "text", [" Glass Fox Fox Fox Fox", " Iron, Lark"]
)  # the second holds the invocation, a comma, too
def test_alora_begins_where_it_would_in_a_row_of_its_own(text):
    comma = TOKENIZER.encode(",")[-1:]
    model = adapted(LoraConfig(r=4, alora_invocation_tokens=comma, **LORA))
    candidates = [[" Fox", text, " Glass"]] * 2
    with pytest.warns(UserWarning, match="where its adapter starts depends on the tokens of the whole row"):
        found = candidate_logps(model, TOKENIZER, PROMPTS, candidates)
    torch.testing.assert_close(found, plain_logps(model, candidates=candidates), atol=1e-4, rtol=0)


def test_a_compiled_model_scores_as_the_model_does():
    model = llama()
    expected = candidate_logps(model, TOKENIZER, PROMPTS, CANDIDATES)
    compiled = torch.compile(model, backend="eager")
    compiled(torch.arange(8)[None])
    assert torch.equal(candidate_logps(compiled, TOKENIZER, PROMPTS, CANDIDATES), expected)


def japanese():
    return GPTNeoXJapaneseForCausalLM(GPTNeoXJapaneseConfig(vocab_size=SIZE, hidden_size=32, **SHAPE)).eval()


def mixed_dtypes():
    model = llama()
    model.model.embed_tokens.to(torch.bfloat16)
    return model


def roberta():
    return RobertaForCausalLM(RobertaConfig(**SIZES, is_decoder=True, max_position_embeddings=20)).eval()


@pytest.mark.parametrize(
    ("make", "reason"),
    [(japanese, None), (mixed_dtypes, "packed rows make it fail"), (roberta, "log-probs of its first batch differ")],
)
def test_what_can_be_scored_is(make, reason):
    model = make()
    if reason is None:
        found = candidate_logps(model, TOKENIZER, PROMPTS, CANDIDATES)
    else:
        with pytest.warns(UserWarning, match=reason):
            found = candidate_logps(model, TOKENIZER, PROMPTS, CANDIDATES)
    torch.testing.assert_close(found, plain_logps(model), atol=1e-4, rtol=0)


def test_a_table_of_positions_that_packed_rows_outgrow_after_the_check():
    config = BigBirdConfig(**SIZES, is_decoder=True, attention_type="original_full", max_position_embeddings=32)
    model = BigBirdForCausalLM(config).eval()
    candidate_logps(model, TOKENIZER, PROMPTS, CANDIDATES)
    many = [row * 12 for row in CANDIDATES]
    with pytest.warns(UserWarning, match=r"a packed row of \d+ tokens is longer than its context of 32"):
        found = candidate_logps(model, TOKENIZER, PROMPTS, many)
    torch.testing.assert_close(found, plain_logps(model, candidates=many), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("model", "context"),
    [
        (lambda: llama(max_position_embeddings=64), 64),
        (roberta, 19),  # the first of its table's twenty places is padding's
        (lambda: MptForCausalLM(MptConfig(vocab_size=SIZE, d_model=32, n_layers=1, n_heads=4, max_seq_len=16)), 16),
    ],
)
def test_the_context_is_that_of_the_table_of_positions(model, context):
    model = model().eval()
    assert context_of(model) == context
    prompt = "Fox," + " Fox," * ((context - 2) // 2)
    with pytest.raises(ValueError, match=rf"more than the {context} of the model's context"):
        candidate_logps(model, TOKENIZER, [prompt], [[" Iron Lark Song Fox"]])


class Draws(LlamaForCausalLM):
    def forward(self, *arguments, **others):
        output = super().forward(*arguments, **others)
        output.logits = output.logits * (1 + torch.rand(()))
        return output


class Mixes(LlamaForCausalLM):
    """The rows of a batch see each other."""

    def __init__(self, config):
        super().__init__(config)
        self.model.norm.register_forward_hook(lambda module, inputs, hidden: hidden + hidden.mean(0))


def gemma3():
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, num_key_value_heads=4, head_dim=8, use_bidirectional_attention=True)
    ).eval()


def lily_untrained():
    return get_peft_model(llama(), LilyConfig(r=4, **LORA)).eval()


def musicgen():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "ffn_dim": 32, "num_attention_heads": 4}
    return MusicgenForCausalLM(MusicgenDecoderConfig(vocab_size=SIZE, **sizes)).eval()


def prophetnet():
    sizes = {"num_decoder_layers": 1, "num_decoder_attention_heads": 4, "decoder_ffn_dim": 32}
    return ProphetNetForCausalLM(ProphetNetConfig(vocab_size=SIZE, hidden_size=32, **sizes)).eval()


def tuples():
    model = llama()
    model.config.return_dict = False
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: llama(is_causal=False), "^This llama model cannot score candidates: its tokens see later tokens"),
        (gemma3, "^This gemma3_text model cannot .* tokens see later tokens"),
        (lambda: adapted(LilyConfig(r=4, **LORA)), "^This llama model with an adapter of type LILY cannot"),
        (lily_untrained, "^This llama model with an adapter of type LILY cannot"),
        (lambda: adapted(PolyConfig(r=4, **LORA)), "type POLY cannot .*task_ids"),
        (lambda: llama(Draws), "^This llama model cannot .* draws at random in evaluation mode"),
        (lambda: llama(Mixes), "^This llama model cannot .* depend on the other rows of the batch"),
        (musicgen, "^This musicgen_decoder model cannot .* choose a text model"),
        (prophetnet, "^This prophetnet model cannot"),
        (tuples, "^This llama model cannot .* set its config.return_dict to True"),
        (lambda: llama(vocab_size=100), r"^Token \d+ is beyond the model's vocabulary of 100"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(make, message):
    model = make()
    if isinstance(model, Draws | Mixes):
        type(model).__module__ = "transformers.models.llama.modeling_llama"  # as if it were known
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            candidate_logps(model, TOKENIZER, PROMPTS, CANDIDATES)


def test_a_model_that_hashes_only_long_rows_is_tried_again_when_they_come():
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "attention_head_size": 16, "attn_layers": ["lsh", "local"]}
    chunks = {"lsh_attn_chunk_length": 16, "local_attn_chunk_length": 16, "max_position_embeddings": 64}
    config = ReformerConfig(vocab_size=SIZE, is_decoder=True, axial_pos_embds=False, **sizes, **chunks)
    model = ReformerModelWithLMHead(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(5)
    many = [[" Fox", " Glass"] * 20]  # of which the packed row would be long, and none by itself
    with pytest.warns(UserWarning, match="scores each candidate on its own"):
        candidate_logps(model, TOKENIZER, PROMPTS[:1], many)
    with pytest.raises(ValueError, match=r"^This reformer model cannot score candidates"):
        candidate_logps(model, TOKENIZER, [", ".join(["Fox, Glass"] * 10) + ","], [[" Fox", " Glass"]])


def test_trying_a_model_leaves_its_adapter_its_modes_and_a_waiting_backward_as_they_were():
    model = adapted(LilyConfig(r=4, **LORA)) and adapted(LoraConfig(r=4, **LORA)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = packed_logps(model, pack(TOKENIZER, PROMPTS[:1], CANDIDATES[:1]))
    second = llama()
    examine(second, pack(TOKENIZER, PROMPTS, CANDIDATES))
    model.set_attn_implementation("eager")  # tried anew, between a forward and its backward
    (first.sum() + packed_logps(model, pack(TOKENIZER, PROMPTS, CANDIDATES)).sum()).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
