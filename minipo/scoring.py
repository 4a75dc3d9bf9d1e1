"""Log-probs of candidates under a causal language model.

A user's prompt is the same for all candidates, so one row holds it once, then every candidate's tokens (`packing`):
the result of one forward per candidate, for a fraction of the work. A model that cannot read such a row (a
sliding window, recurrent layers, attention kernels without masks) is scored candidate by candidate, with a warning; one
that cannot score candidates at all is refused (`compatibility.architectures`).
"""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from threading import RLock

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from minipo.compatibility.architectures import (
    check_context,
    check_tokens,
    examine,
    longrope_limit,
    own_class,
    remembers_lengths,
)
from minipo.compatibility.forwards import by_length, one_by_one, reuse_memory
from minipo.compatibility.tokenizers import pad_token, tokenize_rows, warn_once
from minipo.forward import device_of, logits_of, packed_forward
from minipo.packing import PackedBatch, PackedGroups, as_candidates, pack_groups, pack_ids, row_tokens, sizes

# Threads take turns: scoring puts hooks into the model and switches it to evaluation mode, and another thread would run
# into both. Forks wait too: a child has only the thread that forked it, and what the others had put there would stay.
ALONE = RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=ALONE.acquire, after_in_parent=ALONE.release, after_in_child=ALONE.release)


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Inside the context the model is in evaluation mode, and other threads do not score."""
    with ALONE:
        training = model.training
        model.eval()
        try:
            yield
        finally:
            model.train(training)


def candidate_logps(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    batch_size: int = 32,
) -> Float[Tensor, "B C"]:
    """Log-prob of each candidate after its row's prompt, its end-of-answer token included; without gradients.

    candidates: the texts as they follow the prompt (`prompts.answer(item)`, with its space). C is the largest number of
        candidates in a row; where a row has fewer, the missing ones score -inf.
    batch_size: maximum rows per forward. Rows of similar length go together, so that padding stays below 10 %.

    Natural logarithms, float32 (float64 for a float64 model). Raises what `pack` and `packed_logps` raise.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
    prompt_ids, answer_ids = tokenize_rows(tokenizer, prompts, candidates)
    lengths = sizes(prompt_ids, answer_ids)
    check_context(model, *lengths)
    if not prompts:
        return torch.empty(0, 0)
    # The longest rows first: if memory is enough for them, it is enough for all.
    order = np.argsort(-row_tokens(*lengths), kind="stable")
    width, batches = max(map(len, candidates)), []
    with torch.no_grad():
        for rows in np.split(order, range(batch_size, len(order), batch_size)):
            packed = pack_groups(
                [prompt_ids[row] for row in rows], [answer_ids[row] for row in rows], pad_token(tokenizer)
            )
            logps = packed_logps(model, packed)
            batches.append(nn.functional.pad(logps, (0, width - logps.shape[1]), value=-torch.inf))
    return torch.cat(batches)[torch.from_numpy(order).argsort()]


def pack(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
) -> PackedBatch:
    """Tokenize and pack; see `candidate_logps` for the arguments.

    Raises ValueError: unequal numbers of rows, no candidates, a prompt or a candidate that tokenizes to nothing.
    """
    return pack_ids(*tokenize_rows(tokenizer, prompts, candidates), pad_token(tokenizer))


def packed_logps(model: nn.Module, packed: PackedBatch | PackedGroups) -> Float[Tensor, "B C"]:
    """Log-prob of each candidate of a packed batch, -inf where a row has no such candidate; differentiable.

    packed: also rows of `sequences`, whose candidates are the items that they learn.
    model: a decoder-only transformers model, or one wrapped by peft. One that cannot read packed rows is scored
    candidate by candidate, with one warning. Natural logarithms, float32 (float64 for a float64 model), on the model's
    device. With bfloat16 weights or under torch.autocast a log-prob is off by some 0.1-0.3 (SmolLM2-135M, 4-8 tokens).
    Threads that score take turns; nothing else may use the model at the same time.

    Raises ValueError: a model that cannot score candidates (`compatibility.architectures.examine`); a prompt and
    candidate beyond its context; tokens that it does not know.
    """
    if "groups" in packed:
        width = packed["mask"].shape[1]
        groups = [packed_logps(model, group) for group in packed["groups"]]  # pyrefly: ignore[not-iterable]
        groups = [nn.functional.pad(logps, (0, width - logps.shape[1]), value=-torch.inf) for logps in groups]
        return torch.cat(groups)[packed["order"].argsort().to(groups[0].device)]  # pyrefly: ignore[bad-typed-dict-key]
    # torch.compile's wrapper does not see the hook that makes the head compute only what is needed.
    model = getattr(model, "_orig_mod", model)  # pyrefly: ignore[bad-assignment]
    candidates = as_candidates(packed)
    prompt_lengths = (candidates["segments"] == 0).sum(1)
    counts, lengths = candidates["mask"].sum(1), candidates["lengths"][candidates["mask"]]
    check_context(model, *(tensor.cpu().numpy() for tensor in (prompt_lengths, counts, lengths)))
    check_tokens(model, packed)
    limit = longrope_limit(model)
    with ALONE:
        if limit is not None and candidates is packed:
            return by_length(model, packed, limit, _scores)
        if limit is not None and packed["position_ids"].max() + 2 > limit:  # end-of-answer token included
            return one_by_one(model, packed, read_end=True)
        return _scores(model, packed)


def _scores(model: nn.Module, packed: PackedBatch, read_end: bool = False) -> Float[Tensor, "B C"]:
    obstacle = examine(model, as_candidates(packed))
    if obstacle is not None and packed["mask"].shape[1] > 1:
        kind = own_class(model)
        warn_once(kind, "forward", f"{kind.__name__} scores each candidate on its own, which takes longer: {obstacle}.")
    if device_of(model).type == "cpu":
        reuse_memory()
    if remembers_lengths(model):
        with torch.no_grad():
            logits_of(model, packed["input_ids"][:1, :1].to(device_of(model)))  # the shortest row resets it
    try:
        return packed_forward(model, packed) if obstacle is None else one_by_one(model, packed, read_end)
    except IndexError as error:  # a table of positions whose size the configuration does not give
        raise ValueError(
            f"{own_class(model).__name__} cannot read rows of {packed['position_ids'].max() + 1} tokens ({error}); "
            "shorten their history."
        ) from error
