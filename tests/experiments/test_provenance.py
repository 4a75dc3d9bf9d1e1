"""A run belongs to its data and to the model that it started from; its settings name its folder in the cache."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from minipo.cli import main
from minipo.experiments import training
from minipo.experiments.configuration import PreferConfig, SFTConfig, make_config
from minipo.experiments.datasets.loading import DATASETS, load_dataset
from minipo.experiments.files import read_json, write_json
from minipo.experiments.runs import Run, cache_folder, model_fingerprint
from minipo.experiments.training import prefer, sft, sft_run
from minipo.trainers import COMPLETE
from tests.experiments.test_runs import Cut, cut_at

SMALL = {"dataset": "tiny", "negatives": 3, "steps": 12, "batch_size": 4, "evaluate_every": 12}


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """When each file in a folder was written, and what is in it."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def refused(capsys, *arguments) -> str:
    """The one sentence with which a command is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (said,) = printed.err.splitlines()
    return said.removeprefix("minipo: ")


def correct(plays: Path) -> tuple[str, str]:
    """Correct one row of a file of one's own; the fingerprints before and after."""
    before = load_dataset(plays).fingerprint
    lines = plays.read_text().splitlines()
    lines[3] = ",".join([lines[3].split(",")[0], "Corrected title", lines[3].split(",")[2]])
    plays.write_text("\n".join(lines) + "\n")
    return before, load_dataset(plays).fingerprint


def retrain(model: Path) -> tuple[str, str]:
    """Change a weight of a model's folder in place; the fingerprints before and after."""
    before = model_fingerprint(model)
    (path,) = model.glob("*.safetensors")
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name] = weights[name] + 0.5
    save_file(weights, path, metadata={"format": "pt"})
    return before, model_fingerprint(model)


@pytest.fixture
def copied(tiny_sft, tmp_path) -> Run:
    """The SFT run on "tiny", to be changed at will."""
    return Run(shutil.copytree(tiny_sft.folder, tmp_path / "copied"))


# Its data


@pytest.mark.parametrize("command", ["sft", "prefer"])
def test_a_run_that_was_cut_off_does_not_go_on_with_corrected_data(command, plays, tmp_path, monkeypatch, capsys):
    out, original = tmp_path / "run", plays.read_text()
    line = [command, "--dataset", plays, "--steps", 12, "--batch-size", 4, "--quiet", "--out", out]
    if command == "prefer":
        line += ["--sft", sft(tmp_path / "first", progress=False, dataset=plays, steps=1).folder, "--negatives", 2]
    cut_at(monkeypatch, 11, KeyboardInterrupt)
    with pytest.raises(SystemExit) as ended:
        main([str(part) for part in line])
    assert ended.value.code == 130
    assert (out / "checkpoints" / "checkpoint-10" / COMPLETE).exists()
    kept = snapshot(out)

    before, after = correct(plays)
    assert refused(capsys, *line) == (
        f"The run in {out} started on {plays} with fingerprint {before}, which has fingerprint {after} now; put the "
        "data back as they were, or train on the new ones in another folder."
    )
    assert snapshot(out) == kept

    plays.write_text(original)
    main([str(part) for part in line])
    assert Run(out).summary["dataset_fingerprint"] == before
    assert Run(out).metrics["step"].iloc[-1] == 12


@pytest.mark.slow
def test_a_killed_process_does_not_go_on_with_corrected_data(plays, tmp_path):
    out = tmp_path / "run"
    line = [sys.executable, "-m", "minipo", "sft", "--dataset", plays, "--steps", "300", "--quiet", "--out", out]
    child = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 200
    while not list(out.glob(f"checkpoints/*/{COMPLETE}")) and time.monotonic() < until:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    kept, (before, after) = snapshot(out), correct(plays)
    again = subprocess.run(line, capture_output=True, text=True)
    assert again.returncode == 2
    assert before in again.stderr
    assert after in again.stderr
    assert snapshot(out) == kept


def test_a_finished_run_is_neither_returned_nor_evaluated_on_corrected_data(plays, tmp_path, capsys):
    shared = {"dataset": plays, "steps": 2, "progress": False}
    first = sft(tmp_path / "first", **shared)
    run = prefer(tmp_path / "run", sft=first.folder, negatives=2, **shared)
    content = plays.read_bytes()
    plays.write_bytes(content)  # written anew, the same data
    assert prefer(run.folder, sft=first.folder, negatives=2, **shared) == run
    before, after = correct(plays)
    for line in (
        ["sft", "--dataset", plays, "--steps", 2, "--out", first.folder],
        ["prefer", "--dataset", plays, "--steps", 2, "--sft", first.folder, "--negatives", 2, "--out", run.folder],
        ["evaluate", first.folder],
        ["evaluate", run.folder],
    ):
        said = refused(capsys, *line)
        assert said.startswith(f"The run in {line[-1]} started on {plays} with fingerprint {before}, which has ")
        assert after in said
    # Nor does another run start from it.
    assert refused(capsys, "prefer", "--dataset", plays, "--sft", first.folder, "--out", tmp_path / "new") == (
        f"The SFT run in {first.folder} was trained on data with fingerprint {before}, and {plays} has fingerprint "
        f"{after}; train a new one."
    )
    assert not (tmp_path / "new").exists()
    plays.unlink()
    assert refused(capsys, "evaluate", run.folder).startswith(f"There is no file {plays}; check the path")


def test_without_a_folder_other_data_are_another_run(plays):
    settings = {"dataset": plays, "steps": 1, "progress": False}
    first = sft(**settings)
    correct(plays)
    second = sft(**settings)
    assert second.folder != first.folder
    assert sft(**settings) == second


def test_a_finished_run_from_before_the_note_counts_by_its_summary(copied, tiny_splits, monkeypatch):
    (copied.folder / "provenance.json").unlink()
    settings = asdict(copied.config)
    assert sft(copied.folder, progress=False, **settings) == copied
    assert copied.load_data() == tiny_splits
    others = replace(tiny_splits, train=tiny_splits.train[1:])
    monkeypatch.setitem(DATASETS, "tiny", lambda seed: others)
    with pytest.raises(ValueError, match=f"{tiny_splits.fingerprint}, which has fingerprint {others.fingerprint} now"):
        sft(copied.folder, progress=False, **settings)


def test_an_unfinished_run_from_before_the_note_is_not_resumed(copied):
    for name in ("provenance.json", "summary.json"):
        (copied.folder / name).unlink()
    with pytest.raises(ValueError, match=r"copied/provenance\.json is missing.* remove its folder and run again\.$"):
        sft(copied.folder, progress=False, **asdict(copied.config))


@pytest.mark.parametrize("damage", ["", "{}", "[1]"])
def test_a_damaged_note_is_one_sentence(damage, copied):
    (copied.folder / "provenance.json").write_text(damage)
    with pytest.raises(ValueError, match=r"provenance\.json is damaged.*; remove its folder and run again\.$"):
        copied.load_data()


def test_a_shipped_run_on_what_the_data_were_before_is_passed_over(copied, tiny, tmp_path, monkeypatch):
    shipped = shutil.copytree(copied.folder, tmp_path / "data" / "sft" / "tiny")
    monkeypatch.setattr(training, "DATA", tmp_path / "data")
    config = SFTConfig(dataset="tiny", epochs=1)
    write_json(shipped / "config.json", asdict(config))
    assert sft_run(PreferConfig(dataset="tiny", sft_epochs=1), progress=False).folder == shipped
    monkeypatch.setitem(DATASETS, "tiny", lambda seed: replace(tiny, train=tiny.train[1:]))
    found = sft_run(PreferConfig(dataset="tiny", sft_epochs=1), progress=False)
    assert (found.folder, found.config) == (cache_folder(config), config)


# The model that it started from


def test_a_run_that_was_cut_off_does_not_go_on_from_another_sft_model(copied, tmp_path, monkeypatch):
    out, settings = tmp_path / "run", SMALL | {"sft": copied.folder, "progress": False}
    cut_at(monkeypatch, 11)
    with pytest.raises(Cut):
        prefer(out, **settings)
    kept, (before, after) = snapshot(out), retrain(copied.folder / "model")
    with pytest.raises(ValueError, match=r".") as caught:
        prefer(out, **settings)
    assert str(caught.value) == (
        f"The run in {out} started from a model with fingerprint {before}, and the one in {copied.folder / 'model'} "
        f"has fingerprint {after}; put that model back, or remove the run's folder and train it again."
    )
    assert snapshot(out) == kept


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_finished_run_does_not_count_beside_another_sft_model(tuning, copied, tmp_path, capsys):
    settings = SMALL | {"sft": copied.folder, "progress": False, "steps": 1, "tuning": tuning}
    run = prefer(tmp_path / "run", **settings)
    sentence = "started from a model with fingerprint {}, and the one in .* has fingerprint {};"
    sentence = sentence.format(*retrain(copied.folder / "model"))
    with pytest.raises(ValueError, match=sentence):
        prefer(run.folder, **settings)
    assert refused(capsys, "evaluate", run.folder, "--quiet").count("fingerprint") == 2
    if tuning == "lora":  # whose adapter belongs to that model
        with pytest.raises(ValueError, match=sentence):
            run.load_model()
    else:
        run.load_model()
    shutil.rmtree(copied.folder)  # what is gone contradicts nothing
    assert prefer(run.folder, **settings) == run


def test_more_sft_does_not_go_on_from_another_sft_model(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "DATA", tmp_path)  # nothing shipped
    settings = {"dataset": "tiny", "start_epochs": 1, "steps": 12, "progress": False}
    cut_at(monkeypatch, 11)
    with pytest.raises(Cut):
        sft(tmp_path / "more", **settings)
    start = sft_run(SFTConfig(**{name: settings[name] for name in ("dataset", "start_epochs")}), progress=False)
    before, after = retrain(start.folder / "model")
    with pytest.raises(ValueError, match=f"with fingerprint {before}, and the one in .* has fingerprint {after};"):
        sft(tmp_path / "more", **settings)


def test_a_model_folder_of_ones_own_is_a_start_too(copied, tmp_path):
    settings = {"dataset": "tiny", "model": copied.folder / "model", "template": "line", "steps": 1, "progress": False}
    run = sft(tmp_path / "run", **settings)
    retrain(copied.folder / "model")
    for ask in (lambda: sft(run.folder, **settings), run.load_model):
        with pytest.raises(ValueError, match="started from a model with fingerprint"):
            ask()


def test_a_models_fingerprint_is_that_of_its_content(copied, tiny, tmp_path):
    model = copied.folder / "model"
    found = model_fingerprint(model)
    os.utime(next(model.glob("*.safetensors")), (1, 1))
    assert model_fingerprint(model) == model_fingerprint(shutil.copytree(model, tmp_path / "moved")) == found
    settings = {"dataset": "tiny", "model": model, "template": "line", "steps": 1, "progress": False}
    adapter = sft(tmp_path / "adapter", **settings).folder / "model"
    upon = model_fingerprint(adapter)
    retrain(model)
    assert model_fingerprint(model) != found
    assert model_fingerprint(adapter) != upon  # an adapter is another model upon another one
    tokenizer = read_json(model / "tokenizer_config.json")
    before = model_fingerprint(model)
    write_json(model / "tokenizer_config.json", tokenizer | {"model_max_length": 7})
    assert model_fingerprint(model) != before


# Settings that come later


@dataclass(frozen=True)
class Later(PreferConfig):
    """The settings of a later version: one more, whose default is what runs did before it."""

    warmth: str = "cold"


def test_a_setting_that_is_added_orphans_no_run(tiny):
    settings = {"dataset": "tiny", "steps": 7, "learning_rate": 1e-3}
    assert cache_folder(Later(**settings)) == cache_folder(PreferConfig(**settings))
    assert cache_folder(Later(**settings, warmth="warm")) != cache_folder(PreferConfig(**settings))


def test_other_settings_are_another_folder_and_the_same_value_is_the_same(tiny):
    others = [
        {}, {"steps": 7}, {"seed": 7}, {"beta": 7.0}, {"margin": 7.0, "dynamic": "on"}, {"dynamic": "on"},
        {"dynamic": "on", "select": "off"}, {"dynamic": "on", "adjust_beta": "off"}, {"validation_users": 7},
    ]  # fmt: skip
    folders = [cache_folder(make_config(PreferConfig, {"dataset": "tiny", **each})) for each in others]
    assert len({*folders, cache_folder(make_config(SFTConfig, {"dataset": "tiny"}))}) == len(others) + 1
    for beta in (7, 7.0, np.int64(7), np.float32(7)):
        assert cache_folder(make_config(PreferConfig, {"dataset": "tiny", "beta": beta})) == folders[3]


def test_a_setting_that_a_folder_lacks_was_as_by_default_whatever_the_recipe_says(tmp_path):
    place = {"dataset": "catalog", "model": "smollm2-135m"}
    today = make_config(SFTConfig, place)
    assert today.precision == "auto"
    older = {name: value for name, value in asdict(today).items() if name != "precision"}
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert Run(tmp_path).config == replace(today, precision="float32")
    with pytest.raises(ValueError, match="holds a run with precision = 'float32', not 'bfloat16'"):
        sft(tmp_path, progress=False, **asdict(today) | {"precision": "bfloat16"})
    (tmp_path / "config.json").write_text(json.dumps(older | {"tunning": "full"}))
    with pytest.raises(ValueError, match=r"^Unknown setting 'tunning'\. Did you mean 'tuning'\?"):
        Run(tmp_path).config  # noqa: B018
