"""Pairs: both runs under one seed, a small file that is believed in nothing, and an interval that closes in."""

import json
from dataclasses import replace

import numpy as np
import pytest

from minipo.evaluation import paired_interval
from minipo.experiments import pairs
from minipo.experiments.datasets.loading import DATASETS
from minipo.experiments.datasets.splits import Interaction, Splits
from minipo.experiments.runs import Run

LEFT = {"dataset": "tiny", "sft_epochs": 1, "steps": 2, "batch_size": 4, "negatives": 1}
RIGHT = LEFT | {"negatives": 5}


@pytest.fixture
def made(tiny):
    """A pair as a run would have made it, without training one."""
    left, right = pairs.sides(LEFT, RIGHT, 7)
    generator = np.random.default_rng(0)
    ranks = generator.integers(0, 4, (2, len(tiny.test))).astype(np.int32)
    return pairs.Pair(left, right, tiny.fingerprint, ranks[0], ranks[1], 0.5, {"minipo": "0.1.0"})


@pytest.fixture
def content(made, tmp_path):
    pairs.write_pair(made, tmp_path / "pair.json")
    return json.loads((tmp_path / "pair.json").read_text())


def test_a_pair_holds_what_its_two_runs_found(tiny, tmp_path):
    out = tmp_path / "pair.json"
    pair = pairs.train_pair(LEFT, RIGHT, 7, out, tmp_path / "runs", progress=False)
    left, right = Run(tmp_path / "runs" / "left"), Run(tmp_path / "runs" / "right")
    assert (left.config.negatives, left.config.seed) == (1, 7)
    assert (right.config.negatives, right.config.seed) == (5, 7)
    assert pair.left_ranks.tolist() == left.users["rank"].tolist()
    assert pair.right_ranks.tolist() == right.users["rank"].tolist()
    assert pair.sft == left.summary["sft_hr@1"]
    assert pair.differences.mean() == pytest.approx(right.summary["hr@1"] - left.summary["hr@1"])
    written = (left.folder / "summary.json").stat().st_mtime_ns
    again = pairs.train_pair(LEFT, RIGHT, 7, folder=tmp_path / "runs", progress=False)
    assert (left.folder / "summary.json").stat().st_mtime_ns == written  # not trained again
    for read in (again, pairs.read_pair(out), pairs.read_pair(out.read_bytes(), pairs.sides(LEFT, RIGHT, 7))):
        assert (read.left, read.right, read.fingerprint, read.sft) == (
            pair.left,
            pair.right,
            pair.fingerprint,
            pair.sft,
        )
        assert read.differences.tolist() == pair.differences.tolist()
        assert read.versions == pair.versions


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_pairs_precision_is_what_its_machine_decided(precision, made, tmp_path):
    smollm2 = {"model": "smollm2-135m"}
    expected = pairs.sides(LEFT | smollm2, RIGHT | smollm2, 7)
    left, right = (replace(config, precision=precision) for config in expected)
    pairs.write_pair(replace(made, left=left, right=right), tmp_path / "pair.json")
    for read in (pairs.read_pair(tmp_path / "pair.json"), pairs.read_pair(tmp_path / "pair.json", expected)):
        assert (read.left, read.right) == (left, right)
    written = json.loads((tmp_path / "pair.json").read_text())
    for damage in ("half", [precision], None):
        written["left"]["settings"]["precision"] = damage
        with pytest.raises(ValueError, match="on the left, precision is"):
            pairs.read_pair(json.dumps(written).encode(), expected)


def test_runs_on_what_the_data_were_before_are_no_part_of_a_pair(tiny, tmp_path, monkeypatch):
    pairs.train_pair(LEFT, RIGHT, 7, folder=tmp_path, progress=False)
    others = replace(tiny, test=tiny.test[::-1])
    monkeypatch.setitem(DATASETS, "tiny", lambda seed: others)
    with pytest.raises(
        ValueError, match=f"left started on tiny with fingerprint {tiny.fingerprint}, which has .*{others.fingerprint}"
    ):
        pairs.train_pair(LEFT, RIGHT, 7, folder=tmp_path, progress=False)


def test_ranks_among_300_negatives_are_kept(tiny, tmp_path, monkeypatch):
    """Each of 301 users has another rank, from the first to the last place."""
    items = tuple(f"Item {number}" for number in range(301))
    users = tuple(Interaction(number, ("Item 0",), item, items) for number, item in enumerate(items))
    many = Splits("many", tiny.train, tiny.validation, users, items)
    monkeypatch.setitem(DATASETS, "tiny", lambda seed: many)
    left, right = pairs.sides(LEFT, RIGHT, 7)
    ranks = np.arange(301, dtype=np.int32)
    pairs.write_pair(pairs.Pair(left, right, many.fingerprint, ranks, ranks[::-1], 0.5, {}), tmp_path / "pair.json")
    found = pairs.read_pair(tmp_path / "pair.json")
    assert found.left_ranks.tolist() == list(range(301))
    assert found.right_ranks.tolist() == list(range(300, -1, -1))
    assert np.flatnonzero(found.differences).tolist() == [0, 300]


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (LEFT, LEFT, "The two sides have the same settings"),
        (LEFT | {"seed": 1}, RIGHT, "A pair's runs share one seed"),
        (LEFT, RIGHT | {"dataset": "catalog"}, "The two sides are on different data"),
        (LEFT | {"dataset": "plays.csv"}, RIGHT, "There is no file plays.csv"),
        (LEFT | {"sft": "a/folder"}, RIGHT, "A pair's runs start from minipo's own models"),
        (LEFT | {"model": "a/folder"}, RIGHT, "A pair's runs start from minipo's own models"),
        (LEFT, RIGHT | {"negative": 5}, "Unknown setting 'negative'. Did you mean 'negatives'?"),
        (LEFT, RIGHT | {"negatives": 40}, "negatives must be at most 19"),
    ],
)
def test_sides_that_make_no_pair_are_refused_before_anything_is_trained(tiny, home, tmp_path, left, right, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        pairs.train_pair(left, right, 0, tmp_path / "pair.json", progress=False)
    assert not list(home.glob("runs/*"))


def test_a_file_of_ones_own_is_no_data_of_a_pair(plays):
    with pytest.raises(ValueError, match="Unknown dataset of a pair"):
        pairs.sides({"dataset": str(plays)}, {"dataset": str(plays), "negatives": 1})


def test_the_file_must_be_json(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"must end in .json, not 'pair.txt'"):
        pairs.train_pair(LEFT, RIGHT, 0, tmp_path / "pair.txt")


def test_essential_settings_are_enough_to_find_the_run(tiny):
    for side in (LEFT, RIGHT | {"dynamic": "on", "select": "random"}):
        config, other = pairs.sides(side, LEFT | {"negatives": 9}, 3)
        essential = pairs.essential(config)
        assert pairs.sides(essential, pairs.essential(other), 3)[0] == config
        assert "seed" not in essential
    left, _ = pairs.sides({"negatives": 1}, {"negatives": 2})
    assert pairs.essential(left) == {"objective": "dmpo", "negatives": 1}
    assert pairs.spelled({"objective": "dmpo", "negatives": 1}) == "objective=dmpo negatives=1"


def damaged(content, *path, to):
    """The file's bytes with one value replaced."""
    part = content
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = to
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("kind",), "prefer", "kind: Input should be 'pair'"),
        (("left",), [1], "left: Input should be an object"),
        (("right", "settings"), None, "right.settings: Input should be an object"),
        (("seed",), True, "seed: Input should be a valid integer"),
        (("seed",), 8, "its seed is not that of both runs"),
        (("left", "settings", "beta"), "<b>", "is of other runs: on the left, beta is <b>, not 1.0"),
        (("left", "settings", "beta"), 10**400, "beta is a number out of range, not 1.0"),
        (("right", "settings", "negatives"), 6, "on the right, negatives is 6, not 5"),
        (("right", "settings", "x" * 99), 6, "x…"),
        (("dataset_fingerprint",), "0" * 16, "made on other data (fingerprint 0000000000000000) than this machine's"),
        (("sft_hr@1",), 1.5, "sft_hr@1: Input should be less than or equal to 1"),
        (("sft_hr@1",), float("nan"), "sft_hr@1: Input should be"),
        (("left", "ranks"), [0] * 15, "left has no rank for each of the 16 test users"),
        (("left", "ranks"), [0] * 15 + [20], "a rank on the left is not a place"),
        (("left", "ranks"), [0] * 15 + [-1], "a rank on the left is not a place"),
        (("left", "ranks"), [0] * 15 + [0.5], "left.ranks.15: Input should be a valid integer"),
        (("left", "ranks"), [0] * 15 + [True], "left.ranks.15: Input should be a valid integer"),
        (("left", "ranks"), [0] * 15 + [10**9], "a rank on the left is not a place"),
        (("left", "ranks"), [0] * 15 + [10**400], "a rank on the left is not a place"),
        (("versions",), {"minipo": 1}, "versions.minipo: Input should be a valid string"),
    ],
)
def test_a_file_that_is_not_this_pair_is_refused_in_one_sentence(content, path, to, message):
    with pytest.raises(ValueError, match=r"^This result|^This is not a result") as refused:
        pairs.read_pair(damaged(content, *path, to=to), pairs.sides(LEFT, RIGHT, 7))
    assert message in str(refused.value)
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)


def test_another_seed_is_told(content):
    with pytest.raises(ValueError, match=r"This result is of seed 7, not of seed 8; give that one."):
        pairs.read_pair(json.dumps(content).encode(), pairs.sides(LEFT, RIGHT, 8))


@pytest.mark.parametrize(
    "source", [b"", b"<html>", b"\xff\xfe", b"[" * 100_000, b'{"seed": ' + b"9" * 9000 + b"}", b"[]", b"null", b"NaN"]
)
def test_what_is_no_pair_at_all_is_refused(source):
    with pytest.raises(ValueError, match=r"^This is not a result of `minipo pair`"):
        pairs.read_pair(source)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.json cannot be read \(No such file"):
        pairs.read_pair(tmp_path / "nowhere.json")


@pytest.mark.parametrize("beta", [10**400, "1", 0])
def test_settings_of_a_pair_that_nobody_expected_are_checked_too(content, beta):
    with pytest.raises(ValueError, match=r"out of range|beta must be"):
        pairs.read_pair(damaged(content, "left", "settings", "beta", to=beta))


def test_the_last_of_the_closing_intervals_is_the_paired_one():
    generator = np.random.default_rng(1)
    differences = generator.integers(-1, 2, (6, 400)) + generator.normal(scale=0.05, size=(6, 1))
    intervals = pairs.closing_in(differences)
    assert [interval.mean for interval in intervals] == pytest.approx(
        [differences[:count].mean() for count in range(1, 7)]
    )
    for count in (1, 6):
        whole = paired_interval(differences[:count])
        assert intervals[count - 1].low == pytest.approx(whole.low, abs=0.012)
        assert intervals[count - 1].high == pytest.approx(whole.high, abs=0.012)
    widths = [interval.high - interval.low for interval in intervals]
    assert widths[-1] < 0.8 * widths[0]
