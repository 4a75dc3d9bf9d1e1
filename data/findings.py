"""Tests the paper's claims on real data and a real language model; writes FINDINGS.md.

    python data/findings.py settings      DMPO at K = 1 over SFT length × learning rate  recorded/ml-100k-settings/
    python data/findings.py sft           the SFT run of the chosen length, shipped      sft/ml-100k-pocket-gpt2-10/
    python data/findings.py objectives    every objective × K × DynamicPO                recorded/ml-100k-objectives/
    python data/findings.py parts         DynamicPO's parts, its controls, more SFT      recorded/ml-100k-parts/
    python data/findings.py adapter       SmolLM2-135M's SFT adapter, shipped            sft/ml-100k-smollm2-135m/
    python data/findings.py reevaluate    these two, ranked anew on the data of today    their users and summary
    python data/findings.py llm-settings  DMPO at K = 1 over learning rates          recorded/ml-100k-smollm2-settings/
    python data/findings.py llm           DMPO × K × DynamicPO on SmolLM2-135M           recorded/ml-100k-smollm2/
    python data/findings.py ties          the headline under other orders within ties    recorded/ties.json
    python data/findings.py strengths     β and γ, DMPO in the catalogue: a picture      recorded/strengths/
    python data/findings.py report        what all of them say                           FINDINGS.md

The dataset and the language model are fetched on first use. Every run is cached by its settings and resumes where it
was cut off; a part that is not finished yet records the cells that are. MINIPO_HOME=$(mktemp -d) trains all anew.
No probes are recorded here: they would show what people of MovieLens-100K rated, which may not be passed on.
"""

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from record import COMMON as CATALOGUE
from record import baseline_ranks as catalogue_ranks
from record import load_current, markdown, points

from minipo.evaluation import ranking_metrics, ranks
from minipo.experiments.comparison import older_data
from minipo.experiments.configuration import Config, PreferConfig, SFTConfig, make_config, rows_at_once, splits_of
from minipo.experiments.datasets import baselines
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.files import read_json, whole_file, write_json
from minipo.experiments.records import RECORDED, Outcomes, Recorded, check_same_data, difference, load_recorded, record
from minipo.experiments.runs import DATA, Run, cache_folder, versions
from minipo.experiments.sweeps import grid
from minipo.experiments.training import arithmetic, sft_run
from minipo.experiments.users import evaluate
from minipo.experiments.workers import train_all

DATASET, POCKET, LANGUAGE_MODEL = "ml-100k", "pocket-gpt2", "smollm2-135m"
SFT_EPOCHS = (1, 3, 10)
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
SEEDS = (0, 1, 2)
NEGATIVES = (1, 5, 15, 19)
LLM_SEEDS, LLM_NEGATIVES, LLM_LEARNING_RATES = (0, 1), (1, 5, 15), (3e-5, 1e-4, 3e-4)
STRENGTH_NEGATIVES, BETAS, MARGINS = (1, 5, 19), (0.3, 1.0, 3.0), (2.0, 6.0, 12.0)
LLM = {"dataset": DATASET, "model": LANGUAGE_MODEL}
TIES = RECORDED / "ties.json"
ORDERS = (("file", 0), ("random", 0), ("random", 1), ("random", 2))  # and the dataset's seed, which draws negatives too
COMMON = {"dataset": DATASET, "model": POCKET, "steps": 300, "evaluate_every": 300}
NAMES = {"dpo": "DPO", "dmpo": "DMPO", "sdpo": "S-DPO", "mppo": "MPPO"}


def choose(settings: Recorded) -> dict[str, float]:
    """The SFT length and the learning rate that maximise plain DMPO's HR@1 at K = 1 on validation users."""
    means = settings.rows(objective="dmpo").groupby(["sft_epochs", "learning_rate"])["val_hr@1"].mean()
    epochs, learning_rate = means.idxmax()
    return {"sft_epochs": float(epochs), "learning_rate": float(learning_rate)}


def choose_more_sft(parts: Recorded) -> float:
    """The learning rate at which "more SFT" does best on validation users."""
    return float(parts.rows(objective="sft").groupby("learning_rate")["val_hr@1"].mean().idxmax())


def baseline_ranks(start: PreferConfig) -> dict[str, np.ndarray]:
    """Test users' ranks under the baselines, and under the SFT run that a run with `start` begins with."""
    splits = load_dataset(DATASET)
    scores = {
        "random": baselines.random_scores(splits.test),
        "popularity": baselines.popularity_scores(splits.train, splits.test),
        "markov": baselines.markov_scores(splits.train, splits.test),
    }
    sft = sft_run(start, progress=False).users["rank"].to_numpy()
    return {name: ranks(values) for name, values in scores.items()} | {"sft": sft}


def more_sft_steps() -> int:
    """SFT steps that cost what a preference run at K = 19 costs, in tokens that pass forward and backward.

    Both have 32 users in a step. A preference step passes the prompt and 20 candidates, and the reference adds a
    forward of the same, a third of a pass; an SFT step passes the prompt and one answer.
    """
    from minipo.compatibility.tokenizers import tokenize, tokenize_answers
    from minipo.experiments.models import load_model
    from minipo.prompts import TEMPLATES, answer, render

    splits = load_dataset(DATASET)
    _, tokenizer = load_model(POCKET, items=splits.items)
    prompts = tokenize(tokenizer, [render(TEMPLATES["line"], user.history) for user in splits.train])
    prompt = float(np.mean([len(ids) for ids in prompts]))
    item = float(np.mean([len(ids) for ids in tokenize_answers(tokenizer, [answer(item) for item in splits.items])]))
    return round(COMMON["steps"] * (prompt + (1 + max(NEGATIVES)) * item) * (4 / 3) / (prompt + item))


def make_settings() -> None:
    configs = grid(negatives=1, sft_epochs=SFT_EPOCHS, learning_rate=LEARNING_RATES, seeds=SEEDS, **COMMON)
    found = record(
        RECORDED / "ml-100k-settings",
        train_all(configs),
        {f"sft-{config.sft_epochs:g}": baseline_ranks(config)["sft"] for config in configs},
        command="python data/findings.py settings",
        rule=choose.__doc__,
    )
    print(choose(found))


def make_objectives() -> None:
    chosen = choose(load_current("ml-100k-settings"))
    configs = grid(objective=list(NAMES), negatives=NEGATIVES, dynamic=["off", "on"], seeds=SEEDS, **COMMON, **chosen)
    record(
        RECORDED / "ml-100k-objectives",
        train_all(configs),
        baseline_ranks(configs[0]),
        command="python data/findings.py objectives",
        chosen=chosen,
        rule=choose.__doc__,
    )


def make_parts() -> None:
    chosen = choose(load_current("ml-100k-settings"))
    shared = {"negatives": 19, "dynamic": "on", "seeds": SEEDS, **COMMON, **chosen}
    configs: list[Config] = [
        *grid(select=["on", "random"], adjust_beta="off", **shared),
        *grid(select="off", adjust_beta="on", **shared),
    ]
    steps = more_sft_steps()
    configs += [
        make_config(
            SFTConfig,
            {
                "dataset": DATASET,
                "model": POCKET,
                "start_epochs": chosen["sft_epochs"],
                "steps": steps,
                "learning_rate": rate,
                "seed": seed,
            },
        )
        for rate in LEARNING_RATES
        for seed in SEEDS
    ]
    start = grid(**shared)[0]
    record(
        RECORDED / "ml-100k-parts",
        train_all(configs),
        baseline_ranks(start),
        command="python data/findings.py parts",
        chosen=chosen,
        rule=choose.__doc__,
        more_sft_steps=steps,
    )


def ship(config: SFTConfig, name: str) -> None:
    """An SFT run that others start from, as a folder of data/sft."""
    run = train_all([config])[0]
    shutil.rmtree(DATA / "sft" / name, ignore_errors=True)
    shutil.copytree(run.folder, DATA / "sft" / name)


def make_sft() -> None:
    epochs = choose(load_current("ml-100k-settings"))["sft_epochs"]
    config = make_config(SFTConfig, {"dataset": DATASET, "model": POCKET, "epochs": epochs})
    ship(config, f"{DATASET}-{POCKET}-{epochs:g}")


def make_adapter() -> None:
    ship(make_config(SFTConfig, LLM), f"{DATASET}-{LANGUAGE_MODEL}")


def make_reevaluation() -> None:
    """Rank the users of today's data with the shipped SFT models, without training them anew.

    SFT learns from histories and chosen items alone, so a rule that changes nothing but negatives leaves the model as
    it is. `trained` in the summary says when, with which versions and on which data the weights were made.
    """
    for name in (f"{DATASET}-{POCKET}-10", f"{DATASET}-{LANGUAGE_MODEL}"):
        run = Run(DATA / "sft" / name)
        config, summary, splits = run.config, run.summary, splits_of(run.config)
        if summary["dataset_fingerprint"] == splits.fingerprint:
            continue
        model, tokenizer = run.load_model()
        with arithmetic(model, config.precision):
            test, validation = (
                evaluate(model, tokenizer, users, template=config.template, batch_size=rows_at_once(config))
                for users in (splits.test, splits.validation)
            )
        made = {name: summary[name] for name in ("finished", "versions", "dataset_fingerprint")}
        summary |= {
            "dataset_fingerprint": splits.fingerprint,
            **{f"val_{metric}": value for metric, value in validation.metrics.items()},
            **test.metrics,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "trained": summary.get("trained", made),
        }
        with whole_file(run.folder / "users.parquet") as draft:
            run.users.assign(rank=test.ranks).to_parquet(draft, index=False)
        write_json(run.folder / "summary.json", summary)


def make_llm_settings() -> None:
    configs = grid(negatives=1, learning_rate=LLM_LEARNING_RATES, **LLM)
    found = record(
        RECORDED / "ml-100k-smollm2-settings",
        train_all(configs),
        baseline_ranks(configs[0]),
        command="python data/findings.py llm-settings",
        rule=choose.__doc__,
    )
    print(choose(found))


def make_llm() -> None:
    chosen = choose(load_current("ml-100k-smollm2-settings"))
    configs = grid(negatives=LLM_NEGATIVES, dynamic=["off", "on"], seeds=LLM_SEEDS, **chosen, **LLM)
    # Whole comparisons first: what is there when time runs out is then of use.
    configs.sort(key=lambda config: (config.seed, config.negatives == 5, -config.negatives))
    try:
        train_all(configs)
    finally:
        record_llm(configs, chosen)


def record_llm(configs: Sequence[PreferConfig], chosen: dict[str, float]) -> None:
    """Record the cells that are finished, if some are."""
    done = [config for config in configs if (cache_folder(config) / "summary.json").is_file()]
    if not done:
        return
    runs = [Run(cache_folder(config)) for config in done]
    record(
        RECORDED / "ml-100k-smollm2",
        runs,
        baseline_ranks(configs[0]),
        command="python data/findings.py llm",
        chosen=chosen,
        rule=choose.__doc__,
        missing=len(configs) - len(done),
    )


def make_ties() -> None:
    """The headline where the order of the file's rows decides among ratings of one second, and where chance does.

    Written after each order, so that what is there when time runs out is of use.
    """
    chosen = choose(load_recorded("ml-100k-settings"))
    cells = {
        "DMPO, K = 1": {"negatives": 1},
        "DMPO, K = 19": {"negatives": 19},
        "DynamicPO-DMPO, K = 19": {"negatives": 19, "dynamic": "on"},
    }
    orders = []
    for ties, seed in ORDERS:
        # The file's order is the default, on which the shipped SFT run is.
        data = {"dataset_seed": seed} | ({} if ties == "file" else {"ties": ties})
        configs = {label: grid(**cell, **data, seeds=SEEDS[:2], **COMMON, **chosen) for label, cell in cells.items()}
        splits, start = splits_of(configs["DMPO, K = 1"][0]), sft_run(configs["DMPO, K = 1"][0])
        train_all([config for each in configs.values() for config in each])
        found: dict[str, Outcomes] = {
            label: {config.seed: hits(Run(cache_folder(config)).users["rank"]) for config in each}
            for label, each in configs.items()
        }
        levels = {
            "popularity": hits(ranks(baselines.popularity_scores(splits.train, splits.test))),
            "first-order Markov": hits(ranks(baselines.markov_scores(splits.train, splits.test))),
            "SFT": hits(start.users["rank"]),
        }
        found = {label: {None: level} for label, level in levels.items()} | found
        orders.append(
            {
                "ties": ties,
                "dataset_seed": seed,
                "dataset_fingerprint": splits.fingerprint,
                "report": splits.report["ties"],
                "hr@1": {label: float(np.mean(list(level.values()))) for label, level in found.items()},
                "differences": {
                    "DMPO, K = 19 minus K = 1": points(found["DMPO, K = 19"], found["DMPO, K = 1"]),
                    "DynamicPO minus DMPO, K = 19": points(found["DynamicPO-DMPO, K = 19"], found["DMPO, K = 19"]),
                },
            }
        )
        content = {
            "command": "python data/findings.py ties",
            "chosen": chosen,
            "rule": choose.__doc__,
            "seeds": SEEDS[:2],
            "missing": len(ORDERS) - len(orders),
            "orders": orders,
            "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
        }
        write_json(TIES, content)


def hits(rank: Any) -> np.ndarray:
    """HR@1 of each user (users,)."""
    return ranking_metrics(np.asarray(rank))["hr@1"]


def make_strengths() -> None:
    """DMPO in the catalogue over β and γ, at the settings of the grid `objectives`. Nothing is chosen from it."""
    chosen = load_current("objectives").provenance["chosen"]
    shared = {"beta": BETAS, "seeds": SEEDS, **CATALOGUE, **chosen}
    configs = [
        *grid(negatives=STRENGTH_NEGATIVES, **shared),
        *grid(negatives=STRENGTH_NEGATIVES[1:], dynamic="on", margin=MARGINS, **shared),
    ]
    record(
        RECORDED / "strengths",
        train_all(configs),
        catalogue_ranks(chosen["sft_epochs"]),
        command="python data/findings.py strengths",
        chosen=chosen,
        rule="Those of the grid objectives; nothing is chosen from this grid.",
    )


# What is claimed, and what would count. The thresholds stood here before any run on real data was looked at.

RULE = """\
A difference is of the same users' results under the same seeds, in points of HR@1 on the test split, with its 95 %
interval over users and seeds (`minipo.evaluation.paired_interval`). A claim of a fall or a gain is **shown** if the
whole interval lies on the side that the claim names, **opposite** if the whole interval lies on the other side, and
**not shown** otherwise. "Stable" is shown if the whole interval lies within one point of zero, opposite if all of it
lies below zero. A collapse is shown only if the training loss falls as well. An overhead of at most 1 % is read off
`benchmarks/`. Settings were chosen on validation users; K is the largest that was trained. Nothing is corrected for the
number of rows in these tables: of twenty true zeros one would be "shown" or "opposite" by chance.
"""


@dataclass(frozen=True)
class World:
    """One dataset and model: where its runs are recorded, and the largest K."""

    name: str
    objectives: Recorded
    parts: Recorded | None
    many: int

    def runs(self, **query: Any) -> Outcomes | None:
        """Test users' HR@1 by seed; None where such runs were not made."""
        return _outcomes(self.objectives, "hr@1", **query)

    def part(self, **query: Any) -> Outcomes | None:
        """The same for DMPO under a part of DynamicPO or a control, at the largest K."""
        found = self.parts
        return None if found is None else _outcomes(found, "hr@1", objective="dmpo", negatives=self.many, **query)

    def plain(self, objective: str = "dmpo", negatives: int | None = None) -> Outcomes | None:
        return self.runs(objective=objective, dynamic="off", negatives=negatives or self.many)

    def whole(self, objective: str = "dmpo") -> Outcomes | None:
        return self.runs(objective=objective, dynamic="on", negatives=self.many)

    def loss_falls(self, objective: str) -> bool:
        few, many = (
            self.objectives.rows(objective=objective, dynamic="off", negatives=number).train_loss.mean()
            for number in (1, self.many)
        )
        return bool(many < few)


def _outcomes(recorded: Recorded, metric: str, **query: Any) -> Outcomes | None:
    return recorded.outcomes(metric, **query) if len(recorded.rows(**query)) else None


def verdict(low: float, high: float, claim: str) -> str:
    """What an interval says of a claim: "falls", "gains" or "stable"."""
    if claim == "stable":
        return "shown" if low >= -0.01 and high <= 0.01 else "opposite" if high < 0 else "not shown"
    if claim == "falls":
        low, high = -high, -low
    return "shown" if low > 0 else "opposite" if high < 0 else "not shown"


def cell(left: Outcomes | None, right: Outcomes | None, claim: str, holds: bool = True) -> str:
    """A difference with its interval and its verdict, for a table; `holds`: whether what else the claim needs is so."""
    if left is None or right is None or (not set(left) & set(right) and None not in {*left, *right}):
        return "not run"
    found = difference(left, right)
    says = verdict(found.low, found.high, claim)
    return f"{points(left, right)} **{says if holds or says != 'shown' else 'not shown'}**"


def more_sft(world: World) -> Outcomes | None:
    if world.parts is not None and len(world.parts.rows(objective="sft")):
        return world.parts.outcomes(objective="sft", learning_rate=choose_more_sft(world.parts))
    return _outcomes(world.objectives, "hr@1", objective="sft")


def wins(world: World, dynamic: str) -> Outcomes | None:
    if world.objectives.wins is None:
        return None
    return _outcomes(world.objectives, "reward_win_rate", objective="dmpo", negatives=world.many, dynamic=dynamic)


Row = tuple[str, str, Callable[[World], str]]

CLAIMS: Sequence[Row] = (
    (
        "DMPO collapses: HR@1 at the largest K minus K = 1",
        "DMPO 0.585 at K = 15",
        lambda world: cell(world.plain("dmpo"), world.plain("dmpo", 1), "falls", world.loss_falls("dmpo")),
    ),
    (
        "MPPO collapses: the same",
        "MPPO 0.660 at K = 15",
        lambda world: cell(world.plain("mppo"), world.plain("mppo", 1), "falls", world.loss_falls("mppo")),
    ),
    (
        "S-DPO is stable: the same",
        "S-DPO 0.662 at K = 15",
        lambda world: cell(world.plain("sdpo"), world.plain("sdpo", 1), "stable"),
    ),
    (
        "DynamicPO helps DMPO: with minus without, at the largest K",
        "+8.1 (Llama-2-7B), +5.4 (Qwen2.5-7B)",
        lambda world: cell(world.whole("dmpo"), world.plain("dmpo"), "gains"),
    ),
    ("DynamicPO helps MPPO", "+3.1", lambda world: cell(world.whole("mppo"), world.plain("mppo"), "gains")),
    ("DynamicPO helps S-DPO", "+0.5", lambda world: cell(world.whole("sdpo"), world.plain("sdpo"), "gains")),
    (
        "Selection alone helps DMPO",
        "a gain",
        lambda world: cell(world.part(select="on", adjust_beta="off"), world.plain(), "gains"),
    ),
    (
        "Dual-margin β alone helps DMPO",
        "a gain",
        lambda world: cell(world.part(select="off", adjust_beta="on"), world.plain(), "gains"),
    ),
    (
        "DynamicPO raises DMPO's reward win rate",
        "a gain",
        lambda world: cell(wins(world, "on"), wins(world, "off"), "gains"),
    ),
)

QUESTIONS: Sequence[Row] = (
    (
        "Is it which negatives are selected? Selection alone minus as many at random",
        "—",
        lambda world: cell(
            world.part(select="on", adjust_beta="off"), world.part(select="random", adjust_beta="off"), "gains"
        ),
    ),
    (
        "Is it their number? As many at random minus all",
        "—",
        lambda world: cell(world.part(select="random", adjust_beta="off"), world.plain(), "gains"),
    ),
    (
        "Does β add to the selection? DynamicPO minus selection alone",
        "—",
        lambda world: cell(world.whole(), world.part(select="on", adjust_beta="off"), "gains"),
    ),
    (
        "Is one negative better than none? DMPO at K = 1 minus SFT",
        "—",
        lambda world: cell(world.plain("dmpo", 1), world.objectives.baseline("sft"), "gains"),
    ),
    (
        "Is the repaired run better than its start? DynamicPO-DMPO minus SFT",
        "—",
        lambda world: cell(world.whole(), world.objectives.baseline("sft"), "gains"),
    ),
    (
        "Is it better than more SFT for the same compute?",
        "—",
        lambda world: cell(world.whole(), more_sft(world), "gains"),
    ),
)


def worlds() -> list[World]:
    """What is recorded; ValueError if the two grids of a world are on different data."""

    def found(name: str) -> Recorded | None:
        return load_recorded(name) if (RECORDED / name).is_dir() else None

    every = [
        ("catalogue, pocket-gpt2", "objectives", "parts", 19),
        ("ml-100k, pocket-gpt2", "ml-100k-objectives", "ml-100k-parts", 19),
        ("ml-100k, SmolLM2-135M", "ml-100k-smollm2", "", 15),
    ]
    here = [
        World(name, objectives, found(parts) if parts else None, many)
        for name, runs, parts, many in every
        if (objectives := found(runs)) is not None
    ]
    for world in here:
        if world.parts is not None:
            check_same_data(world.objectives, world.parts)
    return here


def report() -> str:
    """FINDINGS.md, from what is recorded."""
    here = worlds()
    header = ["", "the paper, HR@1 on LastFM", *(f"{world.name}, K = {world.many}" for world in here)]

    def table(rows: Sequence[Row]) -> str:
        return markdown(header, [[text, paper, *(value(world) for world in here)] for text, paper, value in rows])

    levels = []
    for world in here:
        names = ("random", "popularity", "markov", "sft", "oracle")
        base = {
            name: f"{np.mean(world.objectives.baseline(name)[None]):.3f}" if name in world.objectives.baselines else "—"
            for name in names
        }
        levels.append([world.name, *base.values()])
    cells = []
    for world in here:
        plain = world.objectives.table[lambda table: table.objective != "sft"]
        for (objective, negatives, dynamic), rows in plain.groupby(["objective", "negatives", "dynamic"], sort=True):
            cells.append(
                [
                    world.name,
                    NAMES[objective],
                    str(negatives),
                    dynamic,
                    str(len(rows)),
                    *(f"{rows[column].mean():.3f}" for column in ("train_loss", "pair_loss")),
                    " ".join(f"{value:.3f}" for value in rows["hr@1"]),
                    *(f"{rows[column].mean():.3f}" for column in ("ndcg@5", "reward_win_rate", "boundary_share")),
                ]
            )
    overhead = read_json(DATA.parent / "benchmarks" / "step.json")["dynamic_share"]
    says = "shown" if overhead <= 0.01 else "opposite"
    made = "\n".join(
        f"- {world.name}: `{world.objectives.provenance['command']}`, {len(world.objectives.table)} runs, recorded "
        f"{world.objectives.provenance['recorded'][:10]}, {world.objectives.provenance['versions']['machine']}, torch "
        f"{world.objectives.provenance['versions']['torch']}, commit {world.objectives.provenance['commit']}, data "
        f"{world.objectives.fingerprint}"
        + (
            f", {missing} of its cells not trained yet"
            if (missing := world.objectives.provenance.get("missing"))
            else ""
        )
        + f". {older_data(world.objectives)}".removesuffix(". ")
        for world in here
    )
    return "\n\n".join(
        [
            "# Findings",
            "The paper's claims, on an invented world and on real data, on a pocket model and on a pretrained language "
            "model. Made by `python data/findings.py report` from `data/recorded/`; a test keeps it current.",
            "## What counts as shown",
            RULE.strip(),
            "## The paper's claims",
            "Differences in points of HR@1 (of reward win rate in the last row) with 95 % intervals.",
            table(CLAIMS),
            f"Overhead of DynamicPO: the paper +0.85 % of training time; here {100 * overhead:.2f} % of a step at "
            f"K = 15 on SmolLM2-135M (`benchmarks/step.py`): **{says}**, for at most 1 %.",
            "## The questions that a careful reader asks",
            table(QUESTIONS),
            "## Levels",
            "Test HR@1 of what stands beside the runs; the oracle is known only in the invented world.",
            markdown(["", "random", "popularity", "first-order Markov", "SFT", "oracle"], levels),
            *ties_report(),
            "## Every cell",
            "HR@1 of each seed; the others are means over seeds. Losses at different K are different functions; "
            "pair_loss is the same one for every K.",
            markdown(
                [
                    "",
                    "objective",
                    "K",
                    "DynamicPO",
                    "seeds",
                    "training loss",
                    "pair_loss",
                    "test HR@1 by seed",
                    "NDCG@5",
                    "reward win rate",
                    "boundary share",
                ],
                cells,
            ),
            "## Where the numbers come from",
            made,
        ]
    )


def ties_report() -> list[str]:
    """How far the headline moves with the order within ties: a heading, a paragraph and a table."""
    if not TIES.is_file():
        return []
    content = read_json(TIES)
    first, *others = content["orders"]
    told, labels = first["report"], [*first["hr@1"]]
    moves = []
    for label in labels:
        values = sorted({f"{100 * (other['hr@1'][label] - first['hr@1'][label]):+.1f}" for other in others}, key=float)
        moves.append(f"{label} {' to '.join(dict.fromkeys((values[0], values[-1]))).replace('-', '−')}")
    rows = [
        [
            "the file's" if order["ties"] == "file" else f"drawn, dataset seed {order['dataset_seed']}",
            *(f"{order['hr@1'][label]:.3f}" for label in labels),
            *order["differences"].values(),
        ]
        for order in content["orders"]
    ]
    return [
        "## How much hangs on the order within ties",
        f"Of {told['neighbours']:,} neighbouring likes of a user in {DATASET}, {told['tied']:,} share their second, "
        f"and for {told['users']:,} users nothing but the order within such a tie says which is the test's answer. "
        f"Test HR@1 of {POCKET} in the file's order, which all else here has, and in orders drawn at random; "
        f"{len(content['seeds'])} seeds of preference training, differences in points with 95 % intervals. Another "
        f"dataset seed draws other negatives too; the file's order has data {first['dataset_fingerprint']}. Against "
        f"it, HR@1 moves in points: {'; '.join(moves)}.",
        markdown(["order within ties", *labels, *first["differences"]], rows),
        f"`{content['command']}`, recorded {content['recorded'][:10]}, {content['versions']['machine']}, torch "
        f"{content['versions']['torch']}"
        + (f"; {content['missing']} of the orders not trained yet." if content["missing"] else "."),
    ]


def make_report() -> None:
    with whole_file(DATA.parent / "FINDINGS.md") as draft:
        draft.write_text(report() + "\n", encoding="utf-8")


PARTS: dict[str, Callable[[], None]] = {
    "settings": make_settings,
    "sft": make_sft,
    "objectives": make_objectives,
    "parts": make_parts,
    "adapter": make_adapter,
    "reevaluate": make_reevaluation,
    "llm-settings": make_llm_settings,
    "llm": make_llm,
    "ties": make_ties,
    "strengths": make_strengths,
    "report": make_report,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=f"what to make, of {', '.join(PARTS)} (default: all)")
    for name in parser.parse_args().part or PARTS:
        if name not in PARTS:
            parser.error(f"unknown part {name!r}; known: {', '.join(PARTS)}")
        PARTS[name]()
