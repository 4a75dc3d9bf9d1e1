"""A run as a card: its place in the queue or progress, its result, and its viewer's actions."""

from collections.abc import Callable
from dataclasses import astuple
from datetime import datetime
from pathlib import Path
from typing import Any

import forms
import jobs
import limits
import pandas as pd
import recorded
import streamlit as st
from figures.live import result_sentence
from jobs import Job
from shell import REMOVED, plain

from minipo.evaluation import paired_interval, ranking_metrics
from minipo.experiments import estimates
from minipo.experiments.runs import Run

FILES = {"metrics": "metrics.jsonl", "evaluation": "evaluation.jsonl", "summary": "summary.json"}
DAMAGED = "The files of this run are missing or damaged: remove it, and train it again."
EVERY = 1  # seconds between looks at a run that is active


def card(token: str) -> None:
    """One run's state, kept up to date while it waits or trains."""
    job = jobs.find(token)
    active = job is not None and job.active
    st.fragment(_watch, run_every=EVERY if active else None)(token, active)


def _watch(token: str, active: bool) -> None:
    job = jobs.find(token)
    if active != (job is not None and job.active):
        st.rerun()  # the page starts or stops its refresh
    if job is None:
        st.info("This run is no longer on this server: it was removed, or it expired.", icon=":material/delete:")
    else:
        show(job)


def read(job: Job, name: str) -> Any:
    """A run's `metrics`, `evaluation` (tables) or `summary` so far; empty at first. ValueError if it is damaged."""
    try:
        written = (job.run / FILES[name]).stat()
        return _read(str(job.run), name, written.st_mtime_ns, written.st_size)
    except OSError:
        return {} if name == "summary" else pd.DataFrame()


@st.cache_resource(max_entries=400, show_spinner=False)
def _read(folder: str, name: str, time: int, size: int) -> Any:
    """Read again only when the file has another time or size."""
    return getattr(Run(Path(folder)), name)


def show(job: Job) -> None:
    """The content of `card`, without refresh."""
    with st.container(border=True, key=f"card_{job.token}", gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small", wrap=False):
            st.markdown(f"**{plain(job.name)}**{' :material/keep:' * job.kept}", width="stretch")
            menu(job)
        try:
            state(job)
        except ValueError:
            st.error(DAMAGED)
        refused(job)
        st.caption(with_settings(job))


def with_settings(job: Job) -> str:
    """The settings that are not in its name, in Markdown."""
    settings = job.settings
    data = recorded.DATASETS.get(settings["dataset"], "your data")
    parts = [
        f"{data}, {recorded.MODELS.get(settings['model'], settings['model'])}",
        f"{settings['steps']} steps",
        f"learning rate {settings['learning_rate']:g}",
        f"β {settings['beta']:g}",
    ]
    if settings["dynamic"] == "on" and settings["adjust_beta"] == "on":
        parts.append(f"γ {settings['margin']:g}")
    if job.name != forms.described(settings):
        parts.insert(0, forms.described(settings))
    return plain(" · ".join(parts))


def state(job: Job) -> None:
    """A run's progress, or how it ended. Raises ValueError if its files are damaged."""
    token = job.token
    metrics = read(job, "metrics")
    if job.active:
        share, text = progress(job, metrics)
        st.progress(share, text=text)
        stop(job)
        return
    if job.state == "done":
        if not (summary := read(job, "summary")):
            raise ValueError(DAMAGED)
        recorded_runs = forms.neighbours(job.settings, summary.get("dataset_fingerprint"))
        st.markdown(result_sentence(summary, recorded_runs, gain(job)))
        with st.container(horizontal=True):
            link = {"run": token}
            st.page_link("views/microscope.py", label="Microscope", icon=":material/search:", query_params=link)
            st.page_link("views/compare.py", label="Compare", icon=":material/table_rows:", query_params=link)
        return
    step = 0 if metrics.empty else int(metrics["step"].iloc[-1])
    reached = f" It had reached step {step} of {job.settings['steps']}." if step else ""
    ended_early(job, reached)


def stop(job: Job) -> None:
    """The button that ends an active job."""
    waiting = job.state == "waiting"
    st.button(
        "Cancel" if waiting else "Stop",
        icon=":material/close:" if waiting else ":material/stop:", key=f"stop_{job.token}",
        on_click=_do, args=(jobs.stop, job.token),
        help="Remove it from the queue." if waiting else "End the training now; its results so far are kept.",
    )  # fmt: skip


def ended_early(job: Job, reached: str = "") -> None:
    """Why a job was stopped or failed, how far it had come, and the button that resumes it."""
    (st.error if job.state == "failed" else st.info)(plain(job.message) + reached)
    st.button(
        "Resume", icon=":material/play_arrow:", key=f"resume_{job.token}", on_click=_do, args=(jobs.resume, job.token),
        help="Back into the queue; the training resumes from its last checkpoint.",
    )  # fmt: skip


def queued(job: Job) -> str:
    """Where a job stands in the queue, in words."""
    before = jobs.place(job.token)
    line = f"{before} run{'s wait' if before > 1 else ' waits'} before it" if before else "next in line"
    return f"In the queue, place {before + 1}: {line}."


def progress(job: Job, metrics: pd.DataFrame) -> tuple[float, str]:
    """An active run's progress, from 0 to 1, and in words."""
    steps = job.settings["steps"]
    if job.state == "waiting":
        return 0.0, queued(job)
    if metrics.empty:
        if forms.starts_at_once(job.settings):
            return 0.0, "Starting: loading the model, and the reference's log-probs."
        return 0.0, "Starting: training the SFT run that this one starts from."
    step, seconds = metrics[["step", "seconds"]].iloc[-1]
    if step >= steps:
        return 1.0, "Trained; ranking the test users."
    return (
        step / steps,
        f"Step {step:.0f} of {steps}, about {estimates.duration(seconds / step * (steps - step))} left.",
    )


def gain(job: Job) -> tuple[float, float, float] | None:
    """HR@1 of a finished run minus its SFT run's: mean and 95 % interval, paired over test users; None if either's
    ranks are gone, or if that SFT run has been replaced."""
    try:
        run = Run(job.run)
        run.check_start()
        return _gain(str(job.run), str(Path(run.provenance["start"]).parent))
    except (ValueError, KeyError):
        return None


@st.cache_data(max_entries=200, show_spinner=False)
def _gain(run: str, start: str) -> tuple[float, float, float]:
    after, before = (ranking_metrics(Run(Path(folder)).users["rank"].to_numpy())["hr@1"] for folder in (run, start))
    return astuple(paired_interval(after - before))


def menu(job: Job) -> None:
    """A viewer's actions on a run at any time."""
    token = job.token
    with st.popover("", icon=":material/more_vert:", help="Rename, keep or remove this run", type="tertiary"):
        st.text_input(
            "Name", job.name, max_chars=limits.NAME, key=f"name_{token}", on_change=_rename, args=(token,),
            help="The name of this run wherever it is shown; press Enter to save it.",
        )  # fmt: skip
        st.toggle(
            "Keep it", job.kept, key=f"keep_{token}", on_change=keep, args=(token, f"said_{token}"),
            help=f"A finished run is removed after {limits.HOURS} hours, or after {limits.DAYS_KEPT} days if you keep "
            f"it; you may keep {limits.RUNS_KEPT}.",
        )  # fmt: skip
        if st.button(
            "Remove", icon=":material/delete:", key=f"remove_{token}", on_click=_remove, args=(token,),
            help="Remove the run and its files, for everybody with its link.",
        ):  # fmt: skip
            st.rerun()
        began = datetime.fromtimestamp(job.created).astimezone()
        st.caption(f"Submitted {began:%Y-%m-%d %H:%M %Z}.")


def refused(job: Job) -> None:
    """Why the last action on a job was refused, once."""
    if said := st.session_state.pop(f"said_{job.token}", None):
        st.warning(said)


def _rename(token: str) -> None:
    jobs.rename(token, st.session_state[f"name_{token}"])


def _remove(token: str) -> None:
    jobs.remove(token)
    st.session_state.setdefault(REMOVED, set()).add(token)


def _do(action: Callable[[str], str | None], token: str) -> None:
    """Stop or resume a run, and save a message if there is one."""
    try:
        said = action(token)
    except ValueError as error:
        said = str(error)
    if said and said != "Stopped.":
        st.session_state[f"said_{token}"] = said


def keep(token: str, said: str) -> None:
    """Keep a run or an upload, as its control says; if that is refused, the session gets the reason, as `said`."""
    state = st.session_state
    try:
        jobs.keep(token, state[f"keep_{token}"])
    except ValueError as error:
        state[f"keep_{token}"], state[said] = False, str(error)
