"""What data/ ships: SFT checkpoints that open, recorded grids that are whole and true, pages that repeat them."""

import importlib
import sys
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from minipo.evaluation import paired_interval, ranking_metrics
from minipo.experiments import workers
from minipo.experiments.comparison import older_data, recorded_settings
from minipo.experiments.configuration import PreferConfig, SFTConfig, decided, make_config, recipe, start_config
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.files import read_json
from minipo.experiments.records import RECORDED, Recorded, load_recorded, row
from minipo.experiments.runs import DATA, PROBED_USERS, Run, list_runs
from minipo.experiments.training import prefer, sft, sft_folder, sft_run
from minipo.experiments.users import evaluate

sys.path.insert(0, str(DATA))  # as for a script that runs there
script, recipes, report = (importlib.import_module(name) for name in ("record", "recipes", "report"))
sys.path.remove(str(DATA))

CATALOGUE = ("settings", "objectives", "parts")
needs_recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason="data/recorded is not there: make record")
ADAPTER = DATA / "sft" / "ml-100k-smollm2-135m"
needs_sft = pytest.mark.skipif(not (DATA / "sft").is_dir(), reason="data/sft is not there: make record")


@pytest.fixture(scope="module", params=CATALOGUE)
def recorded(request) -> Recorded:
    return load_recorded(request.param)


@pytest.fixture(scope="module")
def chosen() -> dict[str, float]:
    return script.choose(load_recorded("settings"))


def size(folder) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def hit_rate(ranks) -> float:
    return float((np.asarray(ranks) == 0).mean())


# The grids


@needs_recorded
@pytest.mark.parametrize("name", recipes.GRIDS)
def test_a_grid_is_what_its_recipe_says_row_by_row(name):
    recorded = load_recorded(name)
    configs, provenance = script.planned(recipes.GRIDS[name], load_recorded)
    assert len(recorded.table) + recorded.provenance.get("missing", 0) == len(configs)
    if recipes.GRIDS[name].partial and recorded.configs:
        configs = [config for config in configs if config in recorded.configs]
    for number, config in enumerate(configs):
        found = make_config(type(config), recorded_settings(recorded, number))
        assert found == decided(config, found)
    assert recorded.provenance["rule"] == provenance["rule"]
    assert recorded.provenance.get("chosen") == provenance.get("chosen")
    probed = script.cells(recipes.GRIDS[name], provenance.get("chosen", {}) | recipes.GRIDS[name].probed)
    assert sorted(recorded.probes) == ([configs.index(each) for each in probed] if recipes.GRIDS[name].probed else [])


@needs_recorded
@pytest.mark.parametrize("name", recipes.GRIDS)
def test_provenance_says_where_a_grid_comes_from(name):
    recorded = load_recorded(name)
    made = recorded.provenance
    assert recorded.command == f"python data/record.py {name}"
    assert made["seeds"] == sorted({*recorded.table.seed})
    assert datetime.fromisoformat(made["recorded"]).tzinfo is not None
    assert {"python", "minipo", "torch", "transformers", "peft", "numpy", "machine"} <= {*made["versions"]}
    assert all(made["versions"].values())
    assert int(made["commit"], 16) > 0


def test_every_command_makes_something_and_every_folder_has_one():
    assert {path.name for part in ("sft", "recorded") for path in (DATA / part).iterdir()} <= {
        *script.MADE, "fresh.json", "ties.json"
    }  # fmt: skip
    assert {name for group in script.GROUPS.values() for name in group.split()} == {*script.MADE}


def test_a_recipe_is_trained_and_recorded(tiny, tiny_sft, monkeypatch, tmp_path):
    cells = {"dataset": "tiny", "sft_epochs": 1, "steps": 2, "evaluate_every": 2}
    recipe = recipes.Recipe(
        cells, [{"negatives": [1, 5]}], more_sft={"steps": 2, "learning_rate": [1e-3]}, probed={"negatives": 5}
    )
    monkeypatch.setitem(recipes.GRIDS, "small", recipe)
    monkeypatch.setattr(script, "RECORDED", tmp_path)
    monkeypatch.setattr(workers, "_work", lambda name, task, configs, *_: (task(each) or each for each in configs))
    script.make_grid("small")
    recorded = load_recorded("small", tmp_path / "small")
    assert recorded.table[["objective", "negatives"]].to_numpy().tolist() == [["dmpo", 1], ["dmpo", 5], ["sft", 0]]
    assert {*recorded.baselines} == {"random", "popularity", "markov", "sft"}
    assert [*recorded.probes] == [1]
    assert recorded.provenance["command"] == recorded.command == "python data/record.py small"
    assert recorded.provenance["missing"] == 0


@pytest.mark.parametrize("keeps", [False, True])
def test_what_is_finished_of_a_recipe_is_recorded_if_it_says_so(tiny, monkeypatch, tmp_path, keeps):
    cells = {"dataset": "tiny", "sft_epochs": 1, "steps": 2, "evaluate_every": 2}
    grids = [{"negatives": [1, 5]}]
    monkeypatch.setitem(recipes.GRIDS, "small", recipes.Recipe(cells, grids, partial=keeps, generated=keeps))
    monkeypatch.setattr(script, "RECORDED", tmp_path)
    asked = []

    def stop(configs):
        asked.append([config.negatives for config in configs])
        yield prefer(progress=False, **asdict(configs[0]))
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "train_each", stop)
    with pytest.raises(KeyboardInterrupt):
        script.make_grid("small")
    assert (tmp_path / "small").exists() == keeps
    if keeps:
        recorded = load_recorded("small", tmp_path / "small")
        assert recorded.table.negatives.tolist() == [1]
        assert recorded.provenance["missing"] == 1
        assert len(pd.read_parquet(tmp_path / "small" / "ranks.parquet")["generated_hit"][0]) == len(tiny.test)
        with pytest.raises(KeyboardInterrupt):  # on another machine, where the cache is empty
            script.make_grid("small")
        assert asked == [[1, 5], [5]]
        assert load_recorded("small", tmp_path / "small").table.negatives.tolist() == [1, 5]


def test_a_recipe_may_have_sft_runs():
    recipe = recipes.Recipe({"dataset": "ml-100k", "model": "smollm2-135m"}, [], sft=[{"epochs": [1, 2], "rank": 8}])
    assert [(each.epochs, each.rank, each.rows) for each in script.sft_cells(recipe)] == [
        (1, 8, "sequence"), (2, 8, "sequence")
    ]  # fmt: skip


@needs_recorded
def test_all_else_is_the_same_for_every_run(recorded):
    preferred = recorded.table[recorded.table.objective != "sft"]
    fixed = {"dataset": "catalog", "model": "pocket-gpt2", "tuning": "full", "clusters": 3, "beta": 1.0, "margin": 6.0}
    for name, value in (fixed | {"steps": 300}).items():
        assert (preferred[name] == value).all(), name


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


@pytest.fixture(scope="module")
def baselines() -> dict[str, np.ndarray]:
    """The catalogue's test users' ranks under what needs no training."""
    found = script.baseline_ranks([PreferConfig()])
    del found["sft"]
    return found


@needs_recorded
def test_the_baselines_are_those_of_this_catalogue(recorded, baselines):
    found = recorded.baselines
    for name, ranks in baselines.items():
        assert (found[name] == ranks).mean() > 0.998, name  # another machine may round otherwise
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
    assert size(RECORDED) < 10e6


@needs_recorded
@pytest.mark.parametrize(("file", "write"), [("README.md", report.readme), ("FINDINGS.md", report.findings)])
def test_tables_are_what_the_grids_say(file, write):
    marked = f"<!-- made by: python data/record.py report -->\n{write()}\n<!-- end -->"
    assert marked in (DATA.parent / file).read_text(encoding="utf-8"), "run: python data/record.py report"


# The SFT checkpoints


@pytest.fixture(params=[10, 20, 40])
def shipped(request) -> Run:
    return sft_folder(DATA / "sft" / f"catalog-pocket-gpt2-{request.param}", PreferConfig())


@needs_sft
def test_shipped_checkpoints_are_all_there_and_small():
    folders = [run.folder for run in list_runs(DATA / "sft") if run.folder.name.startswith("catalog")]
    assert {folder.name for folder in folders} == {name for name in recipes.SFT if "catalog" in name}
    assert sum(size(folder) for folder in folders) < 2e6


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
def test_the_checkpoint_that_runs_start_from_beats_markov(baselines):
    start = sft_run(PreferConfig())
    assert start.folder.parent == DATA / "sft"
    assert hit_rate(start.users["rank"]) > hit_rate(baselines["markov"])


@pytest.mark.skipif(not ADAPTER.is_dir(), reason=f"missing: python data/record.py {ADAPTER.name}")
def test_the_shipped_adapter_is_small_and_what_its_recipe_says():
    run = Run(ADAPTER)
    assert run.done
    assert run.config == decided(make_config(SFTConfig, recipes.SFT[ADAPTER.name]), run.config)
    assert size(ADAPTER) <= 5e6
    assert {path.name for path in (ADAPTER / "model").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    base = read_json(ADAPTER / "model" / "adapter_config.json")["base_model_name_or_path"]
    assert base == "HuggingFaceTB/SmolLM2-135M-Instruct"  # opens wherever it is fetched
    assert hit_rate(run.users["rank"]) == run.summary["hr@1"]
    starts_where_the_grid_did(run, "ml-100k-smollm2")


def starts_where_the_grid_did(run: Run, grid: str) -> None:
    """A grid's SFT ranks are those of the shipped run, unless it was recorded before the data changed."""
    if (RECORDED / grid).is_dir() and not older_data(recorded := load_recorded(grid)):
        np.testing.assert_array_equal(recorded.baselines["sft"], run.users["rank"])


@needs_recorded
def test_settings_chosen_on_other_data_are_not_taken(monkeypatch):
    assert script.load_current("settings").fingerprint == load_dataset().fingerprint
    monkeypatch.setattr(script, "load_dataset", lambda name: load_dataset(name, 1))
    with pytest.raises(ValueError, match=r"^The recorded grid 'settings' is on data with fingerprint 298607e3f9d232e9"):
        script.load_current("settings")


@needs_recorded
def test_findings_compare_no_grids_on_different_data(monkeypatch):
    def load(name: str) -> Recorded:
        return replace(load_recorded(name), provenance={"dataset_fingerprint": name})

    monkeypatch.setattr(report, "load_recorded", load)
    with pytest.raises(ValueError, match="'objectives' and 'parts' are on different data"):
        report.worlds()


# What is found on real data


@pytest.mark.parametrize(
    ("claim", "low", "high", "says"),
    [
        ("gains", 0.001, 0.02, "shown"),
        ("gains", -0.001, 0.02, "not shown"),
        ("gains", 0.0, 0.02, "not shown"),
        ("gains", -0.02, -0.001, "opposite"),
        ("falls", -0.02, -0.001, "shown"),
        ("falls", -0.02, 0.001, "not shown"),
        ("falls", -0.02, 0.0, "not shown"),
        ("falls", 0.001, 0.02, "opposite"),
        ("stable", -0.01, 0.01, "shown"),
        ("stable", -0.009, -0.001, "shown"),  # less than one point below is stable
        ("stable", -0.011, 0.0, "not shown"),
        ("stable", -0.005, 0.011, "not shown"),
        ("stable", 0.02, 0.04, "not shown"),
        ("stable", -0.03, -0.002, "opposite"),
    ],
)
def test_a_verdict_is_the_rules(claim, low, high, says):
    assert report.judge(low, high, claim) == says


def level(rate: float, *seeds: int | None) -> dict[int | None, np.ndarray]:
    """400 users of whom so many are hit, under each seed."""
    return dict.fromkeys(seeds, (np.arange(400) < 400 * rate).astype(float))


def test_a_cell_is_a_difference_with_its_verdict():
    few, many = level(0.6, 0, 1), level(0.4, 1, 0)
    assert report.cell(many, few, "falls").startswith("−20.0 [")
    assert report.cell(many, few, "falls").endswith("] **shown**")
    assert report.cell(many, few, "gains").endswith("] **opposite**")
    assert report.cell(few, level(0.6, 0, 1), "gains").endswith("**not shown**")
    assert report.cell(few, level(0.6, 0, 1), "stable").endswith("**shown**")
    assert report.cell(many, level(0.6, None), "falls").endswith("**shown**")  # a baseline has no seed
    for one in (level(0.6, 1), level(0.6, 1, 2)):
        assert report.cell(level(0.4, 1), one, "falls").endswith("**one seed, no verdict**")
    assert report.cell(level(0.4, 1), level(0.6, None), "falls").endswith("**one seed, no verdict**")


def test_runs_that_are_missing_are_said_to_be():
    for left, right in ((None, level(0.5, 0)), (level(0.5, 0), None), (None, None), (level(0.5, 0), level(0.5, 1))):
        assert report.cell(left, right, "gains") == "not run"


@pytest.fixture
def world() -> report.World:
    """A recorded grid of DMPO at K = 1 and 19, which falls with its loss, and of nothing else."""
    cells = [("off", 1, 0.7, 0.5), ("off", 19, 0.5, 0.2), ("on", 19, 0.6, 0.3)]
    table = pd.DataFrame(
        [
            {"objective": "dmpo", **part, "negatives": negatives, "seed": seed, "train_loss": loss}
            for dynamic, negatives, _, loss in cells
            for part in [dict.fromkeys(("dynamic", "select", "adjust_beta"), dynamic)]
            for seed in (0, 1)
        ]
    )
    ranks = np.stack([(np.arange(400) >= 400 * rate).astype(int) for _, _, rate, _ in cells for _ in (0, 1)])
    recorded = Recorded(table, ranks, {"sft": np.ones(400, int)}, pd.DataFrame(), {}, Path("nowhere"))
    return report.World("a world", 19, [recorded])


def test_claims_and_questions_are_answered_from_what_was_run(world):
    found = {text: world.answer(*sides) for text, _, *sides in (*report.CLAIMS, *report.QUESTIONS)}
    run = {text: answer.split("**")[1] for text, answer in found.items() if answer != "not run"}
    assert run == {
        "DMPO collapses: HR@1 at the largest K minus K = 1": "shown",
        "DynamicPO helps DMPO: with minus without, at the largest K": "shown",
        "Is one negative better than none? DMPO at K = 1 minus SFT": "shown",
        "Is the repaired run better than its start? DynamicPO-DMPO minus SFT": "shown",
    }


def test_a_collapse_needs_a_loss_that_falls(world):
    world.grids[0].table["train_loss"] = 0.5
    assert world.answer(report.PLAIN, report.FEW, "falls").endswith("**not shown**")
    assert world.answer(report.FEW, report.PLAIN, "falls").endswith("**opposite**")


def test_settings_are_chosen_on_validation_users_alone():
    table = pd.DataFrame(
        [
            {"objective": "dmpo", "sft_epochs": epochs, "learning_rate": rate, "seed": seed, "val_hr@1": score + seed}
            for epochs, rate, score in ((1.0, 1e-4, 0.2), (3.0, 3e-4, 0.4), (3.0, 1e-3, 0.3))
            for seed in (0, 1)
        ]
    ).assign(**{"hr@1": [0.9, 0.9, 0.1, 0.1, 0.5, 0.5], "negatives": 1, "dynamic": "off"})
    recorded = Recorded(table, np.zeros((6, 4), int), {}, pd.DataFrame(), {}, Path("nowhere"))
    assert recipes.choose(recorded) == {"sft_epochs": 3.0, "learning_rate": 3e-4}
    recorded = Recorded(table.assign(objective="sft"), np.zeros((6, 4), int), {}, pd.DataFrame(), {}, Path("nowhere"))
    assert recipes.choose_more_sft(recorded, 3.0) == 3e-4


REAL = [name for name in recipes.GRIDS if name.startswith("ml-100k")]


@pytest.fixture(scope="module", params=REAL)
def real(request) -> Recorded:
    return load_recorded(request.param)


def test_the_shipped_run_on_real_data_is_what_runs_start_from():
    wanted = start_config(make_config(PreferConfig, {"dataset": "ml-100k"}))
    (run,) = (run for run in list_runs(DATA / "sft") if run.config == wanted)
    assert size(run.folder) < 2e6
    assert hit_rate(run.users["rank"]) == run.summary["hr@1"]
    starts_where_the_grid_did(run, "ml-100k-objectives")


def test_shipped_runs_on_real_data_are_ranked_on_one_and_say_when_their_weights_were_made():
    runs = [run for run in list_runs(DATA / "sft") if run.config.dataset == "ml-100k"]
    assert len({run.summary["dataset_fingerprint"] for run in runs}) == 1
    for run in runs:
        made = run.summary.get("trained", run.summary)
        assert datetime.fromisoformat(made["finished"]) <= datetime.fromisoformat(run.summary["finished"])


def test_the_order_within_ties_is_reported_with_its_numbers():
    content = read_json(RECORDED / "ties.json")
    text, table, _ = report.ties_report().split("\n\n")
    assert "23,069 share their second, and for 304 users" in text
    assert [(order["ties"], order["dataset_seed"]) for order in content["orders"]] == [
        *recipes.ORDERS[: len(recipes.ORDERS) - content["missing"]]
    ]
    assert len(table.splitlines()) == 2 + len(content["orders"])


def test_power_foretells_intervals_and_how_often_they_exclude_zero():
    drawn = np.random.default_rng(0)

    def study(seeds: int, users: int = 900, mean: float = 0.0) -> np.ndarray:
        of_users, of_seeds = 0.15 * drawn.normal(size=users), 0.005 * drawn.normal(size=(seeds, 1))
        return mean + of_users + of_seeds + 0.3 * drawn.normal(size=(seeds, users))

    half, least = np.mean([report.power(study(50), seeds=3) for _ in range(10)], axis=0)
    intervals = [paired_interval(study(3)) for _ in range(100)]
    assert np.mean([each.high - each.low for each in intervals]) / 2 == pytest.approx(half, rel=0.1)
    shown = np.mean([paired_interval(study(3, mean=least)).low > 0 for _ in range(200)])
    assert shown == pytest.approx(0.8, abs=0.1)


def test_the_recipe_is_what_was_chosen(real):
    if not real.folder.name.endswith("settings"):
        pytest.skip("chosen elsewhere")
    model = "smollm2-135m" if "smollm2" in real.folder.name else "pocket-gpt2"
    settings = recipe("prefer", "ml-100k", model)
    assert {name: settings[name] for name in ("sft_epochs", "learning_rate")} == recipes.choose(real)
    start = sft_run(make_config(PreferConfig, {"dataset": "ml-100k", "model": model}))
    assert start.folder.parent == DATA / "sft"


def test_results_on_real_data_are_those_of_the_ranks(real):
    for name, values in ranking_metrics(real.ranks).items():
        np.testing.assert_allclose(real.table[name], values.mean(axis=1), atol=1e-9)
    preferred = real.table[real.table.objective != "sft"]
    if preferred.empty:
        return
    assert real.wins is not None
    np.testing.assert_allclose(preferred["reward_win_rate"], real.wins[preferred.index].mean(axis=1), atol=1e-9)
    for epochs, rows in preferred.groupby("sft_epochs"):
        name = f"sft-{epochs:g}" if real.folder.name == "ml-100k-settings" else "sft"
        np.testing.assert_allclose(rows["sft_hr@1"], hit_rate(real.baselines[name]), atol=1e-9)


# Trained anew


@pytest.mark.slow
@needs_recorded
@needs_sft
def test_a_recorded_cell_comes_out_again(chosen, home):
    recorded = load_recorded("objectives")
    cell = {"objective": "dmpo", "negatives": 3, "dynamic": "off", "seed": 0}
    run = row(prefer(progress=False, **cell, **recipes.CATALOGUE, **chosen))
    (_, expected), *others = recorded.rows(**cell).iterrows()
    assert not others
    assert run["hr@1"] == pytest.approx(expected["hr@1"], abs=0.02)
    assert run["val_hr@1"] == pytest.approx(expected["val_hr@1"], abs=0.02)
    assert run["train_loss"] == pytest.approx(expected["train_loss"], rel=0.02)
    assert run["sft_hr@1"] == expected["sft_hr@1"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pocket_qwen2_beats_markov_after_sft(baselines):
    run = sft(progress=False, model="pocket-qwen2", epochs=20)
    assert run.summary["hr@1"] > hit_rate(baselines["markov"])
