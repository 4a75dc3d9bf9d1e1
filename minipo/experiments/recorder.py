"""What a trainer logs, written into the run's folder as it comes."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from minipo.experiments.datasets.splits import Interaction
from minipo.experiments.runs import Run, _lines
from minipo.folder import whole_file

if TYPE_CHECKING:
    from transformers import Trainer

    from minipo.evaluation import Scores

LOGGED = (
    "loss", "pair_loss", "learning_rate", "logp_chosen", "logp_rejected",
    "push_boundary", "push_discriminative", "boundary_share",
)  # fmt: skip


class Recorder:
    """Writes what a trainer logs into the run's folder, as it comes.

    checkpoint: the one that training resumes from, or None. Its seconds include the reference's log-probs, as far as
    the cache lacks them."""

    def __init__(self, trainer: "Trainer", out: Path, probed: Sequence[Interaction], checkpoint: Path | None):
        self.trainer: Any = trainer
        self.out, self.probed, self.checkpoint = out, probed, checkpoint
        self.step = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else -1
        for name in ("metrics", "evaluation"):
            # Steps after the checkpoint are trained again, and their lines written again.
            kept = [line for line in _lines(out / f"{name}.jsonl") if line["step"] <= self.step]
            with whole_file(out / f"{name}.jsonl") as draft:
                draft.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        lines = _lines(out / "metrics.jsonl")
        self.started = time.monotonic() - (lines[-1]["seconds"] if lines else 0.0)
        self.probe: list[pd.DataFrame] = []
        if probed and checkpoint:
            # Not "up to the checkpoint": a kill may have come between a probe and its evaluation's line.
            probe, evaluated = Run(out).probe, [line["step"] for line in _lines(out / "evaluation.jsonl")]
            self.probe.append(probe[probe.step.isin(evaluated)])

    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return round(time.monotonic() - self.started, 3)

    def heard(self, step: int, logs: dict[str, float]) -> None:
        """Take one of the Trainer's log lines."""
        if "loss" in logs:
            self._append("metrics", {"step": step, **{name: logs[name] for name in LOGGED if name in logs}})
        elif metrics := {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}:
            if count := len(self.probed):
                policy, reference = self.trainer.validation_report.scores, self.trainer.validation_reference
                self.probe.append(probe_table(self.probed, {step: policy[:count]}, reference[:count]))
                with whole_file(self.out / "probe.parquet") as draft:
                    pd.concat(self.probe).to_parquet(draft, index=False)
            self._append("evaluation", {"step": step, **metrics})

    def _append(self, name: str, line: dict[str, float]) -> None:
        line["seconds"] = self.seconds()
        with (self.out / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def probe_table(users: Sequence[Interaction], scores: Mapping[int, "Scores"], reference: "Scores") -> pd.DataFrame:
    """`Run.probe`'s columns. scores: step to the log-probs (users, 1 + K) then; reference: those of the SFT model."""
    counts = np.array([len(user.candidates) for user in users])
    there = np.arange(reference.shape[1]) < counts[:, None]  # users may differ in their number
    same = {
        "user": np.repeat([user.user for user in users], counts),
        "candidate": np.nonzero(there)[1],
        "item": [item for user in users for item in user.canonical],
        "reference": reference[there],
    }
    tables = [pd.DataFrame({"step": step, **same, "policy": logps[there]}) for step, logps in scores.items()]
    return pd.concat(tables, ignore_index=True)
