"""Live lab and its cards: runs are handed in, watched, stopped, kept and found again; nothing trains in these tests."""

import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from minipo.experiments import configuration, fetch
from minipo.experiments.configuration import PreferConfig, make_config
from minipo.experiments.runs import DATA, model_fingerprint
from tests.app.conftest import FINGERPRINTS, charts, opened, place_fetched, text

import forms  # isort: skip
import jobs  # isort: skip
import limits  # isort: skip
import shell  # isort: skip


def handed_in(name: str = "A run", viewer: str = "somebody", **settings: Any) -> jobs.Job:
    """A run of another viewer's, waiting."""
    chosen = {**forms.OPENING, **forms.defaults("catalog", "pocket-gpt2"), **settings}
    return jobs.submit("prefer", chosen, viewer, name)


def logged(job: jobs.Job, last: int = 120, hits: float = 0.7) -> None:
    """The files of a run that has come to step `last`; its last line is half written."""
    job.run.mkdir(parents=True, exist_ok=True)
    (job.run / "config.json").write_text(json.dumps(vars(PreferConfig())))
    lines = [{"step": step, "loss": 0.7 - step / 1000, "seconds": step / 20} for step in range(10, last + 1, 10)]
    (job.run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 130, "lo')
    ranking = {"ndcg@5": 0.8, "mrr": 0.75, "reward_win_rate": 0.5}
    evaluations = [{"step": 0, "pair_loss": 0.69, "hr@1": 0.683, **ranking}]
    evaluations.append({"step": last, "pair_loss": 0.33, "hr@1": hits, **ranking})
    (job.run / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))


def finished(job: jobs.Job, hits: float = 0.662, fingerprint: str = FINGERPRINTS["catalog"]) -> None:
    """The same of a run that is over."""
    assert jobs.begin()
    logged(job, 300)
    ranks = np.where(np.arange(2000) < 2000 * hits, 0, 3).astype(np.uint8)
    pd.DataFrame({"user": range(2000), "rank": ranks}).to_parquet(job.run / "users.parquet")
    start = DATA / "sft" / "catalog-pocket-gpt2-40" / "model"
    data = {"dataset_fingerprint": fingerprint}
    made_from = {**data, "start": str(start), "start_fingerprint": model_fingerprint(start)}
    (job.run / "provenance.json").write_text(json.dumps(made_from))
    (job.run / "summary.json").write_text(json.dumps({**data, "hr@1": hits, "sft_hr@1": 0.65}))
    jobs.finish(job.token, "done", "")


def linked(app: AppTest) -> list[str]:
    """The runs that the page's link names."""
    named = app.query_params.get("run", [])
    return [named] if isinstance(named, str) else named


def names(app: AppTest) -> list[str]:
    """The runs whose lines are drawn."""
    return [trace["name"] for trace in charts(app)["lab_runs"]["data"] if trace.get("showlegend", True)]


def test_opens_with_recorded_runs_and_says_so(speed: None):
    app = opened("lab")
    assert "Recorded, not live. Lowest training loss: **DMPO, K = 19, seed 0**" in text(app)
    assert "Highest HR@1 on validation users: **DMPO, DynamicPO, K = 19, seed 0**" in text(app)
    assert names(app) == ["DMPO, K = 19, seed 0", "DMPO, DynamicPO, K = 19, seed 0"]
    assert limits.described() in text(app)
    assert re.search(r"300 steps take about \d+ s on this server, with nothing else running\.", text(app))
    for metric, told in (("ndcg@5", "NDCG@5"), ("mrr", "MRR"), ("reward_win_rate", "win rate")):
        app.button_group(key="ranking").set_value(metric).run()
        assert f"Highest {told} on validation users" in text(app)
        assert told in json.dumps(charts(app)["lab_runs"]["layout"])


def test_a_damaged_record_is_one_sentence_and_the_form_stays(recorded: Path):
    (recorded / "objectives" / "curves.parquet").write_bytes(b"PAR1")
    app = opened("lab")
    (warning,) = app.warning
    assert "data/recorded/objectives" in warning.value
    app.button(key="train").click().run()
    assert "In the queue, place 1: next in line." in [bar.proto.text for bar in app.get("progress")]


def test_training_hands_in_what_the_form_says_and_the_link_carries_it():
    app = opened("lab")
    app.selectbox(key="train_objective").set_value("sdpo").run()
    app.slider(key="train_negatives").set_value(5).run()
    app.selectbox(key="train_dynamic").set_value("off").run()
    assert app.selectbox(key="train_select").disabled
    assert app.number_input(key="train_margin").disabled
    app.number_input(key="train_steps").set_value(40).run()
    app.number_input(key="train_seed").set_value(3).run()
    app.number_input(key="train_beta").set_value(0.5).run()
    app.number_input(key="train_learning_rate").set_value(0.001).run()
    app.button(key="train").click().run()
    (token,) = linked(app)
    job = jobs.find(token)
    assert job is not None
    assert job.name == "S-DPO, K = 5, seed 3"
    config = make_config(PreferConfig, job.settings)
    assert (config.objective, config.negatives, config.dynamic, config.steps, config.seed) == ("sdpo", 5, "off", 40, 3)
    assert (config.beta, config.learning_rate, config.evaluate_every) == (0.5, 0.001, 4)
    assert names(app) == ["S-DPO, K = 5, seed 3"]
    assert "No step is logged yet" in text(app)
    app.selectbox(key="train_dynamic").set_value("on").run()
    app.selectbox(key="train_adjust_beta").set_value("off").run()
    app.button(key="train").click().run()
    assert names(app) == ["S-DPO, K = 5, seed 3", "S-DPO, DynamicPO selection alone, K = 5, seed 3"]


def test_a_link_restores_every_control(tmp_path: Path):
    place_fetched(tmp_path / "home", "ml-100k")
    link = {
        "dataset": "MovieLens-100K", "model": "pocket-qwen2", "objective": "MPPO", "negatives": "7", "dynamic": "on",
        "select": "as many, at random", "adjust_beta": "off", "beta": "2.5", "margin": "2", "learning_rate": "0.0005",
        "steps": "70", "seed": "4",
    }  # fmt: skip
    app = opened("lab", ranking="MRR", **{f"train_{name}": value for name, value in link.items()})
    state = app.session_state
    values = {name: state[f"train_{name}"] for name in link}
    assert values == {
        "dataset": "ml-100k", "model": "pocket-qwen2", "objective": "mppo", "negatives": 7, "dynamic": "on",
        "select": "random", "adjust_beta": "off", "beta": 2.5, "margin": 2.0, "learning_rate": 0.0005, "steps": 70,
        "seed": 4,
    }  # fmt: skip
    assert state["ranking"] == "mrr"
    assert "were not recognised" not in text(app)


def test_a_link_of_nonsense_opens_the_page_and_is_told():
    app = opened(
        "lab", train_objective="abc", train_negatives="900", train_steps="x", ranking="<b>", nonsense="1", run="nothing"
    )  # fmt: skip
    assert app.selectbox(key="train_objective").value == "dmpo"
    assert app.slider(key="train_negatives").value == 15
    assert app.number_input(key="train_steps").value == 300
    told = text(app)
    assert "One run of this link is no longer on this server" in told
    (sentence,) = [info.value for info in app.info if "were not recognised" in info.value]
    for name in ("nonsense", "train_objective", "train_negatives", "train_steps", "ranking"):
        assert shell.plain(name) in sentence
    assert "Recorded, not live." in told


def test_a_link_finds_the_runs_of_another_viewer():
    first, second = handed_in("First *one*"), handed_in("Second", objective="sdpo", dynamic="off")
    logged(first)
    app = opened("lab", run=[second.token, first.token])
    assert names(app) == ["Second", "First *one*"]
    assert r"**First \*one\***: after step 120 of 300, training loss 0.69 → 0.58, pair_loss 0.69 → 0.33" in text(app)
    app.multiselect(key="bench").set_value([first.token]).run()
    assert linked(app) == [first.token]
    assert names(app) == ["First *one*"]
    app.multiselect(key="bench").set_value([]).run()
    assert "Recorded, not live." in text(app)


def test_own_runs_come_back_without_a_link():
    app = opened("lab")
    app.button(key="train").click().run()
    tokens = linked(app)
    del app.query_params["run"]
    app.run()
    assert linked(app) == tokens


def test_two_runs_are_compared_and_the_yardstick_is_told():
    first, second = handed_in("Plain", dynamic="off"), handed_in("Dynamic")
    logged(first, hits=0.68)
    logged(second, 90, hits=0.712)
    app = opened("lab", run=[first.token, second.token])
    assert (
        "So far, lowest training loss: **Plain** (0.58; each objective and K has a scale of its own). Lowest "
        "pair_loss: **Dynamic** (0.33). Highest HR@1 on validation users: **Dynamic** (71.2 %; SFT 68.3 %)."
    ) in text(app)
    titles = [note["text"] for note in charts(app)["lab_runs"]["layout"]["annotations"]]
    assert "HR@1 on validation users, % (grey: SFT, 68.3 %)" in titles


def test_place_in_the_queue_and_cancel():
    before, job = handed_in("Before"), handed_in("Mine")
    app = opened("lab", run=job.token)
    (bar,) = app.get("progress")
    assert bar.proto.text == "In the queue, place 2: 1 run waits before it."
    button = app.button(key=f"stop_{job.token}")
    assert button.label == "Cancel"
    button.click().run()
    assert [jobs.find(each.token).state for each in (before, job)] == ["waiting", "stopped"]
    assert "Stopped" in text(app)


def test_a_running_run_tells_the_time_left_and_is_stopped_once_from_two_tabs():
    job = handed_in()
    assert jobs.begin()
    logged(job)
    tabs = [opened("lab", run=job.token) for _ in range(2)]
    for app in tabs:
        (bar,) = app.get("progress")
        assert (bar.proto.value, bar.proto.text) == (40, "Step 120 of 300, about 9 s left.")
    tabs[0].button(key=f"stop_{job.token}").click().run()
    tabs[1].button(key=f"stop_{job.token}").click().run()
    assert "It was already stopped." in text(tabs[1])
    assert all("It had reached step 120 of 300." in text(app) for app in tabs)
    tabs[0].button(key=f"resume_{job.token}").click().run()
    assert jobs.find(job.token).state == "waiting"
    assert tabs[0].get("progress")


def test_a_run_that_finished_before_the_button_was_pressed_says_so():
    job = handed_in()
    app = opened("lab", run=job.token)
    button = app.button(key=f"stop_{job.token}")
    finished(job)
    button.click().run()
    assert jobs.find(job.token).state == "done"
    assert "It had already finished." in text(app)


def test_a_finished_run_stands_beside_sft_and_its_recorded_neighbours(recorded: Path):
    job = handed_in("Mine", negatives=12, dynamic="off", sft_epochs=40.0)
    finished(job)
    app = opened("lab", run=job.token)
    assert "HR@1 on the test users: **66.2 %**, 1.2 points above SFT's 65.0 % (95 % interval " in text(app)
    assert "Recorded at K = 10: " in text(app)
    assert "Recorded at K = 15: " in text(app)
    links = {link.proto.label: link.proto for link in app.get("page_link")}
    assert set(links) == {"Microscope", "Compare"}
    assert all(job.token in str(link) for link in links.values())


def test_no_number_of_other_data_or_of_another_sft_model_stands_beside_a_runs(recorded: Path):
    job = handed_in("Mine", negatives=12, dynamic="off", sft_epochs=40.0)
    finished(job, fingerprint="0" * 16)
    path = job.run / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"start_fingerprint": "another"}))
    app = opened("lab", run=job.token)
    assert "1.2 points above SFT's 65.0 %." in text(app)  # without an interval
    assert "Recorded at K = " not in text(app)


@pytest.mark.parametrize("damage", ["folder", "metrics"])
def test_files_that_vanish_or_are_damaged_while_the_page_is_open_are_one_sentence(damage: str):
    job = handed_in()
    finished(job)
    app = opened("lab", run=job.token)
    if damage == "folder":
        shutil.rmtree(job.folder)
    else:
        (job.run / "metrics.jsonl").write_text("{\n")
    app.run()
    assert not app.exception
    assert [error.value for error in app.error] == [
        "The files of this run are missing or damaged: remove it, and train it again."
    ]


def test_a_register_that_vanishes_while_the_page_is_open_is_one_sentence(tmp_path: Path):
    job = handed_in()
    app = opened("lab", run=job.token)
    shutil.rmtree(tmp_path / "home")
    app.run()
    assert not app.exception
    assert "One run of this link is no longer on this server" in text(app)


def test_a_failed_run_says_why_and_can_go_on():
    job = handed_in()
    assert jobs.begin()
    logged(job, 50)
    jobs.finish(job.token, "failed", "Its process was killed (SIGKILL).")
    app = opened("lab", run=job.token)
    (error,) = app.error
    assert error.value == r"Its process was killed \(SIGKILL\)\. It had reached step 50 of 300."
    for seed in range(limits.RUNS_AT_ONCE):
        handed_in(seed=seed)
    app.button(key=f"resume_{job.token}").click().run()
    assert "You have 4 runs waiting or training, the maximum" in text(app)
    assert jobs.find(job.token).state == "failed"


def test_rename_keep_and_remove():
    job = handed_in()
    finished(job)
    app = opened("lab", run=job.token)
    app.text_input(key=f"name_{job.token}").set_value("<b>Bold</b> $x$ " + "y" * 100).run()
    assert jobs.find(job.token).name == ("<b>Bold</b> $x$ " + "y" * 100)[: limits.NAME]
    assert "<b>" not in "".join(str(element.value) for element in app.markdown)
    assert "<b>" not in json.dumps(charts(app)["lab_runs"])
    app.text_input(key=f"name_{job.token}").set_value("  ").run()
    assert jobs.find(job.token).name.startswith("<b>")
    app.toggle(key=f"keep_{job.token}").set_value(True).run()
    assert jobs.find(job.token).kept
    app.button(key=f"remove_{job.token}").click().run()
    assert jobs.find(job.token) is None
    assert not job.folder.exists()
    assert "Recorded, not live." in text(app)
    assert "not on this server" not in text(app)


def test_a_viewer_keeps_no_more_than_allowed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "RUNS_KEPT", 0)
    job = handed_in()
    finished(job)
    app = opened("lab", run=job.token)
    app.toggle(key=f"keep_{job.token}").set_value(True).run()
    assert "You keep 0 runs, the maximum" in text(app)
    assert not app.toggle(key=f"keep_{job.token}").value


def test_the_fifth_run_is_refused_in_a_sentence_and_the_bench_holds_four():
    app = opened("lab")
    for _ in range(5):
        app.button(key="train").click().run()
    assert "You have 4 runs waiting or training, the maximum" in text(app)
    first, *others = linked(app)
    assert len(others) == 3
    jobs.stop(first)
    app.run()
    app.button(key="train").click().run()
    assert linked(app)[:3] == others
    assert len(app.multiselect(key="bench").options) == 5


def test_an_objectives_own_settings_are_controls_and_reach_the_run():
    app = opened("lab")
    app.selectbox(key="train_objective").set_value("simpo").run()
    app.number_input(key="train_target_margin").set_value(0.3).run()
    app.button(key="train").click().run()
    assert not app.exception
    settings = jobs.find(linked(app)[0]).settings
    assert (settings["objective"], settings["target_margin"]) == ("simpo", 0.3)
    linked_form = opened("lab", train_objective="SimPO", train_target_margin="0.3")
    assert linked_form.number_input(key="train_target_margin").value == 0.3
    assert not linked_form.info
    app.selectbox(key="train_objective").set_value("beta-dpo").run()
    assert app.selectbox(key="train_dynamic").disabled
    assert {"train_alpha", "train_keep", "train_momentum"} <= {each.key for each in app.number_input}
    assert "train_target_margin" not in {each.key for each in app.number_input}
    app.button(key="train").click().run()
    settings = [jobs.find(token).settings for token in linked(app)]
    assert {each["dynamic"] for each in settings if each["objective"] == "beta-dpo"} == {"off"}


def test_what_is_not_here_is_listed_with_the_command_that_brings_it(tmp_path: Path):
    app = opened("lab")
    assert app.selectbox(key="train_dataset").options == ["catalogue"]
    assert app.selectbox(key="train_model").options == ["pocket-gpt2", "pocket-qwen2"]
    (listed,) = [element.value for element in app.caption if "minipo fetch" in element.value]
    assert set(listed.splitlines()) == {f"- {fetch.missing(name)}" for name in fetch.SOURCES}
    place_fetched(tmp_path / "home", "ml-100k", "smollm2-135m")
    app.run()
    assert app.selectbox(key="train_dataset").options == ["catalogue", "MovieLens-100K"]
    app.selectbox(key="train_dataset").set_value("ml-100k").run()
    app.selectbox(key="train_model").set_value("smollm2-135m").run()
    recipe = configuration.recipe("prefer", "ml-100k", "smollm2-135m")
    assert app.number_input(key="train_learning_rate").value == recipe["learning_rate"]
    assert "the server measures its speed when it starts" in text(app)
    shutil.rmtree(tmp_path / "home" / "fetched")
    app.run()
    assert not app.exception
    assert app.selectbox(key="train_dataset").value == "catalog"


@pytest.mark.parametrize(
    ("switches", "told"),
    [
        (("off", "on", "on"), "DMPO, K = 15, seed 0"),
        (("on", "on", "on"), "DMPO, DynamicPO, K = 15, seed 0"),
        (("on", "off", "on"), "DMPO, DynamicPO β alone, K = 15, seed 0"),
        (("on", "off", "off"), "DMPO, K = 15, seed 0"),
        (("on", "random", "off"), "DMPO, DynamicPO random |B|, K = 15, seed 0"),
        (("on", "hardest", "on"), "DMPO, DynamicPO hardest |B| with β, K = 15, seed 0"),
    ],
)
def test_a_run_is_named_by_what_it_does(switches: tuple[str, str, str], told: str):
    names = ("dynamic", "select", "adjust_beta")
    assert forms.described({**forms.OPENING, **dict(zip(names, switches, strict=True))}) == told


def test_what_collapse_offers_to_train_fills_the_form(recorded: Path):
    (offer, *_) = [
        link.proto
        for link in opened("collapse", curve="S-DPO", strength="3").get("page_link")
        if "lab" in link.proto.page
    ]
    link = {name: value for name, (value,) in parse_qs(offer.query_string).items()}
    app = opened("lab", **link)
    assert (app.selectbox(key="train_objective").value, app.number_input(key="train_beta").value) == ("sdpo", 3.0)
    assert "were not recognised" not in text(app)
