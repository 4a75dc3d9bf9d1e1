"""The figures say what their numbers say, and the sentences are made of the numbers."""

import base64
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from figures.live import live_sentence, result_sentence

from minipo import DynamicPO, preference_loss
from minipo.course.figures import style
from minipo.course.figures.grid import apart, collapse_grid, collapse_sentence
from minipo.course.figures.real import Curves, live_run, live_runs
from minipo.course.figures.style import (
    DYNAMIC_COLOUR,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    differences,
    in_points,
    short,
    verdict,
)
from minipo.course.figures.why import (
    guess_sentence,
    loss_bars,
    margin_line,
    mistakes,
    push_bars,
    push_product,
    push_sentence,
    push_table,
)
from minipo.evaluation import Interval
from minipo.experiments.configuration import PreferConfig


def margins(*values: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of policy and reference whose margins are these."""
    policy = torch.tensor([[0.0, *(-value for value in values)]], dtype=torch.float64)
    return policy, torch.zeros_like(policy)


def drawn(figure) -> dict:
    """What a browser gets, which also checks that it is a figure at all."""
    return json.loads(figure.to_json())


def decoded(values) -> np.ndarray:
    """Plotly's JSON holds arrays as base64."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
    return np.array(values)


MISTAKE_AMONG_18 = margins(-1.0, *[4.0] * 18)
BOUNDARY_ONLY = DynamicPO(adjust_beta=False)


def test_push_table_has_the_numbers_of_the_story():
    table = push_table(*MISTAKE_AMONG_18)
    assert table["push"].to_dict() == pytest.approx({"dmpo": 0.00122, "dpo": 0.0385, "sdpo": 0.671}, rel=0.01)
    assert table.loc["dmpo", "loss"] == pytest.approx(0.0236, rel=0.01)
    assert table["alone_loss"].tolist() == pytest.approx([1.3133] * 3, rel=1e-3)
    assert table["alone_push"].tolist() == pytest.approx([0.7311] * 3, rel=1e-3)
    assert (table["dilution"] * table["saturation"]).tolist() == pytest.approx(table["push"].tolist())
    assert table["kept"].tolist() == [19] * 3


def test_push_sentence_reads_the_story_aloud():
    plain = push_table(*MISTAKE_AMONG_18)
    assert push_sentence(plain) == (
        "The loss fell **98 %**, the mistake is as it was, and its push fell **600-fold**: 19 by averaging, "
        "31 by the shared sigmoid."
    )
    selected = push_table(*MISTAKE_AMONG_18, dynamic=BOUNDARY_ONLY)
    assert push_sentence(plain, selected) == (
        "Boundary only: 18 easy negatives are left out, and the push on the mistake is **0.73**, **600 times** that "
        "among all 19."
    )


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        # the loss rises, and the sigmoid gives back what averaging took
        ((3.0, -2.0, -2.0), "The loss rose **1698 %**"),
        ((3.0, -2.0, -2.0), "its push grew **4.1-fold**: 3.0 by averaging, the shared sigmoid gave back 12."),
        ((-1.0,), "The mistake is alone: DMPO's loss is 1.3 and its push on the mistake 0.73"),
    ],
)
def test_push_sentence_says_what_is_so(values: tuple[float, ...], sentence: str):
    assert sentence in push_sentence(push_table(*margins(*values)))


def test_push_sentence_where_selection_leaves_the_mistake_out_or_nothing():
    values = margins(4.0, 1.0, 1.0)  # nothing is above the chosen item, and the two at 1 are nearest to it
    sentence = push_sentence(push_table(*values), push_table(*values, dynamic=BOUNDARY_ONLY))
    assert sentence == "Boundary only: the mistake itself is left out, with 0 of the 2 others."
    values = margins(-1.0, -2.0)
    sentence = push_sentence(push_table(*values), push_table(*values, dynamic=BOUNDARY_ONLY))
    assert sentence.startswith("Boundary only: nothing is left out, the push on the mistake is **0.")


def test_margin_line_puts_every_negative_at_its_margin_and_the_average_where_dmpo_sees_it():
    output = preference_loss("dmpo", *margins(-1.0, 2.0, 2.0, 5.0))
    figure = drawn(margin_line(output.rewards[0].numpy(), output.used[0].numpy(), ["Wrong", "a", "b", "c"]))
    assert [decoded(trace["x"]).tolist() for trace in figure["data"]] == [[2.0, 2.0, 5.0], [], [-1.0], [2.0]]
    texts = " ".join(note["text"] for note in figure["layout"]["annotations"])
    assert "Wrong" in texts
    assert "average: <b>2.00</b>" in texts
    assert figure["data"][3]["marker"]["color"] == OBJECTIVE_COLOURS["dmpo"]


def test_margin_line_hollows_what_selection_leaves_out():
    output = preference_loss("dmpo", *margins(-1.0, 4.0, 4.0), dynamic=BOUNDARY_ONLY)
    figure = drawn(margin_line(output.rewards[0].numpy(), output.used[0].numpy(), ["Wrong", "a", "b"]))
    assert [decoded(trace["x"]).tolist() for trace in figure["data"]] == [[], [4.0, 4.0], [-1.0], [-1.0]]
    assert figure["data"][3]["marker"]["color"] == DYNAMIC_COLOUR
    assert "−1.00" in " ".join(note["text"] for note in figure["layout"]["annotations"])


def test_margin_line_names_do_not_overlap():
    values = [-1.0, *np.linspace(0.0, 4.0, 18)]
    output = preference_loss("dmpo", *margins(*values))
    names = [f"Twelve chars {number}" for number in range(19)]
    figure = drawn(margin_line(output.rewards[0].numpy(), output.used[0].numpy(), names))
    (low, high) = figure["layout"]["xaxis"]["range"]
    rows: dict[float, list[float]] = {}
    for note in figure["layout"]["annotations"]:
        if note["text"].startswith("Twelve"):
            rows.setdefault(note["y"], []).append(note["x"])
    assert len(rows) > 1
    gaps = [np.diff(sorted(row)).min() for row in rows.values() if len(row) > 1]
    assert min(gaps) > len(names[0]) * 0.01 * (high - low)


def test_push_bars_split_what_was_lost():
    table = push_table(*MISTAKE_AMONG_18)
    figure = drawn(push_bars(table))
    bars = [trace for trace in figure["data"] if trace["type"] == "bar"]
    assert bars[2]["marker"]["color"] == [OBJECTIVE_COLOURS[name] for name in ("dmpo", "dpo", "sdpo")]
    losses = drawn(loss_bars(table))["data"]
    assert losses[0]["marker"]["color"] == bars[2]["marker"]["color"]
    np.testing.assert_allclose(decoded(losses[0]["x"]), table["loss"])
    np.testing.assert_allclose(decoded(losses[1]["x"]), table["alone_loss"])
    dilution, saturation, left = (decoded(bar["base"]) for bar in bars)
    np.testing.assert_allclose(left, 1e-4)
    np.testing.assert_allclose(dilution[:2], 0.7311 / 19, rtol=1e-3)  # from here up to 0.731 was lost to dilution
    np.testing.assert_allclose(saturation, table["push"], rtol=1e-6)
    texts = {text for bar in bars for text in bar["text"]}
    assert {"÷ 19", "÷ 31", "<b>0.0012</b>", "<b>0.67</b>"} <= texts
    assert [trace["name"] for trace in figure["data"] if trace.get("showlegend") is not False] == [
        "averaging", "shared sigmoid", "alone",
    ]  # fmt: skip
    assert push_product(table) == (
        "DMPO's push 0.0012 = 0.053 (averaging: dilution) × 0.023 (shared sigmoid: saturation)."
    )
    assert push_product(push_table(*MISTAKE_AMONG_18, beta=0.5)).endswith("(shared sigmoid: saturation) × 0.50 (β).")


def test_push_bars_mark_a_guess_where_it_would_leave_the_push_even_far_off():
    table = push_table(*MISTAKE_AMONG_18)
    for times in (10.0, 1e6):
        figure = drawn(push_bars(table, guess=times))
        (mark,) = [trace for trace in figure["data"] if trace.get("name") == "your guess"]
        assert mark["x"] == pytest.approx([0.7311 / times], rel=1e-3)
        assert mark["y"] == ["DMPO"]
        assert figure["layout"]["xaxis"]["range"][0] < np.log10(mark["x"][0])


@pytest.mark.parametrize(
    ("values", "times", "loss", "sentence"),
    [
        ((-1.0, *[4.0] * 18), 50, "falls", "The push falls **600-fold** (19 by averaging, 31 by the shared sigmoid); "
         "you said 50-fold: **12 times too little**. The loss **falls** 98 %; you said it falls: **right**."),
        ((-1.0, *[4.0] * 18), 6000, "rises", "The push falls **600-fold** (19 by averaging, 31 by the shared "
         "sigmoid); you said 6,000-fold: **10 times too much**. The loss **falls** 98 %; you said it rises: "
         "**wrong**."),
        ((-1.0, *[4.0] * 18), 590, None, "The push falls **600-fold** (19 by averaging, 31 by the shared sigmoid); "
         "you said 590-fold: **right**. The loss **falls** 98 %."),
        ((3.0, -2.0, -2.0), None, "rises", "The push grows **4.1-fold** (3.0 by averaging, the shared sigmoid gave "
         "back 12). The loss **rises** 1698 %; you said it rises: **right**."),
    ],
)  # fmt: skip
def test_guess_sentence_puts_the_truth_beside_the_guess(
    values: tuple[float, ...], times: float | None, loss: str | None, sentence: str
):
    assert guess_sentence(push_table(*margins(*values)), times, loss) == sentence


def test_margin_line_takes_names_for_text():
    output = preference_loss("dmpo", *margins(-1.0, 2.0))
    figure = drawn(margin_line(output.rewards[0].numpy(), output.used[0].numpy(), ["<b>x</b>", "&" * 50]))
    texts = " ".join(note["text"] for note in figure["layout"]["annotations"])
    assert "<b>&lt;b&gt;x&lt;/b&gt;</b>" in texts
    assert figure["data"][0]["text"] == [f"{'&amp;' * 23}…"]  # under the pointer


def test_push_bars_of_a_mistake_left_out_are_empty():
    table = push_table(*margins(4.0, 1.0, 1.0), dynamic=BOUNDARY_ONLY)
    figure = drawn(push_bars(table, dynamic=True))
    bar = figure["data"][2]
    assert bar["text"] == ["<b>0</b>"] * 3
    assert push_product(table) == "DMPO's push 0 = 0 (averaging: dilution) × 0 (shared sigmoid: saturation)."
    assert set(bar["marker"]["color"]) == {DYNAMIC_COLOUR}


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.03, -0.001, "collapses"),
        (-0.004, 0.006, "stable"),
        (0.002, 0.03, "rises"),
        (-0.02, 0.01, "undecided"),
        (-0.0, 0.02, "undecided"),
    ],
)
def test_verdict(low: float, high: float, word: str):
    assert verdict(low, high) == word


def grid(**hits: list[float]) -> pd.DataFrame:
    """Runs at K = 1 and 19 of each variant: HR@1 of seed 0 and 1 at K = 1, then at K = 19."""
    rows = [
        {"variant": variant, "negatives": k, "train_loss": 0.2 / k, "pair_loss": 0.3, "hr@1": hit}
        for variant, values in hits.items()
        for k, hit in zip((1, 1, 19, 19), values, strict=True)
    ]
    return pd.DataFrame(rows)


def test_collapse_sentence_follows_the_intervals():
    table = grid(plain=[0.67, 0.69, 0.64, 0.66], dynamic=[0.67, 0.69, 0.70, 0.72])
    sentence = collapse_sentence("dmpo", table, (-0.03, -0.04, -0.02), (0.06, 0.05, 0.07))
    assert sentence == (
        "From K = 1 to 19, DMPO's training loss falls 95 %; its HR@1 changes by −3.0 points (95 % interval −4.0 to "
        "−2.0): it **collapses**. At K = 19, DynamicPO repairs it: +6.0 points (95 % interval +5.0 to +7.0)."
    )
    assert "it is **stable**" in collapse_sentence("sdpo", table, (0.001, -0.005, 0.006))
    assert "it **rises**" in collapse_sentence("mppo", table, (0.05, 0.03, 0.06))
    assert "**undecided**" in collapse_sentence("dpo", table, (0.0, -0.02, 0.02))
    assert "DynamicPO helps: +6.0" in collapse_sentence("dpo", table, (0.0, -0.02, 0.02), (0.06, 0.05, 0.07))
    assert "DynamicPO hurts: −6.0" in collapse_sentence("dmpo", table, (-0.03, -0.04, -0.02), (-0.06, -0.07, -0.05))
    assert "no clear difference" in collapse_sentence("dmpo", table, (-0.03, -0.04, -0.02), (0.0, -0.01, 0.01))
    parts = {"selection alone": (0.05, 0.04, 0.06), "β alone": (-0.01, -0.02, 0.0)}
    sentence = collapse_sentence("dmpo", table, (-0.03, -0.04, -0.02), (0.06, 0.05, 0.07), parts)
    assert "selection alone +5.0 [+4.0, +6.0], β alone −1.0 [−2.0, +0.0]." in sentence


def test_collapse_grid_draws_means_bands_and_levels():
    table = grid(plain=[0.67, 0.69, 0.64, 0.66], dynamic=[0.67, 0.69, 0.70, 0.72])
    figure = drawn(collapse_grid(table, "dmpo", "collapses", {"SFT": 0.65, "more SFT": 0.652, "oracle": 0.79}))
    lines = {(trace["name"], trace["yaxis"]): trace for trace in figure["data"] if trace["mode"] == "lines+markers"}
    plain = lines["plain DMPO", "y3"]
    assert plain["line"]["color"] == OBJECTIVE_COLOURS["dmpo"]
    np.testing.assert_allclose(decoded(plain["y"]), [68, 65])
    assert lines["DynamicPO", "y3"]["line"]["color"] == DYNAMIC_COLOUR
    bands = [trace for trace in figure["data"] if trace.get("fill") == "toself" and trace["yaxis"] == "y3"]
    np.testing.assert_allclose(decoded(bands[0]["y"]), [69, 66, 64, 67])
    texts = [note["text"] for note in figure["layout"]["annotations"]]
    assert "HR@1 collapses: 68.0 % → 65.0 %" in texts
    assert "Training loss falls: 0.20 → 0.011" in texts
    assert "pair_loss stays: 0.30 → 0.30" in texts
    levels = {note["text"]: note["y"] for note in figure["layout"]["annotations"] if note["yref"].startswith("y3")}
    assert set(levels) == {"SFT<br>65.0 %", "more SFT<br>65.2 %", "oracle<br>79.0 % ↑"}
    # The names do not overlap, though the levels nearly do.
    assert levels["more SFT<br>65.2 %"] - levels["SFT<br>65.0 %"] > 1.5


def test_collapse_grid_without_an_oracle_does_not_name_it_and_ticks_where_runs_are():
    figure = drawn(collapse_grid(grid(plain=[0.3, 0.32, 0.25, 0.27]), "dmpo", "collapses", {"SFT": 0.33}))
    notes = [note["text"] for note in figure["layout"]["annotations"]]
    assert "SFT<br>33.0 %" in notes
    assert not [note for note in notes if "oracle" in note]
    assert figure["layout"]["xaxis3"]["tickvals"] == [1, 19]
    drawn(collapse_grid(grid(plain=[0.3, 0.32, 0.25, 0.27]), "dmpo", "collapses", {}))  # no level at all


def test_seeds_that_disagree_on_the_loss_are_told():
    table = grid(plain=[0.67, 0.69, 0.64, 0.66]).assign(seed=[0, 1, 0, 1], train_loss=[0.3, 0.3, 0.1, 0.31])
    sentence = collapse_sentence("dmpo", table, (-0.03, -0.04, -0.02))
    assert "training loss falls 32 % on average, but rises in 1 of 2 seeds; its HR@1" in sentence
    texts = [note["text"] for note in drawn(collapse_grid(table, "dmpo", "", {}))["layout"]["annotations"]]
    assert "Training loss falls on average: 0.30 → 0.20" in texts
    agreed = table.assign(train_loss=[0.3, 0.3, 0.1, 0.1])
    assert "falls 67 %; its" in collapse_sentence("dmpo", agreed, (-0.03, -0.04, -0.02))


def test_another_ranking_is_drawn_and_told_in_its_own_unit():
    table = grid(plain=[0.67, 0.69, 0.64, 0.66]).rename(columns={"hr@1": "mrr"})
    figure = drawn(collapse_grid(table, "dmpo", "collapses", {"SFT": 0.65}, "mrr"))
    texts = [note["text"] for note in figure["layout"]["annotations"]]
    assert "MRR collapses: 0.680 → 0.650" in texts
    assert "SFT<br>0.650" in texts
    assert "its MRR changes by −3.0 points" in collapse_sentence("dmpo", table, (-0.03, -0.04, -0.02), metric="mrr")
    wins = table.rename(columns={"mrr": "reward_win_rate"})
    sentence = collapse_sentence("dmpo", wins, None, metric="reward_win_rate")
    assert sentence.endswith("its win rate goes from 68.0 % to 65.0 %.")


def test_a_hidden_curve_shows_no_more_than_its_first_point_and_the_guesses():
    table = grid(plain=[0.67, 0.69, 0.64, 0.66], dynamic=[0.67, 0.69, 0.70, 0.72])
    figure = drawn(collapse_grid(table, "dmpo", "collapses", {"SFT": 0.65}, guesses={19: 71.0}, hidden=True))
    ranking = [trace for trace in figure["data"] if trace["yaxis"] == "y2"]
    assert {trace["name"]: decoded(trace["y"]).tolist() for trace in ranking if "name" in trace} == {
        "plain DMPO": [68.0],
        "your guess": [71.0],
    }
    assert "collapses" not in json.dumps(figure["layout"])
    assert len(figure["data"]) == 5  # two bands, the loss, the first point, the guess


def test_names_of_levels_are_spread_evenly_and_keep_their_order():
    places = apart({"a": 10.0, "b": 10.1, "c": 10.2, "d": 30.0}, 2.0)
    np.testing.assert_allclose(np.diff([places[name] for name in "abc"]), 2.0, atol=0.3)
    assert places["b"] == pytest.approx(10.1, abs=0.3)
    assert places["d"] == 30.0


def test_live_run_is_drawn_from_its_first_line_on():
    settings = {**vars(PreferConfig()), "objective": "sdpo", "steps": 300}
    metrics = pd.DataFrame({"step": [10, 20], "loss": [0.69, 0.5]})
    evaluation = pd.DataFrame({"step": [0], "pair_loss": [0.69], "hr@1": [0.7]})
    empty = drawn(live_run(pd.DataFrame(), pd.DataFrame(), settings))["data"]
    assert [trace["x"] for trace in empty] == [[]] * 6
    figure = drawn(live_run(metrics, evaluation, settings))
    assert len(figure["data"]) == 3  # log-probs were not logged
    assert figure["data"][0]["line"]["color"] == OBJECTIVE_COLOURS["sdpo"]
    assert "grey: SFT, 70.0 %" in str(figure["layout"]["annotations"])


def test_result_sentence_names_sft_and_the_recorded_neighbours():
    neighbours = pd.DataFrame({"negatives": [10, 10, 15], "hr@1": [0.64, 0.66, 0.63]})
    assert result_sentence({"hr@1": 0.662, "sft_hr@1": 0.65}, neighbours) == (
        "HR@1 on the test users: **66.2 %**, 1.2 points above SFT's 65.0 %. Recorded at K = 10: 65.0 %, 2 seeds from "
        "64.0 % to 66.0 %. Recorded at K = 15: 63.0 %, 1 seed."
    )
    alone = result_sentence({"hr@1": 0.64, "sft_hr@1": 0.65}, neighbours.head(0))
    assert alone == "HR@1 on the test users: **64.0 %**, 1.0 points below SFT's 65.0 %."


def test_mistakes_are_users_with_one_negative_above_that_gained_since_sft():
    def user(number: int, policy: list[float], reference: list[float]) -> pd.DataFrame:
        columns = {"step": 300, "user": number, "candidate": [0, 1, 2], "item": ["Chosen", "A", "B"]}
        return pd.DataFrame({**columns, "policy": policy, "reference": reference})

    probe = pd.concat(
        [
            user(1, [-3.0, -9.0, -2.0], [-3.0, -4.0, -3.0]),  # B is above, and has gained
            user(2, [-3.0, -2.0, -2.0], [-3.0, -4.0, -3.0]),  # two are above
            user(3, [-2.0, -9.0, -3.0], [-3.0, -4.0, -3.0]),  # none is
            user(4, [-3.0, -9.0, -2.0], [-4.0, -4.0, -1.0]),  # B is above, but has lost
            user(5, [-3.0, -9.0, -2.0], [-3.0, -4.0, -3.0]).assign(step=0),  # not at the last step
        ]
    )
    (mistake,) = mistakes(probe)
    assert (mistake.user, mistake.step, mistake.chosen, mistake.names) == (1, 300, "Chosen", ("B", "A"))
    assert mistake.policy.tolist() == [[-3.0, -2.0, -9.0]]
    assert mistake.reference.tolist() == [[-3.0, -3.0, -4.0]]
    assert push_table(mistake.policy, mistake.reference).loc["dmpo", "alone_loss"] == pytest.approx(1.3133, rel=1e-3)


@pytest.mark.parametrize(
    ("value", "said"),
    [(598.3, "600"), (31.4, "31"), (8.02, "8.0"), (0.0012187, "0.0012"), (0.7311, "0.73"), (12345, "12,000"), (0, "0"),
     (1e-9, "1e-09"), (float("nan"), "–")],
)  # fmt: skip
def test_short(value: float, said: str):
    assert short(value) == said


def test_every_objective_has_a_label_and_a_colour():
    from minipo.preference import OBJECTIVES

    assert set(OBJECTIVE_LABELS) == set(style.OBJECTIVE_COLOURS) == set(OBJECTIVES)
    assert len({*OBJECTIVE_COLOURS.values(), DYNAMIC_COLOUR}) == len(OBJECTIVES) + 1


# ------------------------------------------------------------------------------------- paired differences, anywhere


def test_differences_show_every_interval_within_the_axis():
    intervals = {"a − b": Interval(0.018, 0.009, 0.028), "b − c": Interval(-0.0002, -0.009, 0.008)}
    figure = differences(intervals, "said", "points", {"a − b": "#123456"})
    assert [dot.x[0] for dot in figure.data] == pytest.approx([1.8, -0.02])
    assert figure.data[0].marker.color == figure.data[0].error_x.color == "#123456"
    assert figure.data[1].error_x.arrayminus[0] == pytest.approx(0.88)
    assert [note.text for note in figure.layout.annotations] == ["+1.8 [+0.9, +2.8]", "+0.0 [−0.9, +0.8]"]
    assert list(figure.layout.yaxis.ticktext) == ["a − b", "b − c"]
    low, high = figure.layout.xaxis.range
    assert low < -1 < 2.8 < high


def test_differences_show_the_seeds_where_they_are_given():
    intervals = {"a": Interval(-0.02, -0.03, -0.01), "b": Interval(0.001, -0.005, 0.007)}
    seeds, *means = differences(intervals, "title", seeds={"a": [-0.01, -0.03], "b": [0.0]}).data
    assert list(seeds.x) == pytest.approx([-1, -3, 0])
    assert [dot.x[0] for dot in means] == pytest.approx([-2, 0.1])
    assert [dot.showlegend for dot in means] == [True, False]


def test_points_never_say_minus_zero():
    assert in_points(Interval(-0.0001, -0.02, 0.0)) == "+0.0 [−2.0, +0.0]"


def live(name: str, loss: float, hits: float, last: int = 300, **settings: object) -> Curves:
    metrics = pd.DataFrame({"step": [10, last], "loss": [0.7, loss]})
    ranking = {"ndcg@5": [0.8, 0.81], "reward_win_rate": [0.0, 0.5]}
    evaluations = pd.DataFrame({"step": [0, last], "pair_loss": [0.69, 0.4 - loss], "hr@1": [0.68, hits], **ranking})
    world = {"dataset": "catalog", "model": "pocket-gpt2", "objective": "dmpo", "dynamic": "off", "negatives": 15}
    return Curves(name, {**world, "steps": 300, **settings}, metrics, evaluations)


def test_live_runs_have_a_line_each_in_the_palette_and_the_level_of_sft():
    runs = [live("<b>plain", 0.1, 0.67), live("dynamic", 0.3, 0.7, dynamic="on", steps=500)]
    figure = drawn(live_runs(runs))
    assert [trace["name"] for trace in figure["data"]] == ["&lt;b&gt;plain"] * 3 + ["dynamic"] * 3
    assert {trace["line"]["color"] for trace in figure["data"]} == {OBJECTIVE_COLOURS["dmpo"], DYNAMIC_COLOUR}
    assert len({trace["line"]["dash"] for trace in figure["data"]}) == 2
    assert figure["layout"]["xaxis3"]["range"][1] > 500
    assert [shape["y0"] for shape in figure["layout"]["shapes"]] == [68.0]
    assert "grey: SFT, 68.0 %" in str(figure["layout"]["annotations"])
    assert "shapes" not in drawn(live_runs(runs, "reward_win_rate"))["layout"]
    nothing = Curves("new", runs[0].settings, pd.DataFrame(), pd.DataFrame())
    assert all(len(trace["x"]) == 0 for trace in drawn(live_runs([nothing]))["data"])


def test_live_runs_show_how_log_probs_have_moved_since_sft():
    plain, old = live("plain", 0.1, 0.67), live("old", 0.3, 0.7)
    columns = {"logp_chosen": [-3.0, -3.5], "logp_boundary": [-6.0, -8.0], "logp_discriminative": [-9.0, -13.0]}
    figure = live_runs([replace(plain, evaluations=plain.evaluations.assign(**columns)), old])
    assert [list(trace.y) for trace in figure.data[2:5]] == [[0, -0.5], [0, -2], [0, -4]]
    assert [len(trace.y) for trace in figure.data[8:11]] == [0] * 3
    assert "Log-probs since SFT" in str(drawn(figure)["layout"]["annotations"])


def test_live_sentence_reads_one_run_several_and_none():
    plain, dynamic = live("plain", 0.1, 0.67), live("dynamic", 0.3, 0.7, dynamic="on")
    assert live_sentence([plain]) == (
        "**plain**: after step 300 of 300, training loss 0.70 → 0.10, pair_loss 0.69 → 0.30, and HR@1 on validation "
        "users 68.0 % (SFT) → **67.0 %**."
    )
    assert live_sentence([plain, dynamic]) == (
        "Lowest training loss: **plain** (0.10; each objective and K has a scale of its own). Lowest pair_loss: "
        "**dynamic** (0.10). Highest HR@1 on validation users: **dynamic** (70.0 %; SFT 68.0 %)."
    )
    again = live("plain", 0.2, 0.69, last=100, seed=1)  # of the same name, and not over
    assert live_sentence([plain, again], "ndcg@5", ["one", "two"]) == (
        "So far, lowest training loss: **one** (0.10). Lowest pair_loss: **two** (0.20). "
        "Highest NDCG@5 on validation users: **two** (0.810; SFT 0.800)."
    )
    elsewhere = live("elsewhere", 0.2, 0.3, dataset="ml-100k")
    each = live_sentence([plain, elsewhere], "reward_win_rate")
    assert each.count("and win rate on validation users **50.0 %**") == 2
    assert live_sentence([]).startswith("No step is logged yet")


def test_result_sentence_tells_the_interval_and_what_may_be_chance():
    summary, neighbours = {"hr@1": 0.662, "sft_hr@1": 0.65}, pd.DataFrame({"negatives": [], "hr@1": []})
    sure, unsure = (result_sentence(summary, neighbours, (0.012, low, 0.02)) for low in (0.004, -0.004))
    assert sure.endswith("65.0 % (95 % interval +0.4 to +2.0).")
    assert unsure.endswith("65.0 % (95 % interval −0.4 to +2.0), which may be chance.")


def test_a_sentence_of_one_seed_gives_no_verdict():
    table = pd.DataFrame({"variant": "plain", "negatives": [1, 15], "seed": 0, "train_loss": [0.4, 0.1]})
    one = collapse_sentence("dmpo", table, (-0.015, -0.031, 0.001), (0.016, 0.001, 0.032))
    assert one.endswith("one seed, with an interval over users alone: no verdict yet.")
    two = collapse_sentence("dmpo", pd.concat([table, table.assign(seed=1)]), (-0.015, -0.031, 0.001))
    assert "verdict" not in two
