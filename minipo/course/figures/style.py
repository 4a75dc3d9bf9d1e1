"""What every figure shares: colours, labels, the template, its common parts, numbers as text, and verdicts."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

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
SHADE = "#F3F5F8"  # of a region in the background
MARGIN = "margin β(ρ<sub>chosen</sub> − ρ<sub>negative</sub>), nats"
FONT = "Source Sans, Source Sans Pro, Helvetica, Arial, sans-serif"

NEGATIVES = "K, negatives per training example"

# Ranking metrics, and those that are averages rather than shares of users.
METRICS = {"hr@1": "HR@1", "ndcg@5": "NDCG@5", "mrr": "MRR", "hr@5": "HR@5", "reward_win_rate": "win rate"}
AVERAGES = ("ndcg@5", "mrr")

LOG = {"type": "log", "dtick": "D2", "tickformat": "~g"}  # without the format Plotly writes out powers of ten only
AXIS = {"gridcolor": GRID, "zeroline": False, "automargin": True}

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 14, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 8, "r": 8, "t": 28, "b": 8},
        "hoverlabel": {"font": {"family": FONT, "size": 14}},
        "title": {
            "x": 0, "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 14},
            "font": {"size": 16},
        },
        "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "font": {"size": 13}},
        "xaxis": {**AXIS, "title": {"standoff": 4, "font": {"size": 14}}},
        "yaxis": {**AXIS, "title": {"standoff": 6, "font": {"size": 14}}},
        "annotationdefaults": {"showarrow": False, "font": {"size": 14}},
    }
)  # fmt: skip

# Neutral and dark colours on a dark page; the others can be seen on both.
ON_DARK = {
    INK: "#E6EBF2", QUIET: "#A3AEBD", FAINT: "#5A6675", GRID: "#29323E", "white": "#11161D", SHADE: "#1B222C",
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
    """A name from data, safe to show in a figure: HTML is escaped, and a long name is cut."""
    text = " ".join(str(name).split())
    return html.escape(text if len(text) <= letters else text[: letters - 1] + "…", quote=False)


def short(value: float) -> str:
    """A number with two significant digits, and no exponent where it can be avoided."""
    if not np.isfinite(value):
        return "–"
    if value == 0 or abs(value) < 1e-6:
        return "0" if value == 0 else f"{value:.0e}"
    digits = max(0, 1 - int(np.floor(np.log10(abs(value)))))
    return f"{round(value, digits):,.{digits}f}" if abs(value) < 100 else f"{float(f'{value:.2g}'):,.0f}"


def described(settings: Mapping[str, Any]) -> str:
    """A run's objective, DynamicPO's parts and K in a few words."""
    parts, switches = [OBJECTIVE_LABELS[settings["objective"]]], (settings["select"], settings["adjust_beta"])
    if settings["dynamic"] == "on" and switches != ("off", "off"):  # with neither part it is the plain objective
        whole = {("on", "on"): "", ("on", "off"): " selection alone", ("off", "on"): " β alone"}
        control = f" {switches[0]} |B|{' with β' * (switches[1] == 'on')}"
        parts.append(f"DynamicPO{whole.get(switches, control)}")
    return ", ".join([*parts, f"K = {settings['negatives']}"])


def colour_of(settings: Mapping[str, Any]) -> str:
    """The colour of a run's objective, or DynamicPO's if that is on; ink for SFT."""
    if settings.get("dynamic") == "on":
        return DYNAMIC_COLOUR
    return OBJECTIVE_COLOURS.get(settings.get("objective", ""), INK)


def percent(share: float) -> str:
    """A share as a whole percentage."""
    return f"{100 * share:.0f} %"


# ---------------------------------------------------------------------------------------------- parts of many figures


def lay_out(
    figure: go.Figure, height: int, title: str = "", x: str = "", y: str | Sequence[str] = "", **layout: Any
) -> go.Figure:
    """The template, the height in pixels, the title and the axes' titles, with room for title and legend at the top.

    y: the same for all panels, or one for each. layout: further arguments of `update_layout`; they win over the
    defaults.
    """
    traces = [trace for trace in figure.data if trace.type not in ("heatmap", "contour")]
    legend = len(traces) > 1 and any(trace.showlegend is not False for trace in traces)
    top = 22 + 20 * (1 + title.count("<br>")) * bool(title) + 24 * (legend and layout.get("showlegend", True))
    common = {"template": TEMPLATE, "height": height, "title_text": title or None, "margin_t": top}
    figure.update_layout(**common | layout)
    if x:
        figure.update_xaxes(title_text=x)
    if y:
        for column, axis in ((None, y),) if isinstance(y, str) else enumerate(y, start=1):
            figure.update_yaxes(title_text=axis, col=column)
    return figure


def panels(titles: Sequence[str], **places: Any) -> go.Figure:
    """Panels side by side, each with its title. places: further arguments of `make_subplots`."""
    places = {"rows": 1, "cols": len(titles), "horizontal_spacing": 0.1, **places}
    return make_subplots(subplot_titles=titles, **places).update_annotations(font_size=14)


def add_line(
    figure: go.Figure,
    x: Any,
    y: Any,
    name: str,
    colour: str,
    dash: str = "solid",
    hover: str | None = None,
    panel: int | None = None,
    width: float = 2.5,
    marker: dict[str, Any] | None = None,
    **more: Any,
) -> None:
    """A line, with markers if `marker` says what they look like.

    hover: the hover text. panel: the column that it is drawn in; a line of the same name in each panel is one entry of
    the legend. more: further arguments of `add_scatter`.
    """
    if panel is not None:
        more = {"legendgroup": name, "showlegend": panel == 1, "row": 1, "col": panel, **more}
    if hover is not None:
        more["hovertemplate"] = f"{hover}<extra></extra>"
    mode = "lines" if marker is None else "lines+markers"
    line = {"color": colour, "width": width, "dash": dash}
    figure.add_scatter(**{"x": x, "y": y, "name": name, "mode": mode, "line": line, "marker": marker, **more})


def add_band(figure: go.Figure, spread: pd.DataFrame, colour: str, **place: Any) -> None:
    """The region between the columns "min" and "max" over the index."""
    figure.add_scatter(
        x=[*spread.index, *spread.index[::-1]], y=[*spread["max"], *spread["min"][::-1]], fill="toself",
        fillcolor=colour, opacity=0.18, line_width=0, mode="lines", hoverinfo="skip", showlegend=False, **place,
    )  # fmt: skip


def add_level(figure: go.Figure, y: float, text: str, **place: Any) -> None:
    """A dashed horizontal line with its label above the line's left end."""
    label = {"text": text, "font": {"size": 13, "color": QUIET}, "x": 0, "xanchor": "left"}
    figure.add_hline(y=y, line={"color": QUIET, "width": 1.5, "dash": "dash"}, annotation=label, **place)


def error_bars(mean: Any, low: Any, high: Any, colour: str) -> dict[str, Any]:
    """`error_x` or `error_y` of intervals: numbers or arrays."""
    array, minus = np.atleast_1d(np.subtract(high, mean)), np.atleast_1d(np.subtract(mean, low))
    return {"type": "data", "array": array, "arrayminus": minus, "color": colour, "thickness": 2, "width": 4}


def ranking_bars(
    levels: Mapping[str, Interval], title: str, axis: str, colours: Mapping[str, str], ends: bool = False
) -> go.Figure:
    """HR@1 of rankings as bars, from the bottom up, with 95 % intervals where there are any, and with the numbers.

    levels: by name, as shares of users. colours: by name; the other bars are grey. ends: write the intervals' ends too.
    """
    mean, low, high = 100 * np.array([astuple(level) for level in levels.values()]).T
    figure = go.Figure().add_bar(
        x=mean, y=list(levels), orientation="h", width=0.55, hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
        marker_color=[colours.get(name, FAINT) for name in levels],
        error_x=error_bars(mean, low, high, "#7A5195") if (low < high).any() else None,
    )  # fmt: skip
    for name, share, start, end in zip(levels, mean, low, high, strict=True):
        text = f"<b>{share:.1f} %</b>" + f" [{start:.1f}, {end:.1f}]" * ends
        figure.add_annotation(text=text, x=end, y=name, xanchor="left", xshift=8)
    figure.update_xaxes(range=[0, min(130, 1.35 * high.max())], nticks=6)
    return lay_out(figure, 90 + 40 * len(levels), title, axis, yaxis_showgrid=False)


# ----------------------------------------------------------------------------------------------- paired differences


def in_points(interval: Interval) -> str:
    """A difference of shares of users in points, with its 95 % interval: mean [low, high]."""
    mean, low, high = (f"{100 * value:+.1f}".replace("-0.0", "+0.0").replace("-", "−") for value in astuple(interval))
    return f"{mean} [{low}, {high}]"


def differences(
    intervals: Mapping[str, Interval],
    title: str,
    axis: str = "difference of HR@1, points",
    colours: Mapping[str, str | None] | None = None,
    seeds: Mapping[str, Sequence[float]] | None = None,
) -> go.Figure:
    """Paired differences with their 95 % intervals, one per line, in the order given, with the numbers at the right; an
    open mark and a grey number where the interval includes zero.

    intervals: by label, as shares of users (0.01 is a point). title: made by the caller, from the same numbers.
    colours: by label; a label without one is drawn in ink. seeds: each label's differences seed by seed, as shares,
    drawn as open circles. A grey band is one point to either side of zero.
    """
    figure = go.Figure()
    figure.add_vrect(x0=-1, x1=1, fillcolor=SHADE, line_width=0, layer="below")
    figure.add_vline(x=0, line={"color": QUIET, "width": 1.5}, layer="below")
    if seeds is not None:
        each = [(100 * value, place - 0.25) for place, label in enumerate(intervals) for value in seeds[label]]
        figure.add_scatter(
            x=[at for at, _ in each], y=[place for _, place in each], mode="markers", name="one seed",
            marker={"size": 8, "color": QUIET, "symbol": "circle-open"}, hovertemplate="%{x:+.1f}<extra></extra>",
        )  # fmt: skip
    for place, (label, interval) in enumerate(intervals.items()):
        colour = (colours or {}).get(label) or INK
        mean, low, high = (100 * value for value in astuple(interval))
        symbol, ink = ("diamond-open", QUIET) if low <= 0 <= high else ("diamond", INK)
        figure.add_scatter(
            x=[mean], y=[place], mode="markers", marker={"size": 11, "color": colour, "symbol": symbol},
            error_x=error_bars(mean, low, high, colour), name="mean, 95 % interval",
            showlegend=seeds is not None and place == 0,
            hovertemplate=f"{label}: {in_points(interval)}<extra></extra>",
        )  # fmt: skip
        text = {"text": in_points(interval), "font": {"size": 13, "color": ink}, "xanchor": "left"}
        figure.add_annotation(x=1.01, xref="paper", y=place, **text)
    height = 122 + 20 * title.count("<br>") + 38 * len(intervals) + 28 * (seeds is not None)
    lay_out(figure, height, title, axis, margin_r=135)
    lows, highs = ([100 * getattr(interval, end) for interval in intervals.values()] for end in ("low", "high"))
    figure.update_xaxes(range=[1.15 * min(*lows, -1.0), 1.15 * max(*highs, 1.0)])
    ticks = {"tickvals": list(range(len(intervals))), "ticktext": list(intervals), "ticksuffix": "  "}
    return figure.update_yaxes(range=[len(intervals) - 0.5, -0.6], showgrid=False, **ticks)


def verdict(low: float, high: float) -> str:
    """What an interval of HR@1(largest K) − HR@1(smallest K) shows, in one word."""
    if high < 0:
        return "collapses"
    if low >= -0.01 and high <= 0.01:
        return "stable"
    return "rises" if low > 0 else "undecided"


def points(mean: float, low: float, high: float) -> str:
    """A difference of a metric in points, hundredths of it, with its 95 % interval."""
    return f"{100 * mean:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f})".replace("-", "−")


def level(value: float, metric: str = "hr@1") -> str:
    """A metric's value as text: a percentage if it is a share of users."""
    return f"{value:.3f}" if metric in AVERAGES else f"{100 * value:.1f} %"
