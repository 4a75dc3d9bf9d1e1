"""Your data: upload a file, look at its content, train a pocket model on it."""

import tempfile
from pathlib import Path
from typing import Any

import cards
import forms
import jobs
import limits
import pandas as pd
import streamlit as st
from figures import own_data
from shell import check_link, draw, head, plain, viewer

from minipo.experiments import files
from minipo.experiments.configuration import SFTConfig
from minipo.experiments.datasets import own
from minipo.experiments.datasets.splits import remarks

FORMAT = (
    "A table with the columns user, item and timestamp (rating too, if you like; of 1 to 5, 4 and 5 count): CSV in "
    "UTF-8, RecBole's .inter, MovieLens' .dat, JSON lines or Parquet, compressed with gzip too, or the zip archive of "
    "MovieLens or RecBole as it was downloaded; or rows in LLaRA's format as JSON. At most "
    f"{limits.UPLOAD_MB} MB, {limits.ROWS:,} rows, {limits.COLUMNS} columns and {limits.CELL} characters per cell. "
    "The file is read only on this server, and nobody can find it without your link."
)
EXAMPLE = "example.csv"
SHOWN_RUNS = 6
EPOCHS = 40  # of SFT, at most
RANKED = 1000  # validation users at each evaluation; with all of a large upload it would take longer than training


@st.cache_resource(show_spinner=False)
def example() -> tuple[bytes, dict[str, Any]]:
    """A file to try this page with, and its overview."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / EXAMPLE
        own.example().to_csv(path, index=False)
        return path.read_bytes(), own_data.overview(own.read(path))


def submit(name: str, content: bytes, me: str) -> None:
    """Submit a file to the worker and put it into the page's link."""
    state = st.session_state
    try:
        job = jobs.submit("data", {"suffix": jobs.suffix(name)}, me, name, content)
    except ValueError as error:
        state["data_said"] = str(error)
    else:
        st.query_params["data"] = job.token
        st.query_params.pop("run", None)


def uploaded(key: str, me: str) -> None:
    if file := st.session_state[key]:
        submit(file.name, file.getvalue(), me)
        st.session_state["uploads"] = st.session_state.get("uploads", 0) + 1  # a new, empty uploader


def forget(token: str) -> None:
    jobs.remove(token)
    for name in ("data", "run"):
        st.query_params.pop(name, None)
    st.session_state["data_removed"] = True


def controls(job: jobs.Job | None, me: str) -> None:
    """The controls for uploading a file, and for an upload."""
    bringing, doing = st.columns([3, 1.15], vertical_alignment="bottom", gap="medium")
    key = f"upload_{st.session_state.get('uploads', 0)}"
    bringing.file_uploader(
        "Your file: CSV, RecBole, MovieLens, JSON, Parquet, or a zip archive",
        [suffix[1:] for suffix in jobs.SUFFIXES], key=key, help=FORMAT, on_change=uploaded, args=(key, me),
    )  # fmt: skip
    if job is None:
        content, _ = example()
        doing.button(
            "Use the example", icon=":material/play_arrow:", key="use_example", width="stretch", on_click=submit,
            args=(EXAMPLE, content, me), help="Upload the example below as if it were yours, and train on it.",
        )  # fmt: skip
        doing.download_button(
            "Download the example", content, EXAMPLE, "text/csv", icon=":material/download:", key="example",
            width="stretch", on_click="ignore", help="The example as CSV: what a file of your own should look like.",
        )  # fmt: skip
        return
    with doing.popover("This upload", icon=":material/more_vert:", width="stretch", help="Keep or remove it"):
        st.toggle(
            "Keep it", job.kept, key=f"keep_{job.token}", on_change=cards.keep, args=(job.token, "data_said"),
            help=f"An upload is removed after {limits.HOURS} hours, or after {limits.DAYS_KEPT} days if you keep it.",
        )  # fmt: skip
        st.caption("Removed with it: every run on it, and the models that they trained.")
        st.button(
            "Remove my data", icon=":material/delete:", key="remove", on_click=forget, args=(job.token,),
            help="Remove the file and everything made from it, for everybody with its link.",
        )  # fmt: skip


@st.fragment(run_every=2)
def reading(token: str) -> None:
    """The state of a file while the worker reads it."""
    job = jobs.find(token)
    if job is None or not job.active:
        st.rerun()  # the page needs no more refresh
    waits = f"waits in the queue, place {jobs.place(token) + 1}."
    doing = waits if job.state == "waiting" else "is being read."
    with st.container(horizontal=True, vertical_alignment="center"):
        st.info(f"{plain(job.name)} {doing}", icon=":material/hourglass_top:", width="stretch")
        st.button(
            "Cancel", icon=":material/close:", key="cancel", on_click=jobs.remove, args=(token,),
            help="Withdraw the file.",
        )  # fmt: skip


def report(content: dict[str, Any], name: str | None) -> None:
    """The content of the data; name: of the file, None for the example."""
    said = own_data.sentence(content)
    st.markdown(f"**{plain(name)}** — {said}" if name else f"*An example, not yours:* {said}")
    users, items, levels = st.columns(3, gap="medium")
    with users:
        draw(own_data.items_of_users(content), "per_user", "How many users took how many items.")
    with items:
        draw(own_data.users_of_items(content), "popularity", "How many users took each item, most popular first.")
    with levels:
        draw(own_data.levels_figure(content), "levels", "HR@1 of chance, popularity and a Markov chain.")
    rows = content["rows"]
    st.caption(
        f"{content['users']:,} users; histories of {content['lengths']['min']} to {content['lengths']['max']} items. "
        f"Lines: {rows['train']:,} for training, {rows['validation']:,} for validation, {rows['test']:,} for the test, "
        "on which HR@1 is measured; with 95 % intervals over users. "
        f"Most popular: {', '.join(f'{plain(item)} ({count:,})' for item, count in content['top'])}."
    )
    for what, sentence in remarks(content).items():
        st.caption(f"{what.capitalize()}: {sentence}.")
    left_out, first = st.columns([1, 1.6], gap="medium")
    with left_out:
        st.subheader("Left out, and why", anchor=False)
        if content["dropped"]:
            table = pd.DataFrame({"what": content["dropped"].keys(), "how many": content["dropped"].values()})
            st.table(table.assign(what=table["what"].map(plain)), hide_index=True, border="horizontal")
        else:
            st.markdown("Nothing was left out.")
        if notes := content.get("notes"):  # missing in a report of an earlier version
            st.subheader("Worth knowing", anchor=False)
            st.markdown("\n".join(f"- {plain(note)}" for note in notes))
    with first:
        st.subheader("The first lines of the test", anchor=False)
        lines = [(plain(" → ".join(line["history"])), plain(line["chosen"])) for line in content["lines"]]
        st.table(
            pd.DataFrame(lines, columns=["history, oldest first", "chosen next"]), hide_index=True, border="horizontal"
        )


def how_long(settings: dict[str, Any], lines: int) -> str:
    """A sentence on the SFT before a run with these settings, and its duration."""
    if forms.starts_at_once(settings):
        return "SFT on these data is already trained: the run starts from it."
    steps = -(-int(settings["sft_epochs"] * lines) // SFTConfig.batch_size)
    epochs = settings["sft_epochs"]
    said = (
        f"These data are new, so SFT is trained first: {epochs:g} epoch{'s' * (epochs != 1)} of {lines:,} lines, "
        f"{steps:,} steps of {SFTConfig.batch_size}. {forms.estimate(settings)}"
    )
    seconds = forms.seconds_of(settings)
    if seconds and sum(seconds) > 60 * limits.RUN_MINUTES / 2:
        said += f" A run ends after {limits.RUN_MINUTES} minutes here, so choose fewer epochs."
    return said


@st.fragment
def training(token: str, content: dict[str, Any], me: str) -> None:
    st.subheader("Train a pocket model on it", anchor=False)
    most = content["negatives"][1]
    settings = forms.run_settings("", {"negatives": min(15, most)}, data=jobs.OWN + token)
    epochs, starting = st.columns([1, 4], vertical_alignment="bottom")
    chosen = epochs.number_input(
        "Epochs of SFT", 1, EPOCHS, int(settings["sft_epochs"]), key="epochs", bind="query-params",
        help="How often SFT, which comes before preference training, goes through all lines.",
    )  # fmt: skip
    settings["sft_epochs"] = float(chosen)
    if content["rows"]["validation"] > RANKED:
        settings["validation_users"] = RANKED
    with starting.container(horizontal=True, vertical_alignment="center"):
        start = st.button(
            "Train", type="primary", icon=":material/play_arrow:", key="train", disabled=settings["negatives"] > most,
            help="Submit the run; it is trained on this server when its turn comes.",
        )  # fmt: skip
        if settings["negatives"] > most:
            st.warning(f"A user in these data has at most {most} negatives: choose K of {most} or fewer.")
        else:
            st.caption(how_long(settings, content["rows"]["train"]))
    if start:
        try:
            job = jobs.submit("prefer", settings, me, forms.described(settings))
        except ValueError as error:
            st.error(plain(error))
        else:
            st.query_params["run"] = [job.token, *linked_runs(token)][:SHOWN_RUNS]
            st.rerun()


def linked_runs(token: str) -> list[str]:
    """The link's runs on this upload."""
    found = [jobs.find(run) for run in st.query_params.get_all("run")[:SHOWN_RUNS]]
    return [run.token for run in found if run and run.settings.get("dataset") == jobs.OWN + token]


def trained(token: str, me: str) -> None:
    """The viewer's and the link's runs on this upload."""
    mine = [run.token for run in jobs.of_viewer(me, "prefer") if run.settings.get("dataset") == jobs.OWN + token]
    shown = list(dict.fromkeys([*mine, *linked_runs(token)]))[:SHOWN_RUNS]
    if not shown:
        return
    st.subheader("Runs on these data", anchor=False)
    columns = st.columns(2, gap="medium") if len(shown) > 1 else [st.container()]
    for place, run in enumerate(shown):
        with columns[place % len(columns)]:
            cards.card(run)
            link = {"run": run}
            st.page_link("views/lab.py", label="In the Live lab", icon=":material/ssid_chart:", query_params=link)


def others(me: str, token: str | None) -> None:
    """The viewer's other uploads, as links."""
    mine = [job for job in jobs.of_viewer(me, "data") if job.token != token and job.state != "failed"][:5]
    if mine:
        links = ", ".join(f"[{plain(job.name)}](data?data={job.token})" for job in mine)
        st.caption(f"Your other uploads: {links}.")


def page() -> None:
    state, me = st.session_state, viewer()
    token = st.query_params.get("data")
    job = jobs.find(token) if token else None
    job = job if job is not None and job.kind == "data" else None
    head("Your data", "What is in a file of your own, and the same runs and figures on it.")
    controls(job if job is not None and not job.active else None, me)
    if said := state.pop("data_said", None):
        st.error(plain(said))
    if state.pop("data_removed", False):
        st.success("Your data and everything made from them were removed.", icon=":material/delete:")
    elif token and job is None:
        st.warning("The upload of this link is not on this server (any more): it was removed, or it expired.")
    if job is not None and job.active:
        reading(job.token)
    elif job is not None and job.state == "done":
        try:
            content = files.read_json(job.result)
        except ValueError:
            st.error("The report on these data is missing or damaged: upload the file again.")
        else:
            report(content, job.name)
            training(job.token, content, me)
            trained(job.token, me)
            others(me, job.token)
            return
    elif job is not None:
        st.error(plain(job.message or "The file was not read: upload it again."))
    report(example()[1], None)
    others(me, job.token if job else None)


page()
check_link("data", ("data", "run", "epochs", *forms.NAMES))
