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
    HALO,
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
    "absent": ("not among the K", GRID, "circle"),  # drawn faintly
}
ROW, ABOVE, BELOW = 18, 40, 52  # pixels: of a row, and above and below the rows
LETTER = 0.02  # of a phone's width
COLUMNS = {  # of a negative's push: heading, share of the width, what it means
    "name": ("", 0.29, ""),
    "dilution": ("dilution", 0.15, "the negative's share of the sigmoid's argument"),
    "saturation": ("× saturation", 0.21, "σ(−z): what the sigmoid leaves of the push"),
    "beta": ("× β", 0.13, "the strength with which the negative is pushed"),
    "slope": ("× du/ds", 0.16, "how fast the likelihood, which MPPO compares, grows with the log-prob"),
    "push": ("= push", 0.24, "the derivative of the loss with respect to the negative's log-prob"),
}


def _rows(count: int) -> dict[str, Any]:
    """The layout that both figures share, so that their rows line up."""
    return {
        "template": TEMPLATE,
        "height": ABOVE + ROW * count + BELOW,
        "margin": {"l": 4, "r": 4, "t": ABOVE, "b": BELOW, "autoexpand": False},
        "barmode": "overlay",
        "yaxis": {
            "range": [count + 0.5, 0.5], "tickvals": list(range(1, count + 1)), "showticklabels": False,
            "automargin": False, "fixedrange": True,
        },
    }  # fmt: skip


def candidates(table: pd.DataFrame, step: int) -> go.Figure:
    """A user's candidates (`examine`'s table) at a step on a line of log-probs, the best at the top, each with a tail
    from its log-prob under SFT.

    If no negative is ranked above the chosen item, boxes show the groups of the k-means. The axis is the same for all
    steps, and a button plays them from the first to this one.
    """
    here = table[table["step"] == step]
    ends = table[["logp", "reference"]].to_numpy()
    pad = 0.06 * max(1e-6, np.ptp(ends))
    span = ends.min() - pad, ends.max() + pad
    count, ids, there = len(here), [str(number) for number in here["candidate"]], set(here["kind"])
    colours = [KINDS[kind][1] for kind in here["kind"]]
    names = [as_text(name, 22) for name in here["name"]]
    full = here["used"] | (here["kind"] == "chosen")
    still = {"type": "scatter", "hoverinfo": "skip", "cliponaxis": False, "showlegend": False}
    looks: list[dict[str, Any]] = [
        {**still, "mode": "lines", "line": {"color": SHADE, "width": ROW}},
        {**still, "mode": "lines", "line": {"color": QUIET, "width": 1, "dash": "dot"}},
        {
            "type": "scatter", "mode": "markers", "ids": ids, "showlegend": False, "cliponaxis": False,
            "marker": {
                "symbol": [KINDS[kind][2] for kind in here["kind"]],
                "size": [{"chosen": 14, "above": 11}.get(kind, 10) for kind in here["kind"]],
                "color": [colour if inside else "white" for colour, inside in zip(colours, full, strict=True)],
                "line": {"color": colours, "width": 1.6},
                "opacity": 1,
            },
            "customdata": [[as_text(name), before] for name, before in
                           zip(here["name"], here["reference"], strict=True)],
            "hovertemplate": "%{customdata[0]}<br>log-prob %{x:.2f}, under SFT %{customdata[1]:.2f}<extra></extra>",
        },
        {
            **still, "mode": "text", "ids": ids,
            "text": [
                f"\u2003<b>{name}</b>\u2003" if kind == "chosen" else f"\u2003{name}\u2003"
                for name, kind in zip(names, here["kind"], strict=True)
            ],
            "textfont": {"size": 12.5, "color": _of_names(here), "shadow": HALO},
        },
    ]  # fmt: skip
    legend = [
        {
            "type": "scatter", "mode": "markers", "x": [None], "y": [None], "name": label, "hoverinfo": "skip",
            "marker": {"symbol": symbol, "size": 10, "color": colour}, "showlegend": kind in there,
        }
        for kind, (label, colour, symbol) in KINDS.items()
        if kind != "absent"
    ]  # fmt: skip
    around = 0.25 * pad
    boxes = [
        {
            "type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": BANDS[2 if group == 0 else group % 2],
            "x0": inside["logp"].min() - around, "x1": inside["logp"].max() + around,
            "y0": inside["place"].min() - 0.5, "y1": inside["place"].max() + 0.5,
        }
        for group in range(here["group"].max() + 1)
        for inside in [here[here["group"] == group]]
    ]  # fmt: skip
    # Colours and symbols stay those of this step while it plays, to follow the present boundary.
    frames: list[dict[str, Any]] = [
        {"name": str(each), "data": _places(table[table["step"] == each], span), "traces": list(range(len(looks)))}
        for each in sorted(table["step"].unique())
        if each <= step
    ]
    layout: dict[str, Any] = {
        **_rows(count),
        "shapes": boxes,
        "legend": {"itemsizing": "constant", "itemclick": False, "itemdoubleclick": False, "font": {"size": 12.5}},
        "xaxis": {"range": span, "automargin": False, "fixedrange": True, "nticks": 7},
        "annotations": [_note("log-prob, nats; tails begin at SFT", x=0, yshift=-20)],
    }  # fmt: skip
    if len(frames) > 1:
        moving = {"duration": 700, "easing": "cubic-in-out"}
        how = {"mode": "immediate", "frame": {"duration": 800, "redraw": False}, "transition": moving}
        layout["updatemenus"] = [
            {
                "type": "buttons", "showactive": False, "x": 1, "xanchor": "right", "y": 0, "yanchor": "top",
                "pad": {"t": 16, "r": 2}, "bgcolor": "white", "bordercolor": GRID, "font": {"size": 12, "color": QUIET},
                "buttons": [{"label": "▶ play", "method": "animate", "args": [[each["name"] for each in frames], how]}],
            }
        ]  # fmt: skip
    data = [{**look, **at} for look, at in zip(looks, frames[-1]["data"], strict=True)]
    return go.Figure(data=[*data, *legend], layout=layout, frames=frames if len(frames) > 1 else None)


def _note(text: str, x: int, yshift: int) -> dict[str, Any]:
    """A remark below the rows, at the left (x = 0) or the right end."""
    place = {"xref": "paper", "x": x, "xanchor": "right" if x else "left", "yref": "paper", "y": 0, "yanchor": "top"}
    return {"text": text, **place, "yshift": yshift, "font": {"size": 12, "color": QUIET}}


def _of_names(here: pd.DataFrame) -> list[str]:
    """The names' colours, strongest at the boundary."""
    return [{"absent": FAINT, "rest": QUIET}.get(kind, INK) for kind in here["kind"]]


def _places(here: pd.DataFrame, span: tuple[float, float]) -> list[dict[str, Any]]:
    """Where everything that moves in `candidates` is at one step: the chosen item's row, and the line through it; the
    candidates; their names."""
    low, high = span
    logp, reference, place = (here[name].to_numpy() for name in ("logp", "reference", "place"))
    right, left = np.maximum(logp, reference), np.minimum(logp, reference)
    # A name is to the right of the dot and its tail, or to the left if there is more room.
    width = LETTER * (high - low) * (2 + here["name"].str.len().clip(upper=22).to_numpy())
    behind = (high - right > width) | (high - right > left - low)
    return [
        {"x": span, "y": [place[0], place[0]]},
        {"x": [logp[0], logp[0]], "y": [0.5, len(here) + 0.5]},
        {
            "x": logp, "y": place,
            "error_x": {
                "type": "data", "symmetric": False, "array": np.maximum(reference - logp, 0),
                "arrayminus": np.maximum(logp - reference, 0), "color": FAINT, "thickness": 1.2, "width": 0,
            },
        },
        {"x": np.where(behind, right, left), "y": place,
         "textposition": np.where(behind, "middle right", "middle left")},
    ]  # fmt: skip


def pushes(table: pd.DataFrame, step: int) -> go.Figure:
    """How hard each negative of `examine`'s table is pushed at a step, as bars in the rows of `candidates`.

    The columns are push = dilution × saturation × β (× du/ds, for MPPO); each has its own scale, the same for all
    steps, so that bars of different steps can be compared.
    """
    here = table[table["step"] == step]
    count, ids = len(here), [str(number) for number in here["candidate"]]
    place, used = here["place"].to_numpy(), here["used"].to_numpy()
    likelihood = not np.allclose(table.loc[table["used"], "slope"], 1)
    columns = [name for name in COLUMNS if name != "slope" or likelihood]
    letters, size = (13, 11) if likelihood else (17, 12)
    widths = np.array([COLUMNS[name][1] for name in columns])
    starts = np.cumsum(widths / widths.sum()) - widths / widths.sum()
    colours = {
        "dilution": DILUTION_COLOUR, "saturation": SATURATION_COLOUR, "beta": FAINT, "slope": DILUTION_COLOUR,
        "push": [KINDS[kind][1] for kind in here["kind"]],
    }  # fmt: skip
    names = [as_text(name, 40) for name in here["name"]]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "text", "x": [0] * count, "y": place, "ids": ids, "textposition": "middle right",
            "text": [
                f"<b>{as_text(name, letters)}</b>" if kind == "chosen" else as_text(name, letters)
                for name, kind in zip(here["name"], here["kind"], strict=True)
            ],
            "textfont": {"size": 12, "color": _of_names(here)},
            "hoverinfo": "skip", "cliponaxis": False,
        }
    ]  # fmt: skip
    axes: dict[str, Any] = {"xaxis": {"domain": [0, starts[1]], "range": [0, 1], "visible": False, "fixedrange": True}}
    headings = []
    for number, name in enumerate(columns[1:], 2):
        heading, width, meaning = COLUMNS[name]
        start = starts[number - 1]
        values = here[name].to_numpy()
        room = 2 if name == "push" else 2.7  # for the number behind the longest bar
        domain, reach = [start, min(1.0, start + width / widths.sum())], [0, room * max(table[name].max(), 1e-12)]
        axes[f"xaxis{number}"] = {"domain": domain, "range": reach, "visible": False, "fixedrange": True, "anchor": "y"}
        data.append(
            {
                "type": "bar", "orientation": "h", "x": values, "y": place, "width": 0.62, "xaxis": f"x{number}",
                "ids": ids, "marker": {"color": colours[name], "line": {"width": 0}}, "customdata": names,
                "text": [
                    (f"<b>{short(value)}</b>" if name == "push" else short(value)) if inside else ""
                    for value, inside in zip(values, used, strict=True)
                ],
                "textposition": "outside", "textfont": {"size": 12, "color": INK if name == "push" else QUIET},
                "cliponaxis": False, "constraintext": "none",
                "hovertemplate": f"%{{customdata}}<br>{name} %{{x:.3g}}<extra></extra>",
            }
        )  # fmt: skip
        headings.append(
            {
                "text": f"<b>{heading}</b>" if name == "push" else heading,
                "xref": "paper", "x": start, "yref": "paper", "y": 1, "yanchor": "bottom", "xanchor": "left",
                "hovertext": meaning,
                "font": {"size": size, "color": INK if name == "push" else QUIET},
            }
        )  # fmt: skip
    note = _note("each column has its own scale, the same for all steps", x=1, yshift=-6)
    at = here["place"].iloc[0]
    band = {
        "type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": at - 0.5, "y1": at + 0.5, "layer": "below",
        "fillcolor": SHADE, "line": {"width": 0},
    }  # fmt: skip
    return go.Figure(
        data=data,
        layout={
            **_rows(count),
            **axes,
            "showlegend": False,
            "plot_bgcolor": "rgba(0,0,0,0)",  # else a column's own ground lies on the row of the chosen item
            "annotations": [*headings, note],
            "shapes": [band],
        },
    )


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
