"""The collapse as a grid of panels: loss, common yardstick and ranking against the number of negatives."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from minipo.course.figures.style import (
    AVERAGES,
    DYNAMIC_COLOUR,
    INK,
    METRICS,
    NEGATIVES,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    QUIET,
    add_band,
    add_line,
    in_points,
    lay_out,
    level,
    panels,
    points,
    short,
    verdict,
)
from minipo.evaluation import Interval

# Variants of a run in `collapse_grid`: label, colour (None: the objective's own), dash, marker.
VARIANTS = {
    "plain": ("plain", None, "solid", "circle"),
    "dynamic": ("DynamicPO", DYNAMIC_COLOUR, "solid", "circle"),
    "selection alone": ("selection alone", "#56B4E9", "dot", "diamond"),
    "β alone": ("β alone", "#7A5195", "dot", "square"),
    "random |B|": ("random |B|", "#8A8F98", "dot", "x"),
    "hardest |B|": ("hardest |B|", "#1B2430", "dot", "triangle-up"),
}
# Levels drawn as lines in `collapse_grid`, and their dash.
LEVELS = {"oracle": "dot", "more SFT": "dashdot", "SFT": "dash"}


def collapse_sentence(
    objective: str,
    table: pd.DataFrame,
    change: tuple[float, float, float] | None,
    repair: tuple[float, float, float] | None = None,
    parts: Mapping[str, tuple[float, float, float]] | None = None,
    metric: str = "hr@1",
) -> str:
    """Describe `collapse_grid`, in Markdown.

    `change` is `metric` of plain runs at the largest K minus the smallest, `repair` DynamicPO minus plain at the
    largest K: mean, low and high of a paired 95 % interval; None where single users were not recorded. `parts` are
    further such differences, by the name of the variant. If the table has a column `seed` and the seeds disagree on
    whether the training loss falls, the sentence says so.
    """
    plain = table[table["variant"] == "plain"]
    first, last = plain["negatives"].min(), plain["negatives"].max()
    label, name = OBJECTIVE_LABELS[objective], METRICS[metric]
    text = f"From K = {first} to {last}, {label}'s training loss {loss_motion(plain)}; its {name} "
    if change is None:
        few, many = plain.groupby("negatives")[metric].mean()[[first, last]]
        return text + f"goes from {level(few, metric)} to {level(many, metric)}."
    word = verdict(*change[1:])
    said = {"stable": "it is **stable**", "undecided": "that leaves it **undecided**"}.get(word, f"it **{word}**")
    text += f"changes by {points(*change)}: {said}."
    if repair is not None:
        effect = "repairs it" if word == "collapses" else "helps"
        if repair[1] <= 0:
            effect = "hurts" if repair[2] < 0 else "makes no clear difference"
        text += f" At K = {last}, DynamicPO {effect}: {points(*repair)}."
    if parts:
        effects = ", ".join(f"{VARIANTS[part][0]} {in_points(Interval(*found))}" for part, found in parts.items())
        text += f" Its parts, in points against plain: {effects}."
    if "seed" in plain and plain["seed"].nunique() == 1:
        text += " That is one seed, with an interval over users alone: no verdict yet."
    return text


def loss_motion(plain: pd.DataFrame) -> str:
    """How the training loss of plain runs changes from the smallest K to the largest, with the seeds that disagree."""
    means = plain.groupby("negatives")["train_loss"].mean()
    falls = means.iloc[-1] < means.iloc[0]
    text = f"{'falls' if falls else 'rises'} {abs(means.iloc[-1] / means.iloc[0] - 1):.0%}".replace("%", " %")
    change = changes(plain, "train_loss")
    if against := int((change * change.mean() < 0).sum()):
        text += f" on average, but {'rises' if falls else 'falls'} in {against} of {len(change)} seeds"
    return text


def changes(runs: pd.DataFrame, column: str) -> pd.Series:
    """How much each seed's runs change from the smallest K to the largest; empty if the table has no seeds."""
    if "seed" not in runs:
        return pd.Series(dtype=float)
    seeds = runs.pivot_table(index="seed", columns="negatives", values=column)
    return (seeds.iloc[:, -1] - seeds.iloc[:, 0]).dropna()


def motion(values: pd.Series) -> str:
    """How a number moves from the first of `values` to the last: 'falls: 0.50 → 0.20'."""
    first, last = values.iloc[0], values.iloc[-1]
    word = "stays" if short(first) == short(last) else "falls" if last < first else "rises"
    return f"{word}: {short(first)} → {short(last)}"


def apart(levels: Mapping[str, float], gap: float) -> dict[str, float]:
    """Where to write each level's name so that no two are closer than `gap`, as near to the levels as possible."""
    names = sorted(levels, key=lambda name: levels[name])
    places = np.array([levels[name] for name in names])
    for _ in range(len(names)):
        for low in range(len(names) - 1):
            push = max(0.0, gap - (places[low + 1] - places[low])) / 2
            places[low] -= push
            places[low + 1] += push
    return dict(zip(names, places.tolist(), strict=True))


def collapse_grid(
    table: pd.DataFrame,
    objective: str,
    word: str,
    levels: Mapping[str, float],
    metric: str = "hr@1",
    guesses: Mapping[int, float] | None = None,
    hidden: bool = False,
) -> go.Figure:
    """Training loss, pair_loss and a ranking metric against K, in stacked panels: means, in bands over the seeds.

    `table` has one row per run: `variant` (a key of VARIANTS), `negatives`, `train_loss`, `pair_loss` and `metric`, a
    key of METRICS. `word` is `verdict`'s or empty, for the last panel's title. `levels`: of LEVELS, to levels of the
    metric, drawn as lines; the oracle's is only written, above. `guesses`: a viewer's, K to percent, or to the
    metric itself if it is no share. `hidden`: show only the plain runs' training loss, and the metric at the smallest
    K.
    """
    name_of, unit = METRICS[metric], 1 if metric in AVERAGES else 100
    plain = table[table["variant"] == "plain"]
    means = plain.groupby("negatives")[["train_loss", "pair_loss", metric]].mean()
    ticks = sorted(table["negatives"].unique())
    loss = f"Training loss {motion(means['train_loss'])}"
    if "on average" in loss_motion(plain):
        loss = loss.replace(":", " on average:")
    ends = f"{level(means[metric].iloc[0], metric)} → {level(means[metric].iloc[-1], metric)}"
    shown = {
        "train_loss": loss,
        "pair_loss": f"pair_loss {motion(means['pair_loss'])}",
        metric: f"{name_of}{' ' * bool(word)}{word}: {ends}",
    }
    if hidden:
        shown = {"train_loss": loss, metric: f"{name_of}: what do you expect?"}
        table = plain
    heights, bottom = {"train_loss": 0.24, "pair_loss": 0.24, metric: 0.52}, len(shown)
    figure = panels(
        list(shown.values()), rows=bottom, cols=1, shared_xaxes=True, vertical_spacing=0.09,
        row_heights=[heights[column] for column in shown],
    ).update_annotations(x=0, xanchor="left", font_size=15)  # fmt: skip
    for variant, (name, colour, dash, symbol) in VARIANTS.items():
        runs = table[table["variant"] == variant]
        if runs.empty:
            continue
        colour = colour or OBJECTIVE_COLOURS[objective]
        name = f"{name} {OBJECTIVE_LABELS[objective]}" if variant == "plain" else name
        for row, column in enumerate(shown, start=1):
            scale = unit if column == metric else 1
            spread = (runs.groupby("negatives")[column].agg(["mean", "min", "max"]) * scale).sort_index()
            if hidden and column == metric:
                spread = spread.head(1)
            if variant in ("plain", "dynamic"):
                add_band(figure, spread, colour, row=row, col=1)
            add_line(
                figure, spread.index, spread["mean"], name, colour, dash, marker={"symbol": symbol, "size": 8},
                hover=f"{name}, K = %{{x}}<br>%{{y:.3~f}} (seeds %{{customdata[0]:.3~f}} to %{{customdata[1]:.3~f}})",
                customdata=spread[["min", "max"]], legendgroup=variant, showlegend=row == bottom, row=row, col=1,
            )  # fmt: skip
    seen = [unit * means[metric].iloc[0]] if hidden else [*(unit * table[metric])]
    if guesses:
        seen += guesses.values()
        add_line(
            figure, list(guesses), list(guesses.values()), "your guess", INK, "dot", "your guess, K = %{x}: %{y:.3~f}",
            width=2, marker={"symbol": "diamond-open", "size": 11}, row=bottom, col=1,
        )  # fmt: skip
    near = {name: unit * height for name, height in levels.items() if name != "oracle"}
    seen += near.values()
    places = apart(near, 0.38 * max(max(seen) - min(seen), 0.001 * unit))
    label = {"x": 1.01, "xref": "x domain", "xanchor": "left", "align": "left", "font": {"size": 13, "color": QUIET}}
    for name, height in near.items():
        line, text = {"color": QUIET, "width": 1.5, "dash": LEVELS[name]}, f"{name}<br>{level(levels[name], metric)}"
        figure.add_hline(y=height, line=line, row=bottom, col=1)
        figure.add_annotation(text=text, y=places[name], **label, row=bottom, col=1)
    if "oracle" in levels:  # far above every run: with a line of it, their differences would be too small to see
        text = f"oracle<br>{level(levels['oracle'], metric)} ↑"
        figure.add_annotation(text=text, y=1, yref="y domain", yanchor="bottom", **label, row=bottom, col=1)
    rows = 1 if table["variant"].nunique() <= 2 else 2  # of the legend
    height = (350 if hidden else 392) + 28 * rows
    figure.update_xaxes(tickvals=ticks, range=[min(ticks) - 0.5, max(ticks) + 0.5])
    figure.update_xaxes(title_text=NEGATIVES, row=bottom, col=1)
    figure.update_yaxes(nticks=4)
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    lay_out(figure, height, y="nats", margin_t=20 + 26 * rows, margin_r=66, legend_y=1.065)
    return figure.update_yaxes(
        title_text="mean, 0 to 1" if unit == 1 else "% of test users", nticks=7, row=bottom, col=1
    )
