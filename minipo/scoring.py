"""Log-probs of candidates under a causal language model.

A user's prompt is the same for all candidates, so one row holds it once, and then every candidate's tokens (`packing`):
the result is that of one forward per candidate, for a fraction of the work. A model that cannot read such a row (a
sliding window, recurrent layers, attention kernels without masks) is scored candidate by candidate, with a warning; one
that cannot score candidates at all is refused (`model_checks`).
"""

import ctypes
import platform
import re
import warnings
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minipo.compatibility.architectures import context_of, examine, longrope_limit, own_class, remembers_lengths
from minipo.forward import device_of, logits_of, one_by_one, packed_forward
from minipo.packing import PackedBatch, PackedGroups, TokenIds, pack_groups, pack_ids, row_tokens, sizes, unpack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    prompt_ids, answer_ids = tokenize_rows(tokenizer, prompts, candidates)
    lengths = sizes(prompt_ids, answer_ids)
    _check_context(model, *lengths)
    if not prompts:
        return torch.empty(0, 0)
    # The longest rows first: memory that is enough for them is enough for all.
    order = np.argsort(-row_tokens(*lengths), kind="stable")
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
    """Token ids of each text. special: with the tokens that the tokenizer puts before a text, which prompts need; what
    it puts behind one, an end-of-answer token say, is left off, for the text goes on."""
    distinct = list(dict.fromkeys(texts))  # candidates repeat: the same 240 names for every user
    if not distinct:
        return []
    end = -_appended(tokenizer) if special else 0
    # Not verbose: what is too long for the model is said elsewhere, where it is known what to do about it.
    encoded = tokenizer(distinct, add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"]
    known = {text: np.asarray(ids[: end or None], dtype=np.int64) for text, ids in zip(distinct, encoded, strict=True)}
    return [known[text] for text in texts]


def _appended(tokenizer: "PreTrainedTokenizerBase") -> int:
    """How many tokens the tokenizer puts behind a text."""
    text = "a"
    plain, whole = (tokenizer(text, add_special_tokens=special)["input_ids"] for special in (False, True))
    ends = [start + len(plain) for start in range(len(whole)) if whole[start : start + len(plain)] == plain]
    return len(whole) - ends[-1] if plain and ends else 0


def tokenize_answers(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[TokenIds]:
    """Token ids of each candidate's text, with the end-of-answer token behind them, once. Nothing stays nothing."""
    distinct = list(dict.fromkeys(texts))
    ended = dict(zip(distinct, (_ended(tokenizer, ids) for ids in tokenize(tokenizer, distinct)), strict=True))
    return [ended[text] for text in texts]


def _ended(tokenizer: "PreTrainedTokenizerBase", ids: TokenIds) -> TokenIds:
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError("The tokenizer has no eos_token, which ends an answer; set one.")
    return ids if len(ids) > 1 and ids[-1] == end else np.append(ids, end)


# Where prompt and answer meet: whether the two ends of text there are tokenized alike apart and together.
_seams: WeakKeyDictionary["PreTrainedTokenizerBase", dict[tuple[str, str], bool]] = WeakKeyDictionary()


def tokenize_rows(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    special: bool = True,
) -> tuple[list[TokenIds], list[list[TokenIds]]]:
    """Token ids of every prompt, and of its candidates with the end-of-answer token: those of "prompt + candidate".

    Prompts and candidates are tokenized by themselves, each once. Where that differs from the text of both together (a
    tokenizer that marks a text's beginning, a prompt that ends in a space), which is tried once for what meets, a row
    is tokenized together, with one warning: its prompt ends where the first of its candidates parts from it, which is
    TRL's rule. special: see `tokenize`; False where a chat template has written those tokens.
    """
    if len(prompts) != len(candidates):
        raise ValueError(f"{len(prompts)} prompts came with {len(candidates)} rows of candidates; each needs one.")
    flat = list(chain.from_iterable(candidates))
    prompt_ids, answers = tokenize(tokenizer, prompts, special), iter(tokenize_answers(tokenizer, flat))
    answer_ids = [[next(answers) for _ in row] for row in candidates]
    seams = _seams.setdefault(tokenizer, {})
    new: dict[tuple[str, str], tuple[int, int]] = {}
    for row, (prompt, texts) in enumerate(zip(prompts, candidates, strict=True)):
        for column, text in enumerate(texts):
            if (seam := _seam(prompt, text)) not in seams:
                new.setdefault(seam, (row, column))
    together = tokenize(tokenizer, [prompts[row] + candidates[row][column] for row, column in new.values()], special)
    for (seam, (row, column)), ids in zip(new.items(), together, strict=True):
        apart = np.concatenate([prompt_ids[row], answer_ids[row][column]])
        seams[seam] = np.array_equal(_ended(tokenizer, ids), apart) or not candidates[row][column]
    if not all(seams.values()):
        _tokenize_together(tokenizer, prompts, candidates, special, prompt_ids, answer_ids)
    return prompt_ids, answer_ids


def _seam(prompt: str, text: str) -> tuple[str, str]:
    """What decides how the two are tokenized where they meet. A space begins a token; else whole words count."""
    if text[:1] == " " and not prompt[-1:].isspace():
        return prompt[-2:], text[:2]
    return re.findall(r"\S*\s*\Z", prompt[-80:])[0], re.findall(r"\A\s*\S*", text)[0]


def _tokenize_together(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    special: bool,
    prompt_ids: list[TokenIds],
    answer_ids: list[list[TokenIds]],
) -> None:
    """Put the ids of "prompt + candidate" in the place of those rows that have a seam where they differ."""
    seams = _seams[tokenizer]
    for row, (prompt, texts) in enumerate(zip(prompts, candidates, strict=True)):
        if not any(not seams[_seam(prompt, text)] for text in texts):
            continue
        _warn(
            type(tokenizer),
            "tokens",
            f"This {type(tokenizer).__name__} splits {prompt[-8:]!r} + {texts[0][:8]!r} otherwise together than apart: "
            "such prompts are tokenized with each of their answers, which takes longer.",
        )
        together = tokenize(tokenizer, [prompt + text for text in texts], special)
        shared = min(_shared(ids, prompt_ids[row]) for ids in together)
        if not shared:
            raise ValueError(
                f"Row {row}: no token of the prompt stays as it is once an answer follows it; end the prompt in a "
                "whole word, and begin answers with a space."
            )
        prompt_ids[row] = prompt_ids[row][:shared]
        answer_ids[row] = [_ended(tokenizer, ids[shared:]) for ids in together]


def _shared(left: TokenIds, right: TokenIds) -> int:
    """How many tokens both begin with."""
    length = min(len(left), len(right))
    differ = np.flatnonzero(left[:length] != right[:length])
    return int(differ[0]) if len(differ) else length


def pack(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], candidates: Sequence[Sequence[str]]
) -> PackedBatch:
    """Tokenize and pack; see `candidate_logps` for the arguments.

    Raises ValueError: rows that do not fit, no candidates, a prompt or a candidate that tokenizes to nothing.
    """
    return pack_ids(*tokenize_rows(tokenizer, prompts, candidates), _pad_token(tokenizer))


def packed_logps(model: nn.Module, packed: PackedBatch | PackedGroups) -> Float[Tensor, "B C"]:
    """Log-prob of each candidate of a packed batch, -inf where a row has no such candidate; differentiable.

    model: a decoder-only transformers model, or one wrapped by peft. One that cannot read packed rows is scored
    candidate by candidate, with one warning. Natural logarithms, float32 (float64 for a float64 model), on the model's
    device. With bfloat16 weights or under torch.autocast a log-prob is off by some 0.1-0.3 (SmolLM2-135M, 4-8 tokens).

    Raises ValueError: a model that cannot score candidates (`model_checks.examine`); a prompt and candidate beyond its
    context; tokens that it does not know.
    """
    if "groups" in packed:
        width = packed["mask"].shape[1]
        groups = [packed_logps(model, group) for group in packed["groups"]]
        groups = [nn.functional.pad(logps, (0, width - logps.shape[1]), value=-torch.inf) for logps in groups]
        return torch.cat(groups)[packed["order"].argsort().to(groups[0].device)]
    # What torch.compile wraps a model in does not see the hook by which the head computes only what is needed.
    model = getattr(model, "_orig_mod", model)
    prompt_lengths = (packed["segments"] == 0).sum(1)
    counts, lengths = packed["mask"].sum(1), packed["lengths"][packed["mask"]]
    _check_context(model, *(tensor.cpu().numpy() for tensor in (prompt_lengths, counts, lengths)))
    _check_tokens(model, packed)
    limit = longrope_limit(model)
    long = None if limit is None else packed["mask"] & (prompt_lengths[:, None] + packed["lengths"] > limit)
    if long is not None and long.any():
        return _by_side(model, packed, long)
    return _scores(model, packed)


def _scores(model: nn.Module, packed: PackedBatch, read_end: bool = False) -> Float[Tensor, "B C"]:
    obstacle = examine(model, packed)
    if obstacle is not None and packed["mask"].shape[1] > 1:
        kind = own_class(model)
        _warn(kind, "forward", f"{kind.__name__} scores each candidate on its own, which takes longer: {obstacle}.")
    if device_of(model).type == "cpu":
        reuse_memory()
    if remembers_lengths(model):
        with torch.no_grad():
            logits_of(model, packed["input_ids"][:1, :1].to(device_of(model)))  # as short as can be: it forgets
    try:
        return packed_forward(model, packed) if obstacle is None else one_by_one(model, packed, read_end)
    except IndexError as error:  # a table of positions whose size the configuration does not say
        raise ValueError(
            f"{own_class(model).__name__} cannot read rows of {packed['position_ids'].max() + 1} tokens ({error}); "
            "shorten their history."
        ) from error


def _by_side(model: nn.Module, packed: PackedBatch, long: Bool[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """The scores under longrope, which takes its long factors for all rows of a forward as soon as one is long: those
    that are long with their end-of-answer token (`long`) and the others in forwards of their own."""
    prompt_ids, answer_ids = unpack(packed)
    logps = torch.full(long.shape, -torch.inf)
    for side in (long, packed["mask"] & ~long):
        rows = side.any(1).nonzero().flatten().tolist()
        if not rows:
            continue
        answers = [[answer_ids[row][column] for column in side[row].nonzero().flatten().tolist()] for row in rows]
        part = pack_ids([prompt_ids[row] for row in rows], answers, pad_token_id=0, read_end=True)
        scores = _scores(model, part, read_end=True)
        logps = logps.to(scores).masked_scatter(side.to(scores.device), scores[part["mask"].to(scores.device)])
    return logps


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


def _pad_token(tokenizer: "PreTrainedTokenizerBase") -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def _check_context(
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


def _check_tokens(model: nn.Module, packed: PackedBatch) -> None:
    table = getattr(model.get_input_embeddings(), "weight", None)  # type: ignore[operator]
    highest = max(int(packed["input_ids"].max()), int(packed["targets"].max()))
    if isinstance(table, Tensor) and highest >= len(table):
        raise ValueError(
            f"Token {highest} is beyond the model's vocabulary of {len(table)}: the tokenizer is another model's, or "
            "has new tokens; take the model's own, or call model.resize_token_embeddings(len(tokenizer))."
        )


_warned: set[tuple[str, str]] = set()


def _warn(of: type, what: str, message: str) -> None:
    """Warn once in this process that objects of this class are slow in this respect."""
    if (of.__name__, what) not in _warned:
        _warned.add((of.__name__, what))
        warnings.warn(message, stacklevel=3)
