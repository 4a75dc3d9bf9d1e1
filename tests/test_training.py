"""What a step of SFT and of preference training does, and that seeds, resumption and accumulation do not change it."""

import math

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from minipo.datasets import Interaction
from minipo.dynamic import DynamicPO
from minipo.evaluation import score
from minipo.models import add_lora, load_model
from minipo.preference import preference_loss, preference_push
from minipo.scoring import candidate_logps
from minipo.training import (
    COMPLETE,
    PreferenceTrainer,
    SFTTrainer,
    UserRows,
    check_negatives,
    disable_dropout,
    last_checkpoint,
    training_arguments,
)

# Names of one to five tokens, so that a mean over tokens is no mean over users.
NAMES = ("Fox", "Neon Fox", "Iron Lark", "Glass", "Velvet Tiger At Large", "Redemption, The (1994)", "Heat", "Amélie")


def ragged_users(count=12):
    random = np.random.default_rng(3)
    users = []
    for number in range(count):
        items = [str(name) for name in random.permutation(NAMES)]
        users.append(Interaction(number, tuple(items[: 1 + number % 4]), items[4], tuple(items[3:])))
    return users


USERS = ragged_users()


def model_for(name="pocket-gpt2", lora=False, seed=0):
    """A pocket model without dropout whose weights are large enough for attention to matter."""
    model, tokenizer = load_model(name, items=NAMES, seed=seed)
    disable_dropout(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return (add_lora(model) if lora else model), tokenizer


def settings(folder, steps=1, batch_size=4, accumulation=1, learning_rate=1e-3, seed=0, **others):
    return training_arguments(
        folder, steps=steps, batch_size=batch_size, accumulation=accumulation, learning_rate=learning_rate, seed=seed,
        progress=False, save_strategy="no", **others,
    )  # fmt: skip


def sft_trainer(folder, whole_line=True, seed=0, callbacks=None, model=None, **others):
    model, tokenizer = model or model_for()
    return SFTTrainer(
        model, tokenizer, USERS, settings(folder, seed=seed, **others), whole_line=whole_line, seed=seed,
        callbacks=callbacks,
    )  # fmt: skip


def preference_trainer(
    folder, objective="dmpo", negatives=3, seed=0, callbacks=None, model=None, dynamic=None, **others
):
    model, tokenizer = model or model_for()
    reference = score(model, tokenizer, USERS)
    return PreferenceTrainer(
        model, tokenizer, USERS, settings(folder, seed=seed, **others), objective=objective, negatives=negatives,
        reference=reference, dynamic=dynamic, seed=seed, callbacks=callbacks, validation=USERS,
        validation_reference=reference,
    )  # fmt: skip


TRAINERS = {"sft": sft_trainer, "preference": preference_trainer}


class KeepGradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.gradients = {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


# Which rows a step sees


def test_an_epoch_shows_every_user_once_in_an_order_of_its_own():
    rows = UserRows(users=10, available=19, negatives=3, count=35, seed=1)
    users = [rows[row][0] for row in range(35)]
    epochs = [users[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert len(set(users[30:])) == 5
    assert len(rows) == 35


def test_a_row_is_the_chosen_item_and_distinct_negatives():
    for row in range(40):
        _, columns = UserRows(10, 19, 19, 40, seed=0)[row]
        assert columns[0] == 0
        assert sorted(columns[1:]) == list(range(1, 20))
    assert UserRows(10, 19, 0, 40, seed=0)[7][1].tolist() == [0]


def test_fewer_negatives_are_the_first_of_more():
    few, many = UserRows(10, 19, 5, 40, seed=2), UserRows(10, 19, 15, 40, seed=2)
    for row in range(40):
        assert few[row][0] == many[row][0]
        assert few[row][1].tolist() == many[row][1][:6].tolist()


def test_negatives_change_with_user_epoch_and_seed():
    rows, other = (UserRows(10, 19, 5, 30, seed) for seed in (0, 1))
    drawn: dict[int, list[tuple[int, ...]]] = {}
    for row in range(30):
        user, columns = rows[row]
        drawn.setdefault(user, []).append(tuple(columns))
    assert all(len(set(epochs)) == 3 for epochs in drawn.values())
    assert len({epochs[0] for epochs in drawn.values()}) == 10
    assert [rows[row][0] for row in range(10)] != [other[row][0] for row in range(10)]
    first, second = ({rows[row][0]: tuple(rows[row][1]) for row in range(10)} for rows in (rows, other))
    assert all(first[user] != second[user] for user in range(10))


def test_a_row_does_not_depend_on_what_was_asked_before():
    straight = UserRows(10, 19, 5, 60, seed=4)
    expected = [straight[row] for row in range(60)]
    jumping = UserRows(10, 19, 5, 60, seed=4)
    for row in np.random.default_rng(0).permutation(60):
        user, columns = jumping[int(row)]
        assert user == expected[row][0]
        assert columns.tolist() == expected[row][1].tolist()


@pytest.mark.parametrize("negatives", [0, -1, 5, 19])
def test_negatives_that_not_every_user_has(negatives):
    with pytest.raises(
        ValueError, match=rf"^negatives must be from 1 to 4, the negatives every user has, not {negatives}"
    ):
        check_negatives(USERS, negatives)


def test_no_users_to_train_on(tmp_path):
    with pytest.raises(ValueError, match="no users to train on: the split is empty"):
        check_negatives([], 1)


def test_users_may_differ_in_their_number_of_negatives(tmp_path):
    """Training takes what everyone has; a row's reference is that of the row's own candidates."""
    users = [*USERS, Interaction(99, ("Heat",), "Glass", ("Fox", "Glass", "Heat"))]
    model, tokenizer = model_for()
    trainer = PreferenceTrainer(
        model,
        tokenizer,
        users,
        settings(tmp_path),
        objective="dpo",
        negatives=2,
        reference=score(model, tokenizer, users),
    )
    rows = [trainer.train_dataset[row] for row in range(4)]
    batch = trainer.collate(rows)
    for row, (user, columns) in enumerate(rows):
        texts = [" " + users[user].canonical[column] for column in columns]
        prompt = ", ".join(users[user].history) + ","
        expected = candidate_logps(model, tokenizer, [prompt], [texts])[0]
        torch.testing.assert_close(batch["reference"][row], expected, atol=1e-5, rtol=0)


# What a step computes


@pytest.mark.parametrize("whole_line", [True, False])
@pytest.mark.parametrize("name", ["pocket-gpt2", "pocket-qwen2"])
def test_sft_loss_is_transformers_own(name, whole_line, tmp_path):
    model, tokenizer = model_for(name)
    trainer = sft_trainer(tmp_path, whole_line, model=(model, tokenizer))
    rows = [(user, np.array([0])) for user in (0, 1, 2, 3, 7)]
    ids, labels = [], []
    for user, _ in rows:
        prompt = tokenizer(", ".join(USERS[user].history) + ",")["input_ids"]
        answer = [*tokenizer(" " + USERS[user].chosen)["input_ids"], tokenizer.eos_token_id]
        ids.append(prompt + answer)
        labels.append((prompt if whole_line else [-100] * len(prompt)) + answer)
    width = max(map(len, ids))
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in ids])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in labels])
    seen = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    expected = model(input_ids=padded, attention_mask=seen, labels=labels).loss
    found = trainer.compute_loss(model, trainer.collate(rows))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "dynamic"),
    [
        ("dpo", None),
        ("dmpo", None),
        ("sdpo", None),
        ("mppo", None),
        ("dmpo", DynamicPO(margin=2.0)),
        ("mppo", DynamicPO()),
    ],
)
def test_preference_loss_and_pushes_are_those_computed_by_hand(objective, dynamic, tmp_path):
    trainer = preference_trainer(tmp_path, objective, dynamic=dynamic, logging_steps=1)
    model, tokenizer = trainer.model, trainer.processing_class
    with torch.no_grad():  # away from the reference
        for parameter in model.parameters():
            parameter.mul_(0.9)
    rows = [trainer.train_dataset[row] for row in range(6)]
    texts = [[" " + USERS[user].canonical[column] for column in columns] for user, columns in rows]
    prompts = [", ".join(USERS[user].history) + "," for user, _ in rows]
    policy = candidate_logps(model, tokenizer, prompts, texts)
    reference = torch.tensor(np.stack([trainer.reference[user][columns] for user, columns in rows]))
    lengths = torch.tensor([[len(tokenizer(text)["input_ids"]) + 1 for text in row] for row in texts])
    arguments = {"reference": reference, "lengths": lengths, "dynamic": dynamic}
    expected = preference_loss(objective, policy, **arguments)

    model.train()
    found = trainer.compute_loss(model, trainer.collate(rows))
    assert found.item() == pytest.approx(expected.losses.mean().item(), rel=1e-4)

    push = preference_push(objective, policy, **arguments).push
    (measured,) = trainer.measured
    ratio = policy - reference
    margins = ratio[:, :1] - ratio[:, 1:]
    assert measured["pair_loss"] == pytest.approx(-torch.nn.functional.logsigmoid(margins).mean().item(), rel=1e-4)
    assert measured["boundary_share"] == pytest.approx(expected.boundary.float().mean().item())
    assert 0 < measured["boundary_share"] < 1
    assert measured["push_boundary"] == pytest.approx(push[expected.boundary].mean().item(), rel=1e-3)
    assert measured["push_discriminative"] == pytest.approx(push[~expected.boundary].mean().item(), rel=1e-3)
    if dynamic:
        assert measured["push_discriminative"] == 0


def test_the_reference_is_checked(tmp_path):
    model, tokenizer = model_for()
    for shape in [(len(USERS), 3), (len(USERS) - 1, 5)]:
        with pytest.raises(
            ValueError, match=r"reference is of shape .*, not \(12, 5\): give the SFT model's log-probs"
        ):
            PreferenceTrainer(
                model, tokenizer, USERS, settings(tmp_path), objective="dpo", negatives=2, reference=np.zeros(shape)
            )


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
    if lora:
        model = add_lora(model)
    trainer = preference_trainer(tmp_path, model=(model, tokenizer))
    trainer.model.train()
    policy = [candidate_logps(trainer.model, tokenizer, prompts, texts) for _ in range(2)]
    trainer.model.eval()
    assert torch.equal(*policy)
    assert torch.equal(policy[0], candidate_logps(trainer.model, tokenizer, prompts, texts))


@pytest.mark.parametrize("lora", [False, True])
def test_before_the_first_step_policy_and_reference_are_one(lora, tmp_path):
    metrics = preference_trainer(tmp_path, model=model_for(lora=lora)).evaluate()
    assert metrics["eval_pair_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["eval_reward_win_rate"] == 0


# What training comes to


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("batches", [2, 4])
def test_gradient_accumulation_gives_the_gradients_of_one_batch(kind, batches, tmp_path):
    # Neither clipping nor Adam may hide a factor: the gradients themselves are compared.
    found = []
    for accumulation in (1, batches):
        keep = KeepGradients()
        trainer = TRAINERS[kind](
            tmp_path, batch_size=4, accumulation=accumulation, max_grad_norm=0.0, callbacks=[keep], logging_steps=1
        )
        trainer.train()
        found.append((keep.gradients, losses(trainer)))
    (whole, loss), (parts, loss_of_parts) = found
    assert whole.keys() == parts.keys()
    assert max(gradient.abs().max() for gradient in whole.values()) > 1e-3
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)


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


def test_training_lowers_the_loss(tmp_path):
    for trainer in (sft_trainer(tmp_path, steps=40), preference_trainer(tmp_path, steps=40)):
        trainer.train()
        seen = losses(trainer)
        assert np.mean(seen[-5:]) < 0.7 * np.mean(seen[:5])


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


def test_every_logged_line_tells_the_pushes(tmp_path):
    trainer = preference_trainer(tmp_path, steps=60, negatives=4)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == list(range(2, 61, 2))
    for line in lines:
        assert {"loss", "pair_loss", "learning_rate", "boundary_share"} <= line.keys()
        assert line.keys() & {"push_boundary", "push_discriminative"}
    # DMPO, before anything was learnt: 1/K by averaging times σ(0) = 1/2, for every negative alike.
    first = preference_trainer(tmp_path, steps=1, negatives=4)
    first.train()
    line = first.state.log_history[0]
    assert line["push_boundary"] == pytest.approx(1 / 8, abs=1e-5)
    assert line["push_discriminative"] == pytest.approx(1 / 8, abs=1e-5)


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
