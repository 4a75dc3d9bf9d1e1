"""Makes what data/ holds besides this file: the SFT checkpoints and the recorded grids. `make record` runs all of it.

    python data/record.py sft         the shipped SFT checkpoints                            data/sft/
    python data/record.py settings    DMPO over SFT length × learning rate, and "more SFT"   data/recorded/settings/
    python data/record.py objectives  every objective × K × DynamicPO                        data/recorded/objectives/
    python data/record.py scores      test users' log-probs after a few of those runs        recorded/objectives/scores/
    python data/record.py parts       DynamicPO's parts and its controls                     data/recorded/parts/
    python data/record.py fresh       the headline differences on users that played no part  data/recorded/fresh.json
    python data/record.py report      what all of them say, as tables                          README.md

Runs come from minipo's cache where they were trained before; MINIPO_HOME=$(mktemp -d) trains everything anew. The SFT
length and the learning rate of `objectives` and `parts` come from `settings`, by validation users alone (`choose`).
"""

import argparse
import shutil
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from minipo.course.figures.style import verdict
from minipo.evaluation import ranking_metrics, ranks
from minipo.experiments.configuration import PreferConfig, SFTConfig
from minipo.experiments.datasets import baselines, catalog
from minipo.experiments.datasets.loading import load_dataset
from minipo.experiments.files import read_json, whole_file, write_json
from minipo.experiments.records import RECORDED, Outcomes, Recorded, difference, load_recorded, record, record_scores
from minipo.experiments.runs import DATA, Run, cache_folder, versions
from minipo.experiments.sweeps import grid
from minipo.experiments.training import sft_run
from minipo.experiments.users import score
from minipo.experiments.workers import train_all

SHIPPED_EPOCHS = (10, 20, 40)
SFT_EPOCHS = (5, *SHIPPED_EPOCHS)
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
NEGATIVES = (1, 3, 5, 10, 15, 19)
STEPS, BATCH, SFT_BATCH, ITEM_TOKENS, PROMPT_TOKENS = 300, 32, 32, 2, 18
FRESH, FRESH_USERS = RECORDED / "fresh.json", 4000
MARKS = ("<!-- made by: python data/record.py report -->", "<!-- end -->")
COMMON = {"steps": STEPS, "batch_size": BATCH, "evaluate_every": 100}


def more_sft_steps() -> int:
    """SFT steps that cost what the dearest preference run here costs, counted in tokens that pass forward and backward.

    A preference step passes the prompt and 20 candidates of 32 users; the reference adds one forward, a third of a
    pass, of every training user. An SFT step passes 32 lines.
    """
    user = PROMPT_TOKENS + (1 + max(NEGATIVES)) * ITEM_TOKENS
    tokens = STEPS * BATCH * user + len(load_dataset().train) * user / 3
    return round(tokens / (SFT_BATCH * (PROMPT_TOKENS + ITEM_TOKENS)))


def more_sft(epochs: int, learning_rate: float, seed: int) -> SFTConfig:
    """Supervised fine-tuning that goes on, from the run of so many epochs, for the compute of a preference run."""
    return SFTConfig(start_epochs=epochs, steps=more_sft_steps(), learning_rate=learning_rate, seed=seed)


def baseline_ranks(epochs: int | None = None) -> dict[str, np.ndarray]:
    """Test users' ranks under every baseline, and under the SFT run of so many epochs."""
    splits = load_dataset()
    scores = {
        "random": baselines.random_scores(splits.test),
        "popularity": baselines.popularity_scores(splits.train, splits.test),
        "markov": baselines.markov_scores(splits.train, splits.test),
        "oracle": catalog.oracle(catalog.world(), splits.test),
    }
    found = {name: ranks(values) for name, values in scores.items()}
    for each in SFT_EPOCHS if epochs is None else (epochs,):
        run = sft_run(PreferConfig(sft_epochs=each), progress=False)
        found["sft" if epochs else f"sft-{each}"] = run.users["rank"].to_numpy()
    return found


def load_current(name: str) -> Recorded:
    """A recorded grid whose settings new runs take; ValueError if it is on other data than theirs."""
    grid = load_recorded(name)
    grid.check_data(load_dataset(grid.table["dataset"].iloc[0]))
    return grid


def choose(settings: Recorded) -> dict[str, float]:
    """The SFT length and the learning rate that maximise plain DMPO's HR@1 at K = 1 on validation users."""
    rows = settings.rows(objective="dmpo", negatives=1, dynamic="off")
    means = rows.groupby(["sft_epochs", "learning_rate"])["val_hr@1"].mean()
    epochs, learning_rate = means.idxmax()
    return {"sft_epochs": int(epochs), "learning_rate": float(learning_rate)}


def choose_more_sft(settings: Recorded, epochs: int) -> float:
    """The learning rate at which "more SFT" does best on validation users."""
    rows = settings.rows(objective="sft", sft_epochs=epochs)
    return float(rows.groupby("learning_rate")["val_hr@1"].mean().idxmax())


def make_sft() -> None:
    for epochs in SHIPPED_EPOCHS:
        folder = DATA / "sft" / f"catalog-pocket-gpt2-{epochs}"
        shutil.rmtree(folder, ignore_errors=True)
        run = train_all([SFTConfig(epochs=epochs)])[0]
        shutil.copytree(run.folder, folder)


def make_settings() -> None:
    seeds = [0, 1, 2]
    configs = grid(
        negatives=[1, 19],
        dynamic=["off", "on"],
        sft_epochs=SFT_EPOCHS,
        learning_rate=LEARNING_RATES,
        seeds=seeds,
        **COMMON,
    )
    more = [more_sft(epochs, rate, seed) for epochs in SFT_EPOCHS for rate in LEARNING_RATES for seed in seeds]
    runs = train_all([*configs, *more])
    probed = [
        run
        for run, config in zip(runs, configs, strict=False)
        if config.seed == 0 and config.negatives == 19 and config.dynamic == "off"
    ]
    recorded = record(
        RECORDED / "settings",
        runs,
        baseline_ranks(),
        probed,
        command="python data/record.py settings",
        rule=choose.__doc__,
        more_sft_steps=more_sft_steps(),
    )
    print(choose(recorded))


def make_objectives() -> None:
    settings = load_current("settings")
    chosen = choose(settings)
    rate = choose_more_sft(settings, chosen["sft_epochs"])
    seeds = [0, 1, 2, 3, 4]
    configs = grid(
        objective=["dmpo", "sdpo", "dpo", "mppo"],
        negatives=NEGATIVES,
        dynamic=["off", "on"],
        seeds=seeds,
        **COMMON,
        **chosen,
    )
    runs = train_all([*configs, *(more_sft(chosen["sft_epochs"], rate, seed) for seed in seeds)])
    probed = [
        run for run, config in zip(runs, configs, strict=False) if config.seed == 0 and config.negatives in (1, 19)
    ]
    record(
        RECORDED / "objectives",
        runs,
        baseline_ranks(chosen["sft_epochs"]),
        probed,
        command="python data/record.py objectives",
        chosen=chosen,
        rule=choose.__doc__,
        more_sft={"learning_rate": rate, "steps": more_sft_steps()},
    )


def make_scores() -> None:
    """The probed runs' log-probs of every test user, so that any of them can be looked at closely."""
    recorded = load_current("objectives")
    settings = ["objective", "negatives", "dynamic", "seed"]
    cells = {row: dict(recorded.table.loc[row, settings]) for row in recorded.probes}
    configs = [grid(**cell, **COMMON, **recorded.provenance["chosen"])[0] for cell in cells.values()]
    users = load_dataset().test
    runs = train_all(configs)
    record_scores(
        recorded,
        {row: score(*run.load_model(), users) for row, run in zip(cells, runs, strict=True)},
        score(*sft_run(configs[0], progress=False).load_model(), users),
    )


def make_parts() -> None:
    chosen = choose(load_current("settings"))
    shared = {"negatives": [5, 19], "dynamic": "on", "seeds": [0, 1, 2, 3, 4], **COMMON, **chosen}
    configs = [
        *grid(select=["on", "random", "hardest"], adjust_beta="off", **shared),
        *grid(select="off", adjust_beta="on", **shared),
    ]
    runs = train_all(configs)
    probed = [run for run, config in zip(runs, configs, strict=True) if config.seed == 0 and config.negatives == 19]
    record(
        RECORDED / "parts",
        runs,
        baseline_ranks(chosen["sft_epochs"]),
        probed,
        command="python data/record.py parts",
        chosen=chosen,
        rule=choose.__doc__,
    )


def make_fresh() -> None:
    """The headline differences again, on users that no choice, of a setting or of the world itself, can have used."""
    chosen = load_current("objectives").provenance["chosen"]
    users = catalog.fresh_users(0, FRESH_USERS)
    shared = {"seeds": [0, 1, 2, 3, 4], **COMMON, **chosen}
    cells = {
        "{} K = 1": {"negatives": 1, "dynamic": "off"},
        "{} K = 19": {"negatives": 19, "dynamic": "off"},
        "DynamicPO-{} K = 19": {"negatives": 19, "dynamic": "on"},
    }
    queries = {
        label.format(name): {"objective": objective, **query}
        for objective, name in (("dmpo", "DMPO"), ("mppo", "MPPO"))
        for label, query in cells.items()
    }
    for label, select in (("selection alone", "on"), ("random", "random")):
        queries[label] = {"objective": "dmpo", "negatives": 19, "dynamic": "on", "select": select, "adjust_beta": "off"}
    configs = {label: grid(**query, **shared) for label, query in queries.items()}
    train_all([config for each in configs.values() for config in each])

    def hits(run: Run) -> np.ndarray:
        return ranking_metrics(ranks(score(*run.load_model(), users)))["hr@1"]

    found: dict[str, Outcomes] = {
        label: {config.seed: hits(Run(cache_folder(config))) for config in each} for label, each in configs.items()
    }
    found["SFT"] = {None: hits(sft_run(configs["DMPO K = 1"][0], progress=False))}
    for label, scores in (
        ("Markov", baselines.markov_scores(load_dataset().train, users)),
        ("oracle", catalog.oracle(catalog.world(), users)),
    ):
        found[label] = {None: ranking_metrics(ranks(scores))["hr@1"]}
    pairs = [
        ("DMPO K = 19", "DMPO K = 1"),
        ("DMPO K = 1", "SFT"),
        ("DynamicPO-DMPO K = 19", "DMPO K = 19"),
        ("DynamicPO-DMPO K = 19", "SFT"),
        ("selection alone", "random"),
        ("MPPO K = 19", "MPPO K = 1"),
        ("DynamicPO-MPPO K = 19", "MPPO K = 19"),
        ("SFT", "Markov"),
    ]
    content = {
        "command": "python data/record.py fresh",
        "users": FRESH_USERS,
        "hr@1": {label: float(np.mean(list(level.values()))) for label, level in found.items()},
        "differences": [[left, right, points(found[left], found[right])] for left, right in pairs],
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    write_json(FRESH, content)


def spread(rows: pd.DataFrame, column: str) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{rows[column].mean():.3f} ± {rows[column].std():.3f}"


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])


def points(left: Outcomes, right: Outcomes) -> str:
    """Left minus right in points of HR@1, with its 95 % interval."""
    if left is right:
        return "—"
    found = difference(left, right)
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]".replace("-", "−")


def report() -> str:
    """What the recorded grids say, as the Markdown that stands in README.md."""
    settings, objectives, parts = (load_recorded(name) for name in ("settings", "objectives", "parts"))
    made, fresh = objectives.provenance, read_json(FRESH)
    chosen, seeds = made["chosen"], len(made["seeds"])
    names = {"dpo": "DPO", "dmpo": "DMPO", "sdpo": "S-DPO", "mppo": "MPPO"}
    across = []
    for objective, name in names.items():
        few, many = ({"objective": objective, "dynamic": "off", "negatives": number} for number in (1, 19))
        repaired = many | {"dynamic": "on"}
        outcomes = [objectives.outcomes(**query) for query in (few, many, repaired)]
        change = difference(outcomes[1], outcomes[0])
        rows_few, rows_many = objectives.rows(**few), objectives.rows(**many)
        across.append(
            [
                f"{name}",
                f"{rows_few.train_loss.mean():.3f} → {rows_many.train_loss.mean():.3f}",
                f"{rows_few.pair_loss.mean():.3f} → {rows_many.pair_loss.mean():.3f}",
                f"{spread(rows_few, 'hr@1')} → {spread(rows_many, 'hr@1')}",
                f"{points(outcomes[1], outcomes[0])}: {verdict(change.low, change.high)}",
                spread(objectives.rows(**repaired), "hr@1"),
                points(outcomes[2], outcomes[1]),
            ]
        )
    plain = {number: objectives.outcomes(objective="dmpo", dynamic="off", negatives=number) for number in (5, 19)}
    whole = {number: objectives.outcomes(objective="dmpo", dynamic="on", negatives=number) for number in (5, 19)}
    kinds = {
        "selection and β (DynamicPO)": None,
        "selection alone": {"select": "on", "adjust_beta": "off"},
        "β alone, all negatives": {"select": "off", "adjust_beta": "on"},
        "control: as many negatives, drawn at random": {"select": "random", "adjust_beta": "off"},
        "control: as many negatives, the hardest": {"select": "hardest", "adjust_beta": "off"},
    }
    pieces = []
    for label, query in kinds.items():
        enters = {
            number: whole[number] if query is None else parts.outcomes(**query, negatives=number) for number in (5, 19)
        }
        alone = {number: parts.outcomes(**kinds["selection alone"], negatives=number) for number in (5, 19)}
        gains = [points(enters[number], plain[number]) for number in (5, 19)]
        against = ["—"] * 2 if label == "selection alone" else [points(alone[k], enters[k]) for k in (5, 19)]
        pieces.append([label, *gains, *against])
    levels = {
        "DMPO, K = 1": objectives.outcomes(objective="dmpo", dynamic="off", negatives=1),
        "SFT, where every run starts": objectives.baseline("sft"),
        "more SFT, for the compute of a preference run": objectives.outcomes(objective="sft"),
        "DMPO, K = 19": plain[19],
        "DynamicPO-DMPO, K = 19": whole[19],
        "oracle, the best attainable": objectives.baseline("oracle"),
        "first-order Markov": objectives.baseline("markov"),
        "popularity": objectives.baseline("popularity"),
        "random": objectives.baseline("random"),
    }
    distances = [
        [label, f"{np.mean(list(level.values())):.3f}", *(points(whole[19], level), points(plain[19], level))]
        for label, level in levels.items()
    ]
    regimes = []
    for epochs in SFT_EPOCHS:
        for rate in LEARNING_RATES:
            here = {"sft_epochs": epochs, "learning_rate": rate}
            few, many, repaired = (
                settings.outcomes(objective="dmpo", negatives=number, dynamic=dynamic, **here)
                for number, dynamic in ((1, "off"), (19, "off"), (19, "on"))
            )
            more = settings.outcomes(
                objective="sft", sft_epochs=epochs, learning_rate=choose_more_sft(settings, epochs)
            )
            start = settings.baseline(f"sft-{epochs}")
            mark = " (chosen)" if here == chosen else ""
            regimes.append(
                [
                    f"{epochs}{mark}",
                    f"{rate:g}",
                    f"{np.mean(start[None]):.3f}",
                    f"{np.mean(list(few.values())):.3f}",
                    f"{np.mean(list(many.values())):.3f}",
                    f"{np.mean(list(repaired.values())):.3f}",
                    f"{np.mean(list(more.values())):.3f}",
                    points(many, few),
                    points(repaired, many),
                ]
            )
    again = [[f"{left} minus {right}", gap] for left, right, gap in fresh["differences"]]
    return "\n\n".join(
        [
            f"Test HR@1 on 2,000 users, mean ± standard deviation over {seeds} seeds; differences in points with 95 % "
            "intervals, paired over users and seeds. Chosen on validation users: SFT of "
            f"{chosen['sft_epochs']} epochs, learning rate {chosen['learning_rate']:g}. Recorded "
            f"{made['recorded'][:10]}, {made['versions']['machine']}, torch {made['versions']['torch']}.",
            "**More negatives, K = 1 → 19**",
            markdown(
                [
                    "objective",
                    "training loss",
                    "pair_loss",
                    "HR@1",
                    "HR@1, K = 19 minus K = 1",
                    "HR@1 with DynamicPO, K = 19",
                    "DynamicPO minus plain",
                ],
                across,
            ),
            "**What repairs it: parts and controls, DMPO, at the same K**",
            markdown(
                [
                    "what enters the loss",
                    "minus plain, K = 5",
                    "minus plain, K = 19",
                    "selection alone minus this, K = 5",
                    "selection alone minus this, K = 19",
                ],
                pieces,
            ),
            "**Distances at K = 19**",
            markdown(["", "HR@1", "DynamicPO-DMPO minus this", "DMPO minus this"], distances),
            f"**The headline again on {fresh['users']:,} users that played no part in any choice**",
            markdown(["points of HR@1", ""], again),
            f"**The same at other SFT lengths and learning rates** (DMPO, {len(settings.provenance['seeds'])} seeds)",
            markdown(
                [
                    "SFT epochs",
                    "learning rate",
                    "SFT",
                    "K = 1",
                    "K = 19",
                    "K = 19, DynamicPO",
                    "more SFT",
                    "K = 19 minus K = 1",
                    "DynamicPO minus plain, K = 19",
                ],
                regimes,
            ),
        ]
    )


def make_report() -> None:
    readme = DATA.parent / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    with whole_file(readme) as draft:
        draft.write_text(f"{before}{MARKS[0]}\n{report()}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    parts = {
        "sft": make_sft,
        "settings": make_settings,
        "objectives": make_objectives,
        "scores": make_scores,
        "parts": make_parts,
        "fresh": make_fresh,
        "report": make_report,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=f"what to make, of {', '.join(parts)} (default: all)")
    for name in parser.parse_args().part or parts:
        if name not in parts:
            parser.error(f"unknown part {name!r}; known: {', '.join(parts)}")
        parts[name]()
