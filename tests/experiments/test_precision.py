"""A run's precision: the faster one on its machine, unless it is given; written down, kept, and said in a line."""

import shutil
from dataclasses import asdict, replace

import pytest

from minipo.cli import main
from minipo.experiments import precision, training
from minipo.experiments.configuration import PreferConfig, SFTConfig, make_config, start_config
from minipo.experiments.files import read_json, write_json
from minipo.experiments.runs import Run, cache_folder
from minipo.experiments.training import sft, sft_run
from tests.experiments.test_runs import Cut, assert_same_end, cut_at


@pytest.fixture
def machine(monkeypatch):
    """A machine on which one precision is so many times as fast as the other."""

    def set_to(faster: str, times: float) -> None:
        monkeypatch.setattr(precision, "faster", lambda model, device: (faster, times))

    return set_to


@pytest.fixture
def settings(tiny_sft):
    """SFT of a model of one's own, whose precision a recipe leaves to the machine."""
    return {
        "dataset": "tiny", "model": str(tiny_sft.folder / "model"), "tuning": "full", "template": "line",
        "rows": "target", "steps": 12, "batch_size": 4,
    }  # fmt: skip


def test_pocket_models_are_float32_and_others_what_is_faster_here():
    assert make_config(SFTConfig, {"precision": "auto"}) == SFTConfig()
    assert make_config(PreferConfig, {"model": "smollm2-135m"}).precision == "auto"
    assert make_config(PreferConfig, {"precision": "bfloat16"}).precision == "bfloat16"


def test_the_decision_is_written_down_and_said_in_one_line(machine, settings, tmp_path, capsys):
    machine("bfloat16", 2.1)
    options = [part for name, value in settings.items() for part in ("--" + name.replace("_", "-"), str(value))]
    main(["sft", *options, "--out", str(tmp_path / "run")])
    assert capsys.readouterr().err.count("minipo: precision: bfloat16, 2.1 times as fast here as float32\n") == 1
    assert read_json(tmp_path / "run" / "config.json")["precision"] == "bfloat16"
    main(["sft", *options, "--out", str(tmp_path / "other"), "--quiet"])
    assert "precision" not in capsys.readouterr().err


def test_a_run_keeps_its_folder_whatever_the_machine_decides(machine, settings):
    machine("bfloat16", 2.0)
    run = sft(progress=False, **settings)
    written = (run.folder / "summary.json").stat().st_mtime_ns
    machine("float32", 2.0)
    again = sft(progress=False, **settings)
    assert (again.folder, again.config.precision) == (run.folder, "bfloat16")
    assert (run.folder / "summary.json").stat().st_mtime_ns == written  # not trained again
    given = [cache_folder(make_config(SFTConfig, settings | {"precision": each})) for each in ("float32", "bfloat16")]
    assert len({run.folder, *given}) == 3
    with pytest.raises(ValueError, match="holds a run with precision = 'bfloat16', not 'float32'; choose another"):
        sft(run.folder, progress=False, **settings, precision="float32")


def test_a_run_that_is_resumed_elsewhere_keeps_its_precision(machine, settings, tmp_path, monkeypatch, recwarn):
    machine("bfloat16", 2.0)
    straight = sft(tmp_path / "straight", progress=False, **settings)
    cut_at(monkeypatch, 11)
    with pytest.raises(Cut):
        sft(tmp_path / "cut", progress=False, **settings)
    assert not [each for each in recwarn if "was started in" in str(each.message)]
    machine("float32", 4.7)
    with pytest.warns(UserWarning, match=r"was started in bfloat16 and keeps it, although float32 is 4\.7 times as"):
        resumed = sft(tmp_path / "cut", progress=False, **settings)
    assert resumed.config.precision == "bfloat16"
    assert_same_end(resumed, straight)


def test_a_run_in_float16_is_neither_begun_nor_resumed_on_a_cpu(machine, settings, tmp_path, monkeypatch):
    refused = "^The precision float16 is for GPUs, and there is none here; choose float32, bfloat16 or auto"
    with pytest.raises(ValueError, match=refused):
        sft(tmp_path / "run", progress=False, **settings, precision="float16")
    assert not (tmp_path / "run").exists()
    machine("bfloat16", 2.0)
    cut_at(monkeypatch, 11)
    with pytest.raises(Cut):
        sft(tmp_path / "run", progress=False, **settings)
    started = read_json(tmp_path / "run" / "config.json")
    write_json(tmp_path / "run" / "config.json", started | {"precision": "float16"})  # as if begun on a GPU
    with pytest.raises(ValueError, match=refused):
        sft(tmp_path / "run", progress=False, **settings)


@pytest.mark.parametrize("made", ["float32", "bfloat16"])
def test_a_shipped_run_is_a_start_in_whatever_precision_it_was_trained(made, tiny_sft, tmp_path, monkeypatch):
    config = make_config(PreferConfig, {"dataset": "tiny", "model": str(tiny_sft.folder / "model")})
    wanted = start_config(config)
    assert wanted.precision == "auto"
    shipped = shutil.copytree(tiny_sft.folder, tmp_path / "sft" / "tiny")
    write_json(shipped / "config.json", asdict(replace(wanted, precision=made)))
    monkeypatch.setattr(training, "DATA", tmp_path)
    assert sft_run(config) == Run(shipped)
