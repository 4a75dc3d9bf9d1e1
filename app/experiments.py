"""Class experiments: two settings, opened by a lecturer; each student trains the pair under a seed of their own.

They are in the app's database, beside the jobs. Anyone with an experiment's code may join it; only the browser that
opened it may close it or remove a student.
"""

import secrets
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from json import dumps, loads
from pathlib import Path
from typing import Any, cast

import jobs
import limits
import numpy as np
import pandas as pd
from figures import classroom
from jobs import database

from minipo.experiments import pairs
from minipo.experiments.configuration import PreferConfig, make_config, splits_of
from minipo.experiments.runs import Run

LETTERS = "BCDFGHJKMNPQRSTVWXZ"  # none that looks like another or like a digit, and no vowels, so no words
FIRST_SEED = 101  # the recorded runs have seeds from 0, which no class repeats
NICKNAME = 30  # letters
GUESS = 100  # points, at most


@dataclass(frozen=True)
class Experiment:
    """A class experiment. version: increases with every change."""

    code: str
    viewer: str
    title: str
    settings: dict[str, dict[str, Any]]  # "left" and "right": what `pairs.sides` takes
    open: bool
    version: int
    fingerprint: str | None  # of the data when it was opened; None for old experiments

    def sides(self, seed: int = 0) -> pairs.Sides:
        return pairs.sides(self.settings["left"], self.settings["right"], seed)

    @property
    def labels(self) -> tuple[str, str]:
        return classroom.side_labels(*self.sides())

    def read(self, source: Path | bytes, seed: int) -> pairs.Pair:
        """The pair of the student with that seed, from a file or its bytes; ValueError in one sentence if it is
        invalid, or on other data than the experiment's."""
        pair = pairs.read_pair(source, self.sides(seed))
        if self.fingerprint not in (None, pair.fingerprint):
            raise ValueError(
                f"This experiment was opened on data with fingerprint {self.fingerprint}, and this server's have "
                f"fingerprint {pair.fingerprint} now, so results cannot be compared: open a new experiment."
            )
        return pair


@dataclass(frozen=True)
class Entry:
    """A student of an experiment. token: of the job that trains the pair here; arrived: when the result arrived."""

    seed: int
    nickname: str
    guess: float | None
    token: str | None
    problem: str
    arrived: float | None

    @property
    def name(self) -> str:
        return self.nickname or f"seed {self.seed}"


# ------------------------------------------------------------------------------------------------------- the lecturer


def open_experiment(viewer: str, title: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> Experiment:
    """A new experiment of this lecturer; the sides' own seeds are ignored. ValueError in one sentence."""
    left, right = ({name: value for name, value in side.items() if name != "seed"} for side in (left, right))
    for side in (left, right):
        jobs.check_settings(side)
    sides = pairs.sides(left, right)
    left, right = map(pairs.essential, sides)
    settings = {"left": left, "right": right, "fingerprint": splits_of(sides[0]).fingerprint}
    code = "".join(secrets.choice(LETTERS) for _ in range(8))
    now = time.time()
    with database() as connection:
        for table in ("entries", "experiments"):
            connection.execute(
                f"delete from {table} where code in (select code from experiments where created < ?)",
                (now - 86400 * limits.DAYS_KEPT,),
            )
        _few_open(connection, viewer)
        connection.execute(
            "insert into experiments values (?, ?, ?, ?, ?, 1, ?, 0)",
            (code, viewer, jobs.named(title), dumps(settings), now, FIRST_SEED),
        )
    return cast(Experiment, find(code))


def set_open(code: str, viewer: str, open: bool) -> None:
    """Close or reopen an experiment; ValueError if it is another viewer's, or one open experiment too many.

    Finished pairs count; waiting and running ones are stopped, and can be resumed when it is open again.
    """
    if not open:
        collect(code)
    with database() as connection:
        _own(connection, code, viewer)
        if open:
            _few_open(connection, viewer)
        connection.execute("update experiments set open = ? where code = ?", (int(open), code))
        _changed(connection, code)
        waiting = connection.execute("select token from entries where code = ? and arrived is null", (code,)).fetchall()
    if not open:
        _stop(waiting)


def remove(code: str, viewer: str, seed: int) -> None:
    """Remove a student's entry and stop their pair; ValueError if the experiment is another viewer's. The seed is not
    used again."""
    with database() as connection:
        _own(connection, code, viewer)
        query = "delete from entries where code = ? and seed = ? returning token"
        tokens = connection.execute(query, (code, seed)).fetchall()
        _changed(connection, code)
    _stop(tokens)


def _stop(rows: list[sqlite3.Row]) -> None:
    for row in rows:
        if row["token"]:
            jobs.stop(row["token"])


def _few_open(connection: sqlite3.Connection, viewer: str) -> None:
    """Raises ValueError in one sentence if this viewer has the maximum of open experiments."""
    counted = connection.execute("select count(*) from experiments where viewer = ? and open", (viewer,)).fetchone()[0]
    if counted >= limits.EXPERIMENTS:
        raise ValueError(f"You have {counted} open experiments, the maximum: close one first.")


def _own(connection: sqlite3.Connection, code: str, viewer: str) -> None:
    row = connection.execute("select viewer from experiments where code = ?", (code,)).fetchone()
    if row is None or row["viewer"] != viewer:
        raise ValueError("Only the browser that opened this experiment may do that.")


def _changed(connection: sqlite3.Connection, code: str) -> None:
    connection.execute("update experiments set version = version + 1 where code = ?", (code,))


# -------------------------------------------------------------------------------------------------------- everybody


def plain_code(text: str) -> str:
    """A code as it is stored, from a typed or displayed one."""
    return "".join(letter for letter in text.upper() if letter.isalnum())


def shown_code(code: str) -> str:
    """A code as it is displayed: ABCD-EFGH."""
    return f"{code[:4]}-{code[4:]}"


def find(code: str) -> Experiment | None:
    """The experiment of that code, as it is stored, or None."""
    with database(write=False) as connection:
        row = connection.execute("select * from experiments where code = ?", (code,)).fetchone()
    return _experiment(row) if row else None


def of_viewer(viewer: str) -> list[Experiment]:
    """The experiments that this viewer opened, the newest first."""
    with database(write=False) as connection:
        query = "select * from experiments where viewer = ? order by created desc"
        return [_experiment(row) for row in connection.execute(query, (viewer,))]


def _experiment(row: sqlite3.Row) -> Experiment:
    settings = loads(row["settings"])
    fingerprint = settings.pop("fingerprint", None)
    return Experiment(
        row["code"], row["viewer"], row["title"], settings, bool(row["open"]), row["version"], fingerprint
    )


def table(code: str) -> pd.DataFrame:
    """One row per student, in the order in which results arrived: seed, name, guess, difference, and HR@1 of left,
    right and SFT, as shares; nan for missing ones."""
    query = """
        select seed, coalesce(nullif(nickname, ''), 'seed ' || seed) as name, guess,
            right_hits - left_hits as difference, left_hits as "left", right_hits as "right", sft_hits as sft
        from entries where code = ? order by arrived is null, arrived, seed
    """
    types = {"seed": int, **dict.fromkeys(("guess", "difference", "left", "right", "sft"), float)}
    with database(write=False) as connection:
        return pd.read_sql_query(query, connection, params=(code,)).astype(types)


def differences(code: str) -> np.ndarray:
    """The results, HR@1 of right minus left: (students, users), in order of arrival."""
    with database(write=False) as connection:
        rows = connection.execute(
            "select differences from entries where code = ? and arrived is not null order by arrived, seed", (code,)
        ).fetchall()
    return np.array([np.frombuffer(row["differences"], np.int8) for row in rows])


def collect(code: str | None = None) -> None:
    """Collect the pairs that the server's queue has finished, for one experiment or all."""
    with database() as connection:
        rows = connection.execute(
            "select entries.code, entries.viewer, entries.seed, entries.token from entries join jobs "
            "on jobs.token = entries.token where entries.arrived is null and jobs.state = 'done' "
            "and entries.code = coalesce(?, entries.code)",
            (code,),
        ).fetchall()
    for row in rows:
        try:
            pair = cast(Experiment, find(row["code"])).read(jobs.folder_of(row["token"]) / "result.json", row["seed"])
        except ValueError as error:
            with database() as connection:
                connection.execute(
                    "update entries set token = null, problem = ? where code = ? and seed = ?",
                    (jobs.private(str(error)), row["code"], row["seed"]),
                )
            continue
        _take(row["code"], row["viewer"], pair)


def _take(code: str, viewer: str, pair: pairs.Pair) -> None:
    left, right = (float((ranks == 0).mean()) for ranks in (pair.left_ranks, pair.right_ranks))
    differences = pair.differences.astype(np.int8).tobytes()
    with database() as connection:
        taken = connection.execute(
            "update entries set differences = ?, left_hits = ?, right_hits = ?, sft_hits = ?, arrived = ? "
            "where code = ? and viewer = ? and seed = ? and arrived is null",
            (differences, left, right, pair.sft, time.time(), code, viewer, pair.seed),
        ).rowcount
        if taken:
            _changed(connection, code)


# ------------------------------------------------------------------------------------------------------- the student


def entry(code: str, viewer: str) -> Entry | None:
    """This viewer's entry, or None."""
    with database(write=False) as connection:
        row = connection.execute("select * from entries where code = ? and viewer = ?", (code, viewer)).fetchone()
    return Entry(**{name: row[name] for name in Entry.__dataclass_fields__}) if row else None


def join(code: str, viewer: str, nickname: str = "") -> Entry:
    """This viewer's entry, with the next seed if it is new. ValueError in one sentence if joining is impossible."""
    with database() as connection:
        row = connection.execute("select * from entries where code = ? and viewer = ?", (code, viewer)).fetchone()
        if row is None:
            seed = _open(connection, code)["next_seed"]
            count = connection.execute("select count(*) from entries where code = ?", (code,)).fetchone()[0]
            if count >= limits.STUDENTS:
                raise ValueError(f"{count} students have joined, the maximum.")
            connection.execute(
                "insert into entries (code, viewer, seed, nickname, problem) values (?, ?, ?, ?, '')",
                (code, viewer, seed, " ".join(nickname.split())[:NICKNAME]),
            )
            connection.execute("update experiments set next_seed = next_seed + 1 where code = ?", (code,))
            _changed(connection, code)
    return cast(Entry, entry(code, viewer))


def _open(connection: sqlite3.Connection, code: str) -> sqlite3.Row:
    row = connection.execute("select * from experiments where code = ?", (code,)).fetchone()
    if row is None:
        raise ValueError("This experiment is no longer on this server.")
    if not row["open"]:
        raise ValueError("This experiment is closed: nothing can be added to it.")
    return row


def guess(code: str, viewer: str, points: float) -> None:
    """Save the viewer's guess, in points. ValueError if it is out of range or if there is one already."""
    if not abs(points) <= GUESS:
        raise ValueError(f"A guess is a number of points from −{GUESS} to {GUESS}.")
    with database() as connection:
        _open(connection, code)
        changed = connection.execute(
            "update entries set guess = ? where code = ? and viewer = ? and guess is null", (points, code, viewer)
        ).rowcount
        if not changed:
            raise ValueError("You have already guessed; a guess is made once.")
        _changed(connection, code)


def run(code: str, viewer: str) -> None:
    """Submit the viewer's pair to the server's queue, or resume it. ValueError in one sentence."""
    student, experiment = _student(code, viewer)
    job = jobs.find(student.token) if student.token else None
    if job is not None and job.state in ("stopped", "failed"):
        jobs.resume(job.token)
    elif job is None:
        left, right = experiment.labels
        job = jobs.submit(
            "pair", {**experiment.settings, "seed": student.seed}, viewer, f"{right} minus {left}, seed {student.seed}"
        )
        with database() as connection:
            connection.execute(
                "update entries set token = ?, problem = '' where code = ? and viewer = ?", (job.token, code, viewer)
            )


def deliver(code: str, viewer: str, content: bytes) -> None:
    """Accept a result file from the viewer. ValueError in one sentence if it does not belong to this pair."""
    student, experiment = _student(code, viewer)
    if len(content) > 1024 * limits.RESULT_KB:
        raise ValueError(
            f"The file is larger than {limits.RESULT_KB} KB, so it is not a pair's result; choose that one."
        )
    pair = experiment.read(content, student.seed)
    _take(code, viewer, pair)
    if student.token and (job := jobs.find(student.token)) and job.active:
        jobs.stop(job.token)


def _student(code: str, viewer: str) -> tuple[Entry, Experiment]:
    """The viewer's entry, if it still lacks its result, and its experiment; else ValueError in one sentence."""
    with database(write=False) as connection:
        experiment = _experiment(_open(connection, code))
    student = entry(code, viewer)
    if student is None:
        raise ValueError("You have not joined this experiment, or you were removed: join first.")
    if student.guess is None:
        raise ValueError("Guess first, then run the pair.")
    if student.arrived is not None:
        raise ValueError("Your result has already arrived; an experiment takes one per student.")
    return student, experiment


def progress(job: jobs.Job) -> float:
    """The progress of a pair's runs, from 0 to 1: the share of steps trained."""
    done = total = 0
    for name in ("left", "right"):
        total += make_config(PreferConfig, job.settings[name]).steps
        if (job.runs / name / "config.json").is_file():
            done += steps_trained(Run(job.runs / name))
    return done / total


def steps_trained(run: Run) -> int:
    """How many steps a preference run has trained, as far as it has logged them."""
    steps = run.metrics.get("step", pd.Series(dtype=int))
    return int(steps.max()) if len(steps) else 0
