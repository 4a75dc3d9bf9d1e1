"""The page Collapse, driven without a browser, on made-up records."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from figures import collapse
from streamlit.testing.v1 import AppTest

from minipo import load_dataset
from minipo.experiments.configuration import PreferConfig, make_config
from minipo.experiments.records import load_recorded
from minipo.experiments.runs import cache_folder
from tests.app.conftest import FINGERPRINTS, SWITCHES, USERS, _write, charts, opened, place_fetched, text, write_real

import jobs  # isort: skip
import limits  # isort: skip
import worker  # isort: skip

pytestmark = pytest.mark.usefixtures("recorded")
SETTINGS, USERS_VIEW = "Where it collapses", "Who gained, who lost"


def write_strengths(root: Path) -> None:
    """DMPO at β = 3 beside the usual, in every γ; HR@1 is one point higher at β = 3."""
    cells = [("dmpo", k, *switch) for k in (1, 5, 19) for switch in SWITCHES if k > 1 or switch[0] == "off"]
    _write(root / "strengths", cells, seeds=range(3))
    tables = []
    for beta, margin in ((1.0, 2.0), (3.0, 2.0), (3.0, 6.0)):
        table = pd.read_parquet(root / "strengths" / "table.parquet").assign(beta=beta)
        table.loc[table["dynamic"] == "on", "margin"] = margin
        table = table[(table["dynamic"] == "on") | (margin == 6.0) | (beta == 1.0)]
        tables.append(table.assign(**{"hr@1": table["hr@1"] + 0.01 * (beta - 1)}))
    rows = pd.concat(tables)
    ranks = pd.read_parquet(root / "strengths" / "ranks.parquet").loc[rows.index]
    rows.to_parquet(root / "strengths" / "table.parquet", index=False)
    ranks.to_parquet(root / "strengths" / "ranks.parquet", index=False)


def write_settings(root: Path) -> None:
    """DMPO at K = 1 and 19 at 20 and 40 epochs of SFT; at 40 K = 19 is as good as K = 1."""
    _write(root / "settings", [("dmpo", k, *switch) for k in (1, 19) for switch in SWITCHES], seeds=range(3))
    table, ranks = (pd.read_parquet(root / "settings" / f"{name}.parquet") for name in ("table", "ranks"))
    longer = table.assign(sft_epochs=40)
    longer["val_hr@1"] += 0.05
    pd.concat([table, longer]).to_parquet(root / "settings" / "table.parquet", index=False)
    same = ranks.copy()
    few, many = (table.index[(table["negatives"] == k) & (table["dynamic"] == "off")] for k in (1, 19))
    same.loc[many, "rank"] = same.loc[few, "rank"].to_numpy()
    pd.concat([ranks, same]).to_parquet(root / "settings" / "ranks.parquet", index=False)
    baselines = pd.read_parquet(root / "settings" / "baselines.parquet")
    baselines = baselines.assign(**{"sft-20": baselines["sft"], "sft-40": baselines["sft"]}).drop(columns="sft")
    baselines.to_parquet(root / "settings" / "baselines.parquet")


def view(app: AppTest, name: str) -> AppTest:
    return app.button_group(key="view").set_value(name).run()


def lines(app: AppTest) -> dict[str, Any]:
    """The last panel's traces, by name."""
    grid = charts(app)["grid"]
    last = max(trace["yaxis"] for trace in grid["data"])
    return {trace["name"]: trace for trace in grid["data"] if trace["yaxis"] == last and "name" in trace}


def values(numbers: Any) -> np.ndarray:
    """Plotly's JSON holds arrays as base64."""
    if isinstance(numbers, dict):
        return np.frombuffer(base64.b64decode(numbers["bdata"]), dtype=numbers["dtype"])
    return np.array(numbers)


def titles(app: AppTest) -> list[str]:
    return [note["text"] for note in charts(app)["grid"]["layout"]["annotations"]]


def test_the_curve_is_drawn_on_opening_and_read_aloud_by_its_own_numbers():
    app = opened("collapse")
    assert "DMPO's training loss falls" in text(app)
    assert "it **collapses**" in text(app)
    assert "DynamicPO repairs it" in text(app)
    assert {"plain DMPO", "DynamicPO"} <= set(lines(app))
    assert any(note.startswith("HR@1 collapses: ") for note in titles(app))
    assert any(note.startswith("oracle<br>79.0 %") for note in titles(app))
    assert "Means of 5 seeds" in text(app)
    assert not app.info


def test_an_objective_that_does_not_collapse_is_not_said_to():
    app = opened("collapse")
    app.button_group(key="curve").set_value("S-DPO").run()
    assert "it is **stable**" in text(app)
    assert "collapses" not in text(app)
    assert "DynamicPO repairs" not in text(app)
    app.button_group(key="dynamicpo").set_value("off").run()
    assert set(lines(app)) == {"plain S-DPO"}
    assert app.selectbox(key="gamma").disabled


def test_parts_are_drawn_where_recorded_and_offered_for_training_where_not():
    app = opened("collapse", dynamicpo="its parts")
    assert not app.info
    parts = {"selection alone", "β alone", "random |B|", "hardest |B|"}
    assert parts <= set(lines(app))
    app.button_group(key="curve").set_value("S-DPO").run()
    (note,) = app.info
    assert "Not recorded for S-DPO" in note.value
    assert all(part in note.value for part in parts)


@pytest.mark.parametrize("metric", ["NDCG@5", "MRR", "HR@5"])
def test_the_ranking_can_be_measured_otherwise(metric: str):
    app = opened("collapse")
    app.selectbox(key="metric").set_value(metric).run()
    assert f"its {metric} changes by" in text(app)
    assert any(note.startswith(metric) for note in titles(app))
    assert any(note.startswith("SFT<br>") for note in titles(app))
    assert ("A point is 0.01." in text(app)) == (metric != "HR@5")


def test_a_win_rate_has_no_sft_level_and_no_interval_where_single_wins_are_not_recorded():
    app = opened("collapse", metric="win rate")
    assert "its win rate goes from 60.0 % to 60.0 %. These runs have no record of single users' wins" in text(app)
    assert not any(note.startswith("SFT<br>") for note in titles(app))
    assert "SFT has no win rate" in text(app)


def test_seeds_that_disagree_on_the_loss_are_told(recorded: Path):
    path = recorded / "objectives" / "table.parquet"
    table = pd.read_parquet(path)
    rises = (table["objective"] == "dmpo") & (table["negatives"] == 19) & (table["seed"] == 0)
    table.loc[rises, "train_loss"] = 0.5
    table.to_parquet(path)
    app = opened("collapse")
    assert "on average, but rises in 1 of 5 seeds" in text(app)
    assert any(note.startswith("Training loss falls on average") for note in titles(app))


# The curve trained here


def train_curve(app: AppTest) -> jobs.Job:
    app.button(key="curve_train").click().run()
    assert not app.exception
    job = jobs.find("".join(app.query_params["live"]))
    assert job is not None
    return job


def end_runs(job: jobs.Job, hits: dict[tuple[int, str], float]) -> None:
    """Runs of the curve, by K and DynamicPO, that have ended with these shares of users' items ranked first."""
    for (negatives, dynamic), share in hits.items():
        settings = {name: value for name, value in job.settings.items() if name not in jobs.AXES}
        config = make_config(PreferConfig, {**settings, "negatives": negatives, "dynamic": dynamic})
        folder = job.runs / cache_folder(config).name
        folder.mkdir(parents=True)
        rank = np.where(np.arange(2000) < 2000 * share, 0, 3)
        pd.DataFrame({"user": range(2000), "rank": rank, "reward_win": rank == 0}).to_parquet(folder / "users.parquet")
        (folder / "config.json").write_text(json.dumps(vars(config)))
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 300, "loss": 0.1, "seconds": 9}) + "\n")
        results = {"hr@1": share, "train_loss": 0.1, "dataset_fingerprint": FINGERPRINTS["catalog"]}
        (folder / "summary.json").write_text(json.dumps(results))


def live(app: AppTest) -> dict[str, list[float]]:
    """The ranking of the runs trained here, by line."""
    traces = [trace for trace in charts(app)["live_curve"]["data"] if "name" in trace and trace["yaxis"] == "y2"]
    return {trace["name"]: values(trace["y"]).tolist() for trace in traces}


def test_a_curve_is_trained_and_drawn_as_its_runs_end():
    app = opened("collapse")
    assert "live_curve" not in charts(app)
    assert "12 runs of 300 steps, 2 at a time: plain and under DynamicPO at K = 1, 3, 5, 10, 15, 19" in text(app)
    assert app.number_input(key="curve_seed").value == 5  # 0 to 4 are recorded
    job = train_curve(app)
    assert (job.kind, job.name, job.settings["seed"]) == ("curve", "DMPO, K = 1 to 19, seed 5", 5)
    _, words = worker.task(job)
    assert words[:2] == ["sweep", "--quiet"]
    for option, value in {
        "--negatives": "1,3,5,10,15,19",
        "--dynamic": "off,on",
        "--seeds": "5",
        "--workers": "2",
    }.items():
        assert words[words.index(option) + 1] == value
    assert words[words.index("--runs") + 1] == str(job.runs)
    assert "**0 of 12 runs trained.**" in text(app)
    assert [bar.proto.text for bar in app.get("progress")] == ["In the queue, place 1: next in line."]
    jobs.begin()
    end_runs(job, {(1, "off"): 0.68, (1, "on"): 0.675, (3, "off"): 0.67})
    app.run()
    assert "**3 of 12 runs trained.** HR@1: at K = 1 plain DMPO 68.0 % and DynamicPO 67.5 %." in text(app)
    assert [bar.proto.text for bar in app.get("progress")] == ["Training: 25 % of all steps."]
    assert live(app) == {"plain DMPO": [68.0, 67.0], "DynamicPO": [67.5]}
    end_runs(job, {(k, dynamic): share for dynamic, share in (("off", 0.66), ("on", 0.69)) for k in (19, 15, 10, 5)})
    end_runs(job, {(3, "on"): 0.68})
    jobs.finish(job.token, "done", "")
    app.run()
    assert "**All 12 runs are trained.**" in text(app)
    assert "Plain, K = 19 minus K = 1: −2.0 points" in text(app)
    assert "this seed alone shows the **collapse**. At K = 19, DynamicPO minus plain: +3.0 points" in text(app)
    assert "over 2,000 test users, of one seed" in text(app)
    assert not app.get("progress")


def test_the_curve_is_the_one_that_is_shown(recorded: Path):
    write_strengths(recorded)
    app = opened("collapse", strength="3", curve="DMPO", curve_seed="8")
    job = train_curve(app)
    shown = {"objective": "dmpo", "beta": 3.0, "margin": 6.0, "negatives": [1, 5, 19], "seed": 8, "steps": 300}
    assert shown.items() <= job.settings.items()
    assert "**0 of 6 runs trained.**" in text(app)
    app.selectbox(key="strength").set_value(1.0).run()
    assert "runs trained.**" not in text(app)  # another curve
    again = opened("collapse", strength="3", live=job.token)
    assert "**0 of 6 runs trained.**" in text(again)
    again.toggle(key="guessing").set_value(True).run()
    assert "live_curve" not in charts(again)
    assert "curve_train" not in [button.key for button in again.button]


def test_a_curve_is_stopped_resumed_and_removed():
    app = opened("collapse")
    job = train_curve(app)
    app.button(key=f"stop_{job.token}").click().run()
    assert "Stopped before it started" in text(app)
    app.button(key=f"resume_{job.token}").click().run()
    assert jobs.place(job.token) == 0
    jobs.begin()
    end_runs(job, {(1, "off"): 0.68})
    jobs.finish(job.token, "failed", "It needed more than 8 GB of memory, the limit here.")
    app.run()
    assert "It needed more than 8 GB of memory" in text(app)
    assert live(app)["plain DMPO"] == [68.0]  # what was trained is shown
    (job.runs.glob("*/users.parquet").__next__()).write_bytes(b"PAR1")
    import streamlit as st

    st.cache_data.clear()
    app.run()
    assert "The files of this run are missing or damaged" in text(app)
    jobs.remove(job.token)
    app.run()
    assert "The curve of this link is no longer on this server" in text(app)
    assert "runs trained.**" not in text(app)


def test_a_curve_counts_as_a_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "RUNS_AT_ONCE", 1)
    app = opened("collapse")
    job = train_curve(app)
    app.button(key="curve_train").click().run()
    assert "You have 1 runs waiting or training, the maximum" in text(app)
    assert [each.token for each in jobs.of_viewer(job.viewer, "curve")] == [job.token]


def test_a_language_model_is_not_trained_in_passing(recorded: Path, tmp_path: Path):
    write_real(recorded)
    app = opened("collapse", world="MovieLens-100K × SmolLM2-135M")
    assert "curve_train" not in [button.key for button in app.button]
    app = opened("collapse", world="MovieLens-100K × pocket-gpt2")
    assert "curve_train" not in [button.key for button in app.button]  # its data are not here
    place_fetched(tmp_path / "home", "ml-100k")
    app.run()
    assert app.button(key="curve_train").label == "Train this curve here"


# β and γ, guesses, data


def test_other_beta_and_gamma_are_drawn_where_recorded(recorded: Path):
    write_strengths(recorded)
    app = opened("collapse", strength="3")
    assert not app.info
    assert "Means of 3 seeds" in text(app)
    np.testing.assert_array_equal(charts(app)["grid"]["layout"]["xaxis3"]["tickvals"], [1, 5, 19])
    before = lines(app)["plain DMPO"]["y"]
    app.selectbox(key="gamma").set_value(2.0).run()
    assert not app.info
    assert lines(app)["plain DMPO"]["y"] == before  # γ is DynamicPO's alone
    app.button_group(key="curve").set_value("S-DPO").run()
    assert "β = 3, γ = 2; shown instead: β = 1, γ = 6." in app.info[0].value
    assert "it is **stable**" in text(app)  # the usual is drawn


def test_without_the_grid_of_strengths_it_says_so():
    app = opened("collapse", strength="0.3")
    assert "β = 0.3, γ = 6; shown instead: β = 1, γ = 6." in app.info[0].value
    assert "it **collapses**" in text(app)


def test_a_guess_comes_before_the_curve():
    app = opened("collapse")
    app.toggle(key="guessing").set_value(True).run()
    assert "What will it be with more negatives?" in text(app)
    assert "collapses" not in text(app)
    assert not any("→" in note for note in titles(app) if "loss" not in note)
    assert len(values(lines(app)["plain DMPO"]["y"])) == 1
    assert app.number_input(key="guess3").value == pytest.approx(66, abs=2)  # where K = 1 is
    for k in (3, 5, 10, 15, 19):
        app.number_input(key=f"guess{k}").set_value(90.0)
    app.run()
    app.toggle(key="revealed").set_value(True).run()
    assert "5 of 5 too high, 0 too low." in text(app)
    assert "it **collapses**" in text(app)
    table = load_recorded("objectives").rows(objective="dmpo", dynamic="off")
    assert collapse.guess_sentence(table, dict.fromkeys((3, 5, 10, 15, 19), 90.0)) in text(app)
    assert {"your guess", "DynamicPO"} <= set(lines(app))
    app.button_group(key="curve").set_value("DPO").run()  # another curve is to be guessed
    assert "What will it be with more negatives?" in text(app)
    assert app.number_input(key="guess3").value != 90.0


def test_a_link_restores_a_revealed_guess():
    app = opened("collapse", guessing="true", revealed="true", guess19="70", curve="DPO")
    assert app.number_input(key="guess19").value == 70.0
    assert "Your guesses were" in text(app)
    assert "DPO's training loss" in text(app)
    assert not app.info


def test_nonsense_in_a_link_is_passed_over():  # that it is told, is a journey's to see
    app = opened("collapse", curve="GPO", strength="17", foo="1", metric="MRR")
    assert app.button_group(key="curve").value == "DMPO"
    assert "its MRR changes by" in text(app)
    assert app.selectbox(key="strength").value == 1.0
    assert "it **collapses**" in text(app)


def test_only_recorded_data_and_models_are_offered(recorded: Path):
    app = opened("collapse")
    assert app.selectbox(key="world").options == ["catalogue × pocket-gpt2"]
    write_real(recorded)
    (recorded / "ml-100k-smollm2" / "provenance.json").unlink()  # a record that is being written
    app.run()
    assert app.selectbox(key="world").options == ["catalogue × pocket-gpt2", "MovieLens-100K × pocket-gpt2"]


def test_real_data_are_drawn_without_an_oracle_and_with_their_own_k(recorded: Path):
    write_real(recorded)
    table = pd.read_parquet(recorded / "ml-100k-parts" / "table.parquet")
    more = table["objective"] == "sft"  # of these rates, the second is best on validation users
    table.loc[more, ["learning_rate", "val_hr@1", "hr@1"]] = [[1e-4, 0.3, 0.9], [3e-4, 0.5, 0.612], [1e-3, 0.4, 0.8]]
    table.to_parquet(recorded / "ml-100k-parts" / "table.parquet")
    app = opened("collapse", world="MovieLens-100K × pocket-gpt2", dynamicpo="its parts")
    levels = [note for note in titles(app) if "<br>" in note]
    assert levels == ["SFT<br>65.3 %", "more SFT<br>61.2 %"]
    assert "Means of 3 seeds" in text(app)
    assert "Recorded on ml-100k as it was before (fingerprint 2a53be877b122b87" in text(app)
    assert "Its parts, in points against plain: selection alone" in text(app)
    assert "hardest |B|" in app.info[0].value


def test_a_grid_that_is_not_finished_says_so(recorded: Path):
    write_real(recorded)
    app = opened("collapse", world="MovieLens-100K × SmolLM2-135M")
    assert "From K = 1 to 15" in text(app)
    assert "Runs of this grid not trained yet: 1." in text(app)
    app.button_group(key="curve").set_value("S-DPO").run()
    assert "plain runs at two numbers of negatives" in app.info[0].value
    assert "grid" not in charts(app)


@pytest.mark.parametrize("name", ["Against K", SETTINGS, USERS_VIEW])
def test_a_damaged_record_is_one_sentence(recorded: Path, name: str):
    write_settings(recorded)
    for grid in ("objectives", "settings"):
        (recorded / grid / "table.parquet").write_bytes(b"PAR1")
    app = opened("collapse", view=name)
    (warning,) = app.warning
    assert "data/recorded/" in warning.value
    assert str(recorded) not in warning.value


def test_the_map_says_in_how_many_settings_it_collapses(recorded: Path):
    write_settings(recorded)
    app = opened("collapse", view=SETTINGS)
    said = text(app)
    assert "DMPO, K = 19 minus K = 1 is **below zero in 1** of 2 settings and **above in 0**" in said
    maps = charts(app)
    assert set(maps) == {"map0", "map1", "map2"}
    (cells,) = maps["map0"]["data"]
    assert [row.partition("<br>")[0] for row in cells["y"]] == ["20 epochs", "40 epochs"]
    assert cells["text"][0][0].startswith("<b>−")
    assert cells["text"][1][0].startswith("+0.0")
    assert maps["map0"]["layout"]["shapes"][0]["y0"] > 0  # 40 epochs are better on validation users
    app.button_group(key="of").set_value("MRR").run()
    assert text(app) != said
    assert "MRR: DMPO" in text(app)


def test_a_missing_map_is_one_sentence():
    app = opened("collapse", view=SETTINGS)
    (warning,) = app.warning
    assert "The recorded grid 'settings' is missing" in warning.value


def points_of(app: AppTest) -> dict[str, int]:
    """Squares of each group, by its legend."""
    found = {}
    for trace in charts(app)["users"]["data"]:
        label, _, count = trace.get("name", "").partition(": ")
        if count:
            found[label] = int(count.replace(",", ""))
    return found


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The record's test users, as many as it has of the catalogue's."""
    import minipo

    splits = load_dataset("catalog")
    few = type("Few", (), {"test": splits.test[:USERS], "items": splits.items, "fingerprint": splits.fingerprint})
    monkeypatch.setattr(minipo, "load_dataset", lambda *name: few)
    return [user.user for user in few.test]


def test_users_gained_and_lost_are_counted_and_told(users: list[int]):
    app = opened("collapse", view=USERS_VIEW)
    recorded = load_recorded("objectives")
    before, after = (recorded.outcomes(objective="dmpo", dynamic="off", negatives=k)[0] == 1 for k in (1, 19))
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    assert f"**{gained} users are gained**" in text(app)
    assert f"**{lost} are lost**" in text(app)
    counted = points_of(app)
    assert (counted["gained"], counted["lost"]) == (gained, lost)
    assert sum(counted.values()) == USERS
    opens_on = app.number_input(key="who").value
    assert opens_on == users[int(np.flatnonzero(before & ~after)[0])]
    assert "in place **1** under A" in text(app)
    app.selectbox(key="b").set_value("DMPO, DynamicPO, K = 19").run()
    assert "From DMPO, K = 1 to DMPO, DynamicPO, K = 19" in text(app)
    app.selectbox(key="pair_seed").set_value(3).run()
    assert "seed 3, one square each" in text(app)
    app.selectbox(key="a").set_value("SFT").run()
    assert "From SFT to" in text(app)


def test_a_link_opens_one_user(users: list[int]):
    app = opened("collapse", view=USERS_VIEW, a="SFT", b="DPO, K = 5", pair_seed="2", who=str(users[7]))
    assert app.number_input(key="who").value == users[7]
    assert f"**User {users[7]}**" in text(app)
    assert "From SFT to DPO, K = 5" in text(app)
    assert not app.info
    app.number_input(key="who").set_value(users[8]).run()
    assert f"**User {users[8]}**" in text(app)


def test_users_of_other_data_are_counted_and_not_told(recorded: Path):
    """The recorded users are not those of the catalogue as it is now."""
    path = recorded / "objectives" / "provenance.json"
    path.write_text(path.read_text().replace(FINGERPRINTS["catalog"], "0" * 16))
    (recorded / "parts" / "provenance.json").unlink()  # not recorded
    app = opened("collapse", view=USERS_VIEW)
    assert sum(points_of(app).values()) == USERS
    assert app.number_input(key="who").max == USERS - 1
    assert "in place **" in text(app)
    assert "Took " not in text(app)


def test_the_microscope_is_offered_where_log_probs_are_recorded(recorded: Path, users: list[int]):
    app = opened("collapse", view=USERS_VIEW)
    assert "The microscope has test users of" in text(app)
    assert not app.get("page_link")
    row = load_recorded("objectives").rows(objective="dmpo", dynamic="off", negatives=19, seed=0).index[0]
    probes = recorded / "objectives" / "probes"
    (probes / f"{row}.parquet").write_bytes((probes / "110.parquet").read_bytes())
    (recorded / "objectives" / "scores").mkdir()
    (recorded / "objectives" / "scores" / f"{row}.parquet").write_bytes(b"")
    import streamlit as st

    st.cache_resource.clear()
    app = opened("collapse", view=USERS_VIEW)
    (link,) = app.get("page_link")
    assert link.proto.label.endswith("after B")
    assert link.proto.query_string.startswith("run=DMPO%2C+K+%3D+19%2C+seed+0&split=test&user=5")
