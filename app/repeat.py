"""How to repeat a run: its command for a shell, and its cell for a notebook.

Both take `minipo.experiments.comparison.Line.settings`, and the seeds of the runs.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from minipo.experiments.configuration import CONFIGS, recipe
from minipo.experiments.records import SETTINGS


def named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a call must name: those in a sweep's table, and others that differ from minipo's recipe."""
    usual = {field.name: field.default for field in fields(CONFIGS[settings["kind"]])}
    usual |= recipe(settings["kind"], settings["dataset"], settings["model"])
    always, never = {*SETTINGS, "epochs"}, {"kind", "seed"}
    if settings.get("dynamic") == "off":
        always -= {"clusters", "margin"}
        never |= {"select", "adjust_beta"}  # which are off with it
    if settings["kind"] == "sft" and settings["steps"]:
        always -= {"epochs"}  # steps replace them
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value  # 40, not 40.0
        for name, value in settings.items()
        if name not in never and value is not None and (name in always or value != usual[name])
    }


def command(settings: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """The command that trains these runs again, quoted for a POSIX shell; several lines for several SFT runs."""
    options = " ".join(
        f"--{name.replace('_', '-')} {shlex.quote(_word(value))}" for name, value in named(settings).items()
    )
    if settings["kind"] == "prefer" and len(seeds) > 1:
        return f"minipo sweep {options} --seeds {','.join(map(str, seeds))}"
    return "\n".join(f"minipo {settings['kind']} {options} --seed {seed}" for seed in seeds)


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def cell(settings: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """The notebook cell that trains these runs again."""
    kind, words = settings["kind"], [f"{name}={_literal(value)}," for name, value in named(settings).items()]
    if len(seeds) == 1:
        lines = [f"run = minipo.{kind}(", *_lines([*words, f"seed={seeds[0]},"]), ")", "run.summary"]
    elif kind == "prefer":
        lines = ["table = minipo.sweep(", *_lines([*words, f"seeds={list(seeds)},"]), ")", "table"]
    else:
        call = [f"    minipo.{kind}(", *_lines([*words, "seed=seed,"], "        "), "    )"]
        lines = ["runs = [", *call, f"    for seed in {list(seeds)}", "]", "[run.summary for run in runs]"]
    return "\n".join(["import minipo", "", *lines])


def _lines(words: Iterable[str], indent: str = "    ") -> list[str]:
    """Words on as few lines of 88 characters as possible, none of them broken."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word) <= 88:
            lines[-1] += " " + word
        else:
            lines.append(indent + word)
    return lines


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def script(runs: Iterable[tuple[str, Mapping[str, Any], Sequence[int]]]) -> str:
    """A shell script that trains the runs again; runs: name, settings and seeds of each."""
    parts = [f"# {' '.join(name.split())}\n{command(settings, seeds)}\n" for name, settings, seeds in runs]
    return "\n".join(["#!/bin/sh\nset -e\n", *parts])


def notebook(runs: Iterable[tuple[str, Mapping[str, Any], Sequence[int]]]) -> str:
    """A Jupyter notebook, as JSON, that trains the runs again, one cell each; see `script`."""
    import nbformat  # here, because it takes more than a second to load
    from nbformat import v4

    cells = [
        v4.new_code_cell(f"# {' '.join(name.split())}\n{cell(settings, seeds)}", id=f"run-{number}")
        for number, (name, settings, seeds) in enumerate(runs, start=1)
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.writes(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}))
