"""The settings of a run as controls, for every page that has them; each control is part of the link."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

import jobs
import limits
import pandas as pd
import recorded
import streamlit as st
from shell import WORDS, pick

from minipo.course.figures import style
from minipo.course.figures.style import OBJECTIVE_LABELS
from minipo.experiments import estimates, fetch, files
from minipo.experiments.configuration import (
    OWN,
    PreferConfig,
    decided,
    make_config,
    purpose,
    recipe,
    start_config,
    type_of,
)
from minipo.experiments.datasets.loading import DATASETS, load_dataset
from minipo.experiments.runs import DATA, Run
from minipo.preference import OBJECTIVES

OPENING: dict[str, Any] = {
    "dataset": "catalog", "model": "pocket-gpt2", "objective": "dmpo", "negatives": 15, "dynamic": "on", "select": "on",
    "adjust_beta": "on", "seed": 0,
}  # fmt: skip
# The controls, in their order; with a prefix, the names of a link's parameters.
NAMES = (
    "dataset", "model", "objective", "negatives", "dynamic", "select", "adjust_beta", "beta", "margin",
    "learning_rate", "steps", "seed", *OWN,
)  # fmt: skip
# Settings that belong to one objective: label, and a number's minimum, maximum and step.
OF_OBJECTIVES: dict[str, tuple[str, tuple[float, float, float] | None]] = {
    "likelihood_of": ("Likelihood of", None),
    "target_margin": ("γ, target margin", (0.0, 10.0, 0.1)),
    "alpha": ("α, how β follows", (0.0, 10.0, 0.1)),
    "keep": ("Share of pairs", (0.05, 1.0, 0.05)),
    "momentum": ("Momentum", (0.0, 0.99, 0.05)),
}
LAB = "train_"  # prefix of Live lab's: other pages have an objective too, which must not change the form
WIDTH = 146  # of a control, in pixels: two fit a phone's line


def defaults(dataset: str, model: str) -> dict[str, Any]:
    """A run's settings on this data with this model: those of the recorded runs, or the library's if there are none.

    The run takes settings that are not in the form (tuning, batch, precision) from the library's recipe.
    """
    settings = vars(PreferConfig()) | recipe("prefer", dataset, model)
    with suppress(ValueError, LookupError):
        grid = recorded.grid(recorded.WORLDS[dataset, model][0])
        settings = settings | dict(grid.rows(objective="dmpo").iloc[0])
    names = ("beta", "margin", "learning_rate", "steps", "clusters", "sft_epochs")
    return {name: type(getattr(PreferConfig, name))(settings[name]) for name in names}


def refill(prefix: str, dataset: str | None = None) -> None:
    """Other data or another model: set the controls of the form `prefix` to their settings.

    dataset: if the page has chosen it; otherwise the form has a control for it.
    """
    state = st.session_state
    dataset = dataset or state[prefix + "dataset"]
    settings = defaults(dataset, state.get(prefix + "model", "pocket-gpt2"))
    state.update({prefix + name: value for name, value in settings.items() if name in NAMES})


def run_settings(
    prefix: str, opening: Mapping[str, Any] = OPENING, data: str | None = None, seed: bool = True
) -> dict[str, Any]:
    """Controls for a run's settings, and their values.

    prefix: of the controls' keys, which are the names of the link's parameters. opening: initial values; others come
    from `defaults`. data: the dataset, if the page has chosen it already; then only pocket models are offered. seed:
    whether to ask for one.
    """
    state = st.session_state
    opening = {**OPENING, **opening}
    pocket = [name for name in recorded.MODELS if name.startswith("pocket-")]
    models = pocket if data is not None else [name for name in recorded.MODELS if recorded.is_here(name)]
    away = [name for name in (*recorded.DATASETS, *recorded.MODELS) if not recorded.is_here(name)]

    def choose(name: str, label: str, options: list[str], shown: Any, help: str, **more: Any) -> Any:
        key = prefix + name
        if state.get(key) not in options:  # no longer offered
            state.pop(key, None)
        return pick(label, options, key, help, options.index(opening[name]), format_func=shown, width=WIDTH, **more)

    def number(name: str, label: str, low: float, high: float, step: float, help: str, **more: Any) -> Any:
        kind = type(getattr(PreferConfig, name))
        return st.number_input(
            label, kind(low), kind(high), kind(opening[name]), kind(step), key=prefix + name, help=help, width=WIDTH,
            bind="query-params", **more,
        )  # fmt: skip

    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key=f"{prefix}settings"):
        dataset = data or choose(
            "dataset", "Data", [name for name in recorded.DATASETS if recorded.is_here(name)],
            recorded.DATASETS.__getitem__, "The histories and items that the model learns from.",
            on_change=refill, args=(prefix,),
        )  # fmt: skip
        model = choose(
            "model", "Model", models, recorded.MODELS.__getitem__,
            "Pocket models are language models of 0.1 to 1 million parameters, trained here in seconds.",
            on_change=refill, args=(prefix, data),
        )  # fmt: skip
        opening = {**{name: getattr(PreferConfig, name) for name in OWN}, **defaults(dataset, model), **opening}
        settings = {
            "dataset": dataset,
            "model": model,
            "objective": (objective := choose(
                "objective", "Objective", list(OBJECTIVE_LABELS), OBJECTIVE_LABELS.__getitem__, WORDS["objective"]
            )),
            "negatives": st.slider(
                "K, negatives", 1, limits.NEGATIVES, opening["negatives"], key=prefix + "negatives", help=WORDS["K"],
                width=WIDTH, bind="query-params",
            ),
            "dynamic": choose(
                "dynamic", "DynamicPO", ["off", "on"], str, WORDS["DynamicPO"],
                disabled=OBJECTIVES[objective].selects,
            ),
            "steps": number("steps", "Steps", 10, limits.STEPS, 50, WORDS["steps"]),
        }  # fmt: skip
        if seed:
            settings["seed"] = number("seed", "Seed", 0, 10_000, 1, WORDS["seed"])
        if OBJECTIVES[objective].selects:
            settings["dynamic"] = "off"  # because it chooses its negatives itself
        off = settings["dynamic"] == "off"
        with st.popover("More settings", width=WIDTH):
            settings |= {
                "learning_rate": number(
                    "learning_rate", "Learning rate", 1e-5, 1e-2, 1e-4, WORDS["learning rate"], format="%.5f"
                ),
                "beta": number("beta", "β, strength", 0.01, 10.0, 0.1, WORDS["β"]),
                "select": choose(
                    "select", "Negatives that enter", list(recorded.SELECT), recorded.SELECT.__getitem__,
                    "DynamicPO's selection, or a control for it. " + WORDS["boundary"], disabled=off,
                ),
                "adjust_beta": choose(
                    "adjust_beta", "Dual-margin β", ["on", "off"], str,
                    "DynamicPO's own β for each negative, from two margins.", disabled=off,
                ),
                "margin": number("margin", "γ, margin of β", 0.0, 20.0, 1.0, WORDS["γ"], disabled=off),
            }  # fmt: skip
            for field in fields(PreferConfig):
                if OWN.get(field.name) == objective:
                    label, numbers = OF_OBJECTIVES[field.name]
                    if numbers:
                        settings[field.name] = number(field.name, label, *numbers, purpose(field))
                    else:
                        settings[field.name] = choose(field.name, label, list(type_of(field)[1]), str, purpose(field))
            if away and data is None:
                st.caption("Other data and models, which the administrator of this server can add:")
                st.caption("\n".join(f"- {fetch.missing(name)}" for name in away))
    return {**settings, "clusters": opening["clusters"], "sft_epochs": opening["sft_epochs"]}


def described(settings: Mapping[str, Any]) -> str:
    """A run's settings in a few words, for a name and a legend."""
    return f"{style.described(settings)}, seed {settings['seed']}"


def estimate(settings: Mapping[str, Any]) -> str:
    """How long a run with these settings takes on this machine, and whether SFT is trained first."""
    try:
        seconds = seconds_of(settings)
    except ValueError:  # its data are gone
        seconds = None
    if seconds is None:
        return UNKNOWN
    run, start = seconds
    said = f"{settings['steps']} steps take about {estimates.duration(run)} on this server, with nothing else running."
    return said + f" SFT, which comes first, takes about {estimates.duration(start)}." * (start > 0)


UNKNOWN = "How long it takes here is not known: the server measures its speed when it starts."


def seconds_of(settings: Mapping[str, Any], *further: Mapping[str, Any]) -> tuple[float, float] | None:
    """Seconds of a run with these settings on this machine, and of an SFT run that is trained first; None if the
    machine's speed is not known yet, or the model's size. Raises ValueError if its data are gone.

    further: settings of runs that share its start and its users; then the seconds are those of all, on one thread.
    """
    speeds = estimates.speeds(measure=False)
    if not speeds:
        return None
    runs = [make_config(PreferConfig, jobs.with_paths(each)) for each in (settings, *further)]
    data, speed = data_of(str(settings["dataset"])), speeds[1 if further else max(speeds)]
    found = [estimates.seconds(run, data, speed, reference=run is runs[0]) for run in runs]
    first = None if starts_at_once(settings) else start_config(runs[0])
    found.append(0.0 if first is None else estimates.seconds(first, data, speed))
    known = [each for each in found if each is not None]
    return (sum(known[:-1]), known[-1]) if len(known) == len(found) else None


@st.cache_resource(max_entries=50, show_spinner=False)
def data_of(dataset: str) -> estimates.Data:
    """A dataset as an estimate needs it; an upload's is not read again, but taken from its overview."""
    if not dataset.startswith(jobs.OWN):
        return estimates.Data.of(load_dataset(dataset))
    upload = jobs.find(dataset.removeprefix(jobs.OWN))
    if upload is None:
        raise ValueError("These data are no longer on this server.")
    content = files.read_json(upload.result, dict)
    histories = [tuple(line["history"]) for line in content["lines"]]
    names = [item for history in histories for item in history]
    words = sum(len(item.split()) for item in names) / len(names)  # of an item, and most of them its own
    return estimates.Data(
        **content["rows"], words=round(words * content["items"]), histories=tuple(histories), candidates=tuple(names)
    )


def starts_at_once(settings: Mapping[str, Any]) -> bool:
    """Whether the SFT run of a run with these settings has been trained."""
    with suppress(ValueError):  # its data are gone
        wanted = start_config(make_config(PreferConfig, jobs.with_paths(settings)))
        if wanted is None:
            return False
        for folder in (*DATA.glob("sft/*/summary.json"), *files.home().glob("runs/sft-*/summary.json")):
            with suppress(ValueError, OSError):  # damaged, or on other data
                run = Run(folder.parent)
                if run.config == decided(wanted, run.config) and recorded.is_here(wanted.dataset):
                    if wanted.dataset in DATASETS:  # an upload never changes
                        run.load_data()
                    return True
    return False


def neighbours(settings: Mapping[str, Any], fingerprint: str | None) -> pd.DataFrame:
    """Recorded runs of the same objective and parts on the same data, at the nearest K below and above."""
    names = ["objective", "dynamic", *(["select", "adjust_beta"] if settings["dynamic"] == "on" else [])]
    table = pd.DataFrame({"negatives": [], "hr@1": []})
    for grid in recorded.WORLDS.get((settings["dataset"], settings["model"]), ()):
        with suppress(ValueError):  # not recorded, or damaged
            if recorded.grid(grid).fingerprint == fingerprint:
                table = pd.concat([table, recorded.grid(grid).rows(**{name: settings[name] for name in names})])
    below, above = (table["negatives"] <= settings["negatives"]), (table["negatives"] >= settings["negatives"])
    near = {table.loc[below, "negatives"].max(), table.loc[above, "negatives"].min()}
    return table[table["negatives"].isin(near)].astype({"negatives": int})
