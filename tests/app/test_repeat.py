"""Commands and notebook cells repeat a run: given back to minipo, they are the settings that it had."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import nbformat
import pytest
import repeat

import minipo
from minipo import cli
from minipo.experiments import sweeps
from minipo.experiments.configuration import CONFIGS, PreferConfig, SFTConfig, make_config
from minipo.experiments.runs import Run
from minipo.experiments.sweeps import grid
from minipo.experiments.training import prefer

RUNS = {
    "plain": (PreferConfig, {"dynamic": "off", "negatives": 3}),
    "a margin that plays no part": (PreferConfig, {"dynamic": "off", "margin": 2.0, "clusters": 4}),
    "DynamicPO": (PreferConfig, {"dynamic": "on", "steps": 10, "learning_rate": 1e-5, "beta": 0.25}),
    "a control": (PreferConfig, {"dynamic": "on", "select": "random", "adjust_beta": "off"}),
    "not the usual batch": (PreferConfig, {"batch_size": 16, "accumulation": 4, "evaluate_every": 7, "sft_seed": 2}),
    "MovieLens": (PreferConfig, {"dataset": "ml-100k", "objective": "sdpo"}),
    "a language model": (PreferConfig, {"dataset": "ml-100k", "model": "smollm2-135m", "validation_users": 9}),
    "SFT": (SFTConfig, {"epochs": 20}),
    "more SFT": (SFTConfig, {"start_epochs": 40, "steps": 991, "learning_rate": 1e-3}),
    "SFT on answers": (SFTConfig, {"dataset": "ml-100k", "whole_line": False, "template": "question"}),
}


@pytest.fixture
def asked(monkeypatch):
    """The configurations that minipo is asked to train, which it does not."""
    found = []

    def train(kind):
        def caught(out=None, *, progress=True, **settings):
            found.append(make_config(CONFIGS[kind], settings))
            raise SystemExit(0)

        return caught

    def sweep(*, out=None, workers=None, progress=True, folder=None, **settings):
        found.extend(grid(**settings))
        raise SystemExit(0)

    for kind in CONFIGS:
        monkeypatch.setattr(cli, kind, train(kind))
        monkeypatch.setattr(minipo, kind, train(kind))
    monkeypatch.setattr(sweeps, "sweep", sweep)
    return found


def run_command(text: str) -> None:
    for line in text.splitlines():
        words = shlex.split(line)
        assert words[0] == "minipo"
        with pytest.raises(SystemExit) as ended:
            cli.main(words[1:])
        assert ended.value.code == 0


def settings_of(name: str, **more) -> dict:
    kind, settings = RUNS[name]
    found = asdict(make_config(kind, settings | more))
    found.pop("seed")
    return found


@pytest.mark.parametrize("seeds", [[0], [7], [0, 3, 4]])
@pytest.mark.parametrize("name", RUNS)
def test_the_command_has_the_runs_settings(asked, name, seeds):
    settings = settings_of(name)
    run_command(repeat.command(settings, seeds))
    assert [asdict(config) for config in asked] == [{**settings, "seed": seed} for seed in seeds]


@pytest.mark.parametrize("seeds", [[7], [0, 3, 4]])
@pytest.mark.parametrize("name", RUNS)
def test_the_cell_has_the_runs_settings(asked, name, seeds):
    settings = settings_of(name)
    with pytest.raises(SystemExit):
        exec(repeat.cell(settings, seeds), {})
    several_sft = settings["kind"] == "sft" and len(seeds) > 1  # of which the first ended the cell here
    assert [asdict(config) for config in asked] == [
        {**settings, "seed": seed} for seed in (seeds[:1] if several_sft else seeds)
    ]


@pytest.mark.parametrize("name", ["my songs; rm -rf ~.csv", 'it\'s "$HOME" `x`.csv', "-x.csv", "ünï\\.csv"])
def test_a_files_name_is_quoted(asked, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("user,item\n")
    settings = settings_of("plain") | {"dataset": f"./{name}"}
    run_command(repeat.command(settings, [0]))
    with pytest.raises(SystemExit):
        exec(repeat.cell(settings, [0]), {})
    assert [config.dataset for config in asked] == [str(tmp_path / name)] * 2


def test_script_and_notebook_hold_every_run_and_a_name_is_no_code():
    runs = [("one\nimport os\r\nboom", settings_of("plain"), [0, 1]), ("two", settings_of("more SFT"), [0, 1])]
    script, notebook = repeat.script(runs), repeat.notebook(runs)
    assert [line for line in script.splitlines() if line.startswith("#")] == [
        "#!/bin/sh",
        "# one import os boom",
        "# two",
    ]
    assert all(repeat.command(settings, seeds) in script for _, settings, seeds in runs)
    made = nbformat.reads(notebook, 4)
    nbformat.validate(made)
    assert [cell["source"] for cell in made["cells"]] == [
        "# one import os boom\n" + repeat.cell(*runs[0][1:]), "# two\n" + repeat.cell(*runs[1][1:]),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_that_is_repeated_is_the_same_run(tmp_path, home, capsys):
    run = prefer(tmp_path / "run", dynamic="on", negatives=4, steps=10, seed=3, progress=False)
    settings = asdict(run.config)
    seed = settings.pop("seed")
    cli.main([*shlex.split(repeat.command(settings, [seed]))[1:], "--quiet", "--json"])
    by_command = Run(Path(json.loads(capsys.readouterr().out)["folder"]))
    names: dict = {}
    exec(repeat.cell(settings, [seed]), names)
    for again in (by_command, names["run"]):
        assert again.folder != run.folder
        assert (again.folder / "config.json").read_text() == (run.folder / "config.json").read_text()
        assert again.users.equals(run.users)
        assert again.summary["train_loss"] == run.summary["train_loss"]
