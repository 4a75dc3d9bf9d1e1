"""What viewers bring stays text, and what is theirs stays theirs."""

import re
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from minipo.course.figures.style import as_text
from minipo.experiments import files
from minipo.experiments.configuration import PreferConfig
from minipo.experiments.runs import DATA
from tests.app.conftest import MAIN, charts, opened, text
from tests.app.test_data import own_upload

import jobs  # isort: skip
import shell  # isort: skip

HOSTILE = [
    "<script>window.hacked=1</script>", "<img src=x onerror=window.hacked=1>", "=1+1", "**bold**", "$x$", ":red[x]",
    "[link](javascript:window.hacked=1)", "# head", "`code`", "<b>b</b>", "| a | b |", "https://example.org", "\\",
]  # fmt: skip
JOINER = "\u2060"  # parts what is beside it, and is not seen
CODE = {path.name: path.read_text() for path in sorted(MAIN.parent.rglob("*.py"))}


def hostile_csv(names: list[str] = HOSTILE) -> bytes:
    """60 users with 12 of 40 items each; the names, at most 15 of them, stand in the first lines of the test."""
    items = ["item 0", *names, *(f"item {number}" for number in range(1, 40 - len(names)))]
    rows = [
        (f"user {user:02}", items[(user + place) % 40], 1_700_000_000 + 3600 * place)
        for user in range(60)
        for place in range(12)
    ]
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"]).to_csv(index=False).encode()


def spoken(app: Any) -> str:
    """All that a page shows as Markdown, in tables too."""
    cells = [str(cell) for table in app.table for cell in table.value.to_numpy().ravel()]
    return "\n".join([text(app), *cells])


@pytest.mark.parametrize("name", HOSTILE)
def test_plain_leaves_nothing_that_markdown_takes_for_its_own(name: str):
    said = shell.plain(name)
    assert re.sub(r"\\([^\w\s])", r"\1", said.replace(JOINER, "")) == name
    assert not re.search(r"(?<!\\)(?:\\\\)*[<>*_`$\[\]#|:]", said)


@pytest.mark.parametrize(
    "name",
    [
        "https://example.org", "www.example.org", "WWW.example.org", "me@example.org", "a -- b", "a -> b",
        ":streamlit:", ":material_home:", ":material/home:", ":smile:",
    ],
)  # fmt: skip
def test_plain_parts_what_streamlit_finds_in_parsed_text(name: str):
    parsed = re.sub(r"\\([^\w\s\u2060])", r"\1", shell.plain(name))
    assert not re.search(r"(?i)https?://\w|:/?\w|www\.\w|\w@\w|--|->|<-", parsed)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_figure_takes_no_name_for_html(name: str):
    assert not re.search("[<>]", as_text(name))


def test_names_of_items_files_and_runs_are_text_on_the_page_of_an_upload():
    job = own_upload(hostile_csv(), "<script>window.hacked=1</script>.csv")
    assert job.state == "done"
    run = jobs.submit("prefer", {**runs_settings(), "dataset": jobs.OWN + job.token}, "somebody", HOSTILE[1])
    app = opened("data", data=job.token, run=run.token)
    said = spoken(app)
    for name in HOSTILE:
        assert shell.plain(name) in said
        if re.search(r"[<\[$*`]", name):
            assert name not in said
    assert "<script" not in str(charts(app)).lower()


def runs_settings() -> dict[str, Any]:
    settings = vars(PreferConfig(dynamic="on"))
    return {name: value for name, value in settings.items() if name not in ("kind", "sft", "dataset")}


def test_a_viewers_uploads_and_runs_stand_on_no_page_of_another():
    mine = own_upload(name="secret-name.csv", viewer="me")
    run = jobs.submit("prefer", {**runs_settings(), "dataset": jobs.OWN + mine.token}, "me", "secret run")
    pages = sorted(path.stem for path in (MAIN.parent / "views").glob("*.py"))
    assert "lab" in pages
    for page in pages:
        said = spoken(opened(page))
        for secret in ("secret", mine.token, run.token):
            assert secret not in said, page


def test_whoever_has_a_link_sees_that_upload_and_nothing_else_of_its_viewer():
    shared, other = own_upload(name="shared.csv", viewer="me"), own_upload(name="other.csv", viewer="me")
    said = spoken(opened("data", data=shared.token))
    assert "shared" in said
    assert "other\\.csv" not in said
    assert other.token not in said


@pytest.mark.parametrize("token", ["../../etc", "..", "", "/", "%2e%2e", "x' or 1=1 --", "\0"])
def test_a_token_is_looked_up_and_is_no_path(token: str):
    job = own_upload()
    assert jobs.find(token) is None
    assert jobs.stop(token) == "This run is no longer on this server."
    jobs.rename(token, "mine")
    jobs.keep(token, True)
    jobs.resume(token)
    assert job.upload.exists()


@pytest.mark.parametrize("token", ["", "..", "../.."])
def test_removing_what_is_not_in_the_register_removes_nothing(token: str):
    job = own_upload()
    jobs.remove(token)
    assert job.upload.exists()


@pytest.mark.parametrize(
    "cookie", ["", "short", "../../../etc/passwd", "a'; alert(1)//aaaaaa", "x" * 41, "<b>aaaaaaaaaa"]
)
def test_a_cookie_that_we_did_not_write_is_replaced(cookie: str, monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []
    page = SimpleNamespace(
        context=SimpleNamespace(cookies={shell.COOKIE: cookie}),
        session_state={},
        html=lambda script, **more: written.append(script),
    )
    monkeypatch.setattr(shell, "st", page)
    name = shell.viewer()
    assert shell.TOKEN.fullmatch(name)
    assert name != cookie
    assert shell.viewer() == name
    assert not cookie or cookie not in written[0]
    page.context.cookies = {shell.COOKIE: name}
    assert shell.viewer() == name


def test_errors_name_no_path_of_this_machine():
    job = own_upload()
    said = jobs.private(f"{job.upload}: lost; {files.home()}/x; {DATA}/y")
    assert said == "plays.csv: lost; minipo's folder/x; minipo/data/y"


def inserted(call: str) -> list[str]:
    """What an f-string puts between its braces."""
    return re.findall(r"\{([^{}]*)\}", call)


def test_nothing_is_unpickled_evaluated_or_shown_as_html():
    everything = "\n".join(CODE.values())
    assert not re.search(r"\bpickle|\beval\(|\bexec\(|os\.system|shell=True|unsafe_allow_html", everything)
    html = [part for code in CODE.values() for call in re.findall(r"st\.html\((.*)\)", code) for part in inserted(call)]
    # A figure's title, whose names are escaped; our own style sheets, cookie and code of an experiment; a number.
    assert set(html) <= {"title", "STYLE", "COOKIE", "name", "attributes", "code", "entry.seed"}
    assert {name for name, code in CODE.items() if "unsafe_allow_javascript" in code} <= {"shell.py"}
    tokens = {name for name, code in CODE.items() if "folder_of(" in code}
    assert tokens <= {"jobs.py", "experiments.py"}  # whose tokens are the register's
    config = (MAIN.parents[1] / ".streamlit" / "config.toml").read_text()
    assert 'showErrorDetails = "none"' in config  # no traceback, and so no path, on a page
