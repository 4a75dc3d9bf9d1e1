"""Runs of any origin side by side: what is paired with what, which settings differ, and what a spreadsheet may open."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from minipo.experiments import comparison
from minipo.experiments.comparison import (
    Line,
    apart,
    csv,
    curve_so_far,
    of_baseline,
    of_recorded,
    of_run,
    paired,
    recorded_settings,
    table,
)
from minipo.experiments.configuration import PreferConfig, SFTConfig, make_config
from minipo.experiments.records import RECORDED, RESULTS, Recorded, difference, load_recorded
from minipo.experiments.runs import Run
from minipo.experiments.training import prefer

# Of the data when grids were recorded; those of pocket models on ml-100k are older.
FINGERPRINTS = {"catalog": {"298607e3f9d232e9"}, "ml-100k": {"2a53be877b122b87", "e7cd04eacdf17b4c"}}
PLAIN = {"objective": "dmpo", "dynamic": "off"}


def line(name: str, ranks: dict[int | None, list[int]], users: str = "these", wins: bool = True, **settings) -> Line:
    """A line whose ranks are given, by seed; of an SFT model under None."""
    config = {**vars(PreferConfig()), **settings}
    config.pop("seed")
    known = {**dict.fromkeys(RESULTS, 0.5), **config}
    runs = pd.DataFrame([{**known, "seed": 0 if seed is None else seed} for seed in ranks])
    found = {seed: np.array(rank) for seed, rank in ranks.items()}
    won = {seed: rank == 0 for seed, rank in found.items()} if wins else None
    return Line(name, config, runs, found, won, users)


@pytest.fixture(scope="module")
def grid() -> Recorded:
    return load_recorded("objectives")


def test_equal_seeds_are_paired_and_no_others():
    left = line("left", {0: [0, 0, 0, 0], 1: [0, 0, 3, 3], 2: [9, 9, 9, 9]})
    right = line("right", {3: [0, 0, 0, 0], 1: [0, 3, 3, 3], 0: [3, 3, 3, 3]})
    found = paired(left, right)
    assert found.interval.mean == pytest.approx((1.0 + 0.25) / 2)
    assert found.paired_over == "users, 2 seeds"
    assert paired(line("one", {1: [0, 0, 0, 0]}), right).paired_over == "users, seed 1"


def test_without_a_common_seed_users_alone_are_paired():
    left, right = line("left", {5: [0, 0, 3, 3]}), line("right", {0: [0, 3, 3, 3], 1: [3, 3, 3, 3]})
    found = paired(left, right)
    assert found.paired_over == "users; no seed in common"
    assert found.interval.mean == pytest.approx(0.5 - 0.125)


def test_the_sft_model_is_paired_with_every_seed():
    start, run = line("SFT", {None: [0, 0, 0, 3]}), line("run", {4: [3, 3, 0, 0], 7: [0, 0, 0, 0]})
    there, back = paired(run, start), paired(start, run)
    assert there.interval.mean == pytest.approx(0.0) == -back.interval.mean
    assert there.paired_over == back.paired_over == "users, 2 seeds"
    assert paired(start, line("longer", {None: [0, 0, 0, 0]})).paired_over == "users"


def test_a_curve_has_each_difference_as_soon_as_both_its_runs_are_there(monkeypatch):
    ranks = {("off", 1): [0, 0, 0, 1], ("off", 5): [0, 1, 1, 1], ("on", 5): [0, 0, 0, 0], ("on", 3): [0, 0, 1, 1]}
    monkeypatch.setattr(
        comparison, "of_run", lambda _, run: line("", {7: ranks[run]}, dynamic=run[0], negatives=run[1])
    )
    so_far, differences = curve_so_far([], [1, 3, 5])
    assert (so_far.empty, differences) == (True, {})
    so_far, differences = curve_so_far([("on", 3), ("off", 5), ("on", 5)], [1, 3, 5])
    assert so_far[["variant", "negatives"]].to_numpy().tolist() == [["dynamic", 3], ["plain", 5], ["dynamic", 5]]
    assert {name: interval.mean for name, interval in differences.items()} == {"dynamic": 0.75}
    _, differences = curve_so_far([("off", 5), ("off", 1)], [1, 3, 5], "mrr")
    assert {name: interval.mean for name, interval in differences.items()} == {"plain": -0.25}


@pytest.mark.parametrize("metric", comparison.METRICS)
def test_every_metric_is_that_of_the_users(metric):
    left, right = line("left", {0: [0, 1, 6, 0]}), line("right", {0: [1, 1, 1, 1]})
    gap = left.outcomes(metric)[0].mean() - right.outcomes(metric)[0].mean()
    assert paired(left, right, metric).interval.mean == pytest.approx(gap)


def test_what_cannot_be_compared_is_told():
    here = line("here", {0: [0, 1]})
    for other in (line("there", {0: [0, 1]}, users="others"), line("fewer", {0: [0]})):
        with pytest.raises(ValueError, match="other test users"):
            paired(here, other)
    with pytest.raises(ValueError, match="no win rate"):
        paired(here, line("SFT", {None: [0, 1]}, wins=False), "reward_win_rate")
    with pytest.raises(ValueError, match="Unknown metric 'hr'"):
        here.outcomes("hr")


def test_recorded_lines_are_those_of_the_grid(grid):
    few, many = (of_recorded(f"K = {k}", grid, negatives=k, **PLAIN) for k in (1, 19))
    expected = difference(*(grid.outcomes(negatives=k, **PLAIN) for k in (19, 1)))
    assert paired(many, few).interval == expected
    assert many.seeds == [0, 1, 2, 3, 4]
    start = of_baseline("SFT", grid, **PLAIN)
    expected = difference(grid.outcomes(negatives=19, **PLAIN), grid.baseline("sft"))
    assert paired(many, start).interval == expected
    assert start.runs["hr@1"].item() == pytest.approx(grid.baseline("sft")[None].mean())
    with pytest.raises(ValueError, match="give settings that leave one run per seed"):
        of_recorded("too many", grid, **PLAIN)
    with pytest.raises(ValueError, match="No recorded run"):
        of_baseline("SFT", grid, objective="dmpo", negatives=77)


def test_recorded_settings_are_those_that_data_record_gave(grid):
    common = {"steps": 300, "batch_size": 32, "evaluate_every": 100, **grid.provenance["chosen"]}
    row = grid.rows(objective="sdpo", negatives=10, dynamic="on", seed=3).index[0]
    wanted = {"objective": "sdpo", "negatives": 10, "dynamic": "on", "seed": 3, **common}
    assert make_config(PreferConfig, recorded_settings(grid, row)) == make_config(PreferConfig, wanted)
    more = grid.rows(objective="sft", seed=2).index[0]
    wanted = {"start_epochs": grid.provenance["chosen"]["sft_epochs"], "seed": 2, **grid.provenance["more_sft"]}
    assert make_config(SFTConfig, recorded_settings(grid, more)) == make_config(SFTConfig, wanted)


def test_the_precision_of_recorded_runs_is_the_one_they_had(grid):
    """Which tables did not say at first."""
    older = replace(grid, table=grid.table.drop(columns="precision", errors="ignore"))
    assert recorded_settings(older, 0)["precision"] == "float32"
    language = {"precision": "bfloat16", "model": "smollm2-135m", "template": "liked"}
    said = replace(grid, table=grid.table.assign(**language))
    query = {"objective": "dmpo", "dynamic": "off", "negatives": 1}
    assert of_recorded("run", said, **query).settings["precision"] == "bfloat16"
    assert of_baseline("SFT", said, **query).settings["precision"] == "bfloat16"


def test_every_recorded_grid_has_settings_and_says_which_data_it_is_on():
    for folder in sorted(RECORDED.glob("*/provenance.json")):
        found = load_recorded(folder.parent.name)
        for number in found.table.drop_duplicates("objective").index:
            assert recorded_settings(found, number)["dataset"] == found.table.loc[number, "dataset"]
        assert found.fingerprint in FINGERPRINTS[found.table["dataset"].iloc[0]]


def test_a_grid_that_does_not_say_which_data_it_is_on_is_compared_with_nothing(grid):
    older = replace(grid, provenance={})
    for ask in (of_recorded, of_baseline):
        with pytest.raises(ValueError, match=r"^The recorded grid 'objectives' does not say which data"):
            ask("K = 1", older, negatives=1, **PLAIN)
    elsewhere = replace(grid, provenance={"dataset_fingerprint": "0" * 16})
    with pytest.raises(ValueError, match="other test users"):
        paired(of_recorded("here", grid, negatives=1, **PLAIN), of_recorded("there", elsewhere, negatives=1, **PLAIN))


def test_a_grid_that_was_recorded_on_other_data_says_so(grid):
    assert comparison.older_data(grid) == ""
    changed = replace(grid, provenance={"dataset_fingerprint": "0123456789abcdef"})
    assert "Recorded on catalog as it was before (fingerprint 0123456789abcdef;" in comparison.older_data(changed)
    with pytest.raises(ValueError, match="does not say which data its runs are on"):
        comparison.older_data(replace(grid, provenance={}))


def test_a_finished_run_is_a_line(tiny, tiny_sft, tmp_path):
    run = prefer(
        tmp_path / "run", sft=str(tiny_sft.folder), dataset="tiny", steps=2, batch_size=4, seed=6, progress=False
    )
    found = of_run("mine", run, "./songs.csv")
    assert found.seeds == [6]
    assert "seed" not in found.settings
    assert found.users == tiny.fingerprint
    assert found.outcomes("hr@1")[6].mean() == pytest.approx(run.summary["hr@1"])
    assert found.outcomes("reward_win_rate")[6].mean() == pytest.approx(run.summary["reward_win_rate"])
    assert found.settings["dataset"] == found.runs["dataset"].item() == "./songs.csv"
    pd.DataFrame({"user": [1]}).to_parquet(tmp_path / "run" / "users.parquet")
    with pytest.raises(ValueError, match="damaged"):
        of_run("mine", Run(tmp_path / "run"))


def test_the_table_has_raw_numbers_and_only_settings_that_matter(grid):
    lines = [
        of_recorded("plain", grid, negatives=19, **PLAIN),
        of_recorded("dynamic", grid, objective="dmpo", dynamic="on", negatives=19),
        of_baseline("SFT", grid, **PLAIN),
    ]
    gap = paired(lines[1], lines[0])
    rows = table(lines, {"dynamic": gap, "SFT": "not asked"}, "plain", "hr@1").set_index("name")
    assert rows.loc["dynamic", ["difference", "low", "high"]].tolist() == [
        gap.interval.mean, gap.interval.low, gap.interval.high,
    ]  # fmt: skip
    assert rows.loc["SFT", "paired_over"] == "not asked"
    assert np.isnan(rows.loc["SFT", "difference"])
    assert rows.loc["plain", "seeds"] == "0 1 2 3 4"
    assert rows.loc["plain", "hr@1"] == pytest.approx(grid.rows(negatives=19, **PLAIN)["hr@1"].mean())
    assert rows["negatives"].tolist() == [19, 19, pd.NA]
    assert rows["margin"].isna().tolist() == [True, False, True]
    differing, same = apart(rows)
    assert differing == ["objective", "dynamic"]
    assert same["negatives"] == 19
    assert same["margin"] == 6.0
    assert "rank" not in same  # no line uses LoRA


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"dynamic": "off"}, "plain"),
        ({"dynamic": "on"}, "DynamicPO"),
        ({"dynamic": "on", "adjust_beta": "off"}, "selection alone"),
        ({"dynamic": "on", "select": "off"}, "β alone"),
        ({"dynamic": "on", "select": "off", "adjust_beta": "off"}, "plain"),
        ({"dynamic": "on", "select": "random", "adjust_beta": "off"}, "random |B|"),
        ({"dynamic": "on", "select": "hardest"}, "hardest |B| and β"),
    ],
)
def test_the_parts_of_dynamicpo_in_words(settings, name):
    assert comparison.variant(vars(make_config(PreferConfig, settings))) == name


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", " =1", "\t=1", "\r\n-2"])
def test_text_that_begins_a_formula_is_made_harmless(text):
    read = pd.read_csv(io.BytesIO(csv(pd.DataFrame({"name": [text, "a=b"], "number": [-1.5, 2.0]}))))
    assert read["name"][0].startswith("'")
    assert read["name"][1] == "a=b"
    assert read["number"].tolist() == [-1.5, 2.0]
