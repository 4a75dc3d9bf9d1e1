"""Whether a model can score candidates, and whether it reads packed rows correctly: found out on its first batch.

`examine` refuses a model whose logits at a place are not those of the next token, given the ones before. Whether it
reads packed rows correctly is known for a few architectures (`KNOWN`) and tested for the others.
"""

import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from minipo.compatibility.forwards import one_by_one
from minipo.forward import device_of, head_at, logits_of, packed_forward
from minipo.names import first_line
from minipo.packing import PackedBatch, TokenIds, pack_ids, unpack

NOISE = ("drop", "jitter")  # in the names of settings that make a model draw at random in training


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout of `model` to 0, including layer drop, router jitter and adapters' dropout, which would make
    policy and reference differ before the first step. The configuration that is saved with the model does not change.
    """
    quiet: dict[int, Any] = {}  # layers that read the configuration in each forward get a copy with zeros
    for module in model.modules():
        for name, value in list(vars(module).items()):
            noisy = (name == "p" and "Dropout" in type(module).__name__) or any(word in name for word in NOISE)
            if noisy and type(value) is float:
                setattr(module, name, 0.0)
            elif noisy and isinstance(value, dict):  # by adapter name
                value.update({key: 0.0 for key, rate in value.items() if type(rate) is float})
        config = vars(module).get("config")
        if isinstance(config, PreTrainedConfig) and not isinstance(module, PreTrainedModel):
            if id(config) not in quiet:
                quiet[id(config)] = copy(config)
                for name, value in vars(config).items():
                    if type(value) is float and any(word in name for word in NOISE):
                        setattr(quiet[id(config)], name, 0.0)
            module.config = quiet[id(config)]


# Architectures that read the packed mask and positions correctly: tests/test_scoring.py tests each of them.
KNOWN = frozenset({"gemma", "gpt2", "gpt_neox", "granite", "llama", "mistral", "olmo2", "qwen2", "qwen3"})
SHORT = 16  # tokens of the row on which a model is tested: in a longer one, looking ahead shows less


@dataclass
class _Findings:
    """What has been found out about a model with its current adapters and attention."""

    known: bool
    row: int = 0  # tokens of the longest row that it was tested on
    width: int = 0  # tokens of the longest packed row that was compared with plain ones
    obstacle: str | None = None  # the result of that


_found: WeakKeyDictionary[nn.Module, dict[Any, _Findings]] = WeakKeyDictionary()


def examine(model: nn.Module, packed: PackedBatch) -> str | None:
    """What keeps the model from reading this packed batch correctly, so that candidates are scored one by one; None if
    nothing does.

    Raises ValueError, in one sentence that names the model, if it cannot score candidates at all. A model is tested
    once, and again with other adapters or another attention; one of an unknown architecture also whenever a row is
    longer than any before, because some start to slide a window or to hash then.
    """
    config, width = text_config(model), packed["input_ids"].shape[1]
    adapters, longest = _adapters(model), int(packed["position_ids"].max()) + 1
    states = _found.setdefault(model, {})
    state = (config._attn_implementation, *_adapter_state(model))
    if state not in states:
        _check_kind(model)
        with perturbed_adapters(model):
            _check_row(model, _row(packed)[-SHORT:])
        states[state] = _Findings(_is_known(model, adapters))
    found = states[state]
    if not found.known and longest > found.row:
        with perturbed_adapters(model):
            _check_row(model, _row(packed))
        found.row = longest

    # A window changes nothing as long as it is wider than the row.
    windows = [
        value
        for name, value in vars(config).items()
        if name.endswith(("window", "window_size", "chunk_length")) and type(value) is int and value > 0
    ]
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has {', '.join(sorted(kinds))} layers"
    if windows and min(windows) < width:
        return f"its attention slides over a window of {min(windows)} tokens, fewer than a packed row has"
    if config._attn_implementation not in ("eager", "sdpa"):
        return f"its attention runs on {config._attn_implementation}; load it with attn_implementation='sdpa'"
    if _invocations(adapters):
        return "where its adapter starts depends on the tokens of the whole row"
    if found.known:
        return None
    context = context_of(model)
    if context is not None and context < width:
        return f"a packed row of {width} tokens is longer than its context of {context}"
    if packed["mask"].shape[1] == 1:
        return "it has not been tested yet, which takes a row with two candidates"
    if width > found.width and (found.obstacle is None or not found.width):
        with perturbed_adapters(model):
            found.obstacle = _compare(model, packed)
        found.width = width
    return found.obstacle


def _is_known(model: nn.Module, adapters: list[Any]) -> bool:
    """Whether the model is one of transformers' own, of an architecture in `KNOWN`, in one dtype, with no adapters
    other than LoRA or DoRA."""
    config: Any = model.config
    plain = all(adapter.peft_type == "LORA" and not getattr(adapter, "arrow_config", None) for adapter in adapters)
    own = own_class(model).__module__.startswith("transformers.models.")
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return plain and own and config.model_type in KNOWN and (len(dtypes) == 1 or bool(adapters))


def text_config(model: nn.Module) -> Any:
    """The configuration of the part that reads text."""
    try:
        return model.config.get_text_config()  # pyrefly: ignore[missing-attribute]
    except ValueError as error:  # of several parts, as in a model of text and sound
        raise ValueError(
            f"This {model.config.model_type} model cannot score candidates: it has several parts that read text; "  # pyrefly: ignore[missing-attribute]
            "choose a decoder-only text model."
        ) from error


def own_class(model: nn.Module) -> type:
    """The model's own class, also where peft wraps it."""
    return type(model.get_base_model() if hasattr(model, "get_base_model") else model)  # pyrefly: ignore[not-callable]


def context_of(model: nn.Module) -> int | None:
    """How many tokens `model` can read, or None if it sets no limit."""
    config = text_config(model)
    named = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len", "max_target_positions"))
    context = next((number for number in named if isinstance(number, int) and number > 0), None)  # XLNet says -1
    if context is None:
        return None
    for module in model.modules():
        table = module._modules.get("position_embeddings")
        if isinstance(table, nn.Embedding) and table.padding_idx is not None:
            # RoBERTa and similar models count positions from padding_idx + 1, and give the size of the whole table.
            context = min(context, table.num_embeddings - table.padding_idx - 1)
    return context


def longrope_limit(model: nn.Module) -> int | None:
    """The maximum tokens for which longrope uses its short factors, for all rows of a forward; None without it."""
    longropes = (rope for rope in _ropes(model) if rope.get("rope_type") == "longrope")
    return min((rope["original_max_position_embeddings"] for rope in longropes), default=None)


def remembers_lengths(model: nn.Module) -> bool:
    """Whether the model keeps rotary frequencies computed for a longer row until it reads a shorter one."""
    return any(rope.get("rope_type") == "dynamic" for rope in _ropes(model))


def _ropes(model: nn.Module) -> list[dict[str, Any]]:
    """The settings of rotary positions, one per kind of layer where they differ."""
    parameters = getattr(text_config(model), "rope_parameters", None) or {}
    return [value for value in parameters.values() if isinstance(value, dict)] or [parameters]


def check_quiet(model: nn.Module, packed: PackedBatch, logps: Any) -> None:
    """Raises ValueError, naming the model, if its log-probs differ between training and evaluation mode.

    logps: scores a packed batch, as `packed_logps` does. `disable_dropout` cannot switch off all noise, and what is
    left makes policy and reference differ before the first step.
    """
    few = _few(packed)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), perturbed_adapters(model):
        with _mode(model, training=False):
            expected = logps(model, few)[few["mask"]]
        try:
            with _mode(model, training=True):
                found = logps(model, few)[few["mask"]]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ValueError(
                f"This {_described(model)} cannot be trained on such rows: in training mode they make it fail "
                f"({first_line(error)})."
            ) from error
    difference = (found - expected).abs().max()
    if not difference <= 16 * torch.finfo(found.dtype).eps * expected.abs().max().clamp(min=1):
        raise ValueError(
            f"This {_described(model)} still draws at random in training: log-probs of one batch differ by "
            f"{difference:.2g} nats between training and evaluation mode, and preference training compares the two; "
            "switch off this noise, or choose another model or adapter."
        )


def check_context(
    model: nn.Module,
    prompt_lengths: Int[np.ndarray, " B"],
    counts: Int[np.ndarray, " B"],
    lengths: Int[np.ndarray, " answers"],
) -> None:
    context = context_of(model)
    if context is None or not len(counts):
        return
    longest = np.maximum.reduceat(lengths - 1, np.cumsum(counts) - counts)
    needed = prompt_lengths + longest
    row = needed.argmax()
    if needed[row] > context:
        raise ValueError(
            f"Row {row} needs {needed[row]} tokens (prompt {prompt_lengths[row]}, longest candidate {longest[row]}), "
            f"more than the {context} of the model's context; shorten its history."
        )


def check_tokens(model: nn.Module, packed: PackedBatch) -> None:
    table = getattr(model.get_input_embeddings(), "weight", None)  # pyrefly: ignore[not-callable]
    highest = max(int(packed["input_ids"].max()), int(packed["targets"].max()))
    if isinstance(table, Tensor) and highest >= len(table):
        raise ValueError(
            f"Token {highest} is beyond the model's vocabulary of {len(table)}: the tokenizer is another model's, or "
            "has new tokens; use the model's own, or call model.resize_token_embeddings(len(tokenizer))."
        )


@contextmanager
def without_adapters(model: Any) -> Generator[None]:
    """Inside the context, the model computes without its peft adapters; ValueError if they cannot be switched off."""
    with ExitStack() as stack:
        try:
            stack.enter_context(model.disable_adapter())
        except (ValueError, AttributeError, NotImplementedError) as error:
            raise ValueError(
                f"An adapter of type {_kinds(model)} cannot be switched off ({error}), which the reference needs; "
                "choose another, such as LoRA."
            ) from error
        yield


def warn_of_adapters(model: Any, packed: PackedBatch, logps: Any) -> None:
    """Warn if the model comes with an adapter that changes its log-probs: the reference includes it.

    logps: as in `check_quiet`.
    """
    with torch.no_grad():
        adapted = logps(model, packed)
        with without_adapters(model):
            difference = (adapted - logps(model, packed))[packed["mask"]].abs().max()
    if difference > 1e-3:
        warnings.warn(
            f"The model comes with an adapter that changes log-probs (by up to {difference:.2g} nats in the first "
            "rows): the reference is the model with it; if it is new, pass it as peft_config instead.",
            stacklevel=3,
        )


# The model on ordinary rows.


def _check_kind(model: nn.Module) -> None:
    if getattr(model.config, "is_encoder_decoder", False):
        _refuse(model, "it is an encoder-decoder; choose a decoder-only one")
    if any(getattr(adapter, "is_prompt_learning", False) for adapter in _adapters(model)):
        _refuse(model, "its adapter puts virtual tokens before the prompt; choose LoRA")
    if model.get_output_embeddings() is None:  # pyrefly: ignore[not-callable]
        _refuse(model, "its get_output_embeddings() returns no output head; choose one of transformers' own models")
    if not isinstance(getattr(model.get_input_embeddings(), "weight", None), Tensor):  # pyrefly: ignore[not-callable]
        _refuse(model, "it does not read one token per position; choose a text model")


def _row(packed: PackedBatch) -> TokenIds:
    """The longest ordinary row that a prompt and one of its candidates make."""
    row = int(packed["position_ids"].max(1).values.argmax())
    (prompt,), (answers,) = (ids[row : row + 1] for ids in unpack(packed))
    return np.concatenate([prompt, max(answers, key=len)[:-1]])


def _invocations(adapters: list[Any]) -> list[int]:
    """The tokens from whose last occurrence in a row aLoRA adapters are active."""
    return [token for adapter in adapters for token in getattr(adapter, "alora_invocation_tokens", None) or ()]


@torch.no_grad()
def _check_row(model: nn.Module, row: TokenIds) -> None:
    """Test the model on an ordinary row, twice, and on a batch of that row and one with a different second half."""
    config: Any = model.config
    half = len(row) // 2
    # Each token of the second half becomes another of the row's, except where that would move an adapter's start.
    fixed = _invocations(_adapters(model))
    pool = np.setdiff1d(np.append(row, abs(row.max() - np.arange(1, 4))), fixed)
    other = np.where(np.isin(row, fixed), row, np.where(row != pool[-1], pool[-1], pool[0]))
    both = torch.from_numpy(np.stack([row, np.where(np.arange(len(row)) < half, row, other)])).to(device_of(model))
    places = torch.arange(max(0, half - SHORT), min(len(row), half + SHORT), device=both.device)
    with _mode(model, training=False):
        try:
            with head_at(model, places):
                alone, again = (logits_of(model, both[:1])[0] for _ in range(2))
            with head_at(model, torch.cat([places, places + len(row)])):
                pair = logits_of(model, both)[0]
            whole = logits_of(model, both[:1, : 2 * SHORT])[0]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever an architecture raises: assertions, missing arguments, mixed dtypes
            hint = "" if getattr(config, "return_dict", True) else "; set its config.return_dict to True"
            raise ValueError(
                f"This {_described(model)} cannot score candidates: a row of text makes it fail "
                f"({first_line(error)}){hint}."
            ) from error
    if len(whole) != min(len(row), 2 * SHORT) or len(alone) != len(places) or len(pair) != 2 * len(places):
        _refuse(model, "it does not give the logits of one token at each position of a row")
    rounding = 0.3 * torch.finfo(alone.dtype).eps ** 0.5 * alone.abs().max()
    if (alone - again).abs().max() > rounding:
        _refuse(model, "it draws at random in evaluation mode too, so that two forwards of one row differ")
    same, other_end = pair.split(len(places))
    if (alone - same).abs().max() > rounding:
        _refuse(model, "its logits for a row depend on the other rows of the batch")
    if (alone - other_end)[places < half].abs().max() > rounding:
        hint = "; load it with is_decoder=True" if getattr(config, "is_decoder", None) is False else ""
        _refuse(model, f"its tokens see later tokens{hint}")


def _refuse(model: nn.Module, reason: str) -> None:
    raise ValueError(f"This {_described(model)} cannot score candidates: {reason}.")


def _described(model: nn.Module) -> str:
    with_adapter = f" with an adapter of type {_kinds(model)}" if _adapters(model) else ""
    return f"{model.config.model_type} model{with_adapter}"  # pyrefly: ignore[missing-attribute]


def _kinds(model: nn.Module) -> str:
    """The types of the model's adapters."""
    return ", ".join(sorted({str(getattr(each.peft_type, "value", each.peft_type)) for each in _adapters(model)}))


def _adapters(model: nn.Module) -> list[Any]:
    """The configurations of the model's adapters, whether peft or transformers added them."""
    return list((getattr(model, "peft_config", None) or {}).values())  # pyrefly: ignore[not-callable]


def _adapter_state(model: nn.Module) -> tuple[Any, ...]:
    """Which adapters are active."""
    if not _adapters(model):
        return ()
    layer = next((module for module in model.modules() if hasattr(module, "_disable_adapters")), None)
    return () if layer is None else (layer._disable_adapters, *layer.active_adapters)  # pyrefly: ignore[not-iterable]


# Packed rows against plain ones.


@torch.no_grad()
def _compare(model: nn.Module, packed: PackedBatch) -> str | None:
    """Compare packed with plain scores on two rows, the longest among them."""
    read_end = longrope_limit(model) is not None
    few = _few(packed, read_end)
    computed: list[torch.dtype] = []  # the dtype of the head's logits: autocast may start inside the model
    hook = model.get_output_embeddings().register_forward_hook(lambda *call: computed.append(call[-1].dtype))  # pyrefly: ignore[not-callable]
    try:
        with _mode(model, training=False):  # dropout would make any two scores differ
            plain = one_by_one(model, few, read_end)[few["mask"]]
            try:
                shared = packed_forward(model, few)[few["mask"]]
                # How much a wrong mask would matter: here candidates see the ones before them.
                causal: PackedBatch = {**few, "segments": few["segments"].clamp(max=0)}
                effect = (packed_forward(model, causal)[few["mask"]] - plain).abs().max()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                return f"packed rows make it fail ({first_line(error)})"
    finally:
        hook.remove()
    difference = (shared - plain).abs().max()
    # 0.03 % of it in float32, 9 % in bfloat16: far above rounding, far below the effect of ignoring mask or positions.
    if difference <= effect * torch.finfo(computed[0]).eps ** 0.5:
        return None
    return f"packed and plain log-probs of its first batch differ by {difference:.2g}"


def _few(packed: PackedBatch, read_end: bool = False) -> PackedBatch:
    """The longest row, and up to four candidates of another. read_end: see `pack_ids`."""
    prompt_ids, answer_ids = unpack(packed)
    rows = np.argsort(-(packed["segments"] >= 0).sum(1).cpu().numpy(), kind="stable")[:2].tolist()
    answers = [answer_ids[row][: None if row == rows[0] else 4] for row in rows]
    return pack_ids([prompt_ids[row] for row in rows], answers, pad_token_id=0, read_end=read_end)


@contextmanager
def perturbed_adapters(model: nn.Module) -> Generator[None]:
    """Inside the context, adapter weights are perturbed: most adapters start as the identity, and what they do shows
    only once they are trained. The model's own weights do not change, and autograd notices nothing."""
    generator, kept = torch.Generator().manual_seed(0), []
    for parameter in model.parameters() if _adapters(model) else ():
        if parameter.requires_grad and parameter.is_floating_point():
            kept.append((parameter, parameter.data.clone()))
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    torch.clear_autocast_cache()  # its copies of the weights are those from before
    try:
        yield
    finally:
        for parameter, weights in kept:
            parameter.data.copy_(weights)
        torch.clear_autocast_cache()


@contextmanager
def _mode(model: nn.Module, training: bool) -> Generator[None]:
    """Inside the context, the whole model is in training or evaluation mode; afterwards each module is as before."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
