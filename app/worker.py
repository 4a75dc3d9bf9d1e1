"""The worker: takes tickets from the queue and starts a process for each, a few at a time, at low priority.

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


def perform() -> None:
    """Do the job that has waited longest: start its process, watch it, and save how it ended."""
    job = insist(jobs.begin)
    if job is None:
        return
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
        return
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


def process_of(job: jobs.Job) -> psutil.Process | None:
    """A job's process, if it still runs; its number may belong to another process by now."""
    with suppress(psutil.Error):
        if job.pid is not None:
            process = psutil.Process(job.pid)
            if any(job.token in part for part in process.cmdline()):
                return process
    return None


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


def recover() -> int:
    """End the processes of jobs left unfinished, and let them wait again. Returns how many jobs wait."""
    for job in jobs.unfinished():
        if job.state == "running":
            if process := process_of(job):
                end(process)
            jobs.wait_again(job.token)
    return len(jobs.unfinished())


def follow_server() -> None:
    """Leave when standard input ends, as it does with the server."""
    sys.stdin.buffer.read()
    leave()


def watch(path: Path) -> None:
    """End the worker when the server has ended, or when the queue's file has been replaced."""
    threading.Thread(target=follow_server, daemon=True).start()
    opened = path.stat().st_ino
    tidied = 0.0
    while True:
        time.sleep(1)
        try:
            there = path.stat().st_ino == opened
        except FileNotFoundError:
            there = False
        if not there:
            leave()  # and be restarted
        if time.monotonic() - tidied > 600:
            tidied = time.monotonic()
            with suppress(OSError, ValueError, sqlite3.Error):  # tried again in ten minutes
                experiments.collect_all()  # before the jobs are removed
                jobs.tidy()


def leave() -> None:
    """End at once, with all processes; their jobs still count as running, so the next worker resumes them."""
    for job in jobs.unfinished():
        if job.state == "running" and (process := process_of(job)):
            end(process, patience=1)
    os._exit(0)


def main() -> None:
    lock = files.home() / "locks" / "worker.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # one worker per machine: a second server's waits until the first has ended
        queue = jobs.queue()
        enqueue = jobs.task(queue, perform)
        queue.flush()
        threading.Thread(target=watch, args=(files.home() / "app" / "queue.db",), daemon=True).start()
        for _ in range(recover()):
            enqueue()
        queue.create_consumer(
            workers=limits.SLOTS, worker_type="thread", initial_delay=TICK, max_delay=TICK, backoff=1.0, periodic=False
        ).run()
        leave()


if __name__ == "__main__":
    main()
