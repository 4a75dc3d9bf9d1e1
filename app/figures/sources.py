"""Where recorded numbers come from: the runs behind each grid, and the headline differences on users of two kinds."""

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
    TEMPLATE,
    as_text,
    in_points,
)
from minipo.evaluation import Interval

MORE_SFT = "more SFT"
INTERVAL = re.compile(r"([+−]\d+\.\d) \[([+−]\d+\.\d), ([+−]\d+\.\d)\]")


def held(table: pd.DataFrame) -> str:
    """What a recorded grid's table holds, in words: objectives, K, DynamicPO, and what else varies."""
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
    """How many runs stand behind each recorded grid, a bar each, coloured by objective.

    tables: by the grid's name, a row a run with the columns dataset, model and objective. Names are text.
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
        figure.add_annotation(
            text=f"<b>{as_text(name)}</b>  {as_text(world)}", x=0, xref="paper", xanchor="left",
            y=place - 0.44, font={"size": 13},
        )  # fmt: skip
        figure.add_annotation(text=f"<b>{len(table)}</b>", x=len(table), y=place, xanchor="left", xshift=6)
    most = max((len(table) for table in tables.values()), default=1)
    figure.update_layout(
        template=TEMPLATE, barmode="stack", height=64 + 42 * len(names), margin={"t": 30, "l": 4},
        legend={"y": 1.0, "traceorder": "normal"},
    )  # fmt: skip
    figure.update_xaxes(range=[0, 1.12 * most], showgrid=False, visible=False)
    figure.update_yaxes(range=[len(names) - 0.6, -0.75], visible=False)
    return figure


def runs_sentence(tables: Mapping[str, pd.DataFrame], absent: int = 0) -> str:
    """Read `runs_by_grid` aloud, in Markdown; absent: how many grids cannot be read."""
    runs = {name: len(table) for name, table in tables.items()}
    if not runs:
        return "No recorded grid can be read here, so no page has recorded numbers to show."
    objectives = [label for name, label in OBJECTIVE_LABELS.items()
                  if any((table["objective"] == name).any() for table in tables.values())]  # fmt: skip
    total, most = sum(runs.values()), max(runs, key=lambda name: runs[name])
    text = (
        f"**{total:,} recorded runs** in {len(runs)} grid{'s' * (len(runs) > 1)} stand behind the pages, of "
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
    figure.add_vrect(x0=-1, x1=1, fillcolor="#F3F5F8", line_width=0, layer="below")
    figure.add_vline(x=0, line={"color": QUIET, "width": 1.5}, layer="below")
    lows, highs = [-1.0], [1.0]
    for kind, (name, colour, symbol, down) in enumerate((
        (f"{users[0]:,} test users", QUIET, "circle-open", -0.02), (f"{users[1]:,} unseen users", INK, "diamond", 0.26),
    )):  # fmt: skip
        found = [(on_test, unseen)[kind] for _, _, on_test, unseen in pairs]
        lows += [100 * each.low for each in found]
        highs += [100 * each.high for each in found]
        places = [place + down for place in range(len(pairs))]
        figure.add_scatter(
            x=[100 * each.mean for each in found], y=places, mode="markers", name=name,
            marker={"size": 10, "color": colour, "symbol": symbol},
            error_x={"array": [100 * (each.high - each.mean) for each in found],
                     "arrayminus": [100 * (each.mean - each.low) for each in found],
                     "color": colour, "thickness": 2, "width": 4},
            customdata=[in_points(each) for each in found],
            hovertemplate=f"{name}: %{{customdata}}<extra></extra>",
        )  # fmt: skip
        for each, place in zip(found, places, strict=True):
            figure.add_annotation(
                text=in_points(each), x=1.01, xref="paper", xanchor="left", y=place, font={"size": 13, "color": colour}
            )
    for place, (left, right, *_) in enumerate(pairs):
        figure.add_annotation(
            text=f"<b>{as_text(left)}</b> minus {as_text(right)}", x=0, xref="paper", xanchor="left", y=place - 0.34,
            font={"size": 13},
        )  # fmt: skip
        if place:
            figure.add_shape(type="line", x0=0, x1=1, xref="paper", y0=place - 0.55, y1=place - 0.55,
                             line={"color": FAINT, "width": 0.5}, layer="below")  # fmt: skip
    figure.update_layout(template=TEMPLATE, height=84 + 48 * len(pairs), margin={"t": 30, "r": 128, "l": 4})
    figure.update_xaxes(title_text="difference of HR@1, points", range=[1.1 * min(lows), 1.1 * max(highs)])
    figure.update_yaxes(range=[len(pairs) - 0.5, -0.6], visible=False)
    return figure


def unseen_sentence(pairs: Pairs) -> str:
    """Read `on_unseen` aloud, in Markdown."""

    def side(found: Interval) -> int:
        return int(found.low > 0) - int(found.high < 0)

    shown = [pair for pair in pairs if side(pair[2])]
    again = [pair for pair in shown if side(pair[3]) == side(pair[2])]
    text = f"Of {len(pairs)} headline differences, {len(shown)} leave out zero on test users"
    text += f" and **{len(again)} of these** do so again, on the same side, on users that played no part in any choice."
    smaller = sum(abs(pair[3].mean) < abs(pair[2].mean) for pair in again)
    return text + (f" {'All' if smaller == len(again) else smaller} of them are smaller there." if again else "")
