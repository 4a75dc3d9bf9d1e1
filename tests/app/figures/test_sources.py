"""Where recorded numbers come from, as figures and sentences."""

import base64
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from figures.sources import held, on_unseen, runs_by_grid, runs_sentence, unseen, unseen_sentence

from minipo.course.figures.style import OBJECTIVE_COLOURS
from minipo.evaluation import Interval


def table(*rows: tuple[str, int, str, str, str], **more: Any) -> pd.DataFrame:
    names = ["objective", "negatives", "dynamic", "select", "adjust_beta"]
    same = {"dataset": "catalog", "model": "pocket-gpt2", "sft_epochs": 40, "learning_rate": 3e-4, "beta": 1.0}
    return pd.DataFrame(rows, columns=names).assign(**{**same, "margin": 6.0, **more})


PLAIN, WHOLE = ("dmpo", 19, "off", "off", "off"), ("dmpo", 5, "on", "on", "on")
PART, MORE = ("sdpo", 5, "on", "random", "off"), ("sft", 0, "off", "off", "off")


def test_what_a_grid_holds_is_read_off_its_table():
    assert held(table(PLAIN, WHOLE)) == "DMPO; K = 5, 19; plain, DynamicPO"
    assert held(table(PART, MORE)) == "S-DPO; K = 5; its parts and controls; more SFT"
    varied = table(PLAIN, PLAIN, learning_rate=[1e-4, 3e-4], beta=[1.0, 3.0])
    assert held(varied) == "DMPO; K = 19; plain; 2 learning rates; 2 values of β"


def test_every_run_of_every_grid_is_drawn_in_its_objectives_colour():
    figure = json.loads(runs_by_grid({"a": table(PLAIN, WHOLE, PART), "<b>": table(PLAIN, MORE)}).to_json())
    bars = {bar["name"]: bar for bar in figure["data"]}
    first, second = "<b>a</b>, 3<br>catalog × pocket-gpt2", "<b>&lt;b&gt;</b>, 2<br>catalog × pocket-gpt2"
    runs = {name: dict(zip(bar["y"], runs_of(bar), strict=True)) for name, bar in bars.items()}
    assert runs == {"DMPO": {first: 2, second: 1}, "S-DPO": {first: 1}, "more SFT": {second: 1}}
    assert bars["DMPO"]["marker"]["color"] == OBJECTIVE_COLOURS["dmpo"]


def runs_of(bar: dict[str, Any]) -> list[int]:
    return np.frombuffer(base64.b64decode(bar["x"]["bdata"]), bar["x"]["dtype"]).tolist()


def test_the_sentence_counts_runs_and_what_is_absent():
    grids = {"a": table(PLAIN, WHOLE, PART), "b": table(PLAIN)}
    assert runs_sentence(grids) == (
        "**4 recorded runs** in 2 grids are behind the pages, of DMPO, S-DPO; the largest, *a*, has 3."
    )
    assert runs_sentence(grids, 2).endswith("has 3. 2 more are missing or damaged.")
    assert runs_sentence({}, 9).startswith("No recorded grid can be read here")


FRESH = {"users": 4000, "differences": [["A", "B", "−0.7 [−1.2, −0.2]"], ["C", "D", "+0.4 [+0.0, +1.1]"]]}


def test_recorded_differences_on_unseen_users_are_read_as_they_stand():
    assert unseen(FRESH) == [
        ("A", "B", Interval(-0.7 / 100, -1.2 / 100, -0.2 / 100)),
        ("C", "D", Interval(0.4 / 100, 0.0, 1.1 / 100)),
    ]


@pytest.mark.parametrize(
    "content",
    [[], {}, {"users": 1}, {**FRESH, "differences": [["A", "B"]]}, {**FRESH, "differences": [["A", "B", "a lot"]]}],
)
def test_what_fresh_does_not_write_is_one_sentence(content: Any):
    with pytest.raises(
        ValueError, match=r"fresh\.json, are damaged; make them again with 'python data/record\.py fresh'"
    ):
        unseen(content)


def test_both_kinds_of_users_stand_under_each_other():
    pairs = [
        ("A", "<B>", Interval(-0.011, -0.019, -0.003), Interval(-0.007, -0.012, -0.002)),
        ("C", "D", Interval(0.01, 0.002, 0.02), Interval(0.004, 0.0, 0.011)),
    ]
    figure = json.loads(on_unseen(pairs, (2000, 4000)).to_json())
    assert [trace["x"][0] for trace in figure["data"]] == pytest.approx([-1.1, -0.7, 1.0, 0.4])
    assert "2,000 test users; below, 4,000 unseen users" in figure["layout"]["title"]["text"]
    assert "−0.7 [−1.2, −0.2]" in [note["text"] for note in figure["layout"]["annotations"]]
    assert figure["layout"]["yaxis"]["ticktext"][:2] == ["<b>A</b> minus &lt;B&gt;", "unseen users"]
    assert unseen_sentence(pairs) == (
        "Of 2 headline differences, 2 exclude zero on test users and **1 of these** do so again, on the same side, "
        "on users that played no part in any choice. All of them are smaller there."
    )
