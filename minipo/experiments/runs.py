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
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from minipo.experiments.datasets.splits import Splits
from minipo.experiments.fetch import sha256
from minipo.experiments.files import home, read_json, read_parquet

# transformers takes seconds to import, and a page that only reads runs does without: it is imported where runs are
# trained.
if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minipo.experiments.configuration import CONFIGS, Config, make_config, splits_of

DATA = Path(__file__).parents[2] / "data"  # the repository's: minipo is installed from a checkout
PROBED_USERS = 64


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


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers' own bars for every file it reads or writes stay away; the training's bar is none of them."""
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
        from minipo.experiments.models import load_model

        if not self.done:
            raise ValueError(UNFINISHED.format(self.folder))
        if (self.folder / "model" / "adapter_config.json").is_file():
            self.check_start()
        with without_bars():
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


def cache_folder(config: Config) -> Path:
    """The folder in minipo's cache for a run with these settings on this data by this version of minipo.

    It is named after the settings that are not as by default, so that a run keeps its folder when a setting is added.
    """
    data = splits_of(config).fingerprint
    defaults = {field.name: field.default for field in fields(config)}
    given = {name: value for name, value in asdict(config).items() if value != defaults[name]}
    content = json.dumps([version("minipo"), data, config.kind, given], sort_keys=True)
    return home() / "runs" / f"{config.kind}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
