"""What holds of every page: it opens with a figure and a sentence, explains its controls and has them in its link, and
stands whatever link or record it is given."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from tests.app.conftest import MAIN, charts, opened, text, write_pushed

import shell  # isort: skip

every_page = pytest.mark.parametrize("page", sorted(path.stem for path in MAIN.parent.glob("views/*.py")))
# Controls that do something or take something in, and have no state that a link could hold.
ACTS = {"button", "download_button", "file_uploader", "menu_button", "tab_container", "arrow_data_frame", "dataframe"}
# Controls whose page keeps them in its link itself, for what they offer is another in every browser; and a title that
# its writer alone sees until the experiment is made.
BY_HAND = {"own", "micro_run", "title"}
NONSENSE = "−17<b>*x*</b>"


@pytest.fixture
def grids(recorded: Path) -> Path:
    write_pushed(recorded)
    return recorded


def elements(block: Any) -> Iterator[Any]:
    """Everything on the page, from above."""
    for child in block.children.values():
        yield child
        if hasattr(child, "children"):
            yield from elements(child)


def controls(app: AppTest) -> list[Any]:
    """Elements that a visitor moves: those that can have a key and a question mark."""
    return [each for each in elements(app._tree) if getattr(each.proto, "id", "") and hasattr(each.proto, "help")]


def stands(app: AppTest, home: Path) -> None:
    """No exception, and nothing said that only this machine knows."""
    assert not app.exception
    helps = [str(getattr(each.proto, "help", "")) for each in elements(app._tree) if hasattr(each, "proto")]
    said = "\n".join([text(app), *helps])
    for private in ("Traceback", str(MAIN.parents[1]), str(Path.home()) + os.sep, str(home)):
        assert private not in said


@every_page
def test_it_opens_with_its_figure_and_a_sentence(grids, tmp_path, page):
    app = opened(page)
    stands(app, tmp_path)
    assert charts(app)
    assert max(len(each.value) for each in app.markdown) > 40
    assert len(app.header) == 1
    assert app.header[0].help


@every_page
def test_every_control_is_explained_and_in_the_link(grids, page):
    found = controls(opened(page))
    told = {f"{each.type} {each.proto.label!r}": each for each in found}
    assert [name for name, each in told.items() if not each.proto.help] == []
    assert [name for name, each in told.items() if not each.key] == []
    state = {name: each for name, each in told.items() if each.type not in ACTS and each.key not in BY_HAND}
    assert [name for name, each in state.items() if not getattr(each.proto, "query_param_key", "")] == []


@every_page
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_lost_record_leaves_it_standing(grids, tmp_path, page, damage):
    for grid in grids.iterdir():
        grid.rename(grid.with_suffix(".gone")) if damage == "missing" else [
            file.write_bytes(b"no") for file in grid.rglob("*.*") if file.is_file()
        ]
    app = opened(page)
    stands(app, tmp_path)
    assert len(app.header) == 1
    for warning in [*app.warning, *app.error]:
        assert warning.value.count("\n") == 0
        assert warning.value.rstrip().endswith(".")


@pytest.mark.parametrize("nonsense", [NONSENSE, "inf", "-1e999"])
@every_page
def test_a_link_full_of_nonsense_is_told(grids, tmp_path, monkeypatch, page, nonsense):
    known: set[str] = set()
    ask = shell.check_link

    def asked(name: str, names: Any) -> None:
        known.update(names)
        ask(name, names)

    monkeypatch.setattr(shell, "check_link", asked)
    opened(page)
    assert known
    app = opened(page, **dict.fromkeys(known, nonsense), unheard=nonsense)
    stands(app, tmp_path)
    assert [each.value for each in app.info if "were not recognised" in each.value and "unheard" in each.value]
    kept = {each.key for each in controls(app) if each.type != "text_input"} & {
        name for name, value in app.query_params.items() if nonsense in value
    }
    assert kept == set()
