"""Users of a dataset as prompts and as rows to train on, and a model's ranking of their candidates."""

import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from minipo.compatibility.architectures import context_of
from minipo.compatibility.tokenizers import tokenize, tokenize_rows
from minipo.evaluation import Report, Scores, report
from minipo.experiments.datasets.splits import Interaction, Splits
from minipo.names import lookup
from minipo.packing import TokenIds
from minipo.prompts import TEMPLATES, Template, answer, render
from minipo.rows import TokenRows
from minipo.scoring import candidate_logps, evaluating
from minipo.sequences import TARGETS, SequenceRows, token_sequences

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_USERS = "There are no users to evaluate: the split is empty; give at least one."


def user_prompt(interaction: Interaction, template: str | Template = "line") -> str:
    """The prompt of one user, from a template or the name of one. Raises ValueError if there is no such template."""
    return render(_template(template), interaction.history, interaction.candidates)


def _template(template: str | Template) -> Template:
    return lookup("template", template, TEMPLATES) if isinstance(template, str) else template


def fit_prompts(
    tokenizer: "PreTrainedTokenizerBase",
    interactions: Sequence[Interaction],
    template: str | Template = "line",
    context: int | None = None,
    room: int | None = None,
) -> tuple[list[str], int]:
    """Every user's prompt, without the oldest items of the history where it does not fit, and how many were shortened.

    context: tokens the model can read; None for no limit. room: tokens kept free for what follows the prompt; None for
    each user's longest candidate.
    Raises ValueError if a prompt does not fit with one item of history.
    """
    prompts, _, shortened = _fit(tokenizer, interactions, template, context, room)
    return prompts, shortened


def _fit(
    tokenizer: "PreTrainedTokenizerBase",
    interactions: Sequence[Interaction],
    template: str | Template,
    context: int | None,
    room: int | None = None,
) -> tuple[list[str], list[TokenIds], int]:
    """`fit_prompts`' prompts, their token ids, and how many were shortened."""
    template = _template(template)
    prompts = [user_prompt(user, template) for user in interactions]
    ids = tokenize(tokenizer, prompts, special=True)
    if context is None or not interactions:
        return prompts, ids, 0
    rooms = np.full(len(interactions), room or 0)
    if room is None:
        names = tokenize(tokenizer, [answer(item) for user in interactions for item in user.canonical])
        begins = np.cumsum([0] + [len(user.candidates) for user in interactions[:-1]])
        rooms = np.maximum.reduceat([len(ids) for ids in names], begins)
    long = np.arange(len(interactions))  # rows still to check
    shortened = dropped = 0
    while True:
        needed = rooms[long] + [len(ids[row]) for row in long]
        too_long = needed > context
        if not too_long.any():
            return prompts, ids, shortened
        long, needed = long[too_long], needed[too_long]
        shortened, dropped = shortened or len(long), dropped + 1
        for row, tokens in zip(long, needed, strict=True):
            user = interactions[row]
            if len(user.history) <= dropped:
                raise ValueError(
                    f"User {user.user}: with one item of history, prompt and answer need {tokens} tokens, more than "
                    f"the {context} of the model's context; choose a shorter template or a model with a longer context."
                )
            prompts[row] = render(template, user.history[dropped:], user.candidates)
        for row, shorter in zip(long, tokenize(tokenizer, [prompts[row] for row in long], special=True), strict=True):
            ids[row] = shorter


def _fitted(
    tokenizer: "PreTrainedTokenizerBase",
    interactions: Sequence[Interaction],
    template: str | Template,
    context: int | None,
    room: int | None = None,
) -> tuple[list[str], list[TokenIds], int]:
    """What `_fit` returns, with a warning that says how many prompts it shortened."""
    prompts, ids, shortened = _fit(tokenizer, interactions, template, context, room)
    if shortened:
        warnings.warn(
            f"{shortened} of {len(prompts)} prompts were longer than the {context} tokens of the model's context: "
            "their oldest history items were left out.",
            stacklevel=3,
        )
    return prompts, ids, shortened


def preference_rows(
    interactions: Sequence[Interaction],
    template: str | Template = "line",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    context: int | None = None,
) -> list[dict[str, Any]]:
    """Rows for `PreferenceTrainer` and `SFTTrainer`: a user's "prompt", the "chosen" answer and the "rejected" ones.

    tokenizer, context: with both, prompts are shortened to fit into `context` tokens, see `fit_prompts`; a warning says
    how many. Raises ValueError as `fit_prompts` does.
    """
    if tokenizer is None:
        prompts = [user_prompt(user, template) for user in interactions]
    else:
        prompts, *_ = _fitted(tokenizer, interactions, template, context)
    return [
        {"prompt": prompt, "chosen": answer(user.chosen), "rejected": [answer(item) for item in user.negatives]}
        for prompt, user in zip(prompts, interactions, strict=True)
    ]


def sequence_rows(
    interactions: Sequence[Interaction],
    template: str | Template,
    tokenizer: "PreTrainedTokenizerBase",
    context: int | None = None,
    targets: int = TARGETS,
) -> SequenceRows:
    """Rows for `SFTTrainer` that do not repeat a user's history: stretches of the users' items, in each of which the
    chosen items are learnt, each of them once, after the items before it; see `minipo.sequences`.

    template: "line", "liked", or another that `continues`. context: tokens that the model can read. targets: chosen
    items in a row, so that a batch of n rows learns n × targets of them. An item sees at most as many items before it
    as the longest history has. Raises what `token_sequences` raises.
    """
    window = max((len(user.history) for user in interactions), default=0)
    return token_sequences(tokenizer, user_sequences(interactions), _template(template), window, targets, context)


def user_sequences(interactions: Sequence[Interaction]) -> list[tuple[tuple[str, ...], int]]:
    """Every user's items, oldest first, and how many of the first stand before the first chosen one: all rows of a user
    in one sequence, as far as they continue each other, in whatever order they come.

    A row continues another if its history is that row's history and chosen item, or the last of these where it has the
    length of the longest history here. One that continues no other, or that another row already continues the same way,
    begins a sequence, so that each row's chosen item is in exactly one.
    """
    longest = max((len(user.history) for user in interactions), default=0)
    waiting: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
    for number, user in enumerate(interactions):
        waiting[user.user, (*user.history, user.chosen)[-longest:]].append(number)
    following: dict[int, int] = {}
    for number, user in enumerate(interactions):
        found = waiting[user.user, tuple(user.history)]
        if (before := next((each for each in found if each != number), None)) is not None:
            found.remove(before)
            following[before] = number
    sequences, continuing, placed = [], set(following.values()), set()
    # Last those that continue others, for rows that repeat items may do so in a circle; it is opened at its first row.
    for start in sorted(range(len(interactions)), key=continuing.__contains__):
        items, number = list(interactions[start].history), start
        while number is not None and number not in placed:
            items.append(interactions[number].chosen)
            placed.add(number)
            number = following.get(number)
        if len(items) > (known := len(interactions[start].history)):
            sequences.append((tuple(items), known))
    return sequences


def rows_of(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    splits: Splits,
    template: str,
    which: Sequence[str] = ("train", "validation", "test"),
) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """The rows of each split, and how many prompts lost their oldest items, being longer than the model's context."""
    rows, shortened = {}, 0
    for split in which:
        users = getattr(splits, split)
        rows[split] = preference_rows(users, template, tokenizer, context_of(model))
        fitted = zip(rows[split], users, strict=True)
        shortened += sum(row["prompt"] != user_prompt(user, template) for row, user in fitted)
    return rows, shortened


_LAST: dict[tuple[Any, ...], tuple[dict[str, TokenRows], int, list[warnings.WarningMessage]]] = {}


def token_rows_of(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    splits: Splits,
    template: str,
    start: str,
) -> tuple[dict[str, TokenRows], int]:
    """`rows_of` as token ids for `PreferenceTrainer`, without the way through rows of text.

    start: the fingerprint of the folder that model and tokenizer are from. The last result is kept, because the runs of
    a grid share it; the warnings come for each run. Raises ValueError as `preference_rows` and `tokenize_rows` do.
    """
    context = context_of(model)
    key = (splits.fingerprint, template, start, context)
    if key not in _LAST:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            read, shortened = {}, 0
            for split in ("train", "validation", "test"):
                users = getattr(splits, split)
                prompts, ids, fewer = _fitted(tokenizer, users, template, context)
                answers = [[answer(item) for item in user.canonical] for user in users]
                read[split] = TokenRows(*tokenize_rows(tokenizer, prompts, answers, prompt_ids=ids))
                shortened += fewer
        _LAST.clear()
        _LAST[key] = read, shortened, said
    read, shortened, said = _LAST[key]
    for warning in said:
        warnings.warn(warning.message, stacklevel=2)
    return read, shortened


def score(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    interactions: Sequence[Interaction],
    template: str | Template = "line",
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """Log-probs (B, 1+K), in nats, of every user's candidates, chosen first, then the negatives in their order.

    A row with fewer candidates than the longest ends in −inf. A prompt beyond the model's context is shortened, as in
    `preference_rows`. No gradients, in evaluation mode. Raises what `candidate_logps` and `fit_prompts` raise.
    """
    prompts, *_ = _fitted(tokenizer, interactions, template, context_of(model))
    candidates = [[answer(item) for item in user.canonical] for user in interactions]
    with evaluating(model):
        scores = candidate_logps(model, tokenizer, prompts, candidates, batch_size=batch_size)
    return scores.float().cpu().numpy()


def evaluate(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    interactions: Sequence[Interaction],
    reference: Scores | None = None,
    template: str | Template = "line",
    batch_size: int = 64,
) -> Report:
    """Rank every user's candidates by their log-probs.

    reference: the SFT model's log-probs (B, 1+K) of the same candidates, for reward win rate and `pair_loss`.
    Raises ValueError if there are no users.
    """
    if not interactions:
        raise ValueError(NO_USERS)
    return report(score(model, tokenizer, interactions, template, batch_size), reference)


def valid_ratio(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    interactions: Sequence[Interaction],
    items: Sequence[str],
    template: str | Template = "line",
    batch_size: int = 64,
) -> float:
    """ValidRatio: the share of users for whom greedy free generation gives a usable answer.

    If the prompt lists the candidates, an answer is usable when it names exactly one of them, whatever else it says; if
    not, when it is exactly the name of one of `items` (arXiv 2312.02445, section 4).
    Prompts are shortened as in `score`. Raises ValueError if there are no users, and as `fit_prompts` does.
    """
    texts = _greedy(model, tokenizer, interactions, items, template, batch_size)
    listed, catalogue = _template(template).lists_candidates, set(items)
    valid = sum(
        len(named(user.candidates, text)) == 1 if listed else text.strip() in catalogue
        for user, text in zip(interactions, texts, strict=True)
    )
    return valid / len(interactions)


def named_hits(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    interactions: Sequence[Interaction],
    items: Sequence[str],
    template: str | Template = "line",
    batch_size: int = 64,
) -> NDArray[np.bool_]:
    """Whether greedy free generation names each user's chosen item and no other candidate, (users,): HR@1 as the code
    of DynamicPO (arXiv 2605.00327) counts it. Raises as `valid_ratio` does."""
    texts = _greedy(model, tokenizer, interactions, items, template, batch_size)
    pairs = zip(interactions, texts, strict=True)
    return np.array([named(user.candidates, text) == {user.chosen} for user, text in pairs])


def _greedy(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    interactions: Sequence[Interaction],
    items: Sequence[str],
    template: str | Template,
    batch_size: int,
) -> list[str]:
    """The answer of each user by greedy generation, of at most one token more than the longest of `items`."""
    if not interactions:
        raise ValueError(NO_USERS)
    longest = max(len(ids) for ids in tokenize(tokenizer, [answer(item) for item in items]))
    prompts, *_ = _fitted(tokenizer, interactions, template, context_of(model), longest)
    texts: list[str] = []
    with evaluating(model):
        for start in range(0, len(interactions), batch_size):
            ids = tokenize(tokenizer, prompts[start : start + batch_size], special=True)
            rows = {"input_ids": [row.tolist() for row in ids]}
            inputs = tokenizer.pad(rows, padding_side="left", return_tensors="pt").to(model.device)
            inputs.pop("token_type_ids", None)
            with torch.inference_mode():
                output = model.generate(  # pyrefly: ignore[not-callable]
                    **inputs,
                    max_new_tokens=longest + 1,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                )
            texts += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def named(candidates: Sequence[str], text: str) -> set[str]:
    """Which of the candidates `text` names, as whole words; "Neon Fox" names "Neon Fox", not "Fox" as well."""
    longest_first = sorted(candidates, key=len, reverse=True)
    return set(re.findall(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", text))
