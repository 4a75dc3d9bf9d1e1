"""The shell around the code: the lists of packages agree, `make` says what is missing, and the papers are cited."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from minipo import preference_loss, preference_push

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
DEVELOPMENT = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]


def names(requirements: Iterable[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def pins(lines: Iterable[str]) -> dict[str, Version]:
    """Package to version, from lines that are exact pins, without a local build such as +cpu, none twice."""
    found: dict[str, Version] = {}
    for line in lines:
        requirement = Requirement(line)
        name, (specifier,) = canonicalize_name(requirement.name), requirement.specifier
        assert specifier.operator == "==", f"{line} is no exact pin"
        assert Version(specifier.version).local is None, f"{line} names a build that only some machines have"
        assert name not in found, f"{line} repeats a package"
        found[name] = Version(specifier.version)
    return found


def constraints() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return pins(line for line in lines if line and not line.startswith("#"))


def conda() -> tuple[list[str], list[str]]:
    """The packages that environment.yml takes from conda, and its lines for pip."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (entry["pip"] for entry in entries if isinstance(entry, dict))
    return [entry for entry in entries if isinstance(entry, str)], pip


def test_every_direct_package_is_pinned_to_a_version_that_pyproject_admits() -> None:
    pinned = constraints()
    for requirement in NEEDED + DEVELOPMENT:
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, str(requirement)


def test_conda_installs_the_same_packages_in_the_same_versions() -> None:
    _, pip = conda()
    listed, pinned = pins(line for line in pip if not line.startswith("-")), constraints()
    assert set(listed) == names(NEEDED + DEVELOPMENT)
    assert listed == {name: pinned[name] for name in listed}
    assert [line for line in pip if line.startswith("-")] == ["-c constraints.txt", "-e ."]


def test_conda_and_pyproject_start_from_the_same_python() -> None:
    (python,) = (SpecifierSet(entry.removeprefix("python ")) for entry in conda()[0] if entry.startswith("python "))
    for minor in (10, 11, 12, 13):
        assert (f"3.{minor}" in python) == (f"3.{minor}" in SpecifierSet(PROJECT["requires-python"]))


@pytest.mark.parametrize(("folder", "declared"), [("minipo", NEEDED), ("app", NEEDED), ("tests", NEEDED + DEVELOPMENT)])
def test_what_the_code_imports_is_declared(folder: str, declared: list[Requirement]) -> None:
    providers, paths = packages_distributions(), sorted((ROOT / folder).rglob("*.py"))
    folders = ("app", "benchmarks")  # Streamlit, and a test, put them on the path
    scripts = {path.stem for folder in folders for path in (ROOT / folder).glob("*.py")}
    known = sys.stdlib_module_names | {"minipo", "tests", "figures"} | scripts
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            for package in {module.split(".")[0] for module in modules} - known:
                provided_by = {canonicalize_name(name) for name in providers.get(package, [package])}
                assert provided_by & names(declared), (
                    f"{path.relative_to(ROOT)} imports {package}, which is not declared"
                )


def test_the_citation_names_this_version_and_every_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert all(reference["title"] and reference["authors"] for reference in citation["references"])
    papers = {reference["url"].rsplit("/", 1)[1] for reference in citation["references"]}
    assert papers == {"2605.00327", "2405.16127", "2406.09215", "2412.15244", "2305.18290"}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with a space in its name that holds the Makefile and no .venv."""
    folder = tmp_path / "a course"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_make_alone_lists_the_commands(elsewhere: Path) -> None:
    listed = {line.split()[1] for line in make(elsewhere).stdout.splitlines()}
    assert {"app", "lab", "test", "test-all"} <= listed


@needs_make
@pytest.mark.parametrize("python", ["exit 1", "no-such-program"])
def test_make_says_when_python_is_missing_or_too_old(elsewhere: Path, python: str) -> None:
    if python.startswith("exit"):
        python = script(elsewhere / "old python", python)
    result = make(elsewhere, "app", f"PYTHON={python}")
    assert result.returncode != 0
    assert "minipo: No Python 3.11 or newer was found" in result.stderr
    assert not (elsewhere / ".venv").exists()


@needs_make
def test_make_says_when_python_cannot_make_environments(elsewhere: Path) -> None:
    python = script(elsewhere / "bare python", 'case "$*" in *ensurepip*) exit 1 ;; esac')
    result = make(elsewhere, "app", f"PYTHON={python}")
    assert result.returncode != 0
    assert "install its venv package" in result.stderr
    assert not (elsewhere / ".venv").exists()


@needs_make
def test_make_installs_once_and_again_when_the_packages_change(elsewhere: Path) -> None:
    calls = elsewhere / "calls"
    (elsewhere / ".venv/bin").mkdir(parents=True)
    script(elsewhere / ".venv/bin/pip", "")
    script(elsewhere / ".venv/bin/python", 'echo "$*" >> calls')

    def steps() -> list[str]:
        calls.unlink(missing_ok=True)
        assert make(elsewhere, "app").returncode == 0
        return [line.split()[1] for line in calls.read_text().splitlines()]

    assert steps() == ["pip", "minipo"]
    assert steps() == ["minipo"]
    installed = (elsewhere / ".venv/installed").stat().st_mtime
    os.utime(elsewhere / "constraints.txt", (installed + 5, installed + 5))
    assert steps() == ["pip", "minipo"]


def test_the_objective_in_contributing_is_one() -> None:
    """Its loss against its formula, and its push against the parts that it names."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 20
    names: dict[str, Any] = {}
    exec(code, names)
    policy, reference = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = preference_loss(names["closest"], policy, reference).losses
    ratio = policy - reference
    torch.testing.assert_close(losses, -torch.nn.functional.logsigmoid((ratio[:, :1] - ratio[:, 1:]).amin(1)))
    push = preference_push(names["closest"], policy, reference)
    torch.testing.assert_close(push.push, push.dilution * push.saturation)
