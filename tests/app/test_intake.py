"""Uploads, read by a process as the worker starts it: what fits is reported; whatever else, one sentence says why."""

import gzip
import io
import json
import re
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from minipo.experiments import files
from minipo.experiments.configuration import PreferConfig, make_config
from minipo.experiments.datasets import own
from minipo.experiments.datasets.loading import load_dataset
from tests.app.conftest import MAIN

import intake  # isort: skip
import jobs  # isort: skip
import limits  # isort: skip
import worker  # isort: skip

HEADER = b"user,item,timestamp\n"
ROW = b"anna,The Larks,2025-01-01\n"


def handed_in(content: bytes, name: str) -> jobs.Job:
    """The job of an upload after the worker has done it."""
    job = jobs.submit("data", {"suffix": jobs.suffix(name)}, "viewer", name, content)
    worker.perform()
    found = jobs.find(job.token)
    assert found is not None
    return found


def read_here(content: bytes, name: str) -> Path:
    """The report on an upload, made in this process: another for each takes seconds."""
    upload = files.home() / f"upload{jobs.suffix(name)}"
    upload.parent.mkdir(exist_ok=True)
    upload.write_bytes(content)
    assert intake.main(str(upload), str(upload.with_name("result.json"))) == 0
    return upload.with_name("result.json")


def held(content: bytes, name: str = "plays.csv") -> jobs.Job:
    """The job of an upload as it is after the worker has done it, its report aside."""
    job = jobs.submit("data", {"suffix": jobs.suffix(name)}, "viewer", name, content)
    jobs.begin()
    jobs.finish(job.token, "done", "")
    return job


def as_csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False).encode()


def as_parquet(table: pd.DataFrame | pa.Table, **how: object) -> bytes:
    file = io.BytesIO()
    table = table if isinstance(table, pa.Table) else pa.Table.from_pandas(table)
    pa.parquet.write_table(table, file, **how)
    return file.getvalue()


def llara(rows: int = 30, candidates: int = 4) -> list[dict[str, object]]:
    names = [f"item {number}" for number in range(candidates)]
    return [{"historyList": f"a{row}::item 1", "itemList": names, "trueSelection": names[0]} for row in range(rows)]


def zipped(content: bytes | str, method: int = zipfile.ZIP_DEFLATED, **others: bytes | str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, text in {"table.csv": content, **others}.items():
            archive.writestr(name, text)
    return file.getvalue()


def as_json_lines(table: pd.DataFrame) -> bytes:
    return table.to_json(orient="records", lines=True).encode()


PACKED: dict[str, Callable[[pd.DataFrame], bytes]] = {
    "plays.csv": as_csv,
    "plays.parquet": as_parquet,
    "plays.inter": lambda table: table.to_csv(index=False, sep="\t").encode(),
    "plays.csv.gz": lambda table: gzip.compress(as_csv(table)),
    "plays.jsonl": lambda table: as_json_lines(table.astype({"timestamp": str})),
    "plays.zip": lambda table: zipped(as_csv(table)),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_table_is_reported_with_what_was_left_out(name: str):
    table = own.example(60)
    report = files.read_json(read_here(PACKED[name](table), name))
    assert report["users"] == 57  # three of sixty have too few rows
    assert report["dropped"]["users with fewer than 6 liked items"] >= 3
    assert report["dropped"]["rows without item"] == int(table["item"].isna().sum())
    assert report["notes"] == []
    assert report["negatives"] == [19, 19]
    assert sum(users for _, users in report["items_of_users"]) == report["users"]
    assert report["hr@1"]["chance"][0] == pytest.approx(0.05)
    low, high = report["hr@1"]["markov"][1:]
    assert low < report["hr@1"]["markov"][0] < high


def test_the_worker_reports_in_a_process_of_its_own_what_is_reported_here():
    content = PACKED["plays.csv.gz"](own.example(60))
    job = handed_in(content, "plays.csv.gz")
    assert (job.state, job.message) == ("done", "")
    assert files.read_json(job.result) == files.read_json(read_here(content, "plays.csv.gz"))


def test_llara_rows_are_reported_with_the_negatives_they_have():
    report = files.read_json(read_here(json.dumps(llara()).encode(), "rows.json"))
    assert report["negatives"] == [3, 3]


def test_movielens_is_taken_as_it_was_downloaded():
    table = own.example(60).dropna().drop_duplicates(["user", "item"])
    films = {title: number for number, title in enumerate(sorted(set(table["item"])), start=1)}
    times = table["timestamp"].astype("datetime64[s]").astype(int)
    ratings = "".join(
        f"{user.split()[1]}::{films[item]}::5::{time}\n"
        for user, item, time in zip(table["user"], table["item"], times, strict=True)
    )
    titles = "".join(f"{number}::{title}::Drama\n" for title, number in films.items())
    content = zipped(
        "", **{"ml-1m/ratings.dat": ratings, "ml-1m/movies.dat": titles.replace("e", "é").encode("latin-1")}
    )
    report = files.read_json(read_here(content, "ml-1m.zip"))
    assert report["items"] == len(films)
    assert {item for item, _ in report["top"]} <= {title.replace("e", "é") for title in films}
    assert report["notes"] == [
        "movies.dat was read as Latin-1, because it is not in UTF-8.",
        "Titles of items are from movies.dat.",
    ]


@pytest.mark.slow
def test_the_largest_table_that_is_allowed_is_read_in_time():
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "user": random.integers(0, 30_000, limits.ROWS),
            "item": random.integers(0, 20_000, limits.ROWS),
            "timestamp": random.integers(1, 10**9, limits.ROWS),
        }
    )
    start = time.monotonic()
    job = handed_in(as_csv(table), "large.csv")
    assert job.state == "done"
    assert time.monotonic() - start < limits.UPLOAD_SECONDS / 2


def too_much(share: float = 1.0) -> int:
    """So many letters are more than an upload may unpack to."""
    return int(share * 1.05 * limits.UNPACKED_MB * 2**20)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {  # made when they are asked for: some are large
    "binary.csv": (lambda: bytes(range(256)) * 40, "holds NUL bytes, so it is not text in UTF-8"),
    "utf-16.csv": (
        lambda: as_csv(own.example(9)).decode().encode("utf-16"),
        "holds NUL bytes, so it is not text in UTF-8; save it",
    ),
    "latin-1.csv": (
        lambda: HEADER + "anna,Björk,2025-01-01\n".encode("latin-1"),
        "is not text in UTF-8; save it as CSV in UTF-8",
    ),
    "nul.csv": (lambda: HEADER + b"anna,The\0Larks,2025-01-01\n", "holds NUL bytes"),
    "bomb.csv.gz": (lambda: gzip.compress(HEADER + too_much() * b"x"), "unpacks to more than 200 MB, the limit here"),
    "bomb.zip": (lambda: zipped(HEADER + too_much() * b"x"), "unpacks to more than 200 MB, the limit here"),
    "parts.zip": (
        lambda: zipped(HEADER + too_much(0.6) * b"x", **{"other.csv": HEADER + too_much(0.6) * b"x"}),
        "unpacks to more than 200 MB, the limit here",
    ),
    "bzip2.zip": (
        lambda: zipped(HEADER + ROW, zipfile.ZIP_BZIP2),
        "bzip2.zip does not use the usual zip compression (Deflate); create it again.",
    ),
    "many.zip": (
        lambda: zipped(HEADER, **{f"part-{number}.csv": HEADER for number in range(limits.PARTS)}),
        "has 101 tables, and 100 is the limit here",
    ),
    "long.zip": (
        lambda: zipped(HEADER + 200_000 * ROW, **{"other.csv": HEADER + 200_000 * ROW}),
        "lines, and 300,000 is the limit here",
    ),
    "blank.csv.gz": (lambda: gzip.compress(HEADER + 10**7 * b"\n"), "lines, and 300,000 is the limit here"),
    "long.jsonl": (
        lambda: 300_001 * b'{"user": 1, "item": 2, "time": 3}\n',
        "has 300,001 lines, and 300,000 is the limit here",
    ),
    "cut-off.zip": (lambda: zipped(HEADER + ROW)[:-30], "is not a readable zip archive"),
    "cut-off.csv.gz": (lambda: gzip.compress(HEADER + 100 * ROW)[:-20], "cannot be unpacked"),
    "workbook.zip": (lambda: zipped("", **{"xl/workbook.xml": "<x/>"}).replace(b"table.csv", b"table.xml"), "no table"),
    "binary.zip": (lambda: zipped(bytes(range(256)) * 40), "holds NUL bytes, so it is not text in UTF-8"),
    "huge-cell.dat": (lambda: b"1::2::5::3\n1::" + 400 * b"2" + b"::5::4\n", "line 2: a cell has more than 300 char"),
    "two-columns.dat": (lambda: b"1::2\n", "lacks the columns user, item, timestamp; its columns are 1, 2"),
    "array.jsonl": (lambda: b'[{"user": 1}]', "row 1: this is not a JSON object"),
    "deep.jsonl": (lambda: 100_000 * b"[" + 100_000 * b"]", "cannot be read"),
    "archive.csv": (
        lambda: zipped(as_csv(own.example(9))),
        "save it as CSV in UTF-8, or, if it is a Parquet file or compressed",
    ),
    "packed.json": (lambda: gzip.compress(b"[]"), "let its name end in .parquet, .gz or .zip"),
    "renamed.csv": (lambda: as_parquet(own.example(9)), "let its name end in .parquet, .gz or .zip"),
    "renamed.parquet": (lambda: as_csv(own.example(9)), "is not a readable Parquet file"),
    "cut-off.parquet": (lambda: as_parquet(own.example(9))[:-100], "is not a readable Parquet file"),
    "blank.csv": (lambda: b"\n\n  \n", "is empty; give a file with the columns user, item, timestamp"),
    "header.csv": (lambda: HEADER, "has no row with user, item and timestamp"),
    "short.csv": (lambda: HEADER + 3 * ROW, "that only others met (users: 1; items: 1;"),
    "columns.csv": (
        lambda: b"who,what,when\n" + ROW,
        "lacks the columns user, item, timestamp; its columns are who, what",
    ),
    "time.csv": (lambda: HEADER + b"anna,The Larks,yesterday\n", "the timestamp 'yesterday' cannot be used"),
    "ragged.csv": (lambda: HEADER + b"anna,Larks, The,2025-01-01\n", "line 2 has 4 cells where the first line has 3"),
    "huge-cell.csv": (
        lambda: HEADER + b"anna," + 10 * 2**20 * b"x" + b",1\n",
        "line 2: a cell has more than 300 characters",
    ),
    "open-quote.csv": (lambda: HEADER + b'anna,"The Larks,1\n' + 1000 * ROW, "close the quotation mark"),
    "huge-header.csv": (lambda: 10 * 2**20 * b"x" + b",item,timestamp\n" + ROW, "field larger than field limit (300)"),
    "wide.csv": (
        lambda: b",".join(b"c%d" % n for n in range(10_000)) + b"\n" + ROW,
        "has 10,000 columns, and 50 is the limit",
    ),
    "wide-row.csv": (lambda: HEADER + b"1," * 9_999 + b"1\n", "line 2 has 10,000 cells where the first line has 3"),
    "long.csv": (
        lambda: HEADER + 700_000 * b"anna,The Larks,2025-01-01\n",
        "lines, and 300,000 is the limit here",
    ),
    "deep.json": (
        lambda: 100_000 * b"[" + 100_000 * b"]",
        "is not JSON in UTF-8 (Invalid JSON: recursion limit exceeded",
    ),
    "digits.json": (lambda: b"[" + 10_000 * b"7" + b"]", "is not JSON in UTF-8"),
    "half-letter.json": (
        lambda: json.dumps(llara()).replace("item 0", "\\ud800").encode(),
        "is not JSON in UTF-8",
    ),
    "object.json": (lambda: b'{"a": 1}', "lacks the columns user, item, timestamp; its columns are a"),
    "other.json": (
        lambda: b'[{"a": 1}]',
        "row 1: historyList: Field required; write historyList, itemList, trueSelection.",
    ),
    "numbers.json": (
        lambda: b'[{"historyList": [1], "itemList": ["a"], "trueSelection": "a"}]',
        "row 1: historyList: Input should be a valid string",
    ),
    "crowd.json": (lambda: json.dumps(llara(9, 60)).encode(), "has 60 items in a row, and 50 is the limit here"),
    "long-name.json": (
        lambda: json.dumps(llara()).replace("item 0", 500 * "x").encode(),
        "has 500 characters in a name, and 300 is the limit here",
    ),
    "many.parquet": (
        lambda: as_parquet(pa.table({"user": pa.nulls(10**6, pa.int8()), "item": pa.nulls(10**6, pa.int8())})),
        "has 1,000,000 rows, and 300,000 is the limit",
    ),
    "bomb.parquet": (
        lambda: as_parquet(pa.table({"user": ["a"], "item": [too_much() * "x"], "timestamp": [1]}), compression="zstd"),
        "MB when unpacked, and 200 is the limit here",
    ),
    "dictionary-bomb.parquet": (
        lambda: as_parquet(
            pa.table(
                {
                    "user": pa.DictionaryArray.from_arrays(pa.array(200_000 * [0], pa.int32()), ["a"]),
                    "item": pa.DictionaryArray.from_arrays(pa.array(200_000 * [0], pa.int32()), [2**20 * "x"]),
                    "timestamp": pa.array(range(200_000)),
                }
            ),
            compression="zstd",
        ),
        "that only others met (users: 1; items: 1;",
    ),
    "nested.parquet": (
        lambda: as_parquet(pa.table({"user": ["a"], "item": [["b"]], "timestamp": [1]})),
        "the column item holds lists or records",
    ),
    "nested-time.parquet": (
        lambda: as_parquet(pa.table({"user": ["a"], "item": ["b"], "timestamp": [{"t": 1}]})),
        "the column timestamp holds lists or records",
    ),
    "bytes.parquet": (
        lambda: as_parquet(pa.table({"user": [b"\xff"], "item": [b"\xfe"], "timestamp": [1]})),
        "cannot be read",
    ),
    "far-away.parquet": (
        lambda: as_parquet(
            pa.table({"user": ["a"], "item": ["b"], "timestamp": pa.array([2**62], pa.timestamp("us"))})
        ),
        "",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_an_upload_is_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(limits, "UNPACKED_MB", 20)  # the worker's own process, in the slow test below, has its own
    made, said = BAD[name]
    Path(name).write_bytes(made())
    assert Path(name).stat().st_size <= limits.UPLOAD_MB * 2**20
    start = time.monotonic()
    assert intake.main(name, "result.json") == 2
    assert time.monotonic() - start < 15
    assert not Path("result.json").exists()
    sentence = capsys.readouterr().err.removeprefix("minipo: ").removesuffix("\n")
    check_sentence(sentence, name, said.replace("200", "20"))


# In the worker's own process, one file that is merely wrong, and those that would take memory or depth.
HUNGRY = ("bomb.csv.gz", "bomb.zip", "bomb.parquet", "dictionary-bomb.parquet", "bytes.parquet",
          "huge-cell.csv", "deep.json")  # fmt: skip


@pytest.mark.parametrize("name", ["utf-16.csv", *(pytest.param(name, marks=pytest.mark.slow) for name in HUNGRY)])
def test_the_worker_passes_the_sentence_on_with_the_files_name_and_no_path(name: str):
    made, said = BAD[name]
    job = handed_in(made(), name)
    assert job.state == "failed"
    check_sentence(job.message, name, said)
    assert not job.result.exists()


def check_sentence(message: str, name: str, said: str) -> None:
    assert said in message
    assert message.startswith(name)
    assert message.endswith(".")
    assert len(message) <= 600
    assert not re.search(r"Traceback|[A-Za-z]Error\b|/|\n", message)


def test_nothing_in_an_upload_is_ever_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = [path.read_text() for path in (MAIN.parent / "intake.py", *Path(own.__file__).parent.glob("*.py"))]
    assert not re.search(r"pickle|eval\(|exec\(|engine=", "".join(code))
    pickled = b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR."
    monkeypatch.chdir(tmp_path)
    Path("pickled.csv").write_bytes(pickled)
    assert intake.main("pickled.csv", "result.json") == 2
    assert not Path("pwned").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux lets one process limit another's memory.")
def test_a_file_that_needs_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "UPLOAD_GB", 1)
    hungry = "import time; time.sleep(1); everything = bytearray(3 * 2**30)"
    monkeypatch.setattr(worker, "task", lambda job: (exec, hungry, {}))
    job = handed_in(as_csv(own.example(9)), "plays.csv")
    assert (job.state, job.message) == ("failed", "It needed more than 1 GB of memory, the limit here.")


def test_time_is_limited_and_the_limit_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "UPLOAD_SECONDS", 0.3)
    monkeypatch.setattr(worker, "task", lambda job: (exec, "import time; time.sleep(60)", {}))
    job = handed_in(as_csv(own.example(9)), "plays.csv")
    assert job.message == "It took longer than 0.3 seconds, the limit here, and was stopped; leave out some rows."


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nothing.csv", b"", "The file is empty"),
        ("model.pkl", b"cos\nsystem\n", r"must end in \.csv, \.tsv, "),
        ("model", b"x", r"must end in \.csv, \.tsv, "),
        ("table.csv.bz2", b"x", r"must end in \.csv, \.tsv, "),
        ("table.parquet.gz", b"x", r"must end in \.csv, \.tsv, "),
        ("large.csv", bytes(limits.UPLOAD_MB * 2**20 + 1), "larger than 20 MB"),
    ],
)
def test_what_is_refused_before_it_is_read(name: str, content: bytes, said: str):
    with pytest.raises(ValueError, match=said):
        jobs.submit("data", {"suffix": jobs.suffix(name)}, "viewer", name, content)


def test_removing_an_upload_removes_every_run_on_it_and_the_models_they_began_with():
    mine, other = (held(as_csv(own.example(30, seed))) for seed in (0, 1))
    settings = {"dataset": jobs.OWN + mine.token}
    run = jobs.submit("prefer", settings, "viewer", "mine")
    friends = jobs.submit("prefer", settings, "friend", "who has the link")
    elsewhere = jobs.submit("prefer", {"dataset": jobs.OWN + other.token}, "viewer", "on other data")
    for name, job in (("sft-mine", mine), ("sft-other", other)):
        files.write_json(files.home() / "runs" / name / "config.json", {"kind": "sft", "dataset": str(job.upload)})
    assert jobs.runs_on(mine.token) == [friends.token, run.token]
    jobs.remove(mine.token)
    assert [jobs.find(job.token) for job in (mine, run, friends)] == [None, None, None]
    assert not mine.folder.exists()
    assert [path.name for path in (files.home() / "runs").iterdir()] == ["sft-other"]
    assert jobs.find(elsewhere.token) is not None
    jobs.remove("../../..")
    assert other.upload.exists()
    jobs.remove(elsewhere.token)
    assert other.upload.exists()  # a run that goes leaves the data it was trained on


def test_a_run_does_not_go_on_with_an_upload_that_has_changed():
    data = held(as_csv(own.example(users=100)))
    before = load_dataset(data.upload).fingerprint
    job = jobs.submit("prefer", {"dataset": jobs.OWN + data.token, "negatives": 2, "steps": 20}, "viewer", "mine")
    jobs.begin()
    jobs.stop(job.token)
    config = make_config(PreferConfig, jobs.with_paths(job.settings))
    files.write_json(job.run / "provenance.json", {"dataset_fingerprint": before})
    files.write_json(job.run / "config.json", asdict(config))
    data.upload.write_bytes(as_csv(own.example(users=200)))
    jobs.resume(job.token)
    worker.perform()
    found = jobs.find(job.token)
    assert found is not None
    assert found.state == "failed"
    after = load_dataset(data.upload).fingerprint
    assert f" started on plays.csv with fingerprint {before}, which has fingerprint {after} now; put " in found.message
    assert str(files.home()) not in found.message
