"""The page About, driven without a browser."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from minipo.preference import OBJECTIVES
from tests.app.conftest import FINGERPRINTS, charts, opened, text

pytestmark = pytest.mark.usefixtures("recorded")
FRESH = {
    "command": "python data/record.py fresh",
    "users": 4000,
    "differences": [
        ["DMPO K = 19", "DMPO K = 1", "−0.7 [−1.2, −0.2]"],
        ["DynamicPO-DMPO K = 19", "SFT", "−0.2 [−0.8, +0.5]"],
        ["selection alone", "random", "+0.8 [+0.1, +1.4]"],
        ["SFT", "Markov", "+3.8 [+2.6, +5.1]"],
    ],
    "recorded": "2026-11-23T07:25:35+00:00",
}


def write_fresh(recorded: Path, **changed: Any) -> None:
    (recorded / "fresh.json").write_text(json.dumps({**FRESH, **changed}))


def origins(page: AppTest) -> Any:
    """The table of where each number comes from, by grid."""
    (frame,) = page.dataframe
    return frame.value.set_index("Grid")


def test_it_opens_with_the_runs_drawn_and_says_where_they_come_from(recorded: Path):
    write_fresh(recorded)
    page = opened("about")
    assert "**285 recorded runs** in 2 grids are behind the pages, of DPO, DMPO, S-DPO, MPPO" in text(page)
    assert "7 more are missing or damaged." in text(page)
    assert {trace["name"] for trace in charts(page)["about_runs"]["data"]} == {
        "DPO", "DMPO", "S-DPO", "MPPO", "more SFT"
    }  # fmt: skip
    table = origins(page)
    assert list(table.index) == ["objectives", "parts", "fresh"]
    assert table.loc["objectives", "It holds"] == (
        "DPO, DMPO, S-DPO, MPPO; K = 1, 3, 5, 10, 15, 19; plain, DynamicPO; more SFT"
    )
    assert table.loc["parts", ["Runs", "Seeds", "Test users"]].tolist() == [40, "0, 1, 2, 3, 4", 300]
    assert table.loc["objectives", "Machine"] == "Linux x86_64, 2 cores"
    assert table.loc["fresh", "Repeat it with"] == "python data/record.py fresh"


def test_what_provenance_says_stands_in_the_table(recorded: Path):
    path = recorded / "parts" / "provenance.json"
    made = {
        "command": "python data/record.py parts", "seeds": [0], "recorded": "2026-11-23T06:38:22+00:00", "missing": 2,
        "versions": {"torch": "2.13.0", "machine": "a laptop"}, "commit": "ebbe1c6", "chosen": {"sft_epochs": 40},
        "rule": "By *validation* users.", "dataset_fingerprint": FINGERPRINTS["catalog"],
    }  # fmt: skip
    path.write_text(json.dumps(made))
    page = opened("about")
    row = origins(page).loc["parts"]
    assert row["Repeat it with"] == "python data/record.py parts"
    assert [row["Recorded"], row["Machine"], row["Commit"]] == ["2026-11-23", "a laptop", "ebbe1c6"]
    assert row["Versions"] == "torch 2.13.0"
    assert row["It holds"].endswith("2 runs still to come")
    assert r"By \*validation\* users" in text(page)


def test_each_grid_that_is_missing_or_damaged_is_one_sentence(recorded: Path):
    (recorded / "parts" / "table.parquet").write_bytes(b"PAR1")
    page = opened("about")
    told = [warning.value for warning in page.warning]
    assert len(told) == 8
    assert any("data/recorded/parts" in sentence for sentence in told)
    assert any("'settings' is missing" in sentence for sentence in told)
    assert str(recorded) not in "".join(told)
    assert list(origins(page).index) == ["objectives"]


def test_unseen_users_stand_beside_test_users(recorded: Path):
    write_fresh(recorded)
    page = opened("about", part="Unseen users")
    assert "Of 4 headline differences" in text(page)
    traces = charts(page)["about_unseen"]["data"]
    test, unseen = ([trace["x"][0] for trace in traces[place::2]] for place in (0, 1))
    assert unseen == pytest.approx([-0.7, -0.2, 0.8, 3.8])
    assert test[0] < 0 < test[1]  # made up so: DMPO falls with K, and DynamicPO rises
    assert test[3] == pytest.approx(100 * (0.65 - 0.5), abs=0.5)
    assert "about_runs" not in charts(page)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (None, "data/recorded/fresh.json is missing"),
        ({"differences": [["DMPO K = 19", "DMPO K = 1", "less"]]}, "are damaged; make them again"),
        ({"differences": [["XPO K = 19", "SFT", "−0.7 [−1.2, −0.2]"]]}, "name runs that are missing here"),
        ({"differences": [["DMPO K = 18", "SFT", "−0.7 [−1.2, −0.2]"]]}, "0 recorded runs have"),
    ],
)
def test_damaged_differences_are_one_sentence(recorded: Path, changed: dict[str, Any] | None, sentence: str):
    if changed is not None:
        write_fresh(recorded, **changed)
    page = opened("about", part="Unseen users")
    (warning,) = page.warning
    assert sentence in warning.value
    assert str(recorded) not in warning.value


def test_words_are_searched_by_name_and_meaning():
    page = opened("about", part="Words")
    assert all(word in text(page) for word in (r"pair\_loss", "**γ**", "ValidRatio", "discriminative"))
    page.text_input(key="word").set_value("dilut").run()
    assert "**dilution**" in text(page)
    assert "ValidRatio" not in text(page)
    page.text_input(key="word").set_value("<b>zebra").run()
    assert r"entries contains “\<b\>zebra”." in text(page)
    page = opened("about", part="Words", word="reciprocal")
    assert page.text_input(key="word").value == "reciprocal"


def test_the_paper_of_every_objective_is_named():
    page = opened("about", part="Papers")
    numbers = set(re.findall(r"arxiv\.org/abs/([\d.]+)", text(page)))
    named = {objective.paper.removeprefix("arXiv ") for objective in OBJECTIVES.values() if "arXiv" in objective.paper}
    assert named | {"2605.00327"} <= numbers


def test_licences_and_limits_are_told():
    page = opened("about", part="Data and limits")
    assert "MovieLens-100K (Harper and Konstan, 2015): research use" in text(page)
    assert "Each viewer may have" in text(page)


def test_nonsense_in_a_link_is_named():
    page = opened("about", part="Nowhere", x="1")
    said = "Some parameters of this link were not recognised and were ignored: x, part."
    assert [note.value for note in page.info] == [said]
    assert "about_runs" in charts(page)
