"""The boundary microscope: two figures with the same rows show one step of a run, by `examine`'s table.

One says where a user's candidates are, the other how hard each negative is pushed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from minipo.course.figures.boundary import BANDS
from minipo.course.figures.style import (
    DILUTION_COLOUR,
    DYNAMIC_COLOUR,
    FAINT,
    GRID,
    INK,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    QUIET,
    SATURATION_COLOUR,
    SHADE,
    TEMPLATE,
    as_text,
    short,
)

# What a candidate is at a step: label, colour, symbol. It is filled if it enters the loss.
KINDS = {
    "chosen": ("chosen", INK, "star"),
    "above": ("ranked above it", OBJECTIVE_COLOURS["dmpo"], "diamond"),
    "top": ("top group", DYNAMIC_COLOUR, "circle"),
    "rest": ("discriminative", FAINT, "circle"),
    "absent": ("not among the K", GRID, "circle"),
}
PARTS = {  # of a negative's push: heading, share of the width, colour (None: the negative's own), what it means
    "dilution": ("dilution", 0.19, DILUTION_COLOUR, "the negative's share of the sigmoid's argument"),
    "saturation": ("× saturation", 0.27, SATURATION_COLOUR, "σ(−z): what the sigmoid leaves of the push"),
    "beta": ("× β", 0.15, FAINT, "the strength with which the negative is pushed"),
    "slope": ("× du/ds", 0.2, DILUTION_COLOUR, "how fast MPPO's likelihood grows with the log-prob"),
    "push": ("<b>= push</b>", 0.28, None, "the derivative of the loss with respect to the negative's log-prob"),
}


def _rows(here: pd.DataFrame, left: int) -> dict[str, Any]:
    """The layout of either figure: a row for each candidate, so that those of both figures line up. As a dictionary,
    given to the figure at once, because the page draws both anew at every move of a control."""
    texts = [as_text(name, 17) for name in here["name"]]
    texts[0] = f"<b>{texts[0]}</b>"
    chosen = here["place"].iloc[0]
    return {
        "template": TEMPLATE,
        "height": 92 + 18 * len(here),
        "margin": {"l": left, "t": 40, "b": 52, "autoexpand": False},
        "plot_bgcolor": "rgba(0,0,0,0)",  # the panels' own ground would lie on the band
        "yaxis": {
            "range": [len(here) + 0.5, 0.5], "fixedrange": True, "tickvals": here["place"].to_numpy(),
            "ticktext": texts, "tickfont": {"size": 12}, "ticksuffix": "  ",
        },
        "shapes": [
            {
                "type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": SHADE, "xref": "paper",
                "x0": 0, "x1": 1, "y0": chosen - 0.5, "y1": chosen + 0.5,
            }
        ],
    }  # fmt: skip


def candidates(table: pd.DataFrame, step: int) -> go.Figure:
    """A user's candidates (`examine`'s table) at a step on a line of log-probs, the best at the top, each with a tail
    from its log-prob under SFT.

    If no negative is ranked above the chosen item, boxes show the groups of the k-means. The axis is the same for all
    steps, and a button plays them from the first to this one, with rows, colours and symbols as they are at this one.
    """
    here = table[table["step"] == step]
    ends = table[["logp", "reference"]].to_numpy()
    pad = 0.06 * max(1e-6, np.ptp(ends))

    def places(each: int) -> list[dict[str, Any]]:
        """What moves: the line through the chosen item, and each kind's dots with their tails."""
        now = table[table["step"] == each]
        logp, tail = now["logp"].to_numpy(), (now["reference"] - now["logp"]).to_numpy()
        tails = {"array": np.maximum(tail, 0), "arrayminus": np.maximum(-tail, 0)}
        return [{"type": "scatter", "x": logp[[0, 0]]}] + [
            {"type": "scatter", "x": logp[inside], "error_x": {end: length[inside] for end, length in tails.items()}}
            for inside in (here["kind"].to_numpy() == kind for kind in KINDS)
        ]

    line, *kinds = places(step)
    line |= {"y": [0.5, len(here) + 0.5], "mode": "lines", "line": {"color": QUIET, "width": 1, "dash": "dot"}}
    line |= {"hoverinfo": "skip", "showlegend": False}
    for drawn, (kind, (label, colour, symbol)) in zip(kinds, KINDS.items(), strict=True):
        of = here[here["kind"] == kind]
        full = of["used"] | (kind == "chosen")
        drawn |= {
            "y": of["place"], "mode": "markers", "name": label, "cliponaxis": False,
            "showlegend": not of.empty and kind != "absent",
            "marker": {
                "symbol": symbol, "size": 14 if kind == "chosen" else 10, "opacity": 1,
                "color": [colour if inside else "white" for inside in full],
                "line": {"color": colour, "width": 1.6},
            },
            "text": [as_text(name) for name in of["name"]], "customdata": of["reference"],
            "hovertemplate": "%{text}<br>log-prob %{x:.2f}, under SFT %{customdata:.2f}<extra></extra>",
        }  # fmt: skip
        drawn["error_x"] |= {"type": "data", "symmetric": False, "color": FAINT, "thickness": 1.2, "width": 0}
    layout = _rows(here, 4)
    steps = [each for each in sorted(table["step"].unique()) if each <= step]
    for group in range(here["group"].max() + 1):
        x, y = (here.loc[here["group"] == group, name] for name in ("logp", "place"))
        layout["shapes"].append(
            {
                "type": "rect", "layer": "below", "line": {"width": 0},
                "fillcolor": BANDS[2 if group == 0 else group % 2],
                "x0": x.min() - pad / 4, "x1": x.max() + pad / 4, "y0": y.min() - 0.5, "y1": y.max() + 0.5,
            }
        )  # fmt: skip
    frames = [{"name": str(each), "data": places(each)} for each in steps] if len(steps) > 1 else []
    if frames:
        moving = {"duration": 700, "easing": "cubic-in-out"}
        how = {"mode": "immediate", "frame": {"duration": 800, "redraw": False}, "transition": moving}
        play = {"label": "▶ play", "method": "animate", "args": [[frame["name"] for frame in frames], how]}
        look = {"bgcolor": "white", "bordercolor": GRID, "font": {"size": 12, "color": QUIET}}
        place = {"x": 1, "xanchor": "right", "y": 0, "yanchor": "top", "pad": {"t": 18, "r": 2}}
        layout["updatemenus"] = [{"type": "buttons", "showactive": False, "buttons": [play], **place, **look}]
    layout["xaxis"] = {
        "range": [ends.min() - pad, ends.max() + pad], "nticks": 7, "fixedrange": True, "title": "log-prob, nats",
        "domain": [0.31, 1],  # names are beside the axis, in the plot: a legend as wide as it fits a phone
    }  # fmt: skip
    layout["legend"] = {"itemsizing": "constant", "itemclick": False, "itemdoubleclick": False}
    return go.Figure([line, *kinds], layout, frames)


def pushes(table: pd.DataFrame, step: int) -> go.Figure:
    """How hard each negative of `examine`'s table is pushed at a step, as bars in the rows of `candidates`.

    The columns are push = dilution × saturation × β (× du/ds, for MPPO); each has its own scale, the same for all
    steps, so that bars of different steps can be compared.
    """
    here = table[table["step"] == step]
    parts = dict(PARTS)
    if np.allclose(table.loc[table["used"], "slope"], 1):
        del parts["slope"]
    widths = np.array([width for _, width, *_ in parts.values()])
    ends = np.cumsum(widths / widths.sum())
    bars, layout = [], _rows(here, 118) | {"showlegend": False}
    for number, (name, (heading, _, colour, meaning)) in enumerate(parts.items(), start=1):
        ink = INK if name == "push" else QUIET
        texts = [short(value) if used else "" for value, used in zip(here[name], here["used"], strict=True)]
        bars.append(
            {
                "type": "bar", "orientation": "h", "width": 0.62, "xaxis": f"x{number}",
                "x": here[name].to_numpy(), "y": here["place"].to_numpy(),
                "marker": {"color": [colour or KINDS[kind][1] for kind in here["kind"]], "line": {"width": 0}},
                "text": [f"<b>{text}</b>" for text in texts] if name == "push" else texts,
                "textposition": "outside", "textfont": {"size": 12, "color": ink},
                "cliponaxis": False, "constraintext": "none",
                "customdata": [as_text(each) for each in here["name"]],
                "hovertemplate": f"%{{customdata}}<br>{name} %{{x:.3g}}: {meaning}<extra></extra>",
            }
        )  # fmt: skip
        layout[f"xaxis{number}"] = {
            "domain": [ends[number - 1] - 0.97 * widths[number - 1] / widths.sum(), ends[number - 1]],
            "range": [0, 2.5 * max(table[name].max(), 1e-12)], "side": "top", "fixedrange": True, "showgrid": False,
            "showticklabels": False, "title": {"text": heading, "font": {"size": 11, "color": ink}},
        }  # fmt: skip
    return go.Figure(bars, layout)


def sentence(
    table: pd.DataFrame, step: int, user: int, objective: str, plain: pd.DataFrame, said: Callable[[str], str] = str
) -> str:
    """Describe `examine`'s table at a step, in Markdown.

    plain: the same user under the plain objective, to compare with; the table itself if it is plain. said: how a name
    is written in Markdown.
    """
    here = table[table["step"] == step]
    chosen = here.iloc[0]
    negatives = here[~here["kind"].isin(["chosen", "absent"])]
    at_boundary = negatives["kind"].isin(["above", "top"])
    count, number = int(at_boundary.sum()), len(negatives)
    several = count != 1
    text = (
        f"User {user} after step {step}: *{said(chosen['name'])}*, the chosen item, is in **place {chosen['place']}** "
        f"of {len(here)}. "
    )
    if (negatives["kind"] == "above").any():
        text += f"**{count}** of {number} negatives {'are' if several else 'is'} at the boundary, ranked above it"
    else:
        text += f"No negative is ranked above it, so the boundary is the top group, **{count}** of {number} negatives"
    total = negatives["push"].sum()
    if not total > 0:
        return f"{text}. There is no push left."
    share = negatives.loc[at_boundary, "push"].sum() / total
    text += f"; {'they get' if several else 'it gets'} **{100 * share:.0f} %** of the push. "
    biggest = negatives.iloc[int(negatives["push"].argmax())]
    pushed = negatives.loc[negatives["used"], "push"]
    if len(pushed) > 1 and np.allclose(pushed, pushed.iloc[0], rtol=1e-6):
        text += f"Each of {len(pushed)} is pushed with **{short(biggest['push'])}**"
    else:
        text += f"The biggest push, **{short(biggest['push'])}**, is on *{said(biggest['name'])}*"
    before = table.loc[table["step"] == table["step"].min(), "push"].max()
    same = plain[(plain["step"] == step) & (plain["candidate"] == biggest["candidate"])]["push"].item()
    if plain is not table:
        return f"{text}; plain {OBJECTIVE_LABELS[objective]} would push it with {short(same)}."
    if step == table["step"].min():
        return f"{text}."
    change = before / biggest["push"]
    times = f"{short(change)} times less" if change >= 1 else f"{short(1 / change)} times more"
    return f"{text}, {times} than the biggest at step {table['step'].min()}."
