"""A run as a folder: train one, resume it, read it.

A preference run's folder holds `config.json`, `provenance.json` (what it is made from: the fingerprint of its data and
of the model that it starts from), `metrics.jsonl` (a line per logged step), `evaluation.jsonl` (a line per
evaluation on the validation users), `probe.parquet` (log-probs of every candidate of 64 fixed validation users at each
evaluation), `users.parquet` (each test user's rank), `model/` (safetensors that `from_pretrained` opens: the whole
model, or after preference training through LoRA the adapter, whose base is the SFT run's model) and, written last,
`summary.json`: a folder without it is unfinished. Checkpoints live in `checkpoints/` until then.

A run belongs to its data and to the model that it started from: where either is another by now, it is neither resumed
nor returned nor evaluated.
"""

import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pandas as pd
from safetensors import SafetensorError

from .datasets import DATASETS, Interaction, Splits, check_dataset, load_dataset
from .dynamic import DynamicPO, SelectionRule, hardest, random
from .fetch import SOURCES, sha256
from .files import alone, home, read_json, read_parquet, remove, whole_file, write_json
from .names import lookup
from .objectives import OBJECTIVES
from .prompts import TEMPLATES

# transformers takes seconds to import, and a page that only reads runs does without: it is imported where runs are
# trained.
if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from .evaluation import Report

DATA = Path(__file__).parent.parent / "data"  # the repository's: minipo is installed from a checkout
PROBED_USERS = 64
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


def model_fingerprint(folder: Path) -> str:
    """16 hexadecimal digits of the SHA-256 of a model folder's files, and of its base's where that is a folder too.

    It follows the content, not where the files are nor when they were written. Raises ValueError if an adapter's
    settings are no JSON, OSError if the folder cannot be read.
    """
    parts = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix != ".md" and not path.name.startswith("."):
            about = path.stat()
            parts[path.name] = _digest(path, about.st_mtime_ns, about.st_size, about.st_ino)
    if "adapter_config.json" in parts:
        base = Path(read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")
        if base.is_absolute() and base.is_dir():
            parts["base"] = model_fingerprint(base)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@lru_cache(maxsize=1000)
def _digest(path: Path, *version: int) -> str:
    """The SHA-256 of a file; version: its time of change, size and number, which tell when to read it anew."""
    return sha256(path)


UNFINISHED = "The run in {} is unfinished; start it again with the same settings to resume it."


@dataclass(frozen=True)
class Run:
    """A run's folder, read on demand."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if not (self.folder / "config.json").is_file():
            raise ValueError(f"{self.folder} is not a run, for it has no config.json; give the folder of one.")

    @property
    def config(self) -> Config:
        """The settings it was started with; what did not exist then has its default."""
        content = read_json(self.folder / "config.json")
        if not isinstance(content, dict) or content.get("kind") not in CONFIGS:
            raise ValueError(f"{self.folder / 'config.json'} does not describe a run; remove its folder and run again.")
        kind = CONFIGS[content["kind"]]
        return make_config(kind, {field.name: field.default for field in fields(kind)} | content)

    @property
    def provenance(self) -> dict[str, Any]:
        """What it was made from, as noted when it began: `dataset_fingerprint` and, unless it started from a bare model
        by name, `start`, the folder of the model that it started from, and `start_fingerprint`.

        Of a finished run without that note, the dataset's fingerprint alone, from its summary. ValueError if it is
        unfinished and without one, or if the note is damaged.
        """
        path = self.folder / "provenance.json"
        if not path.is_file() and not self.done:
            raise ValueError(
                f"{path} is missing, so it is not known on which data this unfinished run began; remove its folder and "
                "run again."
            )
        noted = read_json(path) if path.is_file() else self.summary
        if not isinstance(noted, dict) or "dataset_fingerprint" not in noted:
            raise ValueError(f"{path if path.is_file() else self.folder} is damaged; remove its folder and run again.")
        return {name: noted[name] for name in ("dataset_fingerprint", "start", "start_fingerprint") if name in noted}

    def load_data(self) -> Splits:
        """The data it is trained on; ValueError in one sentence if they are not those any more with which it began."""
        config = self.config
        splits, before = splits_of(config), self.provenance["dataset_fingerprint"]
        if splits.fingerprint != before:
            raise ValueError(
                f"The run in {self.folder} began on {config.dataset} with fingerprint {before}, which has fingerprint "
                f"{splits.fingerprint} now; put the data back as they were, or train on the new ones in another folder."
            )
        return splits

    def check_start(self, folder: Path | None = None) -> None:
        """Raises ValueError in one sentence if `folder` holds another model than the one that this run started from.

        Without `folder`, it is the folder that it started from; one that is gone contradicts nothing.
        """
        noted = self.provenance
        before, folder = noted.get("start_fingerprint"), folder or Path(noted.get("start", ""))
        if before is not None and folder.is_dir() and (now := model_fingerprint(folder)) != before:
            raise ValueError(
                f"The run in {self.folder} started from a model with fingerprint {before}, and the one in {folder} has "
                f"fingerprint {now}; put that model back, or remove the run's folder and train it again."
            )

    @property
    def done(self) -> bool:
        """Whether it ran to its end."""
        return (self.folder / "summary.json").is_file()

    @property
    def summary(self) -> dict[str, Any]:
        """What it came to; ValueError if it is unfinished."""
        if not self.done:
            raise ValueError(UNFINISHED.format(self.folder))
        summary = read_json(self.folder / "summary.json")
        if not isinstance(summary, dict):
            raise ValueError(f"{self.folder / 'summary.json'} is damaged; remove its folder and run again.")
        return summary

    @property
    def metrics(self) -> pd.DataFrame:
        """A row per logged step: step, loss, pair_loss, learning_rate, pushes by group, seconds."""
        return pd.DataFrame(_lines(self.folder / "metrics.jsonl"))

    @property
    def evaluation(self) -> pd.DataFrame:
        """A row per evaluation on the validation users: step, hr@1, hr@5, ndcg@5, mrr, reward_win_rate, pair_loss."""
        return pd.DataFrame(_lines(self.folder / "evaluation.jsonl"))

    @property
    def probe(self) -> pd.DataFrame:
        """step, user, candidate (0 = chosen), item, reference, policy: log-probs of 64 fixed validation users."""
        return read_parquet(self.folder / "probe.parquet")

    @property
    def users(self) -> pd.DataFrame:
        """user, rank and, after preference training, reward_win: every test user's, in the split's order."""
        return read_parquet(self.folder / "users.parquet")

    def load_model(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """The trained model, a LoRA adapter merged into it, and its tokenizer.

        Raises ValueError if the run is unfinished, or if an adapter's base is not what it was trained upon any more.
        """
        from .models import load_model

        if not self.done:
            raise ValueError(UNFINISHED.format(self.folder))
        if (self.folder / "model" / "adapter_config.json").is_file():
            self.check_start()
        with _without_bars():
            return load_model((self.folder / "model").resolve())


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON-lines file; a last line cut off by a kill has no newline and is left out."""
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove its folder and run again.") from None


def list_runs(folder: Path | str) -> list[Run]:
    """The runs in `folder`, finished or not, by name."""
    return [Run(config.parent) for config in sorted(Path(folder).glob("*/config.json"))]


def versions() -> dict[str, str]:
    """Versions and machine, for provenance."""
    import torch

    packages = ("minipo", "torch", "transformers", "peft", "numpy")
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{accelerator}",
    }


def finished(out: Path, config: Config) -> Run | None:
    """The run with `config` in `out`, if it is finished there; None if there is none yet, or an unfinished one.

    Raises ValueError if something else is in the way: other settings, other data, another model that it started from.
    """
    if (out / "config.json").is_file():
        run = Run(out)
        if run.config != config:
            before, now = asdict(run.config), asdict(config)
            name = next(name for name in now if before.get(name) != now[name])
            raise ValueError(
                f"{out} holds a run with {name} = {before.get(name)!r}, not {now[name]!r}; choose another folder."
            )
        run.load_data()
        if not run.done:
            return None
        run.check_start()
        return run
    # A kill may leave hidden drafts, and what is written before config.json.
    if out.exists() and (
        not out.is_dir() or any(path.name[0] != "." and path.name != "provenance.json" for path in out.iterdir())
    ):
        raise ValueError(f"{out} exists and is not a run; choose another folder.")
    return None


def _begin(out: Path, config: Config, splits: Splits, start: Path | None) -> None:
    """Note what a new run is made from, or check that one which goes on starts from the same model.

    start: the folder of the model that it starts from; None for a bare model by name.
    """
    if (out / "config.json").is_file():  # `finished` has compared its settings and data
        return Run(out).check_start(start)
    noted = {"dataset_fingerprint": splits.fingerprint}
    if start is not None:
        noted |= {"start": os.path.abspath(start), "start_fingerprint": model_fingerprint(start)}
    write_json(out / "provenance.json", noted)
    write_json(out / "config.json", asdict(config))  # last, for it makes the folder a run


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers' own bars for every file it reads or writes stay away; the training's bar is none of them."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """An OSError in one sentence if `out` cannot be written: safetensors and torch raise errors of their own."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's writer of archives
            raise
        raise OSError(
            f"The run in {out} could not be written ({str(error).splitlines()[0]}); if the disk is full, free some "
            "space, and start the run again to resume it."
        ) from error


def sft(out: Path | str | None = None, *, progress: bool = True, **settings: Any) -> Run:
    """Supervised fine-tuning into the folder `out`; `settings` are those of `SFTConfig`.

    A finished run with the same settings is returned as it is; one that was cut off resumes from its last complete
    checkpoint, to the same end. Without `out`, the folder is one of minipo's own, named after the settings.
    Raises ValueError on a setting that does not fit, or if `out` holds something else, a run on what the data were
    before included; OSError if the disk is full.
    """
    config = make_config(SFTConfig, settings)
    out = cache_folder(config) if out is None else Path(out)
    with alone(out):
        return finished(out, config) or _sft(config, out, progress)


def _sft(config: SFTConfig, out: Path, progress: bool) -> Run:
    from .evaluation import evaluate, preference_rows
    from .model_checks import context_of
    from .models import POCKET, add_lora, load_model
    from .training import SFTTrainer, training_arguments

    splits = splits_of(config)
    whole_line = config.model in POCKET if config.whole_line is None else config.whole_line
    model: Any
    start = Path(config.model) if os.path.isabs(config.model) else None
    if config.start_epochs:
        first = sft_run(config, progress=progress)
        start = first.folder / "model"
        model, tokenizer = first.load_model()
    else:
        model, tokenizer = load_model(config.model, items=splits.items, seed=config.seed)
    if config.tuning == "lora":
        model = add_lora(model, config.rank, seed=config.seed)
    steps = config.steps or math.ceil(config.epochs * len(splits.train) / config.batch_size)
    rows = preference_rows(splits.train, config.template, tokenizer, context_of(model))
    _begin(out, config, splits, start)
    trainer = SFTTrainer(
        model,
        training_arguments(
            out / "checkpoints",
            steps=steps,
            batch_size=config.batch_size,
            accumulation=config.accumulation,
            learning_rate=config.learning_rate,
            seed=config.seed,
            progress=progress,
            bf16=PRECISION[config.precision],
        ),
        rows,
        processing_class=tokenizer,
        whole_line=whole_line,
    )
    seconds = _train(trainer, out)
    adapter_alone = config.tuning == "lora" and config.model not in POCKET  # a pocket model is nowhere else to be had
    if adapter_alone:
        _save_model(trainer, out)
    if config.tuning == "lora":  # what starts from here, the reference above all, is one whole model
        trainer.model = model = model.merge_and_unload()
    if not adapter_alone:
        _save_model(trainer, out)
    logs = Run(out).metrics
    with arithmetic(model, config.precision):
        test, validation = (
            evaluate(model, tokenizer, users, template=config.template, batch_size=rows_at_once(config))
            for users in (splits.test, splits.validation)
        )
    _write_users(out, splits, test)
    summary = {
        "train_loss": float(logs[logs.step > 0.9 * steps].loss.mean()),
        "steps": steps,
        **{f"val_{name}": value for name, value in validation.metrics.items()},
        **test.metrics,
        **_shortened(model, tokenizer, splits, config.template),
        "seconds": seconds,
    }
    return _finish(out, splits, summary)


def prefer(out: Path | str | None = None, *, progress: bool = True, **settings: Any) -> Run:
    """Preference training from an SFT run into the folder `out`; `settings` are those of `PreferConfig`.

    The reference is the SFT model: its log-probs are computed once, before the first step, and kept in the cache. A
    finished run with the same settings is returned as it is; one that was cut off resumes from its last complete
    checkpoint, to the same end. Without `out`, the folder is one of minipo's own, named after the settings.
    Raises ValueError on a setting that does not fit, if `sft` is not a finished SFT run on the same dataset, or if
    `out` holds something else, a run on what the data or the SFT model were before included; OSError if the disk is
    full.
    """
    config = make_config(PreferConfig, settings)
    out = cache_folder(config) if out is None else Path(out)
    with alone(out):
        return finished(out, config) or _prefer(config, out, progress)


def check_negatives(splits: Splits, negatives: int) -> None:
    """Raises ValueError if K = `negatives` is more than any user has; a user who has fewer uses all of them."""
    available = max(len(user.candidates) for user in splits.train) - 1
    if negatives > available:
        raise ValueError(f"negatives must be at most {available}, the most that a user here has, not {negatives}.")


def _prefer(config: PreferConfig, out: Path, progress: bool) -> Run:
    splits = splits_of(config)
    check_negatives(splits, config.negatives)
    start = sft_run(config, progress=progress)

    from .evaluation import preference_rows, report
    from .model_checks import context_of
    from .models import add_lora
    from .training import PreferenceTrainer, training_arguments

    model: Any
    model, tokenizer = start.load_model()
    rows = {
        split: preference_rows(users, config.template, tokenizer, context_of(model))
        for split, users in (
            ("train", splits.train),
            ("validation", splits.validation[: config.validation_users]),
            ("test", splits.test),
        )
    }
    shortened = _shortened(model, tokenizer, splits, config.template)
    if config.tuning == "lora":
        model = add_lora(model, config.rank, seed=config.seed)
    _begin(out, config, splits, start.folder / "model")
    trainer = PreferenceTrainer(
        model,
        training_arguments(
            out / "checkpoints",
            steps=config.steps,
            batch_size=config.batch_size,
            accumulation=config.accumulation,
            learning_rate=config.learning_rate,
            seed=config.seed,
            evaluate_every=config.evaluate_every,
            progress=progress,
            bf16=PRECISION[config.precision],
            per_device_eval_batch_size=rows_at_once(config),
        ),
        rows["train"],
        rows["validation"],
        processing_class=tokenizer,
        objective=config.objective,
        negatives=config.negatives,
        beta=config.beta,
        dynamic=config.dynamic_po(),
        # With an SFT run of the cache, whose data may be somebody's own: what goes with it, goes with it.
        reference_cache=(start.folder if start.folder.is_relative_to(home()) else home()) / "reference",
    )
    test_reference = trainer.reference_logps(rows["test"])
    seconds = _train(trainer, out, splits.validation[: config.validation_users][:PROBED_USERS])
    _save_model(trainer, out)
    test = report(trainer.score(rows["test"]), test_reference)
    _write_users(out, splits, test)
    run = Run(out)
    last_tenth = run.metrics[lambda table: table.step > 0.9 * config.steps]
    validation = run.evaluation.iloc[-1]
    summary = {
        "train_loss": float(last_tenth.loss.mean()),
        "pair_loss": float(validation["pair_loss"]),
        "val_hr@1": float(validation["hr@1"]),
        "sft_hr@1": float(start.summary["hr@1"]),
        **{name: value for name, value in test.metrics.items() if name != "pair_loss"},
        "boundary_share": float(last_tenth.boundary_share.mean()),
        **shortened,
        "seconds": seconds,
    }
    return _finish(out, splits, summary)


def rows_at_once(config: Config) -> int:
    """How many users a run ranks at once, each with all candidates; the fewer, the less memory.

    After SFT the users of a micro-batch; in preference training, whose micro-batches hold 1 + K answers a user, twice
    as many.
    """
    rows = config.batch_size // config.accumulation
    return rows if isinstance(config, SFTConfig) else 2 * rows


def arithmetic(model: "PreTrainedModel", precision: str) -> Any:
    """The context in which a run of that precision computes: bfloat16 in matrix products, or nothing at all."""
    import torch

    return torch.autocast(model.device.type, torch.bfloat16, enabled=PRECISION[precision])


def _shortened(model: Any, tokenizer: Any, splits: Splits, template: str) -> dict[str, int]:
    """How many prompts of all splits lost their oldest items, because they were longer than the model's context."""
    from .evaluation import fit_prompts
    from .model_checks import context_of

    context = context_of(model)
    users = (*splits.train, *splits.validation, *splits.test)
    return {"shortened_prompts": fit_prompts(tokenizer, users, template, context)[1]}


def cache_folder(config: Config) -> Path:
    """The folder in minipo's cache for a run with these settings on this data by this version of minipo.

    It is named after the settings that are not as by default, so that a run keeps its folder when a setting is added.
    """
    data = splits_of(config).fingerprint
    defaults = {field.name: field.default for field in fields(config)}
    given = {name: value for name, value in asdict(config).items() if value != defaults[name]}
    content = json.dumps([version("minipo"), data, config.kind, given], sort_keys=True)
    return home() / "runs" / f"{config.kind}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


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


def sft_run(config: PreferConfig | SFTConfig, *, progress: bool = True) -> Run:
    """The SFT run that a run with `config` starts from: the folder it names, or the one shipped in `data/sft`, if that
    is on the data as they are now, or one in the cache, trained now if need be.

    Raises ValueError if the folder is no finished SFT run of the same model on the same data and prompts, or if the run
    starts from a bare model.
    """
    if isinstance(config, PreferConfig) and config.sft is not None:
        return sft_folder(Path(config.sft), config)
    wanted = start_config(config)
    if wanted is None:
        raise ValueError("This run starts from a bare model, not from an SFT run; give start_epochs above 0.")
    data = splits_of(wanted).fingerprint
    for run in list_runs(DATA / "sft"):
        if run.config == wanted and run.summary.get("dataset_fingerprint") == data:
            return run
    return sft(progress=progress, **asdict(wanted))


def sft_folder(folder: Path, config: Config) -> Run:
    """`folder` as a finished SFT run that a run with `config` can start from; ValueError if it is anything else."""
    try:
        run = Run(folder)
        found, data = run.config, run.summary.get("dataset_fingerprint")
    except ValueError as error:
        raise ValueError(f"{folder} is not a finished SFT run: {error}") from None
    if found.kind != "sft":
        raise ValueError(f"{folder} is not an SFT run but a {found.kind!r} run; name the folder of an SFT run.")
    for name in ("model", "template"):
        if (here := getattr(found, name)) != getattr(config, name):
            raise ValueError(
                f"The SFT run in {folder} has {name} = {here!r}, not {getattr(config, name)!r}; give the same."
            )
    if data != (now := splits_of(config).fingerprint):
        raise ValueError(
            f"The SFT run in {folder} was trained on data with fingerprint {data}, and {config.dataset} has "
            f"fingerprint {now}; train a new one."
        )
    return run


def _train(trainer: "Trainer", out: Path, probed: Sequence[Interaction] = ()) -> float:
    """Train in `out`, or go on from its last complete checkpoint. Returns the seconds of training so far."""
    with _without_bars(), _writing(out):
        return _train_on(trainer, out, probed)


def _train_on(trainer: "Trainer", out: Path, probed: Sequence[Interaction]) -> float:
    from transformers import TrainerState

    from .training import Listen, last_checkpoint

    checkpoint = last_checkpoint(out / "checkpoints")
    # What a kill or a full disk left half written: drafts, and checkpoints that will never be complete.
    for path in (*out.glob(".[0-9]*-*"), *out.glob("checkpoints/checkpoint-*")):
        if path != checkpoint:
            remove(path)
    step = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else -1
    for name in ("metrics", "evaluation"):
        # What came after the checkpoint is trained again, and written again.
        kept = [line for line in _lines(out / f"{name}.jsonl") if line["step"] <= step]
        with whole_file(out / f"{name}.jsonl") as draft:
            draft.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    recorder = Recorder(trainer, out, probed, step)
    trainer.add_callback(Listen(recorder.heard))
    if trainer.eval_dataset is not None and checkpoint is None:
        trainer.evaluate()
    if step < trainer.args.max_steps:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    else:  # the Trainer would take one step more
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = TrainerState.load_from_json(str(Path(str(checkpoint), "trainer_state.json")))
    if trainer.eval_dataset is not None and Run(out).evaluation.step.iloc[-1] != trainer.state.global_step:
        trainer.evaluate()
    return recorder.seconds()


class Recorder:
    """Writes what a trainer logs into the run's folder, as it comes."""

    def __init__(self, trainer: "Trainer", out: Path, probed: Sequence[Interaction], step: int):
        self.trainer: Any = trainer
        self.out, self.probed = out, probed
        lines = _lines(out / "metrics.jsonl")
        self.started = time.monotonic() - (lines[-1]["seconds"] if lines else 0.0)
        self.probe: list[pd.DataFrame] = []
        if probed and step >= 0:  # a resumed run
            # Not "up to the checkpoint": a kill may have come between a probe and its evaluation's line.
            probe, evaluated = Run(out).probe, [line["step"] for line in _lines(out / "evaluation.jsonl")]
            self.probe.append(probe[probe.step.isin(evaluated)])

    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return round(time.monotonic() - self.started, 3)

    def heard(self, step: int, logs: dict[str, float]) -> None:
        """Take one line of the Trainer's."""
        if "loss" in logs:
            names = ("loss", "pair_loss", "learning_rate", "push_boundary", "push_discriminative", "boundary_share")
            self._append("metrics", {"step": step, **{name: logs[name] for name in names if name in logs}})
        elif any(name.startswith("eval_") for name in logs):
            metrics = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
            if self.probed:
                self._record_probe(step)
            self._append("evaluation", {"step": step, **metrics})

    def _append(self, name: str, line: dict[str, float]) -> None:
        line["seconds"] = self.seconds()
        with (self.out / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _record_probe(self, step: int) -> None:
        policy = self.trainer.validation_report.scores[: len(self.probed)]
        reference = self.trainer.validation_reference[: len(self.probed)]
        counts = [len(user.candidates) for user in self.probed]
        there = np.arange(policy.shape[1]) < np.array(counts)[:, None]  # rows may differ in their number
        table = pd.DataFrame(
            {
                "step": step,
                "user": np.repeat([user.user for user in self.probed], counts),
                "candidate": np.nonzero(there)[1],
                "item": [item for user in self.probed for item in user.canonical],
                "reference": reference[there],
                "policy": policy[there],
            }
        )
        self.probe.append(table)
        with whole_file(self.out / "probe.parquet") as draft:
            pd.concat(self.probe).to_parquet(draft, index=False)


def _write_users(out: Path, splits: Splits, test: "Report") -> None:
    table = pd.DataFrame({"user": [user.user for user in splits.test], "rank": test.ranks})
    if test.reward_wins is not None:
        table["reward_win"] = test.reward_wins
    with whole_file(out / "users.parquet") as draft:
        table.to_parquet(draft, index=False)


def _save_model(trainer: Any, out: Path) -> None:
    from .models import save_model

    shutil.rmtree(out / "model", ignore_errors=True)
    with _without_bars(), _writing(out), whole_file(out / "model") as draft:
        save_model(trainer.model, trainer.processing_class, draft)


def _finish(out: Path, splits: Splits, summary: dict[str, Any]) -> Run:
    """Write the summary, which makes the run a finished one; then the checkpoints may go."""
    content = {
        "status": "done",
        "dataset_fingerprint": splits.fingerprint,
        **summary,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    write_json(out / "summary.json", content)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return Run(out)
