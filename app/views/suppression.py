"""Suppression: the push on boundary and on easy negatives, over training and against K, with σ(−z) beside it."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import recorded
import streamlit as st
from figures import suppression
from shell import WORDS, check_link, choose, draw, head, pick

from minipo import DynamicPO
from minipo.course import diagnostics
from minipo.experiments import files

GRID = "objectives"
TOKENS = 3.0  # of an answer in the catalogue, its end included: what MPPO's average likelihood divides by
OVER, AGAINST = "over training", "against K"
ALL = "all four"
CENSUS = {"now": "boundary", "before training": "boundary_at_start"}
KEYS = ("view", "objective", "K", "dynamic", "users", "census", "log", "seeds")
PUSHES = {"push_boundary": "boundary", "push_discriminative": "discriminative"}
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "04_gradient_suppression.ipynb"


@st.cache_resource(show_spinner=False)
def logged() -> pd.DataFrame:
    """The training batches' pushes of every recorded run, shared by all viewers."""
    return suppression.logged_pushes(recorded.grid(GRID))


@st.cache_data(show_spinner=False, max_entries=200)
def probed(objective: str, negatives: int, dynamic: str, census: str, untrained: bool = False) -> pd.DataFrame | None:
    """The pushes on validation users, from a run's recorded log-probs; None if no run recorded them.

    untrained: only at step 0, where every run is still the SFT model, so that any run's log-probs will do.
    """
    grid = recorded.grid(GRID)
    settings = grid.rows(objective=objective, negatives=negatives, dynamic=dynamic)
    rows = grid.table if untrained else settings
    number = next((number for number in grid.probes if number in rows.index), None)
    if number is None or settings.empty:
        return None
    probe, run = files.read_parquet(grid.probes[number]), settings.iloc[0]
    if untrained:
        probe = probe[probe["step"] == 0]
    rule = DynamicPO(margin=run["margin"], clusters=int(run["clusters"])) if dynamic == "on" else None
    pushed = diagnostics.pushes(probe, objective, run["beta"], rule, negatives, TOKENS)
    table = suppression.probed_pushes(pushed, census)
    seed = settings["seed"].to_dict().get(number, 0)
    return table.assign(objective=objective, negatives=negatives, dynamic=dynamic, seed=seed)


@st.cache_data(show_spinner=False)
def said(call: str) -> str | None:
    """The recorded output of notebook 04 where it calls `call`; None if it cannot be read."""
    try:
        cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells if call in "".join(cell["source"]) for output in cell.get("outputs", [])]
        return next("".join(output["data"]["text/markdown"]) for output in outputs if "data" in output)
    except (OSError, ValueError, KeyError, StopIteration):
        return None


@st.fragment
def page() -> None:
    with st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
        help = "Over the steps of runs with one K, or at the end of training for every K."
        view = choose("Pushes", [OVER, AGAINST], "view", help)
        shown = choose("Objective", [*recorded.OBJECTIVES, ALL], "objective", WORDS["objective"], "DMPO")
        users = choose(
            "Measured on", ["training", "validation"], "users",
            "The training batches, logged every 10 steps by every run; or 64 validation users, on whom the model was "
            "not trained and whose log-probs some runs recorded at four steps.",
        )  # fmt: skip
        help, last = WORDS["K"] + " For pushes over training.", len(choices(users)) - 1
        negatives = pick("K", choices(users), "K", help, last, width=84, disabled=view == AGAINST)
        dynamic = st.toggle("DynamicPO", key="dynamic", bind="query-params", help=WORDS["DynamicPO"])
        with st.popover("", icon=":material/tune:", help="Scale, spread, and how groups are counted"):
            logarithmic = st.toggle(
                "Logarithmic scale of pushes", True, key="log", bind="query-params",
                help="Equal distances are equal factors. A push of zero has no place on it.",
            )  # fmt: skip
            spread = st.toggle(
                "Spread of the seeds", True, key="seeds", bind="query-params",
                help="A band from the lowest to the highest of the five seeds' runs.",
            )  # fmt: skip
            census = choose(
                "Boundary of validation users", CENSUS, "census",
                "Which negatives count as boundary: those at the boundary at that step, or those before training, so "
                "that the groups stay the same. Training batches are always counted at their step.",
            )  # fmt: skip
    check_link("suppression", KEYS)
    try:
        drawn(view, shown, users, int(negatives), "on" if dynamic else "off", CENSUS[census], logarithmic, spread)
    except ValueError as error:
        st.warning(recorded.fault(error))


def choices(users: str) -> list[int]:
    """The numbers of negatives that are recorded: of training batches, or of validation users."""
    try:
        grid = recorded.grid(GRID)
    except ValueError:  # shown in place of the figure
        return [1, 19]
    table = grid.rows(objective=recorded.OBJECTIVES.values())
    found = table.loc[[*grid.probes], "negatives"] if users == "validation" and grid.probes else table["negatives"]
    return sorted({int(k) for k in found})


def drawn(view: str, shown: str, users: str, negatives: int, dynamic: str, *how: Any) -> None:
    """The figures and their sentences; ValueError if the record is missing or damaged."""
    sentence, plots, caption, objections = made(view, shown, users, negatives, dynamic, *how)
    if not plots:
        st.info(sentence)
        return
    st.markdown(sentence)
    two(plots, "pushes", f"The push on a boundary and on an easy negative, {view}.", "saturation", "σ(−z)", view)
    st.caption(caption)
    two(plots, "share", f"How much of all push falls on boundary negatives, {view}.", "dilution", "Dilution", view)
    st.subheader("Before you blame the small push", anchor=False)
    st.markdown(objections)


def two(plots: dict[str, go.Figure], wide: str, reading: str, narrow: str, called: str, view: str) -> None:
    """Two figures side by side; a sentence replaces the narrow one if it cannot be computed."""
    left, right = st.columns([1.25, 1], gap="medium")
    with left:
        draw(plots[wide], wide, reading)
    with right:
        if narrow in plots:
            draw(plots[narrow], narrow, f"{narrow.capitalize()}, {view}.")
        else:
            counted = " and ".join(map(str, choices("validation")))
            st.info(
                f"{called} could only be computed from log-probs of validation users, which are recorded for K = "
                f"{counted}."
            )


@st.cache_resource(show_spinner=False, max_entries=200)
def made(
    view: str, shown: str, users: str, negatives: int, dynamic: str, census: str, logarithmic: bool, spread: bool
) -> tuple[str, dict[str, go.Figure], str, str]:
    """The sentence, the figures by key, the caption and the objections; only a sentence if nothing is recorded."""
    objectives = [*recorded.OBJECTIVES.values()] if shown == ALL else [recorded.OBJECTIVES[shown]]
    over = "step" if view == OVER else "negatives"
    counted = [negatives] if over == "step" else choices("training")
    seen = joined([probed(objective, k, dynamic, census) for objective in objectives for k in counted])
    table = seen if users == "validation" else trained(objectives, counted, dynamic, begun=over == "step")
    if table.empty:
        ran = f"{shown}{' with DynamicPO' * (dynamic == 'on')}, K = {counted[0]}"
        return f"Not recorded on {users} users: {ran}.", {}, "", ""
    begin = untrained(objectives, counted, dynamic, census) if len(objectives) == 1 else None
    if over == "step":
        plain = trained(objectives, counted, "off", begun=False) if dynamic == "on" and users == "training" else None
        sentence = suppression.training_sentence(table, plain)
    else:
        table, seen = suppression.at_end(table), seen if seen.empty else suppression.at_end(seen)
        sentence = suppression.negatives_sentence(table, begin)
    when = "" if over == "step" else ", end of training"
    beside = ("before training", begin) if begin is not None and over == "negatives" else None
    plots = {
        "pushes": suppression.push_lines(
            table, PUSHES, over, f"Push on one negative, {table['users'].iloc[0]}{when}", "∂loss / ∂s<sub>k</sub>",
            logarithmic=logarithmic, spread=spread, beside=beside,
        ),
        "share": suppression.share_lines(table, over, f"The boundary's part of all push{when}", spread=spread),
    }  # fmt: skip
    # Where the log does not determine σ(−z), that of the validation users is drawn.
    known = set(table.loc[table["saturation"].notna(), "objective"])
    saturated = in_order(pd.concat([table[table["objective"].isin(known)], seen[~seen["objective"].isin(known)]]))
    if len(saturated):
        plots["saturation"] = suppression.push_lines(
            saturated, {"saturation": ""}, over, f"Saturation σ(−z){when}", "what the sigmoid leaves", spread=spread
        )
    if len(seen):
        columns = {name.replace("push", "dilution"): group for name, group in PUSHES.items()}
        title = f"Dilution, validation users{when}"
        plots["dilution"] = suppression.push_lines(seen, columns, over, title, "part of z")
    compared = seen if users == "training" and over == "step" and len(seen) else None
    return sentence, plots, note(table, over, dynamic, census), objections(table, begin, compared)


def trained(objectives: list[str], counted: list[int], dynamic: str, begun: bool) -> pd.DataFrame:
    """The runs' logged pushes; `begun`: with those before the first step, where they are the same for every user."""
    table = logged().query("objective in @objectives and negatives in @counted and dynamic == @dynamic")
    begin = untrained(objectives, counted, dynamic, "boundary") if begun else None
    if begin is not None and len(table):
        runs = table[["objective", "negatives", "dynamic", "seed", "users"]].drop_duplicates()
        begin = begin[begin["alike"]].drop(columns=["seed", "users"])
        table = pd.concat([runs.merge(begin, on=["objective", "negatives", "dynamic"]), table])
    return in_order(table)


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    order = [*recorded.OBJECTIVES.values()]
    return table.sort_values("objective", key=lambda names: names.map(order.index), kind="stable")


def untrained(objectives: list[str], counted: list[int], dynamic: str, census: str) -> pd.DataFrame | None:
    """Pushes before training, one row per objective and K; None if no log-probs are recorded."""
    table = joined([probed(objective, k, dynamic, census, untrained=True) for objective in objectives for k in counted])
    return table if len(table) else None


def joined(tables: list[pd.DataFrame | None]) -> pd.DataFrame:
    found = [table for table in tables if table is not None]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["objective"])


def note(table: pd.DataFrame, over: str, dynamic: str, census: str) -> str:
    """The caption of the first figures: the runs and users, and how they are counted."""
    if table["users"].iloc[0] == suppression.VALIDATION:
        text = "One seed's run each; 64 validation users at four steps. Recorded at K = "
        text += f"{' and '.join(map(str, choices('validation')))} only: another run's log-probs are no substitute. "
    else:
        seeds = table.groupby(["objective", "negatives"])["seed"].nunique()
        text = f"Means of {int(seeds.max())} seeds; each step's value is of its batch of 32 training users. "
        text += "The end: the last tenth of the steps. "
    first = census == CENSUS["before training"] and table["users"].iloc[0] == suppression.VALIDATION
    text += f"Boundary and easy as DynamicPO's rule {'counted them before training' if first else 'counts them'}"
    used = "and only each step's boundary enters the loss" if dynamic == "on" else "though the loss does not use it"
    text += f", {used}. "
    if over == "negatives":
        text += "At K = 1 the only negative counts as boundary, so that K = 1 compares with the others only in part. "
    return text + "Open marks: validation users." * (table["users"].iloc[0] != suppression.VALIDATION)


def objections(table: pd.DataFrame, begin: pd.DataFrame | None, seen: pd.DataFrame | None) -> str:
    """A careful reader's objections, one line each."""
    found = []
    if begin is not None and len(begin) == 1:
        found.append(suppression.reading_sentence(begin, table, seen))
    found.append(
        "AdamW divides each step by the recent size of its gradients: a push that is small for all negatives alike "
        "makes the steps hardly smaller. What can turn a step is the *part* of all push, not its height."
    )
    swap, easy = said("swap_sentence("), said("alone_sentence(")
    if swap and easy:
        found.append(f"Notebook 04 tests the explanation with DMPO at K = 19, in runs of its own. {swap} {easy}")
    else:
        found.append(
            "This page cannot show whether the small push does the harm: notebook 04 (`make lab`) tests it, by taking "
            "the easy negatives' pushes away and leaving the boundary's as small as they are."
        )
    return "\n".join(f"- {sentence}" for sentence in found)


head(
    "Suppression: who is still pushed",
    "The push on boundary and on easy negatives, with what the sigmoid leaves of it.",
)
page()
