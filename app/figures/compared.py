"""The figure of the page Compare: every chosen line's difference to the baseline, and its description."""

import textwrap
from collections.abc import Mapping

import plotly.graph_objects as go

from minipo.course.figures.style import as_text, differences, in_points
from minipo.evaluation import Interval

LETTERS = 19  # of a line of a label: two such lines fit beside an interval on a phone
NAMED = 3  # differences of a kind that the sentence names one by one


def compared(
    intervals: Mapping[str, Interval], metric: str, baseline: str, colours: Mapping[str, str | None]
) -> go.Figure:
    """Differences to the line called `baseline` with their 95 % intervals, by name; names are text.

    intervals: of `metric` (its name in words), as shares. colours: by name; a line without one is drawn in ink.
    """
    labels: dict[str, str] = {}
    for number, name in enumerate(intervals, start=1):
        words = name.replace(" = ", "\u00a0=\u00a0")  # "K = 19" stays on one line
        label = "<br>".join(map(as_text, textwrap.wrap(words, LETTERS, max_lines=2, placeholder="…")))
        # Two long names may have been cut to one.
        labels[name] = label if label not in labels.values() else f"{label} ({number})"
    return differences(
        {labels[name]: interval for name, interval in intervals.items()},
        f"{metric[:1].upper()}{metric[1:]}, difference to {as_text(baseline)}",
        f"difference of {metric}, points",
        {labels[name]: colours.get(name) for name in intervals},
    )


def compared_sentence(intervals: Mapping[str, Interval], metric: str, baseline: str, level: str) -> str:
    """Describe `compared`, in Markdown.

    intervals: by name. level: the baseline's `metric`, as text. Names must be escaped already.
    """
    groups: dict[str, list[str]] = {"**higher** with": [], "**lower** with": [], "**not shown to differ** with": []}
    for name, found in intervals.items():
        words = list(groups)[0 if found.low > 0 else 1 if found.high < 0 else 2]
        groups[words].append(f"{name} ({in_points(found)} points)")
    parts = [
        f"{words} {', '.join(said[:NAMED])}" + f" and {len(said) - NAMED} more" * (len(said) > NAMED)
        for words, said in groups.items()
        if said
    ]
    return f"Against {baseline} ({level}), {metric} is {'; '.join(parts)}."
