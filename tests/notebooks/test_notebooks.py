"""The course's notebooks: executed, their widgets moved, and their committed outputs looked at.

`make test` executes each as its `fast` metadata says, from another folder than its own and in a fork of the tests'
process; `make test-all` in full, each from a fresh kernel, and compares what is printed with what is committed. 08,
which needs a download, is executed only where that is possible.
"""

import base64
import gc
import importlib
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from minipo.experiments import fetch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
sys.path.append(str(FOLDER))
execute: Any = importlib.import_module("execute")

PATHS = sorted(FOLDER.glob("[0-9]*.ipynb"))
OFFLINE = [path for path in PATHS if not path.name.startswith("08")]
FETCHED = ("ml-100k", "smollm2-135m")
NAMES = [
    "00_start_here", "01_recommendation_as_language", "02_preferences_and_dpo", "03_the_collapse",
    "04_gradient_suppression", "05_who_resists", "06_boundary_negatives", "07_dual_margin_beta_and_dynamicpo",
    "08_a_real_llm",
]  # fmt: skip

# What the notebooks import between them, most of it behind functions of minipo's.
IMPORTED = [
    "minipo.course.diagnostics", "minipo.course.exercises.checks", "minipo.course.widgets",
    *(f"minipo.course.figures.{path.stem}" for path in (ROOT / "minipo" / "course" / "figures").glob("[a-z]*.py")),
    "minipo.experiments.models", "minipo.experiments.training", "minipo.trainers",
    "transformers.models.gpt2.modeling_gpt2",
]  # fmt: skip

# Runs behind a notebook's own cells: moves every control of every explorer, and makes every guess.
MOVE = """
from minipo.course.widgets import Choice as _Choice, Explorer as _Explorer, Numbers as _Numbers

def _elsewhere(control):
    if hasattr(control, "options"):
        options = dict(control.options).values() if isinstance(control.options, dict) else [
            option[1] if isinstance(option, tuple) else option for option in control.options
        ]
        return [option for option in options if option != control.value]
    if isinstance(control.value, bool):
        return [not control.value]
    if hasattr(control, "max"):
        return [control.max, control.min, (control.min + control.max) // 2]
    return []

def _state(explorer):
    return explorer.sentence, explorer.figure.to_json() if explorer.figure is not None else ""

_moved = {"explorers": {}, "guesses": 0}
for _name, _thing in list(globals().items()):
    if isinstance(_thing, _Explorer) and not _name.startswith("_"):
        for _control in _thing.controls:
            _before, _changed, _at = _state(_thing), False, _thing.controls[_control].value
            for _value in _elsewhere(_thing.controls[_control]):
                _thing.controls[_control].value = _value
                _changed |= _state(_thing) != _before
            _thing.controls[_control].value = _at
            assert _changed, f"{_name}: moving {_control} changes nothing"
            assert _state(_thing) == _before, f"{_name}: {_control} moved back does not give what was there"
        _moved["explorers"][_name] = len(_thing.controls)
    elif isinstance(_thing, _Choice) and not _name.startswith("_"):
        for _option in _thing.options:
            _thing.buttons.value = _option
            assert _thing.guess == _option and "right" in _thing.result(_option)
        _moved["guesses"] += 1
    elif isinstance(_thing, _Numbers) and not _name.startswith("_"):
        for _slider in _thing.sliders.values():
            _slider.value = _slider.max
        assert _thing.made
        _moved["guesses"] += 1
import json as _json
print(_json.dumps(_moved))
"""
# The first notebook's picture stands on its own two feet, without minipo.course.widgets.
MOVE_THE_FIRST_PICTURE = """
assert easy.disabled and "First the guess" in tell()
guess.value = "stays"
easy.value = 18
assert picture.layout.title.text == "Among 18 easy negatives, DMPO's loss: 1.31 → 0.024, push: 0.73 → 0.0012"
assert "it **falls**" in tell() and "597 times smaller" in tell()
only.value = True
assert "push: 0.73 → 0.73" in picture.layout.title.text
"""


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shortened(notebook: Any) -> Any:
    """The notebook with the assignments of its cells' `fast` metadata behind the cells' own."""
    for cell in code_cells(notebook):
        cell.source += "\n" + cell.metadata.get("fast", "")
    return notebook


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """minipo's folder for what the notebooks keep, one for all of them; nothing can be downloaded into it."""
    for name in IMPORTED:
        importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("plotly.io.renderers.default", "plotly_mimetype")
        yield tmp_path_factory.mktemp("notebooks")


def run(sources: list[str], folder: Path, cache: Path) -> str:
    """`run_cells` in a process of its own, a fork of this one, which has imported what notebooks need."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as process:
        return process.submit(run_cells, sources, folder, cache).result()


def run_cells(sources: list[str], folder: Path, cache: Path) -> str:
    """Runs cells as a kernel does, from `folder`: what they show is formatted too. Returns what the last one printed;
    raises RuntimeError with what a cell that failed printed."""
    gc.freeze()  # as tests/conftest.py does
    os.environ["MINIPO_HOME"] = str(cache)
    os.chdir(folder)
    shell = InteractiveShell.instance()
    printed = ""
    for source in sources:
        with capture_output() as captured:
            outcome = shell.run_cell(source, store_history=True)
        printed = captured.stdout
        if not outcome.success:
            raise RuntimeError(printed)
    return printed


def texts(cell: Any) -> str:
    """What a code cell printed or wrote as Markdown."""
    parts = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream" and output.name == "stdout":
            parts.append(output.text)
        elif "data" in output:
            parts.append(output.data.get("text/markdown") or "")
    return "".join(parts)


def moved(printed: str) -> dict[str, Any]:
    """What `MOVE`, the last cell, found, from what it printed."""
    report: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return report


def test_the_course_is_complete_and_in_order() -> None:
    assert [path.stem for path in PATHS] == NAMES


@pytest.mark.parametrize("path", OFFLINE, ids=lambda path: path.stem)
def test_executes_in_the_fast_setting_and_its_widgets_respond(path: Path, tmp_path: Path, cache: Path) -> None:
    first = MOVE_THE_FIRST_PICTURE if path.name.startswith("00") else ""
    sources = [cell.source for cell in code_cells(shortened(read(path)))]
    found = moved(run([*sources, first + MOVE], tmp_path, cache))  # another folder than its own
    if "03" <= path.name[:2] <= "07":
        assert found["explorers"], "no widget computes live"
        assert found["guesses"], "nothing is to be guessed"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", OFFLINE, ids=lambda path: path.stem)
def test_executed_in_full_prints_what_is_committed(path: Path, tmp_path: Path) -> None:
    committed, notebook = read(path), read(path)
    seconds = execute.execute(notebook, tmp_path, {"PLOTLY_RENDERER": "plotly_mimetype"})
    print(f"{path.stem}: {seconds:.0f} s")
    for old, new in zip(code_cells(committed), code_cells(notebook), strict=True):
        # What trains differs between machines by rounding, and the first cell tells which machine it is.
        if "live" not in old.metadata.get("tags", []) and "widgets.start()" not in old.source:
            same_but_for_rounding(texts(old), texts(new), old.source)


def same_but_for_rounding(old: str, new: str, source: str) -> None:
    number = r"[-−+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
    assert re.sub(number, "#", old) == re.sub(number, "#", new), f"other words than committed, from:\n{source}"
    for before, after in zip(re.findall(number, old), re.findall(number, new), strict=True):
        values = float(before.replace("−", "-")), float(after.replace("−", "-"))
        assert values[1] == pytest.approx(values[0], rel=0.02, abs=0.011), f"{before} became {after}, from:\n{source}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pressing_the_button_trains_the_curve(tmp_path: Path) -> None:
    (path,) = FOLDER.glob("03*.ipynb")
    notebook = shortened(read(path))
    last = next(place for place, cell in enumerate(notebook.cells) if "widgets.Training(" in cell.source)
    press = nbformat.v4.new_code_cell("mine.button.click()\nprint(mine.sentence)")
    notebook.cells = [*notebook.cells[: last + 1], press]
    home = {"MINIPO_HOME": str(tmp_path / "home"), "PLOTLY_RENDERER": "plotly_mimetype"}
    execute.execute(notebook, tmp_path, home)
    assert "**All 12 runs are trained.**" in texts(press)


def brought() -> bool:
    """Whether what 08 needs is here, or can be brought."""
    try:
        for name in FETCHED:
            fetch.fetch(name)
    except (OSError, ValueError):
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_llm_executes_in_the_fast_setting(tmp_path: Path) -> None:
    (path,) = FOLDER.glob("08*.ipynb")
    if not brought():
        pytest.skip("MovieLens-100K and SmolLM2-135M are not here and cannot be fetched")
    notebook = shortened(read(path))
    notebook.cells.append(nbformat.v4.new_code_cell(MOVE))
    execute.execute(notebook, tmp_path, {"PLOTLY_RENDERER": "plotly_mimetype"})
    moved(texts(notebook.cells[-1]))


def test_a_missing_download_is_told_in_one_sentence(tmp_path: Path, cache: Path) -> None:
    (path,) = FOLDER.glob("08*.ipynb")
    sources = [cell.source for cell in code_cells(read(path)) if "start()" in cell.source or "fetch(" in cell.source]
    with pytest.raises(RuntimeError) as error:
        run(sources, tmp_path, cache)
    assert "minipo fetch" in str(error.value).strip().splitlines()[-1]
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_kernel_without_minipo_is_told_what_to_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minipo", None)
    with pytest.raises(SystemExit, match="make lab"):
        exec(code_cells(read(path))[0].source, {})


# ------------------------------------------------------------------------------------ what is committed, as it stands


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_outputs_are_committed_and_not_stale(path: Path) -> None:
    notebook = read(path)
    assert notebook.metadata["minipo"]["executed"] == execute.source_hash(notebook), "run `make notebooks`"
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    content = path.read_text(encoding="utf-8")
    for place in (str(ROOT), str(Path.home()) + "/", "/tmp/", "/home/"):
        assert place not in content, f"a machine's path, {place}, stands in an output"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_figure_and_control_can_be_read_without_a_kernel(path: Path) -> None:
    notebook = read(path)
    figures = 0
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            if "application/vnd.plotly.v1+json" in data:
                picture = base64.b64decode(data["image/png"])
                assert picture.startswith(b"\x89PNG")
                figures += 1
            if "application/vnd.jupyter.widget-view+json" in data:
                assert data["text/markdown"].startswith("*")
    assert figures


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_opens_with_its_aims_and_closes_with_questions(path: Path) -> None:
    notebook = read(path)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    opening, everything = "\n".join(prose[:3]), "\n".join(prose)
    assert re.match(rf"# {int(path.name[:2])}\. ", prose[0])
    assert "After this notebook you can" in opening
    assert "minutes" in opening
    assert "· core" in everything
    assert "## What you have seen" in everything
    assert "## Questions" in everything
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", everything):
        assert (FOLDER / target).exists(), f"a link leads nowhere: {target}"
