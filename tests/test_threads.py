"""Threads: short waits set before torch is loaded, and as many threads as other processes leave cores for."""

import subprocess
import sys

import pytest
import torch

from minipo import threads
from minipo.threads import Threads

SMALL, LARGE = torch.nn.Linear(2, 2), torch.nn.Linear(4000, 4000)


@pytest.mark.parametrize(
    ("before", "seen"),
    [({}, "5000 1"), ({"GOMP_SPINCOUNT": "7"}, "7 1"), ({"OMP_WAIT_POLICY": "active"}, "None None")],
)
def test_waits_are_short_unless_the_user_has_set_them(before: dict[str, str], seen: str, monkeypatch):
    for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    code = (
        "import minipo, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('KMP_BLOCKTIME'), "
        "'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == f"{seen} False\n"


@pytest.fixture
def machine(monkeypatch):
    """Four cores, of which others use as many as the test says; the number of threads comes back."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    had = torch.get_num_threads()
    torch.set_num_threads(4)
    looks: list[tuple[float, float, float]] = [(0.0, 0.0, 0.0)]
    monkeypatch.setattr(Threads, "_look", lambda self: looks[-1])
    run = Threads()
    monkeypatch.setattr(run, "cores", [0, 1, 2, 3])

    def after(others: float, model: torch.nn.Module = SMALL, seconds: float = 1.0) -> int:
        time, by_all, own = looks[-1]
        looks.append((time + seconds, by_all + seconds * (others + 0.7), own + seconds * 0.7))
        run.adapt(model)
        return torch.get_num_threads()

    yield after
    torch.set_num_threads(had)


def test_a_small_model_uses_the_cores_that_others_leave(machine):
    assert [machine(others) for others in (0.0, 0.3, 1.0, 2.6, 4.0, 1.0, 0.0)] == [4, 4, 3, 1, 1, 3, 4]


def test_too_short_a_time_a_large_model_and_the_users_number_change_nothing(machine, monkeypatch):
    assert machine(4.0, seconds=0.05) == 4
    assert machine(4.0, LARGE) == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert machine(4.0) == 4


def test_a_containers_limit_counts_as_its_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    had = torch.get_num_threads()
    try:
        for said, expected in (("max 100000", 4), ("200000 100000", 2), ("50000 100000", 1)):
            torch.set_num_threads(4)
            threads.QUOTA.write_text(said)
            assert Threads().most == expected
    finally:
        torch.set_num_threads(had)
