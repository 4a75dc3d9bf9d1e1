"""nbgrader gives the assignments in notebooks/exercises the scores they should get.

Every folder `notebooks/exercises/source/<n>_<name>/` is an assignment: one notebook, and beside this file an
`answers_<n>.py` with typical wrong submissions. The submissions that are graded, all in one `nbgrader autograde`:

- `solution`: the release notebook with the source notebook's solutions in it: full marks;
- `stub`: the release notebook as it is: 0;
- one for each entry of WRONG: the solution, with some cells replaced: what the entry says, and between the two.

"Marks" are those of automatically graded cells (locked test cells that call `check`); written answers
wait for a person, in every submission.

The format of `answers_<n>.py`:

    WRONG = {                                     # at least three entries
        "mean outside the sigmoid": {             # what is typical about it, in a few words
            "cells": {"sigmoid": "def ..."},      # grade_id of a solution cell → its whole source instead
            "messages": {"test-sigmoid": "0.31"}, # grade_id of a test cell → a piece of the message it must show
        },                                        # (a string, or a list of strings that must all be there)
    }
    SETTINGS = {"parameters": "steps = 5"}        # optional: grade_id → source, in every submission, the stub too

A wrong submission must lose the points of exactly the test cells in its `messages`, and no others. The name of a
submission is a nbgrader student id too, so that it may not hold "+". Printed with `pytest -s`: a table of the scores.

Besides: what is committed under release/ is what nbgrader generates from source/, and holds no solution.
"""

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("nbgrader", reason="nbgrader grades the exercises; students need none")

import nbformat
from nbgrader.api import Gradebook
from traitlets.config import Config

COURSE = Path(__file__).parents[3] / "notebooks" / "exercises"
ASSIGNMENTS = sorted(folder.name for folder in (COURSE / "source").iterdir() if folder.is_dir())
SOLUTION = re.compile(r"^[ \t]*### (?:BEGIN|END) SOLUTION[ \t]*\n?", re.MULTILINE)


def notebook(stage: str, assignment: str, course: Path = COURSE) -> nbformat.NotebookNode:
    """The one notebook of an assignment in source/ or release/."""
    (path,) = (course / stage / assignment).glob("*.ipynb")
    return nbformat.read(path, as_version=4)


def graded_cells(content: nbformat.NotebookNode) -> dict[str, nbformat.NotebookNode]:
    """Cells that nbgrader knows, by grade_id. (It takes the id from cells that anyone may change, such as settings.)"""
    return {
        cell.metadata.nbgrader.grade_id: cell
        for cell in content.cells
        if "grade_id" in cell.metadata.get("nbgrader", {})
    }


def solutions(assignment: str) -> dict[str, str]:
    """The solution cells of the source, without nbgrader's marks, by grade_id."""
    return {
        name: SOLUTION.sub("", cell.source)
        for name, cell in graded_cells(notebook("source", assignment)).items()
        if cell.metadata.nbgrader.solution
    }


def points(assignment: str) -> dict[str, float]:
    """Points of the automatically graded cells, by grade_id."""
    return {
        name: cell.metadata.nbgrader.points
        for name, cell in graded_cells(notebook("source", assignment)).items()
        if cell.metadata.nbgrader.grade and not cell.metadata.nbgrader.solution
    }


def nbgrader(*arguments: str, course: Path) -> None:
    """Run nbgrader in `course`; whatever it, Jupyter or minipo write goes below `course`, too."""
    home = course / "home"
    places = ["HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MINIPO_HOME"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | {place: str(home / place.lower()) for place in places}
    for place in places:
        Path(environment[place]).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "nbgrader", *arguments]
    done = subprocess.run(command, cwd=course, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def submit(course: Path, assignment: str, student: str, cells: dict[str, str]) -> None:
    """Hand in the release notebook with these cells' sources replaced."""
    released = notebook("release", assignment, course)
    known = graded_cells(released)
    for name, source in cells.items():
        assert name in known, f"{assignment} has no cell with the grade_id {name!r}: {list(known)}"
        assert not known[name].metadata.nbgrader.locked or name in settings(assignment), f"{name} is locked"
        known[name].source = source
    (path,) = (course / "release" / assignment).glob("*.ipynb")
    folder = course / "submitted" / student / assignment
    folder.mkdir(parents=True)
    nbformat.write(released, folder / path.name)


def answers(assignment: str):
    return import_module(f"tests.course.exercises.answers_{assignment.partition('_')[0]}")


def settings(assignment: str) -> dict[str, str]:
    return getattr(answers(assignment), "SETTINGS", {})


def messages(content: nbformat.NotebookNode) -> dict[str, str]:
    """What each graded cell shows: printed text and errors, by grade_id."""
    return {
        name: "\n".join(
            text
            for output in cell.get("outputs", [])
            for text in (output.get("text", ""), *output.get("traceback", []), output.get("evalue", ""))
        )
        for name, cell in graded_cells(content).items()
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_scores(assignment, tmp_path, monkeypatch):
    # nbgrader looks for `alembic`, which was installed with it, on the PATH.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    course = tmp_path / "course"
    course.mkdir()
    shutil.copy(COURSE / "nbgrader_config.py", course)
    shutil.copytree(COURSE / "source" / assignment, course / "source" / assignment)
    nbgrader("generate_assignment", assignment, course=course)
    assert same_cells(notebook("release", assignment, course), notebook("release", assignment))

    wrong, right = answers(assignment).WRONG, solutions(assignment) | settings(assignment)
    assert len(wrong) >= 3
    submissions = {"stub": settings(assignment), "solution": right}
    submissions |= {name: right | entry["cells"] for name, entry in wrong.items()}
    for student, cells in submissions.items():
        submit(course, assignment, student, cells)
    nbgrader("autograde", assignment, course=course)

    worth = points(assignment)
    total = sum(worth.values())
    scores, shown = {}, {}
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        for student in submissions:
            (graded,) = gradebook.find_submission(assignment, student).notebooks
            scores[student] = {grade.name: grade.auto_score for grade in graded.grades if grade.name in worth}
            (path,) = (course / "autograded" / student / assignment).glob("*.ipynb")
            shown[student] = messages(nbformat.read(path, as_version=4))
    print(f"\n{assignment}: automatic marks, of {total:g}")
    for student, score in scores.items():
        print(f"  {student:<48} {sum(score.values()):>3g}")

    assert scores["solution"] == worth, {name: shown["solution"][name] for name in worth}
    assert sum(scores["stub"].values()) == 0
    for student, entry in wrong.items():
        lost = {name for name, score in scores[student].items() if score < worth[name]}
        assert lost == set(entry["messages"]), f"{student}: {[shown[student][name] for name in lost]}"
        assert 0 < sum(scores[student].values()) < total
        for name, pieces in entry["messages"].items():
            for piece in [pieces] if isinstance(pieces, str) else pieces:
                assert piece in shown[student][name], f"{student}: {shown[student][name]}"


def generated(assignment: str) -> nbformat.NotebookNode:
    """What `nbgrader generate_assignment` makes of a source notebook, by its own steps, without its database."""
    from nbgrader import preprocessors as steps

    content, resources = notebook("source", assignment), {}
    for step in [
        steps.LockCells, steps.ClearSolutions, steps.ClearOutput, steps.CheckCellMetadata, steps.ComputeChecksums,
        steps.ClearHiddenTests, steps.ClearMarkScheme, steps.ComputeChecksums, steps.CheckCellMetadata,
    ]:  # fmt: skip
        content, resources = step(config=Config()).preprocess(content, resources)
    return content


def same_cells(left: nbformat.NotebookNode, right: nbformat.NotebookNode) -> bool:
    return [(cell.cell_type, cell.source, cell.metadata, cell.id) for cell in left.cells] == [
        (cell.cell_type, cell.source, cell.metadata, cell.id) for cell in right.cells
    ]


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_the_release_is_what_nbgrader_generates_and_holds_no_solution(assignment):
    released = notebook("release", assignment)
    assert same_cells(generated(assignment), released), "run `nbgrader generate_assignment --force` (README.md there)"
    text = "\n".join(cell.source for cell in released.cells)
    assert "BEGIN SOLUTION" not in text
    for cell in graded_cells(notebook("source", assignment)).values():
        for solution in re.findall(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", cell.source, re.DOTALL):
            assert solution.strip() not in text
    for cell in graded_cells(released).values():  # a written answer's model answer stands in the source alone
        if cell.cell_type == "markdown" and cell.metadata.nbgrader.solution:
            assert cell.source == "YOUR ANSWER HERE"


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("stage", ["source", "release"])
def test_notebooks_are_clean(stage, assignment):
    content = notebook(stage, assignment)
    nbformat.validate(content)
    assert content.metadata.kernelspec.name == "python3"
    names = [cell.metadata.nbgrader.grade_id for cell in content.cells if "nbgrader" in cell.metadata]
    assert len(names) == len(set(names))
    for cell in content.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert "/home/" not in cell.source
        if cell.cell_type == "code" and cell.get("metadata", {}).get("nbgrader", {}).get("grade"):
            assert re.fullmatch(r"check\(.+\)", cell.source.strip(), re.DOTALL), "assertions belong in minipo/course"
