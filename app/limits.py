"""What a viewer of a shared server may ask of it: every limit of the app, in this one place.

A server for more people or with more memory changes these numbers and nothing else. `.streamlit/config.toml` has the
one that Streamlit itself must know, `server.maxUploadSize`; a test keeps the two equal.
"""

import os

SLOTS = os.cpu_count() or 1  # runs that train at the same time, one thread each
RUNS_AT_ONCE = 4  # waiting or training, of one viewer
RUNS_WAITING = 120  # waiting, of all viewers
STEPS = 1000  # of a run
NEGATIVES = 19
RUN_MINUTES = 30  # a run that trains longer is stopped, and can be continued
RUN_GB = 8  # memory of a training process
RUNS_KEPT = 20  # of one viewer
HOURS = 24  # after so long a run that is over and not kept is removed
DAYS_KEPT = 90  # and one that is kept
NAME = 60  # letters of a run's name
FREE_GB = 2  # of the disk: with less, nothing more is taken

UPLOADS_AT_ONCE = 2  # being read, of one viewer
UPLOADS = 20  # held, of one viewer
UPLOAD_MB = 20
UNPACKED_MB = 200  # of the Parquet columns that are read, and of what is compressed
PARTS = 100  # tables of a zip archive
ROWS = 300_000
COLUMNS = 50
CELL = 300  # letters of a cell
UPLOAD_SECONDS = 120  # to read an upload
UPLOAD_GB = 3  # memory of the process that reads it

EXPERIMENTS = 10  # open class experiments of one viewer
STUDENTS = 200  # of one class experiment
RESULT_KB = 500  # of a result file that a student uploads


def told() -> str:
    """The limits in words, in Markdown."""
    return (
        f"This server trains {SLOTS} run{'s' * (SLOTS > 1)} at a time; others wait in line. Each viewer may have "
        f"{RUNS_AT_ONCE} runs waiting or training, of at most {STEPS:,} steps, {RUN_MINUTES} minutes and {RUN_GB} GB. "
        f"A run that is over is removed after {HOURS} hours, one of {RUNS_KEPT} that you keep after {DAYS_KEPT} days. "
        f"Uploads: {UPLOAD_MB} MB, {ROWS:,} rows, {COLUMNS} columns, {CELL} letters a cell, and "
        f"{UPLOADS} of one viewer."
    )
