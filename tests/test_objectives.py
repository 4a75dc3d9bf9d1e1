"""The objectives against their formulas, written out a row at a time."""

import math

import pytest
import torch

from minipo.extensions import beta_dpo, mppo_by, simpo
from minipo.objectives import average, dmpo, dpo, likelihood, log_ratio, mppo, pairwise_margins, sdpo
from minipo.preference import OBJECTIVES


def loss_of(z: float) -> float:
    return math.log1p(math.exp(-z))


FORMULAS = {
    "dpo": lambda d: sum(loss_of(x) for x in d) / len(d),
    "dmpo": lambda d: loss_of(sum(d) / len(d)),
    "sdpo": lambda d: loss_of(-math.log(sum(math.exp(-x) for x in d))),
    "mppo": lambda d: loss_of(sum(d)),
    "simpo": lambda d: sum(loss_of(x) for x in d) / len(d),
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


@pytest.mark.parametrize("name", FORMULAS)
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
    averaged = likelihood(policy, None, torch.tensor([[3, 2]]))
    assert averaged.tolist()[0] == pytest.approx([math.exp(-2), math.exp(-1)])


@pytest.mark.parametrize(("form", "expected"), [("token", [-2, -1]), ("answer", [-6, -2])])
def test_mppo_has_the_papers_likelihood_and_the_releases(form, expected):
    policy, lengths = torch.tensor([[-6.0, -2.0]], dtype=torch.float64), torch.tensor([[3, 2]])
    assert mppo_by(form).utility(policy, None, lengths).log().tolist()[0] == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"^MPPO's likelihood_of is 'word': give token or answer\."):
        mppo_by("word")


# The extensions: SimPO and β-DPO with many negatives.


def test_only_the_extensions_are_marked_as_ours():
    ours = {name for name, objective in OBJECTIVES.items() if objective.extension}
    assert ours == OBJECTIVES.keys() - {"dpo", "dmpo", "sdpo", "mppo"}


def test_simpo_averages_over_tokens():
    policy = torch.tensor([[-6.0, -2.0]], dtype=torch.float64)
    assert average(policy, None, torch.tensor([[3, 4]])).tolist() == [[-2.0, -0.5]]


@pytest.mark.parametrize("target", [-0.1, math.inf, math.nan])
def test_a_target_margin_out_of_range(target):
    with pytest.raises(ValueError, match=rf"^SimPO's target_margin is {target}: give a finite number, 0 or more\."):
        simpo(target)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"alpha": -1.0}, "β-DPO's alpha is -1.0: give a finite number, 0 or more."),
        ({"alpha": math.nan}, "β-DPO's alpha is nan: give a finite number, 0 or more."),
        ({"keep": 0.0}, "β-DPO's keep is 0.0: give a share above 0, at most 1."),
        ({"keep": 1.1}, "β-DPO's keep is 1.1: give a share above 0, at most 1."),
        ({"momentum": 1.0}, "β-DPO's momentum is 1.0: give a number from 0 to below 1."),
    ],
)
def test_settings_of_beta_dpo_out_of_range(settings, sentence):
    with pytest.raises(ValueError, match=r"^β-DPO") as raised:
        beta_dpo(**settings)
    assert str(raised.value) == sentence


def test_beta_dpo_is_the_mean_over_the_pairs_of_the_batch(margins, used):
    losses = OBJECTIVES["beta-dpo"].aggregate(margins, used)
    pairs = [loss_of(margin) for margin in margins[used].tolist()]
    assert losses.mean().item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)
    row = sum(loss_of(margin) for margin in margins[1][used[1]].tolist())
    assert losses[1].item() == pytest.approx(row * len(margins) / len(pairs), rel=1e-12)


def test_the_running_gap_is_the_papers(margins, used):
    """M₀ ← m M₀ + (1 − m) mean, σ ← m σ + (1 − m) deviation, from 0 and 0, over the batch's pairs."""
    objective, state, mean, deviation = beta_dpo(momentum=0.7), None, 0.0, 0.0
    for scale in (1.0, 3.0, -2.0):
        gaps = scale * margins
        state = objective.after(gaps, used, state)
        pairs = gaps[used].tolist()
        batch = sum(pairs) / len(pairs)
        spread = math.sqrt(sum((gap - batch) ** 2 for gap in pairs) / (len(pairs) - 1))
        mean, deviation = 0.7 * mean + 0.3 * batch, 0.7 * deviation + 0.3 * spread
        assert state == pytest.approx({"mean": mean, "deviation": deviation})
    one = torch.tensor([[5.0]])
    assert beta_dpo().after(one, torch.tensor([[True]]), None) == pytest.approx({"mean": 0.5, "deviation": 0})


def test_the_batchs_beta_is_the_papers(margins, used):
    def strength(gaps, **settings):
        kept, beta, _ = beta_dpo(keep=1, momentum=0, **settings).prepare(gaps, used, torch.full_like(gaps, 0.1), None)
        assert torch.equal(kept, used)
        assert (beta[~used] == 0).all()
        return beta[used].unique().tolist()

    # With momentum 0 the running mean is the batch's own, so that its β stays as it was.
    assert strength(margins, alpha=0.6) == pytest.approx([0.1])
    half = beta_dpo(keep=1, momentum=0.5)
    _, beta, state = half.prepare(margins, used, torch.full_like(margins, 0.1), {"mean": 0.4, "deviation": 1.0})
    seen = sum(margins[used].tolist()) / int(used.sum())
    assert state["mean"] == pytest.approx((0.4 + seen) / 2)
    assert beta[used].unique().tolist() == pytest.approx([0.1 * (1 + 0.6 * (seen - state["mean"]))])
    _, beta, _ = half.prepare(margins - 100, used, torch.full_like(margins, 0.1), None)
    assert beta[used].unique().tolist() == [1e-3]  # never 0 or below
    assert strength(margins, alpha=0.0) == [0.1]


def test_pairs_are_kept_with_the_papers_weights():
    """Without replacement, by exp(−(M − M₀)² / 2σ²): the first of two drawn, and what is left, as by hand."""
    gaps = torch.tensor([[0.0, 1.0], [3.0, 99.0]], dtype=torch.float64)
    present = torch.tensor([[True, True], [True, False]])
    objective, state = beta_dpo(keep=0.67), {"mean": 0.5, "deviation": 1.5}
    weights = [math.exp(-((gap - 0.5) ** 2) / (2 * 1.5**2)) for gap in (0.0, 1.0, 3.0)]
    total = sum(weights)
    left_out = [  # two of three are kept: the one left out is neither drawn first nor second
        sum(weights[a] / total * weights[b] / (total - weights[a]) for a, b in ((i, j), (j, i)))
        for i, j in ((1, 2), (0, 2), (0, 1))
    ]
    torch.manual_seed(0)
    counts = torch.zeros(2, 2)
    for _ in range(repeats := 4000):
        kept = objective.choose(gaps, present, state)
        assert kept.sum() == 2
        counts += kept
    assert counts[1, 1] == 0
    for place, share in zip(((0, 0), (0, 1), (1, 0)), left_out, strict=True):
        assert 1 - counts[place].item() / repeats == pytest.approx(share, abs=4 * math.sqrt(share / repeats))


def test_how_many_pairs_are_kept(margins, used):
    for keep in (1.0, 0.8, 0.25, 1e-9):
        kept = beta_dpo(keep=keep).choose(margins, used, {"mean": 0.0, "deviation": 1.0})
        assert kept.sum() == max(1, int(keep * int(used.sum())))
        assert not (kept & ~used).any()
    # Before anything is learnt every gap is 0, and every pair as likely; and a far one underflows to no weight.
    assert beta_dpo().choose(torch.zeros_like(margins), used, {"mean": 0.0, "deviation": 0.0}).sum() == int(
        0.8 * int(used.sum())
    )
    assert beta_dpo().choose(margins * 1e6, used, {"mean": 0.0, "deviation": 1e-6}).sum() == int(0.8 * int(used.sum()))
