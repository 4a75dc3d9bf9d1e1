"""What runs that are training now have logged, and their results, in a sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from minipo.course.figures.real import Curves
from minipo.course.figures.style import METRICS, level, short


def live_sentence(runs: Sequence[Curves], metric: str = "hr@1", names: Sequence[str] | None = None) -> str:
    """Describe `real.live_runs`, in Markdown. names: the runs' names in Markdown, if theirs need escaping.

    Of several runs it names the one with the lowest training loss and pair_loss and the highest metric at its last
    evaluation; runs on different data or with different models are described one by one.
    """
    named = zip(names or [run.name for run in runs], runs, strict=True)
    begun = [(name, run) for name, run in named if not (run.metrics.empty or run.evaluations.empty)]
    if not begun:
        return "No step is logged yet: the lines appear with the first one."

    def described(name: str, run: Curves) -> str:
        losses, yardstick, ranking = run.metrics["loss"], run.evaluations["pair_loss"], run.evaluations[metric]
        sft = "" if metric == "reward_win_rate" else f" {level(ranking.iloc[0], metric)} (SFT) →"
        return (
            f"**{name}**: after step {run.metrics['step'].iloc[-1]} of {run.settings['steps']}, training loss "
            f"{short(losses.iloc[0])} → {short(losses.iloc[-1])}, pair_loss {short(yardstick.iloc[0])} → "
            f"{short(yardstick.iloc[-1])}, and {METRICS[metric]} on validation users{sft} "
            f"**{level(ranking.iloc[-1], metric)}**."
        )

    if len(begun) == 1 or len({(run.settings["dataset"], run.settings["model"]) for _, run in begun}) > 1:
        return " ".join(described(name, run) for name, run in begun)
    loss, loss_of = min((float(run.metrics["loss"].iloc[-1]), name) for name, run in begun)
    pair, pair_of = min((float(run.evaluations["pair_loss"].iloc[-1]), name) for name, run in begun)
    best, best_of = max((float(run.evaluations[metric].iloc[-1]), name) for name, run in begun)
    sft = f"; SFT {level(begun[0][1].evaluations[metric].iloc[0], metric)}" if metric != "reward_win_rate" else ""
    over = all(run.metrics["step"].iloc[-1] >= run.settings["steps"] for _, run in begun)
    alike = {(run.settings["objective"], run.settings["dynamic"], run.settings["negatives"]) for _, run in begun}
    scale = "; each objective and K has a scale of its own" if len(alike) > 1 else ""
    return (
        f"{'L' if over else 'So far, l'}owest training loss: **{loss_of}** ({short(loss)}{scale}). "
        f"Lowest pair_loss: **{pair_of}** ({short(pair)}). "
        f"Highest {METRICS[metric]} on validation users: **{best_of}** ({level(best, metric)}{sft})."
    )


def result_sentence(
    summary: Mapping[str, Any], neighbours: pd.DataFrame, gain: tuple[float, float, float] | None = None
) -> str:
    """A finished run's result, in Markdown, beside SFT and recorded runs: rows of a recorded table, of any K.

    gain: HR@1 minus SFT's, mean and 95 % interval, as shares of users; without it there is no interval.
    """
    difference = 100 * (summary["hr@1"] - summary["sft_hr@1"])
    side = "above" if difference >= 0 else "below"
    text = f"HR@1 on the test users: **{summary['hr@1']:.1%}**, {abs(difference):.1f} points {side} "
    text += f"SFT's {summary['sft_hr@1']:.1%}"
    if gain is not None:
        text += f" (95% interval {100 * gain[1]:+.1f} to {100 * gain[2]:+.1f})".replace("-", "−")
        text += "" if gain[1] > 0 or gain[2] < 0 else ", which may be chance"
    text += "."
    for negatives, runs in neighbours.groupby("negatives"):
        hits = runs["hr@1"]
        text += f" Recorded at K = {negatives}: {hits.mean():.1%}, "
        text += f"{len(hits)} seeds from {hits.min():.1%} to {hits.max():.1%}." if len(hits) > 1 else "1 seed."
    return text.replace("%", " %")
