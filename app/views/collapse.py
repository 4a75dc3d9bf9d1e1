"""Collapse: loss and ranking against K, a guess first, the settings where it happens, and the users it happens to."""

from typing import Any

import forms
import numpy as np
import pandas as pd
import recorded
import streamlit as st
from figures import collapse
from shell import WORDS, asked, draw, head, plain, say

from minipo import load_dataset
from minipo.course.figures import style
from minipo.course.figures.grid import VARIANTS, collapse_grid, collapse_sentence
from minipo.course.figures.style import AVERAGES, OBJECTIVE_LABELS, level, verdict
from minipo.evaluation import Interval, paired_interval
from minipo.experiments import comparison
from minipo.experiments.configuration import PreferConfig
from minipo.experiments.datasets.splits import Interaction
from minipo.experiments.records import Recorded, difference

STRENGTHS = {("catalog", "pocket-gpt2"): "strengths"}  # where other β and γ are recorded, for DMPO
BETAS, MARGINS = (0.3, 1.0, 3.0), (2.0, 6.0, 12.0)
USUAL = {"beta": PreferConfig.beta, "margin": PreferConfig.margin}  # what the other grids have
SETTINGS = {
    ("catalog", "pocket-gpt2"): "settings",
    ("ml-100k", "pocket-gpt2"): "ml-100k-settings",
    ("ml-100k", "smollm2-135m"): "ml-100k-smollm2-settings",
}
# Options are their own labels, as a link has them.
OBJECTIVES = {OBJECTIVE_LABELS[name]: name for name in recorded.OBJECTIVES}
METRICS = {label: name for name, label in style.METRICS.items()}
GUESSES = [f"guess{k}" for k in range(2, 20)]
RANKING = "What is compared. " + " ".join(f"{name}: {WORDS[name]}" for name in ("HR@1", "NDCG@5", "MRR", "win rate"))
RANKING += " HR@5: share of users whose chosen item is among the first five."
# None of them is a name in a link from here to another page: Streamlit drops, on the way to a page, what was bound on
# the last.
KEYS = (
    "view", "world", "curve", "dynamicpo", "metric", "strength", "gamma", "guessing", "revealed", *GUESSES,
    "of", "a", "b", "pair_seed", "who",
)  # fmt: skip


def hide() -> None:
    """Other runs are to be guessed: what was guessed and revealed of the last ones is no longer so."""
    for key in ("revealed", *GUESSES):
        st.session_state.pop(key, None)


@st.fragment
def collapses() -> None:
    titled, choosing = st.columns([0.43, 0.57], vertical_alignment="bottom")
    with titled:
        head(
            "Collapse: what happens when K grows", "Loss and ranking of recorded runs against the number of negatives."
        )
    with choosing, st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center"):
        view = st.segmented_control(
            "View", VIEWS, default=next(iter(VIEWS)), required=True, key="view", bind="query-params",
            label_visibility="collapsed", wrap=True, help="Curves, settings under which it happens, single users.",
        )  # fmt: skip
        worlds = {recorded.named(world): world for world in recorded.worlds()}
        world = st.selectbox(
            "Data and model", list(worlds), key="world", bind="query-params", filter_mode=None,
            label_visibility="collapsed", width=275, on_change=hide,
            help="Whose histories the model learns from, and which model. Only what is recorded is listed.",
        )  # fmt: skip
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
        objective = OBJECTIVES[
            st.segmented_control(
                "Objective", list(OBJECTIVES), default="DMPO", required=True, key="curve", bind="query-params",
                on_change=hide, help=WORDS["objective"],
            )
        ]  # fmt: skip
        shown = st.segmented_control(
            "DynamicPO", ["off", "on", "its parts"], default="on", required=True, key="dynamicpo", bind="query-params",
            help=WORDS["DynamicPO"] + " Its parts: the selection alone, β alone, and two controls for the selection: "
            "as many negatives as it keeps, drawn at random, and as many of the hardest (the very ones it keeps).",
        )  # fmt: skip
        metric = METRICS[
            st.selectbox(
                "Ranking", list(METRICS), key="metric", width=120, bind="query-params", on_change=hide,
                filter_mode=None, help=RANKING,
            )
        ]  # fmt: skip
        strengths = {
            "beta": st.selectbox(
                "β", BETAS, BETAS.index(USUAL["beta"]), format_func="{:g}".format, key="strength", width=90,
                bind="query-params", on_change=hide, filter_mode=None, help=WORDS["β"],
            ),
            "margin": st.selectbox(
                "γ", MARGINS, MARGINS.index(USUAL["margin"]), format_func="{:g}".format, key="gamma", width=90,
                bind="query-params", filter_mode=None, help=WORDS["γ"], disabled=shown == "off",
            ),
        }  # fmt: skip
        predict = st.toggle(
            "Predict first", key="guessing", bind="query-params",
            help="Set a guess for each K before the curve is shown, then reveal it and see how far off you were.",
        )  # fmt: skip
    lines = {"off": ["plain"], "on": ["plain", "dynamic"], "its parts": ["plain", "dynamic", *recorded.PARTS]}[shown]
    sources = {line: source(world, line, objective, strengths) for line in lines}
    if sources["plain"] is None and strengths != USUAL:
        usual, asked_for = (f"β = {each['beta']:g}, γ = {each['margin']:g}" for each in (USUAL, strengths))
        not_recorded(world, objective, lines[-1], strengths, f"{asked_for}; below stand {usual}")
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
        say(collapse.expect_sentence(rows["plain"], objective, metric))
    else:
        sentence = collapse_sentence(objective, table, change, repair, parts, metric)
        if change is None:
            sentence += " These runs were recorded without the wins of single users, so there is no interval."
        if guesses:
            sentence = f"{collapse.guess_sentence(rows['plain'], guesses, metric)} {sentence}"
        say(sentence)
    if missing := [line for line in lines if line not in rows]:
        at = "" if strengths == USUAL else f" at β = {strengths['beta']:g}, γ = {strengths['margin']:g}"
        names = ", ".join(VARIANTS[line][0] for line in missing)
        not_recorded(world, objective, missing[0], strengths, names + at)
    figure = grid_figure(table, objective, word, levels, metric, guesses, hidden)
    name = style.METRICS[metric]
    draw(figure, "grid", f"Training loss{', pair_loss' * (not hidden)} and {name} against the number of negatives.")
    st.caption(figure_note(world, table, metric, "more SFT" in levels))


grid_figure = st.cache_data(show_spinner=False, max_entries=300)(collapse_grid)
Source = tuple[str, dict[str, Any]]  # a grid, and the query that finds a line's runs in it


def source(world: recorded.World, line: str, objective: str, strengths: dict[str, float]) -> Source | None:
    """Where a line's runs are recorded, if they are."""
    settings = dict(strengths) if line != "plain" else {"beta": strengths["beta"], "margin": USUAL["margin"]}
    query = {"objective": objective, **recorded.LINES[line], **settings}
    name, *parts = recorded.WORLDS[world]
    grids = [name]
    if line in recorded.PARTS:
        grids = parts
    elif strengths != USUAL and world in STRENGTHS:
        # Beside another β or γ, plain runs come from the same grid: a comparison is of the same seeds and K.
        grids = [STRENGTHS[world]]
    for each in grids:
        # A missing first grid is told by reading it.
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
    """Controls for the guesses, and beside the others the switch that reveals; K to what was guessed."""
    first, *others = sorted(int(k) for k in plain_runs["negatives"].unique())
    start = float(plain_runs.loc[plain_runs["negatives"] == first, metric].mean())
    highest, step, digits, unit = (1.0, 0.005, 3, "") if metric in AVERAGES else (100.0, 0.5, 1, ", %")
    with controls:
        shown = st.toggle("Reveal", key="revealed", bind="query-params", help="Show what the recorded runs did.")
    # What was guessed steps back once the curve is there.
    with controls.popover("Guesses") if shown else st.container(horizontal=True, vertical_alignment="bottom"):
        guesses = {
            k: st.number_input(
                f"K = {k}{unit}", 0.0, highest, round(start * highest, digits), step, f"%.{digits}f", f"guess{k}",
                f"Your guess of {style.METRICS[metric]} with {k} negatives. It begins where K = {first} is.",
                bind="query-params", width=125, disabled=shown,
            )
            for k in others
        }  # fmt: skip
    return guesses


def not_recorded(world: recorded.World, objective: str, line: str, strengths: dict[str, float], what: str) -> None:
    """Say in one sentence what is not recorded, and offer to train it."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.info(f"Not recorded for {OBJECTIVE_LABELS[objective]} on {recorded.named(world)}: {what}.")
        lab(world, objective, line, strengths)


def lab(world: recorded.World, objective: str, line: str, strengths: dict[str, float]) -> None:
    """A link to the Live lab with these settings filled in, at the largest K."""
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
    st.page_link("views/lab.py", label="Train it in the Live lab", icon=":material/play_arrow:", query_params=link)


def figure_note(world: recorded.World, table: pd.DataFrame, metric: str, more_sft: bool) -> str:
    """What stands below the figure of the runs in `table`: how many they are, and what is to be compared with them."""
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
        note += "SFT has no win rate, for it is measured against SFT itself. "
    else:
        known = {"markov": "a first-order Markov chain", "popularity": "popularity", "random": "chance"}
        levels = [
            f"{label}: {level(grid.baseline(name, metric)[None].mean(), metric)}"
            for name, label in known.items()
            if name in grid.baselines
        ]
        note += "More SFT: supervised fine-tuning that goes on for the compute of a run at K = 19. " * more_sft
        note += f"{style.METRICS[metric]} of {', '.join(levels)}. " * bool(levels)
    note += "All runs start from one SFT checkpoint, so seeds are the preference runs' alone."
    if left := grid.provenance.get("missing"):
        note += f" Runs of this grid that are not trained yet: {left}."
    return note


# --------------------------------------------------------------------------------------------------- where it collapses

PLAIN, DYNAMIC = recorded.LINES["plain"], recorded.LINES["dynamic"]
# What is compared under every setting, and the two sides of it; a side of None is SFT.
COMPARED: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "DMPO, K = 19 minus K = 1": ({**PLAIN, "negatives": 19}, {**PLAIN, "negatives": 1}),
    "K = 19, DynamicPO minus plain": ({**DYNAMIC, "negatives": 19}, {**PLAIN, "negatives": 19}),
    "DMPO, K = 1 minus SFT": ({**PLAIN, "negatives": 1}, None),
}


@st.cache_data(show_spinner="Every setting is compared, once.")
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
    """The name of the SFT baseline of so many epochs; a grid with one SFT run calls it sft."""
    return "sft" if "sft" in grid.baselines else f"sft-{epochs:g}"


def where(world: recorded.World) -> None:
    """SFT length × learning rate as maps. Raises ValueError if the record is missing or damaged."""
    metrics = [label for label, name in METRICS.items() if name != "reward_win_rate"]  # which SFT does not have
    metric = METRICS[
        st.segmented_control(
            "Ranking", metrics, default="HR@1", required=True, key="of", bind="query-params", help=RANKING
        )
    ]
    grid = recorded.grid(SETTINGS[world])
    maps = settings_maps(SETTINGS[world], metric)
    say(collapse.settings_sentence(maps, metric))
    epochs = sorted(grid.table["sft_epochs"].unique())
    levels = {each: f"SFT {level(grid.baseline(sft_of(grid, each), metric)[None].mean(), metric)}" for each in epochs}
    rows = grid.rows(objective="dmpo", negatives=1, dynamic="off")
    means = rows.pivot_table(index="sft_epochs", columns="learning_rate", values="val_hr@1")
    epoch, rate = map(int, np.unravel_index(np.argmax(means), means.shape))
    chosen = float(means.index[epoch]), float(means.columns[rate])
    columns = st.columns(len(maps)) if len(maps) > 1 else [st.container(width=520)]
    for number, (column, (name, cells)) in enumerate(zip(columns, maps.items(), strict=True)):
        with column:
            draw(
                collapse.settings_panel(name, cells, levels, chosen),
                f"map{number}",
                f"{name}, by SFT and rate.",
            )
    seeds = rows["seed"].nunique()
    note = (
        f"Differences in points ({'a point is 0.01, ' * (metric in AVERAGES)}{seeds} seed{'s' * (seeds > 1)}, "
        f"{grid.ranks.shape[1]:,} test users), with 95 % intervals paired over users and seeds; bold where zero is "
        "outside, orange worse, purple better. Framed: the setting of the recorded grids, chosen on validation users "
        "by HR@1 of DMPO at K = 1. Of twenty true zeros one would be bold by chance."
    )
    if len(maps) == 1:
        note += " Other K are not recorded at other settings with this model on these data."
    st.caption(note)


# ------------------------------------------------------------------------------------------------- who gained, who lost

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
            words = recorded.labelled(run).rpartition(", seed")[0]
            part = [line for line in recorded.PARTS if all(run[k] == v for k, v in recorded.LINES[line].items())]
            found.setdefault(", ".join([words, *part]), {})[int(run["seed"])] = each, row
    return found


def ranks_of(world: recorded.World, run: Ranked) -> np.ndarray:
    if run is None:
        return recorded.grid(recorded.WORLDS[world][0]).baselines["sft"]
    grid, row = run
    return recorded.grid(grid).ranks[row]


def who(world: recorded.World) -> None:
    """Test users gained and lost between two settings. Raises ValueError if the record is missing or damaged."""
    settings = settings_of(world)
    options = [SFT, *settings]
    most = recorded.grid(recorded.WORLDS[world][0]).rows(objective="dmpo")["negatives"].max()
    usual = [f"DMPO, K = {k}" for k in (1, most)]
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        chosen = [
            st.selectbox(
                f"{letter.upper()}: {when}", options, options.index(usual[place]), key=letter, bind="query-params",
                width=330, on_change=forget_user,
                help="A recorded setting, the same for both but for what you compare; SFT is what all start from.",
            )
            for place, (letter, when) in enumerate((("a", "before"), ("b", "after")))
        ]  # fmt: skip
        seeds = sorted(set.intersection(*({*settings[each]} for each in chosen if each != SFT), *all_seeds(settings)))
        seed = st.selectbox(
            "Seed", seeds, key="pair_seed", bind="query-params", width=90, filter_mode=None, on_change=forget_user,
            help=WORDS["seed"],
        )  # fmt: skip
    runs: list[Ranked] = [None if each == SFT else settings[each][seed] for each in chosen]
    before, after = (ranks_of(world, run) for run in runs)
    names = chosen[0], chosen[1]
    say(collapse.user_sentence(before, after, names, moved_by(before, after)))
    users = numbers(world, len(before))
    groups = collapse.user_groups(before, after)
    moved = [*groups["lost"], *groups["gained"], *range(len(users))]
    drawing, telling = st.columns([0.42, 0.58], gap="large")
    with telling:
        user = st.number_input(
            "Test user", users[0], users[-1], users[moved[0]], key="who", bind="query-params", width=180,
            help="Type a number, or click a square. It opens on the first user lost, if there is one.",
        )  # fmt: skip
        if user not in users:
            st.info(f"There is no test user {user} here.")
        else:
            tell(world, user, users.index(user), runs, (before, after))
    with drawing:
        draw(
            collapse.user_grid(users, before, after, names, user), "users", "Every test user, gained, lost or neither.",
            on_select=pick, selection_mode="points",
        )  # fmt: skip
    st.caption(f"{len(users):,} test users, seed {seed}, a square each. " + churn(settings, chosen, seed))


@st.cache_data(show_spinner=False, max_entries=500)
def moved_by(before: np.ndarray, after: np.ndarray) -> Interval:
    """HR@1 under the ranks `after` minus `before`, of one seed."""
    return paired_interval(((after == 0).astype(float) - (before == 0))[None])


def all_seeds(settings: dict[str, dict[int, tuple[str, int]]]) -> list[set[int]]:
    return [{seed for runs in settings.values() for seed in runs}]


def tested(world: recorded.World) -> tuple[Interaction, ...]:
    """The test users whom the recorded runs ranked; none where the data are not here, or are others by now."""
    dataset, _ = world
    if not recorded.is_here(dataset):
        return ()
    splits, grid = load_dataset(dataset), recorded.grid(recorded.WORLDS[world][0])
    return splits.test if splits.fingerprint == grid.fingerprint else ()


def numbers(world: recorded.World, count: int) -> list[int]:
    """The test users' numbers; their places where it is not known who they are."""
    return [user.user for user in tested(world)] or list(range(count))


def forget_user() -> None:
    """Another comparison has other users gained and lost: it opens on one of them."""
    st.session_state.pop("who", None)


def pick() -> None:
    """A square was clicked: its user."""
    if points := st.session_state["users"].selection.points:
        number = points[0].get("customdata")
        if number is not None:
            st.session_state["who"] = int(np.ravel(number)[0])


def tell(
    world: recorded.World, user: int, place: int, runs: list[Ranked], ranks: tuple[np.ndarray, np.ndarray]
) -> None:
    """What a user chose, where the item stands before and after, and the way to the microscope."""
    before, after = (int(each[place]) + 1 for each in ranks)
    dataset, _ = world
    text = f"**User {user}**: the chosen item is in place **{before}** under A and **{after}** under B."
    if dataset == "catalog" and (users := tested(world)):  # other data's rows may not be passed on
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


def churn(settings: dict[str, dict[int, tuple[str, int]]], chosen: list[str], seed: int) -> str:
    """How many users change between two seeds of one setting, to compare with."""
    name = next((each for each in chosen if each != SFT and len(settings[each]) > 1), None)
    if name is None:
        return ""
    other = next(each for each in sorted(settings[name]) if each != seed)
    ranks = [recorded.grid(grid).ranks[row] for grid, row in (settings[name][seed], settings[name][other])]
    groups = collapse.user_groups(*ranks)
    return (
        f"For comparison: between seeds {seed} and {other} of {name} alone, {len(groups['gained'])} users are gained "
        f"and {len(groups['lost'])} lost."
    )


VIEWS = {"Against K": against_k, "Where it collapses": where, "Who gained, who lost": who}
collapses()
asked("collapse", KEYS)
