"""The objectives, as one sentence.

A *utility* u gives each candidate a number, and each negative k a pairwise *margin* d_k = β_k (u_w − u_k) to the chosen
item w. An *aggregation* puts the margins of a row inside the logistic function σ, and the loss is −log σ of what stands
there: every margin on its own (DPO, which averages the losses), their mean (DMPO), their soft minimum (S-DPO), or their
sum (MPPO).

The gradient falls out of the same sentence. |∂loss/∂u_k| = β_k × a_k × σ(−z): a_k, negative k's *share* of z, is the
dilution; σ(−z) is the saturation. Easy negatives raise z for everyone; only the soft minimum turns the share back to
the hard ones.

Two extensions close the module, ours and not their papers': SimPO and β-DPO, which are written for one pair, with many
negatives. Both aggregate as DPO does; SimPO has a utility and a target margin of its own, β-DPO a β for each batch.

Everything here works on tensors alone: `margins` (batch, negatives), and `used`, True where a negative enters the loss.
Each row must use at least one negative; margins of unused ones are not looked at.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn.functional import logsigmoid

Margins = Float[Tensor, "batch negatives"]
Used = Bool[Tensor, "batch negatives"]
Losses = Float[Tensor, " batch"]
Aggregate = Callable[[Margins, Used], Losses]


# Utilities: what a candidate is worth.


def log_ratio(
    policy: Float[Tensor, "batch candidates"], reference: Float[Tensor, "batch candidates"]
) -> Float[Tensor, "batch candidates"]:
    """ρ = log p(response | prompt) − the same under the reference model; no gradient reaches the reference."""
    return policy - reference.detach()


def likelihood(
    policy: Float[Tensor, "batch candidates"], lengths: Shaped[Tensor, "batch candidates"] | None = None
) -> Float[Tensor, "batch candidates"]:
    """π = exp(s), or exp(s / length), the average likelihood a token, if token counts are given (MPPO)."""
    return torch.exp(policy if lengths is None else policy / lengths)


def average(
    policy: Float[Tensor, "batch candidates"], lengths: Shaped[Tensor, "batch candidates"]
) -> Float[Tensor, "batch candidates"]:
    """s / length, the average log-prob a token (SimPO)."""
    return policy / lengths


def pairwise_margins(utility: Float[Tensor, "batch candidates"], beta: Float[Tensor, "batch negatives"]) -> Margins:
    """d_k = β_k (u_w − u_k), with the chosen item w in column 0."""
    return beta * (utility[:, :1] - utility[:, 1:])


# What stands inside the logistic function: (batch, 1), or (batch, negatives) where each margin stands alone.


def _each(margins: Margins, used: Used) -> Margins:
    return margins.masked_fill(~used, torch.inf)  # −log σ(∞) = 0: an unused negative adds nothing


def _mean(margins: Margins, used: Used) -> Float[Tensor, "batch 1"]:
    return margins.masked_fill(~used, 0).sum(1, keepdim=True) / used.sum(1, keepdim=True)


def _soft_minimum(margins: Margins, used: Used) -> Float[Tensor, "batch 1"]:
    return -torch.logsumexp((-margins).masked_fill(~used, -torch.inf), dim=1, keepdim=True)


def _sum(margins: Margins, used: Used) -> Float[Tensor, "batch 1"]:
    return margins.masked_fill(~used, 0).sum(1, keepdim=True)


# The share a_k = ∂z/∂d_k: what is left of a negative's own push after the aggregation.


def _equal_share(margins: Margins, used: Used) -> Margins:
    return used.to(margins) / used.sum(1, keepdim=True)


def _share_of_the_hard(margins: Margins, used: Used) -> Margins:
    return torch.softmax((-margins).masked_fill(~used, -torch.inf), dim=1)


def _full_share(margins: Margins, used: Used) -> Margins:
    return used.to(margins)


# The objectives.


def dpo(margins: Margins, used: Used) -> Losses:
    """mean_k −log σ(d_k): DPO (arXiv 2305.18290, section 4), one pair a negative. Shapes: the module's docstring."""
    return -logsigmoid(_each(margins, used)).sum(1) / used.sum(1)


def dmpo(margins: Margins, used: Used) -> Losses:
    """−log σ(mean_k d_k): DMPO (arXiv 2405.16127), DPO with the mean moved inside the sigmoid."""
    return -logsigmoid(_mean(margins, used)).squeeze(1)


def sdpo(margins: Margins, used: Used) -> Losses:
    """−log σ(−log Σ_k exp(−d_k)): S-DPO (arXiv 2406.09215, section 3), the soft minimum of the margins."""
    return -logsigmoid(_soft_minimum(margins, used)).squeeze(1)


def mppo(margins: Margins, used: Used) -> Losses:
    """−log σ(Σ_k d_k): MPPO (arXiv 2412.15244), whose margins are differences of likelihoods."""
    return -logsigmoid(_sum(margins, used)).squeeze(1)


@dataclass(frozen=True)
class BatchBeta:
    """β-DPO's β of a batch, and its choice of pairs (arXiv 2407.08639), over every pair of the batch.

    A pair's gap is M = ρ_w − ρ_k. Running over the batches, with the present one in it, are its `mean` M₀ and standard
    `deviation` σ; both start at 0, and `momentum` m is the share of the past. A batch keeps the share `keep` of its
    pairs, drawn without replacement with weights exp(−(M − M₀)² / 2σ²); its β is [1 + alpha (M̄ − M₀)] β, M̄ the mean
    gap of the pairs kept, and at least 0.001. The defaults and the floor are those of the authors' release.

    Kept from the paper: all of this, and with one negative a row exactly. Ours: a row's negatives count as that many
    pairs, so that rows with more of them weigh more, and a row may keep none.
    Immutable: `after` gives the state for the next batch. Raises ValueError for settings outside their ranges.
    """

    alpha: float = 0.6
    keep: float = 0.8
    momentum: float = 0.9
    mean: float = 0.0
    deviation: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ValueError(f"β-DPO's alpha is {self.alpha}: give a finite number, 0 or more.")
        if not 0 < self.keep <= 1:
            raise ValueError(f"β-DPO's keep is {self.keep}: give a share above 0, at most 1.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"β-DPO's momentum is {self.momentum}: give a number from 0 to below 1.")

    def after(self, gaps: Margins, present: Used) -> "BatchBeta":
        """With a batch's gaps in the running mean and deviation."""
        seen = gaps[present].double()
        deviation = seen.std().item() if len(seen) > 1 else 0.0
        past, now = self.momentum, 1 - self.momentum
        return replace(
            self, mean=past * self.mean + now * seen.mean().item(), deviation=past * self.deviation + now * deviation
        )

    def choose(self, gaps: Margins, present: Used) -> Used:
        """The pairs that enter the loss, drawn through torch's global generator."""
        if self.keep == 1:
            return present
        # Adding Gumbel noise and taking the largest is drawing without replacement, also where weights underflow.
        weights = -((gaps - self.mean) / self.deviation).square() / 2 if self.deviation else torch.zeros_like(gaps)
        lottery = weights - torch.empty_like(gaps).exponential_().log()
        lottery = lottery.masked_fill(~present, -torch.inf).flatten()
        drawn = lottery.topk(max(1, int(self.keep * int(present.sum())))).indices
        return torch.zeros_like(present).flatten().index_fill(0, drawn, True).view_as(present)

    def beta(self, beta: float, gaps: Margins, used: Used) -> float:
        """The batch's β."""
        return max(beta * (1 + self.alpha * (gaps[used].double().mean().item() - self.mean)), 1e-3)


@dataclass(frozen=True)
class Objective:
    """An objective by its parts: `aggregate` makes losses of margins, of which `inside` is what stands inside the
    logistic function and `share` each negative's part in it; `utility` says what the margins are differences of.

    target_margin: γ that a margin must exceed, taken off every margin (SimPO).  batch: the rule for the batch's β and
    pairs (β-DPO), with its state.  extension: whether the form with many negatives is ours, not the paper's.
    """

    name: str
    aggregate: Aggregate
    inside: Callable[[Margins, Used], Float[Tensor, "batch _"]]
    share: Callable[[Margins, Used], Margins]
    utility: Literal["log-ratio", "likelihood", "average"]
    paper: str
    target_margin: float = 0.0
    batch: BatchBeta | None = None
    extension: bool = False


def simpo(target_margin: float = 0.5) -> Objective:
    """mean_k −log σ(β (s_w/|w| − s_k/|k|) − γ): SimPO (arXiv 2405.14734, section 2), an extension of it.

    |y| is an answer's number of tokens. The paper has one negative, and there this is its loss; the mean over more is
    ours. Needs no reference. The target margin γ ≥ 0 is not divided by β (a "gamma_beta_ratio" is γ/β), and has nothing
    to do with DynamicPO's. Usual are a β of 2 to 2.5 and a γ up to 1.5, with 0.5 as the default (TRL, torchtune).

    Raises ValueError for a target margin that is negative or not finite.
    """
    if not (math.isfinite(target_margin) and target_margin >= 0):
        raise ValueError(f"SimPO's target_margin is {target_margin}: give a finite number, 0 or more.")
    return Objective(
        "simpo", dpo, _each, _equal_share, "average", "arXiv 2405.14734", target_margin=target_margin, extension=True
    )


def beta_dpo(alpha: float = 0.6, keep: float = 0.8, momentum: float = 0.9) -> Objective:
    """The mean over a batch's kept pairs of −log σ(β_batch (ρ_w − ρ_k)): β-DPO (arXiv 2407.08639), an extension of it.

    See `BatchBeta` for the settings and for what is the paper's. A row's loss is the sum over its kept pairs, scaled so
    that the mean over the batch's rows is the mean over its kept pairs. Raises ValueError as `BatchBeta` does.
    """
    return Objective(
        "beta-dpo", _mean_of_pairs, _each, _equal_share_of_pairs, "log-ratio", "arXiv 2407.08639",
        batch=BatchBeta(alpha, keep, momentum), extension=True,
    )  # fmt: skip


def _mean_of_pairs(margins: Margins, used: Used) -> Losses:
    return -logsigmoid(_each(margins, used)).sum(1) * len(used) / used.sum()


def _equal_share_of_pairs(margins: Margins, used: Used) -> Margins:
    return used.to(margins) * len(used) / used.sum()


OBJECTIVES = {
    "dpo": Objective("dpo", dpo, _each, _equal_share, "log-ratio", "arXiv 2305.18290"),
    "dmpo": Objective("dmpo", dmpo, _mean, _equal_share, "log-ratio", "arXiv 2405.16127"),
    "sdpo": Objective("sdpo", sdpo, _soft_minimum, _share_of_the_hard, "log-ratio", "arXiv 2406.09215"),
    "mppo": Objective("mppo", mppo, _sum, _full_share, "likelihood", "arXiv 2412.15244"),
    "simpo": simpo(),
    "beta-dpo": beta_dpo(),
}
