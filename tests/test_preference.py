"""preference_loss and preference_push: the authors' cases, the properties users rely on, and bad input."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minipo.dynamic import DynamicPO, boundary, random
from minipo.extensions import beta_dpo, simpo
from minipo.objectives import log_ratio, pairwise_margins
from minipo.preference import OBJECTIVES, preference_loss, preference_push

CASES = json.loads((Path(__file__).parent / "data" / "objectives.json").read_text())
NAMES = ["dpo", "dmpo", "sdpo", "mppo"]
SWITCHES = [
    None,
    DynamicPO(),
    DynamicPO(margin=2.0, clusters=2),
    DynamicPO(select=False),
    DynamicPO(adjust_beta=False),
]


def candidates(batch: int, negatives: int, seed: int = 0, dtype: torch.dtype = torch.float64):
    """A policy and a reference; in about half of the rows some negative ranks above the chosen item."""
    generator = torch.Generator().manual_seed(seed)
    policy = torch.randn(batch, 1 + negatives, generator=generator, dtype=dtype) * 3 - 12
    policy[::2, 0] += 9
    return policy.clamp(max=-0.1), policy + torch.randn(batch, 1 + negatives, generator=generator, dtype=dtype)


def loss_and_gradient(objective, policy, *args, **kwargs):
    policy = policy.clone().requires_grad_()
    out = preference_loss(objective, policy, *args, **kwargs)
    out.losses.sum().backward()
    return out, policy.grad


def joined(case: dict, chosen: str, rejected: str) -> torch.Tensor:
    together = [[first, *others] for first, others in zip(case[chosen], case[rejected], strict=True)]
    return torch.tensor(together, dtype=torch.float64)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['mode']}-{case['K']}-{case['beta']}-{case['margin']}")
def test_the_authors_cases(case):
    wrapped, _, name = case["mode"].rpartition("_")
    out, gradient = loss_and_gradient(
        name.lower(),
        joined(case, "policy_chosen", "policy_rejected"),
        joined(case, "reference_chosen", "reference_rejected") if name != "MPPO" else None,
        beta=case["beta"],
        dynamic=DynamicPO(margin=case["margin"]) if wrapped else None,
    )
    exactly = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(out.losses.detach(), torch.tensor(case["loss"], dtype=torch.float64), **exactly)
    torch.testing.assert_close(gradient, joined(case, "grad_policy_chosen", "grad_policy_rejected"), **exactly)
    if wrapped:
        for row, (places, strengths) in enumerate(zip(case["boundary"], case["beta_used"], strict=True)):
            assert out.boundary[row].nonzero().flatten().tolist() == sorted(places)
            assert torch.equal(out.used, out.boundary)
            torch.testing.assert_close(out.beta[row, places], torch.tensor(strengths, dtype=torch.float64), **exactly)
            assert out.beta[row].count_nonzero() == len(places)


def test_all_63_cases_are_there():
    assert len(CASES) == 63


@pytest.mark.parametrize("name", NAMES)
def test_both_switches_off_is_the_plain_objective(name):
    policy, reference = candidates(16, 7)
    plain, plain_gradient = loss_and_gradient(name, policy, reference, beta=0.4)
    off, off_gradient = loss_and_gradient(
        name, policy, reference, beta=0.4, dynamic=DynamicPO(select=False, adjust_beta=False)
    )
    assert torch.equal(plain.losses, off.losses)
    assert torch.equal(plain_gradient, off_gradient)
    assert plain.used.all()
    assert off.used.all()
    assert (off.beta == 0.4).all()


def test_each_switch_does_its_own_part():
    policy, reference = candidates(16, 7)
    both = preference_loss("dmpo", policy, reference, beta=0.4, dynamic=DynamicPO())
    selection = preference_loss("dmpo", policy, reference, beta=0.4, dynamic=DynamicPO(adjust_beta=False))
    strength = preference_loss("dmpo", policy, reference, beta=0.4, dynamic=DynamicPO(select=False))
    assert not both.boundary.all()
    assert torch.equal(both.used, both.boundary)
    assert torch.equal(selection.used, both.boundary)
    assert torch.equal(selection.beta, 0.4 * both.boundary.double())
    assert strength.used.all()
    assert torch.equal(strength.beta * both.boundary, both.beta)
    assert (strength.beta > 0).all()


def test_the_census_is_taken_whatever_entered_the_loss():
    policy, reference = candidates(16, 7)
    for dynamic in [None, DynamicPO(), DynamicPO(select=False), DynamicPO(select=random)]:
        assert torch.equal(preference_loss("sdpo", policy, reference, dynamic=dynamic).boundary, boundary(policy))
    two = preference_loss("sdpo", policy, reference, dynamic=DynamicPO(clusters=2, select=False))
    assert torch.equal(two.boundary, boundary(policy, clusters=2))
    assert not torch.equal(two.boundary, boundary(policy))


def test_rewards():
    policy, reference = candidates(3, 4)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2] = False
    policy.requires_grad_()
    with_reference = preference_loss("dmpo", policy, reference, beta=0.5, mask=mask, dynamic=DynamicPO()).rewards
    without = preference_loss("mppo", policy, beta=0.5, mask=mask).rewards
    assert with_reference[1, 3] == without[1, 3] == -math.inf
    present = torch.cat([torch.ones(3, 1, dtype=torch.bool), mask], dim=1)
    torch.testing.assert_close(with_reference[present], (0.5 * (policy - reference))[present].detach())
    torch.testing.assert_close(without[present], (0.5 * policy)[present].detach())
    assert not with_reference.requires_grad


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dynamic", SWITCHES)
@given(
    st.lists(st.tuples(st.integers(-90, -1), st.integers(-90, -1)), min_size=2, max_size=20),
    st.randoms(use_true_random=False),
)
@settings(max_examples=15)  # for each of twenty; test_dynamic.py has more for the selection and β
def test_permuting_negatives_permutes_boundary_and_beta_and_leaves_the_loss(name, dynamic, pairs, shuffler):
    policy, reference = (torch.tensor([row], dtype=torch.float64) / 7 for row in zip(*pairs, strict=True))
    order = list(range(len(pairs) - 1))
    shuffler.shuffle(order)
    columns = [0, *(1 + place for place in order)]
    out = preference_loss(name, policy, reference, dynamic=dynamic)
    shuffled = preference_loss(name, policy[:, columns], reference[:, columns], dynamic=dynamic)
    assert torch.equal(out.boundary[:, order], shuffled.boundary)
    torch.testing.assert_close(out.beta[:, order], shuffled.beta, rtol=1e-10, atol=0)
    torch.testing.assert_close(out.losses, shuffled.losses, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dynamic", SWITCHES)
def test_gradients_are_finite_differences_with_boundary_and_beta_held_constant(name, dynamic):
    policy, reference = candidates(6, 5, seed=2)
    if name == "mppo":
        policy = policy / 8  # likelihoods that are not all zero
    out, gradient = loss_and_gradient(name, policy, reference, beta=0.8, dynamic=dynamic)

    def frozen(policy: torch.Tensor) -> torch.Tensor:
        utility = torch.exp(policy) if name == "mppo" else log_ratio(policy, reference)
        return OBJECTIVES[name].aggregate(pairwise_margins(utility, out.beta), out.used).sum()

    step = 1e-6
    differences = torch.zeros_like(policy)
    for place in range(policy.numel()):
        nudge = torch.zeros_like(policy)
        nudge.view(-1)[place] = step
        differences.view(-1)[place] = (frozen(policy + nudge) - frozen(policy - nudge)) / (2 * step)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient, differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dynamic", SWITCHES)
@pytest.mark.parametrize("negatives", [1, 19])
def test_float32_stays_finite_at_the_extremes(name, dynamic, negatives):
    candidate = torch.arange(1 + negatives)
    rows = [
        torch.full((1 + negatives,), 0.0),
        torch.full((1 + negatives,), -1e4),
        torch.where(candidate == 0, -1e4, -0.001),
        torch.where(candidate == 0, -0.001, -1e4),
        torch.where(candidate % 2 == 0, -1e4, -1e4 + 0.001),
        -1e4 * candidate / (1 + negatives),
    ]
    policy = torch.stack(rows).float()
    for reference in (policy, policy.flip(0), torch.zeros_like(policy), torch.full_like(policy, -1e4)):
        for beta in (0.01, 1.0, 10.0):
            out, gradient = loss_and_gradient(name, policy, reference, beta=beta, dynamic=dynamic)
            assert out.losses.dtype == torch.float32
            assert out.losses.isfinite().all()
            assert gradient.isfinite().all()
            assert out.beta.isfinite().all()
            push = preference_push(name, policy, reference, beta=beta, dynamic=dynamic)
            assert push.push.isfinite().all()
            assert push.dilution.isfinite().all()
            assert push.saturation.isfinite().all()


@pytest.mark.parametrize("name", [*NAMES, "simpo"])
@pytest.mark.parametrize("dynamic", [*SWITCHES, DynamicPO(clusters=2)])
@pytest.mark.parametrize("junk", [-math.inf, math.inf, math.nan, 1e30])
def test_a_ragged_batch_equals_each_row_alone(name, dynamic, junk):
    policy, reference = candidates(12, 9, seed=4)
    policy = policy / 3
    mask = torch.rand(12, 9, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[:, 4] = True
    present = torch.cat([torch.ones(12, 1, dtype=torch.bool), mask], dim=1)
    lengths = torch.randint(1, 5, (12, 10), generator=torch.Generator().manual_seed(2)).double()
    padded = [tensor.masked_fill(~present, junk) for tensor in (policy, reference, lengths)]
    out, gradient = loss_and_gradient(name, *padded[:2], beta=0.7, mask=mask, lengths=padded[2], dynamic=dynamic)
    assert (gradient[~present] == 0).all()
    assert not (out.used & ~mask).any()
    push = preference_push(name, *padded[:2], beta=0.7, mask=mask, lengths=padded[2], dynamic=dynamic)
    assert (push.push[~mask] == 0).all()
    for row in range(12):
        alone = [tensor[row : row + 1, present[row]] for tensor in (policy, reference, lengths)]
        single, single_gradient = loss_and_gradient(name, *alone[:2], beta=0.7, lengths=alone[2], dynamic=dynamic)
        torch.testing.assert_close(out.losses[row : row + 1], single.losses, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(gradient[row, present[row]], single_gradient[0], rtol=1e-12, atol=1e-15)
        assert torch.equal(out.boundary[row, mask[row]], single.boundary[0])
        torch.testing.assert_close(out.beta[row, mask[row]], single.beta[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("dynamic", SWITCHES)
def test_mppo_looks_at_no_reference(dynamic):
    policy, reference = candidates(8, 5)
    with_reference, gradient = loss_and_gradient("mppo", policy / 6, reference, dynamic=dynamic)
    without, gradient_without = loss_and_gradient("mppo", policy / 6, dynamic=dynamic)
    assert torch.equal(with_reference.losses, without.losses)
    assert torch.equal(gradient, gradient_without)


def test_lengths_make_mppo_average_and_leave_the_others_alone():
    policy, reference = candidates(8, 5)
    lengths = torch.randint(2, 6, policy.shape, generator=torch.Generator().manual_seed(0))
    averaged = preference_loss("mppo", policy, lengths=lengths).losses
    likelihoods = torch.exp(policy / lengths)
    expected = torch.log1p(torch.exp(-(likelihoods[:, :1] - likelihoods[:, 1:]).sum(1)))
    torch.testing.assert_close(averaged, expected)
    for name in ("dpo", "dmpo", "sdpo"):
        with_lengths = preference_loss(name, policy, reference, lengths=lengths)
        assert torch.equal(with_lengths.losses, preference_loss(name, policy, reference).losses)


# A rule and an objective of one's own.


def test_a_rule_of_ones_own_takes_the_place_of_the_boundary():
    policy = torch.tensor([[-1.0, -2.0, -4.0, -9.0], [-5.0, -2.0, -4.0, -9.0]], dtype=torch.float64)
    reference = torch.zeros_like(policy)
    seen = []

    def lowest(logps):
        seen.append(logps)
        return logps[:, 1:] == logps[:, 1:].masked_fill(logps[:, 1:] == -torch.inf, 0).amin(1, keepdim=True)

    mask = torch.tensor([[True, True, True], [True, True, False]])
    out = preference_loss("dmpo", policy.requires_grad_(), reference, mask=mask, dynamic=DynamicPO(select=lowest))
    assert out.used.tolist() == [[False, False, True], [False, True, False]]
    assert out.boundary.tolist() == [[True, False, False], [True, True, False]]
    assert not seen[0].requires_grad
    assert seen[0][1].tolist() == [-5.0, -2.0, -4.0, -math.inf]
    # First row: D = {−2, −4}, m = −3, Δ⁺ = 8, Δ⁻ = −6, γ = 6.
    assert out.beta[0].tolist() == pytest.approx([0, 0, 1 + math.tanh((8 + 6 - 6) / 14) / 2])


def test_random_negatives_repeat_with_the_seed():
    policy, reference = candidates(64, 19)
    torch.manual_seed(3)
    first = preference_loss("dmpo", policy, reference, dynamic=DynamicPO(select=random))
    second = preference_loss("dmpo", policy, reference, dynamic=DynamicPO(select=random))
    torch.manual_seed(3)
    again = preference_loss("dmpo", policy, reference, dynamic=DynamicPO(select=random))
    assert torch.equal(first.used.sum(1), first.boundary.sum(1))
    assert not torch.equal(first.used, second.used)
    assert torch.equal(first.used, again.used)


def test_an_objective_of_ones_own():
    policy, reference = candidates(8, 5)

    def hinge(margins, used):
        return (1 - margins).clamp(min=0).masked_fill(~used, 0).sum(1)

    out, gradient = loss_and_gradient(hinge, policy, reference, beta=0.5, dynamic=DynamicPO(adjust_beta=False))
    ratio = policy - reference
    margins = 0.5 * (ratio[:, :1] - ratio[:, 1:])
    torch.testing.assert_close(out.losses.detach(), ((1 - margins).clamp(min=0) * boundary(policy)).sum(1))
    push = preference_push(hinge, policy, reference, beta=0.5, dynamic=DynamicPO(adjust_beta=False))
    assert torch.equal(push.push, gradient[:, 1:])
    assert push.dilution.isnan().all()
    assert push.saturation[out.used].isnan().all()
    no_reference = preference_loss(hinge, policy, beta=0.5)
    margins = 0.5 * (policy[:, :1] - policy[:, 1:])
    torch.testing.assert_close(no_reference.losses, (1 - margins).clamp(min=0).sum(1))


# SimPO and β-DPO, with many negatives extensions of their papers.

LENGTHS = torch.randint(1, 6, (8, 6), generator=torch.Generator().manual_seed(3))


def pair_loss(margin: torch.Tensor) -> torch.Tensor:
    return torch.log1p(torch.exp(-margin))


def test_simpo_at_one_negative_is_the_papers_pair_loss():
    policy = candidates(8, 1)[0].requires_grad_()
    lengths = LENGTHS[:, :2]
    out, gradient = loss_and_gradient(simpo(target_margin=0.7), policy.detach(), beta=2.5, lengths=lengths)
    chosen, rejected = policy.unbind(1)
    expected = pair_loss(2.5 / lengths[:, 0] * chosen - 2.5 / lengths[:, 1] * rejected - 0.7)
    expected.sum().backward()
    torch.testing.assert_close(out.losses.detach(), expected.detach())
    torch.testing.assert_close(gradient, policy.grad)


@pytest.mark.parametrize("objective", ["simpo", simpo(0.5)])
def test_simpo_is_the_mean_over_a_rows_pairs(objective):
    policy, reference = candidates(8, 5)
    losses = preference_loss(objective, policy, beta=2.0, lengths=LENGTHS).losses
    pairs = [
        preference_loss(objective, policy[:, [0, k]], beta=2.0, lengths=LENGTHS[:, [0, k]]).losses for k in range(1, 6)
    ]
    torch.testing.assert_close(losses, torch.stack(pairs).mean(0))
    with_reference = preference_loss(objective, policy, reference, beta=2.0, lengths=LENGTHS)
    assert torch.equal(losses, with_reference.losses)
    torch.testing.assert_close(with_reference.rewards, 2.0 * (policy - reference))


@pytest.mark.parametrize("dynamic", SWITCHES)
def test_simpo_under_dynamic_po(dynamic):
    policy, _ = candidates(8, 5)
    out, gradient = loss_and_gradient(simpo(0.3), policy, beta=2.0, lengths=LENGTHS, dynamic=dynamic)
    mean = policy / LENGTHS
    pairs = pair_loss(out.beta * (mean[:, :1] - mean[:, 1:]) - 0.3) * out.used
    torch.testing.assert_close(out.losses.detach(), pairs.sum(1) / out.used.sum(1))
    if dynamic is not None and dynamic.select:
        assert torch.equal(out.used, boundary(policy, clusters=dynamic.clusters))
    push = preference_push(simpo(0.3), policy, beta=2.0, lengths=LENGTHS, dynamic=dynamic)
    torch.testing.assert_close(push.push, gradient[:, 1:])
    torch.testing.assert_close(push.push, push.dilution * push.saturation * out.beta / LENGTHS[:, 1:])


def test_beta_dpo_at_one_negative_is_the_papers_pair_loss():
    """One batch by hand: the running mean, the batch's β, the mean over the pairs that are kept."""
    policy, reference = candidates(12, 1)
    gaps = policy[:, 0] - reference[:, 0] - policy[:, 1] + reference[:, 1]
    torch.manual_seed(0)
    out, gradient = loss_and_gradient(beta_dpo(alpha=0.6, keep=0.5, momentum=0.9), policy, reference, beta=0.1)
    kept = out.used[:, 0]
    assert kept.sum() == 6
    strength = 0.1 * (1 + 0.6 * (gaps[kept].mean() - 0.1 * gaps.mean()))
    torch.testing.assert_close(out.beta[:, 0], strength * kept)
    torch.testing.assert_close(out.losses.mean().detach(), pair_loss(strength * gaps[kept]).mean())
    assert (out.losses[~kept] == 0).all()
    assert (gradient[~kept] == 0).all()
    slope = -strength * torch.sigmoid(-strength * gaps[kept]) * 12 / 6  # β is a constant for the gradient
    torch.testing.assert_close(gradient[kept], torch.stack([slope, -slope], dim=1))


def test_beta_dpo_with_all_kept_and_no_alpha_is_dpo():
    policy, reference = candidates(8, 5)
    plain, plain_gradient = loss_and_gradient("dpo", policy, reference, beta=0.3)
    out, gradient = loss_and_gradient(beta_dpo(alpha=0, keep=1), policy, reference, beta=0.3)
    torch.testing.assert_close(out.losses, plain.losses)
    torch.testing.assert_close(gradient, plain_gradient)


def test_beta_dpo_takes_every_pair_of_the_batch_alike():
    policy, reference = candidates(12, 7)
    mask = torch.rand(12, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[:, 4] = True
    junk = policy.clone()
    junk[:, 1:][~mask] = math.nan
    ratio = policy - reference
    gaps = (ratio[:, :1] - ratio[:, 1:])[mask]
    objective = beta_dpo()
    torch.manual_seed(0)
    out = preference_loss(objective, junk, reference, beta=0.3, mask=mask)
    assert out.used.sum() == int(0.8 * len(gaps))
    assert not (out.used & ~mask).any()
    strength = out.beta[out.used].unique()
    kept = (ratio[:, :1] - ratio[:, 1:])[out.used]
    torch.testing.assert_close(strength, (0.3 * (1 + 0.6 * (kept.mean() - 0.1 * gaps.mean()))).view(1))
    torch.testing.assert_close(out.losses.mean(), pair_loss(strength * kept).mean())
    again = preference_loss(objective, junk, reference, beta=0.3, mask=mask, state=out.state)
    assert again.state["mean"] == pytest.approx(1.9 * out.state["mean"])  # the same batch again, on the first's tenth
    torch.manual_seed(0)
    push = preference_push(objective, junk, reference, beta=0.3, mask=mask)
    torch.testing.assert_close(push.push, push.dilution * push.saturation * out.beta)
    torch.testing.assert_close(push.dilution, out.used.double() * 12 / out.used.sum())


# Push.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dynamic", SWITCHES)
@pytest.mark.parametrize("with_lengths", [False, True])
def test_push_is_the_gradient_and_dilution_times_saturation_times_beta(name, dynamic, with_lengths):
    policy, reference = candidates(10, 6, seed=9)
    policy = policy / 8
    lengths = torch.randint(1, 4, policy.shape, generator=torch.Generator().manual_seed(0)) if with_lengths else None
    arguments = {"beta": 0.6, "lengths": lengths, "dynamic": dynamic}
    out, gradient = loss_and_gradient(name, policy, reference, **arguments)
    with torch.no_grad():  # as diagnostics call it during training
        push = preference_push(name, policy, reference, **arguments)
    torch.testing.assert_close(push.push, gradient[:, 1:], rtol=1e-14, atol=0)
    assert (push.push >= 0).all()
    slope = 1.0
    if name == "mppo":
        slope = torch.exp(policy / lengths) / lengths if with_lengths else torch.exp(policy)
        slope = slope[:, 1:]
    torch.testing.assert_close(push.push, push.dilution * push.saturation * out.beta * slope, rtol=1e-10, atol=1e-15)
    for part in (push.push, push.dilution, push.saturation):
        assert not part.requires_grad
        assert (part[~out.used] == 0).all()


def test_dilution_and_saturation_are_what_the_story_says():
    """Two negatives at margins −1 and 4, written out by hand."""
    policy = torch.tensor([[0.0, 1.0, -4.0]], dtype=torch.float64)
    reference = torch.zeros_like(policy)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    push = {name: preference_push(name, policy, reference) for name in ("dpo", "dmpo", "sdpo")}
    assert push["dpo"].dilution.tolist() == [[0.5, 0.5]]
    assert push["dpo"].saturation[0].tolist() == pytest.approx([sigmoid(1), sigmoid(-4)])
    assert push["dmpo"].dilution.tolist() == [[0.5, 0.5]]
    assert push["dmpo"].saturation[0].tolist() == pytest.approx([sigmoid(-1.5)] * 2)
    total = math.exp(1) + math.exp(-4)
    assert push["sdpo"].dilution[0].tolist() == pytest.approx([math.exp(1) / total, math.exp(-4) / total])
    assert push["sdpo"].saturation[0].tolist() == pytest.approx([sigmoid(math.log(total))] * 2)
    policy = torch.tensor([[-0.5, -0.1, -3.0]], dtype=torch.float64)
    push_mppo = preference_push("mppo", policy)
    z = 2 * math.exp(-0.5) - math.exp(-0.1) - math.exp(-3.0)
    assert push_mppo.dilution.tolist() == [[1.0, 1.0]]
    assert push_mppo.saturation[0].tolist() == pytest.approx([sigmoid(-z)] * 2)


def test_the_one_picture_a_mistake_among_easy_negatives():
    """The example of the first page: margin −1 among easy negatives at +4, β = 1."""

    def mistake(name: str, easy: int):
        ratios = torch.tensor([[0.0, 1.0, *[-4.0] * easy]], dtype=torch.float64)
        reference = torch.full_like(ratios, -9.0)
        push = preference_push(name, ratios + reference, reference)
        loss = preference_loss(name, ratios + reference, reference).losses.item()
        return loss, push.push[0, 0].item(), push.dilution[0, 0].item(), push.saturation[0, 0].item()

    alone_loss, alone_push, alone_dilution, alone_saturation = mistake("dmpo", 0)
    assert alone_loss == pytest.approx(1.31, abs=0.005)
    assert alone_push == pytest.approx(0.731, abs=0.0005)
    loss, push, dilution, saturation = mistake("dmpo", 18)
    assert loss == pytest.approx(0.024, abs=0.0005)
    assert push == pytest.approx(0.0012, abs=0.00005)
    assert alone_push / push == pytest.approx(600, rel=0.02)
    assert alone_dilution / dilution == pytest.approx(19)
    assert alone_saturation / saturation == pytest.approx(31, abs=0.5)
    assert mistake("dpo", 18)[1] == pytest.approx(0.038, abs=0.0005)
    assert mistake("sdpo", 18)[1] == pytest.approx(0.67, abs=0.005)


def test_boundary_only_brings_the_push_back():
    ratios = torch.tensor([[0.0, 1.0, *[-4.0] * 18]])
    reference = torch.full_like(ratios, -9.0)
    push = preference_push("dmpo", ratios + reference, reference, dynamic=DynamicPO(adjust_beta=False))
    assert push.push[0, 0].item() == pytest.approx(0.731, abs=0.0005)
    assert (push.push[0, 1:] == 0).all()


# Bad input: one clear sentence each.


def change(tensor: torch.Tensor, row: int, column: int, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[row, column] = value
    return tensor


POLICY, REFERENCE = candidates(3, 4)
BAD_INPUT = {
    "unknown objective": (
        {"objective": "dmpo2"},
        rf"Unknown objective 'dmpo2'\. Did you mean 'dmpo'\? Known: {', '.join(OBJECTIVES)}\.",
    ),
    "objective of no use": (
        {"objective": 3},
        rf"objective is 3: give a name \({', '.join(OBJECTIVES)}\) or a function\.",
    ),
    "no negatives": ({"policy": POLICY[:, :1]}, r"policy has shape \(3, 1\) and so no negatives: give at least one"),
    "policy of one axis": ({"policy": POLICY[0]}, r"policy is torch\.float64 of shape \(5,\): give a floating-point"),
    "policy of integers": (
        {"policy": POLICY.long()},
        r"policy is torch\.int64 of shape \(3, 5\): give a floating-point",
    ),
    "policy no tensor": ({"policy": POLICY.tolist()}, r"policy is list: give a floating-point tensor"),
    "beta zero": ({"beta": 0}, r"beta is 0: give a finite number above 0\."),
    "beta negative": ({"beta": -0.1}, r"beta is -0\.1: give a finite number above 0\."),
    "beta nan": ({"beta": math.nan}, r"beta is nan: give a finite number above 0\."),
    "beta infinite": ({"beta": math.inf}, r"beta is inf: give a finite number above 0\."),
    "reference of another shape": (
        {"reference": REFERENCE[:, :4]},
        r"reference is torch\.float64 of shape \(3, 4\): give a tensor of policy's shape, \(3, 5\)\.",
    ),
    "lengths of another shape": (
        {"objective": "mppo", "lengths": torch.ones(3, 4)},
        r"lengths is torch\.float32 of shape \(3, 4\): give a tensor of policy's shape, \(3, 5\)\.",
    ),
    "mask of another shape": (
        {"mask": torch.ones(3, 5, dtype=torch.bool)},
        r"mask is torch\.bool of shape \(3, 5\): with policy of shape \(3, 5\) give torch\.bool of shape \(3, 4\)",
    ),
    "mask of numbers": ({"mask": torch.ones(3, 4)}, r"mask is torch\.float32 of shape \(3, 4\): .* give torch\.bool"),
    "a row without negatives": (
        {"mask": torch.tensor([[True] * 4, [True] * 4, [False] * 4])},
        r"mask leaves row 2 without a negative: leave the row out, or give it one\.",
    ),
    "nan in policy": (
        {"policy": change(POLICY, 1, 3, math.nan)},
        r"policy is nan in row 1, column 3: give finite numbers, or set mask to False",
    ),
    "a chosen log-prob of minus infinity": (
        {"policy": change(POLICY, 2, 0, -math.inf)},
        r"policy is -inf in row 2, column 0: give finite numbers",
    ),
    "infinity in reference": (
        {"reference": change(REFERENCE, 0, 4, math.inf)},
        r"reference is inf in row 0, column 4: give finite numbers",
    ),
    "a length of zero": (
        {"objective": "mppo", "lengths": change(torch.full((3, 5), 2), 1, 2, 0)},
        r"lengths is 0 in row 1, column 2: give token counts above 0",
    ),
    "a length of nan": (
        {"objective": "mppo", "lengths": change(torch.full((3, 5), 2.0), 1, 2, math.nan)},
        r"lengths is nan in row 1, column 2: give token counts above 0",
    ),
    "dpo without reference": ({"objective": "dpo", "reference": None}, r"dpo compares with a reference model: give"),
    "dmpo without reference": ({"reference": None}, r"dmpo compares with a reference model: give reference"),
    "sdpo without reference": ({"objective": "sdpo", "reference": None}, r"sdpo compares with a reference model: give"),
    "simpo without lengths": ({"objective": "simpo"}, r"simpo averages over tokens: give lengths, token counts shaped"),
    "beta-dpo without reference": (
        {"objective": "beta-dpo", "reference": None},
        r"beta-dpo compares with a reference model: give reference",
    ),
    "DynamicPO around beta-dpo": (
        {"objective": "beta-dpo", "dynamic": DynamicPO()},
        r"beta-dpo chooses pairs and their strength itself, as DynamicPO does: leave dynamic out\.",
    ),
    "dynamic of another kind": ({"dynamic": True}, r"dynamic is True: give minipo\.DynamicPO\(\.\.\.\) or None\."),
    "a rule that returns another shape": (
        {"dynamic": DynamicPO(select=lambda logps: logps > -5)},
        r"The selection rule returned torch\.bool of shape \(3, 5\): it must return .* torch\.bool of shape \(3, 4\)\.",
    ),
    "a rule that returns numbers": (
        {"dynamic": DynamicPO(select=lambda logps: logps[:, 1:])},
        r"The selection rule returned torch\.float64 of shape \(3, 4\): it must return a tensor, torch\.bool",
    ),
    "a rule that returns nothing": (
        {"dynamic": DynamicPO(select=lambda logps: None)},
        r"The selection rule returned NoneType: it must return a tensor",
    ),
    "a rule that keeps nothing in a row": (
        {"dynamic": DynamicPO(select=lambda logps: torch.tensor([[True], [False], [True]]).expand(3, 4))},
        r"The selection rule keeps no negative in row 1: it must keep at least one\.",
    ),
    "a rule that keeps only absent negatives in a row": (
        {
            "mask": torch.tensor([[True, True, True, False]] * 3),
            "dynamic": DynamicPO(select=lambda logps: logps[:, 1:] == -torch.inf),
        },
        r"The selection rule keeps no negative in row 0: it must keep at least one\.",
    ),
    "an objective that returns a mean": (
        {"objective": lambda margins, used: margins.mean()},
        r"The objective returned torch\.float64 of shape \(\): it must return a tensor with one loss per row, \(3,\)\.",
    ),
}


@pytest.mark.parametrize("function", [preference_loss, preference_push])
@pytest.mark.parametrize("wrong", BAD_INPUT)
def test_bad_input_says_what_is_wrong_where_and_what_to_do(function, wrong):
    changes, sentence = BAD_INPUT[wrong]
    arguments = {"objective": "dmpo", "policy": POLICY, "reference": REFERENCE} | changes
    with pytest.raises(ValueError, match=sentence) as raised:
        function(**arguments)
    assert "\n" not in str(raised.value)
