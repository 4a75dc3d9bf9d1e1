import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from minipo.experiments import fetch
from minipo.experiments.models import add_lora, load_model, pocket_tokenizer, round_adapter, save_model

ITEMS = ["Velvet Tiger", "Neon Fox", "Björk Rêve", "Redemption, The (1994)", "10,000 Things", "Fox", "Neon Tiger"]
POCKET = ["pocket-gpt2", "pocket-qwen2"]
INPUT = torch.arange(12).view(2, 6)


@pytest.fixture(scope="module")
def tokenizer():
    return pocket_tokenizer(ITEMS)


def trained_parameters(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


# The pocket tokenizer


def test_each_word_of_an_item_is_one_token_wherever_it_stands(tokenizer):
    first, later = tokenizer.encode("Velvet Tiger"), tokenizer.encode("Neon Fox, Velvet Tiger")
    assert len(first) == 2
    assert len(later) == 5
    assert later[3:] == first
    assert (
        len(tokenizer.encode("Redemption, The (1994), 10,000 Things,")) == 8
    )  # four words' commas are tokens or inside


def test_what_is_no_word_becomes_its_bytes_and_never_unknown(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("Fôx")) == [
        "<0x20>",
        "<0x46>",
        "<0xC3>",
        "<0xB4>",
        "<0x78>",
    ]
    assert tokenizer.unk_token_id is None


@given(text=st.text())
def test_decoding_gives_back_any_text_except_one_leading_space(text):
    tokenizer = pocket_tokenizer(ITEMS)
    assert tokenizer.decode(tokenizer.encode(text)) == text.removeprefix(" ")


@given(
    text=st.lists(st.sampled_from([*ITEMS, " ", "  ", ",", ", ", "▁", "\n", "<0x41>", "日本", "fox", "é"])).map("".join)
)
def test_decoding_gives_back_texts_near_the_items(text):
    tokenizer = pocket_tokenizer(ITEMS)
    assert tokenizer.decode(tokenizer.encode(text)) == text.removeprefix(" ")


names = st.sampled_from(ITEMS) | st.text(min_size=1, max_size=12)


@given(history=st.lists(names, min_size=1, max_size=4), item=names)
def test_prompt_and_answer_tokenize_apart_as_they_do_together(history, item):
    tokenizer = pocket_tokenizer(ITEMS)
    prompt = ", ".join(history) + ","
    assert tokenizer.encode(prompt) + tokenizer.encode(" " + item) == tokenizer.encode(prompt + " " + item)


def test_tokenizer_holds_thousands_of_words():
    items = [f"Title{number} of{number % 900}, The ({1900 + number % 99})" for number in range(4000)]
    tokenizer = pocket_tokenizer(items)
    encoded = tokenizer(items)["input_ids"]
    assert {len(ids) for ids in encoded} == {5}
    assert tokenizer.batch_decode(encoded) == items


def test_padding_and_end_are_tokens_of_their_own(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.decode([*tokenizer.encode("Fox"), tokenizer.eos_token_id], skip_special_tokens=True) == "Fox"


# Pocket models


@pytest.mark.parametrize("name", POCKET)
def test_pocket_models_are_small_and_tied_and_drop_out_in_training_alone(name, tmp_path):
    items = [f"First{number % 60} Second{number // 4}" for number in range(240)]
    model, tokenizer = load_model(name, items=items)
    assert 100_000 < model.num_parameters() < 200_000
    assert model.dtype == torch.float32
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.vocab_size == len(tokenizer)
    assert torch.equal(model(INPUT).logits, model(INPUT).logits)
    model.train()
    assert not torch.equal(model(INPUT).logits, model(INPUT).logits)
    model.eval()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 700_000


@pytest.mark.parametrize("name", POCKET)
def test_the_seed_decides_the_weights_and_the_callers_random_numbers_stay(name):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = load_model(name, items=ITEMS, seed=1)[0]
    assert torch.equal(torch.rand(3), expected)
    same, other = load_model(name, items=ITEMS, seed=1)[0], load_model(name, items=ITEMS, seed=2)[0]
    assert torch.equal(first(INPUT).logits, same(INPUT).logits)
    assert not torch.allclose(first(INPUT).logits, other(INPUT).logits)


# Opening


@pytest.mark.parametrize("name", POCKET)
def test_a_saved_pocket_model_opens_as_it_was(name, tmp_path):
    model, tokenizer = load_model(name, items=ITEMS, seed=3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    opened, opened_tokenizer = load_model(tmp_path)
    assert torch.equal(opened(INPUT).logits, model(INPUT).logits)
    text = "Velvet Tiger, Björk Rêve, Fôx  ▁ 日本,"
    assert opened_tokenizer.encode(text) == tokenizer.encode(text)
    assert opened_tokenizer.decode(opened_tokenizer.encode(text)) == text
    assert (opened_tokenizer.pad_token, opened_tokenizer.eos_token) == ("<pad>", "<eos>")


@pytest.mark.parametrize("name", POCKET)
def test_a_lora_folder_opens_merged(name, tmp_path):
    model, tokenizer = load_model(name, items=ITEMS)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapted = add_lora(load_model(tmp_path / "base")[0])
    with torch.no_grad():
        for parameter in trained_parameters(adapted).values():
            parameter.normal_(0, 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    opened, opened_tokenizer = load_model(tmp_path / "adapter")
    assert not [key for key, _ in opened.named_parameters() if "lora" in key]
    torch.testing.assert_close(opened(INPUT).logits, adapted(INPUT).logits)
    assert not torch.allclose(opened(INPUT).logits, model(INPUT).logits, atol=1e-3)
    assert opened_tokenizer.encode("Neon Fox") == tokenizer.encode("Neon Fox")


def test_a_missing_padding_token_becomes_the_end_token(tmp_path):
    model, tokenizer = load_model("pocket-gpt2", items=ITEMS)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_model(tmp_path)[1].pad_token == "<eos>"


# Bad input: one sentence each


def one_sentence(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def test_unknown_model_names_the_closest():
    with pytest.raises(ValueError, match=r"Did you mean 'pocket-gpt2'.*pocket-qwen2.*qwen2.5-0.5b"):
        load_model("pocket-gpt")


@pytest.mark.parametrize("items", [None, []])
def test_pocket_model_without_items(items):
    with pytest.raises(ValueError, match=r"pocket-gpt2 needs the items' names.*items=splits.items"):
        load_model("pocket-gpt2", items=items)


def test_missing_folder(tmp_path):
    with pytest.raises(ValueError, match="There is no model folder"):
        load_model(tmp_path / "nothing")


def test_folder_that_is_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"is not a model: it has neither config.json nor adapter_config.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("damage", ["weights cut", "weights gone", "weights other", "config cut", "tokenizer gone"])
def test_damaged_folder(tmp_path, damage):
    model, tokenizer = load_model("pocket-gpt2", items=ITEMS)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    if damage == "weights cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "weights gone":
        weights.unlink()
    elif damage == "weights other":
        from safetensors.torch import load_file, save_file

        kept = {key: value for key, value in load_file(weights).items() if "h.1.mlp" not in key}
        save_file(kept, weights, metadata={"format": "pt"})
    elif damage == "config cut":
        (tmp_path / "config.json").write_text("{")
    else:
        (tmp_path / "tokenizer_config.json").unlink()
        (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"Model folder .* (cannot be opened|is incomplete)") as error:
        load_model(tmp_path)
    one_sentence(error)


def test_adapter_without_its_base(tmp_path):
    add_lora(load_model("pocket-gpt2", items=ITEMS)[0]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not name its base model") as error:
        load_model(tmp_path)
    one_sentence(error)


def test_a_model_that_is_not_here_and_cannot_be_fetched(monkeypatch, tmp_path):
    # huggingface_hub reads HF_HUB_OFFLINE and HF_HUB_CACHE once, at import.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"qwen2.5-0.5b is not on this computer .*minipo fetch qwen2.5-0.5b") as error:
        load_model("qwen2.5-0.5b")
    one_sentence(error)


# Adapters and their bases


@pytest.fixture
def smollm2(home):
    """A fetched smollm2-135m, tiny."""
    folder = home / "fetched" / "smollm2-135m"
    model, tokenizer = load_model("pocket-qwen2", items=ITEMS)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    receipt = {"origin": fetch.SOURCES["smollm2-135m"].origin, "files": {}}
    (folder / "fetched.json").write_text(json.dumps(receipt))
    return folder


def trained_adapter(base, seed=0):
    """A LoRA model on what `load_model(base)` opens, with weights that change its answers."""
    model, tokenizer = load_model(base)
    adapted = add_lora(model, rank=2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained_parameters(adapted).values():
            parameter.normal_(0, 0.3, generator=generator)
    return adapted, tokenizer


def rename_base(folder, base):
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": base}))


def test_an_adapter_on_a_fetched_model_is_small_and_opens_on_another_computer(smollm2, tmp_path, monkeypatch):
    adapted, tokenizer = trained_adapter("smollm2-135m")
    expected = adapted(INPUT).logits
    save_model(adapted, tokenizer, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
    }
    assert sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir()) < 100_000
    assert str(tmp_path) not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    smollm2.parent.parent.rename(tmp_path / "other")
    monkeypatch.setenv("MINIPO_HOME", str(tmp_path / "other"))
    opened, opened_tokenizer = load_model(tmp_path / "adapter")
    torch.testing.assert_close(opened(INPUT).logits, expected)
    assert opened_tokenizer.encode("Neon Fox") == tokenizer.encode("Neon Fox")


@pytest.mark.parametrize(
    "base",
    [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "huggingfacetb/smollm2-135m-instruct",
        "smollm2-135m",
        "/elsewhere/minipo/fetched/smollm2-135m",
    ],
)
def test_an_adapter_may_call_its_base_by_any_of_its_names(smollm2, tmp_path, base):
    adapted, tokenizer = trained_adapter("smollm2-135m")
    save_model(adapted, tokenizer, tmp_path)
    rename_base(tmp_path, base)
    torch.testing.assert_close(load_model(tmp_path)[0](INPUT).logits, adapted(INPUT).logits)


def test_a_rounded_adapter_is_saved_in_half_the_bytes_and_opens_as_it_was(smollm2, tmp_path):
    adapted, tokenizer = trained_adapter("smollm2-135m")
    save_model(adapted, tokenizer, tmp_path / "whole")
    round_adapter(adapted)
    save_model(adapted, tokenizer, tmp_path / "half")
    whole, half = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "half"))
    assert {weight.dtype for weight in whole.values()} == {torch.float32}
    assert {weight.dtype for weight in half.values()} == {torch.bfloat16}
    expected = adapted.merge_and_unload()(INPUT).logits
    torch.testing.assert_close(load_model(tmp_path / "half")[0](INPUT).logits, expected, atol=0, rtol=0)


def test_an_adapter_may_stand_on_an_adapter(smollm2, tmp_path, recwarn):
    save_model(*trained_adapter("smollm2-135m", seed=1), tmp_path / "sft")
    adapted, tokenizer = trained_adapter(tmp_path / "sft", seed=2)
    save_model(adapted, tokenizer, tmp_path / "prefer")
    opened = load_model(tmp_path / "prefer")[0]
    torch.testing.assert_close(opened(INPUT).logits, adapted(INPUT).logits)
    assert not torch.allclose(opened(INPUT).logits, load_model(tmp_path / "sft")[0](INPUT).logits, atol=1e-3)
    assert not [warning for warning in recwarn if "config file" in str(warning.message)]


def test_a_whole_model_is_saved_with_its_tokenizer(tmp_path):
    model, tokenizer = load_model("pocket-gpt2", items=ITEMS)
    save_model(model, tokenizer, tmp_path)
    opened, opened_tokenizer = load_model(tmp_path)
    assert torch.equal(opened(INPUT).logits, model(INPUT).logits)
    assert opened_tokenizer.encode("Neon Fox") == tokenizer.encode("Neon Fox")


def test_an_adapter_whose_base_folder_is_gone(smollm2, tmp_path):
    save_model(*trained_adapter("smollm2-135m"), tmp_path)
    rename_base(tmp_path, "/nowhere/base")
    with pytest.raises(ValueError, match=r"base model '/nowhere/base' is missing; put it back") as error:
        load_model(tmp_path)
    one_sentence(error)


def test_a_damaged_fetched_model_says_how_to_bring_it_again(smollm2):
    (smollm2 / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"'smollm2-135m' in .*remove that folder to fetch it again") as error:
        load_model("smollm2-135m")
    one_sentence(error)


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt_neox", "olmo2", "gemma"])
def test_a_folder_of_another_family_opens_and_takes_lora(family, tmp_path):
    tokenizer = pocket_tokenizer(ITEMS)
    heads = {} if family == "gpt_neox" else {"num_key_value_heads": 1, "head_dim": 16}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **SMALL, **heads)
    model = AutoModelForCausalLM.from_config(config).eval()
    save_model(model, tokenizer, tmp_path / "model")
    opened, opened_tokenizer = load_model(tmp_path / "model")
    torch.testing.assert_close(opened(INPUT).logits, model(INPUT).logits)
    assert opened_tokenizer.encode("Neon Fox") == tokenizer.encode("Neon Fox")
    adapted, _ = trained_adapter(tmp_path / "model")
    save_model(adapted, opened_tokenizer, tmp_path / "adapter")
    torch.testing.assert_close(load_model(tmp_path / "adapter")[0](INPUT).logits, adapted(INPUT).logits)


# LoRA


@pytest.mark.parametrize(
    ("name", "linear"),
    [
        ("pocket-gpt2", {"c_attn", "c_proj", "c_fc"}),
        ("pocket-qwen2", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_lora_trains_attention_and_mlp_only_and_starts_as_the_model(name, linear, recwarn):
    model, _ = load_model(name, items=ITEMS)
    before = model(INPUT).logits
    adapted = add_lora(model, rank=4)
    trained = trained_parameters(adapted)
    assert all("lora_" in key for key in trained)
    assert {key.split(".lora_")[0].rsplit(".", 1)[1] for key in trained} == linear
    matrices_per_layer = 4 if name == "pocket-gpt2" else 7
    assert len(trained) == 2 * 2 * matrices_per_layer
    assert {min(parameter.shape) for parameter in trained.values()} == {4}
    torch.testing.assert_close(adapted(INPUT).logits, before)
    assert not [warning for warning in recwarn if "fan_in_fan_out" in str(warning.message)]


def test_lora_is_scaled_by_two_unless_told_otherwise():
    for settings, expected in (({"rank": 4}, 8), ({"rank": 4, "alpha": 4}, 4)):
        adapted = add_lora(load_model("pocket-gpt2", items=ITEMS)[0], **settings)
        assert adapted.peft_config["default"].lora_alpha == expected


def test_lora_is_drawn_under_its_seed():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    draws = [trained_parameters(add_lora(load_model("pocket-gpt2", items=ITEMS)[0], seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(draws[0][key], draws[1][key]) for key in draws[0])
    assert any(not torch.equal(draws[0][key], draws[2][key]) for key in draws[0])
