"""The objectives against their formulas, written out a row at a time."""

import math

import pytest
import torch

from minipo.objectives import OBJECTIVES, dmpo, dpo, likelihood, log_ratio, mppo, pairwise_margins, sdpo


def loss_of(z: float) -> float:
    return math.log1p(math.exp(-z))


FORMULAS = {
    "dpo": lambda d: sum(loss_of(x) for x in d) / len(d),
    "dmpo": lambda d: loss_of(sum(d) / len(d)),
    "sdpo": lambda d: loss_of(-math.log(sum(math.exp(-x) for x in d))),
    "mppo": lambda d: loss_of(sum(d)),
}


@pytest.fixture
def margins() -> torch.Tensor:
    return torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def used() -> torch.Tensor:
    used = torch.rand(6, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    used[:, 3] = True
    used[0] = True
    return used


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_the_formulas_over_the_used_negatives(name, margins, used):
    losses = OBJECTIVES[name].aggregate(margins, used)
    expected = [FORMULAS[name](row[keep].tolist()) for row, keep in zip(margins, used, strict=True)]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
def test_unused_margins_reach_neither_loss_nor_gradient(name, junk, margins, used):
    filled = margins.masked_fill(~used, junk).requires_grad_()
    losses = OBJECTIVES[name].aggregate(filled, used)
    losses.sum().backward()
    torch.testing.assert_close(losses, OBJECTIVES[name].aggregate(margins, used), rtol=0, atol=0)
    assert (filled.grad[~used] == 0).all()
    assert filled.grad.isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_is_share_times_saturation(name, margins, used):
    objective = OBJECTIVES[name]
    margins.requires_grad_()
    objective.aggregate(margins, used).sum().backward()
    expected = objective.share(margins, used) * torch.sigmoid(-objective.inside(margins, used))
    torch.testing.assert_close(-margins.grad, expected.detach(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("negatives", [1, 19])
@pytest.mark.parametrize("margin", [-2e4, -100.0, 0.0, 100.0, 2e4])
def test_float32_stays_finite_at_extreme_margins(name, negatives, margin):
    margins = torch.full((2, negatives), margin)
    margins[1, 0] = -margin
    margins.requires_grad_()
    losses = OBJECTIVES[name].aggregate(margins, torch.ones(2, negatives, dtype=torch.bool))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert margins.grad.isfinite().all()


def test_with_one_negative_all_four_agree(margins):
    alone = margins[:, :1]
    used = torch.ones_like(alone, dtype=torch.bool)
    for objective in (dmpo, sdpo, mppo):
        torch.testing.assert_close(objective(alone, used), dpo(alone, used), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("negatives", [1, 5, 19])
def test_losses_of_an_untrained_model(negatives):
    margins = torch.zeros(1, negatives, dtype=torch.float64)
    used = torch.ones_like(margins, dtype=torch.bool)
    for objective in (dpo, dmpo, mppo):
        assert objective(margins, used).item() == pytest.approx(math.log(2))
    assert sdpo(margins, used).item() == pytest.approx(math.log(1 + negatives))


def test_pairwise_margins_put_the_chosen_item_in_column_0():
    utility = torch.tensor([[1.0, 3.0, -2.0]])
    assert pairwise_margins(utility, torch.tensor([[1.0, 0.5]])).tolist() == [[-2.0, 1.5]]


def test_no_gradient_reaches_the_reference():
    policy, reference = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    log_ratio(policy, reference).sum().backward()
    assert policy.grad.tolist() == [[1.0, 1.0]]
    assert reference.grad is None


def test_likelihood_is_the_average_over_tokens_when_lengths_are_given():
    policy = torch.tensor([[-6.0, -2.0]], dtype=torch.float64)
    assert likelihood(policy).tolist()[0] == pytest.approx([math.exp(-6), math.exp(-2)])
    averaged = likelihood(policy, torch.tensor([[3, 2]]))
    assert averaged.tolist()[0] == pytest.approx([math.exp(-2), math.exp(-1)])
