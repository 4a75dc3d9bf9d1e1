"""The figure of the page Compare: every chosen line's difference to the baseline, and the sentence that reads it."""

import textwrap
from collections.abc import Mapping

import plotly.graph_objects as go

from minipo.course.figures.style import as_text, differences, in_points
from minipo.evaluation import Interval

LETTERS = 19  # of a line of a label: two such lines stand beside an interval on a phone too
NAMED = 3  # differences that the sentence tells one by one, of a kind


def compared(
    intervals: Mapping[str, Interval], metric: str, baseline: str, colours: Mapping[str, str | None]
) -> go.Figure:
    """Differences to the line called `baseline` with their 95 % intervals, by name; names are text.

    intervals: of `metric` (its name in words), as shares. colours: by name; a line without one is drawn in ink.
    """
    labels: dict[str, str] = {}
    for number, name in enumerate(intervals, start=1):
        label = _label(name)  # two long names may have been cut to one
        labels[name] = label if label not in labels.values() else f"{label} ({number})"
    return differences(
        {labels[name]: interval for name, interval in intervals.items()},
        f"{metric[:1].upper()}{metric[1:]}, difference to {as_text(baseline)}",
        f"difference of {metric}, points",
        {labels[name]: colours.get(name) for name in intervals},
    )


def _label(name: str) -> str:
    name = name.replace(" = ", "\u00a0=\u00a0")  # "K = 19" stays on one line
    return "<br>".join(as_text(line) for line in textwrap.wrap(name, LETTERS, max_lines=2, placeholder="…"))


def compared_sentence(intervals: Mapping[str, Interval], metric: str, baseline: str, level: str) -> str:
    """Read `compared` aloud, in Markdown.

    intervals: by name. level: the baseline's `metric`, as it is said. Names are put into the text as they are.
    """
    above = {name: found for name, found in intervals.items() if found.low > 0}
    below = {name: found for name, found in intervals.items() if found.high < 0}
    other = {name: found for name, found in intervals.items() if name not in above and name not in below}
    parts = [
        f"{words} {_told(group)}"
        for words, group in (
            ("**higher** with", above),
            ("**lower** with", below),
            ("**not shown to differ** with", other),
        )
        if group
    ]
    return f"Against {baseline} ({level}), {metric} is {'; '.join(parts)}."


def _told(group: Mapping[str, Interval]) -> str:
    said = [f"{name} ({in_points(found)} points)" for name, found in list(group.items())[:NAMED]]
    more = len(group) - NAMED
    return ", ".join(said) + (f" and {more} more" if more > 0 else "")
