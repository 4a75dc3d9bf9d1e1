"""Assignment 2, the boundary: constructions, judged by `minipo.dynamic.boundary` itself, and an exact k-means."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from minipo.course.exercises.checks import Wrong, task
from minipo.dynamic import boundary

HARD, EASY = 2.0, 8.0  # nats below the chosen item: at most, and more than


def log_probs(answer: Any, rows: int, negatives: int = 2) -> Tensor:
    """An answer, or what it returns, as log-probs (rows, 1 + at least `negatives`) in float64, or `Wrong`."""
    given = answer() if callable(answer) else answer
    try:
        logps = torch.as_tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(
            f"The answer is {type(given).__name__}: give a tensor of log-probs, or rows of numbers, "
            "with the chosen item in column 0."
        ) from None
    if logps.dim() != 2 or logps.shape[0] != rows or logps.shape[1] < 1 + negatives:
        raise Wrong(
            f"The answer has the shape {tuple(logps.shape)}: give {rows} {'row' if rows == 1 else 'rows'}, each the "
            f"chosen item followed by at least {negatives} negatives."
        )
    if not logps.isfinite().all():
        raise Wrong("The answer holds a number that is not finite: every candidate has a log-prob here.")
    return logps


def kept(logps: Tensor) -> list[set[int]]:
    """Each row's boundary, as columns of `logps`."""
    return [{column + 1 for column in row.nonzero().flatten().tolist()} for row in boundary(logps)]


def names(columns: set[int]) -> str:
    """Negatives as a message names them, by their column."""
    return ", ".join(str(column) for column in sorted(columns)) or "none"


def _no_violator(logps: Tensor) -> None:
    if len(violators := (logps[:, 1:] >= logps[:, :1]).nonzero()):
        row, place = violators[0].tolist()
        raise Wrong(
            f"In row {row} negative {place + 1} has log-prob {logps[row, place + 1]:g}, the chosen item "
            f"{logps[row, 0]:g}: a violator. Where there is one, the rule keeps the violators and never looks at "
            "groups. Find a case without."
        )


def _moved(answer: Any) -> tuple[Tensor, int, list[set[int]]]:
    """Two rows that differ in one negative and hold no violator: log-probs, that negative, and both boundaries."""
    logps = log_probs(answer, rows=2)
    changed = set((logps[0] != logps[1]).nonzero().flatten().tolist())
    if 0 in changed:
        raise Wrong(
            f"The chosen item moves, from {logps[0, 0]:g} to {logps[1, 0]:g}. It must stay where it is: only one "
            "negative may move."
        )
    if len(changed) != 1:
        raise Wrong(
            f"From row 0 to row 1 {len(changed)} negatives move ({names(changed)}). Exactly one must move, so that "
            "whatever else happens is its doing."
        )
    _no_violator(logps)
    return logps, changed.pop(), kept(logps)


def _boundaries(before: set[int], after: set[int]) -> str:
    return f"The boundary is {names(before)} in row 0 and {names(after)} in row 1"


@task("2.1 leaves")
def _leaves(answer: Any) -> str:
    _, mover, (before, after) = _moved(answer)
    if not (left := before - after - {mover}):
        raise Wrong(
            f"{_boundaries(before, after)}, and negative {mover} moved: no other negative leaves. The groups are those "
            "with the smallest sum of squares; ask which other partner a member of the top group could have."
        )
    if mover not in before & after:
        raise Wrong(
            f"{_boundaries(before, after)}: negative {names(left)} leaves, but negative {mover}, which moved, is not "
            "in both. Here the one that moves must be kept before and after."
        )
    return f"Negative {names(left)} left although its own log-prob stayed; negative {mover} moved and is kept."


@task("2.2 enters")
def _enters(answer: Any) -> str:
    logps, mover, (before, after) = _moved(answer)
    start, end = logps[:, mover].tolist()
    if not (entered := after - before - {mover}):
        raise Wrong(
            f"{_boundaries(before, after)}, and negative {mover} moved: no other negative enters. There are three "
            "groups to spend; ask what happens at the top when one of them is needed at the bottom."
        )
    if mover in before | after:
        raise Wrong(
            f"{_boundaries(before, after)}: negative {names(entered)} enters, but negative {mover}, which moved, is in "
            "the boundary itself. Here the one that moves must be outside before and after."
        )
    if end > start:
        raise Wrong(
            f"Negative {mover} moves up, from {start:g} to {end:g}. Here it must become easier, and still let another "
            "one in."
        )
    return f"Negative {mover} fell from {start:g} to {end:g}, and negative {names(entered)} entered without moving."


@task("2.3 all kept")
def _all_kept(answer: Any) -> str:
    logps = log_probs(answer, rows=2, negatives=3)
    everyone = set(range(1, logps.shape[1]))
    for row, columns in enumerate(kept(logps)):
        if columns != everyone:
            raise Wrong(
                f"In row {row} the boundary is {names(columns)}: negatives {names(everyone - columns)} are left out. "
                f"Row {row} has {logps[row, 1:].unique().numel()} distinct values below or above the chosen item's; "
                "what does the rule do with them?"
            )
    above = (logps[:, 1:] >= logps[:, :1]).sum(1).tolist()
    if above[0] == 0:
        raise Wrong("Row 0 keeps all without a violator. That is row 1's task: in row 0 all must be kept as violators.")
    if above[1] > 0:
        raise Wrong(
            f"Row 1 keeps all because {above[1]} negatives are at or above the chosen item, as row 0 does. Find the "
            "other way: all kept, and none of them a violator."
        )
    return "All are kept in both rows, and no negative is left as discriminative. Assignment 3 meets this case again."


@task("2.4 easy")
def _easy(answer: Any) -> str:
    logps = log_probs(answer, rows=1)
    _no_violator(logps)
    (columns,) = kept(logps)
    below = {column: float(logps[0, 0] - logps[0, column]) for column in range(1, logps.shape[1])}
    distances = ", ".join(f"{below[column]:g}" for column in sorted(columns))
    if len(columns) == len(below):
        raise Wrong("All negatives are kept. At least one must be left out, so that the easy item was really chosen.")
    if max(below[column] for column in columns) <= EASY:
        raise Wrong(
            f"The boundary is {names(columns)}, {distances} nats below the chosen item: none is more than {EASY:g} "
            "below. The k-means knows nothing of the chosen item; what decides how wide its top group is?"
        )
    if min(below[column] for column in columns) > HARD:
        raise Wrong(
            f"The boundary is {names(columns)}, {distances} nats below the chosen item: only easy items. One at most "
            f"{HARD:g} nats below must be kept with them, to show the two treated alike."
        )
    return f"One group holds negatives {distances} nats below the chosen item."


# ------------------------------------------------------------------------------------------------ the exact k-means


Inputs = Iterable[tuple[str, str, list[float], int]]  # what is special about values, a hint, values, number of groups


def _inputs() -> Inputs:
    hint = "A split is judged by the sum of squared distances to its groups' means, over all groups together."
    generator = torch.Generator().manual_seed(0)
    for groups in (1, 2, 3, 4):
        for number in (groups, 5, 7, 9):
            for _ in range(5):
                yield "plain", hint, (torch.randn(number, generator=generator).double() * 4).tolist(), groups


_TIE = "Two splits cost the same here: the one with the largest top group counts."
_EQUAL = "Equal values are never separated."
_SHIFT = (
    "Shifting all values by the same number must change nothing: how large are the numbers that your sums subtract?"
)
# Values for three groups.
_SPECIAL = [
    ("fewer values than groups", "No group may be empty.", [-3.0]),
    ("fewer distinct values than groups", "There are as many groups as distinct values then.", [-3.0, -5.0] * 2),
    ("all values equal", _EQUAL, [-2.0] * 4),
    ("equally good splits", _TIE, [-1.0, -2.0, -3.0, -9.0]),
    ("equally good splits", _TIE, [0.0, -1.0, -2.0, -3.0, -4.0]),
    ("equal values", _EQUAL, [-1.0, -1.0, -4.0, -4.0, -4.0, -9.0, -1.0]),
    ("values near −10,000", _SHIFT, [-10000.0, -10000.5, -10001.25, -10003.0, -10003.5]),
    ("values near −10,000", _SHIFT, [-9999.125, -9999.25, -9999.75, -10000.5, -10000.625, -10002.0]),
    ("one value far away", "The far value's square must not drown the small differences.",
     [-1.0, -1.5, -2.5, -4.0, -30000.0]),
    ("equally good splits, near −10,000", "Two splits cost the same here: does rounding decide between them?",
     [-10000.0, -10001.0, -10002.0, -10003.0, -10004.0]),
]  # fmt: skip


def _special_inputs() -> Inputs:
    for special, hint, values in _SPECIAL:
        yield special, hint, values, 3
    for _, _, values, groups in _inputs():  # in eighths, so that the shift leaves every difference as it is
        yield "values near −10,000", _SHIFT, [round(value * 8) / 8 - 10000 for value in values], groups


def _compare(function: Callable[[Tensor, int], Any], inputs: Inputs) -> int:
    for special, hint, values, groups in (cases := list(inputs)):
        logps = torch.tensor([[max(values) + 1, *values]], dtype=torch.float64)  # no violator: the groups decide
        wanted = boundary(logps, clusters=groups)[0]
        case = f"On {values} with {groups} {'group' if groups == 1 else 'groups'} ({special})"
        try:
            found = function(logps[0, 1:].clone(), groups)
        except NotImplementedError:
            raise
        except Exception as error:
            raise Wrong(f"{case} your function stopped with {type(error).__name__}: {error}") from None
        found = torch.as_tensor(found)
        if found.dtype != torch.bool or found.shape != wanted.shape:
            raise Wrong(
                f"{case} your function returned {found.dtype} of shape {tuple(found.shape)}: give a bool for each of "
                f"the {len(values)} values, in their order."
            )
        if not torch.equal(found, wanted):
            mine, best = (logps[0, 1:][group].tolist() for group in (found, wanted))
            raise Wrong(f"{case} your top group is {mine}; of all splits the best has {best}. {hint}")
    return len(cases)


@task("2.5 k-means", "exact_kmeans_top(values, groups)")
def _kmeans(function: Callable[[Tensor, int], Any]) -> str:
    return f"Your top group is the best one on {_compare(function, _inputs())} inputs."


@task("2.6 k-means, ties and extremes", "exact_kmeans_top(values, groups)")
def _kmeans_special(function: Callable[[Tensor, int], Any]) -> str:
    return f"Ties, few values and values near −10,000: right on all {_compare(function, _special_inputs())}."
