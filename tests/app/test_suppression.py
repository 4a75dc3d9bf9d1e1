"""Suppression: whose pushes are drawn, and what is said of them, follow the controls and the made-up record."""

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from tests.app.conftest import charts, opened, text, write_pushed


@pytest.fixture
def pushes(recorded: Path) -> Path:
    """The made-up grid with pushes: those of a training user halve over training, S-DPO's on the boundary stay."""
    write_pushed(recorded)
    return recorded / "objectives"


def lines(app: AppTest, key: str) -> dict[str, Any]:
    """A chart's lines by their name: bands have none."""
    named = [trace for trace in charts(app)[key]["data"] if "name" in trace]
    return {trace["name"]: trace | {axis: values(trace[axis]) for axis in "xy"} for trace in named}


def values(column: Any) -> list[float]:
    """Numbers of a chart, which Plotly may have packed."""
    if isinstance(column, dict):
        return np.frombuffer(base64.b64decode(column["bdata"]), column["dtype"]).tolist()
    return list(column)


def sentence(app: AppTest) -> str:
    return str(app.markdown[0].value)


def test_it_opens_with_its_figures_and_a_sentence_that_reads_them(pushes):
    app = opened("suppression")
    assert set(charts(app)) == {"pushes", "saturation", "share", "dilution"}
    # At the last steps, 280 to 300, 0.258 of 0.5 is left.
    assert "At K = 19, from before training to the end, DMPO's push on a boundary negative **falls 1.9-fold**" in (
        sentence(app)
    )
    assert "σ(−z) goes from 0.50 to 0.26" in sentence(app)
    assert re.search(r"goes from 26\s% to \*\*25\s%\*\*; it ends as 25\s% of the negatives", sentence(app))
    assert lines(app, "pushes")["boundary"]["x"][:3] == [0, 10, 20]
    assert lines(app, "saturation")["DMPO"]["y"][0] == pytest.approx(0.5)
    assert "Means of 5 seeds" in text(app)


def test_another_k_and_its_only_negative(pushes):
    app = opened("suppression")
    app.selectbox("K").set_value(5).run()
    assert "At K = 5" in sentence(app)
    assert lines(app, "pushes")["boundary"]["y"][0] == pytest.approx(0.1)
    assert "dilution" not in charts(app)
    assert (
        "Dilution could only be computed from log-probs of validation users, which are recorded for K = 1 and 19"
        in (text(app))
    )
    app.selectbox("K").set_value(1).run()
    assert "At K = 1 the only negative counts as boundary" in sentence(app)
    assert "easy" not in lines(app, "pushes")


def test_against_k_it_is_the_end_of_training(pushes):
    app = opened("suppression", view="against K")
    assert "From K = 3 to 19, at the end of training, DMPO's push on a boundary negative **falls 6.3-fold**" in (
        sentence(app)
    )
    drawn = lines(app, "pushes")
    assert drawn["boundary"]["x"] == [1, 3, 5, 10, 15, 19]
    assert drawn["easy"]["x"] == [3, 5, 10, 15, 19]
    assert drawn["before training"]["y"][-1] == pytest.approx(0.5 / 19)
    assert app.selectbox("K").disabled


def test_all_four_beside_each_other(pushes):
    app = opened("suppression", objective="all four")
    assert list(lines(app, "pushes")) == ["DPO", "DMPO", "S-DPO", "MPPO", "boundary", "easy"]
    shares = dict(re.findall(r"(S?-?DM?PO|MPPO) \*\*(\d+)\s%\*\*", sentence(app)))
    assert shares["DMPO"] == "25"
    assert int(shares["S-DPO"]) > 30
    # The log does not tell MPPO's σ(−z), and no log-probs of its runs are in this record.
    assert set(lines(app, "saturation")) == {"DPO", "DMPO", "S-DPO"}


def test_dynamicpo_leaves_the_easy_ones_out(pushes):
    app = opened("suppression")
    app.toggle("dynamic").set_value(True).run()
    assert "The easy ones are left out" in sentence(app)
    assert "**1.0 times** the plain run's" in sentence(app)
    assert "easy" not in lines(app, "pushes")
    assert set(lines(app, "share")["DMPO"]["y"]) == {100}
    app.toggle("log").set_value(False).run()
    assert set(lines(app, "pushes")["easy"]["y"]) == {0}


def test_validation_users_are_those_whose_log_probs_are_recorded(pushes):
    app = opened("suppression", users="validation")
    assert app.selectbox("K").options == ["1", "19"]
    assert lines(app, "pushes")["boundary"]["x"] == [0, 300]
    assert "another run's log-probs are no substitute" in text(app)
    kept = lines(app, "pushes")["boundary"]["y"]
    shares = lines(app, "share")["part of the negatives"]["y"]
    app.segmented_control("census").set_value("before training").run()
    still = lines(app, "share")["part of the negatives"]["y"]
    assert shares[0] != shares[1]
    assert still[0] == still[1]
    assert lines(app, "pushes")["boundary"]["y"][0] == kept[0]
    app.segmented_control("objective").set_value("MPPO").run()
    assert "Not recorded on validation users: MPPO, K = 19." in text(app)


def test_scale_and_spread(pushes):
    app = opened("suppression")
    assert charts(app)["pushes"]["layout"]["yaxis"]["type"] == "log"
    bands = [trace for trace in charts(app)["pushes"]["data"] if trace.get("fill")]
    assert len(bands) == 2
    app.toggle("log").set_value(False)
    app.toggle("seeds").set_value(False).run()
    figure = charts(app)["pushes"]
    assert "type" not in figure["layout"]["yaxis"]
    assert not [trace for trace in figure["data"] if trace.get("fill")]


def test_a_link_restores_everything(pushes):
    link = {"view": "against K", "objective": "S-DPO", "dynamic": "true", "users": "validation", "log": "false"}
    app = opened("suppression", **link, seeds="false", census="before training")
    assert "S-DPO with DynamicPO" in sentence(app)
    assert "not recognised" not in text(app)
    assert lines(app, "pushes")["boundary"]["marker"]["symbol"] == "diamond-open"
    assert not app.toggle("log").value
    assert app.segmented_control("census").value == "before training"
    app = opened("suppression", K="10")
    assert "At K = 10" in sentence(app)


def test_nonsense_in_a_link_is_told(pushes):
    app = opened("suppression", K="7", objective="<b>", users="nobody", nothing="1")
    assert "At K = 19" in sentence(app)
    assert "DMPO" in sentence(app)
    assert "Some parameters of this link were not recognised and were ignored: nothing, K, objective, users" in (
        text(app).replace("\\", "")
    )


@pytest.mark.parametrize("damage", ["no pushes", "no grid", "bad probe"])
def test_a_damaged_record_is_one_sentence(pushes, damage):
    if damage == "no grid":
        (pushes / "table.parquet").write_bytes(b"nonsense")
    elif damage == "no pushes":
        (pushes / "curves.parquet").write_bytes((pushes / "table.parquet").read_bytes())
    else:
        for probe in pushes.glob("probes/*.parquet"):
            probe.write_bytes(b"nonsense")
    app = opened("suppression")
    (warning,) = app.warning
    assert str(pushes) not in warning.value
    assert "\n" not in warning.value
    assert app.segmented_control("objective").value == "DMPO"


def test_without_the_notebook_it_is_pointed_to(pushes, monkeypatch, tmp_path):
    assert "**ranks better**" in text(opened("suppression"))
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **more: "{" if path.suffix == ".ipynb" else real(path, **more))
    st.cache_data.clear()
    st.cache_resource.clear()
    assert "notebook 04 (`make lab`) tests it" in text(opened("suppression"))


def test_without_log_probs_the_training_users_pushes_stand(pushes):
    for probe in pushes.glob("probes/*.parquet"):
        probe.unlink()
    for view in ("over training", "against K"):
        app = opened("suppression", view=view)
        assert set(charts(app)) == {"pushes", "saturation", "share"}
        assert "DMPO's push on a boundary negative" in sentence(app)
