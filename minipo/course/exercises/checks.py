"""Checks for the classroom's assignments, in `notebooks/exercises/`.

`check("2.1 leaves", answer)` prints one line if the answer is right. If it is not, it raises `Wrong`, whose message
teaches: which property failed, with the numbers. Works in any kernel, with nbgrader or without; what is asserted stays
here, out of the cells that a student, or a feedback page, would show.

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
    """An answer that is not right: one or two sentences, and no traceback, which would show what is asserted."""

    def _render_traceback_(self) -> list[str]:  # IPython asks an exception for this first
        return wrap(f"Not yet. {self}", 84)  # nbgrader's validation cuts longer lines, and its feedback does not wrap


def task(name: str) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Register a check under `name`, "assignment.number word": it returns what to say of a right answer, or raises
    `Wrong`."""

    def register(function: Callable[..., str]) -> Callable[..., str]:
        _TASKS[name] = function
        return function

    return register


def check(name: str, *answer: Any) -> None:
    """Check an answer: prints one line if it is right; raises `Wrong` if it is not, or cannot be judged.

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
    except Exception as error:  # whatever an answer does wrong is the answer's
        raise Wrong(f"The check could not use your answer: {type(error).__name__}: {error}") from None
    print(f"Right. {praise}")
