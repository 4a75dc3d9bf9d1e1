"""Who gained, who lost: a view of Collapse. The users for whom one recorded setting is right and another wrong."""

from typing import Any

import numpy as np
import recorded
import streamlit as st
from figures import collapse
from shell import WORDS, draw, pick, plain

from minipo import load_dataset
from minipo.evaluation import Interval, paired_interval
from minipo.experiments.datasets.splits import Interaction

SFT = "SFT"
Ranked = tuple[str, int] | None  # a grid and a row of it; None is SFT


@st.cache_data(show_spinner=False)
def settings_of(world: recorded.World) -> dict[str, dict[int, tuple[str, int]]]:
    """Recorded settings, by their label: to each seed's run, as grid and row."""
    found: dict[str, dict[int, tuple[str, int]]] = {}
    name, *parts = recorded.WORLDS[world]
    for each in (name, *filter(recorded.is_recorded, parts)):
        for row, run in enumerate(recorded.grid(each).table.to_dict("records")):
            if run["objective"] == "sft":
                continue
            words = recorded.labelled(run).rpartition(", seed")[0] + recorded.part_of(run)
            found.setdefault(words, {})[int(run["seed"])] = each, row
    return found


def who(world: recorded.World) -> None:
    """Test users gained and lost between two settings. Raises ValueError if the record is missing or damaged."""
    settings = settings_of(world)
    options = [SFT, *settings]
    most = recorded.grid(recorded.WORLDS[world][0]).rows(objective="dmpo")["negatives"].max()
    help = "A recorded setting, the same for both except what you compare; all start from SFT."
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        look: dict[str, Any] = {"width": 330, "on_change": forget_user}
        names: tuple[str, str] = (
            pick("A: before", options, "a", help, options.index("DMPO, K = 1"), **look),
            pick("B: after", options, "b", help, options.index(f"DMPO, K = {most}"), **look),
        )
        every = {seed for runs in settings.values() for seed in runs}
        seeds = sorted(every.intersection(*(settings[each] for each in names if each != SFT)))
        seed = pick("Seed", seeds, "pair_seed", WORDS["seed"], width=90, on_change=forget_user)
    runs: list[Ranked] = [None if each == SFT else settings[each][seed] for each in names]
    sft = recorded.grid(recorded.WORLDS[world][0]).baselines["sft"]
    before, after = (sft if run is None else recorded.grid(run[0]).ranks[run[1]] for run in runs)
    st.markdown(collapse.user_sentence(before, after, names, moved_by(before, after)))
    users = [user.user for user in tested(world)] or list(range(len(before)))  # places, if the users are unknown
    groups = collapse.user_groups(before, after)
    moved = [*groups["lost"], *groups["gained"], *range(len(users))]
    drawing, text = st.columns([0.42, 0.58], gap="large")
    with text:
        user = st.number_input(
            "Test user", users[0], users[-1], users[moved[0]], key="who", bind="query-params", width=180,
            help="Type a number, or click a square. It opens on the first user lost, if there is one.",
        )  # fmt: skip
        if user not in users:
            st.info(f"There is no test user {user}.")
        else:
            describe(world, user, users.index(user), runs, (before, after))
    with drawing:
        draw(
            collapse.user_grid(users, before, after, names, user), "users", "Every test user, gained, lost or neither.",
            on_select=clicked, selection_mode="points",
        )  # fmt: skip
    st.caption(f"{len(users):,} test users, seed {seed}, one square each. " + churn(settings, names, seed))


@st.cache_data(show_spinner=False, max_entries=500)
def moved_by(before: np.ndarray, after: np.ndarray) -> Interval:
    """HR@1 under the ranks `after` minus `before`, of one seed."""
    return paired_interval(((after == 0).astype(float) - (before == 0))[None])


def tested(world: recorded.World) -> tuple[Interaction, ...]:
    """The test users whom the recorded runs ranked; none if the data are missing or have changed."""
    dataset, _ = world
    if not recorded.is_here(dataset):
        return ()
    splits, grid = load_dataset(dataset), recorded.grid(recorded.WORLDS[world][0])
    return splits.test if splits.fingerprint == grid.fingerprint else ()


def forget_user() -> None:
    """Another comparison opens on a user of its own."""
    st.session_state.pop("who", None)


def clicked() -> None:
    """A square was clicked: its user."""
    if points := st.session_state["users"].selection.points:
        number = points[0].get("customdata")
        if number is not None:
            st.session_state["who"] = int(np.ravel(number)[0])


def describe(
    world: recorded.World, user: int, place: int, runs: list[Ranked], ranks: tuple[np.ndarray, np.ndarray]
) -> None:
    """A user's chosen item and its places before and after, and links to the microscope."""
    before, after = (int(each[place]) + 1 for each in ranks)
    dataset, _ = world
    text = f"**User {user}**: the chosen item is in place **{before}** under A and **{after}** under B."
    if dataset == "catalog" and (users := tested(world)):  # the rows of other datasets may not be shown
        one = users[place]
        text += f"\n\nTook {', '.join(plain(item) for item in one.history)}; then **{plain(one.chosen)}**."
    st.markdown(text)
    labels = {run: label for label, run in recorded.probed().items() if run[1] in recorded.grid(run[0]).scores}
    for letter, run in zip("AB", runs, strict=True):
        if run in labels:
            st.page_link(
                "views/microscope.py", label=f"User {user} in the microscope, after {letter}",
                icon=":material/search:", query_params={"run": labels[run], "split": "test", "user": str(user)},
            )  # fmt: skip
    if not any(run in labels for run in runs):
        st.caption("The microscope has test users of the catalogue's runs at K = 1 and 19, seed 0.")


def churn(settings: dict[str, dict[int, tuple[str, int]]], chosen: tuple[str, str], seed: int) -> str:
    """How many users change between two seeds of one setting, to compare with."""
    name = next((each for each in chosen if each != SFT and len(settings[each]) > 1), None)
    if name is None:
        return ""
    other = next(each for each in sorted(settings[name]) if each != seed)
    ranks = [recorded.grid(grid).ranks[row] for grid, row in (settings[name][seed], settings[name][other])]
    groups = collapse.user_groups(*ranks)
    return (
        f"For comparison: between seeds {seed} and {other} of {name}, {len(groups['gained'])} users are gained "
        f"and {len(groups['lost'])} lost."
    )
