"""The precision of matrix products: which one is faster is measured once, in at most a second, and kept."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minipo import arithmetic
from minipo.arithmetic import (
    LIMIT,
    Float32Attention,
    OneDNN,
    Speed,
    builds_kernels,
    faster,
    onednn_is_ahead,
    speed,
    widths,
)
from minipo.experiments.models import POCKET, add_lora, load_model

CPU = torch.device("cpu")


def language_model(hidden=192, intermediate=512, vocabulary=4000, layers=1):
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=4,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture
def clock(monkeypatch):
    """Passes that take as long as the test says: a time for each weight, and one for each weight and token."""
    took: list[float] = []
    monkeypatch.setattr(arithmetic, "onednn_is_ahead", lambda: False)

    def set_to(**rates: tuple[float, float]) -> list[float]:
        def seconds(up, down, tokens, precision):
            weight, product = rates[precision]
            took.append(up.numel() * (weight + tokens * product))
            return took[-1]

        monkeypatch.setattr(arithmetic, "seconds", seconds)
        return took

    return set_to


# Seconds for each weight, and for each weight and token, on one thread: as measured with these instructions, one that
# PyTorch does without any, and two that are as fast.
FLOAT32 = (2e-10, 8.5e-11)
RATES = {
    "AMX": ((4e-10, 1e-11), "bfloat16"),
    "AVX-512 BF16": ((4e-10, 4e-11), "bfloat16"),
    "AVX-512": ((4e-10, 2.2e-10), "float32"),
    "AVX2": ((4e-10, 3.5e-9), "float32"),
    "none at all": ((1e-9, 3e-8), "float32"),
    "within noise": (FLOAT32, "float32"),
    "hardly faster": ((4e-10, 8e-11), "float32"),
}


@pytest.mark.parametrize("processor", RATES)
@pytest.mark.parametrize("sides", [(576, 1536), (896, 4864), (4096, 14336)])
def test_the_faster_precision_is_found_in_at_most_a_second(processor, sides, clock):
    rates, expected = RATES[processor]
    took = clock(float32=FLOAT32, bfloat16=rates)
    assert speed(*sides, CPU).faster[0] == expected
    assert sum(took) <= LIMIT


def test_a_model_is_trained_in_the_faster_precision(clock):
    model = language_model()
    clock(float32=(0.0, 2e-11), bfloat16=(0.0, 1e-11))
    assert faster(model, CPU) == ("bfloat16", pytest.approx(2.0))
    clock(float32=(0.0, 1e-11), bfloat16=(0.0, 4e-11))
    assert faster(language_model(intermediate=500), CPU) == ("float32", pytest.approx(4.0))


def test_a_narrow_model_is_float32_without_a_measurement(clock, home):
    took = clock(float32=(0.0, 2e-11), bfloat16=(0.0, 1e-11))
    for name in POCKET:
        assert faster(load_model(name, items=["Iron Fox", "Glass"])[0], CPU) == ("float32", 1.0)
    assert not took
    assert not (home / "precision.json").exists()


def test_a_measurement_is_kept_for_the_machine_and_the_widths(clock, home, monkeypatch):
    took = clock(float32=(0.0, 2e-11), bfloat16=(0.0, 1e-11))
    first, times = speed(576, 1536, CPU), len(took)
    assert speed(576, 1536, CPU) == first
    assert len(took) == times
    speed(576, 1024, CPU)
    assert len(took) > times
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # as on a lesser processor
    clock(float32=(0.0, 1e-11), bfloat16=(0.0, 4e-11))
    assert speed(576, 1536, CPU).faster == ("float32", pytest.approx(4.0))
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert speed(576, 1536, CPU) == first
    kept = json.loads((home / "precision.json").read_text())
    assert len(kept) == 3
    assert all(torch.__version__ in name for name in kept)


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"NAME": {"float32": 1.0}}', '{"NAME": {"float32": 0, "bfloat16": 1}}']
)
def test_a_damaged_file_is_measured_again(damage, clock, home):
    took = clock(float32=(0.0, 2e-11), bfloat16=(0.0, 1e-11))
    first, times = speed(576, 1536, CPU), len(took)
    (name,) = json.loads((home / "precision.json").read_text())
    (home / "precision.json").write_text(damage.replace("NAME", name))
    assert speed(576, 1536, CPU) == first
    assert len(took) == 2 * times
    speed(576, 1536, CPU)
    assert len(took) == 2 * times  # and is whole again


def test_without_a_place_to_keep_it_the_answer_is_the_same(clock, home):
    clock(float32=(0.0, 2e-11), bfloat16=(0.0, 1e-11))
    home.write_text("a file in the place of minipo's folder")
    assert speed(576, 1536, CPU).faster == ("bfloat16", pytest.approx(2.0))


def test_the_clock_measures_real_products_and_leaves_the_random_state_and_the_threads_alone():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with torch.inference_mode():
        found = arithmetic.measured(192, 512, CPU)
    assert isinstance(found, Speed)
    assert 1e-6 < found.float32 < 1
    assert (torch.get_num_threads(), torch.get_rng_state().tolist()) == (threads, state.tolist())


def test_widths_are_those_of_most_of_the_weights():
    model = language_model(96, 200, vocabulary=20_000)  # most of which is vocabulary
    assert widths(model) == widths(add_lora(model)) == (96, 200)
    items = [f"Item {number}" for number in range(2000)]
    assert widths(load_model("pocket-gpt2", items=items)[0]) == (64, 256)
    assert widths(load_model("pocket-qwen2", items=items)[0]) == (64, 256)


@pytest.mark.parametrize(("building", "expected"), [(2e-3, True), (2e-6, False)])
def test_kernels_that_are_built_for_new_shapes_are_noticed(building, expected, monkeypatch):
    seen = set()

    def seconds(up, down, tokens, precision):
        took = 1e-4 if tokens in seen else 1e-4 + building
        seen.add(tokens)
        return took

    monkeypatch.setattr(arithmetic, "seconds", seconds)
    builds_kernels.cache_clear()
    assert builds_kernels() is expected
    builds_kernels.cache_clear()


@pytest.fixture
def alone():
    """What was found out about oneDNN before or during a test has no effect on others."""
    onednn_is_ahead.cache_clear()
    yield
    onednn_is_ahead.cache_clear()


@pytest.mark.parametrize(("gain", "expected"), [(2.2, True), (1.2, False)])
def test_onednn_computes_layers_only_where_it_is_far_ahead(gain, expected, monkeypatch, alone):
    def seconds(up, down, tokens, precision):
        return 1e-3 / (gain if torch.overrides._get_current_function_mode() else 1)

    monkeypatch.setattr(arithmetic, "seconds", seconds)
    assert onednn_is_ahead() is expected


def test_a_torch_that_calls_onednn_in_another_way_keeps_its_own_products(monkeypatch, alone):
    def changed(*_):
        raise RuntimeError("_linear_pointwise() expected at most 5 arguments")

    monkeypatch.setattr(arithmetic, "_product", changed)
    assert onednn_is_ahead() is False


needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@needs_onednn
def test_it_is_found_out_whatever_mode_and_dtype_the_caller_has_set(monkeypatch, alone):
    found, seconds = [], arithmetic.seconds
    monkeypatch.setattr(arithmetic, "seconds", lambda *given: found.append(seconds(*given)) or found[-1])
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.inference_mode():
            onednn_is_ahead()
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(found) == 10


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("shape", [(7, 300), (2, 5, 300), (1, 300)])
def test_a_layer_by_onednn_has_the_same_outputs_and_gradients(shape, frozen, bias, monkeypatch):
    torch.manual_seed(0)
    layer = torch.nn.Linear(300, 400, bias)
    layer.weight.requires_grad_(not frozen)
    inputs = torch.randn(shape, requires_grad=True)
    wanted = [inputs, *(each for each in layer.parameters() if each.requires_grad)]

    def results():
        outputs = layer(inputs)
        return outputs, *torch.autograd.grad(outputs.square().sum() + outputs.sum(), wanted)

    expected, calls, product = results(), [], arithmetic._product
    monkeypatch.setattr(arithmetic, "_product", lambda *given: calls.append(given) or product(*given))
    with OneDNN():
        found = results()
    assert len(calls) == (2 if frozen else 3)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("names", [(), ("query", "key", "value")])
def test_attention_under_autocast_is_computed_in_float32(names):
    torch.manual_seed(0)
    given = [torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3)]
    mask = torch.zeros(5, 5).masked_fill_(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)

    def results(tensors):
        arguments, named = ((), dict(zip(names, tensors, strict=True))) if names else (tensors, {})
        outputs = torch.nn.functional.scaled_dot_product_attention(*arguments, attn_mask=mask, **named)
        return outputs, *torch.autograd.grad(outputs.square().sum(), given)

    expected = results(given)
    with Float32Attention(), torch.autocast("cpu", torch.bfloat16):
        found = results(given)
        halves = results([each.bfloat16() for each in given])
    for one, other, half in zip(expected, found, halves, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)
        torch.testing.assert_close(half, one, atol=0.1, rtol=0.1)


@needs_onednn
@pytest.mark.parametrize("kind", ["float64", "autocast", "narrow", "empty", "one dimension", "subclass"])
def test_other_layers_stay_as_they_are(kind, monkeypatch):
    monkeypatch.setattr(arithmetic, "_product", lambda *_: pytest.fail("oneDNN"))
    inputs, weight = torch.ones(2, 300), torch.ones(400, 300)
    if kind == "float64":
        inputs, weight = inputs.double(), weight.double()
    elif kind == "narrow":
        weight = weight[:8]
    elif kind == "empty":
        inputs = inputs[:0]
    elif kind == "one dimension":
        inputs = inputs[0]
    elif kind == "subclass":  # as quantized weights are
        weight = weight.as_subclass(type("Quantized", (torch.Tensor,), {}))
    with OneDNN(), torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        outputs = torch.nn.functional.linear(inputs, weight)
    assert outputs.shape == (*inputs.shape[:-1], len(weight))
    assert (outputs == 300).all()
