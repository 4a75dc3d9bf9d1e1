"""Grids of runs: what is trained and what is not, what is said when one fails, what is recorded, how it is compared."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from minipo.evaluation import ranking_metrics
from minipo.experiments import records, workers
from minipo.experiments.configuration import PreferConfig, SFTConfig, recipe
from minipo.experiments.datasets.loading import DATASETS
from minipo.experiments.datasets.splits import Interaction, Splits
from minipo.experiments.files import read_json, write_json
from minipo.experiments.recorder import Recorder
from minipo.experiments.records import (
    Recorded,
    check_same_data,
    difference,
    load_recorded,
    record,
    record_scores,
    recorded_run,
)
from minipo.experiments.runs import Run, cache_folder
from minipo.experiments.sweeps import grid, sweep
from minipo.experiments.workers import train_all, train_each

COLUMNS = """
    dataset model tuning objective negatives dynamic select adjust_beta clusters beta margin learning_rate seed steps
    precision template train_loss pair_loss val_hr@1 sft_hr@1 hr@1 hr@5 ndcg@5 mrr reward_win_rate boundary_share
    seconds
""".split()  # section 5
SMALL = {"dataset": "tiny", "sft_epochs": 1, "steps": 2, "batch_size": 4}


class Here:
    """Stands for the pool of workers: does each task at once in this process, which knows the tiny dataset."""

    done: list

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, task, config):
        future = Future()
        self.done.append((getattr(task, "func", task).__name__, config))
        try:
            future.set_result(task(config))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def tasks(tiny, monkeypatch):
    """What the workers were given, in order: (name of the task, configuration)."""
    monkeypatch.setattr(workers, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(Here, "done", [], raising=False)
    return Here.done


def trained(tasks):
    return [config for task, config in tasks if task == "_train"]


def sentence(caught):
    """The error's text, which has to be one line."""
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


# Grids


def test_a_grid_is_every_combination_of_its_values():
    cells = grid(objective=["dmpo", "sdpo"], negatives=(1, 5), dynamic=["off", "on"], seeds=range(3), steps=7)
    found = [(cell.objective, cell.negatives, cell.dynamic, cell.seed) for cell in cells]
    assert sorted(found) == sorted(
        (objective, negatives, dynamic, seed)
        for objective in ("dmpo", "sdpo")
        for negatives in (1, 5)
        for dynamic in ("off", "on")
        for seed in (0, 1, 2)
    )
    assert {cell.steps for cell in cells} == {7}
    assert {cell.model for cell in cells} == {"pocket-gpt2"}  # what is not named stays as it is for one run


def test_a_grid_without_settings_is_the_run_without_settings():
    assert grid() == [PreferConfig()]
    assert grid(seed=3) == grid(seeds=[3]) == grid(seeds=np.array([3])) == [PreferConfig(seed=3)]


def test_a_grid_has_each_datasets_and_models_own_settings():
    cells = grid(dataset=["catalog", "ml-100k"], model=["pocket-gpt2", "gpt2"], negatives=1)
    assert [(cell.dataset, cell.model) for cell in cells] == [
        (dataset, model) for dataset in ("catalog", "ml-100k") for model in ("pocket-gpt2", "gpt2")
    ]
    for cell in cells:
        place = {"dataset": cell.dataset, "model": cell.model}
        assert cell == PreferConfig(**place, negatives=1, **recipe("prefer", **place))
    assert {cell.learning_rate for cell in grid(dataset=["catalog", "ml-100k"], learning_rate=0.5)} == {0.5}


def test_settings_of_dynamicpo_make_no_second_run_where_it_is_off():
    cells = grid(dynamic=["off", "on"], select=["on", "random"], adjust_beta=["off", "on"])
    assert [(cell.dynamic, cell.select, cell.adjust_beta) for cell in cells] == [
        ("off", "off", "off"),
        ("on", "on", "off"),
        ("on", "on", "on"),
        ("on", "random", "off"),
        ("on", "random", "on"),
    ]


def test_a_setting_of_one_objectives_own_is_left_out_of_the_cells_of_others():
    cells = grid(objective=["dmpo", "simpo"], target_margin=[0.3, 0.7], negatives=1)
    assert [(cell.objective, cell.target_margin) for cell in cells] == [("dmpo", 0.5), ("simpo", 0.3), ("simpo", 0.7)]
    with pytest.raises(ValueError, match=r"^target_margin is a setting of simpo, and the objective is dmpo; "):
        grid(objective="dmpo", target_margin=0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negatives": []}, "negatives has no values; give at least one."),
        ({"seeds": ()}, "seed has no values; give at least one."),
        ({"negative": 5}, "Unknown setting 'negative'. Did you mean 'negatives'? Known: "),
        ({"objective": ["dmpo", "dmmpo"]}, "Unknown objective 'dmmpo'. Did you mean 'dmpo'? Known: "),
        ({"beta": [1.0, 0.0]}, "beta must be greater than 0, not 0"),
        ({"negatives": [1, "5"]}, "negatives must be a valid integer, not '5'."),
    ],
)
def test_a_bad_grid_is_one_sentence(settings, message):
    with pytest.raises(ValueError, match=r".") as caught:
        grid(**settings)
    assert sentence(caught).startswith(message)


# Sweeps


def test_a_table_has_a_row_a_run_with_designs_columns(tasks):
    table = sweep(negatives=[1, 5], dynamic=["off", "on"], progress=False, **SMALL)
    assert [column for column in table if column != "sft_epochs"] == COLUMNS
    assert table[["negatives", "dynamic", "select", "adjust_beta"]].to_numpy().tolist() == [
        [1, "off", "off", "off"],
        [1, "on", "on", "on"],
        [5, "off", "off", "off"],
        [5, "on", "on", "on"],
    ]
    cells = grid(negatives=[1, 5], dynamic=["off", "on"], **SMALL)
    for (_, row), cell in zip(table.iterrows(), cells, strict=True):
        run = Run(cache_folder(cell))
        assert row["hr@1"] == (run.users["rank"] == 0).mean()
        assert row["pair_loss"] == run.evaluation.pair_loss.iloc[-1]
        assert row["val_hr@1"] == run.evaluation["hr@1"].iloc[-1]
        assert row["train_loss"] == run.metrics.loss.iloc[-1]
    assert table["sft_hr@1"].nunique() == 1
    assert table[COLUMNS].notna().all(axis=None)


def test_the_sft_run_and_its_log_probs_come_first_and_once(tasks, home):
    sweep(negatives=2, seeds=[0, 1], progress=False, **SMALL)
    assert [task for task, _ in tasks] == ["_start"] + ["_train"] * 2
    assert len(list(home.glob("**/reference/*.npy"))) == 3  # of train, validation and test users


def test_more_sft_waits_for_the_sft_run_that_it_goes_on_from(tasks):
    more = [SFTConfig(dataset="tiny", start_epochs=1, steps=2, seed=seed) for seed in (0, 1)]
    trained_runs = train_all(more, progress=False)
    assert [task for task, _ in tasks] == ["_start", "_train", "_train"]
    assert [run.config for run in trained_runs] == more


def test_what_was_trained_is_not_trained_again(tasks):
    first = sweep(negatives=5, progress=False, **SMALL)
    tasks.clear()
    pd.testing.assert_frame_equal(sweep(negatives=5, progress=False, **SMALL), first)
    assert tasks == []
    more = sweep(negatives=[2, 5], progress=False, **SMALL)
    assert [config.negatives for config in trained(tasks)] == [2]
    pd.testing.assert_frame_equal(more[more.negatives != 2].reset_index(drop=True), first)


def test_what_was_trained_from_another_sft_model_is_told_before_anything_is_trained(tasks, tiny_sft, tmp_path):
    start = shutil.copytree(tiny_sft.folder, tmp_path / "start")
    settings = SMALL | {"sft": str(start), "progress": False}
    sweep(negatives=1, **settings)
    tasks.clear()
    path = start / "model" / "config.json"
    write_json(path, read_json(path) | {"activation_function": "relu"})
    with pytest.raises(
        ValueError, match=r"started from a model with fingerprint \w{16}, and the one in .*/start/model "
    ):
        sweep(negatives=[1, 2], **settings)
    assert tasks == []


def test_a_sweep_over_corrected_data_trains_anew(tasks, plays):
    settings = SMALL | {"dataset": str(plays), "negatives": 2, "progress": False}
    sweep(**settings)
    tasks.clear()
    plays.write_text(plays.read_text().replace("Film1 of1", "Corrected title"))
    sweep(**settings)
    assert [task for task, _ in tasks] == ["_start", "_train"]


def test_a_cell_that_is_asked_for_twice_is_trained_once(tasks):
    cell = PreferConfig(negatives=1, **SMALL)
    first, second = train_all([cell, cell], progress=False)
    assert trained(tasks) == [cell]
    assert first == second


def test_runs_come_one_by_one_as_they_end_and_finished_ones_first(tasks):
    two, one, three = cells = grid(negatives=[2, 1, 3], **SMALL)
    train_all([three], progress=False)
    tasks.clear()
    runs, counts = [], []
    for run in train_each([*cells, two], progress=False):
        runs.append(run.config)
        counts.append(len(trained(tasks)))
        assert run.done
    assert runs[0] == three
    assert counts[0] == 0  # before anything is trained
    assert sorted(runs[1:], key=cells.index) == [two, one]  # each once


def test_a_run_that_fails_comes_after_those_that_do_not(tasks, monkeypatch):
    prefer = workers.prefer

    def fail(**settings):
        if settings["negatives"] == 1:
            raise ValueError("log-probs are NaN.")
        return prefer(**settings)

    monkeypatch.setattr(workers, "prefer", fail)
    runs = train_each(grid(negatives=[1, 2, 3], **SMALL), progress=False)
    assert sorted(next(runs).config.negatives for _ in range(2)) == [2, 3]
    with pytest.raises(ValueError, match=r"^1 of 3 runs failed; the first, with negatives = 1: log-probs are NaN\.$"):
        next(runs)


def test_runs_may_be_kept_in_a_folder(tasks, home, tmp_path):
    settings = SMALL | {"negatives": [1, 2], "progress": False}
    table = sweep(**settings, folder=tmp_path / "runs")
    names = {cache_folder(config).name for config in grid(negatives=[1, 2], **SMALL)}
    assert {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()} == names
    assert not list(home.glob("runs/prefer-*"))  # the SFT run is there
    tasks.clear()
    pd.testing.assert_frame_equal(sweep(**settings, folder=str(tmp_path / "runs")), table)
    assert tasks == []


def test_an_interrupted_sweep_goes_on_where_it_was(tasks, monkeypatch):
    settings = SMALL | {"steps": 12, "negatives": [1, 2, 3], "progress": False}  # a checkpoint at step 10
    heard = Recorder.heard
    steps: list[int] = []

    def listen(self, step, logs):
        if len(trained(tasks)) == 2 and step == 11 and "loss" in logs:
            raise KeyboardInterrupt
        heard(self, step, logs)

    monkeypatch.setattr(Recorder, "heard", listen)
    with pytest.raises(KeyboardInterrupt):
        sweep(**settings)
    one, two, three = (
        cache_folder(config) for config in grid(**{k: v for k, v in settings.items() if k != "progress"})
    )
    assert [(folder / "summary.json").exists() for folder in (one, two, three)] == [True, False, False]

    def note(self, step, logs):
        if self.out == two and "loss" in logs:
            steps.append(step)
        heard(self, step, logs)

    tasks.clear()
    monkeypatch.setattr(Recorder, "heard", note)
    table = sweep(**settings)
    assert [config.negatives for config in trained(tasks)] == [2, 3]
    assert steps == [11, 12]
    assert Run(two).metrics.step.tolist() == list(range(1, 13))
    assert len(table) == 3


@pytest.mark.parametrize(
    ("error", "kind"), [(ValueError("log-probs are NaN."), ValueError), (OSError(28, "No space left"), OSError)]
)
def test_a_cell_that_fails_is_named_and_keeps_no_other_from_being_trained(tasks, monkeypatch, error, kind):
    prefer = workers.prefer

    def fail(**settings):
        if settings["negatives"] == 2:
            raise error
        return prefer(**settings)

    monkeypatch.setattr(workers, "prefer", fail)
    with pytest.raises(kind) as caught:
        sweep(negatives=[1, 2, 3], progress=False, **SMALL)
    assert sentence(caught) == f"1 of 3 runs failed; the first, with negatives = 2: {error}"
    tasks.clear()
    monkeypatch.setattr(workers, "prefer", prefer)
    sweep(negatives=[1, 2, 3], progress=False, **SMALL)
    assert [config.negatives for config in trained(tasks)] == [2]


def test_a_failing_sft_run_ends_the_sweep_before_the_runs_that_need_it(tasks):
    with pytest.raises(ValueError, match=r"^Unknown model 'pocket-gpt3'\. Did you mean 'pocket-gpt2'\?"):
        sweep(model="pocket-gpt3", negatives=[1, 2], progress=False, **SMALL)
    assert trained(tasks) == []


def test_a_defect_keeps_its_own_kind(tasks, monkeypatch):
    monkeypatch.setattr(workers, "prefer", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sweep(negatives=1, progress=False, **SMALL)


def test_a_worker_that_dies_is_one_sentence(tasks, monkeypatch):
    def die(**_):
        raise BrokenProcessPool("A child process terminated abruptly, the process pool is not usable anymore")

    monkeypatch.setattr(workers, "prefer", die)
    with pytest.raises(
        OSError, match="A worker of the sweep died; if memory ran out, start it again with fewer"
    ) as caught:
        sweep(negatives=1, progress=False, **SMALL)
    sentence(caught)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negatives": [1, 40]}, "negatives must be at most 19, the most that a user here has, not 40."),
        ({"negatives": [1, 0]}, "negatives must be greater than or equal to 1, not 0."),
        (
            {"out": "table.xlsx"},
            "The table's file must end in .parquet or .csv, not 'table.xlsx'; give it such a name.",
        ),
        ({"sft": [None, "nowhere"]}, "nowhere is not a finished SFT run: nowhere is not a run"),
        ({"workers": 0}, "workers must be at least 1, not 0."),
        ({"dataset": ["tiny", "plays.csv"]}, "There is no file plays.csv; check the path, or name one of catalog, "),
        ({"dataset": ["tiny", "catalogue"]}, "Unknown dataset 'catalogue'. Did you mean 'catalog'?"),
    ],
)
def test_a_setting_that_does_not_fit_is_said_before_anything_is_trained(tasks, home, settings, message):
    with pytest.raises(ValueError, match=r".") as caught:
        sweep(progress=False, **SMALL | settings)
    assert sentence(caught).startswith(message)
    assert tasks == []
    assert not home.exists()


@pytest.mark.parametrize(("name", "read"), [("table.parquet", pd.read_parquet), ("table.csv", pd.read_csv)])
def test_the_table_is_written_where_it_is_asked_for(tasks, tmp_path, name, read):
    out = tmp_path / "new" / name
    table = sweep(negatives=[1, 2], out=out, progress=False, **SMALL)
    pd.testing.assert_frame_equal(read(out), table, check_dtype=False)
    assert [path.name for path in out.parent.iterdir()] == [name]


def test_a_sweep_over_a_file_of_ones_own_and_over_tiny(tasks, plays):
    table = sweep(**SMALL | {"dataset": ["tiny", str(plays)], "negatives": 2, "progress": False})
    assert table.dataset.tolist() == ["tiny", str(plays)]
    assert [task for task, _ in tasks] == ["_start", "_start", "_train", "_train"]
    assert table["hr@1"].between(0, 1).all()


def test_settings_that_differ_have_a_column_so_that_rows_can_be_told_apart(tasks):
    table = sweep(**SMALL | {"negatives": 1, "batch_size": [8, 16], "progress": False})
    assert table["batch_size"].tolist() == [8, 16]
    assert "evaluate_every" not in table


def test_a_table_that_cannot_be_written_leaves_the_old_one_whole(tasks, tmp_path, monkeypatch):
    out = tmp_path / "table.parquet"
    sweep(negatives=1, out=out, progress=False, **SMALL)
    before = out.read_bytes()

    def half(self, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", half)
    with pytest.raises(OSError, match="No space left"):
        sweep(negatives=1, out=str(out), progress=False, **SMALL)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["table.parquet"]


# Real workers


def started(home, *arguments):
    """A sweep of four cells on the catalogue in a session of its own, when its first run has begun to train."""
    command = [sys.executable, "-m", "minipo", "sweep", "--quiet", "--sft-epochs", "1", "--negatives", "1,2,3,4"]
    process = subprocess.Popen(
        [*command, "--workers", "1", *arguments],
        env=os.environ | {"MINIPO_HOME": str(home), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while process.poll() is None and not list(home.glob("runs/prefer-*/metrics.jsonl")):
        assert time.monotonic() < deadline, "the first run did not begin"
        time.sleep(0.1)
    return process


def members(session):
    """Processes of a session that are alive."""
    listed = subprocess.run(["ps", "-e", "-o", "sid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.split()[0] == str(session) and "Z" not in line.split()[1]]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ps") is None, reason="ps is not installed")
@pytest.mark.parametrize("killed", [False, True], ids=["interrupted", "killed"])
def test_workers_end_with_the_sweep(home, killed):
    process = started(home, "--steps", "3000")  # minutes, were it left alone
    try:
        if killed:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        process.wait(20)
        deadline = time.monotonic() + 20
        while members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert members(process.pid) == []
    finally:
        if members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    if not killed:
        assert process.returncode == 130
        said = process.stderr.read()
        assert (
            said.splitlines()[-1]
            == "minipo: stopped; the same command resumes it from its last checkpoint, if it has one."
        )
        assert "Traceback" not in said
    process.stderr.close()
    assert len(list(home.glob("runs/prefer-*"))) == 1  # no other was begun


@pytest.mark.slow
def test_what_workers_are_forked_with_leaves_the_gpu_alone():
    """CUDA cannot be used in a fork of a process that has asked for it."""
    script = """
import importlib, torch
from minipo.experiments.workers import IMPORTED

def touched(*_, **__):
    raise SystemExit("CUDA was asked for")

for name in ("is_available", "device_count", "_lazy_init"):
    setattr(torch.cuda, name, touched)
for name in IMPORTED:
    importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=200)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
def test_a_forked_process_forks_its_own_workers_unless_it_has_used_torchs_threads(tmp_path):
    """Then they need not import anything again; but a fork may hang where threads had been."""
    script = """
import torch
from minipo.experiments.workers import IMPORTED, PROCESSES, _processes

def look():
    print(_processes().get_start_method(), flush=True)

def look_twice():
    look()
    torch.set_num_threads(2)
    torch.ones(10_000_000).sum()
    look()

if __name__ == "__main__":
    look()
    PROCESSES.set_forkserver_preload(IMPORTED)
    process = PROCESSES.Process(target=look_twice)
    process.start()
    process.join()
"""
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py")]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200, env=environment)
    assert run.stdout.split() == ["forkserver", "fork", "forkserver"]


@pytest.mark.slow
def test_workers_have_the_environment_of_now_and_end_with_the_generator(tmp_path, monkeypatch):
    """The process that they are forked from stays, with the environment of the first sweep."""
    short, long = grid(negatives=1, steps=[2, 3000])
    for place in ("here", "there"):
        monkeypatch.setenv("MINIPO_HOME", str(tmp_path / place))
        runs = train_each([short, long], workers=2, progress=False)
        assert next(runs).folder == cache_folder(short)
        runs.close()
        assert cache_folder(short).is_relative_to(tmp_path / place)
    deadline = time.monotonic() + 20
    while (left := multiprocessing.active_children()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_sentence_and_the_rest_is_kept(home):
    short, long = grid(negatives=1, steps=[2, 3000])
    runs = train_each([short, long], workers=2, progress=False)
    assert next(runs).config == short
    until = time.monotonic() + 60
    while not (cache_folder(long) / "metrics.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.1)
    for worker in multiprocessing.active_children():
        worker.kill()
    with pytest.raises(ChildProcessError, match="A worker of the sweep died; if memory ran out"):
        next(runs)
    assert [run.config for run in train_each([short], progress=False)] == [short]


@pytest.mark.slow
def test_a_script_that_forgets_to_guard_its_sweep_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import minipo\nminipo.sweep(negatives=1, sft_epochs=1, steps=2, progress=False)\n")
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=200)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ChildProcessError: A worker of the sweep died;")
    assert last.endswith('start it under `if __name__ == "__main__":`.')


# Recorded grids


@pytest.fixture(scope="module")
def finished_runs(tiny_splits, tmp_path_factory):
    """Two seeds of DMPO, plain and under DynamicPO, and one run of more SFT."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "tiny", lambda seed: tiny_splits)
        patch.setenv("MINIPO_HOME", str(tmp_path_factory.mktemp("recorded")))
        patch.setattr(workers, "ProcessPoolExecutor", Here)
        patch.setattr(Here, "done", [], raising=False)
        cells = grid(negatives=5, dynamic=["off", "on"], seeds=[0, 1], **SMALL)
        return train_all([*cells, SFTConfig(dataset="tiny", start_epochs=1, steps=2)], progress=False)


@pytest.fixture
def levels():
    return {"sft": np.arange(16) % 3, "oracle": np.zeros(16, dtype=int)}


@pytest.fixture
def kept(tiny, finished_runs, levels, tmp_path) -> Path:
    """The folder of a recorded grid, to damage at will."""
    folder = tmp_path / "grid"
    record(folder, finished_runs, levels, [finished_runs[2]], command="python data/record.py grid", chosen={"beta": 1})
    return folder


def test_a_recorded_grid_reads_back_as_its_runs_were(kept, finished_runs, levels):
    recorded = load_recorded("grid", kept)
    of_sft = ["epochs", "rows", "tokens"]
    assert [column for column in recorded.table if column != "sft_epochs"] == [*COLUMNS, *of_sft]
    assert recorded.table[of_sft].iloc[4].tolist() == [40, "target", finished_runs[4].summary["tokens"]]
    assert recorded.table.objective.tolist() == ["dmpo"] * 4 + ["sft"]
    assert recorded.table.dynamic.tolist() == ["off", "off", "on", "on", "off"]
    assert recorded.table.negatives.tolist() == [5, 5, 5, 5, 0]
    assert recorded.table.sft_epochs.tolist() == [1] * 5
    for number, run in enumerate(finished_runs):
        assert recorded.ranks[number].tolist() == run.users["rank"].tolist()
        assert recorded.table["hr@1"][number] == run.summary["hr@1"] == (recorded.ranks[number] == 0).mean()
        curves = recorded.curves[recorded.curves.run == number]
        assert curves[curves.kind == "metrics"].loss.tolist() == run.metrics.loss.tolist()
        evaluated = curves[curves.kind == "evaluation"]
        assert evaluated.step.tolist() == ([] if run.evaluation.empty else run.evaluation.step.tolist())
        won = run.users["reward_win"].tolist() if run.config.kind == "prefer" else [None] * 16
        assert [None if np.isnan(win) else bool(win) for win in recorded.wins[number]] == won
    assert recorded.wins[:4].mean(axis=1).tolist() == recorded.table["reward_win_rate"][:4].tolist()
    assert {name: rank.tolist() for name, rank in recorded.baselines.items()} == {
        name: rank.tolist() for name, rank in levels.items()
    }
    assert list(recorded.probes) == [2]
    pd.testing.assert_frame_equal(pd.read_parquet(recorded.probes[2]), finished_runs[2].probe)


def test_a_recorded_grid_says_where_it_comes_from(kept, tiny_splits):
    provenance = load_recorded("grid", kept).provenance
    assert provenance["command"] == "python data/record.py grid"
    assert provenance["chosen"] == {"beta": 1}
    assert provenance["dataset_fingerprint"] == tiny_splits.fingerprint
    assert provenance["seeds"] == [0, 1]
    assert provenance["recorded"].endswith("+00:00")
    assert {"minipo", "torch", "transformers", "machine", "python"} <= {*provenance["versions"]}


def test_reward_wins_are_paired_as_any_metric_is(kept):
    recorded = load_recorded("grid", kept)
    found = recorded.outcomes("reward_win_rate", dynamic="on")
    assert {seed: won.tolist() for seed, won in found.items()} == {0: [*recorded.wins[2]], 1: [*recorded.wins[3]]}
    plain = recorded.outcomes("reward_win_rate", objective="dmpo", dynamic="off")
    assert difference(found, plain).mean == pytest.approx(recorded.wins[2:4].mean() - recorded.wins[:2].mean())


def test_greedy_hits_are_paired_as_any_metric_is(finished_runs, levels, tiny, tmp_path):
    named = np.arange(16) % 5 == 0
    runs = [recorded_run(finished_runs[0], generated_hit=named), recorded_run(finished_runs[1], generated_hit=~named)]
    recorded = record(tmp_path, runs, levels)
    assert recorded.outcomes("generated_hit")[0].tolist() == named.tolist()
    assert recorded.outcomes("generated_hit")[1].tolist() == (~named).tolist()


def test_a_grid_recorded_before_wins_were_kept_is_read_without_them(kept):
    drop(kept / "ranks.parquet", "reward_win")
    recorded = load_recorded("grid", kept)
    assert recorded.wins is None
    with pytest.raises(
        ValueError, match=r"^Unknown metric of a user 'reward_win_rate'\. Known: hr@1, hr@5, ndcg@5, mrr"
    ):
        recorded.outcomes("reward_win_rate", dynamic="on")
    assert recorded.outcomes(dynamic="on")[0].tolist() == (recorded.ranks[2] == 0).tolist()


def test_recording_again_replaces_what_was_there(kept, finished_runs, levels):
    recorded = record(kept, finished_runs[:2], levels, [finished_runs[0]], command="again")
    assert len(recorded.table) == 2
    assert list(recorded.probes) == [0]
    assert recorded.provenance["command"] == "again"


def test_recorded_runs_are_recorded_again_beside_further_ones(kept, finished_runs, levels, tmp_path):
    first = record(tmp_path / "first", [finished_runs[number] for number in (4, 0, 1)], levels).runs()
    assert list(first) == [finished_runs[number].config for number in (4, 0, 1)]
    runs = [first.get(run.config, run) for run in finished_runs]
    again = record(tmp_path / "again", runs, levels)
    at_once = load_recorded("grid", kept)
    pd.testing.assert_frame_equal(again.table, at_once.table)
    pd.testing.assert_frame_equal(again.curves, at_once.curves, check_like=True)
    assert again.ranks.tolist() == at_once.ranks.tolist()
    np.testing.assert_array_equal(again.wins, at_once.wins)
    starts = [run.start for run in again.runs().values()]
    assert starts == [run.provenance["start_fingerprint"] for run in finished_runs]


def test_runs_on_a_file_in_the_repository_are_those_of_another_computer_s(
    finished_runs, levels, tiny, tmp_path, monkeypatch
):
    for place in ("here", "there"):
        (tmp_path / place / "data").mkdir(parents=True)
        (tmp_path / place / "data" / "plays.csv").touch()
    monkeypatch.setattr(records, "DATA", tmp_path / "here" / "data")
    entry = recorded_run(finished_runs[0])
    config = replace(entry.config, dataset=str(tmp_path / "here" / "data" / "plays.csv"))
    recorded = record(tmp_path / "grid", [replace(entry, config=config)], levels)
    assert recorded.configs == [config]
    monkeypatch.setattr(records, "DATA", tmp_path / "there" / "data")
    assert load_recorded("grid", tmp_path / "grid").configs[0].dataset == str(tmp_path / "there" / "data" / "plays.csv")


def test_a_recording_that_is_cut_off_is_not_read_as_a_whole_one(kept, finished_runs, levels, monkeypatch):
    write = pd.DataFrame.to_parquet

    def full(self, path, **settings):
        if "curves" in str(path):
            raise OSError(28, "No space left on device")
        write(self, path, **settings)

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OSError, match="No space left"):
        record(kept, finished_runs[:2], levels)
    with pytest.raises(ValueError, match=r"provenance\.json is missing; make it again"):
        load_recorded("grid", kept)


def test_ranks_among_300_negatives_are_kept(tiny, tmp_path, monkeypatch):
    """Each of 301 users has another rank, from the first to the last place."""
    items = tuple(f"Item {number}" for number in range(301))
    users = tuple(Interaction(number, ("Item 0",), item, items) for number, item in enumerate(items))
    many = Splits("many", tiny.train, tiny.validation, users, items)
    monkeypatch.setitem(DATASETS, "tiny", lambda seed: many)
    folder = tmp_path / "run"
    write_json(folder / "config.json", asdict(PreferConfig(dataset="tiny", negatives=300)))
    write_json(folder / "summary.json", {"dataset_fingerprint": many.fingerprint})
    ranks = np.arange(301)
    pd.DataFrame({"user": ranks, "rank": ranks, "reward_win": ranks == 0}).to_parquet(folder / "users.parquet")
    recorded = record(tmp_path / "grid", [Run(folder)], {"sft": ranks[::-1]})
    assert recorded.ranks[0].tolist() == list(range(301))
    assert recorded.baselines["sft"].tolist() == list(range(300, -1, -1))


def test_a_grid_whose_ranks_are_bytes_is_read_as_numbers_that_do_not_wrap(kept):
    path = kept / "ranks.parquet"
    table = pd.read_parquet(path)
    table.assign(rank=[np.full(16, 200, np.uint8)] * len(table)).to_parquet(path)
    baselines = pd.read_parquet(kept / "baselines.parquet").astype(np.uint8)
    baselines.to_parquet(kept / "baselines.parquet")
    recorded = load_recorded("grid", kept)
    assert (recorded.ranks[0] + recorded.ranks[1]).tolist() == [400] * 16
    assert (recorded.baselines["oracle"] - recorded.ranks[0]).tolist() == [-200] * 16


def test_runs_on_different_data_are_not_recorded_together(kept, finished_runs, levels, tiny, monkeypatch):
    whole = snapshot(kept)
    others = replace(tiny, train=tiny.train[1:])
    monkeypatch.setitem(DATASETS, "tiny", lambda seed: tiny if seed == 0 else others)
    other = workers.sft(progress=False, dataset="tiny", dataset_seed=1, steps=1)
    with pytest.raises(
        ValueError, match=r"these are on 2, with the fingerprints \w{16}, \w{16}; record them separately\.$"
    ):
        record(kept, [finished_runs[4], other], levels)
    monkeypatch.setitem(DATASETS, "tiny", lambda seed: others)  # by now
    with pytest.raises(ValueError, match=f"{tiny.fingerprint}, which has fingerprint {others.fingerprint} now"):
        record(kept, finished_runs[:2], levels)
    assert snapshot(kept) == whole


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shorten(folder, name, rows):
    pd.read_parquet(folder / name).head(rows).to_parquet(folder / name)


def drop(path, column):
    pd.read_parquet(path).drop(columns=column).to_parquet(path)


def keep_one_win(path):
    table = pd.read_parquet(path)
    table.assign(reward_win=table["reward_win"].map(lambda won: None if won is None else won[:1])).to_parquet(path)


DAMAGES = {
    "no folder": (shutil.rmtree, "The recorded grid 'grid' is missing: there is no folder"),
    "no table": (lambda folder: (folder / "table.parquet").unlink(), "table.parquet is missing"),
    "half a table": (lambda folder: os.truncate(folder / "table.parquet", 900), "table.parquet is damaged"),
    "half the ranks": (lambda folder: os.truncate(folder / "ranks.parquet", 300), "ranks.parquet is damaged"),
    "empty baselines": (lambda folder: os.truncate(folder / "baselines.parquet", 0), "baselines.parquet is damaged"),
    "half the curves": (lambda folder: os.truncate(folder / "curves.parquet", 900), "curves.parquet is damaged"),
    "no provenance": (lambda folder: (folder / "provenance.json").unlink(), "provenance.json is missing"),
    "half a provenance": (lambda folder: os.truncate(folder / "provenance.json", 40), "provenance.json is damaged"),
    "another provenance": (lambda folder: (folder / "provenance.json").write_text("[]"), "provenance.json is damaged"),
    "fewer ranks": (lambda folder: shorten(folder, "ranks.parquet", 3), "do not fit together"),
    "fewer rows": (lambda folder: shorten(folder, "table.parquet", 3), "do not fit together"),
    "no rows": (
        lambda folder: [shorten(folder, f"{name}.parquet", 0) for name in ("table", "ranks")],
        "do not fit together",
    ),
    "fewer users": (lambda folder: shorten(folder, "baselines.parquet", 15), "do not fit together"),
    "no ranks": (lambda folder: drop(folder / "ranks.parquet", "rank"), "do not fit together"),
    "wins of fewer users": (lambda folder: keep_one_win(folder / "ranks.parquet"), "do not fit together"),
    "a column less": (lambda folder: drop(folder / "table.parquet", "hr@1"), "do not fit together"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_missing_or_damaged_file_is_one_sentence_that_names_it(kept, damage):
    harm, message = DAMAGES[damage]
    harm(kept)
    with pytest.raises(ValueError, match=r"make it|run again") as caught:
        load_recorded("grid", kept)
    text = sentence(caught)
    assert message in text
    assert str(kept) in text


@pytest.fixture
def scored(kept, tiny_splits, finished_runs):
    """The recorded grid with its first run's log-probs of the test users; and these, and SFT's."""
    recorded = load_recorded("grid", kept)
    random = np.random.default_rng(0)

    def with_ranks(ranks):  # negatives above the chosen item, as many as its rank says
        count = len(tiny_splits.test[0].candidates) - 1
        above = np.arange(count) < np.asarray(ranks)[:, None]
        noise = random.random((len(ranks), count))
        return np.c_[np.full(len(ranks), -5.0), np.where(above, -4 + noise, -7 + noise)].astype(np.float32)

    recorded.baselines["sft"] = recorded.ranks[1]  # one that the log-probs can have
    policy, sft = with_ranks(recorded.ranks[0]), with_ranks(recorded.ranks[1])
    record_scores(recorded, {0: policy}, sft)
    return recorded, policy, sft


def test_a_test_users_probe_has_the_format_of_a_runs(scored, finished_runs, tiny_splits):
    recorded, policy, sft = scored
    user = tiny_splits.test[3]
    probe = recorded.test_probe(0, user.user)
    assert list(probe) == list(finished_runs[2].probe)
    assert list(recorded.scores) == [0]
    start, end = (probe[probe.step == step] for step in (0, SMALL["steps"]))
    assert len(probe) == len(start) + len(end) == 2 * len(user.candidates)
    assert start["policy"].tolist() == start["reference"].tolist() == sft[3].tolist()
    assert end["reference"].tolist() == sft[3].tolist()
    assert end["policy"].tolist() == policy[3].tolist()
    assert end["item"].tolist() == list(user.canonical)
    assert end["candidate"].tolist() == list(range(len(user.candidates)))


def test_what_was_not_scored_is_one_sentence(scored, tiny_splits):
    recorded, *_ = scored
    with pytest.raises(ValueError, match=r"log-probs of run 1 of the recorded grid 'grid' were not recorded"):
        recorded.test_probe(1, 0)
    with pytest.raises(ValueError, match=r"^There is no test user -7; they are numbered "):
        recorded.test_probe(0, -7)
    shorten(recorded.folder, "scores/0.parquet", 3)
    with pytest.raises(ValueError, match=r"are damaged; make them again\.$"):
        recorded.test_probe(0, tiny_splits.test[0].user)


def test_a_test_user_of_other_data_is_not_put_beside_recorded_log_probs(scored, tiny, monkeypatch):
    recorded, *_ = scored
    others = replace(tiny, test=tiny.test[::-1])
    monkeypatch.setitem(DATASETS, "tiny", lambda seed: others)
    with pytest.raises(
        ValueError, match=f"with fingerprint {tiny.fingerprint}, .* has fingerprint {others.fingerprint}"
    ):
        recorded.test_probe(0, tiny.test[0].user)
    with pytest.raises(ValueError, match=f"'grid' and 'grid' are on different data .*{tiny.fingerprint} and 0000"):
        check_same_data(recorded, replace(recorded, provenance={"dataset_fingerprint": "0000"}))


def test_log_probs_of_another_run_are_refused(scored):
    recorded, policy, sft = scored
    (recorded.folder / "scores" / "0.parquet").unlink()
    with pytest.raises(ValueError, match=r"^\d+ test users have a different rank under the log-probs of 0 than"):
        record_scores(recorded, {0: -policy}, sft)
    assert not recorded.scores


def test_recording_again_forgets_the_scores(scored, finished_runs, levels):
    recorded, *_ = scored
    assert not record(recorded.folder, finished_runs[:2], levels).scores


# Comparisons


def recorded_of(cells, baselines=None):
    """A recorded grid of (dynamic, negatives, seed, ranks)."""
    table = pd.DataFrame(
        [{"dynamic": dynamic, "negatives": negatives, "seed": seed} for dynamic, negatives, seed, _ in cells]
    )
    ranks = np.array([rank for *_, rank in cells])
    return Recorded(table, ranks, baselines or {}, pd.DataFrame(), {}, Path("nowhere"))


RECORDED = recorded_of(
    [
        ("off", 1, 0, [0, 0, 3, 5]),
        ("off", 1, 1, [0, 0, 0, 1]),
        ("off", 19, 1, [7, 0, 0, 1]),
        ("on", 19, 0, [0, 0, 0, 0]),
        ("off", 19, 0, [4, 0, 9, 2]),
    ],
    {"oracle": np.array([0, 0, 0, 2]), "sft": np.array([1, 0, 1, 1])},
)


def test_outcomes_are_every_users_by_seed():
    found = RECORDED.outcomes(dynamic="off", negatives=19)
    assert {seed: values.tolist() for seed, values in found.items()} == {0: [0, 1, 0, 0], 1: [0, 1, 1, 0]}
    reciprocal = RECORDED.outcomes("mrr", dynamic="off", negatives=19)
    assert reciprocal[0].tolist() == ranking_metrics(np.array([4, 0, 9, 2]))["mrr"].tolist()


def test_rows_match_any_of_several_values():
    assert RECORDED.rows(negatives=[1, 19], dynamic="off").index.tolist() == [0, 1, 2, 4]
    assert RECORDED.rows(negatives=(1, 5), seed=range(1)).index.tolist() == [0]
    assert len(RECORDED.rows()) == 5


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"dynamic": "off"}, "4 recorded runs have {'dynamic': 'off'}: give settings that leave one run per seed."),
        ({"negatives": 7}, "0 recorded runs have {'negatives': 7}: give settings that leave one run per seed."),
        ({"negative": 1}, "Unknown column 'negative'. Did you mean 'negatives'? Known: dynamic, negatives, seed."),
        (
            {"metric": "hr@10", "negatives": 1},
            "Unknown metric of a user 'hr@10'. Did you mean 'hr@1'? Known: hr@1, hr@5, ndcg@5, mrr.",
        ),
    ],
)
def test_a_query_that_names_no_run_a_seed_is_one_sentence(query, message):
    with pytest.raises(ValueError, match=r".") as caught:
        RECORDED.outcomes(**query)
    assert sentence(caught) == message


def test_an_unknown_baseline_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown baseline 'markow'\. Known: oracle, sft\.$"):
        RECORDED.baseline("markow")


def test_a_difference_pairs_seed_with_seed_whatever_their_order():
    few, many = RECORDED.outcomes(negatives=1), RECORDED.outcomes(negatives=19, dynamic="off")
    found = difference(many, few)
    assert found.mean == pytest.approx(np.mean([[-1, 0, 0, 0], [-1, 0, 0, 0]]))
    assert found.low <= found.mean <= found.high
    assert difference(many, dict(reversed(few.items()))) == found
    back = difference(few, many)
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low), abs=0.03)


def test_a_difference_leaves_out_seeds_that_only_one_side_has():
    whole = RECORDED.outcomes(dynamic="on")  # seed 0 alone
    assert difference(whole, RECORDED.outcomes(negatives=19, dynamic="off")).mean == 3 / 4


def test_runs_that_are_alike_differ_by_nothing():
    few = RECORDED.outcomes(negatives=1)
    found = difference(few, few)
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_a_baseline_is_paired_with_every_seed():
    few, oracle = RECORDED.outcomes(negatives=1), RECORDED.baseline("oracle")
    assert difference(oracle, few).mean == pytest.approx(np.mean([[0, 0, 1, 0], [0, 0, 0, 0]]))
    assert difference(few, oracle).mean == pytest.approx(-1 / 8)
    assert difference(oracle, RECORDED.baseline("sft")).mean == pytest.approx(2 / 4)


def test_runs_without_a_seed_in_common_cannot_be_paired():
    left, right = {0: np.ones(4)}, {1: np.zeros(4)}
    with pytest.raises(ValueError, match="The two sides have no seed in common, so their runs cannot be paired"):
        difference(left, right)
    assert json.dumps(sorted(left)) == "[0]"  # neither side is changed
