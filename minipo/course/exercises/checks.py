"""Checks for the classroom's assignments, in `notebooks/exercises/`.

`check("2.1 leaves", answer)` prints one line if the answer is right. Otherwise it raises `Wrong` with a message that
explains which property failed, with the numbers. It works in any kernel, with nbgrader or without; the assertions are
kept here, outside the cells that a student, or a feedback page, would show.

Each assignment is one module, and registers its tasks with `task`.
"""

from collections.abc import Callable
from importlib import import_module
from textwrap import wrap
from typing import Any

from minipo.names import lookup

# Assignment number to the module that holds its tasks.
ASSIGNMENTS = {"1": "objectives", "2": "boundary", "3": "beta", "4": "push", "5": "rule"}

_TASKS: dict[str, Callable[..., str]] = {}


class Wrong(AssertionError):
    """A wrong answer: one or two sentences, and no traceback, which would show the assertions."""

    def _render_traceback_(self) -> list[str]:  # IPython asks an exception for this first
        return wrap(f"Not yet. {self}", 84)  # nbgrader's validation cuts longer lines, and its feedback does not wrap


def task(name: str) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Register a check under `name`, "assignment.number word", which returns praise or raises `Wrong`."""

    def register(function: Callable[..., str]) -> Callable[..., str]:
        _TASKS[name] = function
        return function

    return register


def function_of(answer: Any, signature: str) -> Callable[..., Any]:
    """An answer that must be a function; `Wrong` if it is not."""
    if not callable(answer):
        raise Wrong(f"The answer is {type(answer).__name__}: give the function, {signature}.")
    return answer


def caught(test: Any, signature: str, right: dict[str, Any], advice: str, planted: Any, missed: str) -> str:
    """Praise if the student's test passes the right answers and fails the planted wrong one; otherwise `Wrong`.

    right: by what to call each. advice: for a test that fails on one of them. missed: for one that passes the planted
    answer.
    """
    function_of(test, signature)
    for what, answer in right.items():
        try:
            test(answer)
        except AssertionError as error:
            raise Wrong(f"Your test fails on {what}{_quoted(error)}. {advice}") from None
    try:
        test(planted)
    except AssertionError as error:
        return f"Caught{_quoted(error)}."
    raise Wrong(missed)


def _quoted(error: AssertionError) -> str:
    return f", saying: {error}" if str(error) else ""


def check(name: str, *answer: Any) -> None:
    """Check an answer: prints one line if it is right; raises `Wrong` if it is wrong or cannot be checked.

    Raises ValueError if there is no task of that name.
    """
    module = ASSIGNMENTS.get(str(name).partition(".")[0])
    if module is not None:
        import_module(f"minipo.course.exercises.{module}")
    function = lookup("task", name, _TASKS)
    try:
        praise = function(*answer)
    except Wrong:
        raise
    except NotImplementedError:
        raise Wrong("This is not written yet: replace `raise NotImplementedError()` by your answer.") from None
    except Exception as error:  # any error is the answer's
        raise Wrong(f"The check could not use your answer: {type(error).__name__}: {error}") from None
    print(f"Right. {praise}")
