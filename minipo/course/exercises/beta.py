"""Assignment 3, dual-margin β: constructions, a test of the 0.62 bound, and the recorded constant-β control."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from minipo.course.exercises.boundary import log_probs
from minipo.course.exercises.checks import Wrong, caught, task
from minipo.dynamic import boundary, dual_margin_beta
from minipo.evaluation import Interval
from minipo.experiments.records import Outcomes, difference, load_recorded

MARGIN = 6.0  # γ in the constructions
BOUND = 1 - math.tanh(1) / 2  # 0.6192

# ------------------------------------------------------------------------------------------------------- constructions


@dataclass(frozen=True)
class _Negative:
    """A boundary negative of a row, with the parts of its β."""

    column: int
    violates: bool
    plus: float
    minus: float
    ratio: float  # β_k / β

    @property
    def above_the_line(self) -> float:
        return self.plus - self.minus - MARGIN

    @property
    def below_the_line(self) -> float:
        return abs(self.plus) + abs(self.minus)

    def __str__(self) -> str:
        x = "undefined (0 below the line)"
        if self.below_the_line:
            x = _number(self.above_the_line / self.below_the_line)
        margins = f"Δ⁺ = {_number(self.plus)}, Δ⁻ = {_number(self.minus)}"
        return f"negative {self.column}: {margins}, x = {x}, β_k = {self.ratio:.3f} β"


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _kept(logps: Tensor) -> list[list[_Negative]]:
    """Each row's boundary negatives."""
    kept = boundary(logps)
    strength = dual_margin_beta(logps, kept, 1.0, MARGIN)
    rows = []
    for values, inside, ratio in zip(logps, kept, strength, strict=True):
        chosen, negatives = values[0], values[1:]
        discriminative = negatives if inside.all() else negatives[~inside]
        plus, minus = chosen - negatives, (negatives - chosen) - (discriminative - chosen).mean()
        rows.append(
            [
                _Negative(k + 1, bool(plus[k] <= 0), plus[k].item(), minus[k].item(), ratio[k].item())
                for k in inside.nonzero().flatten().tolist()
            ]
        )
    return rows


@task("3.1 half")
def _half(answer: Any) -> str:
    (kept,) = _kept(log_probs(answer, rows=1))
    least = min(kept, key=lambda negative: negative.ratio)
    if least.ratio > 0.51:
        graver = " Raising a violator further does not help: then x goes to −1, and β_k to 0.619 β."
        raise Wrong(
            f"The smallest β of the boundary is that of {least}. That is above 0.51 β: tanh comes near −1 only where x "
            f"is −2.3 or less.{graver if least.violates and least.minus >= 0 else ''} What makes a fraction with −γ "
            "above the line large?"
        )
    return f"The smallest is that of {least}."


@task("3.2 equal")
def _equal(answer: Any) -> str:
    zero_above, zero_below = _kept(log_probs(answer, rows=2))
    nearest = min(zero_above, key=lambda negative: (negative.below_the_line == 0, abs(negative.ratio - 1)))
    if nearest.below_the_line == 0:
        raise Wrong(f"Row 0 has {nearest}. That is row 1's case: in row 0 the denominator must not be 0.")
    if abs(nearest.ratio - 1) > 1e-6:
        raise Wrong(
            f"In row 0 the nearest to β is {nearest}. For β_k = β the numerator Δ⁺ − Δ⁻ − γ must be 0; it is "
            f"{_number(nearest.above_the_line)} with γ = {MARGIN:g}."
        )
    least = min(zero_below, key=lambda negative: negative.below_the_line)
    if least.below_the_line > 0:
        raise Wrong(
            f"In row 1 no boundary negative has |Δ⁺| + |Δ⁻| = 0; the smallest is {_number(least.below_the_line)}, of "
            f"{least}. Δ⁺ = 0 says where s_k is, and Δ⁻ = 0 where the mean of the discriminative ones is. With Δ⁺ = 0 "
            "the negative is a violator: who can be left out, and on which side of s_k?"
        )
    return f"Row 0 has {nearest}; row 1 has {least}."


@task("3.3 above")
def _above(answer: Any) -> str:
    (kept,) = _kept(log_probs(answer, rows=1))
    most = max(kept, key=lambda negative: negative.ratio)
    if most.ratio < 1.3:
        raise Wrong(
            f"The largest β of the boundary is that of {most}. It must be 1.3 β or more: Δ⁺ must exceed Δ⁻ + γ by "
            "much, compared with |Δ⁺| + |Δ⁻|. "
            + (
                "A negative above the chosen item has Δ⁺ ≤ 0: it is not the mistakes that are pushed hardest. Who is?"
                if most.violates
                else "How far below the chosen item must a negative be, and how near to the others?"
            )
        )
    return f"The largest is that of {most}. That negative is {_number(most.plus)} nats below the chosen item."


@task("3.4 exception")
def _exception(answer: Any) -> str:
    (kept,) = _kept(log_probs(answer, rows=1))
    violators = [negative for negative in kept if negative.violates]
    if not violators:
        raise Wrong(
            "The row has no violator: no negative is at or above the chosen item. The bound speaks of violators."
        )
    violators = [negative for negative in violators if negative.below_the_line > 0]
    if not violators:
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


_ONE_VIOLATOR, _TWO_VIOLATORS = [0.0, 1.0, -3.0, -6.0], [0.0, 1.0, 30.0, -2.0]
# Of each task: the planted strength, a row, β and γ at which it is wrong, and what to say before and after its value.
_PLANTED: dict[str, tuple[Strength, list[float], float, str, str]] = {
    "3.5 strength P": (
        _strength_p, _ONE_VIOLATOR, 1.0,
        "At γ = 0 it is right. At γ = 6 it gives the violator", "Which γ does your test use?",
    ),
    "3.6 strength Q": (
        _strength_q, _TWO_VIOLATORS, 1.0,
        "It keeps the bound in every row with one violator. With γ = 6 it gives the lower violator",
        "Do your rows have several violators, far apart?",
    ),
    "3.7 strength R": (
        _strength_r, _ONE_VIOLATOR, 2.0,
        "At β = 1 it is right. At β = 2 and γ = 6 it gives the violator", "Which β does your test use?",
    ),
}  # fmt: skip


def _caught(name: str, test: Callable[[Strength], Any]) -> str:
    planted, row, beta, where, question = _PLANTED[name]
    advice = (
        "The bound is claimed where Δ⁺ ≤ 0 ≤ Δ⁻ (not both 0) and γ ≥ 0, and nowhere else: not for negatives below the "
        "chosen item, and not for every violator where nobody is left out. Allow for rounding, too."
    )
    missed = (
        f"The planted strength passed your test. {where} of the row {row} {_first(planted, row, beta, 6.0)}, where "
        f"{_first(right, row, beta, 6.0)} is right and the bound is {BOUND:.3f} β. {question}"
    )
    return caught(test, "test_bound(strength)", {"the right dual-margin β": right}, advice, planted, missed)


for _name in _PLANTED:
    task(_name)(partial(_caught, _name))


# ----------------------------------------------------------------------------------------------- the constant-β control

COMPARISONS = {
    "β without selection": "β alone minus plain",
    "β with selection": "DynamicPO minus selection alone",
    "selection": "selection alone minus plain",
}
_WORDS = ("helps", "hurts", "no clear difference")


@cache
def _recorded(negatives: int) -> dict[str, Interval]:
    """The three comparisons for DMPO, HR@1 on the test users, from the recorded grids."""
    objectives, parts = load_recorded("objectives"), load_recorded("parts")

    def part(select: str, adjust_beta: str) -> Outcomes:
        return parts.outcomes(objective="dmpo", negatives=negatives, select=select, adjust_beta=adjust_beta)

    plain = objectives.outcomes(objective="dmpo", negatives=negatives, dynamic="off")
    both = objectives.outcomes(objective="dmpo", negatives=negatives, dynamic="on")
    return {
        "β without selection": difference(part("off", "on"), plain),
        "β with selection": difference(both, part("on", "off")),
        "selection": difference(part("on", "off"), plain),
    }


def _points(interval: Interval) -> str:
    values = (f"{100 * value:+.2f}" for value in (interval.mean, interval.low, interval.high))
    return "{} [{}, {}] points".format(*values).replace("-", "−")


def _dictionary(answer: Any, what: str) -> dict[str, Any]:
    given = answer() if callable(answer) else answer
    if not isinstance(given, dict) or set(given) != set(COMPARISONS):
        raise Wrong(f"Give a dict from each of {', '.join(map(repr, COMPARISONS))} to {what}.")
    return given


def _interval(comparison: str, value: Any) -> Interval:
    try:
        return value if isinstance(value, Interval) else Interval(*(float(number) for number in value))
    except (TypeError, ValueError):
        raise Wrong(
            f"Under {comparison!r} you give {value!r}: give what `difference` returns, or (mean, low, high)."
        ) from None


@task("3.8 intervals")
def _intervals(answer: Any) -> str:
    given = _dictionary(answer, "an interval")
    for comparison, wanted in _recorded(19).items():
        found, other = _interval(comparison, given[comparison]), _recorded(5)[comparison]
        off = abs(found.mean - wanted.mean)
        says = f"For {comparison!r}, which is {COMPARISONS[comparison]}, you give {_points(found)}."
        if off > 1e-6:
            if abs(found.mean + wanted.mean) < 1e-6:
                hint = "The size is right and the sign is turned: which side is subtracted?"
            elif abs(found.mean - other.mean) < 1e-6:
                hint = "Those are the runs with 5 negatives; take 19."
            elif abs(found.mean - 100 * wanted.mean) < 1e-4:
                hint = "Leave the numbers as `difference` returns them, in shares and not in points."
            else:
                hint = "The mean is another one: which runs are on either side? Print the settings of the two."
            raise Wrong(f"{says} {hint}")
        if max(abs(found.low - wanted.low), abs(found.high - wanted.high)) > 5e-4:
            raise Wrong(
                f"{says} The mean is right, the interval is {_points(wanted)}. Every user and seed is on both "
                "sides: use the paired interval."
            )
    return "; ".join(f"{name}: {_points(interval)}" for name, interval in _recorded(19).items()) + "."


@task("3.9 reading")
def _reading(answer: Any) -> str:
    given = _dictionary(answer, "one of " + ", ".join(map(repr, _WORDS)))
    for comparison, interval in _recorded(19).items():
        word = given[comparison]
        if word not in _WORDS:
            raise Wrong(f"Under {comparison!r} you give {word!r}: give one of {', '.join(map(repr, _WORDS))}.")
        if word != _word(interval):
            why = (
                "The interval includes zero: the runs show neither a gain nor a loss, whatever the sign of the mean."
                if _word(interval) == _WORDS[2]
                else "The interval excludes zero: which way does it lie?"
            )
            raise Wrong(f"You read {comparison!r} as {word!r}; it is recorded as {_points(interval)}. {why}")
    return "This is what these runs show, with DMPO and 19 negatives, in this catalogue."


def _word(interval: Interval) -> str:
    if interval.low > 0:
        return "helps"
    return "hurts" if interval.high < 0 else "no clear difference"
