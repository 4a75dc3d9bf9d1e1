"""A dozen architectures and a few adapters go through what `benchmarks/architectures.py` does with all of them."""

import sys

import pytest
from transformers import T5Config, T5ForConditionalGeneration

from minipo.compatibility import tokenizers
from minipo.experiments.runs import DATA

FOLDER = DATA.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not (FOLDER / "architectures.py").is_file(), reason="benchmarks/ is not there")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import architectures

    tokenizers._warned.clear()  # a warning is given once a class; here every model is to give its own
    return architectures


@pytest.mark.parametrize(
    ("name", "how", "why"),
    [
        ("llama", "packed", ""),
        ("gpt2", "packed", ""),
        ("gpt_neox", "packed", ""),
        ("phi3, longrope", "packed", ""),
        ("opt", "packed", ""),
        ("bert, as a decoder", "packed", ""),
        ("mistral", "both", "window of 16"),
        ("bloom", "one by one", "packed rows make it fail"),
        ("mamba", "one by one", "linear_attention"),
        ("LOHA on llama", "packed", ""),
        ("LORA, aLoRA on llama", "one by one", "tokens of the whole row"),
        ("LORA, not the identity on gpt2", "packed", ""),
    ],
)
def test_scores_are_the_plain_ones_and_training_is_without_noise(name, how, why, script):
    row = script.examine(name)
    assert (row.faults, row.trainer) == ([], "")
    assert row.how == how
    assert why in row.reason
    assert max(row.difference, row.training, row.reference or 0.0) < 1e-4


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("bert", "its tokens see later tokens; load it with is_decoder=True"),
        ("gemma, bidirectional", "its tokens see later tokens"),
        ("LILY on llama", "LILY"),
        ("P_TUNING on gpt2", "virtual tokens"),
    ],
)
def test_what_cannot_score_candidates_is_refused_by_name(name, why, script):
    row = script.examine(name)
    assert row.faults == []
    assert row.how == "refused"
    assert why in row.reason


def test_an_encoder_decoder_is_refused(script):
    from tiny_models import small

    row = script.Row("t5")
    script.score(row, T5ForConditionalGeneration(small(T5Config())).eval())
    assert row.how == "refused"
    assert "encoder-decoder" in row.reason


def test_an_adapter_that_draws_at_random_is_scored_and_not_trained(script):
    row = script.examine("PVERA on llama")
    assert (row.faults, row.how) == ([], "packed")
    assert row.training > 0.1
    assert "PVERA" in row.trainer


def test_a_wrong_score_and_noise_that_is_left_are_faults(script, monkeypatch):
    with monkeypatch.context() as patched:
        scored = script.candidate_logps
        patched.setattr(script, "candidate_logps", lambda *given: scored(*given) + 0.01)
        assert "short rows: wrong by 0.01" in script.examine("llama").faults
    monkeypatch.setattr(script, "disable_dropout", lambda model: None)
    assert "is not refused" in script.examine("llama").faults[0]


def test_the_table_counts_and_a_fault_is_the_exit_status(script, monkeypatch, tmp_path, capsys):
    rows = {
        "llama": script.Row("llama", "LlamaForCausalLM", "packed", difference=1e-5, training=0.0),
        "opt": script.Row("opt", "OPTForCausalLM", "packed", faults=["long rows: wrong by 2.1"]),
        "LORA on gpt2": script.Row("LORA on gpt2", "LoraConfig", "packed", training=0.0, reference=0.0),
    }
    monkeypatch.setattr(script, "names", lambda: list(rows))
    monkeypatch.setattr(script, "alone", rows.get)
    page = tmp_path / "architectures.md"
    page.write_text("# Words\n\n<!-- made by: python benchmarks/architectures.py -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(script, "REPORT", page)
    monkeypatch.setattr(sys, "argv", ["architectures.py"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 1
    assert "wrong by 2.1" in capsys.readouterr().out
    written = page.read_text(encoding="utf-8")
    assert written.startswith("# Words\n\n<!-- made by")
    assert "old" not in written
    assert "2 architectures in 2 rows: 1 packed, 1 wrong or failing." in written
    assert "| llama | LlamaForCausalLM | packed |  | 1e-05 | 0 |" in written
    assert "| opt | OPTForCausalLM | **long rows: wrong by 2.1** |" in written
    assert "| LORA on gpt2 | packed |  | 0 | 0 | 0 |" in written
