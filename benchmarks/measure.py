"""Shared by the benchmarks, not one itself: command line, a process for each measurement, models and users, provenance.

A measurement in a separate process has its own peak memory and does not affect the next one.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import report as readme
import torch

from minipo.arithmetic import processor
from minipo.compatibility.forwards import reuse_memory
from minipo.experiments.datasets import catalog
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.datasets.splits import Interaction
from minipo.experiments.files import write_json
from minipo.experiments.models import load_model
from minipo.experiments.runs import versions
from minipo.prompts import TEMPLATES, answer, render

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
TOLERANCE = 1e-3  # nats, on summed log-probs; float32 rounding is about a hundredth of it
Report = dict[str, Any]


def run(
    script: str,
    description: str | None,
    benchmark: Callable[[bool], Report],
    measured: Callable[[Report], Report] | None = None,
    packages: Sequence[str] = (),
) -> Report | None:
    """What each script does: measure, print what the README is to say, and write that report as JSON beside the script.

    benchmark: measures everything; its argument says whether on tiny settings. measured: makes one measurement, in a
    separate process, from the settings that `alone` was given. packages: more whose versions matter.
    Returns what was written, if it was.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run on tiny settings that writes no file")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"of each measurement (all cores: {THREADS})")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.measure and measured:
        print(json.dumps(measured(given.measure)))
        return None
    report = {"provenance": provenance(packages)} | benchmark(given.quick)
    print("", *getattr(readme, Path(script).stem)(report), sep="\n\n")
    if given.quick:
        print("\nA smoke run: tiny models and settings, whatever the text says; nothing was written.")
        return None
    write_json(Path(script).with_suffix(".json"), report)
    return report


def check_installed(extra: str, *names: str) -> None:
    """SystemExit, saying what to do, if a package of this extra of pyproject.toml is missing."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"{' and '.join(missing)} not installed: run pip install -e '.[{extra}]'.")


def alone(script: str, settings: Report) -> Report:
    """The output of `script --measure settings` in a separate process with this one's number of threads.

    "environment" in the settings: variables that are set there besides this process's.
    """
    command = [sys.executable, script, "--threads", str(torch.get_num_threads()), "--measure", json.dumps(settings)]
    environment = os.environ | settings.get("environment", {})
    child = subprocess.run(command, capture_output=True, text=True, env=environment)
    if child.returncode:
        reason = (child.stderr.strip() or f"exit status {child.returncode}").splitlines()[-1]
        if child.returncode == -9:
            reason = "it was killed, probably because memory ran out; free some"
        raise SystemExit(f"The measurement {settings} failed: {reason}.")
    print(".", end="", file=sys.stderr, flush=True)
    return json.loads(child.stdout.splitlines()[-1])


def in_turns(script: str, sides: Mapping[str, Report], repeats: int) -> dict[str, list[Report]]:
    """The measurements of each side, `repeats` times one side after the other."""
    turns = [{side: alone(script, settings) for side, settings in sides.items()} for _ in range(repeats)]
    return {side: [turn[side] for turn in turns] for side in sides}


def summary(runs: Mapping[str, Sequence[Report]], steps: int = 1) -> Report:
    """Of each side's runs: the median seconds and peak memory, and the seconds of them all, divided by `steps`."""
    times = {side: [seconds / steps for run in each for seconds in run["seconds"]] for side, each in runs.items()}
    return {
        "seconds": {side: statistics.median(each) for side, each in times.items()},
        "peak_gb": {side: statistics.median(run["peak_gb"] for run in each) for side, each in runs.items()},
        "all_seconds": times,
    }


def largest_difference(left: Sequence[Any], right: Sequence[Any]) -> float:
    """Between two sides' log-probs, in nats; SystemExit if they are not the same up to rounding."""
    difference = (torch.tensor(left) - torch.tensor(right)).abs().max().item()
    if not difference < TOLERANCE:
        raise SystemExit(f"The sides' log-probs differ by {difference:.2g}: the timings would be meaningless.")
    return difference


def prepare(reuse: bool = True) -> None:
    """The same start for all sides of a comparison: a seed, and freed memory that is kept, see `reuse_memory`."""
    torch.manual_seed(0)
    if reuse:
        reuse_memory()


def peak_memory() -> float:
    """The peak resident memory of this process so far, in GB (1e9 bytes)."""
    # A process inherits its parent's memory at its start; the parents here have only imported the same modules.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def provenance(packages: Sequence[str] = ()) -> Report:
    """Where and with what the numbers were made."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "processor": f"{processor()} ({torch.backends.cpu.get_cpu_capability()})",
        "threads": torch.get_num_threads(),
        # Of the last minute: at most about the number of threads, or the timings suffer.
        "load": round(os.getloadavg()[0], 2),
        **versions(),
        **{name: version(name) for name in packages},
    }


def smollm2(small: bool = False) -> tuple[Any, Any]:
    """SmolLM2-135M in float32 with its tokenizer, fetched on first use. small: a pocket model, for a smoke run."""
    if small:
        return load_model("pocket-qwen2", items=[*NAMES, render(TEMPLATES["music"], NAMES, NAMES)])
    return load_model("smollm2-135m")


def setting(name: str, count: int) -> tuple[Any, Any, Sequence[Interaction], Sequence[str], str]:
    """A model and its tokenizer, users, the items' names and the template: the catalogue's for pocket-gpt2, and
    LastFM's shape for smollm2-135m, or for what stands in for it in a smoke run."""
    if name != "pocket-gpt2":
        return *smollm2(small=name != "smollm2-135m"), lastfm_shaped(count), NAMES, "music"
    splits = load_dataset("catalog")
    return *load_model(name, items=splits.items), splits.train[:count], splits.items, "line"


NAMES = (*catalog.SHARED_WORDS, *catalog.world(0).items)  # of one word and of two: 3 tokens, like the names in LastFM
_OFTEN = np.repeat([0.75 / 60, 0.25 / 240], [60, 240])  # seven in ten of those drawn have one word


def lastfm_shaped(count: int, negatives: int = 19, history: tuple[int, int] = (3, 5)) -> list[Interaction]:
    """Invented users whose prompts look like LastFM's under the template "music": about 120 tokens of SmolLM2 with 20
    candidates in the list, 3 to 4 a candidate. history: its minimum and maximum number of items."""
    random = np.random.default_rng(0)
    users = []
    for user in range(count):
        past = random.integers(*history, endpoint=True)
        names = [NAMES[place] for place in random.choice(len(NAMES), past + 1 + negatives, replace=False, p=_OFTEN)]
        candidates = tuple(names[past:])
        users.append(Interaction(user, tuple(names[:past]), candidates[random.integers(len(candidates))], candidates))
    return users


def texts(users: Sequence[Interaction], template: str) -> tuple[list[str], list[list[str]]]:
    """Prompts, and the candidates that follow them, chosen first."""
    prompts = [render(TEMPLATES[template], user.history, user.candidates) for user in users]
    return prompts, [[answer(item) for item in user.canonical] for user in users]
