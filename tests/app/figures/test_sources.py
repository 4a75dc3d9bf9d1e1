"""Where recorded numbers come from, as figures and sentences."""

import json
from typing import Any

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
    assert {name: bar["x"] for name, bar in bars.items()} == {"DMPO": [2, 1], "S-DPO": [1, 0], "more SFT": [0, 1]}
    assert bars["DMPO"]["marker"]["color"] == OBJECTIVE_COLOURS["dmpo"]
    texts = [note["text"] for note in figure["layout"]["annotations"]]
    assert texts == [
        "<b>a</b>  catalog × pocket-gpt2",
        "<b>3</b>",
        "<b>&lt;b&gt;</b>  catalog × pocket-gpt2",
        "<b>2</b>",
    ]


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
    shown = [(trace["name"], trace["x"][0]) for trace in figure["data"]]
    tests, unseen_ = "2,000 test users", "4,000 unseen users"
    assert [name for name, _ in shown] == [tests, tests, unseen_, unseen_]
    assert [x for _, x in shown] == pytest.approx([-1.1, 1.0, -0.7, 0.4])
    assert [trace["showlegend"] for trace in figure["data"]] == [True, False, True, False]
    texts = [note["text"] for note in figure["layout"]["annotations"]]
    assert "−0.7 [−1.2, −0.2]" in texts
    assert "<b>A</b> minus &lt;B&gt;" in texts
    assert unseen_sentence(pairs) == (
        "Of 2 headline differences, 2 exclude zero on test users and **1 of these** do so again, on the same side, "
        "on users that played no part in any choice. All of them are smaller there."
    )
