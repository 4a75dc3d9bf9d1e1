"""What is recorded in data/, as settings: shipped SFT runs, grids of preference runs, and two comparisons.

`record.py` trains and records each, and `report.py` tabulates them.
"""

from dataclasses import dataclass, field
from typing import Any

from minipo.experiments.records import Recorded

Settings = dict[str, Any]

CATALOGUE: Settings = {"dataset": "catalog", "steps": 300, "batch_size": 32, "evaluate_every": 100}
MOVIELENS: Settings = {"dataset": "ml-100k", "steps": 300, "evaluate_every": 300}
SMOLLM2: Settings = {"dataset": "ml-100k", "model": "smollm2-135m"}
# 2,560 rows a run; the precision said, so that another machine finds what is recorded
SMOLLM2_RUNS: Settings = {**SMOLLM2, "precision": "bfloat16", "steps": 160}
RATES = [1e-4, 3e-4, 1e-3]
PLAIN_AND_DYNAMIC: Settings = {"dynamic": ["off", "on"]}
SELECTION: Settings = {"dynamic": "on", "select": "on", "adjust_beta": "off"}
RANDOM: Settings = {**SELECTION, "select": "random"}  # controls: as many negatives as the selection keeps
HARDEST: Settings = {**SELECTION, "select": "hardest"}
RELEASE: Settings = {"objective": "mppo", "likelihood_of": "answer"}
BETA: Settings = {"dynamic": "on", "select": "off", "adjust_beta": "on"}


def choose(settings: Recorded) -> Settings:
    """The SFT length and the learning rate that maximise plain DMPO's HR@1 at K = 1 on validation users."""
    rows = settings.rows(objective="dmpo", negatives=1, dynamic="off")
    epochs, learning_rate = rows.groupby(["sft_epochs", "learning_rate"])["val_hr@1"].mean().idxmax()
    return {"sft_epochs": float(epochs), "learning_rate": float(learning_rate)}


def choose_more_sft(recorded: Recorded, epochs: float) -> float:
    """The learning rate at which "more SFT", from an SFT run of `epochs`, does best on validation users."""
    rows = recorded.rows(objective="sft", sft_epochs=epochs)
    return float(rows.groupby("learning_rate")["val_hr@1"].mean().idxmax())


# Folders of data/sft/, each an SFT run that preference runs start from: settings of `SFTConfig`.
SFT: dict[str, Settings] = {
    "catalog-pocket-gpt2-10": {"epochs": 10},
    "catalog-pocket-gpt2-20": {"epochs": 20},
    "catalog-pocket-gpt2-40": {"epochs": 40},
    "ml-100k-pocket-gpt2-10": {"dataset": "ml-100k"},
    "ml-100k-smollm2-135m": {**SMOLLM2, "precision": "bfloat16", "epochs": 4},
}


@dataclass(frozen=True)
class Recipe:
    """A folder of data/recorded/.

    shared, grids: settings of `sweeps.grid`; each grid has the shared ones too, and runs are recorded in this order.
    sft: grids of SFT runs from the bare model, settings of `SFTConfig`, each a value or a list, with the shared ones.
    chosen_by: the grid from which `choose` takes the SFT length and the learning rate of every run. more_sft: SFT that
    continues from each SFT length for "steps", at each "learning_rate" or, without any, at the one that
    `choose_more_sft` takes from `chosen_by`. probed: settings that narrow the grids down to the runs whose probes are
    kept. partial: after an interruption, the runs that are finished are recorded, and no machine trains them again.
    generated: whether a greedy answer of each test user is recorded too. rule: how settings were chosen, for
    provenance.json.

    MovieLens-100K's grids have no probes: these would show what people rated, which may not be redistributed.
    """

    shared: Settings
    grids: list[Settings]
    sft: list[Settings] = field(default_factory=list)
    chosen_by: str = ""
    more_sft: Settings = field(default_factory=dict)
    probed: Settings = field(default_factory=dict)
    partial: bool = False
    generated: bool = False
    rule: str | None = choose.__doc__


# "More SFT" costs what the grid's most expensive run costs, in tokens that pass forward and backward. A preference step
# passes the prompt and 1 + K answers of 32 users, and the reference adds a forward, a third of a pass, of each training
# user that it meets; an SFT step passes the prompt and one answer of 32 users. In the catalogue, with 18 tokens in a
# prompt and 2 in a name: (300 × 32 + 4000 / 3) × 58 / (32 × 20). On MovieLens-100K, with 36.6 and 4.0 tokens:
# 300 × 4/3 × (36.6 + 20 × 4.0) / (36.6 + 4.0).
CATALOGUE_MORE_SFT, MOVIELENS_MORE_SFT = 991, 1145

GRIDS: dict[str, Recipe] = {
    # DMPO over SFT length × learning rate, and more SFT
    "settings": Recipe(
        {**CATALOGUE, "seeds": range(3)},
        [{"negatives": [1, 19], **PLAIN_AND_DYNAMIC, "sft_epochs": [5, 10, 20, 40], "learning_rate": RATES}],
        more_sft={"steps": CATALOGUE_MORE_SFT, "learning_rate": RATES},
        probed={"negatives": 19, "dynamic": "off", "seeds": 0},
    ),
    # every objective × K × DynamicPO, and more SFT
    "objectives": Recipe(
        {**CATALOGUE, "seeds": range(5)},
        [{"objective": ["dmpo", "sdpo", "dpo", "mppo"], "negatives": [1, 3, 5, 10, 15, 19], **PLAIN_AND_DYNAMIC}],
        chosen_by="settings",
        more_sft={"steps": CATALOGUE_MORE_SFT},
        probed={"negatives": [1, 19], "seeds": 0},
    ),
    # DynamicPO's parts and its controls
    "parts": Recipe(
        {**CATALOGUE, "negatives": [5, 19], "seeds": range(5)},
        [SELECTION, RANDOM, HARDEST, BETA],
        chosen_by="settings",
        probed={"negatives": 19, "seeds": 0},
    ),
    # MPPO with the whole answer's likelihood, as in DynamicPO's release; `objectives` has the average per token
    "mppo": Recipe(
        {**CATALOGUE, **RELEASE, "seeds": range(5)},
        [{"negatives": [1, 3, 5, 10, 15, 19], **PLAIN_AND_DYNAMIC}],
        chosen_by="settings",
        probed={"negatives": [1, 19], "seeds": 0},
    ),
    # DMPO over β and γ, for the app
    "strengths": Recipe(
        {**CATALOGUE, "beta": [0.3, 1.0, 3.0], "seeds": range(3)},
        [{"negatives": [1, 5, 19]}, {"negatives": [5, 19], "dynamic": "on", "margin": [2.0, 6.0, 12.0]}],
        chosen_by="settings",
        rule="Those of the grid objectives; nothing is chosen from this grid.",
    ),
    # DMPO at K = 1 over SFT length × learning rate
    "ml-100k-settings": Recipe(
        {**MOVIELENS, "seeds": range(3)}, [{"negatives": 1, "sft_epochs": [1, 3, 10], "learning_rate": RATES}]
    ),
    # every objective × K × DynamicPO
    "ml-100k-objectives": Recipe(
        {**MOVIELENS, "seeds": range(3)},
        [{"objective": ["dpo", "dmpo", "sdpo", "mppo"], "negatives": [1, 5, 15, 19], **PLAIN_AND_DYNAMIC}],
        chosen_by="ml-100k-settings",
    ),
    # DynamicPO's parts and a control, and more SFT
    "ml-100k-parts": Recipe(
        {**MOVIELENS, "negatives": 19, "seeds": range(3)},
        [SELECTION, RANDOM, BETA],
        chosen_by="ml-100k-settings",
        more_sft={"steps": MOVIELENS_MORE_SFT, "learning_rate": RATES},
    ),
    # SFT over learning rates, ranks and lengths, on rows of sequences and on a row per target
    "ml-100k-smollm2-sft": Recipe(
        {**SMOLLM2, "precision": "bfloat16", "epochs": 0.5},
        [],
        sft=[
            {"epochs": [4, 0.25, 0.5, 1, 2]},
            {"epochs": [0.125, 0.25], "rows": "target"},
            {"learning_rate": [8e-3, 2e-3]},
            {"rank": [4, 16]},
        ],
        partial=True,
        rule="What ships has the highest HR@1 on validation users of all whose adapter takes at most 5 MB, of rank 8.",
    ),
    # DMPO at K = 1 over learning rates, all validation users ranked; also the pilot from which power is worked out
    "ml-100k-smollm2-settings": Recipe(
        {**SMOLLM2_RUNS, "evaluate_every": 160, "validation_users": None},
        [{"negatives": 1, "learning_rate": [3e-4, 1e-3, 1e-4], "seed": seed} for seed in (0, 1)],
        partial=True,
    ),
    # DMPO × K × DynamicPO: the ends of the range of K first, seed after seed, for when time runs out
    "ml-100k-smollm2": Recipe(
        SMOLLM2_RUNS,
        [{"negatives": [15, 1], **PLAIN_AND_DYNAMIC, "seed": seed} for seed in range(3)]
        + [{"negatives": [5, 19], **PLAIN_AND_DYNAMIC, "seed": seed} for seed in range(3)],
        chosen_by="ml-100k-smollm2-settings",
        partial=True,
    ),
}

# recorded/fresh.json: the headline differences on users that no choice, of a setting or of the catalogue itself, can
# have used. Its runs are settings of `sweeps.grid`; SFT, Markov and the oracle are added to them.
FRESH_USERS = 4000
FRESH_SHARED: Settings = {**CATALOGUE, "seeds": range(5)}
FRESH: dict[str, Settings] = {
    "DMPO K = 1": {"negatives": 1},
    "DMPO K = 19": {"negatives": 19},
    "DynamicPO-DMPO K = 19": {"negatives": 19, "dynamic": "on"},
    "MPPO K = 1": {"objective": "mppo", "negatives": 1},
    "MPPO K = 19": {"objective": "mppo", "negatives": 19},
    "DynamicPO-MPPO K = 19": {"objective": "mppo", "negatives": 19, "dynamic": "on"},
    "selection alone": {"negatives": 19, **SELECTION},
    "random": {"negatives": 19, **RANDOM},
}
FRESH_DIFFERENCES = [
    ("DMPO K = 19", "DMPO K = 1"),
    ("DMPO K = 1", "SFT"),
    ("DynamicPO-DMPO K = 19", "DMPO K = 19"),
    ("DynamicPO-DMPO K = 19", "SFT"),
    ("selection alone", "random"),
    ("MPPO K = 19", "MPPO K = 1"),
    ("DynamicPO-MPPO K = 19", "MPPO K = 19"),
    ("SFT", "Markov"),
]

# recorded/ties.json: the headline on MovieLens-100K under other orders within ties. The dataset's seed draws negatives
# too; the file's order is the default, on which the shipped SFT run is.
ORDERS = [("file", 0), ("random", 0), ("random", 1), ("random", 2)]
TIES_SHARED: Settings = {**MOVIELENS, "seeds": [0, 1]}
TIES: dict[str, Settings] = {
    "DMPO, K = 1": {"negatives": 1},
    "DMPO, K = 19": {"negatives": 19},
    "DynamicPO-DMPO, K = 19": {"negatives": 19, "dynamic": "on"},
}
TIES_DIFFERENCES = {
    "DMPO, K = 19 minus K = 1": ("DMPO, K = 19", "DMPO, K = 1"),
    "DynamicPO minus DMPO, K = 19": ("DynamicPO-DMPO, K = 19", "DMPO, K = 19"),
}
