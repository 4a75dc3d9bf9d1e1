"""A run as a folder: train one, resume it, read it.

A preference run's folder holds `config.json`, `metrics.jsonl` (a line per logged step), `evaluation.jsonl` (a line per
evaluation on the validation users), `probe.parquet` (log-probs of every candidate of 64 fixed validation users at each
evaluation), `users.parquet` (each test user's rank), `model/` (safetensors that `from_pretrained` opens: the whole
model, or after preference training through LoRA the adapter, whose base is the SFT run's model) and, written last,
`summary.json`: a folder without it is unfinished. Checkpoints live in `checkpoints/` until then.
"""

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pandas as pd
from safetensors import SafetensorError

from .datasets import DATASETS, Interaction, Splits, load_dataset
from .dynamic import DynamicPO, SelectionRule, hardest, random
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


def _check_types(config: Any) -> None:
    if config.kind != type(config).kind:
        raise ValueError(f"kind must be {type(config).kind!r} here, not {config.kind!r}; leave it out.")
    for field in fields(config):
        value, kind = getattr(config, field.name), cast(type, field.type)
        allowed = (int, float) if kind is float else kind
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind in (int, float)):
            raise ValueError(f"{field.name} must be of type {getattr(kind, '__name__', kind)}, not {value!r}.")
        if kind is float:  # 1 and 1.0 are one setting, and must have one folder in the cache
            object.__setattr__(config, field.name, float(cast(float, value)))


def _check_numbers(config: Any, *positive: str) -> None:
    for name in positive:
        value = getattr(config, name)
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, not {value:g}.")
    for name in ("seed", "sft_seed", "dataset_seed", "start_epochs"):
        if getattr(config, name, 0) < 0:
            raise ValueError(f"{name} must not be negative, and it is {getattr(config, name)}.")
    if config.batch_size % config.accumulation:
        raise ValueError(
            f"accumulation {config.accumulation} does not divide the batch of {config.batch_size} users; "
            "choose a divisor."
        )


@dataclass(frozen=True)
class SFTConfig:
    """One SFT run.

    model: a name, or a folder that `from_pretrained` opens. start_epochs: above 0, the run goes on from the SFT run of
    that many epochs under seed 0 ("more SFT"). epochs or, if given, steps say how long; tuning is "full" or "lora";
    whole_line says whether history and answer are learnt or the answer alone, and None stands for "as the model is:
    pocket models the whole line, pretrained ones the answer". batch_size: users in an optimizer step, `accumulation`
    micro-batches of them.
    Raises ValueError on a setting that does not fit.
    """

    kind: str = "sft"
    dataset: str = "catalog"
    dataset_seed: int = 0
    model: str = "pocket-gpt2"
    tuning: str = "full"
    start_epochs: int = 0
    epochs: int = 40
    steps: int | None = None
    learning_rate: float = 2e-3
    batch_size: int = 32
    accumulation: int = 1
    seed: int = 0
    template: str = "line"
    whole_line: bool | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        lookup("dataset", self.dataset, DATASETS)
        lookup("tuning", self.tuning, TUNING)
        lookup("template", self.template, TEMPLATES)
        steps = ["steps"] if self.steps is not None else []
        _check_numbers(self, "epochs", "learning_rate", "batch_size", "accumulation", *steps)


@dataclass(frozen=True)
class PreferConfig:
    """One preference run, in the words of DESIGN section 5.

    sft: the folder of a finished SFT run, or None for the one that `sft_run` finds or trains for these settings.
    negatives: K, that many of each user's. dynamic, adjust_beta: "on" or "off"; select: "on", "off", or a control,
    "random" or "hardest". With dynamic off, select and adjust_beta are off too. batch_size: users in an optimizer step,
    `accumulation` micro-batches of them. The defaults of sft_epochs and learning_rate are what `data/record.py` chose
    for the catalogue on validation users.
    Raises ValueError on a setting that does not fit.
    """

    kind: str = "prefer"
    dataset: str = "catalog"
    dataset_seed: int = 0
    model: str = "pocket-gpt2"
    sft: str | None = None
    sft_epochs: int = 40
    sft_seed: int = 0
    tuning: str = "full"
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
    template: str = "line"

    def __post_init__(self) -> None:
        _check_types(self)
        lookup("dataset", self.dataset, DATASETS)
        lookup("objective", self.objective, OBJECTIVES)
        lookup("tuning", self.tuning, TUNING)
        lookup("template", self.template, TEMPLATES)
        lookup("setting of dynamic", self.dynamic, SWITCH)
        lookup("setting of select", self.select, SELECT)
        lookup("setting of adjust_beta", self.adjust_beta, SWITCH)
        _check_numbers(
            self, "beta", "learning_rate", "steps", "batch_size", "accumulation", "evaluate_every", "clusters",
            "sft_epochs",
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
CONFIGS: dict[str, type[Config]] = {"sft": SFTConfig, "prefer": PreferConfig}
ConfigType = TypeVar("ConfigType", bound=Config)


def make_config(kind: type[ConfigType], settings: dict[str, Any]) -> ConfigType:
    """`settings` as a configuration; ValueError names the closest setting if one is unknown."""
    known = {field.name: field for field in fields(kind)}
    plain: dict[str, Any] = {}
    for name, value in settings.items():
        lookup("setting", name, known)
        # What JSON can hold: a folder as its path, a number out of numpy as Python's own.
        plain[name] = (
            str(value) if isinstance(value, Path) else value.item() if isinstance(value, np.generic) else value
        )
    return kind(**plain)


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
        """The settings it was started with."""
        content = read_json(self.folder / "config.json")
        if not isinstance(content, dict) or content.get("kind") not in CONFIGS:
            raise ValueError(f"{self.folder / 'config.json'} does not describe a run; remove its folder and run again.")
        return make_config(CONFIGS[content["kind"]], content)

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
        """The trained model, a LoRA adapter merged into it, and its tokenizer."""
        from .models import load_model

        if not self.done:
            raise ValueError(UNFINISHED.format(self.folder))
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
    packages = ("minipo", "torch", "transformers", "peft", "numpy")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _finished(out: Path, config: Config) -> Run | None:
    """The run with `config` in `out`, if it is finished there. Raises ValueError if something else is in the way."""
    if (out / "config.json").is_file():
        found = Run(out).config
        if found != config:
            before, now = asdict(found), asdict(config)
            name = next(name for name in now if before.get(name) != now[name])
            raise ValueError(
                f"{out} holds a run with {name} = {before.get(name)!r}, not {now[name]!r}; choose another folder."
            )
        return Run(out) if Run(out).done else None
    # Hidden files aside: a kill may leave the draft of a config.json.
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        raise ValueError(f"{out} exists and is not a run; choose another folder.")
    return None


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
    Raises ValueError on a setting that does not fit, or if `out` holds something else; OSError if the disk is full.
    """
    config = make_config(SFTConfig, settings)
    out = cache_folder(config) if out is None else Path(out)
    with alone(out):
        return _finished(out, config) or _sft(config, out, progress)


def _sft(config: SFTConfig, out: Path, progress: bool) -> Run:
    from .evaluation import evaluate
    from .models import POCKET, add_lora, load_model
    from .training import SFTTrainer, training_arguments

    splits = load_dataset(config.dataset, config.dataset_seed)
    whole_line = config.model in POCKET if config.whole_line is None else config.whole_line
    model: Any
    if config.start_epochs:
        model, tokenizer = sft_run(config, progress=progress).load_model()
    else:
        model, tokenizer = load_model(config.model, items=splits.items, seed=config.seed)
    if config.tuning == "lora":
        model = add_lora(model, seed=config.seed)
    steps = config.steps or -(-config.epochs * len(splits.train) // config.batch_size)
    write_json(out / "config.json", asdict(config))
    trainer = SFTTrainer(
        model,
        tokenizer,
        splits.train,
        training_arguments(
            out / "checkpoints",
            steps=steps,
            batch_size=config.batch_size,
            accumulation=config.accumulation,
            learning_rate=config.learning_rate,
            seed=config.seed,
            progress=progress,
        ),
        whole_line=whole_line,
        seed=config.seed,
        template=config.template,
    )
    seconds = _train(trainer, out)
    if config.tuning == "lora":  # what starts from here, the reference above all, is then one whole model
        trainer.model = model = model.merge_and_unload()
    logs = Run(out).metrics
    test = evaluate(model, tokenizer, splits.test, template=config.template)
    _write_users(out, splits, test)
    summary = {
        "train_loss": float(logs[logs.step > 0.9 * steps].loss.mean()),
        "steps": steps,
        **{
            f"val_{name}": value
            for name, value in evaluate(model, tokenizer, splits.validation, template=config.template).metrics.items()
        },
        **test.metrics,
        "seconds": seconds,
    }
    return _finish(trainer, out, splits, summary)


def prefer(out: Path | str | None = None, *, progress: bool = True, **settings: Any) -> Run:
    """Preference training from an SFT run into the folder `out`; `settings` are those of `PreferConfig`.

    The reference is the SFT model: its log-probs are computed once, before the first step, and kept in the cache. A
    finished run with the same settings is returned as it is; one that was cut off resumes from its last complete
    checkpoint, to the same end. Without `out`, the folder is one of minipo's own, named after the settings.
    Raises ValueError on a setting that does not fit, if `sft` is not a finished SFT run on the same dataset, or if
    `out` holds something else; OSError if the disk is full.
    """
    config = make_config(PreferConfig, settings)
    splits = load_dataset(config.dataset, config.dataset_seed)
    available = min(len(user.negatives) for user in splits.train)
    if config.negatives > available:
        raise ValueError(f"negatives must be at most {available}, what every user has, not {config.negatives}.")
    out = cache_folder(config) if out is None else Path(out)
    with alone(out):
        return _finished(out, config) or _prefer(config, splits, out, progress)


def _prefer(config: PreferConfig, splits: Splits, out: Path, progress: bool) -> Run:
    start = sft_run(config, progress=progress)

    from .evaluation import evaluate
    from .models import add_lora
    from .training import PreferenceTrainer, training_arguments

    arguments = training_arguments(
        out / "checkpoints",
        steps=config.steps,
        batch_size=config.batch_size,
        accumulation=config.accumulation,
        learning_rate=config.learning_rate,
        seed=config.seed,
        evaluate_every=config.evaluate_every,
        progress=progress,
    )
    model: Any
    model, tokenizer = start.load_model()
    model.to(arguments.device)  # before the reference, so that policy and reference come from the same arithmetic
    reference = {
        split: reference_logps(start, model, tokenizer, splits, split, config.template)
        for split in ("train", "validation", "test")
    }
    if config.tuning == "lora":
        model = add_lora(model, seed=config.seed)
    write_json(out / "config.json", asdict(config))
    trainer = PreferenceTrainer(
        model,
        tokenizer,
        splits.train,
        arguments,
        objective=config.objective,
        negatives=config.negatives,
        reference=reference["train"],
        beta=config.beta,
        dynamic=config.dynamic_po(),
        seed=config.seed,
        template=config.template,
        validation=splits.validation,
        validation_reference=reference["validation"],
    )
    seconds = _train(trainer, out, splits.validation[:PROBED_USERS])
    test = evaluate(model, tokenizer, splits.test, reference["test"], config.template)
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
        "seconds": seconds,
    }
    return _finish(trainer, out, splits, summary)


def cache_folder(config: Config) -> Path:
    """The folder in minipo's cache for a run with these settings on this data by this version of minipo."""
    data = load_dataset(config.dataset, config.dataset_seed).fingerprint
    content = json.dumps([version("minipo"), data, asdict(config)], sort_keys=True)
    return home() / "runs" / f"{config.kind}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def start_config(config: Config) -> SFTConfig | None:
    """The settings of the SFT run that a run with `config` starts from; None for a folder, or a bare model."""
    if isinstance(config, PreferConfig):
        epochs, seed = config.sft_epochs if config.sft is None else 0, config.sft_seed
    else:
        epochs, seed = config.start_epochs, 0
    if not epochs:
        return None
    return SFTConfig(
        dataset=config.dataset,
        dataset_seed=config.dataset_seed,
        model=config.model,
        epochs=epochs,
        seed=seed,
        template=config.template,
    )


def sft_run(config: PreferConfig | SFTConfig, *, progress: bool = True) -> Run:
    """The SFT run that a run with `config` starts from: the folder it names, or the one shipped in `data/sft`, or one
    in the cache, trained now if need be.

    Raises ValueError if the folder is no finished SFT run on the same data, or if the run starts from a bare model.
    """
    splits = load_dataset(config.dataset, config.dataset_seed)
    if isinstance(config, PreferConfig) and config.sft is not None:
        return sft_folder(Path(config.sft), splits)
    wanted = start_config(config)
    if wanted is None:
        raise ValueError("This run starts from a bare model, not from an SFT run; give start_epochs above 0.")
    for run in list_runs(DATA / "sft"):
        if run.config == wanted:
            return sft_folder(run.folder, splits)
    return sft(progress=progress, **asdict(wanted))


def sft_folder(folder: Path, splits: Splits) -> Run:
    """`folder` as a finished SFT run on `splits`; ValueError if it is anything else."""
    try:
        run = Run(folder)
        kind, summary = run.config.kind, run.summary
    except ValueError as error:
        raise ValueError(f"{folder} is not a finished SFT run: {error}") from None
    if kind != "sft":
        raise ValueError(f"{folder} is not an SFT run but a {kind!r} run; name the folder of an SFT run.")
    if summary.get("dataset_fingerprint") != splits.fingerprint:
        raise ValueError(
            f"The SFT run in {folder} was trained on other data than this {splits.name!r}; train a new one."
        )
    return run


def reference_logps(
    start: Run,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    splits: Splits,
    split: str,
    template: str,
) -> np.ndarray:
    """The SFT run's log-probs (users, candidates) of a split's candidates, chosen first: from the cache, or computed.

    `model` must be the SFT model as it was saved. The cache's key is the hash of its weights, so no two models share an
    entry; a damaged entry is computed again.
    """
    from .evaluation import score

    digest = hashlib.sha256("|".join((splits.fingerprint, split, template)).encode())
    for weights in sorted((start.folder / "model").glob("*.safetensors")):
        digest.update(weights.read_bytes())
    path = home() / "reference" / f"{digest.hexdigest()[:24]}.npy"
    try:
        return np.load(path)
    except (FileNotFoundError, ValueError, EOFError):
        pass
    interactions: Sequence[Interaction] = getattr(splits, split)
    scores = score(model, tokenizer, interactions, template)
    with whole_file(path) as draft:
        np.save(draft, scores)
    return scores


def _train(trainer: "Trainer", out: Path, probed: Sequence[Interaction] = ()) -> float:
    """Train in `out`, or go on from its last complete checkpoint. Returns the seconds of training so far."""
    with _without_bars(), _writing(out):
        return _train_on(trainer, out, probed)


def _train_on(trainer: "Trainer", out: Path, probed: Sequence[Interaction]) -> float:
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
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
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
        columns = policy.shape[1]
        table = pd.DataFrame(
            {
                "step": step,
                "user": np.repeat([user.user for user in self.probed], columns),
                "candidate": np.tile(np.arange(columns), len(self.probed)),
                "item": [item for user in self.probed for item in user.canonical],
                "reference": reference.ravel(),
                "policy": policy.ravel(),
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


def _finish(trainer: "Trainer", out: Path, splits: Splits, summary: dict[str, Any]) -> Run:
    """Save the model, then the summary, which makes the run a finished one; then the checkpoints may go."""
    shutil.rmtree(out / "model", ignore_errors=True)
    with _without_bars(), _writing(out), whole_file(out / "model") as draft:
        trainer.save_model(str(draft))
        (draft / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing here reads
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
