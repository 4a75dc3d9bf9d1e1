"""The page: why averaging over easy negatives silences a mistake, what happens for real, and train it now."""

from contextlib import suppress
from typing import Any

import pandas as pd
import streamlit as st
import torch
from jobs import Job, Queue

from minipo import DynamicPO, fetch, figures, files, load_dataset, preference_loss, runs, sweeps

PLOT = {"displayModeBar": False}
EASY = 18  # easy negatives beside the mistake: a user has 19 negatives
OBJECTIVES = ["dpo", "dmpo", "sdpo", "mppo"]
SELECT = {"on": "the boundary", "off": "all of them", "random": "as many, at random", "hardest": "as many, the hardest"}

DATASETS = {
    "catalog": "catalogue", "ml-100k": "MovieLens-100K", "lastfm": "LastFM", "goodreads": "Goodreads", "steam": "Steam",
}  # fmt: skip
MODELS = {
    "pocket-gpt2": "pocket-gpt2", "pocket-qwen2": "pocket-qwen2", "smollm2-135m": "SmolLM2-135M", "gpt2": "GPT-2",
    "qwen2.5-0.5b": "Qwen2.5-0.5B",
}  # fmt: skip
World = tuple[str, str]  # dataset, model
# Where the runs of a world are recorded: the grid of objectives and, if there is one, that of DynamicPO's parts.
WORLDS: dict[World, tuple[str, ...]] = {
    ("catalog", "pocket-gpt2"): ("objectives", "parts"),
    ("ml-100k", "pocket-gpt2"): ("ml-100k-objectives", "ml-100k-parts"),
    ("ml-100k", "smollm2-135m"): ("ml-100k-smollm2",),
}

# Each line of *What happens*, as the settings of the recorded runs that it is drawn from.
LINES: dict[str, dict[str, Any]] = {
    "plain": {"dynamic": "off"},
    "dynamic": {"dynamic": "on", "select": "on", "adjust_beta": "on"},
    "selection alone": {"dynamic": "on", "select": "on", "adjust_beta": "off"},
    "β alone": {"dynamic": "on", "select": "off", "adjust_beta": "on"},
    "random |B|": {"dynamic": "on", "select": "random", "adjust_beta": "off"},
    "hardest |B|": {"dynamic": "on", "select": "hardest", "adjust_beta": "off"},
}
PARTS = [line for line in LINES if line not in ("plain", "dynamic")]


@st.cache_resource(show_spinner=False)
def recorded(grid: str) -> sweeps.Recorded:
    """A recorded grid; what is missing or damaged raises ValueError in one sentence, and is looked for again later."""
    return sweeps.load_recorded(grid)


def is_recorded(grid: str) -> bool:
    """Whether the grid is there; its JSON is written last."""
    return (sweeps.RECORDED / grid / "provenance.json").is_file()


@st.cache_data(show_spinner=False)
def compared(left: dict[str, Any], left_grid: str, right: dict[str, Any], grid: str) -> tuple[float, float, float]:
    """HR@1 of the recorded runs `left` minus `right`: mean and 95 % interval, paired over users and seeds."""
    interval = sweeps.difference(recorded(left_grid).outcomes(**left), recorded(grid).outcomes(**right))
    return interval.mean, interval.low, interval.high


def named(world: World) -> str:
    return f"{DATASETS[world[0]]} × {MODELS[world[1]]}"


def is_here(name: str) -> bool:
    """Whether a dataset or a model can be used at once; what minipo makes itself always can."""
    return name not in fetch.SOURCES or fetch.present(name) is not None


@st.cache_resource(show_spinner=False)
def recorded_mistakes() -> list[tuple[figures.Mistake, str]]:
    """Every recorded user with a mistake, and the run they come from: plain DMPO with many negatives first."""
    found = []
    for name in ("objectives", "parts", "settings"):
        try:
            grid = recorded(name)
            for number, path in grid.probes.items():
                run = grid.table.to_dict("index")[number]
                label = figures.OBJECTIVE_LABELS[run["objective"]]
                title = f"{label}{', DynamicPO' * (run['dynamic'] == 'on')}, K = {run['negatives']}, seed {run['seed']}"
                order = (run["dynamic"] == "on", run["objective"] != "dmpo", -run["negatives"])
                found += [(order, mistake, title) for mistake in figures.mistakes(files.read_parquet(path))]
        except (ValueError, KeyError):  # a grid or a probe that cannot be read has no users to show
            continue
    return [(mistake, title) for _, mistake, title in sorted(found, key=lambda entry: entry[0])]


@st.cache_resource(show_spinner=False)
def queue() -> Queue:
    return Queue()


# ------------------------------------------------------------------------------------------------------------- why


def next_user() -> None:
    state = st.session_state
    if recorded_mistakes():
        state["why_user"] = state.get("why_user", -1) + 1
    else:
        state["why_none"] = True


@st.fragment
def why() -> None:
    state = st.session_state
    number = state.get("why_user")
    sliding, selecting, filling, setting = st.columns([1.9, 1.65, 1.4, 0.65], vertical_alignment="bottom")
    easy = sliding.slider("Easy negatives, 0 → 18", 0, EASY, EASY, key="why_easy")
    selected = selecting.toggle(
        "boundary only",
        key="why_boundary",
        help="DynamicPO's selection: only negatives ranked at or above the chosen item enter the loss or, where there "
        "are none, the group nearest to it. β stays as it is.",
    )
    filling.button(
        "A real user" if number is None else "Next user",
        icon=":material/person:",
        key="why_next",
        width="stretch",
        on_click=next_user,
        help="Fill the line with a user of a recorded run.",
    )
    with setting.popover("", icon=":material/tune:", help="Margins and β"):
        real = number is not None
        mistake_margin = st.slider("Mistake's margin (nats)", -4.0, 4.0, -1.0, 0.5, key="why_mistake", disabled=real)
        easy_margin = st.slider("Easy negatives' margin (nats)", 0.0, 8.0, 4.0, 0.5, key="why_margin", disabled=real)
        beta = st.slider("β, strength", 0.1, 3.0, 1.0, 0.1, key="why_beta")
        if real:
            st.button("Back to the illustration", key="why_back", on_click=state.pop, args=("why_user",))
    if number is None:
        margins = torch.tensor([mistake_margin] + [easy_margin] * easy)
        policy = torch.cat([torch.zeros(1), -margins])[None]
        reference = torch.zeros_like(policy)
        names = load_dataset("catalog").items[7 : 8 + easy]
        ends = beta * mistake_margin, beta * easy_margin, 0
        span = (min(ends) - 1.5, max(ends) + 1)
        note = "An illustration: the margins are set by hand; losses and pushes are computed from them as in training."
        if state.pop("why_none", False):
            st.warning("No recorded user is at hand: no readable probe of a recorded run has a user with one mistake.")
    else:
        users = recorded_mistakes()
        user, run = users[number % len(users)]
        policy, reference = user.policy[:, : 2 + easy], user.reference[:, : 2 + easy]
        names, span = user.names[: 1 + easy], None
        note = (
            f"Validation user {user.user} after step {user.step} of a recorded run ({run}). "
            f"The chosen item: {user.chosen}. User {number % len(users) + 1} of {len(users)} with one mistake."
        )
    dynamic = DynamicPO(adjust_beta=False) if selected else None
    plain = figures.push_table(policy, reference, beta)
    table = figures.push_table(policy, reference, beta, dynamic) if selected else plain
    output = preference_loss("dmpo", policy, reference, beta, dynamic=dynamic)
    line = figures.margin_line(output.rewards[0].numpy(), output.used[0].numpy(), names, span)
    st.markdown(figures.push_sentence(plain, table if selected else None))
    st.plotly_chart(line, key="why_line", theme=None, config=PLOT)
    st.plotly_chart(figures.push_bars(table, selected), key="why_bars", theme=None, config=PLOT)
    st.caption(note)


# ---------------------------------------------------------------------------------------------------- what happens


@st.fragment
def what_happens() -> None:
    with st.container(
        key="happens_head", horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
    ):
        st.header("What happens when K grows", anchor="what-happens", width="content")
        first, *others = WORLDS
        world = st.selectbox(
            "Data and model", [first, *(world for world in others if is_recorded(WORLDS[world][0]))], format_func=named,
            key="happens_world", label_visibility="collapsed", width=285,
        )  # fmt: skip
    with st.container(horizontal=True, gap="medium"):
        objective = st.segmented_control(
            "Objective", OBJECTIVES, default="dmpo", required=True, key="happens_objective",
            format_func=figures.OBJECTIVE_LABELS.__getitem__,
        )  # fmt: skip
        shown = st.segmented_control(
            "DynamicPO", ["off", "on", "its parts"], default="on", required=True, key="happens_dynamic",
            help="Its parts: the selection alone, β alone, and two controls for the selection: as many negatives as it "
            "keeps, drawn at random, and as many of the hardest (which are the very ones it keeps).",
        )  # fmt: skip
    try:
        happened(world, objective, shown)
    except ValueError as error:
        st.warning(f"{str(error).replace(str(sweeps.RECORDED), 'data/recorded')} A live run can be trained below.")
        offer(world, {"objective": objective, "negatives": 19})


def happened(world: World, objective: str, shown: str) -> None:
    """The figure and its sentence; ValueError if the record is missing or damaged."""
    name, *apart = WORLDS[world]
    grid = recorded(name)
    parts_name = next(filter(is_recorded, apart), name)
    label = figures.OBJECTIVE_LABELS[objective]
    lines = {"off": ["plain"], "on": ["plain", "dynamic"], "its parts": ["plain", "dynamic", *PARTS]}[shown]
    tables = [lined(recorded(parts_name) if line in PARTS else grid, line, objective) for line in lines]
    table = pd.concat(tables)
    plain = tables[0]
    if plain["negatives"].nunique() < 2:
        st.info(f"Not recorded for {label} on {named(world)}: plain runs at two numbers of negatives.")
        offer(world, {"objective": objective, "negatives": 19})
        return
    first, last = (
        {"objective": objective, "negatives": int(k), **LINES["plain"]}
        for k in (plain["negatives"].min(), plain["negatives"].max())
    )
    change = compared(last, name, first, name)
    at_last = set(table.loc[table["negatives"] == last["negatives"], "variant"])
    repair = compared({**last, **LINES["dynamic"]}, name, last, name) if "dynamic" in at_last else None
    parts = {part: compared({**last, **LINES[part]}, parts_name, last, name) for part in PARTS if part in at_last}
    st.markdown(figures.collapse_sentence(objective, table, change, repair, parts))
    missing = [line for line in lines if line not in set(table["variant"])]
    if missing:
        names = ", ".join(figures.VARIANTS[line][0] for line in missing)
        st.info(f"Not recorded for {label}: {names}.")
        offer(world, {"objective": objective, "negatives": last["negatives"], **LINES[missing[0]]})
    levels = {
        level: grid.baseline(level.lower())[None].mean()
        for level in ("oracle", "SFT")
        if level.lower() in grid.baselines
    }
    further = pd.concat([recorded(source).rows(objective="sft") for source in dict.fromkeys((name, parts_name))])
    if len(further):  # of several learning rates, the one that is best on validation users
        rates = further.groupby("learning_rate")[["val_hr@1", "hr@1"]].mean().sort_values("val_hr@1")
        levels["more SFT"] = rates["hr@1"].iloc[-1]
    figure = figures.collapse_grid(table, objective, figures.verdict(*change[1:]), levels)
    st.plotly_chart(figure, key="happens_grid", theme=None, config=PLOT)
    st.caption(figure_note(grid, table, "more SFT" in levels))


def figure_note(grid: sweeps.Recorded, table: pd.DataFrame, more_sft: bool) -> str:
    """What stands below the figure of the runs in `table`: how many they are, and what is to be compared with them."""
    seeds = table.groupby(["variant", "negatives"])["seed"].nunique()
    fewest, most = int(seeds.min()), int(seeds.max())
    count = f"{most} seed{'s' * (most > 1)}" if fewest == most else f"{fewest} to {most} seeds"
    known = {"markov": "a first-order Markov chain", "popularity": "popularity", "random": "chance"}
    levels = [
        f"{label}: {100 * grid.baseline(name)[None].mean():.1f} %"
        for name, label in known.items()
        if name in grid.baselines
    ]
    note = (
        f"Means of {count}, bands from lowest to highest; {grid.ranks.shape[1]:,} test "
        "users. Training losses at different K are different functions; pair_loss, over all 19 negatives of validation "
        "users, is the same for every K. "
    )
    if more_sft:
        note += "More SFT: supervised fine-tuning that goes on for the compute of a run at K = 19. "
    if levels:
        note += f"HR@1 of {', '.join(levels)}. "
    note += "All runs start from one SFT checkpoint, so seeds are the preference runs' alone."
    if left := grid.provenance.get("missing"):
        note += f" Runs of this grid that are not trained yet: {left}."
    return note


def lined(grid: sweeps.Recorded, line: str, objective: str) -> pd.DataFrame:
    return grid.rows(objective=objective, **LINES[line]).assign(variant=line)


def offer(world: World, settings: dict[str, Any]) -> None:
    """A button that fills in the form below, where data and model are here to train with."""
    away = [name for name in world if not is_here(name)]
    if away:
        st.caption(" ".join(fetch.missing(name) for name in away))
        return
    dataset, model = world
    filled = {"dataset": dataset, "model": model, **defaults(dataset, model), **settings}
    label = f"Fill in the form below: {figures.OBJECTIVE_LABELS[settings['objective']]}, K = {settings['negatives']}"
    if st.button(label, icon=":material/arrow_downward:", key="happens_offer", on_click=fill, args=(filled,)):
        st.rerun()  # the form is outside this fragment


def fill(settings: dict[str, Any]) -> None:
    st.session_state.update({f"train_{name}": value for name, value in settings.items()})


# ---------------------------------------------------------------------------------------------------- train it now

OPENING: dict[str, Any] = {
    "dataset": "catalog", "model": "pocket-gpt2", "objective": "dmpo", "negatives": 15, "dynamic": "on", "select": "on",
    "adjust_beta": "on", "seed": 0,
}  # fmt: skip


def defaults(dataset: str, model: str) -> dict[str, Any]:
    """A run's settings on this data with this model: those of the recorded runs, or the library's where there are none.

    What the form does not ask for besides (tuning, batch, precision), the run takes from the library's recipe itself.
    """
    settings = vars(runs.PreferConfig()) | runs.recipe("prefer", dataset, model)
    with suppress(ValueError, LookupError):
        settings = settings | dict(recorded(WORLDS[dataset, model][0]).rows(objective="dmpo").iloc[0])
    names = ("beta", "margin", "learning_rate", "steps", "clusters", "sft_epochs")
    return {name: type(getattr(runs.PreferConfig, name))(settings[name]) for name in names}


def refill() -> None:
    """Other data or another model: their settings."""
    fill(defaults(st.session_state["train_dataset"], st.session_state["train_model"]))


@st.fragment
def train() -> None:
    state = st.session_state
    for name, value in (OPENING | defaults(OPENING["dataset"], OPENING["model"])).items():
        state.setdefault(f"train_{name}", value)
    if not (is_here(state["train_dataset"]) and is_here(state["train_model"])):  # not any more
        fill(OPENING | defaults(OPENING["dataset"], OPENING["model"]))
    away = [name for name in (*DATASETS, *MODELS) if not is_here(name)]
    datasets, models = ([name for name in known if name not in away] for known in (DATASETS, MODELS))
    top, first, second = st.columns(5, vertical_alignment="bottom"), st.columns(5), st.columns(5)
    off = state["train_dynamic"] == "off"
    label, choice = figures.OBJECTIVE_LABELS.__getitem__, SELECT.__getitem__
    settings = {
        "dataset": top[0].selectbox(
            "Data", datasets, format_func=DATASETS.__getitem__, key="train_dataset", on_change=refill
        ),
        "model": top[1].selectbox("Model", models, format_func=MODELS.__getitem__, key="train_model", on_change=refill),
        "objective": first[0].selectbox("Objective", OBJECTIVES, format_func=label, key="train_objective"),
        "negatives": first[1].slider("K, negatives", 1, 19, key="train_negatives"),
        "dynamic": first[2].selectbox("DynamicPO", ["off", "on"], key="train_dynamic"),
        "select": first[3].selectbox(
            "Negatives that enter", list(SELECT), format_func=choice, key="train_select", disabled=off
        ),
        "adjust_beta": first[4].selectbox("Dual-margin β", ["on", "off"], key="train_adjust_beta", disabled=off),
        "beta": second[0].number_input("β, strength", 0.01, 10.0, step=0.1, key="train_beta"),
        "margin": second[1].number_input("γ, margin of dual-margin β", 0.0, 20.0, step=1.0, key="train_margin"),
        "learning_rate": second[2].number_input(
            "Learning rate", 1e-5, 1e-2, step=1e-4, format="%.5f", key="train_learning_rate"
        ),
        "steps": second[3].number_input("Steps", 10, 1000, step=50, key="train_steps"),
        "seed": second[4].number_input("Seed", 0, 10_000, step=1, key="train_seed"),
        "clusters": state["train_clusters"],
        "sft_epochs": state["train_sft_epochs"],
    }
    if away:
        with top[2].popover(f"{len(away)} more to fetch", icon=":material/download:", width="stretch"):
            st.markdown("\n".join(f"- {fetch.missing(name)}" for name in away))
    job: Job | None = state.get("job")
    active = job is not None and job.active
    starting, expecting = st.columns([1, 4], vertical_alignment="center")
    starting.button(
        "Train", type="primary", key="train_start", width="stretch", disabled=active, on_click=submit, args=(settings,)
    )
    expecting.caption(estimate(settings))
    if job is not None:
        st.fragment(watch, run_every=1 if active else None)(job, active)


def estimate(settings: dict[str, Any]) -> str:
    """How long a run with these settings takes, as far as the recorded runs tell, and whether SFT comes before it."""
    said = []
    try:
        grid = recorded(WORLDS[settings["dataset"], settings["model"]][0])
        rows = grid.table[grid.table["objective"] != "sft"]
        near = rows.iloc[(rows["negatives"] - settings["negatives"]).abs().argsort(kind="stable")[:1]]
        rows = rows[rows["negatives"] == near["negatives"].item()]
        seconds = (rows["seconds"] / rows["steps"]).mean() * settings["steps"]
        machine = grid.provenance["versions"]["machine"]
        said.append(
            f"{settings['steps']} steps take about {lasting(seconds)}, by the recorded runs at "
            f"K = {rows['negatives'].iloc[0]} ({machine})."
        )
    except (ValueError, LookupError, TypeError):  # not recorded, or damaged
        said.append("No recorded run with this model on these data says how long it takes.")
    if not settings["model"].startswith("pocket-"):
        said.append("A pretrained language model takes minutes on a CPU, and with many steps hours.")
    if not starts_at_once(settings):
        said.append("The SFT run that it starts from is not here: it is trained first, which may take longer.")
    return " ".join(said)


def lasting(seconds: float) -> str:
    """A time as one says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def starts_at_once(settings: dict[str, Any]) -> bool:
    """Whether the SFT run from which a run with these settings starts has been trained."""
    wanted = runs.start_config(runs.make_config(runs.PreferConfig, settings))
    folders = [*runs.DATA.glob("sft/*/summary.json"), *files.home().glob("runs/sft-*/summary.json")]
    for folder in folders:
        with suppress(ValueError):  # damaged
            if runs.Run(folder.parent).config == wanted:
                return True
    return False


def submit(settings: dict[str, Any]) -> None:
    st.session_state["job"] = queue().submit(settings)


def watch(job: Job, running: bool) -> None:
    """A run while it trains and when it is over; `running` as the form was last drawn."""
    before = queue().place(job)
    if running and not job.active:
        st.rerun()  # the form opens again, and nothing needs a look every second
    metrics, evaluation, summary = pd.DataFrame(), pd.DataFrame(), None
    try:
        run = runs.Run(job.folder)
        metrics, evaluation = run.metrics, run.evaluation
        summary = run.summary if job.state == "done" else None
    except ValueError:  # not there yet, or not there any more
        if job.state == "done":
            st.error("The run's folder is gone or damaged: train it again.")
    steps = job.settings["steps"]
    step = 0 if metrics.empty else int(metrics["step"].iloc[-1])
    if job.active:
        bar, button = st.columns([5, 1], vertical_alignment="center")
        bar.progress(step / steps, text=progress(job.settings, before, step, metrics))
        button.button(
            "Stop", icon=":material/stop:", key="train_stop", width="stretch", on_click=queue().stop, args=(job,)
        )
    elif summary is not None:
        st.markdown(figures.result_sentence(summary, neighbours(job.settings)))
    elif job.state == "stopped":
        st.info(job.message)
    elif job.state == "failed":
        st.error(job.message)
    if not metrics.empty or not evaluation.empty:
        st.plotly_chart(figures.live_run(metrics, evaluation, job.settings), key="train_run", theme=None, config=PLOT)


def progress(settings: dict[str, Any], before: int, step: int, metrics: pd.DataFrame) -> str:
    steps = settings["steps"]
    if before:
        return f"Waiting for {before} other run{'s' if before > 1 else ''}."
    if step == 0:
        if starts_at_once(settings):
            return "Starting: loading the model, and the reference's log-probs."
        return "Starting: training the SFT run that this one begins with."
    if step >= steps:
        return "Ranking the test users."
    left = metrics["seconds"].iloc[-1] / step * (steps - step)
    return f"Step {step} of {steps}, about {lasting(left)} left."


def neighbours(settings: dict[str, Any]) -> pd.DataFrame:
    """Recorded runs of the same objective and parts, at the nearest K below and above."""
    names = (
        ["objective", "dynamic"] if settings["dynamic"] == "off" else ["objective", "dynamic", "select", "adjust_beta"]
    )
    table = pd.DataFrame({"negatives": [], "hr@1": []})
    for grid in WORLDS.get((settings["dataset"], settings["model"]), ()):
        with suppress(ValueError):  # not recorded, or damaged
            table = pd.concat([table, recorded(grid).rows(**{name: settings[name] for name in names})])
    below, above = (table["negatives"] <= settings["negatives"]), (table["negatives"] >= settings["negatives"])
    near = {table.loc[below, "negatives"].max(), table.loc[above, "negatives"].min()}
    return table[table["negatives"].isin(near)].astype({"negatives": int})


STYLE = ".stMainBlockContainer {padding-left: 2.2rem; padding-right: 2.2rem} h2 {padding: 0 0 .15rem !important}"
STYLE += " .st-key-happens_head {margin: -.45rem 0 -.9rem}"  # the choice beside the header takes no height of its own
ABOUT = "preference optimization with many negatives: how more of them can teach less, and what repairs it"
st.html(f"<style>{STYLE}</style>")
st.markdown(f"**minipo** :gray[· {ABOUT}]")
left, right = st.columns(2, gap="large")
with left:
    st.header("Why: easy negatives silence a mistake", anchor="why")
    why()
with right:
    what_happens()
st.header("Train it now", anchor="train-it-now")
train()
