"""Where recorded numbers come from: the runs behind each grid, and the headline differences on two kinds of users."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from minipo.course.figures.style import (
    INK,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    QUIET,
    as_text,
    differences,
    lay_out,
)
from minipo.evaluation import Interval

MORE_SFT = "more SFT"
NUMBER = re.compile(r"[+−]\d+\.\d")


def held(table: pd.DataFrame) -> str:
    """A recorded grid's content in words: objectives, K, DynamicPO, and what else varies."""
    runs = table[table["objective"] != "sft"]
    parts = [", ".join(label for name, label in OBJECTIVE_LABELS.items() if name in set(runs["objective"]))]
    parts.append(f"K = {', '.join(map(str, sorted(runs['negatives'].unique())))}")
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
    kinds = {**OBJECTIVE_LABELS, "sft": MORE_SFT}
    colours = {label: OBJECTIVE_COLOURS.get(kind, QUIET) for kind, label in kinds.items()}
    runs = []
    for name, table in tables.items():
        worlds = dict.fromkeys(zip(table["dataset"], table["model"], strict=True))
        world = ", ".join(f"{dataset} × {model}" for dataset, model in worlds)
        label = f"<b>{as_text(name)}</b>, {len(table)}<br>{as_text(world)}"
        counts = table["objective"].map(kinds).value_counts()
        runs += [{"grid": label, "objective": kind, "runs": counts[kind]} for kind in kinds.values() if kind in counts]
    figure = px.bar(
        pd.DataFrame(runs), x="runs", y="grid", color="objective", orientation="h", color_discrete_map=colours,
        category_orders={"objective": list(colours), "grid": list(dict.fromkeys(run["grid"] for run in runs))},
    )  # fmt: skip
    figure.update_yaxes(title_text="", showgrid=False, ticksuffix=" ")
    return lay_out(figure, 90 + 42 * len(tables), x="runs", legend_title_text="")


def runs_sentence(tables: Mapping[str, pd.DataFrame], absent: int = 0) -> str:
    """Describe `runs_by_grid`, in Markdown; absent: how many grids cannot be read."""
    runs = {name: len(table) for name, table in tables.items()}
    if not runs:
        return "No recorded grid can be read here, so no page has recorded numbers to show."
    trained = {name for table in tables.values() for name in table["objective"]}
    objectives = [label for name, label in OBJECTIVE_LABELS.items() if name in trained]
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
        if not isinstance(content["users"], int):
            raise TypeError(content["users"])
        return [
            (str(left), str(right), Interval(*(float(each.replace("−", "-")) / 100 for each in NUMBER.findall(said))))
            for left, right, said in content["differences"]
        ]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            "The recorded differences on further users, data/recorded/fresh.json, are damaged; make them again with "
            "'python data/record.py fresh'."
        ) from None


Pairs = Sequence[tuple[str, str, Interval, Interval]]  # left, right, on test users, on unseen users


def on_unseen(pairs: Pairs, users: tuple[int, int]) -> go.Figure:
    """Differences of HR@1 with 95 % intervals, on test users and, below, on users that played no part in any choice.

    users: how many there are of the two kinds. A grey band is one point to either side of zero.
    """
    rows, colours, labels = {}, {}, []
    for left, right, *found in pairs:
        for kind, interval, colour in zip(("test", "unseen"), found, (QUIET, INK), strict=True):
            name = f"{as_text(left)} minus {as_text(right)}, {kind} users"
            rows[name], colours[name] = interval, colour
        labels += [f"<b>{as_text(left)}</b> minus {as_text(right)}", "unseen users"]
    title = f"The upper of each two: {users[0]:,} test users; below, {users[1]:,} unseen users"
    inside = {"ticklabelposition": "inside top", "ticklabelshift": 5, "range": [len(rows) - 0.5, -0.9]}
    return differences(rows, title, colours=colours).update_yaxes(ticktext=labels, **inside)


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
