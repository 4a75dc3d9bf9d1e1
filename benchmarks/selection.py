"""Time the selection: `python benchmarks/selection.py` (boundary and dual-margin β of 4,096 rows of 19 negatives).

Minipo's vectorised selection and a plain loop over rows and negatives, both exact, on the same rows in the same run.
Checks that they agree, prints a table and writes selection.json beside this file. Takes about 30 seconds.
"""

import math
import timeit
from itertools import combinations

import torch
from measure import Report, run

from minipo.dynamic import boundary, dual_margin_beta

ROWS, NEGATIVES = 4096, 19
BETA, MARGIN = 1.0, 6.0
REPEATS = 15


def looped(logps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The straightforward way: row by row, all pairs of cuts into three groups."""
    selections, strengths = [], []
    for chosen, *negatives in logps.tolist():
        selected = [value >= chosen for value in negatives]
        if not any(selected):
            selected = top_of_three(negatives)
        others = [value for value, keep in zip(negatives, selected, strict=True) if not keep] or negatives
        mean = sum(others) / len(others)
        row = []
        for value in negatives:
            plus, minus = chosen - value, value - mean
            scale = abs(plus) + abs(minus)
            row.append(BETA * (1 + math.tanh((plus - minus - MARGIN) / scale) / 2) if scale else BETA)
        selections.append(selected)
        strengths.append(row)
    return torch.tensor(selections), torch.tensor(strengths)


def top_of_three(values: list[float]) -> list[bool]:
    """The highest group of the best split into three (or as many as there are distinct values); prefix sums price a
    group in constant time, as anyone would write it who knows that two cuts are enough."""
    ordered = sorted(values, reverse=True)
    if len(set(ordered)) < 3:
        return [value == ordered[0] for value in values]
    centre = sum(ordered) / len(ordered)
    sums, squares = [0.0], [0.0]
    for value in ordered:
        sums.append(sums[-1] + value - centre)
        squares.append(squares[-1] + (value - centre) ** 2)

    def cost(start: int, stop: int) -> float:
        return squares[stop] - squares[start] - (sums[stop] - sums[start]) ** 2 / (stop - start)

    least, size = math.inf, 0
    between = [place for place in range(1, len(ordered)) if ordered[place] != ordered[place - 1]]
    for first, second in combinations(between, 2):
        total = cost(0, first) + cost(first, second) + cost(second, len(ordered))
        if total <= least * (1 + 1e-9):
            least, size = min(total, least), first
    return [value >= ordered[size - 1] for value in values]


def vectorised(logps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    selection = boundary(logps)
    return selection, dual_margin_beta(logps, selection, BETA, MARGIN)


def benchmark(quick: bool) -> Report:
    """The shortest of several runs of each, in turns, so that other programs disturb both equally and least."""
    torch.set_num_threads(1)  # like the loop
    generator = torch.Generator().manual_seed(0)
    rows = 64 if quick else ROWS
    logps = torch.randn(rows, 1 + NEGATIVES, generator=generator) * 3 - 12
    logps[::2, 0] += 12  # in about half of the rows no negative violates, and the split decides
    (fast_selection, fast_strength), (slow_selection, slow_strength) = vectorised(logps), looped(logps)
    if not torch.equal(fast_selection, slow_selection):
        raise SystemExit("The two selections differ: the timings would be meaningless.")
    torch.testing.assert_close(fast_strength, slow_strength, rtol=1e-6, atol=0)
    ways = (lambda: vectorised(logps), lambda: looped(logps))
    turns = [[timeit.timeit(way, number=1) for way in ways] for _ in range(1 if quick else REPEATS)]
    fast, slow = map(min, zip(*turns, strict=True))
    seconds = {"vectorised": fast, "looped": slow}
    return {"rows": rows, "negatives": NEGATIVES, "threads": 1, "seconds": seconds, "ratio": slow / fast}


if __name__ == "__main__":
    run(__file__, __doc__, benchmark)
