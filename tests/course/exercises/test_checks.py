"""The checks of assignments 1 to 3, without nbgrader: right answers pass, wrong ones get a message with the numbers."""

import contextlib
import io
import json
import math
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from minipo.course.exercises.beta import COMPARISONS
from minipo.course.exercises.checks import Wrong, check
from minipo.course.exercises.objectives import unlabelled

SOURCE = Path(__file__).parents[3] / "notebooks" / "exercises" / "source"
ANSWERS = {number: import_module(f"tests.course.exercises.answers_{number}").WRONG for number in (1, 2, 3)}


def outcomes(number: int, replaced: dict[str, str]) -> dict[str, str]:
    """Run a source notebook's code cells, some replaced; what each test cell says, by grade_id."""
    (path,) = SOURCE.glob(f"{number}_*/*.ipynb")
    names, said = {"__name__": "__main__"}, {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        known = cell["metadata"].get("nbgrader", {})
        source, graded = "".join(cell["source"]), known.get("grade", False)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                exec(replaced.get(known.get("grade_id"), source), names)
            except Wrong as wrong:
                assert graded
                print(f"Not yet. {wrong}")
            except AssertionError:
                assert not graded  # a student's own test, tried on the right one
        if graded:
            said[known["grade_id"]] = printed.getvalue()
    return said


@pytest.mark.parametrize("number", ANSWERS)
def test_the_solution_is_right_everywhere(number):
    assert {text.split()[0] for text in outcomes(number, {}).values()} == {"Right."}


@pytest.mark.parametrize(("number", "name"), [(number, name) for number in ANSWERS for name in ANSWERS[number]])
def test_a_typical_wrong_answer_gets_its_message(number, name):
    entry = ANSWERS[number][name]
    said = outcomes(number, entry["cells"])
    assert {test for test, text in said.items() if text.startswith("Not yet.")} == set(entry["messages"])
    for test, pieces in entry["messages"].items():
        for piece in [pieces] if isinstance(pieces, str) else pieces:
            assert piece in said[test]


def stub():
    raise NotImplementedError()


def silent(_):
    """A test that asserts nothing."""


def angry(_):
    """A test that fails on everything."""
    raise AssertionError("no")


MESSAGES = [
    ("1.1 panel one", {"A": "dpo"}, "from each of 'A', 'B', 'C', 'D' to the name of an objective"),
    ("1.2 panel two", dict.fromkeys("ABCD", "dpo"), "exactly one letter"),
    ("1.3 panel three", {"A": "sdpo", "B": "mppo", "C": "dpo", "D": "dmpo"}, "2 letters are matched wrongly"),
    ("1.4 loss W", 3, "give the function, test_dmpo(loss)"),
    ("1.4 loss W", angry, "fails on the right loss, saying: no"),
    ("2.1 leaves", "abc", "The answer is str"),
    ("2.1 leaves", torch.zeros(3, 4), "shape (3, 4): give 2 rows"),
    ("2.1 leaves", [[0.0, -1.0, float("nan")], [0.0, -1.0, -2.0]], "not finite"),
    ("2.1 leaves", [[0.0, -1.0, -2.0], [1.0, -1.0, -2.0]], "The chosen item moves, from 0 to 1"),
    ("2.1 leaves", [[0.0, -1.0, -2.0], [0.0, -3.0, -4.0]], "2 negatives move (1, 2)"),
    ("2.1 leaves", [[0.0, -1.0, -2.0, -9.0], [0.0, -1.5, -2.0, -9.0]], "no other negative leaves"),
    ("2.1 leaves", [[0.0, -1.0, -2.0, -3.0, -9.0], [0.0, -1.0, -2.0, -3.0, -3.1]], "kept before and after"),
    ("2.2 enters", [[0.0, -0.5, -4.0, -7.0, -20.0], [0.0, -3.0, -4.0, -7.0, -20.0]], "outside before and after"),
    ("2.3 all kept", [[0.0, -1.0, -1.0, -1.0]] * 2, "Row 0 keeps all without a violator"),
    ("2.3 all kept", [[0.0, 1.0, 1.0, 1.0]] * 2, "Row 1 keeps all because 3 negatives"),
    ("2.4 easy", [[0.0, -9.0, -9.0]], "All negatives are kept"),
    ("2.4 easy", [[0.0, -1.0, -2.0, -9.0]], "none is more than 8 below"),
    ("2.5 k-means", [True], "give the function, exact_kmeans_top"),
    ("2.5 k-means", lambda values, groups: values, "a bool for each of the"),
    ("2.5 k-means", lambda values, groups: values / None, "stopped with TypeError"),
    ("2.6 k-means, ties and extremes", lambda values, groups: values > values.mean(), "fewer values than groups"),
    ("3.1 half", [[0.0, -5.0, -9.0, -20.0]], "x = −0.7241, β_k = 0.690 β"),
    ("3.2 equal", [[0.0, -3.0, -4.0, -5.0], [0.0, 0.0, 0.0, 0.0]], "it is −4.5 with γ = 6"),
    ("3.2 equal", [[0.0, -7.0, -8.0, -8.0], [0.0, 0.0, 0.0, -1.0]], "who can be left out"),
    ("3.3 above", [[0.0, -4.0, -5.0, -6.0]], "How far below the chosen item"),
    ("3.4 exception", [[0.0, -1.0, -2.0]], "has no violator"),
    ("3.4 exception", [[0.0, 0.0, 0.0]], "for want of a denominator"),
    ("3.4 exception", [[0.0, 1.0, 2.0, 3.0]], "Whose mean is m"),
    ("3.5 strength P", silent, "0.962 β, where 0.521 β is right"),
    ("3.8 intervals", {}, "give a dict from each of"),
    ("3.8 intervals", dict.fromkeys(COMPARISONS, "a lot"), "as `difference` and `paired_interval` return it"),
    ("3.8 intervals", dict.fromkeys(COMPARISONS, (math.nan,) * 3), "give three finite numbers"),
    ("3.8 intervals", dict.fromkeys(COMPARISONS, (-0.00285, -0.01, 0.01)), "The mean is another one"),
    ("3.9 reading", dict.fromkeys(COMPARISONS, "helps"), "the interval includes zero"),
    ("3.9 reading", dict.fromkeys(COMPARISONS, "better"), "say one of 'helps', 'hurts'"),
]


@pytest.mark.parametrize(("name", "answer", "message"), MESSAGES)
def test_messages(name, answer, message):
    with pytest.raises(Wrong, match=re.escape(message)):
        check(name, answer)


TESTS = {"1.4 loss W", "2.5 k-means", "2.6 k-means, ties and extremes", "3.5 strength P"}  # functions with arguments


@pytest.mark.parametrize("name", sorted({name for name, *_ in MESSAGES}))
def test_a_stub_is_not_written_yet(name):
    with pytest.raises(Wrong, match="not written yet"):
        check(name, stub if name not in TESTS else lambda *_: stub())


@pytest.mark.parametrize("panel", ["one", "two", "three"])
def test_the_drawings_name_nobody(panel):
    drawn = unlabelled(panel)
    assert [trace.name for trace in drawn.data] == ["A", "B", "C", "D"]
    assert len({trace.line.color for trace in drawn.data}) == 1
    assert not re.search(r"dpo|mppo", drawn.to_json(), re.IGNORECASE)


def test_an_unknown_panel_or_task_is_named():
    with pytest.raises(ValueError, match="Unknown panel 'four'"):
        unlabelled("four")
    with pytest.raises(ValueError, match=r"Did you mean '2\.1 leaves'"):
        check("2.1 leave", None)


@pytest.mark.parametrize("path", sorted(SOURCE.glob("*/*.ipynb")), ids=lambda path: path.stem)
def test_a_kernel_without_minipo_is_told_so_in_one_sentence(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "minipo", None)  # Python's way to say that it is not there
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    first = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    with pytest.raises(SystemExit, match="make lab"):
        exec(first, {})


def test_exercises_from_before_still_open():
    """Their imports, where the modules were when they were handed out."""
    from minipo.course.exercises.beta import right as present
    from minipo.diagnostics import gradient_parts, watch  # noqa: F401
    from minipo.evaluation import score  # noqa: F401
    from minipo.exercises import check as former
    from minipo.exercises.beta import right
    from minipo.exercises.objectives import unlabelled  # noqa: F401
    from minipo.exercises.push import MISTAKE, USER, recorded  # noqa: F401
    from minipo.exercises.rule import cases, experiment  # noqa: F401
    from minipo.sweeps import difference, load_recorded  # noqa: F401

    assert former is check
    assert right is present
    with pytest.raises(ModuleNotFoundError):
        import_module("minipo.exercises.nothing")
