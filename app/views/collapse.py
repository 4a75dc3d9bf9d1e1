"""Collapse: loss and ranking against K, with a guess first, and the settings in which it happens."""

from typing import Any

import curve
import forms
import gained
import numpy as np
import pandas as pd
import recorded
import streamlit as st
from figures import collapse
from shell import WORDS, check_link, choose, draw, head, pick

from minipo.course.figures import style
from minipo.course.figures.grid import VARIANTS, collapse_grid, collapse_sentence
from minipo.course.figures.style import AVERAGES, OBJECTIVE_LABELS, level, verdict
from minipo.evaluation import Interval
from minipo.experiments import comparison
from minipo.experiments.configuration import PreferConfig
from minipo.experiments.records import Recorded, difference

BETAS, MARGINS = (0.3, 1.0, 3.0), (2.0, 6.0, 12.0)
USUAL = {"beta": PreferConfig.beta, "margin": PreferConfig.margin}  # what the other grids have
# Options are their own labels, as a link has them.
METRICS = {label: name for name, label in style.METRICS.items()}
GUESSES = [f"guess{k}" for k in range(2, 20)]
RANKING = "What is compared. " + " ".join(f"{name}: {WORDS[name]}" for name in ("HR@1", "NDCG@5", "MRR", "win rate"))
RANKING += " HR@5: share of users whose chosen item is among the first five."
# None of them may be a parameter of a link to another page: Streamlit drops the parameters bound on the last page.
KEYS = (
    "view", "world", "curve", "dynamicpo", "metric", "strength", "gamma", "guessing", "revealed", *GUESSES,
    "of", "a", "b", "pair_seed", "who", curve.LINK, "curve_seed",
)  # fmt: skip


def hide() -> None:
    """Forget the guesses for the last runs, and hide the result."""
    for key in ("revealed", *GUESSES):
        st.session_state.pop(key, None)


@st.fragment
def collapses() -> None:
    titled, choosing = st.columns([0.43, 0.57], vertical_alignment="bottom")
    with titled:
        about = "Loss and ranking of recorded runs against the number of negatives."
        head("Collapse: what happens when K grows", about)
    with choosing, st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center"):
        help = "Curves, settings in which it happens, single users."
        view = choose("View", VIEWS, "view", help, label_visibility="collapsed", wrap=True)
        worlds = {recorded.named(world): world for world in recorded.worlds()}
        help = "The histories that the model learns from, and the model. Only recorded ones are listed."
        world = pick("Data and model", worlds, "world", help, label_visibility="collapsed", width=275, on_change=hide)
    try:
        VIEWS[view](worlds[world])
        if older := comparison.older_data(recorded.grid(recorded.WORLDS[worlds[world]][0])):
            st.caption(older)
    except ValueError as error:
        st.warning(recorded.fault(error))


# ----------------------------------------------------------------------------------------------------------- against K


def against_k(world: recorded.World) -> None:
    """Loss, pair_loss and ranking against K. Raises ValueError if the record is missing or damaged."""
    controls = st.container(horizontal=True, vertical_alignment="bottom")
    with controls:
        chosen = choose("Objective", recorded.OBJECTIVES, "curve", WORDS["objective"], "DMPO", on_change=hide)
        objective = recorded.OBJECTIVES[chosen]
        parts = (
            " Its parts: only the selection, only β, and two controls for the selection: as many negatives as it "
            "keeps, drawn at random, and as many of the hardest (which are the same ones)."
        )
        shown = choose("DynamicPO", ["off", "on", "its parts"], "dynamicpo", WORDS["DynamicPO"] + parts, "on")
        metric = METRICS[pick("Ranking", METRICS, "metric", RANKING, width=120, on_change=hide)]
        look: dict[str, Any] = {"format_func": "{:g}".format, "width": 90}
        beta = pick("β", BETAS, "strength", WORDS["β"], BETAS.index(USUAL["beta"]), on_change=hide, **look)
        place, off = MARGINS.index(USUAL["margin"]), shown == "off"
        strengths = {"beta": beta, "margin": pick("γ", MARGINS, "gamma", WORDS["γ"], place, disabled=off, **look)}
        predict = st.toggle(
            "Predict first", key="guessing", bind="query-params",
            help="Set a guess for each K before the curve is shown, then reveal it and see how far off you were.",
        )  # fmt: skip
    lines = {"off": ["plain"], "on": ["plain", "dynamic"], "its parts": ["plain", "dynamic", *recorded.PARTS]}[shown]
    sources = {line: source(world, line, objective, strengths) for line in lines}
    if sources["plain"] is None and strengths != USUAL:
        usual, wanted = (f"β = {each['beta']:g}, γ = {each['margin']:g}" for each in (USUAL, strengths))
        not_recorded(world, objective, lines[-1], strengths, f"{wanted}; shown instead: {usual}")
        strengths = USUAL
        sources = {line: source(world, line, objective, USUAL) for line in lines}
    rows = {line: found.rows(**query) for line, found, query in drawn(sources)}
    if "plain" not in rows or rows["plain"]["negatives"].nunique() < 2:
        not_recorded(world, objective, "plain", strengths, "plain runs at two numbers of negatives")
        return
    table = pd.concat(rows[line].assign(variant=line) for line in rows)
    change, repair, parts = changes(sources, rows, metric)
    levels = metric_levels(world, metric)
    word = verdict(*change[1:]) if change else ""
    guesses = guess(controls, rows["plain"], metric) if predict else None
    hidden = guesses is not None and not st.session_state.get("revealed")
    if hidden:
        st.markdown(collapse.expect_sentence(rows["plain"], objective, metric))
    else:
        sentence = collapse_sentence(objective, table, change, repair, parts, metric)
        if change is None:
            sentence += " These runs have no record of single users' wins, so there is no interval."
        if guesses:
            sentence = f"{collapse.guess_sentence(rows['plain'], guesses, metric)} {sentence}"
        st.markdown(sentence)
    if missing := [line for line in lines if line not in rows]:
        at = "" if strengths == USUAL else f" at β = {strengths['beta']:g}, γ = {strengths['margin']:g}"
        names = ", ".join(VARIANTS[line][0] for line in missing)
        not_recorded(world, objective, missing[0], strengths, names + at)
    figure = grid_figure(table, objective, word, levels, metric, guesses, hidden)
    name = style.METRICS[metric]
    draw(figure, "grid", f"Training loss{', pair_loss' * (not hidden)} and {name} against the number of negatives.")
    st.caption(figure_note(world, table, metric, "more SFT" in levels))
    if not hidden:
        both = {line: source(world, line, objective, strengths) for line in ("plain", "dynamic")}
        before = [grid.rows(**query).assign(variant=line) for line, grid, query in drawn(both)]
        curve.offer(world, objective, strengths, pd.concat(before), levels.get("SFT"), metric)


grid_figure = st.cache_data(show_spinner=False, max_entries=300)(collapse_grid)
Source = tuple[str, dict[str, Any]]  # a grid, and the query that finds a line's runs in it


def source(world: recorded.World, line: str, objective: str, strengths: dict[str, float]) -> Source | None:
    """The grid and query of a line's recorded runs, or None."""
    settings = dict(strengths) if line != "plain" else {"beta": strengths["beta"], "margin": USUAL["margin"]}
    query = {"objective": objective, **recorded.LINES[line], **settings}
    name, *parts = recorded.WORLDS[world]
    grids = [name]
    if line in recorded.PARTS:
        grids = parts
    elif strengths != USUAL and world in recorded.STRENGTHS:
        # Beside another β or γ, plain runs come from the same grid: a comparison is of the same seeds and K.
        grids = [recorded.STRENGTHS[world]]
    for each in grids:
        # Reading a missing first grid raises an error that says so.
        if (recorded.is_recorded(each) or each == name) and len(recorded.grid(each).rows(**query)):
            return each, query
    return None


def drawn(sources: dict[str, Source | None]) -> list[tuple[str, Recorded, dict[str, Any]]]:
    return [(line, recorded.grid(found[0]), found[1]) for line, found in sources.items() if found]


def changes(sources: dict[str, Source | None], rows: dict[str, pd.DataFrame], metric: str) -> list[Any]:
    """The metric's paired differences: plain at the largest K minus the smallest, DynamicPO minus plain at the largest,
    and its parts minus plain there; None where single users' wins were not recorded."""
    if metric == "reward_win_rate" and any(grid.wins is None for _, grid, _ in drawn(sources)):
        return [None, None, {}]
    first, last = (int(edge) for edge in (rows["plain"]["negatives"].min(), rows["plain"]["negatives"].max()))

    def at(line: str, k: int) -> tuple[dict[str, Any], str]:
        grid, query = sources[line] or ("", {})
        return {**query, "negatives": k}, grid

    against = {
        line: recorded.difference(*at(line, last), *at("plain", last), metric)
        for line in rows
        if line != "plain" and last in set(rows[line]["negatives"])
    }
    change = recorded.difference(*at("plain", last), *at("plain", first), metric)
    return [change, against.pop("dynamic", None), against]


@st.cache_data(show_spinner=False)
def metric_levels(world: recorded.World, metric: str) -> dict[str, float]:
    """The metric under the oracle, SFT and more SFT, as far as they are recorded; a win rate is against SFT itself."""
    if metric == "reward_win_rate":
        return {}
    name, *parts = recorded.WORLDS[world]
    grids = [recorded.grid(each) for each in (name, *filter(recorded.is_recorded, parts))]
    levels = {
        label: grids[0].baseline(label.lower(), metric)[None].mean()
        for label in ("oracle", "SFT")
        if label.lower() in grids[0].baselines
    }
    further = pd.concat([each.rows(objective="sft") for each in grids])
    if len(further):  # of several learning rates, the one that is best on validation users
        rates = further.groupby("learning_rate")[["val_hr@1", metric]].mean()
        levels["more SFT"] = rates.sort_values("val_hr@1")[metric].iloc[-1]
    return levels


def guess(controls: Any, plain_runs: pd.DataFrame, metric: str) -> dict[int, float]:
    """Controls for the guesses, and the switch that reveals the result; K to the guess."""
    first, *others = sorted(int(k) for k in plain_runs["negatives"].unique())
    start = float(plain_runs.loc[plain_runs["negatives"] == first, metric].mean())
    highest, step, digits, unit = (1.0, 0.005, 3, "") if metric in AVERAGES else (100.0, 0.5, 1, ", %")
    with controls:
        shown = st.toggle("Reveal", key="revealed", bind="query-params", help="Show what the recorded runs did.")
    # The guesses move into a popover once the curve is shown.
    with controls.popover("Guesses") if shown else st.container(horizontal=True, vertical_alignment="bottom"):
        return {
            k: st.number_input(
                f"K = {k}{unit}", 0.0, highest, round(start * highest, digits), step, f"%.{digits}f", f"guess{k}",
                f"Your guess of {style.METRICS[metric]} with {k} negatives. It starts at the value of K = {first}.",
                bind="query-params", width=125, disabled=shown,
            )
            for k in others
        }  # fmt: skip


def not_recorded(world: recorded.World, objective: str, line: str, strengths: dict[str, float], what: str) -> None:
    """Say in one sentence what is not recorded, and offer to train it in the Live lab, at the largest K."""
    dataset, model = world
    query = recorded.LINES[line]
    asks = {
        "dataset": recorded.DATASETS[dataset],
        "model": recorded.MODELS[model],
        "objective": OBJECTIVE_LABELS[objective],
        "negatives": "19" if dataset == "catalog" else "15",
        "dynamic": query["dynamic"],
        **{name: f"{value:g}" for name, value in strengths.items()},
    }
    if query["dynamic"] == "on":
        asks |= {"select": recorded.SELECT[query["select"]], "adjust_beta": query["adjust_beta"]}
    link = {forms.LAB + name: value for name, value in asks.items()}
    with st.container(horizontal=True, vertical_alignment="center"):
        st.info(f"Not recorded for {OBJECTIVE_LABELS[objective]} on {recorded.named(world)}: {what}.")
        st.page_link("views/lab.py", label="Train it in the Live lab", icon=":material/play_arrow:", query_params=link)


def figure_note(world: recorded.World, table: pd.DataFrame, metric: str, more_sft: bool) -> str:
    """The caption of the figure of the runs in `table`: their number, and other rankings to compare with."""
    grid = recorded.grid(recorded.WORLDS[world][0])
    seeds = table.groupby(["variant", "negatives"])["seed"].nunique()
    fewest, most = int(seeds.min()), int(seeds.max())
    count = f"{most} seed{'s' * (most > 1)}" if fewest == most else f"{fewest} to {most} seeds"
    note = (
        f"Means of {count}, bands from lowest to highest; {grid.ranks.shape[1]:,} test "
        "users. Training losses at different K are different functions; pair_loss, over all 19 negatives of validation "
        "users, is the same for every K. "
    )
    if metric in AVERAGES:
        note += "A point is 0.01. "
    if metric == "reward_win_rate":
        note += "SFT has no win rate, because it is measured against SFT itself. "
    else:
        known = {"markov": "a first-order Markov chain", "popularity": "popularity", "random": "chance"}
        levels = [
            f"{label}: {level(grid.baseline(name, metric)[None].mean(), metric)}"
            for name, label in known.items()
            if name in grid.baselines
        ]
        note += "More SFT: supervised fine-tuning that goes on for the compute of a run at K = 19. " * more_sft
        note += f"{style.METRICS[metric]} of {', '.join(levels)}. " * bool(levels)
    note += "All runs start from one SFT checkpoint, so seeds differ only in the preference runs."
    if left := grid.provenance.get("missing"):
        note += f" Runs of this grid not trained yet: {left}."
    return note


# --------------------------------------------------------------------------------------------------- where it collapses

PLAIN, DYNAMIC = recorded.LINES["plain"], recorded.LINES["dynamic"]
# What is compared under every setting, and the two sides of it; a side of None is SFT.
COMPARED: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "DMPO, K = 19 minus K = 1": ({**PLAIN, "negatives": 19}, {**PLAIN, "negatives": 1}),
    "K = 19, DynamicPO minus plain": ({**DYNAMIC, "negatives": 19}, {**PLAIN, "negatives": 19}),
    "DMPO, K = 1 minus SFT": ({**PLAIN, "negatives": 1}, None),
}


@st.cache_data(show_spinner="Comparing every setting, once.")
def settings_maps(name: str, metric: str) -> dict[str, dict[tuple[float, float], Interval]]:
    """The comparisons that the grid `name` holds, by SFT epochs and learning rate."""
    grid = recorded.grid(name)
    cells = grid.rows(objective="dmpo")[["sft_epochs", "learning_rate"]].drop_duplicates()
    found: dict[str, dict[tuple[float, float], Interval]] = {}
    for label, (left, right) in COMPARED.items():
        if grid.rows(objective="dmpo", **left).empty or (right and grid.rows(objective="dmpo", **right).empty):
            continue
        found[label] = {}
        for epochs, rate in cells.itertuples(index=False):
            at = {"objective": "dmpo", "sft_epochs": epochs, "learning_rate": rate}
            other = grid.outcomes(metric, **at, **right) if right else grid.baseline(sft_of(grid, epochs), metric)
            found[label][epochs, rate] = difference(grid.outcomes(metric, **at, **left), other)
    return found


def sft_of(grid: Recorded, epochs: float) -> str:
    """The name of the SFT baseline with this many epochs; "sft" in a grid with one SFT run."""
    return "sft" if "sft" in grid.baselines else f"sft-{epochs:g}"


def where(world: recorded.World) -> None:
    """SFT length × learning rate as maps. Raises ValueError if the record is missing or damaged."""
    metrics = [label for label, name in METRICS.items() if name != "reward_win_rate"]  # which SFT does not have
    metric = METRICS[choose("Ranking", metrics, "of", RANKING, "HR@1")]
    grid = recorded.grid(recorded.SETTINGS[world])
    maps = settings_maps(recorded.SETTINGS[world], metric)
    st.markdown(collapse.settings_sentence(maps, metric))
    epochs = sorted(grid.table["sft_epochs"].unique())
    levels = {each: f"SFT {level(grid.baseline(sft_of(grid, each), metric)[None].mean(), metric)}" for each in epochs}
    rows = grid.rows(objective="dmpo", negatives=1, dynamic="off")
    means = rows.pivot_table(index="sft_epochs", columns="learning_rate", values="val_hr@1")
    epoch, rate = map(int, np.unravel_index(np.argmax(means), means.shape))
    chosen = float(means.index[epoch]), float(means.columns[rate])
    columns = st.columns(len(maps)) if len(maps) > 1 else [st.container(width=520)]
    for number, (column, (name, cells)) in enumerate(zip(columns, maps.items(), strict=True)):
        with column:
            draw(collapse.settings_panel(name, cells, levels, chosen), f"map{number}", f"{name}, by SFT and rate.")
    seeds = rows["seed"].nunique()
    note = (
        f"Differences in points ({'a point is 0.01, ' * (metric in AVERAGES)}{seeds} seed{'s' * (seeds > 1)}, "
        f"{grid.ranks.shape[1]:,} test users), with 95 % intervals paired over users and seeds; bold if zero is "
        "outside, orange worse, purple better. Framed: the setting of the recorded grids, chosen on validation users "
        "by HR@1 of DMPO at K = 1. Of twenty differences that are truly zero, one would be bold by chance."
    )
    if len(maps) == 1:
        note += " Other K are not recorded at other settings with this model on these data."
    st.caption(note)


VIEWS = {"Against K": against_k, "Where it collapses": where, "Who gained, who lost": gained.who}
collapses()
check_link("collapse", KEYS)
