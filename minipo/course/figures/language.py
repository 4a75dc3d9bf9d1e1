"""Figures of notebooks 00 and 01: two runs side by side, differences with intervals, and ranking by log-probs."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float
from plotly.subplots import make_subplots

from minipo.course.figures.grid import LEVELS
from minipo.course.figures.style import DYNAMIC_COLOUR, FAINT, GRID, INK, OBJECTIVE_COLOURS, QUIET, TEMPLATE, short
from minipo.evaluation import Interval

SFT_COLOUR = "#56B4E9"  # the model that every run starts from
SAME, OTHER = "#1B2430", "#A9B3C1"  # negatives of the chosen item's genre, and of others


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _compared(values: Mapping[int, float], shown: Callable[[float], str]) -> str:
    """'higher at K = 19:<br>0.36, not 0.30', from a number at the smaller K and at the larger."""
    (_, early), (large, late) = values.items()
    if shown(late) == shown(early):
        return f"the same at K = {large}:<br>{shown(late)}"
    return f"{'higher' if late > early else 'lower'} at K = {large}:<br>{shown(late)}, not {shown(early)}"


def two_runs(metrics: Mapping[int, pd.DataFrame], evaluations: Mapping[int, pd.DataFrame]) -> go.Figure:
    """DMPO at two K, smaller first: training loss, pair_loss and validation HR@1 over steps, beside the SFT level.

    metrics: K to `Run.metrics` (step, loss); evaluations: K to `Run.evaluation` (step, pair_loss, hr@1). The panels'
    titles compare the last value of each, of the training loss the mean of the last three lines.
    """
    small, large = metrics
    loss = {k: float(table["loss"].tail(3).mean()) for k, table in metrics.items()}
    yardstick, hits = (
        {k: float(table[name].iloc[-1]) for k, table in evaluations.items()} for name in ("pair_loss", "hr@1")
    )
    titles = (
        ("Training loss", _compared(loss, short)),
        ("pair_loss, validation", _compared(yardstick, "{:.2f}".format)),
        ("HR@1, validation", _compared(hits, _percent)),
    )
    figure = make_subplots(
        rows=1, cols=3, horizontal_spacing=0.09, subplot_titles=[f"{name}<br><b>{text}</b>" for name, text in titles]
    )
    for k, dash in ((small, "dot"), (large, "solid")):
        for column, (table, name, scale) in enumerate(
            ((metrics[k], "loss", 1), (evaluations[k], "pair_loss", 1), (evaluations[k], "hr@1", 100)), start=1
        ):
            figure.add_scatter(
                x=table["step"], y=scale * table[name],
                name=f"DMPO, K = {k}", legendgroup=str(k), showlegend=column == 1,
                mode="lines" if column == 1 else "lines+markers",
                line={"color": OBJECTIVE_COLOURS["dmpo"], "width": 2.5, "dash": dash},
                marker={"size": 7, "symbol": "circle" if dash == "solid" else "circle-open"},
                hovertemplate=f"K = {k}, step %{{x}}: %{{y:.4~f}}<extra></extra>", row=1, col=column,
            )  # fmt: skip
    steps = evaluations[small]["step"]
    start = 100 * float(evaluations[small]["hr@1"].iloc[0])
    figure.add_scatter(
        x=[steps.iloc[0], steps.iloc[-1]], y=[start, start], mode="lines", name=f"SFT, where both start: {start:.1f} %",
        line={"color": QUIET, "width": 1.5, "dash": LEVELS["SFT"]}, hoverinfo="skip", row=1, col=3,
    )  # fmt: skip
    figure.update_annotations(font_size=14)
    figure.update_layout(template=TEMPLATE, height=350, margin={"t": 104}, legend={"y": 1.32})
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="nats", rangemode="tozero", nticks=5, row=1, col=1)
    figure.update_yaxes(title_text="nats", nticks=5, row=1, col=2)
    figure.update_yaxes(title_text="% of users", nticks=6, row=1, col=3)
    return figure


def sft_growth(looks: pd.DataFrame, shipped: pd.DataFrame, levels: Mapping[str, float]) -> go.Figure:
    """SFT's loss and validation HR@1 against epochs: a run that was looked at on its way, and shipped checkpoints.

    looks, shipped: columns `epochs`, `loss` (nats a token), `hr@1`; shipped ones are runs of their own, each to its
    end. levels: validation HR@1 of baselines, drawn as lines.
    """
    begin, end = looks.iloc[0], looks.iloc[-1]
    rise = "rises" if end["hr@1"] > begin["hr@1"] else "does not rise"
    figure = make_subplots(
        rows=1, cols=2, horizontal_spacing=0.1,
        subplot_titles=(
            f"Loss, {short(begin['loss'])} → {short(end['loss'])} nats a token",
            f"HR@1 {rise}: {_percent(begin['hr@1'])} → {_percent(end['hr@1'])}",
        ),
    )  # fmt: skip
    for column, (name, scale) in enumerate((("loss", 1), ("hr@1", 100)), start=1):
        for table, label, mode, symbol, size in (
            (looks, "this run, on its way", "lines+markers", "circle", 7),
            (shipped, "shipped checkpoints, each at its end", "markers", "diamond", 11),
        ):
            figure.add_scatter(
                x=table["epochs"], y=scale * table[name], mode=mode, name=label,
                legendgroup=label, showlegend=column == 1,
                line={"color": SFT_COLOUR, "width": 2.5},
                marker={"size": size, "color": SFT_COLOUR, "symbol": symbol, "line": {"color": INK, "width": 1}},
                hovertemplate="%{x:.3~g} epochs: %{y:.3~f}<extra></extra>", row=1, col=column,
            )  # fmt: skip
    for level, value in levels.items():
        figure.add_hline(
            y=100 * value, line={"color": QUIET, "width": 1.5, "dash": LEVELS.get(level, "dot")}, row=1, col=2
        )
        figure.add_annotation(
            text=f"{level} {_percent(value)}", x=0.02, xref="x2 domain", xanchor="left", y=100 * value, yref="y2",
            yanchor="bottom", font={"size": 13, "color": QUIET}, name="level",
        )  # fmt: skip
    figure.update_annotations(selector={"name": None}, font_size=15)
    figure.update_layout(template=TEMPLATE, height=360, margin={"t": 72}, legend={"y": 1.12})
    figure.update_xaxes(type="log", title_text="epochs (log scale)", tickvals=[0.5, 1, 2, 5, 10, 20, 40])
    figure.update_yaxes(title_text="nats a token", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="% of validation users", range=[0, 88], row=1, col=2)
    return figure


def ranking_levels(intervals: Mapping[str, Interval]) -> go.Figure:
    """HR@1 of rankings, worst first, with 95 % intervals over users; SFT, Markov and oracle are among them."""
    labels = list(intervals)
    mean, low, high = (
        100 * np.array([getattr(intervals[each], end) for each in labels]) for end in ("mean", "low", "high")
    )
    sft = intervals["SFT"].mean
    gain, gap = (100 * (sft - intervals["Markov"].mean), 100 * (intervals["oracle"].mean - sft))
    title = (
        f"SFT's HR@1 is {_percent(sft)}: {abs(gain):.1f} points "
        f"{'above' if gain > 0 else 'below'} Markov, {gap:.1f} below the oracle"
    )
    colours = [{"SFT": SFT_COLOUR, "oracle": INK}.get(each, FAINT) for each in labels]
    figure = go.Figure()
    figure.add_bar(
        x=mean, y=labels, orientation="h", marker_color=colours, width=0.55,
        error_x={"type": "data", "symmetric": False, "array": high - mean, "arrayminus": mean - low, "color": "#7A5195",
                 "thickness": 2, "width": 5},
        hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
    )  # fmt: skip
    for label, x, text in zip(labels, high, intervals.values(), strict=True):
        figure.add_annotation(
            text=f"<b>{100 * text.mean:.1f}</b> [{100 * text.low:.1f}, {100 * text.high:.1f}]", x=x, y=label,
            xanchor="left", xshift=8,
        )  # fmt: skip
    figure.update_layout(
        template=TEMPLATE, height=300, margin={"t": 48}, title={"text": title, "font": {"size": 16}, "x": 0}
    )
    figure.update_xaxes(title_text="HR@1, % of test users, with 95 % interval over users", range=[0, 102])
    figure.update_yaxes(showgrid=False)
    return figure


def gaps_to_chosen(
    gaps: Float[np.ndarray, "users negatives"], same_genre: Bool[np.ndarray, "users negatives"]
) -> go.Figure:
    """How far each negative's log-prob is below the chosen item's, s_w − s_k, by whether they share the genre."""
    above = float((gaps <= 0).mean())
    of_them = float(same_genre[gaps <= 0].mean()) if above else 0.0
    title = (
        f"{_percent(above)} of random negatives stand at or above the chosen item, half are "
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
            x=(edges[:-1] + edges[1:]) / 2, y=100 * counts, name=f"{name} ({_percent(float(group.mean()))})",
            marker_color=colour, width=0.5,
            hovertemplate="%{x:.2f} nats: %{y:.2f} % of negatives<extra></extra>",
        )  # fmt: skip
    total = np.histogram(np.clip(gaps, low, high), edges)[0] / gaps.size
    figure.add_vrect(x0=low, x1=0, fillcolor="#F3F5F8", line_width=0, layer="below")
    figure.add_vline(x=0, line={"color": INK, "width": 1.5})
    for text, to, shift in (
        (f"at or above the chosen item ◂<br>{_percent(of_them)} of these share its genre", "right", -6),
        ("▸ the chosen item is ahead", "left", 6),
    ):
        figure.add_annotation(
            text=text, x=0, xanchor=to, xshift=shift, y=1, yref="paper", yanchor="top", align=to, font={"color": QUIET}
        )
    figure.update_layout(
        template=TEMPLATE, height=380, barmode="stack", margin={"t": 84}, legend={"y": 1.0},
        title={"text": title, "font": {"size": 16}, "x": 0, "y": 0.97},
    )  # fmt: skip
    figure.update_xaxes(title_text="s<sub>chosen</sub> − s<sub>negative</sub>, nats", range=[low, high])
    figure.update_yaxes(title_text="% of all negatives", range=[0, 125 * total.max()])  # room for the words above
    return figure


def candidates(
    names: Sequence[str], model: Float[np.ndarray, " candidates"], oracle: Float[np.ndarray, " candidates"]
) -> go.Figure:
    """One user's candidates, chosen first in every argument, from the model's likeliest down: log-probs under the model
    and, beside them, under the oracle with the place it gives them, in nats. What is impossible for the oracle (−inf)
    stands hollow at its edge. Negatives at or above the chosen item under the model are blue.
    """
    order = np.argsort(-model, kind="stable")
    floor = oracle[np.isfinite(oracle)].min() - 1.5
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.03, column_widths=[0.6, 0.4],
        subplot_titles=[
            f"{who}: chosen item at place {1 + int((values[1:] >= values[0]).sum())}"
            for who, values in (("Model", model), ("Oracle", oracle))
        ],
    )  # fmt: skip
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
    figure.add_vline(
        x=float(model[0]), line={"color": OBJECTIVE_COLOURS["sdpo"], "width": 1.5, "dash": "dot"}, row=1, col=1
    )
    figure.update_annotations(font_size=15)
    figure.update_layout(template=TEMPLATE, height=90 + 21 * len(model), margin={"t": 40})
    figure.update_xaxes(title_text="log-prob s, nats")
    figure.update_xaxes(title_text="log P(next | history), nats", row=1, col=2)
    figure.update_yaxes(autorange="reversed", gridcolor=GRID, tickfont={"size": 13}, tickmode="linear", dtick=1)
    return figure
