"""What several rooms' tests share: a place of their own for what minipo keeps, a tiny dataset and an SFT run on it."""

import gc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from minipo.experiments.datasets import catalog
from minipo.experiments.datasets.loading import DATASETS
from minipo.experiments.datasets.splits import Splits
from minipo.experiments.runs import Run
from minipo.experiments.training import sft

TINY = {"train": 32, "validation": 16, "test": 16}  # users


@pytest.fixture(autouse=True, scope="module")
def _frozen():
    """Every training begins with a collection of garbage, which takes a second after some hundred tests' imports: what
    is there by now need not be looked through each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No test reads or fills the user's own cache."""
    folder = tmp_path / "home"
    monkeypatch.setenv("MINIPO_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_splits() -> Splits:
    return catalog.generate(0, **TINY)[1]


@pytest.fixture
def tiny(tiny_splits, monkeypatch) -> Splits:
    """A catalogue of 32, 16 and 16 users, which `load_dataset` knows as "tiny"."""
    monkeypatch.setitem(DATASETS, "tiny", lambda seed: tiny_splits)
    return tiny_splits


@pytest.fixture(scope="session")
def _trained(tiny_splits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "tiny", lambda seed: tiny_splits)
        patch.setenv("MINIPO_HOME", str(folder / "home"))
        run = sft(folder / "run", progress=False, dataset="tiny", steps=80, batch_size=32, learning_rate=3e-3)
    return run


@pytest.fixture
def tiny_sft(tiny, _trained) -> Run:
    """A finished SFT run on "tiny", long enough to answer with names. Read it, do not change it."""
    return _trained


@pytest.fixture
def plays(tmp_path) -> Path:
    """A CSV file of one's own: 20 users who took 8 of 30 items each."""
    random, path = np.random.default_rng(0), tmp_path / "plays.csv"
    rows = [
        (f"user {user}", f"Film{item} of{item % 7}", 1_700_000_000 + 60 * step)
        for user in range(20)
        for step, item in enumerate(random.permutation(30)[:8])
    ]
    pd.DataFrame(rows, columns=["user", "item", "timestamp"]).to_csv(path, index=False)
    return path
