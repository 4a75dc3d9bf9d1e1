"""The worker: takes tokens from the queue and starts a process for each, few at a time, at low priority.

`jobs.start_worker` runs it beside the app. It trains nothing itself, so that a process that dies takes nothing with it,
and it ends with the server: what it had in hand goes on when the next one starts.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import jobs
import limits
import psutil
from filelock import FileLock

from minipo import files

TICK = 0.2  # seconds between looks at a process
LOWEST = 19  # priority: training yields to the pages


def perform(token: str) -> None:
    """Do a job: start its process, watch over it, and write down how it ended."""
    job = jobs.begin(token)
    if job is None:
        return
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        errors = job.folder / "stderr"
        with errors.open("wb") as output:
            process = subprocess.Popen(
                jobs.command(job),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        jobs.finish(token, "failed", jobs.private(f"The run could not be started: {said.rstrip('.')}."))
        return
    jobs.note_process(token, process.pid)
    data = job.kind == "data"
    restrain(process.pid, limits.UPLOAD_GB if data else limits.RUN_GB)
    seconds = limits.UPLOAD_SECONDS if data else 60 * limits.RUN_MINUTES
    deadline = time.monotonic() + seconds
    state = "running"
    while process.poll() is None and state == "running" and time.monotonic() < deadline:
        time.sleep(TICK)
        found = jobs.find(token)
        state = found.state if found else "removed"
    if process.poll() is not None:
        jobs.finish(token, *outcome(job, process.returncode, errors))
        return
    end(psutil.Process(process.pid))
    process.wait()
    if state == "running":
        limit = f"{seconds} seconds" if data else f"{limits.RUN_MINUTES} minutes"
        then = "bring fewer rows" if data else "it can go on from there"
        jobs.finish(token, "failed", f"It took longer than {limit}, the limit here, and was stopped; {then}.")


def restrain(pid: int, gigabytes: int) -> None:
    """Lowest priority and a limit on memory, where the operating system knows them."""
    with suppress(psutil.Error):  # it may be over already
        process = psutil.Process(pid)
        process.nice(psutil.IDLE_PRIORITY_CLASS if sys.platform == "win32" else LOWEST)
        if sys.platform == "linux":
            process.rlimit(psutil.RLIMIT_DATA, (gigabytes * 2**30, gigabytes * 2**30))


def process_of(job: jobs.Job) -> psutil.Process | None:
    """The process that does a job, if it is still there: another may have its number by now."""
    with suppress(psutil.Error):
        if job.pid is not None:
            process = psutil.Process(job.pid)
            if any(job.token in part for part in process.cmdline()):
                return process
    return None


def end(process: psutil.Process, patience: float = 5) -> None:
    """End a process and what it started, gently at first."""
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
    if code == 2 and said:  # minipo's own word for a mistake
        return "failed", said
    if "memory" in said.lower() or "MemoryError" in said:
        gigabytes = limits.UPLOAD_GB if job.kind == "data" else limits.RUN_GB
        return "failed", f"It needed more than {gigabytes} GB of memory, the limit here."
    ended = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
    return "failed", f"Its process {ended}{': ' + said if said else '.'}"


def last_line(errors: Path) -> str:
    """The last line of standard error that is no progress bar: minipo says there what was wrong."""
    try:
        lines = errors.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip() and "%|" not in line), "")


def recover() -> list[str]:
    """The tokens of all that an earlier worker left unfinished, its processes ended."""
    for job in jobs.unfinished():
        if job.state == "running":
            if process := process_of(job):
                end(process)
            jobs.wait_again(job.token)
    return [job.token for job in jobs.unfinished()]


def follow_server() -> None:
    """Wait for the end of standard input, which is that of the server, and leave."""
    sys.stdin.buffer.read()
    leave()


def watch(path: Path) -> None:
    """End the worker when the server has ended, or when the queue's file is not the one it was opened on."""
    threading.Thread(target=follow_server, daemon=True).start()
    opened = path.stat().st_ino
    tidied = 0.0
    while True:
        time.sleep(1)
        if not path.exists() or path.stat().st_ino != opened:
            leave()  # and be started again
        if time.monotonic() - tidied > 600:
            tidied = time.monotonic()
            jobs.tidy()


def leave() -> None:
    """End at once, and what was started with it; the register still says "running", so the next worker goes on."""
    for job in jobs.unfinished():
        if job.state == "running" and (process := process_of(job)):
            end(process, patience=1)
    os._exit(0)


def main() -> None:
    lock = files.home() / "locks" / "worker.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # one worker on a machine: that of a second server waits until the first has ended
        queue = jobs.queue()
        enqueue = jobs.task(queue, perform)
        queue.flush()
        threading.Thread(target=watch, args=(files.home() / "app" / "queue.db",), daemon=True).start()
        for token in recover():
            enqueue(token)
        queue.create_consumer(
            workers=limits.SLOTS, worker_type="thread", initial_delay=TICK, max_delay=TICK, backoff=1.0, periodic=False
        ).run()
        leave()


if __name__ == "__main__":
    main()
