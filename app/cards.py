"""A run as a card: its place in the queue or how far it is, what it came to, and what its viewer can do with it."""

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
from minipo.experiments.runs import Run

FILES = {"metrics": "metrics.jsonl", "evaluation": "evaluation.jsonl", "summary": "summary.json"}
GONE = "This run is not on this server any more: it was removed, or its time was over."
DAMAGED = "The files of this run are gone or damaged: remove it, and train it again."
EVERY = 2  # seconds between looks at a run that is active


def card(token: str) -> None:
    """One run's state, kept up to date while it waits or trains."""
    job = jobs.find(token)
    active = job is not None and job.active
    st.fragment(_watch, run_every=EVERY if active else None)(token, active)


def _watch(token: str, active: bool) -> None:
    job = jobs.find(token)
    if active != (job is not None and job.active):
        st.rerun()  # of the page, which looks again every two seconds now, or no longer
    if job is None:
        st.info(GONE, icon=":material/delete:")
    else:
        show(job)


def read(job: Job, name: str) -> Any:
    """A run's `metrics`, `evaluation` (tables) or `summary`, as far as it is written; empty before that.

    Raises ValueError if what is there is damaged.
    """
    try:
        written = (job.run / FILES[name]).stat()
        return _read(str(job.run), name, written.st_mtime_ns, written.st_size)
    except OSError:
        return {} if name == "summary" else pd.DataFrame()


@st.cache_resource(max_entries=400, show_spinner=False)
def _read(folder: str, name: str, time: int, size: int) -> Any:
    """Read anew only when the file has another time or size."""
    return getattr(Run(Path(folder)), name)


def show(job: Job) -> None:
    """What `card` shows, once."""
    with st.container(border=True, key=f"card_{job.token}", gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small", wrap=False):
            st.markdown(f"**{plain(job.name)}**{' :material/keep:' * job.kept}", width="stretch")
            menu(job)
        try:
            state(job)
        except ValueError:
            st.error(DAMAGED)
        if said := st.session_state.pop(f"said_{job.token}", None):
            st.warning(said)
        st.caption(with_settings(job))


def with_settings(job: Job) -> str:
    """The settings that its name does not say, in Markdown."""
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
    """How far a run is, or how it ended. Raises ValueError if its files are damaged."""
    token = job.token
    metrics = read(job, "metrics")
    if job.active:
        share, text = progress(job, metrics)
        st.progress(share, text=text)
        waiting = job.state == "waiting"
        st.button(
            "Cancel" if waiting else "Stop",
            icon=":material/close:" if waiting else ":material/stop:",
            key=f"stop_{token}",
            on_click=_do,
            args=(token, "stop"),
            help="Take it out of the queue." if waiting else "End the training now; what it has reached stays.",
        )
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
    if job.state == "failed":
        st.error(plain(job.message) + reached)
    else:
        st.info(plain(job.message) + reached)
    st.button(
        "Go on",
        icon=":material/play_arrow:",
        key=f"resume_{token}",
        on_click=_do,
        args=(token, "resume"),
        help="Back into the queue; the training goes on from its last checkpoint.",
    )


def progress(job: Job, metrics: pd.DataFrame) -> tuple[float, str]:
    """An active run's share that is done, and what is happening, in words."""
    steps = job.settings["steps"]
    if job.state == "waiting":
        before = jobs.place(job.token)
        line = f"{before} run{'s wait' if before > 1 else ' waits'} before it" if before else "next in line"
        return 0.0, f"In the queue, place {before + 1}: {line}."
    if metrics.empty:
        if forms.starts_at_once(job.settings):
            return 0.0, "Starting: loading the model, and the reference's log-probs."
        return 0.0, "Starting: training the SFT run that this one begins with."
    step, seconds = metrics[["step", "seconds"]].iloc[-1]
    if step >= steps:
        return 1.0, "Trained; ranking the test users."
    return step / steps, f"Step {step:.0f} of {steps}, about {forms.lasting(seconds / step * (steps - step))} left."


def gain(job: Job) -> tuple[float, float, float] | None:
    """HR@1 of a finished run minus that of the SFT run it started from: mean and 95 % interval, paired over test users.
    None if either's ranks are not here any more, or if that SFT run is another by now."""
    try:
        run = Run(job.run)
        run.check_start()
        return _gain(str(job.run), str(Path(run.provenance["start"]).parent))
    except (ValueError, KeyError):
        return None


@st.cache_data(max_entries=200, show_spinner=False)
def _gain(run: str, start: str) -> tuple[float, float, float]:
    after, before = (ranking_metrics(Run(Path(folder)).users["rank"].to_numpy())["hr@1"] for folder in (run, start))
    interval = paired_interval(after - before)
    return interval.mean, interval.low, interval.high


def menu(job: Job) -> None:
    """What a viewer can do with a run at any time."""
    token = job.token
    with st.popover("", icon=":material/more_vert:", help="Rename, keep or remove this run", type="tertiary"):
        st.text_input(
            "Name", job.name, max_chars=limits.NAME, key=f"name_{token}", on_change=_rename, args=(token,),
            help="The name of this run wherever it is shown; Enter takes it.",
        )  # fmt: skip
        st.toggle(
            "Keep it", job.kept, key=f"keep_{token}", on_change=_do, args=(token, "keep"),
            help=f"A run that is over is removed after {limits.HOURS} hours, one that is kept after "
            f"{limits.DAYS_KEPT} days; you may keep {limits.RUNS_KEPT}.",
        )  # fmt: skip
        if st.button(
            "Remove", icon=":material/delete:", key=f"remove_{token}", on_click=_remove, args=(token,),
            help="Remove the run and its files, for everybody who has its link.",
        ):  # fmt: skip
            st.rerun()
        began = datetime.fromtimestamp(job.created).astimezone()
        st.caption(f"Handed in {began:%Y-%m-%d %H:%M %Z}.")


def _rename(token: str) -> None:
    jobs.rename(token, st.session_state[f"name_{token}"])


def _remove(token: str) -> None:
    jobs.remove(token)
    st.session_state.setdefault(REMOVED, set()).add(token)


def _do(token: str, what: str) -> None:
    """Stop, resume or keep a run, and note what there is to say to that."""
    said = ""
    try:
        if what == "stop":
            done = jobs.stop(token)
            said = "" if done == "Stopped." else done
        elif what == "resume":
            jobs.resume(token)
        else:
            jobs.keep(token, st.session_state[f"keep_{token}"])
    except ValueError as error:
        said = str(error)
        if what == "keep":
            st.session_state[f"keep_{token}"] = False
    if said:
        st.session_state[f"said_{token}"] = said
