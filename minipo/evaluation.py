"""Ranking metrics over a user's candidates, and differences between runs with intervals.

Everywhere the chosen item stands in column 0 and its negatives in columns 1..K; a tie counts against the chosen item.
Where a user has fewer negatives than the longest row, −inf fills the row: such a candidate is absent, beats nobody, and
counts in no mean.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from .datasets import Interaction
from .model_checks import context_of
from .names import lookup
from .prompts import TEMPLATES, Template, answer, render
from .scoring import candidate_logps, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Scores = NDArray[np.floating]
NO_USERS = "There are no users to evaluate: the split is empty; give at least one."


def _checked(scores: Scores) -> Scores:
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(
            f"scores are of shape {scores.shape}: give (users, 1 + negatives), with the chosen item first and at least "
            "one negative."
        )
    if np.isnan(scores).any():
        row, column = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"scores hold NaN at row {row}, column {column}: give every candidate a number to rank by.")
    return scores


def ranks(scores: Scores) -> NDArray[np.int64]:
    """How many negatives score at least as high as the chosen item: 0 is best, K worst.

    scores: (B, 1+K), higher is better. Returns (B,). Raises ValueError on a shape without negatives or on NaN, which
    would otherwise count as a win for the chosen item.
    """
    scores = _checked(scores)
    return np.sum(scores[:, 1:] >= scores[:, :1], axis=1)


def ranking_metrics(ranks: NDArray[np.integer]) -> dict[str, NDArray[np.float64]]:
    """HR@1, HR@5, NDCG@5 and MRR of each user, from `ranks` of any shape (Järvelin & Kekäläinen 2002 for NDCG).

    With one relevant item, NDCG@5 is 1/log2(rank + 2) inside the first five places and 0 beyond; MRR is 1/(rank + 1).
    """
    rank = np.asarray(ranks, dtype=np.float64)
    return {
        "hr@1": (rank < 1).astype(np.float64),
        "hr@5": (rank < 5).astype(np.float64),
        "ndcg@5": np.where(rank < 5, 1 / np.log2(rank + 2), 0.0),
        "mrr": 1 / (rank + 1),
    }


def reward_wins(log_ratios: Scores) -> NDArray[np.bool_]:
    """Whether the chosen item's log-ratio ρ beats every negative's. log_ratios: (B, 1+K). Returns (B,).

    Raises ValueError as `ranks` does.
    """
    return ranks(log_ratios) == 0


def pair_loss(log_ratios: Scores) -> float:
    """The common yardstick: the mean of −log σ(ρ_w − ρ_k) over all users and all negatives.

    log_ratios: (B, 1+K), in nats. It does not depend on which K a run was trained with, so it may be compared across
    runs. Raises ValueError as `ranks` does.
    """
    log_ratios = _checked(log_ratios).astype(np.float64)
    losses = np.logaddexp(0, log_ratios[:, 1:] - log_ratios[:, :1])
    return float(losses.mean(where=log_ratios[:, 1:] > -np.inf))


@dataclass(frozen=True)
class Report:
    """What `evaluate` found on one split."""

    scores: Scores  # (B, 1+K) log-probs, chosen first
    ranks: NDArray[np.int64]  # (B,)
    reward_wins: NDArray[np.bool_] | None  # (B,), None without a reference
    metrics: dict[str, float]  # hr@1, hr@5, ndcg@5, mrr; with a reference also reward_win_rate and pair_loss


def report(scores: Scores, reference: Scores | None = None) -> Report:
    """Ranking metrics of log-probs `scores` (B, 1+K), and with the `reference`'s log-probs those of the log-ratio too.

    Raises ValueError as `ranks` does, and if the two are not of one shape or differ in what is absent.
    """
    rank = ranks(scores)
    metrics = {name: float(value.mean()) for name, value in ranking_metrics(rank).items()}
    wins = None
    if reference is not None:
        if np.shape(reference) != np.shape(scores):
            raise ValueError(
                f"reference is of shape {np.shape(reference)} and scores of {np.shape(scores)}: "
                "give the SFT model's log-probs of the same users and candidates."
            )
        wins = reward_wins(log_ratios := _log_ratios(scores, reference))
        metrics["reward_win_rate"] = float(wins.mean())
        metrics["pair_loss"] = pair_loss(log_ratios)
    return Report(scores, rank, wins, metrics)


def _log_ratios(scores: Scores, reference: Scores) -> NDArray[np.float64]:
    """ρ (B, 1+K), −inf where a candidate is absent."""
    absent = np.isneginf(scores)
    if (differ := absent != np.isneginf(reference)).any():
        row, column = np.argwhere(differ)[0]
        raise ValueError(
            f"At row {row}, column {column} only one of scores and reference is -inf, which stands for an absent "
            "candidate: give the SFT model's log-probs of the same users and candidates."
        )
    with np.errstate(invalid="ignore"):  # −inf − −inf
        return np.where(absent, -np.inf, np.subtract(scores, reference, dtype=np.float64))


def user_prompt(interaction: Interaction, template: str | Template = "line") -> str:
    """The prompt of one user, from a template or the name of one. Raises ValueError if there is none of that name."""
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
    """Every user's prompt, shortened from the oldest item of the history where it does not fit, and how many were.

    context: tokens the model can read; None for no limit. room: tokens kept free for what follows the prompt; None for
    each user's longest candidate.
    Raises ValueError if a prompt does not fit with one item of history.
    """
    template = _template(template)
    prompts = [user_prompt(user, template) for user in interactions]
    if context is None:
        return prompts, 0
    rooms = np.full(len(interactions), room or 0)
    if room is None:
        names = tokenize(tokenizer, [answer(item) for user in interactions for item in user.canonical])
        begins = np.cumsum([0] + [len(user.candidates) for user in interactions[:-1]])
        rooms = np.maximum.reduceat([len(ids) for ids in names], begins) if interactions else rooms
    long = np.arange(len(interactions))  # rows still to be looked at
    shortened = dropped = 0
    while True:
        lengths = np.array([len(ids) for ids in tokenize(tokenizer, [prompts[row] for row in long], special=True)])
        too_long = lengths + rooms[long] > context if len(long) else np.zeros(0, bool)
        if not too_long.any():
            return prompts, shortened
        long, needed = long[too_long], (lengths + rooms[long])[too_long]
        shortened, dropped = shortened or len(long), dropped + 1
        for row, tokens in zip(long, needed, strict=True):
            user = interactions[row]
            if len(user.history) <= dropped:
                raise ValueError(
                    f"User {user.user}: with one item of history, prompt and answer need {tokens} tokens, more than "
                    f"the {context} of the model's context; choose a shorter template or a model with a longer context."
                )
            prompts[row] = render(template, user.history[dropped:], user.candidates)


def _fitted(
    tokenizer: "PreTrainedTokenizerBase",
    interactions: Sequence[Interaction],
    template: str | Template,
    context: int | None,
    room: int | None = None,
) -> list[str]:
    """`fit_prompts`' prompts, with a warning that says how many it shortened."""
    prompts, shortened = fit_prompts(tokenizer, interactions, template, context, room)
    if shortened:
        warnings.warn(
            f"{shortened} of {len(prompts)} prompts were longer than the {context} tokens of the model's context: "
            "their oldest history items were left out.",
            stacklevel=3,
        )
    return prompts


def preference_rows(
    interactions: Sequence[Interaction],
    template: str | Template = "line",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    context: int | None = None,
) -> list[dict[str, Any]]:
    """Rows for `PreferenceTrainer` and `SFTTrainer`: a user's "prompt", the "chosen" answer and the "rejected" ones.

    tokenizer, context: with both, prompts are shortened to fit into so many tokens, see `fit_prompts`; a warning says
    how many were. Raises ValueError as `fit_prompts` does.
    """
    if tokenizer is None:
        prompts = [user_prompt(user, template) for user in interactions]
    else:
        prompts = _fitted(tokenizer, interactions, template, context)
    return [
        {"prompt": prompt, "chosen": answer(user.chosen), "rejected": [answer(item) for item in user.negatives]}
        for prompt, user in zip(prompts, interactions, strict=True)
    ]


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    interactions: Sequence[Interaction],
    template: str | Template = "line",
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """Log-probs (B, 1+K), in nats, of every user's candidates, chosen first, then the negatives in their order.

    A row with fewer candidates than the longest ends in −inf. A prompt beyond the model's context is shortened, as
    `preference_rows` does it. No gradient; the model is in evaluation mode meanwhile. Raises what `candidate_logps` and
    `fit_prompts` raise.
    """
    prompts = _fitted(tokenizer, interactions, template, context_of(model))
    candidates = [[answer(item) for item in user.canonical] for user in interactions]
    training = model.training
    model.eval()
    try:
        scores = candidate_logps(model, tokenizer, prompts, candidates, batch_size=batch_size)
    finally:
        model.train(training)
    return scores.float().cpu().numpy()


def evaluate(
    model: "PreTrainedModel",
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
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    interactions: Sequence[Interaction],
    items: Sequence[str],
    template: str | Template = "line",
    batch_size: int = 64,
) -> float:
    """ValidRatio: the share of users for whom greedy free generation gives a usable answer.

    What is generated may be one token longer than the longest of `items`.
    If the prompt lists the candidates, an answer is usable when it names exactly one of them, whatever else it says; if
    not, when it is exactly the name of one of `items` (arXiv 2312.02445, section 4).
    Prompts are shortened as in `score`. Raises ValueError if there are no users, and as `fit_prompts` does.
    """
    if not interactions:
        raise ValueError(NO_USERS)
    resolved = _template(template)
    longest = max(len(ids) for ids in tokenize(tokenizer, [answer(item) for item in items]))
    prompts = _fitted(tokenizer, interactions, resolved, context_of(model), longest)
    listed, catalogue, valid = resolved.lists_candidates, set(items), 0
    training, side = model.training, tokenizer.padding_side
    model.eval()
    tokenizer.padding_side = "left"
    try:
        for start in range(0, len(interactions), batch_size):
            users = interactions[start : start + batch_size]
            ids = tokenize(tokenizer, prompts[start : start + batch_size], special=True)
            inputs = tokenizer.pad({"input_ids": [row.tolist() for row in ids]}, return_tensors="pt").to(model.device)
            inputs.pop("token_type_ids", None)
            with torch.inference_mode():
                output = model.generate(  # type: ignore[operator]
                    **inputs,
                    max_new_tokens=longest + 1,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                )
            texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for user, text in zip(users, texts, strict=True):
                if listed:
                    valid += len(named(user.candidates, text)) == 1
                else:
                    valid += text.strip() in catalogue
    finally:
        model.train(training)
        tokenizer.padding_side = side
    return valid / len(interactions)


def named(candidates: Sequence[str], text: str) -> set[str]:
    """Which of the candidates `text` names, as whole words; "Neon Fox" names "Neon Fox" alone and not "Fox" as well."""
    longest_first = sorted(candidates, key=len, reverse=True)
    return set(re.findall(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", text))


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_interval(difference: Scores, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean of paired differences with a 95 % interval over users and seeds.

    difference: (seeds, users), metric of one run minus metric of its partner, for the same user and seed. Users and
    seeds are crossed (every seed is evaluated on every user), so both are drawn anew, independently: the pigeonhole
    bootstrap (Owen 2007, "The pigeonhole bootstrap"), which errs on the side of wide intervals as long as seeds differ
    less than users do (five seeds that differ much cover the truth in about 88 %). One seed gives an interval over
    users alone. Raises ValueError if there is nothing to average.
    """
    difference = np.atleast_2d(np.asarray(difference, dtype=np.float64))
    if difference.ndim > 2 or difference.size == 0:
        raise ValueError(
            f"difference is of shape {difference.shape}: give (seeds, users), with at least one seed and one user."
        )
    seeds, users = difference.shape
    seed_weights, user_weights = _drawn(seeds, users, resamples, seed)
    means = np.einsum("ru,ru->r", seed_weights @ difference, user_weights) / (seeds * users)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(difference.mean()), float(low), float(high))


@lru_cache(maxsize=8)  # drawing takes most of the time, and comparisons of the same users come in dozens
def _drawn(seeds: int, users: int, resamples: int, seed: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """How often each seed and each user is drawn in each resample: (resamples, seeds) and (resamples, users)."""
    generator = np.random.default_rng(seed)
    seed_weights, user_weights = (
        generator.multinomial(number, np.full(number, 1 / number), size=resamples).astype(np.uint16)
        for number in (seeds, users)
    )
    return seed_weights, user_weights
