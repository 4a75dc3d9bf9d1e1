"""Training runs started from the page: a queue of child processes, few at a time.

A job is `python -m minipo prefer ... --out FOLDER`: it trains in a process of its own and writes a run folder, which
the page reads. The page stays responsive, and a child that dies takes nothing with it.
"""

import atexit
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minipo import files

SLOTS = 2  # jobs at the same time on this machine
Command = Callable[[Mapping[str, Any], Path], list[str]]


def command(settings: Mapping[str, Any], folder: Path) -> list[str]:
    """The command line that trains a run with these settings (names of `runs.PreferConfig`) into `folder`."""
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", "minipo", "prefer", "--quiet", *flags, "--out", str(folder)]


@dataclass
class Job:
    """One run: waiting, running, done, stopped or failed."""

    settings: dict[str, Any]
    folder: Path
    stopped: bool = False
    problem: str = ""  # one sentence, if it could not be started
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def errors(self) -> Path:
        """Where the child's standard error goes; beside the run folder, which belongs to the run."""
        return self.folder.with_name(self.folder.name + ".stderr")

    @property
    def state(self) -> str:
        if self.problem:
            return "failed"
        if self.process is None:
            return "stopped" if self.stopped else "waiting"
        code = self.process.poll()
        if code is None:
            return "running"
        if code == 0:
            return "done"
        return "stopped" if self.stopped else "failed"

    @property
    def active(self) -> bool:
        return self.state in ("waiting", "running")

    @property
    def message(self) -> str:
        """How it ended, in one sentence; empty while it runs and when it is done."""
        if self.state == "stopped":
            return "Stopped; what it had reached is shown."
        if self.state != "failed":
            return ""
        if self.process is None:
            return self.problem
        code = self.process.returncode
        ended = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
        said = self._last_line()
        return f"The training process {ended}{': ' + said if said else ' without a word.'}"

    def _last_line(self) -> str:
        """The last line of standard error that is no progress bar: minipo says there what was wrong."""
        try:
            lines = self.errors.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip() and "%|" not in line), "")


class Queue:
    """Jobs in the order in which they were handed in; `slots` of them run at a time.

    Whoever asks for a job's place moves the queue on: it needs no thread of its own. Children end with the server.
    """

    def __init__(self, slots: int = SLOTS, command: Command = command) -> None:
        self._slots, self._command = slots, command
        self._jobs: list[Job] = []
        self._lock = threading.Lock()
        atexit.register(self.close)

    def submit(self, settings: Mapping[str, Any]) -> Job:
        """A new job; it runs as soon as a slot is free."""
        job = Job(dict(settings), files.home() / "app" / uuid.uuid4().hex)
        with self._lock:
            self._jobs.append(job)
        self.place(job)
        return job

    def place(self, job: Job) -> int:
        """How many jobs are before this one; 0 if it runs or is over."""
        with self._lock:
            self._jobs = [other for other in self._jobs if other.active]
            running = [other for other in self._jobs if other.state == "running"]
            waiting = [other for other in self._jobs if other.state == "waiting"]
            for other in waiting[: max(0, self._slots - len(running))]:
                self._start(other)
            waiting = [other for other in self._jobs if other.state == "waiting"]
            return waiting.index(job) + 1 if job in waiting else 0

    def stop(self, job: Job) -> None:
        """End a job, running or waiting; one that is already over stays as it is."""
        with self._lock:
            if job.active:
                job.stopped = True
                if job.process is not None:
                    job.process.terminate()

    def close(self) -> None:
        """End every job and wait for the children."""
        for job in self._jobs:
            self.stop(job)
        for job in self._jobs:
            if job.process is not None:
                try:
                    job.process.wait(timeout=5)
                except subprocess.TimeoutExpired:
                    job.process.kill()

    def _start(self, job: Job) -> None:
        try:
            job.errors.parent.mkdir(parents=True, exist_ok=True)
            # Its share of the cores and no more: threads that wait for one another's core are slower than none.
            threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self._slots))}
            with job.errors.open("wb") as errors:
                job.process = subprocess.Popen(
                    self._command(job.settings, job.folder),
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env=os.environ | threads,
                )
        except OSError as error:
            job.problem = f"The run could not be started: {error.strerror or error}."
            return
        if hasattr(os, "setpriority"):  # training yields to the page
            os.setpriority(os.PRIO_PROCESS, job.process.pid, 10)
