"""The queue: few at a time, in order, and whatever happens to a child is one sentence."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "app"))
from jobs import Job, Queue, command


def script(settings: Mapping[str, object], folder: Path) -> list[str]:
    """A child that does what the setting `does` says."""
    return [sys.executable, "-c", str(settings["does"])]


SLEEP = {"does": "import time; time.sleep(60)"}


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    monkeypatch.setenv("MINIPO_HOME", str(tmp_path))
    queue = Queue(slots=2, command=script)
    yield queue
    queue.close()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def over(queue: Queue, job: Job) -> Job:
    until(lambda: queue.place(job) == 0 and not job.active)
    return job


def test_a_job_runs_to_its_end(queue: Queue):
    job = queue.submit({"does": "print('hello')"})
    assert over(queue, job).state == "done"
    assert job.message == ""


def test_two_at_a_time_and_the_third_waits_for_its_turn(queue: Queue):
    first, second, third = (queue.submit(SLEEP) for _ in range(3))
    assert [job.state for job in (first, second, third)] == ["running", "running", "waiting"]
    fourth = queue.submit(SLEEP)
    assert (queue.place(first), queue.place(third), queue.place(fourth)) == (0, 1, 2)
    queue.stop(third)
    assert third.state == "stopped"
    assert queue.place(fourth) == 1
    queue.stop(first)
    until(lambda: queue.place(fourth) == 0)
    assert fourth.state == "running"
    assert first.state == "stopped"
    assert first.message == "Stopped; what it had reached is shown."


def test_a_failed_child_is_reported_with_its_last_line(queue: Queue):
    bar = "print('a warning\\n10%|#  | 1/9 it/s\\r20%|## | 2/9 it/s', file=sys.stderr)"
    job = queue.submit({"does": f"import sys; {bar}; sys.exit('K = 40 is too many.')"})
    assert over(queue, job).state == "failed"
    assert job.message == "The training process ended with exit code 1: K = 40 is too many."


def test_a_killed_child_is_reported(queue: Queue):
    bar = "print('20%|## | 2/9 it/s', file=sys.stderr, flush=True)"
    job = queue.submit({"does": f"import sys, time; {bar}; time.sleep(60)"})
    assert job.process is not None
    until(lambda: "2/9" in job.errors.read_text())
    os.kill(job.process.pid, signal.SIGKILL)
    assert over(queue, job).state == "failed"
    assert job.message == "The training process was killed (SIGKILL) without a word."


def test_stopping_a_finished_job_changes_nothing(queue: Queue):
    job = over(queue, queue.submit({"does": "pass"}))
    queue.stop(job)
    assert job.state == "done"


def test_a_child_that_cannot_be_started_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINIPO_HOME", str(tmp_path))
    queue = Queue(command=lambda settings, folder: [str(tmp_path / "no-such-program")])
    job = queue.submit({})
    assert job.state == "failed"
    assert job.message == "The run could not be started: No such file or directory."
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIPO_HOME", str(tmp_path / "file"))
    job = Queue(command=script).submit(SLEEP)
    assert job.message == "The run could not be started: Not a directory."


def test_closing_ends_every_child(queue: Queue):
    job = queue.submit(SLEEP)
    queue.close()
    assert job.process is not None
    assert job.process.returncode == -signal.SIGTERM


def test_command_names_every_setting(tmp_path: Path):
    parts = command({"learning_rate": 5e-4, "adjust_beta": "on"}, tmp_path)
    assert parts[1:] == [
        "-m", "minipo", "prefer", "--quiet", "--learning-rate", "0.0005", "--adjust-beta", "on", "--out", str(tmp_path),
    ]  # fmt: skip
