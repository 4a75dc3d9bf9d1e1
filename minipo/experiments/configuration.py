"""The settings of SFT runs and preference runs, their defaults, and the recipes for data and models."""

import ast
import inspect
import os
from dataclasses import Field as DataclassField
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_origin

import numpy as np
import pydantic.dataclasses
from pydantic import ConfigDict, Field, ValidationError

from minipo.dynamic import DynamicPO, SelectionRule, random
from minipo.experiments.datasets.loading import DATASETS, check_dataset, load_dataset
from minipo.experiments.datasets.splits import Splits
from minipo.experiments.fetch import SOURCES
from minipo.names import lookup, unknown
from minipo.objectives import Objective
from minipo.preference import MAKERS, OBJECTIVES
from minipo.prompts import TEMPLATES

T = TypeVar("T")

SELECT: dict[str, bool | SelectionRule] = {"on": True, "off": False, "random": random, "hardest": True}
# Settings that belong to one objective, and its name.
OWN = {setting: name for name, make in MAKERS.items() for setting in inspect.signature(make).parameters}

# Where a model or a dataset needs other settings than the defaults below, which are for pocket models on the catalogue.
# REAL_DATA was chosen on validation users of MovieLens-100K (data/record.py ml-100k-settings), and so were PRETRAINED's
# rank and rate of SFT (ml-100k-smollm2-sft) and its preference learning rate (ml-100k-smollm2-settings), for
# SmolLM2-135M; its lengths are such that a CPU trains it in the time of a class.
LORA: dict[str, Any] = {"tuning": "lora", "batch_size": 16, "template": "liked", "precision": "auto"}
PRETRAINED: dict[str, dict[str, Any]] = {
    "sft": {**LORA, "batch_size": 64, "epochs": 0.25, "learning_rate": 4e-3},
    "prefer": {
        **LORA,
        "sft_epochs": 0.25,
        "learning_rate": 1e-4,
        "steps": 80,
        "accumulation": 2,  # for memory: less than 8 GB at K = 15
        "evaluate_every": 40,
        "validation_users": 128,
    },
}
SHIPPED_EPOCHS = {("ml-100k", "smollm2-135m"): 4.0}  # of a start in data/sft, which nobody has to wait for
REAL_DATA: dict[str, dict[str, Any]] = {"sft": {"epochs": 10}, "prefer": {"sft_epochs": 10, "learning_rate": 1e-3}}


def recipe(kind: str, dataset: str, model: str) -> dict[str, Any]:
    """The default settings of a run ("sft" or "prefer") for this data and model, where they differ from those below."""
    if not model.startswith("pocket-"):
        epochs = SHIPPED_EPOCHS.get((dataset, model)) if kind == "prefer" else None
        return PRETRAINED[kind] | ({"sft_epochs": epochs} if epochs else {})
    return {} if dataset == "catalog" else REAL_DATA[kind]


# A default below is also the setting of runs from before the setting existed: their config.json lacks it, and their
# folders in the cache are named after what differs from the defaults. So a new setting's default is "as before".

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Switch = Literal["on", "off"]
Rate = Annotated[Positive, "peak learning rate"]


@dataclass_transform(frozen_default=True)
def _settings(cls: type[T]) -> type[T]:
    """A frozen dataclass whose values pydantic checks against their types, with one sentence for what is wrong."""
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(strict=True))(cls)
    check = made.__init__

    @wraps(check)
    def init(self: Any, *values: Any, **named: Any) -> None:
        try:
            check(self, *values, **named)
        except ValidationError as error:
            raise ValueError(sentence(error)) from None

    made.__init__ = init
    return made


def sentence(error: ValidationError) -> str:
    """The first thing wrong, in one sentence."""
    first = error.errors()[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    name, value = (first["loc"] or ("value",))[0], first["input"]
    if first["type"] == "literal_error":
        known = ast.literal_eval(f"[{first['ctx']['expected'].replace(' or ', ', ')}]")
        return unknown(str(name), value, known)
    return f"{name} must be {first['msg'].removeprefix('Input should be ')}, not {value!r}."


@dataclass(frozen=True)
class _Shared:
    """The settings of both kinds of runs, and what is checked besides types."""

    kind: str = ""
    dataset: Annotated[
        str,
        "catalog, ml-100k, lastfm, goodreads, steam, or a path of your own: a table with the columns user, item, "
        "timestamp and optionally rating (CSV, RecBole, MovieLens, JSON lines, Parquet; a folder or zip archive of "
        "them); LLaRA JSON, or a folder of it",
    ] = "catalog"
    dataset_seed: Annotated[Seed, "seed of what the dataset draws: users, negatives, order within ties"] = 0
    model: Annotated[
        str, "pocket-gpt2, pocket-qwen2, smollm2-135m, gpt2, qwen2.5-0.5b, or a folder for from_pretrained"
    ] = "pocket-gpt2"
    tuning: Annotated[Literal["full", "lora"], "train all weights, or only adapters"] = "full"
    rank: Annotated[Count, "rank of LoRA's adapters"] = 8
    batch_size: Annotated[Count, "users per optimizer step"] = 32
    accumulation: Annotated[Count, "micro-batches per step"] = 1
    template: Annotated[
        Literal["line", "liked", "question", "choice", "music", "films", "books", "games"], "the prompt's text"
    ] = "line"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        "of the matrix products; all else stays in float32; auto: float32 or bfloat16, whichever is faster here (for "
        "pocket models always float32); float16: only on a GPU",
    ] = "float32"
    ties: Annotated[
        str | None,
        "order of a user's rows with equal times: file, or random, by the dataset's seed (default: file for ml-100k; "
        "for a table of your own random where more than a tenth of neighbouring liked items tie)",
    ] = None
    titles: Annotated[
        str | None, "for a table of your own whose items are ids: a table of ids and titles, such as movies.csv"
    ] = None
    liked_from: Annotated[
        float | None, "for a table of your own: the lowest rating that counts as liked (default: 4 of 5)"
    ] = None

    def __post_init__(self) -> None:
        check_dataset(self.dataset, self.ties, self.titles, self.liked_from)
        if (self.dataset, self.ties) == ("ml-100k", "file"):  # the default, so the same runs
            object.__setattr__(self, "ties", None)
        if self.precision == "auto" and self.model.startswith("pocket-"):  # on every machine (docs/speed.md)
            object.__setattr__(self, "precision", "float32")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation {self.accumulation} does not divide the batch of {self.batch_size} users; "
                "choose a divisor."
            )


@_settings
class SFTConfig(_Shared):
    """One SFT run.

    dataset: a name, or the path of your own file or folder. model: a name, or a folder that `from_pretrained` opens.
    start_epochs: above 0, the run continues the SFT run of that many epochs under seed 0 ("more SFT"). epochs (may be a
    fraction) or, if given, steps set the length. rows: whether each chosen item has a row of its own, with its history,
    or a row has many, see `minipo.sequences`; either way an epoch learns each of them once, a step batch_size of them.
    whole_line: whether history and answer are learnt, or only the answer; None: the whole line for pocket models, only
    the answer for pretrained ones and for rows of sequences. ties, titles, liked_from: see `load_dataset`. The defaults
    are those of pocket models on the catalogue; `recipe` has those of other data and models. Raises ValueError for an
    invalid setting.
    """

    kind: Literal["sft"] = "sft"
    start_epochs: Annotated[NotNegative, "start from the SFT run of this many epochs, for more SFT"] = 0.0
    epochs: Annotated[Positive, "passes over the training users; a fraction may be given"] = 40.0
    steps: Annotated[Count | None, "optimizer steps, in place of epochs"] = None
    learning_rate: Rate = 2e-3
    seed: Annotated[Seed, "of weights and of the order of users"] = 0
    whole_line: Annotated[
        bool | None, "yes: learn history and answer; no: only the answer (default: yes for pocket models)"
    ] = None
    rows: Annotated[
        Literal["target", "sequence"],
        "target: a row per chosen item, with its history; sequence: a user's items in one row, each learnt once, at a "
        "fraction of the tokens (templates line and liked; only answers are learnt)",
    ] = "target"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows == "sequence" and not TEMPLATES[self.template].continues:
            raise ValueError(
                f"Rows of sequences need a template that ends in the history, and {self.template!r} does not; choose "
                "'line' or 'liked', or rows='target'."
            )
        if self.rows == "sequence" and self.whole_line:
            raise ValueError("Rows of sequences learn answers and no other tokens; leave whole_line out.")


@_settings
class PreferConfig(_Shared):
    """One preference run.

    sft: the folder of a finished SFT run, or None for the one that `sft_run` finds or trains for these settings.
    negatives: K, the number used per user. With dynamic off, select and adjust_beta are off too. validation_users: how
    many validation users, the first of them, each evaluation ranks; None for all. likelihood_of, target_margin, alpha,
    keep and momentum are settings of one objective each, see `minipo.extensions`; with another objective they must be
    left out. ties, titles, liked_from: see `load_dataset`. The defaults are those of pocket models on the catalogue,
    whose sft_epochs and learning_rate `data/record.py` chose on validation users; `recipe` has those of other data and
    models. Raises ValueError for an invalid setting.
    """

    kind: Literal["prefer"] = "prefer"
    sft: Annotated[
        str | None,
        "folder of the SFT run to start from (default: the shipped one for these settings, or one trained now)",
    ] = None
    sft_epochs: Annotated[Positive, "epochs of that SFT run"] = 40.0
    sft_seed: Annotated[Seed, "seed of that SFT run"] = 0
    objective: Annotated[Literal["dpo", "dmpo", "sdpo", "mppo", "simpo", "beta-dpo"], "the preference loss"] = "dmpo"
    negatives: Annotated[Count, "K, negatives per user"] = 15
    dynamic: Annotated[Switch, "DynamicPO"] = "off"
    select: Annotated[
        Literal["on", "off", "random", "hardest"],
        "DynamicPO's selection; random: as many, drawn at random (hardest, in old runs: on)",
    ] = "on"
    adjust_beta: Annotated[Switch, "DynamicPO's dual-margin beta"] = "on"
    clusters: Annotated[Count, "groups of DynamicPO's k-means"] = 3
    beta: Annotated[Positive, "strength of the objective"] = 1.0
    margin: Annotated[NotNegative, "gamma of DynamicPO's dual-margin beta"] = 6.0
    learning_rate: Rate = 3e-4
    steps: Annotated[Count, "optimizer steps"] = 300
    seed: Annotated[Seed, "of the order of users and of each user's negatives"] = 0
    evaluate_every: Annotated[Count, "steps between evaluations on validation users"] = 50
    validation_users: Annotated[Count | None, "validation users that each evaluation ranks (default: all)"] = None
    likelihood_of: Annotated[
        Literal["token", "answer"],
        "mppo: average likelihood per token, or the whole answer's, as in DynamicPO's release",
    ] = "token"
    target_margin: Annotated[NotNegative, "simpo: gamma that a margin must exceed"] = 0.5
    alpha: Annotated[NotNegative, "beta-dpo: how much beta follows a batch's gaps"] = 0.6
    keep: Annotated[float, Field(gt=0, le=1), "beta-dpo: share of a batch's pairs that enter the loss"] = 0.8
    momentum: Annotated[float, Field(ge=0, lt=1), "beta-dpo: share of the past in the running mean"] = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dynamic == "off":
            object.__setattr__(self, "select", "off")
            object.__setattr__(self, "adjust_beta", "off")
        elif OBJECTIVES[self.objective].selects:
            raise ValueError(
                f"{self.objective} chooses negatives and their strength itself, as DynamicPO does; leave dynamic off."
            )
        for name, takes in OWN.items():
            if takes != self.objective and getattr(self, name) != getattr(PreferConfig, name):
                raise ValueError(
                    f"{name} is a setting of {takes}, and the objective is {self.objective}; leave it out, or choose "
                    f"{takes}."
                )

    def dynamic_po(self) -> DynamicPO | None:
        """The `DynamicPO` these settings describe, or None."""
        if self.dynamic == "off":
            return None
        return DynamicPO(self.margin, self.clusters, SELECT[self.select], self.adjust_beta == "on")

    def loss(self) -> Objective:
        """The objective with its own settings."""
        if self.objective not in MAKERS:
            return OBJECTIVES[self.objective]
        own = {name: getattr(self, name) for name, objective in OWN.items() if objective == self.objective}
        return MAKERS[self.objective](**own)


def type_of(field: DataclassField[Any]) -> tuple[type, tuple[str, ...]]:
    """A setting's plain type, and the texts to choose from where there are some."""
    kind: Any = field.type
    while get_origin(kind) is not None:
        if get_origin(kind) is Literal:
            return str, get_args(kind)
        kind = next(each for each in get_args(kind) if each is not type(None))
    return kind, ()


def purpose(field: DataclassField[Any]) -> str:
    """What a setting is for, in a line."""
    annotated: Any = field.type
    return annotated.__metadata__[-1]


Config = SFTConfig | PreferConfig


def splits_of(config: Config) -> Splits:
    """The data on which a run with `config` is trained and evaluated; raises what `load_dataset` raises."""
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
    """`settings` as a configuration, the rest from `recipe`; for an unknown setting, ValueError names the closest."""
    dataset, model = (str(settings.get(name, getattr(kind, name))) for name in ("dataset", "model"))
    plain = dict(recipe(kind.kind, dataset, model))
    for name, value in settings.items():
        lookup("setting", name, kind.__dataclass_fields__)
        # What JSON can hold: a path as text, a NumPy number as Python's.
        value = str(value) if isinstance(value, Path) else value.item() if isinstance(value, np.generic) else value
        plain[name] = _absolute(value) if name in ("dataset", "model", "sft", "titles") else value
    if kind is PreferConfig and (dataset, model) in SHIPPED_EPOCHS and "sft_epochs" not in settings:
        shipped = {"template": (LORA["template"],), "ties": (None, "file"), "dataset_seed": (0,), "sft_seed": (0,)}
        if any(plain.get(name, values[0]) not in values for name, values in shipped.items()):
            plain["sft_epochs"] = PRETRAINED["prefer"]["sft_epochs"]  # which has to be trained
    template = TEMPLATES.get(str(plain.get("template")))
    if kind is SFTConfig and template and template.continues and not plain.get("whole_line"):
        plain.setdefault("rows", "target" if model.startswith("pocket-") else "sequence")
    return kind(**plain)


def _absolute(value: Any) -> Any:
    """An absolute path, so that the run can be read from any folder later; a name, or a mistake, as it is."""
    if not isinstance(value, str) or value in {*DATASETS, *SOURCES} or value.startswith("pocket-"):
        return value
    path = os.path.expanduser(value)
    return os.path.abspath(path) if os.path.exists(path) else value


def decided(config: ConfigType, found: Config) -> ConfigType:
    """`config`, where it leaves the precision to the machine with that of `found`: the settings with which a run made
    by `config` can be compared."""
    return replace(config, precision=found.precision) if config.precision == "auto" else config


def check_negatives(splits: Splits, negatives: int) -> None:
    """Raises ValueError if K = `negatives` is more than any user has; a user who has fewer uses all of them."""
    available = max(len(user.candidates) for user in splits.train) - 1
    if negatives > available:
        raise ValueError(f"negatives must be at most {available}, the most that a user here has, not {negatives}.")


def rows_at_once(config: Config) -> int:
    """How many users a run ranks at once, each with all candidates; fewer need less memory.

    After SFT the users of a micro-batch; in preference training, whose micro-batches have 1 + K answers per user, twice
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
    return make_config(SFTConfig, {name: getattr(config, name) for name in shared} | {"epochs": epochs, "seed": seed})
