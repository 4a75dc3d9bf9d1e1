"""The worker: starts a process for each job of the queue, a few at a time, at low priority.

`jobs.start_worker` runs it beside the app. It trains nothing itself, so that a crash of a run does not affect it. It
ends with the server; the next worker resumes its jobs.
"""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import experiments
import jobs
import limits
import psutil
from filelock import FileLock

from minipo.experiments import files

T = TypeVar("T")
TICK = 0.2  # seconds between looks at a process
LOWEST = 19  # priority: training yields to the pages


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
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        errors = job.folder / "stderr"
        with errors.open("wb") as output:
            none = subprocess.DEVNULL
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(jobs.command(job), stdin=none, stdout=none, stderr=output, env=environment)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        message = jobs.private(f"The run could not be started: {said.rstrip('.')}.")
        insist(lambda: jobs.finish(token, "failed", message))
        return True
    insist(lambda: jobs.note_process(token, process.pid))
    data = job.kind == "data"
    restrain(process.pid, limits.UPLOAD_GB if data else limits.RUN_GB)
    seconds = limits.UPLOAD_SECONDS if data else 60 * limits.RUN_MINUTES
    deadline = time.monotonic() + seconds
    state = "running"
    while process.poll() is None and state == "running" and time.monotonic() < deadline:
        time.sleep(TICK)
        with suppress(sqlite3.Error):  # tried again at the next look
            found = jobs.find(token)
            state = found.state if found else "removed"
    if process.poll() is not None:
        ended = outcome(job, process.returncode, errors)
    else:
        end(psutil.Process(process.pid))
        process.wait()
        limit = f"{seconds} seconds" if data else f"{limits.RUN_MINUTES} minutes"
        then = "leave out some rows" if data else "it can be resumed"
        ended = "failed", f"It took longer than {limit}, the limit here, and was stopped; {then}."
    if data and ended[0] == "failed":
        job.upload.unlink(missing_ok=True)
    insist(lambda: jobs.finish(token, *ended))
    return True


def insist(do: Callable[[], T]) -> T:
    """The result of `do`, tried again while the database is busy or its disk is full, so that no job is lost."""
    while True:
        try:
            return do()
        except sqlite3.Error:
            time.sleep(1)


def restrain(pid: int, gigabytes: int) -> None:
    """Set the lowest priority and a memory limit, if the operating system supports them."""
    with suppress(psutil.Error):  # it may have ended
        process = psutil.Process(pid)
        process.nice(psutil.IDLE_PRIORITY_CLASS if sys.platform == "win32" else LOWEST)
        if sys.platform == "linux":
            process.rlimit(psutil.RLIMIT_DATA, (gigabytes * 2**30, gigabytes * 2**30))


def end(process: psutil.Process, patience: float = 5) -> None:
    """End a process and its children, gently at first."""
    with suppress(psutil.Error):
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


def end_all(patience: float) -> None:
    """End the processes of all running jobs."""
    for job in jobs.running():
        with suppress(psutil.Error):  # it may have ended
            process = psutil.Process(job.pid)
            if any(job.token in part for part in process.cmdline()):  # or its number belongs to another by now
                end(process, patience)


def tidy() -> None:
    while True:
        with suppress(OSError, ValueError, sqlite3.Error):  # tried again in ten minutes
            experiments.collect()  # before the jobs are removed
            jobs.tidy()
        time.sleep(600)


def main() -> None:
    lock = files.home() / "locks" / "worker.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # one worker per machine: a second server's waits until the first has ended
        end_all(patience=5)  # those that a worker which died has left
        jobs.wait_again()
        for task in (*[work] * limits.SLOTS, tidy):
            threading.Thread(target=task, daemon=True).start()
        sys.stdin.buffer.read()  # which ends with the server
        # The jobs still count as running, so the next worker resumes them.
        end_all(patience=1)
        os._exit(0)


if __name__ == "__main__":
    main()
