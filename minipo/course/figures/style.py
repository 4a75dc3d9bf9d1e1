"""What every figure shares: colours, labels, the template, numbers as text, and intervals with their verdicts."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from minipo.evaluation import Interval

OBJECTIVE_LABELS = {
    "dpo": "DPO", "dmpo": "DMPO", "sdpo": "S-DPO", "mppo": "MPPO", "simpo": "SimPO", "beta-dpo": "β-DPO",
}  # fmt: skip
OBJECTIVE_COLOURS = {
    "dpo": "#E69F00", "dmpo": "#D55E00", "sdpo": "#009E73", "mppo": "#CC79A7", "simpo": "#999933",
    "beta-dpo": "#882255",
}  # fmt: skip
DYNAMIC_COLOUR = "#0072B2"
INK, QUIET, FAINT, GRID = "#1B2430", "#5B6675", "#AAB3BF", "#E7EBF0"
DILUTION_COLOUR, SATURATION_COLOUR = "#D9DEE6", "#A9B3C1"
HALO = "0 0 2px white, 0 0 2px white, 0 0 3px white"  # round text, so that a line behind it does not cross letters
MARGIN = "margin β(ρ<sub>chosen</sub> − ρ<sub>negative</sub>), nats"
FONT = "Source Sans, Source Sans Pro, Helvetica, Arial, sans-serif"

# What a ranking is measured by, and which of these are averages rather than shares of users.
METRICS = {"hr@1": "HR@1", "ndcg@5": "NDCG@5", "mrr": "MRR", "hr@5": "HR@5", "reward_win_rate": "win rate"}
AVERAGES = ("ndcg@5", "mrr")

AXIS = {"gridcolor": GRID, "zeroline": False, "automargin": True}

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 14, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 8, "r": 8, "t": 28, "b": 8},
        "hoverlabel": {"font": {"family": FONT, "size": 14}},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 13}},
        "xaxis": {**AXIS, "title": {"standoff": 4, "font": {"size": 14}}},
        "yaxis": {**AXIS, "title": {"standoff": 6, "font": {"size": 14}}},
        "annotationdefaults": {"showarrow": False, "font": {"size": 14}},
    }
)

# What neutral and dark colours are on a dark page; the others are seen on both.
ON_DARK = {
    INK: "#E6EBF2", QUIET: "#A3AEBD", FAINT: "#5A6675", GRID: "#29323E", "white": "#11161D", "#F3F5F8": "#1B222C",
    HALO: HALO.replace("white", "#11161D"),
    DILUTION_COLOUR: "#343E4C", SATURATION_COLOUR: "#556273", "#EEF1F5": "#1A212B", "#E0E5EC": "#232C38",
    "#D6E8F5": "#16324A", DYNAMIC_COLOUR: "#3D9BD9", "#882255": "#CC6699", "#7A5195": "#A98BC4",
}  # fmt: skip


def darkened(figure: dict[str, Any]) -> dict[str, Any]:
    """A figure, as `Figure.to_dict` gives it, for a dark page. Text inside a heat map's cells stays as it is."""
    data = [trace if trace.get("type") == "heatmap" else _darkened(trace) for trace in figure["data"]]
    return {**figure, "data": data, "layout": _darkened(figure["layout"])}


def _darkened(part: Any) -> Any:
    if isinstance(part, str):
        return ON_DARK.get(part, part)
    if isinstance(part, Mapping):
        return {name: _darkened(value) for name, value in part.items()}
    if isinstance(part, list | tuple):
        return [_darkened(value) for value in part]
    return part


def as_text(name: object, letters: int = 40) -> str:
    """A name from data as a figure may show it: nothing in it is taken for HTML, and a long one is cut."""
    text = " ".join(str(name).split())
    return html.escape(text if len(text) <= letters else text[: letters - 1] + "…", quote=False)


def short(value: float) -> str:
    """A number as one says it: two significant digits, and no exponent where it can be avoided."""
    if not np.isfinite(value):
        return "–"
    if value == 0 or abs(value) < 1e-6:
        return "0" if value == 0 else f"{value:.0e}"
    digits = max(0, 1 - int(np.floor(np.log10(abs(value)))))
    return f"{round(value, digits):,.{digits}f}" if abs(value) < 100 else f"{float(f'{value:.2g}'):,.0f}"


# ------------------------------------------------------------------------------------- paired differences, anywhere


def in_points(interval: Interval) -> str:
    """A difference of shares of users in points, with its 95 % interval: mean [low, high]."""
    mean, low, high = (
        f"{100 * value:+.1f}".replace("-0.0", "+0.0").replace("-", "−")
        for value in (interval.mean, interval.low, interval.high)
    )
    return f"{mean} [{low}, {high}]"


def differences(
    intervals: Mapping[str, Interval],
    title: str,
    axis: str = "difference of HR@1, points",
    colours: Mapping[str, str | None] | None = None,
    seeds: Mapping[str, Sequence[float]] | None = None,
) -> go.Figure:
    """Paired differences with their 95 % intervals, a line each, in the order given; the numbers stand to the right.

    intervals: by label, as shares of users (0.01 is a point). title: said by the caller, from the same numbers.
    colours: by label; a label without one is drawn in ink. seeds: each label's differences seed by seed, as shares,
    drawn as open circles. A grey band is one point to either side of zero.
    """
    labels = list(intervals)
    places = dict(zip(labels, range(len(labels)), strict=True))
    figure = go.Figure()
    figure.add_vrect(x0=-1, x1=1, fillcolor="#F3F5F8", line_width=0, layer="below")
    figure.add_vline(x=0, line={"color": QUIET, "width": 1.5}, layer="below")
    if seeds is not None:
        each = [(100 * value, places[label] - 0.25) for label in labels for value in seeds[label]]
        figure.add_scatter(
            x=[at for at, _ in each], y=[place for _, place in each], mode="markers", name="one seed",
            marker={"size": 8, "color": QUIET, "symbol": "circle-open"}, hovertemplate="%{x:+.1f}<extra></extra>",
        )  # fmt: skip
    for label, place in places.items():
        interval = intervals[label]
        mean, low, high = (100 * value for value in (interval.mean, interval.low, interval.high))
        colour = (colours or {}).get(label) or INK
        figure.add_scatter(
            x=[mean], y=[place], mode="markers", name="mean, 95 % interval",
            showlegend=seeds is not None and place == 0, marker={"size": 11, "color": colour, "symbol": "diamond"},
            error_x={"array": [high - mean], "arrayminus": [mean - low], "color": colour, "thickness": 2, "width": 5},
            hovertemplate=f"{label}: {in_points(interval)}<extra></extra>",
        )  # fmt: skip
        figure.add_annotation(
            text=in_points(interval), x=1.01, xref="paper", y=place, xanchor="left", font={"size": 13, "color": INK}
        )
    lows, highs = ([100 * getattr(interval, end) for interval in intervals.values()] for end in ("low", "high"))
    lines = 1 + title.count("<br>")
    top = {"y": 1, "yanchor": "top", "yref": "container", "pad": {"t": 18}}
    figure.update_layout(
        template=TEMPLATE,
        height=102 + 20 * lines + 38 * len(labels) + 28 * (seeds is not None),
        title={"text": title, "x": 0, "xref": "container", "font": {"size": 16}, **top},
        margin={"t": 34 + 20 * lines + 28 * (seeds is not None), "r": 135},
    )
    figure.update_xaxes(title_text=axis, range=[1.15 * min(*lows, -1.0), 1.15 * max(*highs, 1.0)])
    figure.update_yaxes(
        range=[len(labels) - 0.5, -0.6],
        showgrid=False,
        tickvals=list(places.values()),
        ticktext=labels,
        ticksuffix="  ",
    )
    return figure


# ---------------------------------------------------------------------------------- what happens: the recorded grid


def verdict(low: float, high: float) -> str:
    """What an interval of HR@1(largest K) − HR@1(smallest K) lets one say, in one word."""
    if high < 0:
        return "collapses"
    if low >= -0.01 and high <= 0.01:
        return "stable"
    return "rises" if low > 0 else "undecided"


def points(mean: float, low: float, high: float) -> str:
    """A difference of a metric in points, hundredths of it, with its 95 % interval."""
    return f"{100 * mean:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f})".replace("-", "−")


def level(value: float, metric: str = "hr@1") -> str:
    """A metric's value as one says it: in per cent where it is a share of users."""
    return f"{value:.3f}" if metric in AVERAGES else f"{100 * value:.1f} %"
