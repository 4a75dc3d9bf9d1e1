"""Recorded grids made up for the app's tests: the format is real, the numbers are not and never leave the tests."""

import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import streamlit as st
from streamlit.components.v2 import manifest_scanner
from streamlit.runtime.context import ContextProxy
from streamlit.testing.v1 import AppTest, app_test

from minipo.experiments import estimates, fetch, records
from minipo.experiments.estimates import Speed

MAIN = Path(__file__).parents[2] / "app" / "main.py"
sys.path.insert(0, str(MAIN.parent))  # as Streamlit does it

import worker  # noqa: E402  # isort: skip

worker.IMPORTED = ["experiments", "intake"]  # not torch: most jobs here train nothing
worker.prepare()
VIEWER = "viewer-of-these-tests"
USERS, SEEDS, NEGATIVES = 300, range(5), (1, 3, 5, 10, 15, 19)
FINGERPRINTS = {"catalog": "298607e3f9d232e9", "ml-100k": "2a53be877b122b87"}  # of the recorded grids
SWITCHES = [("off", "off", "off"), ("on", "on", "on")]
PARTS = [("on", "off"), ("off", "on"), ("random", "off"), ("hardest", "off")]


def _write(
    folder: Path,
    cells: list[tuple[str, int, str, str, str]],
    world: tuple[str, str] = ("catalog", "pocket-gpt2"),
    seeds: Iterable[int] = SEEDS,
    seconds: float = 12.0,
    missing: int | None = None,
) -> None:
    """One run a cell and seed: DMPO's HR@1 falls with K, DynamicPO's rises, the others' stays."""
    rows, ranks = [], []
    for (objective, negatives, dynamic, select, adjust), seed in product(cells, seeds):
        slope = 0.004 if select != "off" else -0.004 if objective == "dmpo" else 0.0
        hits = 0.66 + slope * (negatives - 1)
        generator = np.random.default_rng([seed, 7])
        luck = generator.random(USERS) + generator.normal(scale=0.004)
        rank = np.where(luck < hits, 0, 1 + generator.integers(0, 6, USERS)).astype(np.uint8)
        loss = 0.1 + 0.12 / max(1, negatives) + 0.004 * seed
        rows.append(
            {
                "dataset": world[0], "model": world[1], "tuning": "full", "objective": objective,
                "negatives": negatives, "dynamic": dynamic, "select": select, "adjust_beta": adjust, "clusters": 3,
                "beta": 1.0, "margin": 6.0, "learning_rate": 5e-4, "seed": seed, "steps": 300, "sft_epochs": 20,
                "train_loss": loss, "pair_loss": 0.24 + 0.001 * negatives, "val_hr@1": hits, "sft_hr@1": 0.651,
                "hr@1": float((rank == 0).mean()), "hr@5": 0.9, "ndcg@5": 0.8, "mrr": 0.75, "reward_win_rate": 0.6,
                "boundary_share": 0.1, "seconds": seconds,
            }
        )  # fmt: skip
        ranks.append(rank)
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(folder / "table.parquet")
    pd.DataFrame({"rank": ranks}).to_parquet(folder / "ranks.parquet")
    curves = pd.DataFrame(
        {"run": [0], "kind": ["metrics"], "step": [10], "loss": [0.5], "pair_loss": [0.5], "hr@1": [0.6]}
    )
    curves.to_parquet(folder / "curves.parquet")
    levels = {"sft": 0.651, "markov": 0.5, "popularity": 0.15, "random": 0.05}
    levels |= {"oracle": 0.79} if world[0] == "catalog" else {}  # known in an invented world alone
    users = np.arange(USERS) / USERS
    baselines = {name: np.where(users < level, 0, 1).astype(np.uint8) for name, level in levels.items()}
    pd.DataFrame(baselines).to_parquet(folder / "baselines.parquet")
    provenance = {
        "dataset_fingerprint": FINGERPRINTS[world[0]], "seeds": list(seeds),
        "versions": {"machine": "Linux x86_64, 2 cores"}, "missing": missing,
    }  # fmt: skip
    (folder / "provenance.json").write_text(json.dumps(provenance))


def _probe(path: Path, users: int = 3) -> None:
    """Users with one mistake each, candidate 7, at the last of two steps."""
    generator = np.random.default_rng(0)
    tables = []
    for step, user in product((0, 300), range(users)):
        reference = -8 - 2 * generator.random(20)
        policy = reference - np.r_[0.0, 1 + 4 * generator.random(19)] * (step > 0)
        reference[[0, 7]], policy[[0, 7]] = -5, (-6.0, -5.2)
        items = ["Real Sparrows"] + [f"Rejected {number}" for number in range(1, 20)]
        columns = {"step": step, "user": 900 + user, "candidate": range(20), "item": items}
        tables.append(pd.DataFrame({**columns, "reference": reference, "policy": policy}))
    path.parent.mkdir()
    pd.concat(tables).to_parquet(path)


def copied(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """`write`, which fills a folder, but done once: a folder gets a copy of what it wrote then."""

    @functools.cache
    def written() -> tempfile.TemporaryDirectory[str]:
        folder = tempfile.TemporaryDirectory()
        write(Path(folder.name))
        return folder

    return lambda root: shutil.copytree(written().name, root, dirs_exist_ok=True) and None


@copied
def write_recorded(root: Path) -> None:
    """The grids that the page reads, made up, under `root`."""
    objectives = [
        (objective, negatives, *switch)
        for objective in ("dpo", "dmpo", "sdpo", "mppo")
        for negatives in NEGATIVES
        for switch in SWITCHES
    ]
    _write(root / "objectives", [*objectives, ("sft", 0, "off", "off", "off")])
    _probe(root / "objectives" / "probes" / "110.parquet")
    _write(root / "parts", [("dmpo", negatives, "on", *part) for negatives in (5, 19) for part in PARTS])


@copied
def write_pushed(root: Path) -> None:
    """The same, with what `_push` adds to the grid of objectives."""
    write_recorded(root)
    _push(root / "objectives")


@copied
def write_real(root: Path) -> None:
    """The same for MovieLens-100K, with a pocket model and with a language model, whose last run is still to come."""
    objectives = [
        (objective, negatives, *switch)
        for objective in ("dpo", "dmpo", "sdpo", "mppo")
        for negatives in (1, 5, 15, 19)
        for switch in SWITCHES
    ]
    _write(root / "ml-100k-objectives", objectives, ("ml-100k", "pocket-gpt2"), range(3))
    parts = [("dmpo", 19, "on", *part) for part in PARTS if part[0] != "hardest"]
    _write(root / "ml-100k-parts", [*parts, ("sft", 0, "off", "off", "off")], ("ml-100k", "pocket-gpt2"), range(3))
    language = [("dmpo", negatives, *switch) for negatives in (1, 5, 15) for switch in SWITCHES]
    _write(root / "ml-100k-smollm2", language, ("ml-100k", "smollm2-135m"), range(2), 1800.0, missing=1)


def place_fetched(home: Path, *names: str) -> None:
    """Folders of `names` in minipo's folder as if they had been fetched, with nothing in them."""
    for name in names:
        (home / "fetched" / name).mkdir(parents=True)
        receipt = {"origin": fetch.SOURCES[name].origin, "files": {}}
        (home / "fetched" / name / fetch.RECEIPT).write_text(json.dumps(receipt))


def _forget() -> None:
    st.cache_data.clear()
    st.cache_resource.clear()


@pytest.fixture(autouse=True)
def no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages in these tests hand jobs in, and nothing takes them out; all of it in a folder of the test."""
    import jobs

    monkeypatch.setattr(jobs, "start_worker", lambda: None)
    monkeypatch.setenv("MINIPO_HOME", str(tmp_path / "home"))


@pytest.fixture(autouse=True, scope="session")
def scanned_once() -> Iterator[None]:
    """AppTest looks through every installed package for components whenever an app is made, and compiles the pages
    whenever it runs: once is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_test, "ScriptCache", functools.cache(app_test.ScriptCache))
        scan = functools.cache(manifest_scanner.scan_component_manifests)
        patch.setattr(manifest_scanner, "scan_component_manifests", scan)
        yield


@pytest.fixture(autouse=True)
def seen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser that has been here before; AppTest's own has no cookies at all."""
    import shell

    monkeypatch.setattr(ContextProxy, "cookies", property(lambda _: {shell.COOKIE: VIEWER}))


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose speed is known."""
    known = {1: Speed(step=0.005, train=0.3, learn=0.3, score=0.15, float32=0.01, bfloat16=0.005, row=2e-4)}
    monkeypatch.setattr(estimates, "speeds", lambda measure=True: known)


def opened(page: str = "why", **link: str | list[str]) -> AppTest:
    """A page of the app, as the link with these parameters opens it."""
    app = AppTest.from_file(str(MAIN), default_timeout=60)
    if page != "why":  # the first page would take the parameters for its own
        app.switch_page(f"views/{page}.py")
    for name, value in link.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


def text(app: AppTest) -> str:
    """What the page says, figures aside."""
    kinds = ("markdown", "caption", "info", "warning", "error", "success", "html")
    return "\n".join(str(element.value) for kind in kinds for element in app.get(kind) if hasattr(element, "value"))


def charts(app: AppTest) -> dict[str, Any]:
    """The page's Plotly figures, by their key."""
    return {chart.key: json.loads(chart.proto.spec) for chart in app.get("plotly_chart")}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the grids, to which the page looks; damage it before the page runs."""
    write_recorded(tmp_path / "recorded")
    monkeypatch.setattr(records, "RECORDED", tmp_path / "recorded")
    _forget()
    yield tmp_path / "recorded"
    _forget()


def _push(folder: Path) -> None:
    """Give a made-up grid what its runs logged of their pushes, a line every 10 of 300 steps, and log-probs of a
    validation user for DMPO's and S-DPO's runs at K = 1 and 19, seed 0. A quarter of the negatives are boundary, and
    pushes halve over training; S-DPO's on the boundary stay."""
    table = pd.read_parquet(folder / "table.parquet")
    lines = []
    for number, run in table[table["objective"] != "sft"].iterrows():
        steps = np.arange(10, 301, 10)
        push = (0.5 - 0.25 * steps / 300) / run["negatives"] * (1 + 0.01 * run["seed"])
        boundary = np.full(30, 0.5 / run["negatives"]) if run["objective"] == "sdpo" else push
        easy = np.full(30, np.nan) if run["negatives"] == 1 else push * (run["dynamic"] == "off")
        columns = {
            "run": number,
            "kind": "metrics",
            "step": steps,
            "loss": push,
            "pair_loss": push,
            "push_boundary": boundary,
        }
        share = 1.0 if run["negatives"] == 1 else 0.25
        lines.append(pd.DataFrame({**columns, "push_discriminative": easy, "boundary_share": share}))
        looks = {"run": number, "kind": "evaluation", "step": [0, 300], "pair_loss": [0.69, 0.3], "hr@1": run["hr@1"]}
        lines.append(pd.DataFrame(looks))
        if run["objective"] in ("dmpo", "sdpo") and run["negatives"] in (1, 19) and run["seed"] == 0:
            (folder / "probes").mkdir(exist_ok=True)
            reference = -8 - 2 * np.random.default_rng(0).random(20)
            reference[0] = -8.5  # some negatives are above it and some below
            later = reference - np.r_[0.0, np.linspace(0.5, 4, 19)]
            probes = [
                pd.DataFrame({
                    "step": step, "user": 900, "candidate": range(20), "item": [f"Item {place}" for place in range(20)],
                    "reference": reference, "policy": policy,
                })
                for step, policy in ((0, reference), (300, later))
            ]  # fmt: skip
            pd.concat(probes).to_parquet(folder / "probes" / f"{number}.parquet")
    pd.concat(lines).to_parquet(folder / "curves.parquet")
