"""Checks for the classroom's assignments, in `notebooks/exercises/`."""

from minipo.course.exercises.checks import Wrong, check

__all__ = ["Wrong", "check"]
