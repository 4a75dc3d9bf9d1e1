"""From a name to a model and its tokenizer: new pocket models, hub models, local folders; LoRA."""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

from minipo.experiments.fetch import SOURCES, fetch
from minipo.experiments.files import read_json, write_json
from minipo.folder import remove
from minipo.names import first_line, unknown

LAYERS, WIDTH, HEADS, CONTEXT = 2, 64, 4, 128
DROPOUT = 0.1  # GPT-2's own; SFT on a few thousand users needs it; preference training turns it off
PAD, EOS = "<pad>", "<eos>"

POCKET = ("pocket-gpt2", "pocket-qwen2")
PRETRAINED = {name: source.hub for name, source in SOURCES.items() if source.kind == "model"}  # and the hub's names
MODELS: Mapping[str, str] = {name: name for name in POCKET} | PRETRAINED


def load_model(
    name: str | Path, items: Sequence[str] | None = None, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model called `name` in float32, with its tokenizer.

    name: pocket-gpt2 or pocket-qwen2 (random weights under `seed`, a tokenizer built from `items`); smollm2-135m, gpt2
        or qwen2.5-0.5b (fetched on first use, see `fetch`); or a local folder in from_pretrained format. A folder
        with a LoRA adapter opens as its base model with the adapter merged; the base may be any of these too, or a
        name on the Hugging Face hub.
    items: the items' names; pocket models need them, the others ignore them.

    Raises ValueError: unknown name; a pocket model without items; a model that is not local and cannot be fetched; a
    folder that is not a model or is damaged. OSError: no disk space for what is fetched.
    """
    name = str(name)
    if name in POCKET:
        if not items:
            raise ValueError(f"{name} needs the items' names to make its tokenizer; pass items=splits.items.")
        return _pocket_model(name, pocket_tokenizer(items), seed)
    folder = Path(name).expanduser()
    if name in PRETRAINED:
        model, tokenizer = _open_fetched(name)
    elif folder.is_dir():
        model, tokenizer = _open_folder(folder)
    elif folder.is_absolute() or name.startswith((".", "~")) or len(folder.parts) > 1:
        raise ValueError(f"There is no model folder {name!r}; give a folder in from_pretrained format.")
    else:
        raise ValueError(unknown("model", name, MODELS))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def save_model(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model, or only its LoRA adapter, into `folder`, so that `load_model` opens it here and elsewhere.

    An adapter names a fetched base model as the hub does, and is saved without its tokenizer: a few megabytes, half of
    them after `round_adapter`.
    """
    weights = {name: weight for name, weight in model.state_dict().items() if "lora_" in name}
    halves = {name: weight.bfloat16() for name, weight in weights.items()}
    exact = weights and all(torch.equal(weight, halves[name]) for name, weight in weights.items())
    model.save_pretrained(str(folder), state_dict=halves if exact else None)
    hub = None
    if isinstance(model, PeftModel):
        remove(folder / "README.md")  # peft's empty template
        model.config.save_pretrained(str(folder))  # peft looks for it when an adapter on top of this one is saved
        settings = read_json(folder / "adapter_config.json")
        hub = PRETRAINED.get(_fetched_name(settings["base_model_name_or_path"] or ""))
        if hub is not None:
            write_json(folder / "adapter_config.json", settings | {"base_model_name_or_path": hub})
    if hub is None:
        tokenizer.save_pretrained(str(folder))


def pocket_tokenizer(items: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of the items' words: a word is one token, the comma after it another, all else its bytes.

    A token includes the space before its word, and a text's first word gets one too, so that a word is the same token
    everywhere. Hence encode(prompt) + encode(" " + item) == encode(prompt + " " + item), and decoding gives back any
    text except for one space at its very start. (The texts <pad> and <eos> are those tokens.)

    If it is saved with a model, open it with `load_model` or PreTrainedTokenizerFast: for a Qwen2 folder, transformers'
    AutoTokenizer replaces these rules by Qwen2's own.
    """
    # Not byte-level tokens: names with accents stay readable, and the 256 bytes are for what is not a word.
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", behavior="merged_with_next"),
            pre_tokenizers.Split(Regex(r",\z"), behavior="isolated"),
        ]
    )
    words = {word for item in items for word, _ in splitter.pre_tokenize_str(" " + item)} - {",", " "}
    pieces = [PAD, EOS, *(f"<0x{byte:02X}>" for byte in range(256)), ",", *sorted(words)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    # ignore_merges keeps a word that is in the vocabulary whole; without merges every other is split into bytes.
    tokenizer = Tokenizer(tokenizer_models.BPE(vocabulary, [], byte_fallback=True, ignore_merges=True))
    tokenizer.normalizer = normalizers.Replace(Regex(r"\A(?! )"), " ")
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _pocket_model(
    name: str, tokenizer: PreTrainedTokenizerFast, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    if name == "pocket-gpt2":
        own: dict[str, Any] = {
            "model_type": "gpt2",
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), DROPOUT),
            "activation_function": "gelu_pytorch_tanh",  # GPT-2's own function, in one operation
        }
    else:
        own = {
            "model_type": "qwen2",
            "intermediate_size": 4 * WIDTH,
            "num_key_value_heads": HEADS // 2,
            "attention_dropout": DROPOUT,
        }
    config = AutoConfig.for_model(
        **own,
        num_hidden_layers=LAYERS,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with seeded(seed):
        return AutoModelForCausalLM.from_config(config).eval(), tokenizer


def _open_fetched(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    folder = fetch(name)
    return _open(str(folder), f"Model {name!r} in {str(folder)!r} (remove that folder to fetch it again)")


def _fetched_name(base: str) -> str:
    """The name by which minipo fetches the base model that an adapter calls `base`, or "" if it does not."""
    return next(
        (name for name, hub in PRETRAINED.items() if base.lower() in (name, hub.lower())),
        # On one computer an adapter may name the folder it was trained on.
        Path(base).name if Path(base).parent.name == "fetched" and Path(base).name in PRETRAINED else "",
    )


def _open_folder(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    described = f"Model folder {str(folder)!r}"
    if (folder / "adapter_config.json").is_file():
        return _open_adapter(folder, described)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{described} is not a model: it has neither config.json nor adapter_config.json.")
    return _open(str(folder), described)


def _open_adapter(folder: Path, described: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    try:
        base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    except Exception as error:
        raise ValueError(f"{described} holds a LoRA adapter that cannot be read: {first_line(error)}") from error
    if not base:
        raise ValueError(f"{described} holds a LoRA adapter that does not name its base model; save the model merged.")
    if fetched := _fetched_name(base):
        model, tokenizer = _open_fetched(fetched)
    elif Path(base).is_dir():
        model, tokenizer = _open_folder(Path(base))
    elif Path(base).is_absolute():
        raise ValueError(
            f"{described} holds a LoRA adapter whose base model {base!r} is missing; "
            "put it back or write its new path into adapter_config.json."
        )
    else:
        model, tokenizer = _open(base, f"{base!r}, the base model of {described}")
    try:
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = _open_tokenizer(str(folder))
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload().eval()
    except Exception as error:
        raise ValueError(f"{described} holds a LoRA adapter that cannot be opened: {first_line(error)}") from error
    model.name_or_path = str(folder.resolve())  # what an adapter on top of this one names as its base
    return model, tokenizer


def _open(source: str, described: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Open a folder or a hub name through transformers; whatever it raises becomes one sentence."""
    try:
        tokenizer = _open_tokenizer(source)
        opened: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # transformers, huggingface_hub, safetensors and json each raise their own
        if Path(source).is_dir():
            raise ValueError(f"{described} cannot be opened: {first_line(error)}") from error
        raise ValueError(
            f"{described} is neither in the Hugging Face cache nor reachable; "
            "download it elsewhere and give the path of its folder as the model's name."
        ) from error
    model, report = opened
    if missing := sorted(report["missing_keys"]):  # transformers would fill them with random weights
        raise ValueError(f"{described} is incomplete: it lacks the weights {', '.join(missing)}.")
    return model.eval(), tokenizer


def _open_tokenizer(source: str) -> Any:
    settings = Path(source, "tokenizer_config.json")
    if settings.is_file():
        written_by = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class")
        if written_by in ("TokenizersBackend", "PreTrainedTokenizerFast"):  # AutoTokenizer does not always use it
            return PreTrainedTokenizerFast.from_pretrained(source)
    elif Path(source).is_dir():  # transformers would make an empty tokenizer
        raise ValueError("it holds no tokenizer (tokenizer_config.json is missing).")
    return AutoTokenizer.from_pretrained(source)


def add_lora(model: PreTrainedModel, rank: int = 8, alpha: int | None = None, seed: int = 0) -> PeftModel:
    """Low-rank adapters (LoRA, arXiv 2106.09685) on every linear layer of attention and MLP; the rest is frozen.

    The output head is not adapted. The model is changed in place; the adapter starts as the identity, its random half
    drawn under `seed`, and is scaled by alpha / rank (alpha: twice the rank if not given); no dropout.
    """
    # GPT-2 writes its linear layers as Conv1D, with the weight transposed.
    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    configuration = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )
    with seeded(seed):
        return get_peft_model(model, configuration)


def round_adapter(model: torch.nn.Module) -> None:
    """Round LoRA's weights to what bfloat16 can hold, so that `save_model` writes half the bytes."""
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.bfloat16().to(weight.dtype)


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Draw under `seed` inside, and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
