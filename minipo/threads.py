"""Threads on a machine that others use too: how long they wait for each other, and how many compute.

After each parallel part of an operation OpenMP's threads wait for the slowest of them in a loop that keeps their cores
busy, by default for milliseconds. Beside another process that needs these cores, the thread that they wait for does not
get one, and a pocket model's step takes ten times as long. So threads sleep after a short wait, and a small model,
whose operations are short, is trained on the cores that other processes leave (`benchmarks/against.py`).
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil

# Read once, when torch loads its OpenMP: libgomp's on Linux (a number of rounds, about 0.1 ms), LLVM's on macOS and
# Intel's on Windows (1 ms). Shorter waits cost more on an idle machine than they save on a busy one.
WAITS = {"GOMP_SPINCOUNT": "5000", "KMP_BLOCKTIME": "1"}
if "OMP_WAIT_POLICY" not in os.environ:  # what the user has set stays
    for name, value in WAITS.items():
        os.environ.setdefault(name, value)

SMALL = 10_000_000  # parameters; a larger model is faster on its share of all cores than alone on one
QUOTA = Path("/sys/fs/cgroup/cpu.max")


class Threads:
    """How many threads a run uses: as many as other processes leave cores for, by their use of them since the last
    call; all for a larger model, or if OMP_NUM_THREADS is set. Results are the same up to rounding."""

    def __init__(self) -> None:
        import torch

        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(min(torch.get_num_threads(), _quota()))
        self.most = torch.get_num_threads()
        self.process = psutil.Process()
        # A process may be confined to some of the cores; not on macOS.
        confined = self.process.cpu_affinity() if hasattr(self.process, "cpu_affinity") else None
        self.cores = confined or list(range(psutil.cpu_count() or 1))
        self.before = self._look()

    def others(self) -> float | None:
        """How many of the cores other processes used on average since the last call; None if that was a moment ago."""
        now = self._look()
        seconds, by_all, by_this = (after - before for after, before in zip(now, self.before, strict=True))
        if seconds <= 0.1:  # the system counts in hundredths
            return None
        self.before = now
        return (by_all - by_this) / seconds

    def adapt(self, model: Any) -> None:
        """Set torch's number of threads, to train or evaluate `model`."""
        if "OMP_NUM_THREADS" in os.environ or sum(each.numel() for each in model.parameters()) > SMALL:
            return
        import torch

        if (others := self.others()) is not None:
            torch.set_num_threads(max(1, min(self.most, round(len(self.cores) - others))))

    def _look(self) -> tuple[float, float, float]:
        """The time, and how long these cores have been in use by all processes and by this one, in seconds."""
        times = psutil.cpu_times(percpu=True)
        kinds = ("user", "nice", "system", "irq", "softirq", "steal")
        by_all = sum(getattr(times[core], kind, 0.0) for core in self.cores for kind in kinds)
        own = self.process.cpu_times()
        return time.monotonic(), by_all, own.user + own.system


def _quota() -> int:
    """How many cores a container allows, or a great many: torch sees all of the machine's."""
    try:
        quota, period = QUOTA.read_text().split()
        return max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return sys.maxsize
