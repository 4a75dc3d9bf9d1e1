"""The worker: starts a process for each job of the queue, a few at a time, at low priority.

`jobs.start_worker` runs it beside the app. It trains nothing itself, so that a crash of a run does not affect it. It
ends with the server; the next worker resumes its jobs.

On Linux the processes are forked from one that has imported what they need, which the worker keeps for that; elsewhere
each imports it itself (`minipo.experiments.workers`).
"""

import os
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

import experiments
import intake
import jobs
import limits
import psutil
from filelock import FileLock

from minipo import cli
from minipo.experiments import estimates, files, pairs, training, workers
from minipo.experiments.workers import PROCESSES, end_with_parent

T = TypeVar("T")
TICK = 0.2  # seconds between looks at a process
NICE = 5  # training yields to the pages, and still gets a fair share beside other programs
IMPORTED = [*workers.IMPORTED, "experiments", "intake"]  # before a fork
STARTING = threading.Lock()  # multiprocessing's bookkeeping is not made for several threads


def work() -> None:
    """Do one job after another."""
    while True:
        try:
            if not perform():
                time.sleep(TICK)
        except Exception:  # whatever it is, the next job is done
            traceback.print_exc()


def perform() -> bool:
    """Do the job that has waited longest: start its process, watch it, and save how it ended. False if none waits."""
    job = insist(jobs.begin)
    if job is None:
        return False
    token = job.token
    errors = job.folder / "stderr"
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        process = PROCESSES.Process(target=run, args=(str(errors), *task(job)))
        with STARTING:
            process.start()
        pid = int(process.pid or 0)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        message = jobs.private(f"The run could not be started: {said.rstrip('.')}.")
        insist(lambda: jobs.finish(token, "failed", message))
        return True
    insist(lambda: jobs.note_process(token, pid))
    data = job.kind == "data"
    restrain(pid, limits.UPLOAD_GB if data else limits.RUN_GB)
    seconds = limits.UPLOAD_SECONDS if data else 60 * limits.RUN_MINUTES
    deadline = time.monotonic() + seconds
    state = "running"
    while alive(process) and state == "running" and time.monotonic() < deadline:
        wait([process.sentinel], TICK)
        with suppress(sqlite3.Error):  # tried again at the next look
            found = jobs.find(token)
            state = found.state if found else "removed"
    if not alive(process):
        ended = outcome(job, int(process.exitcode or 0), errors)
        end(pid)  # it goes on if the process that it was forked from was killed
    else:
        end(pid)
        limit = f"{seconds} seconds" if data else f"{limits.RUN_MINUTES} minutes"
        then = "leave out some rows" if data else "it can be resumed"
        ended = "failed", f"It took longer than {limit}, the limit here, and was stopped; {then}."
    if data and ended[0] == "failed":
        job.upload.unlink(missing_ok=True)
    insist(lambda: jobs.finish(token, *ended))
    return True


def task(job: jobs.Job) -> tuple[Any, ...]:
    """The function that does a job, and its arguments."""
    if job.kind == "data":
        return intake.main, str(job.upload), str(job.result)
    if job.kind == "pair":
        sides = [part for side in ("left", "right") for part in (f"--{side}", pairs.spelled(job.settings[side]))]
        places = ["--out", str(job.result), "--runs", str(job.runs)]
        return cli.main, ["pair", "--quiet", *sides, "--seed", str(job.settings["seed"]), *places]
    settings = jobs.with_paths(job.settings)
    if job.kind == "curve":
        settings |= {"seeds": settings.pop("seed"), "workers": limits.CURVE_RUNS, "runs": job.runs}
        return cli.main, ["sweep", "--quiet", *options(settings)]
    return cli.main, ["prefer", "--quiet", *options(settings), "--out", str(job.run)]


def options(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the command line takes them."""
    words = {name: ",".join(map(str, each)) if isinstance(each, list) else str(each) for name, each in settings.items()}
    return [part for name, word in words.items() for part in (f"--{name.replace('_', '-')}", word)]


def run(errors: str, function: Callable[..., int | None], *arguments: Any) -> None:
    """In a job's process: call the function, with standard error in the file `errors`."""
    for number, path in ((1, os.devnull), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    threading.Thread(target=end_with_parent, daemon=True).start()
    raise SystemExit(function(*arguments))


def alive(process: Any) -> bool:
    with STARTING:
        return process.is_alive()


def insist(do: Callable[[], T]) -> T:
    """The result of `do`, tried again while the database is busy or its disk is full, so that no job is lost."""
    while True:
        try:
            return do()
        except sqlite3.Error:
            time.sleep(1)


def restrain(pid: int, gigabytes: int) -> None:
    """Set a low priority and a memory limit, if the operating system supports them."""
    with suppress(psutil.Error):  # it may have ended
        process = psutil.Process(pid)
        process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if sys.platform == "win32" else NICE)
        if sys.platform == "linux":
            most = process.memory_info().data + gigabytes * 2**30  # besides what it was forked with
            process.rlimit(psutil.RLIMIT_DATA, (most, most))


def end(pid: int, patience: float = 5) -> None:
    """End a process and its children, gently at first."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
        for member in family:
            with suppress(psutil.Error):
                member.terminate()
        _, stubborn = psutil.wait_procs(family, timeout=patience)
        for member in stubborn:
            with suppress(psutil.Error):
                member.kill()


def outcome(job: jobs.Job, code: int, errors: Path) -> tuple[str, str]:
    """The state and the sentence in which a process ended."""
    if code == 0:
        return "done", ""
    said = jobs.private(last_line(errors)).removeprefix("minipo: ")
    if code == 2 and said:  # minipo's own error message
        return "failed", said
    if "memory" in said.lower() or "MemoryError" in said:
        gigabytes = limits.UPLOAD_GB if job.kind == "data" else limits.RUN_GB
        return "failed", f"It needed more than {gigabytes} GB of memory, the limit here."
    ended = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
    return "failed", f"Its process {ended}{': ' + said if said else '.'}"


def last_line(errors: Path) -> str:
    """The last line of standard error that is not a progress bar: minipo's error message."""
    try:
        lines = errors.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip() and "%|" not in line), "")


def tidy() -> None:
    while True:
        with suppress(OSError, ValueError, sqlite3.Error):  # tried again in ten minutes
            experiments.collect()  # before the jobs are removed
            jobs.tidy()
        time.sleep(600)


def warm() -> None:
    """Compute what runs need and keep: this machine's speeds, then the log-probs of the default run's reference."""
    estimates.calibrate()
    if hasattr(os, "nice"):
        os.nice(19)  # a run that is clicked meanwhile comes first
    with suppress(OSError, ValueError):  # a run will say what is wrong
        training.keep_reference()


def prepare() -> None:
    """Say what the process that all are forked from imports, once the first is to be started."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    PROCESSES.set_forkserver_preload(IMPORTED)


def main() -> None:
    prepare()
    lock = files.home() / "locks" / "worker.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # one worker per machine: a second server's waits until the first has ended
        PROCESSES.Process(target=warm).start()  # before a run disturbs it
        jobs.wait_again()  # those of a worker that died, with which their processes ended
        for task in (*[work] * limits.SLOTS, tidy):
            threading.Thread(target=task, daemon=True).start()
        sys.stdin.buffer.read()  # which ends with the server
        os._exit(0)  # and with it the jobs' processes; they still count as running, so the next worker resumes them


if __name__ == "__main__":
    main()
