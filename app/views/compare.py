"""Compare: chosen runs in one table, their differences to one of them with intervals, and what repeats them."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jobs
import pandas as pd
import recorded
import repeat
import streamlit as st
from figures.compared import compared, compared_sentence
from shell import WORDS, check_link, choose, distinct, draw, head, pick, plain, viewer

from minipo.course.figures.style import (
    OBJECTIVE_LABELS,
    colour_of,
    in_points,
    level,
)
from minipo.evaluation import Interval
from minipo.experiments import comparison
from minipo.experiments.comparison import METRICS, Difference, Line
from minipo.experiments.runs import Run

KEYS = ("data", "runs", "run", "baseline", "metric", "repeat")
# The settings in which a grid's cells differ, the seed aside; and names of those that are rarely varied.
CELL = ["model", "objective", "negatives", "dynamic", "select", "adjust_beta", "sft_epochs", "learning_rate", "beta"]
UNUSUAL = {"sft_epochs": "SFT epochs", "learning_rate": "learning rate", "beta": "β"}
Choice = tuple[str, str | None, dict[str, Any]]  # a grid, the baseline if it is one, the settings of its runs
MOST = 10  # lines of each kind: what a figure and a table can still show
HIGHLIGHT = "background-color: rgba(0, 114, 178, 0.22); font-weight: 600"

# Settings in a table's words; DynamicPO's three switches are one of them, `comparison.variant`.
NAMES = {
    "dataset": "Data", "model": "Model", "tuning": "Tuning", "objective": "Objective", "negatives": "K",
    "dynamic": "DynamicPO", "clusters": "Clusters", "beta": "β", "margin": "γ", "learning_rate": "Learning rate",
    "steps": "Steps", "sft_epochs": "SFT epochs", "sft_seed": "SFT seed", "dataset_seed": "Data seed",
    "rank": "LoRA rank", "batch_size": "Batch", "accumulation": "Micro-batches", "template": "Prompt",
    "precision": "Precision",
}  # fmt: skip
SWITCHES = ("dynamic", "select", "adjust_beta")
LOSSES = ("train_loss", "pair_loss")  # written as averages are
HELP = {
    "objective": WORDS["objective"], "negatives": WORDS["K"], "dynamic": WORDS["DynamicPO"], "beta": WORDS["β"],
    "margin": WORDS["γ"], "clusters": WORDS["clusters"], "learning_rate": WORDS["learning rate"],
    "steps": WORDS["steps"], "sft_epochs": WORDS["SFT"], "seeds": WORDS["seed"], "difference": WORDS["interval"],
    "train_loss": WORDS["training loss"], "pair_loss": WORDS["pair_loss"], "hr@1": WORDS["HR@1"],
    "ndcg@5": WORDS["NDCG@5"], "mrr": WORDS["MRR"], "reward_win_rate": WORDS["win rate"],
    "sft_hr@1": "HR@1 of the SFT model that the runs of this line start from.",
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------ what there is


def readable(dataset: str) -> Iterator[str]:
    """The readable recorded grids on a dataset; for others a warning says what is wrong."""
    names = [name for world, grids in recorded.GRIDS.items() if world[0] == dataset for name in grids]
    for name in (names[0], *filter(recorded.is_recorded, names[1:])):
        try:
            recorded.grid(name)
            yield name
        except ValueError as error:
            st.warning(recorded.fault(error))


@st.cache_resource(show_spinner=False, max_entries=20)
def choices(names: Sequence[str]) -> dict[str, Choice]:
    """Every line of these grids, by its name: those with all seeds first, then the single seeds."""
    found: dict[str, Choice] = {}
    single: dict[str, Choice] = {}
    usual: dict[str, dict[str, Any]] = {}  # by model, the settings that its first grid has
    for name in names:
        grid = recorded.grid(name)
        groups = grid.table.groupby(CELL, sort=False, dropna=False)["seed"].agg(list).reset_index()
        cells = [{str(column): value for column, value in cell.items()} for cell in groups.to_dict("records")]
        seeds = [cell.pop("seed") for cell in cells]
        for cell in cells:
            if cell["objective"] != "sft":
                usual.setdefault(cell["model"], cell)
        for baseline in grid.baselines:
            if baseline == "sft" or baseline.startswith("sft-"):
                start = {column: cells[0][column] for column in ("model", "sft_epochs")}
                if baseline != "sft":
                    start["sft_epochs"] = float(baseline.removeprefix("sft-"))
                found.setdefault(described(start, usual), (name, baseline, start))
        for cell, trained in zip(cells, seeds, strict=True):
            label = described(cell, usual)
            if label not in found and len(set(trained)) == len(trained):
                found[label] = (name, None, cell)
                single |= {f"{label}, seed {seed}": (name, None, cell | {"seed": seed}) for seed in trained}
    return found | single


def described(cell: Mapping[str, Any], usual: Mapping[str, Mapping[str, Any]]) -> str:
    """Recorded settings in a few words, with those that are unusual for the model.

    cell: of CELL; for an SFT model only its model and epochs.
    """
    standard = usual.get(cell["model"], cell)
    apart = [
        f"{label} = {cell[name]:g}"
        for name, label in UNUSUAL.items()
        if cell.get(name) != standard[name] and pd.notna(cell.get(name))
    ]
    if "objective" not in cell:
        parts = apart or ["SFT"]
    elif cell["objective"] == "sft":
        parts = ["more SFT", *apart]
    else:
        part = comparison.variant(cell)
        parts = [OBJECTIVE_LABELS[cell["objective"]], *([part] * (part != "plain"))]
        parts += [f"K = {cell['negatives']}", *apart]
    begin = "" if cell["model"] == next(iter(usual), cell["model"]) else f"{recorded.MODELS[cell['model']]}: "
    return begin + ", ".join(parts)


def opening(options: Sequence[str]) -> list[str]:
    """The lines that the page opens with: plain DMPO at the smallest and the largest K, DynamicPO there, and SFT."""
    sizes = sorted(int(found[1]) for label in options if (found := re.fullmatch(r"DMPO, K = (\d+)", label)))
    if not sizes:
        return list(options[:2])
    wanted = [f"DMPO, K = {sizes[0]}", f"DMPO, K = {sizes[-1]}", f"DMPO, DynamicPO, K = {sizes[-1]}", "SFT"]
    return [label for label in dict.fromkeys(wanted) if label in options]


def own_jobs(mine: str) -> dict[str, jobs.Job]:
    """The viewer's finished runs and those of the link, by token; a message says what is wrong with others."""
    found = {job.token: job for job in jobs.of_viewer(mine, "prefer") if job.state == "done"}
    for token in linked():
        job = jobs.find(token)
        if job is None or job.kind != "prefer":
            st.info("A run of this link is not on this server (any more).", icon=":material/link_off:")
        elif job.state != "done":
            st.info(f"{plain(job.name)} has not finished: it can be compared once it has.", icon=":material/timer:")
        else:
            found[token] = job
    return found


def linked() -> list[str]:
    return list(dict.fromkeys(st.query_params.get_all("run")))[:MOST]


def link_runs() -> None:
    """Put the chosen runs' tokens into the link, so that others can open it."""
    if st.session_state["own"]:
        st.query_params["run"] = st.session_state["own"]
    elif "run" in st.query_params:
        del st.query_params["run"]


def upload_name(dataset: str) -> str | None:
    """The file name of uploaded data, as its viewer named it; None for minipo's own data."""
    if not dataset.startswith(jobs.OWN):
        return None
    data = jobs.find(dataset.removeprefix(jobs.OWN))
    if data is None:
        return "./your-file.csv"
    name = "".join(letter for letter in data.name if letter.isprintable() and letter not in "/\\")
    suffix = data.settings.get("suffix", "")
    return f"./{name}" if name.lower().endswith(suffix) else f"./{name}{suffix}"


# -------------------------------------------------------------------------------------------------------- what is read


@st.cache_resource(show_spinner=False, max_entries=200)
def recorded_line(label: str, dataset: str, name: str, baseline: str | None, query: Mapping[str, Any]) -> Line:
    if baseline is not None:
        return comparison.of_baseline(label, recorded.grid(name), baseline, **query)
    return comparison.of_recorded(label, recorded.grid(name), **query)


@st.cache_resource(show_spinner=False, max_entries=100)
def live_line(name: str, folder: Path, dataset: str | None, changed: int) -> Line:
    return comparison.of_run(name, Run(folder), dataset)


@st.cache_data(show_spinner=False, max_entries=1000)
def difference(left: str, right: str, metric: str, _left: Line, _right: Line) -> Difference | str:
    """A difference, or why there is none. left, right: the lines' keys."""
    try:
        return comparison.paired(_left, _right, metric)
    except ValueError as error:
        return str(error)


def chosen_lines(
    dataset: str,
    picked: Sequence[str],
    known: Mapping[str, Choice],
    own: Mapping[str, str],
    found: Mapping[str, jobs.Job],
) -> dict[str, Line]:
    """The chosen lines by their keys; a warning names those that cannot be read."""
    lines = {}
    for label in picked:
        try:
            lines[f"recorded {dataset} {label}"] = recorded_line(label, dataset, *known[label])
        except (ValueError, KeyError):
            st.warning(f"The recorded runs {plain(label)} cannot be read: data/recorded or data/sft is damaged here.")
    for token, name in own.items():
        run = found[token].run
        try:
            changed = (run / "summary.json").stat().st_mtime_ns
            data = upload_name(str(found[token].settings.get("dataset", "")))
            lines[f"live {token} {changed} {name}"] = live_line(name, run, data, changed)
        except (OSError, ValueError, KeyError):
            st.warning(f"The run {plain(name)} cannot be read: its files are missing or damaged; train it again.")
    return lines


# ------------------------------------------------------------------------------------------------------- what is shown


def said(name: str, value: Any) -> str:
    """A setting's value as text."""
    if pd.isna(value):
        return "–"
    words = {"dataset": recorded.DATASETS, "model": recorded.MODELS}.get(name, {})
    words = words or ({**OBJECTIVE_LABELS, "sft": "SFT"} if name == "objective" else {})
    return words.get(value, value.removeprefix("./")) if isinstance(value, str) else f"{value:g}"


def part(row: Any) -> str:
    """Which parts of DynamicPO are on in a row of the table."""
    if pd.isna(row["dynamic"]):
        return "–"
    return {"plain": "off", "DynamicPO": "on"}.get(name := comparison.variant(row), name)


def shown(table: pd.DataFrame, metric: str) -> tuple[Any, dict[str, Any], str]:
    """The displayed table, its columns' configuration, and the settings that all lines share, in words."""
    differing, same = comparison.apart(table)
    switched = any(name in differing for name in SWITCHES)
    columns: list[Any] = [name for name in NAMES if name in differing or (name == "dynamic" and switched)]
    look = pd.DataFrame({"name": table["name"]})
    look["difference"] = [
        in_points(Interval(*interval)) if pd.notna(interval[0]) else over
        for *interval, over in table[["difference", "low", "high", "paired_over"]].itertuples(index=False)
    ]
    for name in columns:
        values = table.apply(part, axis=1) if name == "dynamic" else table[name].map(partial(said, name))
        look[name] = values.astype(str)
    measures = [*METRICS, "sft_hr@1", *LOSSES]
    look["seeds"] = table["seeds"].replace("", "–")
    look[measures] = table[measures]
    look["paired_over"] = table["paired_over"].where(table["difference"].notna(), "–")
    first = look[look["name"] == table["baseline"].iloc[0]]
    as_level: dict[Any, Any] = {name: partial(level, metric="mrr" if name in LOSSES else name) for name in measures}
    styled = look.style.format(as_level, na_rep="–")
    styled = styled.apply(
        lambda cells: [HIGHLIGHT if cell != first[cells.name].iloc[0] else "" for cell in cells], subset=columns
    )
    titles = {
        **NAMES, **METRICS, "name": "Run", "difference": f"Δ {METRICS[metric]}, points", "seeds": "Seeds",
        "sft_hr@1": "SFT HR@1", **{name: name for name in LOSSES}, "paired_over": "Paired over",
    }  # fmt: skip
    config: dict[str, Any] = {
        name: st.column_config.Column(titles[name], help=HELP.get(name)) for name in map(str, look)
    }
    config["name"] = st.column_config.TextColumn("Run", pinned=True, width=175)
    alike = {NAMES[name]: plain(said(name, value)) for name, value in same.items() if name in NAMES}
    if switched:
        alike.pop("DynamicPO", None)
    elif "DynamicPO" in alike:
        alike["DynamicPO"] = part(table.dropna(subset="dynamic").iloc[0])
    return styled, config, ", ".join(f"{name} {value}" for name, value in alike.items())


def button(label: str, data: Callable[[], Any], file: str, help: str) -> None:
    st.download_button(label, data, file, key=file, help=help, on_click="ignore", icon=":material/download:")


@st.fragment
def compare(mine: str) -> None:
    state = st.session_state
    first, second, third = st.columns([1.25, 3.6, 1.9])
    datasets = {recorded.DATASETS[dataset]: dataset for dataset, _ in recorded.worlds()}
    help = "The data of the recorded runs to choose from. Runs on other data have other test users, so only their "
    help += "numbers are shown side by side."
    with first:
        data = pick("Recorded on", datasets, "data", help, on_change=state.pop, args=("runs", None))
    dataset = datasets[data]
    known = choices(tuple(readable(dataset)))
    picked = second.multiselect(
        "Recorded runs", list(known), opening(list(known)), key="runs", bind="query-params", max_selections=MOST,
        filter_mode="contains", select_all=False, wrap=True, placeholder="Type an objective, K or a seed",
        help="Runs of minipo's own records: each with all its seeds or, where the name says so, one of them.",
    )  # fmt: skip
    found = own_jobs(mine)
    names = distinct({token: job.name + " (live)" * (job.name in known) for token, job in found.items()})
    if "own" not in state:
        state["own"] = [token for token in linked() if token in found]
    state["own"] = [token for token in state["own"] if token in found]
    own = third.multiselect(
        "Your runs", list(found), key="own", format_func=names.__getitem__, on_change=link_runs, max_selections=MOST,
        filter_mode="contains", select_all=False, wrap=True, disabled=not found,
        placeholder="Choose" if found else "none finished yet",
        help="Runs that you have trained here and that have finished, and those of the link that you opened.",
    )  # fmt: skip
    lines = chosen_lines(dataset, picked, known, {token: names[token] for token in own}, found)
    by_name = {line.name: (key, line) for key, line in lines.items()}
    fourth, fifth = st.columns([1.25, 2.2], vertical_alignment="bottom")
    if state.get("baseline") not in by_name:
        state.pop("baseline", None)
    with fourth:
        baseline = pick("Baseline", by_name, "baseline", "The line that every other one is compared with.")
    measures = {label: name for name, label in METRICS.items()}
    help = " ".join(f"{label}: {HELP[name]}" for name, label in METRICS.items() if name in HELP)
    with fifth:
        measure = choose("Difference in", measures, "metric", help, METRICS["hr@1"], wrap=True)
    if not by_name:
        st.info("Choose the runs to compare.")
        return
    metric = measures[measure]
    key, base = by_name[baseline]
    differences = {
        line.name: difference(other, key, metric, line, base) for other, line in lines.items() if other != key
    }
    figure_of([*lines.values()], base, differences, metric)
    table = comparison.table([*lines.values()], {**differences, baseline: "baseline"}, baseline, metric)
    styled, config, alike = shown(table, metric)
    st.caption(f"The same in all: {alike}. Highlighted: settings that are not the baseline's.")
    read = [label for label in picked if f"recorded {dataset} {label}" in lines]
    older = {comparison.older_data(recorded.grid(known[label][0])) for label in read}
    for sentence in sorted(older - {""}):
        st.caption(sentence)
    with st.container(key="compared"):
        st.dataframe(styled, hide_index=True, column_config=config, placeholder="–", alt="The chosen runs.")
    repeated = [(line.name, line.settings, line.seeds) for line in lines.values()]
    parquet = partial(table.to_parquet, index=False)
    with st.container(horizontal=True, key="downloads"):
        button("CSV", partial(comparison.csv, table), "comparison.csv", "The table's raw numbers, settings as columns.")
        button("Parquet", parquet, "comparison.parquet", "The same table for pandas and the like.")
        button("Commands", partial(repeat.script, repeated), "comparison.sh", "A shell script that repeats the runs.")
        button("Notebook", partial(repeat.notebook, repeated), "comparison.ipynb", "A notebook that repeats the runs.")
    again(repeated)


def figure_of(lines: Sequence[Line], base: Line, differences: Mapping[str, Difference | str], metric: str) -> None:
    """The differences' figure and its description."""
    intervals = {name: found.interval for name, found in differences.items() if isinstance(found, Difference)}
    if not intervals:
        reasons = sorted({str(found) for found in differences.values()})
        st.info(f"Nothing to compare with {plain(base.name)}: {'; '.join(reasons) or 'choose a second line'}.")
        return
    mean = sum(values.mean() for values in base.outcomes(metric).values()) / len(base.outcomes(metric))
    escaped = {plain(name): interval for name, interval in intervals.items()}
    st.markdown(compared_sentence(escaped, METRICS[metric], plain(base.name), level(mean, metric)))
    colours = {line.name: colour_of(line.settings) for line in lines}
    figure = compared(intervals, METRICS[metric], base.name, colours)
    draw(figure, "differences", f"Each line's difference to {base.name} in {METRICS[metric]}, with its interval.")
    users = len(next(iter(base.ranks.values())))
    unpaired = [plain(name) for name, found in differences.items() if "no seed" in getattr(found, "paired_over", "")]
    note = f"95 % intervals, paired over {users:,} test users and the seeds that both lines have; "
    note += "grey: one point to either side of zero."
    if unpaired:
        note += f" Paired only over users, because no seed is on both sides: {', '.join(unpaired)}."
    st.caption(note)


def again(repeated: Sequence[tuple[str, Mapping[str, Any], Sequence[int]]]) -> None:
    """Commands or cells that repeat each line's runs."""
    title, choice = st.columns([1.25, 2.2], vertical_alignment="bottom")
    title.subheader("Repeat these runs", anchor="repeat")
    help = "A command for a shell, or a cell for a notebook; either trains the runs again, with minipo installed."
    with choice:
        way = choose("Repeat as", ["command", "notebook cell"], "repeat", help, label_visibility="collapsed")
    written, language = (repeat.command, "bash") if way == "command" else (repeat.cell, "python")
    for name, settings, seeds in repeated:
        st.caption(plain(name))
        st.code(written(settings, seeds), language, wrap_lines=True)
    if any(str(settings["dataset"]).startswith("./") for _, settings, _ in repeated):
        st.caption("Uploaded data: run it in the folder of your file.")


head("Compare: runs side by side", "Chosen runs in one table, and how far each is from one of them.")
compare(viewer())
check_link("compare", KEYS)
