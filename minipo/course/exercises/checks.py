"""Checks for the classroom's assignments, in `notebooks/exercises/`.

`check("2.1 leaves", answer)` prints one line if the answer is right. Otherwise it raises `Wrong` with a message that
explains which property failed, with the numbers. It works in any kernel, with nbgrader or without; the assertions are
kept here, outside the cells that a student, or a feedback page, would show.

Each assignment is one module, and registers its tasks with `task`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple
from functools import wraps
from importlib import import_module
from textwrap import wrap
from typing import Any

import numpy as np

from minipo.evaluation import Interval
from minipo.names import lookup

# Assignment number to the module that holds its tasks.
ASSIGNMENTS = {"1": "objectives", "2": "boundary", "3": "beta", "4": "push", "5": "rule"}

_TASKS: dict[str, Callable[..., str]] = {}


class Wrong(AssertionError):
    """A wrong answer: one or two sentences, and no traceback, which would show the assertions."""

    def _render_traceback_(self) -> list[str]:  # IPython asks an exception for this first
        return wrap(f"Not yet. {self}", 84)  # nbgrader's validation cuts longer lines, and its feedback does not wrap


def task(name: str, signature: str = "") -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Register a check under `name`, "assignment.number word", which returns praise or raises `Wrong`.

    signature: of the function that the answer must be; without one, any answer is checked.
    """

    def register(function: Callable[..., str]) -> Callable[..., str]:
        @wraps(function)
        def checked(*answer: Any) -> str:
            if signature and answer and not callable(answer[0]):
                raise Wrong(f"The answer is {type(answer[0]).__name__}: give the function, {signature}.")
            return function(*answer)

        _TASKS[name] = checked
        return checked

    return register


def dictionary(answer: Any, keys: Iterable[str], what: str) -> dict[str, Any]:
    """An answer, or what it returns, that must be a dict with these keys; what: to which it leads from each."""
    given = answer() if callable(answer) else answer
    if not isinstance(given, Mapping) or not set(keys) <= set(given):
        raise Wrong(f"You give {given!r}: give a dict from each of {', '.join(map(repr, keys))} to {what}.")
    return {key: given[key] for key in keys}


def plant(name: str, signature: str, planted: Any, right: dict[str, Any], advice: str, missed: str) -> None:
    """Register the task to write a test that passes the right answers and fails the planted wrong one.

    right: by what to call each. advice: for a test that fails on one of them. missed: for one that passes the planted
    answer.
    """

    @task(name, signature)
    def caught(test: Any) -> str:
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


# ---------------------------------------------------------------------------------------- differences of HR@1, paired


def in_points(interval: Interval) -> str:
    """A difference of HR@1 in hundredths, with its interval."""
    mean, low, high = (f"{100 * value:+.2f}" for value in astuple(interval))
    return f"{mean} [{low}, {high}] points".replace("-", "−")


def check_interval(
    about: str, answer: Any, truth: Interval, mistakes: Mapping[str, Sequence[float]], other: str, unpaired: str
) -> None:
    """`Wrong` unless an answer, an Interval or three numbers, is `truth`.

    about: begins the message. mistakes: what to say of each, to its mean, or to its mean, low and high. other: what to
    say of any other mean; unpaired: of other ends. A bootstrap of one's own draws otherwise: the ends may be off by a
    tenth of the interval's width.
    """
    try:
        found = answer if isinstance(answer, Interval) else Interval(*map(float, answer))
    except (TypeError, ValueError):
        raise Wrong(
            f"{about} you give {answer!r}: give an Interval, as `difference` and `paired_interval` return it, or the "
            "three numbers mean, low, high."
        ) from None
    given, right = np.array(astuple(found)), np.array(astuple(truth))
    off = np.abs(given - right)
    if not np.isfinite(off).all():
        raise Wrong(f"{about} you give {answer!r}: give three finite numbers, mean, low, high.")
    if off.max() < 1e-9:
        return
    shown = f"{about} you give {in_points(found)}."
    for why, mistake in mistakes.items():
        same = np.allclose(given[: len(mistake)], mistake, rtol=0, atol=1e-6)
        if same and (len(mistake) > 1 or off[0] > 1e-6):  # a mean may be right by chance under the mistake, too
            raise Wrong(f"{shown} {why}")
    if off[0] > 1e-6:
        raise Wrong(f"{shown} The mean is another one: {other}")
    if off.max() > 0.1 * (truth.high - truth.low):
        raise Wrong(f"{shown} The mean is right, but not the ends of the interval: {unpaired}")


def check_reading(about: str, word: Any, interval: Interval, undecided: str, question: str) -> None:
    """`Wrong` unless "helps", "hurts" or the word for neither is what an interval shows. question: a hint."""
    words = ("helps", "hurts", undecided)
    if word not in words:
        raise Wrong(f"{about} you say {word!r}: say one of {', '.join(map(repr, words))}.")
    follows, where = (
        ("helps", "lies above zero") if interval.low > 0
        else ("hurts", "lies below zero") if interval.high < 0
        else (undecided, "includes zero")
    )  # fmt: skip
    if word != follows:
        raise Wrong(f"{about} you say {word!r}; it is {in_points(interval)}: the interval {where}. {question}")


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
