"""The page Suppression: pushes by group over training and against K, and the sentences that read them aloud."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from minipo.course.diagnostics import by_group
from minipo.course.figures.style import (
    DYNAMIC_COLOUR,
    INK,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    TEMPLATE,
    short,
)
from minipo.course.figures.suppression import GROUPS, _percent, _title
from minipo.experiments.records import Recorded
from minipo.objectives import log_ratio
from minipo.preference import OBJECTIVES

TRAINING, VALIDATION = "training users", "validation users"
# Dash and marker of a group where the colour tells the objective.
DASHES = {"boundary": ("solid", "diamond"), "discriminative": ("dot", "circle"), "": ("solid", "circle")}
RUN = ["objective", "negatives", "dynamic", "seed"]
NO_EASY = "At K = 1 the only negative counts as boundary"


def logged_pushes(grid: Recorded) -> pd.DataFrame:
    """What a grid's runs logged of their pushes, each time on the training batch of that step: a row a run and step.

    Columns: `objective, negatives, dynamic, seed, step`; `push_boundary` and `push_discriminative`, means over the
    group's negatives, nan where it has none; `boundary_share`, the boundary's part of the negatives, and `push_share`,
    its part of all push; `saturation`, σ(−z) averaged over negatives, nan where the log does not tell it; `users`.
    A plain loss of log-ratios pushes a user's negatives by β σ(−z) in all, so its pushes tell σ(−z) (for DPO the mean
    of σ(−d_k)); DynamicPO's and MPPO's do not. Raises ValueError if the grid holds no pushes.
    """
    needed = ["push_boundary", "push_discriminative", "boundary_share"]
    if not {*needed} <= {*grid.curves}:
        raise ValueError(f"The recorded grid {grid.folder.name!r} holds no pushes; make it again with data/record.py.")
    lines = grid.curves.loc[grid.curves["kind"] == "metrics", ["run", "step", *needed]]
    table = lines.merge(grid.table[[*RUN, "beta"]], left_on="run", right_index=True).drop(columns="run")
    table = table[table["objective"].isin(OBJECTIVE_LABELS)].reset_index(drop=True)
    share = table["boundary_share"]
    boundary, easy = share * table["push_boundary"].fillna(0), (1 - share) * table["push_discriminative"].fillna(0)
    telling = {name for name, each in OBJECTIVES.items() if each.utility is log_ratio and not each.selects}
    told = (table["dynamic"] == "off") & table["objective"].isin(telling)
    return table.assign(
        push_share=boundary / (boundary + easy),
        saturation=(table["negatives"] * (boundary + easy) / table["beta"]).where(told),
        users=TRAINING,
    )


def probed_pushes(pushed: pd.DataFrame, census: str = "boundary") -> pd.DataFrame:
    """The table of `pushes` in the columns of `logged_pushes`, a row a step, but for those that name the run.

    census: as in `by_group`. More columns: `dilution_boundary`, `dilution_discriminative`, and `alike`, whether every
    negative is pushed alike at that step. Saturation is averaged over the negatives in use.
    """
    groups = by_group(pushed, census).set_index(["step", "group"])
    columns = pd.MultiIndex.from_product([("push", "dilution"), GROUPS])
    wide: pd.DataFrame = groups[["push", "dilution"]].unstack()  # type: ignore[assignment]
    table = wide.reindex(columns=columns).set_axis(["_".join(name) for name in columns], axis=1)
    boundary, steps = groups.xs("boundary", level="group"), pushed.groupby("step")
    highest, lowest = steps["push"].max(), steps["push"].min()
    return table.assign(
        boundary_share=boundary["negatives"] / steps.size(),
        push_share=boundary["push_share"],
        saturation=pushed[pushed["used"]].groupby("step")["saturation"].mean(),
        alike=highest - lowest <= 1e-6 * highest,
        users=VALIDATION,
    ).reset_index()


def at_end(table: pd.DataFrame) -> pd.DataFrame:
    """Each run of `logged_pushes`' table, averaged over the last tenth of its steps."""
    late = table[table["step"] > 0.9 * table["step"].max()]
    return late.groupby([*RUN, "users"], as_index=False, sort=False).mean(numeric_only=True)


def push_lines(
    table: pd.DataFrame,
    columns: Mapping[str, str],
    over: str,
    title: str,
    axis: str,
    *,
    logarithmic: bool = False,
    spread: bool = True,
    beside: tuple[str, pd.DataFrame] | None = None,
) -> go.Figure:
    """Columns of `logged_pushes`' or `probed_pushes`' table against `over`, "step" or "negatives": means over seeds.

    columns: to the group that each is about, or "". Of one objective, groups are drawn as everywhere; of several, the
    colour tells the objective and the dash the group. Open marks are validation users'. spread: bands from the lowest
    to the highest seed. beside: a name and a table with some of the same columns, drawn dotted. What is not above zero
    has no place on a logarithmic axis, and is left out.
    """
    figure = go.Figure()
    several = table["objective"].nunique() > 1
    for objective, runs in table.groupby("objective", sort=False):
        label, users = OBJECTIVE_LABELS[str(objective)], runs["users"].iloc[0]
        for column, group in columns.items():
            group_label = GROUPS[group][0] if group else ""
            dash, symbol = DASHES[group]
            colour = OBJECTIVE_COLOURS[str(objective)]
            if not several:
                dynamic = runs["dynamic"].iloc[0] == "on"
                dash, colour = "solid", GROUPS[group][1] if group else DYNAMIC_COLOUR if dynamic else colour
            values = runs.groupby(over)[column].agg(["mean", "min", "max"]).dropna()
            values = values[values["min"] > 0] if logarithmic else values
            if values.empty:
                continue
            if spread and (values["max"] > values["min"]).any():
                figure.add_scatter(
                    x=[*values.index, *values.index[::-1]], y=[*values["max"], *values["min"][::-1]], fill="toself",
                    fillcolor=colour, opacity=0.16, line_width=0, mode="lines", hoverinfo="skip", showlegend=False,
                )  # fmt: skip
            name = ", ".join(filter(None, (label, group_label)))
            # Of a few K only, nothing is known between two of them.
            mode = "markers" if users == VALIDATION and over == "negatives" else "lines+markers"
            figure.add_scatter(
                x=values.index, y=values["mean"], name=label if several else group_label or label,
                showlegend=not several or group != "discriminative", mode=mode,
                line={"color": colour, "width": 2.5, "dash": dash},
                marker={"symbol": symbol + "-open" * (users == VALIDATION), "size": 8 if len(values) < 12 else 4},
                customdata=values[["min", "max"]],
                hovertemplate=f"{name}, {users}: %{{y:.3~g}}"
                + " (seeds %{customdata[0]:.3~g} to %{customdata[1]:.3~g})" * (users == TRAINING) + "<extra></extra>",
            )  # fmt: skip
            if beside is not None and column in beside[1]:
                figure.add_scatter(
                    x=beside[1][over], y=beside[1][column], mode="lines", name=beside[0],
                    showlegend=column == next(iter(columns)),
                    line={"color": colour, "width": 1.5, "dash": "dot"},
                    hovertemplate=f"{name}, {beside[0]}: %{{y:.3~g}}<extra></extra>",
                )  # fmt: skip
    if several and len(columns) > 1:  # what the dashes mean
        for group in GROUPS:
            dash, symbol = DASHES[group]
            figure.add_scatter(
                x=[None], y=[None], mode="lines+markers", name=GROUPS[group][0], marker={"symbol": symbol, "size": 8},
                line={"color": INK, "width": 2.5, "dash": dash},
            )  # fmt: skip
    figure.update_layout(template=TEMPLATE, height=376, title=_title(title), margin={"t": 70})
    figure.update_layout(showlegend=several or len(columns) > 1 or beside is not None)
    if over == "step":
        figure.update_xaxes(title_text="step")
    else:
        ticks = sorted(table[over].unique())
        figure.update_xaxes(title_text="K, negatives per training example", tickvals=ticks)
    figure.update_yaxes(title_text=axis, tickformat="~g")
    if logarithmic:
        # Bands have no name, and may be cut.
        drawn = np.concatenate([trace.y for trace in figure.data if trace.name], dtype=float, casting="unsafe")
        low, high = np.log10(np.nanmin(drawn)), np.log10(np.nanmax(drawn))
        figure.update_yaxes(
            type="log", dtick="D2" if high - low < 2.3 else 1, exponentformat="none", range=[low - 0.25, high + 0.15]
        )
    else:
        figure.update_yaxes(rangemode="tozero", nticks=6)
    return figure


def share_lines(table: pd.DataFrame, over: str, title: str, *, spread: bool = True) -> go.Figure:
    """The boundary's part of all push against `over`, in %; of one objective, dotted, its part of the negatives too."""
    table = table.assign(push_share=100 * table["push_share"])
    counted = 100 * table.groupby(over)["boundary_share"].mean().rename("push_share")
    beside = ("part of the negatives", counted.reset_index()) if table["objective"].nunique() == 1 else None
    figure = push_lines(table, {"push_share": ""}, over, title, "% of all push", spread=spread, beside=beside)
    return figure.update_yaxes(range=[0, 104])


def training_sentence(table: pd.DataFrame, plain: pd.DataFrame | None = None) -> str:
    """Read pushes over training aloud, in Markdown: runs of one K, of one objective or of several.

    plain: the same runs without DynamicPO, if `table`'s are with it.
    """
    objectives = list(dict.fromkeys(table["objective"]))
    negatives, last = int(table["negatives"].iloc[0]), at_end(table)
    if len(objectives) > 1:
        if negatives == 1:
            return "At K = 1 the only negative counts as boundary, and all push is on it."
        shares = last.groupby("objective", sort=False)["push_share"].mean()
        counted = f"At K = {negatives} the boundary is {_range(last, 'boundary_share')} of the negatives at the end"
        if (shares > 1 - 1e-9).all():
            return f"{counted}, and all push is on it: nothing pushes the easy ones."
        told = ", ".join(f"{OBJECTIVE_LABELS[name]} **{_percent(shares[name])}**" for name in objectives)
        return f"{counted}; of all push, it gets: {told}."
    begin = table[table["step"] == table["step"].min()].mean(numeric_only=True)
    end = last.mean(numeric_only=True)
    label = OBJECTIVE_LABELS[objectives[0]] + " with DynamicPO" * (table["dynamic"].iloc[0] == "on")
    since = "before training" if begin["step"] == 0 else f"step {begin['step']:.0f}"
    text = f"At K = {negatives}, from {since} to the end, {label}'s push on a boundary negative "
    text += _change(begin["push_boundary"], end["push_boundary"])
    if end["push_discriminative"] > 0:
        text += f", on an easy one it {_change(begin['push_discriminative'], end['push_discriminative'])}"
    if np.isfinite(end["saturation"]):
        text += f": σ(−z) goes from {short(begin['saturation'])} to {short(end['saturation'])}"
    text += ". "
    if end["push_discriminative"] > 0:
        text += (
            f"At the end the boundary is {_percent(end['boundary_share'])} of the negatives and gets "
            f"**{_percent(end['push_share'])}** of all push."
        )
    else:
        text += f"{NO_EASY}." if negatives == 1 else "The easy ones are left out."
    if plain is not None and not plain.empty:
        ratio = end["push_boundary"] / at_end(plain)["push_boundary"].mean()
        text += f" The push on a boundary negative is **{_times(ratio)}** the plain run's."
    return text


def negatives_sentence(table: pd.DataFrame, before: pd.DataFrame | None = None) -> str:
    """Read pushes at the end of training against K aloud, in Markdown. before: `push_boundary` before training, by
    `negatives`, of the one objective."""
    last = at_end(table)
    groups = last.groupby(["objective", "negatives"], sort=False).mean(numeric_only=True)
    objectives = list(dict.fromkeys(last["objective"]))
    both = sorted(last.loc[last["push_discriminative"].notna(), "negatives"].unique())
    ends = both if len(both) > 1 else sorted(last["negatives"].unique())
    first, final = int(ends[0]), int(ends[-1])
    if first == final:
        return f"Recorded at K = {first} alone."
    if len(objectives) > 1:
        told = []
        for name in objectives:
            one, other = (groups.loc[(name, k), "push_boundary"] for k in (first, final))
            told.append(f"{OBJECTIVE_LABELS[name]} {_change(one, other)}")
        return (
            f"From K = {first} to {final}, the push on a boundary negative at the end of training, by objective: "
            + (f"{', '.join(told)}.")
        )
    name = objectives[0]
    start, end = groups.loc[(name, first)], groups.loc[(name, final)]
    label = OBJECTIVE_LABELS[name] + " with DynamicPO" * (last["dynamic"].iloc[0] == "on")
    text = f"From K = {first} to {final}, {label}'s push on a boundary negative at the end of training "
    text += f"**{_change(start['push_boundary'], end['push_boundary'])}**"
    if before is not None:
        untrained = before.set_index("negatives")["push_boundary"]
        text += f"; before training it {_change(untrained[first], untrained[final])}"
    text += "."
    if start["push_discriminative"] > 0 and end["push_discriminative"] > 0:
        text += f" On an easy one it {_change(start['push_discriminative'], end['push_discriminative'])} at the end;"
        text += f" the boundary's part of all push goes from {_percent(start['push_share'])} to "
        text += f"{_percent(end['push_share'])}."
    if np.isfinite(start["saturation"]) and np.isfinite(end["saturation"]):
        text += f" σ(−z) goes from {short(start['saturation'])} to {short(end['saturation'])}."
    return text


def reading_sentence(begin: pd.DataFrame, logged: pd.DataFrame, probed: pd.DataFrame | None = None) -> str:
    """What a careful reader objects to, in Markdown, as far as it is seen in the numbers of one objective and K.

    begin: `probed_pushes` before training. logged: its runs' `logged_pushes`. probed: one run's `probed_pushes`.
    """
    row = begin.iloc[0]
    if row["alike"]:
        text = f"Before training every push is the same, {short(row['push_boundary'])}: suppression is something that "
        text += "training does."
    else:
        text = f"Before training, validation users' boundary negatives are pushed by {short(row['push_boundary'])}"
        text += " on average"
        if row["push_discriminative"] > 0:
            text += f", easy ones by {short(row['push_discriminative'])}: not all of the difference is training's"
        text += "."
    if probed is not None:
        trained, fresh = at_end(logged)["push_boundary"].mean(), probed.iloc[-1]["push_boundary"]
        content = "more" if trained < fresh else "less"
        text += (
            f" At the end a boundary negative of a training user is pushed by {short(trained)}, one of a validation "
            f"user would be by {short(fresh)}: the loss is {content} content with the users that it was fitted to."
        )
    return text


def _change(before: float, after: float) -> str:
    if not before > 0 or not after > 0:
        return f"goes from {short(before)} to {short(after)}"
    fold = before / after
    if 0.95 < fold < 1.05:
        return f"stays at {short(after)}"
    return f"falls {short(fold)}-fold" if fold > 1 else f"grows {short(1 / fold)}-fold"


def _times(ratio: float) -> str:
    return f"{short(ratio)} times"


def _range(table: pd.DataFrame, column: str) -> str:
    shares = table.groupby("objective")[column].mean()
    low, high = f"{100 * shares.min():.0f}", _percent(shares.max())
    return high if high.startswith(low) else f"{low} to {high}"
