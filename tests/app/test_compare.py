"""The page Compare: what it draws, what each control changes, what a link restores, and what is downloaded."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jobs
import nbformat
import numpy as np
import pandas as pd
import pytest
import repeat
from streamlit.testing.v1 import AppTest

from minipo.course.figures.style import in_points
from minipo.evaluation import paired_interval
from minipo.experiments import comparison
from minipo.experiments.configuration import PreferConfig, make_config
from minipo.experiments.records import RESULTS, difference, load_recorded
from tests.app.conftest import FINGERPRINTS, USERS, VIEWER, charts, opened, text, write_real

OPENING = ["DMPO, K = 1", "DMPO, K = 19", "DMPO, DynamicPO, K = 19", "SFT"]


def labels(app: AppTest) -> list[str]:
    """Whom the figure compares, from top to bottom."""
    return [label.replace("<br>", " ") for label in charts(app)["differences"]["layout"]["yaxis"]["ticktext"]]


def table(app: AppTest) -> pd.DataFrame:
    return app.dataframe[0].value.set_index("name")


def commands(app: AppTest) -> list[str]:
    return [code.value for code in app.code]


def finished(name: str = "mine", viewer: str = "a-viewer-of-tests", users: int = USERS, **settings: Any) -> str:
    """A run in the register that has ended, its results made up as those of the recorded grids are; its token."""
    settings = {"objective": "dmpo", "negatives": 5, "steps": 10, "seed": 3} | settings
    job = jobs.submit("prefer", settings, viewer, name)
    jobs.begin()
    jobs.finish(job.token, "done", "")
    job.run.mkdir(parents=True)
    config = asdict(make_config(PreferConfig, jobs.with_paths(settings)))
    (job.run / "config.json").write_text(json.dumps(config))
    fingerprint = FINGERPRINTS.get(settings.get("dataset", "catalog"), "another")
    rank = np.where(np.arange(users) < 0.9 * users, 0, 4)
    pd.DataFrame({"user": range(users), "rank": rank, "reward_win": rank == 0}).to_parquet(job.run / "users.parquet")
    results = dict.fromkeys(RESULTS, 0.5) | {"hr@1": 0.9, "dataset_fingerprint": fingerprint, "status": "done"}
    (job.run / "summary.json").write_text(json.dumps(results))
    return job.token


def test_opens_with_dmpo_dynamicpo_and_sft_against_dmpo_at_k_1(recorded: Path) -> None:
    app = opened("compare")
    assert app.multiselect(key="runs").value == OPENING
    assert app.selectbox(key="baseline").value == "DMPO, K = 1"
    assert labels(app) == OPENING[1:]
    change = difference(
        *(load_recorded("objectives").outcomes(objective="dmpo", dynamic="off", negatives=k) for k in (19, 1))
    )
    said = text(app)
    assert f"**lower** with DMPO, K \\= 19 ({in_points(change)} points)".replace("\\=", "=") in said
    assert "**higher** with DMPO, DynamicPO, K = 19" in said
    assert "300 test users" in said
    assert table(app).loc["DMPO, K = 19", "difference"] == in_points(change)


def test_the_table_has_what_differs_as_columns_and_the_rest_in_words(recorded: Path) -> None:
    app = opened("compare")
    shown = table(app)
    assert list(shown["negatives"]) == ["1", "19", "19", "–"]
    assert list(shown["dynamic"]) == ["off", "off", "on", "–"]
    assert list(shown["objective"]) == ["DMPO", "DMPO", "DMPO", "SFT"]
    assert "steps" not in shown
    assert "learning_rate" not in shown
    same = next(caption.value for caption in app.caption if caption.value.startswith("The same in all"))
    assert "Data catalogue" in same
    assert "Steps 300" in same
    assert "SFT epochs 20" in same
    assert "Objective" not in same
    assert "DynamicPO" not in same
    assert {"train_loss", "pair_loss", "hr@1", "hr@5", "ndcg@5", "mrr", "reward_win_rate", "sft_hr@1"} <= {*shown}
    cells = app.dataframe[0].proto.arrow_data.styler.styles.partition("{")[0]
    assert cells.count("#") == 6  # highlighted: K twice, DynamicPO once, and three cells of SFT


def test_another_baseline_turns_the_difference_round(recorded: Path) -> None:
    app = opened("compare")
    before = charts(app)["differences"]["data"][0]["x"][0]
    app.selectbox(key="baseline").select("DMPO, K = 19").run()
    after = charts(app)["differences"]
    assert labels(app)[0] == "DMPO, K = 1"
    assert after["data"][0]["x"][0] == pytest.approx(-before)
    assert "Against DMPO, K = 19" in text(app)
    assert table(app).loc["DMPO, K = 19", "difference"] == "baseline"


@pytest.mark.parametrize("metric", ["hr@5", "ndcg@5", "mrr"])
def test_another_metric(recorded: Path, metric: str) -> None:
    app = opened("compare")
    app.segmented_control(key="metric").set_value(comparison.METRICS[metric]).run()
    grid = load_recorded("objectives")
    left, right = (grid.outcomes(metric, objective="dmpo", dynamic="off", negatives=k) for k in (19, 1))
    drawn = charts(app)["differences"]
    assert drawn["data"][0]["x"][0] == pytest.approx(100 * difference(left, right).mean)
    assert drawn["layout"]["xaxis"]["title"]["text"] == f"difference of {comparison.METRICS[metric]}, points"
    assert f"{comparison.METRICS[metric]} is" in text(app)


def test_a_win_rate_that_was_not_recorded_is_said_to_be_missing(recorded: Path) -> None:
    app = opened("compare", metric="win rate")
    assert not charts(app)
    assert "no win rate" in text(app)
    assert table(app).loc["SFT", "difference"].startswith("no win rate")


def test_runs_are_chosen_and_left_out(recorded: Path) -> None:
    app = opened("compare")
    app.multiselect(key="runs").set_value(["SFT", "S-DPO, K = 5", "DMPO, random |B|, K = 19, seed 2"]).run()
    assert labels(app) == ["S-DPO, K = 5", "DMPO, random |B|, K = 19, seed 2"]
    assert list(table(app)["seeds"]) == ["–", "0 1 2 3 4", "2"]
    assert table(app).loc["DMPO, random |B|, K = 19, seed 2", "paired_over"] == "users, seed 2"
    assert table(app).loc["DMPO, random |B|, K = 19, seed 2", "dynamic"] == "random |B|"
    app.multiselect(key="runs").set_value(["SFT"]).run()
    assert not charts(app)
    assert "choose a second line" in text(app)
    app.multiselect(key="runs").set_value([]).run()
    assert not app.dataframe
    assert "Choose the runs to compare" in text(app)


def test_recorded_runs_of_other_data(recorded: Path) -> None:
    write_real(recorded)
    app = opened("compare")
    app.multiselect(key="runs").set_value(["SFT", "DPO, K = 1"]).run()
    assert "as it was before" not in text(app)
    app.selectbox(key="data").select("MovieLens-100K").run()
    assert "Recorded on ml-100k as it was before (fingerprint 2a53be877b122b87" in text(app)
    assert app.multiselect(key="runs").value == OPENING
    app.multiselect(key="runs").set_value(["SFT", "SmolLM2-135M: DMPO, K = 15"]).run()
    assert list(table(app)["model"]) == ["pocket-gpt2", "SmolLM2-135M"]
    assert table(app).loc["SmolLM2-135M: DMPO, K = 15", "seeds"] == "0 1"


def test_a_link_restores_all_of_it(recorded: Path) -> None:
    app = opened(
        "compare", runs=["DPO, K = 3", "SFT", "MPPO, K = 10"], baseline="MPPO, K = 10", metric="MRR",
        repeat="notebook cell",
    )  # fmt: skip
    assert labels(app) == ["DPO, K = 3", "SFT"]
    assert "MRR is" in text(app)
    assert "Against MPPO, K = 10" in text(app)
    assert "minipo.sweep(" in commands(app)[0]
    assert "Some parameters of this link" not in text(app)


def test_a_link_with_nonsense_opens_the_page_and_says_so(recorded: Path) -> None:
    app = opened("compare", metric="beauty", colour="red", baseline="nobody", run="../../etc/passwd")
    assert labels(app) == OPENING[1:]
    assert "Some parameters of this link were not recognised and were ignored: colour, metric, baseline" in text(app)
    assert "A run of this link is not on this server" in text(app)


def test_a_missing_grid_is_one_sentence(recorded: Path) -> None:
    (recorded / "objectives" / "table.parquet").write_bytes(b"nothing")
    app = opened("compare")
    assert "is damaged" in text(app)
    assert str(recorded) not in text(app)
    assert "DMPO, random |B|, K = 19" in app.multiselect(key="runs").options


def test_a_grid_on_other_data_than_the_first_is_one_sentence(recorded: Path) -> None:
    path = recorded / "parts" / "provenance.json"
    path.write_text(path.read_text().replace(FINGERPRINTS["catalog"], "0" * 16))
    app = opened("compare")
    (warning,) = app.warning
    assert f"'objectives' and 'parts' are on different data (with fingerprints {FINGERPRINTS['catalog']} and 000" in (
        warning.value
    )
    assert "DMPO, random |B|, K = 19" not in app.multiselect(key="runs").options


# ---------------------------------------------------------------------------------------------------------- live runs


def test_a_linked_run_is_paired_with_recorded_runs_of_its_seed(recorded: Path) -> None:
    token = finished("A run")
    app = opened("compare", run=token)
    assert app.multiselect(key="own").value == [token]
    assert table(app).loc["A run", "paired_over"] == "users, seed 3"
    recorded_ = load_recorded("objectives").outcomes(objective="dmpo", dynamic="off", negatives=1)[3]
    live = (np.arange(USERS) < 0.9 * USERS).astype(float)
    expected = in_points(paired_interval(live - recorded_))
    assert table(app).loc["A run", "difference"] == expected
    assert list(table(app)["steps"]) == ["300", "300", "300", "–", "10"]


def test_a_run_without_a_common_seed_is_paired_over_users_and_it_is_said(recorded: Path) -> None:
    app = opened("compare", run=finished("A run", seed=77))
    assert table(app).loc["A run", "paired_over"] == "users; no seed in common"
    assert "Paired only over users, because no seed is on both sides: A run" in text(app)


def test_the_viewers_own_runs_are_offered_and_become_part_of_the_link(recorded: Path) -> None:
    app = opened("compare")
    assert app.multiselect(key="own").disabled
    token = finished("Own", viewer=VIEWER)
    finished("Somebody else's")
    app.run()
    assert app.multiselect(key="own").options == ["Own"]
    app.multiselect(key="own").set_value([token]).run()
    assert app.query_params["run"] == token
    assert "Own" in labels(app)
    app.multiselect(key="own").set_value([]).run()
    assert "run" not in app.query_params
    assert "Own" not in labels(app)


def test_a_run_on_other_users_is_not_compared(recorded: Path, tmp_path: Path) -> None:
    data = jobs.submit("data", {"suffix": ".csv"}, "a-viewer-of-tests", "my songs; rm -rf.csv", b"user,item\n")
    jobs.begin()
    jobs.finish(data.token, "done", "")
    app = opened("compare", run=[finished("On my songs", dataset=f"own:{data.token}"), finished("Few", users=10)])
    assert table(app).loc[["On my songs", "Few"], "difference"].eq("not comparable: other test users").all()
    assert table(app).loc["On my songs", "dataset"] == "my songs; rm -rf.csv"
    assert any(" --dataset './my songs; rm -rf.csv' " in command for command in commands(app))
    assert str(tmp_path) not in text(app) + "".join(commands(app))
    assert "run it in the folder of your file" in text(app)


@pytest.mark.parametrize("file", ["summary.json", "users.parquet", "config.json", ""])
def test_a_damaged_run_is_one_sentence_that_names_it(recorded: Path, tmp_path: Path, file: str) -> None:
    token = finished("The *broken* run")
    folder = jobs.folder_of(token) / "run"
    if file:
        (folder / file).write_text("{")
    else:
        folder.rename(tmp_path / "gone")
    app = opened("compare", run=token)
    assert "The run The \\*broken\\* run cannot be read" in text(app)
    assert labels(app) == OPENING[1:]
    assert str(tmp_path) not in text(app)


def test_a_run_that_trains_is_announced(recorded: Path) -> None:
    job = jobs.submit("prefer", {"steps": 10}, "a-viewer-of-tests", "Still going")
    assert "Still going has not finished" in text(opened("compare", run=job.token))


def test_names_are_text_and_none_is_twice(recorded: Path) -> None:
    tokens = [finished("DMPO, K = 19"), finished("<b>&*x*$y$ {z} %{x}"), finished("<b>&*x*$y$ {z} %{x}")]
    app = opened("compare", run=tokens)
    assert [name for name in table(app).index if "live" in name] == [
        "DMPO, K = 19 (live)",
    ]
    assert "<b>&*x*$y$ {z} %{x} · 2" in table(app).index
    assert "&lt;b&gt;&amp;*x*$y$" in " ".join(labels(app))
    assert "\\<b\\>\\&\\*x\\*\\$y\\$" in text(app)
    assert len(set(labels(app))) == 6


# ---------------------------------------------------------------------------------------------------------- downloads


def downloads(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's download buttons hand out, by file name."""
    import streamlit as st

    caught: dict[str, Any] = {}
    monkeypatch.setattr(st, "download_button", lambda label, data, file, **more: caught.update({file: data}))
    app.run()
    return {file: data() for file, data in caught.items()}


def test_csv_and_parquet_hold_the_table_and_no_formula(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = finished('=HYPERLINK("x")')
    app = opened("compare", run=token, baseline="SFT", metric="HR@1")
    files = downloads(app, monkeypatch)
    parquet = pd.read_parquet(io.BytesIO(files["comparison.parquet"]))
    csv = pd.read_csv(io.BytesIO(files["comparison.csv"]))
    assert list(parquet["name"]) == [*OPENING, '=HYPERLINK("x")']
    assert list(csv["name"]) == [*OPENING, '\'=HYPERLINK("x")']
    numbers = [*RESULTS, "difference", "low", "high", "negatives", "learning_rate"]
    pd.testing.assert_frame_equal(csv[numbers], parquet[numbers], check_dtype=False)
    row = parquet.set_index("name").loc["DMPO, K = 19"]
    grid = load_recorded("objectives")
    change = difference(grid.outcomes(objective="dmpo", dynamic="off", negatives=19), grid.baseline("sft"))
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((change.mean, change.low, change.high))
    assert row["baseline"] == "SFT"
    assert row["negatives"] == 19
    assert row["seeds"] == "0 1 2 3 4"
    assert (csv["difference"] < 0).any()  # a negative number is a number, not a formula


def test_commands_and_notebook_hold_every_chosen_run(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened("compare", run=finished("Mine", negatives=7))
    files = downloads(app, monkeypatch)
    shown = commands(app)
    assert len(shown) == 5
    assert all(command in files["comparison.sh"] for command in shown)
    assert "--negatives 7" in shown[-1]
    assert shown[-1].startswith("minipo prefer ")
    app.segmented_control(key="repeat").set_value("notebook cell").run()
    cells = nbformat.reads(files["comparison.ipynb"], 4)["cells"]
    assert [cell["source"].split("\n", 1)[1] for cell in cells] == commands(app)
    assert commands(app)[-1] == repeat.cell(asdict(make_config(PreferConfig, {"negatives": 7, "steps": 10})), [3])
