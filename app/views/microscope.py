"""Microscope: one user's candidates, and how hard a loss pushes each of them."""

from bisect import bisect_left, bisect_right
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jobs
import recorded
import streamlit as st
from figures import microscope
from shell import WORDS, check_link, distinct, draw, head, pick, plain, viewer

from minipo import load_dataset
from minipo.course import diagnostics
from minipo.course.figures.style import OBJECTIVE_LABELS
from minipo.course.microscope import Followed, examine, follow, violations
from minipo.experiments import files
from minipo.experiments.runs import Run

KEYS = (
    "run", "split", "among", "user", "step", "objective", "K", "rule", "adjust_beta", "beta", "gamma", "clusters",
)  # fmt: skip
OPENING = {"objective": "dmpo", "negatives": 19, "dynamic": "off"}  # the run that is shown where no other is named
# How many negatives are ranked above the chosen item.
AMONG = {"all": range(1000), "with one mistake": (1,), "with mistakes": range(1, 1000), "without mistakes": (0,)}
RULES = {label: name for name, label in recorded.SELECT.items()}
STRENGTHS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
TOKENS = {"catalog": 3.0}  # of an answer, its end included: what MPPO's average likelihood divides by
POLL = 3.0  # seconds between two looks at a run that trains
FRESH = 2  # seconds for which what the register says is believed


@dataclass(frozen=True)
class Source:
    """A run to examine: its settings, its name in a caption, and the users whose candidates it recorded."""

    settings: dict[str, Any]
    caption: str
    above: dict[int, int]  # user to how many negatives are ranked above the chosen item after the last step
    seen: list[diagnostics.Moment]  # of all these users; empty for test users, each of whom is read when needed
    test_of: tuple[str, int] | None = None  # a recorded run's grid and row
    training: bool = False

    def followed(self, user: int) -> Followed:
        return follow(self.seen if self.test_of is None else tested(*self.test_of, user), user)


@st.cache_resource(max_entries=64, show_spinner=False)
def moments(path: str, changed: float) -> list[diagnostics.Moment]:
    """A probe's content. changed: when it was written, so that a longer one is read again."""
    return diagnostics.moments(files.read_parquet(Path(path)))


@st.cache_resource(max_entries=200, show_spinner=False)
def tested(grid: str, row: int, user: int) -> list[diagnostics.Moment]:
    """A test user before and after a recorded run."""
    return diagnostics.moments(recorded.grid(grid).test_probe(row, user))


@st.cache_data(ttl=FRESH, max_entries=500, show_spinner=False)
def registered(token: str) -> jobs.Job | None:
    """The preference run of that token, or None."""
    job = jobs.find(token)
    return job if job is not None and job.kind == "prefer" else None


@st.cache_data(ttl=FRESH, max_entries=500, show_spinner=False)
def own(who: str) -> dict[str, str]:
    """A viewer's own runs with a probe: token to name."""
    return {job.token: job.name for job in jobs.of_viewer(who, "prefer") if (job.run / "probe.parquet").is_file()}


def opening() -> str:
    """The label of the recorded run that is shown if the link names none."""
    for label, (grid, row) in recorded.probed().items():
        run = recorded.grid(grid).table.loc[row]
        if all(run[name] == value for name, value in OPENING.items()):
            return label
    return next(iter(recorded.probed()), "")


def source(run: str, split: str) -> Source:
    """A run by a recorded one's label or a live one's token; ValueError in one sentence if it has no log-probs."""
    if run in recorded.probed():
        grid, row = recorded.probed()[run]
        table = recorded.grid(grid)
        settings = {str(name): value for name, value in table.table.loc[row].items()}
        caption = f"Recorded run: {plain(run)}"
        if split == "test":
            users = [user.user for user in load_dataset(str(settings["dataset"])).test]
            tested(grid, row, users[0])  # raises ValueError if test users were not recorded
            return Source(settings, caption, dict(zip(users, table.ranks[row].tolist(), strict=True)), [], (grid, row))
        seen = probe(table.probes[row])
        return Source(settings, caption, violations(seen[-1]), seen)
    job = registered(run)
    if job is None:
        raise ValueError("The run of this link is not on this server (any more): choose another one.")
    name = plain(job.name)
    if split == "test":
        raise ValueError(f"{name} has only validation users: choose those.")
    if not (job.run / "probe.parquet").is_file():
        raise ValueError(
            f"{name} has nothing to show before its first evaluation. Look again in a moment."
            if job.active
            else f"{name} has nothing to show: its files are missing, or it ended before its first evaluation. "
            "Choose another run, or train it again."
        )
    seen = probe(job.run / "probe.parquet")
    settings = asdict(Run(job.run).config)
    steps = f"step {seen[-1].step} of {settings['steps']}"
    caption = f"Live run: {name}, {'training, ' * job.active}{steps}"
    return Source(settings, caption, violations(seen[-1]), seen, training=job.active)


def probe(path: Path) -> list[diagnostics.Moment]:
    try:
        return moments(str(path), path.stat().st_mtime)
    except OSError:
        raise ValueError("The files of this run are missing: choose another one.") from None


def loss_of(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's own loss, as values of the controls."""
    off = settings["dynamic"] == "off"
    return {
        "objective": OBJECTIVE_LABELS[settings["objective"]],
        "K": int(settings["negatives"]),
        "rule": recorded.SELECT["off" if off else settings["select"]],
        "adjust_beta": not off and settings["adjust_beta"] == "on",
        "beta": float(settings["beta"]),
        "gamma": float(settings["margin"]),
        "clusters": min(max(int(settings["clusters"]), 2), 5),
    }


# ------------------------------------------------------------------------------------------------- user and step


def choose_run(place: Any, who: str) -> str:
    """The list of runs. A link has a live run's token and the list its name, so the parameter is set by hand."""
    state, first = st.session_state, opening()
    linked = st.query_params.get("run", first)
    names = dict.fromkeys(recorded.probed(), "") | own(who)
    if linked and linked not in names:
        job = registered(linked)
        names[linked] = "the run of this link" if job is None else job.name
    if not names:
        recorded.grid("objectives")  # raises ValueError that says what is wrong with it
        raise ValueError("No run has saved log-probs: train one in the Live lab.")
    shown = distinct({run: " ".join(name.split()) or run for run, name in names.items()})
    if state.get("micro_run") not in shown:
        state["micro_run"] = linked
    run = place.selectbox(
        "Run", list(shown), format_func=lambda run: shown.get(run, run), key="micro_run", on_change=other_run,
        help="A recorded run, one of your own, or one from a link: the log-probs are those of this run.",
    )  # fmt: skip
    if run != linked:
        if run == first:
            del st.query_params["run"]
        else:
            st.query_params["run"] = run
    return run


def other_run() -> None:
    """Another run: set its own loss. User and step stay, if it has them."""
    state = st.session_state
    try:
        settings = source(state["micro_run"], "validation").settings
    except ValueError:  # the page reports it
        return
    state.update(loss_of(settings))


def fitting(shown: Source) -> list[int]:
    """The users that the arrows visit."""
    return [user for user, above in shown.above.items() if above in AMONG[st.session_state["among"]]]


def others(shown: Source) -> None:
    """Other users are chosen: go to the first of them, unless the present user is one."""
    users = fitting(shown)
    if users and st.session_state["user"] not in users:
        st.session_state["user"] = users[0]


def turn(shown: Source, forward: bool) -> None:
    """Go to the next or the previous user, and from the last to the first."""
    users, user = fitting(shown), st.session_state["user"]
    if users:
        place = bisect_right(users, user) if forward else bisect_left(users, user) - 1
        st.session_state["user"] = users[place % len(users)]


def choose_moment(row: Any, shown: Source) -> tuple[int, int]:
    """The controls for user and step."""
    state = st.session_state
    users = list(shown.above)
    first = next((user for user, above in shown.above.items() if above == 1), users[0])
    with row:
        help = "Which users the arrows visit. A mistake is a negative ranked above the chosen item after the last step."
        pick("Back and forth", AMONG, "among", help, width=142, on_change=others, args=(shown,))
    if state.get("user", first) not in users:
        state.pop("user")
    arrows: dict[str, Any] = {"width": 40, "on_click": turn}
    whose = row.container(horizontal=True, vertical_alignment="bottom", gap="xsmall", width="content")
    whose.button(
        "", icon=":material/chevron_left:", key="micro_back", args=(shown, False), help="Previous user", **arrows
    )
    user = whose.selectbox(
        "User", users, users.index(first), key="user", bind="query-params", width=105,
        help="Whose candidates are shown: one chosen item, and the negatives that the user did not choose.",
    )  # fmt: skip
    whose.button("", icon=":material/chevron_right:", key="micro_next", args=(shown, True), help="Next user", **arrows)
    steps = list(shown.followed(user).steps)
    # A step of another run, or the end of one that has continued.
    if "step" in state and (state["step"] not in steps or state["step"] == state.get("micro_end") != steps[-1]):
        state.pop("step")
    state["micro_end"] = steps[-1]
    step = row.select_slider(
        "Training step", steps, steps[-1], key="step", bind="query-params", width=200,
        help="Scrub through the steps at which the run kept log-probs. At step 0 the model is the SFT model; ▶ below "
        "the figure plays from there to here.",
    )  # fmt: skip
    return user, step


# ------------------------------------------------------------------------------------------------------- the loss


def choose_loss(place: Any, settings: dict[str, Any], negatives: int) -> dict[str, Any]:
    """The controls for a loss, at first the run's own, as `examine` takes it."""
    state, run = st.session_state, loss_of(settings)
    run["K"] = min(run["K"], negatives)
    if not 1 <= state.get("K", 1) <= negatives:
        state.pop("K")
    strengths = sorted({*STRENGTHS, run["beta"]})
    if state.get("beta", run["beta"]) not in strengths:
        state.pop("beta")
    link: dict[str, Any] = {"bind": "query-params"}
    if run["objective"] not in recorded.OBJECTIVES:
        place.caption(f"{run['objective']}, this run's own loss, is not drawn here; other losses on its log-probs are.")
        run["objective"] = "DMPO"
    with place:
        help = " At first the run's own: change it, and see what another loss would do to the same log-probs."
        place_of = list(recorded.OBJECTIVES).index(run["objective"])
        objective = pick("Loss", recorded.OBJECTIVES, "objective", WORDS["objective"] + help, place_of)
        count = negatives
        if negatives > 1:
            count = st.slider("K, negatives", 1, negatives, run["K"], key="K", help=WORDS["K"], **link)
        help = f"All, as in the plain loss; DynamicPO's selection; or a control for it. {WORDS['boundary']}"
        rule = pick("Negatives that enter", RULES, "rule", help, list(RULES).index(run["rule"]))
        adjust = st.toggle(
            "Dual-margin β", run["adjust_beta"], key="adjust_beta",
            help="DynamicPO's own β for each negative, from two margins.", **link,
        )  # fmt: skip
        beta = st.select_slider("β, strength", strengths, run["beta"], key="beta", help=WORDS["β"], **link)
        gamma = st.slider(
            "γ, margin of β", 0.0, 20.0, run["gamma"], 0.5, key="gamma", disabled=not adjust, help=WORDS["γ"], **link
        )
        clusters = st.slider("Clusters", 2, 5, run["clusters"], key="clusters", help=WORDS["clusters"], **link)
    return {
        "objective": recorded.OBJECTIVES[objective], "negatives": count, "select": RULES[rule], "adjust_beta": adjust,
        "beta": beta, "margin": gamma, "clusters": clusters,
    }  # fmt: skip


def picture(who: str, every: float | None) -> None:
    """Controls, sentence and figure. every: seconds between automatic refreshes."""
    row = st.container(key="micro_row", horizontal=True, vertical_alignment="bottom", gap="small")
    area, side = st.columns([4.4, 1], gap="medium")
    training = False
    try:
        run = choose_run(row, who)
        with row:
            help = "Validation users were recorded during training; test users before and after a recorded run."
            split = pick("Users", ("validation", "test"), "split", help, width=135)
        shown = source(run, split)
        training = shown.training
        user, step = choose_moment(row, shown)
        followed = shown.followed(user)
        loss = choose_loss(side.container(gap="xsmall"), shown.settings, len(followed.names) - 1)
        lengths = TOKENS.get(shown.settings["dataset"])
        if loss["objective"] == "mppo" and lengths is None:
            raise ValueError(
                "MPPO compares averages over an answer's tokens, whose number is not saved for these data: choose "
                "another loss."
            )
        table = examine(followed, lengths=lengths, **loss)
        plain_loss = loss | {"select": "off", "adjust_beta": False}
        before = table if plain_loss == loss else examine(followed, lengths=lengths, **plain_loss)
    except ValueError as error:
        area.warning(jobs.private(recorded.fault(error)))
    else:
        with area:
            st.markdown(microscope.sentence(table, step, user, loss["objective"], before, plain))
            left, right = st.columns(2, gap="small")
            with left:
                draw(microscope.candidates(table, step), "micro_line", "Candidates by their log-prob.")
            with right:
                draw(microscope.pushes(table, step), "micro_push", "The push on each negative, and its parts.")
            st.caption(
                f"{shown.caption}. Filled marks enter the loss, hollow ones do not, and negatives beyond K are "
                "faint; tails begin at SFT. Each column of pushes has its own scale, the same for all steps. "
                "Everything is computed now, from the log-probs that the run saved: another loss trains nothing."
            )
    if training != (every is not None):
        st.session_state["micro_every"] = POLL if training else None
        st.rerun()  # of the whole page, because only then the interval changes


head("Microscope", "One user's candidates: who is at the boundary, and how hard each is pushed.")
main, below = st.container(), st.container()
with below:
    who = viewer()
with main:
    seconds = st.session_state.get("micro_every")
    st.fragment(picture, run_every=seconds)(who, seconds)
check_link("microscope", KEYS)
