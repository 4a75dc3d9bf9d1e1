"""Where recorded numbers come from: the runs behind each grid, and the headline differences on two kinds of users."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from minipo.course.figures.style import (
    FAINT,
    INK,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    QUIET,
    add_interval,
    add_point_band,
    as_text,
    lay_out,
)
from minipo.evaluation import Interval

MORE_SFT = "more SFT"
BESIDE = {"x": 0, "xref": "paper", "xanchor": "left", "font": {"size": 13}}  # of an annotation
INTERVAL = re.compile(r"([+−]\d+\.\d) \[([+−]\d+\.\d), ([+−]\d+\.\d)\]")


def held(table: pd.DataFrame) -> str:
    """A recorded grid's content in words: objectives, K, DynamicPO, and what else varies."""
    runs = table[table["objective"] != "sft"]
    parts = [", ".join(label for name, label in OBJECTIVE_LABELS.items() if name in set(runs["objective"]))]
    counts = sorted(runs["negatives"].unique())
    parts.append(f"K = {', '.join(str(count) for count in counts)}")
    switches = runs.drop_duplicates(["dynamic", "select", "adjust_beta"])
    whole = (switches["dynamic"] == "on") & (switches["select"] == "on") & (switches["adjust_beta"] == "on")
    said = ["plain"] * bool((switches["dynamic"] == "off").any()) + ["DynamicPO"] * bool(whole.any())
    said += ["its parts and controls"] * bool(((switches["dynamic"] == "on") & ~whole).any())
    parts.append(", ".join(said))
    for name, words in (
        ("sft_epochs", "SFT lengths"), ("learning_rate", "learning rates"), ("beta", "values of β"),
        ("margin", "values of γ"),
    ):  # fmt: skip
        if (varied := runs[name].nunique()) > 1:
            parts.append(f"{varied} {words}")
    return "; ".join(filter(None, parts)) + (f"; {MORE_SFT}" if len(runs) < len(table) else "")


def runs_by_grid(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """How many runs each recorded grid has, one bar each, coloured by objective.

    tables: by the grid's name, one row per run with the columns dataset, model and objective. Names are text.
    """
    names = list(tables)
    figure = go.Figure()
    kinds = {**OBJECTIVE_LABELS, "sft": MORE_SFT}
    for kind, label in kinds.items():
        counts = [int((table["objective"] == kind).sum()) for table in tables.values()]
        if any(counts):
            figure.add_bar(
                x=counts, y=list(range(len(names))), orientation="h", name=label, width=0.42,
                marker_color=OBJECTIVE_COLOURS.get(kind, QUIET),
                hovertemplate=f"{label}: %{{x}} runs<extra></extra>",
            )  # fmt: skip
    for place, (name, table) in enumerate(tables.items()):
        worlds = zip(table["dataset"], table["model"], strict=True)
        world = ", ".join(f"{dataset} × {model}" for dataset, model in dict.fromkeys(worlds))
        text = f"<b>{as_text(name)}</b>  {as_text(world)}"
        figure.add_annotation(text=text, y=place - 0.44, **BESIDE)
        figure.add_annotation(text=f"<b>{len(table)}</b>", x=len(table), y=place, xanchor="left", xshift=6)
    most = max((len(table) for table in tables.values()), default=1)
    figure.update_xaxes(range=[0, 1.12 * most], showgrid=False, visible=False)
    figure.update_yaxes(range=[len(names) - 0.6, -0.75], visible=False)
    look = {"barmode": "stack", "legend_traceorder": "normal"}
    return lay_out(figure, 64 + 42 * len(names), margin={"t": 30, "l": 4}, **look)


def runs_sentence(tables: Mapping[str, pd.DataFrame], absent: int = 0) -> str:
    """Describe `runs_by_grid`, in Markdown; absent: how many grids cannot be read."""
    runs = {name: len(table) for name, table in tables.items()}
    if not runs:
        return "No recorded grid can be read here, so no page has recorded numbers to show."
    objectives = [label for name, label in OBJECTIVE_LABELS.items()
                  if any((table["objective"] == name).any() for table in tables.values())]  # fmt: skip
    total, most = sum(runs.values()), max(runs, key=lambda name: runs[name])
    text = (
        f"**{total:,} recorded runs** in {len(runs)} grid{'s' * (len(runs) > 1)} are behind the pages, of "
        f"{', '.join(objectives)}; the largest, *{most}*, has {runs[most]:,}."
    )
    return text + (f" {absent} more {'is' if absent == 1 else 'are'} missing or damaged." if absent else "")


def unseen(content: Any) -> list[tuple[str, str, Interval]]:
    """The differences in `data/recorded/fresh.json`, as they were recorded, to a tenth of a point: left, right, left
    minus right as shares of users.

    Raises ValueError in one sentence if the content is not what `data/record.py fresh` writes.
    """
    try:
        found = []
        for left, right, said in content["differences"]:
            match = INTERVAL.fullmatch(said)
            assert match is not None
            found.append((str(left), str(right), Interval(*(float(each.replace("−", "-")) / 100
                                                            for each in match.groups()))))  # fmt: skip
        assert isinstance(content["users"], int)
    except (AssertionError, KeyError, TypeError, ValueError):
        raise ValueError(
            "The recorded differences on further users, data/recorded/fresh.json, are damaged; make them again with "
            "'python data/record.py fresh'."
        ) from None
    return found


Pairs = Sequence[tuple[str, str, Interval, Interval]]  # left, right, on test users, on unseen users


def on_unseen(pairs: Pairs, users: tuple[int, int]) -> go.Figure:
    """Differences of HR@1 with 95 % intervals, on test users and, below, on users that played no part in any choice.

    users: how many there are of the two kinds. A grey band is one point to either side of zero.
    """
    figure = go.Figure()
    add_point_band(figure)
    shown = [pair[2] for pair in pairs] + [pair[3] for pair in pairs]
    for kind, (name, colour, symbol, down) in enumerate((
        (f"{users[0]:,} test users", QUIET, "circle-open", -0.02), (f"{users[1]:,} unseen users", INK, "diamond", 0.26),
    )):  # fmt: skip
        marker = {"size": 10, "symbol": symbol}
        for place, (_, _, *found) in enumerate(pairs):
            named: dict[str, Any] = {"name": name, "legendgroup": name, "showlegend": not place, "marker": marker}
            add_interval(figure, found[kind], place + down, colour, name, colour, **named)
    for place, (left, right, *_) in enumerate(pairs):
        text = f"<b>{as_text(left)}</b> minus {as_text(right)}"
        figure.add_annotation(text=text, y=place - 0.34, **BESIDE)
        if place:
            figure.add_shape(type="line", x0=0, x1=1, xref="paper", y0=place - 0.55, y1=place - 0.55,
                             line={"color": FAINT, "width": 0.5}, layer="below")  # fmt: skip
    lows, highs = [100 * each.low for each in shown], [100 * each.high for each in shown]
    figure.update_xaxes(range=[1.1 * min([-1.0, *lows]), 1.1 * max([1.0, *highs])])
    figure.update_yaxes(range=[len(pairs) - 0.5, -0.6], visible=False)
    margin = {"t": 30, "r": 128, "l": 4}
    return lay_out(figure, 84 + 48 * len(pairs), x="difference of HR@1, points", margin=margin)


def unseen_sentence(pairs: Pairs) -> str:
    """Describe `on_unseen`, in Markdown."""

    def side(found: Interval) -> int:
        return int(found.low > 0) - int(found.high < 0)

    shown = [pair for pair in pairs if side(pair[2])]
    again = [pair for pair in shown if side(pair[3]) == side(pair[2])]
    text = f"Of {len(pairs)} headline differences, {len(shown)} exclude zero on test users"
    text += f" and **{len(again)} of these** do so again, on the same side, on users that played no part in any choice."
    smaller = sum(abs(pair[3].mean) < abs(pair[2].mean) for pair in again)
    return text + (f" {'All' if smaller == len(again) else smaller} of them are smaller there." if again else "")
