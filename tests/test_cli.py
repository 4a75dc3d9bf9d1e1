"""The command line: results alone on standard output, and a mistake is one sentence and exit code 2."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from minipo import cli
from minipo.cli import main
from minipo.experiments import fetch, sweeps
from minipo.experiments.configuration import PreferConfig, SFTConfig, make_config
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.records import RESULTS, SETTINGS
from minipo.experiments.runs import DATA, Run, cache_folder
from minipo.experiments.sweeps import grid

SMALL = ["--dataset", "tiny", "--sft-epochs", "1", "--steps", "2", "--batch-size", "4", "--quiet"]


def shell(*arguments, timeout=60):
    """`minipo` as a shell runs it."""
    return subprocess.run([sys.executable, "-m", "minipo", *arguments], capture_output=True, text=True, timeout=timeout)


def fails(capsys, *arguments):
    """The one sentence with which a command ends, exit code 2 and nothing on standard output beside it."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("minipo: ")
    assert printed.err.endswith("\n")
    assert len(printed.err.splitlines()) == 1
    return printed.err.removeprefix("minipo: ").strip()


@pytest.fixture
def asked(monkeypatch):
    """What the library was asked for, in place of doing it: by the names of its functions, and their settings."""
    calls = SimpleNamespace(settings=None)

    def note(*arguments, **settings):
        calls.settings = settings
        raise KeyboardInterrupt

    for room, name in ((cli, "sft"), (cli, "prefer"), (sweeps, "sweep")):
        monkeypatch.setattr(room, name, note)

    def ask(*arguments):
        with pytest.raises(SystemExit):
            main(arguments)
        return calls.settings

    return ask


# What it says about itself


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")}
    assert {"fetch", "data", "sft", "prefer", "sweep", "evaluate", "app"} <= listed


@pytest.mark.parametrize(("command", "config"), [("sft", SFTConfig), ("prefer", PreferConfig), ("sweep", PreferConfig)])
def test_help_of_a_command_lists_every_setting(capsys, command, config):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    listed = {word for line in capsys.readouterr().out.splitlines() for word in line.split()[:1] if word[:2] == "--"}
    settings = {"--" + field.name.replace("_", "-") for field in fields(config)} - {"--kind"}
    if command == "sweep":
        settings = settings - {"--seed"} | {"--seeds", "--workers", "--runs"}
    assert settings | {"--out", "--json", "--quiet"} == listed


# What it asks of the library


def test_designs_own_sweep_is_that_grid(asked):
    line = (
        "sweep --dataset catalog --model pocket-gpt2 --objective dmpo --negatives 1,5,15 --dynamic off,on "
        "--seeds 0,1,2 --out table.parquet --runs a/folder"
    )
    assert asked(*line.split()) == {
        "dataset": ["catalog"],
        "model": ["pocket-gpt2"],
        "objective": ["dmpo"],
        "negatives": [1, 5, 15],
        "dynamic": ["off", "on"],
        "seeds": [0, 1, 2],
        "out": "table.parquet",
        "folder": "a/folder",
        "workers": None,
        "progress": True,
    }


def test_settings_arrive_as_what_they_are(asked):
    line = "prefer --beta 0.5 --steps 7 --sft a/folder --select random --dynamic on --learning-rate 1e-4 --quiet"
    assert asked(*line.split()) == {
        "beta": 0.5,
        "steps": 7,
        "sft": "a/folder",
        "select": "random",
        "dynamic": "on",
        "learning_rate": 1e-4,
        "progress": False,
    }


def test_an_objectives_own_settings_arrive(asked):
    assert asked("prefer", "--objective", "simpo", "--target-margin", "0.3", "--quiet") == {
        "objective": "simpo",
        "target_margin": 0.3,
        "progress": False,
    }


def test_settings_of_pretrained_models_arrive_too(asked):
    line = "sft --dataset plays.csv --model smollm2-135m --epochs 0.5 --precision bfloat16 --rank 4 --start-epochs 0.25"
    assert asked(*line.split(), "--quiet") == {
        "dataset": "plays.csv",
        "model": "smollm2-135m",
        "epochs": 0.5,
        "precision": "bfloat16",
        "rank": 4,
        "start_epochs": 0.25,
        "progress": False,
    }
    assert asked("prefer", "--validation-users", "64", "--sft-epochs", "0.5") == {
        "validation_users": 64,
        "sft_epochs": 0.5,
        "progress": True,
    }


@pytest.mark.parametrize(("word", "value"), [("yes", True), ("no", False)])
def test_whole_line_takes_yes_and_no(asked, word, value):
    assert asked("sft", "--whole-line", word)["whole_line"] is value


# What it answers


def test_prefer_prints_one_json_document(capsys, tiny, tmp_path):
    main(["prefer", *SMALL, "--negatives", "5", "--out", str(tmp_path / "run"), "--json"])
    printed = capsys.readouterr()
    content = json.loads(printed.out)
    run = Run(tmp_path / "run")
    assert content == {"folder": str(run.folder), **run.summary}
    assert run.config == grid(dataset="tiny", sft_epochs=1, steps=2, batch_size=4, negatives=5)[0]
    assert printed.err == ""  # --quiet


def test_prefer_prints_its_numbers_for_people(capsys, tiny, tmp_path):
    main(["prefer", *SMALL, "--out", str(tmp_path / "run")])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == str(tmp_path / "run")
    printed = {name: float(value) for name, value in map(str.split, lines)}
    assert printed["hr@1"] == pytest.approx(Run(tmp_path / "run").summary["hr@1"], abs=5e-5)


def test_a_number_that_is_none_is_null_in_json(capsys, tiny, tiny_sft, tmp_path):
    """A loss that diverged is NaN, which JSON does not know."""
    command = ["prefer", *SMALL, "--sft", str(tiny_sft.folder), "--out", str(tmp_path / "run"), "--json"]
    main(command)
    summary = tmp_path / "run" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"train_loss": float("nan")}))
    capsys.readouterr()
    main(command)
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert content["train_loss"] is None
    assert content["hr@1"] is not None


def test_sweep_prints_one_json_document_without_nan(capsys, monkeypatch):
    row = dict.fromkeys([*SETTINGS, *RESULTS], 1) | {"hr@1": 0.1 + 0.2, "learning_rate": 1e-4}
    row |= {"boundary_share": np.nan}
    monkeypatch.setattr(sweeps, "sweep", lambda **_: pd.DataFrame([row, row | {"boundary_share": np.inf}]))
    main(["sweep", "--json"])
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [found["boundary_share"] for found in content["runs"]] == [None, None]
    assert content["runs"][0]["hr@1"] == pytest.approx(0.3, abs=1e-9)
    assert content["runs"][0]["learning_rate"] == 1e-4


def test_evaluate_finds_what_the_run_itself_found(capsys, tiny, tmp_path):
    main(["prefer", *SMALL, "--out", str(tmp_path / "run")])
    capsys.readouterr()
    main(["evaluate", str(tmp_path / "run"), "--json", "--quiet"])
    content, summary = json.loads(capsys.readouterr().out), Run(tmp_path / "run").summary
    for name in ("hr@1", "hr@5", "ndcg@5", "mrr", "reward_win_rate"):
        assert content[name] == pytest.approx(summary[name])
    assert 0 <= content["valid_ratio"] <= 1
    assert content["split"] == "test"
    main(["evaluate", str(tmp_path / "run"), "--json", "--quiet", "--split", "validation"])
    assert json.loads(capsys.readouterr().out)["pair_loss"] == pytest.approx(summary["pair_loss"])


def test_evaluate_takes_an_sft_run(capsys, tiny, tiny_sft):
    main(["evaluate", str(tiny_sft.folder), "--json"])
    content = json.loads(capsys.readouterr().out)
    assert content["hr@1"] == pytest.approx(tiny_sft.summary["hr@1"])
    assert "pair_loss" not in content  # there is no reference to compare it with


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_on_a_file_of_ones_own_is_evaluated_as_it_was(capsys, plays, tmp_path, precision):
    small = ["--epochs", "3", "--batch-size", "16", "--quiet", "--out", str(tmp_path / "first")]
    place = ["--dataset", str(plays), "--precision", precision]
    main(["sft", *place, *small])
    main(
        ["prefer", *place, "--sft", str(tmp_path / "first"), "--steps", "3", "--quiet", "--out", str(tmp_path / "run")]
    )
    capsys.readouterr()
    main(["evaluate", str(tmp_path / "run"), "--json", "--quiet"])
    content, summary = json.loads(capsys.readouterr().out), Run(tmp_path / "run").summary
    for name in ("hr@1", "hr@5", "ndcg@5", "mrr", "reward_win_rate"):
        assert content[name] == pytest.approx(summary[name]), name
    assert 0 <= content["valid_ratio"] <= 1


@pytest.mark.slow
def test_a_shell_gets_one_json_document_and_the_bar_beside_it(tmp_path):
    line = ["prefer", "--json", "--steps", "2", "--sft-epochs", "1", "--out"]
    result = shell(*line, str(tmp_path / "run"), timeout=250)
    assert result.returncode == 0
    assert json.loads(result.stdout)["folder"] == str(tmp_path / "run")
    assert result.stdout.count("\n") == 1
    assert "2/2" in result.stderr
    result = shell(*line, str(tmp_path / "other"), "--seed", "1", "--quiet", timeout=250)
    assert result.stderr == ""


@pytest.mark.slow
def test_a_shell_gets_a_sweeps_table(tmp_path, home):
    out = tmp_path / "table.parquet"
    line = f"sweep --json --steps 2 --sft-epochs 1 --negatives 1,2 --dynamic off,on --seeds 5 --out {out}"
    result = shell(*line.split(), timeout=280)
    assert result.returncode == 0
    content = json.loads(result.stdout, parse_constant=pytest.fail)
    assert [(run["negatives"], run["dynamic"], run["seed"]) for run in content["runs"]] == [
        (1, "off", 5),
        (1, "on", 5),
        (2, "off", 5),
        (2, "on", 5),
    ]
    assert pd.read_parquet(out)["hr@1"].tolist() == pytest.approx([run["hr@1"] for run in content["runs"]])
    assert "4/4" in result.stderr


# Data


def test_data_says_what_a_dataset_holds(capsys):
    main(["data", "catalog", "--json"])
    content = json.loads(capsys.readouterr().out)
    splits = load_dataset("catalog")
    assert content == {"dataset": "catalog", "fingerprint": splits.fingerprint, **splits.report}
    assert content["rows"] == {"train": 4000, "validation": 1000, "test": 2000}
    assert content["items"] == len(splits.items)


def test_data_says_what_was_left_out_of_a_file_of_ones_own(capsys, plays):
    with plays.open("a") as file:
        file.write("user 0,,1\nnewcomer,Film3 of3,2\n")
    main(["data", str(plays), "--json"])
    content = json.loads(capsys.readouterr().out)
    dropped = {what: count for what, count in content["dropped"].items() if count}
    assert dropped == {"rows without item": 1, "users with fewer than 6 liked items": 1}
    assert content["rows"] == {"train": 60, "validation": 20, "test": 20}
    assert content["ties"]["order"] == "file"
    main(["data", str(plays), "--ties", "random", "--json"])
    assert json.loads(capsys.readouterr().out)["ties"]["order"] == "random"
    main(["data", str(plays)])
    text = capsys.readouterr().out
    for part in ("rows without item", "users with fewer than 6 liked items", "30", "60"):
        assert part in text


def test_data_takes_titles_and_the_least_liked_rating(capsys, tmp_path):
    plays, titles = tmp_path / "plays.csv", tmp_path / "titles.csv"
    rows = [f"{user},{item},{item},{10 * (item % 2)}" for user in (1, 2) for item in range(20 * user, 20 * user + 20)]
    plays.write_text("\n".join(["user,item,timestamp,rating", *rows]) + "\n")
    titles.write_text("item,title\n" + "".join(f"{item},Film {item}\n" for item in range(20, 60)))
    main(["data", str(plays), "--titles", str(titles), "--liked-from", "7.5", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert content["fingerprint"] == load_dataset(plays, titles=titles, liked_from=7.5).fingerprint
    assert content["interactions"] == 20
    assert content["notes"] == ["Titles of items are from titles.csv."]
    main(["data", str(plays), "--titles", str(titles), "--liked-from", "7.5"])
    assert "  note          Titles of items are from titles.csv.\n" in capsys.readouterr().out


def test_fetch_says_where_it_put_things(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "fetch", lambda name, progress: tmp_path / name)
    main(["fetch", "ml-100k", "gpt2", "--json", "--quiet"])
    assert json.loads(capsys.readouterr().out) == {name: str(tmp_path / name) for name in ("ml-100k", "gpt2")}
    main(["fetch", "gpt2"])
    assert capsys.readouterr().out.split() == ["gpt2", str(tmp_path / "gpt2")]


# Mistakes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prefer --objective dmmpo", "Unknown objective 'dmmpo'. Did you mean 'dmpo'? Known: dpo, dmpo, sdpo, mppo"),
        ("prefer --dataset catalogue", "Unknown dataset 'catalogue'. Did you mean 'catalog'? Known: catalog"),
        ("prefer --model pocket-gpt3 --quiet", "Unknown model 'pocket-gpt3'. Did you mean 'pocket-gpt2'? Known: "),
        ("sft --model ./nowhere", "There is no model folder './nowhere'; "),
        ("prefer --dynamic on --select hardst", "Unknown select 'hardst'. Did you mean 'hardest'? Known: "),
        ("prefer --negatives 40", "negatives must be "),
        ("prefer --negatives 0", "negatives must be greater than or equal to 1, not 0."),
        ("prefer --beta 0", "beta must be greater than 0, not 0"),
        ("prefer --beta nan", "beta must be a finite number, not nan."),
        ("prefer --learning-rate inf", "learning_rate must be a finite number, not inf."),
        ("prefer --sft {tmp_path}", "{tmp_path} is not a finished SFT run: "),
        ("prefer --out {tmp_path}", "{tmp_path} exists and is not a run; choose another folder."),
        ("prefer --precision half", "Unknown precision 'half'. Known: auto, float32, bfloat16, float16."),
        ("sweep --negatives 1,40", "negatives must be at most 19, the most that a user here has, not 40."),
        ("fetch ml-100", "Unknown model or dataset to fetch 'ml-100'. Did you mean 'ml-100k'? Known: ml-100k, "),
        ("data catalogue", "Unknown dataset 'catalogue'. Did you mean 'catalog'? Known: catalog"),
        ("data {tmp_path}/plays.csv", "There is no file {tmp_path}/plays.csv; check the path, or name one of catalog"),
        (
            "data {tmp_path}/notes.txt",
            "{tmp_path}/notes.txt is not a file that minipo reads; give one whose name ends in .csv",
        ),
        ("data catalog --dataset-seed -1", "The dataset's seed is -1; use a whole number of 0 or more."),
        ("sft --dataset {tmp_path}/notes.txt", "{tmp_path}/notes.txt is not a file that minipo reads; "),
        (
            "data catalog --titles {tmp_path}/notes.txt",
            "titles applies only to a table of your own interactions, which catalog is",
        ),
        (
            "sft --liked-from 3",
            "liked_from applies only to a table of your own interactions, which catalog is not; leave it out.",
        ),
        (
            "sweep --dataset ml-100k --liked-from 3,4",
            "liked_from applies only to a table of your own interactions, which ml-100k",
        ),
        ("sweep --negatives ,", "negatives has no values; give at least one."),
        ("sweep --objective dmpo,spdo", "Unknown objective 'spdo'. Did you mean 'sdpo'? Known: "),
        ("sweep --out {tmp_path}/table.xlsx", "The table's file must end in .parquet or .csv, not 'table.xlsx'"),
        ("sweep --workers 0", "workers must be at least 1, not 0."),
        ("evaluate {tmp_path}", "{tmp_path} is not a run, because it has no config.json"),
    ],
)
def test_a_mistake_is_one_sentence(capsys, tmp_path, home, line, message):
    (tmp_path / "notes.txt").write_text("not a run")
    text = fails(capsys, *line.format(tmp_path=tmp_path).split())
    assert text.startswith(message.format(tmp_path=tmp_path))
    assert not list(home.glob("runs/*"))  # nothing was begun
    assert [path.name for path in tmp_path.iterdir() if path != home] == ["notes.txt"]


def test_a_preference_run_is_no_sft_run(capsys, tiny, tmp_path):
    main(["prefer", *SMALL, "--out", str(tmp_path / "run")])
    capsys.readouterr()
    text = fails(capsys, "prefer", *SMALL, "--sft", str(tmp_path / "run"))
    assert text == f"{tmp_path / 'run'} is not an SFT run but a 'prefer' run; name the folder of an SFT run."


def test_a_folder_with_another_run_is_left_alone(capsys, tiny, tiny_sft, tmp_path):
    command = ["prefer", *SMALL, "--sft", str(tiny_sft.folder), "--out", str(tmp_path / "run"), "--seed"]
    main([*command, "1"])
    capsys.readouterr()
    text = fails(capsys, *command, "2")
    assert text == f"{tmp_path / 'run'} holds a run with seed = 1, not 2; choose another folder."


def test_an_unfinished_run_is_not_evaluated(capsys, tiny, tmp_path):
    main(["prefer", *SMALL, "--out", str(tmp_path / "run")])
    (tmp_path / "run" / "summary.json").unlink()
    capsys.readouterr()
    assert fails(capsys, "evaluate", str(tmp_path / "run")).startswith(f"The run in {tmp_path / 'run'} is unfinished")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prefer --objectiv-e dmpo", "minipo: error: unrecognized arguments: --objectiv-e dmpo"),
        ("prefer --negatives x", "minipo prefer: error: argument --negatives: invalid int value: 'x'"),
        ("sweep --negatives 1,x", "minipo sweep: error: argument --negatives: invalid int value: '1,x'"),
        ("sft --whole-line maybe", "minipo sft: error: argument --whole-line: 'maybe' is neither yes nor no"),
        ("evaluate somewhere --split tests", "minipo evaluate: error: argument --split: invalid choice: 'tests'"),
        ("", "minipo: error: the following arguments are required: command"),
    ],
)
def test_a_line_that_is_no_command_gets_the_usage(capsys, line, message):
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    usage, *_, last = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert usage.startswith("usage: minipo")
    assert last.startswith(message)


def test_a_shell_sees_the_sentence_and_no_traceback():
    result = shell("prefer", "--objective", "dmmpo")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(
        "minipo: Unknown objective 'dmmpo'. Did you mean 'dmpo'? Known: dpo, dmpo, sdpo, mppo"
    )
    assert result.stderr.count("\n") == 1


def test_a_reader_who_has_enough_is_no_error():
    """As with `minipo data catalog | head -1`: the pipe is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        result = subprocess.run(
            [sys.executable, "-m", "minipo", "data", "catalog"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (result.returncode, result.stderr) == (141, "")


def test_a_sentence_of_several_lines_becomes_one(capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError("No space left on device:\n  /a  b/c\n")

    monkeypatch.setattr(cli, "prefer", fail)
    assert fails(capsys, "prefer") == "No space left on device:   /a  b/c"


def test_an_interrupt_says_how_to_go_on(capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "prefer", interrupt)
    with pytest.raises(SystemExit) as ended:
        main(["prefer"])
    assert ended.value.code == 130
    said = capsys.readouterr().err
    assert said == "minipo: stopped; the same command resumes it from its last checkpoint, if it has one.\n"


# The app


def test_app_starts_streamlit_on_the_page_with_its_arguments(monkeypatch):
    started = []
    monkeypatch.setattr("streamlit.web.cli.main", lambda: started.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["minipo", "app"])
    monkeypatch.chdir(DATA.parent / "tests")
    main(["app", "--server.port", "8600"])
    ((program, command, page, *arguments),) = started
    assert (program, command, arguments) == ("streamlit", "run", ["--server.port", "8600"])
    assert os.path.isfile(page)
    assert os.path.samefile(os.getcwd(), DATA.parent)  # where Streamlit looks for .streamlit/config.toml


def test_app_without_the_repository_is_one_sentence(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "DATA", tmp_path / "data")
    assert fails(capsys, "app").startswith(f"The app is missing at {tmp_path / 'app' / 'main.py'}: install minipo from")


def test_runs_without_out_lie_in_the_cache(capsys, tiny, tiny_sft):
    main(["prefer", *SMALL, "--sft", str(tiny_sft.folder), "--json"])
    content = json.loads(capsys.readouterr().out)
    settings = {"dataset": "tiny", "sft_epochs": 1, "steps": 2, "batch_size": 4, "sft": str(tiny_sft.folder)}
    assert content["folder"] == str(cache_folder(make_config(PreferConfig, settings)))


# Pairs


def test_pair_writes_its_file_and_prints_the_difference(capsys, tiny, tmp_path):
    side, out = "dataset=tiny sft_epochs=1 steps=2 batch_size=4 negatives=", tmp_path / "pair-7.json"
    line = ["pair", "--left", side + "1", "--right", side + "5", "--seed", "7", "--out", str(out), "--quiet", "--json"]
    main([*line, "--runs", str(tmp_path / "runs")])
    printed = capsys.readouterr()
    left, right = (Run(tmp_path / "runs" / name).summary["hr@1"] for name in ("left", "right"))
    content = json.loads(printed.out)
    assert content == {
        "out": str(out),
        "seed": 7,
        "left": left,
        "right": right,
        "difference": pytest.approx(right - left),
    }
    assert json.loads(out.read_text())["right"]["hr@1"] == right
    assert printed.err == ""


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ("objective", "'objective' is not a setting; write NAME=VALUE, as in objective=dmpo negatives=1."),
        ("negatives=x", "negatives must be a valid integer, not 'x'."),
        ("negative=1", "Unknown setting 'negative'. Did you mean 'negatives'?"),
        ("objective=dmmpo", "Unknown objective 'dmmpo'. Did you mean 'dmpo'?"),
        ("seed=1", "A pair's runs share one seed"),
        ("negatives=15", "The two sides have the same settings; change one of them."),
        ("template='line", 'The settings "template=\'line" have an unmatched quotation mark; close it.'),
    ],
)
def test_a_pair_that_is_none_is_one_sentence(capsys, home, left, message):
    assert fails(capsys, "pair", "--left", left, "--right", "negatives=15", "--quiet").startswith(message)
    assert not list(home.glob("runs/*"))
