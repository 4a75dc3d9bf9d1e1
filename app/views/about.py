"""About: the paper, the words, and where each number comes from."""

import re
from typing import Any

import limits
import pandas as pd
import recorded
import streamlit as st
from figures import sources
from shell import WORDS, check_link, draw, head, plain

from minipo.evaluation import Interval
from minipo.experiments import files, records
from minipo.experiments.records import Outcomes, Recorded, difference
from minipo.experiments.runs import DATA

PARTS = ["Numbers", "Unseen users", "Words", "Papers", "Data and limits"]
FURTHER_WORDS = {
    "chosen": "The item that really came next.",
    "negative": "An item that was not chosen, also called rejected.",
    "candidates": "The chosen item and its negatives: what a model ranks.",
    "discriminative": "The negatives that DynamicPO's rule leaves out.",
    "used": "The negatives that entered the loss.",
    "reward win rate": WORDS["win rate"],
    "ValidRatio": "Share of free answers that name exactly one candidate, or an item of the catalogue.",
    "tie": "Equal log-probs; a tie counts against the chosen item.",
    "test users": "Users on whom numbers are reported. No setting is chosen on them.",
    "validation users": "Users on whom settings are chosen, and whose curves and probes are shown.",
}
PAPERS = [
    ("DynamicPO", "Hu et al. 2026, *DynamicPO: Dynamic Preference Optimization for Recommendation*", "2605.00327"),
    ("DPO", "Rafailov et al. 2023, *Direct Preference Optimization: Your Language Model is Secretly a Reward Model*",
     "2305.18290"),
    ("DMPO", "Bai et al. 2024, *Finetuning Large Language Model for Personalized Ranking*", "2405.16127"),
    ("S-DPO", "Chen et al. 2024, *On Softmax Direct Preference Optimization for Recommendation*", "2406.09215"),
    ("MPPO", "Xie et al. 2024, *MPPO: Multi Pair-wise Preference Optimization for LLMs with Arbitrary Negative "
     "Samples*", "2412.15244"),
    ("SimPO", "Meng et al. 2024, *SimPO: Simple Preference Optimization with a Reference-Free Reward*", "2405.14734"),
    ("β-DPO", "Wu et al. 2024, *β-DPO: Direct Preference Optimization with Dynamic β*", "2407.08639"),
    ("LLaRA", "Liao et al. 2024, *LLaRA: Large Language-Recommendation Assistant*, the prompts and data format",
     "2312.02445"),
    ("LoRA", "Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*", "2106.09685"),
    ("SmolLM2", "Ben Allal et al. 2025, *SmolLM2: When Smol Goes Big*", "2502.02737"),
]  # fmt: skip
LABEL = re.compile(r"(DynamicPO-)?(\S+) K = (\d+)")


def numbers() -> None:
    grids, absent = {}, []
    for name in [name for names in recorded.GRIDS.values() for name in names]:
        try:
            grids[name] = recorded.grid(name)
        except ValueError as error:
            absent.append(recorded.fault(error))
    tables = {name: grid.table for name, grid in grids.items()}
    st.markdown(sources.runs_sentence(tables, len(absent)))
    if tables:
        draw(sources.runs_by_grid(tables), "about_runs", "Recorded runs by grid, coloured by objective.")
    st.markdown("**Where each number comes from:** one command repeats a grid, with the seeds given here.")
    st.dataframe(
        pd.DataFrame([origin(name, grid) for name, grid in grids.items()] + further_users()),
        hide_index=True, key="about_origins", row_height=36, height="content", placeholder="—",
        column_config={
            "Grid": st.column_config.TextColumn(pinned=True), "It holds": st.column_config.TextColumn(width=480)
        },
    )  # fmt: skip
    for sentence in absent:
        st.warning(sentence)
    rules = {str(grid.provenance["rule"]): None for grid in grids.values() if "rule" in grid.provenance}
    st.caption(
        "Runs are repeated in the folder of this repository; data/README.md says what the files hold, FINDINGS.md how "
        "each of the paper's claims fared. How settings were chosen: " + " ".join(map(plain, rules))
    )


def origin(name: str, grid: Recorded) -> dict[str, Any]:
    """A grid's row, from its provenance."""
    made = grid.provenance
    chosen = made.get("chosen") or {}
    left = made.get("missing")
    return {
        "Grid": name,
        "Repeat it with": grid.command,
        "It holds": sources.held(grid.table) + (f"; {left} runs still to come" if left else ""),
        "Runs": len(grid.table),
        "Seeds": ", ".join(map(str, made.get("seeds", []))),
        "Test users": grid.ranks.shape[1],
        "Data": made.get("dataset_fingerprint", "—"),
        **stamp(made),
        "Chosen settings": ", ".join(f"{key} {value}" for key, value in chosen.items()) or "—",
    }


def stamp(made: dict[str, Any]) -> dict[str, str]:
    """When, where and with what something was recorded."""
    versions = made.get("versions") or {}
    tools = [f"{tool} {versions[tool]}" for tool in ("minipo", "torch", "transformers", "numpy") if tool in versions]
    return {
        "Recorded": str(made.get("recorded", "—"))[:10],
        "Machine": versions.get("machine", "—"),
        "Versions": ", ".join(tools) or "—",
        "Commit": made.get("commit") or "—",
    }


def further_users() -> list[dict[str, Any]]:
    try:
        content = files.read_json(records.RECORDED / "fresh.json")
        held = f"the headline differences on {content['users']:,} users that played no part"
        return [{"Grid": "fresh", "Repeat it with": content["command"], "It holds": held, **stamp(content)}]
    except (ValueError, KeyError, TypeError):  # the part about unseen users reports it
        return []


def outcomes(label: str) -> Outcomes:
    """Test users' HR@1 in the recorded runs with this name in fresh.json."""
    if label in ("SFT", "Markov", "oracle"):
        return recorded.grid("objectives").baseline(label.lower())
    if match := LABEL.fullmatch(label):
        dynamic, objective, negatives = match.groups()
        query = {"objective": recorded.OBJECTIVES[objective], "negatives": int(negatives)}
        return recorded.grid("objectives").outcomes(**query, **recorded.LINES["dynamic" if dynamic else "plain"])
    line = recorded.LINES[{"random": "random |B|"}.get(label, label)]
    return recorded.grid("parts").outcomes(objective="dmpo", negatives=19, **line)


@st.cache_data(show_spinner=False, max_entries=2)
def headline(content: dict[str, Any]) -> list[tuple[str, str, Interval, Interval]]:
    """Each headline difference on test users and on unseen users."""
    return [
        (left, right, difference(outcomes(left), outcomes(right)), found)
        for left, right, found in sources.unseen(content)
    ]


def unseen_users() -> None:
    try:
        content = files.read_json(records.RECORDED / "fresh.json")
        pairs = headline(content)
        users = len(recorded.grid("objectives").baselines["sft"]), content["users"]
    except ValueError as error:
        st.warning(recorded.fault(error))
        return
    except KeyError:
        st.warning("The recorded differences on further users name runs that are missing here.")
        return
    st.markdown(sources.unseen_sentence(pairs))
    draw(sources.on_unseen(pairs, users), "about_unseen", "Headline differences on test users and on unseen users.")
    st.caption(
        "The other pages show test users. The catalogue's world and SFT recipe were settled while looking at these; "
        "the unseen users were drawn afterwards from the same world. Intervals are paired over users and seeds. "
        f"Recorded {plain(str(content.get('recorded'))[:10])}; `{content.get('command')}` repeats it."
    )


def words() -> None:
    query = st.text_input(
        "Find a word", key="word", placeholder="push, SFT, interval …", bind="query-params", live=True, max_chars=40,
        help="Shows the words whose name or meaning contains this.",
    )  # fmt: skip
    known = sorted((WORDS | FURTHER_WORDS).items(), key=lambda entry: entry[0].lower())
    found = [(word, means) for word, means in known if query.strip().lower() in f"{word} {means}".lower()]
    if not found:
        st.markdown(f"None of the {len(known)} entries contains “{plain(query)}”.")
    lines = [f"**{plain(word)}**  \n{plain(means)}" for word, means in found]
    half = (len(lines) + 1) // 2
    for column, part in zip(st.columns(2, gap="large"), (lines[:half], lines[half:]), strict=True):
        column.markdown("\n\n".join(part))


def papers() -> None:
    st.markdown(
        "The method is DynamicPO's: please cite the papers of what you use, and this kit through `CITATION.cff`. "
        "minipo adds recorded runs, their intervals, and what the paper's claims come to on them: `FINDINGS.md`."
    )
    st.markdown(
        "\n".join(
            f"- **{name}** {title}, [arXiv {number}](https://arxiv.org/abs/{number})" for name, title, number in PAPERS
        )
        + "\n- **MovieLens** Harper and Konstan 2015, *The MovieLens Datasets: History and Context*, ACM TiiS 5(4)"
    )


def data_and_limits() -> None:
    st.subheader("Licences", anchor=False)
    try:
        card = (DATA / "README.md").read_text(encoding="utf-8")
        for part in (r"\*\*Licences\.\*\* (.+?)\n\n", r"## Licence\n\n(.+)"):
            if found := re.search(part, card, re.DOTALL):
                st.markdown(found[1])
    except (OSError, UnicodeDecodeError):
        st.warning("The data card, data/README.md, which has the licences of the data, cannot be read.")
    st.subheader("What this server allows", anchor=False)
    st.markdown(limits.described())


@st.fragment
def about() -> None:
    parts = st.tabs(PARTS, key="part", bind="query-params")
    for part, show in zip(parts, (numbers, unseen_users, words, papers, data_and_limits), strict=True):
        if part.open:
            with part:
                show()


head("About minipo", "What minipo is, its words and papers, and where each number comes from.")
st.markdown(
    "A teaching kit: watch preference optimization collapse in a language-model recommender, see why, and repair it "
    "with DynamicPO ([arXiv 2605.00327](https://arxiv.org/abs/2605.00327))."
)
about()
check_link("about", ["part", "word"])
