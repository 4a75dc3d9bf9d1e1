"""What a step of SFT and of preference training does, and that seeds, resumption and accumulation do not change it."""

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain

import numpy as np
import pytest
import torch
from peft import BOFTConfig, LoHaConfig, LoKrConfig, LoraConfig, PveraConfig, get_peft_model
from transformers import (
    EarlyStoppingCallback,
    FalconConfig,
    FalconForCausalLM,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PersimmonConfig,
    PersimmonForCausalLM,
    TrainerCallback,
    TrainingArguments,
)

import minipo.trainers
from minipo import reference
from minipo.compatibility.architectures import disable_dropout
from minipo.compatibility.formats import preference_answers
from minipo.dynamic import DynamicPO
from minipo.evaluation import report
from minipo.experiments.arguments import last_checkpoint, training_arguments
from minipo.experiments.datasets.splits import Interaction
from minipo.experiments.models import add_lora, load_model
from minipo.experiments.users import preference_rows, score
from minipo.extensions import beta_dpo, simpo
from minipo.preference import preference_loss, preference_push
from minipo.reference import fingerprint
from minipo.rows import TokenRows, Visits, token_rows
from minipo.scoring import candidate_logps, pack, packed_logps
from minipo.trainers import COMPLETE, PreferenceTrainer, SFTTrainer, mean_logps

# Names of one to five tokens, so that a mean over tokens is no mean over users.
NAMES = ("Fox", "Neon Fox", "Iron Lark", "Glass", "Velvet Tiger At Large", "Redemption, The (1994)", "Heat", "Amélie")


def ragged_users(count=11):
    """Users with histories of 1 to 4 items and 2 to 4 negatives."""
    random = np.random.default_rng(3)
    users = []
    for number in range(count):
        items = [str(name) for name in random.permutation(NAMES)]
        users.append(
            Interaction(
                number, tuple(items[: 1 + number % 4]), items[4], tuple(items[3 + number % 2 :][: 3 + number % 3])
            )
        )
    return users


USERS = ragged_users()
ROWS = preference_rows(USERS)


def model_for(name="pocket-gpt2", lora=False, seed=0):
    """A pocket model whose weights are large enough for attention to matter."""
    model, tokenizer = load_model(name, items=NAMES, seed=seed)
    disable_dropout(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return (add_lora(model) if lora else model), tokenizer


def settings(folder, steps=1, batch_size=4, accumulation=1, learning_rate=1e-3, seed=0, **others):
    return training_arguments(
        folder, steps=steps, batch_size=batch_size, accumulation=accumulation, learning_rate=learning_rate, seed=seed,
        progress=False, **({"save_strategy": "no"} | others),
    )  # fmt: skip


def sft_trainer(folder, whole_line=True, model=None, callbacks=None, rows=ROWS, **others):
    model, tokenizer = model or model_for()
    return SFTTrainer(
        model, settings(folder, **others), rows, processing_class=tokenizer, whole_line=whole_line, callbacks=callbacks
    )


OWN = ("objective", "negatives", "beta", "dynamic", "reference_cache", "peft_config", "callbacks", "eval_dataset")


def preference_trainer(folder, model=None, rows=ROWS, **others):
    model, tokenizer = model or model_for()
    own = {name: others.pop(name) for name in OWN if name in others}
    own = {"negatives": 3, "eval_dataset": rows} | own
    return PreferenceTrainer(model, settings(folder, **others), rows, processing_class=tokenizer, **own)


TRAINERS = {"sft": sft_trainer, "preference": preference_trainer}


class KeepGradients(TrainerCallback):
    """The gradients of every step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.steps.append(
            {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        )


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def visited(trainer, monkeypatch):
    """The (row, columns) of every micro-batch that training asks for, as it asks."""
    seen, collate = [], type(trainer).collate
    monkeypatch.setattr(type(trainer), "collate", lambda self, visits: seen.append(visits) or collate(self, visits))
    trainer.data_collator = trainer.collate
    trainer.train()
    return [[(row, columns.tolist()) for row, columns in visits] for visits in seen]


# Which rows a step sees


def some_rows(counts, **others):
    """Rows with so many answers each; what the answers are does not matter here."""
    ids = np.array([1, 2])
    return TokenRows([ids] * len(counts), [[ids] * count for count in counts], **others)


def test_an_epoch_shows_every_row_once_in_an_order_of_its_own():
    visits = Visits(10, seed=1)
    epochs = []
    for epoch in range(3):
        visits.set_epoch(epoch)
        epochs.append(list(visits))
        assert epochs[-1] == list(visits) == [(epoch, row) for row in visits.order(epoch)]
    assert all(sorted(row for _, row in epoch) == list(range(10)) for epoch in epochs)
    orders = [[row for _, row in epoch] for epoch in epochs]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert len(visits) == 10
    assert [row for _, row in Visits(10, seed=2)] != orders[0]


def test_a_visit_is_the_chosen_answer_and_distinct_negatives():
    rows = some_rows([20] * 10, negatives=19)
    for row in range(10):
        found, columns = rows[3, row]
        assert found == row
        assert columns[0] == 0
        assert sorted(columns[1:]) == list(range(1, 20))


@pytest.mark.parametrize(("negatives", "expected"), [(None, [1, 3, 7]), (3, [1, 3, 3]), (1, [1, 1, 1]), (9, [1, 3, 7])])
def test_a_row_uses_what_it_has(negatives, expected):
    rows = some_rows([2, 4, 8], negatives=negatives)
    drawn = [rows[0, row][1][1:] for row in range(3)]
    assert [len(columns) for columns in drawn] == expected
    assert all(len(set(columns)) == len(columns) for columns in drawn)
    assert some_rows([1])[0, 0][1].tolist() == [0]


def test_fewer_negatives_are_the_first_of_more():
    few, many, all_of_them = (some_rows([20] * 10, negatives=number, seed=2) for number in (5, 15, None))
    for epoch in range(3):
        for row in range(10):
            assert few[epoch, row][1].tolist() == many[epoch, row][1][:6].tolist()
            assert many[epoch, row][1].tolist() == all_of_them[epoch, row][1][:16].tolist()


def test_negatives_change_with_row_epoch_and_seed():
    rows, other = (some_rows([20] * 10, negatives=5, seed=seed) for seed in (0, 1))
    drawn = [[tuple(rows[epoch, row][1]) for epoch in range(3)] for row in range(10)]
    assert all(len(set(epochs)) == 3 for epochs in drawn)
    assert len({epochs[0] for epochs in drawn}) == 10
    assert all(tuple(other[0, row][1]) != drawn[row][0] for row in range(10))
    assert tuple(rows[1, 4][1]) == drawn[4][1]  # whatever was asked before


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_epochs_and_steps_mean_what_they_mean_to_the_trainer(kind, accumulation, tmp_path, monkeypatch):
    by_epochs = TRAINERS[kind](tmp_path, steps=-1, num_train_epochs=2, accumulation=accumulation)
    batches = visited(by_epochs, monkeypatch)
    monkeypatch.undo()
    rows = [row for batch in batches for row, _ in batch]
    assert sorted(rows[:11]) == sorted(rows[11:]) == list(range(11))
    assert rows[:11] != rows[11:]
    assert (by_epochs.state.global_step, by_epochs.state.epoch) == (6, 2)  # 4 rows, 4, and 3, twice
    by_steps = TRAINERS[kind](tmp_path, steps=4, accumulation=accumulation)
    batches = visited(by_steps, monkeypatch)
    assert [row for batch in batches for row, _ in batch][:15] == rows[:15]
    assert by_steps.state.epoch == pytest.approx(1 + 1 / 3)


def test_runs_at_different_k_see_the_same_rows(tmp_path, monkeypatch):
    few, many = (
        list(chain.from_iterable(visited(preference_trainer(tmp_path, negatives=number, steps=5), monkeypatch)))
        for number in (1, 3)
    )
    assert [row for row, _ in few] == [row for row, _ in many]
    assert all(columns == more[:2] for (_, columns), (_, more) in zip(few, many, strict=True))


def test_rows_given_as_token_ids_are_visited_as_rows_of_text_are(tmp_path, monkeypatch):
    ids = token_rows(model_for()[1], ROWS, preference_answers)
    text, same = (
        visited(preference_trainer(tmp_path, rows=rows, negatives=2, steps=5, seed=7), monkeypatch)
        for rows in (ROWS, ids)
    )
    assert same == text
    assert {len(columns) for batch in same for _, columns in batch} <= {2, 3}


@pytest.mark.parametrize("negatives", [0, -1])
def test_no_negatives(negatives, tmp_path):
    with pytest.raises(
        ValueError, match=rf"^negatives is {negatives}: give at least 1, or None for all that a row has"
    ):
        preference_trainer(tmp_path, negatives=negatives)


# From rows to tokens


def test_rows_are_prompt_and_answers_with_their_end():
    _, tokenizer = model_for()
    rows = token_rows(tokenizer, ROWS, preference_answers)
    for user, prompt, answers in zip(USERS, rows.prompts, rows.answers, strict=True):
        assert prompt.tolist() == tokenizer(", ".join(user.history) + ",")["input_ids"]
        expected = [[*tokenizer(" " + item)["input_ids"], tokenizer.eos_token_id] for item in user.canonical]
        assert [answer.tolist() for answer in answers] == expected
    assert rows.width == 5
    assert rows.counts.tolist() == [len(user.candidates) for user in USERS]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": ""}, r"Row 1: the prompt tokenizes to nothing; give it a word\."),
        (
            {"prompt": "Heat," * 20},
            r"Row 1 needs \d+ tokens \(prompt \d+, longest answer 1\), more than the 8 of the model's context or of a",
        ),
        ({"rejected": []}, r"Row 1: there is no rejected answer; leave the row out, or give it one\."),
    ],
)
def test_a_row_that_is_refused_is_named(row, sentence):
    _, tokenizer = model_for()
    rows = [{"prompt": "Heat,", "chosen": " Fox", "rejected": [" Glass"]}]
    with pytest.raises(ValueError, match="^" + sentence) as raised:
        token_rows(tokenizer, [*rows, rows[0] | row], preference_answers, 8)
    assert "\n" not in str(raised.value)


# What a step computes


@pytest.mark.parametrize("whole_line", [True, False])
@pytest.mark.parametrize("name", ["pocket-gpt2", "pocket-qwen2"])
def test_sft_loss_is_transformers_own(name, whole_line, tmp_path):
    model, tokenizer = model_for(name)
    trainer = sft_trainer(tmp_path, whole_line, model=(model, tokenizer))
    visits = [(user, np.array([0])) for user in (0, 1, 2, 3, 7)]
    ids, labels = [], []
    for user, _ in visits:
        prompt = tokenizer(", ".join(USERS[user].history) + ",")["input_ids"]
        answer = [*tokenizer(" " + USERS[user].chosen)["input_ids"], tokenizer.eos_token_id]
        ids.append(prompt + answer)
        labels.append((prompt if whole_line else [-100] * len(prompt)) + answer)
    width = max(map(len, ids))
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in ids])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in labels])
    seen = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    expected = model(input_ids=padded, attention_mask=seen, labels=labels).loss.item()
    found = trainer.compute_loss(model, trainer.collate(visits))
    assert found.item() == pytest.approx(expected, rel=1e-5)
    rows = [ROWS[user] for user, _ in visits]
    assert trainer.evaluate(rows) == {"eval_loss": pytest.approx(expected, rel=1e-5), "epoch": 0}


def by_hand(trainer, visits):
    """policy, reference, mask, lengths of the visits, each row scored alone."""
    model, tokenizer = trainer.model, trainer.processing_class
    width = max(len(columns) for _, columns in visits)
    found = {name: torch.zeros(len(visits), width) for name in ("policy", "reference", "lengths")}
    mask = torch.zeros(len(visits), width - 1, dtype=torch.bool)
    for place, (row, columns) in enumerate(visits):
        items = [" " + USERS[row].canonical[column] for column in columns]
        (logps,) = candidate_logps(model, tokenizer, [ROWS[row]["prompt"]], [items])
        found["policy"][place, : len(columns)] = logps
        found["reference"][place, : len(columns)] = torch.from_numpy(trainer.reference[row, columns])
        found["lengths"][place, : len(columns)] = torch.tensor(
            [len(tokenizer(item)["input_ids"]) + 1 for item in items]
        )
        mask[place, : len(columns) - 1] = True
    return found | {"mask": mask}


def hinge(margins, used):
    """An objective of one's own."""
    return (2 - margins).clamp(min=0).masked_fill(~used, 0).sum(1) / used.sum(1)


def weakest(logps):
    """A selection rule of one's own: the lowest negative."""
    negatives = logps[:, 1:].masked_fill(logps[:, 1:].isneginf(), math.inf)
    return negatives == negatives.amin(1, keepdim=True)


@pytest.mark.parametrize(
    ("objective", "dynamic"),
    [
        ("dpo", None),
        ("dmpo", None),
        ("sdpo", None),
        ("mppo", None),
        ("simpo", None),
        (simpo(1.5), DynamicPO()),
        (beta_dpo(keep=1), None),
        ("dmpo", DynamicPO(margin=2.0)),
        ("mppo", DynamicPO()),
        (hinge, None),
        (hinge, DynamicPO(select=weakest)),
    ],
)
def test_preference_loss_and_pushes_are_those_computed_by_hand(objective, dynamic, tmp_path):
    trainer = preference_trainer(tmp_path, steps=3, objective=objective, dynamic=dynamic, negatives=None)
    with torch.no_grad():  # away from the reference
        for parameter in trainer.model.parameters():
            parameter.mul_(0.9)
    visits = [trainer.train_dataset[0, row] for row in range(6)]
    arguments = by_hand(trainer, visits) | {"dynamic": dynamic}
    assert not arguments["mask"].all()  # ragged
    expected = preference_loss(objective, **arguments)

    trainer.model.train()
    found = trainer.compute_loss(trainer.model, trainer.collate(visits))
    assert found.item() == pytest.approx(expected.losses.mean().item(), rel=1e-4)

    push, mask = preference_push(objective, **arguments).push, arguments["mask"]
    trainer.log(logs := {"loss": 1.0})
    policy = arguments["policy"]
    assert logs["logp_chosen"] == pytest.approx(policy[:, 0].mean().item(), rel=1e-4)
    assert logs["logp_rejected"] == pytest.approx(policy[:, 1:][mask].mean().item(), rel=1e-4)
    ratio = policy - arguments["reference"]
    margins = (ratio[:, :1] - ratio[:, 1:])[mask]
    assert logs["pair_loss"] == pytest.approx(-torch.nn.functional.logsigmoid(margins).mean().item(), rel=1e-4)
    assert logs["boundary_share"] == pytest.approx(expected.boundary[mask].float().mean().item())
    assert 0 < logs["boundary_share"] < 1
    assert logs["push_boundary"] == pytest.approx(push[expected.boundary].mean().item(), rel=1e-3, abs=1e-6)
    outside = push[mask & ~expected.boundary].mean().item()
    assert logs["push_discriminative"] == pytest.approx(outside, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"objective": "dmop"}, r"Unknown objective 'dmop'\. Did you mean"),
        ({"beta": -1.0}, r"beta is -1\.0: give a finite number above 0"),
        ({"objective": "beta-dpo", "dynamic": DynamicPO()}, r"beta-dpo chooses pairs and their strength"),
        ({"objective": lambda margins, used: margins.mean()}, r"The objective returned torch\.float32 of shape \(\)"),
        ({"dynamic": DynamicPO(select=lambda logps: logps > 0)}, r"The selection rule returned .* of shape \(2, 3\)"),
    ],
)
def test_wrong_settings_show_before_anything_is_computed(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(minipo.trainers, "packed_logps", None)
    with pytest.raises(ValueError, match="^" + sentence):
        preference_trainer(tmp_path, **arguments)


def test_one_device_at_a_time(tmp_path):
    model, tokenizer = model_for()
    arguments = settings(tmp_path)
    arguments._n_gpu = 2
    with pytest.raises(
        ValueError, match=r"^Training runs on one device and here are 2; choose one, as with CUDA_VISIBLE"
    ):
        SFTTrainer(model, arguments, ROWS, processing_class=tokenizer)


@pytest.mark.parametrize("name", ["pocket-gpt2", "pocket-qwen2"])
@pytest.mark.parametrize("lora", [False, True])
def test_dropout_is_off_in_preference_training(name, lora, tmp_path):
    model, tokenizer = load_model(name, items=NAMES)
    model.train()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    prompts, texts = ["Neon Fox, Heat, Glass,"], [[" Fox", " Iron Lark"]]
    before = [candidate_logps(model, tokenizer, prompts, texts) for _ in range(2)]
    assert not torch.equal(*before)  # there was dropout to turn off
    adapters = LoraConfig(lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    trainer = preference_trainer(tmp_path, model=(model, tokenizer), peft_config=adapters)
    for weight in trainer.model.parameters():
        weight.data.add_(0.01)  # adapters that add something
    trainer.model.train()
    policy = [candidate_logps(trainer.model, tokenizer, prompts, texts) for _ in range(2)]
    trainer.model.eval()
    assert torch.equal(*policy)
    assert torch.equal(policy[0], candidate_logps(trainer.model, tokenizer, prompts, texts))


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
NOISY = {
    # Numbers of the layers, in the configuration asked in each forward, a router's jitter, layers left out.
    "persimmon": lambda size: PersimmonForCausalLM(
        PersimmonConfig(vocab_size=size, intermediate_size=32, hidden_dropout=0.5, attention_dropout=0.5, **SMALL)
    ),
    "falcon": lambda size: FalconForCausalLM(FalconConfig(vocab_size=size, hidden_dropout=0.5, **SMALL)),
    "mixtral": lambda size: MixtralForCausalLM(
        MixtralConfig(vocab_size=size, intermediate_size=32, num_key_value_heads=4, router_jitter_noise=0.5, **SMALL)
    ),
    "opt": lambda size: OPTForCausalLM(
        OPTConfig(vocab_size=size, ffn_dim=32, word_embed_proj_dim=32, dropout=0.5, layerdrop=0.5, **SMALL)
    ),
}
ADAPTERS = {
    "loha": LoHaConfig(r=4, rank_dropout=0.5, module_dropout=0.5, target_modules=["q_proj"]),
    "lokr": LoKrConfig(r=4, rank_dropout=0.5, module_dropout=0.5, target_modules=["q_proj"]),
    "boft": BOFTConfig(boft_block_size=4, boft_dropout=0.5, target_modules=["q_proj"]),
}


@pytest.mark.parametrize("name", [*NOISY, *ADAPTERS])
def test_every_kind_of_dropout_is_off(name):
    model, tokenizer = model_for("pocket-qwen2")
    torch.manual_seed(0)
    model = NOISY[name](len(tokenizer)) if name in NOISY else get_peft_model(model, ADAPTERS[name])
    for weight in model.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight))
    saved, batch = model.config.to_json_string(), pack(tokenizer, ["Neon Fox, Heat,"], [[" Fox", " Iron Lark"]])

    def scores():
        with torch.no_grad():
            return packed_logps(model, batch)

    expected = scores() if not model.training else (model.eval(), scores())[1]
    model.train()
    assert any(not torch.equal(scores(), expected) for _ in range(8))  # there was something to turn off
    disable_dropout(model)
    assert all(torch.equal(scores(), expected) for _ in range(8))
    assert model.config.to_json_string() == saved


class Draws(GPT2LMHeadModel):
    def forward(self, *arguments, **others):
        output = super().forward(*arguments, **others)
        if self.training:
            output.logits = output.logits * (1 + torch.rand(()))
        return output


def test_a_model_that_still_draws_in_training_is_refused_by_name(tmp_path):
    model, tokenizer = model_for()
    model.__class__ = Draws
    with pytest.raises(ValueError, match=r"^This gpt2 model still draws at random in training: .* nats"):
        preference_trainer(tmp_path, model=(model, tokenizer))
    with pytest.raises(ValueError, match=r"^This qwen2 model with an adapter of type PVERA still draws"):
        preference_trainer(tmp_path, model_for("pocket-qwen2"), peft_config=PveraConfig(target_modules=["q_proj"]))


# The reference


@pytest.mark.parametrize("comes_with_it", [False, True])
def test_the_reference_of_an_adapter_that_begins_anywhere_stays_to_the_bit_through_a_resume(comes_with_it, tmp_path):
    adapters = LoraConfig(init_lora_weights=False, target_modules=["c_attn"], fan_in_fan_out=True)
    torch.manual_seed(0)

    def begin(**others):
        model, tokenizer = model_for()
        given = {"model": (get_peft_model(model, adapters), tokenizer)} if comes_with_it else {"peft_config": adapters}
        with pytest.warns(UserWarning, match="reference is the model with it") if comes_with_it else nullcontext():
            return preference_trainer(tmp_path, save_strategy="steps", save_steps=1, **given, **others)

    straight = begin(steps=2)
    base = score(*model_for(), USERS)
    assert (straight.validation_reference == pytest.approx(base, abs=1e-4)) != comes_with_it
    policy = straight.score(ROWS)
    assert np.abs(policy - base)[np.isfinite(base)].max() > 0.1  # the adapter is not the identity
    reference, validation = straight.reference, straight.validation_reference
    visited = ~np.isnan(reference)
    straight.train()

    resumed = begin(steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert np.array_equal(resumed.reference[visited], reference[visited])
    assert np.array_equal(resumed.validation_reference, validation)


def test_a_checkpoint_is_resumed_with_its_own_model_and_rows(tmp_path):
    preference_trainer(tmp_path, save_strategy="steps", save_steps=1).train()
    other = preference_trainer(tmp_path, steps=2, model=model_for(seed=1))
    with pytest.raises(ValueError, match=r"checkpoint-1 belongs to another model: .* nats"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    other = preference_trainer(tmp_path, steps=2, rows=ROWS[1:])
    with pytest.raises(ValueError, match=r"checkpoint-1 was written while training on other train rows"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_before_the_first_step_policy_and_reference_are_one(lora, bf16, tmp_path):
    trainer = preference_trainer(tmp_path, steps=3, model=model_for(lora=lora), bf16=bf16)
    metrics = trainer.evaluate()
    assert metrics["eval_pair_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["eval_reward_win_rate"] == 0
    visits = [trainer.train_dataset[0, row] for row in range(8)]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = trainer.compute_loss(trainer.model.eval(), trainer.collate(visits))
    assert loss.item() == pytest.approx(math.log(2), abs=0.2 if bf16 else 1e-5)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("builds", [False, True])
def test_rows_are_padded_to_few_shapes_where_kernels_are_built_for_each(builds, bf16, tmp_path, monkeypatch):
    monkeypatch.setattr(minipo.trainers, "builds_kernels", lambda: builds)
    trainer = preference_trainer(tmp_path, bf16=bf16)
    packs = [trainer.pack(trainer.train_dataset, [trainer.train_dataset[0, row]])["groups"] for row in range(8)]
    lengths = {group["input_ids"].shape[1] % 8 for groups in packs for group in groups}
    assert (lengths == {0}) == (builds and bf16)


def test_the_reference_is_the_model_on_entry(tmp_path):
    model, tokenizer = model_for(lora=True)
    for name, weight in model.named_parameters():  # an adapter that has been trained is part of it
        if "lora_B" in name:
            weight.data.normal_(generator=torch.Generator().manual_seed(0))
    expected = score(model, tokenizer, USERS)
    with pytest.warns(UserWarning, match="an adapter that changes log-probs .* the reference is the model with it"):
        trainer = preference_trainer(tmp_path, model=(model, tokenizer), steps=3)
    assert trainer.reference == pytest.approx(expected, abs=1e-4)
    assert trainer.validation_reference == pytest.approx(expected, abs=1e-4)
    assert trainer.reference_logps(ROWS[3:]) == pytest.approx(expected[3:], abs=1e-4)
    trainer.train()
    assert trainer.reference == pytest.approx(expected, abs=1e-4)
    after = trainer.score(ROWS)
    assert after == pytest.approx(score(trainer.model, tokenizer, USERS), abs=1e-4)
    present = np.isfinite(expected)
    assert np.abs(after[present] - expected[present]).max() > 0.01
    with pytest.raises(
        ValueError, match=r"^The model has been trained and is no longer the reference; call this before"
    ):
        trainer.reference_logps(ROWS)


@pytest.fixture
def scored(monkeypatch):
    """How many rows the trainers score, as they do it."""
    rows, logps = [], minipo.trainers._RowTrainer.logps

    def counting(self, *arguments):
        for batch, scores in logps(self, *arguments):
            rows.extend(batch.tolist())
            yield batch, scores

    monkeypatch.setattr(minipo.trainers._RowTrainer, "logps", counting)
    return rows


@pytest.mark.parametrize(
    ("length", "rows"),
    [
        ({"steps": 1}, 4),
        ({"steps": 2, "accumulation": 2}, 8),
        ({"steps": 3}, 11),
        ({"steps": 50}, 11),
        ({"steps": -1, "num_train_epochs": 0.3}, 4),
        ({"steps": -1, "num_train_epochs": 1}, 11),
    ],
)
def test_only_rows_that_training_visits_get_a_reference(length, rows, scored, tmp_path):
    trainer = preference_trainer(tmp_path, eval_dataset=None, **length)
    computed = np.isfinite(trainer.reference).any(1)
    assert len(scored) == len(set(scored)) == rows
    assert set(np.flatnonzero(computed)) == set(scored)
    present = np.arange(trainer.train_dataset.width) < trainer.train_dataset.counts[:, None]
    assert (np.isneginf(trainer.reference) != present)[computed].all()
    trainer.train()  # asks for no other
    assert trainer.state.global_step


def test_the_reference_is_computed_once_for_a_model_and_its_rows(scored, tmp_path):
    cache = tmp_path / "cache"
    first = preference_trainer(tmp_path, reference_cache=cache, eval_dataset=None, steps=2).reference
    assert len(scored) == 8
    # More steps, another seed, K, objective and a new adapter need the same log-probs, and the rows that were left.
    second = preference_trainer(
        tmp_path, reference_cache=cache, steps=30, seed=4, negatives=1, objective="sdpo", model=model_for(lora=True)
    )
    assert np.array_equal(first[scored[:8]], second.reference[scored[:8]])
    assert sorted(scored) == list(range(11))  # and validation asks for the rows of training here
    assert second.reference == pytest.approx(score(*model_for(), USERS), abs=1e-4)
    assert len(list(cache.glob("*.npy"))) == 1


def trained_adapter():
    model, tokenizer = model_for(lora=True)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.add_(0.01)
    return model, tokenizer


@pytest.mark.parametrize(
    "other",
    [
        {"model": lambda: model_for(seed=1)},
        {"model": trained_adapter},
        {"rows": lambda: ROWS[:-1]},
        {"rows": lambda: [*ROWS[:-1], ROWS[-1] | {"prompt": "Heat,"}]},
        {"rows": lambda: [*ROWS[:-1], ROWS[-1] | {"rejected": ROWS[-1]["rejected"][::-1]}]},
        {"bf16": lambda: True},
    ],
)
def test_another_model_other_rows_or_precision_have_their_own_reference(other, scored, tmp_path):
    cache = tmp_path / "cache"
    assert len(preference_trainer(tmp_path, reference_cache=cache, eval_dataset=None, steps=30).reference) == 11
    before = len(scored)
    other = {name: value() for name, value in other.items()}
    found = preference_trainer(tmp_path, reference_cache=cache, eval_dataset=None, steps=30, **other).reference
    assert len(scored) == before + len(found)
    assert len(list(cache.glob("*.npy"))) == 2


def test_fingerprints():
    plain = fingerprint(model_for()[0])
    assert fingerprint(model_for(lora=True)[0]) == plain
    two = [trained_adapter()[0] for _ in range(2)]
    assert fingerprint(two[0]) == fingerprint(two[1]) != plain
    two[1].peft_config["default"].lora_alpha = 3
    assert fingerprint(two[0]) != fingerprint(two[1])
    model = model_for()[0]
    model.config.layer_norm_epsilon = 1e-3
    assert fingerprint(model) != plain
    assert fingerprint(model_for()[0].bfloat16()) != plain


@pytest.mark.parametrize("damage", [b"", b"no array", "half", "another shape", "another type"])
def test_a_damaged_reference_is_computed_again(damage, scored, tmp_path):
    cache = tmp_path / "cache"
    expected = preference_trainer(tmp_path, reference_cache=cache, eval_dataset=None, steps=30).reference
    (path,) = cache.glob("*.npy")
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    elif damage == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        np.save(path, expected[:-1] if damage == "another shape" else expected.astype(np.float64))
    again = preference_trainer(tmp_path, reference_cache=cache, eval_dataset=None, steps=30).reference
    assert np.array_equal(again, expected)
    assert len(scored) == 22
    assert np.array_equal(np.load(path), expected)


def test_a_reference_that_was_cut_off_goes_on(scored, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    arguments = {"reference_cache": cache, "eval_dataset": None, "steps": 30, "per_device_eval_batch_size": 2}
    logps = minipo.trainers._RowTrainer.logps

    def killed(self, *arguments):
        for number, part in enumerate(logps(self, *arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(reference, "SAVE_EVERY", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(minipo.trainers._RowTrainer, "logps", killed)
        with pytest.raises(KeyboardInterrupt):
            preference_trainer(tmp_path, **arguments).train()
    (path,) = cache.glob("*.npy")
    known = np.flatnonzero(~np.isnan(np.load(path)).any(1)).tolist()
    assert sorted(known) == sorted(scored[:6])
    del scored[:]
    trainer = preference_trainer(tmp_path, **arguments)
    assert trainer.reference == pytest.approx(score(*model_for(), USERS), abs=1e-4)
    assert sorted(scored + known) == list(range(11))


def test_two_that_need_the_same_reference_compute_it_once(scored, tmp_path):
    trainers = [preference_trainer(tmp_path, reference_cache=tmp_path / "cache", steps=1) for _ in range(2)]
    del scored[:]
    rows = ROWS[2:]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda trainer: trainer.reference_logps(rows), trainers))
    assert np.array_equal(*found)
    assert sorted(scored) == list(range(9))


# Evaluation


def test_evaluation_of_ragged_rows(tmp_path):
    trainer = preference_trainer(tmp_path, steps=4, evaluate_every=2)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "eval_hr@1" in line]
    assert [line["step"] for line in lines] == [2, 4]
    scores, reference = (score(model, trainer.processing_class, USERS) for model in (trainer.model, model_for()[0]))
    expected = report(scores, reference)
    for name, value in expected.metrics.items():
        assert lines[-1][f"eval_{name}"] == pytest.approx(value, abs=1e-4)
    assert trainer.validation_report.scores == pytest.approx(scores, abs=1e-4)
    assert trainer.validation_report.ranks.tolist() == expected.ranks.tolist()
    others = trainer.evaluate(ROWS[:4], metric_key_prefix="test")  # no reference is known of these
    assert others == {f"test_{name}": value for name, value in report(scores[:4]).metrics.items()} | {
        "epoch": pytest.approx(1 + 1 / 3)
    }


def test_nothing_to_evaluate(tmp_path):
    trainer = preference_trainer(tmp_path, eval_dataset=None)
    with pytest.raises(ValueError, match=r"^There are no rows to evaluate: give eval_dataset\.$"):
        trainer.evaluate()


def test_what_users_of_the_trainer_expect(tmp_path):
    """TrainingArguments of one's own: epochs, evaluation and checkpoints by epoch, the best model, early stopping."""
    model, tokenizer = model_for()
    arguments = TrainingArguments(
        str(tmp_path), num_train_epochs=6, per_device_train_batch_size=4, learning_rate=1e-2, seed=1, use_cpu=True,
        eval_strategy="epoch", save_strategy="epoch", logging_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="pair_loss", greater_is_better=False, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = PreferenceTrainer(
        model, arguments, ROWS, ROWS, processing_class=tokenizer, callbacks=[EarlyStoppingCallback(2)]
    )
    trainer.train()
    history = [line for line in trainer.state.log_history if "eval_pair_loss" in line]
    assert [line["epoch"] for line in history] == list(range(1, 1 + len(history)))
    best = min(line["eval_pair_loss"] for line in history)
    assert trainer.state.best_metric == pytest.approx(best)
    assert trainer.evaluate()["eval_pair_loss"] == pytest.approx(best, abs=1e-5)
    assert all("pair_loss" in line for line in trainer.state.log_history if "loss" in line)


def test_sft_evaluates_its_rows(tmp_path):
    model, tokenizer = model_for()
    trainer = SFTTrainer(
        model, settings(tmp_path, steps=20, evaluate_every=10, learning_rate=1e-2), ROWS, ROWS[:5],
        processing_class=tokenizer,
    )  # fmt: skip
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    seen = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert len(seen) == 2
    assert seen[1] < seen[0] < before


# What training comes to


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("batches", [2, 4])
def test_gradient_accumulation_gives_the_gradients_of_one_batch(kind, batches, tmp_path):
    # Neither clipping nor Adam may hide a factor: the gradients themselves are compared, of an epoch, whose last step
    # has fewer rows and so micro-batches of different sizes.
    found = []
    for accumulation in (1, batches):
        keep = KeepGradients()
        trainer = TRAINERS[kind](
            tmp_path, steps=3, batch_size=4, accumulation=accumulation, max_grad_norm=0.0, callbacks=[keep],
            logging_steps=1, learning_rate=1e-7,
        )  # fmt: skip
        trainer.train()
        found.append((keep.steps, [line for line in trainer.state.log_history if "loss" in line]))
    (whole, logs), (parts, logs_of_parts) = found
    assert len(whole) == len(parts) == 3
    for gradients, gradients_of_parts in zip(whole, parts, strict=True):
        assert gradients.keys() == gradients_of_parts.keys()
        assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradients_of_parts[name], gradient, atol=2e-5, rtol=1e-4, msg=name)
    for line, line_of_parts in zip(logs, logs_of_parts, strict=True):
        assert line_of_parts == pytest.approx(line | {"epoch": line_of_parts["epoch"]}, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("kind", TRAINERS)
def test_gradient_accumulation_ends_where_one_batch_ends(kind, tmp_path):
    trainers = [TRAINERS[kind](tmp_path, steps=5, batch_size=6, accumulation=part) for part in (1, 3)]
    start = weights(trainers[0])
    for trainer in trainers:
        trainer.train()
    whole, parts = map(weights, trainers)
    moved, apart = (
        math.sqrt(sum((whole[name] - other[name]).square().sum().item() for name in whole)) for other in (start, parts)
    )
    assert moved > 0.01
    assert apart < 0.005 * moved


@pytest.mark.parametrize("kind", TRAINERS)
def test_the_seed_decides_the_weights(kind, tmp_path):
    ends = []
    for seed in (0, 0, 1):
        trainer = TRAINERS[kind](tmp_path, steps=4, seed=seed)
        trainer.train()
        ends.append(weights(trainer))
    first, again, other = ends
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("kind", "others"),
    [
        ("sft", {}),
        ("preference", {"objective": "beta-dpo"}),
        pytest.param("preference", {}, marks=pytest.mark.slow),
        pytest.param("preference", {"model": True, "accumulation": 2, "bf16": True}, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_resumes_ends_at_the_same_weights(kind, others, tmp_path):
    """From a checkpoint inside an epoch, at its end, and inside the second one: to the bit, as are the logs."""

    def end(folder, resume=None):
        lora = {"model": model_for(lora=True)} if others.get("model") else {}
        every = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "logging_steps": 1}
        trainer = TRAINERS[kind](tmp_path / folder, steps=6, **(every | others | lora))
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / "straight" / f"checkpoint-{resume}"))
        return weights(trainer), losses(trainer), trainer

    expected, logged, straight = end("straight")
    assert last_checkpoint(tmp_path / "straight") == tmp_path / "straight" / "checkpoint-6"
    for step in (2, 3, 4):
        found, again, trainer = end(f"from-{step}", step)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert again[step:] == logged[step:]
    if others.get("objective") == "beta-dpo":
        assert trainer.objective_state == straight.objective_state
        assert trainer.objective_state["deviation"] > 0


def test_beta_dpo_carries_its_running_gap_from_batch_to_batch(tmp_path):
    trainer = preference_trainer(tmp_path, steps=3, objective=beta_dpo(keep=1, momentum=0.5), negatives=None)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(0.9)
    objective, expected = beta_dpo(keep=1, momentum=0.5), None
    trainer.model.train()
    for epoch in range(2):
        visits = [trainer.train_dataset[epoch, row] for row in range(6)]
        arguments = by_hand(trainer, visits)
        output = preference_loss(objective, **arguments, state=expected)
        assert trainer.compute_loss(trainer.model, trainer.collate(visits)).item() == pytest.approx(
            output.losses.mean().item(), rel=1e-4
        )
        ratio = arguments["policy"] - arguments["reference"]
        expected = objective.after(ratio[:, :1] - ratio[:, 1:], arguments["mask"], expected)
        assert trainer.objective_state == pytest.approx(expected, abs=1e-5)
    trainer.model.eval()
    trainer.compute_loss(trainer.model, trainer.collate(visits))  # which is no step
    assert trainer.objective_state == pytest.approx(expected, abs=1e-5)


def test_training_lowers_the_loss(tmp_path):
    for train in TRAINERS.values():
        trainer = train(tmp_path, steps=20, learning_rate=3e-3)
        trainer.train()
        seen = losses(trainer)
        assert np.mean(seen[-5:]) < 0.7 * np.mean(seen[:5])


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["simpo", "beta-dpo", hinge])
def test_every_objective_trains(objective, tmp_path):
    trainer = preference_trainer(tmp_path, objective=objective, steps=60, learning_rate=3e-3)
    before = trainer.evaluate()
    trainer.train()
    assert trainer.evaluate()["eval_mrr"] > before["eval_mrr"] + 0.1


@pytest.mark.parametrize("kind", TRAINERS)
def test_training_that_diverges_says_so(kind, tmp_path):
    trainer = TRAINERS[kind](tmp_path, steps=20, learning_rate=1e30)
    with pytest.raises(
        ValueError, match=r"^Log-probs are not finite after step \d+: training diverged; choose a lower"
    ):
        trainer.train()


def test_preference_training_of_an_adapter_leaves_the_model_under_it(tmp_path):
    trainer = preference_trainer(tmp_path, steps=5, model=model_for(lora=True))
    start = weights(trainer)
    trainer.train()
    end = weights(trainer)
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed
    assert all("lora" in name for name in changed)


def test_an_evaluation_tells_log_probs_of_the_same_answers_throughout():
    reference = np.array([[-3.0, -2.0, -9.0, -8.0], [-1.0, -4.0, -4.5, -np.inf]])
    before = mean_logps(reference, reference)
    assert before == {"logp_chosen": -2.0, "logp_boundary": -3.0, "logp_discriminative": pytest.approx(-21.5 / 3)}
    after = mean_logps(reference - [[1, 9, 2, 2], [1, 1, 6, 0]], reference)  # by now, others are near the chosen item
    assert after == {"logp_chosen": -3.0, "logp_boundary": -8.0, "logp_discriminative": -10.5}


def test_every_logged_line_tells_the_pushes(tmp_path):
    rows = [row | {"rejected": row["rejected"][:2]} for row in ROWS]
    trainer = preference_trainer(tmp_path, steps=60, rows=rows)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == list(range(2, 61, 2))
    for line in lines:
        assert {"loss", "pair_loss", "learning_rate", "boundary_share"} <= line.keys()
        assert line.keys() & {"push_boundary", "push_discriminative"}
    # DMPO, before anything was learnt: 1/K by averaging times σ(0) = 1/2, for every negative alike.
    first = preference_trainer(tmp_path, steps=1, rows=rows)
    first.train()
    line = first.state.log_history[0]
    assert line["push_boundary"] == pytest.approx(1 / 4, abs=1e-5)
    assert line["push_discriminative"] == pytest.approx(1 / 4, abs=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_training_on_a_gpu_goes_the_way_of_the_cpu(lora, bf16, tmp_path):
    on_gpu, on_cpu = (
        preference_trainer(tmp_path, steps=6, model=model_for(lora=lora), bf16=bf16, logging_steps=1, use_cpu=cpu)
        for cpu in (False, True)
    )
    assert on_gpu.model.device.type == "cuda"
    present = np.arange(on_gpu.train_dataset.width) < on_gpu.train_dataset.counts[:, None]
    assert on_gpu.reference[present] == pytest.approx(on_cpu.reference[present], abs=0.5 if bf16 else 1e-3)
    for trainer in (on_gpu, on_cpu):
        assert trainer.evaluate()["eval_pair_loss"] == pytest.approx(math.log(2), abs=1e-6)
        trainer.train()
    assert losses(on_gpu) == pytest.approx(losses(on_cpu), abs=0.2 if bf16 else 1e-3)


def test_the_batch_must_fall_into_equal_parts(tmp_path):
    with pytest.raises(ValueError, match="accumulation 3 does not divide the batch of 4 users; choose a divisor"):
        settings(tmp_path, batch_size=4, accumulation=3)


def test_only_complete_checkpoints_count(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, complete in ((9, True), (10, True), (100, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if complete:
            (folder / COMPLETE).touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
