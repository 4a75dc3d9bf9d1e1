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

    def load(name: str):
        module = importlib.import_module(name)
        if hasattr(module, "alone"):
            monkeypatch.setattr(module, "alone", lambda _, settings: module.measured(settings))
        monkeypatch.setattr(module, "write", lambda *_: pytest.fail("a quick run wrote a file"))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--threads", str(torch.get_num_threads())])
        return module

    return load


def test_plain_rows_and_packed_ones_give_the_same_log_probs_and_gradients(script):
    step = script("step")
    settings = {"model": "tiny-llama", "negatives": 5, "rows": 2, "warm_up": 1, "steps": 1}
    first = {side: step.measured(settings | {"side": side})["first"] for side in step.SIDES}
    assert np.shape(first["plain"]["logps"]) == (2, 6)
    for side in ("fresh", "cached"):
        for what, expected in first["plain"].items():
            np.testing.assert_allclose(first[side][what], expected, rtol=1e-4, err_msg=f"{side} {what}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("step", ["tiny-llama", "pocket-gpt2", "DynamicPO"]),
        ("scoring", ["tiny-llama", "generate ms"]),
        ("growth", ["plain_tokens", "s per 1,000 tokens", "Ragged rows"]),
        ("shapes", ["least padding", "few shapes"]),
    ],
)
def test_a_quick_run_reports(name, said, script, capsys):
    script(name).main()
    printed = capsys.readouterr().out
    assert all(word in printed for word in said)


def test_prompts_are_about_as_long_as_promised(script):
    """With the stand-in for SmolLM2's tokenizer; with its own one a prompt has 105 to 140 tokens."""
    step = script("step")
    _, _, _, prompts, answers = step.setting("tiny-llama", 32)
    assert 90 < np.median([len(prompt) for prompt in prompts]) < 140
    assert 2 < np.mean([len(answer) - 1 for row in answers for answer in row]) < 4


def test_the_growth_figure_draws_every_axis(script):
    growth = script("growth")
    point = {"K": 1, "prompt": 1, "batch": 1, "tokens": 10, "seconds": 1.0}
    padding = [{"rows_together": 2, "padding_one": 0.2, "padding_groups": 0.1}]
    drawn = growth.figure({"growth": [point | {"axis": axis} for axis in growth.AXES], "padding": padding})
    assert len(drawn.data) == 1 + len(growth.AXES) + 2


def test_without_trl_one_sentence_says_so(script, monkeypatch):
    trl_step = script("trl_step")
    monkeypatch.setattr(trl_step.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"trl and datasets not installed: run pip install"):
        trl_step.main()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_trl_and_minipo_train_on_the_same_log_probs(script, capsys):
    script("trl_step").main()
    assert "TRL as it comes" in capsys.readouterr().out
