import multiprocessing
import os
import platform
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from tokenizers import normalizers, processors
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertConfig,
    BertLMHeadModel,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.activations import get_activation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from minipo import arithmetic, forward, scoring
from minipo.compatibility import forwards, tokenizers
from minipo.compatibility.architectures import KNOWN
from minipo.compatibility.forwards import reuse_memory
from minipo.compatibility.tokenizers import tokenize, tokenize_rows
from minipo.experiments.datasets.splits import Interaction
from minipo.experiments.models import add_lora, pocket_tokenizer
from minipo.experiments.users import score
from minipo.packing import length_groups, pack_groups, pack_ids, padding_share
from minipo.scoring import candidate_logps, pack, packed_logps

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
GROUPED = DECODERS | {"num_key_value_heads": 2, "max_position_embeddings": 64}
CONFIGS = {
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, DECODERS | {"max_position_embeddings": 64}),
    "llama": (LlamaForCausalLM, LlamaConfig, GROUPED),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, GROUPED),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, GROUPED | {"head_dim": 8}),
}
OTHERS = {
    "gemma": (GemmaForCausalLM, GemmaConfig, GROUPED | {"head_dim": 8}),
    "granite": (GraniteForCausalLM, GraniteConfig, GROUPED | {"logits_scaling": 3.0}),  # its logits are not its head's
    "mistral": (MistralForCausalLM, MistralConfig, GROUPED),  # with a window of 4096
    "olmo2": (Olmo2ForCausalLM, Olmo2Config, GROUPED),
}


@pytest.fixture(autouse=True)
def warnings_are_errors():
    """A warning is given once a class, and nothing but the tests of that should meet one."""
    tokenizers._warned.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "(?s).*candidate on its own")
        yield


@pytest.fixture(scope="module")
def tokenizer():
    return pocket_tokenizer(ITEMS)


def make_model(name, tokenizer, attention="sdpa", lora=False, dtype=torch.float32, seed=0, architecture=None, **more):
    known, configuration, sizes = (CONFIGS | OTHERS)[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (architecture or known)(configuration(vocab_size=len(tokenizer), **sizes | more))
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
    """Llama's own norms and its kin's compute in float32 whatever the model's dtype; put torch's in their place."""
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


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_scores_and_gradients_are_the_same_where_onednn_is_faster(lora, checkpointing, tokenizer, monkeypatch):
    model, packed = make_model("llama", tokenizer, lora=lora).train(), pack(tokenizer, PROMPTS, CANDIDATES)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def results(onednn):
        monkeypatch.setattr(arithmetic, "onednn_is_ahead", lambda: onednn)
        scores = packed_logps(model, packed)
        return scores, *torch.autograd.grad(scores[packed["mask"]].sum(), parameters)

    for module in (arithmetic, forward):  # both ask whether a layer is large
        monkeypatch.setattr(module, "LARGE", 0)
    torch.testing.assert_close(results(True), results(False), atol=1e-4, rtol=1e-4)


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
        # Eager attention takes its softmax in float32, GPT-2's excepted.
        exact = name == "gpt2" or attention == "sdpa"
        tolerance = {"atol": 1e-9, "rtol": 1e-9} if exact else {"atol": 1e-4, "rtol": 1e-5}
        torch.testing.assert_close(scores, expected, **tolerance)
        # Different weights, so that gradients of different candidates cannot stand in for each other.
        weights = torch.linspace(0.5, 2, int(packed["mask"].sum()), dtype=torch.float64)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad((scores[packed["mask"]] * weights).sum(), parameters)
        plain = torch.autograd.grad((expected[packed["mask"]] * weights).sum(), parameters)
        assert max(gradient.abs().max() for gradient in plain) > 0.1
        for gradient, wanted in zip(gradients, plain, strict=True):
            torch.testing.assert_close(gradient, wanted, **tolerance)


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_equal_one_forward_per_candidate(name, tokenizer):
    model = make_model(name, tokenizer)
    scores = candidate_logps(model, tokenizer, PROMPTS, CANDIDATES)
    torch.testing.assert_close(scores, plain_logps(model, tokenizer), atol=1e-4, rtol=0)


def test_every_architecture_that_is_taken_to_be_known_is_tested_here():
    assert set(CONFIGS | OTHERS) == KNOWN


@pytest.mark.parametrize("name", sorted(KNOWN))
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


def test_threads_that_share_a_model_score_as_one_does(tokenizer):
    model = make_model("gpt2", tokenizer)
    works = [(PROMPTS[: 1 + turn % 2], CANDIDATES[: 1 + turn % 2]) for turn in range(40)]
    alone = [candidate_logps(model, tokenizer, *work) for work in works]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda work: candidate_logps(model, tokenizer, *work), works))
    torch.testing.assert_close(together, alone)


def test_threads_score_without_dropout_and_leave_it_as_it_was(tokenizer):
    model = make_model("gpt2", tokenizer).train()
    users = [Interaction(number, ("Fox",), "Glass", ("Glass", "Neon Fox")) for number in range(40)]
    alone = score(model, tokenizer, users)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda size: score(model, tokenizer, users, batch_size=size), [4, 16] * 5))
    np.testing.assert_allclose(together, [alone] * 10, atol=1e-4)
    assert all(module.training for module in model.modules())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_a_process_forked_while_a_thread_scores_scores_too(tokenizer):
    model, scoring_now = make_model("gpt2", tokenizer), threading.Event()

    def look(*_) -> None:
        scoring_now.set()
        time.sleep(0.5)

    def score_in_child() -> None:
        torch.set_num_threads(1)  # a fork has none of the threads that OpenMP has started, and would wait for them
        candidate_logps(model, tokenizer, PROMPTS, CANDIDATES)

    candidate_logps(model, tokenizer, PROMPTS, CANDIDATES)  # tests the model, which looks too
    handle = model.transformer.h[0].register_forward_hook(look)
    thread = threading.Thread(target=candidate_logps, args=(model, tokenizer, PROMPTS, CANDIDATES))
    thread.start()
    scoring_now.wait()
    child = multiprocessing.get_context("fork").Process(target=score_in_child)
    child.start()
    child.join(20)
    child.kill()
    thread.join()
    handle.remove()
    assert child.exitcode == 0


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
    model, positions = make_model("gpt2", tokenizer), []
    candidate_logps(model, tokenizer, PROMPTS[:1], CANDIDATES[:1])  # on its first batch a model is tried
    model.lm_head.register_forward_hook(lambda module, inputs, logits: positions.append(logits.shape[:-1].numel()))
    candidate_logps(model, tokenizer, PROMPTS, CANDIDATES)
    # A prompt's last token predicts the first token of all its candidates; each candidate token predicts the next.
    tokens = sum(len(tokenizer.encode(text)) for row in CANDIDATES for text in row)
    assert sum(positions) == len(PROMPTS) + tokens


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_so_is_the_last_mlp_unless_somebody_looks_at_it(kind, tokenizer):
    model = make_model(kind, tokenizer)
    first, last = (module for name, module in model.named_modules() if name.endswith(".mlp"))
    counts = {}

    def count(module):
        inner = next(module.children())
        inner.register_forward_hook(lambda _, inputs, output: counts.update({module: inputs[0].shape[:-1].numel()}))

    count(first)
    count(last)
    packed = pack(tokenizer, PROMPTS, CANDIDATES)
    scores = packed_logps(model, packed)
    assert counts == {first: packed["input_ids"].numel(), last: len(packed["predicting"])}
    layer = next(module for module in model.modules() if getattr(module, "mlp", None) is last)
    for watched in (last, layer, model.base_model):
        hook = watched.register_forward_hook(lambda *_: None)
        torch.testing.assert_close(packed_logps(model, packed), scores)
        assert counts[last] == packed["input_ids"].numel()
        hook.remove()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_laid_out_alike_share_a_mask(attention, tokenizer):
    model, prompts = make_model("llama", tokenizer, attention), ["Fox, Glass,", "Glass, Fox,", "Glass, Glass,"]
    packed = pack(tokenizer, prompts, CANDIDATES[:1] * 3)
    mask = forward.attention_mask(packed["segments"], packed["since"], torch.float32)
    assert (len(mask), mask.stride(0)) == (3, 0)
    expected = torch.cat([packed_logps(model, pack(tokenizer, [prompt], CANDIDATES[:1])) for prompt in prompts])
    torch.testing.assert_close(packed_logps(model, packed), expected)


def logps_and_gradients(model, packed):
    scores = packed_logps(model, packed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return scores, *torch.autograd.grad(scores[packed["mask"]].sum(), parameters)


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh"])
def test_gelu_by_tanh_is_computed_by_a_sigmoid(name, tokenizer, monkeypatch):
    model, functions = make_model("gpt2", tokenizer, activation_function=name), []
    packed = pack(tokenizer, PROMPTS, CANDIDATES)
    for module in model.modules():
        if type(module) is type(get_activation(name)):
            module.register_forward_hook(lambda _, inputs, output: functions.append(type(output.grad_fn).__name__))
    found = logps_and_gradients(model, packed)
    assert functions[-2:] == ["GeluBackward"] * 2
    monkeypatch.setattr(forward, "TANH_GELU", ())
    torch.testing.assert_close(found, logps_and_gradients(model, packed), atol=1e-5, rtol=1e-4)


def test_gelu_and_its_first_and_second_derivatives():
    inputs = torch.linspace(-9, 9, 37, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.gelu(inputs, approximate="tanh")
    torch.testing.assert_close(forward.Gelu.apply(inputs), expected)
    assert torch.autograd.gradcheck(forward.Gelu.apply, inputs)
    assert torch.autograd.gradgradcheck(forward.Gelu.apply, inputs)


@pytest.fixture
def few_logits(monkeypatch):
    """Logits (7, 11), computed three rows at a time, and tokens: one is asked for twice, and none of one row."""
    monkeypatch.setattr(forward.LogProbs, "rows", lambda logits: 3)
    torch.manual_seed(0)
    sources, targets = torch.tensor([[0, 1, 1], [6, 1, 5], [3, 2, 0]]), torch.tensor([[4, 2, 2], [9, 3, 0], [1, 1, 10]])
    return 5 * torch.randn(7, 11, dtype=torch.float64), sources, targets


def test_log_probs_a_few_rows_at_a_time_and_their_first_and_second_derivatives(few_logits):
    logits, *places = few_logits
    torch.testing.assert_close(forward.LogProbs.apply(logits, *places), forward.log_probs(logits, *places))
    assert torch.autograd.gradcheck(forward.LogProbs.apply, (logits.requires_grad_(), *places))
    assert torch.autograd.gradgradcheck(forward.LogProbs.apply, (logits, *places))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_log_probs_a_few_rows_at_a_time_in_lower_precision(few_logits, kind):
    logits, *places = few_logits
    logits = logits.to(kind).requires_grad_()
    found, expected = (each(logits, *places) for each in (forward.LogProbs.apply, forward.log_probs))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    weights = torch.arange(9.0).view(3, 3)
    torch.testing.assert_close(*(torch.autograd.grad((each * weights).sum(), logits)[0] for each in (found, expected)))


def test_log_probs_of_a_large_vocabulary_are_computed_a_few_rows_at_a_time(tokenizer, monkeypatch):
    model, packed = make_model("gpt2", tokenizer), pack(tokenizer, PROMPTS, CANDIDATES)
    expected = logps_and_gradients(model, packed)
    monkeypatch.setattr(forward, "VOCABULARY", 100)
    monkeypatch.setattr(forward, "log_probs", lambda *_: pytest.fail("all rows at once"))
    torch.testing.assert_close(logps_and_gradients(model, packed), expected, atol=1e-5, rtol=1e-4)


class TestAdaptersAddedInPlace:
    @pytest.fixture
    def model(self, tokenizer):
        return make_model("llama", tokenizer, lora=True)

    @pytest.fixture
    def packed(self, tokenizer):
        return pack(tokenizer, PROMPTS, CANDIDATES)

    @pytest.fixture
    def layers(self, model):
        return [module for module in model.modules() if isinstance(module, LoraLinear)]

    @pytest.fixture
    def expected(self, model, packed, monkeypatch):
        with monkeypatch.context() as patched:
            patched.setattr(forward, "plain_adapter", lambda *_: None)
            return logps_and_gradients(model, packed)

    def test_equal_peft_without_its_forward(self, model, packed, layers, expected, monkeypatch):
        monkeypatch.setattr(LoraLinear, "_cast_input_dtype", lambda *_: pytest.fail("peft's own forward"))
        torch.testing.assert_close(logps_and_gradients(model, packed), expected, atol=1e-4, rtol=1e-4)
        assert not any("forward" in vars(layer) for layer in layers)

    @pytest.mark.parametrize("part", ["base_layer", "lora_A", "lora_B", "lora_dropout"])
    def test_whoever_looks_at_a_part_sees_what_peft_computes(self, part, model, packed, layers, expected):
        seen, (layer, other) = [], layers[-2:]
        for each in (layer, other):
            watched = each.base_layer if part == "base_layer" else getattr(each, part)["default"]
            watched.register_forward_hook(lambda _, inputs, output: seen.append((output, output.clone())))
        watched.register_full_backward_hook(lambda *_: seen.append((watched, watched)))
        torch.testing.assert_close(logps_and_gradients(model, packed), expected, atol=1e-4, rtol=1e-4)
        tensors = [pair for pair in seen if pair[0] is not watched]
        assert len(tensors) == 2 < len(seen)
        assert all(output.ndim == 3 and output.equal(then) for output, then in tensors)

    def test_autocast_inside_the_models_forward(self, model, packed, monkeypatch):
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)  # as the Trainer does
        found = packed_logps(model, packed)
        monkeypatch.setattr(forward, "plain_adapter", lambda *_: None)
        torch.testing.assert_close(found, packed_logps(model, packed))

    @pytest.mark.parametrize("change", ["scaling", "disabled", "weights", "tensor"])
    def test_what_changes_while_the_model_runs(self, change, model, packed, layers, monkeypatch):
        layer = layers[-1]

        def changed(*_):
            if change == "disabled":
                layer._disable_adapters = True
            elif change == "weights":
                layer.lora_B["default"].weight = torch.nn.Parameter(torch.ones_like(layer.lora_B["default"].weight))
            else:
                layer.scaling["default"] = 0.5 if change == "scaling" else torch.tensor([0.5])

        model.base_model.model.model.layers[-1].register_forward_pre_hook(changed)
        found = packed_logps(model, packed)
        monkeypatch.setattr(forward, "plain_adapter", lambda *_: None)
        torch.testing.assert_close(found, packed_logps(model, packed), atol=1e-4, rtol=1e-4)

    def test_layers_without_tokens_and_a_single_vector(self, layers):
        with forward.in_place(layers[0]):
            assert layers[0](torch.ones(0, layers[0].in_features)).shape == (0, layers[0].out_features)
            assert layers[0](torch.ones(layers[0].in_features)).shape == (layers[0].out_features,)

    def test_one_forward_for_many_adapters(self, model, packed, expected):
        """vmap over stacked adapters, as to train several at once."""
        weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}

        class Scores(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self):
                return packed_logps(self.model, packed)

        one = {f"model.{name}": weight for name, weight in weights.items()}
        both = {name: torch.stack([weight, torch.zeros_like(weight)]) for name, weight in one.items()}
        scores = Scores()
        found = torch.func.vmap(lambda each: torch.func.functional_call(scores, each, ()))(both)
        torch.testing.assert_close(found[0], expected[0].detach(), atol=1e-4, rtol=1e-4)


def test_the_first_scores_of_adapters_under_autocast_are_theirs(tokenizer):
    model, packed = make_model("llama", tokenizer, lora=True), pack(tokenizer, PROMPTS, CANDIDATES)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            first = packed_logps(model, packed)  # for which the model is tried with other adapters
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(first, packed_logps(model, packed))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_a_gradient_of_gradients_where_onednn_is_faster(monkeypatch):
    inputs, weight = torch.randn(2, 3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)

    def twice(context):
        with context:
            outputs = torch.nn.functional.linear(inputs, weight).pow(3).sum()
        (gradient,) = torch.autograd.grad(outputs, inputs, create_graph=True)
        return torch.autograd.grad(gradient.pow(2).sum(), (inputs, weight))

    monkeypatch.setattr(arithmetic, "LARGE", 0)
    torch.testing.assert_close(twice(arithmetic.OneDNN()), twice(nullcontext()), atol=1e-4, rtol=1e-4)


def test_bfloat16_models_give_float32_scores(tokenizer):
    model = make_model("llama", tokenizer, dtype=torch.bfloat16)
    scores = candidate_logps(model, tokenizer, PROMPTS, CANDIDATES)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, plain_logps(model, tokenizer).float(), atol=2, rtol=0.1)


def test_autocast_gives_float32_scores_close_to_those_without(tokenizer):
    model = make_model("qwen3", tokenizer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        packed, plain = candidate_logps(model, tokenizer, PROMPTS, CANDIDATES), plain_logps(model, tokenizer)
    assert packed.dtype == torch.float32
    expected = plain_logps(model, tokenizer)
    rounding = (plain - expected)[expected.isfinite()].abs().max()
    assert 0 < (packed - expected)[expected.isfinite()].abs().max() < 3 * rounding


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
    _, answers = tokenize_rows(tokenizer, PROMPTS, CANDIDATES)
    assert [ids.tolist() for ids in prompts] == [tokenizer.encode(prompt) for prompt in PROMPTS]
    packed, expected = pack_ids(prompts, answers, tokenizer.pad_token_id), pack(tokenizer, PROMPTS, CANDIDATES)
    assert packed.keys() == expected.keys()
    assert all(torch.equal(packed[key], expected[key]) for key in packed)


# Rows of similar length go together


@pytest.mark.parametrize("few_shapes", [False, True])
def test_groups_give_the_scores_and_gradients_of_one_batch_in_the_rows_order(few_shapes, tokenizer):
    model, times = make_model("llama", tokenizer), 8 if few_shapes else 1
    prompts, answers = tokenize_rows(tokenizer, (PROMPTS + PROMPTS[::-1]) * times, (CANDIDATES + CANDIDATES) * times)
    pad = tokenizer.pad_token_id
    whole, groups = pack_ids(prompts, answers, pad), pack_groups(prompts, answers, pad, few_shapes=few_shapes)
    assert len(groups["groups"]) > 1
    assert torch.equal(groups["lengths"], whole["lengths"])
    assert torch.equal(groups["mask"], whole["mask"])
    weights = torch.linspace(0.5, 2, int(whole["mask"].sum()))
    results = []
    for packed in (whole, groups):
        scores = packed_logps(model, packed)
        gradients = torch.autograd.grad((scores[whole["mask"]] * weights).sum(), list(model.parameters()))
        results.append([scores, *gradients])
    for grouped, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(grouped, expected, atol=1e-3, rtol=1e-4)


def test_padding_is_at_most_a_tenth(tokenizer, monkeypatch):
    generator = np.random.default_rng(0)
    prompts = [np.ones(length, dtype=np.int64) for length in generator.integers(5, 90, 64)]
    answers = [[np.ones(3, dtype=np.int64)] * 4] * 64
    whole, groups = pack_ids(prompts, answers, 0), pack_groups(prompts, answers, 0)
    reads = 64 * 4 * 2 + sum(map(len, prompts))
    assert padding_share(whole) == pytest.approx(1 - reads / whole["input_ids"].numel())
    assert padding_share(whole) > 0.3
    assert padding_share(groups) <= 0.1

    made = []
    monkeypatch.setattr(scoring, "pack_groups", lambda *rows: made.append(pack_groups(*rows)) or made[-1])
    history = ["Fox, " * int(length) for length in generator.integers(1, 25, 20)]
    candidate_logps(make_model("gpt2", tokenizer), tokenizer, history, [[" Fox", " Glass"]] * 20, batch_size=8)
    assert len(made) == 3
    assert max(map(padding_share, made)) <= 0.1


@pytest.mark.parametrize("seed", range(20))
def test_length_groups_are_the_fewest_and_of_those_the_tightest(seed):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 60, 7)
    groups = length_groups(lengths, padding=0.1)
    assert sorted(np.concatenate(groups)) == list(range(7))

    def tokens(parts):
        return sum(len(part) * max(part) for part in parts)

    ascending = np.sort(lengths)
    possible = [  # every way to cut the sorted lengths
        (len(cuts) + 1, tokens([ascending[start:end] for start, end in pairwise([0, *cuts, 7])]))
        for number in range(7)
        for cuts in combinations(range(1, 7), number)
    ]
    best = min(count for count in possible if count[1] * 0.9 <= lengths.sum())
    assert (len(groups), tokens([lengths[group] for group in groups])) == best


@pytest.mark.parametrize("number", [1, 13, 32, 50])
def test_few_shapes_come_again_and_again(number):
    """Whatever the lengths: but for one group, rows by 16; places by 8, and four times as many for the logits."""
    shapes = set()
    for seed in range(30):
        generator = np.random.default_rng(seed)
        prompts = [np.ones(length, dtype=np.int64) for length in generator.integers(40, 90, number)]
        answers = [[np.ones(length, dtype=np.int64)] * 4 for length in generator.integers(2, 6, number)]
        groups = pack_groups(prompts, answers, 0, few_shapes=True)["groups"]
        rows, widths = zip(*(group["input_ids"].shape for group in groups), strict=True)
        assert sum(rows) == number
        assert all(size % 16 == 0 for size in sorted(rows, key=lambda size: size % 16 != 0)[:-1])
        assert all(width % 8 == 0 for width in widths)
        assert all(len(group["predicting"]) % 32 == 0 for group in groups)
        shapes |= set(zip(rows, widths, strict=True))
    assert len(shapes) <= 30


# Models that cannot read packed rows


def sliding_qwen2(tokenizer):
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    return make_model("qwen2", tokenizer, **window)


def sliding_mistral(tokenizer):
    return make_model("mistral", tokenizer, sliding_window=4)


def recurrent(tokenizer):
    torch.manual_seed(0)
    return MambaForCausalLM(
        MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, state_size=4, initializer_range=0.3)
    ).eval()


def own_attention(tokenizer):
    AttentionInterface.register("own", sdpa_attention_forward)
    AttentionMaskInterface.register("own", sdpa_mask)
    return make_model("llama", tokenizer, attention="own")


class Unknown(LlamaForCausalLM):
    """An architecture that scoring does not know. It notes the dimensions of the masks it is given: 4 if packed."""

    def forward(self, attention_mask=None, **arguments):
        self.masks = [*getattr(self, "masks", []), 0 if attention_mask is None else attention_mask.dim()]
        return super().forward(attention_mask=attention_mask, **arguments)


class WithoutMask(Unknown):
    def forward(self, attention_mask=None, **arguments):
        if attention_mask is not None and attention_mask.dim() == 4:
            attention_mask = torch.full_like(attention_mask, torch.finfo(torch.float32).min).triu(1)
        return super().forward(attention_mask=attention_mask, **arguments)


class WithoutPositions(Unknown):
    def forward(self, position_ids=None, **arguments):
        return super().forward(**arguments)


class WithoutPackedRows(Unknown):
    def forward(self, attention_mask=None, **arguments):
        if attention_mask is not None:
            _rows, _tokens = attention_mask.shape
        return super().forward(attention_mask=attention_mask, **arguments)


def unknown(architecture):
    return lambda tokenizer: make_model("llama", tokenizer, architecture=architecture)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sliding_qwen2, "Qwen2ForCausalLM .* window of 4 tokens"),
        (sliding_mistral, "MistralForCausalLM .* window of 4 tokens"),
        (recurrent, "MambaForCausalLM .* linear_attention"),
        (own_attention, "LlamaForCausalLM .* runs on own; .*'sdpa'"),
        (unknown(WithoutMask), "WithoutMask .* differ by"),
        (unknown(WithoutPositions), "WithoutPositions .* differ by"),
        (unknown(WithoutPackedRows), "WithoutPackedRows .* fail .*too many values"),
    ],
)
def test_models_that_cannot_read_packed_rows_are_scored_candidate_by_candidate(make, message, tokenizer):
    model = make(tokenizer)
    packed = pack(tokenizer, PROMPTS, CANDIDATES)
    with pytest.warns(UserWarning, match=message) as warned:
        scores = packed_logps(model, packed)
    assert len(warned) == 1
    expected = plain_logps(model, tokenizer)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    # A warning is given once a class: from here on it would be an error.
    again = candidate_logps(model, tokenizer, PROMPTS, CANDIDATES)
    torch.testing.assert_close(again, expected.detach(), atol=1e-4, rtol=0)

    # Training goes through it too.
    weights = torch.linspace(0.5, 2, int(packed["mask"].sum()))
    parameters = list(model.parameters())
    gradients = torch.autograd.grad((scores[packed["mask"]] * weights).sum(), parameters)
    plain = torch.autograd.grad((expected[packed["mask"]] * weights).sum(), parameters)
    for gradient, wanted in zip(gradients, plain, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-3, rtol=1e-3)


def test_a_single_candidate_needs_no_warning(tokenizer):
    """SFT's rows are ordinary ones for any model."""
    model = sliding_mistral(tokenizer)
    alone = [row[:1] for row in CANDIDATES]
    scores = candidate_logps(model, tokenizer, PROMPTS, alone)
    torch.testing.assert_close(scores, plain_logps(model, tokenizer, PROMPTS, alone), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_an_unknown_architecture_that_reads_packed_rows_is_checked_once(dtype, autocast, tokenizer):
    model = make_model("llama", tokenizer, architecture=Unknown, dtype=dtype, attention_dropout=0.5).train()
    model.lm_head.eval()  # modes are left as they are, whatever they are
    packed = pack(tokenizer, PROMPTS, CANDIDATES)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        packed_logps(model, packed)
        checked = len(model.masks)
        packed_logps(model, packed)
    assert checked > 2
    assert model.masks[-2:] == [4, 4]
    assert len(model.masks) == checked + 1
    assert [name for name, module in model.named_modules() if not module.training] == ["lm_head"]


def test_the_check_waits_for_a_row_with_two_candidates(tokenizer):
    model = unknown(WithoutMask)(tokenizer)
    candidate_logps(model, tokenizer, PROMPTS, [row[:1] for row in CANDIDATES])
    with pytest.warns(UserWarning, match="WithoutMask .* differ by"):
        scores = candidate_logps(model, tokenizer, PROMPTS, CANDIDATES)
    torch.testing.assert_close(scores, plain_logps(model, tokenizer), atol=1e-4, rtol=0)


def test_the_check_finds_what_freshly_initialized_weights_hide(tokenizer):
    """With small weights a wrong mask moves scores by little, and by more once the model is trained."""
    model = unknown(WithoutMask)(tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.1)
    with pytest.warns(UserWarning, match="differ by"):
        candidate_logps(model, tokenizer, PROMPTS, CANDIDATES)


# Tokens


def changed_tokenizer(normalizer=None, before="", behind=""):
    """A pocket tokenizer with another normalizer, or one that puts special tokens around a text."""
    tokenizer = pocket_tokenizer(ITEMS)
    if normalizer is not None:
        tokenizer.backend_tokenizer.normalizer = normalizer
    template = processors.TemplateProcessing(single=f"{before} $A {behind}".strip(), special_tokens=[("<eos>", 1)])
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def names(tokenizer, rows):
    """Prompts and answers as their tokens' names."""
    prompts, answers = rows

    def show(ids):  # a byte as its letter
        tokens = tokenizer.convert_ids_to_tokens(ids)
        return [chr(int(token[3:5], 16)) if token.startswith("<0x") else token for token in tokens]

    return [show(ids.tolist()) for ids in prompts], [[show(ids.tolist()) for ids in row] for row in answers]


def test_what_a_tokenizer_puts_behind_a_text_is_no_part_of_a_prompt():
    both = changed_tokenizer(before="<eos>", behind="<eos>")
    found = names(both, tokenize_rows(both, ["Fox, Glass,"], [[" Fox"]]))
    assert found == ([["<eos>", " Fox", ",", " Glass", ","]], [[[" Fox", "<eos>"]]])
    chat = names(both, tokenize_rows(both, ["Fox, Glass,"], [[" Fox"]], special=False))
    assert chat == ([[" Fox", ",", " Glass", ","]], [[[" Fox", "<eos>"]]])


def test_an_answer_ends_once(tokenizer):
    found = names(tokenizer, tokenize_rows(tokenizer, ["Fox,"], [[" Glass<eos>", " Glass"]]))
    assert found == ([[" Fox", ","]], [[[" Glass", "<eos>"]] * 2])


@pytest.mark.parametrize(
    ("prompt", "answers", "expected"),
    [
        # Llama 2's normalizer marks where a text begins, so that an answer by itself gets a mark too many.
        ("Fox,", [" Glass", " Fox"], ([" Fox", ","], [[" Glass", "<eos>"], [" Fox", "<eos>"]])),
        # A prompt that ends in a space: the space belongs to the answer's word.
        ("Fox, ", ["Glass", "Fox"], ([" Fox", ","], [[" Glass", "<eos>"], [" Fox", "<eos>"]])),
        # One prompt for all answers of a row: it ends where the first of them parts from it.
        ("Glass, Fox", [" Glass", "y"], ([" Glass", ","], [[" Fox", " Glass", "<eos>"], [*" Foxy", "<eos>"]])),
    ],
)
def test_where_prompt_and_answer_join_they_are_tokenized_together(prompt, answers, expected):
    legacy = changed_tokenizer(normalizers.Prepend(" "))
    with pytest.warns(UserWarning, match="tokenized with each of their answers") as warned:
        prompts, found = names(legacy, tokenize_rows(legacy, [prompt], [answers]))
    assert len(warned) == 1
    assert (prompts[0], found[0]) == expected
    again, _ = names(legacy, tokenize_rows(legacy, [prompt] * 2, [answers] * 2))  # with no second warning
    assert again == prompts * 2


# Refusals


def encoder_decoder(tokenizer):
    return T5ForConditionalGeneration(
        T5Config(vocab_size=len(tokenizer), d_model=16, d_ff=16, num_layers=1, num_heads=2)
    )


def bidirectional(tokenizer):
    return BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), **DECODERS))


def virtual_tokens(tokenizer):
    return get_peft_model(make_model("gpt2", tokenizer), PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2))


def headless(tokenizer):
    model = make_model("llama", tokenizer, architecture=Unknown)
    model.get_output_embeddings = lambda: None
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (encoder_decoder, "t5 model cannot .* encoder-decoder"),
        (bidirectional, "bert model cannot .* is_decoder=True"),
        (virtual_tokens, "gpt2 model with .* PROMPT_TUNING cannot .* virtual tokens"),
        (headless, "llama model cannot .* output head"),
    ],
)
def test_models_whose_logits_are_no_scores_of_candidates_are_refused(make, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        candidate_logps(make(tokenizer), tokenizer, PROMPTS, CANDIDATES)


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
        ("Fox,", [[" Fox"]] * 4, "'Fox,' stands where a list of texts is expected"),
        (["Fox,"], [" Fox"], "' Fox' stands where a list of texts is expected"),
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


def test_freed_memory_is_used_again():
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("glibc alone has this")
    from resource import RUSAGE_SELF, getrusage

    def faults() -> int:
        before = getrusage(RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 64 MiB, 16,384 pages, freed at once
        return getrusage(RUSAGE_SELF).ru_minflt - before

    reuse_memory()
    # The least of several: glibc may lay a block once more on pages never touched before it returns to the freed ones.
    assert min(faults() for _ in range(8)) < 1000


def test_without_glibc_memory_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(forwards.ctypes, "CDLL", None)
    reuse_memory.__wrapped__()
