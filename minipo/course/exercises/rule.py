"""Assignment 5, a rule of your own: what makes a selection rule a fair partner of the boundary, and its experiment.

`experiment` trains DMPO at K = 19 under three selections, the student's, as many negatives drawn at random, and the
boundary, with the same seeds, and ranks users that no choice has used. Whatever the result, the verdict must follow
from the interval; an interval that includes zero is not a fault.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from minipo.course.exercises.checks import Wrong, check_interval, check_reading, dictionary, in_points, task
from minipo.dynamic import DynamicPO, LogProbs, Selection, SelectionRule, boundary, random
from minipo.evaluation import paired_interval, ranking_metrics

NEGATIVES = 19
SEEDS, STEPS, USERS = (10, 11, 12, 13, 14), 300, 2000
RECORDED_SEEDS = range(5)  # of the recorded grids, which many have seen
PARTNERS: dict[str, bool | SelectionRule] = {"random": random, "boundary": True}
RECORDED = "a recorded model's log-probs"  # of `cases`

_tried: list[SelectionRule] = []  # rules that were given to `experiment` in this session


# ------------------------------------------------------------------------------------------ a rule, before it trains


@cache
def cases() -> dict[str, LogProbs]:
    """Log-probs (rows, 1 + K) that a rule is tested on, by what is special about them."""
    from minipo.course.diagnostics import moments
    from minipo.course.exercises.push import recorded_probe

    seen = torch.cat([moment.policy for moment in moments(recorded_probe())]).float()[::2]
    generator = torch.Generator().manual_seed(0)
    few = seen[:32].clone()
    absent = torch.rand(32, NEGATIVES, generator=generator) < 0.6
    absent[torch.arange(32), torch.randint(NEGATIVES, (32,), generator=generator)] = False  # one stays, at least
    few[:, 1:].masked_fill_(absent, -torch.inf)
    all_above = seen[:16].clone()
    all_above[:, 0] -= 60
    return {
        RECORDED: seen,
        "some negatives are absent, at −inf": few,
        "many ties": (seen[:32] / 2).round() * 2,
        "all negatives above the chosen item": all_above,
        "one negative": seen[:16, :2],
        "all log-probs equal": torch.zeros(2, 3),
    }


def _selection(rule: SelectionRule, logps: LogProbs, case: str) -> Selection:
    """What `rule` keeps; `Wrong` if that is not a selection."""
    given = logps.clone()
    kept = rule(given)
    wanted = (logps.shape[0], logps.shape[1] - 1)
    if not isinstance(kept, torch.Tensor):
        raise Wrong(f"Your rule returned {type(kept).__name__}: return a torch.bool tensor of shape (rows, negatives).")
    if kept.shape != wanted or kept.dtype != torch.bool:
        raise Wrong(
            f"For log-probs of shape {tuple(logps.shape)} your rule returned {kept.dtype} of shape "
            f"{tuple(kept.shape)}: return torch.bool of shape {wanted}, a column for each negative and none for the "
            "chosen item."
        )
    if not torch.equal(given, logps):
        raise Wrong(f"Your rule changed the log-probs it was given ({case}): it may only read them.")
    return kept


@task("5.1 valid", "rule(logps)")
def _valid(rule: SelectionRule) -> str:
    for case, logps in cases().items():
        kept, again = _selection(rule, logps, case), _selection(rule, logps, case)
        if not torch.equal(kept, again):
            rows = int((kept != again).any(1).sum())
            raise Wrong(
                f"Asked twice about the same log-probs your rule keeps different negatives in {rows} of {len(kept)} "
                "rows. A rule here is a function of log-probs; drawing at random is what the control does."
            )
        taken = kept & logps[:, 1:].isneginf()
        if taken.any():
            row = int(taken.any(1).nonzero()[0])
            raise Wrong(
                f"In a row with {int(logps[row, 1:].isfinite().sum())} negatives your rule keeps "
                f"{int(taken[row].sum())} absent ones, whose log-prob is −inf ({int(taken.any(1).sum())} such rows of "
                f"{len(kept)}). What does your score make of −inf, and what is its place in the order?"
            )
    rows = sum(map(len, cases().values()))
    return f"A bool for every negative, twice the same, and no absent one kept, in {rows} rows."


@task("5.2 same number", "rule(logps)")
def _same_number(rule: SelectionRule) -> str:
    for case, logps in cases().items():
        kept, wanted = _selection(rule, logps, case).sum(1), boundary(logps).sum(1)
        differs = kept != wanted
        if differs.any():
            row = int(differs.nonzero()[0])
            raise Wrong(
                f"Your rule keeps {int(kept[row])} negatives where the boundary keeps {int(wanted[row])}; the numbers "
                f"differ in {int(differs.sum())} of {len(kept)} rows ({case}). The boundary's number differs from "
                f"{int(wanted.min())} to {int(wanted.max())} there. With another number, a difference in the end could "
                "be the number's doing."
            )
    return f"As many negatives as the boundary in each of {sum(map(len, cases().values()))} rows."


@task("5.3 own row", "rule(logps)")
def _own_row(rule: SelectionRule) -> str:
    for case, logps in cases().items():
        together = _selection(rule, logps, case)
        turned = _selection(rule, logps.flip(0), case).flip(0)
        alone = torch.cat([_selection(rule, row[None], case) for row in logps[:16]])
        for kept, how in ((turned, "with the batch in reverse order"), (alone, "alone")):
            differs = (together[: len(kept)] != kept).any(1)
            if differs.any():
                row = int(differs.nonzero()[0])
                raise Wrong(
                    f"A user's negatives depend on who else is in the batch: row {row} keeps {_places(together[row])} "
                    f"in its batch of {len(logps)} and {_places(kept[row])} {how} ({case}). Along which axis do you "
                    "sort, count or average?"
                )
    return f"Each of {len(cases()[RECORDED])} recorded rows keeps the same negatives in any company."


def _places(kept: Selection) -> str:
    return f"{{{', '.join(str(place + 1) for place in kept.nonzero().flatten().tolist())}}}"


@task("5.4 new", "rule(logps)")
def _new(rule: SelectionRule) -> str:
    kept, same = _selection(rule, cases()[RECORDED], RECORDED), boundary(cases()[RECORDED])
    rows = int((kept != same).any(1).sum())
    if not rows:
        raise Wrong(
            f"On all {len(kept)} recorded rows your rule keeps exactly the boundary. That is DynamicPO's rule, in "
            "other words: B always consists of the highest log-probs. Which other |B| would your mechanism choose?"
        )
    return (
        f"It differs from the boundary in {rows} of {len(kept)} recorded rows; "
        f"{(kept & same).sum() / same.sum():.0%} of what it keeps is in B."
    )


# ---------------------------------------------------------------------------------------------------- the experiment


@dataclass(frozen=True)
class Experiment:
    """What `experiment` found.

    hits: "rule", "random" and "boundary" to HR@1 of every fresh user, 0 or 1, (seeds, users); rows and columns are
    paired across the three. kept: how many negatives each kept a user on average while it trained. unequal: in how many
    rows of training the rule kept another number than the boundary does on the same log-probs. tried: how many rules
    this session has tried, this one included.
    """

    seeds: tuple[int, ...]
    steps: int
    users: int
    hits: dict[str, Float[NDArray[np.float64], "seeds users"]]
    kept: dict[str, float]
    unequal: int
    tried: int

    @property
    def table(self) -> pd.DataFrame:
        """HR@1 by seed under each selection, and the rule minus each partner in points."""
        levels = pd.DataFrame({name: hits.mean(1) for name, hits in self.hits.items()})
        levels.insert(0, "seed", self.seeds)
        for other in PARTNERS:
            levels[f"rule − {other}, points"] = 100 * (levels["rule"] - levels[other])
        return levels


@dataclass
class _Run:
    """A run's selection, which counts rows, negatives kept and rows whose number is not the boundary's; its hits."""

    select: bool | SelectionRule
    rows: int = 0
    kept: int = 0
    unequal: int = 0
    hits: Float[NDArray[np.float64], " users"] = field(default_factory=lambda: np.empty(0), compare=False)

    def __call__(self, logps: LogProbs) -> Selection:
        census = boundary(logps)
        selected = self.select(logps) if callable(self.select) else census
        self.rows += len(logps)
        self.kept += int(selected.sum())
        self.unequal += int((selected.sum(1) != census.sum(1)).sum())
        return selected


def experiment(rule: SelectionRule, seeds: Sequence[int] = SEEDS, steps: int = STEPS, users: int = USERS) -> Experiment:
    """Train with `rule`, with `random` and with the boundary, one run per seed, and rank fresh users.

    DMPO, K = 19, only the selection (β stays as it is), from the shipped SFT checkpoint; the users come from the stream
    that `data/record.py fresh` draws from, which no split and no choice of a setting uses. A run's seed decides the
    order of users, of negatives, and what `random` draws, so that the same seeds give the same result. The two partners
    are trained once per session. Prints one line per seed. Raises `Wrong` for a rule that fails 5.1 to 5.4, or seeds
    that are not five new ones, before anything is trained.
    """
    seeds = tuple(seeds)
    _check_seeds(seeds)
    try:
        for checked in (_valid, _same_number, _own_row, _new):
            checked(rule)
    except NotImplementedError:
        raise Wrong("There is no rule yet: write it first, then run the experiment once.") from None
    except Wrong as error:
        raise Wrong(f"The experiment was not started, for the rule is not ready. {error}") from None
    _tried.append(rule)
    runs: dict[str, list[_Run]] = {name: [] for name in ("rule", *PARTNERS)}
    for seed in seeds:
        runs["rule"].append(_train(rule, seed, steps, users))
        for name in PARTNERS:
            runs[name].append(_partner(name, seed, steps, users))
        print(f"seed {seed}: HR@1 " + ", ".join(f"{name} {each[-1].hits.mean():.3f}" for name, each in runs.items()))
    return Experiment(
        seeds=seeds,
        steps=steps,
        users=users,
        hits={name: np.stack([run.hits for run in each]) for name, each in runs.items()},
        kept={name: sum(run.kept for run in each) / sum(run.rows for run in each) for name, each in runs.items()},
        unequal=sum(run.unequal for run in runs["rule"]),
        tried=len(_tried),
    )


@cache
def _partner(name: str, seed: int, steps: int, users: int) -> _Run:
    return _train(PARTNERS[name], seed, steps, users)


def _train(select: bool | SelectionRule, seed: int, steps: int, users: int) -> _Run:
    from minipo.course.diagnostics import watch
    from minipo.experiments.datasets.catalog import fresh_users

    run = _Run(select)
    watched = watch(
        "dmpo", DynamicPO(select=run, adjust_beta=False), negatives=NEGATIVES, seed=seed, steps=steps, every=steps,
        probed=1, users=fresh_users(0, users),
    )  # fmt: skip
    run.hits = ranking_metrics(watched.test.ranks)["hr@1"]
    return run


# ------------------------------------------------------------------------------------------------- what it shows


def _check_seeds(seeds: tuple[int, ...]) -> None:
    if len(set(seeds)) != 5 or len(seeds) != 5:
        raise Wrong(
            f"The seeds are {', '.join(map(str, seeds)) or 'none'}: the budget is five different ones, each for all "
            "three selections. Fewer say little of how runs vary, more are not what was agreed."
        )
    if known := sorted(set(seeds) & set(RECORDED_SEEDS)):
        raise Wrong(
            f"Seeds {', '.join(map(str, known))} are those of the recorded grids, which show the boundary at work: "
            "a fair trial takes seeds that nobody has seen."
        )


def _result(result: Any) -> Experiment:
    if not isinstance(result, Experiment):
        raise Wrong("There is no result: the experiment above has not run, and its cell says why.")
    return result


@task("5.5 budget")
def _budget(result: Any) -> str:
    found = _result(result)
    _check_seeds(found.seeds)
    shapes = {name: hits.shape for name, hits in found.hits.items()}
    if set(shapes.values()) != {(len(found.seeds), found.users)}:
        raise Wrong(f"The three sides are not paired any more: {shapes}. Give the experiment's result as it came.")
    if found.unequal:
        raise Wrong(
            f"While it trained, your rule kept another number of negatives than the boundary in {found.unequal} rows "
            f"({found.kept['rule']:.2f} a row on average). A difference could be the number's doing."
        )
    notes = []
    if found.steps < STEPS or found.users < USERS:
        notes.append(
            f" Note: {found.steps} steps and {found.users:,} users are a rehearsal; your text must rest on {STEPS} "
            f"steps and {USERS:,} users."
        )
    if found.tried > 1:
        notes.append(
            f" Note: this was experiment {found.tried} of this session on the same users. Report all of them: the best "
            "of several is no test."
        )
    return (
        f"Five paired seeds that no recorded grid used, {found.users:,} fresh users, as many negatives as the "
        f"boundary: {found.kept['rule']:.2f} a row ({found.kept['random']:.2f} and {found.kept['boundary']:.2f} with "
        "random's and the boundary's own models)." + "".join(notes)
    )


@task("5.6 interval", "interval(result, other)")
def _interval(function: Callable[[Experiment, str], Any], result: Any) -> str:
    found = _result(result)
    said = []
    for other in PARTNERS:
        pairs = found.hits["rule"] - found.hits[other]
        truth, own, its = map(paired_interval, (pairs, found.hits["rule"], found.hits[other]))
        mistakes = {
            "This is the partner minus the rule: a rule that helps would come out below zero.": (
                -truth.mean, -truth.high, -truth.low
            ),
            "This is in points; leave it as a difference of HR@1, a number between −1 and 1.": (
                100 * truth.mean, 100 * truth.low, 100 * truth.high
            ),
            "This subtracts the ends of two intervals, as if the two sides had nothing in common. They share every "
            "user and every seed: what should be subtracted first?": (
                truth.mean, own.low - its.high, own.high - its.low
            ),
            "This resamples users but not seeds, as if five runs were all that could ever be.": (
                astuple(paired_interval(pairs.mean(0)))
            ),
            "This resamples seeds but not users, as if there were no others.": (
                astuple(paired_interval(pairs.mean(1, keepdims=True)))
            ),
        }  # fmt: skip
        check_interval(
            f"Against {other}", function(found, other), truth, mistakes,
            f"the differences over {pairs.size:,} pairs of user and seed have {100 * truth.mean:+.2f} points. Subtract "
            "user by user and seed by seed, then average.",
            "which paired numbers does `paired_interval` want, users and seeds, and in which shape?",
        )  # fmt: skip
        said.append(f"rule minus {other}: {in_points(truth)}")
    return f"Paired by user and seed. {'; '.join(said).capitalize()}."


@task("5.7 verdict", "verdicts()")
def _verdict(function: Any, result: Any) -> str:
    found = _result(result)
    verdicts = dictionary(function, PARTNERS, "a verdict")
    said = []
    for other, verdict in verdicts.items():
        interval = paired_interval(found.hits["rule"] - found.hits[other])
        question = "What would another five seeds and other users be likely to show?"
        check_reading(f"Against {other}", verdict, interval, "undecided", question)
        said.append(f"against {other}: {verdict} ({in_points(interval)})")
    return "The verdicts follow from the intervals. " + "; ".join(said).capitalize() + "."
