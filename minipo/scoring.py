"""Log-probs of candidates under a causal language model: the only place that turns logits into log-probs.

A user's prompt is the same for all candidates, so one row holds it once, and then every candidate's tokens (for pairs:
arXiv 2410.20305). A candidate attends to the prompt and to itself, and its positions continue from the prompt's end:
the result is that of one forward per candidate, for a fraction of the work.

A model that cannot read such a row (a sliding window, recurrent layers, attention kernels without masks) is scored
candidate by candidate, with a warning; one of an architecture not in `KNOWN` is checked on its first batch.
"""

import ctypes
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, TypedDict, final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenIds = np.ndarray  # (tokens,) int64

# Architectures that read the packed mask and positions as they are meant: tests/test_scoring.py tries each of them.
KNOWN = frozenset({"gemma", "gpt2", "gpt_neox", "granite", "llama", "mistral", "olmo2", "qwen2", "qwen3"})


@final
class PackedBatch(TypedDict):
    """B rows of T tokens; C candidates a row, of at most L tokens, end of answer included; N predicting positions."""

    input_ids: Int[Tensor, "B T"]
    position_ids: Int[Tensor, "B T"]
    segments: Int[Tensor, "B T"]  # 0 in the prompt, 1 + c in candidate c, -1 in padding
    predicting: Int[Tensor, " N"]  # where logits are needed: each row's last prompt token, then every candidate token
    sources: Int[Tensor, "B C L"]  # which of the N predicts the target
    targets: Int[Tensor, "B C L"]  # a candidate's tokens and the end-of-answer token
    target_mask: Bool[Tensor, "B C L"]  # False in padding
    lengths: Int[Tensor, "B C"]  # a candidate's number of targets; 0 where the row has no such candidate
    mask: Bool[Tensor, "B C"]  # False where the row has no such candidate


@final
class PackedGroups(TypedDict):
    """B rows in a few packed batches of rows of similar length, so that little of any forward is padding."""

    groups: list[PackedBatch]
    order: Int[Tensor, " B"]  # which row stands where in the groups, one after the other
    lengths: Int[Tensor, "B C"]  # as in PackedBatch, in the order of the rows
    mask: Bool[Tensor, "B C"]


def candidate_logps(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    batch_size: int = 32,
) -> Float[Tensor, "B C"]:
    """Log-prob of each candidate after its row's prompt, its end-of-answer token included; without gradients.

    candidates: the texts as they follow the prompt (`prompts.answer(item)`, with its space); rows may differ in number.
        C is the longest row's number; a candidate that a shorter row does not have scores -inf.
    batch_size: rows in one forward, at most. Rows of similar length go together, so that padding stays below 10 %.

    Natural logarithms, float32 (float64 for a float64 model). Raises what `pack` and `packed_logps` raise.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
    prompt_ids, answer_ids = _tokenize_rows(tokenizer, prompts, candidates)
    sizes = _sizes(prompt_ids, answer_ids)
    _check_context(model, *sizes)
    if not prompts:
        return torch.empty(0, 0)
    # The longest rows first: memory that is enough for them is enough for all.
    order = np.argsort(-_row_tokens(*sizes), kind="stable")
    width, batches = max(map(len, candidates)), []
    with torch.no_grad():
        for rows in np.split(order, range(batch_size, len(order), batch_size)):
            packed = pack_groups(
                [prompt_ids[row] for row in rows], [answer_ids[row] for row in rows], _pad_token(tokenizer)
            )
            logps = packed_logps(model, packed)
            batches.append(nn.functional.pad(logps, (0, width - logps.shape[1]), value=-torch.inf))
    return torch.cat(batches)[torch.from_numpy(order).argsort()]


def tokenize(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], special: bool = False) -> list[TokenIds]:
    """Token ids of each text. special: with the tokens that the tokenizer puts around a text (prompts need them)."""
    distinct = list(dict.fromkeys(texts))  # candidates repeat: the same 240 names for every user
    if not distinct:
        return []
    # Not verbose: what is too long for the model is said elsewhere, where it is known what to do about it.
    encoded = tokenizer(distinct, add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"]
    known = {text: np.asarray(ids, dtype=np.int64) for text, ids in zip(distinct, encoded, strict=True)}
    return [known[text] for text in texts]


def tokenize_answers(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[TokenIds]:
    """Token ids of each candidate's text, with the end-of-answer token behind them. Nothing stays nothing."""
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no eos_token, which ends an answer; set one.")
    end = np.array([tokenizer.eos_token_id])
    distinct = list(dict.fromkeys(texts))
    ended = {
        text: np.concatenate([ids, end]) for text, ids in zip(distinct, tokenize(tokenizer, distinct), strict=True)
    }
    return [ended[text] for text in texts]


def pack(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], candidates: Sequence[Sequence[str]]
) -> PackedBatch:
    """Tokenize and pack; see `candidate_logps` for the arguments.

    Raises ValueError: rows that do not fit, no candidates, a prompt or a candidate that tokenizes to nothing.
    """
    return pack_ids(*_tokenize_rows(tokenizer, prompts, candidates), _pad_token(tokenizer))


def pack_groups(
    prompt_ids: Sequence[TokenIds],
    answer_ids: Sequence[Sequence[TokenIds]],
    pad_token_id: int,
    padding: float = 0.1,
    few_shapes: bool = False,
) -> PackedGroups:
    """Pack rows as `pack_ids` does, into the fewest batches of which at most a share of `padding` is padding.

    `packed_logps` takes either; here it runs one forward a batch and gives the rows in their own order.
    few_shapes: batches of 16, 32... rows (one may have fewer), places in eights, so that shapes come again; more is
    padding then. It pays for bfloat16 on a CPU, where steps of ever new shapes get slower and slower
    (`benchmarks/shapes.py`).
    """
    sizes = _sizes(prompt_ids, answer_ids)
    whole = _row_tokens(*sizes)
    rows_by, places_by = (16, 8) if few_shapes else (1, 1)
    members = length_groups(whole, padding, rows_by, places_by)
    groups = [
        pack_ids([prompt_ids[row] for row in rows], [answer_ids[row] for row in rows], pad_token_id, places_by)
        for rows in members
    ]
    _, counts, answers = sizes
    mask = np.arange(counts.max()) < counts[:, None]
    lengths = np.zeros(mask.shape, np.int64)
    lengths[mask] = answers
    return PackedGroups(
        groups=groups,
        order=torch.from_numpy(np.concatenate(members)),
        lengths=torch.from_numpy(lengths),
        mask=torch.from_numpy(mask),
    )


def length_groups(
    lengths: Int[np.ndarray, " B"], padding: float = 0.1, rows_by: int = 1, places_by: int = 1
) -> list[Int[np.ndarray, " group"]]:
    """The rows 0..B-1 in the fewest groups such that, each row padded to its group's longest, at most a share of
    `padding` of all tokens is padding; of those the groups with the least. Rows of similar length stand together.

    Groups, but for the first, have a multiple of `rows_by` rows, padded to a multiple of `places_by`; where too much is
    padding then however they are cut, the groups with the least."""
    order = np.argsort(lengths, kind="stable")
    ascending = (-(-lengths[order] // places_by) * places_by).astype(float)
    places = np.arange(len(order))
    # padded[i, j]: tokens, padding included, of a group that holds the i-th to the j-th shortest row.
    begins = (len(order) - places) % rows_by == 0
    begins[0] = True
    padded = np.where(begins[:, None] & (places[:, None] <= places), (places - places[:, None] + 1) * ascending, np.inf)
    best, cuts = padded[0], []  # best[j]: the fewest tokens in which the shortest rows up to the j-th fit
    while best[-1] * (1 - padding) > lengths.sum():  # one group more, which begins after one of the places
        tokens = best[:-1, None] + padded[1:]
        if not tokens[:, -1].min(initial=np.inf) < best[-1]:
            break
        cuts.append(tokens.argmin(0) + 1)
        best = tokens.min(0)
    ends = [len(order)]
    for cut in reversed(cuts):
        ends.append(int(cut[ends[-1] - 1]))
    return np.split(order, ends[:0:-1])


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def padding_share(packed: PackedBatch | PackedGroups) -> float:
    """The share, from 0 to 1, of a packed batch's tokens that is padding."""
    if "groups" in packed:
        segments = torch.cat([group["segments"].flatten() for group in packed["groups"]])
    else:
        segments = packed["segments"]
    return (segments < 0).double().mean().item()


def pack_ids(
    prompt_ids: Sequence[TokenIds],
    answer_ids: Sequence[Sequence[TokenIds]],
    pad_token_id: int,
    places_by: int = 1,
) -> PackedBatch:
    """Pack rows that `tokenize(..., special=True)` and `tokenize_answers` made. Raises ValueError as `pack` does.

    places_by: rows are padded to a multiple of it, and logits computed at a multiple of four times as many places.
    """
    prompt_lengths, counts, lengths = _sizes(prompt_ids, answer_ids)
    flat = list(chain.from_iterable(answer_ids))
    rows = np.repeat(np.arange(len(counts)), counts)  # of each answer
    columns = _steps(counts)

    # The end-of-answer token is only predicted, never read: an answer of n targets puts n - 1 tokens into its row.
    reads = lengths - 1
    read_before = np.cumsum(reads) - reads  # over the whole batch
    row_reads = np.add.reduceat(reads, np.cumsum(counts) - counts)
    begins = prompt_lengths[rows] + read_before - (np.cumsum(row_reads) - row_reads)[rows]  # in its row
    total = _round_up(int((prompt_lengths + row_reads).max()), places_by)

    input_ids = np.full((len(counts), total), pad_token_id)
    position_ids = np.zeros((len(counts), total), np.int64)
    segments = np.full((len(counts), total), -1)
    prompt_rows, prompt_steps = np.repeat(np.arange(len(counts)), prompt_lengths), _steps(prompt_lengths)
    input_ids[prompt_rows, prompt_steps] = np.concatenate(prompt_ids)
    position_ids[prompt_rows, prompt_steps] = prompt_steps
    segments[prompt_rows, prompt_steps] = 0

    tokens, owners, steps = np.concatenate(flat), np.repeat(np.arange(len(flat)), lengths), _steps(lengths)
    read = steps < reads[owners]
    owner, step = owners[read], steps[read]
    row, place = rows[owner], begins[owner] + step
    input_ids[row, place] = tokens[read]
    position_ids[row, place] = prompt_lengths[row] + step
    segments[row, place] = 1 + columns[owner]

    shape = (len(counts), int(counts.max()), int(lengths.max()))
    sources, targets, target_mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    where = (rows[owners], columns[owners], steps)
    # All first tokens of a row are predicted at one place, the prompt's last token: one logit row serves them all.
    sources[where] = np.where(steps == 0, rows[owners], len(counts) + read_before[owners] + steps - 1)
    targets[where] = tokens
    target_mask[where] = True
    predicting = np.concatenate([np.arange(len(counts)) * total + prompt_lengths - 1, row * total + place])
    if places_by > 1:  # the first place over again, which nothing reads
        unread = _round_up(len(predicting), 4 * places_by) - len(predicting)
        predicting = np.concatenate([predicting, np.zeros(unread, predicting.dtype)])

    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        segments=torch.from_numpy(segments),
        predicting=torch.from_numpy(predicting),
        sources=torch.from_numpy(sources),
        targets=torch.from_numpy(targets),
        target_mask=torch.from_numpy(target_mask),
        lengths=torch.from_numpy(target_mask.sum(-1)),
        mask=torch.from_numpy(target_mask[:, :, 0].copy()),
    )


def packed_logps(model: nn.Module, packed: PackedBatch | PackedGroups) -> Float[Tensor, "B C"]:
    """Log-prob of each candidate of a packed batch, -inf where a row has no such candidate; differentiable.

    model: a decoder-only transformers model, or one wrapped by peft. One that cannot read packed rows is scored
    candidate by candidate, with one warning. Natural logarithms, float32 (float64 for a float64 model), on the model's
    device. With bfloat16 weights or under torch.autocast a log-prob is off by some 0.1-0.3 (SmolLM2-135M, 4-8 tokens).

    Raises ValueError: an encoder-decoder or a model with virtual tokens; a prompt and candidate beyond its context.
    """
    if "groups" in packed:
        width = packed["mask"].shape[1]
        groups = [packed_logps(model, group) for group in packed["groups"]]
        groups = [nn.functional.pad(logps, (0, width - logps.shape[1]), value=-torch.inf) for logps in groups]
        return torch.cat(groups)[packed["order"].argsort().to(groups[0].device)]
    _check_model(model)
    prompt_lengths = (packed["segments"] == 0).sum(1)
    counts, lengths = packed["mask"].sum(1), packed["lengths"][packed["mask"]]
    _check_context(model, *(tensor.cpu().numpy() for tensor in (prompt_lengths, counts, lengths)))
    if _device(model).type == "cpu":
        reuse_memory()
    obstacle = _obstacle(model, packed)
    if obstacle is None:
        return _forward(model, packed)
    if packed["mask"].shape[1] > 1:
        _warn(f"{_own_class(model).__name__} scores each candidate on its own, which takes longer: {obstacle}.")
    return _one_by_one(model, packed)


@cache
def reuse_memory() -> None:
    """Make this process keep the memory that tensors on the CPU free, for the next ones, instead of returning it.

    glibc hands every large block back to the system and gets it anew, and each new page costs a fault: what that comes
    to is the side "as it comes" of `benchmarks/step.py`.
    Holds for the whole process; `packed_logps` calls it for models on the CPU. Nothing happens without glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        top_pad, trim_threshold, mmap_max = -2, -1, -4  # their numbers in malloc.h
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)  # no block of its own from the system, however large
        mallopt(trim_threshold, -1)  # never give the heap's end back
        mallopt(top_pad, 2**28)  # and extend it by 256 MiB at a time


def _forward(model: nn.Module, packed: PackedBatch, alone: bool = False) -> Float[Tensor, "B C"]:
    """One forward. alone: each row has one candidate, and the model sees an ordinary row and an ordinary mask."""
    inputs = {name: tensor.to(_device(model)) for name, tensor in packed.items()}  # type: ignore[attr-defined]
    if alone:
        arguments = {"attention_mask": (inputs["segments"] >= 0).long()}
    else:
        dtype = model.get_input_embeddings().weight.dtype  # type: ignore[operator]
        mask = _attention_mask(inputs["segments"], dtype)
        arguments = {"attention_mask": mask, "position_ids": inputs["position_ids"]}
    with _head_at(model, inputs["predicting"]):
        logits = model(input_ids=inputs["input_ids"], use_cache=False, **arguments).logits[0]
    logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    logps = logps[inputs["sources"], inputs["targets"]]
    logps = logps.masked_fill(~inputs["target_mask"], 0).sum(-1)
    return logps.masked_fill(~inputs["mask"], -torch.inf)


@contextmanager
def _head_at(model: nn.Module, places: Int[Tensor, " N"]) -> Iterator[None]:
    """Within, the output head computes logits (1, N, vocabulary) at these places of the flattened batch alone."""

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *others = arguments
        return hidden.flatten(0, 1)[places].unsqueeze(0), *others

    # The hook sits before the head, so that whatever the model does to its logits (scaling, capping) stays.
    # Computing the head in float32 under bfloat16 was tried: errors fell by a tenth, as most arise before it.
    handle = model.get_output_embeddings().register_forward_pre_hook(keep)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


def _one_by_one(model: nn.Module, packed: PackedBatch) -> Float[Tensor, "B C"]:
    """The same scores and gradients from an ordinary row for each candidate, in forwards of as many rows as before."""
    prompt_ids, answer_ids = _unpack(packed)
    logps = []
    for part in packed["mask"].cpu().nonzero().split(len(prompt_ids)):
        pairs = part.tolist()
        prompts, answers = [prompt_ids[row] for row, _ in pairs], [[answer_ids[row][column]] for row, column in pairs]
        logps.append(_forward(model, pack_ids(prompts, answers, pad_token_id=0), alone=True))
    flat = torch.cat(logps).flatten()
    mask = packed["mask"].to(flat.device)
    return flat.new_full(mask.shape, -torch.inf).masked_scatter(mask, flat)


def _unpack(packed: PackedBatch) -> tuple[list[TokenIds], list[list[TokenIds]]]:
    """What `pack_ids` made the batch of."""
    batch = {name: tensor.cpu().numpy() for name, tensor in packed.items()}  # type: ignore[attr-defined]
    prompt_ids = [ids[segments == 0] for ids, segments in zip(batch["input_ids"], batch["segments"], strict=True)]
    answer_ids = [
        [ids[:length] for ids, length in zip(targets, lengths, strict=True) if length]
        for targets, lengths in zip(batch["targets"], batch["lengths"], strict=True)
    ]
    return prompt_ids, answer_ids


def _attention_mask(segments: Int[Tensor, "B T"], dtype: torch.dtype) -> Float[Tensor, "B 1 T T"]:
    """0 where a token may look, the lowest number elsewhere. Padding looks at itself, or its softmax would be nan."""
    looking, seen = segments.unsqueeze(2), segments.unsqueeze(1)
    allowed = ((seen == 0) | (seen == looking)).tril()
    # Additive and not boolean, because eager attention adds it to the scores.
    mask = torch.zeros(allowed.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min).unsqueeze(1)


def _steps(lengths: Int[np.ndarray, " n"]) -> Int[np.ndarray, " total"]:
    """0, 1, ... for each of the lengths, one after the other: [2, 3] gives 0 1 0 1 2."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _tokenize_rows(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], candidates: Sequence[Sequence[str]]
) -> tuple[list[TokenIds], list[list[TokenIds]]]:
    _check_rows(prompts, candidates)
    answers = iter(tokenize_answers(tokenizer, list(chain.from_iterable(candidates))))
    return tokenize(tokenizer, prompts, special=True), [[next(answers) for _ in row] for row in candidates]


def _pad_token(tokenizer: "PreTrainedTokenizerBase") -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def _check_rows(prompts: Sequence[object], candidates: Sequence[Sequence[object]]) -> None:
    if len(prompts) != len(candidates):
        raise ValueError(f"{len(prompts)} prompts came with {len(candidates)} rows of candidates; each needs one.")


def _sizes(
    prompt_ids: Sequence[TokenIds], answer_ids: Sequence[Sequence[TokenIds]]
) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"], Int[np.ndarray, " answers"]]:
    """Tokens of each prompt, answers of each row, tokens of each answer; raises ValueError where there are none."""
    _check_rows(prompt_ids, answer_ids)
    prompt_lengths = np.fromiter(map(len, prompt_ids), np.int64, len(prompt_ids))
    counts = np.fromiter(map(len, answer_ids), np.int64, len(answer_ids))
    lengths = np.fromiter(map(len, chain.from_iterable(answer_ids)), np.int64, counts.sum())
    if (prompt_lengths == 0).any():
        raise ValueError(f"The prompt of row {prompt_lengths.argmin()} tokenizes to nothing.")
    if (counts == 0).any():
        raise ValueError(f"Row {counts.argmin()} has no candidates.")
    if (lengths < 2).any():  # the end-of-answer token is always there
        empty = lengths.argmin()
        row = np.repeat(np.arange(len(counts)), counts)[empty]
        raise ValueError(f"Candidate {_steps(counts)[empty]} of row {row} tokenizes to nothing.")
    return prompt_lengths, counts, lengths


def _row_tokens(
    prompt_lengths: Int[np.ndarray, " B"], counts: Int[np.ndarray, " B"], lengths: Int[np.ndarray, " answers"]
) -> Int[np.ndarray, " B"]:
    """Tokens of each packed row. The end-of-answer token is only predicted, never read."""
    return prompt_lengths + np.add.reduceat(lengths - 1, np.cumsum(counts) - counts)


def _check_context(
    model: nn.Module,
    prompt_lengths: Int[np.ndarray, " B"],
    counts: Int[np.ndarray, " B"],
    lengths: Int[np.ndarray, " answers"],
) -> None:
    context = getattr(_config(model), "max_position_embeddings", None)
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


def _config(model: nn.Module) -> Any:
    return model.config.get_text_config()  # type: ignore[operator, union-attr]


def _device(model: nn.Module) -> torch.device:
    return model.get_input_embeddings().weight.device  # type: ignore[operator]


def _own_class(model: nn.Module) -> type:
    """The model's own class, also where peft wraps it."""
    return type(model.get_base_model() if hasattr(model, "get_base_model") else model)  # type: ignore[operator]


def _check_model(model: nn.Module) -> None:
    """Refuse models whose logits at a place are not those of the token after it."""
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False):
        reason = "it is an encoder-decoder; choose a decoder-only one"
    elif getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        reason = "its adapter puts virtual tokens before the prompt; choose LoRA"
    elif config.model_type not in KNOWN and not getattr(config, "is_decoder", True):  # BERT and its kin
        reason = "its tokens see the ones behind them; load it with is_decoder=True"
    elif model.get_output_embeddings() is None:  # type: ignore[operator]
        reason = "its get_output_embeddings() names no output head; choose a model of transformers' own"
    else:
        return
    raise ValueError(f"A {config.model_type} model cannot score candidates: {reason}.")


def _obstacle(model: nn.Module, packed: PackedBatch) -> str | None:
    """What keeps the model from reading packed rows as they are meant, if anything does."""
    config, width = _config(model), packed["input_ids"].shape[1]
    # A window changes nothing as long as it is wider than the row.
    windows = [
        value
        for name, value in vars(config).items()
        if name.endswith(("window", "window_size")) and type(value) is int and value > 0
    ]
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has layers of the kind {', '.join(sorted(kinds))}"
    if windows and min(windows) < width:
        return f"its attention slides over a window of {min(windows)} tokens, fewer than a packed row has"
    if config._attn_implementation not in ("eager", "sdpa"):
        return f"its attention runs on {config._attn_implementation}; load it with attn_implementation='sdpa'"
    if config.model_type in KNOWN and _own_class(model).__module__.startswith("transformers.models."):
        return None
    if packed["mask"].shape[1] == 1:
        return "it has not been checked yet, for which a row needs two candidates"
    checked = _checked.setdefault(model, {})
    if config._attn_implementation not in checked:
        checked[config._attn_implementation] = _self_check(model, packed)
    return checked[config._attn_implementation]


_checked: WeakKeyDictionary[nn.Module, dict[str, str | None]] = WeakKeyDictionary()


@torch.no_grad()
def _self_check(model: nn.Module, packed: PackedBatch) -> str | None:
    """Compare packed with plain scores on the two rows with the most candidates."""
    prompt_ids, answer_ids = _unpack(packed)
    rows = sorted(range(len(answer_ids)), key=lambda row: -len(answer_ids[row]))[:2]
    few = pack_ids([prompt_ids[row] for row in rows], [answer_ids[row][:4] for row in rows], pad_token_id=0)
    modes = {module: module.training for module in model.modules()}
    computed: list[torch.dtype] = []  # what the head's logits come in: autocast may begin inside the model
    hook = model.get_output_embeddings().register_forward_hook(lambda *call: computed.append(call[-1].dtype))  # type: ignore[operator]
    model.eval()  # dropout would make any two scores differ
    try:
        plain = _one_by_one(model, few)[few["mask"]]
        try:
            shared = _forward(model, few)[few["mask"]]
            # How much a wrong mask would matter: here candidates see their elder siblings.
            causal: PackedBatch = {**few, "segments": few["segments"].clamp(max=0)}
            effect = (_forward(model, causal)[few["mask"]] - plain).abs().max()
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            return f"packed rows make it fail ({(str(error).strip() or type(error).__name__).splitlines()[0]})"
        difference = (shared - plain).abs().max()
    finally:
        hook.remove()
        for module, mode in modes.items():
            module.training = mode
    # 0.03 % of it in float32, 9 % in bfloat16: far above rounding, far below what a mask or positions unheeded do.
    if difference <= effect * torch.finfo(computed[0]).eps ** 0.5:
        return None
    return f"packed and plain log-probs of its first batch differ by {difference:.2g}"


@cache
def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)
