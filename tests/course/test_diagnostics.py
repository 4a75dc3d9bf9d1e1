"""Under the microscope: a watched run is the run itself, and pushes and gradients are those of the loss."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from minipo import DynamicPO, preference_loss, preference_push
from minipo.compatibility.tokenizers import tokenize_rows
from minipo.course.diagnostics import boundary_with_dmpo_weights, by_group, gradient_parts, moments, pushes, watch
from minipo.experiments.training import prefer
from minipo.experiments.users import score, user_prompt
from minipo.prompts import answer

COUNTS = {7: 4, 3: 2, 9: 4}  # user to negatives: the rows are ragged
SETTINGS = {"dataset": "tiny", "negatives": 5, "steps": 8, "batch_size": 4}


@pytest.fixture
def probe() -> pd.DataFrame:
    """Three users' log-probs before the first step, where policy and reference agree, and at step 5."""
    random = np.random.default_rng(0)
    lines = [
        {"user": user, "candidate": place, "item": f"{user}-{place}", "reference": random.normal(-8, 2)}
        for user, count in COUNTS.items()
        for place in range(1 + count)
    ]
    start = pd.DataFrame(lines)
    later = start.assign(step=5, policy=start["reference"] + random.normal(0, 2, len(start)))
    return pd.concat([start.assign(step=0, policy=start["reference"]), later], ignore_index=True)


@pytest.fixture
def rows():
    """Policy, reference and mask of a batch with rows of 6, 6 and 3 negatives."""
    torch.manual_seed(0)
    policy, reference = torch.randn(2, 3, 7, dtype=torch.float64) * 2 - 8
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[2, 3:] = False
    return policy, reference, mask


@pytest.fixture
def start(tiny_sft):
    """Watching a run on "tiny", with small settings unless told otherwise."""

    def run(*arguments, **settings):
        return watch(*arguments, **({"sft": str(tiny_sft.folder)} | SETTINGS | settings))

    return run


# From log-probs.


def test_moments_are_the_log_probs_by_step_and_user(probe):
    first, second = moments(probe)
    assert (first.step, second.step) == (0, 5)
    assert first.users == (3, 7, 9)
    assert first.items[0] == ("3-0", "3-1", "3-2")
    assert [len(items) for items in first.items] == [3, 5, 5]
    assert torch.equal(first.policy, first.reference)
    assert first.policy[0, 3:].tolist() == [-np.inf, -np.inf]
    lines = probe[(probe.step == 5) & (probe.user == 9)]
    assert second.policy[2].tolist() == lines.policy.to_list()


def test_an_item_without_a_name_keeps_its_place(probe):
    (items, *_) = moments(probe.replace({"item": {"3-1": None}}))[0].items
    assert (items[0], items[2], len(items)) == ("3-0", "3-2", 3)


def test_a_probe_without_its_columns_is_refused(probe):
    with pytest.raises(ValueError, match=r"^The probe lacks the columns item, policy: give a run's probe"):
        moments(probe.drop(columns=["item", "policy"]))


def test_pushes_are_dilution_times_saturation(probe):
    table = pushes(probe, "dmpo", beta=0.5)
    assert len(table) == 2 * sum(COUNTS.values())
    begin = table[table.step == 0]
    assert (begin.gap == 0).all()
    assert (begin.saturation == 0.5).all()
    for (step, user), lines in table.groupby(["step", "user"]):
        count = COUNTS[int(user)]
        assert lines.negative.to_list() == list(range(1, 1 + count))
        logps = probe[(probe.step == step) & (probe.user == user)]
        assert lines.item.to_list() == logps.item.to_list()[1:]
        ratio = (logps.policy - logps.reference).to_numpy()
        assert lines.gap.to_numpy() == pytest.approx(ratio[0] - ratio[1:])
        assert lines.logp_gap.to_numpy() == pytest.approx(logps.policy.to_numpy()[0] - logps.policy.to_numpy()[1:])
        saturation = 1 / (1 + np.exp(0.5 * lines.gap.mean()))
        assert lines.dilution.to_numpy() == pytest.approx(1 / count)
        assert lines.saturation.to_numpy() == pytest.approx(saturation)
        assert lines.push.to_numpy() == pytest.approx(0.5 * saturation / count)


@pytest.mark.parametrize("objective", ["dpo", "dmpo", "sdpo", "mppo"])
@pytest.mark.parametrize("dynamic", [None, DynamicPO()])
def test_pushes_are_the_gradient_of_the_loss(objective, dynamic, probe):
    table = pushes(probe[probe.step == 5], objective, beta=0.7, dynamic=dynamic)
    for user, lines in table.groupby("user"):
        logps = probe[(probe.step == 5) & (probe.user == user)]
        policy, reference = (torch.tensor(logps[[name]].to_numpy().T) for name in ("policy", "reference"))
        policy.requires_grad_()
        output = preference_loss(objective, policy, reference, beta=0.7, dynamic=dynamic)
        output.losses.sum().backward()
        assert lines.push.to_numpy() == pytest.approx(policy.grad[0, 1:].numpy())
        assert lines.used.to_list() == output.used[0].tolist()
        assert lines.boundary.to_list() == output.boundary[0].tolist()


def test_pushes_of_the_first_negatives_alone(probe):
    table = pushes(probe, negatives=1)
    assert set(table.negative) == {1}
    assert (table.dilution == 1).all()
    assert table.push.to_numpy() == pytest.approx(1 / (1 + np.exp(table.gap)))


def test_groups_may_stay_those_of_the_start(probe):
    table = pushes(probe)
    begin, later = (table[table.step == step] for step in (0, 5))
    assert begin.boundary.to_list() == begin.boundary_at_start.to_list() == later.boundary_at_start.to_list()
    assert later.boundary.to_list() != later.boundary_at_start.to_list()
    for census in ("boundary", "boundary_at_start"):
        groups = by_group(table, census)
        assert groups.groupby("step").push_share.sum().to_numpy() == pytest.approx(1)
        assert groups.groupby("step").negatives.sum().to_list() == [sum(COUNTS.values())] * 2
        kept = later[later[census]]
        line = groups[(groups.step == 5) & (groups.group == "boundary")].iloc[0]
        assert line.negatives == len(kept)
        assert line.gap == pytest.approx(kept.gap.mean())
        assert line.push_share == pytest.approx(kept.push.sum() / later.push.sum())


# From a model.


@pytest.fixture
def model_and_users(tiny, tiny_sft):
    """A model, its tokenizer, five users with 19, 19, 19, 19 and 7 negatives, and a reference apart from the model."""
    model, tokenizer = tiny_sft.load_model()
    *users, last = tiny.validation[:5]
    users.append(replace(last, candidates=last.canonical[:8]))
    reference = score(model, tokenizer, users)
    return model, tokenizer, users, reference + np.random.default_rng(0).normal(0, 2, reference.shape)


def plain_logps(model, tokenizer, user):
    """The log-probs of one user's candidates (candidates,), each in a forward of its own, with their gradient."""
    candidates = [answer(item) for item in user.canonical]
    (prompt,), (answers,) = tokenize_rows(tokenizer, [user_prompt(user)], [candidates])
    logps = []
    for ids in answers:
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        logps.append(logits.log_softmax(1).gather(1, torch.tensor(ids)[:, None]).sum())
    return torch.stack(logps)


def by_hand(model, tokenizer, users, reference):
    """The whole gradient of DMPO's mean loss, and each group's part: each user on its own, DMPO's push written out."""
    parameters = list(model.parameters())

    def flat(value):
        return torch.cat([part.flatten() for part in torch.autograd.grad(value, parameters, retain_graph=True)])

    losses, groups = [], {"boundary": [], "discriminative": []}
    for user, row in zip(users, reference, strict=True):
        policy = plain_logps(model, tokenizer, user)[None]
        old = torch.tensor(row[None, : policy.shape[1]], dtype=policy.dtype)
        output = preference_loss("dmpo", policy, old)
        ratio = (policy - old).detach()
        push = torch.sigmoid(-(ratio[:, :1] - ratio[:, 1:]).mean()) / (policy.shape[1] - 1)
        above = push * (policy[:, 1:] - policy[:, :1])
        losses.append(output.losses.mean())
        groups["boundary"].append(above[output.boundary].sum())
        groups["discriminative"].append(above[~output.boundary].sum())
    return flat(torch.stack(losses).mean()), {name: flat(torch.stack(part).mean()) for name, part in groups.items()}


def test_the_parts_of_the_gradient_add_up_to_it(model_and_users):
    model, tokenizer, users, reference = model_and_users
    model.train()
    table = gradient_parts(model, tokenizer, users, reference, batch_size=2).set_index("group")
    assert model.training
    model.eval()
    whole, parts = by_hand(*model_and_users)
    torch.testing.assert_close(sum(parts.values()), whole, rtol=1e-4, atol=1e-6)
    assert table.share.sum() == pytest.approx(1, abs=1e-5)
    for group, part in parts.items():
        assert table.norm[group] == pytest.approx(part.norm().item(), rel=1e-4)
        cosine = (part @ whole / part.norm() / whole.norm()).item()
        assert table.cosine[group] == pytest.approx(cosine, rel=1e-4)
        assert table.share[group] == pytest.approx((part @ whole / whole.square().sum()).item(), rel=1e-4)
    assert table.negatives.sum() == 4 * 19 + 7
    assert table.negatives.min() > 0


def test_push_shares_are_those_of_the_log_probs(model_and_users):
    model, tokenizer, users, reference = model_and_users
    policy = score(model, tokenizer, users)
    there = np.isfinite(policy)
    probe = pd.DataFrame(
        {
            "step": 0,
            "user": np.nonzero(there)[0],
            "candidate": np.nonzero(there)[1],
            "item": [item for user in users for item in user.canonical],
            "reference": reference[there],
            "policy": policy[there],
        }
    )
    for objective, dynamic in (("dmpo", None), ("sdpo", None), ("dpo", DynamicPO())):
        parts = gradient_parts(model, tokenizer, users, reference, objective, dynamic=dynamic)
        groups = by_group(pushes(probe, objective, dynamic=dynamic))
        assert parts.group.to_list() == groups.group.to_list()
        assert parts.negatives.to_list() == groups.negatives.to_list()
        assert parts.push_share.to_list() == pytest.approx(groups.push_share.to_list(), rel=1e-4)
    left_out = parts.set_index("group").loc["discriminative"]  # by the selection
    assert left_out[["push_share", "norm", "cosine", "share"]].to_list() == [0, 0, 0, 0]


@pytest.mark.parametrize("objective", ["mppo", "simpo", "beta-dpo", "dmpoo"])
def test_other_objectives_are_not_taken_apart(objective):
    with pytest.raises(ValueError, match=rf"^gradient_parts cannot take '{objective}' apart: give dpo, dmpo or sdpo"):
        gradient_parts(None, None, [], None, objective)


# Over training.


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (("dmpo",), {"objective": "dmpo"}),
        (("sdpo", DynamicPO(adjust_beta=False)), {"objective": "sdpo", "dynamic": "on", "adjust_beta": "off"}),
        ((), {"objective": "dpo", "beta": 0.5, "seed": 1}),
    ],
)
def test_a_watched_run_is_the_run(arguments, settings, start, tiny_sft):
    run = prefer(progress=False, sft=str(tiny_sft.folder), evaluate_every=4, **SETTINGS | settings)
    own = {name: settings[name] for name in settings if name in ("beta", "seed") or not arguments}
    seen = start(*arguments, every=2, look=lambda model, tokenizer: None, **own)
    assert seen.test.ranks.tolist() == run.users["rank"].to_list()
    assert sorted(set(seen.probe.step)) == [0, 2, 4, 6, 8]
    common = seen.probe[seen.probe.step.isin(run.probe.step)].reset_index(drop=True)
    pd.testing.assert_frame_equal(common[run.probe.columns], run.probe.reset_index(drop=True), check_dtype=False)
    assert seen.metrics.loss.to_list() == pytest.approx(run.metrics.loss.to_list(), rel=1e-5)


def test_a_look_is_taken_first_every_so_often_and_last(start, tiny):
    def look(model, tokenizer):
        return next(model.parameters()).detach().clone()

    seen = start("dmpo", every=3, probed=4, look=look, users=tiny.test[:6])
    assert list(seen.seen) == sorted(set(seen.probe.step)) == [0, 3, 6, 8]
    assert not torch.equal(seen.seen[0], seen.seen[8])
    assert seen.probe.user.nunique() == 4
    begin = seen.probe[seen.probe.step == 0]
    assert (begin.policy == begin.reference).all()
    assert len(seen.test.ranks) == 6
    assert start("dmpo", every=100, probed=4).seen == {}


def test_what_cannot_be_watched_is_said(start):
    for wrong in ({"every": 0}, {"probed": 0}):
        with pytest.raises(ValueError, match=r"^every is \d+ and probed \d+: give whole numbers of at least 1\.$"):
            start("dmpo", **wrong)
    with pytest.raises(ValueError, match="negative"):
        start("dmpo", negatives=0)
    with pytest.raises(ValueError, match="learning_rate"):
        start("dmpo", learningrate=1e-3)


# The causal swap.


def test_the_swap_pushes_boundary_negatives_as_dmpo_would(rows):
    policy, reference, mask = rows
    objective, dynamic = boundary_with_dmpo_weights()
    arguments = (policy, reference, 0.7, mask)
    swapped, plain = preference_push(objective, *arguments, dynamic=dynamic), preference_push("dmpo", *arguments)
    census = preference_loss("dmpo", *arguments).boundary
    assert census.any()
    assert (mask & ~census).any()
    torch.testing.assert_close(swapped.push, plain.push * census)

    policy.requires_grad_()
    preference_loss(objective, *arguments, dynamic=dynamic).losses.sum().backward()
    torch.testing.assert_close(policy.grad[:, 0], -swapped.push.sum(1))  # the chosen item rises by as much


def test_the_swap_trains(start):
    objective, dynamic = boundary_with_dmpo_weights()
    seen = start(objective, dynamic, every=8)
    moved = (seen.probe.policy - seen.probe.reference).abs().groupby(seen.probe.step).max()
    assert moved[0] == 0
    assert moved[8] > 0
