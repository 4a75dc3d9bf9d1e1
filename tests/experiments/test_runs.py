"""A run as a folder: what is in it, that it resumes to the same end, and what is said when something is wrong."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import DefaultFlowCallback, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import minipo.rows
from minipo import scoring, trainers
from minipo.arithmetic import autocast
from minipo.evaluation import ranking_metrics
from minipo.experiments import arguments, training
from minipo.experiments.configuration import (
    REAL_DATA,
    PreferConfig,
    SFTConfig,
    make_config,
    recipe,
    rows_at_once,
    splits_of,
    start_config,
)
from minipo.experiments.datasets import catalog
from minipo.experiments.datasets.loading import DATASETS, load_dataset
from minipo.experiments.files import read_json, read_parquet, write_json
from minipo.experiments.models import pocket_tokenizer, save_model
from minipo.experiments.recorder import Recorder
from minipo.experiments.runs import Run, list_runs
from minipo.experiments.training import keep_reference, prefer, sft, sft_run
from minipo.experiments.users import evaluate, fit_prompts, score
from minipo.extensions import beta_dpo, mppo_by, simpo
from minipo.folder import whole_file
from minipo.preference import OBJECTIVES
from minipo.prompts import TEMPLATES
from minipo.trainers import COMPLETE, MarkComplete, PreferenceTrainer

STEPS = 12  # a line each, a checkpoint at 5, 10 and 12; an epoch is over at 4
SETTINGS = {"dataset": "tiny", "negatives": 5, "steps": STEPS, "batch_size": 8, "evaluate_every": 7}


class Cut(Exception):
    """What cuts a run off in these tests."""


@pytest.fixture(autouse=True)
def checkpoints_at_five(monkeypatch):
    """A checkpoint at every fifth line instead of every tenth, so that few steps have several."""
    original = arguments.training_arguments
    monkeypatch.setattr(arguments, "training_arguments", lambda *given, **more: original(*given, save_steps=5, **more))


@pytest.fixture
def start(tiny_sft):
    """Preference training on "tiny", with small settings unless told otherwise."""

    def run(out, **settings):
        return prefer(out, progress=False, **({"sft": str(tiny_sft.folder)} | SETTINGS | settings))

    return run


@pytest.fixture(scope="module")
def _kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def finished(start, _kept, tmp_path) -> Run:
    """A finished run; a copy of one's own, to damage at will."""
    start(_kept)  # trained by the first test that asks
    return Run(shutil.copytree(_kept, tmp_path / "finished"))


def cut_at(monkeypatch, step, error=Cut):
    """Let the next run fail where it hears of this step, once."""
    heard = Recorder.heard

    def cut(self, now, logs):
        if now == step:
            monkeypatch.setattr(Recorder, "heard", heard)
            raise error
        heard(self, now, logs)

    monkeypatch.setattr(Recorder, "heard", cut)


def assert_same_end(one: Run, other: Run):
    """Two runs ended alike in everything but time."""
    files = [path.relative_to(one.folder) for path in one.folder.rglob("*")]
    assert sorted(files) == sorted(path.relative_to(other.folder) for path in other.folder.rglob("*"))
    weights = list(one.folder.glob("model/*.safetensors"))
    assert weights
    for path in weights:
        assert path.read_bytes() == (other.folder / "model" / path.name).read_bytes()
    for name in ("metrics", "evaluation"):
        tables = [getattr(run, name).drop(columns="seconds", errors="ignore") for run in (one, other)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    for name in ("users", "probe"):
        if (one.folder / f"{name}.parquet").exists():
            pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)
    ends = [{k: v for k, v in run.summary.items() if k not in ("seconds", "finished")} for run in (one, other)]
    assert ends[0] == ends[1]


# What a run leaves behind


def test_a_run_folder_holds_what_the_run_was(finished, tiny, tiny_sft):
    assert {path.name for path in finished.folder.iterdir()} == {
        "config.json", "provenance.json", "metrics.jsonl", "evaluation.jsonl", "probe.parquet", "users.parquet",
        "model", "summary.json",
    }  # fmt: skip
    assert not list((finished.folder / "model").glob("*.bin"))  # a pickle
    assert isinstance(finished.config, PreferConfig)
    assert finished.config.negatives == 5
    assert finished.config.sft == str(tiny_sft.folder)
    assert finished.metrics.step.tolist() == list(range(1, STEPS + 1))
    assert {
        "loss",
        "pair_loss",
        "learning_rate",
        "logp_chosen",
        "logp_rejected",
        "push_boundary",
        "push_discriminative",
        "boundary_share",
        "seconds",
    } <= {*finished.metrics.columns}
    assert finished.evaluation.step.tolist() == [0, 7, STEPS]
    last, summary = finished.evaluation.iloc[-1], finished.summary
    assert summary["val_hr@1"] == last["hr@1"]
    assert summary["pair_loss"] == last["pair_loss"]
    assert summary["train_loss"] == pytest.approx(finished.metrics.loss[finished.metrics.step > 0.9 * STEPS].mean())
    assert summary["sft_hr@1"] == tiny_sft.summary["hr@1"]
    assert summary["dataset_fingerprint"] == tiny.fingerprint


def test_users_and_model_reproduce_the_summary(finished, tiny, tiny_sft):
    users, summary = finished.users, finished.summary
    assert users.user.tolist() == [user.user for user in tiny.test]
    for name, values in ranking_metrics(users["rank"].to_numpy()).items():
        assert summary[name] == pytest.approx(values.mean())
    assert summary["reward_win_rate"] == users.reward_win.mean()
    reference = score(*tiny_sft.load_model(), tiny.test)
    again = evaluate(*finished.load_model(), tiny.test, reference)
    assert again.ranks.tolist() == users["rank"].tolist()
    assert again.metrics["reward_win_rate"] == summary["reward_win_rate"]


def test_the_probe_holds_every_candidate_of_the_probed_users_at_each_evaluation(finished, tiny, tiny_sft):
    probe = finished.probe
    assert probe.columns.tolist() == ["step", "user", "candidate", "item", "reference", "policy"]
    users = len(tiny.validation)  # fewer than 64: all of them
    assert probe.groupby("step").size().to_dict() == dict.fromkeys(finished.evaluation.step, users * 20)
    before = probe[probe.step == 0]
    assert before.user.tolist() == [user.user for user in tiny.validation for _ in range(20)]
    assert before.item.tolist() == [item for user in tiny.validation for item in (user.chosen, *user.negatives)]
    assert before.candidate.tolist() == list(range(20)) * users
    assert before.policy.tolist() == before.reference.tolist()
    expected = score(*tiny_sft.load_model(), tiny.validation)
    for _, table in probe.groupby("step"):
        assert table.reference.to_numpy() == pytest.approx(expected.ravel(), abs=1e-4)
    after = probe[probe.step == STEPS].policy.to_numpy().reshape(users, 20)
    assert after == pytest.approx(score(*finished.load_model(), tiny.validation), abs=1e-4)
    hits = (after[:, :1] > after[:, 1:]).all(1).mean()
    assert finished.evaluation["hr@1"].iloc[-1] == hits


def test_the_probe_is_of_64_users(start, tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "tiny", lambda seed: catalog.generate(0, train=8, validation=70, test=8)[1])
    first = sft(tmp_path / "sft", progress=False, dataset="tiny", steps=1)
    probe = start(tmp_path / "run", sft=str(first.folder), steps=1).probe
    assert probe.groupby("step").user.nunique().to_dict() == {0: 64, 1: 64}


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("objective", ["dmpo", "mppo"])
def test_training_starts_at_the_sft_model(tuning, objective, start, tmp_path):
    first = start(tmp_path / "run", tuning=tuning, objective=objective, steps=3).evaluation.iloc[0]
    assert first["step"] == 0
    assert first["pair_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert first["reward_win_rate"] == 0


def test_lora_upon_lora_has_the_sft_model_for_reference(tiny, tmp_path):
    """Neither the model under SFT's adapter is the reference, nor is it what the finished run's adapter is put upon."""
    base = sft(tmp_path / "base", progress=False, dataset="tiny", steps=30)
    tuned = sft(
        tmp_path / "tuned", progress=False, dataset="tiny", model=str(base.folder / "model"), tuning="lora", steps=30,
        learning_rate=1e-2, template="line", precision="float32",
    )  # fmt: skip
    settings = SETTINGS | {"model": str(base.folder / "model"), "template": "line", "precision": "float32", "steps": 5}
    run = prefer(tmp_path / "run", progress=False, sft=tuned.folder, tuning="lora", **settings)
    assert {path.name for path in (run.folder / "model").glob("*.safetensors")} == {"adapter_model.safetensors"}

    under, reference, policy = (score(*each.load_model(), tiny.validation) for each in (base, tuned, run))
    assert np.abs(under - reference).max() > 0.1
    before, after = (run.probe[run.probe.step == step] for step in (0, 5))
    assert before.reference.to_numpy() == pytest.approx(reference.ravel(), abs=1e-4)
    assert before.policy.tolist() == before.reference.tolist()
    assert np.abs(reference - policy).max() > 1e-3
    assert after.policy.to_numpy() == pytest.approx(policy.ravel(), abs=1e-4)
    assert evaluate(*run.load_model(), tiny.test).ranks.tolist() == run.users["rank"].tolist()


def test_sft_through_an_adapter_on_a_pocket_model_can_be_opened(tiny, tmp_path):
    run = sft(tmp_path / "run", progress=False, dataset="tiny", steps=5, tuning="lora")
    assert evaluate(*run.load_model(), tiny.test).ranks.tolist() == run.users["rank"].tolist()


def test_more_sft_goes_on_from_sft(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "DATA", tmp_path)  # nothing shipped
    first = sft_run(PreferConfig(dataset="tiny", sft_epochs=2), progress=False)
    more = sft(tmp_path / "more", progress=False, dataset="tiny", start_epochs=2, steps=3, learning_rate=1e-9)
    pd.testing.assert_frame_equal(more.users, first.users)  # so small a rate changes nothing
    assert more.summary["steps"] == 3


@pytest.mark.parametrize("kind", ["sft", "prefer"])
def test_the_same_seed_ends_the_same_and_another_elsewhere(kind, start, tiny, tmp_path):
    def run(name, seed):
        if kind == "sft":
            return sft(tmp_path / name, progress=False, dataset="tiny", steps=8, batch_size=16, seed=seed)
        return start(tmp_path / name, steps=8, seed=seed)

    one, again, other = run("one", 0), run("again", 0), run("other", 1)
    assert_same_end(one, again)
    assert one.metrics.loss.tolist() != other.metrics.loss.tolist()


# Stopped and resumed


@pytest.mark.parametrize(
    "settings",
    [
        {"dynamic": "on", "select": "random"},  # draws from torch's generator, whose state must come back
        pytest.param({"dynamic": "on", "accumulation": 2, "objective": "sdpo"}, marks=pytest.mark.slow),
        {"tuning": "lora"},
        pytest.param({"tuning": "lora", "precision": "bfloat16"}, marks=pytest.mark.slow),
    ],
    ids=["random", "accumulation", "lora", "bfloat16"],
)
def test_a_run_that_was_cut_off_resumes_to_the_same_end(settings, start, tmp_path, monkeypatch):
    straight = start(tmp_path / "straight", **settings)
    cut_at(monkeypatch, 8)
    out = tmp_path / "cut"
    with pytest.raises(Cut):
        start(out, **settings)
    assert Run(out).metrics.step.iloc[-1] == 7
    assert not Run(out).done
    torch.manual_seed(12345)  # whatever happened in between
    cut_at(monkeypatch, 11)
    with pytest.raises(Cut):
        start(out, **settings)
    assert Run(out).metrics.step.tolist() == list(range(1, 11))
    assert_same_end(start(out, **settings), straight)


def test_a_slow_run_has_a_checkpoint_every_other_minute(start, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(arguments.SaveInTime, "SECONDS", 0.0)  # at each line then
    cut_at(monkeypatch, 9)
    with pytest.raises(Cut):
        start(tmp_path / "cut")
    kept = {path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()}
    assert kept == {"checkpoint-7", "checkpoint-8"}
    assert_same_end(start(tmp_path / "cut"), finished)


def test_sft_that_was_cut_off_resumes_to_the_same_end(tiny, tmp_path, monkeypatch):
    def run(name):
        return sft(tmp_path / name, progress=False, dataset="tiny", steps=STEPS, batch_size=16)

    straight = run("straight")
    cut_at(monkeypatch, 8)
    with pytest.raises(Cut):
        run("cut")
    assert_same_end(run("cut"), straight)


@pytest.mark.parametrize("step", [0, 3, STEPS])
def test_it_may_be_cut_off_anywhere(step, start, finished, tmp_path, monkeypatch):
    out = tmp_path / "cut"
    cut_at(monkeypatch, step, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        start(out)
    assert_same_end(start(out), finished)


@pytest.mark.parametrize("room", ["_finish", "write_json"])
def test_it_may_be_cut_off_after_the_last_step(room, start, finished, tmp_path, monkeypatch):
    def cut(*arguments):
        if room != "write_json" or arguments[0].name == "summary.json":
            raise Cut
        write_json(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, room, cut)
        with pytest.raises(Cut):
            start(tmp_path / "cut")
    assert not Run(tmp_path / "cut").done
    assert_same_end(start(tmp_path / "cut"), finished)


def test_adapters_may_be_cut_off_after_the_last_step(start, tmp_path, monkeypatch):
    settings = {"tuning": "lora", "steps": 6, "learning_rate": 1e-2}
    straight = start(tmp_path / "straight", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_save_model", full)
        with pytest.raises(OSError, match="No space left"):
            start(tmp_path / "cut", **settings)
    assert_same_end(start(tmp_path / "cut", **settings), straight)


def test_a_kill_between_a_probe_and_its_evaluation_leaves_no_step_twice(start, finished, tmp_path, monkeypatch):
    """Where the last evaluation comes after the last checkpoint, as it does in older versions of transformers."""
    append, flow = Recorder._append, DefaultFlowCallback.on_step_end

    def forget(self, arguments, state, control, **others):
        flow(self, arguments, state, control, **others)
        control.should_evaluate &= state.global_step < STEPS
        return control

    monkeypatch.setattr(DefaultFlowCallback, "on_step_end", forget)

    def cut(self, name, line):
        if name == "evaluation" and line["step"] == STEPS:
            monkeypatch.setattr(Recorder, "_append", append)
            raise Cut
        append(self, name, line)

    monkeypatch.setattr(Recorder, "_append", cut)
    with pytest.raises(Cut):
        start(tmp_path / "cut")
    assert_same_end(start(tmp_path / "cut"), finished)


@pytest.mark.parametrize("remain", [True, False])
def test_a_checkpoint_that_is_not_complete_is_not_resumed(remain, start, finished, tmp_path, monkeypatch):
    out = tmp_path / "cut"
    cut_at(monkeypatch, 11)
    with pytest.raises(Cut):
        start(out)
    checkpoints = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert checkpoints == ["checkpoint-10", "checkpoint-5"]
    last = out / "checkpoints" / "checkpoint-10"
    (last / COMPLETE).unlink()
    (last / "model.safetensors").write_bytes(b"half")
    (last / "optimizer.pt").unlink()
    if not remain:
        (out / "checkpoints" / "checkpoint-5" / COMPLETE).unlink()
    resumed = []
    train = PreferenceTrainer.train
    monkeypatch.setattr(
        PreferenceTrainer,
        "train",
        lambda self, resume_from_checkpoint: (
            resumed.append(resume_from_checkpoint),
            train(self, resume_from_checkpoint=resume_from_checkpoint),
        ),
    )
    assert_same_end(start(out), finished)
    assert resumed == [str(out / "checkpoints" / "checkpoint-5") if remain else None]


def test_a_kill_in_the_middle_of_writing_leaves_a_folder_that_can_be_used(start, finished, tmp_path):
    """A killed process cannot clear away its drafts."""
    out = tmp_path / "killed"
    out.mkdir()
    (out / ".4711-config.json").write_text('{"kind": "pre')
    (out / "provenance.json").write_text('{"dataset_fingerprint": "of another start"}')
    (out / ".4711-model").mkdir()
    (out / ".4711-model" / "model.safetensors").write_bytes(b"half")
    assert_same_end(start(out), finished)


def test_a_line_that_was_torn_off_is_left_out(finished):
    path = finished.folder / "metrics.jsonl"
    whole = finished.metrics
    with path.open("a") as file:
        file.write('{"step": 13, "lo')
    pd.testing.assert_frame_equal(finished.metrics, whole)
    path.write_text('{"step": 1, "lo')
    assert finished.metrics.empty
    path.unlink()
    assert finished.metrics.empty


def test_a_torn_line_does_not_stop_a_run_from_resuming(start, finished, tmp_path, monkeypatch):
    out = tmp_path / "cut"
    cut_at(monkeypatch, 8)
    with pytest.raises(Cut):
        start(out)
    for name in ("metrics", "evaluation"):
        with (out / f"{name}.jsonl").open("a") as file:
            file.write('{"step": 1')
    assert_same_end(start(out), finished)


@pytest.mark.slow
def test_a_real_kill_on_the_real_catalogue(tmp_path):
    start = sft(tmp_path / "sft", progress=False, steps=100)
    settings = {
        "sft": start.folder,
        "negatives": 15,
        "dynamic": "on",
        "select": "random",
        "steps": 60,
        "evaluate-every": 25,
    }

    def command(out):
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        return [sys.executable, "-m", "minipo", "prefer", "--quiet", "--json", *flags, "--out", str(out)]

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    done = subprocess.run(command(straight), check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["folder"] == str(straight)

    child = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL)
    marker, until = killed / "checkpoints" / "checkpoint-20" / COMPLETE, time.monotonic() + 200
    while not marker.exists() and time.monotonic() < until:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    run = Run(killed)
    assert not run.done
    assert run.metrics.step.iloc[-1] >= 20
    subprocess.run(command(killed), check=True, capture_output=True)
    assert_same_end(run, Run(straight))


# Finished, in the way, or not what it should be


def test_a_finished_run_is_returned_without_training(start, finished, monkeypatch):
    def no(*_, **__):
        raise AssertionError("trained again")

    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    monkeypatch.setattr(PreferenceTrainer, "__init__", no)
    monkeypatch.setattr(training, "sft_run", no)
    monkeypatch.setattr(training, "sft_folder", no)
    assert start(finished.folder) == finished
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == before


def test_without_a_folder_the_settings_decide_it(start, tiny_sft, home):
    run = start(None, steps=2)
    assert run.folder.parent == home / "runs"
    assert start(None, steps=2) == run
    # What comes to the same run is the same run: with DynamicPO off, its parts are off.
    assert start(None, steps=2, dynamic="off", select="hardest") == run
    assert start(None, steps=2, seed=1).folder != run.folder
    assert start(None, steps=2, sft=tiny_sft.folder) == run  # a Path as well as its text
    assert start(None, steps=np.int64(2)) == run
    assert {each.folder for each in list_runs(home / "runs")} == {run.folder, start(None, steps=2, seed=1).folder}


def test_a_folder_with_other_settings_stays_as_it_is(start, finished):
    with pytest.raises(ValueError, match=r"finished holds a run with negatives = 5, not 7; choose another folder\.$"):
        start(finished.folder, negatives=7)
    with pytest.raises(ValueError, match=r"holds a run with kind = 'prefer', not 'sft'; choose another folder\.$"):
        sft(finished.folder, dataset="tiny")
    assert finished.done


def test_something_else_in_the_way(start, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    for name in ("file", "folder"):
        with pytest.raises(ValueError, match=rf"{name} exists and is not a run; choose another folder\.$"):
            start(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert start(tmp_path / "empty", steps=1).done


def test_not_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is not a run, because it has no config\.json"):
        Run(tmp_path / "nowhere")
    assert list_runs(tmp_path / "nowhere") == []


def test_an_unfinished_run_has_neither_summary_nor_model(start, tmp_path, monkeypatch):
    cut_at(monkeypatch, 3)
    with pytest.raises(Cut):
        start(tmp_path / "run")
    run = Run(tmp_path / "run")
    for ask in (lambda: run.summary, run.load_model):
        with pytest.raises(
            ValueError, match=r"run is unfinished; start it again with the same settings to resume it\.$"
        ):
            ask()


def test_a_mistake_found_before_training_leaves_no_folder(start, tiny, tmp_path):
    for out, begin in (
        (tmp_path / "sft", lambda out: sft(out, progress=False, dataset="tiny", model="pocket-gtp2")),
        (tmp_path / "long", lambda out: sft(out, progress=False, dataset="tiny", template="choice")),
        (tmp_path / "prefer", lambda out: start(out, template="question")),
    ):
        with pytest.raises(
            ValueError,
            match=r"Did you mean 'pocket-gpt2'|more than the 128 of the model's context|has template = 'line'",
        ):
            begin(out)
        assert not out.exists()


def test_sft_folders_that_are_none(start, finished, tiny_sft, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(
        ValueError, match=r"nowhere is not a finished SFT run: .*nowhere is not a run, because it has no config"
    ):
        start(out, sft=str(tmp_path / "nowhere"))
    with pytest.raises(
        ValueError, match=r"finished is not an SFT run but a 'prefer' run; name the folder of an SFT run"
    ):
        start(out, sft=str(finished.folder))
    copy = tmp_path / "copy"
    shutil.copytree(tiny_sft.folder, copy)
    write_json(copy / "summary.json", tiny_sft.summary | {"dataset_fingerprint": "0123456789abcdef"})
    with pytest.raises(ValueError, match=r"SFT run in .*copy was trained on data with fingerprint 0123456789abcdef"):
        start(out, sft=str(copy))
    with pytest.raises(ValueError, match=r"finished is not an SFT run"):
        sft_run(make_config(PreferConfig, {"dataset": "tiny", "sft": finished.folder}))
    with pytest.raises(ValueError, match=r"^The SFT run in .* has model = 'pocket-gpt2', not 'gpt2'; give the same\.$"):
        start(out, model="gpt2", sft=str(tiny_sft.folder))
    (copy / "summary.json").write_text("[]")
    with pytest.raises(ValueError, match=r"copy is not a finished SFT run: .*summary\.json is damaged"):
        start(out, sft=str(copy))
    (copy / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"copy is not a finished SFT run: The run in .*copy is unfinished"):
        start(out, sft=str(copy))
    assert not out.exists()


@pytest.mark.parametrize(
    "damage", ["", "{", '{"kind": "prefer"', "[1, 2]", '"text"', "{}", '{"kind": "sweep"}', "\udcff"]
)
def test_a_damaged_config(damage, start, finished):
    (finished.folder / "config.json").write_bytes(damage.encode(errors="surrogateescape"))
    for ask in (lambda: finished.config, lambda: start(finished.folder)):
        with pytest.raises(
            ValueError, match=r"config\.json (is damaged|does not describe a run).*; remove its folder and"
        ):
            ask()


@pytest.mark.parametrize("damage", ["", "{", "[1, 2]", "\udcff"])
def test_a_damaged_summary(damage, finished):
    (finished.folder / "summary.json").write_bytes(damage.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"summary\.json is damaged.*; remove its folder and run again\.$"):
        finished.summary  # noqa: B018


def test_damaged_tables(finished):
    for name in ("probe", "users"):
        path = finished.folder / f"{name}.parquet"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=rf"{name}\.parquet is damaged \(.*\); make it again\.$"):
            getattr(finished, name)
        path.unlink()
        with pytest.raises(ValueError, match=rf"{name}\.parquet is missing; make it again\.$"):
            getattr(finished, name)
    for damage in (b"{\n{}\n", b"\xff\n"):
        (finished.folder / "metrics.jsonl").write_bytes(damage)
        with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged \(.*\); remove its folder and run again\.$"):
            finished.metrics  # noqa: B018
    with pytest.raises(ValueError, match=r"nothing\.json is missing; make it again\.$"):
        read_json(finished.folder / "nothing.json")
    with pytest.raises(ValueError, match=r"nothing\.parquet is missing; make it again\.$"):
        read_parquet(finished.folder / "nothing.parquet")


def test_a_finished_run_without_its_model(finished):
    shutil.rmtree(finished.folder / "model")
    with pytest.raises(ValueError, match="There is no model folder"):
        finished.load_model()


# Settings that do not fit


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"objective": "dmpoo"}, r"Unknown objective 'dmpoo'. Did you mean 'dmpo'\? Known: dpo, dmpo, sdpo, mppo"),
        ({"dataset": "./plays.csv"}, r"^There is no file \./plays\.csv; check the path, or name one of catalog"),
        ({"dataset": "catalogue"}, r"Unknown dataset 'catalogue'. Did you mean 'catalog'\? Known: catalog"),
        ({"select": "randon"}, r"Unknown select 'randon'. Did you mean 'random'\? Known: on, off, random"),
        ({"dynamic": "yes"}, r"Unknown dynamic 'yes'. Known: on, off\."),
        ({"adjust_beta": "true"}, r"Unknown adjust_beta 'true'. Known: on, off\."),
        ({"tuning": "LoRA"}, r"Unknown tuning 'LoRA'.* Known: full, lora\."),
        ({"template": "lines"}, r"Unknown template 'lines'. Did you mean 'line'\? Known: line, liked, question"),
        ({"precision": "float61"}, r"^Unknown precision 'float61'. Did you mean '.*'\? Known: auto, float32, "),
        ({"precision": "float16"}, r"^The precision float16 is for GPUs, and there is none here; choose float32, "),
        ({"rank": 0}, r"^rank must be greater than or equal to 1, not 0\.$"),
        ({"validation_users": 0}, r"^validation_users must be greater than or equal to 1, not 0\.$"),
        ({"learning_rates": 1e-3}, r"Unknown setting 'learning_rates'. Did you mean 'learning_rate'\? Known: kind"),
        ({"objective": "dmpo", "target_margin": 0.3}, r"^target_margin is a setting of simpo, and "),
        ({"objective": "beta-dpo", "keep": 0.0}, r"^keep must be greater than 0, not 0\.0\.$"),
        ({"negatives": 20}, r"^negatives must be at most 19, the most that a user here has, not 20\.$"),
        ({"negatives": 0}, r"^negatives must be greater than or equal to 1, not 0\.$"),
        ({"negatives": 2.5}, r"^negatives must be a valid integer, not 2\.5\.$"),
        ({"negatives": "5"}, r"^negatives must be a valid integer, not '5'\.$"),
        ({"beta": 0}, r"^beta must be greater than 0, not 0\.$"),
        ({"beta": -1.0}, r"^beta must be greater than 0, not -1\.0\.$"),
        ({"learning_rate": float("nan")}, r"^learning_rate must be a finite number, not nan\.$"),
        ({"learning_rate": float("inf")}, r"^learning_rate must be a finite number, not inf\.$"),
        ({"learning_rate": None}, r"^learning_rate must be a valid number, not None\.$"),
        ({"steps": 0}, r"^steps must be greater than or equal to 1, not 0\.$"),
        ({"steps": True}, r"^steps must be a valid integer, not True\.$"),
        ({"clusters": 0, "dynamic": "on"}, r"^clusters must be greater than or equal to 1, not 0\.$"),
        ({"margin": float("nan"), "dynamic": "on"}, r"margin"),
        ({"seed": -1}, r"^seed must be greater than or equal to 0, not -1\.$"),
        ({"sft_epochs": 0}, r"^sft_epochs must be greater than 0, not 0\.$"),
        ({"sft_seed": -1}, r"^sft_seed must be greater than or equal to 0, not -1\.$"),
        ({"batch_size": 32, "accumulation": 3}, r"^accumulation 3 does not divide the batch of 32 users; choose"),
        ({"kind": "sft"}, r"^Unknown kind 'sft'\. Known: prefer\.$"),
        ({"ties": "random"}, r"^ties applies only to a table of your own interactions and to ml-100k, which catalog"),
        ({"sft": 3}, r"^sft must be a valid string, not 3\.$"),
        ({"titles": "a.csv"}, r"^titles applies only to a table of your own interactions, which catalog is not;"),
        ({"liked_from": True}, r"^liked_from must be a valid number, not True\.$"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_preference_training(settings, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence) as caught:
        prefer(tmp_path / "out", progress=False, **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochs": 0}, r"^epochs must be greater than 0, not 0\.$"),
        ({"rows": "targets"}, r"^Unknown rows 'targets'\. Did you mean 'target'\? Known: target, sequence\.$"),
        (
            {"rows": "sequence", "template": "question"},
            r"^Rows of sequences need a template that ends in the history, and 'question' does not; choose 'line' or ",
        ),
        ({"rows": "sequence", "whole_line": True}, r"^Rows of sequences learn answers and no other tokens; leave "),
        ({"epochs": "ten"}, r"^epochs must be a valid number, not 'ten'\.$"),
        ({"steps": 0}, r"^steps must be greater than or equal to 1, not 0\.$"),
        ({"learning_rate": 0.0}, r"^learning_rate must be greater than 0, not 0\.0\.$"),
        ({"batch_size": 5, "accumulation": 2}, r"^accumulation 2 does not divide the batch of 5 users"),
        ({"start_epochs": -1}, r"^start_epochs must be greater than or equal to 0, not -1\.$"),
        ({"model": "pocket_gpt2"}, r"Unknown model 'pocket_gpt2'. Did you mean 'pocket-gpt2'\? Known: pocket-gpt2"),
        ({"model": "./nowhere"}, r"There is no model folder './nowhere'"),
        ({"negatives": 3}, r"Unknown setting 'negatives'.* Known: kind, dataset"),
        ({"whole_line": "yes"}, r"^whole_line must be a valid boolean, not 'yes'\.$"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_sft(settings, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        sft(tmp_path / "out", progress=False, **settings)
    assert not (tmp_path / "out").exists()


# A disk that is full


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def half_a_file(path):
    with whole_file(path) as draft:
        draft.write_text("sec")
        raise Cut


def half_a_folder(path):
    with whole_file(path) as draft:
        draft.mkdir()
        (draft / "file").write_text("half")
        raise Cut


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "table.txt"
    with whole_file(path) as draft:
        assert draft.suffix == ".txt"
        draft.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    for name, write in (("table.txt", half_a_file), ("folder", half_a_folder)):
        with pytest.raises(Cut):
            write(path.with_name(name))
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"second": 2})
    assert path.read_text() == "first"
    assert [file.name for file in path.parent.iterdir()] == ["table.txt"]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (os, "replace"),
        (pd.DataFrame, "to_parquet"),
        (PreferenceTrainer, "save_model"),
        (MarkComplete, "on_save"),
        (Recorder, "_append"),
    ],
)
@pytest.mark.parametrize("calls", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_full_disk_leaves_nothing_half_written_and_a_run_that_resumes(
    owner, name, calls, start, finished, tmp_path, monkeypatch
):
    out, original, left = tmp_path / "full", getattr(owner, name), [calls]

    def sometimes(*arguments, **others):
        left[0] -= 1
        return full() if left[0] < 0 else original(*arguments, **others)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, sometimes)
        with pytest.raises(OSError, match="No space left on device") as caught:
            start(out)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob(".[0-9]*"))
    if out.exists():
        run = Run(out) if (out / "config.json").exists() else None
        assert run is None or (not run.done and len(run.metrics) <= STEPS)
    assert_same_end(start(out), finished)


@pytest.mark.parametrize("room", [0.5, 1.5], ids=["weights", "optimizer"])
def test_a_disk_that_is_really_full_is_one_sentence(room, start, finished, tmp_path):
    """safetensors and torch raise errors of their own when they cannot write. A limit on a file's size is such a disk:
    below the weights' it stops safetensors, above it torch, for the optimizer's state is twice as large."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    weights = (finished.folder / "model" / "model.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room * weights), before[1]))
    try:
        with pytest.raises(
            OSError, match=r"^The run in .*full could not be written \(.*\); if the disk is full, free so"
        ):
            start(tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "full" / "model").exists()
    assert_same_end(start(tmp_path / "full"), finished)


# The reference


@pytest.fixture
def scored(monkeypatch):
    """How many rows' log-probs were computed for the reference so far."""
    rows, logps = [], PreferenceTrainer.logps

    def count(self, tokens, which, task):
        if task == "reference":
            rows.append(len(which))
        return logps(self, tokens, which, task)

    monkeypatch.setattr(PreferenceTrainer, "logps", count)
    return lambda: sum(rows)


def test_reference_log_probs_are_computed_once(start, tmp_path, home, scored):
    start(tmp_path / "short", steps=2)
    assert scored() == 16 + 16 + 16  # the users whom the two steps visit, and those of the other splits
    start(tmp_path / "long", steps=4)
    assert scored() == 32 + 16 + 16
    first = start(tmp_path / "other", objective="mppo", negatives=19, dynamic="on", tuning="lora", steps=4)
    assert scored() == 32 + 16 + 16
    short = Run(tmp_path / "short").probe
    assert first.probe[first.probe.step == 0].reference.tolist() == short[short.step == 0].reference.tolist()
    assert len(list((home / "reference").glob("*.npy"))) == 3


def test_they_may_be_computed_before_any_run(start, tiny_sft, tmp_path, scored):
    keep_reference(sft=str(tiny_sft.folder), **SETTINGS)
    assert scored() == 32 + 16 + 16  # all users
    start(tmp_path / "run")
    assert scored() == 32 + 16 + 16


def test_other_weights_and_another_precision_have_another_reference(start, tiny, tmp_path, scored):
    other = sft(tmp_path / "other", progress=False, dataset="tiny", steps=2)
    found = [
        start(tmp_path / str(number), steps=1, **settings).probe.reference
        for number, settings in enumerate([{}, {"sft": other.folder}, {"precision": "bfloat16"}])
    ]
    assert scored() == 3 * (8 + 16 + 16)
    assert np.abs(found[0] - found[1]).max() > 0.1
    assert 0 < np.abs(found[0] - found[2]).max() < 0.3


def test_a_damaged_reference_is_computed_again(start, finished, tmp_path, home, scored):
    start(tmp_path / "first")
    entries = {path: path.read_bytes() for path in (home / "reference").glob("*.npy")}
    for path, whole in entries.items():
        path.write_bytes(whole[:-100])
    assert_same_end(start(tmp_path / "again"), finished)
    assert scored() == 2 * (32 + 16 + 16)
    assert {path: path.read_bytes() for path in (home / "reference").glob("*.npy")} == entries


def test_it_may_be_cut_off_while_the_reference_is_scored(start, finished, tmp_path, monkeypatch):
    packed, calls = trainers.packed_logps, []

    def cut(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return packed(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainers, "packed_logps", cut)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "cut")
    assert Run(tmp_path / "cut").metrics.empty
    assert_same_end(start(tmp_path / "cut"), finished)


# Settings by dataset and model


RECIPES = [("catalog", "pocket-gpt2"), ("ml-100k", "pocket-qwen2"), ("catalog", "gpt2"), ("ml-100k", "smollm2-135m")]


@pytest.mark.parametrize("kind", [SFTConfig, PreferConfig])
@pytest.mark.parametrize(("dataset", "model"), RECIPES)
def test_settings_that_nobody_gives_are_those_of_the_data_and_the_model(kind, dataset, model):
    place = {"dataset": dataset, "model": model}
    config = make_config(kind, place)
    rows = {"rows": "sequence"} if kind is SFTConfig and not model.startswith("pocket") else {}
    assert config == kind(**place, **recipe(kind.kind, dataset, model), **rows)
    assert (config.tuning, config.precision) == (
        ("full", "float32") if model.startswith("pocket") else ("lora", "auto")
    )
    given = {"learning_rate": 0.125, "tuning": "full", "precision": "float32", "template": "music"}
    given["epochs" if kind is SFTConfig else "sft_epochs"] = 3.0
    assert make_config(kind, place | given) == kind(**(recipe(kind.kind, dataset, model) | place | given))


@pytest.mark.parametrize(("dataset", "model"), RECIPES)
def test_a_run_without_settings_starts_from_an_sft_run_without_settings(dataset, model):
    """But for the length of one that is shipped and takes an hour."""
    place = {"dataset": dataset, "model": model}
    longer = {"epochs": 4} if model == "smollm2-135m" else {}
    assert start_config(make_config(PreferConfig, place)) == make_config(SFTConfig, place | longer)


def test_only_a_start_that_is_shipped_is_a_long_one():
    place = {"dataset": "ml-100k", "model": "smollm2-135m"}
    for same in ({"template": "liked"}, {"ties": "file"}, {"sft_seed": 0}):
        assert make_config(PreferConfig, place | same).sft_epochs == 4
    for other in ({"template": "question"}, {"ties": "random"}, {"sft_seed": 1}, {"dataset_seed": 1}):
        assert make_config(PreferConfig, place | other).sft_epochs == 0.25
        assert make_config(PreferConfig, place | other | {"sft_epochs": 2}).sft_epochs == 2


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({"template": "liked"}, "sequence"),
        ({"template": "line"}, "sequence"),
        ({"template": "liked", "rows": "target"}, "target"),
        ({}, "sequence"),  # the recipe's template ends in the history
        ({"template": "question"}, "target"),
        ({"template": "liked", "whole_line": True}, "target"),
    ],
)
def test_a_pretrained_model_learns_rows_of_sequences_where_they_are_possible(settings, rows):
    place = {"dataset": "ml-100k", "model": "smollm2-135m"}
    config = make_config(SFTConfig, place | settings)
    assert config.rows == rows
    if settings.keys() <= {"template"}:
        assert start_config(make_config(PreferConfig, place | settings | {"sft_epochs": config.epochs})) == config


def test_a_run_and_the_sft_run_it_starts_from_are_on_the_same_data(plays, tmp_path, monkeypatch):
    """Its titles and its least liked rating included, which are read from whatever folder later."""
    rated = pd.read_csv(plays).assign(rating=lambda rows: rows["timestamp"] % 7)
    rated.to_csv(plays, index=False)
    items = sorted(set(rated["item"]))
    pd.DataFrame({"item": items, "title": items[::-1]}).to_csv(tmp_path / "titles.csv", index=False)
    monkeypatch.chdir(tmp_path)
    config = make_config(PreferConfig, {"dataset": "plays.csv", "titles": "titles.csv", "liked_from": 1})
    start = start_config(config)
    assert config == make_config(
        PreferConfig, {"dataset": plays, "titles": str(tmp_path / "titles.csv"), "liked_from": 1.0}
    )
    assert splits_of(start) == splits_of(config) == load_dataset(plays, titles="titles.csv", liked_from=1)
    others = [{"titles": "titles.csv", "liked_from": 0}, {"liked_from": 1}, {"liked_from": 0}]
    found = {splits_of(make_config(SFTConfig, {"dataset": "plays.csv", **other})).fingerprint for other in others}
    assert len({splits_of(config).fingerprint, *found}) == 4


def test_a_run_starts_from_an_sft_run_on_the_same_data():
    data = {"dataset": "ml-100k", "ties": "file"}  # as by default: with the shipped SFT run
    assert make_config(PreferConfig, data) == make_config(PreferConfig, {"dataset": "ml-100k"})
    data = {"dataset": "ml-100k", "dataset_seed": 3, "ties": "random"}
    assert start_config(make_config(PreferConfig, data)) == make_config(SFTConfig, data)


def test_the_catalogue_has_the_defaults():
    assert make_config(PreferConfig, {}) == PreferConfig()
    assert make_config(SFTConfig, {}) == SFTConfig()


def test_what_a_run_was_started_with_is_read_back_whatever_the_recipe_says(finished, monkeypatch):
    before = finished.config
    wanted = REAL_DATA["prefer"]  # "tiny" is not the catalogue
    assert (before.learning_rate, before.sft_epochs) == (wanted["learning_rate"], wanted["sft_epochs"])
    monkeypatch.setitem(REAL_DATA, "prefer", {"learning_rate": 7.0, "rank": 99})
    assert finished.config == before


def test_a_part_of_an_epoch_is_as_many_steps(tiny, tmp_path):
    assert sft(tmp_path / "run", progress=False, dataset="tiny", epochs=0.7, batch_size=8).summary["steps"] == 3


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "row"), [(16, 1, 16), (36, 1, 18), (32, 2, 16), (16, 2, 16), (4, 1, 4)]
)
def test_a_step_learns_as_many_items_from_rows_of_sequences(
    batch_size, accumulation, row, plays, tmp_path, monkeypatch
):
    """In rows of 16 or a little more, or in one row where a step has fewer: micro-batches do not cut histories."""
    seen, collate = [], trainers.SFTTrainer.collate

    def counted(self, visits):
        seen.extend(len(columns) for _, columns in visits)
        return collate(self, visits)

    monkeypatch.setattr(trainers.SFTTrainer, "collate", counted)
    settings = {"rows": "sequence", "epochs": 1, "batch_size": batch_size, "accumulation": accumulation}
    run = sft(tmp_path / "run", progress=False, dataset=str(plays), **settings)
    learnt = len(splits_of(run.config).train)
    assert (sum(seen), max(seen)) == (learnt, row)
    assert run.summary["steps"] == math.ceil(learnt / batch_size)


def test_a_pretrained_model_under_another_template_says_that_it_reads_a_row_per_item(llama, tiny, tmp_path):
    place = {"dataset": "tiny", "model": str(llama), "progress": False, "steps": 1, "batch_size": 2}
    with pytest.warns(UserWarning, match=r"^The template 'question' does not end in the history, so SFT reads a "):
        run = sft(tmp_path / "sft", template="question", **place)
    assert run.config.rows == "target"


def test_every_objective_and_template_can_be_chosen():
    choices = {field.name: get_args(get_args(field.type)[0]) for field in fields(PreferConfig)}
    assert choices["objective"] == tuple(OBJECTIVES)
    assert choices["template"] == tuple(TEMPLATES)


@pytest.mark.parametrize(
    ("objective", "settings", "expected"),
    [
        ("simpo", {"target_margin": 0.3}, simpo(0.3)),
        ("beta-dpo", {"alpha": 0.5, "keep": 0.7, "momentum": 0.6}, beta_dpo(0.5, 0.7, 0.6)),
        ("mppo", {"likelihood_of": "answer"}, mppo_by("answer")),
        ("sdpo", {}, OBJECTIVES["sdpo"]),
    ],
)
def test_an_objectives_own_settings_reach_it(objective, settings, expected, start, tmp_path, monkeypatch):
    seen, original = [], PreferenceTrainer.__init__

    def note(self, *arguments, **others):
        seen.append(others["objective"])
        original(self, *arguments, **others)

    monkeypatch.setattr(PreferenceTrainer, "__init__", note)
    run = start(tmp_path / "run", objective=objective, steps=1, **settings)
    assert seen == [expected]
    assert vars(run.config).items() >= settings.items()


@pytest.mark.parametrize("kind", [SFTConfig, PreferConfig])
def test_a_language_model_ranks_few_users_at_once(kind):
    assert rows_at_once(make_config(kind, {"dataset": "ml-100k", "model": "smollm2-135m"})) <= 64  # 2 GB in all


def test_runs_rank_as_many_users_at_once_as_they_say(tiny, tmp_path, monkeypatch):
    packed, pack = [], scoring.pack_groups

    def counted(prompt_ids, *rest, **more):
        packed.append(len(prompt_ids))
        return pack(prompt_ids, *rest, **more)

    for room in (scoring, minipo.rows):
        monkeypatch.setattr(room, "pack_groups", counted)
    shared = {"dataset": "tiny", "steps": 1, "batch_size": 4, "accumulation": 2}
    start = sft(tmp_path / "sft", progress=False, **shared)
    assert max(packed) == 2
    packed.clear()
    prefer(tmp_path / "prefer", progress=False, sft=start.folder, negatives=2, **shared)
    assert max(packed) == 4


# Data of one's own


def test_from_a_file_of_ones_own_to_a_model_that_ranks(plays, tmp_path, monkeypatch):
    monkeypatch.chdir(plays.parent)
    first = sft("first", progress=False, dataset=plays.name, epochs=2)
    run = prefer("run", progress=False, dataset=plays.name, sft="first", negatives=3, steps=4, evaluate_every=2)
    assert first.summary["shortened_prompts"] == run.summary["shortened_prompts"] == 0
    monkeypatch.chdir(Path(__file__).parent)  # a run is read from wherever
    run = Run(tmp_path / "run")
    assert (run.config.dataset, run.config.sft) == (str(plays), str(tmp_path / "first"))
    splits = load_dataset(run.config.dataset)
    assert run.summary["dataset_fingerprint"] == splits.fingerprint
    assert run.users.user.tolist() == [user.user for user in splits.test]
    reference = score(*Run(tmp_path / "first").load_model(), splits.test)
    again = evaluate(*run.load_model(), splits.test, reference)
    assert again.ranks.tolist() == run.users["rank"].tolist()
    assert again.metrics["reward_win_rate"] == run.summary["reward_win_rate"]


@pytest.fixture
def ragged(tmp_path) -> Path:
    """A folder of LLaRA rows with 2 to 6 candidates, the history's last two items not among them."""
    random, items = (
        np.random.default_rng(0),
        [f"{first} Lake" for first in "Ash Birch Cedar Elm Fir Oak Pine Yew".split()],
    )
    folder = tmp_path / "ragged"
    folder.mkdir()
    for name, rows in (("train", 24), ("val", 10), ("test", 9)):
        content = []
        for number in range(rows):
            shown = random.permutation(items).tolist()
            candidates = shown[2 : 4 + number % 5]
            content.append({"historyList": shown[:2], "itemList": candidates, "trueSelection": candidates[0]})
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_users_may_differ_in_how_many_candidates_they_have(ragged, tmp_path):
    settings = {"dataset": str(ragged), "progress": False}
    first = sft(tmp_path / "sft", epochs=5, **settings)
    run = prefer(tmp_path / "run", sft=first.folder, negatives=4, steps=8, batch_size=4, evaluate_every=8, **settings)
    splits = load_dataset(ragged)
    counts = [len(user.candidates) for user in splits.test]
    assert len(set(counts)) == 5
    assert (run.users["rank"] < counts).all()

    first_step, last_step = (run.probe[run.probe.step == step] for step in (0, 8))
    assert first_step.item.tolist() == [item for user in splits.validation for item in user.canonical]
    assert np.isfinite(run.probe[["reference", "policy"]].to_numpy()).all()
    assert (first_step.groupby("user").candidate.max() + 1).tolist() == [
        len(user.candidates) for user in splits.validation
    ]
    policy = score(*run.load_model(), splits.validation)
    assert last_step.policy.to_numpy() == pytest.approx(policy[np.isfinite(policy)], abs=1e-4)
    assert run.evaluation.pair_loss[0] == pytest.approx(np.log(2), abs=1e-6)
    assert np.isfinite(run.metrics.drop(columns=["push_boundary", "push_discriminative"]).to_numpy()).all()


def test_more_negatives_than_any_user_has_are_one_sentence(ragged, tmp_path):
    with pytest.raises(ValueError, match=r"^negatives must be at most 5, the most that a user here has, not 6\.$"):
        prefer(tmp_path / "run", progress=False, dataset=str(ragged), negatives=6)
    assert not (tmp_path / "run").exists()


def test_prompts_longer_than_the_context_lose_their_oldest_items_and_are_counted(tmp_path, monkeypatch):
    items = [
        f"{first} {second}"
        for first in "Red Blue Green Black White".split()
        for second in "Sea Sky Sun Fox Owl".split()
    ]
    rows = [
        # 50 items of three tokens each, comma included, are more than a pocket model's 128; 20 are not.
        {"historyList": items[place % 20 :] * 2 if place % 4 == 0 else items[:20], "itemList": items[place : place + 5],
         "trueSelection": items[place + 1]}
        for place in range(20)
    ]  # fmt: skip
    path = tmp_path / "long.json"
    path.write_text(json.dumps(rows))
    splits = load_dataset(path)
    users = (*splits.train, *splits.validation, *splits.test)
    warned = r"prompts were longer than the 128 tokens of the model's context"
    with pytest.warns(UserWarning, match=warned):
        first = sft(tmp_path / "sft", progress=False, dataset=str(path), steps=1)
    with pytest.warns(UserWarning, match=warned):
        run = prefer(tmp_path / "run", progress=False, dataset=str(path), sft=first.folder, steps=1, negatives=2)
    monkeypatch.setattr("minipo.experiments.users.tokenize_rows", None)  # the next run has the same rows: they are kept
    with pytest.warns(UserWarning, match=warned):
        again = prefer(tmp_path / "again", progress=False, dataset=str(path), sft=first.folder, steps=1, negatives=2)
    assert again.probe.equals(run.probe)
    assert again.summary["shortened_prompts"] == run.summary["shortened_prompts"]
    longer = sum(3 * len(user.history) + 2 > 128 for user in users)
    assert 0 < longer < len(users)
    assert first.summary["shortened_prompts"] == run.summary["shortened_prompts"] == longer
    prompts, shortened = fit_prompts(first.load_model()[1], users, context=128)
    assert shortened == longer
    assert all(
        prompt.endswith(", ".join(user.history[-20:]) + ",") for prompt, user in zip(prompts, users, strict=True)
    )


# A pretrained model


@pytest.fixture(scope="module")
def llama(tiny_splits, tmp_path_factory) -> Path:
    """A folder with a Llama of two small layers, which stands for a pretrained model."""
    tokenizer = pocket_tokenizer(tiny_splits.items)
    settings = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    save_model(LlamaForCausalLM(settings), tokenizer, folder)
    return folder


def weights(run: Run) -> set[str]:
    return {path.name for path in (run.folder / "model").glob("*.safetensors")}


@pytest.mark.parametrize(("precision", "close"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_a_pretrained_model_is_tuned_through_adapters_one_upon_the_other(precision, close, llama, tiny, tmp_path):
    """close: how far log-probs may be from those of the adapters merged, in float32; relative to them."""
    place = {"dataset": "tiny", "model": str(llama), "progress": False, "precision": precision, "template": "liked"}
    first = sft(tmp_path / "sft", steps=6, batch_size=8, learning_rate=3e-2, **place)
    settings = {"negatives": 5, "steps": 6, "batch_size": 4, "learning_rate": 1e-2, "evaluate_every": 6}
    run = prefer(tmp_path / "run", sft=first.folder, **settings, **place)
    assert (first.config.tuning, first.config.rows, run.config.tuning) == ("lora", "sequence", "lora")
    assert first.config.template == run.config.template == "liked"
    assert weights(first) == weights(run) == {"adapter_model.safetensors"}
    assert first.users["rank"].tolist() == evaluate_as(first, tiny.test).ranks.tolist()

    merged = [score(*each, tiny.validation, "liked") for each in (first.load_model(), run.load_model())]
    before, after = (run.probe[run.probe.step == step] for step in (0, 6))
    for table, column, expected in (
        (before, "reference", merged[0]), (before, "policy", merged[0]), (after, "policy", merged[1]),
    ):  # fmt: skip
        assert table[column].to_numpy() == pytest.approx(expected.ravel(), rel=close, abs=10 * close)
    assert np.abs(merged[1] - merged[0]).max() > 1
    assert run.evaluation.pair_loss[0] == pytest.approx(math.log(2), abs=1e-6)
    assert run.metrics.pair_loss[0] == pytest.approx(math.log(2), abs=1e-6 if precision == "float32" else 0.01)


def evaluate_as(run: Run, users):
    """A run's users ranked by its model, in its arithmetic."""
    model, tokenizer = run.load_model()
    with autocast(model.device, run.config.precision):
        return evaluate(model, tokenizer, users, template=run.config.template)


def test_an_adapter_needs_the_model_that_it_was_trained_upon(llama, tiny, tmp_path, monkeypatch):
    """Wherever it is opened from, though the model was named by a path from where the run was started."""
    monkeypatch.chdir(llama.parent)
    run = sft(tmp_path / "run", progress=False, dataset="tiny", model=f"./{llama.name}", steps=1, template="line")
    monkeypatch.chdir(tmp_path)
    assert run.config.model == str(llama)
    assert evaluate_as(run, tiny.test).ranks.tolist() == run.users["rank"].tolist()


def test_bfloat16_trains_nearly_as_float32_does_and_repeats(start, tmp_path):
    plain = start(tmp_path / "plain", steps=10)
    one, again = (start(tmp_path / name, steps=10, precision="bfloat16") for name in ("one", "again"))
    assert_same_end(one, again)
    assert one.metrics.loss.tolist() != plain.metrics.loss.tolist()
    assert one.metrics.loss.to_numpy() == pytest.approx(plain.metrics.loss.to_numpy(), abs=0.05)
    assert one.evaluation.pair_loss.to_numpy() == pytest.approx(plain.evaluation.pair_loss.to_numpy(), abs=0.02)


def test_evaluations_rank_as_many_users_as_they_are_told(start, tmp_path, tiny):
    run = start(tmp_path / "run", validation_users=6, steps=4, evaluate_every=2)
    everyone = start(tmp_path / "everyone", validation_users=1000, steps=4, evaluate_every=2)
    assert run.probe.user.unique().tolist() == [user.user for user in tiny.validation[:6]]
    assert run.evaluation.step.tolist() == [0, 2, 4]
    for step, table in run.probe.groupby("step"):
        scores = table.policy.to_numpy().reshape(6, 20)
        (found,) = run.evaluation["hr@1"][run.evaluation.step == step]
        assert found == (scores[:, :1] > scores[:, 1:]).all(1).mean()
    pd.testing.assert_frame_equal(run.users, everyone.users)  # the test split is ranked whole
    assert everyone.probe.user.nunique() == len(tiny.validation)


# Around it


def test_shipped_sft_runs_are_found(monkeypatch, tiny, tmp_path):
    shipped = tmp_path / "data" / "sft" / "tiny"
    settings = {"dataset": "tiny", "epochs": 1}
    sft(shipped, progress=False, **settings)
    monkeypatch.setattr(training, "DATA", tmp_path / "data")
    assert sft_run(PreferConfig(dataset="tiny", sft_epochs=1), progress=False).folder == shipped
    assert sft_run(PreferConfig(dataset="tiny", sft_epochs=2), progress=False).folder != shipped
    assert isinstance(Run(shipped).config, SFTConfig)


def test_no_bars_but_the_trainings_own(start, tmp_path, capfd):
    start(tmp_path / "quiet", steps=11)
    assert "it/s" not in capfd.readouterr().err
    assert logging.is_progress_bar_enabled()  # as it was
    prefer(tmp_path / "loud", **json.loads((tmp_path / "quiet" / "config.json").read_text()))
    shown = capfd.readouterr().err
    assert "11/11" in shown
    assert "Loading weights" not in shown
    assert "Writing model shards" not in shown


def test_reading_data_does_without_torch_and_reading_runs_without_transformers():
    code = (
        "import sys, minipo, minipo.experiments.datasets.loading\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'accelerate') if name in sys.modules])\n"
        "import minipo.experiments.sweeps\n"
        "print([name for name in ('transformers', 'peft', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path.cwd())
    assert done.stdout.split() == ["[]", "[]"]
