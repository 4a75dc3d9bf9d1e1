"""The exact split against brute force in exact fractions, dual-margin β against its formula, and the controls."""

import math
from fractions import Fraction
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minipo.dynamic import DynamicPO, boundary, dual_margin_beta, random

CHOSEN_ABOVE_ALL = 1e5


def top_group(values: list[float], clusters: int, dtype: torch.dtype = torch.float64) -> list[bool]:
    """The boundary's fallback for one row, as the user gets it: a chosen item above every negative."""
    logps = torch.tensor([[CHOSEN_ABOVE_ALL, *values]], dtype=dtype)
    return boundary(logps, clusters=clusters)[0].tolist()


def mean(group: list[Fraction]) -> Fraction:
    return sum(group, Fraction(0)) / len(group)


def cost(groups: list[list[Fraction]]) -> Fraction:
    return sum(((value - mean(group)) ** 2 for group in groups for value in group), Fraction(0))


def set_partitions(items: list[int]):
    """All ways to put the items into groups, neighbours or not."""
    if not items:
        yield []
        return
    first, *others = items
    for partition in set_partitions(others):
        yield [[first], *partition]
        for place in range(len(partition)):
            yield [*partition[:place], [first, *partition[place]], *partition[place + 1 :]]


def contiguous_partitions(values: list[Fraction], groups: int):
    """All ways to cut the sorted values into so many groups of neighbours, as groups of places."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    for cuts in combinations(range(1, len(values)), groups - 1):
        edges = [0, *cuts, len(values)]
        yield [order[start:stop] for start, stop in pairwise(edges)]


def best_top_group(values: list[float], clusters: int, every_partition: bool) -> list[bool]:
    """The rule in exact arithmetic: min(clusters, distinct values) groups, least cost, then the largest top group."""
    exact = [Fraction(value) for value in values]
    groups = min(clusters, len(set(exact)))
    if every_partition:
        partitions = [p for p in set_partitions(list(range(len(exact)))) if len(p) == groups]
    else:
        partitions = list(contiguous_partitions(exact, groups))
    candidates = []
    for partition in partitions:
        members = [[exact[place] for place in group] for group in partition]
        separated = any(set(a) & set(b) for a, b in combinations(members, 2))
        if not separated:
            top = max(range(groups), key=lambda number: mean(members[number]))
            candidates.append((cost(members), -len(members[top]), sorted(partition[top])))
    least = min(candidates)
    if every_partition:  # keeping equal values together costs nothing
        assert least[0] == min(cost([[exact[place] for place in group] for group in p]) for p in partitions)
    return [place in least[2] for place in range(len(exact))]


@given(
    st.lists(st.integers(-6, 0).map(float), min_size=1, max_size=6),
    st.integers(1, 4),
)
def test_split_equals_brute_force_over_all_set_partitions(values, clusters):
    assert top_group(values, clusters) == best_top_group(values, clusters, every_partition=True)


@given(
    st.lists(st.one_of(st.integers(-40, 0).map(lambda n: n / 4), st.floats(-30, 0, width=16)), min_size=1, max_size=10),
    st.integers(1, 6),
)
def test_split_equals_brute_force_over_contiguous_partitions(values, clusters):
    values = [round(value, 6) for value in values]  # distances whose squares do not underflow
    assert top_group(values, clusters) == best_top_group(values, clusters, every_partition=False)


@pytest.mark.parametrize("clusters", [2, 3, 5])
def test_split_of_a_whole_batch_equals_brute_force(clusters):
    generator = torch.Generator().manual_seed(clusters)
    negatives = torch.randn(100, 9, generator=generator, dtype=torch.float64) * 5 - 20
    logps = torch.cat([torch.zeros(100, 1, dtype=torch.float64), negatives.clamp(max=-1)], dim=1)
    expected = [best_top_group(row, clusters, every_partition=False) for row in logps[:, 1:].tolist()]
    assert boundary(logps, clusters=clusters).tolist() == expected


@pytest.mark.parametrize("clusters", [2, 3, 4])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_near_minus_ten_thousand_float32_selects_as_float64_and_exactly(clusters, spread):
    generator = torch.Generator().manual_seed(7)
    logps = -1e4 + spread * torch.randn(60, 10, generator=generator)
    logps[:, 0] = -9e3
    assert logps.dtype == torch.float32
    selected = boundary(logps, clusters=clusters)
    assert torch.equal(selected, boundary(logps.double(), clusters=clusters))
    expected = [best_top_group(row, clusters, every_partition=False) for row in logps[:, 1:].tolist()]
    assert selected.tolist() == expected


def test_one_value_far_away_does_not_blur_the_others():
    values = [-1e4, -5.0, -5.000001, -5.000002, -5.00001]
    assert top_group(values, 3) == [False, True, True, True, False]


@pytest.mark.parametrize("offset", [0.0, -7.3, -1e4])
@pytest.mark.parametrize("step", [0.1, 1 / 3, 1.0])
def test_of_equally_good_splits_the_largest_top_group_counts(offset, step):
    """Evenly spaced values split equally well in several ways; rounding in 0.1 and 1/3 must not pick among them."""
    assert top_group([offset - step * n for n in range(3)], 2) == [True, True, False]
    assert top_group([offset - step * n for n in range(4)], 3) == [True, True, False, False]
    assert top_group([offset - step * n for n in range(5)], 2) == [True, True, True, False, False]
    assert top_group([offset - step * n for n in range(5)], 3) == [True, True, False, False, False]


def test_equal_values_are_never_separated():
    assert top_group([-3.0, -1.0, -3.0, -1.0, -1.0], 3) == [False, True, False, True, True]
    assert top_group([-2.0] * 4, 3) == [True] * 4
    assert top_group([-2.0], 3) == [True]


def test_as_many_groups_as_asked_for_even_if_fewer_look_natural():
    assert top_group([-1.0, -1.5, -9.0], 3) == [True, False, False]
    assert top_group([-1.0, -1.5, -9.0], 2) == [True, True, False]
    assert top_group([-1.0, -1.5, -9.0], 1) == [True, True, True]
    assert top_group([-1.0, -1.5, -9.0], 100) == [True, False, False]


def test_violators_are_the_boundary_and_equality_violates():
    logps = torch.tensor([[-3.0, -2.0, -3.0, -4.0, -9.0], [-1.0, -2.0, -2.1, -8.0, -9.0]])
    assert boundary(logps).tolist() == [[True, True, False, False], [True, True, False, False]]


def test_absent_negatives_are_never_selected_and_change_nothing():
    generator = torch.Generator().manual_seed(0)
    logps = torch.randn(64, 12, generator=generator) * 4 - 10
    logps[:, 0] += 5
    mask = torch.rand(64, 11, generator=generator) < 0.6
    mask[:, 4] = True
    for junk in (math.inf, -math.inf, math.nan, 1e30):
        filled = logps.clone()
        filled[:, 1:][~mask] = junk
        selected = boundary(filled, mask)
        assert not (selected & ~mask).any()
        strength = dual_margin_beta(filled, selected, 0.3, 2.0, mask)
        for row in range(64):
            present = torch.cat([torch.tensor([True]), mask[row]])
            alone = logps[row : row + 1, present]
            assert torch.equal(selected[row, mask[row]], boundary(alone)[0])
            torch.testing.assert_close(
                strength[row, mask[row]], dual_margin_beta(alone, boundary(alone), 0.3, 2.0)[0], rtol=1e-6, atol=0
            )
            assert (strength[row, ~mask[row]] == 0).all()


def test_a_log_prob_of_minus_infinity_says_absent_as_a_mask_does():
    logps = torch.tensor([[0.0, -1.0, -math.inf, -1.2, -7.0]])
    mask = torch.tensor([[True, False, True, True]])
    assert torch.equal(boundary(logps), boundary(logps, mask))
    assert boundary(logps, clusters=2).tolist() == [[True, False, True, False]]


@given(
    st.lists(st.integers(-80, 0), min_size=1, max_size=19).map(lambda row: [value / 8 for value in row]),
    st.integers(-80, 0).map(lambda value: value / 8),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_permuting_negatives_permutes_boundary_and_beta(negatives, chosen, clusters, shuffler):
    order = list(range(len(negatives)))
    shuffler.shuffle(order)
    logps = torch.tensor([[chosen, *negatives]], dtype=torch.float64)
    shuffled = torch.tensor([[chosen, *(negatives[place] for place in order)]], dtype=torch.float64)
    selected, selected_shuffled = boundary(logps, clusters=clusters), boundary(shuffled, clusters=clusters)
    assert torch.equal(selected[:, order], selected_shuffled)
    torch.testing.assert_close(
        dual_margin_beta(logps, selected, 1.0, 6.0)[:, order],
        dual_margin_beta(shuffled, selected_shuffled, 1.0, 6.0),
        rtol=1e-12,
        atol=0,
    )


def dual_margin_by_hand(chosen: float, negatives: list[float], selected: list[bool], beta: float, margin: float):
    others = [s for s, keep in zip(negatives, selected, strict=True) if not keep] or negatives
    m = math.fsum(others) / len(others)
    strengths = []
    for s in negatives:
        plus, minus = chosen - s, s - m
        scale = abs(plus) + abs(minus)
        strengths.append(beta * (1 + 0.5 * math.tanh((plus - minus - margin) / scale)) if scale else beta)
    return strengths


@pytest.mark.parametrize("margin", [0.0, 2.0, 6.0])
def test_dual_margin_beta_is_its_formula(margin):
    logps = torch.randn(50, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 3 - 9
    logps[0, 1:] += 20  # every negative violates: D = B
    selected = boundary(logps)
    expected = [
        dual_margin_by_hand(row[0], row[1:], keep, 0.7, margin)
        for row, keep in zip(logps.tolist(), selected.tolist(), strict=True)
    ]
    strengths = dual_margin_beta(logps, selected, 0.7, margin)
    torch.testing.assert_close(strengths, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("value", [0.0, -1.1, -1e4 + 1 / 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("negatives", [1, 3, 19])
def test_a_zero_denominator_leaves_beta(value, dtype, negatives):
    """Rounding in a mean of equal numbers would make β/2 of it."""
    logps = torch.full((1, 1 + negatives), value, dtype=dtype)
    strengths = dual_margin_beta(logps, boundary(logps), 0.5, 6.0)
    assert strengths.dtype == dtype
    assert strengths.tolist() == [[0.5] * negatives]


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=12), st.floats(0, 10))
def test_violators_get_at_most_62_percent_of_beta_unless_all_negatives_violate(values, margin):
    logps = torch.tensor([[-25.0, *values, -50.5]], dtype=torch.float64)  # the last one does not violate
    violators = logps[:, 1:] >= logps[:, :1]
    assert (dual_margin_beta(logps, boundary(logps), 1.0, margin)[violators] <= 0.62).all()
    all_violate = torch.tensor([[-1.0, 0.0, -1.0]], dtype=torch.float64)
    assert dual_margin_beta(all_violate, boundary(all_violate), 1.0, 0.0)[0, 1] > 1


def test_both_are_constants_for_the_gradient():
    logps = torch.tensor([[-1.0, -2.0, -5.0]], requires_grad=True)
    selected = boundary(logps)
    assert not selected.requires_grad
    assert not dual_margin_beta(logps, selected, 1.0, 6.0).requires_grad
    assert not random(logps).requires_grad


@pytest.fixture
def ragged() -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    logps = (torch.randn(200, 20, generator=generator) * 4).round() / 2 - 10
    logps[:100, 0] += 8
    logps[:, 6:][torch.rand(200, 14, generator=generator) < 0.3] = -math.inf
    return logps


@pytest.mark.parametrize("clusters", [2, 3])
def test_random_keeps_as_many_present_negatives_as_the_boundary(clusters, ragged):
    kept = random(ragged, clusters=clusters)
    assert kept.dtype == torch.bool
    assert torch.equal(kept.sum(1), boundary(ragged, clusters=clusters).sum(1))
    assert not (kept & (ragged[:, 1:] == -math.inf)).any()


def test_the_boundary_is_its_number_of_hardest_negatives(ragged):
    """So "as many of the hardest" is no control for it."""
    kept = boundary(ragged)
    negatives = ragged[:, 1:]
    lowest_kept = negatives.masked_fill(~kept, math.inf).amin(1)
    highest_left = negatives.masked_fill(kept, -math.inf).amax(1)
    assert (lowest_kept > highest_left).all()


def test_random_differs_from_draw_to_draw_and_repeats_with_the_seed(ragged):
    torch.manual_seed(5)
    first, second = random(ragged), random(ragged)
    torch.manual_seed(5)
    again = random(ragged)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_random_draws_every_negative_equally_often():
    torch.manual_seed(0)
    logps = torch.tensor([[0.0, -1.0, -6.0, -6.0, -9.0]]).expand(4000, -1)
    shares = random(logps).double().mean(0)
    torch.testing.assert_close(shares, torch.full((4,), 0.25, dtype=torch.float64), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"clusters": 0}, r"clusters is 0: give a whole number of groups, at least 1\."),
        ({"clusters": 2.5}, r"clusters is 2\.5: give a whole number of groups, at least 1\."),
        ({"margin": -1.0}, r"DynamicPO's margin is -1\.0: give a finite number, 0 or more\."),
        ({"margin": math.nan}, r"DynamicPO's margin is nan: give a finite number, 0 or more\."),
        ({"margin": math.inf}, r"DynamicPO's margin is inf: give a finite number, 0 or more\."),
        ({"select": "hardest"}, r"DynamicPO's select is 'hardest': give True, False, or a function of log-probs\."),
        ({"adjust_beta": "on"}, r"DynamicPO's adjust_beta is 'on': give True or False\."),
    ],
)
def test_bad_settings_say_what_to_do(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        DynamicPO(**settings)


def test_boundary_refuses_no_groups():
    with pytest.raises(ValueError, match="clusters is 0"):
        boundary(torch.zeros(1, 3), clusters=0)
