"""A class experiment: seeds once each, guesses before results, dots of one's own pair alone, and text as text."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from figures import classroom
from streamlit.testing.v1 import AppTest

from minipo import load_dataset
from minipo.evaluation import Interval
from minipo.experiments import pairs
from minipo.experiments.configuration import PreferConfig
from minipo.experiments.datasets.loading import DATASETS
from tests.app.conftest import charts, opened, text

import experiments  # isort: skip
import jobs  # isort: skip
import limits  # isort: skip
import worker  # isort: skip

LEFT: dict[str, Any] = {"objective": "dmpo", "negatives": 1, "steps": 10}
RIGHT = LEFT | {"negatives": 19}
NAME = "<b onclick=alert(1)>*Ada* [x](y)</b>"


@pytest.fixture
def experiment() -> experiments.Experiment:
    return experiments.open_experiment("lecturer", "Do more negatives hurt?", LEFT, RIGHT)


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Says who looks at the page."""
    import shell

    def be(who: str) -> None:
        monkeypatch.setattr(shell, "viewer", lambda: who)

    be("lecturer")
    return be


def result(seed: int, hits: float = 0.6, **settings: Any) -> bytes:
    """The file of a pair: `hits` of the users right on the right, 0.7 on the left."""
    left, right = pairs.sides(LEFT | settings, RIGHT | settings, seed)
    splits = load_dataset("catalog")
    users = len(splits.test)
    ranks = [(np.arange(users) >= share * users).astype(np.uint8) for share in (0.7, hits)]
    pair = pairs.Pair(left, right, splits.fingerprint, ranks[0], ranks[1], 0.68, {"minipo": "0.1.0"})
    folder = jobs.files.home()
    pairs.write_pair(pair, folder / "pair.json")
    return (folder / "pair.json").read_bytes()


def take_part(code: str, who: str, guess: float, hits: float, nickname: str = "") -> int:
    seed = experiments.join(code, who, nickname).seed
    experiments.guess(code, who, guess)
    experiments.deliver(code, who, result(seed, hits))
    return seed


def shown(experiment: experiments.Experiment) -> AppTest:
    return opened("experiment", code=experiments.shown_code(experiment.code))


# The storage


def test_thirty_students_at_once_get_a_seed_each_in_order(experiment: experiments.Experiment) -> None:
    with ThreadPoolExecutor(30) as pool:
        entries = list(pool.map(lambda n: experiments.join(experiment.code, f"student {n}"), range(30)))
    seeds = sorted(entry.seed for entry in entries)
    assert seeds == list(range(experiments.FIRST_SEED, experiments.FIRST_SEED + 30))
    assert experiments.join(experiment.code, "student 3").seed == entries[3].seed  # once each


def test_a_seed_that_was_removed_is_not_given_out_again(experiment: experiments.Experiment) -> None:
    first = experiments.join(experiment.code, "ada").seed
    experiments.remove(experiment.code, "lecturer", first)
    assert experiments.entry(experiment.code, "ada") is None
    assert experiments.join(experiment.code, "ada").seed == first + 1


def test_only_the_lecturer_closes_and_removes(experiment: experiments.Experiment) -> None:
    seed = experiments.join(experiment.code, "ada").seed
    with pytest.raises(ValueError, match="Only the browser that opened"):
        experiments.set_open(experiment.code, "ada", False)
    with pytest.raises(ValueError, match="Only the browser that opened"):
        experiments.remove(experiment.code, "grace", seed)
    experiments.set_open(experiment.code, "lecturer", False)
    for attempt in (
        lambda: experiments.join(experiment.code, "grace"),
        lambda: experiments.guess(experiment.code, "ada", 1.0),
        lambda: experiments.deliver(experiment.code, "ada", result(seed)),
        lambda: experiments.run(experiment.code, "ada"),
    ):
        with pytest.raises(ValueError, match="closed"):
            attempt()
    experiments.set_open(experiment.code, "lecturer", True)
    experiments.guess(experiment.code, "ada", 1.0)


def test_the_limits_hold(monkeypatch: pytest.MonkeyPatch, experiment: experiments.Experiment) -> None:
    monkeypatch.setattr(limits, "STUDENTS", 1)
    experiments.join(experiment.code, "ada")
    with pytest.raises(ValueError, match="1 students have joined, the maximum"):
        experiments.join(experiment.code, "grace")
    monkeypatch.setattr(limits, "EXPERIMENTS", 1)
    with pytest.raises(ValueError, match="You have 1 open experiments"):
        experiments.open_experiment("lecturer", "", LEFT, RIGHT)
    experiments.open_experiment("another", "", LEFT, RIGHT)
    for left, right, said in (
        (LEFT, LEFT, "the same settings"),
        (LEFT, RIGHT | {"steps": 5000}, "steps is 5,000"),
        (LEFT, RIGHT | {"sft": "/etc"}, "leave sft out"),
        (LEFT, RIGHT | {"dataset": "/etc/passwd"}, "not on this server"),
    ):
        with pytest.raises(ValueError, match=said):
            experiments.open_experiment("third", "", left, right)


def test_what_is_closed_or_removed_trains_no_more(
    monkeypatch: pytest.MonkeyPatch, experiment: experiments.Experiment
) -> None:
    code = experiment.code
    for who in ("ada", "grace"):
        experiments.join(code, who)
        experiments.guess(code, who, 1.0)
        experiments.run(code, who)
    ada, grace = (jobs.find(experiments.entry(code, who).token) for who in ("ada", "grace"))
    experiments.remove(code, "lecturer", experiments.entry(code, "ada").seed)
    assert (jobs.find(ada.token).state, jobs.find(grace.token).state) == ("stopped", "waiting")
    experiments.set_open(code, "lecturer", False)
    assert jobs.find(grace.token).state == "stopped"
    monkeypatch.setattr(limits, "EXPERIMENTS", 1)
    experiments.open_experiment("lecturer", "", LEFT, RIGHT)
    with pytest.raises(ValueError, match="You have 1 open experiments"):
        experiments.set_open(code, "lecturer", True)
    monkeypatch.setattr(limits, "EXPERIMENTS", 2)
    experiments.set_open(code, "lecturer", True)
    experiments.run(code, "grace")
    assert jobs.find(grace.token).state == "waiting"


def test_a_pair_that_ended_while_nobody_looked_counts_before_its_job_is_removed(
    experiment: experiments.Experiment,
) -> None:
    code = experiment.code
    seed = experiments.join(code, "ada").seed
    experiments.guess(code, "ada", 1.0)
    experiments.run(code, "ada")
    job = jobs.begin()
    job.folder.mkdir(parents=True, exist_ok=True)
    job.result.write_bytes(result(seed, 0.65))
    jobs.finish(job.token, "done", "")
    with jobs.database() as connection:
        connection.execute("update jobs set ended = 1")
    experiments.collect()  # as the worker does it
    jobs.tidy()
    assert jobs.find(job.token) is None
    assert experiments.table(code)["difference"].tolist() == pytest.approx([-0.05])


def test_a_hostile_result_is_one_sentence(experiment: experiments.Experiment) -> None:
    code = experiment.code
    seed = experiments.join(code, "ada").seed
    experiments.guess(code, "ada", 1.0)
    content = json.loads(result(seed))
    content["left"]["settings"]["\ud800" + "x" * 100] = "\ud800"
    with pytest.raises(ValueError, match="Invalid JSON: unexpected end of hex escape") as refused:
        experiments.deliver(code, "ada", json.dumps(content).encode())
    str(refused.value).encode()  # or no page could show it


def test_a_result_needs_a_guess_comes_once_and_must_be_ones_own(experiment: experiments.Experiment) -> None:
    code = experiment.code
    with pytest.raises(ValueError, match="not joined"):
        experiments.deliver(code, "ada", b"")
    seed = experiments.join(code, "ada").seed
    with pytest.raises(ValueError, match="Guess first"):
        experiments.deliver(code, "ada", result(seed))
    for wrong in (float("nan"), float("inf"), 101.0):
        with pytest.raises(ValueError, match="A guess is a number of points"):
            experiments.guess(code, "ada", wrong)
    experiments.guess(code, "ada", -2.0)
    with pytest.raises(ValueError, match="made once"):
        experiments.guess(code, "ada", 5.0)
    for content, said in (
        (result(seed + 1), f"of seed {seed + 1}, not of seed {seed}"),
        (result(seed, steps=20), "steps is 20, not 10"),
        (b"<html>", "Invalid JSON"),
        (b" " * 600_000, "larger than 500 KB"),
    ):
        with pytest.raises(ValueError, match=said):
            experiments.deliver(code, "ada", content)
    experiments.deliver(code, "ada", result(seed, 0.65))
    with pytest.raises(ValueError, match="already arrived"):
        experiments.deliver(code, "ada", result(seed, 0.9))
    assert experiments.table(code)["difference"].tolist() == pytest.approx([-0.05])
    assert experiments.differences(code).shape == (1, 2000)


def test_what_the_queue_has_finished_is_taken_in(experiment: experiments.Experiment) -> None:
    code, seed = experiment.code, experiments.join(experiment.code, "ada").seed
    experiments.guess(code, "ada", 0.0)
    experiments.run(code, "ada")
    experiments.run(code, "ada")  # once is enough
    (job,) = jobs.of_viewer("ada", "pair")
    assert job.settings["seed"] == seed
    _, words = worker.task(job)
    assert words[words.index("--right") + 1] == "objective=dmpo negatives=19 steps=10"
    assert experiments.progress(job) == 0
    before = experiments.find(code)
    experiments.collect(code)
    assert experiments.find(code) == before  # nothing yet
    jobs.begin()
    job.folder.mkdir(parents=True, exist_ok=True)
    job.result.write_bytes(result(seed, 0.6))
    jobs.finish(job.token, "done", "")
    experiments.collect(code)
    assert experiments.table(code)["difference"].tolist() == pytest.approx([-0.1])


def test_results_on_other_data_than_the_experiment_was_opened_on_are_not_taken(
    experiment: experiments.Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, seed = experiment.code, take_part(experiment.code, "ada", 0.0, 0.6) + 1
    assert experiments.join(code, "bob").seed == seed
    experiments.guess(code, "bob", 0.0)
    before = load_dataset("catalog")
    after = replace(before, train=before.train[1:])
    monkeypatch.setitem(DATASETS, "catalog", lambda seed: after)  # as a later version of minipo may have it
    with pytest.raises(ValueError, match=f"fingerprint {before.fingerprint}, .* fingerprint {after.fingerprint} now"):
        experiments.deliver(code, "bob", result(seed))
    experiments.run(code, "bob")
    (job,) = jobs.of_viewer("bob", "pair")
    jobs.begin()
    job.folder.mkdir(parents=True, exist_ok=True)
    job.result.write_bytes(result(seed))
    jobs.finish(job.token, "done", "")
    experiments.collect(code)
    entry = experiments.entry(code, "bob")
    assert entry is not None
    assert entry.problem.startswith("This experiment was opened on data with fingerprint")
    assert experiments.differences(code).shape == (1, 2000)


def test_a_job_without_a_readable_result_can_be_run_again(experiment: experiments.Experiment) -> None:
    code = experiment.code
    experiments.join(code, "ada")
    experiments.guess(code, "ada", 0.0)
    experiments.run(code, "ada")
    (job,) = jobs.of_viewer("ada", "pair")
    jobs.begin()
    jobs.finish(job.token, "done", "")
    experiments.collect(code)
    entry = experiments.entry(code, "ada")
    assert entry is not None
    assert "cannot be read" in entry.problem
    assert str(jobs.files.home()) not in entry.problem
    experiments.run(code, "ada")
    assert len(jobs.of_viewer("ada", "pair")) == 2


# The page


def test_the_page_opens_with_recorded_pairs(recorded: Path) -> None:
    app = opened("experiment")
    assert "**Recorded, 5 seeds, no class yet.**" in text(app)
    assert "narrows" in text(app) or "widens" in text(app)
    dots = charts(app)["class_dots"]["data"][-1]
    assert dots["name"] == "difference"
    assert dots["text"] == [f"seed {seed}" for seed in range(5)]


def test_a_record_that_is_missing_is_told(recorded: Path) -> None:
    (recorded / "objectives" / "ranks.parquet").unlink()
    app = opened("experiment")
    assert "is missing" in app.warning[0].value
    assert str(recorded) not in text(app)


def test_a_lecturer_opens_an_experiment_with_these_settings(recorded: Path, looks: Any) -> None:
    app = opened("experiment", setup="true", left_steps="10", right_steps="10", right_negatives="7")
    assert "**DMPO, K = 1** and **DMPO, K = 7**" in text(app)
    app.button(key="open").click().run()
    assert not app.exception
    (experiment,) = experiments.of_viewer("lecturer")
    assert app.text_input(key="code").value == experiments.shown_code(experiment.code)
    assert experiment.settings["right"]["negatives"] == 7
    assert [side.steps for side in experiment.sides()] == [10, 10]
    assert "Nobody has joined yet." in text(app)


def test_another_model_takes_the_settings_for_the_chosen_data(recorded: Path, looks: Any) -> None:
    app = opened("experiment", setup="true")
    app.selectbox(key="left_model").select("pocket-qwen2").run()
    assert not app.exception
    assert app.number_input(key="left_learning_rate").value == PreferConfig().learning_rate  # own data have another


def test_equal_sides_are_told_before_anything_is_opened(recorded: Path, looks: Any) -> None:
    app = opened("experiment", setup="true", right_negatives="1")
    assert "have the same settings" in text(app)
    assert "open" not in [button.key for button in app.button]


def test_an_unknown_code_is_told(recorded: Path) -> None:
    app = opened("experiment", code="<b>NOPE</b>")
    said = text(app)
    assert "There is no experiment with the code \\<b\\>NOPE" in said
    assert "Recorded, 5 seeds" in said


def test_a_student_guesses_first_and_sees_the_class_then(
    recorded: Path, looks: Any, experiment: experiments.Experiment
) -> None:
    take_part(experiment.code, "grace", 40.0, 0.65, "Grace")
    looks("ada")
    app = shown(experiment)
    assert "close" not in [button.key for button in app.button]
    app.text_input(key="nickname").set_value(NAME)
    app.button[0].click().run()
    entry = experiments.entry(experiment.code, "ada")
    assert entry is not None
    assert (entry.seed, entry.nickname) == (102, NAME[: experiments.NICKNAME])
    assert not charts(app)
    assert "Grace" not in text(app)
    app.number_input(key="guess").set_value(-2.0)
    app.button[0].click().run()
    assert not app.exception
    assert "Your guess: **−2.0 points**" in text(app)
    dots = {trace["name"]: trace for trace in charts(app)["class_dots"]["data"]}
    assert dots["difference"]["text"] == ["Grace"]
    assert set(dots) == {"difference", "guess"}
    assert "triangle-up-open" in dots["guess"]["marker"]["symbol"]  # beyond the axis
    assert "<b on" not in json.dumps(dots)
    app.button(key="run").click().run()
    assert [job.settings["seed"] for job in jobs.of_viewer("ada", "pair")] == [102]
    assert "run" not in [button.key for button in app.button]
    app.button(key="stop").click().run()
    assert jobs.of_viewer("ada", "pair")[0].state == "stopped"
    assert app.button(key="run").label == "Resume"


def test_a_student_brings_a_file(recorded: Path, looks: Any, experiment: experiments.Experiment) -> None:
    seed = experiments.join(experiment.code, "ada", "Ada").seed
    experiments.guess(experiment.code, "ada", -4.0)
    looks("ada")
    app = shown(experiment)
    command = 'minipo pair --left "objective=dmpo negatives=1 steps=10" --right "objective=dmpo negatives=19 steps=10"'
    assert app.code[0].value == f"{command} --seed {seed} --out pair-{seed}.json"
    for content, said in ((b"<b>", "Invalid JSON"), (result(7), "of seed 7, not of seed"), (b" " * 10**6, "500 KB")):
        app.file_uploader[0].set_value(("<b>.json", content, "application/json")).run()
        assert said.replace("-", "\\-") in app.warning[0].value.replace("\\.", ".")
    app.file_uploader[0].set_value(("any name.json", result(seed, 0.68), "application/json")).run()
    assert not app.exception
    assert app.success[0].value == "Your pair: −2.0 points. Your guess is off by 2.0."
    assert "**1 of 1 student in.**" in text(app)


def test_the_lecturer_sees_the_class_closes_it_and_removes_a_student(
    recorded: Path, looks: Any, experiment: experiments.Experiment
) -> None:
    for number, hits in enumerate((0.69, 0.68, 0.66)):
        take_part(experiment.code, f"student {number}", -3.0, hits)
    experiments.join(experiment.code, "late", NAME)
    app = shown(experiment)
    said = text(app)
    assert "**3 of 4 students in.**" in said
    assert "is −2.3 points" in said
    assert "DMPO, K = 19 is **worse**" in said
    assert "off by 1.3 points" in said  # the guesses are −3 of −1, −2 and −4
    assert set(charts(app)) == {"class_dots", "class_closing"}
    app.selectbox(key="student").set_value(103)
    app.run()
    app.button(key="remove").click().run()
    assert "**2 of 3 students in.**" in text(app)
    app.button(key="close").click().run()
    assert "This experiment is closed." in text(app)
    assert app.button(key="close").label == "Open again"


# The figures and their sentence


def test_sentences_say_what_the_interval_lets_one_say() -> None:
    labels = ("A", "B")
    for interval, said in (
        (Interval(-0.02, -0.03, -0.01), "B is **worse**"),
        (Interval(0.02, 0.01, 0.03), "B is **better**"),
        (Interval(0.0, -0.005, 0.005), "**within a point of each other**"),
        (Interval(0.0, -0.02, 0.005), "**undecided**"),
    ):
        assert said in classroom.difference_sentence(labels, interval)


def test_figures_hold_every_dot_and_every_interval() -> None:
    table = pd.DataFrame({"seed": [3, 1], "name": ["a", "b"], "guess": [-90.0, np.nan], "difference": [-0.02, -0.01]})
    dots = {trace.name: trace for trace in classroom.class_dots(table, Interval(-0.015, -0.02, -0.01), "#123456").data}
    assert set(dots) == {"guess", "difference"}
    assert list(dots["difference"].x) == [3, 1]
    assert list(dots["difference"].y) == pytest.approx([-2, -1])
    assert list(dots["guess"].customdata) == [-90]
    assert list(dots["guess"].marker.symbol) == ["triangle-down-open"]
    figure = classroom.class_closing([Interval(0.0, -0.02, 0.02), Interval(0.01, 0.0, 0.02)], "#123456")
    assert figure.layout.title.text == "The interval narrows: 4.0 → 2.0 points wide"
    assert list(figure.data[0].y) == pytest.approx([0, 1])
    assert list(figure.data[0].error_y.array) == pytest.approx([2, 1])


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"negatives": 19}, ("DMPO, K = 1", "DMPO, K = 19")),
        ({"objective": "sdpo"}, ("DMPO, K = 1", "S-DPO, K = 1")),
        ({"dynamic": "on"}, ("DMPO, K = 1", "DMPO, DynamicPO, K = 1")),
        ({"dynamic": "on", "adjust_beta": "off"}, ("DMPO, K = 1", "DMPO, DynamicPO selection alone, K = 1")),
        ({"learning_rate": 1e-3}, ("DMPO, K = 1, learning rate 0.0003", "DMPO, K = 1, learning rate 0.001")),
    ],
)
def test_labels_tell_two_runs_apart(settings: dict[str, Any], labels: tuple[str, str]) -> None:
    plain = {"objective": "dmpo", "negatives": 1}
    assert classroom.side_labels(*pairs.sides(plain, plain | settings)) == labels
