"""From scores to ranks, ranking metrics, and paired differences with their intervals."""

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]


def _checked(scores: Scores) -> Scores:
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(
            f"scores has shape {scores.shape}: give (users, 1 + negatives), with the chosen item first and at least "
            "one negative."
        )
    if np.isnan(scores).any():
        row, column = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"scores has NaN at row {row}, column {column}: give every candidate a number to rank by.")
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

    With one relevant item, NDCG@5 is 1/log2(rank + 2) in the first five places and 0 beyond; MRR is 1/(rank + 1).
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
    """What `report` computed on one split."""

    scores: Scores  # (B, 1+K) log-probs, chosen first
    ranks: NDArray[np.int64]  # (B,)
    reward_wins: NDArray[np.bool_] | None  # (B,), None without a reference
    metrics: dict[str, float]  # hr@1, hr@5, ndcg@5, mrr; with a reference also reward_win_rate and pair_loss


def report(scores: Scores, reference: Scores | None = None) -> Report:
    """Ranking metrics of log-probs `scores` (B, 1+K) and, given the `reference`'s log-probs, those of the log-ratio.

    Raises ValueError as `ranks` does, and if the two differ in shape or in which candidates are absent.
    """
    rank = ranks(scores)
    metrics = {name: float(value.mean()) for name, value in ranking_metrics(rank).items()}
    wins = None
    if reference is not None:
        if np.shape(reference) != np.shape(scores):
            raise ValueError(
                f"reference has shape {np.shape(reference)} and scores has {np.shape(scores)}: "
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
            f"At row {row}, column {column} only one of scores and reference is -inf, which marks an absent "
            "candidate: give the SFT model's log-probs of the same users and candidates."
        )
    with np.errstate(invalid="ignore"):  # −inf − −inf
        return np.where(absent, -np.inf, np.subtract(scores, reference, dtype=np.float64))


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_interval(difference: Scores, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean of paired differences with a 95 % interval over users and seeds.

    difference: (seeds, users), metric of one run minus metric of its partner, for the same user and seed. Users and
    seeds are crossed (every seed is evaluated on every user), so both are resampled, independently: the pigeonhole
    bootstrap (Owen 2007, "The pigeonhole bootstrap"), which errs on the side of wide intervals as long as seeds differ
    less than users do (with five very different seeds it covers the truth in about 88 % of cases). With one seed, the
    interval is over users only. Raises ValueError if there is nothing to average.
    """
    difference = np.atleast_2d(np.asarray(difference, dtype=np.float64))
    if difference.ndim > 2 or difference.size == 0:
        raise ValueError(
            f"difference has shape {difference.shape}: give (seeds, users), with at least one seed and one user."
        )
    seeds, users = difference.shape
    seed_weights, user_weights = _drawn(seeds, users, resamples, seed)
    means = np.einsum("ru,ru->r", seed_weights @ difference, user_weights) / (seeds * users)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(difference.mean()), float(low), float(high))


@lru_cache(maxsize=8)  # drawing takes most of the time, and comparisons of the same users come in dozens
def _drawn(seeds: int, users: int, resamples: int, seed: int) -> list[NDArray[np.uint16]]:
    """How often each seed and each user is drawn in each resample: (resamples, seeds) and (resamples, users)."""
    generator = np.random.default_rng(seed)
    return [
        generator.multinomial(number, np.full(number, 1 / number), size=resamples).astype(np.uint16)
        for number in (seeds, users)
    ]


def __getattr__(name: str) -> Any:
    if name == "score":  # exercises handed out earlier import it from here
        return getattr(import_module("minipo.experiments.users"), name)
    raise AttributeError(f"module 'minipo.evaluation' has no attribute {name!r}")
