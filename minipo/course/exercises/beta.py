"""Assignment 3, dual-margin β: constructions, a test of the 0.62 bound, and the recorded constant-β control."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minipo.course.exercises.boundary import log_probs
from minipo.course.exercises.checks import Wrong, check_interval, check_reading, dictionary, in_points, plant, task
from minipo.dynamic import boundary, dual_margin_beta
from minipo.evaluation import Interval
from minipo.experiments.records import difference, load_recorded

MARGIN = 6.0  # γ in the constructions
BOUND = 1 - math.tanh(1) / 2  # 0.6192

# ------------------------------------------------------------------------------------------------------- constructions


class _Negative(NamedTuple):
    """A boundary negative of a row, with the parts of its β: x = above / below the fraction's line."""

    column: int
    plus: float  # a violator's is 0 or below
    minus: float
    above: float
    below: float
    ratio: float  # β_k / β

    def __str__(self) -> str:
        x = _number(self.above / self.below) if self.below else "undefined (0 below the line)"
        margins = f"Δ⁺ = {_number(self.plus)}, Δ⁻ = {_number(self.minus)}"
        return f"negative {self.column}: {margins}, x = {x}, β_k = {self.ratio:.3f} β"


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _kept(answer: Any, rows: int) -> list[list[_Negative]]:
    """The boundary negatives of each row of an answer."""
    logps = log_probs(answer, rows)
    kept = boundary(logps)
    plus = logps[:, :1] - logps[:, 1:]
    left_out = ~kept | kept.all(1, keepdim=True)  # where there is no discriminative one, m is the mean of all
    minus = (plus * left_out).sum(1, keepdim=True) / left_out.sum(1, keepdim=True) - plus
    above, below = plus - minus - MARGIN, plus.abs() + minus.abs()
    parts = torch.stack([plus, minus, above, below, dual_margin_beta(logps, kept, 1.0, MARGIN)], dim=2).tolist()
    return [
        [_Negative(k + 1, *row[k]) for k in inside.nonzero().flatten().tolist()]
        for row, inside in zip(parts, kept, strict=True)
    ]


@task("3.1 half")
def _half(answer: Any) -> str:
    (kept,) = _kept(answer, rows=1)
    least = min(kept, key=lambda negative: negative.ratio)
    if least.ratio > 0.51:
        graver = " Raising a violator further does not help: then x goes to −1, and β_k to 0.619 β."
        raise Wrong(
            f"The smallest β of the boundary is that of {least}. That is above 0.51 β: tanh comes near −1 only where x "
            f"is −2.3 or less.{graver if least.plus <= 0 and least.minus >= 0 else ''} What makes a fraction with −γ "
            "above the line large?"
        )
    return f"The smallest is that of {least}."


@task("3.2 equal")
def _equal(answer: Any) -> str:
    zero_above, zero_below = _kept(answer, rows=2)
    nearest = min(zero_above, key=lambda negative: (negative.below == 0, abs(negative.ratio - 1)))
    if nearest.below == 0:
        raise Wrong(f"Row 0 has {nearest}. That is row 1's case: in row 0 the denominator must not be 0.")
    if abs(nearest.ratio - 1) > 1e-6:
        raise Wrong(
            f"In row 0 the nearest to β is {nearest}. For β_k = β the numerator Δ⁺ − Δ⁻ − γ must be 0; it is "
            f"{_number(nearest.above)} with γ = {MARGIN:g}."
        )
    least = min(zero_below, key=lambda negative: negative.below)
    if least.below > 0:
        raise Wrong(
            f"In row 1 no boundary negative has |Δ⁺| + |Δ⁻| = 0; the smallest is {_number(least.below)}, of "
            f"{least}. Δ⁺ = 0 says where s_k is, and Δ⁻ = 0 where the mean of the discriminative ones is. With Δ⁺ = 0 "
            "the negative is a violator: who can be left out, and on which side of s_k?"
        )
    return f"Row 0 has {nearest}; row 1 has {least}."


@task("3.3 above")
def _above(answer: Any) -> str:
    (kept,) = _kept(answer, rows=1)
    most = max(kept, key=lambda negative: negative.ratio)
    if most.ratio < 1.3:
        raise Wrong(
            f"The largest β of the boundary is that of {most}. It must be 1.3 β or more: Δ⁺ must exceed Δ⁻ + γ by "
            "much, compared with |Δ⁺| + |Δ⁻|. "
            + (
                "A negative above the chosen item has Δ⁺ ≤ 0: it is not the mistakes that are pushed hardest. Who is?"
                if most.plus <= 0
                else "How far below the chosen item must a negative be, and how near to the others?"
            )
        )
    return f"The largest is that of {most}. That negative is {_number(most.plus)} nats below the chosen item."


@task("3.4 exception")
def _exception(answer: Any) -> str:
    (kept,) = _kept(answer, rows=1)
    if not (violators := [negative for negative in kept if negative.plus <= 0]):
        raise Wrong(
            "The row has no violator: no negative is at or above the chosen item. The bound speaks of violators."
        )
    if not (violators := [negative for negative in violators if negative.below > 0]):
        raise Wrong(
            "Every negative equals the chosen item: β_k = β, for want of a denominator, as in 3.2. The bound leaves "
            "that case out. Find one with Δ⁻ below 0."
        )
    most = max(violators, key=lambda negative: negative.ratio)
    if most.ratio <= BOUND:
        raise Wrong(
            f"The bound holds: the violator with the largest β is {most}, and the bound is {BOUND:.3f} β. Its Δ⁻ is "
            f"{'not negative, and your proof used just that' if most.minus >= 0 else 'negative, but not by enough'}. "
            "Whose mean is m where nobody is left out?"
        )
    return (
        f"An exception: {most}, above {BOUND:.3f} β. Its Δ⁻ is negative, for m is the mean of the violators themselves."
    )


# ------------------------------------------------------------------------------------------ the bound, and a test of it

Strength = Callable[[Tensor, float, float], Tensor]  # log-probs (B, 1 + K), β, γ → β_k of every negative (B, K)


def right(logps: Tensor, beta: float, margin: float) -> Tensor:
    """Dual-margin β of every negative, (rows, negatives): the library's, with DynamicPO's own boundary."""
    return dual_margin_beta(logps, boundary(logps), beta, margin)


def _strength_p(logps: Tensor, beta: float, margin: float) -> Tensor:
    return dual_margin_beta(logps, boundary(logps), beta, -margin)


def _strength_q(logps: Tensor, beta: float, margin: float) -> Tensor:
    return dual_margin_beta(logps, torch.ones_like(logps[:, 1:], dtype=torch.bool), beta, margin)


def _strength_r(logps: Tensor, beta: float, margin: float) -> Tensor:
    return beta - 1 + dual_margin_beta(logps, boundary(logps), 1.0, margin)


def _first(strength: Strength, row: list[float], beta: float, margin: float) -> str:
    """β_k of a row's first negative as a multiple of β."""
    return f"{strength(torch.tensor([row], dtype=torch.float64), beta, margin)[0, 0].item() / beta:.3f} β"


def _plant(name: str, planted: Strength, row: list[float], beta: float, where: str, question: str) -> None:
    """row, beta: where, with γ = 6, the planted strength is wrong. where, question: around its value in a message."""
    advice = (
        "The bound is claimed where Δ⁺ ≤ 0 ≤ Δ⁻ (not both 0) and γ ≥ 0, and nowhere else: not for negatives below the "
        "chosen item, and not for every violator where nobody is left out. Allow for rounding, too."
    )
    missed = (
        f"The planted strength passed your test. {where} of the row {row} {_first(planted, row, beta, MARGIN)}, where "
        f"{_first(right, row, beta, MARGIN)} is right and the bound is {BOUND:.3f} β. {question}"
    )
    plant(name, "test_bound(strength)", planted, {"the right dual-margin β": right}, advice, missed)


_where = "At γ = 0 it is right. At γ = 6 it gives the violator"
_plant("3.5 strength P", _strength_p, [0.0, 1.0, -3.0, -6.0], 1.0, _where, "Which γ does your test use?")
_where = "It keeps the bound in every row with one violator. With γ = 6 it gives the lower violator"
_question = "Do your rows have several violators, far apart?"
_plant("3.6 strength Q", _strength_q, [0.0, 1.0, 30.0, -2.0], 1.0, _where, _question)
_where = "At β = 1 it is right. At β = 2 and γ = 6 it gives the violator"
_plant("3.7 strength R", _strength_r, [0.0, 1.0, -3.0, -6.0], 2.0, _where, "Which β does your test use?")


# ----------------------------------------------------------------------------------------------- the constant-β control

COMPARISONS = {
    "β without selection": "β alone minus plain",
    "β with selection": "DynamicPO minus selection alone",
    "selection": "selection alone minus plain",
}
UNDECIDED = "no clear difference"


@cache
def _recorded(negatives: int) -> dict[str, Interval]:
    """The three comparisons for DMPO, HR@1 on the test users, from the recorded grids."""
    run: dict[str, Any] = {"objective": "dmpo", "negatives": negatives}
    objectives, parts = load_recorded("objectives"), load_recorded("parts")
    plain, both = (objectives.outcomes(**run, dynamic=dynamic) for dynamic in ("off", "on"))
    selection = parts.outcomes(**run, select="on", adjust_beta="off")
    beta = parts.outcomes(**run, select="off", adjust_beta="on")
    return {
        "β without selection": difference(beta, plain),
        "β with selection": difference(both, selection),
        "selection": difference(selection, plain),
    }


@task("3.8 intervals")
def _intervals(answer: Any) -> str:
    given = dictionary(answer, COMPARISONS, "an interval")
    for comparison, wanted in _recorded(19).items():
        check_interval(
            f"For {comparison!r}, which is {COMPARISONS[comparison]},", given[comparison], wanted,
            {
                "The size is right and the sign is turned: which side is subtracted?": [-wanted.mean],
                "Those are the runs with 5 negatives; take 19.": [_recorded(5)[comparison].mean],
                "Leave the numbers as `difference` returns them, in shares and not in points.": [100 * wanted.mean],
            },
            "which runs are on either side? Print the settings of the two.",
            "every user and seed is on both sides: use the paired interval.",
        )  # fmt: skip
    return "; ".join(f"{name}: {in_points(interval)}" for name, interval in _recorded(19).items()) + "."


@task("3.9 reading")
def _reading(answer: Any) -> str:
    given = dictionary(answer, COMPARISONS, f"one of 'helps', 'hurts' and {UNDECIDED!r}")
    for comparison, interval in _recorded(19).items():
        question = "What do the runs show of a gain or a loss, whatever the sign of the mean?"
        check_reading(f"Of {comparison!r}", given[comparison], interval, UNDECIDED, question)
    return "This is what these runs show, with DMPO and 19 negatives, in this catalogue."
