"""Class: an experiment that a whole class runs together, one seed each."""

from typing import Any, NamedTuple
from urllib.parse import urlsplit

import experiments
import forms
import jobs
import limits
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import recorded
import segno
import streamlit as st
from figures import classroom
from shell import WORDS, check_link, draw, head, plain, viewer

from minipo.course.figures.style import colour_of, level
from minipo.experiments import estimates, pairs
from minipo.experiments.configuration import PreferConfig, make_config

SIDE = [name for name in forms.NAMES if name != "seed"]  # each student has their own seed
KEYS = ("code", "setup", "data", *(side + name for side in ("left_", "right_") for name in SIDE))
LEFT: dict[str, Any] = {"objective": "dmpo", "negatives": 1, "dynamic": "off"}
RIGHT = LEFT | {"negatives": 19}
CLASS = 30  # students, for the time that a class takes
POLL = 3  # seconds between checks for changes
STYLE = """
.class-code {font: 700 clamp(2.4rem, 3.8vw, 3.6rem)/1.1 monospace; white-space: nowrap}
.class-seed {font: 700 2.4rem/1.1 monospace}
.st-key-qr img {width: min(100%, 13rem)}
"""


class Drawn(NamedTuple):
    """An experiment's results as a page shows them."""

    sentence: str
    dots: go.Figure
    closing: go.Figure | None
    note: str


# ---------------------------------------------------------------------------------------------------------- the figure


@st.cache_resource(show_spinner=False, max_entries=64)
def results(code: str, version: int) -> Drawn:
    """An experiment's figures, made once for all viewers of a `version`."""
    experiment = experiments.find(code)
    if experiment is None:
        raise ValueError("This experiment is no longer on this server.")
    entries, differences = experiments.table(code), experiments.differences(code)
    intervals = pairs.closing_in(differences) if len(differences) else []
    interval = intervals[-1] if intervals else None
    sides = experiment.sides()
    colour = colour_of(vars(sides[1]))
    note = "No result has arrived yet."
    if interval is not None:
        means = entries[["left", "right", "sft"]].mean()
        labels = (*experiment.labels, "SFT")
        levels = ", ".join(f"{level(mean)} ({label})" for mean, label in zip(means, labels, strict=True))
        note = (
            f"Mean HR@1 of {len(differences)} pair{'s' * (len(differences) > 1)} of runs: {levels}; "
            f"{differences.shape[1]:,} test users. "
            "Both runs of a pair see the same users and negatives, in the same order. The 95 % interval is paired over "
            "users and seeds, or over users if there is one seed."
        )
    return Drawn(
        classroom.class_sentence(experiment.labels, entries, interval),
        classroom.class_dots(entries, interval, colour),
        classroom.class_closing(intervals, colour) if intervals else None,
        note,
    )


@st.cache_resource(show_spinner=False)
def example() -> Drawn:
    """A recorded experiment, one row per seed; ValueError in one sentence if the record is missing or damaged."""
    grid = recorded.grid("objectives")
    left, right = (grid.outcomes(**side) for side in (LEFT, RIGHT))
    seeds = sorted(seed for seed in left if seed in right and seed is not None)
    differences = np.stack([right[seed] - left[seed] for seed in seeds])
    entries = pd.DataFrame(
        {"seed": seeds, "name": [f"seed {seed}" for seed in seeds], "guess": np.nan, "difference": differences.mean(1)}
    )
    sides = [make_config(PreferConfig, side) for side in (LEFT, RIGHT)]
    labels = classroom.side_labels(*sides)
    intervals, colour = pairs.closing_in(differences), colour_of(vars(sides[1]))
    # The mean of the seeds' means, as on the other pages: rounded, that of all users is at times another.
    first, second = (level(float(np.mean([side[seed].mean() for seed in seeds]))) for side in (left, right))
    sft = level(grid.baseline("sft")[None].mean())
    return Drawn(
        f"**Recorded, {len(seeds)} seeds, no class yet.** {classroom.difference_sentence(labels, intervals[-1])}",
        classroom.class_dots(entries, intervals[-1], colour),
        classroom.class_closing(intervals, colour),
        f"Recorded runs. Mean HR@1 of {len(seeds)} seeds: {first} ({labels[0]}), {second} ({labels[1]}), {sft} (SFT); "
        f"{differences.shape[1]:,} test users. In a class each dot is a student's, who guesses before it appears.",
    )


def show(found: Drawn) -> None:
    st.markdown(found.sentence)
    left, right = st.columns([1.2, 1], gap="medium")
    with left:
        draw(found.dots, "class_dots", "Each student's paired difference of HR@1 and guess, with the mean's interval.")
    with right:
        if found.closing is not None:
            draw(found.closing, "class_closing", "The mean's interval after the first 1, 2, 3 and more differences.")
    st.caption(found.note)


@st.fragment(run_every=POLL)
def watch(code: str, version: int) -> None:
    """Draw the page again as soon as the experiment has changed; checking costs almost nothing."""
    experiments.collect(code)
    found = experiments.find(code)
    if found is None or found.version != version:
        st.rerun()


# ---------------------------------------------------------------------------------------------- without an experiment


def front(mine: str) -> None:
    """The form for opening an experiment, above a recorded one."""
    opened = experiments.of_viewer(mine)
    if opened:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown("Your experiments:", width="content")
            for experiment in opened[:4]:
                code = experiments.shown_code(experiment.code)
                st.button(
                    f"{code} {plain(experiment.title)}{'' if experiment.open else ' (closed)'}",
                    key=f"mine_{experiment.code}", on_click=st.session_state.update, args=({"code": code},),
                    help="Show this experiment, which this browser has opened.",
                )  # fmt: skip
    with st.expander(
        "Open an experiment for your class", key="setup", icon=":material/school:", on_change="rerun",
        bind="query-params",
    ):  # fmt: skip
        set_up(mine)
    try:
        show(example())
    except ValueError as error:
        st.warning(recorded.fault(error))


def set_up(mine: str) -> None:
    """The form for a new experiment."""
    state = st.session_state
    naming, choosing = st.columns([2, 1])
    title = naming.text_input(
        "Title", key="title", max_chars=limits.NAME, placeholder="Do more negatives hurt?",
        help="What students read above the experiment; it may stay empty.",
    )  # fmt: skip
    datasets = [name for name in recorded.DATASETS if recorded.is_here(name)]
    data = choosing.selectbox(
        "Data", datasets, format_func=recorded.DATASETS.__getitem__, key="data", bind="query-params",
        on_change=refill, filter_mode=None, help="The histories and items that both runs learn from.",
    )  # fmt: skip
    st.markdown("**Left**, one run of the pair")
    first = forms.run_settings("left_", LEFT, data, seed=False)
    st.markdown("**Right**, the other run")
    second = forms.run_settings("right_", RIGHT, data, seed=False)
    try:
        sides = pairs.sides(first, second)
    except ValueError as error:
        st.warning(plain(error))
        return
    labels = classroom.side_labels(*sides)
    text, press = st.columns([4, 1], vertical_alignment="center")
    text.markdown(
        f"Each student trains **{labels[0]}** and **{labels[1]}** under one seed. {class_time(first, second)}"
    )
    if not (forms.starts_at_once(first) and forms.starts_at_once(second)):
        st.info("The SFT run that they start from is missing here: the first pair trains it, which takes longer.")
    if press.button(
        "Open it", key="open", type="primary", width="stretch",
        help="You get a link and a code for the class. Only this browser can close the experiment.",
    ):  # fmt: skip
        try:
            state["class_opened"] = experiments.open_experiment(mine, title, first, second).code
        except ValueError as error:
            st.warning(plain(error))
        else:
            st.rerun()


def refill() -> None:
    """Other data: their settings on both sides."""
    for side in ("left_", "right_"):
        forms.refill(side, st.session_state["data"])


def class_time(first: dict[str, Any], second: dict[str, Any]) -> str:
    """How long a class waits if all its pairs run on this server."""
    found = [forms.seconds_of(side) for side in (first, second)]
    if any(each is None for each in found):
        return forms.UNKNOWN
    seconds = sum(each[0] for each in found if each)
    return (
        f"A pair takes about {estimates.duration(seconds)} on this server, with nothing else running, and a class of "
        f"{CLASS} at most {estimates.duration(CLASS * seconds)}."
    )


# ------------------------------------------------------------------------------------------------ the lecturer's page


def lecturer(experiment: experiments.Experiment, mine: str) -> None:
    code = experiments.shown_code(experiment.code)
    side, main = st.columns([1, 3.2], gap="medium")
    with side:
        if experiment.title:
            st.markdown(f"**{plain(experiment.title)}**")
        st.html(f"<div class='class-code'>{code}</div>")
        address = st.context.url or ""
        link = f"{address}?code={code}"
        with st.container(key="qr"):
            st.image(
                segno.make(link, error="m", micro=False).svg_inline(scale=6, border=2, dark="#1B2430", light="white"),
                alt="A QR code with this experiment's link",
            )
        st.code(link, language=None, wrap_lines=True)
        if urlsplit(address).hostname in ("localhost", "127.0.0.1"):
            st.caption("This address works only on this computer; students need its address in the network.")
        with st.container(horizontal=True):
            st.button(
                "Close" if experiment.open else "Open again", key="close", on_click=do,
                args=(experiments.set_open, experiment.code, mine, not experiment.open),
                help="A closed experiment shows its results and accepts no more students, guesses or results.",
            )  # fmt: skip
            with st.popover("Students", help="Remove a student's dot and guess, a nickname that should not be shown."):
                students(experiment, mine)
        if refused := st.session_state.pop("class_refused", ""):
            st.warning(plain(refused))
    with main:
        if not experiment.open:
            st.info("This experiment is closed.", icon=":material/lock:")
        show(results(experiment.code, experiment.version))


def students(experiment: experiments.Experiment, mine: str) -> None:
    table = experiments.table(experiment.code)
    if table.empty:
        st.markdown("Nobody has joined yet.")
        return
    named = dict(zip(table["seed"], table["name"], strict=True))
    seed = st.selectbox(
        "Student", sorted(named), format_func=lambda seed: f"{seed}: {named[seed]}", key="student", filter_mode=None,
        help="By seed.",
    )  # fmt: skip
    st.button(
        "Remove", key="remove", on_click=do, args=(experiments.remove, experiment.code, mine, int(seed)),
        help="The student may join again, and gets another seed.",
    )  # fmt: skip


def do(action: Any, *arguments: Any) -> None:
    """A button's action; if it is refused, the reason is shown."""
    try:
        action(*arguments)
    except ValueError as error:
        st.session_state["class_refused"] = str(error)


# ------------------------------------------------------------------------------------------------- the student's page


def student(experiment: experiments.Experiment, mine: str) -> None:
    entry = experiments.entry(experiment.code, mine)
    side, main = st.columns([1, 2.4], gap="medium")
    with side:
        if entry is None:
            joining(experiment, mine)
        else:
            st.markdown(f"**{plain(entry.name)}**, your seed is" if entry.nickname else "Your seed is")
            st.html(f"<div class='class-seed'>{entry.seed}</div>")
            if entry.guess is None:
                guessing(experiment, mine)
            else:
                st.markdown(f"Your guess: **{points(entry.guess)}**.")
                running(experiment, entry, mine)
        if refused := st.session_state.pop("class_refused", ""):
            st.warning(plain(refused))
    with main:
        left, right = experiment.labels
        if experiment.title:
            st.markdown(f"**{plain(experiment.title)}**")
        if not experiment.open:
            st.info("This experiment is closed.", icon=":material/lock:")
        elif entry is None or entry.guess is None:
            steps = sorted({run.steps for run in experiment.sides()})
            st.markdown(
                f"Two runs under one seed, {' and '.join(map(str, steps))} steps each, from the same SFT model: "
                f"**{left}** and **{right}**.\n\nBy how many points will HR@1 of **{right}** be above or below that of "
                f"**{left}**? The class's dots are shown once you have guessed."
            )
            return
        show(results(experiment.code, experiment.version))


def points(value: float) -> str:
    return f"{value:+.1f} points".replace("-", "−")


def joining(experiment: experiments.Experiment, mine: str) -> None:
    if not experiment.open:
        return
    with st.form("join", border=False):
        nickname = st.text_input(
            "Nickname", key="nickname", max_chars=experiments.NICKNAME,
            help="Shown to the class beside your dot; it may stay empty, then your seed is shown.",
        )  # fmt: skip
        if st.form_submit_button("Join", type="primary", help="You get a seed of your own."):
            do(experiments.join, experiment.code, mine, nickname)
            st.rerun()


def guessing(experiment: experiments.Experiment, mine: str) -> None:
    with st.form("guess", border=False):
        value = st.number_input(
            "Your guess, points", -float(experiments.GUESS), float(experiments.GUESS), 0.0, 0.5, format="%.1f",
            key="guess", disabled=not experiment.open,
            help="HR@1 of the second run minus that of the first, in points: 1 point is 1 % of the test users. "
            + WORDS["HR@1"],
        )  # fmt: skip
        if st.form_submit_button("Guess", type="primary", disabled=not experiment.open, help="A guess is made once."):
            do(experiments.guess, experiment.code, mine, float(value))
            st.rerun()


def running(experiment: experiments.Experiment, entry: experiments.Entry, mine: str) -> None:
    if entry.arrived is not None:
        table = experiments.table(experiment.code)
        found = 100 * table.loc[table["seed"] == entry.seed, "difference"].item()
        off = abs(found - entry.guess) if entry.guess is not None else 0.0
        st.success(f"Your pair: {points(found)}. Your guess is off by {off:.1f}.")
        return
    if not experiment.open:
        return
    if entry.problem:
        st.warning(plain(entry.problem))
    job = jobs.find(entry.token) if entry.token else None
    if job is not None and job.state in ("waiting", "running", "done"):
        trained(job.token)
    else:
        if job is not None:
            st.warning(plain(job.message or "The run ended without a result."))
        st.button(
            "Run it here" if job is None else "Resume", key="run", type="primary", icon=":material/play_arrow:",
            on_click=do, args=(experiments.run, experiment.code, mine),
            help="The pair of runs trains on this server, in the same queue as the class.",
        )  # fmt: skip
    with st.expander("On your own laptop", icon=":material/laptop:"):
        left, right = (pairs.spelled(experiment.settings[side]) for side in ("left", "right"))
        st.markdown("With minipo installed there, run this, then upload the file that it writes:")
        st.code(
            f'minipo pair --left "{left}" --right "{right}" --seed {entry.seed} --out pair-{entry.seed}.json',
            language=None, wrap_lines=True,
        )  # fmt: skip
        file = st.file_uploader(
            f"pair-{entry.seed}.json", "json", key=f"file_{entry.seed}", max_upload_size=1,
            help=f"At most {limits.RESULT_KB} KB: both runs' settings, and each test user's rank under both.",
        )  # fmt: skip
        if file is not None:
            try:
                experiments.deliver(experiment.code, mine, file.getvalue())
            except ValueError as error:
                st.warning(plain(error))
            else:
                st.rerun()


@st.fragment(run_every=POLL)
def trained(token: str) -> None:
    """The progress of the pair on the server."""
    job = jobs.find(token)
    if job is None or not job.active:
        st.rerun()
    if job.state == "waiting":
        before = jobs.place(token)
        st.progress(0.0, f"Waiting: {before} before yours." if before else "Waiting: yours is next.")
    else:
        share = experiments.progress(job)
        st.progress(share, f"Training: {100 * share:.0f} %." if share else "Training begins.")
    st.button(
        "Stop", key="stop", icon=":material/stop:", on_click=do, args=(jobs.stop, token),
        help="It can go on later, from its last checkpoint.",
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- page

st.html(f"<style>{STYLE}</style>")
mine = viewer()
heading, coding = st.columns([3.4, 1], vertical_alignment="bottom")
with heading:
    head(
        "Class experiment",
        "One comparison, a seed for each student: every pair of runs is a dot, and the interval closes in.",
    )
if "class_opened" in st.session_state:  # just now
    st.session_state["code"] = experiments.shown_code(st.session_state.pop("class_opened"))
typed = coding.text_input(
    "Code of an experiment", key="code", max_chars=20, placeholder="ABCD-EFGH", bind="query-params",
    help="The eight letters on the lecturer's screen. Empty it to leave the experiment.",
)  # fmt: skip
code = experiments.plain_code(typed)
experiment = None
if code:
    experiments.collect(code)
    experiment = experiments.find(code)
    if experiment is None:
        st.warning(f"There is no experiment with the code {plain(typed)} here (any more): check its eight letters.")
if experiment is None:
    front(mine)
else:
    (lecturer if experiment.viewer == mine else student)(experiment, mine)
    if experiment.open:
        watch(experiment.code, experiment.version)
check_link("experiment", KEYS)
