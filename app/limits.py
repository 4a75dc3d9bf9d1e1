"""Every limit of the app for viewers of a shared server, in one place.

For a server with more people or more memory, change only these numbers. `.streamlit/config.toml` repeats the one that
Streamlit itself needs, `server.maxUploadSize`; a test keeps the two equal.
"""

import os

SLOTS = os.cpu_count() or 1  # runs that train at the same time; one alone uses the idle cores too
CURVE_RUNS = 2  # runs of a curve that train at the same time; a curve is one run in the queue
RUNS_AT_ONCE = 4  # waiting or training, of one viewer
RUNS_WAITING = 120  # waiting, of all viewers
STEPS = 1000  # of a run
NEGATIVES = 19
RUN_MINUTES = 30  # a run that trains longer is stopped, and can be resumed
RUN_GB = 8  # memory of a training process, besides what it was forked with
WAITING_GB = 0.4  # memory of the process that training processes are forked from, once per server
RUNS_KEPT = 20  # of one viewer
HOURS = 24  # until a finished run that is not kept is removed
DAYS_KEPT = 90  # until a kept one is removed
NAME = 60  # characters of a run's name
FREE_GB = 2  # of the disk: with less, no job is accepted

UPLOADS_AT_ONCE = 2  # being read, of one viewer
UPLOADS = 20  # of one viewer
UPLOAD_MB = 20
UNPACKED_MB = 200  # of the Parquet columns that are read, and of what is compressed
PARTS = 100  # tables of a zip archive
ROWS = 300_000
COLUMNS = 50
CELL = 300  # characters of a cell
UPLOAD_SECONDS = 120  # to read an upload
UPLOAD_GB = 3  # memory of the process that reads it

EXPERIMENTS = 10  # open class experiments of one viewer
STUDENTS = 200  # of one class experiment
RESULT_KB = 500  # of a result file that a student uploads


def described() -> str:
    """The limits in words, in Markdown."""
    return (
        f"This server trains {SLOTS} run{'s' * (SLOTS > 1)} at a time; others wait in the queue. Each viewer may have "
        f"{RUNS_AT_ONCE} runs waiting or training, of at most {STEPS:,} steps, {RUN_MINUTES} minutes and {RUN_GB} GB. "
        f"One process with everything imported waits for them, with {WAITING_GB} GB. "
        f"A curve, {CURVE_RUNS} of whose runs train at a time, counts as one run. "
        f"A finished run is removed after {HOURS} hours, or after {DAYS_KEPT} days if you keep it; you may keep "
        f"{RUNS_KEPT}. "
        f"Uploads: {UPLOAD_MB} MB, {ROWS:,} rows, {COLUMNS} columns, {CELL} characters per cell, and "
        f"{UPLOADS} per viewer."
    )
