"""Text to token ids, with any model's tokenizer."""

import re
import warnings
from collections.abc import Sequence
from itertools import chain
from weakref import WeakKeyDictionary

import numpy as np
from transformers import PreTrainedTokenizerBase

from minipo.packing import TokenIds


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = False) -> list[TokenIds]:
    """Token ids of each text. special: add the tokens that the tokenizer puts before a text, which prompts need; those
    after it, such as an end-of-answer token, are left out, because the text continues."""
    distinct = list(dict.fromkeys(texts))  # candidates repeat: the same 240 names for every user
    if not distinct:
        return []
    end = -_appended(tokenizer) if special else 0
    # Not verbose: text that is too long for the model is reported elsewhere, with what to do about it.
    encoded = tokenizer(distinct, add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"]
    known = {text: np.asarray(ids[: end or None], dtype=np.int64) for text, ids in zip(distinct, encoded, strict=True)}
    return [known[text] for text in texts]


def _appended(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the tokenizer puts after a text."""
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    ends = [start + len(plain) for start in range(len(whole)) if whole[start : start + len(plain)] == plain]
    return len(whole) - ends[-1] if plain and ends else 0


def _ended(tokenizer: PreTrainedTokenizerBase, ids: TokenIds) -> TokenIds:
    """An answer's token ids, ending in one end-of-answer token; of an empty text only that token."""
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError("The tokenizer has no eos_token, which ends an answer; set one.")
    return ids if len(ids) > 1 and ids[-1] == end else np.append(ids, end)


# For the two ends of text where prompt and answer meet: whether they are tokenized the same apart and together.
_seams: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[str, str], bool]] = WeakKeyDictionary()


def tokenize_rows(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    special: bool = True,
    prompt_ids: Sequence[TokenIds] | None = None,
) -> tuple[list[TokenIds], list[list[TokenIds]]]:
    """Token ids of every prompt, and of its candidates with one end-of-answer token: those of "prompt + candidate".

    Prompts and candidates are tokenized separately, each once. Where that differs from tokenizing both together (a
    tokenizer that marks the start of a text, a prompt that ends in a space), which is tested once for each two ends of
    text that meet, the row is tokenized together, with one warning: its prompt then ends where the first candidate
    diverges from it, which is TRL's rule. special: see `tokenize`; False if a chat template has written those tokens.
    prompt_ids: what `tokenize` makes of the prompts, if that is known.
    """
    for given in (prompts, *candidates):
        if isinstance(given, str):  # a sequence too, of letters
            raise ValueError(f"{given[:40]!r} stands where a list of texts is expected; put it into a list.")
    if len(prompts) != len(candidates):
        raise ValueError(f"{len(prompts)} prompts came with {len(candidates)} rows of candidates; each needs one.")
    distinct = list(dict.fromkeys(chain.from_iterable(candidates)))
    answers = {text: _ended(tokenizer, ids) for text, ids in zip(distinct, tokenize(tokenizer, distinct), strict=True)}
    prompt_ids = tokenize(tokenizer, prompts, special) if prompt_ids is None else list(prompt_ids)
    answer_ids = [[answers[text] for text in texts] for texts in candidates]
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
    if all(seams.values()):
        return prompt_ids, answer_ids
    for row, (prompt, texts) in enumerate(zip(prompts, candidates, strict=True)):
        if all(seams[_seam(prompt, text)] for text in texts):
            continue
        warn_once(
            type(tokenizer),
            "tokens",
            f"This {type(tokenizer).__name__} splits {prompt[-8:]!r} + {texts[0][:8]!r} differently together and "
            "apart: such prompts are tokenized with each of their answers, which takes longer.",
        )
        together = tokenize(tokenizer, [prompt + text for text in texts], special)
        shortest = min(map(len, [prompt_ids[row], *together]))
        differ = np.any([ids[:shortest] != prompt_ids[row][:shortest] for ids in together], axis=0)
        shared = int(differ.argmax()) if differ.any() else shortest
        if not shared:
            raise ValueError(
                f"Row {row}: no token of the prompt stays the same when an answer follows; end the prompt with a "
                "whole word, and start answers with a space."
            )
        prompt_ids[row] = prompt_ids[row][:shared]
        answer_ids[row] = [_ended(tokenizer, ids[shared:]) for ids in together]
    return prompt_ids, answer_ids


def _seam(prompt: str, text: str) -> tuple[str, str]:
    """The text that decides how the two are tokenized where they meet. A space starts a token; else words matter."""
    if text[:1] == " " and not prompt[-1:].isspace():
        return prompt[-2:], text[:2]
    return re.findall(r"\S*\s*\Z", prompt[-80:])[0], re.findall(r"\A\s*\S*", text)[0]


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


_warned: set[tuple[str, str]] = set()


def warn_once(of: type, what: str, message: str) -> None:
    """Warn once per process that objects of this class are slow in this respect."""
    if (of.__name__, what) not in _warned:
        _warned.add((of.__name__, what))
        warnings.warn(message, stacklevel=3)
