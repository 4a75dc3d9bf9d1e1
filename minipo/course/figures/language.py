"""Figures of notebooks 00 and 01: two runs side by side, differences with intervals, and ranking by log-probs."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float

from minipo.course.figures.style import (
    DYNAMIC_COLOUR,
    FAINT,
    GRID,
    INK,
    OBJECTIVE_COLOURS,
    QUIET,
    SHADE,
    add_level,
    add_line,
    lay_out,
    level,
    panels,
    ranking_bars,
    short,
)
from minipo.evaluation import Interval

SFT_COLOUR = "#56B4E9"  # the model that every run starts from
SAME, OTHER = INK, "#A9B3C1"  # negatives of the chosen item's genre, and of others


def _compared(values: Mapping[int, float], shown: Callable[[float], str]) -> str:
    """'higher at K = 19:<br>0.36, not 0.30', from a number at the smaller and at the larger K."""
    (_, early), (large, late) = values.items()
    if shown(late) == shown(early):
        return f"the same at K = {large}:<br>{shown(late)}"
    return f"{'higher' if late > early else 'lower'} at K = {large}:<br>{shown(late)}, not {shown(early)}"


def two_runs(metrics: Mapping[int, pd.DataFrame], evaluations: Mapping[int, pd.DataFrame]) -> go.Figure:
    """DMPO at two K, smaller first: training loss, pair_loss and validation HR@1 over steps, beside the SFT level.

    metrics: K to `Run.metrics` (step, loss); evaluations: K to `Run.evaluation` (step, pair_loss, hr@1). The panels'
    titles compare the last value of each, for the training loss the mean of the last three rows.
    """
    small, large = metrics
    loss = {k: float(table["loss"].tail(3).mean()) for k, table in metrics.items()}
    yardstick, hits = (
        {k: float(table[name].iloc[-1]) for k, table in evaluations.items()} for name in ("pair_loss", "hr@1")
    )
    titles = (
        ("Training loss", _compared(loss, short)),
        ("pair_loss, validation", _compared(yardstick, "{:.2f}".format)),
        ("HR@1, validation", _compared(hits, level)),
    )
    figure = panels([f"{name}<br><b>{text}</b>" for name, text in titles], horizontal_spacing=0.09)
    for k, dash in ((small, "dot"), (large, "solid")):
        for column, (table, name, scale) in enumerate(
            ((metrics[k], "loss", 1), (evaluations[k], "pair_loss", 1), (evaluations[k], "hr@1", 100)), start=1
        ):
            marker = {"size": 7, "symbol": "circle" if dash == "solid" else "circle-open"} if column > 1 else None
            add_line(
                figure, table["step"], scale * table[name], f"DMPO, K = {k}", OBJECTIVE_COLOURS["dmpo"], dash,
                f"K = {k}, step %{{x}}: %{{y:.4~f}}", panel=column, marker=marker,
            )  # fmt: skip
    start = evaluations[small]["hr@1"].iloc[0]
    add_level(figure, 100 * start, f"SFT {level(start)}", row=1, col=3)
    figure.update_yaxes(nticks=5)
    figure.update_yaxes(rangemode="tozero", col=1)
    figure.update_yaxes(nticks=6, col=3)
    return lay_out(figure, 350, x="step", y=("nats", "nats", "% of users"), margin_t=104, legend_y=1.32)


def sft_growth(looks: pd.DataFrame, shipped: pd.DataFrame, levels: Mapping[str, float]) -> go.Figure:
    """SFT's loss and validation HR@1 against epochs: a run evaluated during training, and shipped checkpoints.

    looks, shipped: columns `epochs`, `loss` (nats per token), `hr@1`; each shipped checkpoint is the end of another
    run. levels: validation HR@1 of baselines, drawn as lines.
    """
    begin, end = looks.iloc[0], looks.iloc[-1]
    rise = "rises" if end["hr@1"] > begin["hr@1"] else "does not rise"
    titles = [
        f"Loss, {short(begin['loss'])} → {short(end['loss'])} nats per token",
        f"HR@1 {rise}: {level(begin['hr@1'])} → {level(end['hr@1'])}",
    ]
    figure = panels(titles)
    for column, (name, scale) in enumerate((("loss", 1), ("hr@1", 100)), start=1):
        for table, label, mode, symbol, size in (
            (looks, "this run, on its way", "lines+markers", "circle", 7),
            (shipped, "shipped checkpoints, each at its end", "markers", "diamond", 11),
        ):
            marker = {"size": size, "color": SFT_COLOUR, "symbol": symbol, "line": {"color": INK, "width": 1}}
            add_line(
                figure, table["epochs"], scale * table[name], label, SFT_COLOUR, panel=column, marker=marker,
                hover="%{x:.3~g} epochs: %{y:.3~f}", mode=mode,
            )  # fmt: skip
    for baseline, value in levels.items():
        add_level(figure, 100 * value, f"{baseline} {level(value)}", row=1, col=2)
    figure.update_xaxes(type="log", tickvals=[0.5, 1, 2, 5, 10, 20, 40])
    figure.update_yaxes(rangemode="tozero", col=1)
    figure.update_yaxes(range=[0, 88], col=2)
    axes = "epochs (log scale)", ("nats per token", "% of validation users")
    return lay_out(figure, 360, "", *axes, margin_t=72, legend_y=1.12)


def ranking_levels(intervals: Mapping[str, Interval]) -> go.Figure:
    """HR@1 of rankings, worst first, with 95 % intervals over users; SFT, Markov and oracle are among them."""
    sft = intervals["SFT"].mean
    gain, gap = (100 * (sft - intervals["Markov"].mean), 100 * (intervals["oracle"].mean - sft))
    markov = f"{abs(gain):.1f} points {'above' if gain > 0 else 'below'} Markov"
    title = f"SFT's HR@1 is {level(sft)}: {markov}, {gap:.1f} below the oracle"
    axis = "HR@1, % of test users, with 95 % interval over users"
    return ranking_bars(intervals, title, axis, {"SFT": SFT_COLOUR, "oracle": INK}, ends=True)


def gaps_to_chosen(
    gaps: Float[np.ndarray, "users negatives"], same_genre: Bool[np.ndarray, "users negatives"]
) -> go.Figure:
    """How far each negative's log-prob is below the chosen item's, s_w − s_k, by whether they share the genre."""
    above = float((gaps <= 0).mean())
    of_them = float(same_genre[gaps <= 0].mean()) if above else 0.0
    title = (
        f"{level(above)} of random negatives are at or above the chosen item, half are "
        f"{np.median(gaps):.1f} nats or more below"
    )
    low, high = (float(np.floor(np.quantile(gaps, 0.002))), float(np.ceil(np.quantile(gaps, 0.999))))
    edges = np.arange(low, high + 0.5, 0.5)
    figure = go.Figure()
    for group, name, colour in (
        (same_genre, "of the chosen item's genre", SAME),
        (~same_genre, "of another genre", OTHER),
    ):
        counts = np.histogram(np.clip(gaps[group], low, high), edges)[0] / gaps.size
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2, y=100 * counts, name=f"{name} ({level(float(group.mean()))})",
            marker_color=colour, width=0.5,
            hovertemplate="%{x:.2f} nats: %{y:.2f} % of negatives<extra></extra>",
        )  # fmt: skip
    total = np.histogram(np.clip(gaps, low, high), edges)[0] / gaps.size
    figure.add_vrect(x0=low, x1=0, fillcolor=SHADE, line_width=0, layer="below")
    figure.add_vline(x=0, line={"color": INK, "width": 1.5})
    for text, to, shift in (
        (f"at or above the chosen item ◂<br>{level(of_them)} of these share its genre", "right", -6),
        ("▸ the chosen item is ahead", "left", 6),
    ):
        figure.add_annotation(
            text=text, x=0, xanchor=to, xshift=shift, y=1, yref="paper", yanchor="top", align=to, font={"color": QUIET}
        )
    room = [0, 125 * total.max()]  # for the words above
    axes = "s<sub>chosen</sub> − s<sub>negative</sub>, nats", "% of all negatives"
    return lay_out(figure, 380, title, *axes, barmode="stack", xaxis_range=[low, high], yaxis_range=room)


def candidates(
    names: Sequence[str], model: Float[np.ndarray, " candidates"], oracle: Float[np.ndarray, " candidates"]
) -> go.Figure:
    """One user's candidates, from the model's most likely down: log-probs in nats under the model and, beside them,
    under the oracle, with the oracle's rank. The chosen item is first in every argument. A candidate that is impossible
    for the oracle (−inf) is hollow, at the edge. Negatives at or above the chosen item under the model are blue.
    """
    order = np.argsort(-model, kind="stable")
    floor = oracle[np.isfinite(oracle)].min() - 1.5
    titles = [
        f"{who}: chosen item at place {1 + int((values[1:] >= values[0]).sum())}"
        for who, values in (("Model", model), ("Oracle", oracle))
    ]
    figure = panels(titles, shared_yaxes=True, horizontal_spacing=0.03, column_widths=[0.6, 0.4])
    place = np.argsort(np.argsort(-oracle, kind="stable"), kind="stable") + 1
    colours = np.where(order == 0, OBJECTIVE_COLOURS["sdpo"], np.where(model[order] >= model[0], DYNAMIC_COLOUR, FAINT))
    labels = [f"<b>{names[each]}</b>" if each == 0 else names[each] for each in order]
    symbols = np.where(order == 0, "diamond", "circle")
    for column, values in ((1, model[order]), (2, oracle[order])):
        there = np.isfinite(values)
        figure.add_scatter(
            x=np.where(there, values, floor), y=labels, mode="markers+text" if column == 2 else "markers",
            text=[str(each) for each in place[order]], textposition="middle right",
            textfont={"size": 12, "color": QUIET},
            marker={"opacity": 1, "size": np.where(order == 0, 13, 10), "color": np.where(there, colours, "white"),
                    "symbol": symbols, "line": {"color": colours, "width": 1.5}},
            hovertemplate="%{y}: %{x:.2f} nats<extra></extra>", showlegend=False, row=1, col=column,
        )  # fmt: skip
    line = {"color": OBJECTIVE_COLOURS["sdpo"], "width": 1.5, "dash": "dot"}
    figure.add_vline(x=float(model[0]), line=line, row=1, col=1)
    lay_out(figure, 90 + 21 * len(model), x="log-prob s, nats", margin_t=40)
    figure.update_xaxes(title_text="log P(next | history), nats", row=1, col=2)
    return figure.update_yaxes(autorange="reversed", gridcolor=GRID, tickfont={"size": 13}, tickmode="linear", dtick=1)
