"""The reference's log-probs: computed once by the model as passed in, cached, and kept in checkpoints."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from minipo.evaluation import Scores
from minipo.folder import whole_file
from minipo.rows import TokenRows

Batches = Iterable[tuple[NDArray[np.int64], Scores]]

REFERENCE = "reference.npz"  # the reference log-probs in a checkpoint
OTHER_MODEL = 1.0  # nats: the same model in bfloat16 on another processor differs by less
SAVE_EVERY = 60.0  # seconds between saves of the reference log-probs, so that a kill costs a minute


class Reference:
    """The reference's log-probs of rows, (rows, width): NaN where not computed yet, −inf where a row has no answer.

    score: yields (rows, their log-probs) for the rows asked for, a few at a time, by the model as passed in.
    cache: a folder that keeps them for other runs, or None. model, arithmetic: what they depend on besides rows.
    Another process that needs the same ones waits for them, and an interrupted one resumes where it was.
    """

    def __init__(
        self,
        score: Callable[[TokenRows, NDArray[np.int64]], Batches],
        cache: Path | None,
        model: bytes,
        arithmetic: bytes,
    ):
        self.score, self.cache, self.model, self.arithmetic = score, cache, model, arithmetic

    def logps(self, rows: TokenRows, which: NDArray[np.int64]) -> Scores:
        """Log-probs of at least the rows in `which`, from the cache or computed."""
        empty = np.full((len(rows), rows.width), np.nan, np.float32)
        if self.cache is None:
            return self._fill(empty, rows, which, None)
        name = hashlib.sha256(self.model + rows.fingerprint + self.arithmetic).hexdigest()[:24]
        path = Path(self.cache, f"{name}.npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            known = empty
            with suppress(FileNotFoundError, ValueError, EOFError):  # a damaged file is computed again
                known = np.load(path)
            alike = known.shape == empty.shape and known.dtype == empty.dtype
            return self._fill(known if alike else empty, rows, which, path)

    def _fill(self, known: Scores, rows: TokenRows, which: NDArray[np.int64], path: Path | None) -> Scores:
        """Compute the rows of `which` that are not known yet, saving from time to time and at the end."""
        missing, saved = which[np.isnan(known[which]).any(1)], time.monotonic()
        for batch, logps in self.score(rows, missing):
            known[batch] = logps
            if path is not None and time.monotonic() - saved > SAVE_EVERY:
                _save(path, known)
                saved = time.monotonic()
        if len(missing) and path is not None:
            _save(path, known)
        return known


def _save(path: Path, logps: Scores) -> None:
    with whole_file(path) as draft:
        np.save(draft, logps)


def save_reference(checkpoint: str, **parts: tuple[TokenRows, Scores]) -> None:
    """Save log-probs in a checkpoint, with fingerprints of their rows: an adapter may start differently each time."""
    content: dict[str, Any] = {name: logps for name, (_, logps) in parts.items()}
    content |= {f"{name}_rows": np.frombuffer(rows.fingerprint, np.uint8) for name, (rows, _) in parts.items()}
    np.savez(Path(checkpoint, REFERENCE), **content)


def saved_reference(checkpoint: str, adapted: bool, **parts: tuple[TokenRows, Scores]) -> dict[str, Scores]:
    """The log-probs in a checkpoint, bit for bit, and those in `parts` for rows that it lacks.

    adapted: whether the model has been trained already, so that its log-probs may differ from the reference's.
    Raises ValueError if the checkpoint belongs to other rows or another model.
    """
    with np.load(Path(checkpoint, REFERENCE)) as archive:
        saved = {name: archive[name] for name in archive.files}
    found = {}
    for name, (rows, here) in parts.items():
        if name not in saved:
            found[name] = here
            continue
        if not np.array_equal(np.frombuffer(rows.fingerprint, np.uint8), saved[f"{name}_rows"]):
            raise ValueError(f"{checkpoint} was written while training on other {name} rows; resume it with those.")
        both = np.isfinite(here) & np.isfinite(saved[name])
        difference = np.abs(here[both] - saved[name][both]).max(initial=0)
        if difference > OTHER_MODEL and not adapted:
            raise ValueError(
                f"{checkpoint} belongs to another model: log-probs of the same answer differ by {difference:.3g} nats; "
                "resume it from the model that it started from."
            )
        found[name] = np.where(np.isnan(saved[name]), here, saved[name])
    return found


def fingerprint(model: torch.nn.Module) -> bytes:
    """A hash of what `model` computes: its configuration and weights. A LoRA adapter that is still the identity (B = 0)
    does not change it."""
    weights: dict[str, Tensor] = model.state_dict()
    idle = {name for name, weight in weights.items() if ".lora_B." in name and not weight.any()}
    idle |= {name.replace(".lora_B.", ".lora_A.") for name in idle}
    configuration: Any = model.config
    settings = {
        name: value
        for name, value in configuration.to_dict().items()
        if name not in ("_name_or_path", "transformers_version", "dtype", "use_cache")
    }
    if any(".lora_B." in name for name in weights.keys() - idle):
        settings["adapters"] = repr(model.peft_config)  # the only place with its scale
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weight in weights.items():
        if name not in idle:
            # peft puts the model one level down, and an adapted layer one more.
            plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            digest.update(f"{plain} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.digest()
