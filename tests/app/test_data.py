"""The page Your data: a file becomes a report, a report becomes a run, and both are links."""

import io
import json

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from minipo.experiments import files
from minipo.experiments.datasets import own
from tests.app.conftest import charts, opened, text

import intake  # isort: skip
import jobs  # isort: skip
import limits  # isort: skip
import shell  # isort: skip

CSV = own.example(30).to_csv(index=False).encode()
ROWS = [
    {"historyList": f"a{row}::y", "itemList": ["x", "y", "z", "w"], "trueSelection": "x"} for row in range(20)
]  # fmt: skip


def read(job: jobs.Job) -> jobs.Job:
    """The upload after it was read, as the worker does it, in this process."""
    assert jobs.begin() is not None
    code = intake.main(str(job.upload), str(job.result))
    jobs.finish(job.token, "done" if code == 0 else "failed", "" if code == 0 else f"{job.name} is no table.")
    found = jobs.find(job.token)
    assert found is not None
    return found


def own_upload(content: bytes = CSV, name: str = "plays.csv", viewer: str = "somebody") -> jobs.Job:
    return read(jobs.submit("data", {"suffix": jobs.suffix(name)}, viewer, name, content))


def tables(app: AppTest) -> list[pd.DataFrame]:
    return [table.value for table in app.table]


def link(app: AppTest, name: str) -> list[str]:
    """What the link has under that name."""
    found = app.query_params.get(name, [])
    return [found] if isinstance(found, str) else list(found)


def bring(app: AppTest, name: str, content: bytes) -> AppTest:
    app.file_uploader[0].set_value((name, content, "application/octet-stream"))
    return app.run()


def test_it_opens_with_the_report_of_an_example_that_is_said_to_be_one():
    app = opened("data")
    assert "An example, not yours:" in text(app)
    assert "Ties:" not in text(app)
    assert set(charts(app)) == {"per_user", "popularity", "levels"}
    assert "rows without item" in tables(app)[0]["what"].tolist()
    assert len(app.get("download_button")) == 1
    assert [button.label for button in app.button] == ["Use the example"]
    assert not app.warning
    assert not app.error


def test_what_was_decided_about_a_file_is_listed_as_text():
    odd = pd.read_csv(io.BytesIO(CSV)).assign(**{"a *label*": 1})
    job = own_upload(odd.to_csv(index=False).encode())
    assert f"- {shell.plain('Columns ignored: a *label*.')}" in text(opened("data", data=job.token))
    assert "Worth knowing" not in [header.value for header in opened("data").subheader]


def test_the_example_can_be_used_as_if_it_were_ones_own():
    app = opened("data")
    app.button(key="use_example").click().run()
    (token,) = link(app, "data")
    assert "waits in the queue, place 1" in text(app)
    job = jobs.find(token)
    assert job is not None
    assert read(job).state == "done"
    app = opened("data", data=token)
    assert "An example, not yours" not in text(app)
    assert "example\\.csv" in text(app)
    assert "Epochs of SFT" in [field.label for field in app.number_input]


def test_an_uploaded_file_is_read_by_the_worker_and_its_link_shows_the_report_to_whoever_has_it():
    app = bring(opened("data"), "My Plays.CSV", CSV)
    (token,) = link(app, "data")
    job = jobs.find(token)
    assert job is not None
    assert (job.name, job.settings, job.upload.read_bytes()) == ("My Plays.CSV", {"suffix": ".csv"}, CSV)
    assert "My Plays\\.CSV waits" in text(app)
    read(job)
    app = opened("data", data=token)
    report = files.read_json(job.result)
    assert f"**{report['users']:,} users took {report['items']:,} items" in text(app)
    assert set(charts(app)) == {"per_user", "popularity", "levels"}
    assert "Your other uploads" not in text(app)


def test_a_bad_file_is_one_sentence_and_the_page_stays_up():
    app = bring(opened("data"), "plays.csv", b"\xff\xfe\x00\x01")
    (token,) = link(app, "data")
    job = jobs.find(token)
    assert job is not None
    read(job)
    app.run()
    app = opened("data", data=token)
    assert [error.value for error in app.error] == ["plays\\.csv is no table\\."]
    assert "An example, not yours:" in text(app)


def test_an_empty_file_and_too_many_at_once_are_refused_in_one_sentence():
    app = bring(opened("data"), "plays.csv", b"")
    assert [error.value for error in app.error] == ["The file is empty; choose one with rows\\."]
    for _ in range(limits.UPLOADS_AT_ONCE):
        app.button(key="use_example").click().run()
        app.query_params.clear()
        app.run()
    app.button(key="use_example").click().run()
    assert "uploads being read" in app.error[0].value
    assert "Your other uploads: [example\\.csv](data?data=" in text(app)


def test_an_upload_can_be_taken_back_while_it_waits():
    app = bring(opened("data"), "plays.csv", CSV)
    (token,) = link(app, "data")
    app.button(key="cancel").click().run()
    assert jobs.find(token) is None
    assert not jobs.folder_of(token).exists()


@pytest.mark.parametrize("token", ["../../etc", "/etc/passwd", "", "<script>", "x" * 5000, "'; drop table jobs;--"])
def test_a_link_that_names_no_upload_shows_the_example(token: str):
    app = opened("data", data=token)
    assert "An example, not yours:" in text(app)
    assert bool(token) == any("not on this server" in warning.value for warning in app.warning)


def test_a_runs_token_is_no_uploads():
    run = jobs.submit("prefer", {"dataset": "catalog"}, "somebody", "a run")
    app = opened("data", data=run.token)
    assert "not on this server" in app.warning[0].value
    app = opened("data", data=own_upload().token, run=run.token)
    assert "Runs on these data" not in [part.value for part in app.subheader]


def test_a_run_is_handed_in_with_what_the_controls_say_and_stands_in_the_link():
    job = own_upload()
    app = opened("data", data=job.token)
    app.number_input(key="epochs").set_value(3)
    app.number_input(key="steps").set_value(50)
    app.slider(key="negatives").set_value(5)
    app.selectbox(key="objective").set_value("sdpo").run()
    report = files.read_json(job.result)
    assert f"3 epochs of {report['rows']['train']} lines" in text(app)
    app.button(key="train").click().run()
    (token,) = link(app, "run")
    run = jobs.find(token)
    assert run is not None
    wanted = {"dataset": jobs.OWN + job.token, "objective": "sdpo", "negatives": 5, "steps": 50, "sft_epochs": 3.0}
    assert {name: run.settings[name] for name in wanted} == wanted
    assert run.settings["model"] == "pocket-gpt2"
    assert "validation_users" not in run.settings
    app = opened("data", data=job.token, run=token, objective="S-DPO", negatives="5", epochs="3")  # another browser
    assert "Runs on these data" in [part.value for part in app.subheader]
    assert "S\\-DPO" in text(app)
    assert "were not recognised" not in text(app)
    assert app.number_input(key="epochs").value == 3


def test_nonsense_in_a_link_is_passed_over():
    app = opened("data", data=own_upload().token, negatives="many", colour="red", epochs="7")
    assert app.slider(key="negatives").value == 15
    assert app.number_input(key="epochs").value == 7


def test_no_more_negatives_than_a_user_has():
    app = opened("data", data=own_upload(json.dumps(ROWS).encode(), "rows.json").token)
    assert app.slider(key="negatives").value == 3
    app.slider(key="negatives").set_value(4).run()
    assert "at most 3 negatives" in app.warning[0].value
    assert app.button(key="train").disabled
    app.slider(key="negatives").set_value(2).run()
    assert not app.button(key="train").disabled


def test_too_many_runs_at_once_are_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    app = opened("data", data=own_upload().token)
    monkeypatch.setattr(limits, "RUNS_AT_ONCE", 0)
    app.button(key="train").click().run()
    assert "You have 0 runs waiting or training, the maximum" in app.error[0].value


def test_a_long_training_is_told_before_it_starts(speed: None):
    job = own_upload()
    report = files.read_json(job.result)
    report["rows"] |= {"train": 200_000, "validation": 30_000}
    files.write_json(job.result, report)
    app = opened("data", data=job.token)
    assert "choose fewer epochs" in text(app)
    app.button(key="train").click().run()
    run = jobs.find(link(app, "run")[0])
    assert run is not None
    assert run.settings["validation_users"] == 1000


def test_a_report_that_is_damaged_or_gone_is_one_sentence():
    job = own_upload()
    job.result.write_text("{")
    app = opened("data", data=job.token)
    assert [error.value for error in app.error] == [
        "The report on these data is missing or damaged: upload the file again."
    ]
    job.result.unlink()
    app = opened("data", data=job.token)
    assert [error.value for error in app.error] == [
        "The report on these data is missing or damaged: upload the file again."
    ]


def test_keeping_and_removing():
    job = own_upload()
    app = opened("data", data=job.token)
    app.toggle(key=f"keep_{job.token}").set_value(True).run()
    found = jobs.find(job.token)
    assert found is not None
    assert found.kept
    app.button(key="train").click().run()
    run = link(app, "run")[0]
    app.button(key="remove").click().run()
    assert jobs.find(job.token) is None
    assert jobs.find(run) is None
    assert not job.folder.exists()
    assert "were removed" in text(app)
    assert link(app, "data") == []
    assert "An example, not yours:" in text(app)
