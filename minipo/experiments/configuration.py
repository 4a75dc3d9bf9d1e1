"""The settings of a run: an SFT's and a preference run's, their defaults, and the recipes for data and models."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from minipo.dynamic import DynamicPO, SelectionRule, hardest, random
from minipo.experiments.datasets.loading import DATASETS, check_dataset, load_dataset
from minipo.experiments.datasets.splits import Splits
from minipo.experiments.fetch import SOURCES
from minipo.names import lookup
from minipo.preference import OBJECTIVES
from minipo.prompts import TEMPLATES

# transformers takes seconds to import, and a page that only reads runs does without: it is imported where runs are
# trained.
if TYPE_CHECKING:
    pass


SELECT: dict[str, bool | SelectionRule] = {"on": True, "off": False, "random": random, "hardest": hardest}
SWITCH = {"on": True, "off": False}
TUNING = {"full": False, "lora": True}  # to whether there is an adapter
PRECISION = {"float32": False, "bfloat16": True}  # to whether matrix products run in bfloat16 (autocast)

# Where a model or a dataset needs other settings than the defaults below, which are for pocket models on the catalogue.
# What REAL_DATA says was chosen on validation users of MovieLens-100K (data/findings.py settings). PRETRAINED is what
# trains SmolLM2-135M on a CPU in a class's time; its preference learning rate was chosen on 128 of those users
# (data/findings.py llm-settings).
PRETRAINED: dict[str, dict[str, Any]] = {
    "sft": {
        "tuning": "lora",
        "rank": 4,
        "epochs": 0.25,
        "learning_rate": 1e-3,
        "batch_size": 16,
        "template": "question",
        "precision": "bfloat16",
    },
    "prefer": {
        "tuning": "lora",
        "sft_epochs": 0.25,
        "learning_rate": 3e-4,
        "steps": 80,
        "batch_size": 16,
        "accumulation": 2,  # for memory: less than 8 GB at K = 15
        "evaluate_every": 40,
        "template": "question",
        "precision": "bfloat16",
        "validation_users": 128,
    },
}
REAL_DATA: dict[str, dict[str, Any]] = {"sft": {"epochs": 10}, "prefer": {"sft_epochs": 10, "learning_rate": 1e-3}}


def recipe(kind: str, dataset: str, model: str) -> dict[str, Any]:
    """The settings that a run ("sft" or "prefer") has on this data with this model where nobody gives others."""
    if not model.startswith("pocket-"):
        return PRETRAINED[kind]
    return {} if dataset == "catalog" else REAL_DATA[kind]


def _check_types(config: Any) -> None:
    if config.kind != type(config).kind:
        raise ValueError(f"kind must be {type(config).kind!r} here, not {config.kind!r}; leave it out.")
    for field in fields(config):
        value, kind = getattr(config, field.name), cast(type, field.type)
        allowed = kind | int if kind in (float, float | None) else kind
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind in (int, float, float | None)):
            raise ValueError(f"{field.name} must be of type {getattr(kind, '__name__', kind)}, not {value!r}.")
        if kind in (float, float | None) and value is not None:
            # 1 and 1.0 are one setting, and must have one folder in the cache
            object.__setattr__(config, field.name, float(cast(float, value)))


def _check_numbers(config: Any, *positive: str) -> None:
    for name in positive:
        value = getattr(config, name)
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, not {value:g}.")
    for name in ("seed", "sft_seed", "dataset_seed", "start_epochs"):
        if getattr(config, name, 0) < 0:
            raise ValueError(f"{name} must not be negative, and it is {getattr(config, name):g}.")
    if config.batch_size % config.accumulation:
        raise ValueError(
            f"accumulation {config.accumulation} does not divide the batch of {config.batch_size} users; "
            "choose a divisor."
        )


# A default below is also what a run did that was begun before the setting existed: its config.json lacks it, and its
# folder in the cache is named after what is not as by default. So a new setting's default is "as before".


@dataclass(frozen=True)
class SFTConfig:
    """One SFT run.

    dataset: a name, or the path of a file or folder of one's own. model: a name, or a folder that `from_pretrained`
    opens. start_epochs: above 0, the run goes on from the SFT run of that many epochs under seed 0 ("more SFT"). epochs
    (a fraction may be given) or, if given, steps say how long. tuning is "full" or "lora", with adapters of rank
    `rank`; precision is "float32", or "bfloat16" for the matrix products alone. whole_line says whether history and
    answer are learnt or the answer alone; None: "as the model is: pocket models the whole line, pretrained ones
    the answer". batch_size: users in an optimizer step, `accumulation` micro-batches of them. ties, titles,
    liked_from: see `load_dataset`. The defaults are those of pocket models on the catalogue; `recipe` has those of
    other data and models.
    Raises ValueError on a setting that does not fit.
    """

    kind: str = "sft"
    dataset: str = "catalog"
    dataset_seed: int = 0
    model: str = "pocket-gpt2"
    tuning: str = "full"
    rank: int = 8
    start_epochs: float = 0.0
    epochs: float = 40.0
    steps: int | None = None
    learning_rate: float = 2e-3
    batch_size: int = 32
    accumulation: int = 1
    seed: int = 0
    template: str = "line"
    whole_line: bool | None = None
    precision: str = "float32"
    ties: str | None = None
    titles: str | None = None
    liked_from: float | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        check_dataset(self.dataset, self.ties, self.titles, self.liked_from)
        if (self.dataset, self.ties) == ("ml-100k", "file"):  # as by default, and the same runs
            object.__setattr__(self, "ties", None)
        lookup("tuning", self.tuning, TUNING)
        lookup("template", self.template, TEMPLATES)
        lookup("precision", self.precision, PRECISION)
        steps = ["steps"] if self.steps is not None else []
        _check_numbers(self, "epochs", "learning_rate", "batch_size", "accumulation", "rank", *steps)


@dataclass(frozen=True)
class PreferConfig:
    """One preference run.

    sft: the folder of a finished SFT run, or None for the one that `sft_run` finds or trains for these settings.
    negatives: K, that many of each user's. dynamic, adjust_beta: "on" or "off"; select: "on", "off", or a control,
    "random" or "hardest". With dynamic off, select and adjust_beta are off too. batch_size: users in an optimizer step,
    `accumulation` micro-batches of them. validation_users: how many of the split's users, its first, each evaluation
    ranks; None for all. ties, titles, liked_from: see `load_dataset`. The defaults are those of pocket models on the
    catalogue, whose sft_epochs and learning_rate `data/record.py` chose on validation users; `recipe` has those of
    other data and models.
    Raises ValueError on a setting that does not fit.
    """

    kind: str = "prefer"
    dataset: str = "catalog"
    dataset_seed: int = 0
    model: str = "pocket-gpt2"
    sft: str | None = None
    sft_epochs: float = 40.0
    sft_seed: int = 0
    tuning: str = "full"
    rank: int = 8
    objective: str = "dmpo"
    negatives: int = 15
    dynamic: str = "off"
    select: str = "on"
    adjust_beta: str = "on"
    clusters: int = 3
    beta: float = 1.0
    margin: float = 6.0
    learning_rate: float = 3e-4
    steps: int = 300
    batch_size: int = 32
    accumulation: int = 1
    seed: int = 0
    evaluate_every: int = 50
    validation_users: int | None = None
    template: str = "line"
    precision: str = "float32"
    ties: str | None = None
    titles: str | None = None
    liked_from: float | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        check_dataset(self.dataset, self.ties, self.titles, self.liked_from)
        if (self.dataset, self.ties) == ("ml-100k", "file"):  # as by default, and the same runs
            object.__setattr__(self, "ties", None)
        lookup("objective", self.objective, OBJECTIVES)
        lookup("tuning", self.tuning, TUNING)
        lookup("template", self.template, TEMPLATES)
        lookup("precision", self.precision, PRECISION)
        lookup("setting of dynamic", self.dynamic, SWITCH)
        lookup("setting of select", self.select, SELECT)
        lookup("setting of adjust_beta", self.adjust_beta, SWITCH)
        limits = ["validation_users"] if self.validation_users is not None else []
        _check_numbers(
            self, "beta", "learning_rate", "steps", "batch_size", "accumulation", "evaluate_every", "clusters",
            "sft_epochs", "rank", *limits,
        )  # fmt: skip
        if self.negatives < 1:
            raise ValueError(f"negatives must be at least 1, not {self.negatives}.")
        if self.dynamic == "off":
            object.__setattr__(self, "select", "off")
            object.__setattr__(self, "adjust_beta", "off")
        self.dynamic_po()  # for its own checks

    def dynamic_po(self) -> DynamicPO | None:
        """The `DynamicPO` these settings describe, or None."""
        if self.dynamic == "off":
            return None
        return DynamicPO(self.margin, self.clusters, SELECT[self.select], SWITCH[self.adjust_beta])


Config = SFTConfig | PreferConfig


def splits_of(config: Config) -> Splits:
    """The data that a run with `config` is trained and evaluated on; raises what `load_dataset` raises."""
    return load_dataset(
        config.dataset,
        config.dataset_seed,
        ties=config.ties,
        titles=config.titles,
        liked_from=config.liked_from,
    )


CONFIGS: dict[str, type[Config]] = {"sft": SFTConfig, "prefer": PreferConfig}
ConfigType = TypeVar("ConfigType", bound=Config)


def make_config(kind: type[ConfigType], settings: dict[str, Any]) -> ConfigType:
    """`settings` as a configuration, the others from `recipe`; ValueError names the closest to an unknown setting."""
    known = {field.name: field for field in fields(kind)}
    given = {name: settings.get(name, known[name].default) for name in ("dataset", "model")}
    plain = dict(recipe(kind.kind, str(given["dataset"]), str(given["model"])))
    for name, value in settings.items():
        lookup("setting", name, known)
        # What JSON can hold: a folder as its path, a number out of numpy as Python's own.
        value = str(value) if isinstance(value, Path) else value.item() if isinstance(value, np.generic) else value
        plain[name] = _absolute(value) if name in ("dataset", "model", "sft", "titles") else value
    return kind(**plain)


def _absolute(value: Any) -> Any:
    """A path from its root, so that a run is read from whatever folder later; a name, or a mistake, as it is."""
    if not isinstance(value, str) or value in {*DATASETS, *SOURCES} or value.startswith("pocket-"):
        return value
    path = os.path.expanduser(value)
    return os.path.abspath(path) if os.path.exists(path) else value


def check_negatives(splits: Splits, negatives: int) -> None:
    """Raises ValueError if K = `negatives` is more than any user has; a user who has fewer uses all of them."""
    available = max(len(user.candidates) for user in splits.train) - 1
    if negatives > available:
        raise ValueError(f"negatives must be at most {available}, the most that a user here has, not {negatives}.")


def rows_at_once(config: Config) -> int:
    """How many users a run ranks at once, each with all candidates; the fewer, the less memory.

    After SFT the users of a micro-batch; in preference training, whose micro-batches hold 1 + K answers a user, twice
    as many.
    """
    rows = config.batch_size // config.accumulation
    return rows if isinstance(config, SFTConfig) else 2 * rows


def start_config(config: Config) -> SFTConfig | None:
    """The settings of the SFT run that a run with `config` starts from; None for a folder, or a bare model."""
    if isinstance(config, PreferConfig):
        epochs, seed = config.sft_epochs if config.sft is None else 0.0, config.sft_seed
    else:
        epochs, seed = config.start_epochs, 0
    if not epochs:
        return None
    shared = ("dataset", "dataset_seed", "model", "template", "ties", "titles", "liked_from")
    same = {name: getattr(config, name) for name in shared}
    return make_config(SFTConfig, {**same, "epochs": epochs, "seed": seed})
