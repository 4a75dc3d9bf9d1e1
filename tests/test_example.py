"""examples/dynamicpo.py computes what the library computes."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import minipo
from minipo.dynamic import boundary, dual_margin_beta
from minipo.experiments.users import preference_rows
from minipo.scoring import pack, packed_logps

PATH = Path(__file__).parents[1] / "examples" / "dynamicpo.py"
EXAMPLE = SimpleNamespace(**runpy.run_path(str(PATH)))


@pytest.fixture(scope="module")
def scored():
    """Log-probs (32, 20) of users by the example and by the library, in float64, and the model that they are of."""
    model, tokenizer = minipo.load_model(EXAMPLE.SFT)
    model.double().eval()
    users = minipo.load_dataset("catalog").train[:32]
    rows = preference_rows(users)
    packed = pack(tokenizer, [row["prompt"] for row in rows], [[row["chosen"], *row["rejected"]] for row in rows])
    ours = EXAMPLE.log_probs(model, EXAMPLE.pack([EXAMPLE.encode(user, tokenizer) for user in users]))
    return ours, packed_logps(model, packed), model


def test_log_probs_and_their_gradient(scored):
    ours, theirs, model = scored
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    gradients = (
        torch.autograd.grad(logps[:, 0].mean(), [*model.parameters()], retain_graph=True) for logps in (ours, theirs)
    )
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("negatives", [1, 2, 3, 5, 19])
def test_boundary_beta_loss_and_gradient(negatives, scored):
    reference = scored[0].detach()[:, : 1 + negatives]
    noise = torch.randn(8, *reference.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    policy = (reference + noise).flatten(0, 1)
    policy[::2, 0] = policy[::2].amax(1) + 1  # nothing above the chosen item: the 3-means decides
    reference = reference.repeat(8, 1)
    kept = boundary(policy)
    assert torch.equal(EXAMPLE.boundary(policy), kept)
    assert kept[::2].any()
    beta = dual_margin_beta(policy, kept, EXAMPLE.BETA, EXAMPLE.GAMMA)
    torch.testing.assert_close(EXAMPLE.dual_margin_beta(policy, kept), beta, rtol=0, atol=1e-6)
    for dynamic in (None, minipo.DynamicPO(margin=EXAMPLE.GAMMA)):
        policy.requires_grad_()
        ours = EXAMPLE.dmpo(policy, reference, dynamic is not None)
        theirs = minipo.preference_loss("dmpo", policy, reference, beta=EXAMPLE.BETA, dynamic=dynamic).losses.mean()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        (one,), (other,) = (torch.autograd.grad(loss, policy) for loss in (ours, theirs))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_it_can_be_read_in_one_sitting():
    assert len(PATH.read_text(encoding="utf-8").splitlines()) <= 130


def test_it_prints_a_hit_rate_for_each_of_three_runs(capsys, monkeypatch):
    data = minipo.load_dataset("catalog")
    fewer = replace(data, train=data.train[:64], test=data.test[:500])
    monkeypatch.setattr(minipo, "load_dataset", lambda name: fewer)
    monkeypatch.setattr("sys.argv", ["dynamicpo.py", "1"])
    runpy.run_path(str(PATH), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line[:17].strip() for line in lines] == ["K = 1", "K = 19", "K = 19, DynamicPO"]
    assert all(0.6 < float(line.split()[-1]) < 0.75 for line in lines)  # near the 0.683 of SFT
