"""The objectives, all in one form.

A *utility* u gives each candidate a number, and each negative k a pairwise *margin* d_k = β_k (u_w − u_k) to the chosen
item w. An *aggregation* turns a row's margins into the argument z of the logistic function σ; the loss is −log σ(z):
every margin on its own (DPO, which averages the losses), their mean (DMPO), their soft minimum (S-DPO), or their sum
(MPPO).

The gradient has one form too: |∂loss/∂u_k| = β_k × a_k × σ(−z). Here a_k, negative k's *share* of z, is the dilution,
and σ(−z) the saturation. Easy negatives raise z for all; only the soft minimum shifts the share back to the hard ones.

Everything here takes tensors: `margins` (batch, negatives), and `used`, True where a negative enters the loss.
Each row must use at least one negative; margins of unused ones are ignored.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn.functional import logsigmoid

Candidates = Float[Tensor, "batch candidates"]
Counts = Shaped[Tensor, "batch candidates"]  # tokens
Margins = Float[Tensor, "batch negatives"]
Used = Bool[Tensor, "batch negatives"]
Losses = Float[Tensor, " batch"]
Aggregate = Callable[[Margins, Used], Losses]
State = dict[str, float]


# Utilities: what a candidate is worth, from log-probs under policy and reference (nats) and token counts.


def log_ratio(policy: Candidates, reference: Candidates, lengths: Counts | None = None) -> Candidates:
    """ρ = log p(response | prompt) − the same under the reference model; no gradient reaches the reference."""
    return policy - reference.detach()


def likelihood(policy: Candidates, reference: Candidates | None = None, lengths: Counts | None = None) -> Candidates:
    """π = exp(s), or exp(s / length), the average likelihood per token, if token counts are given (MPPO)."""
    return torch.exp(policy if lengths is None else policy / lengths)


def answer_likelihood(policy: Candidates, reference: Candidates | None, lengths: Counts | None = None) -> Candidates:
    """π = exp(s), the whole answer's likelihood, as in DynamicPO's released code for MPPO."""
    return torch.exp(policy)


def average(policy: Candidates, reference: Candidates | None, lengths: Counts) -> Candidates:
    """s / length, the average log-prob per token (SimPO)."""
    return policy / lengths


def pairwise_margins(utility: Candidates, beta: Float[Tensor, "batch negatives"]) -> Margins:
    """d_k = β_k (u_w − u_k), with the chosen item w in column 0."""
    return beta * (utility[:, :1] - utility[:, 1:])


# The argument of the logistic function: (batch, 1), or (batch, negatives) where each margin has its own.


def each(margins: Margins, used: Used) -> Margins:
    return margins.masked_fill(~used, torch.inf)  # −log σ(∞) = 0: an unused negative adds nothing


def mean(margins: Margins, used: Used) -> Float[Tensor, "batch 1"]:
    return margins.masked_fill(~used, 0).sum(1, keepdim=True) / used.sum(1, keepdim=True)


def soft_minimum(margins: Margins, used: Used) -> Float[Tensor, "batch 1"]:
    return -torch.logsumexp((-margins).masked_fill(~used, -torch.inf), dim=1, keepdim=True)


def total(margins: Margins, used: Used) -> Float[Tensor, "batch 1"]:
    return margins.masked_fill(~used, 0).sum(1, keepdim=True)


# The share a_k = ∂z/∂d_k: what is left of a negative's own push after the aggregation.


def equal_share(margins: Margins, used: Used) -> Margins:
    return used.to(margins) / used.sum(1, keepdim=True)


def share_of_the_hard(margins: Margins, used: Used) -> Margins:
    return torch.softmax((-margins).masked_fill(~used, -torch.inf), dim=1)


def full_share(margins: Margins, used: Used) -> Margins:
    return used.to(margins)


# The objectives.


def dpo(margins: Margins, used: Used) -> Losses:
    """mean_k −log σ(d_k): DPO (arXiv 2305.18290, section 4), one pair per negative. Shapes: the module's docstring."""
    return -logsigmoid(each(margins, used)).sum(1) / used.sum(1)


def dmpo(margins: Margins, used: Used) -> Losses:
    """−log σ(mean_k d_k): DMPO (arXiv 2405.16127), DPO with the mean moved inside the sigmoid."""
    return -logsigmoid(mean(margins, used)).squeeze(1)


def sdpo(margins: Margins, used: Used) -> Losses:
    """−log σ(−log Σ_k exp(−d_k)): S-DPO (arXiv 2406.09215, section 3), the soft minimum of the margins."""
    return -logsigmoid(soft_minimum(margins, used)).squeeze(1)


def mppo(margins: Margins, used: Used) -> Losses:
    """−log σ(Σ_k d_k): MPPO (arXiv 2412.15244), whose margins are differences of likelihoods."""
    return -logsigmoid(total(margins, used)).squeeze(1)


@dataclass(frozen=True)
class Objective:
    """An objective by its parts: `aggregate` turns margins into losses, `inside` gives the argument of the logistic
    function and `share` each negative's share in it; the margins are differences of `utility`.

    needs: what the utility requires, "reference" or "lengths".  target_margin: γ that a margin must exceed,
    subtracted from every margin (SimPO).  extension: whether the form with many negatives is ours, not the paper's.
    """

    name: str
    aggregate: Aggregate
    inside: Callable[[Margins, Used], Float[Tensor, "batch _"]]
    share: Callable[[Margins, Used], Margins]
    utility: Callable[..., Candidates]
    paper: str
    needs: tuple[str, ...] = ()
    target_margin: float = 0.0
    extension: bool = False
    selects = False  # whether `prepare` chooses negatives and β itself, which rules out DynamicPO

    def prepare(
        self, gaps: Margins, used: Used, beta: Margins, state: State | None
    ) -> tuple[Used, Margins, State | None]:
        """Which negatives enter the loss, how strongly each, and the state to hand to the next batch.

        gaps: ρ_w − ρ_k, detached (s_w − s_k without a reference).  used, beta: what enters and how strongly so far.
        state: what this returned for the previous batch, None at first; numbers by name, which a checkpoint keeps.
        Nothing changes here; an objective that looks at whole batches, or remembers them, overrides this method.
        """
        return used, beta, state
