"""What is in a dataset of one's own, before anything is trained on it: its overview, the figures, the sentence."""

from collections import Counter
from typing import Any

import numpy as np
import plotly.graph_objects as go

from minipo.course.figures.style import INK, QUIET, lay_out, level, percent, ranking_bars
from minipo.evaluation import Interval, ranking_metrics, ranks
from minipo.experiments.datasets import baselines
from minipo.experiments.datasets.splits import Splits, with_report

POINTS = 150  # of the curve of popularity
BINS = 30
SHOWN = 5  # items and lines, as examples


def overview(splits: Splits) -> dict[str, Any]:
    """The data report and the content of the figures below, as plain numbers and text for JSON.

    Besides `splits.report`: fingerprint; negatives, the fewest and the most of a training line; items_of_users, pairs
    of a number of items and the number of users with that many; users_of_items, at most POINTS pairs of an item's rank
    by popularity, from 1, and how many users took it; head, the most popular tenth's share of all interactions; top,
    the most popular items and how many users took each; hr@1, see `levels`; lines, the first test lines.
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
    """HR@1 on test users without a model: chance, popularity, a first-order Markov chain.

    Each with a 95 % interval over users, except chance, which is exact; the last two use only the training lines.
    """
    chance = float(np.mean([1 / len(line.candidates) for line in splits.test]))
    found = {"chance": (chance, chance, chance)}
    users, z = len(splits.test), 1.96
    for name, score in (("popularity", baselines.popularity_scores), ("markov", baselines.markov_scores)):
        share = float(ranking_metrics(ranks(score(splits.train, splits.test)))["hr@1"].mean())
        # Wilson's interval for a share.
        centre = (share + z**2 / (2 * users)) / (1 + z**2 / users)
        half = z * np.sqrt(share * (1 - share) / users + z**2 / (4 * users**2)) / (1 + z**2 / users)
        found[name] = (share, float(centre - half), float(centre + half))
    return found


def sentence(content: dict[str, Any]) -> str:
    """Describe `overview`, in Markdown."""
    rows, best, share = content["rows"], *_best(content)
    fewest, most = content["negatives"]
    negatives = f"{most}" if fewest == most else f"{fewest} to {most}"
    return (
        f"**{content['users']:,} users took {content['items']:,} items {content['interactions']:,} times**, which "
        f"makes {rows['train']:,} lines to train on, each with {negatives} negatives. A model has to beat {best}: "
        f"without one, it ranks the chosen item first for **{level(share)}** of the test users."
    )


def _best(content: dict[str, Any]) -> tuple[str, float]:
    """The ranking without a model that is best on test users, in words, and its level."""
    share, name = max((shares[0], name) for name, shares in content["hr@1"].items())
    return name.replace("markov", "a Markov chain"), share


def items_of_users(content: dict[str, Any]) -> go.Figure:
    """How many users took how many items."""
    items, users = (np.array(side) for side in zip(*content["items_of_users"], strict=True))
    figure = go.Figure()
    figure.add_histogram(
        x=items, y=users, histfunc="sum", marker_color=QUIET, xbins_size=np.ceil((np.ptp(items) + 1) / BINS),
        hovertemplate="%{x} items: %{y:,} users<extra></extra>",
    )  # fmt: skip
    # The user in the middle, of all.
    middle = items[np.searchsorted(users.cumsum(), users.sum() / 2)]
    figure.update_xaxes(showgrid=False, tickformat=",d", nticks=8, dtick=1 if np.ptp(items) < 7 else None)
    figure.update_yaxes(nticks=5)
    title = f"Half the users took {middle:,} items or fewer"
    return lay_out(figure, 270, title, "items that a user took", "users", margin_t=28, bargap=0.1)


def users_of_items(content: dict[str, Any]) -> go.Figure:
    """How many users took each item, the most popular first."""
    ranks_, users = zip(*content["users_of_items"], strict=True)
    figure = go.Figure()
    figure.add_scatter(
        x=ranks_, y=users, mode="lines", line={"color": INK, "width": 2.5, "shape": "hv"}, fill="tozeroy",
        fillcolor="rgba(91,102,117,.18)", hovertemplate="item %{x:,}: %{y:,} users<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(showgrid=False, nticks=6, range=[1, ranks_[-1]])
    figure.update_yaxes(rangemode="tozero", nticks=5)
    title = f"A tenth of the items has {percent(content['head'])} of all"
    return lay_out(figure, 270, title, "items, the most popular first", "users who took it", margin_t=28)


def levels_figure(content: dict[str, Any]) -> go.Figure:
    """HR@1 on test users of rankings that need no model, with their intervals."""
    found = {name.replace("markov", "Markov chain"): Interval(*shares) for name, shares in content["hr@1"].items()}
    title = f"Without a model: {_best(content)[0]} is best"
    figure = ranking_bars(found, title, "HR@1, % of test users", {})
    return figure.update_layout(height=270, margin={"t": 28, "r": 12})
