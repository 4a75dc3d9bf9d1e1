"""What is in a dataset of one's own, before anything is trained on it: its overview, the figures, the sentence."""

from collections import Counter
from typing import Any

import numpy as np
import plotly.graph_objects as go

from minipo.course.figures.style import FAINT, INK, QUIET, TEMPLATE
from minipo.evaluation import ranking_metrics, ranks
from minipo.experiments.datasets import baselines
from minipo.experiments.datasets.splits import Splits, with_report

POINTS = 150  # of the curve of popularity
BINS = 30
SHOWN = 5  # items and lines that stand for the others
LEVELS = {"chance": "chance", "popularity": "popularity", "markov": "Markov chain"}
TITLE = {"x": 0, "xanchor": "left", "font": {"size": 15}}


def overview(splits: Splits) -> dict[str, Any]:
    """The data report and what the figures below show, as plain numbers and text that JSON can hold.

    Besides `splits.report`: fingerprint; negatives, the fewest and the most of a training line; items_of_users, pairs
    of a number of items and how many users took so many; users_of_items, at most POINTS pairs of an item's rank by
    popularity, from 1, and how many users took it; head, the share of all interactions that the most popular tenth of
    the items has; top, the most popular items and how many users took each; hr@1, see `levels`; lines, the first few of
    the test.
    """
    lines = (*splits.train, *splits.validation, *splits.test)
    taken = {(line.user, item) for line in lines for item in (*line.history, line.chosen)}
    items_of_users = Counter(Counter(user for user, _ in taken).values())
    popular = sorted(Counter(item for _, item in taken).items(), key=lambda pair: (-pair[1], pair[0]))
    counts = np.array([count for _, count in popular])
    places = np.unique(np.linspace(0, len(counts) - 1, POINTS).round().astype(int))
    negatives = [len(line.candidates) - 1 for line in splits.train]
    report = dict(splits.report or with_report(splits, {}).report)
    return {
        **report,
        "fingerprint": splits.fingerprint,
        "negatives": [min(negatives), max(negatives)],
        "items_of_users": sorted(items_of_users.items()),
        "users_of_items": [[int(place) + 1, int(counts[place])] for place in places],
        "head": float(counts[: max(1, len(counts) // 10)].sum() / counts.sum()),
        "top": [list(pair) for pair in popular[:SHOWN]],
        "hr@1": levels(splits),
        "lines": [
            {"user": line.user, "history": line.history, "chosen": line.chosen, "candidates": len(line.candidates)}
            for line in splits.test[:SHOWN]
        ],
    }


def levels(splits: Splits) -> dict[str, tuple[float, float, float]]:
    """HR@1 on test users that needs no model: chance, popularity, a first-order Markov chain.

    Each with a 95 % interval over users, but for chance, which is exact; the last two know the training lines alone.
    """
    chance = float(np.mean([1 / len(line.candidates) for line in splits.test]))
    found = {"chance": (chance, chance, chance)}
    for name, score in (("popularity", baselines.popularity_scores), ("markov", baselines.markov_scores)):
        found[name] = _share(splits, score(splits.train, splits.test))
    return found


def _share(splits: Splits, scores: baselines.Scores) -> tuple[float, float, float]:
    """HR@1 and Wilson's interval for a share."""
    users = len(splits.test)
    share = float(ranking_metrics(ranks(scores))["hr@1"].mean())
    z = 1.96
    centre = (share + z**2 / (2 * users)) / (1 + z**2 / users)
    half = z * np.sqrt(share * (1 - share) / users + z**2 / (4 * users**2)) / (1 + z**2 / users)
    return share, float(centre - half), float(centre + half)


def sentence(content: dict[str, Any]) -> str:
    """Read `overview` aloud, in Markdown."""
    rows, (best, level) = content["rows"], _best(content)
    fewest, most = content["negatives"]
    negatives = f"{most}" if fewest == most else f"{fewest} to {most}"
    return (
        f"**{content['users']:,} users took {content['items']:,} items {content['interactions']:,} times**, which "
        f"makes {rows['train']:,} lines to train on, each with {negatives} negatives. A model has to beat {best}: "
        f"without one, it ranks the chosen item first for **{_percent(level[0])}** of the test users."
    )


def _best(content: dict[str, Any]) -> tuple[str, tuple[float, float, float]]:
    """The ranking without a model that is best on test users, in words, and its level."""
    name = max(content["hr@1"], key=lambda name: content["hr@1"][name][0])
    words = {"chance": "chance", "popularity": "popularity", "markov": "a Markov chain"}
    return words[name], content["hr@1"][name]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def items_of_users(content: dict[str, Any]) -> go.Figure:
    """How many users took how many items."""
    items, users = (np.array(side) for side in zip(*content["items_of_users"], strict=True))
    width = max(1, int(np.ceil((items.max() - items.min() + 1) / BINS)))
    first = items.min() + width * ((items - items.min()) // width)
    starts = np.unique(first)
    heights = [int(users[first == start].sum()) for start in starts]
    ends = starts + width - 1
    names = [f"{start}" if width == 1 else f"{start} to {end}" for start, end in zip(starts, ends, strict=True)]
    figure = go.Figure()
    figure.add_bar(
        x=(starts + ends) / 2, y=heights, width=0.9 * width, marker_color=QUIET, customdata=names,
        hovertemplate="%{customdata} items: %{y:,} users<extra></extra>",
    )  # fmt: skip
    # The user in the middle, of all.
    middle = items[np.searchsorted(users.cumsum(), users.sum() / 2)]
    figure.update_layout(
        template=TEMPLATE, height=270, title={"text": f"Half the users took {middle:,} items or fewer", **TITLE}
    )
    figure.update_xaxes(title_text="items that a user took", showgrid=False, tickformat=",d", nticks=8)
    if len(starts) < 8:
        figure.update_xaxes(tickvals=(starts + ends) / 2, ticktext=names)
    figure.update_yaxes(title_text="users", rangemode="tozero", nticks=5)
    return figure


def users_of_items(content: dict[str, Any]) -> go.Figure:
    """How many users took each item, the most popular first."""
    ranks_, users = zip(*content["users_of_items"], strict=True)
    figure = go.Figure()
    figure.add_scatter(
        x=ranks_, y=users, mode="lines", line={"color": INK, "width": 2.5, "shape": "hv"}, fill="tozeroy",
        fillcolor="rgba(91,102,117,.18)", hovertemplate="item %{x:,}: %{y:,} users<extra></extra>",
    )  # fmt: skip
    title = f"A tenth of the items has {100 * content['head']:.0f} % of all"
    figure.update_layout(template=TEMPLATE, height=270, title={"text": title, **TITLE}, showlegend=False)
    figure.update_xaxes(title_text="items, the most popular first", showgrid=False, nticks=6, range=[1, ranks_[-1]])
    figure.update_yaxes(title_text="users who took it", rangemode="tozero", nticks=5)
    return figure


def levels_figure(content: dict[str, Any]) -> go.Figure:
    """HR@1 on test users of rankings that need no model, with their intervals."""
    found = {LEVELS[name]: level for name, level in content["hr@1"].items()}
    shares = [100 * level[0] for level in found.values()]
    figure = go.Figure()
    figure.add_bar(
        x=shares, y=list(found), orientation="h", marker_color=FAINT, width=0.55,
        error_x={
            "type": "data", "color": QUIET, "thickness": 2, "width": 5,
            "array": [100 * (level[2] - level[0]) for level in found.values()],
            "arrayminus": [100 * (level[0] - level[1]) for level in found.values()],
        },
        hovertemplate="%{y}: %{x:.1f} % of test users<extra></extra>",
    )  # fmt: skip
    for name, level in found.items():
        figure.add_annotation(
            x=100 * level[2], y=name, text=f"<b>{_percent(level[0])}</b>", xanchor="left", xshift=8, font={"color": INK}
        )
    best, _ = _best(content)
    figure.update_layout(template=TEMPLATE, height=270, title={"text": f"Without a model: {best} is best", **TITLE})
    figure.update_layout(margin={"r": 12})
    longest = max(100 * level[2] for level in found.values())
    figure.update_xaxes(title_text="HR@1, % of test users", range=[0, min(130, 1.35 * longest)], nticks=5)
    figure.update_yaxes(showgrid=False, autorange="reversed")
    return figure


def example_lines(content: dict[str, Any]) -> list[tuple[str, str]]:
    """The first test lines: the history, oldest first, and what was chosen next."""
    return [(" → ".join(line["history"]), line["chosen"]) for line in content["lines"]]
