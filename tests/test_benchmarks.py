"""The benchmarks compare like with like, and each script reads its command line and reports. Nothing is timed here."""

import importlib
import importlib.util
import sys

import numpy as np
import pytest
import torch

from minipo.experiments.runs import DATA

FOLDER = DATA.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not (FOLDER / "measure.py").is_file(), reason="benchmarks/ is not there")


@pytest.fixture
def script(monkeypatch):
    """Import a script by name. What it would measure in processes of their own it measures in this one."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "report", raising=False)  # data/ has one too

    def load(name: str):
        module, measure = (importlib.import_module(each) for each in (name, "measure"))
        for place in (module, measure):
            if hasattr(place, "alone"):
                monkeypatch.setattr(place, "alone", lambda _, settings: module.measured(settings))
        monkeypatch.setattr(measure, "write_json", lambda *_: pytest.fail("a quick run wrote a file"))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--threads", str(torch.get_num_threads())])
        return module

    yield load
    sys.modules.pop("report", None)


def test_plain_rows_and_packed_ones_give_the_same_log_probs_and_gradients(script):
    step = script("step")
    settings = {"model": "pocket-qwen2", "negatives": 5, "rows": 2, "warm_up": 1, "steps": 1}
    first = {side: step.measured(settings | {"side": side})["first"] for side in step.SIDES}
    assert np.shape(first["plain"]["logps"]) == (2, 6)
    for side in ("fresh", "cached"):
        for what, expected in first["plain"].items():
            np.testing.assert_allclose(first[side][what], expected, rtol=1e-4, err_msg=f"{side} {what}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("step", ["| pocket-qwen2 | 15 |", "| pocket-gpt2 | 1 |", "DynamicPO's selection and β take"]),
        ("scoring", ["| pocket-qwen2 |", "| pocket-gpt2 |", "against generate"]),
        ("growth", ["per thousand real tokens", "grouped by length"]),
        ("shapes", ["at first and", "% padding) otherwise"]),
        ("selection", ["64 rows of 19 negatives", "on one thread"]),
        ("precision", ["| all of its own |", "a step of pocket-gpt2"]),
        ("models", ["| pocket-qwen2 |", "the recipe's settings"]),
        ("sft_rows", ["| rows of sequences |", "times less time", "over users and seeds: HR@1"]),
    ],
)
def test_a_quick_run_reports(name, said, script, capsys):
    module, threads = script(name), torch.get_num_threads()
    importlib.import_module("measure").run(
        module.__file__, module.__doc__, module.benchmark, getattr(module, "measured", None)
    )
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert all(word in printed for word in [*said, "A smoke run"])


def test_the_readme_says_what_the_recorded_reports_say(script):
    written = script("measure").readme.readme()
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert f"<!-- made by: python benchmarks/report.py -->\n{written}\n<!-- end -->" in readme


def test_the_growth_figure_draws_every_axis(script):
    growth = script("growth")
    point = {"K": 1, "prompt": 1, "batch": 1, "tokens": 10, "seconds": 1.0}
    padding = [{"rows_together": 2, "padding_one": 0.2, "padding_groups": 0.1}]
    drawn = growth.figure({"growth": [point | {"axis": axis} for axis in growth.AXES], "padding": padding})
    assert len(drawn.data) == 1 + len(growth.AXES) + 2


def test_without_trl_one_sentence_says_so(script, monkeypatch):
    trl_step = script("trl_step")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"trl and datasets not installed: run pip install"):
        trl_step.main()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_trl_and_minipo_train_on_the_same_log_probs(script, capsys):
    script("trl_step").main()
    assert "TRL as it comes" in capsys.readouterr().out
