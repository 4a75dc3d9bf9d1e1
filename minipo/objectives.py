"""The objectives, as one sentence.

A *utility* u gives each candidate a number, and each negative k a pairwise *margin* d_k = β_k (u_w − u_k) to the chosen
item w. An *aggregation* puts the margins of a row inside the logistic function σ, and the loss is −log σ of what stands
there: every margin on its own (DPO, which averages the losses), their mean (DMPO), their soft minimum (S-DPO), or their
sum (MPPO).

The gradient falls out of the same sentence. |∂loss/∂u_k| = β_k × a_k × σ(−z): a_k, negative k's *share* of z, is the
dilution; σ(−z) is the saturation. Easy negatives raise z for everyone; only the soft minimum turns the share back to
the hard ones.

Everything here works on tensors alone: `margins` (batch, negatives), and `used`, True where a negative enters the loss.
Each row must use at least one negative; margins of unused ones are not looked at.
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


# Utilities: what a candidate is worth, of log-probs under policy and reference (nats) and token counts.


def log_ratio(policy: Candidates, reference: Candidates, lengths: Counts | None = None) -> Candidates:
    """ρ = log p(response | prompt) − the same under the reference model; no gradient reaches the reference."""
    return policy - reference.detach()


def likelihood(policy: Candidates, reference: Candidates | None = None, lengths: Counts | None = None) -> Candidates:
    """π = exp(s), or exp(s / length), the average likelihood per token, if token counts are given (MPPO)."""
    return torch.exp(policy if lengths is None else policy / lengths)


def answer_likelihood(policy: Candidates, reference: Candidates | None, lengths: Counts | None = None) -> Candidates:
    """π = exp(s), the whole answer's likelihood, as DynamicPO's released code has it for MPPO."""
    return torch.exp(policy)


def average(policy: Candidates, reference: Candidates | None, lengths: Counts) -> Candidates:
    """s / length, the average log-prob per token (SimPO)."""
    return policy / lengths


def pairwise_margins(utility: Candidates, beta: Float[Tensor, "batch negatives"]) -> Margins:
    """d_k = β_k (u_w − u_k), with the chosen item w in column 0."""
    return beta * (utility[:, :1] - utility[:, 1:])


# What stands inside the logistic function: (batch, 1), or (batch, negatives) where each margin stands alone.


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
    """mean_k −log σ(d_k): DPO (arXiv 2305.18290, section 4), one pair a negative. Shapes: the module's docstring."""
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
    """An objective by its parts: `aggregate` makes losses of margins, of which `inside` is what stands inside the
    logistic function and `share` each negative's part in it; `utility` says what the margins are differences of.

    needs: what the utility cannot do without, "reference" or "lengths".  target_margin: γ that a margin must exceed,
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
    selects = False  # whether `prepare` chooses negatives and β itself, so that DynamicPO has no place around it

    def prepare(
        self, gaps: Margins, used: Used, beta: Margins, state: State | None
    ) -> tuple[Used, Margins, State | None]:
        """Which negatives enter the loss, how strongly each, and the state to hand to the next batch.

        gaps: ρ_w − ρ_k, detached (s_w − s_k without a reference).  used, beta: what enters and how strongly so far.
        state: what this returned for the batch before, None at first; numbers by name, which a checkpoint keeps.
        Here all stays as it came; an objective that looks at whole batches, or remembers them, replaces this method.
        """
        return used, beta, state
