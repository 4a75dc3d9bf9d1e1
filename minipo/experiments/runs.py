"""A run as a folder: read it, and check that it is finished and still belongs to its data and model.

A preference run's folder holds `config.json`, `provenance.json` (what it is made from: the fingerprint of its data and
of the model that it starts from), `metrics.jsonl` (a line per logged step), `evaluation.jsonl` (a line per
evaluation on the validation users), `probe.parquet` (log-probs of every candidate of 64 fixed validation users at each
evaluation), `users.parquet` (each test user's rank), `model/` (safetensors that `from_pretrained` opens: the whole
model, or after preference training with LoRA the adapter, whose base is the SFT run's model) and, written last,
`summary.json`: a folder without it is unfinished. Checkpoints are in `checkpoints/` until then.

A run belongs to its data and to the model that it started from: if either has changed since, the run is neither resumed
nor returned nor evaluated.
"""

import hashlib
import json
import os
import platform
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from minipo.experiments.configuration import CONFIGS, Config, decided, make_config, splits_of
from minipo.experiments.datasets.splits import Splits
from minipo.experiments.fetch import sha256
from minipo.experiments.files import read, read_json, read_parquet
from minipo.folder import home

# transformers takes seconds to import, and a page that only reads runs does not need it: functions import it.
if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DATA = Path(__file__).parents[2] / "data"  # the repository's: minipo is installed from a checkout
PROBED_USERS = 64


def model_fingerprint(folder: Path) -> str:
    """16 hexadecimal digits of the SHA-256 of a model folder's files, and of its base's where that is a folder too.

    It depends on the content, not on where the files are or when they were written. Raises ValueError if an adapter's
    settings are not JSON, OSError if the folder cannot be read.
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
    """The SHA-256 of a file; version: its modification time, size and inode: if they change, it is read again."""
    return sha256(path)


@contextmanager
def without_bars() -> Generator[None]:
    """Hide transformers' progress bars for reading and writing files; the training bar is not one of them."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


UNFINISHED = "The run in {} is unfinished; start it again with the same settings to resume it."


@dataclass(frozen=True)
class Run:
    """A run's folder, read on demand."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if not (self.folder / "config.json").is_file():
            raise ValueError(f"{self.folder} is not a run, because it has no config.json; give the folder of one.")

    @property
    def config(self) -> Config:
        """The settings it was started with; those that did not exist then have their defaults."""
        content = read_json(self.folder / "config.json")
        if not isinstance(content, dict) or content.get("kind") not in CONFIGS:
            raise ValueError(f"{self.folder / 'config.json'} does not describe a run; remove its folder and run again.")
        kind = CONFIGS[content["kind"]]
        return make_config(kind, {field.name: field.default for field in fields(kind)} | content)

    @property
    def provenance(self) -> dict[str, Any]:
        """What it was made from, as recorded at its start: `dataset_fingerprint` and, unless it started from a bare
        model by name, `start`, the folder of the model that it started from, and `start_fingerprint`.

        For a finished run without this record, only the dataset's fingerprint, from its summary. ValueError for an
        unfinished run without one, or if the record is damaged.
        """
        path = self.folder / "provenance.json"
        if not path.is_file() and not self.done:
            raise ValueError(
                f"{path} is missing, so the data of this unfinished run are unknown; remove its folder and run again."
            )
        recorded = read_json(path, dict) if path.is_file() else self.summary
        if "dataset_fingerprint" not in recorded:
            raise ValueError(f"{path if path.is_file() else self.folder} is damaged; remove its folder and run again.")
        names = ("dataset_fingerprint", "start", "start_fingerprint")
        return {name: recorded[name] for name in names if name in recorded}

    def load_data(self) -> Splits:
        """The data it is trained on; ValueError in one sentence if they have changed since it started."""
        config = self.config
        splits, before = splits_of(config), self.provenance["dataset_fingerprint"]
        if splits.fingerprint != before:
            raise ValueError(
                f"The run in {self.folder} started on {config.dataset} with fingerprint {before}, which has "
                f"fingerprint {splits.fingerprint} now; put the data back as they were, or train on the new ones in "
                "another folder."
            )
        return splits

    def check_start(self, folder: Path | None = None) -> None:
        """Raises ValueError in one sentence if `folder` holds another model than the one that this run started from.

        By default, `folder` is the one that it started from; if that is gone, nothing is checked.
        """
        provenance = self.provenance
        before, folder = provenance.get("start_fingerprint"), folder or Path(provenance.get("start", ""))
        if before is not None and folder.is_dir() and (now := model_fingerprint(folder)) != before:
            raise ValueError(
                f"The run in {self.folder} started from a model with fingerprint {before}, and the one in {folder} has "
                f"fingerprint {now}; put that model back, or remove the run's folder and train it again."
            )

    @property
    def done(self) -> bool:
        """Whether it is finished."""
        return (self.folder / "summary.json").is_file()

    @property
    def summary(self) -> dict[str, Any]:
        """Its results; ValueError if it is unfinished."""
        if not self.done:
            raise ValueError(UNFINISHED.format(self.folder))
        return read_json(self.folder / "summary.json", dict)

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per logged step: step, loss, pair_loss, learning_rate, pushes by group, seconds."""
        return pd.DataFrame(_lines(self.folder / "metrics.jsonl"))

    @property
    def evaluation(self) -> pd.DataFrame:
        """One row per evaluation on validation users: step, hr@1, hr@5, ndcg@5, mrr, reward_win_rate, pair_loss."""
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

        Raises ValueError if the run is unfinished, or if the base of its adapter has changed since training.
        """
        from minipo.experiments.models import load_model

        if not self.done:
            raise ValueError(UNFINISHED.format(self.folder))
        if (self.folder / "model" / "adapter_config.json").is_file():
            self.check_start()
        with without_bars():
            return load_model((self.folder / "model").resolve())


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON-lines file; a last line cut off by a kill has no newline and is left out."""

    def complete(path: Path) -> list[dict[str, Any]]:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    return read(path, complete, "remove its folder and run again") if path.is_file() else []


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
    """The run with `config` in `out`, if it is finished; None if there is none yet, or an unfinished one.

    Raises ValueError if `out` holds anything else, or if settings, data or the model that it started from differ.
    """
    if (out / "config.json").is_file():
        run = Run(out)
        if run.config != (wanted := decided(config, run.config)):
            before, now = asdict(run.config), asdict(wanted)
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


def cache_folder(config: Config) -> Path:
    """The folder in minipo's cache for a run with these settings on this data by this version of minipo.

    It is named after the settings that differ from defaults, so that a run keeps its folder when a setting is added.
    """
    data = splits_of(config).fingerprint
    given = {name: value for name, value in asdict(config).items() if value != getattr(type(config), name)}
    content = json.dumps([version("minipo"), data, config.kind, given], sort_keys=True)
    return home() / "runs" / f"{config.kind}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
