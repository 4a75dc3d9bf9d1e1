"""The recorded runs, with names, read once for all viewers."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import streamlit as st

from minipo.course.figures import why
from minipo.course.figures.style import OBJECTIVE_LABELS
from minipo.course.figures.why import Mistake
from minipo.experiments import fetch, files, records
from minipo.experiments.records import Recorded, check_same_data, load_recorded

OBJECTIVES = {OBJECTIVE_LABELS[name]: name for name in ("dpo", "dmpo", "sdpo", "mppo")}
SELECT = {"on": "the boundary", "off": "all of them", "random": "as many, at random", "hardest": "as many, the hardest"}
DATASETS = {
    "catalog": "catalogue", "ml-100k": "MovieLens-100K", "lastfm": "LastFM", "goodreads": "Goodreads", "steam": "Steam",
}  # fmt: skip
MODELS = {
    "pocket-gpt2": "pocket-gpt2", "pocket-qwen2": "pocket-qwen2", "smollm2-135m": "SmolLM2-135M", "gpt2": "GPT-2",
    "qwen2.5-0.5b": "Qwen2.5-0.5B",
}  # fmt: skip
# The name of a value in controls and links.
LABELS = {**OBJECTIVE_LABELS, **DATASETS, **MODELS, **SELECT, "reward_win_rate": "win rate"}
World = tuple[str, str]  # dataset, model
# The grids of a world: of objectives and, if there is one, of DynamicPO's parts.
WORLDS: dict[World, tuple[str, ...]] = {
    ("catalog", "pocket-gpt2"): ("objectives", "parts"),
    ("ml-100k", "pocket-gpt2"): ("ml-100k-objectives", "ml-100k-parts"),
    ("ml-100k", "smollm2-135m"): ("ml-100k-smollm2",),
}
# The grid of a world with other SFT lengths and learning rates, and the one with other β and γ.
SETTINGS: dict[World, str] = {
    ("catalog", "pocket-gpt2"): "settings",
    ("ml-100k", "pocket-gpt2"): "ml-100k-settings",
    ("ml-100k", "smollm2-135m"): "ml-100k-smollm2-settings",
}
STRENGTHS: dict[World, str] = {("catalog", "pocket-gpt2"): "strengths"}
GRIDS = {
    world: [*WORLDS[world], *(other[world] for other in (SETTINGS, STRENGTHS) if world in other)] for world in WORLDS
}
# Each line of *Collapse*, as the settings of its recorded runs.
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
def grid(name: str) -> Recorded:
    """A recorded grid; ValueError in one sentence if it is missing, damaged, or on other data than the first grid of
    its world, with which pages compare it. An error is not cached."""
    found = load_recorded(name)
    for first, *others in WORLDS.values():
        if name in others:
            try:
                compared = grid(first)
            except ValueError:  # reported where that one is read
                continue
            check_same_data(compared, found)
    return found


def is_recorded(name: str) -> bool:
    """Whether the grid exists; its JSON is written last."""
    return (records.RECORDED / name / "provenance.json").is_file()


def worlds() -> list[World]:
    """The recorded worlds; always with the catalogue, so that its damage is reported."""
    first, *others = WORLDS
    return [first, *(world for world in others if is_recorded(WORLDS[world][0]))]


def named(world: World) -> str:
    return f"{DATASETS[world[0]]} × {MODELS[world[1]]}"


def is_here(name: str) -> bool:
    """Whether a dataset or a model can be used at once, as minipo's own always can."""
    return name not in fetch.SOURCES or fetch.present(name) is not None


@st.cache_data(show_spinner=False)
def difference(
    left: dict[str, Any], left_grid: str, right: dict[str, Any], right_grid: str, metric: str = "hr@1"
) -> tuple[float, float, float]:
    """`metric` of the recorded runs `left` minus `right`: mean and 95 % interval, paired over users and seeds."""
    interval = records.difference(grid(left_grid).outcomes(metric, **left), grid(right_grid).outcomes(metric, **right))
    return interval.mean, interval.low, interval.high


def labelled(run: Any) -> str:
    """A recorded run in words: a row of a grid's table."""
    label = OBJECTIVE_LABELS[run["objective"]]
    return f"{label}{', DynamicPO' * (run['dynamic'] == 'on')}, K = {run['negatives']}, seed {run['seed']}"


def part_of(run: Any) -> str:
    """The part or control of DynamicPO that a recorded run is of, after a comma; empty if it is of none."""
    parts = [part for part in PARTS if all(run[setting] == value for setting, value in LINES[part].items())]
    return "".join(f", {part}" for part in parts)


def with_probes() -> Iterator[tuple[str, int, dict[Any, Any]]]:
    """The recorded runs with saved log-probs of candidates: grid, row, and the row's content."""
    for name in ("objectives", "parts", "settings"):
        with suppress(ValueError, KeyError):  # an unreadable grid has no runs
            table = grid(name).table.to_dict("index")
            yield from [(name, row, table[row]) for row in grid(name).probes]


@st.cache_resource(show_spinner=False)
def mistakes() -> list[tuple[Mistake, str]]:
    """Every recorded user with a mistake, with the run's name: plain DMPO with many negatives first."""
    found = []
    for name, row, run in sorted(
        with_probes(), key=lambda each: (each[2]["dynamic"], each[2]["objective"] != "dmpo", -each[2]["negatives"])
    ):
        with suppress(ValueError, KeyError):  # an unreadable probe has no users
            found += [(mistake, labelled(run)) for mistake in why.mistakes(files.read_parquet(grid(name).probes[row]))]
    return found


@st.cache_resource(show_spinner=False)
def probed() -> dict[str, tuple[str, int]]:
    """The recorded runs with saved log-probs of candidates, by a label for links: grid and row."""
    found = {}
    for name, row, run in with_probes():
        label = labelled(run) + part_of(run)
        if name == "settings":
            label += f", SFT of {run['sft_epochs']:g} epochs, learning rate {run['learning_rate']:g}"
        found[label] = name, row
    return found


def fault(error: ValueError) -> str:
    """The message of an error in a record, without paths of this machine."""
    return str(error).replace(str(records.RECORDED), "data/recorded")
