"""Assignment 4, push by hand: an answer is compared with `minipo.preference_push` on a recorded run and, if it differs,
with the results of common mistakes."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from minipo.course.exercises.checks import Wrong, dictionary, task
from minipo.preference import preference_push

USER, MISTAKE = 4036, "Twangy Compasses"  # stays above the chosen item in the recorded run
OTHERS = (4060, 4053, 4000)
STEPS = (0, 100, 200, 300)
ROUNDING = 1e-4  # of a number's size: float32 in an answer is fine


@cache
def recorded_probe() -> pd.DataFrame:
    """The probe of a recorded run: DMPO, K = 19, no DynamicPO, seed 0; see `minipo.course.diagnostics.moments`."""
    from minipo.experiments.files import read_parquet
    from minipo.experiments.records import load_recorded

    grid = load_recorded("objectives")
    (run,) = grid.rows(objective="dmpo", negatives=19, dynamic="off", seed=0).index
    return read_parquet(grid.probes[run])


@dataclass(frozen=True)
class Seen:
    """A user's candidates at one step of the recorded run, the chosen item first; log-probs in nats, float64."""

    items: tuple[str, ...]
    policy: Float[Tensor, " candidates"]
    reference: Float[Tensor, " candidates"]


def recorded(user: int = USER, step: int = 300) -> Seen:
    """The recorded run's log-probs of `user` at `step`. Raises ValueError if they were not recorded."""
    lines = recorded_probe().query("user == @user and step == @step").sort_values("candidate")
    if lines.empty:
        users = recorded_probe()["user"]
        raise ValueError(
            f"User {user} was not recorded at step {step}: take a user from {users.min()} to {users.max()} and a step "
            f"of {', '.join(map(str, STEPS))}."
        )
    policy, reference = torch.tensor(lines[["policy", "reference"]].to_numpy("float64")).T.contiguous()
    return Seen(tuple(lines["item"]), policy, reference)


# ------------------------------------------------------------------------------------------------- comparing numbers

# By what is asked for: the numbers, and for each mistake its result and a message ({yours}, of negative {place}).
Formula = Callable[[Seen, float], dict[str, tuple[Tensor, Sequence[tuple[Any, str]]]]]


def _everywhere(formula: Formula, function: Callable[..., Any]) -> None:
    """Compare a function with a formula of log-probs and β; one of several numbers is given the margins instead."""
    for user, step, beta, negatives in [
        (USER, 300, 1.0, 19),
        (USER, 300, 0.5, 19),
        (USER, 100, 2.0, 19),
        *((user, step, 0.5, 19) for user in OTHERS for step in (100, 300)),
        (USER, 300, 1.0, 5),
        (USER, 300, 0.5, 1),
    ]:
        seen = recorded(user, step)
        kept = slice(1 + negatives)
        seen = Seen(seen.items[kept], seen.policy[kept], seen.reference[kept])
        where = f"User {user}, step {step}, K = {negatives}, β = {beta:g}"
        wanted = formula(seen, beta)
        if len(wanted) == 1:
            found = [function(seen.policy.clone(), seen.reference.clone(), beta)]
        else:
            found = function(_margins(seen, beta))
            if not isinstance(found, (tuple, list)) or len(found) != len(wanted):
                what = " and ".join(wanted)
                raise Wrong(f"Your function returned {type(found).__name__}: return two things, {what}.")
            where += f", z = {-wanted['saturation'][0][0].logit():.2f}".replace("-", "−")
        for (what, (truth, mistakes)), answer in zip(wanted.items(), found, strict=True):
            numbers = _numbers(answer, truth, f"The {what}")
            if _same(numbers, truth):
                continue
            place = int((numbers - truth).abs().argmax())
            yours = f"{numbers[place]:.4g}".replace("-", "−")
            for result, why in mistakes:
                if _same(numbers, result):
                    raise Wrong(f"{where}: {why.format(yours=yours, place=place + 1)}")
            ratio = (numbers[place] / truth[place]).item() if truth[place] else math.inf
            raise Wrong(
                f"{where}: the {what} of negative {place + 1} is {yours}, {ratio:.3g} times what the loss gives. Take "
                "the formula apart, one factor at a time."
            )


def _numbers(answer: Any, wanted: Tensor, what: str) -> Tensor:
    """An answer as float64 of `wanted`'s shape, one number standing for all; `Wrong` if it is none."""
    try:
        numbers = torch.as_tensor(answer).detach().double()
        if numbers.numel() == 1:
            return numbers.reshape(()).expand_as(wanted)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{what} is {type(answer).__name__}: give a tensor of {wanted.numel()} numbers.") from None
    if numbers.numel() == wanted.numel() + 1:
        raise Wrong(
            f"{what} has {numbers.numel()} numbers for {wanted.numel()} negatives: the chosen item is not a "
            "negative, and has no number of its own."
        )
    if numbers.numel() != wanted.numel():
        raise Wrong(f"{what} has {numbers.numel()} numbers: give one for each of the {wanted.numel()} negatives.")
    if numbers.isnan().any():
        raise Wrong(f"{what} holds nan: is there a 0 / 0, or ∞ − ∞?")
    return numbers.reshape(wanted.shape)


def _same(left: Tensor, right: Any) -> bool:
    return torch.allclose(left, torch.as_tensor(right).double().expand_as(left), rtol=ROUNDING, atol=1e-9)


def _margins(seen: Seen, beta: float) -> Tensor:
    ratio = seen.policy - seen.reference
    return beta * (ratio[0] - ratio[1:])


def _library(objective: str, seen: Seen, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Push, dilution (or share) and saturation of each negative."""
    found = preference_push(objective, seen.policy[None], seen.reference[None], beta)
    return found.push[0], found.dilution[0], found.saturation[0]


def _factors(answer: Any, keys: Iterable[str]) -> dict[str, float]:
    given = dictionary(answer, keys, "a number")
    try:
        return {key: float(value) for key, value in given.items()}
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"Give one number for each of {', '.join(keys)}.") from None


# ----------------------------------------------------------------------------------------------------------- the push


@task("4.1 prediction")
def _prediction(answer: Any) -> str:
    given = _factors(answer, ("dilution", "saturation", "together"))
    seen = recorded()
    number = seen.items.index(MISTAKE)
    only = Seen((seen.items[0], MISTAKE), seen.policy[[0, number]], seen.reference[[0, number]])
    among, alone = _library("dmpo", seen, 1.0), _library("dmpo", only, 1.0)
    truth = {
        name: (alone[part][0] / among[part][number - 1]).item()
        for part, name in enumerate(("together", "dilution", "saturation"))
    }
    for name, factor in given.items():
        if factor < 1:
            raise Wrong(f"{name!r} is {factor:g}: the question is how many times *smaller*, a factor above 1.")
    if not math.isclose(given["dilution"], truth["dilution"], rel_tol=0.01):
        raise Wrong(
            f"Your dilution is {given['dilution']:g}. With one negative the mean inside σ has one term, with 19 it "
            "has 19 (the chosen item is in every term, and is none of them). What is a term's weight?"
        )
    if not 0.5 < given["saturation"] / truth["saturation"] < 2:
        raise Wrong(
            f"Your saturation is {given['saturation']:g}, not within a factor of 2. Compare σ(−z) at two z: alone, z "
            "is the mistake's own margin, below zero; among all, z is the mean margin. For large z, σ(−z) ≈ exp(−z)."
        )
    product = given["dilution"] * given["saturation"]
    if not math.isclose(given["together"], product, rel_tol=0.05):
        raise Wrong(
            f"Your factors are {given['dilution']:g} and {given['saturation']:g}, and together you have "
            f"{given['together']:g}. The push is one factor times the other: what do two reductions in turn come to?"
        )
    return (
        f"Measured: {truth['together']:.0f} times smaller, {truth['dilution']:.0f} by dilution and "
        f"{truth['saturation']:.1f} by saturation."
    )


@task("4.2 margins", "margins(policy, reference, beta)")
def _check_margins(function: Any) -> str:
    def formula(seen: Seen, beta: float) -> Any:
        truth = _margins(seen, beta)
        one_side = beta * (seen.policy[0] - seen.reference[0]) - (seen.policy - seen.reference)[1:]
        return {"margin": (truth, [
            (-truth, "the signs are turned round. An item that fell behind the chosen one since SFT has a margin above "
             "zero; yours of negative {place} is {yours}."),
            (beta * (seen.policy[0] - seen.policy[1:]), "these are differences of log-probs, {yours} for negative "
             "{place}. At step 0 every margin is zero: against what is a log-ratio measured?"),
            (truth / beta, "β is missing: yours are the same at any strength, {yours} for negative {place}."),
            (truth * beta, "β is in there twice: {yours} for negative {place}."),
            (one_side, "β multiplies only one side, {yours} for negative {place}: it scales the whole difference."),
        ])}  # fmt: skip

    _everywhere(formula, function)
    seen = recorded()
    margins = _margins(seen, 1.0)
    own = margins[seen.items.index(MISTAKE) - 1]
    return f"At step 300 {MISTAKE} has {own:.2f} and the mean of all is {margins.mean():.2f}.".replace("-", "−")


@task("4.3 DMPO", "dmpo_parts(margins)")
def _check_dmpo_parts(function: Any) -> str:
    def formula(seen: Seen, beta: float) -> Any:
        margins = _margins(seen, beta)
        number, z = len(margins), margins.mean()
        _, share, left = _library("dmpo", seen, beta)
        return {
            "dilution": (share, [
            (1.0, "your dilution is {yours}, so that no negative loses anything to the others. What is ∂z/∂d_k, when z "
             "is the mean?"),
            (1 / (number + 1), f"your dilution is {{yours}}, one part in {number + 1}: the chosen item is in each "
             "margin, and has none of its own."),
            (1 / 19, "your dilution is {yours}, whatever K is: count the margins."),
            (torch.softmax(-margins, 0), "your dilution is {yours} for negative {place}: it depends on the margins. A "
             "mean treats all alike; which objective does not?"),
            ]),
            "saturation": (left, [
            (torch.sigmoid(z), "your saturation is σ(z), and it should fall as z grows: you have {yours}. What is the "
             "derivative of −log σ(z)?"),
            (torch.sigmoid(-margins), "your saturation takes each margin on its own, {yours} for negative {place}, as "
             "DPO does. In DMPO one z is inside σ, the same for all."),
            (torch.sigmoid(-margins.sum()), "your saturation takes the sum of the margins, which is MPPO's z: {yours}. "
             "DMPO's is the mean."),
            (torch.sigmoid(z) * torch.sigmoid(-z), "your saturation is {yours}, the derivative of σ(z). The loss is "
             "−log σ(z); differentiate that."),
            ]),
        }  # fmt: skip

    _everywhere(formula, function)
    _, share, left = _library("dmpo", recorded(), 1.0)
    return f"At step 300: dilution {share[0]:.4f} for each negative, saturation {left[0]:.4f} for all of them."


@task("4.4 push", "dmpo_push(policy, reference, beta)")
def _check_push(function: Any) -> str:
    def formula(seen: Seen, beta: float) -> Any:
        truth, share, left = _library("dmpo", seen, beta)
        turned = share * beta * (1 - left)
        return {"push": (truth, [
            (-truth, "you have minus the push, {yours}. Push is the speed at which descending the loss lowers a "
             "negative: positive, where training pushes down."),
            (truth / beta, "β is missing: {yours} for negative {place}. Before it reaches s_k, the chain rule goes "
             "through d_k."),
            (truth * beta, "β is in there twice: {yours} for negative {place}. It is in the margins that σ takes, "
             "and once more where the chain rule goes from d_k to s_k; nowhere else."),
            (truth / share, "the dilution is missing: {yours}, as if each negative had the sigmoid to itself."),
            (truth * share, "the dilution is in there twice: {yours} for negative {place}."),
            (truth / left, "the saturation is missing: {yours}, the same at every step of training."),
            (turned, "your push, {yours}, grows as the row gets easier: σ(z) in the place of σ(−z)."),
            (turned / share, "the dilution is missing, and σ(z) is in the place of σ(−z): {yours}."),
        ])}  # fmt: skip

    _everywhere(formula, function)
    seen = recorded()
    number = seen.items.index(MISTAKE) - 1
    dmpo, dpo, sdpo = (float(_library(name, seen, 1.0)[0][number]) for name in ("dmpo", "dpo", "sdpo"))
    return (
        f"At step 300 {MISTAKE} is pushed with {dmpo:.4f}. On the same log-probs DPO would push with {dpo:.4f}, S-DPO "
        f"with {sdpo:.4f}."
    )


@task("4.5 S-DPO", "sdpo_parts(margins)")
def _check_sdpo_parts(function: Any) -> str:
    def formula(seen: Seen, beta: float) -> Any:
        margins = _margins(seen, beta)
        z = -torch.logsumexp(-margins, 0)
        _, share, left = _library("sdpo", seen, beta)
        return {
            "share": (share, [
            (torch.softmax(margins, 0), "your shares turn to the easy ones; negative {place} has {yours}. Which "
             "margins does a soft *minimum* listen to?"),
            (1 / len(margins), "your shares are equal, {yours}: that is the mean's. What is the derivative of "
             "−log Σ exp(−d)?"),
            (torch.exp(-margins), "your shares, {yours} for negative {place}, do not add up to 1. What does the "
             "derivative of the logarithm put below them?"),
            (torch.sigmoid(-margins), "your share of negative {place} is {yours}, its own saturation: that is DPO's. "
             "S-DPO's shares add up to 1."),
            ]),
            "saturation": (left, [
            (torch.sigmoid(z), "your saturation is {yours}, which is σ(z): a sign is lost, either in σ(−z) or in "
             "z = −log Σ exp(−d)."),
            (torch.sigmoid(-margins.mean()), "your saturation takes the mean margin, {yours}: that is DMPO's z. "
             "S-DPO's is the soft minimum."),
            (torch.sigmoid(-margins.min()), "your saturation takes only the smallest margin, {yours}: the minimum is "
             "soft, and the others pull it lower."),
            (torch.sigmoid(-margins), "your saturation takes each margin on its own, {yours} for negative {place}: "
             "here too one z is inside σ."),
            ]),
        }  # fmt: skip

    _everywhere(formula, function)
    seen = recorded()
    number = seen.items.index(MISTAKE) - 1
    _, share, left = _library("sdpo", seen, 1.0)
    return f"At step 300 {MISTAKE} has a share of {share[number]:.2f}, and the sigmoid leaves {left[number]:.2f}."


@task("4.6 fall", "fall(user, negative, start, end)")
def _fall(function: Any) -> str:
    keys = ("push", "dilution", "saturation")
    said = []
    for user, start, end in [(USER, 0, 300), (USER, 100, 300), (OTHERS[0], 100, 200), (OTHERS[1], 100, 200)]:
        before, after = recorded(user, start), recorded(user, end)
        negative = int(after.policy[1:].argmax()) + 1
        given = _factors(function(user, negative, start, end), keys)
        parts = zip(keys, _library("dmpo", before, 1.0), _library("dmpo", after, 1.0), strict=True)
        truth = {name: (left[negative - 1] / right[negative - 1]).item() for name, left, right in parts}
        hint = (
            f"z goes from {_margins(before, 1.0).mean():.2f} to {_margins(after, 1.0).mean():.2f} at β = 1. Which way "
            "must the saturation go then? And whose z is in it, the negative's own margin or the row's?"
        )
        for name in ("dilution", "saturation", "push"):
            factor = given[name]
            if math.isclose(factor, truth[name], rel_tol=ROUNDING):
                continue
            if name == "dilution":
                hint = (
                    "K is 19 before and after: within a run, what could change 1/K? (Between *runs* at K = 1 and "
                    "K = 19 it differs. This is one run.)"
                )
            elif math.isclose(factor, 1 / truth[name], rel_tol=ROUNDING):
                hint = "That is after over before. Asked is how many times smaller it became: before over after."
            raise Wrong(
                f"User {user}, negative {negative}, steps {start} to {end}: your factor of the {name} is {factor:.4g}. "
                f"{hint}"
            )
        said.append(f"{user}, {start} to {end}: {truth['push']:.3g}")
    return f"Push before over after, all of it saturation. {'; '.join(said)}. Below 1 the push has grown: z had fallen."


# ------------------------------------------------------------------------------------------- the parameters' gradient

COLUMNS = ["push_share", "norm", "cosine", "share"]


def _by_group(parts: Any) -> pd.DataFrame:
    """A table of `gradient_parts`, by group."""
    if not isinstance(parts, pd.DataFrame) or not {"group", *COLUMNS} <= set(parts.columns) or len(parts) != 2:
        raise Wrong("There is no table: run the cell above, which watches a run and calls gradient_parts.")
    return parts.set_index("group")[COLUMNS]


def _made_up() -> Iterator[pd.DataFrame]:
    """Tables as `gradient_parts` could give, in which any group may lead in any column."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        norm, cosine, push = 0.1 + torch.rand(3, 2, generator=generator).double()
        along = norm * cosine
        columns = (push / push.sum(), norm, cosine / 1.2, along / along.sum())
        yield pd.DataFrame({"group": ["boundary", "discriminative"], **dict(zip(COLUMNS, columns, strict=True))})


@task("4.7 two views", "two_views(parts)")
def _two_views(function: Any, parts: Any) -> str:
    _by_group(parts)
    truth: Any = 1.0
    for table in (*_made_up(), parts):
        groups = _by_group(table)
        given = dictionary(function(table.copy()), ("pushes", "gradient", "ratio"), "a group or a number")
        for view, column in (("pushes", "push_share"), ("gradient", "share")):
            if given[view] not in groups.index:
                known = " or ".join(groups.index)
                raise Wrong(f"{view!r} is {given[view]!r}: name the group with the larger part, {known}.")
            if given[view] != groups[column].idxmax():
                raise Wrong(
                    f"On this table {view!r} is {given[view]!r}: {groups.round(3).to_dict('index')}. What counts is "
                    "how far a part takes the whole; norm is the length of a part, in whatever direction."
                )
        boundary: Any = groups.loc["boundary"]
        truth, ratio = boundary["share"] / boundary["push_share"], float(given["ratio"])
        if not math.isclose(ratio, truth, rel_tol=0.02):
            turned = " Yours is turned round." if math.isclose(ratio, 1 / truth, rel_tol=0.02) else ""
            raise Wrong(
                f"Your ratio is {ratio:.3g}; the boundary's part of the gradient is {boundary['share']:.3f}, of the "
                f"pushes {boundary['push_share']:.3f}.{turned} Asked is the gradient's over the pushes'."
            )
    more = "more" if truth > 1 else "less"
    return f"The boundary's part of the gradient is {truth:.2f} times its part of the pushes: {more} than they say."


@task("4.8 disagreement", "disagreement(parts)")
def _disagreement(function: Any, parts: Any) -> str:
    _by_group(parts)
    hints = {
        "length": "The groups were not pushed alike: the question is length *per push*, the one over the other.",
        "direction": "How do the groups compare in pointing along the whole?",
        "total": "How far are the odds of share and those of push_share apart?",
    }
    truth: dict[str, Any] = {}
    for table in (*_made_up(), parts):
        groups = _by_group(table)
        odds = groups.loc["boundary"] / groups.loc["discriminative"]
        truth = {
            "length": odds["norm"] / odds["push_share"],
            "direction": odds["cosine"],
            "total": odds["share"] / odds["push_share"],
        }
        for name, number in _factors(function(table.copy()), truth).items():
            if not math.isclose(number, truth[name], rel_tol=1e-3):
                turned = math.isclose(number, 1 / truth[name], rel_tol=1e-3)
                shown = ", ".join(f"{column} {value:.3g}" for column, value in odds.items())
                raise Wrong(
                    f"Your {name} is {number:.3g}{', the discriminative over the boundary: turn it round' * turned}. "
                    f"Boundary over discriminative, this table has {shown}. {hints[name]}"
                )
    return (
        f"In your run {truth['total']:.2f} = {truth['length']:.2f} by length × {truth['direction']:.2f} by direction."
    )
