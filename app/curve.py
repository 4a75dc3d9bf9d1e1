"""Collapse against K, trained here: below the recorded curve, and drawn as its runs end."""

from itertools import product
from pathlib import Path
from typing import Any

import cards
import experiments
import forms
import jobs
import limits
import pandas as pd
import recorded
import streamlit as st
from jobs import Job
from shell import REMOVED, WORDS, draw, plain, viewer

from minipo.course.figures.collapse import live_curve, live_curve_sentence
from minipo.course.figures.style import METRICS, OBJECTIVE_LABELS
from minipo.evaluation import Interval
from minipo.experiments import estimates
from minipo.experiments.comparison import curve_so_far
from minipo.experiments.runs import PROBED_USERS, Run, list_runs

LINK = "live"  # the link's parameter that names the curve
SEEDS = 10_000


def offer(
    world: recorded.World,
    objective: str,
    strengths: dict[str, float],
    table: pd.DataFrame,
    sft: float | None,
    metric: str,
) -> None:
    """Train the curve that is shown above, under a seed, and watch it; nothing if its model is no pocket model.

    strengths: its β and γ. table: its recorded runs, plain and under DynamicPO, with `variant`. sft: SFT's level of the
    metric.
    """
    dataset, model = world
    if not model.startswith("pocket-") or not recorded.is_here(dataset):
        return
    settings = {"dataset": dataset, "model": model, "objective": objective, **forms.defaults(dataset, model)}
    settings |= {
        **strengths,
        "negatives": sorted(int(k) for k in table["negatives"].unique()),
        "dynamic": ["off", "on"],
    }
    # What validation users get is not shown, so these runs take no time for it.
    settings |= {"evaluate_every": settings["steps"], "validation_users": PROBED_USERS}
    me = viewer()
    job = found(me, settings)
    submitting(me, settings, sorted({int(seed) for seed in table["seed"]}))
    if job is not None:
        st.query_params[LINK] = job.token
        st.fragment(watch, run_every=cards.EVERY if job.active else None)(job.token, job.active, table, sft, metric)


def found(me: str, settings: dict[str, Any]) -> Job | None:
    """The curve with these settings that the link names, or else the viewer's newest."""
    mine = jobs.of_viewer(me, "curve")
    if token := st.query_params.get(LINK):
        named = jobs.find(token)
        if named is not None and named.kind == "curve":
            mine.insert(0, named)
        elif token not in st.session_state.get(REMOVED, set()):
            st.info(
                "The curve of this link is no longer on this server: removed or expired.", icon=":material/link_off:"
            )
    return next((job for job in mine if settings.items() <= job.settings.items()), None)


def submitting(me: str, settings: dict[str, Any], seeds: list[int]) -> None:
    """The seed and the button. seeds: the recorded ones."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        seed = st.number_input(
            "Seed", 0, SEEDS, min(SEEDS, seeds[-1] + 1), key="curve_seed", bind="query-params", width=130,
            help=f"{WORDS['seed']} Recorded: {', '.join(map(str, seeds))}.",
        )  # fmt: skip
        pressed = st.button(
            "Train this curve here", icon=":material/play_arrow:", key="curve_train",
            help="Submit its runs: they train on this server, even if you close this page, and are drawn as they end.",
        )  # fmt: skip
    negatives = settings["negatives"]
    if pressed:
        name = f"{OBJECTIVE_LABELS[settings['objective']]}, K = {negatives[0]} to {negatives[-1]}, seed {seed}"
        try:
            st.query_params[LINK] = jobs.submit("curve", {**settings, "seed": int(seed)}, me, name).token
        except ValueError as error:
            st.warning(str(error))
        else:
            st.rerun()
    st.caption(
        f"{2 * len(negatives)} runs of {settings['steps']} steps, {limits.CURVE_RUNS} at a time: plain and under "
        f"DynamicPO at K = {', '.join(map(str, negatives))}, from the SFT model of the runs above. {duration(settings)}"
    )


def duration(settings: dict[str, Any]) -> str:
    """How long a curve with these settings takes on this machine."""
    cells = [dict(zip(jobs.AXES, cell, strict=True)) for cell in product(*(settings[axis] for axis in jobs.AXES))]
    seconds = forms.seconds_of(*({**settings, **cell} for cell in cells))
    if seconds is None:
        return forms.UNKNOWN
    whole = seconds[0] / limits.CURVE_RUNS + seconds[1]
    return f"All take about {estimates.duration(whole)} on this server, with nothing else running."


def watch(token: str, active: bool, table: pd.DataFrame, sft: float | None, metric: str) -> None:
    """A curve's runs so far; see `offer` for the arguments. active: whether it was when the page was drawn."""
    job = jobs.find(token)
    if job is None or active != job.active:
        st.rerun()  # the page starts or stops its refresh
    negatives, objective = job.settings["negatives"], job.settings["objective"]
    with st.container(border=True, key="live", gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(f"**{plain(job.name)}**", width="content" if job.active else "stretch")
            if job.active:
                share = progress(job)
                trains = f"Training: {100 * share:.0f} % of all steps." if share else "Starting."
                st.progress(share, cards.queued(job) if job.state == "waiting" else trains)
                cards.stop(job)
            cards.menu(job)
        try:
            runs, differences, users = so_far(str(job.runs), finished(job), negatives, metric)
        except ValueError:
            st.error(cards.DAMAGED)
            return
        if job.state in jobs.ENDED_EARLY:
            cards.ended_early(job)
        cards.refused(job)
        st.markdown(live_curve_sentence(runs, negatives, differences, objective, users, metric))
        alt = f"Training loss and {METRICS[metric]} of the runs trained here against K, over the recorded seeds' bands."
        draw(live_figure(runs, table, objective, sft, metric), "live_curve", alt)
        st.caption("Bands: from the lowest to the highest recorded seed. Points: the runs trained here, one seed.")


live_figure = st.cache_data(show_spinner=False, max_entries=300)(live_curve)


def finished(job: Job) -> tuple[str, ...]:
    """The folders of the curve's finished runs."""
    return tuple(sorted(path.parent.name for path in job.runs.glob("*/summary.json")))


@st.cache_data(show_spinner=False, max_entries=300)
def so_far(
    folder: str, names: tuple[str, ...], negatives: list[int], metric: str
) -> tuple[pd.DataFrame, dict[str, Interval], int]:
    """`curve_so_far` of the finished runs `names`, read once for all viewers, and the number of test users."""
    runs = [Run(Path(folder, name)) for name in names]
    table, differences = curve_so_far(runs, negatives, metric)
    return table, differences, len(runs[0].users) if runs else 0


def progress(job: Job) -> float:
    """The share of a curve's steps that is trained, from 0 to 1."""
    total = job.settings["steps"] * len(job.settings["negatives"]) * len(job.settings["dynamic"])
    return sum(map(experiments.steps_trained, list_runs(job.runs))) / total
