"""Log-probs of candidates under a causal language model: the only place that turns logits into log-probs.

A user's prompt is the same for all candidates, so one row holds it once, and then every candidate's tokens (for pairs:
arXiv 2410.20305). A candidate attends to the prompt and to itself, and its positions continue from the prompt's end:
the result is that of one forward per candidate, for a fraction of the work.
"""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenIds = np.ndarray  # (tokens,) int64


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
    batch_size: rows in one forward.

    Natural logarithms, float32 (float64 for a float64 model). Raises what `pack` and `packed_logps` raise.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
    _check_rows(prompts, candidates)
    width = max(map(len, candidates), default=0)
    batches = []
    with torch.no_grad():
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)
            packed = pack(tokenizer, prompts[rows], candidates[rows], first_row=start)
            _check_context(model, packed, first_row=start)
            logps = packed_logps(model, packed)
            batches.append(nn.functional.pad(logps, (0, width - logps.shape[1]), value=-torch.inf))
    return torch.cat(batches) if batches else torch.empty(0, width)


def tokenize(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], special: bool = False) -> list[TokenIds]:
    """Token ids of each text. special: with the tokens that the tokenizer puts around a text (prompts need them)."""
    distinct = list(dict.fromkeys(texts))  # candidates repeat: the same 240 names for every user
    if not distinct:
        return []
    encoded = tokenizer(distinct, add_special_tokens=special, return_attention_mask=False)["input_ids"]
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
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    first_row: int = 0,
) -> PackedBatch:
    """Tokenize and pack; see `candidate_logps` for the arguments. first_row: what errors call the first row.

    Raises ValueError: rows that do not fit, no candidates, a prompt or a candidate that tokenizes to nothing.
    """
    _check_rows(prompts, candidates)
    answers = iter(tokenize_answers(tokenizer, list(chain.from_iterable(candidates))))
    answer_ids = [[next(answers) for _ in row] for row in candidates]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return pack_ids(tokenize(tokenizer, prompts, special=True), answer_ids, pad, first_row)


def pack_ids(
    prompt_ids: Sequence[TokenIds],
    answer_ids: Sequence[Sequence[TokenIds]],
    pad_token_id: int,
    first_row: int = 0,
) -> PackedBatch:
    """Pack rows that `tokenize(..., special=True)` and `tokenize_answers` made. Raises ValueError as `pack` does."""
    _check_rows(prompt_ids, answer_ids)
    flat = list(chain.from_iterable(answer_ids))
    prompt_lengths = np.fromiter(map(len, prompt_ids), np.int64, len(prompt_ids))
    counts = np.fromiter(map(len, answer_ids), np.int64, len(answer_ids))
    lengths = np.fromiter(map(len, flat), np.int64, len(flat))
    rows = np.repeat(np.arange(len(counts)), counts)  # of each answer
    columns = _steps(counts)
    if (prompt_lengths == 0).any():
        raise ValueError(f"The prompt of row {first_row + int(prompt_lengths.argmin())} tokenizes to nothing.")
    if (counts == 0).any():
        raise ValueError(f"Row {first_row + int(counts.argmin())} has no candidates.")
    if (lengths < 2).any():
        empty = int(lengths.argmin())
        raise ValueError(f"Candidate {columns[empty]} of row {first_row + rows[empty]} tokenizes to nothing.")

    # The end-of-answer token is only predicted, never read: an answer of n targets puts n - 1 tokens into its row.
    reads = lengths - 1
    read_before = np.cumsum(reads) - reads  # over the whole batch
    row_reads = np.add.reduceat(reads, np.cumsum(counts) - counts)
    begins = prompt_lengths[rows] + read_before - (np.cumsum(row_reads) - row_reads)[rows]  # in its row
    total = int((prompt_lengths + row_reads).max())

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


def packed_logps(model: nn.Module, packed: PackedBatch) -> Float[Tensor, "B C"]:
    """Log-prob of each candidate of a packed batch, -inf where a row has no such candidate; differentiable.

    model: a decoder-only transformers model, or one wrapped by peft. Natural logarithms, float32 (float64 for a float64
    model), on the model's device.

    Raises ValueError: a model whose attention cannot take the packed mask; a prompt and candidate beyond its context.
    """
    _check_model(model)
    _check_context(model, packed)
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    weight = model.get_input_embeddings().weight  # type: ignore[operator]
    inputs = {name: tensor.to(weight.device) for name, tensor in packed.items()}  # type: ignore[attr-defined]
    predicting = inputs["predicting"]

    def keep_predicting(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *others = arguments
        return hidden.flatten(0, 1)[predicting].unsqueeze(0), *others

    # The hook sits before the output head, so that whatever the model does to its logits (scaling, capping) stays.
    handle = head.register_forward_pre_hook(keep_predicting)
    try:
        logits = model(
            input_ids=inputs["input_ids"],
            position_ids=inputs["position_ids"],
            attention_mask=_attention_mask(inputs["segments"], weight.dtype),
            use_cache=False,
        ).logits
    finally:
        handle.remove()
    logps = logits[0].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    logps = logps[inputs["sources"], inputs["targets"]]
    logps = logps.masked_fill(~inputs["target_mask"], 0).sum(-1)
    return logps.masked_fill(~inputs["mask"], -torch.inf)


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


def _check_rows(prompts: Sequence[object], candidates: Sequence[Sequence[object]]) -> None:
    if len(prompts) != len(candidates):
        raise ValueError(f"{len(prompts)} prompts came with {len(candidates)} rows of candidates; each needs one.")


def _check_model(model: nn.Module) -> None:
    """Refuse models that would ignore the packed mask, and so be silently wrong."""
    config: Any = model.config
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if getattr(config, "is_encoder_decoder", False):
        reason = "it is an encoder-decoder"
    elif layers:
        reason = f"it has layers of the kind {', '.join(sorted(layers))}"
    elif getattr(config, "sliding_window", None) is not None:
        reason = f"its attention slides over a window of {config.sliding_window} tokens"
    elif config._attn_implementation not in ("eager", "sdpa"):
        reason = f"its attention runs on {config._attn_implementation}; load it with attn_implementation='sdpa'"
    else:
        return
    raise ValueError(f"A {config.model_type} model cannot score packed candidates: {reason}.")


def _check_context(model: nn.Module, packed: PackedBatch, first_row: int = 0) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    needed = packed["position_ids"].amax(1) + 1
    if context is None or int(needed.max()) <= context:
        return
    row = int(needed.argmax())
    length, prompt = int(needed[row]), int((packed["segments"][row] == 0).sum())
    raise ValueError(
        f"Row {first_row + row} needs {length} tokens (prompt {prompt}, longest candidate {length - prompt}), "
        f"more than the {context} of the model's context; shorten its history."
    )
