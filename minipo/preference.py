"""Preference losses with many negatives, from log-probs: an objective, with or without DynamicPO."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minipo.dynamic import DynamicPO, boundary, dual_margin_beta
from minipo.extensions import beta_dpo, mppo_by, simpo
from minipo.names import lookup
from minipo.objectives import (
    Aggregate,
    Candidates,
    Counts,
    Losses,
    Margins,
    Objective,
    State,
    Used,
    dmpo,
    dpo,
    each,
    equal_share,
    log_ratio,
    mean,
    pairwise_margins,
    sdpo,
    share_of_the_hard,
    soft_minimum,
)

# Factories of the objectives that have settings of their own, by name.
MAKERS: dict[str, Callable[..., Objective]] = {"mppo": mppo_by, "simpo": simpo, "beta-dpo": beta_dpo}

OBJECTIVES = {
    "dpo": Objective("dpo", dpo, each, equal_share, log_ratio, "arXiv 2305.18290", ("reference",)),
    "dmpo": Objective("dmpo", dmpo, mean, equal_share, log_ratio, "arXiv 2405.16127", ("reference",)),
    "sdpo": Objective("sdpo", sdpo, soft_minimum, share_of_the_hard, log_ratio, "arXiv 2406.09215", ("reference",)),
    **{name: make() for name, make in MAKERS.items()},
}


@dataclass(frozen=True)
class PreferenceOutput:
    """What `preference_loss` returns.

    losses: (batch,), the only part that carries a gradient.
    boundary: (batch, negatives) bool, what DynamicPO's own rule keeps, whatever entered the loss: the census.
    used: (batch, negatives) bool, what entered the loss.
    beta: (batch, negatives), the strength used for each, 0 where unused.
    rewards: (batch, 1 + negatives), β ρ, or β s without a reference, with the β given; −inf where mask is False.
    state: for an objective that remembers batches, what to pass with the next one; None for the others.
    """

    losses: Losses
    boundary: Used
    used: Used
    beta: Margins
    rewards: Candidates
    state: State | None = None


@dataclass(frozen=True)
class Push:
    """What `preference_push` returns, each (batch, negatives) and 0 where a negative is unused.

    push: ∂loss/∂s of each negative: how fast gradient descent on its row's loss lowers its log-prob.
    dilution: its share in z, the sigmoid's argument.  saturation: σ(−z), what the sigmoid leaves.
    push = dilution × saturation × β_k × du_k/ds_k; du/ds is 1 for a log-ratio. Dilution and saturation are nan for a
    function as objective, whose parts are unknown.
    """

    push: Margins
    dilution: Margins
    saturation: Margins


def preference_loss(
    objective: str | Objective | Aggregate,
    policy: Candidates,
    reference: Candidates | None = None,
    beta: float = 1.0,
    mask: Used | None = None,
    lengths: Counts | None = None,
    dynamic: DynamicPO | None = None,
    state: State | None = None,
) -> PreferenceOutput:
    """The loss of each row; `.losses.mean()` is the loss to train on.

    objective: "dpo", "dmpo", "sdpo", "mppo", or one of our extensions, "simpo" or "beta-dpo"; an `Objective`, such as
        `extensions.simpo(...)` returns with other settings; or a function of (margins, used), both (batch, negatives),
        to losses (batch,), whose margins are β_k (ρ_w − ρ_k), or β_k (s_w − s_k) without a reference, and 0 where
        unused.
    policy, reference: summed log-probs in nats, the chosen item in column 0. mppo and simpo need no reference.
    beta: the strength β > 0; beta-dpo computes each batch's β from it.
    mask: False where a row has fewer negatives; the tensors' values there are ignored.
    lengths: token counts, for mppo's average likelihood and simpo's average log-prob; the others ignore them.
    dynamic: DynamicPO's settings; None for the plain objective, and for beta-dpo, which chooses pairs and β itself.
    state: `.state` of the previous batch, for an objective that remembers batches (beta-dpo); None at first.

    Raises ValueError, in one sentence, for an unknown objective, shapes that do not fit, no negatives, numbers that are
    not finite, β ≤ 0, a missing reference, missing lengths, DynamicPO with beta-dpo, and a wrong result of a selection
    rule. Sources: `minipo.objectives`, `minipo.dynamic`.
    """
    return _computed(objective, policy, reference, beta, mask, lengths, dynamic, state)[0]


def preference_push(
    objective: str | Objective | Aggregate,
    policy: Candidates,
    reference: Candidates | None = None,
    beta: float = 1.0,
    mask: Used | None = None,
    lengths: Counts | None = None,
    dynamic: DynamicPO | None = None,
    state: State | None = None,
) -> Push:
    """The push on each negative, by autograd through the loss, with its dilution and saturation; all detached.

    Takes and raises what `preference_loss` does. A selection rule that draws at random draws again here.
    """
    _check_policy(policy)
    with torch.enable_grad():
        policy = policy.detach().clone().requires_grad_()
        output, known, margins = _computed(objective, policy, reference, beta, mask, lengths, dynamic, state)
        (gradient,) = torch.autograd.grad(output.losses.sum(), policy)
    margins, used = margins.detach(), output.used
    saturation = torch.sigmoid(-known.inside(margins, used)).expand_as(margins)  # one per row, except in DPO
    return Push(gradient[:, 1:], known.share(margins, used), saturation.masked_fill(~used, 0))


def _computed(
    objective: str | Objective | Aggregate,
    policy: Tensor,
    reference: Tensor | None,
    beta: float,
    mask: Tensor | None,
    lengths: Tensor | None,
    dynamic: DynamicPO | None,
    state: State | None,
) -> tuple[PreferenceOutput, Objective, Tensor]:
    """What `preference_loss` returns, the objective, and its margins."""
    known = _objective(objective)
    _check_settings(known, reference, beta, lengths, dynamic)
    _check_policy(policy)
    mask = _checked_mask(policy, mask)
    present = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)

    # From here on absent candidates have harmless numbers, so that no value of theirs reaches a result or a gradient.
    policy = _checked("policy", policy, policy, present, fill=0)
    if reference is not None:
        reference = _checked("reference", reference, policy, present, fill=0).detach()
    if lengths is not None:
        lengths = _checked("lengths", lengths, policy, present, fill=1)
    value = _gain(policy, reference)
    logps = policy.detach().masked_fill(~present, -torch.inf)
    census, used, strength = _select(logps, mask, beta, dynamic)
    gaps = pairwise_margins(value.detach(), torch.ones_like(strength))
    used, strength, state = known.prepare(gaps, used, strength, state)
    margins = pairwise_margins(known.utility(policy, reference, lengths), strength) - known.target_margin
    losses = known.aggregate(margins, used)
    if not (isinstance(losses, Tensor) and losses.shape == policy.shape[:1]):
        raise ValueError(
            f"The objective returned {_described(losses)}: it must return a tensor with one loss per row, "
            f"{tuple(policy.shape[:1])}."
        )
    rewards = (beta * value.detach()).masked_fill(~present, -torch.inf)
    return PreferenceOutput(losses, census, used, strength, rewards, state), known, margins


def _objective(given: str | Objective | Aggregate) -> Objective:
    """The objective of that name, or the one given, or one from a function, whose other parts are unknown."""
    if isinstance(given, str):
        return lookup("objective", given, OBJECTIVES)
    if isinstance(given, Objective):
        return given
    if not callable(given):
        raise ValueError(f"objective is {given!r}: give a name ({', '.join(OBJECTIVES)}) or a function.")
    return Objective("your objective", given, _unknown, _unknown, _gain, "yours")


def _unknown(margins: Tensor, used: Tensor) -> Tensor:
    return torch.full_like(margins, torch.nan)


def _gain(policy: Tensor, reference: Tensor | None, lengths: Tensor | None = None) -> Tensor:
    """ρ, or s without a reference."""
    return policy if reference is None else log_ratio(policy, reference)


def _select(logps: Tensor, mask: Tensor, beta: float, dynamic: DynamicPO | None) -> tuple[Tensor, Tensor, Tensor]:
    """The census, the negatives that enter the loss, and the strength of each, 0 where it does not enter."""
    device = logps.device
    if device.type == "mps":  # Apple's GPU has no float64, which an exact selection needs
        logps, mask = logps.cpu(), mask.cpu()
    census = boundary(logps, clusters=(dynamic or DynamicPO()).clusters)
    kept, used = census, mask
    strength = torch.full_like(logps[:, 1:], beta)
    if dynamic is not None:
        if callable(dynamic.select):
            kept = _checked_selection(dynamic.select(logps), mask)
        if dynamic.select:
            used = kept
        if dynamic.adjust_beta:
            strength = dual_margin_beta(logps, kept, beta, dynamic.margin)
    return census.to(device), used.to(device), strength.masked_fill(~used, 0).to(device)


# Bad input: each check says what is wrong, where, and what to do.


def _check_settings(
    known: Objective, reference: Tensor | None, beta: float, lengths: Tensor | None, dynamic: DynamicPO | None
) -> None:
    if "reference" in known.needs and reference is None:
        raise ValueError(f"{known.name} compares with a reference model: give reference, log-probs shaped like policy.")
    if "lengths" in known.needs and lengths is None:
        raise ValueError(f"{known.name} averages over tokens: give lengths, token counts shaped like policy.")
    if known.selects and dynamic is not None:
        raise ValueError(f"{known.name} chooses pairs and their strength itself, as DynamicPO does: leave dynamic out.")
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta is {beta}: give a finite number above 0.")
    if not (dynamic is None or isinstance(dynamic, DynamicPO)):
        raise ValueError(f"dynamic is {dynamic!r}: give minipo.DynamicPO(...) or None.")


def _check_policy(policy: Tensor) -> None:
    if not (isinstance(policy, Tensor) and policy.is_floating_point() and policy.dim() == 2):
        raise ValueError(
            f"policy is {_described(policy)}: give a floating-point tensor of shape (batch, 1 + negatives)."
        )
    if policy.shape[1] < 2:
        raise ValueError(
            f"policy has shape {tuple(policy.shape)} and so no negatives: give at least one after the chosen item."
        )


def _checked_mask(policy: Tensor, mask: Tensor | None) -> Tensor:
    batch, negatives = policy.shape[0], policy.shape[1] - 1
    if mask is None:
        return torch.ones(batch, negatives, dtype=torch.bool, device=policy.device)
    if not (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == (batch, negatives)):
        raise ValueError(
            f"mask is {_described(mask)}: with policy of shape {tuple(policy.shape)} give torch.bool of shape "
            f"({batch}, {negatives}), a column for each negative and none for the chosen item."
        )
    empty = ~mask.any(1)
    if empty.any():
        raise ValueError(f"mask leaves row {_first(empty)[0]} without a negative: leave the row out, or give it one.")
    return mask


def _checked(name: str, tensor: Tensor, policy: Tensor, present: Tensor, fill: float) -> Tensor:
    """`tensor` with `fill` where no candidate is present; checks that the rest is finite, and above 0 for lengths."""
    if not (isinstance(tensor, Tensor) and tensor.shape == policy.shape):
        raise ValueError(f"{name} is {_described(tensor)}: give a tensor of policy's shape, {tuple(policy.shape)}.")
    tensor = tensor.masked_fill(~present, fill)
    wrong, wanted = ~tensor.isfinite(), "finite numbers"
    if name == "lengths":
        wrong, wanted = wrong | (tensor <= 0), "token counts above 0"
    if wrong.any():
        row, column = _first(wrong)
        raise ValueError(
            f"{name} is {tensor[row, column].item()} in row {row}, column {column}: give {wanted}, "
            "or set mask to False where a row has fewer negatives."
        )
    return tensor


def _checked_selection(selection: Tensor, mask: Tensor) -> Tensor:
    if not (isinstance(selection, Tensor) and selection.dtype == torch.bool and selection.shape == mask.shape):
        raise ValueError(
            f"The selection rule returned {_described(selection)}: "
            f"it must return a tensor, torch.bool of shape {tuple(mask.shape)}."
        )
    selection = selection & mask
    empty = ~selection.any(1)
    if empty.any():
        raise ValueError(f"The selection rule keeps no negative in row {_first(empty)[0]}: it must keep at least one.")
    return selection


def _described(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _first(wrong: Tensor) -> list[int]:
    return wrong.nonzero()[0].tolist()
