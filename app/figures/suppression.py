"""The page Suppression: pushes by group over training and against K, and the sentences that describe them."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from minipo.course.diagnostics import by_group
from minipo.course.figures.style import (
    DYNAMIC_COLOUR,
    INK,
    LOG,
    NEGATIVES,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    add_band,
    add_line,
    lay_out,
    percent,
    short,
)
from minipo.course.figures.suppression import GROUPS
from minipo.experiments.records import Recorded
from minipo.objectives import log_ratio
from minipo.preference import OBJECTIVES

TRAINING, VALIDATION = "training users", "validation users"
# Dash and marker of a group where the colour shows the objective.
DASHES = {"boundary": ("solid", "diamond"), "discriminative": ("dot", "circle"), "": ("solid", "circle")}
RUN = ["objective", "negatives", "dynamic", "seed"]
NO_EASY = "At K = 1 the only negative counts as boundary"


def logged_pushes(grid: Recorded) -> pd.DataFrame:
    """The pushes that a grid's runs logged, each time on the training batch of that step: one row per run and step.

    Columns: `objective, negatives, dynamic, seed, step`; `push_boundary` and `push_discriminative`, means over the
    group's negatives, nan if it has none; `boundary_share`, the boundary's part of the negatives, and `push_share`, its
    part of all push; `saturation`, σ(−z) averaged over negatives, nan where the log does not determine it; `users`.
    A plain loss of log-ratios pushes a user's negatives by β σ(−z) in all, so its pushes determine σ(−z) (for DPO the
    mean of σ(−d_k)); DynamicPO's and MPPO's do not. Raises ValueError if the grid holds no pushes.
    """
    needed = ["push_boundary", "push_discriminative", "boundary_share"]
    if not {*needed} <= {*grid.curves}:
        raise ValueError(f"The recorded grid {grid.folder.name!r} holds no pushes; make it again with data/record.py.")
    lines = grid.curves.loc[grid.curves["kind"] == "metrics", ["run", "step", *needed]]
    table = lines.merge(grid.table[[*RUN, "beta"]], left_on="run", right_index=True).drop(columns="run")
    table = table[table["objective"].isin(OBJECTIVE_LABELS)].reset_index(drop=True)
    share = table["boundary_share"]
    boundary, easy = share * table["push_boundary"].fillna(0), (1 - share) * table["push_discriminative"].fillna(0)
    known = {name for name, each in OBJECTIVES.items() if each.utility is log_ratio and not each.selects}
    plain = (table["dynamic"] == "off") & table["objective"].isin(known)
    return table.assign(
        push_share=boundary / (boundary + easy),
        saturation=(table["negatives"] * (boundary + easy) / table["beta"]).where(plain),
        users=TRAINING,
    )


def probed_pushes(pushed: pd.DataFrame, census: str = "boundary") -> pd.DataFrame:
    """The table of `pushes` in the columns of `logged_pushes`, one row per step, without those that name the run.

    census: as in `by_group`. More columns: `dilution_boundary`, `dilution_discriminative`, and `alike`, whether every
    negative is pushed alike at that step. Saturation is averaged over the negatives in use.
    """
    groups = by_group(pushed, census).set_index(["step", "group"])
    columns = pd.MultiIndex.from_product([["push", "dilution"], [*GROUPS]])
    wide: pd.DataFrame = groups[["push", "dilution"]].unstack()  # pyrefly: ignore[bad-assignment]
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

    columns: column to its group, or "". With one objective, groups are drawn as everywhere; with several, the colour
    shows the objective and the dash the group. Open markers are validation users'. spread: bands from the lowest to the
    highest seed. beside: a name and a table with some of the same columns, drawn dotted. Values that are not above zero
    are left out of a logarithmic axis.
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
                add_band(figure, values, colour)
            name = ", ".join(filter(None, (label, group_label)))
            seeds = " (seeds %{customdata[0]:.3~g} to %{customdata[1]:.3~g})" * (users == TRAINING)
            # For a few K only, nothing is known between two of them.
            mode = "markers" if users == VALIDATION and over == "negatives" else "lines+markers"
            add_line(
                figure, values.index, values["mean"], label if several else group_label or label, colour, dash,
                f"{name}, {users}: %{{y:.3~g}}{seeds}", mode=mode, customdata=values[["min", "max"]],
                marker={"symbol": symbol + "-open" * (users == VALIDATION), "size": 8 if len(values) < 12 else 4},
                showlegend=not several or group != "discriminative",
            )  # fmt: skip
            if beside is not None and column in beside[1]:
                add_line(
                    figure, beside[1][over], beside[1][column], beside[0], colour, "dot",
                    f"{name}, {beside[0]}: %{{y:.3~g}}", width=1.5, showlegend=column == next(iter(columns)),
                )  # fmt: skip
    if several and len(columns) > 1:  # what the dashes mean
        for group in GROUPS:
            dash, symbol = DASHES[group]
            add_line(figure, [None], [None], GROUPS[group][0], INK, dash, marker={"symbol": symbol, "size": 8})
    if over != "step":
        figure.update_xaxes(tickvals=sorted(table[over].unique()))
    figure.update_yaxes(tickformat="~g")
    figure.update_yaxes(LOG if logarithmic else {"rangemode": "tozero", "nticks": 6})
    legend = several or len(columns) > 1 or beside is not None
    return lay_out(figure, 376, title, "step" if over == "step" else NEGATIVES, axis, margin_t=70, showlegend=legend)


def share_lines(table: pd.DataFrame, over: str, title: str, *, spread: bool = True) -> go.Figure:
    """The boundary's part of all push against `over`, in %; for one objective also, dotted, of the negatives."""
    table = table.assign(push_share=100 * table["push_share"])
    counted = 100 * table.groupby(over)["boundary_share"].mean().rename("push_share")
    beside = ("part of the negatives", counted.reset_index()) if table["objective"].nunique() == 1 else None
    figure = push_lines(table, {"push_share": ""}, over, title, "% of all push", spread=spread, beside=beside)
    return figure.update_yaxes(range=[0, 104])


def training_sentence(table: pd.DataFrame, plain: pd.DataFrame | None = None) -> str:
    """Describe pushes over training, in Markdown: runs of one K, of one or several objectives.

    plain: the same runs without DynamicPO, if `table`'s are with it.
    """
    negatives, last = int(table["negatives"].iloc[0]), at_end(table)
    if last["objective"].nunique() > 1:
        if negatives == 1:
            return f"{NO_EASY}, and all push is on it."
        means = last.groupby("objective", sort=False)[["boundary_share", "push_share"]].mean()
        parts = ", ".join(f"{OBJECTIVE_LABELS[str(name)]} **{percent(gets)}**" for name, _, gets in means.itertuples())
        counted = percent(means["boundary_share"].mean())
        return (
            f"At K = {negatives} the boundary is {counted} of the negatives at the end; of all push, it gets: {parts}."
        )
    begin, end = table[table["step"] == table["step"].min()].mean(numeric_only=True), last.mean(numeric_only=True)
    since = "before training" if begin["step"] == 0 else f"step {begin['step']:.0f}"
    text = f"At K = {negatives}, from {since} to the end, {_moved(last, begin, end)}"
    if not end["push_discriminative"] > 0:
        text += f" {NO_EASY}." if negatives == 1 else " The easy ones are left out."
    if plain is not None and not plain.empty:
        ratio = end["push_boundary"] / at_end(plain)["push_boundary"].mean()
        text += f" The push on a boundary negative is **{short(ratio)} times** the plain run's."
    return text


def negatives_sentence(table: pd.DataFrame, before: pd.DataFrame | None = None) -> str:
    """Describe pushes at the end of training against K, in Markdown. before: `push_boundary` before training, by
    `negatives`, of the one objective."""
    last = at_end(table)
    both = last[last["push_discriminative"].notna()]
    counted = (both if both["negatives"].nunique() > 1 else last)["negatives"]
    ends = int(counted.min()), int(counted.max())
    if ends[0] == ends[1]:
        return f"Recorded only at K = {ends[0]}."
    means = last.groupby(["objective", "negatives"], sort=False).mean(numeric_only=True)
    when = f"From K = {ends[0]} to {ends[1]}, at the end of training,"
    names = list(last["objective"].unique())
    if len(names) > 1:
        changes = (
            f"{OBJECTIVE_LABELS[name]} {_change(*(means.loc[(name, k), 'push_boundary'] for k in ends))}"
            for name in names
        )
        return f"{when} the push on a boundary negative, by objective: {', '.join(changes)}."
    text = f"{when} {_moved(last, *(means.loc[(names[0], k)] for k in ends))}"
    if before is not None:
        untrained = before.set_index("negatives")["push_boundary"]
        text += f" Before training, the push on a boundary negative {_change(*(untrained[k] for k in ends))}."
    return text


def _moved(runs: pd.DataFrame, start: pd.Series, end: pd.Series) -> str:
    """From one mean over runs of one objective to another: the pushes, σ(−z) and the boundary's part."""
    label = OBJECTIVE_LABELS[runs["objective"].iloc[0]] + " with DynamicPO" * (runs["dynamic"].iloc[0] == "on")
    text = f"{label}'s push on a boundary negative **{_change(start['push_boundary'], end['push_boundary'])}**"
    easy = end["push_discriminative"] > 0
    if easy:
        text += f", on an easy one it {_change(start['push_discriminative'], end['push_discriminative'])}"
    if np.isfinite(end["saturation"]):
        text += f"; σ(−z) goes from {short(start['saturation'])} to {short(end['saturation'])}"
    if easy:
        text += f". The boundary's part of all push goes from {percent(start['push_share'])} to "
        text += f"**{percent(end['push_share'])}**; it ends as {percent(end['boundary_share'])} of the negatives"
    return f"{text}."


def reading_sentence(begin: pd.DataFrame, logged: pd.DataFrame, probed: pd.DataFrame | None = None) -> str:
    """A careful reader's objections, in Markdown, as far as the numbers of one objective and K show them.

    begin: `probed_pushes` before training. logged: its runs' `logged_pushes`. probed: one run's `probed_pushes`.
    """
    row = begin.iloc[0]
    if row["alike"]:
        text = f"Before training every push is the same, {short(row['push_boundary'])}: training causes suppression."
    else:
        text = f"Before training, validation users' boundary negatives are pushed by {short(row['push_boundary'])}"
        text += " on average"
        if row["push_discriminative"] > 0:
            text += f", easy ones by {short(row['push_discriminative'])}: training causes only part of the difference"
        text += "."
    if probed is not None:
        trained, fresh = at_end(logged)["push_boundary"].mean(), probed.iloc[-1]["push_boundary"]
        smaller = "smaller" if trained < fresh else "larger"
        text += (
            f" At the end a boundary negative of a training user is pushed by {short(trained)}, one of a validation "
            f"user would be by {short(fresh)}: the push is {smaller} on the users that the model was fitted to."
        )
    return text


def _change(before: float, after: float) -> str:
    if not before > 0 or not after > 0:
        return f"goes from {short(before)} to {short(after)}"
    fold = before / after
    if 0.95 < fold < 1.05:
        return f"stays at {short(after)}"
    return f"falls {short(fold)}-fold" if fold > 1 else f"grows {short(1 / fold)}-fold"
