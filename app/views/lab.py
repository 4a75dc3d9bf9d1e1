"""Live lab: train up to four runs side by side, and watch."""

import cards
import forms
import jobs
import limits
import plotly.graph_objects as go
import recorded
import streamlit as st
from figures.live import live_sentence
from jobs import Job
from shell import REMOVED, WORDS, check_link, choose, distinct, draw, head, plain, viewer

from minipo import load_dataset
from minipo.course.figures import style
from minipo.course.figures.real import Curves, live_runs

BENCH = 4
METRICS = ["hr@1", "ndcg@5", "mrr", "reward_win_rate"]
EXAMPLE = {"objective": "dmpo", "negatives": 19, "seed": 0}


def found(me: str) -> tuple[list[Job], list[Job], int]:
    """The runs on the bench, all that could be on it, and how many of the link's are missing on this server.

    The link names the runs on the bench; one without names gets the viewer's newest.
    """
    mine = jobs.of_viewer(me, "prefer")
    known = {job.token: job for job in mine}
    if "run" not in st.query_params:
        if mine:
            st.query_params["run"] = [job.token for job in reversed(mine[:BENCH])]
        return mine[BENCH - 1 :: -1], mine, 0
    named = [token for token in dict.fromkeys(st.query_params.get_all("run")) if token][: 3 * BENCH]
    for token in named:
        if token not in known and (job := jobs.find(token)) and job.kind == "prefer":
            known[token] = job
    removed = st.session_state.get(REMOVED, set())
    lost = sum(token not in known and token not in removed for token in named)
    return [known[token] for token in named if token in known][:BENCH], list(known.values()), lost


def bench(me: str, active: bool) -> None:
    """The runs on the bench: their figure, its sentence, and a card each."""
    here, known, lost = found(me)
    if active != any(job.active for job in here):
        st.rerun()  # the page starts or stops its refresh
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        words = [style.METRICS[metric] for metric in METRICS]
        help = "The metric in the lowest panel.\n" + "".join(f"\n- {word}: {WORDS[word]}" for word in words)
        metric = choose("Ranking metric", METRICS, "ranking", help, format_func=style.METRICS.__getitem__)
        if known:
            chosen([job.token for job in here], known)
    if lost:
        runs = "One run of this link is" if lost == 1 else f"{lost} runs of this link are"
        st.info(f"{runs} no longer on this server: removed or expired.", icon=":material/link_off:")
    curves, damaged = [], []
    for job in here:
        try:
            metrics, evaluation = cards.read(job, "metrics"), cards.read(job, "evaluation")
            curves.append(Curves(job.name, job.settings, metrics, evaluation))
        except ValueError:
            damaged.append(job)
    if here:
        st.markdown(live_sentence(curves, metric, [plain(curve.name) for curve in curves]))
    else:
        try:
            curves = example()
        except ValueError as error:
            st.warning(recorded.fault(error))
            return
        st.markdown("Recorded, not live. " + live_sentence(curves, metric))
    drawn = [(curve.name, len(curve.metrics), len(curve.evaluations)) for curve in curves]
    figure = figure_of([job.token for job in here if job not in damaged], drawn, metric, curves)
    draw(figure, "lab_runs", "Training loss, pair_loss and a ranking metric over the steps.")
    if not here:
        users = len(load_dataset("catalog").validation)
        st.caption(
            f"Two recorded runs on the catalogue, one seed, {users:,} validation users. Press *Train*, and your own "
            "run takes their place."
        )
        return
    for place, job in zip(st.columns(max(3, len(here))), here, strict=False):
        with place:
            cards.show(job)


def chosen(tokens: list[str], known: list[Job]) -> None:
    """A control for which runs are on the bench."""
    state = st.session_state
    names = distinct({job.token: job.name for job in known})
    with st.popover(f"On the bench: {len(tokens)} of {BENCH}", icon=":material/checklist:"):
        state["bench"] = tokens
        st.multiselect(
            "Runs on the bench", list(names), format_func=names.__getitem__, max_selections=BENCH, key="bench",
            on_change=put, placeholder="Choose up to four",
            help="Your runs, and those of the link that you opened. The address above names the runs on the bench: "
            "anyone who opens it sees them.",
        )  # fmt: skip


def put() -> None:
    st.query_params["run"] = st.session_state["bench"] or [""]


@st.cache_data(max_entries=100, show_spinner=False)
def figure_of(tokens: list[str], drawn: list[tuple[str, int, int]], metric: str, _curves: list[Curves]) -> go.Figure:
    """Drawn again only when a run has another name or more lines: most of thirty viewers would wait."""
    return live_runs(_curves, metric)


@st.cache_resource(show_spinner=False)
def example() -> list[Curves]:
    """Recorded runs, plain and under DynamicPO; ValueError if the record is missing or damaged."""
    grid = recorded.grid("objectives")
    examples = []
    for number, run in grid.rows(**EXAMPLE).sort_values("dynamic", kind="stable").iterrows():
        lines = grid.curves[grid.curves["run"] == number]
        metrics, evaluations = (lines[lines["kind"] == kind] for kind in ("metrics", "evaluation"))
        settings = {str(name): value for name, value in run.items()}
        examples.append(Curves(recorded.labelled(run), settings, metrics, evaluations))
    return examples


@st.fragment
def train(me: str) -> None:
    """The form, and its button."""
    settings = forms.run_settings(forms.LAB)
    # Not by a callback, which would miss a value that was typed just now.
    if st.button(
        "Train", type="primary", icon=":material/play_arrow:", key="train", width="stretch",
        help="Submit the run: it trains on this server, even if you close this page.",
    ):  # fmt: skip
        try:
            submit(settings, me)
        except ValueError as error:
            st.warning(str(error))
        else:
            st.rerun()  # the bench is outside this fragment
    st.caption(forms.estimate(settings))


def submit(settings: dict[str, object], me: str) -> None:
    here, _, _ = found(me)
    if str(settings["model"]).startswith("pocket-"):  # whose evaluations are quick: ten points of each line
        settings = {**settings, "evaluate_every": max(1, int(str(settings["steps"])) // 10)}
    job = jobs.submit("prefer", settings, me, forms.described(settings))
    st.query_params["run"] = [*(other.token for other in here[-BENCH + 1 :]), job.token]


me = viewer()
head("Live lab: train, and watch", "Up to four runs side by side, each with settings of its own.")
figure, form = st.columns([2.6, 1], gap="medium")
with figure:
    running = any(job.active for job in found(me)[0])
    st.fragment(bench, run_every=cards.EVERY if running else None)(me, running)
with form:
    train(me)
st.caption(limits.described())
check_link("lab", [*(forms.LAB + name for name in forms.NAMES), "ranking", "run"])
