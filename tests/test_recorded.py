"""What data/ ships: SFT checkpoints that open, recorded grids that are whole and true, a README that repeats them."""

import importlib.util
from datetime import datetime
from itertools import product

import numpy as np
import pandas as pd
import pytest

from minipo.datasets import load_dataset
from minipo.evaluation import evaluate, ranking_metrics
from minipo.runs import DATA, PROBED_USERS, PreferConfig, Run, SFTConfig, list_runs, prefer, sft, sft_folder, sft_run
from minipo.sweeps import RECORDED, Recorded, load_recorded, row

_spec = importlib.util.spec_from_file_location("record", DATA / "record.py")
assert _spec is not None
assert _spec.loader is not None
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)

NEGATIVES = (1, 3, 5, 10, 15, 19)
SEEDS = {"settings": (0, 1, 2), "objectives": range(5), "parts": range(5)}
CELL = ["objective", "negatives", "dynamic", "select", "adjust_beta", "sft_epochs", "learning_rate", "seed"]
PLAIN, WHOLE = ("off", "off", "off"), ("on", "on", "on")
PARTS = [("on", "on", "off"), ("on", "off", "on"), ("on", "random", "off"), ("on", "hardest", "off")]

needs_recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason="data/recorded is not there: make record")
needs_sft = pytest.mark.skipif(not (DATA / "sft").is_dir(), reason="data/sft is not there: make record")


@pytest.fixture(scope="module", params=SEEDS)
def recorded(request) -> Recorded:
    return load_recorded(request.param)


@pytest.fixture(scope="module")
def chosen() -> dict[str, float]:
    return script.choose(load_recorded("settings"))


def hit_rate(ranks) -> float:
    return float((np.asarray(ranks) == 0).mean())


def markov() -> float:
    """Test HR@1 of the first-order Markov baseline."""
    splits = load_dataset()
    return hit_rate(script.ranks(script.baselines.markov_scores(splits.train, splits.test)))


# The grids


@needs_recorded
def test_provenance_says_how_to_repeat_it(recorded, chosen):
    name, made = recorded.folder.name, recorded.provenance
    assert made["command"] == f"python data/record.py {name}"
    assert made["seeds"] == list(SEEDS[name])
    assert datetime.fromisoformat(made["recorded"]).tzinfo is not None
    assert {"python", "minipo", "torch", "transformers", "peft", "numpy", "machine"} <= {*made["versions"]}
    assert all(made["versions"].values())
    assert int(made["commit"], 16) > 0
    assert "validation" in made["rule"]
    if name != "settings":
        assert made["chosen"] == chosen


@needs_recorded
def test_every_cell_is_there_once(recorded, chosen):
    name, epochs, rate = recorded.folder.name, chosen["sft_epochs"], chosen["learning_rate"]
    seeds = SEEDS[name]
    more = "sft", 0, *PLAIN
    if name == "settings":
        cells = [("dmpo", negatives, *dynamic) for negatives in (1, 19) for dynamic in (PLAIN, WHOLE)]
        regimes = list(product(script.SFT_EPOCHS, script.LEARNING_RATES))
        assert len(regimes) >= 9
        expected = [(*cell, *regime, seed) for cell, regime, seed in product([*cells, more], regimes, seeds)]
    elif name == "objectives":
        objectives = ("dpo", "dmpo", "sdpo", "mppo")
        cells = [(*cell, *dynamic) for *cell, dynamic in product(objectives, NEGATIVES, (PLAIN, WHOLE))]
        expected = [(*cell, epochs, rate, seed) for cell, seed in product(cells, seeds)]
        expected += [(*more, epochs, recorded.provenance["more_sft"]["learning_rate"], seed) for seed in seeds]
    else:
        cells = [("dmpo", negatives, *part) for negatives, part in product((5, 19), PARTS)]
        expected = [(*cell, epochs, rate, seed) for cell, seed in product(cells, seeds)]
    assert sorted(recorded.table[CELL].itertuples(index=False, name=None)) == sorted(expected)


@needs_recorded
def test_all_else_is_the_same_for_every_run(recorded):
    preferred = recorded.table[recorded.table.objective != "sft"]
    fixed = {"dataset": "catalog", "model": "pocket-gpt2", "tuning": "full", "clusters": 3, "beta": 1.0, "margin": 6.0}
    for name, value in (fixed | {"steps": 300}).items():
        assert (preferred[name] == value).all(), name
    more = recorded.table[recorded.table.objective == "sft"]
    assert (more.steps == script.more_sft_steps()).all()


@needs_recorded
def test_the_tables_metrics_are_those_of_the_ranks(recorded):
    assert recorded.ranks.shape == (len(recorded.table), len(load_dataset().test))
    assert recorded.ranks.min() >= 0
    assert recorded.ranks.max() <= 19
    for name, values in ranking_metrics(recorded.ranks).items():
        np.testing.assert_allclose(recorded.table[name], values.mean(axis=1), atol=1e-9)
    assert recorded.table["hr@1"].between(0.3, hit_rate(recorded.baselines["oracle"]) + 0.02).all()


@needs_recorded
def test_runs_start_from_the_sft_runs_that_are_their_baselines(recorded):
    preferred = recorded.table[recorded.table.objective != "sft"]
    for epochs, rows in preferred.groupby("sft_epochs"):
        name = f"sft-{epochs}" if recorded.folder.name == "settings" else "sft"
        np.testing.assert_allclose(rows["sft_hr@1"], hit_rate(recorded.baselines[name]), atol=1e-9)


@needs_recorded
def test_the_baselines_are_those_of_this_catalogue(recorded):
    splits = load_dataset()
    found = recorded.baselines
    scores = {
        "random": script.baselines.random_scores(splits.test),
        "popularity": script.baselines.popularity_scores(splits.train, splits.test),
        "markov": script.baselines.markov_scores(splits.train, splits.test),
        "oracle": script.catalog.oracle(script.catalog.world(), splits.test),
    }
    for name, values in scores.items():
        assert (found[name] == script.ranks(values)).mean() > 0.998, name  # another machine may round otherwise
    assert hit_rate(found["random"]) < hit_rate(found["popularity"]) < hit_rate(found["markov"])
    assert hit_rate(found["markov"]) < hit_rate(found["oracle"])


@needs_recorded
def test_the_curves_end_where_the_table_says(recorded):
    curves = recorded.curves
    assert set(curves.run) == set(recorded.table.index)
    metrics, evaluated = (curves[curves.kind == kind] for kind in ("metrics", "evaluation"))
    steps = metrics.run.map(recorded.table.steps)
    losses = metrics[metrics.step > 0.9 * steps].groupby("run").loss.mean()
    np.testing.assert_allclose(losses, recorded.table.train_loss, rtol=1e-9)
    preferred = recorded.table[recorded.table.objective != "sft"]
    last = evaluated.sort_values(["run", "step"]).groupby("run").last()
    assert last.index.tolist() == preferred.index.tolist()
    assert (last.step == preferred.steps).all()
    np.testing.assert_allclose(last.pair_loss, preferred.pair_loss, rtol=1e-9)
    np.testing.assert_allclose(last["hr@1"], preferred["val_hr@1"], rtol=1e-9)


@needs_recorded
def test_probes_of_a_few_runs_are_kept(recorded):
    assert recorded.probes
    users = [user.user for user in load_dataset().validation[:PROBED_USERS]]
    for number, path in recorded.probes.items():
        assert recorded.table.seed[number] == 0
        probe = pd.read_parquet(path)
        assert probe.columns.tolist() == ["step", "user", "candidate", "item", "reference", "policy"]
        evaluated = recorded.curves[(recorded.curves.run == number) & (recorded.curves.kind == "evaluation")]
        assert sorted(probe.step.unique()) == sorted(evaluated.step)
        for step, lines in probe.groupby("step"):
            assert lines.user.unique().tolist() == users, step
            assert len(lines) == 20 * len(users)
        before = probe[probe.step == 0]
        np.testing.assert_allclose(before.policy, before.reference, atol=1e-3)


@needs_recorded
def test_settings_are_chosen_by_plain_dmpo_at_one_negative_on_validation_users(chosen):
    settings = load_recorded("settings")
    rows = settings.table.query("objective == 'dmpo' and negatives == 1 and dynamic == 'off'")
    best = rows.groupby(["sft_epochs", "learning_rate"])["val_hr@1"].mean()
    assert best[chosen["sft_epochs"], chosen["learning_rate"]] == best.max()


@needs_recorded
def test_a_run_without_settings_is_the_recorded_one(chosen):
    config = PreferConfig()
    assert {"sft_epochs": config.sft_epochs, "learning_rate": config.learning_rate} == chosen


@needs_recorded
def test_recorded_grids_stay_small():
    assert sum(path.stat().st_size for path in RECORDED.rglob("*") if path.is_file()) < 10e6


@needs_recorded
def test_the_readmes_results_are_what_the_grids_say():
    _, mark, rest = (DATA.parent / "README.md").read_text(encoding="utf-8").partition(script.MARKS[0])
    results, end, _ = rest.partition(script.MARKS[1])
    assert mark
    assert end
    assert results.strip() == script.report().strip(), "run: python data/record.py report"


# The SFT checkpoints


@pytest.fixture(params=script.SHIPPED_EPOCHS)
def shipped(request) -> Run:
    return sft_folder(DATA / "sft" / f"catalog-pocket-gpt2-{request.param}", load_dataset())


@needs_sft
def test_shipped_checkpoints_are_all_there_and_small():
    names = [run.folder.name for run in list_runs(DATA / "sft")]
    assert sorted(names) == sorted(f"catalog-pocket-gpt2-{epochs}" for epochs in script.SHIPPED_EPOCHS)
    assert sum(path.stat().st_size for path in (DATA / "sft").rglob("*") if path.is_file()) < 2e6


@needs_sft
def test_a_shipped_checkpoint_is_a_finished_run_that_needs_no_training(shipped, home):
    epochs = int(shipped.folder.name.rsplit("-", 1)[1])
    assert shipped.config == SFTConfig(epochs=epochs)
    assert shipped.summary["dataset_fingerprint"] == load_dataset().fingerprint
    assert sft_run(PreferConfig(sft_epochs=epochs)) == shipped
    assert not home.exists()
    assert {path.suffix for path in (shipped.folder / "model").iterdir()} <= {".json", ".safetensors"}


@needs_sft
def test_a_shipped_checkpoint_ranks_as_it_did(shipped):
    users = load_dataset().test[:200]
    report = evaluate(*shipped.load_model(), users)
    assert (report.ranks == shipped.users["rank"][: len(users)]).mean() >= 0.98  # another machine may round otherwise
    assert hit_rate(shipped.users["rank"]) == shipped.summary["hr@1"]


@needs_sft
def test_the_checkpoint_that_runs_start_from_beats_markov():
    start = sft_run(PreferConfig())
    assert start.folder.parent == DATA / "sft"
    assert hit_rate(start.users["rank"]) > markov()


# Trained anew


@pytest.mark.slow
@needs_recorded
@needs_sft
def test_a_recorded_cell_comes_out_again(chosen, home):
    recorded = load_recorded("objectives")
    cell = {"objective": "dmpo", "negatives": 3, "dynamic": "off", "seed": 0}
    run = row(prefer(progress=False, **cell, **script.COMMON, **chosen))
    (_, expected), *others = recorded.rows(**cell).iterrows()
    assert not others
    assert run["hr@1"] == pytest.approx(expected["hr@1"], abs=0.02)
    assert run["val_hr@1"] == pytest.approx(expected["val_hr@1"], abs=0.02)
    assert run["train_loss"] == pytest.approx(expected["train_loss"], rel=0.02)
    assert run["sft_hr@1"] == expected["sft_hr@1"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pocket_qwen2_beats_markov_after_sft():
    run = sft(progress=False, model="pocket-qwen2", epochs=20)
    assert run.summary["hr@1"] > markov()
