"""The page *Microscope*: what its controls change, what a link brings, what it says where there is nothing to see."""

import base64
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from minipo.experiments import files, records
from minipo.experiments.configuration import PreferConfig
from tests.app.conftest import MAIN, VIEWER, charts, opened, text

OTHER = "S-DPO, K = 19, seed 0"


@pytest.fixture
def probed(recorded: Path) -> Path:
    """Plain DMPO's run at K = 19, the one that is shown first, has a probe too: users 900 to 902 with a mistake, 903
    without one."""
    table = pd.read_parquet(recorded / "objectives" / "table.parquet")
    kept = table.query("objective == 'dmpo' and negatives == 19 and dynamic == 'off' and seed == 0").index[0]
    other = table.query("objective == 'sdpo' and negatives == 19 and dynamic == 'off' and seed == 0").index[0]
    folder = recorded / "objectives" / "probes"
    probe = files.read_parquet(next(folder.iterdir()))
    fine = probe[probe["user"] == 900].assign(user=903)
    fine.loc[(fine["step"] > 0) & (fine["candidate"] == 7), "policy"] = -6.3
    for path in folder.iterdir():
        path.unlink()
    for row in (kept, other):
        pd.concat([probe, fine]).to_parquet(folder / f"{row}.parquet")
    return recorded


def looked(**link: str) -> AppTest:
    """The page as the link with these parameters opens it."""
    app = opened("about")  # whose link has no parameter of the microscope's, as *Why* has
    app.query_params = link
    app.switch_page(str(next(MAIN.parent.glob("*/microscope.py")).relative_to(MAIN.parent))).run()
    assert not app.exception
    return app


def parts(app: AppTest, number: int) -> list[float]:
    """A column of the chart of pushes, by candidate: 0 dilution, 1 saturation, 2 β, -1 the push."""
    column = charts(app)["micro_push"]["data"][number]["x"]
    return np.frombuffer(base64.b64decode(column["bdata"]), column["dtype"]).tolist()


def pushes(app: AppTest) -> list[float]:
    return parts(app, -1)


def run_of(app: AppTest) -> str:
    """The run that the page's own link names."""
    return str(dict(app.query_params).get("run"))


def test_it_opens_drawn_with_the_sentence_that_reads_it(probed):
    app = looked()
    assert "User 900 after step 300: *Real Sparrows*, the chosen item, is in **place 2** of 20." in text(app)
    assert "**1** of 19 negatives is at the boundary, ranked above it; it gets **5 %** of the push" in text(app)
    assert "Recorded run: DMPO, K = 19, seed 0" in text(app)
    assert set(charts(app)) == {"micro_line", "micro_push"}
    assert not app.warning
    assert not app.error


def test_the_loss_controls_change_what_is_pushed(probed):
    app = looked()
    plain = pushes(app)
    assert min(plain[1:]) == pytest.approx(max(plain[1:]))
    app.selectbox("rule").select("the boundary").run()
    kept = pushes(app)
    assert [place for place, push in enumerate(kept) if push > 0] == [7]
    assert "**100 %** of the push" in text(app)
    assert "plain DMPO would push it with" in text(app)
    assert app.slider("gamma").disabled
    app.toggle("adjust_beta").set_value(True).run()
    adjusted = parts(app, 2)[7]
    assert adjusted != pytest.approx(1.0)
    app.slider("gamma").set_value(0.0).run()
    assert parts(app, 2)[7] > adjusted
    app.select_slider("beta").set_value(0.5).run()
    assert parts(app, 2)[7] < 0.75
    app.selectbox("rule").select("all of them").run()
    app.slider("K").set_value(6).run()
    assert sum(push > 0 for push in pushes(app)) == 6
    app.slider("K").set_value(19).run()
    app.toggle("adjust_beta").set_value(False).run()
    app.selectbox("objective").select("S-DPO").run()
    assert max(pushes(app)) > 2 * min(pushes(app)[1:])
    app.selectbox("objective").select("MPPO").run()
    assert len(charts(app)["micro_push"]["data"]) == 5  # one more column


def test_clusters_move_the_boundary_where_nobody_violates(probed):
    app = looked(user="903")
    assert "the boundary is the top group" in text(app)
    boxes = {}
    for clusters in (2, 5):
        app.slider("clusters").set_value(clusters).run()
        boxes[clusters] = charts(app)["micro_line"]["layout"]["shapes"][:-1]  # and the chosen item's row
    assert len(boxes[2]) == 2
    assert len(boxes[5]) == 5


def test_users_and_steps(probed):
    app = looked()
    app.button("micro_next").click().run()
    assert app.selectbox("user").value == 901
    app.button("micro_back").click().run()
    app.button("micro_back").click().run()
    assert app.selectbox("user").value == 903  # the last, behind the first
    app.selectbox("among").select("with one mistake").run()
    assert app.selectbox("user").value == 900
    app.button("micro_back").click().run()
    assert app.selectbox("user").value == 902
    app.selectbox("among").select("without mistakes").run()
    assert app.selectbox("user").value == 903
    app.select_slider("step").set_value(0).run()
    assert "after step 0" in text(app)
    assert "frames" not in charts(app)["micro_line"] or not charts(app)["micro_line"]["frames"]


def test_another_run_brings_its_own_loss_and_keeps_the_user(probed):
    app = looked()
    app.selectbox("user").select(901).run()
    app.selectbox("rule").select("the boundary").run()
    app.selectbox("micro_run").select(OTHER).run()
    assert app.selectbox("objective").value == "S-DPO"
    assert app.selectbox("rule").value == "all of them"
    assert app.selectbox("user").value == 901
    assert run_of(app) == OTHER


def test_a_link_is_restored(probed):
    app = looked(
        run=OTHER, user="902", step="0", objective="DPO", rule="the boundary", adjust_beta="true",
        gamma="2.0", beta="0.5", K="10", clusters="4",
    )  # fmt: skip
    assert app.selectbox("micro_run").value == OTHER
    assert (app.selectbox("user").value, app.select_slider("step").value) == (902, 0)
    assert (app.selectbox("objective").value, app.selectbox("rule").value) == ("DPO", "the boundary")
    assert (app.slider("gamma").value, app.select_slider("beta").value) == (2.0, 0.5)
    assert (app.slider("K").value, app.slider("clusters").value) == (10, 4)
    assert app.toggle("adjust_beta").value
    assert "not recognised" not in text(app)


def test_nonsense_in_a_link_is_told_and_passed_over(probed):
    app = looked(user="4242", step="77", K="99", nonsense="<b>", objective="dmpoo")
    assert "User 900 after step 300" in text(app)
    told = text(app)
    assert "Some parameters of this link were not recognised" in told
    for name in ("user", "step", "K", "nonsense", "objective"):
        assert name in told
    assert "<b>" not in told


def test_an_unknown_run_is_told_in_one_sentence(probed):
    app = looked(run="abcdefghijklmnop")
    assert "The run of this link is not on this server" in app.warning[0].value
    app.selectbox("micro_run").select(OTHER).run()
    assert charts(app)
    assert not app.warning


def test_test_users_that_were_not_recorded_are_told(probed):
    app = looked(split="test")
    assert "were not recorded" in app.warning[0].value
    assert str(records.RECORDED) not in text(app)


def test_mppo_needs_token_counts(probed):
    path = probed / "objectives" / "table.parquet"
    pd.read_parquet(path).assign(dataset="ml-100k").to_parquet(path)
    app = looked(objective="MPPO")
    assert "MPPO compares averages over an answer's tokens" in app.warning[0].value
    app.selectbox("objective").select("DPO").run()
    assert charts(app)


def test_missing_recorded_runs_are_told(recorded):
    (recorded / "objectives" / "provenance.json").unlink()
    app = looked()
    assert app.warning
    assert str(recorded) not in text(app)


# ------------------------------------------------------------------------------------------------------- live runs


def trained(probe: pd.DataFrame | None, name: str = "my run", state: str = "done", viewer: str = "somebody else"):
    """A live run as its job leaves it."""
    import jobs

    job = jobs.submit("prefer", {"objective": "dmpo", "negatives": 19, "steps": 300}, viewer, name)
    jobs.begin()
    if probe is not None:
        job.run.mkdir(parents=True)
        (job.run / "config.json").write_text(json.dumps(asdict(PreferConfig(negatives=19))))
        probe.to_parquet(job.run / "probe.parquet")
    if state != "running":
        jobs.finish(job.token, state, "")
    return job


@pytest.fixture
def probe(probed) -> pd.DataFrame:
    return files.read_parquet(next((probed / "objectives" / "probes").iterdir()))


def test_a_live_run_opens_by_its_token(probe):
    nasty = probe.replace({"item": {"Real Sparrows": "<script>alert(1)</script> $x$ *y*"}})
    job = trained(nasty, "<i>my</i> run")
    app = looked(run=job.token)
    assert "User 900" in text(app)
    assert "Live run" in text(app)
    assert "<i>" not in text(app)
    assert "<script>" not in json.dumps(charts(app))
    assert "\\<script\\>" in text(app)  # as text
    assert run_of(app) == job.token
    assert job.token not in text(app)


def test_a_run_that_trains_is_followed_to_its_last_step(probe):
    job = trained(probe[probe["step"] == 0], state="running")
    app = looked(run=job.token)
    assert "after step 0" in text(app)
    assert "training, step 0 of 300" in text(app)
    probe.to_parquet(job.run / "probe.parquet")
    app.run()
    assert "after step 300" in text(app)


def test_ones_own_runs_are_offered_by_name(probe):
    for _ in range(2):
        mine = trained(probe, "same name", viewer=VIEWER)
    app = looked()
    assert {"same name", "same name · 2"} < set(app.selectbox("micro_run").options)
    app.selectbox("micro_run").select(mine.token).run()
    assert run_of(app) == mine.token
    assert "Live run: same name" in text(app)


@pytest.mark.parametrize(
    ("state", "said"), [("running", "nothing to show before"), ("failed", "has nothing to show: its files")]
)
def test_a_run_without_a_probe_is_told(probed, state, said):
    job = trained(None, state=state)
    app = looked(run=job.token)
    assert said in app.warning[0].value


def test_a_run_whose_folder_is_gone_is_told(probe):
    import shutil

    job = trained(probe)
    app = looked(run=job.token)
    shutil.rmtree(job.run)
    app.run()
    assert "my run has nothing to show: its files" in app.warning[0].value
