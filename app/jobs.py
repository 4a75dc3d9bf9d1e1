"""Work that pages submit to the server: training runs, curves of them, class experiments' pairs, uploads to be read.

A job is a row of a table in a SQLite file, which is the queue: the worker, `worker.py`, starts a process for the one
that has waited longest, and any page finds it again after a restart. A job's token is its link: it cannot be guessed,
and anyone who has it may view, stop and remove the job.
"""

import os
import re
import secrets
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from json import dumps, loads
from pathlib import Path
from typing import Any, cast

import limits
import psutil

from minipo.experiments import fetch, files
from minipo.experiments.configuration import PreferConfig, make_config
from minipo.experiments.datasets.loading import DATASETS
from minipo.experiments.datasets.splits import FILES, ending
from minipo.experiments.runs import DATA

WORKER = Path(__file__).with_name("worker.py")
ACTIVE = ("waiting", "running")
ENDED_EARLY = ("stopped", "failed")
AXES = ("negatives", "dynamic")  # the settings in which a curve's runs differ
OWN = "own:"  # begins the name of an uploaded dataset, before the upload's token
SUFFIXES = (*FILES, *(f"{suffix}.gz" for suffix in FILES if suffix not in (".parquet", ".zip")))  # of an upload
# The last two tables are those of experiments.py.
DATABASE = """
    pragma journal_mode = wal;
    create table if not exists jobs (
        token text primary key, viewer text, kind text, name text, settings text, state text, message text,
        created real, started real, ended real, kept integer, pid integer
    );
    create table if not exists experiments (
        code text primary key, viewer text, title text, settings text, created real, open integer, next_seed integer,
        version integer
    );
    create table if not exists entries (
        code text, viewer text, seed integer, nickname text, guess real, token text, problem text, arrived real,
        differences blob, left_hits real, right_hits real, sft_hits real,
        primary key (code, seed), unique (code, viewer)
    );
"""


@dataclass(frozen=True)
class Job:
    """A job as it is in the table.

    kind: "prefer", settings of `PreferConfig`; "curve", the same with a list of each of `AXES`; "pair", {"left",
    "right", "seed"}; "data", {"suffix"}. state: waiting,
    running, done, stopped or failed; message: how it ended, in one sentence, or empty.
    """

    token: str
    viewer: str
    kind: str
    name: str
    settings: dict[str, Any]
    state: str
    message: str
    created: float
    started: float | None
    ended: float | None
    kept: bool
    pid: int | None

    @property
    def folder(self) -> Path:
        return folder_of(self.token)

    @property
    def run(self) -> Path:  # the folder of a preference run
        return self.folder / "run"

    @property
    def runs(self) -> Path:  # the folder of a curve's or a pair's runs
        return self.folder / "runs"

    @property
    def result(self) -> Path:  # of a pair or an upload, as JSON
        return self.folder / "result.json"

    @property
    def upload(self) -> Path:  # the uploaded file, under a name of our own
        return self.folder / f"upload{self.settings.get('suffix', '')}"

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


def folder_of(token: str) -> Path:
    return files.home() / "app" / "jobs" / token


@contextmanager
def database(write: bool = True) -> Generator[sqlite3.Connection]:
    """One transaction on the app's database; with `write` False it only reads, and waits for no other."""
    path = files.home() / "app" / "app.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=10, isolation_level=None)
    try:
        connection.row_factory = sqlite3.Row
        connection.executescript(DATABASE)
        connection.execute("begin immediate" if write else "begin")
        with connection:
            yield connection
    finally:
        connection.close()


def _job(row: sqlite3.Row) -> Job:
    return Job(**dict(row) | {"settings": loads(row["settings"]), "kept": bool(row["kept"])})


# ------------------------------------------------------------------------------------------------- what a page may do


def submit(kind: str, settings: Mapping[str, Any], viewer: str, name: str, upload: bytes | None = None) -> Job:
    """Submit a job. Raises ValueError in one sentence if a setting, a limit or a full disk does not allow it."""
    _check(kind, settings, upload)
    token = secrets.token_urlsafe(16)
    folder = folder_of(token)
    try:
        folder.mkdir(parents=True)
        if shutil.disk_usage(folder).free < limits.FREE_GB * 2**30:
            raise ValueError("This server's disk is almost full: remove runs and uploads that you no longer need.")
        if upload is not None:
            (folder / f"upload{settings['suffix']}").write_bytes(upload)
        with database() as connection:
            _room(connection, kind, viewer)
            connection.execute(
                "insert into jobs values (?, ?, ?, ?, ?, 'waiting', '', ?, null, null, 0, null)",
                (token, viewer, kind, named(name), dumps(dict(settings)), time.time()),
            )
    except (ValueError, OSError, sqlite3.Error) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, ValueError):
            raise
        raise ValueError("This server could not save it; its disk may be full. Try again in a few minutes.") from None
    return cast(Job, find(token))


def _room(connection: sqlite3.Connection, kind: str, viewer: str) -> None:
    """Raises ValueError in one sentence if the viewer, or all viewers, have as many jobs as `limits` allows."""

    def count(where: str, *values: object) -> int:
        return connection.execute(f"select count(*) from jobs where {where}", values).fetchone()[0]

    mine = count(f"state in {ACTIVE} and viewer = ? and (kind = 'data') = ?", viewer, kind == "data")
    most = limits.UPLOADS_AT_ONCE if kind == "data" else limits.RUNS_AT_ONCE
    if mine >= most:
        what = "uploads being read" if kind == "data" else "runs waiting or training"
        raise ValueError(f"You have {mine} {what}, the maximum: stop one, or wait until one is finished.")
    if kind == "data" and (held := count("kind = 'data' and state = 'done' and viewer = ?", viewer)) >= limits.UPLOADS:
        raise ValueError(f"You have {held} uploads, the maximum: remove one of them.")
    if (waiting := count(f"state in {ACTIVE}")) >= limits.RUNS_WAITING + limits.SLOTS:
        raise ValueError(f"{waiting} runs are waiting on this server, the maximum: try again in a few minutes.")


def suffix(name: str) -> str:
    """The ending of an upload's name, which gives its format: ".csv", ".csv.gz"."""
    return ending(name) + ".gz" * name.lower().endswith(".gz")


def named(name: str) -> str:
    """A name as it is stored: on one line, not too long."""
    return " ".join(name.split())[: limits.NAME]


def _check(kind: str, settings: Mapping[str, Any], upload: bytes | None) -> None:
    if kind == "data":
        if settings.get("suffix") not in SUFFIXES:
            raise ValueError(f"The file's name must end in {', '.join(FILES)}; save it as one of these.")
        if not upload:
            raise ValueError("The file is empty; choose one with rows.")
        if len(upload) > limits.UPLOAD_MB * 2**20:
            raise ValueError(f"The file is larger than {limits.UPLOAD_MB} MB, the limit here; leave out some rows.")
        return
    runs: list[Mapping[str, Any]] = [settings]
    if kind == "pair":
        runs = [settings["left"], settings["right"]]
    elif kind == "curve":
        cells = product(*(settings[axis] for axis in AXES))
        runs = [{**settings, **dict(zip(AXES, cell, strict=True))} for cell in cells]
    for run in runs:
        check_settings(run)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises ValueError in one sentence if a viewer may not train a run with these settings."""
    if "sft" in settings:
        raise ValueError("Runs here start from minipo's own SFT run; leave sft out.")
    model, dataset = settings.get("model", "pocket-gpt2"), settings.get("dataset", "catalog")
    if model not in (*fetch.SOURCES, "pocket-gpt2", "pocket-qwen2") or model in DATASETS:
        raise ValueError("This model is not offered here; choose one from the list.")
    if dataset not in DATASETS:
        data = find(dataset.removeprefix(OWN)) if str(dataset).startswith(OWN) else None
        if data is None or data.kind != "data" or data.state != "done":
            raise ValueError("These data are not on this server (any more): upload them again.")
    config = make_config(PreferConfig, {**settings, "dataset": "catalog"})
    for name, most in (("steps", limits.STEPS), ("negatives", limits.NEGATIVES)):
        if getattr(config, name) > most:
            raise ValueError(f"{name} is {getattr(config, name):,}, and at most {most:,} are allowed here.")


def find(token: str) -> Job | None:
    """The job of that token, or None."""
    with database(write=False) as connection:
        row = connection.execute("select * from jobs where token = ?", (token,)).fetchone()
    return _job(row) if row else None


def of_viewer(viewer: str, kind: str) -> list[Job]:
    """A viewer's jobs of this kind, the newest first."""
    with database(write=False) as connection:
        query = "select * from jobs where viewer = ? and kind = ? order by created desc"
        return [_job(row) for row in connection.execute(query, (viewer, kind))]


def place(token: str) -> int:
    """How many jobs are waiting before this one; 0 if it is next, running or finished."""
    with database(write=False) as connection:
        return connection.execute(
            "select count(*) from jobs, (select created as mine, state as now from jobs where token = ?) "
            "where now = 'waiting' and state = 'waiting' and created < mine",
            (token,),
        ).fetchone()[0]


def stop(token: str) -> str:
    """End a job, waiting or running. Returns what happened, in one sentence."""
    with database() as connection:
        changed = connection.execute(
            "update jobs set state = 'stopped', ended = ?, message = case when started is null "
            "then 'Stopped before it started.' else 'Stopped; its results so far are shown.' end "
            f"where token = ? and state in {ACTIVE}",
            (time.time(), token),
        ).rowcount
    if changed:
        return "Stopped."
    if (job := find(token)) is None:
        return "This run is no longer on this server."
    before = {"done": "It had already finished.", "stopped": "It was already stopped."}
    return before.get(job.state, "It had already ended.")


def resume(token: str) -> None:
    """Resume a job that was stopped, or that failed; ValueError as in `submit`."""
    job = find(token)
    if job is None or job.state not in ENDED_EARLY:
        return
    with database() as connection:
        _room(connection, job.kind, job.viewer)
        connection.execute(
            "update jobs set state = 'waiting', message = '', ended = null, created = ? "
            f"where token = ? and state in {ENDED_EARLY}",
            (time.time(), token),
        )


def rename(token: str, name: str) -> None:
    """Give a job another name; an empty one changes nothing."""
    if named(name):
        with database() as connection:
            connection.execute("update jobs set name = ? where token = ?", (named(name), token))


def keep(token: str, kept: bool) -> None:
    """Keep a job longer, or not. Raises ValueError if its viewer keeps the maximum already."""
    with database() as connection:
        viewer = connection.execute("select viewer from jobs where token = ?", (token,)).fetchone()
        if viewer is None:
            return
        count = connection.execute("select count(*) from jobs where viewer = ? and kept", (viewer[0],)).fetchone()[0]
        if kept and count >= limits.RUNS_KEPT:
            raise ValueError(f"You keep {count} runs, the maximum: stop keeping another one first.")
        connection.execute("update jobs set kept = ? where token = ?", (int(kept), token))


def remove(token: str) -> None:
    """Remove a job and its files, and with an upload all runs on it; a running job is stopped first."""
    stop(token)
    job = find(token)
    if job is None:
        return  # an unknown token never becomes a path
    for run in runs_on(token):
        remove(run)
    with database() as connection:
        connection.execute("delete from jobs where token = ?", (token,))
    # A process that still trains would write the removed files again. The number of an old one may belong to another.
    recent = job.state == "stopped" and job.ended is not None and time.time() - job.ended < 60
    end = time.monotonic() + 5 * recent
    while job.pid is not None and psutil.pid_exists(job.pid) and time.monotonic() < end:
        time.sleep(0.1)
    if job.kind == "data":
        for start in files.home().glob("runs/*/config.json"):  # the SFT runs that runs on it started from
            with suppress(OSError, ValueError):
                if files.read_json(start).get("dataset") == os.path.abspath(job.upload):
                    shutil.rmtree(start.parent, ignore_errors=True)
    shutil.rmtree(job.folder, ignore_errors=True)


def runs_on(token: str) -> list[str]:
    """The tokens of all runs on that upload, of any viewer, the newest first."""
    with database(write=False) as connection:
        query = "select token from jobs where json_extract(settings, '$.dataset') = ? order by created desc"
        return [row["token"] for row in connection.execute(query, (OWN + token,))]


def tidy() -> None:
    """Remove expired jobs, an upload only after the last run on it, and folders without a job."""
    now = time.time()
    with database() as connection:
        old = connection.execute(
            f"select token from jobs where state not in {ACTIVE} and ended < case kept when 1 then ? else ? end",
            (now - 86400 * limits.DAYS_KEPT, now - 3600 * limits.HOURS),
        ).fetchall()
        known = {row["token"] for row in connection.execute("select token from jobs")}
    for row in old:
        if not runs_on(row["token"]):
            remove(row["token"])
    for folder in (files.home() / "app" / "jobs").glob("*"):
        with suppress(OSError):  # it may be gone by now
            if folder.name not in known and now - folder.stat().st_mtime > 60:
                shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------------ what the worker does


def begin() -> Job | None:
    """The job that has waited longest, now running; None if none is waiting."""
    with database() as connection:
        row = connection.execute(
            "update jobs set state = 'running', started = ? where token = "
            "(select token from jobs where state = 'waiting' order by created limit 1) returning *",
            (time.time(),),
        ).fetchone()
    return _job(row) if row else None


def note_process(token: str, pid: int) -> None:
    with database() as connection:
        connection.execute("update jobs set pid = ? where token = ?", (pid, token))


def finish(token: str, state: str, message: str) -> None:
    """Save how a running job ended; one that has been stopped stays stopped."""
    with database() as connection:
        connection.execute(
            "update jobs set state = ?, message = ?, ended = ? where token = ? and state = 'running'",
            (state, message, time.time(), token),
        )


def wait_again() -> None:
    """Let the running jobs wait, as they have no process any more; the worker resumes them."""
    with database() as connection:
        connection.execute("update jobs set state = 'waiting' where state = 'running'")


def with_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as minipo takes them, with the path of an uploaded dataset."""
    dataset = str(settings.get("dataset", ""))
    if not dataset.startswith(OWN):
        return dict(settings)
    data = find(dataset.removeprefix(OWN))
    if data is None:
        raise ValueError("The uploaded data of this run are no longer on this server: upload them again.")
    return {**settings, "dataset": str(data.upload)}


def private(text: str) -> str:
    """`text` without paths of this machine or an upload's token; an upload gets the name that its viewer gave it."""
    for token in re.findall(r"([\w-]+)[/\\]upload\.\w+", text):
        if (job := find(token)) is not None:
            text = text.replace(str(job.upload), job.name)
    places = {files.home(): "minipo's folder", DATA.parent: "minipo", Path(sys.prefix): "Python", Path.home(): "~"}
    for path, name in places.items():
        if path != Path(path.anchor):  # the home of a user without one is the root
            text = text.replace(str(path.resolve()), name).replace(str(path), name)
    return text


# ---------------------------------------------------------------------------------------------------------- the worker


def start_worker() -> None:
    """Start the worker beside this server, and restart it whenever it dies; it ends with the server."""
    threading.Thread(target=_supervise, daemon=True, name="worker").start()


def _supervise() -> None:
    program = [sys.executable, str(WORKER)]
    while True:
        # The worker's standard input closes when this process ends in any way, and then the worker ends too. Control-C
        # in the server's terminal must not reach the runs, hence the new session.
        with suppress(OSError), subprocess.Popen(program, stdin=subprocess.PIPE, start_new_session=True) as worker:
            worker.wait()
        time.sleep(1)
