"""Train a run into its folder, or resume it: supervised fine-tuning, and preference training from it."""

import math
import os
import shutil
import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd
from safetensors import SafetensorError

from minipo.arithmetic import autocast, training_device
from minipo.experiments import estimates
from minipo.experiments.configuration import (
    Config,
    PreferConfig,
    SFTConfig,
    check_negatives,
    decided,
    make_config,
    rows_at_once,
    splits_of,
    start_config,
)
from minipo.experiments.datasets.splits import Interaction, Splits
from minipo.experiments.files import locked, write_json
from minipo.experiments.precision import check_precision, decide
from minipo.experiments.recorder import Recorder
from minipo.experiments.runs import (
    DATA,
    PROBED_USERS,
    Run,
    cache_folder,
    finished,
    list_runs,
    model_fingerprint,
    versions,
    without_bars,
)
from minipo.folder import home, remove, whole_file
from minipo.names import first_line
from minipo.prompts import TEMPLATES
from minipo.threads import Threads

# transformers takes seconds to import, and a page that only reads runs does not need it: functions import it.
if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

    from minipo.evaluation import Report
    from minipo.trainers import PreferenceTrainer


def _begin(out: Path, config: Config, splits: Splits, start: Path | None) -> None:
    """Record what a new run is made from, or check that a resumed one starts from the same model.

    start: the folder of the model that it starts from; None for a bare model by name.
    """
    if (out / "config.json").is_file():  # `finished` has compared its settings and data
        return Run(out).check_start(start)
    provenance = {"dataset_fingerprint": splits.fingerprint}
    if start is not None:
        provenance |= {"start": os.path.abspath(start), "start_fingerprint": model_fingerprint(start)}
    write_json(out / "provenance.json", provenance)
    write_json(out / "config.json", asdict(config))  # last, because it makes the folder a run


def _announce(config: Config, splits: Splits) -> None:
    """Say on standard error how long the run will take."""
    speeds = estimates.speeds()
    if (seconds := estimates.seconds(config, estimates.Data.of(splits), speeds[max(speeds)])) is not None:
        print(f"minipo: about {estimates.duration(seconds)} on this machine", file=sys.stderr)


@contextmanager
def _writing(out: Path) -> Generator[None]:
    """An OSError in one sentence if `out` cannot be written: safetensors and torch raise errors of their own."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's writer of archives
            raise
        raise OSError(
            f"The run in {out} could not be written ({first_line(error)}); if the disk is full, free some "
            "space, and start the run again to resume it."
        ) from error


def sft(out: Path | str | None = None, *, progress: bool = True, **settings: Any) -> Run:
    """Supervised fine-tuning into the folder `out`; `settings` are those of `SFTConfig`.

    A finished run with the same settings is returned as it is; an interrupted one resumes from its last complete
    checkpoint, with the same result. Without `out`, the folder is in minipo's cache, named after the settings.
    Raises ValueError for an invalid setting, or if `out` holds anything else, including a run on the data before they
    changed; OSError if the disk is full.
    """
    config = make_config(SFTConfig, settings)
    out = cache_folder(config) if out is None else Path(out)
    with locked(out):
        return finished(out, config) or _sft(config, out, progress)


def _arguments(config: Config, folder: Path, steps: int, **others: Any) -> "TrainingArguments":
    """`training_arguments` with a run's settings, its precision decided, where `others` do not say otherwise."""
    from minipo.experiments.arguments import training_arguments

    assert config.precision != "auto"
    settings: dict[str, Any] = {
        "batch_size": config.batch_size,
        "accumulation": config.accumulation,
        "learning_rate": config.learning_rate,
        "seed": config.seed,
        "bf16": config.precision == "bfloat16",
        "fp16": config.precision == "float16",
    }
    return training_arguments(folder, steps=steps, **(settings | others))


def _sft(config: SFTConfig, out: Path, progress: bool) -> Run:
    from minipo.experiments.models import POCKET, add_lora, load_model, round_adapter
    from minipo.experiments.users import evaluate
    from minipo.trainers import SFTTrainer

    check_precision(config.precision)
    threads = Threads()
    splits = splits_of(config)
    whole_line = config.model in POCKET and config.rows == "target" if config.whole_line is None else config.whole_line
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
    train, shortened, batch = _sft_rows(config, model, tokenizer, splits)
    steps = config.steps or math.ceil(config.epochs * len(splits.train) / config.batch_size)
    threads.adapt(model)
    config = decide(config, out, model, progress)
    if progress:
        _announce(config, splits)
    _begin(out, config, splits, start)
    trainer = SFTTrainer(
        model,
        _arguments(config, out / "checkpoints", steps, **batch, progress=progress),
        train,
        processing_class=tokenizer,
        whole_line=whole_line,
    )
    seconds, rows = _train(trainer, _ready(trainer, out, threads)), trainer.train_dataset
    only_adapter = config.tuning == "lora" and config.model not in POCKET  # a pocket model exists nowhere else
    if only_adapter:
        round_adapter(model)  # and what is evaluated is what is saved
        _save_model(trainer, out)
    if config.tuning == "lora":  # what starts from here, above all the reference, is one whole model
        trainer.model = model = model.merge_and_unload()  # pyrefly: ignore[not-callable]
    if not only_adapter:
        _save_model(trainer, out)
    with autocast(model.device, config.precision):
        test, validation = (
            evaluate(model, tokenizer, users, template=config.template, batch_size=rows_at_once(config))
            for users in (splits.test, splits.validation)
        )
    summary = {
        "train_loss": float(Run(out).metrics[lambda table: table.step > 0.9 * steps].loss.mean()),
        "steps": steps,
        **{f"val_{name}": value for name, value in validation.metrics.items()},
        **test.metrics,
        "shortened_prompts": shortened,
        "tokens": round(rows.tokens * steps * config.batch_size / int(rows.counts.sum())),  # read in training
        "seconds": seconds,
    }
    return _finish(out, splits, test, summary)


def prefer(out: Path | str | None = None, *, progress: bool = True, **settings: Any) -> Run:
    """Preference training from an SFT run into the folder `out`; `settings` are those of `PreferConfig`.

    The reference is the SFT model: its log-probs are computed once, before the first step, and kept in the cache. A
    finished run with the same settings is returned as it is; an interrupted one resumes from its last complete
    checkpoint, with the same result. Without `out`, the folder is in minipo's cache, named after the settings.
    Raises ValueError for an invalid setting, if `sft` is not a finished SFT run on the same dataset, or if `out` holds
    anything else, including a run on the data or from the SFT model before they changed; OSError if the disk is full.
    """
    config = make_config(PreferConfig, settings)
    out = cache_folder(config) if out is None else Path(out)
    with locked(out):
        return finished(out, config) or _prefer(config, out, progress)


def _prefer(config: PreferConfig, out: Path, progress: bool) -> Run:
    check_precision(config.precision)
    threads = Threads()
    splits = splits_of(config)
    check_negatives(splits, config.negatives)
    start = sft_run(config, progress=progress)

    from minipo.evaluation import report

    model, tokenizer, rows, shortened = _started(config, start, splits)
    threads.adapt(model)
    config = decide(config, out, model, progress)
    if progress:
        _announce(config, splits)
    _begin(out, config, splits, start.folder / "model")
    trainer = _preference_trainer(config, start, model, tokenizer, rows, out / "checkpoints", progress)
    recorder = _ready(trainer, out, threads, splits.validation[: config.validation_users][:PROBED_USERS])
    ranked = trainer.read(rows["test"])
    test_reference = trainer.reference_logps(ranked)
    seconds = _train(trainer, recorder)
    _save_model(trainer, out)
    test = report(trainer.score(ranked), test_reference)
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
        "shortened_prompts": shortened,
        "seconds": seconds,
    }
    return _finish(out, splits, test, summary)


def keep_reference(**settings: Any) -> None:
    """Compute the reference's log-probs for all users, which runs with these settings, those of `PreferConfig`, then
    find in the cache. Raises what `prefer` raises."""
    config = make_config(PreferConfig, settings)
    splits, start = splits_of(config), sft_run(config, progress=False)
    model, tokenizer, rows, _ = _started(config, start, splits)
    with TemporaryDirectory() as folder:
        config = decide(config, Path(folder), model, progress=False)
        trainer = _preference_trainer(config, start, model, tokenizer, rows, Path(folder), progress=False)
        for split in ("train", "test"):  # validation users' are computed already
            trainer.reference_logps(rows[split])


def _started(config: PreferConfig, start: Run, splits: Splits) -> tuple[Any, Any, dict[str, Any], int]:
    """The model that preference training starts from, its tokenizer, the rows of all splits as it reads them, and how
    many prompts were shortened."""
    from minipo.experiments.models import POCKET
    from minipo.experiments.users import token_rows_of

    model, tokenizer = start.load_model()
    if config.model in POCKET and training_device().type == "cpu" and config.precision != "bfloat16":
        # For heads as narrow as these, SDPA's kernel for CPUs takes as long on two threads as on one. In bfloat16 it
        # rounds otherwise, and `evaluate` would not find what the run found.
        model.set_attn_implementation("eager")
    fingerprint = model_fingerprint(start.folder / "model")
    return model, tokenizer, *token_rows_of(model, tokenizer, splits, config.template, fingerprint)


def _preference_trainer(
    config: PreferConfig, start: Run, model: Any, tokenizer: Any, rows: dict[str, Any], folder: Path, progress: bool
) -> "PreferenceTrainer":
    """The trainer of a run from `start`, with all that its settings say."""
    # Inside an SFT run of the cache, whose data may be a user's own, so that removing the run removes these too.
    cache = (start.folder if start.folder.is_relative_to(home()) else home()) / "reference"
    validation = rows["validation"].first(config.validation_users)
    return preference_trainer(
        config, model, tokenizer, rows["train"], validation, folder, cache, config.loss(), config.dynamic_po(),
        evaluate_every=config.evaluate_every, progress=progress,
    )  # fmt: skip


def preference_trainer(
    config: PreferConfig, model: Any, tokenizer: Any, train: Any, validation: Any, folder: Path, cache: Path,
    loss: Any, dynamic: Any, **others: Any,
) -> "PreferenceTrainer":  # fmt: skip
    """A trainer with a run's settings, which starts from `model` (with new adapters for "lora").

    train, validation: rows of `users.preference_rows` or `users.token_rows_of`; validation may be None. folder: of
    checkpoints. cache: of the reference's log-probs. loss, dynamic: see `PreferenceTrainer`. others: of
    `training_arguments`.
    """
    from minipo.experiments.models import add_lora
    from minipo.trainers import PreferenceTrainer

    if config.tuning == "lora":
        model = add_lora(model, config.rank, seed=config.seed)
    arguments = _arguments(config, folder, config.steps, per_device_eval_batch_size=rows_at_once(config), **others)
    return PreferenceTrainer(
        model, arguments, train, validation, processing_class=tokenizer, objective=loss,
        negatives=config.negatives, beta=config.beta, dynamic=dynamic, reference_cache=cache,
    )  # fmt: skip


def _sft_rows(config: SFTConfig, model: Any, tokenizer: Any, splits: Splits) -> tuple[Any, int, dict[str, int]]:
    """The rows that SFT learns, how many prompts were shortened, and the rows and micro-batches of a step, which learns
    batch_size chosen items either way."""
    from minipo.compatibility.architectures import context_of
    from minipo.experiments.users import rows_of, sequence_rows
    from minipo.sequences import TARGETS

    if config.rows == "target":
        if not TEMPLATES[config.template].continues and not config.model.startswith("pocket-"):
            warnings.warn(
                f"The template {config.template!r} does not end in the history, so SFT reads a row per chosen item: "
                "about ten times the tokens of rows of sequences, which 'line' and 'liked' allow.",
                stacklevel=2,
            )
        rows, shortened = rows_of(model, tokenizer, splits, config.template)
        return rows["train"], shortened, {"batch_size": config.batch_size, "accumulation": config.accumulation}
    _, shortened = rows_of(model, tokenizer, splits, config.template, ("validation", "test"))
    batch = config.batch_size  # in as many rows of 16 or more as divide it
    targets = next(number for number in range(min(TARGETS, batch), batch + 1) if batch % number == 0)
    rows = sequence_rows(splits.train, config.template, tokenizer, context_of(model), targets)
    count = batch // targets  # a micro-batch has at least one row, which takes the memory of two prompts
    return rows, shortened, {"batch_size": count, "accumulation": math.gcd(count, config.accumulation)}


def sft_run(config: PreferConfig | SFTConfig, *, progress: bool = True) -> Run:
    """The SFT run that a run with `config` starts from: the folder it names, or the one shipped in `data/sft`, if its
    data are unchanged, or one in the cache, trained now if need be.

    Raises ValueError if the folder is not a finished SFT run of the same model on the same data and prompts, or if the
    run starts from a bare model.
    """
    if isinstance(config, PreferConfig) and config.sft is not None:
        return sft_folder(Path(config.sft), config)
    wanted = start_config(config)
    if wanted is None:
        raise ValueError("This run starts from a bare model, not from an SFT run; give start_epochs above 0.")
    return shipped(wanted) or sft(progress=progress, **asdict(wanted))


def shipped(wanted: SFTConfig) -> Run | None:
    """The run in `data/sft` with these settings, if its data are unchanged."""
    data = splits_of(wanted).fingerprint
    for run in list_runs(DATA / "sft"):
        if run.config == decided(wanted, run.config) and run.summary.get("dataset_fingerprint") == data:
            return run
    return None


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


def _ready(trainer: "Trainer", out: Path, threads: Threads, probed: Sequence[Interaction] = ()) -> Recorder:
    """Prepare `trainer` to train in `out`, or to resume there; a new run's model is evaluated."""
    from minipo.experiments.arguments import Listen, SaveInTime, last_checkpoint

    with _writing(out):
        checkpoint = last_checkpoint(out / "checkpoints")
        # What a kill or a full disk left half written: drafts, and checkpoints that will never be complete.
        for path in (*out.glob(".[0-9]*-*"), *out.glob("checkpoints/checkpoint-*")):
            if path != checkpoint:
                remove(path)
        recorder = Recorder(trainer, out, probed, checkpoint)

        def heard(step: int, logs: dict[str, float]) -> None:
            recorder.heard(step, logs)
            threads.adapt(trainer.model)

        trainer.add_callback(Listen(heard))
        trainer.add_callback(SaveInTime())
        if trainer.eval_dataset is not None and checkpoint is None:
            trainer.evaluate()
        return recorder


def _train(trainer: "Trainer", recorder: Recorder) -> float:
    """Train, from the recorder's checkpoint on if there is one. Returns the seconds of training so far."""
    from transformers import TrainerState

    with without_bars(), _writing(recorder.out):
        checkpoint = recorder.checkpoint
        if recorder.step < trainer.args.max_steps:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        else:  # the Trainer would take one more step
            trainer._load_from_checkpoint(str(checkpoint))
            trainer.state = TrainerState.load_from_json(str(Path(str(checkpoint), "trainer_state.json")))
        if trainer.eval_dataset is not None and Run(recorder.out).evaluation.step.iloc[-1] != trainer.state.global_step:
            trainer.evaluate()
        return recorder.seconds()


def _save_model(trainer: Any, out: Path) -> None:
    from minipo.experiments.models import save_model

    shutil.rmtree(out / "model", ignore_errors=True)
    with without_bars(), _writing(out), whole_file(out / "model") as draft:
        save_model(trainer.model, trainer.processing_class, draft)


def _finish(out: Path, splits: Splits, test: "Report", summary: dict[str, Any]) -> Run:
    """Write every test user's result and the summary, which marks the run as finished, then remove the checkpoints."""
    users = pd.DataFrame({"user": [user.user for user in splits.test], "rank": test.ranks})
    if test.reward_wins is not None:
        users["reward_win"] = test.reward_wins
    with whole_file(out / "users.parquet") as draft:
        users.to_parquet(draft, index=False)
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
