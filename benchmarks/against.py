"""This build and an earlier one, side by side: `python benchmarks/against.py 6602be4` (about 25 minutes).

Checks the other commit out into a temporary worktree and measures both in turns, each measurement in a process that
imports that build, with this environment's packages and, if that commit needs others, with them:

- a live run, as the app's queue does it: 300 steps of DMPO at K = 15 on the catalogue, from the click to the first
  point of its curve and to HR@1 on the test users; the first run on a server, a later one, and a later one beside
  another program that keeps every core busy;
- where the time goes: imports, the reference's log-probs, steps, evaluations, in preference training and SFT of
  pocket-gpt2 on the catalogue;
- a preference step of SmolLM2-135M at K = 15, with a reference forward each step and without (`step.py`).

Prints tables and writes against.json beside this file and docs/speed.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
Report = dict[str, Any]
LIVE = {"objective": "dmpo", "negatives": 15, "steps": 300, "evaluate_every": 30}
BUSY = "while True: pass"
POLL = 0.05  # seconds between looks at a run until its first point, and four times that later, to disturb it less
READY = 20  # seconds from a server's start to the first click


# --------------------------------------------------------------------- in a process that imports one of the two builds


def live(settings: Report) -> list[Report]:
    """Runs one after the other through a new server's queue: seconds from click to first point, and to the end."""
    os.environ["MINIPO_HOME"] = tempfile.mkdtemp()  # so that the first run finds no log-probs of the reference
    sys.path.insert(0, str(Path.cwd() / "app"))
    import jobs

    jobs.start_worker()
    time.sleep(READY)
    found = []
    for seed in range(settings["runs"]):
        with neighbour(settings["busy"] and seed > 0):
            start, first = time.monotonic(), None
            job = jobs.submit("prefer", LIVE | {"steps": settings["steps"], "seed": seed}, "viewer", "run")
            while (now := jobs.find(job.token)).active:
                points = job.run / "evaluation.jsonl"
                if first is None and points.exists() and points.stat().st_size:
                    first = time.monotonic() - start
                time.sleep(POLL if first is None else 4 * POLL)
            end = time.monotonic() - start
        if now.state != "done":
            raise SystemExit(f"The run ended early: {now.message}")
        found.append({"first": first, "end": end})
    return found


@contextmanager
def neighbour(there: bool) -> Iterator[None]:
    """Another program that keeps every core busy, while the block lasts."""
    count = (os.cpu_count() or 1) * there
    others = [subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def parts(settings: Report) -> Report:
    """Seconds of the parts of a run in a process of its own. settings: `kind`, "prefer" or "sft", and the run's."""
    os.environ["MINIPO_HOME"] = tempfile.mkdtemp()
    begin = time.monotonic()
    import minipo

    trainers, spent = (minipo.PreferenceTrainer, minipo.SFTTrainer), {"imports": time.monotonic() - begin}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            start = time.monotonic()
            try:
                return function(*arguments, **named)
            finally:
                spent[part] = spent.get(part, 0.0) + time.monotonic() - start

        return call

    for trainer in trainers:
        trainer.training_step = timed("steps", trainer.training_step)
        scored = trainer.logps

        def logps(self: Any, rows: Any, which: Any, task: str, scored: Any = scored) -> Iterator[Any]:
            batches = scored(self, rows, which, task)
            part = timed("reference" if task == "reference" else "evaluations", lambda: next(batches, None))
            yield from iter(part, None)

        trainer.logps = logps
    users = sys.modules[minipo.evaluate.__module__]
    users.evaluate = timed("evaluations", minipo.evaluate)
    run = getattr(minipo, settings.pop("kind"))(Path(tempfile.mkdtemp(), "run"), progress=False, **settings)
    whole = time.monotonic() - begin
    return spent | {"the rest": whole - sum(spent.values()), "in all": whole, "hr@1": run.summary["hr@1"]}


MEASURES: dict[str, Callable[[Report], Any]] = {"live": live, "parts": parts}


# ------------------------------------------------------------------------------------------------- in the main process


class Side:
    """A build in `tree`, with a minipo folder of its own."""

    def __init__(self, tree: Path, home: Path, packages: Path):
        self.tree = tree
        names = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # a build's own choice is measured
        self.environment = {name: value for name, value in os.environ.items() if name not in names}
        self.environment |= {"PYTHONPATH": f"{tree}{os.pathsep}{packages}", "MINIPO_HOME": str(home)}

    def __call__(self, script: Path, settings: Report) -> Any:
        """What `script --measure settings` prints."""
        command = [sys.executable, str(script), "--measure", json.dumps(settings)]
        child = subprocess.run(command, cwd=self.tree, env=self.environment, stdout=subprocess.PIPE, text=True)
        if child.returncode:
            raise SystemExit(f"Measuring {settings} in {self.tree} failed.")
        return json.loads(child.stdout.splitlines()[-1])


def install_missing(tree: Path, folder: Path) -> Path:
    """Install into `folder` what the build in `tree` requires and this environment lacks."""
    needed = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["dependencies"]
    there = {each.name.lower().replace("_", "-") for each in distributions()}
    missing = [each for each in needed if Requirement(each).name.lower().replace("_", "-") not in there]
    if missing:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*pip, "-c", str(tree / "constraints.txt"), *missing], check=True)
    return folder


@contextmanager
def sides(commit: str) -> Iterator[dict[str, Side]]:
    """Both builds, the other one in a worktree that is removed again."""
    from minipo.experiments import files

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        tree = Path(folder, "tree")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            found = {}
            for name, path in (("before", tree), ("now", ROOT)):
                home = Path(folder, f"home-{name}")
                home.mkdir()
                (home / "fetched").symlink_to(files.home() / "fetched")
                found[name] = Side(path, home, install_missing(path, Path(folder, f"packages-{name}")))
            yield found
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def in_turns(both: dict[str, Side], script: Path | str, settings: Report, turns: int) -> dict[str, list[Any]]:
    """What both builds measure, one after the other. script: this one, or the name of each build's own."""
    found: dict[str, list[Any]] = {name: [] for name in both}
    for turn in range(turns):
        for name in both if turn % 2 == 0 else reversed(both):
            side = both[name]
            found[name].append(side(script if isinstance(script, Path) else side.tree / script, settings))
            print(".", end="", file=sys.stderr, flush=True)
    return found


def against(commit: str, quick: bool) -> Report:
    """Both builds' measurements: name to build to a list with one entry a turn."""
    from step import MODELS

    here, steps, turns = Path(__file__).resolve(), 10 if quick else 300, 1 if quick else 3
    size = MODELS["pocket-gpt2" if quick else "smollm2-135m"]
    step = {"model": "pocket-gpt2" if quick else "smollm2-135m", "negatives": 15, **size}
    step["steps"] *= 1 if quick else 3  # on a machine that others share, two steps say little
    run = {"kind": "prefer", "objective": "dmpo", "negatives": 15, "steps": steps}
    with sides(commit) as both:
        return {
            "live": in_turns(both, here, {"what": "live", "runs": 2, "steps": steps, "busy": False}, turns),
            "busy": in_turns(both, here, {"what": "live", "runs": 2, "steps": steps, "busy": True}, 1),
            "prefer": in_turns(both, here, {"what": "parts", **run}, turns),
            "sft": in_turns(both, here, {"what": "parts", "kind": "sft", "epochs": 0.5 if quick else 10}, turns),
            **{
                side: in_turns(both, "benchmarks/step.py", step | {"side": side}, turns) for side in ("fresh", "cached")
            },
        }


def main() -> None:
    import measure
    import report

    from minipo.experiments.files import write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the other build")
    parser.add_argument("--quick", action="store_true", help="a smoke run on tiny settings that writes no file")
    given = parser.parse_args()
    found = {"provenance": measure.provenance(), "commit": given.commit} | against(given.commit, given.quick)
    print("", *report.against(found), sep="\n\n")
    if not given.quick:
        write_json(Path(__file__).with_suffix(".json"), found)


if __name__ == "__main__":
    if "--measure" in sys.argv:
        given = json.loads(sys.argv[-1])
        print(json.dumps(MEASURES[given.pop("what")](given)))
    else:
        main()
