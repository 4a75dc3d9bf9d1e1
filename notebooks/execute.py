"""Executes the course's notebooks from fresh kernels and writes their outputs into them: `make notebooks`.

    python notebooks/execute.py                        all of them, in full; prints the time each takes
    python notebooks/execute.py 03_the_collapse 05     only those whose names begin so

Every figure is kept twice, as data for an interactive one and as a picture for places that show notebooks without a
kernel (pictures need Chromium). What minipo makes meanwhile goes into a folder that is thrown away, so that the times
are those of a first visit; 08 reads the model and the data that `minipo fetch` brought.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).parent
FETCHES = "08"  # the notebook that needs a download, and so the user's own cache
FIGURE, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"


def source_hash(notebook: Any) -> str:
    """A hash of all code, in order: what the outputs were made by."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n# next cell\n".join(code).encode()).hexdigest()[:16]


def execute(notebook: Any, folder: Path, environment: dict[str, str] | None = None) -> float:
    """Run a notebook in a fresh kernel, in place, started from `folder`. Returns the seconds it took.

    Raises CellExecutionError where a cell fails.
    """
    client = NotebookClient(
        notebook,
        timeout=1800,  # seconds for a cell
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    started = time.monotonic()
    # Jupyter's own log lines stay out of the way; what a cell says goes into its output.
    client.execute(env={**os.environ, **(environment or {})}, stderr=subprocess.DEVNULL)
    return time.monotonic() - started


def clean(notebook: Any) -> None:
    """Take out what differs from run to run and what only a kernel can use; note what the outputs were made by."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if FIGURE in output.get("data", {}):  # a live figure stays as its data and its picture
                    output.data.pop(WIDGET, None)
    for state in notebook.metadata.get("widgets", {}).values():
        models = state["state"].items()  # a live figure's would bring plotly's own five megabytes along
        state["state"] = {name: model for name, model in models if model["model_module"] != "anywidget"}
    notebook.metadata["minipo"] = {"executed": source_hash(notebook)}
    notebook.metadata.get("language_info", {}).pop("version", None)


def refresh(path: Path) -> float:
    """Execute the notebook in `path` and write it back, whole or not at all. Returns the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as home:
        environment = {"PLOTLY_RENDERER": "plotly_mimetype+png"}
        if not path.name.startswith(FETCHES):
            environment["MINIPO_HOME"] = home
        seconds = execute(notebook, FOLDER, environment)
    clean(notebook)
    draft = path.with_suffix(".draft")
    nbformat.write(notebook, draft)
    draft.replace(path)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[""], help="how the notebooks' names begin; default: all")
    names = parser.parse_args().names
    paths = [path for path in sorted(FOLDER.glob("[0-9]*.ipynb")) if path.name.startswith(tuple(names))]
    if not paths:
        print(f"No notebook begins with {' or '.join(names) or 'a number'}: see {FOLDER}.", file=sys.stderr)
        return 2
    total = 0.0
    for path in paths:
        print(f"{path.stem:40}", end="", flush=True)
        try:
            seconds = refresh(path)
        except CellExecutionError as error:
            print(f"\n{path.name} failed and stays as it was: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
            return 1
        total += seconds
        print(f"{seconds:6.0f} s", flush=True)
    print(f"{'together':40}{total:6.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
