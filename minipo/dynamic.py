"""DynamicPO (arXiv 2605.00327): which negatives enter the loss, and how strongly.

Log-probs in, (boundary, β) out; both are constants for the gradient. The boundary is every negative that the model
ranks at or above the chosen item; where there is none, the highest group of an exact one-dimensional k-means over the
negatives' log-probs. Dual-margin β then gives each negative its own strength, by how far below the chosen item it is
(Δ⁺) and how far above the mean of the discriminative negatives, the others (Δ⁻).

In every `logps` (batch, 1 + negatives) column 0 is the chosen item. A negative is absent where `mask` is False or its
log-prob is −inf; absent ones are never selected.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

LogProbs = Float[Tensor, "batch candidates"]
Selection = Bool[Tensor, "batch negatives"]
SelectionRule = Callable[[LogProbs], Selection]

# Two splits are equally good if their costs differ by less than this share of them. The rounding in `_top_group` stays
# below negatives² × 2⁻⁵³, 5e-13 at 63 negatives, so it decides no tie; and since float32 log-probs have a relative
# precision of 6e-8, a difference in the ninth digit says nothing about the model.
_EQUALLY_GOOD = 1e-9


@dataclass(frozen=True)
class DynamicPO:
    """DynamicPO's settings, for `preference_loss`.

    margin: γ ≥ 0 of dual-margin β, in nats.  clusters: groups of the k-means, at least 1.
    select: True keeps the boundary, False all negatives. A function of log-probs (batch, 1 + negatives) that returns
        (batch, negatives) bool replaces the boundary, in the loss and in β; it gets −inf for absent negatives.
    adjust_beta: True gives each negative its dual-margin β, False leaves β as it is.

    Raises ValueError for settings outside these ranges. Source: arXiv 2605.00327.
    """

    margin: float = 6.0
    clusters: int = 3
    select: bool | SelectionRule = True
    adjust_beta: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"DynamicPO's margin is {self.margin}: give a finite number, 0 or more.")
        _check_clusters(self.clusters)
        if not (isinstance(self.select, bool) or callable(self.select)):
            raise ValueError(f"DynamicPO's select is {self.select!r}: give True, False, or a function of log-probs.")
        if not isinstance(self.adjust_beta, bool):
            raise ValueError(f"DynamicPO's adjust_beta is {self.adjust_beta!r}: give True or False.")


def boundary(logps: LogProbs, mask: Selection | None = None, clusters: int = 3) -> Selection:
    """The boundary negatives B, (batch, negatives) bool.

    B = {k : s_k ≥ s_w}; where that is empty, the group with the highest mean of the best split of the negatives into
    `clusters` groups (fewer if there are fewer distinct values) by squared distance. Equal values are never separated;
    among equally good splits, the one with the largest top group is taken.

    Raises ValueError if clusters < 1. Source: arXiv 2605.00327; the split is exact here.
    """
    _check_clusters(clusters)
    chosen, negatives, present = _split(logps, mask)
    selected = (negatives >= chosen) & present
    none_above = ~selected.any(1)
    selected[none_above] = _top_group(negatives[none_above], present[none_above], clusters)
    return selected


def dual_margin_beta(
    logps: LogProbs, boundary: Selection, beta: float, margin: float, mask: Selection | None = None
) -> Float[Tensor, "batch negatives"]:
    """β_k = β (1 + ½ tanh((Δ⁺_k − Δ⁻_k − γ) / (|Δ⁺_k| + |Δ⁻_k|))) of every negative; 0 if it is absent.

    Δ⁺_k = s_w − s_k, Δ⁻_k = s_k − m, m the mean log-prob of the negatives outside `boundary`, or of all if none is
    outside; γ is `margin`. A zero denominator leaves β_k = β. Each row of `boundary` must hold a negative.

    Source: arXiv 2605.00327.
    """
    chosen, negatives, present = _split(logps, mask)
    outside = present & ~boundary
    discriminative = torch.where(outside.any(1, keepdim=True), outside, present)
    # Measured from s_w, so that with equal log-probs every difference and their mean are exactly 0.
    above_chosen = (negatives - chosen).masked_fill(~present, 0)
    mean = (above_chosen * discriminative).sum(1, keepdim=True) / discriminative.sum(1, keepdim=True)
    delta_plus, delta_minus = -above_chosen, above_chosen - mean
    scale = delta_plus.abs() + delta_minus.abs()
    bend = torch.where(scale > 0, (delta_plus - delta_minus - margin) / scale, 0)
    return (beta * (1 + torch.tanh(bend) / 2)).masked_fill(~present, 0).to(logps.dtype)


def random(logps: LogProbs, clusters: int = 3) -> Selection:
    """A control: as many negatives as the boundary has, drawn at random with torch's global generator."""
    _, negatives, present = _split(logps, None)
    lottery = torch.rand(negatives.shape, device=logps.device).masked_fill(~present, -1)
    place = lottery.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return place < boundary(logps, clusters=clusters).sum(1, keepdim=True)


def _check_clusters(clusters: int) -> None:
    if not isinstance(clusters, int) or clusters < 1:
        raise ValueError(f"clusters is {clusters!r}: give a whole number of groups, at least 1.")


def _split(
    logps: LogProbs, mask: Selection | None
) -> tuple[Float[Tensor, "batch 1"], Float[Tensor, "batch negatives"], Selection]:
    """Chosen and negative log-probs as float64 constants (equal inputs then select equally in any precision), and which
    negatives are present."""
    exact = logps.detach().double()
    chosen, negatives = exact[:, :1], exact[:, 1:]
    present = negatives != -torch.inf
    return chosen, negatives, present if mask is None else present & mask


def _top_group(values: Float[Tensor, "batch negatives"], present: Selection, clusters: int) -> Selection:
    """The highest group of the best split of each row's present values into min(clusters, distinct values) groups.

    The groups of a best split are intervals, so: sort the values, compute the cost of every interval i..j at once, and
    build the best split into g groups from those into g − 1. Time and memory grow with clusters × batch × negatives².
    """
    number = values.shape[1]
    position = torch.arange(number, device=values.device)
    values, order = values.masked_fill(~present, -torch.inf).sort(dim=1, descending=True)  # absent ones go last
    present = present.gather(1, order)
    values = values.masked_fill(~present, 0)

    # cost[b, i, j] = Σ d² − (Σ d)² / n over the interval i..j, where d is the distance from its first value: for values
    # near −1e4, or with one far outlier, sums of anything larger would cancel to noise.
    distance = (values[:, None, :] - values[:, :, None]).triu_()
    count = (position - position[:, None] + 1).clamp(min=1)
    cost = distance.square().cumsum_(2) - distance.cumsum_(2).square_() / count  # in place: these are the large tensors
    cost.masked_fill_(position < position[:, None], torch.inf)

    # A group may start at a present value that differs from the one before; the last ends at the last present value.
    may_start = pad(present[:, 1:] & (values[:, 1:] < values[:, :-1]), (0, 1))
    last = (present.sum(1, keepdim=True) - 1).clamp(min=0)
    size = torch.full_like(last, number)
    best = cost.gather(2, last[:, None, :].expand(-1, number, 1)).squeeze(2)  # (batch, i): all from i on as one group
    for _ in range(min(clusters, number) - 1):
        rest = pad(best[:, 1:], (0, 1)).masked_fill(~may_start, torch.inf)  # (batch, j): what follows a group i..j
        split = cost[:, 0] + rest
        cheapest = split.amin(1, keepdim=True)
        sizes = (position + 1) * (split <= cheapest * (1 + _EQUALLY_GOOD))
        # Rows with too few distinct values for one more group keep the split they have.
        size = torch.where(cheapest.isfinite(), sizes.amax(1, keepdim=True), size)
        best = (cost + rest[:, None, :]).amin(2)
    return torch.zeros_like(present).scatter(1, order, (position < size) & present)
