"""The queue: few at a time, in order; whatever happens to a process, the worker or the server is told on the run."""

import multiprocessing
import os
import signal
import sqlite3
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minipo.experiments import files
from tests.app.conftest import MAIN

import jobs  # isort: skip
import limits  # isort: skip
import worker  # isort: skip

# A worker that does what the setting `does` says, in Python; two at a time, whatever machine this is.
TOY = f"""
import sys
sys.path.insert(0, {str(MAIN.parent)!r})
import jobs, limits, worker
limits.SLOTS = 2
worker.TICK = 0.05
worker.IMPORTED = ["experiments", "intake"]
worker.warm = print
worker.task = lambda job: (exec, str(job.settings["does"]), {{}})
if __name__ == "__main__":
    worker.main()
"""
START_WORKER = jobs.start_worker  # before conftest.py puts nothing in its place
SLEEP = "import time; time.sleep(60)"


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that are Python lines, which no viewer could hand in, and are looked at more often."""
    monkeypatch.setattr(worker, "TICK", 0.02)
    monkeypatch.setattr(jobs, "_check", lambda *arguments: None)
    monkeypatch.setattr(worker, "task", lambda job: (exec, str(job.settings["does"]), {}))


def serve(toy: Path) -> None:
    """What a server does for the queue, in a process group of its own."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    jobs.WORKER = toy
    START_WORKER()
    time.sleep(600)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Starts a server that has a toy worker beside it; all of them end with the test. A fork, which need not import
    everything again."""
    toy = tmp_path / "toy.py"
    toy.write_text(TOY)
    started: list[Any] = []

    def start() -> Any:
        started.append(multiprocessing.get_context("fork").Process(target=serve, args=(toy,)))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


def submit(does: str, viewer: str = "viewer", kind: str = "prefer") -> jobs.Job:
    return jobs.submit(kind, {"does": does}, viewer, "a run")


def now(job: jobs.Job) -> jobs.Job:
    found = jobs.find(job.token)
    assert found is not None
    return found


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def performed(does: str) -> jobs.Job:
    """The job after the worker, in this process, has done it, and before it all that waited."""
    job = submit(does)
    while now(job).state == "waiting":
        worker.perform()
    return now(job)


def alive(pid: int | None) -> bool:
    assert pid is not None
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


# -------------------------------------------------------------------------------------------- one job, in this process


def test_a_job_runs_to_its_end():
    job = performed("print('hello')")
    assert (job.state, job.message) == ("done", "")
    assert job.started is not None
    assert job.ended is not None
    assert jobs.place(job.token) == 0


def test_a_users_mistake_is_passed_on_as_it_was_said():
    job = performed("import sys; print('10%|#  | 1/9 it/s', file=sys.stderr); print('minipo: K = 40 is too many.', "
                    "file=sys.stderr); sys.exit(2)")  # fmt: skip
    assert (job.state, job.message) == ("failed", "K = 40 is too many.")


def test_another_end_is_told_with_its_last_line_and_no_path():
    job = performed(f"import sys; sys.exit('lost in {files.home()}/app')")
    assert (job.state, job.message) == ("failed", "Its process ended with exit code 1: lost in minipo's folder/app")


def test_a_killed_process_is_told():
    job = performed("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert (job.state, job.message) == ("failed", "Its process was killed (SIGKILL).")


def test_memory_is_limited_and_the_limit_told(monkeypatch: pytest.MonkeyPatch):
    if sys.platform != "linux":
        pytest.skip("Only Linux lets one process limit another's memory.")
    monkeypatch.setattr(limits, "RUN_GB", 1)
    job = performed("import time; time.sleep(0.5); everything = bytearray(3 * 2**30)")
    assert (job.state, job.message) == ("failed", "It needed more than 1 GB of memory, the limit here.")


def test_time_is_limited_and_the_limit_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "RUN_MINUTES", 1 / 60)
    job = performed(SLEEP)
    assert job.state == "failed"
    assert "the limit here, and was stopped; it can be resumed." in job.message
    assert not alive(job.pid)


def test_training_yields_to_the_pages():
    job = performed(
        "import os, time\n"
        f"while os.nice(0) < {worker.NICE}: time.sleep(0.05)"  # else the time limit of the tests ends it
    )
    assert job.state == "done"


def test_a_job_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch):
    def gone(job: jobs.Job) -> None:
        raise ValueError("The uploaded data are gone.")

    monkeypatch.setattr(worker, "task", gone)
    job = performed("")
    assert (job.state, job.message) == ("failed", "The run could not be started: The uploaded data are gone.")


def test_a_job_that_was_stopped_or_removed_while_waiting_is_not_started():
    stopped, removed = submit("open('started', 'w')"), submit("open('started', 'w')")
    assert jobs.stop(stopped.token) == "Stopped."
    jobs.remove(removed.token)
    for _ in (stopped, removed):
        worker.perform()
    assert (now(stopped).state, now(stopped).message) == ("stopped", "Stopped before it started.")
    assert now(stopped).pid is None
    assert jobs.find(removed.token) is None


# ------------------------------------------------------------------------------------------------------ what is asked


def test_place_in_the_queue_moves_on():
    first, second, third = (submit(SLEEP, viewer=str(number)) for number in range(3))
    assert [jobs.place(job.token) for job in (first, second, third)] == [0, 1, 2]
    jobs.stop(second.token)
    assert jobs.place(third.token) == 1
    assert jobs.begin() == now(first)
    assert jobs.place(third.token) == 0
    jobs.resume(second.token)  # who cancels and goes on loses the place
    assert (jobs.place(second.token), jobs.place(third.token)) == (1, 0)
    begun = [jobs.begin(), jobs.begin(), jobs.begin()]
    assert begun == [now(third), now(second), None]


def test_stopping_tells_each_tab_what_happened():
    over, job = performed("pass"), submit(SLEEP)
    assert [jobs.stop(job.token), jobs.stop(job.token)] == ["Stopped.", "It was already stopped."]
    assert jobs.stop(over.token) == "It had already finished."
    assert now(over).state == "done"
    assert now(job).message == "Stopped before it started."
    assert jobs.stop(performed("raise SystemExit(3)").token) == "It had already ended."
    assert jobs.stop("no-such-token") == "This run is no longer on this server."


def test_a_viewer_has_so_many_at_once_and_all_together_so_many(monkeypatch: pytest.MonkeyPatch):
    mine = [submit(SLEEP, "one") for _ in range(limits.RUNS_AT_ONCE)]
    with pytest.raises(ValueError, match=f"You have {limits.RUNS_AT_ONCE} runs waiting or training"):
        submit(SLEEP, "one")
    jobs.stop(mine[0].token)
    submit(SLEEP, "one")
    with pytest.raises(ValueError, match="the maximum"):
        jobs.resume(mine[0].token)
    other = submit(SLEEP, "another")
    jobs.stop(other.token)
    monkeypatch.setattr(limits, "RUNS_WAITING", 0)
    monkeypatch.setattr(limits, "SLOTS", 1)
    for ask in (lambda: submit(SLEEP, "a third"), lambda: jobs.resume(other.token)):
        with pytest.raises(ValueError, match="runs are waiting on this server, the maximum"):
            ask()


def test_so_many_uploads_are_held_and_a_full_disk_takes_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "UPLOADS", 1)
    first = jobs.submit("data", {"does": "pass", "suffix": ".csv"}, "one", "a.csv", b"x")
    worker.perform()
    assert now(first).upload.read_bytes() == b"x"
    with pytest.raises(ValueError, match="have 1 uploads, the maximum"):
        jobs.submit("data", {"does": "pass", "suffix": ".csv"}, "one", "b.csv", b"y")
    monkeypatch.setattr(limits, "FREE_GB", 10**9)
    with pytest.raises(ValueError, match="disk is almost full"):
        submit(SLEEP, "another")
    monkeypatch.setattr(limits, "FREE_GB", 0)
    monkeypatch.setattr(jobs, "_room", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ValueError, match=r"could not save it; its disk may be full\."):
        submit(SLEEP, "another")
    assert jobs.begin() is None
    assert [folder.name for folder in first.folder.parent.iterdir()] == [first.token]  # nothing half-written


def test_an_upload_that_cannot_be_read_is_not_held():
    job = jobs.submit("data", {"does": "raise SystemExit(2)", "suffix": ".csv"}, "one", "a.csv", b"x")
    worker.perform()
    assert now(job).state == "failed"
    assert not job.upload.exists()


def test_a_busy_database_leaves_no_job_alone(monkeypatch: pytest.MonkeyPatch):
    """Each part that the worker calls fails twice."""
    job = submit("print()")

    def flaky(works: Callable[..., Any]) -> Callable[..., Any]:
        failures = iter(range(2))

        def call(*arguments: Any) -> Any:
            if next(failures, None) is not None:
                raise sqlite3.OperationalError("database is locked")
            return works(*arguments)

        return call

    with monkeypatch.context() as meanwhile:
        for name in ("begin", "find", "note_process", "finish"):
            meanwhile.setattr(jobs, name, flaky(getattr(jobs, name)))
        meanwhile.setattr(worker.time, "sleep", lambda _: None)
        worker.perform()
    assert now(job).state == "done"


def test_removing_an_upload_passes_over_what_is_damaged():
    job = jobs.submit("data", {"does": "pass", "suffix": ".csv"}, "one", "a.csv", b"x")
    (files.home() / "runs" / "damaged").mkdir(parents=True)
    (files.home() / "runs" / "damaged" / "config.json").write_text("{")
    jobs.remove(job.token)
    assert jobs.find(job.token) is None
    assert not job.folder.exists()


def test_tokens_cannot_be_guessed_and_each_sees_their_own():
    job, other = submit(SLEEP, "one"), submit(SLEEP, "two")
    assert len(job.token) >= 22  # 128 bits
    assert job.token != other.token
    assert [found.token for found in jobs.of_viewer("one", "prefer")] == [job.token]
    assert jobs.of_viewer("one", "data") == []
    for path in ("../../../etc/passwd", "", "'; drop table jobs; --"):
        assert jobs.find(path) is None
        jobs.remove(path)
    assert now(job).state == "waiting"


def test_renaming_keeping_and_removing():
    job = performed("pass")
    jobs.rename(job.token, "  <b>two\nlines</b> " + "x" * 100)
    assert now(job).name.startswith("<b>two lines</b> x")
    assert len(now(job).name) == limits.NAME
    jobs.rename(job.token, " ")
    assert now(job).name.startswith("<b>")
    jobs.keep(job.token, True)
    assert now(job).kept
    assert job.folder.is_dir()
    jobs.remove(job.token)
    assert jobs.find(job.token) is None
    assert not job.folder.exists()


def test_so_many_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "RUNS_KEPT", 1)
    first, second = performed("pass"), performed("pass")
    jobs.keep(first.token, True)
    with pytest.raises(ValueError, match="stop keeping another one first"):
        jobs.keep(second.token, True)


def test_what_is_old_and_not_kept_is_removed():
    old, kept, new = performed("pass"), performed("pass"), performed("pass")
    jobs.keep(kept.token, True)
    with jobs.database() as connection:
        long_ago = time.time() - 3600 * limits.HOURS - 1
        connection.execute("update jobs set ended = ? where token != ?", (long_ago, new.token))
    jobs.tidy()
    assert [jobs.find(job.token) is None for job in (old, kept, new)] == [True, False, False]
    assert [job.folder.is_dir() for job in (old, kept, new)] == [False, True, True]


def test_the_runs_folder_may_go_while_the_app_is_open():
    import shutil

    job = performed("pass")
    shutil.rmtree(files.home() / "app" / "jobs")
    assert now(job).state == "done"
    shutil.rmtree(files.home())
    assert jobs.find(job.token) is None
    assert jobs.stop(job.token) == "This run is no longer on this server."
    assert performed("pass").state == "done"


# --------------------------------------------------------------------------------------------------- what may be asked


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 100_000}, "steps is 100,000, and at most"),
        ({"negatives": 50}, "negatives is 50, and at most"),
        ({"sft": "/etc"}, "leave sft out"),
        ({"model": "/etc"}, "This model is not offered here"),
        ({"model": "../../etc"}, "This model is not offered here"),
        ({"dataset": "/etc/passwd"}, "These data are not on this server"),
        ({"dataset": "own:../../etc"}, "These data are not on this server"),
        ({"objectiv": "dmpo"}, "Did you mean 'objective'"),
        ({"objective": "magic"}, "Unknown objective 'magic'"),
        ({"beta": -1.0}, "beta must be greater than 0"),
    ],
)
def test_settings_that_no_viewer_may_train(settings: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        jobs.check_settings(settings)


def test_the_limit_on_uploads_is_streamlits_too():
    config = tomllib.loads((MAIN.parents[1] / ".streamlit" / "config.toml").read_text())
    assert config["server"]["maxUploadSize"] == limits.UPLOAD_MB


def test_the_limits_are_told():
    for number in (limits.RUNS_AT_ONCE, limits.RUN_MINUTES, limits.UPLOAD_MB, limits.HOURS):
        assert str(number) in limits.described()


# ------------------------------------------------------------------------------------------ worker and server, for real


def test_two_at_a_time_in_order_and_the_queue_goes_on_when_one_dies(server: Callable[[], Any]):
    server()
    first, second, third = (submit(SLEEP, viewer=str(number)) for number in range(3))
    until(lambda: now(first).pid and now(second).pid)
    assert (now(second).state, now(third).state) == ("running", "waiting")
    first_pid = now(first).pid
    assert first_pid is not None
    os.kill(first_pid, signal.SIGKILL)
    until(lambda: now(third).state == "running" and now(third).pid)
    assert now(first).message == "Its process was killed (SIGKILL)."
    jobs.stop(third.token)
    until(lambda: not alive(now(third).pid))
    jobs.resume(first.token)
    until(lambda: now(first).state == "running" and now(first).pid != first_pid)
    both = [now(first).pid, now(second).pid]
    os.kill(parent(both[0]), signal.SIGKILL)  # the process that all are forked from
    until(lambda: now(first).state == now(second).state == "failed" and not any(map(alive, both)))
    last = submit("pass", "another")
    until(lambda: now(last).state == "done")


def test_a_worker_or_a_server_that_ends_leaves_nothing_behind_and_the_next_goes_on(server: Callable[[], Any]):
    running = server()
    job, waiting = submit(SLEEP), submit("pass", "another")
    until(lambda: now(job).state == "running" and now(job).pid and now(waiting).state == "done")
    before = now(job).pid
    os.kill(parent(parent(before)), signal.SIGKILL)  # the worker: its server starts another
    until(lambda: now(job).pid != before and now(job).state == "running")
    assert not alive(before)
    before = now(job).pid
    running.kill()  # the server: its worker ends, and what that had in hand
    until(lambda: not alive(before))
    assert now(job).state == "running"
    later = submit("pass", "another")
    running = server()
    until(lambda: now(job).pid != before and now(job).state == "running" and now(later).state == "done")
    before = now(job).pid
    os.killpg(running.pid, signal.SIGINT)  # Control-C, as a terminal does it: to all that it started
    until(lambda: not alive(before))
    assert (now(job).state, now(job).message) == ("running", "")
    server()
    until(lambda: now(job).pid != before and now(job).state == "running")


def test_a_queue_that_was_deleted_is_made_anew(server: Callable[[], Any]):
    server()
    first = submit("pass")
    until(lambda: now(first).state == "done")
    (files.home() / "app").rename(files.home() / "gone")  # at once, for the worker looks into it all the time
    second = submit("pass")
    until(lambda: now(second).state == "done")


def parent(pid: int | None) -> int:
    assert pid is not None
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_a_worker_that_cannot_warm_up_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def fill_disk() -> None:
        done.append("reference")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "nice", lambda _: 0, raising=False)
    monkeypatch.setattr(worker.estimates, "calibrate", lambda: done.append("speeds"))
    monkeypatch.setattr(worker.training, "keep_reference", fill_disk)
    worker.warm()
    assert done == ["speeds", "reference"]
