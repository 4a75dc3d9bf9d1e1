"""Arguments that would be ignored, or make the model another than its reference, are refused; others are honoured."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from transformers import TrainingArguments

from minipo.compatibility.arguments import check_arguments
from minipo.experiments.models import load_model
from minipo.trainers import PreferenceTrainer, SFTTrainer

ROWS = [{"prompt": "Heat,", "chosen": " Fox", "rejected": [" Glass", " Heat"]}] * 3


@dataclass
class DPOConfig(TrainingArguments):
    """As TRL's, which is not installed for the tests."""

    beta: float = 0.1
    loss_type: list[str] = field(default_factory=lambda: ["sigmoid"])
    label_smoothing: float = 0.0
    max_length: int | None = 1024
    precompute_ref_log_probs: bool = False


@dataclass
class CPOConfig(TrainingArguments):
    beta: float = 0.1


DPOConfig.__module__, CPOConfig.__module__ = "trl.trainer.dpo_config", "trl.experimental.cpo.cpo_config"


def trainer(folder, args=TrainingArguments, kind=PreferenceTrainer, keywords=None, **settings):
    model, tokenizer = load_model("pocket-gpt2", items=["Fox", "Glass", "Heat"])
    args = args(str(folder), max_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no", **settings)
    return kind(model, args, ROWS, processing_class=tokenizer, **(keywords or {}))


REFUSED = [
    (
        {"label_smoothing_factor": 0.1},
        r"args\.label_smoothing_factor is 0\.1, which is not supported; leave it at 0\.0",
    ),
    (
        {"train_sampling_strategy": "group_by_length"},
        r"args\.train_sampling_strategy is 'group_by_length', which is not",
    ),
    ({"data_seed": 3}, r"args\.data_seed is 3, which is not supported; leave it at None"),
    ({"bf16_full_eval": True}, r"args\.bf16_full_eval is True"),
    ({"use_liger_kernel": True}, r"args\.use_liger_kernel is True"),
    ({"fp16": True}, r"args\.fp16 is for GPUs, and on a CPU the Trainer would train in float32; leave it out"),
    (
        {"keywords": {"compute_metrics": print}},
        r"compute_metrics is not supported, because rows, loss and metrics are mini",
    ),
    ({"keywords": {"data_collator": None}}, r"data_collator is not supported"),
]


@pytest.mark.parametrize("kind", [PreferenceTrainer, SFTTrainer])
@pytest.mark.parametrize(("settings", "sentence"), REFUSED, ids=[sentence[:14] for _, sentence in REFUSED])
def test_arguments_that_would_be_ignored(tmp_path, kind, settings, sentence):
    with pytest.raises(ValueError, match="^" + sentence):
        trainer(tmp_path, kind=kind, **settings)


def test_noise_in_the_embeddings_is_not_in_the_reference(tmp_path):
    with pytest.raises(
        ValueError, match=r"^args\.neftune_noise_alpha is 5\.0, which is not supported; leave it at None"
    ):
        trainer(tmp_path, neftune_noise_alpha=5.0)
    check_arguments(TrainingArguments(str(tmp_path), neftune_noise_alpha=5.0), {}, "SFTConfig")


@pytest.mark.parametrize(
    ("settings", "keywords", "sentence"),
    [
        ({}, {}, r"args\.beta is 0\.1 and the trainer's beta 1\.0; give the trainer beta=0\.1"),
        ({}, {"beta": 0.2}, r"args\.beta is 0\.1 and the trainer's beta 0\.2"),
        (
            {"label_smoothing": 0.1},
            {"beta": 0.1},
            r"args\.label_smoothing is 0\.1, which is not supported; leave it at 0",
        ),
        (
            {"loss_type": ["ipo"]},
            {"beta": 0.1},
            r"args\.loss_type is \['ipo'\], which is not supported; leave it at \['s",
        ),
        (
            {"max_length": 2},
            {"beta": 0.1},
            r"Row 0 needs \d+ tokens .*, more than the 2 of the model's context or of args\.",
        ),
    ],
)
def test_a_config_of_trl_is_honoured_or_refused(tmp_path, settings, keywords, sentence):
    with pytest.raises(ValueError, match="^" + sentence):
        trainer(tmp_path, DPOConfig, keywords=keywords, **settings)


def test_a_config_of_trl_that_says_the_same(tmp_path):
    config = trainer(tmp_path, DPOConfig, keywords={"beta": 0.1}, precompute_ref_log_probs=True)
    plain = trainer(tmp_path, keywords={"beta": 0.1})
    np.testing.assert_array_equal(config.reference, plain.reference)
    assert config.train().training_loss == plain.train().training_loss


@pytest.mark.parametrize(("kind", "args"), [(PreferenceTrainer, CPOConfig), (SFTTrainer, DPOConfig)])
def test_a_config_for_another_trainer(tmp_path, kind, args):
    with pytest.raises(
        ValueError, match=rf"^args is of TRL's {args.__name__}, for another trainer; give TrainingArguments or "
    ):
        trainer(tmp_path, args, kind)
