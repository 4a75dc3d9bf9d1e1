"""MPPO in both its forms, and SimPO and β-DPO, which were published for pairs, extended to many negatives.

The extensions are ours, not the papers'. Both aggregate as DPO does; SimPO has its own utility and a target margin,
β-DPO a β per batch and a state.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import logsigmoid

from minipo.objectives import (
    Losses,
    Margins,
    Objective,
    State,
    Used,
    answer_likelihood,
    average,
    dpo,
    each,
    equal_share,
    full_share,
    likelihood,
    log_ratio,
    mppo,
    total,
)

Likelihood = Literal["token", "answer"]


def mppo_by(likelihood_of: Likelihood = "token") -> Objective:
    """−log σ(Σ_k β(π_w − π_k)): MPPO (arXiv 2412.15244), π an answer's likelihood.

    likelihood_of: "token", the average per token, exp(s / length), where token counts are given; "answer", the whole
    answer's, exp(s), as in DynamicPO's released code. Raises ValueError for anything else.
    """
    if likelihood_of not in ("token", "answer"):
        raise ValueError(f"MPPO's likelihood_of is {likelihood_of!r}: give token or answer.")
    utility = likelihood if likelihood_of == "token" else answer_likelihood
    return Objective("mppo", mppo, total, full_share, utility, "arXiv 2412.15244")


def simpo(target_margin: float = 0.5) -> Objective:
    """mean_k −log σ(β (s_w/|w| − s_k/|k|) − γ): SimPO (arXiv 2405.14734, section 2), extended.

    |y| is an answer's number of tokens. With one negative, as in the paper, this is its loss; the mean over several is
    ours. Needs no reference. The target margin γ ≥ 0 is not divided by β (a "gamma_beta_ratio" is γ/β), and has nothing
    to do with DynamicPO's. Common values are β from 2 to 2.5 and γ up to 1.5; 0.5 is TRL's and torchtune's default.

    Raises ValueError for a target margin that is negative or not finite.
    """
    if not (math.isfinite(target_margin) and target_margin >= 0):
        raise ValueError(f"SimPO's target_margin is {target_margin}: give a finite number, 0 or more.")
    return Objective(
        "simpo", dpo, each, equal_share, average, "arXiv 2405.14734", ("lengths",), target_margin, extension=True
    )


def beta_dpo(alpha: float = 0.6, keep: float = 0.8, momentum: float = 0.9) -> "BetaDPO":
    """The mean over a batch's kept pairs of −log σ(β_batch (ρ_w − ρ_k)): β-DPO (arXiv 2407.08639), extended.

    See `BetaDPO` for the settings and for what is ours. A row's loss is the sum over its kept pairs, scaled so
    that the mean over the batch's rows is the mean over its kept pairs. Raises ValueError as `BetaDPO` does.
    """
    return BetaDPO(
        "beta-dpo", _mean_of_pairs, each, _equal_share_of_pairs, log_ratio, "arXiv 2407.08639", ("reference",),
        extension=True, alpha=alpha, keep=keep, momentum=momentum,
    )  # fmt: skip


@dataclass(frozen=True)
class BetaDPO(Objective):
    """β-DPO's β per batch, and its choice of pairs (arXiv 2407.08639), over all pairs of the batch.

    A pair's gap is M = ρ_w − ρ_k. The state is its running mean M₀ and standard deviation σ over batches, the current
    one included; both start at 0, and `momentum` is the weight of the past. A batch keeps the share `keep` of its
    pairs, drawn without replacement with weights exp(−(M − M₀)² / 2σ²); its β is [1 + alpha (M̄ − M₀)] β, M̄ the mean
    gap of the pairs kept, and at least 0.001. The defaults and the floor are those of the authors' release.

    All of this is from the paper, and with one negative per row it is exactly the paper's. Ours: each of a row's
    negatives counts as a pair, so that rows with more negatives weigh more, and a row may keep none.
    Raises ValueError for settings outside their ranges.
    """

    alpha: float = 0.6
    keep: float = 0.8
    momentum: float = 0.9
    selects = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ValueError(f"β-DPO's alpha is {self.alpha}: give a finite number, 0 or more.")
        if not 0 < self.keep <= 1:
            raise ValueError(f"β-DPO's keep is {self.keep}: give a share above 0, at most 1.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"β-DPO's momentum is {self.momentum}: give a number from 0 to below 1.")

    def prepare(self, gaps: Margins, used: Used, beta: Margins, state: State | None) -> tuple[Used, Margins, State]:
        """The pairs drawn from this batch, its β for each of them, and the updated running mean and deviation."""
        state = self.after(gaps, used, state)
        kept = self.choose(gaps, used, state)
        ahead = gaps[kept].double().mean() - state["mean"]
        strength = (beta.double() * (1 + self.alpha * ahead)).clamp(min=1e-3)
        return kept, strength.to(beta).masked_fill(~kept, 0), state

    def after(self, gaps: Margins, present: Used, state: State | None) -> State:
        """The running mean and deviation, updated with a batch's gaps."""
        seen = gaps[present].double()
        now = {"mean": seen.mean().item(), "deviation": seen.std().item() if len(seen) > 1 else 0.0}
        past = state or dict.fromkeys(now, 0.0)
        return {name: self.momentum * past[name] + (1 - self.momentum) * value for name, value in now.items()}

    def choose(self, gaps: Margins, present: Used, state: State) -> Used:
        """The pairs that enter the loss, drawn with torch's global generator."""
        if self.keep == 1:
            return present
        # Adding Gumbel noise and taking the largest draws without replacement, even where weights underflow.
        mean, deviation = state["mean"], state["deviation"]
        weights = -((gaps - mean) / deviation).square() / 2 if deviation else torch.zeros_like(gaps)
        lottery = weights - torch.empty_like(gaps).exponential_().log()
        lottery = lottery.masked_fill(~present, -torch.inf).flatten()
        drawn = lottery.topk(max(1, int(self.keep * int(present.sum())))).indices
        return torch.zeros_like(present).flatten().index_fill(0, drawn, True).view_as(present)


def _mean_of_pairs(margins: Margins, used: Used) -> Losses:
    return -logsigmoid(each(margins, used)).sum(1) * len(used) / used.sum()


def _equal_share_of_pairs(margins: Margins, used: Used) -> Margins:
    return used.to(margins) * len(used) / used.sum()
